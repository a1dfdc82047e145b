//! What cannot be, and the words for it.

use std::os::unix::fs::symlink;

use qbm::ErrorCode;

use crate::*;

fn fails(room: &Room, name: &str, code: ErrorCode, words: &str) {
    for read_only in [false, true] {
        let options = OpenOptions::new().read_only(read_only);
        let error = options.open(room.path(name)).expect_err(words);
        let said = error
            .message()
            .replace(&format!("{}/", room.path("").display()).replace("//", "/"), "");
        assert_eq!((error.code(), said.as_str()), (code, words));
    }
}

/// A descriptor, by hand.
fn put(room: &Room, name: &str, image: &str) {
    let text = format!(
        r#"{{"QBM": {{"version": 1, "image": {{"file": "{image}", "format": "qbm"}}, "bitmaps": {{}}}}}}"#
    );
    std::fs::write(room.path(name), text).expect("written");
}

#[test]
fn what_leads_back() {
    let room = Room::new();
    put(&room, "a.qbm", "a.qbm");
    fails(
        &room,
        "a.qbm",
        ErrorCode::FileInvalid,
        "cannot open a.qbm: a.qbm: the backing chain leads back to a.qbm",
    );
    put(&room, "a.qbm", "b.qbm");
    put(&room, "b.qbm", "c.qbm");
    symlink(room.path("a.qbm"), room.path("c.qbm")).expect("a link");
    let error = OpenOptions::new().open(room.path("a.qbm")).expect_err("a loop");
    assert!(
        error.message().contains("the backing chain leads back to"),
        "{error}"
    );
    // Through a backing.
    room.plain("0.qbm");
    room.overlay_around("0.qbm", "1.qbm", "base.img");
    let text = std::fs::read_to_string(room.path("1.qbm")).expect("a descriptor");
    let text = text.replace(
        r#""file":"base.img","format":"raw""#,
        r#""file":"0.qbm","format":"qbm""#,
    );
    std::fs::write(room.path("1.qbm"), text).expect("written");
    fails(
        &room,
        "1.qbm",
        ErrorCode::FileInvalid,
        "cannot open 1.qbm: the backing chain leads back to 0.qbm",
    );
    // The same file in two disks.
    room.overlay_around("0.qbm", "2.qbm", "base.img");
    let text = std::fs::read_to_string(room.path("2.qbm")).expect("a descriptor");
    std::fs::write(
        room.path("2.qbm"),
        text.replace(r#""base.img""#, r#""0-data.img""#),
    )
    .expect("written");
    let error = OpenOptions::new().open(room.path("2.qbm")).expect_err("twice");
    assert!(
        error
            .message()
            .contains("0-data.img is the same file as QBM.image.file of the descriptor in"),
        "{error}"
    );
}

#[test]
fn what_is_too_deep() {
    let room = Room::new();
    room.plain("0.qbm");
    for level in 1..40 {
        put(&room, &format!("{level}.qbm"), &format!("{}.qbm", level - 1));
    }
    assert_eq!(room.content("32.qbm").len(), room.content("0.qbm").len());
    let disk = room.open("32.qbm");
    disk.write(&[1; 900], 700, NONE).expect("a write");
    disk.flush().expect("a flush");
    disk.close().expect("closed");
    assert_eq!(room.content("0.qbm")[700..1600], [1; 900]);
    let error = OpenOptions::new()
        .open(room.path("33.qbm"))
        .expect_err("too deep");
    assert_eq!(error.code(), ErrorCode::NotSupported);
    assert!(
        error
            .message()
            .contains("more than 32 disks are images of each other, one within the other"),
        "{error}"
    );
    // The same below an overlay.
    for (image, fits) in [("32.qbm", true), ("33.qbm", false)] {
        put(
            &room,
            "b.qbm",
            image.replace("32", "31").replace("33", "32").as_str(),
        );
        let _ = std::fs::remove_file(room.path("top.qbm"));
        let made = CreateOptions::new()
            .backing("b.qbm", Format::Qbm)
            .create(room.path("top.qbm"));
        assert_eq!(made.is_ok(), fits, "{made:?}");
    }
}

#[test]
fn who_has_the_inner_disk_keeps_others_out() {
    let room = Room::new();
    room.plain("inner.qbm");
    room.around("inner.qbm", "outer.qbm").expect("a disk");
    let disk = room.open("inner.qbm");
    let error = OpenOptions::new()
        .open(room.path("outer.qbm"))
        .expect_err("in use");
    assert_eq!(error.code(), ErrorCode::Locked);
    assert!(error.message().contains("inner"), "{error}");
    drop(disk);
    let disk = room.open("outer.qbm");
    let error = OpenOptions::new()
        .open(room.path("inner.qbm"))
        .expect_err("in use");
    assert_eq!(error.code(), ErrorCode::Locked);
    let reader = OpenOptions::new().read_only(true);
    assert_eq!(
        reader.open(room.path("inner.qbm")).expect_err("in use").code(),
        ErrorCode::Locked
    );
    let no_lock = reader.no_lock(true);
    drop(no_lock.open(room.path("outer.qbm")).expect("without a lock"));
    drop(disk);
    room.open("inner.qbm").close().expect("closed");
    // Readers bear each other.
    let (one, other) = (room.look("outer.qbm"), room.look("inner.qbm"));
    assert_eq!(read_all(&one), read_all(&other));
}

#[test]
fn folders_and_confinement() {
    let room = Room::new();
    std::fs::create_dir(room.path("sub")).expect("a folder");
    room.plain("sub/inner.qbm");
    room.around("sub/inner.qbm", "outer.qbm").expect("a disk");
    let confined = |name: &str| OpenOptions::new().confined(true).open(room.path(name));
    let disk = confined("outer.qbm").expect("all of it is beneath");
    add(&disk, "bits", 4096);
    let mut model = read_all(&disk);
    change(&disk, &mut model, &mut Random::new(8), 30);
    disk.close().expect("closed");
    assert_same(&room.content("sub/inner.qbm"), &model);
    // The inner disk may name what is beneath the outer one's folder, and not more.
    std::fs::rename(room.path("sub/inner-data.img"), room.path("data.img")).expect("renamed");
    let text = std::fs::read_to_string(room.path("sub/inner.qbm")).expect("a descriptor");
    std::fs::write(
        room.path("sub/inner.qbm"),
        text.replace("inner-data.img", "../data.img"),
    )
    .expect("written");
    let disk = confined("outer.qbm").expect("still");
    assert_same(&read_all(&disk), &model);
    drop(disk);
    confined("sub/inner.qbm").expect_err("not beneath its own folder");
    room.around("../outer.qbm", "sub/out.qbm").expect("a disk");
    let error = confined("sub/out.qbm").expect_err("outside");
    assert_eq!(error.code(), ErrorCode::PermissionDenied);
    // A link within is followed, one that leads out is not.
    symlink("sub/inner.qbm", room.path("link.qbm")).expect("a link");
    room.around("link.qbm", "by-link.qbm").expect("a disk");
    assert_same(&read_all(&confined("by-link.qbm").expect("beneath")), &model);
    symlink(room.path("outer.qbm"), room.path("sub/link.qbm")).expect("a link");
    room.around("link.qbm", "sub/by-link.qbm").expect("a disk");
    confined("sub/by-link.qbm").expect_err("outside");
    OpenOptions::new()
        .open(room.path("sub/by-link.qbm"))
        .expect("not confined");
}

#[test]
fn broken_inner_disks() {
    let room = Room::new();
    put(&room, "outer.qbm", "inner.qbm");
    fails(
        &room,
        "outer.qbm",
        ErrorCode::FileNotFound,
        "cannot open outer.qbm: inner.qbm: No such file or directory",
    );
    std::fs::write(room.path("inner.qbm"), b"{}").expect("written");
    let error = OpenOptions::new()
        .open(room.path("outer.qbm"))
        .expect_err("no descriptor");
    assert_eq!(error.code(), ErrorCode::DescriptorInvalid);
    // What looks like a descriptor is one only where it is called so.
    std::fs::remove_file(room.path("inner.qbm")).expect("removed");
    room.plain("inner.qbm");
    CreateOptions::new()
        .image("inner.qbm")
        .create(room.path("raw.qbm"))
        .expect("a raw image of strange content");
    assert!(room.content("raw.qbm").starts_with(b"{"));
    let error = room
        .around("inner-data.img", "no.qbm")
        .expect_err("no descriptor");
    assert_eq!(error.code(), ErrorCode::DescriptorInvalid);
    assert!(!room.path("no.qbm").exists());
}
