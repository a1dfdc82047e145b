//! What libqbm writes QEMU reads back from the raw file, and the reverse.
//!
//! The raw file of a disk is an ordinary one: no byte of it may be elsewhere or otherwise than a program expects that
//! has never heard of QBM. Each test makes the same changes to the disk and to a plain vector, and compares.

#![allow(
    clippy::expect_used,
    reason = "helpers beside the tests may fail as loudly as the tests"
)]

#[path = "common/skip.rs"]
mod skip;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use qbm::{CreateOptions, Disk, WriteFlags};
use skip::skipped;
use tempfile::TempDir;

/// Not a multiple of 512: the last block is partial, for QEMU too.
const LENGTH: usize = (4 << 20) + 777;

const ROUNDS: usize = 200;

struct Room {
    _dir: TempDir,
    disk: PathBuf,
    image: PathBuf,
}

/// A disk on a raw image full of holes, or nothing where QEMU is missing.
fn room() -> Option<Room> {
    if Command::new("qemu-io").arg("--version").output().is_err() {
        skipped("qemu-io is not installed, so nothing was read back by it");
        return None;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let disk = dir.path().join("disk.qbm");
    CreateOptions::new()
        .size(LENGTH as u64)
        .create(&disk)
        .expect("a disk");
    Some(Room {
        image: dir.path().join("disk-data.img"),
        disk,
        _dir: dir,
    })
}

/// Runs qemu-io's commands on the raw file; fails the test where one of them does.
fn qemu_io(image: &Path, commands: &[String]) {
    for some in commands.chunks(500) {
        let mut run = Command::new("qemu-io");
        run.args(["-f", "raw", "-d", "unmap"]);
        for command in some {
            run.args(["-c", command]);
        }
        let output = run.arg(image).output().expect("qemu-io runs");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && !said.contains("failed") && output.stderr.is_empty(),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// Has QEMU compare every run of equal bytes.
fn qemu_reads(image: &Path, content: &[u8]) {
    let mut commands = Vec::new();
    let mut at = 0;
    for run in content.chunk_by(|a, b| a == b) {
        commands.push(format!("read -q -P {:#x} {at} {}", run[0], run.len()));
        at += run.len();
    }
    qemu_io(image, &commands);
}

fn libqbm_reads(disk: &Path, content: &[u8]) {
    let disk = Disk::open(disk).expect("it opens");
    let mut read = vec![0xee; content.len()];
    disk.read(&mut read, 0).expect("it reads");
    let first = read.iter().zip(content).position(|(a, b)| a != b);
    assert_eq!(first, None, "the first byte that differs");
    disk.close().expect("it closes");
}

/// A small generator: the same changes in every run, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).expect("48 bits") % limit
    }

    /// A range within the disk: of any length, often short, at times aligned, at times up to the end.
    fn range(&mut self) -> (usize, usize) {
        let unit = [1, 1, 512, 4096, 65536][self.below(5)];
        let longest = [16, 5000, 300_000][self.below(3)];
        let start = self.below(LENGTH) / unit * unit;
        let len = (1 + self.below(longest)).div_ceil(unit) * unit;
        match self.below(10) {
            0 => (LENGTH - len.min(LENGTH), len.min(LENGTH)),
            _ => (start, len.min(LENGTH - start)),
        }
    }

    /// A byte that is not zero, so that zeros are only where they were asked for.
    fn pattern(&mut self) -> u8 {
        u8::try_from(1 + self.below(255)).expect("a byte")
    }
}

#[test]
fn qemu_reads_what_libqbm_writes() {
    let Some(room) = room() else { return };
    let mut content = vec![0; LENGTH];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..4 {
        let disk = Disk::open(&room.disk).expect("it opens");
        for _ in 0..ROUNDS {
            let (start, len) = random.range();
            let at = start as u64;
            let there = &mut content[start..start + len];
            match random.below(8) {
                0 => {
                    there.fill(0);
                    disk.write_zeroes(at, len as u64, WriteFlags::empty())
                }
                1 => {
                    there.fill(0);
                    disk.write_zeroes(at, len as u64, WriteFlags::MAY_UNMAP)
                }
                2 => {
                    there.fill(0);
                    disk.discard(at, len as u64, WriteFlags::empty())
                }
                _ => {
                    there.fill(random.pattern());
                    disk.write(there, at, WriteFlags::empty())
                }
            }
            .expect("a change");
        }
        disk.close().expect("it closes");
        qemu_reads(&room.image, &content);
    }
    libqbm_reads(&room.disk, &content);
}

#[test]
fn libqbm_reads_what_qemu_writes() {
    let Some(room) = room() else { return };
    let mut content = vec![0; LENGTH];
    let mut random = Random(0xd1b5_4a32_d192_ed03);
    for _ in 0..4 {
        let mut commands = Vec::new();
        for _ in 0..ROUNDS {
            let (start, len) = random.range();
            let mut command = "write -q ".to_owned();
            let byte = match random.below(6) {
                0 => {
                    command.push_str("-z");
                    0
                }
                1 => {
                    command.push_str("-z -u");
                    0
                }
                _ => {
                    let byte = random.pattern();
                    write!(command, "-P {byte:#x}").expect("a string grows");
                    byte
                }
            };
            write!(command, " {start} {len}").expect("a string grows");
            content[start..start + len].fill(byte);
            commands.push(command);
        }
        qemu_io(&room.image, &commands);
        libqbm_reads(&room.disk, &content);
    }
    qemu_reads(&room.image, &content);
}

/// The comparison itself must be able to fail.
#[test]
fn a_byte_that_differs_is_seen() {
    let Some(room) = room() else { return };
    let disk = Disk::open(&room.disk).expect("it opens");
    disk.write(&[7], 70_001, WriteFlags::empty()).expect("a write");
    disk.close().expect("it closes");
    let seen = std::panic::catch_unwind(|| qemu_reads(&room.image, &vec![0; LENGTH]));
    assert!(seen.is_err());
}
