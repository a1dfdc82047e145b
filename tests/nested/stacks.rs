//! What a stack of disks shows and records, held against a plain copy.

use std::ops::ControlFlow;
use std::process::Command;

use qbm::{Format, OpenOptions};

use crate::skip::skipped;
use crate::*;

/// Random changes of `outer`, whose innermost other disk is `inner`, with closes between.
fn live(room: &Room, outer: &str, inner: &str) {
    let disk = room.open(inner);
    add(&disk, "inner bits", 4096);
    disk.close().expect("closed");
    let disk = room.open(outer);
    add(&disk, "outer bits", 4096);
    disk.close().expect("closed");
    let (outer_before, inner_before) = (room.content(outer), room.content(inner));
    let mut model = outer_before.clone();
    let mut random = Random::new(77);
    for round in 0..4 {
        let disk = room.open(outer);
        change(&disk, &mut model, &mut random, 40);
        assert_same(&read_all(&disk), &model);
        if round % 2 == 0 {
            disk.close().expect("closed");
        } else {
            // As after SIGKILL: nothing that was acknowledged is lost, and no bit is added.
            let bits = dirty(&disk, "outer bits");
            disk.die();
            let disk = room.open(outer);
            assert_same(&read_all(&disk), &model);
            let info = disk.bitmap_info("outer bits").expect("a bitmap");
            assert!(!info.inconsistent && info.recording);
            assert_eq!(dirty(&disk, "outer bits"), bits);
            assert_eq!(
                disk.info().expect("facts").recovery.expect("a recovery").reason,
                None
            );
            disk.close().expect("closed");
        }
        assert_same(&room.content(outer), &model);
        assert_covers(&changed(&outer_before, &model), &room.dirty(outer, "outer bits"));
        assert_covers(
            &changed(&inner_before, &room.content(inner)),
            &room.dirty(inner, "inner bits"),
        );
    }
    let info = room.open(inner).bitmap_info("inner bits").expect("a bitmap");
    assert!(!info.inconsistent);
}

#[test]
fn a_disk_on_a_disk() {
    let room = Room::new();
    room.plain("inner.qbm");
    room.around("inner.qbm", "outer.qbm").expect("a disk");
    live(&room, "outer.qbm", "inner.qbm");
    let raw = std::fs::read(room.path("inner-data.img")).expect("the image");
    assert_same(&room.content("outer.qbm"), &raw);
    // The same bytes to those who know nothing of it.
    if Command::new("qemu-img").arg("--version").output().is_err() {
        skipped("qemu-img is not installed, so the raw image was not compared");
        return;
    }
    std::fs::write(room.path("copy.img"), room.content("outer.qbm")).expect("written");
    let same = Command::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", "raw", "inner-data.img", "copy.img"])
        .current_dir(room.path(""))
        .output()
        .expect("it starts");
    assert!(same.status.success(), "{same:?}");
}

#[test]
fn a_disk_on_an_overlay() {
    let room = Room::new();
    room.overlay("inner.qbm", "base.img");
    let base = std::fs::read(room.path("base.img")).expect("the base");
    room.around("inner.qbm", "outer.qbm").expect("a disk");
    live(&room, "outer.qbm", "inner.qbm");
    assert_same(&room.content("outer.qbm"), &room.content("inner.qbm"));
    assert_same(&std::fs::read(room.path("base.img")).expect("the base"), &base);
}

#[test]
fn an_overlay_on_a_disk() {
    let room = Room::new();
    room.plain("inner.qbm");
    room.overlay_around("inner.qbm", "outer.qbm", "base.img");
    live(&room, "outer.qbm", "inner.qbm");
}

#[test]
fn an_overlay_on_an_overlay() {
    let room = Room::new();
    room.overlay("inner.qbm", "low.img");
    room.overlay_around("inner.qbm", "outer.qbm", "base.img");
    live(&room, "outer.qbm", "inner.qbm");
}

#[test]
fn several_deep() {
    let room = Room::new();
    room.overlay("0.qbm", "low.img");
    for level in 1..6 {
        room.around(&format!("{}.qbm", level - 1), &format!("{level}.qbm"))
            .expect("a disk");
    }
    live(&room, "5.qbm", "0.qbm");
    for level in 0..5 {
        assert_same(&room.content(&format!("{level}.qbm")), &room.content("5.qbm"));
    }
}

/// Below an overlay, a disk whose image is a disk is as any other backing.
#[test]
fn as_a_backing() {
    let room = Room::new();
    room.overlay("inner.qbm", "low.img");
    room.overlay_around("inner.qbm", "middle.qbm", "base.img");
    let disk = room.open("middle.qbm");
    let mut below = read_all(&disk);
    change(&disk, &mut below, &mut Random::new(5), 30);
    disk.close().expect("closed");
    CreateOptions::new()
        .backing("middle.qbm", Format::Qbm)
        .create(room.path("top.qbm"))
        .expect("an overlay");
    let disk = room.open("top.qbm");
    assert_same(&read_all(&disk), &below);
    let mut model = below.clone();
    change(&disk, &mut model, &mut Random::new(6), 30);
    assert_same(&read_all(&disk), &model);
    disk.close().expect("closed");
    assert_same(&room.content("middle.qbm"), &below);
    let disk = room.open("inner.qbm");
    add(&disk, "inner bits", 4096);
    disk.close().expect("closed");
    // A commit is a write of all that is below.
    let before = room.content("inner.qbm");
    let disk = room.open("top.qbm");
    disk.commit(&mut |_, _| ControlFlow::Continue(()))
        .expect("committed");
    assert_same(&read_all(&disk), &model);
    disk.close().expect("closed");
    // What was cut off is the middle one's still.
    let middle = room.content("middle.qbm");
    let shared = model.len().min(middle.len());
    assert_same(&middle[..shared], &model[..shared]);
    assert_covers(
        &changed(&before, &room.content("inner.qbm")),
        &room.dirty("inner.qbm", "inner bits"),
    );
    // And streaming takes all of it up.
    let disk = room.open("top.qbm");
    change(&disk, &mut model, &mut Random::new(7), 10);
    disk.rebase(None, &mut |_, _| ControlFlow::Continue(()))
        .expect("rebased");
    disk.close().expect("closed");
    for name in ["middle.qbm", "inner.qbm", "base.img", "low.img"] {
        std::fs::remove_file(room.path(name)).expect("removed");
    }
    assert_same(&room.content("top.qbm"), &model);
}

/// Everything that is done to the structure of the outer disk.
#[test]
fn structure() {
    let go_on = || |_, _| ControlFlow::Continue(());
    let room = Room::new();
    room.overlay("inner.qbm", "low.img");
    room.overlay_around("inner.qbm", "outer.qbm", "base.img");
    let disk = room.open("inner.qbm");
    add(&disk, "inner bits", 4096);
    disk.close().expect("closed");
    let disk = room.open("outer.qbm");
    add(&disk, "bits", 4096);
    let mut model = read_all(&disk);
    let mut random = Random::new(9);
    change(&disk, &mut model, &mut random, 30);
    disk.rebase(None, &mut go_on()).expect("rebased");
    assert_same(&read_all(&disk), &model);
    change(&disk, &mut model, &mut random, 10);
    disk.snapshot("before.qbm", None).expect("a snapshot");
    assert_same(&read_all(&disk), &model);
    let kept = model.clone();
    change(&disk, &mut model, &mut random, 20);
    assert_same(&room.content("before.qbm"), &kept);
    // Nobody may write to what is below now, and anybody may read it.
    let error = OpenOptions::new().open(room.path("inner.qbm")).expect_err("held");
    assert!(error.message().contains("inner-data.img"), "{error}");
    drop(room.look("inner.qbm"));
    disk.commit(&mut go_on()).expect("committed");
    assert_same(&read_all(&disk), &model);
    change(&disk, &mut model, &mut random, 10);
    disk.close().expect("closed");
    assert_same(&room.content("outer.qbm"), &model);
    let disk = room.open("outer.qbm");
    assert!(!disk.bitmap_info("bits").expect("a bitmap").inconsistent);
    disk.make_empty().expect("emptied");
    assert_same(&read_all(&disk)[..9000], &room.content("before.qbm")[..9000]);
    disk.close().expect("closed");
    let inner = room
        .open("inner.qbm")
        .bitmap_info("inner bits")
        .expect("a bitmap");
    assert!(!inner.inconsistent);
}

#[test]
fn direct_and_read_only() {
    let room = Room::new();
    room.overlay("inner.qbm", "low.img");
    room.around("inner.qbm", "outer.qbm").expect("a disk");
    let mut model = room.content("outer.qbm");
    match OpenOptions::new().direct(true).open(room.path("outer.qbm")) {
        Ok(disk) => {
            change(&disk, &mut model, &mut Random::new(3), 40);
            assert_same(&read_all(&disk), &model);
            disk.close().expect("closed");
        }
        Err(error) => skipped(format_args!("O_DIRECT does not work here: {error}")),
    }
    assert_same(&room.content("outer.qbm"), &model);
    // A killed disk, of which a reader changes nothing.
    let disk = room.open("outer.qbm");
    change(&disk, &mut model, &mut Random::new(4), 20);
    disk.die();
    let files = || {
        let mut names: Vec<_> = std::fs::read_dir(room.path(""))
            .expect("a folder")
            .map(|it| it.expect("a name").path())
            .collect();
        names.sort();
        let seen = names.into_iter().map(|name| {
            let time = std::fs::metadata(&name)
                .expect("facts")
                .modified()
                .expect("a time");
            (std::fs::read(&name).expect("bytes"), name, time)
        });
        seen.collect::<Vec<_>>()
    };
    let before = files();
    let disk = room.look("outer.qbm");
    assert_same(&read_all(&disk), &model);
    disk.write(&[1], 0, NONE).expect_err("read-only");
    drop(disk);
    assert!(before == files(), "a reader has changed something");
    room.open("outer.qbm").close().expect("closed");
    assert_same(&room.content("outer.qbm"), &model);
}

/// The bits of all disks count together.
#[test]
fn memory_is_limited_as_a_whole() {
    let room = Room::new();
    room.plain("inner.qbm");
    room.around("inner.qbm", "outer.qbm").expect("a disk");
    for name in ["inner.qbm", "outer.qbm"] {
        let disk = room.open(name);
        for bitmap in ["a", "b"] {
            add(&disk, bitmap, 512);
        }
        disk.write(&vec![1; 600 << 10], 0, NONE).expect("a write");
        disk.close().expect("closed");
    }
    let needed = (1..400)
        .map(|kib| kib * 512)
        .find(|bytes| {
            let options = OpenOptions::new().max_bitmap_memory(*bytes);
            options.open(room.path("inner.qbm")).is_ok()
        })
        .expect("a limit");
    let opened = |bytes| {
        let options = OpenOptions::new().max_bitmap_memory(bytes);
        options.open(room.path("outer.qbm"))
    };
    let error = opened(needed + needed / 2).expect_err("too much");
    assert_eq!(error.code(), qbm::ErrorCode::NoMemory);
    opened(needed * 2).expect("enough");
}
