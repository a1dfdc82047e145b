//! The examples of README.md, as they stand there: whoever copies one gets what CI has compiled and run.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::process::Command;

use qbm::{AddBitmap, Disk, WriteFlags};

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

/// A block of shell, as a new user runs it in `folder`: what it prints.
fn shell(name: &str, folder: &Path) -> String {
    let tool = Path::new(env!("CARGO_BIN_EXE_qbm")).parent().expect("its folder");
    let path = std::env::var("PATH").unwrap_or_default();
    must(
        Command::new("sh")
            .args(["-euc", &example(name)])
            .current_dir(folder)
            .env("PATH", format!("{}:{path}", tool.display())),
    )
}

#[test]
fn the_tool() {
    let folder = tempfile::tempdir().expect("a folder");
    shell("tool", folder.path());
    for (file, length) in [
        ("new.qbm", None),
        ("before.qbm", None),
        ("new-data.img", Some(80 << 20)),
        ("copy.img", Some(80 << 20)),
    ] {
        let found = std::fs::metadata(folder.path().join(file)).unwrap_or_else(|why| panic!("{file}: {why}"));
        assert!(
            length.is_none_or(|length| found.len() == length),
            "{file}: {} bytes",
            found.len()
        );
    }
}

#[test]
fn backups_of_a_raw_disk_and_then_of_what_qemu_wrote() {
    let folder = tempfile::tempdir().expect("a folder");
    let said = shell("machines", folder.path());
    assert!(said.contains("full backup"), "{said}");
    assert!(said.contains("sound"), "{said}");
    let restored = std::fs::metadata(folder.path().join("restored.img")).expect("what was restored");
    assert_eq!(restored.len(), 64 << 20);

    if !have("qemu-io") {
        skipped("README's way through QEMU, as there is no qemu-io here");
        return;
    }
    let said = shell("qemu", folder.path());
    assert!(said.contains("incremental backup"), "{said}");
    assert!(said.contains("64 KiB stored"), "{said}");
    let image = std::fs::read(folder.path().join("vm1.img")).expect("the image");
    assert_eq!(image[1 << 20], 7, "the qcow2 is not a way to the image itself");
}

/// An example in Rust as a program, against the library of this build, run in `folder`.
fn run_rust(name: &str, folder: &Path) {
    let source = folder.join(format!("{name}.rs"));
    std::fs::write(&source, example(name)).expect("the source");
    let program = folder.join(name);
    let mut library = std::ffi::OsString::from("qbm=");
    library.push(libraries().join("libqbm.rlib"));
    must(
        Command::new("rustc")
            .args(["--edition=2024", "-Dwarnings", "--extern"])
            .arg(library)
            .arg("-L")
            .arg(libraries())
            .arg(&source)
            .arg("-o")
            .arg(&program),
    );
    must(Command::new(program).current_dir(folder));
}

#[test]
fn rust_and_then_a_backup_program_on_the_disk_that_it_made() {
    let folder = tempfile::tempdir().expect("a folder");
    run_rust("rust", folder.path());

    let path = folder.path().join("disk.qbm");
    let image = folder.path().join("disk-data.img");
    let copy = folder.path().join("copy.img");
    std::fs::copy(&image, &copy).expect("the first backup");
    let disk = Disk::open(&path).expect("the disk opens");
    disk.bitmap_add("nightly", AddBitmap::default())
        .expect("a bitmap");
    // More than the piece that the program copies at a time, and the disk's end.
    disk.write(&vec![7; 3 << 20], 5 << 20, WriteFlags::empty())
        .expect("a write");
    disk.write(b"end", disk.length() - 3, WriteFlags::empty())
        .expect("a write");
    disk.close().expect("it closes");

    run_rust("pull", folder.path());
    let read = |path| std::fs::read(path).expect("an image");
    assert!(read(&image) == read(&copy), "something dirty was not copied");
    let disk = Disk::open(&path).expect("the disk opens");
    let left = disk
        .bitmap_next_dirty("nightly", 0, u64::MAX)
        .expect("the bitmap");
    assert_eq!(left, None, "the bitmap did not forget");
}
