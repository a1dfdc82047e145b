//! The C programs of `c-tests/` and `examples/c/` as programs of their own, as a user of libqbm builds them: strict C99
//! without a warning, against the shared and the static library, under valgrind where the machine has it. And what
//! such a user relies on: a header that C++ takes, the soname, and no name exported but `qbm_*`.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
#[path = "common/limited.rs"]
mod limited;

use std::path::Path;
use std::process::Command;

use common::{have, libraries, must, native_libraries, root, skipped};

const SKIPPED: i32 = 77;
const LEAKED: &str = "--error-exitcode=99";
const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

macro_rules! story {
    ($name:ident, $symbol:ident, $file:literal) => {
        #[test]
        fn $name() {
            as_programs($file);
        }
    };
}
include!(concat!(env!("OUT_DIR"), "/c_stories.rs"));

/// A note that a passing test's captured output would swallow: what was not tested must be seen.
fn as_programs(file: &str) {
    let folder = tempfile::tempdir().expect("a folder for the programs");
    let built = libraries();
    let shared = folder.path().join("shared");
    let mut rpath = std::ffi::OsString::from("-Wl,-rpath,");
    rpath.push(&built);
    must(
        compile(file, &shared)
            .arg("-L")
            .arg(&built)
            .arg("-lqbm")
            .arg(rpath),
    );
    let linked = must(Command::new("readelf").arg("-d").arg(&shared));
    assert!(
        linked.contains("libqbm.so.0"),
        "not linked to the soname:\n{linked}"
    );
    // The loader looks for the soname, which cargo gives no file.
    let soname = folder.path().join("libqbm.so.0");
    std::os::unix::fs::symlink(built.join("libqbm.so"), soname).expect("a link by the soname");

    let alone = folder.path().join("static");
    must(
        compile(file, &alone)
            .arg(built.join("libqbm.a"))
            .args(native_libraries()),
    );
    for program in [&shared, &alone] {
        run(file, &[program.as_os_str()], folder.path());
    }
    if have("valgrind") {
        let under = [
            "valgrind",
            "--quiet",
            LEAKED,
            "--leak-check=full",
            "--errors-for-leak-kinds=definite",
        ];
        let mut command: Vec<_> = under.iter().map(std::ffi::OsStr::new).collect();
        command.push(shared.as_os_str());
        run(file, &command, folder.path());
    } else {
        skipped(format_args!("{file} under valgrind, which is not installed"));
    }
}

fn compile(file: &str, program: &Path) -> Command {
    let mut command = Command::new("cc");
    command
        .arg("-std=c99")
        .args(STRICT)
        .arg("-g")
        .arg("-I")
        .arg(root().join("include"));
    if file.starts_with("c-tests/") {
        // As in build.rs: the examples show what plain C99 can do.
        command.arg("-D_GNU_SOURCE");
    }
    command.arg(root().join(file)).arg("-o").arg(program);
    command
}

/// Runs a story in a new folder, with the shared library by its soname in `libraries`.
fn run(file: &str, command: &[&std::ffi::OsStr], libraries: &Path) {
    let work = tempfile::tempdir().expect("a folder for the story");
    let (status, said) = limited::run_limited(
        Command::new(command[0])
            .args(&command[1..])
            .env("QBM_STORY_DIR", work.path())
            .env("LD_LIBRARY_PATH", libraries),
    );
    match status.code() {
        Some(0) => {}
        Some(SKIPPED) => skipped(format_args!("{file}: {}", said.trim())),
        _ => panic!("{command:?}: {status}\n{said}"),
    }
}

#[test]
fn the_header_is_cplusplus_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("header.cpp");
    let text = "#include <qbm.h>\nint main() { return qbm_length(nullptr) == 0 && qbm_version() ? 0 : 1; }\n";
    std::fs::write(&source, text).expect("the source");
    let program = folder.path().join("header");
    must(
        Command::new("c++")
            .arg("-std=c++17")
            .args(STRICT)
            .arg("-I")
            .arg(root().join("include"))
            .arg(&source)
            .arg(libraries().join("libqbm.a"))
            .args(native_libraries())
            .arg("-o")
            .arg(&program),
    );
    must(&mut Command::new(&program));
}

#[test]
fn nothing_is_exported_but_qbm() {
    let names = must(
        Command::new("nm")
            .args(["-D", "--defined-only", "--format=posix"])
            .arg(libraries().join("libqbm.so")),
    );
    let names: Vec<&str> = names
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(names.contains(&"qbm_version"), "{names:?}");
    let others: Vec<_> = names.iter().filter(|name| !name.starts_with("qbm_")).collect();
    assert!(others.is_empty(), "exported as well: {others:?}");
    // A versioned name would read qbm_open@@...
    let versioned: Vec<_> = names.iter().filter(|name| name.contains('@')).collect();
    assert!(versioned.is_empty(), "versioned: {versioned:?}");
}

#[test]
fn every_exported_function_is_in_the_header() {
    let header = std::fs::read_to_string(root().join("include/qbm.h")).expect("the header");
    let names = must(
        Command::new("nm")
            .args(["-D", "--defined-only", "--format=posix"])
            .arg(libraries().join("libqbm.so")),
    );
    for name in names.lines().filter_map(|line| line.split_whitespace().next()) {
        assert!(
            header.contains(&format!("{name}(")),
            "{name} is not in include/qbm.h"
        );
    }
}

#[test]
fn the_soname_is_libqbm_so_0() {
    let dynamic = must(
        Command::new("readelf")
            .arg("-d")
            .arg(libraries().join("libqbm.so")),
    );
    assert!(
        dynamic.contains("Library soname: [libqbm.so.0]"),
        "no soname in:\n{dynamic}"
    );
}

/// `qbm.pc` names the system's libraries by hand, so that installing needs no compiler: here rustc is asked.
#[test]
fn qbm_pc_names_all_that_a_static_library_needs() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("empty.rs");
    std::fs::write(&source, "").expect("the source");
    let output = Command::new("rustc")
        .args([
            "--crate-type=staticlib",
            "--print=native-static-libs",
            "--out-dir",
        ])
        .arg(folder.path())
        .arg(&source)
        .output()
        .expect("rustc starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let asked = said
        .lines()
        .find_map(|line| line.split_once("native-static-libs:"))
        .unwrap_or_else(|| panic!("rustc names no libraries:\n{said}"))
        .1;
    let named = native_libraries();
    // libgcc_s: the C compiler adds it, or libgcc_eh for a program that is wholly static.
    for library in asked.split_whitespace().filter(|library| *library != "-lgcc_s") {
        assert!(
            named.iter().any(|name| name == library),
            "{library} is not in qbm.pc.in"
        );
    }
}
