//! Exports that are copies: a qcow2 that stands by itself, of every kind of disk.

use std::ops::ControlFlow;
use std::path::Path;

use qbm::convert::{Convert, ExportedCopy};
use qbm::{CreateOptions, Disk, ErrorCode, ExportOptions, Format, OpenOptions, WriteFlags};

use super::{GRANULARITIES, LENGTHS, Random, Room, of, scribble, stamp};

fn copy(room: &Room, disk: &str, qcow2: &str) -> ExportedCopy {
    ExportOptions::new()
        .export_copy(room.path(disk), room.path(qcow2), &mut |_, _| {
            ControlFlow::Continue(())
        })
        .expect("exported")
}

/// QEMU finds in the copy what the disk shows, and its bitmaps; and goes on with it.
fn assert_copied(room: &Room, disk: &str, qcow2: &str) {
    let open = OpenOptions::new().read_only(true);
    let open = open.open(room.path(disk)).expect("it opens");
    let sound = |qcow2| {
        let said = room.qemu_img(&["check", qcow2]);
        assert!(said.contains("No errors were found"), "{said}");
    };
    sound(qcow2);
    let facts = room.facts(qcow2);
    assert!(facts["backing-filename"].is_null(), "{facts}");
    assert!(facts["format-specific"]["data"]["data-file"].is_null(), "{facts}");
    let _ = std::fs::remove_file(room.path("flat.img"));
    Convert::new()
        .create(&open, &room.path("flat.img"), Format::Raw, &mut |_, _| {
            ControlFlow::Continue(())
        })
        .expect("converted");
    room.qemu_img(&["compare", "-f", "qcow2", "-F", "raw", qcow2, "flat.img"]);
    room.assert_same(&open, qcow2);
    let listed = facts["format-specific"]["data"]["bitmaps"]
        .as_array()
        .map_or(0, Vec::len);
    let infos = open.bitmap_list().expect("a list");
    assert_eq!(listed, infos.len(), "{facts}");
    room.qemu_img(&["bitmap", "--merge", &infos[0].name, qcow2, &infos[1].name]);
    room.qemu_img(&["bitmap", "--add", qcow2, "new"]);
    room.qemu_io(qcow2, &["write -q 0 512".to_owned()]);
    sound(qcow2);
}

/// The files of a folder, and when they were written to.
fn stamps(room: &Room) -> Vec<(String, (u64, i64, i64))> {
    let names = room.names().into_iter();
    names
        .map(|name| (name.clone(), stamp(&room.path(&name))))
        .collect()
}

#[test]
fn a_copy_of_a_raw_disk_has_its_content_and_its_bitmaps() {
    let mut random = Random::new(Random::seed());
    for length in LENGTHS {
        let Some(room) = Room::new() else { return };
        room.disk(length, &mut random).close().expect("closed");
        let before = stamps(&room);
        let made = copy(&room, "disk.qbm", "copy.qcow2");
        assert_eq!(made.length, length.next_multiple_of(512));
        assert_eq!(made.bitmaps.len(), GRANULARITIES.len() + 3);
        assert_eq!(made.left_out, [] as [&str; 0]);
        let mut after = stamps(&room);
        after.retain(|(name, _)| name != "copy.qcow2");
        assert_eq!(after, before, "the disk was changed");
        assert_copied(&room, "disk.qbm", "copy.qcow2");
    }
}

#[test]
fn overlays_and_disks_on_a_qcow2_are_copied_whole() {
    let mut random = Random::new(Random::seed());
    let Some(room) = Room::new() else { return };
    let length = (9 << 20) + 3 * 512;
    room.image("base.img", length);
    CreateOptions::new()
        .backing("base.img", Format::Raw)
        .size(length + 70_001)
        .create(room.path("over.qbm"))
        .expect("an overlay");
    room.qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "base.img",
        "-F",
        "raw",
        "low.qcow2",
        "12M",
    ]);
    CreateOptions::new()
        .image("low.qcow2")
        .image_format(Format::Qcow2)
        .create(room.path("on.qbm"))
        .expect("a disk on a qcow2");
    for (disk, qcow2) in [("over.qbm", "over.qcow2"), ("on.qbm", "on.qcow2")] {
        let open = Disk::open(room.path(disk)).expect("it opens");
        for bytes in GRANULARITIES {
            open.bitmap_add(&format!("every-{bytes}"), of(bytes, true))
                .expect("a bitmap");
        }
        open.write(&vec![7; 100_000], 3_000_000, WriteFlags::empty())
            .expect("a write");
        scribble(&open, &mut random, 8);
        open.close().expect("closed");
        let refused = ExportOptions::new().export(room.path(disk), room.path("thin.qcow2"));
        let words = refused.expect_err("no thin form").to_string();
        assert!(words.contains("--copy"), "{words}");
        copy(&room, disk, qcow2);
        assert_copied(&room, disk, qcow2);
    }
}

#[test]
fn a_copy_without_bitmaps_and_one_that_is_not_made() {
    let Some(room) = Room::new() else { return };
    room.plain_disk(1 << 20);
    assert_eq!(copy(&room, "disk.qbm", "bare.qcow2").bitmaps, [] as [&str; 0]);
    assert!(room.facts("bare.qcow2")["format-specific"]["data"]["bitmaps"].is_null());
    assert!(
        room.qemu_img(&["check", "bare.qcow2"])
            .contains("No errors were found")
    );
    let disk = room.open();
    disk.bitmap_add("nightly", of(65_536, true)).expect("a bitmap");
    let locked = ExportOptions::new().export_copy(room.path("disk.qbm"), room.path("no.qcow2"), &mut go_on);
    assert_eq!(locked.expect_err("it is in use").code(), ErrorCode::Locked);
    disk.close().expect("closed");
    let before = stamps(&room);
    let stopped =
        ExportOptions::new().export_copy(room.path("disk.qbm"), room.path("no.qcow2"), &mut |_, _| {
            ControlFlow::Break(())
        });
    assert_eq!(stopped.expect_err("ended").code(), ErrorCode::Canceled);
    let taken = ExportOptions::new().export_copy(room.path("disk.qbm"), room.path("bare.qcow2"), &mut go_on);
    assert_eq!(taken.expect_err("it is there").code(), ErrorCode::FileExists);
    assert_eq!(stamps(&room), before, "something was left or changed");
    // Behind the bitmap's back.
    std::fs::write(room.path("disk.img"), vec![1; 1 << 20]).expect("written");
    let broken = ExportOptions::new().export_copy(room.path("disk.qbm"), room.path("no.qcow2"), &mut go_on);
    assert_eq!(
        broken.expect_err("inconsistent").code(),
        ErrorCode::BitmapInconsistent
    );
    assert!(!Path::exists(&room.path("no.qcow2")));
    let made = ExportOptions::new()
        .skip_inconsistent(true)
        .export_copy(room.path("disk.qbm"), room.path("yes.qcow2"), &mut go_on)
        .expect("exported");
    assert_eq!(
        (made.bitmaps.len(), made.left_out),
        (0, vec!["nightly".to_owned()])
    );
}

fn go_on(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}
