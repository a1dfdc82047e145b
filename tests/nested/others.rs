//! Somebody uses the inner disk, or its files, without the outer one: the outer disk's bits have missed that, and say so.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use crate::*;

/// Two disks whose bitmaps record, closed.
fn stack(overlay: bool) -> Room {
    let room = Room::new();
    if overlay {
        room.overlay("inner.qbm", "low.img");
    } else {
        room.plain("inner.qbm");
    }
    room.around("inner.qbm", "outer.qbm").expect("a disk");
    let disk = room.open("outer.qbm");
    add(&disk, "bits", 4096);
    disk.write(&[1; 5000], 3000, NONE).expect("a write");
    disk.close().expect("closed");
    room
}

fn is_trusted(room: &Room) -> bool {
    let trusted = |disk: &Disk| !disk.bitmap_info("bits").expect("a bitmap").inconsistent;
    let reader = trusted(&room.look("outer.qbm"));
    let disk = room.open("outer.qbm");
    let writer = trusted(&disk);
    disk.close().expect("closed");
    assert_eq!(reader, writer);
    writer
}

#[test]
fn who_changes_nothing_is_not_noticed() {
    for overlay in [false, true] {
        let room = stack(overlay);
        assert!(is_trusted(&room));
        room.open("inner.qbm").close().expect("closed");
        drop(room.look("inner.qbm"));
        drop(room.open("inner.qbm"));
        assert!(is_trusted(&room));
        // Nor who changes bitmaps, which are no content.
        let disk = room.open("inner.qbm");
        add(&disk, "others", 4096);
        disk.bitmap_disable("others").expect("disabled");
        disk.close().expect("closed");
        assert!(is_trusted(&room));
        let disk = room.open("inner.qbm");
        disk.bitmap_enable("others").expect("enabled");
        drop(disk);
        assert!(is_trusted(&room));
    }
}

#[test]
fn who_writes_is_noticed() {
    type Act = fn(&Disk);
    let acts: [Act; 5] = [
        |disk| disk.write(&[2], 70_000, NONE).expect("a write"),
        // Into a hole that stays one: the image's file keeps its time.
        |disk| disk.write_zeroes(100_000, 4096, NONE).expect("zeros"),
        |disk| disk.discard(200_000, 8192, NONE).expect("a discard"),
        |disk| disk.truncate(700 << 10, TruncateFlags::empty()).expect("longer"),
        |disk| {
            // Content first, which is put back: whoever has changed it has changed it.
            disk.write(&[2], 70_000, NONE).expect("a write");
            disk.flush().expect("a flush");
            disk.write(&[0], 70_000, NONE).expect("a write");
        },
    ];
    for overlay in [false, true] {
        for (number, act) in acts.iter().enumerate() {
            for closed in [true, false] {
                let room = stack(overlay);
                let disk = room.open("inner.qbm");
                act(&disk);
                if closed {
                    disk.close().expect("closed");
                } else {
                    disk.die();
                }
                assert!(!is_trusted(&room), "{overlay} {number} {closed}");
                // For good.
                assert!(!is_trusted(&room), "{overlay} {number} {closed}");
            }
        }
    }
}

#[test]
fn what_else_changes_the_content_of_an_overlay_is_noticed() {
    let room = stack(true);
    let disk = room.open("inner.qbm");
    disk.make_empty().expect("emptied");
    disk.close().expect("closed");
    assert!(!is_trusted(&room));
    let room = stack(true);
    std::fs::write(room.path("another.img"), [5; 9000]).expect("written");
    let disk = room.open("inner.qbm");
    let entry = qbm::descriptor::BackingEntry {
        file: "another.img".to_owned(),
        format: Format::Raw,
    };
    disk.change_backing(Some(entry), qbm::BackingFlags::empty())
        .expect("another backing");
    disk.close().expect("closed");
    assert!(!is_trusted(&room));
}

/// The content stays what it was, and so does the outer disk's trust.
#[test]
fn what_moves_bytes_about_is_not_noticed() {
    let go_on = || |_, _| std::ops::ControlFlow::Continue(());
    let room = stack(true);
    let content = room.content("outer.qbm");
    let disk = room.open("inner.qbm");
    disk.snapshot("kept.qbm", None).expect("a snapshot");
    disk.close().expect("closed");
    assert!(is_trusted(&room));
    let disk = room.open("inner.qbm");
    disk.commit(&mut go_on()).expect("committed");
    disk.close().expect("closed");
    assert!(is_trusted(&room));
    let disk = room.open("inner.qbm");
    disk.rebase(None, &mut go_on()).expect("rebased");
    disk.close().expect("closed");
    assert!(is_trusted(&room));
    assert_same(&room.content("outer.qbm"), &content);
}

/// By a program that knows of no QBM at all.
#[test]
fn who_writes_to_the_innermost_file_is_noticed_by_all() {
    let room = Room::new();
    room.plain("0.qbm");
    room.around("0.qbm", "1.qbm").expect("a disk");
    room.around("1.qbm", "2.qbm").expect("a disk");
    for name in ["0.qbm", "1.qbm", "2.qbm"] {
        let disk = room.open(name);
        add(&disk, "bits", 4096);
        disk.close().expect("closed");
    }
    let disk = room.open("2.qbm");
    disk.write(&[1; 5000], 3000, NONE).expect("a write");
    disk.close().expect("closed");
    let state = |name: &str| {
        room.look(name)
            .bitmap_info("bits")
            .expect("a bitmap")
            .inconsistent
    };
    assert!(!state("0.qbm") && !state("1.qbm") && !state("2.qbm"));
    let mut file = File::options()
        .write(true)
        .open(room.path("0-data.img"))
        .expect("the image");
    file.seek(SeekFrom::Start(50_000)).expect("there");
    file.write_all(&[9]).expect("a write");
    drop(file);
    assert!(state("0.qbm") && state("1.qbm") && state("2.qbm"));
    // Whoever opens one for writing settles it for that one, and the others still learn of it.
    room.open("0.qbm").close().expect("closed");
    assert!(state("0.qbm") && state("1.qbm") && state("2.qbm"));
    room.open("1.qbm").close().expect("closed");
    assert!(state("1.qbm") && state("2.qbm"));
    room.open("2.qbm").close().expect("closed");
    assert!(state("2.qbm"));
    let disk = room.open("2.qbm");
    disk.bitmap_remove("bits").expect("removed");
    add(&disk, "bits", 4096);
    disk.close().expect("closed");
    assert!(!state("2.qbm"));
}

/// The outer disk was killed, and then somebody used the inner one: recovery finds both.
#[test]
fn after_a_kill_too() {
    for overlay in [false, true] {
        let room = stack(overlay);
        let disk = room.open("outer.qbm");
        disk.write(&[3; 5000], 300_000, NONE).expect("a write");
        disk.die();
        room.open("inner.qbm").close().expect("closed");
        assert!(is_trusted(&room), "who only recovers changes nothing");
        let disk = room.open("outer.qbm");
        disk.write(&[4; 5000], 400_000, NONE).expect("a write");
        disk.die();
        let disk = room.open("inner.qbm");
        disk.write(&[4; 5000], 500_000, NONE).expect("a write");
        disk.close().expect("closed");
        assert!(!is_trusted(&room));
    }
}

/// Whoever knows what was written says so, for both disks.
#[test]
fn trust_holds_for_all() {
    let room = stack(false);
    let disk = room.open("inner.qbm");
    disk.write(&[4; 5000], 500_000, NONE).expect("a write");
    disk.close().expect("closed");
    let disk = OpenOptions::new()
        .trust_image(true)
        .open(room.path("outer.qbm"))
        .expect("opened");
    disk.close().expect("closed");
    assert!(is_trusted(&room));
}

/// Without a state file the times of the inner disk's files tell.
#[test]
fn an_inner_disk_without_a_state_file() {
    let room = Room::new();
    std::fs::write(room.path("low.img"), vec![3; 300_000]).expect("written");
    CreateOptions::new()
        .backing("low.img", Format::Raw)
        .granularity(Granularity::new(4096).expect("a granularity"))
        .no_state(true)
        .create(room.path("inner.qbm"))
        .expect("an overlay");
    room.around("inner.qbm", "outer.qbm").expect("a disk");
    // It is given none: that is the option's word for the outer disk, too, which has one.
    let open = |name: &str| {
        OpenOptions::new()
            .no_state(true)
            .open(room.path(name))
            .expect("opened")
    };
    let trusted = || {
        let disk = open("outer.qbm");
        let trusted = !disk.bitmap_info("bits").expect("a bitmap").inconsistent;
        disk.close().expect("closed");
        trusted
    };
    let disk = open("outer.qbm");
    add(&disk, "bits", 4096);
    disk.write(&[1; 5000], 3000, NONE).expect("a write");
    disk.close().expect("closed");
    assert!(trusted());
    let disk = open("inner.qbm");
    disk.write_zeroes(100_000, 9000, NONE).expect("zeros");
    disk.close().expect("closed");
    assert!(!trusted());
}

/// A disk between the two that keeps no state hides from the outer one nothing of what it has been told itself.
#[test]
fn who_writes_below_a_disk_without_a_state_file_is_noticed() {
    let room = Room::new();
    room.plain("inner.qbm");
    CreateOptions::new()
        .image("inner.qbm")
        .image_format(Format::Qbm)
        .no_state(true)
        .create(room.path("middle.qbm"))
        .expect("a disk");
    room.around("middle.qbm", "outer.qbm").expect("a disk");
    let open = || {
        OpenOptions::new()
            .no_state(true)
            .open(room.path("outer.qbm"))
            .expect("opened")
    };
    let trusted = || {
        let disk = open();
        let trusted = !disk.bitmap_info("bits").expect("a bitmap").inconsistent;
        disk.close().expect("closed");
        trusted
    };
    let disk = open();
    add(&disk, "bits", 4096);
    disk.write(&[1; 5000], 3000, NONE).expect("a write");
    disk.close().expect("closed");
    assert!(trusted());
    let mut image = File::options()
        .write(true)
        .open(room.path("inner-data.img"))
        .expect("opened");
    image.seek(SeekFrom::Start(100_000)).expect("there");
    image.write_all(&[9; 100]).expect("written");
    drop(image);
    assert!(!trusted());
}
