//! Faults, crash points, choosers and the log.

use std::collections::BTreeSet;
use std::path::Path;

use super::{F, disk_with_file, errno, open, outcomes, pieces, set, sync, write};
use crate::storage::simulated::{CallKind, Fault, Keep, Kept, SimDisk};
use crate::storage::{Role, SyncMode, write_slice};

// Faults (F3).

#[test]
fn the_nth_call_of_a_kind_fails_once_or_from_then_on() {
    let (disk, file) = disk_with_file();
    let attempt = || errno(write_slice(&*file, b"x", 0));
    disk.fail(Fault::new(libc::ENOSPC).on(CallKind::Write).nth(2));
    assert_eq!(
        [attempt(), attempt(), attempt()],
        [None, Some(libc::ENOSPC), None]
    );
    disk.fail(Fault::new(libc::EIO).on(CallKind::Write).nth(2).from_then_on());
    assert_eq!(
        [attempt(), attempt(), attempt()],
        [None, Some(libc::EIO), Some(libc::EIO)]
    );
    assert!(file.length().is_ok(), "other kinds still work");
    disk.heal();
    assert_eq!(attempt(), None);
    disk.fail(Fault::new(libc::EINTR).nth(2));
    assert!(file.length().is_ok());
    assert_eq!(file.length().unwrap_err().raw_os_error(), Some(libc::EINTR));
}

#[test]
fn faults_choose_by_name_and_by_closure() {
    let (disk, file) = disk_with_file();
    disk.put("g", b"");
    let other = open(&disk, "g");
    disk.fail(Fault::new(libc::EIO).on_file("g").from_then_on());
    assert_eq!(errno(write_slice(&*file, b"x", 0)), None);
    assert_eq!(errno(write_slice(&*other, b"x", 0)), Some(libc::EIO));
    assert_eq!(
        errno(disk.folder().rename(Path::new("f"), Path::new("g"))),
        Some(libc::EIO)
    );
    disk.heal();
    disk.fail(
        Fault::new(libc::EIO).matching(|call| call.file().is_some_and(|file| file.role == Role::Bitmap)),
    );
    assert_eq!(errno(write_slice(&*other, b"x", 0)), None);
}

#[test]
fn a_failing_write_leaves_the_pieces_that_the_test_chose() {
    let old = pieces(b"....");
    let new = pieces(b"abcd");
    let after = |kept: Kept| {
        let disk = SimDisk::new();
        disk.put(F, &old);
        disk.fail(Fault::new(libc::EIO).on(CallKind::Write).keeping(kept));
        assert_eq!(errno(write_slice(&*open(&disk, F), &new, 0)), Some(libc::EIO));
        // A replay does what the call did.
        let replayed = disk.crash_points().last().unwrap().kill();
        assert_eq!(replayed.read(F).unwrap(), disk.read(F).unwrap());
        disk.read(F).unwrap()
    };
    assert_eq!(after(Kept::Nothing), old);
    assert_eq!(after(Kept::All), new);
    assert_eq!(after(Kept::First(1)), pieces(b"a..."));
    let drawn: BTreeSet<_> = (0..200).map(|seed| after(Kept::Random(seed))).collect();
    assert_eq!(drawn.len(), 16, "every subset is drawn by some seed");
}

#[test]
fn a_failing_rename_may_have_happened() {
    for (kept, name) in [(Kept::Nothing, "f"), (Kept::All, "g")] {
        let (disk, _) = disk_with_file();
        disk.fail(Fault::new(libc::EIO).on(CallKind::Rename).keeping(kept));
        assert!(disk.folder().rename(Path::new("f"), Path::new("g")).is_err());
        assert_eq!(disk.names(), [Path::new(name)]);
    }
}

// Crash points.

#[test]
fn the_past_is_replayed_exactly() {
    let (disk, file) = disk_with_file();
    for byte in 0..20 {
        write(&*file, byte * 100, &[u8::try_from(byte).unwrap(); 700]);
        if byte % 7 == 3 {
            sync(&*file);
        }
        let (events, seen) = (disk.events().len() as u64, disk.read(F).unwrap());
        assert_eq!(disk.after(events).kill().read(F).unwrap(), seen);
        let later = disk.kill();
        write(&*open(&later, F), 0, b"later");
        assert_eq!(disk.read(F).unwrap(), seen, "a crashed disk is another disk");
    }
    let points: Vec<u64> = disk.crash_points().map(|point| point.events()).collect();
    assert_eq!(points, (0..=disk.events().len() as u64).collect::<Vec<_>>());
    // Twice the same way is twice the same.
    for point in disk.crash_points() {
        let cut = || point.power_cut_keeping(Keep::Random(point.events())).read(F).ok();
        assert_eq!(cut(), cut());
    }
}

#[test]
fn a_kill_keeps_everything_and_makes_nothing_durable() {
    let (disk, file) = disk_with_file();
    write(&*file, 0, b"a");
    let killed = disk.kill();
    assert_eq!(killed.read(F).unwrap(), b"a");
    assert_eq!(outcomes(&killed.now()), outcomes(&disk.now()));
    sync(&*open(&killed, F));
    assert_eq!(outcomes(&killed.now()), set(&[b"a"]));
}

#[test]
fn a_kill_may_come_in_the_middle_of_a_write() {
    let (disk, file) = disk_with_file();
    write(&*file, 0, &pieces(b"abc"));
    let event = disk.events().len() as u64;
    write(&*file, 0, b"later");
    let torn = disk.kill_within(event, Kept::First(2));
    assert_eq!(torn.read(F).unwrap(), pieces(b"ab"));
}

#[test]
fn a_power_cut_leaves_nothing_unsettled() {
    let (disk, file) = disk_with_file();
    write(&*file, 300, &pieces(b"abc"));
    disk.folder().create(Role::Image, Path::new("g")).unwrap();
    // The new name; the lengths 0, 512 … 1536 and 1836; four pieces.
    assert_eq!(disk.now().states(), 2 * 5 * 16);
    for seed in 0..50 {
        let after = disk.power_cut_keeping(Keep::Random(seed)).now();
        assert_eq!((after.choices(), after.states()), (0, 1));
    }
}

#[test]
fn ready_choosers_do_what_they_say() {
    let (disk, _) = disk_with_file();
    disk.put(F, &pieces(b"..."));
    let file = open(&disk, F);
    for fill in [b"xyz", b"abc"] {
        write(&*file, 0, &pieces(fill));
    }
    let point = disk.now();
    let after = |keep: Keep| {
        let bytes = point.power_cut_keeping(keep).read(F).unwrap();
        String::from_utf8(bytes.into_iter().step_by(512).collect()).unwrap()
    };
    assert_eq!((point.choices(), point.states()), (3, 27));
    assert_eq!(after(Keep::Nothing), "...");
    assert_eq!(after(Keep::All), "abc");
    assert_eq!([0, 1, 2].map(|it| after(Keep::AllBut(it))), [".bc", "a.c", "ab."]);
    assert_eq!([0, 1, 2].map(|it| after(Keep::Only(it))), ["a..", ".b.", "..c"]);
    let numbered: BTreeSet<_> = (0..27).map(|n| after(Keep::Numbered(n))).collect();
    let random: BTreeSet<_> = (0..2000).map(|seed| after(Keep::Random(seed))).collect();
    assert_eq!(numbered.len(), 27);
    assert_eq!(random, numbered, "random choices reach every state");
}

#[test]
fn the_log_says_what_happened_in_order() {
    let disk = SimDisk::new();
    let folder = disk.folder();
    let tmp = folder.create(Role::Descriptor, Path::new("d.tmp")).unwrap();
    write(&*tmp, 3, b"hello");
    disk.fail(Fault::new(libc::EIO).on(CallKind::Sync));
    assert!(tmp.sync(SyncMode::All).is_err());
    folder.rename(Path::new("d.tmp"), Path::new("d")).unwrap();
    folder.sync().unwrap();
    let kinds: Vec<_> = disk.events().iter().map(|event| event.call.kind()).collect();
    assert_eq!(
        kinds,
        [
            CallKind::Create,
            CallKind::Write,
            CallKind::Sync,
            CallKind::Rename,
            CallKind::SyncFolder
        ]
    );
    let text = disk.to_string();
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    assert_eq!(lines[1], "2 Write d.tmp, 5 bytes at offset 3");
    assert!(lines[2].starts_with("3 Sync d.tmp: Input/output error"), "{text}");
    assert_eq!(lines[3], "4 Rename d.tmp to d");
}
