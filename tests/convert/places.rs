//! Targets that are no ordinary files, and file systems that share space. Need root, loop devices and `mkfs`.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::Command;

use super::loops::Loop;
use super::mounted::Mounted;
use super::random::Random;
use super::room::Room;
use super::run::run;
use super::{scatter, skip};

/// A file of zeros as a block device. `None`, with a word, where the machine cannot.
fn loop_device(room: &Room, name: &str, length: u64) -> Option<Loop> {
    File::create(room.path(name))
        .expect("a file")
        .set_len(length)
        .expect("a length");
    Loop::new(&room.path(name), &[])
        .map_err(|why| skip::skipped(format_args!("there is no loop device: {why}")))
        .ok()
}

#[test]
fn a_block_device_is_written_as_far_as_the_source_goes() {
    let room = Room::new();
    let Some(device) = loop_device(&room, "device", 8 << 20) else {
        return;
    };
    let path = device.device().to_str().expect("its name");
    std::fs::write(device.device(), vec![0xaa; 8 << 20]).expect("written");
    scatter(&room, "in.img", 5_000_001, &mut Random::new(Random::seed()));
    let (_, complaint) = room.fails(&["convert", "-f", "raw", "in.img", path]);
    assert!(
        complaint.ends_with("(-n overwrites what exists)\n"),
        "{complaint}"
    );
    room.done(&["convert", "-q", "-n", "-f", "raw", "in.img", path]);
    let found = std::fs::read(device.device()).expect("read");
    assert!(found[..5_000_001] == room.read("in.img")[..]);
    assert!(found[5_000_001..].iter().all(|byte| *byte == 0xaa));
    // And from it.
    room.done(&["convert", "-q", "-f", "raw", path, "back.img"]);
    assert!(room.read("back.img") == found);
    scatter(&room, "long.img", (8 << 20) + 1, &mut Random::new(1));
    let (_, complaint) = room.fails(&["convert", "-n", "-f", "raw", "long.img", path]);
    assert!(
        complaint.ends_with("it is 8388608 bytes long, and the source 8388609\n"),
        "{complaint}"
    );
}

#[test]
fn what_can_be_shared_is_not_copied() {
    let room = Room::new();
    let Some(device) = loop_device(&room, "xfs", 400 << 20) else {
        return;
    };
    room.folder("at");
    let made = run(Command::new("mkfs.xfs")
        .args(["-q", "-m", "reflink=1"])
        .arg(device.device()));
    let mounted = made.and_then(|_| Mounted::new(&[device.device().as_os_str()], &room.path("at")));
    if let Err(why) = mounted.as_ref().map(Mounted::folder) {
        return skip::skipped(format_args!("there is no file system that shares space: {why}"));
    }
    let mut random = Random::new(Random::seed());
    for length in [1_000_000, 20 << 20, (7 << 20) + 5] {
        scatter(&room, "at/in.img", length, &mut random);
        let content = room.read("at/in.img");
        let facts = room.json(&[
            "convert",
            "--output",
            "json",
            "-f",
            "raw",
            "at/in.img",
            "at/out.img",
        ]);
        assert!(room.read("at/out.img") == content);
        assert!(facts["shared"].as_u64() > Some(0), "{facts}");
        // At most the parts of blocks at the ends of what is data.
        assert!(facts["written"].as_u64() <= Some(4096 * 64), "{facts}");
        // Space of its own is what -S 0 asks for.
        let args = [
            "convert",
            "--output",
            "json",
            "-S",
            "0",
            "-f",
            "raw",
            "at/in.img",
            "at/own.img",
        ];
        assert_eq!(room.json(&args)["shared"], 0);
        assert!(room.read("at/own.img") == content);
        // To another file system it is copied.
        let args = ["convert", "--output", "json", "-f", "raw", "at/in.img", "out.img"];
        assert_eq!(room.json(&args)["shared"], 0);
        assert!(room.read("out.img") == content);
        for name in ["at/in.img", "at/out.img", "at/own.img", "out.img"] {
            std::fs::remove_file(room.path(name)).expect("removed");
        }
    }
    // An overlay's layers are shared one by one, also where a few blocks of one lie in front of much of another.
    scatter(&room, "at/base.img", 5 << 20, &mut random);
    let base = File::options().write(true).open(room.path("at/base.img"));
    base.and_then(|file| file.write_all_at(&[0x77; 8192], (1 << 20) - 8192))
        .expect("written");
    room.done(&["create", "-q", "-b", "base.img", "-F", "raw", "at/clone.qbm"]);
    room.guest_writes("at/clone.qbm", 1 << 20, 3 << 20);
    let facts = room.json(&["convert", "--output", "json", "at/clone.qbm", "at/flat.img"]);
    assert!(facts["shared"].as_u64() >= Some(3 << 20), "{facts}");
    let said = room.done(&["compare", "-F", "raw", "at/clone.qbm", "at/flat.img"]);
    assert_eq!(said, "Images are identical.\n");
}
