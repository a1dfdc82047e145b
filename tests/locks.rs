//! Two users of one disk: libqbm and libqbm, and libqbm and QEMU's own programs, in both orders.
//!
//! What may live together and what may not is QEMU's rule for raw images: writers exclude writers; a reader that relies
//! on the content (`qemu-img convert`) excludes writers too; one that does not (`qemu-io -r`, `qemu-img info`) is let in.
//! libqbm's own readers rely on the content.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers beside the tests may fail as loudly as the tests"
)]

#[path = "common/nbd.rs"]
mod nbd;
#[path = "common/skip.rs"]
mod skip;

use std::path::PathBuf;
use std::process::Command;

use nbd::Server;
use qbm::{CreateOptions, Disk, ErrorCode, OpenOptions, WriteFlags};
use skip::skipped;
use tempfile::TempDir;

struct Room {
    dir: TempDir,
    disk: PathBuf,
    image: PathBuf,
}

impl Room {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let disk = dir.path().join("disk.qbm");
        CreateOptions::new().size(1 << 20).create(&disk).expect("a disk");
        let image = dir.path().join("disk-data.img");
        Self { dir, disk, image }
    }

    /// Nothing, with a word, where QEMU is missing.
    fn with_qemu() -> Option<Self> {
        for program in ["qemu-img", "qemu-io", "qemu-nbd"] {
            if Command::new(program).arg("--version").output().is_err() {
                skipped(format_args!(
                    "locks between libqbm and QEMU: {program} is not installed"
                ));
                return None;
            }
        }
        Some(Self::new())
    }

    fn writer(&self) -> Disk {
        Disk::open(&self.disk).expect("it opens for writing")
    }

    fn reader(&self) -> Disk {
        reading().open(&self.disk).expect("it opens for reading")
    }

    /// That an open is refused because of a lock, in words that have all of `words` in them.
    fn is_locked(&self, options: &OpenOptions, words: &[&str]) {
        let error = options.open(&self.disk).expect_err("somebody else has it");
        assert_eq!(error.code(), ErrorCode::Locked, "{error}");
        for word in words {
            assert!(error.message().contains(word), "no {word:?} in: {error}");
        }
    }

    /// Runs one of QEMU's programs on the image; the error is what it says.
    fn qemu(&self, program: &str, before: &[&str], after: &[&str]) -> Result<(), String> {
        let mut command = Command::new(program);
        let output = command.args(before).arg(&self.image).args(after).output();
        let output = output.expect("QEMU's program runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            Ok(())
        } else {
            Err(said)
        }
    }

    fn qemu_writes(&self) -> Result<(), String> {
        self.qemu("qemu-io", &["-f", "raw", "-c", "write 0 512"], &[])
    }

    fn qemu_resizes(&self) -> Result<(), String> {
        self.qemu("qemu-img", &["resize", "-q", "-f", "raw"], &["1M"])
    }

    /// Reads, and relies on what it has read.
    fn qemu_converts(&self, options: &[&str]) -> Result<(), String> {
        let copy = self.dir.path().join("copy").display().to_string();
        self.qemu(
            "qemu-img",
            &[&["convert", "-O", "raw"], options].concat(),
            &[&copy],
        )
    }

    fn qemu_looks(&self) -> Result<(), String> {
        self.qemu("qemu-io", &["-r", "-f", "raw", "-c", "read 0 512"], &[])
    }
}

fn reading() -> OpenOptions {
    OpenOptions::new().read_only(true)
}

#[test]
fn of_two_handles_one_may_write() {
    let room = Room::new();
    let writer = room.writer();
    room.is_locked(&OpenOptions::new(), &["another handle of this process"]);
    room.is_locked(&reading(), &["another handle of this process", "for reading"]);
    writer.close().expect("it closes");
    room.writer().close().expect("the lock went with the handle");
}

#[test]
fn readers_live_together_and_without_a_writer() {
    let room = Room::new();
    let readers = [room.reader(), room.reader()];
    room.is_locked(
        &OpenOptions::new(),
        &["another handle of this process", "for writing"],
    );
    drop(readers);
    room.writer().close().expect("the locks went with the handles");
}

#[test]
fn no_lock_minds_nobody() {
    let room = Room::new();
    let writer = room.writer();
    let unlocked = reading()
        .no_lock(true)
        .open(&room.disk)
        .expect("it minds no lock");
    room.is_locked(&OpenOptions::new(), &[]);
    drop(unlocked);
    room.is_locked(&OpenOptions::new(), &[]);
    drop(writer);
    let unlocked = OpenOptions::new()
        .no_lock(true)
        .open(&room.disk)
        .expect("it takes no lock");
    room.writer().close().expect("nobody is in its way");
    drop(unlocked);
}

#[test]
fn a_handle_that_was_dropped_unclosed_locks_nothing() {
    let room = Room::new();
    let writer = room.writer();
    writer.write(&[1; 512], 0, WriteFlags::empty()).expect("a write");
    drop(writer);
    room.writer().close().expect("it opens again");
}

#[test]
fn qemu_refuses_what_libqbm_writes() {
    let Some(room) = Room::with_qemu() else { return };
    let writer = room.writer();
    let lock = |result: Result<(), String>| {
        let said = result.expect_err("libqbm has it open");
        assert!(said.contains("lock"), "{said}");
    };
    lock(room.qemu_writes());
    lock(room.qemu_resizes());
    lock(room.qemu_converts(&["-f", "raw"]));
    // QEMU's own rule: these promise to bear a writer.
    room.qemu_looks().expect("a reader that bears writers");
    room.qemu_converts(&["-f", "raw", "-U"])
        .expect("it minds no lock");
    writer.close().expect("it closes");
    room.qemu_writes().expect("the lock went with the handle");
    room.qemu_resizes().expect("the lock went with the handle");
}

#[test]
fn qemu_reads_what_libqbm_reads() {
    let Some(room) = Room::with_qemu() else { return };
    let reader = room.reader();
    room.qemu_looks().expect("two readers");
    room.qemu_converts(&["-f", "raw"]).expect("two readers");
    let said = room.qemu_writes().expect_err("libqbm relies on the content");
    assert!(said.contains("lock"), "{said}");
    drop(reader);
    room.qemu_writes().expect("the lock went with the handle");
}

/// What a snapshot has taken over is read only, and the new image is the disk's alone.
#[test]
fn a_snapshot_hands_the_locks_on() {
    let Some(mut room) = Room::with_qemu() else {
        return;
    };
    let disk = room.writer();
    disk.snapshot("s.qbm", None).expect("a snapshot");
    let lock = |result: Result<(), String>| {
        let said = result.expect_err("libqbm has it open");
        assert!(said.contains("lock"), "{said}");
    };
    room.qemu_converts(&["-f", "raw"])
        .expect("two readers of the old image");
    let below = reading().open(room.dir.path().join("s.qbm"));
    below
        .expect("two readers of the snapshot")
        .close()
        .expect("closed");
    lock(room.qemu_writes());
    let old = std::mem::replace(&mut room.image, room.dir.path().join("disk-data-1.img"));
    lock(room.qemu_writes());
    lock(room.qemu_converts(&["-f", "raw"]));
    room.is_locked(&OpenOptions::new(), &["another handle of this process"]);
    disk.close().expect("it closes");
    room.qemu_writes().expect("the lock went with the handle");
    room.image = old;
    room.qemu_writes().expect("the lock went with the handle");
}

#[test]
fn libqbm_refuses_what_qemu_writes() {
    let Some(room) = Room::with_qemu() else { return };
    let server = Server::start(room.dir.path(), &["-f", "raw"], &room.image);
    let who = format!("process {} (qemu-nbd)", server.id());
    room.is_locked(&OpenOptions::new(), &[&who, "disk-data.img", "for writing"]);
    room.is_locked(&reading(), &[&who, "disk-data.img", "for reading"]);
    let unlocked = reading().no_lock(true).open(&room.disk);
    drop(unlocked.expect("it minds no lock"));
    // None of these has taken anything from qemu-nbd, which bears other writers, but no change of the size.
    room.qemu_resizes().expect_err("qemu-nbd has it");
    drop(server);
    room.writer().close().expect("the lock went with the process");
}

#[test]
fn libqbm_reads_what_qemu_reads() {
    let Some(room) = Room::with_qemu() else { return };
    let server = Server::start(room.dir.path(), &["-f", "raw", "--read-only"], &room.image);
    drop(room.reader());
    drop(server);
    room.writer().close().expect("it opens for writing");
}
