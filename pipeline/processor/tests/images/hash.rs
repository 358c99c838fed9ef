//! SHA-256, here so that the goldens need no crate.

/// The digest of `data` in hexadecimal (FIPS 180-4).
pub(crate) fn sha256(data: &[u8]) -> String {
    let primes: Vec<u64> = (2u64..312).filter(|n| (2..*n).all(|d| n % d != 0)).collect();
    let bits = |root: f64| ((root.fract()) * 2f64.powi(32)) as u32;
    let rounds: Vec<u32> = primes.iter().take(64).map(|&p| bits((p as f64).cbrt())).collect();
    let mut state: Vec<u32> = primes.iter().take(8).map(|&p| bits((p as f64).sqrt())).collect();
    let mut message = data.to_vec();
    message.push(0x80);
    message.resize((message.len() + 8).next_multiple_of(64) - 8, 0);
    message.extend((data.len() as u64 * 8).to_be_bytes());
    message.chunks_exact(64).for_each(|block| add_block(&mut state, block, &rounds));
    state.iter().map(|word| format!("{word:08x}")).collect()
}

fn add_block(state: &mut [u32], block: &[u8], rounds: &[u32]) {
    let mut words: Vec<u32> = block.chunks_exact(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect();
    for at in 16..64 {
        let small = |word: u32, a: u32, b: u32, c: u32| word.rotate_right(a) ^ word.rotate_right(b) ^ (word >> c);
        let (early, late) = (small(words[at - 15], 7, 18, 3), small(words[at - 2], 17, 19, 10));
        words.push(words[at - 16].wrapping_add(early).wrapping_add(words[at - 7]).wrapping_add(late));
    }
    let mut v = state.to_vec();
    for (&word, &round) in words.iter().zip(rounds) {
        let big =
            |word: u32, a: u32, b: u32, c: u32| word.rotate_right(a) ^ word.rotate_right(b) ^ word.rotate_right(c);
        let choice = (v[4] & v[5]) ^ (!v[4] & v[6]);
        let first = v[7].wrapping_add(big(v[4], 6, 11, 25)).wrapping_add(choice).wrapping_add(round).wrapping_add(word);
        let majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
        let second = big(v[0], 2, 13, 22).wrapping_add(majority);
        v.rotate_right(1);
        v[4] = v[4].wrapping_add(first);
        v[0] = first.wrapping_add(second);
    }
    state.iter_mut().zip(&v).for_each(|(state, word)| *state = state.wrapping_add(*word));
}

#[test]
fn the_hash_used_here_is_sha256() {
    assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}
