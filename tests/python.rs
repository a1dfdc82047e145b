//! The Python example, against the shared library of this build.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

/// Cargo puts the shared library beside the folder of the tests.
fn shared_library() -> PathBuf {
    let program = std::env::current_exe().expect("the path of this program");
    let deps = program.parent().expect("the folder of this program");
    let here = deps.join("libqbm.so");
    if here.exists() {
        here
    } else {
        deps.parent().expect("the folder of the build").join("libqbm.so")
    }
}

#[test]
fn the_round_trip_of_the_example() {
    if Command::new("python3").arg("--version").output().is_err() {
        // Past the capture of a passing test's output: what was not tested must be seen.
        let _ = writeln!(std::io::stderr(), "skipped: there is no python3 here");
        return;
    }
    let library = shared_library();
    assert!(library.exists(), "{} was not built", library.display());
    let folder = tempfile::tempdir().expect("a folder for the disk");
    let output = Command::new("python3")
        .arg("examples/python/roundtrip.py")
        .arg("--library")
        .arg(&library)
        .arg(folder.path())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("python3 starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complained}");
    assert!(said.contains("data"), "no data was found: {said}");
    assert!(said.contains("code 2"), "no code of a failure: {said}");
    assert!(said.trim_end().ends_with("done"), "{said}");
    assert_eq!(complained, "");
}
