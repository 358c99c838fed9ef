//! The fuzz targets on seeds and on thousands of changed ones: what runs in every test. `tests/fuzz/run.sh` runs them guided by
//! coverage.

mod seeds;
mod targets;

use vela_types::SeedStream;

/// Changed copies of each seed.
const NUM_CHANGED: u64 = 60;

/// A copy of `seed` with a few bytes flipped, cut, doubled or drawn.
fn changed(seed: &[u8], random: &mut SeedStream) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            break;
        }
        let at = random.below(bytes.len() as u64) as usize;
        match random.below(5) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.below(256) as u8,
            2 => bytes.truncate(at),
            3 => _ = bytes.splice(at..at, bytes[..at].to_vec()),
            _ => _ = bytes.remove(at),
        }
        bytes.truncate(1 << 20);
    }
    bytes
}

fn run(name: &str) {
    let (_, target) = targets::TARGETS.into_iter().find(|(known, _)| *known == name).expect("a target");
    let seeds = seeds::of(name);
    assert!(!seeds.is_empty());
    for (index, seed) in seeds.iter().enumerate() {
        target(seed);
        let mut random = SeedStream::named(1, name, &index.to_string());
        for _ in 0..NUM_CHANGED {
            target(&changed(seed, &mut random));
        }
    }
}

#[test]
fn cap_seg_cells() {
    run("cap_seg");
}

#[test]
fn records_of_every_source() {
    run("records");
}

#[test]
fn images() {
    run("image");
}

#[test]
fn templates() {
    run("template");
}
