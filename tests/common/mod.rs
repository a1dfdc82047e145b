//! What the tests that build C programs share.

#![allow(dead_code, unused_imports, reason = "each test program uses a part")]

mod skip;

use std::path::{Path, PathBuf};
use std::process::Command;

pub use skip::skipped;

/// What a linker needs beside `libqbm.a`, as `qbm.pc` says it. libgcc is the C compiler's own to add.
pub fn native_libraries() -> Vec<String> {
    let text = std::fs::read_to_string(root().join("qbm.pc.in")).expect("qbm.pc.in");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Libs.private:"))
        .expect("Libs.private in qbm.pc.in");
    line.split_whitespace().map(str::to_owned).collect()
}

/// The project's folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where cargo put the libraries that belong to this test run.
pub fn libraries() -> PathBuf {
    let program = std::env::current_exe().expect("the path of this program");
    let folder = program.parent().expect("its folder").to_owned();
    for file in ["libqbm.so", "libqbm.a"] {
        assert!(
            folder.join(file).exists(),
            "{file} is not in {}",
            folder.display()
        );
    }
    folder
}

/// Whether the machine has this program.
pub fn have(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Runs a command and returns what it wrote to its output, or fails the test with all that it said.
pub fn must(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|why| panic!("{command:?} does not start: {why}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{said}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    said
}
