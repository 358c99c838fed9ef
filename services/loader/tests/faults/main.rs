//! What fails around a loader, made to fail: connections, processes, memory, stores, certificates. Through all of it every
//! sample is consumed exactly once, and what cannot be mended is told by name.
//!
//! `VELA_KILLS`, `VELA_PAUSE_SECONDS` and `VELA_SOAK_SECONDS` make the runs of the same names longer.

#[path = "../e2e/authority.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod authority;
#[path = "../e2e/calls.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod calls;
#[path = "../e2e/loader.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod loader;
#[path = "../e2e/shards.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod shards;

mod certificates;
mod connections;
mod consumer;
mod kills;
mod memory;
mod process;
mod proxy;
mod record;
mod resume;
mod soak;
mod store;
mod work;

/// The number in the environment variable `name`, else `usual`.
fn number_from(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().expect("a number"))
}

/// Tells what was measured, for the log of a long run.
#[expect(clippy::print_stderr, reason = "numbers of a run are read in its log")]
fn note(text: &str) {
    eprintln!("{text}");
}
