//! One target under libFuzzer: `VELA_FUZZ_TARGET` names it. Built by `tests/fuzz/run.sh` alone.

#![no_main]

#[path = "seeds.rs"]
mod seeds;
#[path = "targets.rs"]
mod targets;

use std::sync::OnceLock;

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

libfuzzer_sys::fuzz_target!(init: {
    let name = std::env::var("VELA_FUZZ_TARGET").expect("VELA_FUZZ_TARGET names a target");
    let (_, target) = targets::TARGETS.into_iter().find(|(known, _)| *known == name).expect("a known target");
    _ = TARGET.set(target);
    let corpus = std::env::var("VELA_FUZZ_SEEDS").expect("VELA_FUZZ_SEEDS names a folder");
    std::fs::create_dir_all(&corpus).expect("a folder for seeds");
    for (index, seed) in seeds::of(&name).into_iter().enumerate() {
        std::fs::write(format!("{corpus}/seed-{index}"), seed).expect("a seed");
    }
}, |data: &[u8]| TARGET.get().expect("chosen at the start")(data));
