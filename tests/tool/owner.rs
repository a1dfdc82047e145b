//! Whose the files are that the tool makes: who could use the disk can go on, and nobody else comes to see it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

use super::room::Room;

/// Somebody who is not the one that runs this, with a group that is not his own.
const OTHER: (u32, u32) = (12_345, 23_456);

/// Gives the file to somebody else, where that may be, and a mode that no umask makes.
fn give_away(room: &Room, name: &str, mode: u32) {
    // Where only the mode can be another one, that is what is looked at.
    let _ = chown(room.path(name), Some(OTHER.0), Some(OTHER.1));
    fs::set_permissions(room.path(name), Permissions::from_mode(mode)).expect("a mode");
}

fn whose(room: &Room, name: &str) -> (u32, u32, u32) {
    let meta = room.meta(name);
    (meta.uid(), meta.gid(), meta.mode() & 0o7777)
}

/// Runs each of these, and looks at all files after it.
#[track_caller]
fn all_are_like(room: &Room, model: &str, commands: &[&[&str]]) {
    let expected = whose(room, model);
    for args in commands {
        let before = room.names();
        room.done(args);
        let after = room.names();
        assert_ne!(before, after, "{args:?} makes or removes a file");
        for name in after {
            assert_eq!(whose(room, &name), expected, "{args:?}: {name}");
        }
    }
}

#[test]
fn what_comes_to_an_image_is_its_owners() {
    let room = Room::new();
    room.write("disk.img", &vec![0x11; 1 << 20]);
    give_away(&room, "disk.img", 0o640);
    let commands: [&[&str]; 6] = [
        &["create", "-q", "-f", "raw", "--image", "disk.img", "disk.qbm"],
        &["bitmap", "--add", "disk.qbm", "nightly"],
        &["snapshot", "-q", "disk.qbm", "monday.qbm"],
        &["bitmap", "--add", "disk.qbm", "weekly"],
        &["snapshot", "-q", "disk.qbm", "tuesday.qbm"],
        &["bitmap", "--remove", "disk.qbm", "weekly"],
    ];
    all_are_like(&room, "disk.img", &commands);
}

#[test]
fn a_disk_that_was_given_away_stays_with_whom_it_was_given_to() {
    let room = Room::new();
    let options = qbm::CreateOptions::new().size(1 << 20).no_state(true);
    options.create(room.path("disk.qbm")).expect("a disk");
    for name in room.names() {
        give_away(&room, &name, 0o600);
    }
    // The state file comes with the first of them.
    let commands: [&[&str]; 2] = [
        &["bitmap", "--add", "disk.qbm", "nightly"],
        &["snapshot", "-q", "disk.qbm", "monday.qbm"],
    ];
    all_are_like(&room, "disk.qbm", &commands);
    room.guest_writes("disk.qbm", 0, 4096);
    let before = room.names();
    room.done(&["commit", "-q", "disk.qbm"]);
    assert_ne!(room.names(), before, "the allocation bitmap is another file");
    for name in room.names() {
        assert_eq!(whose(&room, &name), whose(&room, "disk.qbm"), "{name}");
    }
}

#[test]
fn a_new_image_is_as_private_as_the_one_below_it() {
    let room = Room::new();
    room.done(&["create", "-q", "disk.qbm", "1M"]);
    give_away(&room, "disk.qbm", 0o644);
    give_away(&room, "disk-data.img", 0o600);
    room.done(&["snapshot", "-q", "disk.qbm", "monday.qbm"]);
    assert_eq!(whose(&room, "disk-data-1.img"), whose(&room, "disk-data.img"));
    assert_eq!(whose(&room, "monday.qbm"), whose(&room, "disk.qbm"));
}

#[test]
fn a_prune_leaves_backups_with_their_owner() {
    let room = Room::new();
    room.done(&["create", "-q", "disk.qbm", "1M"]);
    for at in [0, 100_000, 200_000] {
        room.guest_writes("disk.qbm", at, 5000);
        room.done(&[
            "backup", "-q", "--bitmap", "nightly", "--to", "backups", "disk.qbm",
        ]);
    }
    let listed = || -> Vec<String> {
        let names = fs::read_dir(room.path("backups")).expect("a folder");
        let names = names.map(|entry| entry.expect("a name").file_name().into_string().expect("text"));
        names.map(|name| format!("backups/{name}")).collect()
    };
    for name in listed() {
        give_away(&room, &name, 0o600);
    }
    let before = listed();
    room.done(&["backup", "prune", "-q", "--keep-last", "1", "backups"]);
    let after = listed();
    assert!(after.iter().any(|name| !before.contains(name)), "{after:?}");
    let expected = whose(&room, &after[0]);
    assert_eq!(expected.2, 0o600);
    for name in after {
        assert_eq!(whose(&room, &name), expected, "{name}");
    }
}
