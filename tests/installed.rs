//! What `make install` leaves: a C program that knows nothing but `pkg-config --cflags --libs qbm` compiles against it
//! and runs, with the shared and with the static library.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{libraries, must, root};

const PREFIX: &str = "opt/qbm";

/// An installed tree under `destination`, of what this test run has built.
fn install(destination: &Path) {
    let built = tempfile::tempdir().expect("a folder");
    let link = |from: PathBuf, name: &str| {
        std::os::unix::fs::symlink(from, built.path().join(name)).expect("a link");
    };
    link(libraries().join("libqbm.so"), "libqbm.so");
    link(libraries().join("libqbm.a"), "libqbm.a");
    link(PathBuf::from(env!("CARGO_BIN_EXE_qbm")), "qbm");
    make("install", destination, &[("BUILT", built.path())]);
}

fn make(target: &str, destination: &Path, variables: &[(&str, &Path)]) {
    let mut command = Command::new("make");
    command
        .current_dir(root())
        .arg("--no-print-directory")
        .arg(target)
        .arg(format!("PREFIX=/{PREFIX}"))
        .arg(format!("DESTDIR={}", destination.display()));
    for (name, value) in variables {
        command.arg(format!("{name}={}", value.display()));
    }
    // This may run under `make check`, whose flags are not for this one.
    must(command.env_remove("MAKEFLAGS").env_remove("MAKELEVEL"));
}

fn pkg_config(destination: &Path, arguments: &[&str]) -> Vec<String> {
    let pc = destination.join(PREFIX).join("lib/pkgconfig");
    let flags = must(
        Command::new("pkg-config")
            .args(arguments)
            .arg("qbm")
            .env("PKG_CONFIG_LIBDIR", pc)
            .env("PKG_CONFIG_SYSROOT_DIR", destination),
    );
    flags.split_whitespace().map(str::to_owned).collect()
}

fn build_and_run(destination: &Path, extra: &[&str], flags: &[String]) -> PathBuf {
    let program = destination.join("program");
    must(
        Command::new("cc")
            .args(extra)
            .arg(root().join("examples/c/roundtrip.c"))
            .args(flags)
            .arg("-o")
            .arg(&program),
    );
    let work = tempfile::tempdir().expect("a folder to work in");
    let said = must(
        Command::new(&program)
            .env("QBM_STORY_DIR", work.path())
            .env("LD_LIBRARY_PATH", destination.join(PREFIX).join("lib")),
    );
    assert!(said.starts_with("hello"), "{said}");
    program
}

#[test]
fn a_c_program_needs_only_pkg_config() {
    let destination = tempfile::tempdir().expect("a folder");
    install(destination.path());
    let flags = pkg_config(destination.path(), &["--cflags", "--libs"]);
    let program = build_and_run(destination.path(), &[], &flags);
    let needed = must(Command::new("readelf").arg("-d").arg(program));
    assert!(needed.contains("[libqbm.so.0]"), "{needed}");
}

#[test]
fn a_wholly_static_c_program_needs_only_pkg_config() {
    let destination = tempfile::tempdir().expect("a folder");
    install(destination.path());
    let flags = pkg_config(destination.path(), &["--static", "--cflags", "--libs"]);
    let program = build_and_run(destination.path(), &["-static"], &flags);
    let needed = must(Command::new("readelf").arg("-d").arg(program));
    assert!(!needed.contains("NEEDED"), "{needed}");
}

#[test]
fn the_static_library_alone_is_enough_for_a_dynamic_program() {
    let destination = tempfile::tempdir().expect("a folder");
    install(destination.path());
    let lib = destination.path().join(PREFIX).join("lib");
    std::fs::remove_file(lib.join("libqbm.so")).expect("the link is there to be removed");
    let flags = pkg_config(destination.path(), &["--static", "--cflags", "--libs"]);
    build_and_run(destination.path(), &[], &flags);
}

#[test]
fn uninstalling_leaves_no_file() {
    let destination = tempfile::tempdir().expect("a folder");
    install(destination.path());
    let version = must(Command::new(destination.path().join(PREFIX).join("bin/qbm")).arg("--version"));
    assert!(
        version.is_empty() || version.contains(env!("CARGO_PKG_VERSION")),
        "{version}"
    );
    let count = || {
        must(
            Command::new("find")
                .arg(destination.path())
                .args(["!", "-type", "d"]),
        )
        .lines()
        .count()
    };
    assert!(
        count() >= 7,
        "three names of the library, the static one, header, qbm.pc, tool"
    );
    make("uninstall", destination.path(), &[]);
    assert_eq!(count(), 0);
}
