//! What the steady state costs, by strace: one system call for a guest's write, and one for a flush.
//!
//! Steady: the bits of what is written are set, of an overlay those of its own granules too, no region is cold. Says so and passes where strace cannot be used.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers beside the tests may fail as loudly as the tests"
)]

#[path = "common/skip.rs"]
mod skip;

use std::path::Path;
use std::process::Command;

use qbm::{AddBitmap, CreateOptions, Disk, Format, WriteFlags};
use skip::skipped;

const FOLDER: &str = "QBM_SYSTEM_CALLS_FOLDER";
const TIMES: usize = 100;
const NONE: WriteFlags = WriteFlags::empty();

/// Not a test by itself: what runs under strace.
#[test]
fn the_process_that_is_traced() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        work(&Path::new(&folder).join("disk.qbm"));
    }
}

/// Three parts, each between two calls of `getppid`, which nothing else here uses.
fn work(path: &Path) {
    let disk = Disk::open(path).expect("it opens");
    let block = [1; 4096];
    let write = || disk.write(&block, 64 << 10, NONE).expect("a write");
    let flush = || disk.flush().expect("a flush");
    write();
    flush();
    mark();
    (0..TIMES).for_each(|_| write());
    mark();
    (0..TIMES).for_each(|_| flush());
    mark();
    (0..TIMES).for_each(|_| {
        write();
        flush();
    });
    mark();
    disk.close().expect("it closes");
}

fn mark() {
    // SAFETY: it only returns a number.
    unsafe { libc::getppid() };
}

#[test]
fn a_write_and_a_flush_are_one_system_call_each() {
    are_one_each(&CreateOptions::new().size(1 << 20));
}

/// Once the granule is the overlay's own, durably.
#[test]
fn a_write_and_a_flush_of_an_overlay_are_one_system_call_each() {
    are_one_each(
        &CreateOptions::new()
            .size(1 << 20)
            .backing("base.img", Format::Raw),
    );
}

fn are_one_each(options: &CreateOptions) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.qbm");
    std::fs::write(folder.path().join("base.img"), vec![0xbb; 1 << 20]).expect("a backing");
    options.create(&path).expect("a disk");
    let disk = Disk::open(&path).expect("it opens");
    for name in ["first", "second"] {
        disk.bitmap_add(name, AddBitmap::default()).expect("a bitmap");
    }
    disk.close().expect("it closes");

    let trace = folder.path().join("trace");
    let program = std::env::current_exe().expect("the path of this program");
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o"])
        .arg(&trace)
        .arg(program)
        .args(["--exact", "the_process_that_is_traced"])
        .env(FOLDER, folder.path())
        .output();
    match output {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("ptrace"), "{said}");
            return skipped(format_args!("counting system calls: {}", said.trim()));
        }
        Err(why) => return skipped(format_args!("counting system calls: strace: {why}")),
    }
    let trace = std::fs::read_to_string(trace).expect("the trace");
    // A line is `12345 pwrite64(7, ...) = 4096`, with blanks between the two as wide as they have to be.
    let lines = || trace.lines().filter_map(|line| line.split_once(' '));
    let (thread, _) = lines()
        .find(|(_, call)| call.contains("getppid("))
        .expect("a mark");
    let ours = lines()
        .filter(|(of, _)| *of == thread)
        .map(|(_, call)| call.trim_start());
    let begun = ours.filter(|call| !call.starts_with("<..."));
    let calls: Vec<&str> = begun.filter_map(|call| call.split('(').next()).collect();
    let parts: Vec<&[&str]> = calls.split(|call| *call == "getppid").collect();
    let [_, writes, flushes, both, _] = parts[..] else {
        panic!("{} parts", parts.len());
    };
    assert_eq!(writes, ["pwrite64"; TIMES]);
    assert_eq!(flushes, ["fdatasync"; TIMES]);
    assert_eq!(both, ["pwrite64", "fdatasync"].repeat(TIMES));
}
