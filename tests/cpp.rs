//! The C++ example, as a user of libqbm builds it: strict C++17 without a warning.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::process::Command;

use common::{libraries, must, root};

#[test]
fn the_backups_of_the_example() {
    let folder = tempfile::tempdir().expect("a folder for the program and the disk");
    let program = folder.path().join("backup");
    must(
        Command::new("c++")
            .args(["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"])
            .arg(root().join("include"))
            .arg(root().join("examples/cpp/backup.cpp"))
            .arg("-L")
            .arg(libraries())
            .args(["-lqbm", "-o"])
            .arg(&program),
    );
    // The loader looks for the soname, which cargo gives no file.
    std::os::unix::fs::symlink(libraries().join("libqbm.so"), folder.path().join("libqbm.so.0"))
        .expect("a link");
    let run = |place: &std::path::Path| {
        Command::new(&program)
            .arg(place)
            .env("LD_LIBRARY_PATH", folder.path())
            .output()
            .expect("the program starts")
    };

    let output = run(folder.path());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(
        lines[..3],
        ["dirty: 1 granule", "full: 4096 bytes", "incremental: 4096 bytes"],
        "{said}"
    );
    assert!(lines[3].contains("cpp.qbm"), "the error names no file: {said}");

    let again = run(folder.path());
    assert_eq!(again.status.code(), Some(1), "the disk exists by now");
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(said.contains("cpp.qbm"), "{said}");
}
