//! Who may import whom, held by machine: the edges between our crates, and the one door of each outside crate.
#![allow(clippy::unwrap_used)] // a test may panic

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

/// Each of our crates with those of ours that it may name.
const EDGES: [(&str, &[&str]); 7] = [
    ("trellis-proto", &[]),
    ("trellis-fabric", &[]),
    ("trellis-head", &["trellis-proto", "trellis-fabric"]),
    ("trellis-shard", &["trellis-proto", "trellis-fabric"]),
    ("trellis-qcu", &["trellis-proto", "trellis-fabric"]),
    ("trellis-python", &["trellis-proto", "trellis-fabric", "trellis-head", "trellis-shard", "trellis-qcu"]),
    ("trellis-tests", &["trellis-proto", "trellis-fabric", "trellis-head", "trellis-shard", "trellis-qcu"]),
];

/// Outside crates that one of ours alone may name, so that a change of library is a change of one crate.
const DOORS: [(&str, &str); 16] = [
    ("protox", "trellis-proto"),
    ("tonic-prost-build", "trellis-proto"),
    ("twox-hash", "trellis-proto"),
    ("hickory-resolver", "trellis-fabric"),
    ("mimalloc", "trellis-fabric"),
    ("opentelemetry-otlp", "trellis-fabric"),
    ("opentelemetry_sdk", "trellis-fabric"),
    ("tonic-health", "trellis-fabric"),
    ("tonic-reflection", "trellis-fabric"),
    ("lru", "trellis-head"),
    ("parquet", "trellis-shard"),
    ("object_store", "trellis-shard"),
    ("buoyant_kernel", "trellis-shard"),
    ("buoyant_kernel_engine", "trellis-shard"),
    ("pyo3", "trellis-python"),
    ("pyo3-arrow", "trellis-python"),
];

/// Direct dependencies of each member, but for those that only its own tests use.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            let named = package["dependencies"].as_array().unwrap().iter();
            let named = named.filter(|d| d["kind"].as_str() != Some("dev")).map(|d| text(&d["name"]));
            (text(&package["name"]), named.collect())
        })
        .collect()
}

#[test]
fn our_crates_meet_only_where_the_house_says() {
    let dependencies = dependencies();
    let rooms: Vec<&str> = EDGES.iter().map(|(name, _)| *name).collect();
    assert!(
        dependencies.keys().all(|name| rooms.contains(&name.as_str())),
        "a crate without a place: {dependencies:?}"
    );
    for (name, allowed) in EDGES {
        for other in dependencies[name].iter().filter(|d| rooms.contains(&d.as_str())) {
            assert!(allowed.contains(&other.as_str()), "{name} must not import {other}");
        }
    }
}

#[test]
fn each_outside_crate_has_one_door() {
    let dependencies = dependencies();
    for (outside, door) in DOORS {
        for (name, named) in &dependencies {
            assert!(
                name == door || !named.iter().any(|d| d == outside),
                "{name} names {outside}; only {door} may"
            );
        }
        assert!(
            dependencies[door].iter().any(|d| d == outside),
            "{door} no longer names {outside}: drop the line"
        );
    }
}

#[test]
fn the_cache_library_is_seen_by_one_file() {
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/../head-node/src");
    for entry in std::fs::read_dir(sources).unwrap() {
        let path = entry.unwrap().path();
        let code = std::fs::read_to_string(&path).unwrap_or_default();
        let named = code.lines().any(|line| !line.trim_start().starts_with("//") && line.contains("lru::"));
        assert!(!named || path.ends_with("cache.rs"), "{} names lru", path.display());
    }
}
