//! The Python example, against the shared library of this build.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::process::Command;

use common::{have, libraries, must, root, skipped};

#[test]
fn the_round_trip_of_the_example() {
    if !have("python3") {
        skipped("the example in Python, as there is no python3 here");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder for the disk");
    let said = must(
        Command::new("python3")
            .arg(root().join("examples/python/roundtrip.py"))
            .arg("--library")
            .arg(libraries().join("libqbm.so"))
            .arg(folder.path()),
    );
    assert!(said.contains("data"), "no data was found: {said}");
    assert!(said.contains("code 2"), "no code of a failure: {said}");
    assert!(said.contains(": incremental, "), "no second backup: {said}");
    assert!(said.trim_end().ends_with("done"), "{said}");
}
