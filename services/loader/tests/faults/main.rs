//! What fails around a loader, made to fail: connections, processes, memory, stores, certificates. Through all of it every
//! sample is consumed exactly once, and what cannot be mended is told by name.
//!
//! `VELA_KILLS`, `VELA_PAUSE_SECONDS` and `VELA_SOAK_SECONDS` make the runs of the same names longer.

#[path = "../e2e/loader.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod loader;
#[path = "../e2e/shards.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod shards;

mod connections;
mod proxy;
mod resume;
mod work;
