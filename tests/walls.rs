//! The crate walls of docs/architecture.md, asserted from `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Crate, the workspace crates it may use, and the heavy outside crates it may use.
const WALLS: &[(&str, &[&str], &[&str])] = &[
    ("vela-types", &[], &[]),
    ("vela-processor", &["types"], &["tokenizers", "image", "mozjpeg-sys"]),
    ("vela-shard", &["types"], &["arrow", "parquet", "object_store"]),
    ("vela-prepare", &["types", "processor", "shard", "runtime"], &["polars", "ballista", "datafusion", "reqwest"]),
    ("vela-dataset", &["types", "shard"], &[]),
    ("vela-proto", &["types"], &["prost", "tonic", "tonic-prost", "protox", "tonic-prost-build"]),
    ("vela-runtime", &[], &["clap", "tracing-subscriber", "metrics-exporter-prometheus", "hyper"]),
    (
        "vela-loader",
        &["types", "proto", "dataset", "shard", "runtime"],
        &["tonic", "tonic-health", "tonic-reflection", "rustls"],
    ),
    ("vela-client", &["types", "proto"], &["tonic"]),
    ("vela-kernels", &[], &["candle-core", "cudarc"]),
    ("vela-models", &["kernels", "processor"], &["candle-core", "safetensors"]),
    (
        "vela-train",
        &["types", "client", "dataset", "shard", "processor", "models", "kernels", "runtime"],
        &["candle-core", "safetensors", "mpi", "cudarc"],
    ),
];

/// Outside crates that decide build time or design; a crate not listed above may use none of them.
const HEAVY: &[&str] = &[
    "tokenizers",
    "image",
    "mozjpeg-sys",
    "arrow",
    "parquet",
    "object_store",
    "polars",
    "ballista",
    "datafusion",
    "prost",
    "tonic",
    "tonic-prost",
    "tonic-health",
    "tonic-reflection",
    "rustls",
    "metrics-exporter-prometheus",
    "protox",
    "tonic-prost-build",
    "clap",
    "tracing-subscriber",
    "candle-core",
    "candle-nn",
    "candle-transformers",
    "safetensors",
    "cudarc",
    "mpi",
    "axum",
    "hyper",
    "reqwest",
];

/// Only these may depend on crates on both sides of the wire.
const OUTSIDE_THE_WALLS: &[&str] = &["vela-demo", "vela-tests"];

/// Names no crate or module of the workspace may carry: they invite anything.
const CATCH_ALL_NAMES: &[&str] = &["util", "utils", "common", "helper", "helpers", "misc"];

fn workspace() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

/// Direct dependencies of each workspace crate, development ones left out.
fn edges() -> BTreeMap<String, BTreeSet<String>> {
    let packages = workspace()["packages"].as_array().expect("packages").clone();
    let name = |value: &Value| value["name"].as_str().expect("a name").to_owned();
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            let kept = dependencies.iter().filter(|dependency| dependency["kind"] != "dev");
            (name(package), kept.map(name).collect())
        })
        .collect()
}

#[test]
fn no_crate_reaches_over_its_wall() {
    let mut breaches = Vec::new();
    for (package, dependencies) in edges() {
        if OUTSIDE_THE_WALLS.contains(&package.as_str()) {
            continue;
        }
        let Some((_, ours, heavy)) = WALLS.iter().find(|(name, ..)| *name == package) else {
            breaches.push(format!("{package} has no row in the table"));
            continue;
        };
        for dependency in dependencies {
            let allowed = match dependency.strip_prefix("vela-") {
                Some(short) => ours.contains(&short),
                None => !HEAVY.contains(&dependency.as_str()) || heavy.contains(&dependency.as_str()),
            };
            if !allowed {
                breaches.push(format!("{package} may not use {dependency}"));
            }
        }
    }
    assert!(breaches.is_empty(), "{breaches:#?}");
}

#[test]
fn every_wall_stands_around_a_crate() {
    let edges = edges();
    let missing: Vec<_> = WALLS.iter().filter(|(name, ..)| !edges.contains_key(*name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn one_copy_of_each_crate_that_crosses_a_border() {
    let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock")).expect("Cargo.lock");
    for package in ["parquet", "object_store", "tonic", "prost", "candle-core", "safetensors", "tokenizers"] {
        let copies = lock.lines().filter(|line| *line == format!("name = \"{package}\"")).count();
        assert_eq!(copies, 1, "{package} is in Cargo.lock {copies} times");
    }
}

#[test]
fn no_file_is_named_for_anything_at_all() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut open: Vec<_> = ["proto", "pipeline", "services", "trainer", "tests"].map(|folder| root.join(folder)).into();
    let mut offenders = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of the workspace").flatten() {
            let path = entry.path();
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if CATCH_ALL_NAMES.contains(&stem.as_str()) {
                offenders.push(path.clone());
            }
            if path.is_dir() && stem != "target" && stem != "node_modules" {
                open.push(path);
            }
        }
    }
    assert!(offenders.is_empty(), "{offenders:?}");
}
