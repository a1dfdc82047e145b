//! Commits into a qcow2 that QEMU made, and what is left of one whose process was killed.

use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};

use qbm::{Disk, ErrorCode, Format, OpenOptions, TruncateFlags, WriteFlags};

use crate::room::{KIB, MIB, Room, assert_same, read_all};

const QBM: &str = env!("CARGO_BIN_EXE_qbm");

/// Changes in many clusters, and what the disk shows with them.
fn change(disk: &Disk) -> Vec<u8> {
    for piece in 0..40u8 {
        let at = u64::from(piece) * 100 * KIB;
        disk.write(&[piece + 1; 9000], at + 3000, WriteFlags::empty())
            .expect("written");
        disk.write_zeroes(at + 40 * KIB, 5000, WriteFlags::MAY_UNMAP)
            .expect("zeroed");
    }
    disk.write_zeroes(300 * KIB, 500 * KIB, WriteFlags::MAY_UNMAP)
        .expect("zeroed");
    disk.flush().expect("flushed");
    read_all(disk)
}

/// How bases are made, all of 5 MiB.
const BASES: [&str; 5] = [
    "convert -f raw -O qcow2 -c base.raw a.qcow2",
    "convert -f raw -O qcow2 -o cluster_size=4k base.raw a.qcow2",
    "create -q -f qcow2 -b base.raw -F raw a.qcow2 5M",
    "create -q -f qcow2 -o cluster_size=512 a.qcow2 5M",
    "create -q -f qcow2 -o data_file=a.data a.qcow2 5M",
];

fn made(room: &Room, how: &str) -> Disk {
    for name in ["a.qcow2", "a.data"] {
        let _ = std::fs::remove_file(room.path(name));
    }
    room.raw("base.raw", 5 * MIB);
    room.img(how);
    if how.contains("data_file") {
        room.io("a.qcow2", "qcow2", &["write -P 7 1M 100k"]);
    }
    room.over("a.qcow2", Format::Qcow2)
}

#[test]
fn the_tool_commits_into_a_qcow2() {
    let Some(room) = Room::new() else { return };
    for how in BASES {
        let disk = made(&room, how);
        disk.truncate(6 * MIB + 512, TruncateFlags::empty())
            .expect("grown");
        let mut model = change(&disk);
        disk.write(&[9; 512], 6 * MIB - 100, WriteFlags::empty())
            .expect("written");
        let at = usize::try_from(6 * MIB - 100).expect("small");
        model[at..at + 512].fill(9);
        disk.close().expect("closed");
        let said = room.run(QBM, &["commit", "--output", "json", "top.qbm"]);
        let facts: serde_json::Value = serde_json::from_slice(&said).expect("JSON");
        assert!(facts.is_object(), "{facts}");
        room.img("check -q -f qcow2 a.qcow2");
        assert_same(&room.content("a.qcow2", "qcow2"), &model);
        let disk = OpenOptions::new().open(room.path("top.qbm")).expect("opened");
        assert_same(&read_all(&disk), &model);
        assert_eq!(
            disk.info().expect("facts").overlay.expect("an overlay").allocated,
            0
        );
    }
}

/// A chain of two qcow2, and all above the lower one into that.
#[test]
fn what_is_above_a_deeper_qcow2_goes_into_it() {
    let Some(room) = Room::new() else { return };
    room.raw("base.raw", 5 * MIB);
    room.img("convert -f raw -O qcow2 -c base.raw low.qcow2");
    room.img("create -q -f qcow2 -b low.qcow2 -F qcow2 a.qcow2 4M");
    room.io("a.qcow2", "qcow2", &["write -P 3 1M 1M", "write -z 2M 300k"]);
    let disk = room.over("a.qcow2", Format::Qcow2);
    let model = change(&disk);
    disk.close().expect("closed");
    room.run(QBM, &["commit", "-q", "-b", "low.qcow2", "top.qbm"]);
    room.img("check -q -f qcow2 low.qcow2");
    let shown = room.content("low.qcow2", "qcow2");
    assert_same(&shown[..model.len()], &model);
    let disk = OpenOptions::new().open(room.path("top.qbm")).expect("opened");
    assert_same(&read_all(&disk), &model);
}

/// Repairs what a commit has left that was cut off, as the error says, and finishes it.
fn repaired(room: &Room, folder: &Path, model: &[u8]) {
    let top = folder.join("top.qbm");
    // QEMU looks for a data file where it is itself.
    let img = |args: &str| {
        let mut all = vec!["-C", folder.to_str().expect("UTF-8"), "qemu-img"];
        all.extend(args.split(' '));
        room.run("env", &all);
    };
    if let Err(error) = OpenOptions::new().open(&top) {
        assert_eq!(error.code(), ErrorCode::FileInvalid, "{error}");
        let words = "a.qcow2: it was not closed by the last program that wrote to it; \"qemu-img check -r all\" repairs it";
        assert!(error.message().contains(words), "{error}");
        img("check -q -f qcow2 -r all a.qcow2");
    }
    let disk = OpenOptions::new().open(&top).expect("opened");
    assert_same(&read_all(&disk), model);
    disk.commit(&mut |_, _| ControlFlow::Continue(()))
        .expect("committed");
    assert_same(&read_all(&disk), model);
    disk.close().expect("closed");
    img("check -q -f qcow2 a.qcow2");
    img("convert -f qcow2 -O raw a.qcow2 shown.raw");
    let shown = std::fs::read(folder.join("shown.raw")).expect("read");
    assert_same(&shown[..model.len()], model);
}

/// The files as a SIGKILL would leave them at each of several moments: the kernel has what was written, and nothing else.
#[test]
fn a_commit_that_was_killed_is_repaired_by_qemu_img() {
    let Some(room) = Room::new() else { return };
    for how in BASES {
        let disk = made(&room, how);
        let model = change(&disk);
        let mut calls = 0;
        disk.commit(&mut |_, _| {
            calls += 1;
            if [1, 3, 20, 50].contains(&calls) {
                let folder = room.path(format!("killed-{calls}"));
                let _ = std::fs::remove_dir_all(&folder);
                std::fs::create_dir(&folder).expect("a folder");
                for file in std::fs::read_dir(room.path("")).expect("a folder").flatten() {
                    if file.path().is_file() {
                        std::fs::copy(file.path(), folder.join(file.file_name())).expect("copied");
                    }
                }
            }
            ControlFlow::Continue(())
        })
        .expect("committed");
        assert!(calls > 50, "{calls} calls");
        for call in [1, 3, 20, 50] {
            repaired(&room, &room.path(format!("killed-{call}")), &model);
        }
    }
}

/// A real process and a real signal, wherever it is by then.
#[test]
fn a_process_that_is_killed_loses_nothing() {
    let Some(room) = Room::new() else { return };
    for round in 0..6u64 {
        let disk = made(&room, BASES[usize::try_from(round % 3).expect("small")]);
        let model = change(&disk);
        disk.close().expect("closed");
        let mut commit = Command::new(QBM)
            .args(["commit", "-q", "top.qbm"])
            .current_dir(room.path(""))
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        std::thread::sleep(std::time::Duration::from_millis(3 + 9 * round));
        // It may have ended by itself.
        let _ = commit.kill();
        commit.wait().expect("it ends");
        repaired(&room, &room.path(""), &model);
    }
}

#[test]
fn what_takes_no_commit_says_what_to_do() {
    let Some(room) = Room::new() else { return };
    room.raw("base.raw", MIB);
    let refused = |disk: &Disk, words: &str| {
        disk.write(&[5; 5000], 700, WriteFlags::empty()).expect("written");
        let shown = read_all(disk);
        let error = disk
            .commit(&mut |_, _| ControlFlow::Continue(()))
            .expect_err("refused");
        assert_eq!(error.code(), ErrorCode::NotSupported, "{error}");
        assert!(error.message().contains(words), "{error}");
        assert_same(&read_all(disk), &shown);
    };
    room.img("convert -f raw -O vmdk base.raw a.vmdk");
    let words = "a.vmdk is a vmdk, which can only be read; \"qbm rebase\" puts the overlay on another image, and \"qbm convert\" \
                 makes one of all that it shows";
    refused(&room.over("a.vmdk", Format::Vmdk), words);
    room.img("create -q -f qcow2 -o data_file=a.data,data_file_raw=on a.qcow2 1M");
    let before = std::fs::read(room.path("a.qcow2")).expect("read");
    refused(
        &room.over("a.qcow2", Format::Qcow2),
        "its data file is a raw image by itself, and would not stay one",
    );
    assert!(std::fs::read(room.path("a.qcow2")).expect("read") == before);
    // The longest L1 table that there may be is at its end.
    room.img("create -q -f qcow2 -o cluster_size=512 b.qcow2 1M");
    qbm::CreateOptions::new()
        .backing("b.qcow2", Format::Qcow2)
        .granularity(qbm::Granularity::MAX)
        .size((128 << 30) + 1)
        .create(room.path("long.qbm"))
        .expect("an overlay");
    let before = std::fs::read(room.path("b.qcow2")).expect("read");
    let disk = Disk::open(room.path("long.qbm")).expect("opened");
    let error = disk
        .commit(&mut |_, _| ControlFlow::Continue(()))
        .expect_err("too long");
    let words = "b.qcow2: a disk of 137438953984 bytes is too long for a qcow2 with clusters of 512 bytes; \"qemu-img convert -O \
                 qcow2 -o cluster_size=2M\" makes one that can be longer";
    assert!(error.message().contains(words), "{error}");
    assert!(std::fs::read(room.path("b.qcow2")).expect("read") == before);
}

/// Somebody who reads the qcow2 keeps a commit away, and a commit keeps everybody away.
#[test]
fn a_commit_has_the_qcow2_alone() {
    let Some(room) = Room::new() else { return };
    let disk = made(&room, BASES[0]);
    let model = change(&disk);
    let other = OpenOptions::new()
        .read_only(true)
        .image_format(Format::Qcow2)
        .open(room.path("a.qcow2"))
        .expect("many may read it");
    let error = disk
        .commit(&mut |_, _| ControlFlow::Continue(()))
        .expect_err("it is read");
    assert_eq!(error.code(), ErrorCode::Locked, "{error}");
    drop(other);
    let mut seen = false;
    disk.commit(&mut |_, _| {
        let read = OpenOptions::new()
            .read_only(true)
            .image_format(Format::Qcow2)
            .open(room.path("a.qcow2"));
        seen |= read.is_err_and(|error| error.code() == ErrorCode::Locked);
        ControlFlow::Continue(())
    })
    .expect("committed");
    assert!(seen);
    assert_same(&read_all(&disk), &model);
}
