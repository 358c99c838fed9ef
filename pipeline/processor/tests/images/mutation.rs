//! Files with random faults: whatever the bytes, a picture or an error with a cause, in bounded time and memory.
//!
//! Seeded: a failing case prints what makes it again. `VELA_MUTATIONS` sets the number of cases per format.

use std::fs;
use std::time::{Duration, Instant};

use vela_processor::codec;
use vela_types::SeedStream;

use crate::{golden, read_json};

/// Many times what the slowest case takes in an unoptimised build.
const LONGEST: Duration = Duration::from_secs(20);

fn num_cases() -> u64 {
    std::env::var("VELA_MUTATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(600)
}

/// The seeds of one format: every golden file of it.
fn originals(extension: &str) -> Vec<Vec<u8>> {
    let names = read_json("files.json")["own"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let of_format = names.iter().filter(|name| name.ends_with(extension));
    of_format.map(|name| fs::read(golden("files").join(name)).unwrap()).collect()
}

/// One to six faults: flipped bits, bytes of extremes, cuts, doublings, exchanges with another file.
fn mutated(originals: &[Vec<u8>], draws: &mut SeedStream) -> Vec<u8> {
    let mut file = originals[draws.below(originals.len() as u64) as usize].clone();
    for _ in 0..=draws.below(6) {
        let length = file.len() as u64;
        if length < 16 {
            break;
        }
        let at = draws.below(length) as usize;
        let run = 1 + draws.below((length - at as u64).min(16)) as usize;
        match draws.below(7) {
            0 | 1 => file[at] ^= 1 << draws.below(8),
            2 => file[at..at + run].fill([0, 0xFF, 0x7F, 0x80][draws.below(4) as usize]),
            3 => file[at] = draws.next_u64() as u8,
            4 => drop(file.drain(at..at + run)),
            5 => {
                let doubled = file[at..at + run].to_vec();
                file.splice(at..at, doubled);
            }
            _ => {
                let other = &originals[draws.below(originals.len() as u64) as usize];
                let from = &other[(at.min(other.len() - 1))..];
                file.truncate(at.max(8));
                file.extend_from_slice(from);
            }
        }
    }
    file
}

fn survive(extension: &str) {
    let originals = originals(extension);
    assert!(originals.len() > 10, "seeds for {extension}");
    let mut read = 0;
    for case in 0..num_cases() {
        let mut draws = SeedStream::new(case ^ 0x5EED_0000);
        let file = mutated(&originals, &mut draws);
        let started = Instant::now();
        let result = codec::decode_rgb(&file, "mutated");
        assert!(started.elapsed() < LONGEST, "{extension} case {case}: {:?}", started.elapsed());
        let header = codec::check_header(&file, "mutated");
        match result {
            Ok(image) => {
                read += 1;
                assert_eq!(image.data.len() as u64, u64::from(image.width) * u64::from(image.height) * 3);
                assert!(header.is_ok(), "{extension} case {case}: {header:?}");
            }
            Err(error) => assert_ne!(error.cause(), "processor", "{extension} case {case}: {error}"),
        }
    }
    // Faults that nothing notices prove as little as faults that nothing survives.
    assert!(read > 0 && read < num_cases(), "{extension}: {read} read");
}

#[test]
fn no_fault_in_a_jpeg_ends_in_a_panic() {
    survive(".jpg");
}

#[test]
fn no_fault_in_a_png_ends_in_a_panic() {
    survive(".png");
}

#[test]
fn no_fault_in_a_gif_ends_in_a_panic() {
    survive(".gif");
}

#[test]
fn no_fault_in_a_webp_ends_in_a_panic() {
    survive(".webp");
}

#[test]
fn no_fault_in_a_bmp_ends_in_a_panic() {
    survive(".bmp");
}

#[test]
fn no_fault_in_a_tiff_ends_in_a_panic() {
    survive(".tiff");
}
