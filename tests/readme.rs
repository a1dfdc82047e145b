//! The examples of README.md, as they stand there: whoever copies one gets what CI has compiled and run.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{have, libraries, must, root, skipped};

/// The block of code behind the marker `<!-- example: NAME -->`.
fn example(name: &str) -> String {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let marker = format!("<!-- example: {name} -->\n```");
    let (_, behind) = readme
        .split_once(&marker)
        .unwrap_or_else(|| panic!("README.md has no {marker}"));
    let (_, code) = behind.split_once('\n').expect("a line behind the fence");
    let (code, _) = code.split_once("\n```").expect("an end of the block");
    format!("{code}\n")
}

/// The C example as a program in `folder`, and beside it the library by the name that programs look for.
fn build(folder: &Path) -> Command {
    let source = folder.join("hello.c");
    std::fs::write(&source, example("c")).expect("the source");
    std::os::unix::fs::symlink(libraries().join("libqbm.so"), folder.join("libqbm.so.0")).expect("a link");
    let program = folder.join("hello");
    must(
        Command::new("cc")
            .args(["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"])
            .arg(root().join("include"))
            .arg(&source)
            .arg("-L")
            .arg(libraries())
            .args(["-lqbm", "-o"])
            .arg(&program),
    );
    let mut command = Command::new(program);
    command.current_dir(folder).env("LD_LIBRARY_PATH", folder);
    command
}

#[test]
fn c_and_then_python_on_the_disk_that_c_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut hello = build(folder.path());
    assert_eq!(must(&mut hello), "hello\n");
    let again = hello.output().expect("the program starts");
    assert_eq!(again.status.code(), Some(1), "the disk exists by now");
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(said.contains("disk.qbm"), "{said}");

    if !have("python3") {
        skipped("README's Python, as there is no python3 here");
        return;
    }
    let said = must(
        Command::new("python3")
            .args(["-c", &example("python")])
            .current_dir(folder.path())
            .env("LD_LIBRARY_PATH", folder.path()),
    );
    assert_eq!(said, format!("{} {}\n", env!("CARGO_PKG_VERSION"), 64 << 20));
}

#[test]
fn the_tool() {
    let folder = tempfile::tempdir().expect("a folder");
    let tool = Path::new(env!("CARGO_BIN_EXE_qbm")).parent().expect("its folder");
    let path = std::env::var("PATH").unwrap_or_default();
    must(
        Command::new("sh")
            .args(["-euc", &example("tool")])
            .current_dir(folder.path())
            .env("PATH", format!("{}:{path}", tool.display())),
    );
    for (file, length) in [
        ("new.qbm", None),
        ("two.qbm", None),
        ("new-data.img", Some(80 << 20)),
    ] {
        let found = std::fs::metadata(folder.path().join(file)).unwrap_or_else(|why| panic!("{file}: {why}"));
        assert!(
            length.is_none_or(|length| found.len() == length),
            "{file}: {} bytes",
            found.len()
        );
    }
}
