//! Image files against Pillow, towers' inputs against the image processors, and what no file may do.
//! The expected values stand in `tests/golden/processor`, beside the scripts that make them.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod bombs;
mod defects;
mod files;
mod hash;
mod mutation;
mod towers;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/processor").join(name)
}

fn read_json(name: &str) -> Value {
    serde_json::from_slice(&fs::read(golden(name)).unwrap()).unwrap()
}
