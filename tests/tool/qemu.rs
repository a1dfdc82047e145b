//! `qbm import` and `qbm export`: what they say, and the mistakes. All of it without QEMU: an export is a qcow2 like any
//! other, and bytes of it are changed to what QEMU would write. What QEMU says is in `tests/qemu_import.rs`.

use super::errors::{refused, usage};
use super::room::Room;

/// Where the flags of the first bitmap are: see [`directory`].
const FLAGS: usize = 15;

/// `disk.qbm` of 1 MiB on `disk.img`, with the bitmaps `nightly`, which records, and `off`; its export `disk.qcow2`.
fn room() -> Room {
    let room = Room::new();
    room.write("disk.img", &vec![0; 1 << 20]);
    room.done(&["create", "-q", "--image", "disk.img", "disk.qbm"]);
    room.done(&["bitmap", "--add", "disk.qbm", "nightly"]);
    room.done(&["bitmap", "--add", "--disable", "disk.qbm", "off"]);
    room.guest_writes("disk.qbm", 70_000, 5);
    room.done(&["export", "-q", "disk.qbm", "disk.qcow2"]);
    room
}

fn number(bytes: &[u8], at: usize) -> usize {
    let number = u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    usize::try_from(number).expect("an offset")
}

/// Where the bitmap directory of a qcow2 begins: the last field of the bitmaps extension, behind the data file's.
fn directory(bytes: &[u8]) -> usize {
    let name = u32::from_be_bytes(bytes[108..112].try_into().expect("4 bytes")) as usize;
    number(bytes, 112 + name.next_multiple_of(8) + 8 + 16)
}

/// Changes one byte of `disk.qcow2`.
fn poke(room: &Room, at: impl Fn(&[u8]) -> usize, value: u8) {
    let mut bytes = room.read("disk.qcow2");
    let at = at(&bytes);
    assert_ne!(bytes[at], value, "it is so already");
    bytes[at] = value;
    room.write("disk.qcow2", &bytes);
}

/// The room's path, as a descriptor or a qcow2 has it.
fn whole(room: &Room, name: &str) -> String {
    let folder = room.path("").canonicalize().expect("a path");
    folder.join(name).display().to_string()
}

#[test]
fn they_say_what_they_have_done() {
    let room = room();
    let image = whole(&room, "disk.img");
    assert_eq!(
        room.done(&["export", "disk.qbm", "two.qcow2"]),
        format!("exported disk.qbm to two.qcow2: data in {image}, bitmaps \"nightly\", \"off\"\n")
    );
    assert_eq!(
        room.done(&["import", "two.qcow2", "two.qbm"]),
        "imported two.qcow2 as two.qbm: data in disk.img, bitmaps \"nightly\", \"off\"\n"
    );
    assert_eq!(
        room.done(&["bitmap", "dump", "two.qbm", "nightly"]),
        room.done(&["bitmap", "dump", "disk.qbm", "nightly"])
    );
    assert_eq!(
        room.done(&["import", "--bitmaps", "disk.qcow2", "disk.qbm"]),
        "merged disk.qcow2 into disk.qbm: bitmaps \"nightly\", \"off\"\n"
    );
    assert_eq!(
        room.done(&["import", "-q", "--bitmaps", "disk.qcow2", "disk.qbm"]),
        ""
    );
    assert_eq!(room.done(&["import", "-q", "disk.qcow2", "three.qbm"]), "");

    room.done(&["create", "-q", "--image", "disk.img", "bare.qbm"]);
    assert_eq!(
        room.done(&["export", "bare.qbm", "bare.qcow2"]),
        format!("exported bare.qbm to bare.qcow2: data in {image}, no bitmaps\n")
    );
    assert_eq!(
        room.done(&["import", "bare.qcow2", "four.qbm"]),
        "imported bare.qcow2 as four.qbm: data in disk.img, no bitmaps\n"
    );
}

#[test]
fn bitmaps_in_use_are_refused_or_left_out() {
    let room = room();
    poke(&room, |bytes| directory(bytes) + FLAGS, 3);
    let words = "bitmap \"nightly\" is marked as in use: the program that recorded last has not saved its bits (it was \
                 killed, or still runs), so that changes may be missing, and the next backup must be a full one \
                 (--skip-in-use leaves such bitmaps out)";
    refused(
        &room,
        &["import", "disk.qcow2", "two.qbm"],
        &format!("cannot import disk.qcow2: {words}"),
    );
    refused(
        &room,
        &["import", "--bitmaps", "disk.qcow2", "disk.qbm"],
        &format!("cannot merge the bitmaps of disk.qcow2 into those of disk.qbm: {words}"),
    );
    assert_eq!(
        room.done(&["import", "--skip-in-use", "disk.qcow2", "two.qbm"]),
        "imported disk.qcow2 as two.qbm: data in disk.img, bitmap \"off\"\n\
         left out, as it is in use: bitmap \"nightly\"\n"
    );
    assert_eq!(
        room.done(&["import", "--bitmaps", "--skip-in-use", "disk.qcow2", "disk.qbm"]),
        "merged disk.qcow2 into disk.qbm: bitmaps \"nightly\", \"off\"\nleft out: bitmap \"nightly\"\n"
    );
}

#[test]
fn bitmaps_that_another_program_has_lost_are_refused() {
    let room = room();
    // The autoclear bit of bitmaps.
    poke(&room, |_| 95, 2);
    refused(
        &room,
        &["import", "disk.qcow2", "two.qbm"],
        "cannot import disk.qcow2: a program that knows nothing of bitmaps has written to it since they were saved, so \
         that changes are missing in all of them, and the next backup must be a full one (--skip-in-use leaves such \
         bitmaps out)",
    );
    refused(
        &room,
        &["import", "--bitmaps", "disk.qcow2", "disk.qbm"],
        "cannot merge the bitmaps of disk.qcow2 into those of disk.qbm: its bitmap \"qbm-since-export\" is not valid any \
         more, as a program has written that knows nothing of bitmaps: nobody knows what was written since it was \
         exported",
    );
    assert_eq!(
        room.done(&["import", "--skip-in-use", "disk.qcow2", "two.qbm"]),
        "imported disk.qcow2 as two.qbm: data in disk.img, no bitmaps\n"
    );
}

#[test]
fn what_cannot_be_imported() {
    let room = room();
    room.write("short.img", &[0; 4096]);
    room.write("text", b"hello");
    room.write("taken.qbm", b"mine");
    let cases: [(&[&str], &str); 8] = [
        (
            &["no.qcow2", "new.qbm"],
            "cannot import no.qcow2: No such file or directory",
        ),
        (
            &["text", "new.qbm"],
            "cannot import text: it is no qcow2 image: it does not begin with QFI\\xfb (for a raw image: \"qbm create \
             --image text new.qbm\")",
        ),
        (
            &["disk.qbm", "new.qbm"],
            "cannot import disk.qbm: it is no qcow2 image: it does not begin with QFI\\xfb",
        ),
        (
            &["disk.qcow2", "taken.qbm"],
            "cannot import disk.qcow2: cannot create taken.qbm: it exists already, and is not overwritten",
        ),
        (
            &["disk.qcow2", "no/new.qbm"],
            "cannot import disk.qcow2: no/new.qbm: cannot open the folder no: No such file or directory",
        ),
        (
            &["--image", "no.img", "disk.qcow2", "new.qbm"],
            "cannot import disk.qcow2: cannot open the image no.img: No such file or directory",
        ),
        (
            &["--image", "nbd:x", "disk.qcow2", "new.qbm"],
            "cannot import disk.qcow2: image \"nbd:x\": begins with the scheme \"nbd:\", and only files are supported \
             (\"./\" in front makes it a file's name)",
        ),
        (
            &["--image", "short.img", "disk.qcow2", "new.qbm"],
            "cannot import disk.qcow2: it shows a disk of 1048576 bytes, and short.img is 4096 bytes long; a QBM disk is \
             as long as its image",
        ),
    ];
    for (args, line) in cases {
        refused(&room, &[&["import"], args].concat(), line);
    }
    assert_eq!(room.read("taken.qbm"), b"mine");
    // Not raw any more; then, no data file at all.
    poke(&room, |_| 95, 1);
    refused(
        &room,
        &["import", "--bitmaps", "disk.qcow2", "disk.qbm"],
        "cannot merge the bitmaps of disk.qcow2 into those of disk.qbm: its data file is no raw image, and so not a \
         disk's (\"qbm import\" without --bitmaps makes a new disk of it)",
    );
    poke(&room, |_| 79, 0);
    refused(
        &room,
        &["import", "--bitmaps", "disk.qcow2", "disk.qbm"],
        "cannot merge the bitmaps of disk.qcow2 into those of disk.qbm: its data lies within the qcow2, as that of a \
         copy does, from which there is no way back (\"qbm import\" without --bitmaps makes a new disk of it)",
    );
    std::fs::copy(room.path("disk.img"), room.path("copy.img")).expect("copied");
    assert_eq!(
        room.done(&["import", "--image", "copy.img", "disk.qcow2", "new.qbm"]),
        "imported disk.qcow2 as new.qbm: data in copy.img, bitmaps \"nightly\", \"off\"\n"
    );
}

/// Found out only when the new disk is there already: it goes again.
#[test]
fn an_image_that_another_disk_has_open_stays_alone() {
    let room = room();
    let open = qbm::Disk::open(room.path("disk.qbm")).expect("it opens");
    let before = room.names();
    let (code, words) = room.fails(&["import", "disk.qcow2", "new.qbm"]);
    assert_eq!(code, 1);
    assert!(
        words.starts_with(
            "qbm: cannot import disk.qcow2: cannot open new.qbm: cannot lock disk.img for writing: "
        ),
        "{words}"
    );
    let hint = "(stop the program that has it open, or have it closed there)\n";
    assert!(words.ends_with(hint), "{words}");
    assert_eq!(room.names(), before);
    for copy in [&[][..], &["--copy"]] {
        let (code, words) = room.fails(&[&["export"], copy, &["disk.qbm", "new.qcow2"]].concat());
        assert!(code == 1 && words.ends_with(hint), "{words}");
    }
    assert_eq!(room.names(), before);
    drop(open);
}

/// One with subclusters cannot be written to here.
#[test]
fn a_qcow2_that_no_disk_can_have_goes_by_way_of_a_raw_image() {
    let room = room();
    room.done(&["export", "-q", "--copy", "disk.qbm", "copy.qcow2"]);
    // The incompatible feature of subclusters.
    let mut bytes = room.read("copy.qcow2");
    bytes[79] |= 1 << 4;
    room.write("copy.qcow2", &bytes);
    let before = room.names();
    let (code, words) = room.fails(&["import", "copy.qcow2", "new.qbm"]);
    assert_eq!((code, room.names()), (1, before));
    assert!(
        words.contains("extended L2 entries")
            && words.ends_with(
                "(\"qemu-img convert -O raw\" makes a raw image of it, and --image FILE takes the bitmaps along to \
                 that)\n"
            ),
        "{words}"
    );
}

#[test]
fn what_cannot_be_exported() {
    let room = room();
    room.write("taken.qcow2", b"mine");
    room.done(&["create", "-q", "-b", "disk.img", "-F", "raw", "over.qbm"]);
    room.write("other.img", &[0; 512]);
    room.done(&["create", "-q", "--image", "other.img", "other.qbm"]);
    room.done(&["bitmap", "--add", "other.qbm", "qbm-since-export"]);
    let cases: [(&[&str], &str); 5] = [
        (
            &["no.qbm", "new.qcow2"],
            "cannot open no.qbm: No such file or directory",
        ),
        (
            &["disk.qbm", "taken.qcow2"],
            "cannot export disk.qbm to taken.qcow2: it exists already, and is not overwritten",
        ),
        (
            &["disk.qbm", "no/new.qcow2"],
            "cannot export disk.qbm to no/new.qcow2: cannot open the folder no: No such file or directory",
        ),
        (
            &["over.qbm", "new.qcow2"],
            "cannot export over.qbm to new.qcow2: it is an overlay, whose image has only what was written to it; a \
             copy (--copy) can be made of any disk",
        ),
        (
            &["other.qbm", "new.qcow2"],
            "cannot export other.qbm to new.qcow2: its bitmap \"qbm-since-export\" has the name of one that the qcow2 is \
             to have besides",
        ),
    ];
    for (args, line) in cases {
        refused(&room, &[&["export"], args].concat(), line);
    }
    assert_eq!(room.read("taken.qcow2"), b"mine");
}

#[test]
fn an_inconsistent_bitmap_is_not_exported() {
    let room = room();
    // Behind the bitmaps' back.
    room.write("disk.img", &vec![1; 1 << 20]);
    refused(
        &room,
        &["export", "disk.qbm", "new.qcow2"],
        "cannot export disk.qbm to new.qcow2: bitmap \"nightly\" is inconsistent (changes may be missing in it), so that \
         the next backup must be a full one (--skip-inconsistent leaves such bitmaps out)",
    );
    assert_eq!(
        room.done(&["export", "--skip-inconsistent", "disk.qbm", "new.qcow2"]),
        format!(
            "exported disk.qbm to new.qcow2: data in {}, bitmap \"off\"\nleft out, as it is inconsistent: bitmap \
             \"nightly\"\n",
            whole(&room, "disk.img")
        )
    );
}

#[test]
fn what_cannot_come_back() {
    let room = room();
    let mine = "cannot merge the bitmaps of disk.qcow2 into those of";
    std::fs::copy(room.path("disk.img"), room.path("copy.img")).expect("copied");
    room.done(&["create", "-q", "--image", "copy.img", "copy.qbm"]);
    refused(
        &room,
        &["import", "--bitmaps", "disk.qcow2", "copy.qbm"],
        &format!(
            "{mine} copy.qbm: its data file is {}, and the image of the disk is copy.img",
            whole(&room, "disk.img")
        ),
    );
    refused(
        &room,
        &["import", "--bitmaps", "disk.qcow2", "no.qbm"],
        &format!("{mine} no.qbm: cannot open no.qbm: No such file or directory"),
    );
    // The third bitmap is the one that tells of QEMU's writes; its entry follows those of nightly and off.
    let third = |bytes: &[u8]| directory(bytes) + 32 + 32;
    poke(&room, |bytes| third(bytes) + FLAGS, 3);
    let gone = |why: &str| {
        format!(
            "{mine} disk.qbm: its bitmap \"qbm-since-export\" {why}: nobody knows what was written since it was exported"
        )
    };
    let args = ["import", "--bitmaps", "disk.qcow2", "disk.qbm"];
    refused(
        &room,
        &args,
        &gone("was not saved, as its last user was killed or still runs"),
    );
    poke(&room, |bytes| third(bytes) + FLAGS, 0);
    refused(&room, &args, &gone("does not record"));
    poke(&room, |bytes| third(bytes) + 24, b'x');
    refused(&room, &args, &gone("is missing"));
}

/// Too late: an open for writing has found that the image was changed.
#[test]
fn bitmaps_that_are_inconsistent_already_stay_so() {
    let room = room();
    room.write("disk.img", &vec![1; 1 << 20]);
    room.guest_writes("disk.qbm", 0, 1);
    assert_eq!(
        room.done(&["import", "--bitmaps", "disk.qcow2", "disk.qbm"]),
        "merged disk.qcow2 into disk.qbm: bitmap \"off\"\n\
         inconsistent already (\"qbm check\" says why): bitmap \"nightly\"\n"
    );
}

#[test]
fn command_lines_that_make_no_sense() {
    let room = Room::new();
    usage(
        &room,
        &["import", "--bitmaps", "--image", "a.img", "a.qcow2", "a.qbm"],
        "error: the argument '--bitmaps' cannot be used with '--image <FILE>'",
    );
    usage(
        &room,
        &["export", "a.qbm"],
        "error: the following required arguments were not provided:",
    );
}

#[test]
fn who_exports_a_raw_image_is_told_what_makes_a_disk_of_it() {
    let room = Room::new();
    room.write("a.img", &[0xff; 4096]);
    refused(
        &room,
        &["export", "a.img", "a.qcow2"],
        "cannot open a.img: not UTF-8 from byte 0 on (it is no QBM descriptor; \"qbm create --image a.img a.qbm\" makes \
         one for a raw image)",
    );
}

#[test]
fn an_export_that_is_a_copy_says_so() {
    let room = room();
    assert_eq!(
        room.done(&["export", "--copy", "disk.qbm", "copy.qcow2"]),
        "exported disk.qbm to copy.qcow2: a copy of 1 MiB (1048576 bytes), 4 KiB written, bitmaps \"nightly\", \
         \"off\"\n"
    );
    room.done(&["compare", "-f", "qbm", "-F", "qcow2", "disk.qbm", "copy.qcow2"]);
    let said = room.done(&["export", "--copy", "--output", "json", "disk.qbm", "again.qcow2"]);
    let facts: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let wanted = serde_json::json!({
        "filename": "again.qcow2",
        "format": "qcow2",
        "virtual-size": 1 << 20,
        "written": 4096,
        "bitmaps": ["nightly", "off"],
        "left-out": [],
    });
    assert_eq!(facts, wanted);
    let said = room.done(&["export", "--output", "json", "disk.qbm", "thin.qcow2"]);
    let facts: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(facts["data-file"], whole(&room, "disk.img"));
    assert_eq!(facts["written"], 0);
    refused(
        &room,
        &["export", "--copy", "disk.qbm", "copy.qcow2"],
        "cannot export disk.qbm to copy.qcow2: it exists already, and is not overwritten",
    );
    assert_eq!(
        room.done(&["export", "--copy", "-q", "disk.qbm", "quiet.qcow2"]),
        ""
    );
}

#[test]
fn a_copy_becomes_the_image_of_a_disk() {
    let room = room();
    room.done(&["export", "-q", "--copy", "disk.qbm", "copy.qcow2"]);
    room.done(&["export", "-q", "--copy", "disk.qbm", "json.qcow2"]);
    assert_eq!(
        room.done(&["import", "copy.qcow2", "copy.qbm"]),
        "imported copy.qcow2 as copy.qbm: data in copy.qcow2, bitmaps \"nightly\", \"off\"\nQEMU's bitmaps in copy.qcow2 \
         are not valid any more\n"
    );
    assert_eq!(
        room.done(&["bitmap", "dump", "copy.qbm", "nightly"]),
        room.done(&["bitmap", "dump", "disk.qbm", "nightly"])
    );
    room.done(&["compare", "copy.qbm", "disk.qbm"]);
    room.done(&["check", "copy.qbm"]);
    // What QEMU is not to believe is not imported again.
    let before = room.names();
    refused(
        &room,
        &["import", "copy.qcow2", "again.qbm"],
        "cannot import copy.qcow2: a program that knows nothing of bitmaps has written to it since they were saved, so \
         that changes are missing in all of them, and the next backup must be a full one (--skip-in-use leaves such \
         bitmaps out)",
    );
    assert_eq!(room.names(), before);
    let facts = room.json(&["import", "--output", "json", "json.qcow2", "json.qbm"]);
    let wanted = serde_json::json!({
        "filename": "json.qbm",
        "source": "json.qcow2",
        "image": "json.qcow2",
        "image-format": "qcow2",
        "bitmaps": ["nightly", "off"],
        "left-out": [],
    });
    assert_eq!(facts, wanted);
    let facts = room.json(&[
        "import",
        "--bitmaps",
        "--output",
        "json",
        "disk.qcow2",
        "disk.qbm",
    ]);
    assert_eq!(facts["bitmaps"], serde_json::json!(["nightly", "off"]));
}
