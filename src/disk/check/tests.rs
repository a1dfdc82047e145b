//! What a check finds, what it repairs, and above all what it leaves alone.

mod changing;
mod crash;
mod failing;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::{CheckOptions, CheckReport, FindingKind, Repair, Severity};
use crate::disk::{AddBitmap, CreateOptions, Disk, OpenOptions, WriteFlags};
use crate::error::ErrorCode;
use crate::units::Granularity;

const MIB: u64 = 1 << 20;

struct Room {
    dir: tempfile::TempDir,
}

impl Room {
    /// With a disk of 4 MiB that was closed, with a bitmap `b` in which the first granule is dirty.
    fn new() -> Self {
        let room = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        CreateOptions::new().size(4 * MIB).create(room.disk()).unwrap();
        let disk = room.open();
        disk.bitmap_add("b", AddBitmap::default()).unwrap();
        disk.write(&[7], 0, WriteFlags::empty()).unwrap();
        disk.close().unwrap();
        room
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn disk(&self) -> PathBuf {
        self.path("disk.qbm")
    }

    fn open(&self) -> Disk {
        Disk::open(self.disk()).unwrap()
    }

    fn options(repair: Repair) -> CheckOptions {
        CheckOptions::new().repair(repair)
    }

    fn check(&self, repair: Repair) -> CheckReport {
        self.run(&Self::options(repair))
    }

    fn run(&self, options: &CheckOptions) -> CheckReport {
        options
            .check(self.disk(), &mut |_, _| ControlFlow::Continue(()))
            .unwrap()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Every file, byte for byte.
    fn content(&self) -> Vec<(String, Vec<u8>)> {
        let names = self.names();
        let read = |name: String| {
            let bytes = fs::read(self.path(&name)).unwrap();
            (name, bytes)
        };
        names.into_iter().map(read).collect()
    }

    /// The content of the image, from which no repair may take anything.
    fn image(&self) -> Vec<u8> {
        fs::read(self.path("disk-data.img")).unwrap()
    }

    /// Somebody else writes to the image.
    fn written_by_others(&self) {
        let file = fs::OpenOptions::new()
            .write(true)
            .open(self.path("disk-data.img"))
            .unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"foreign", MIB).unwrap();
    }

    /// Leaves the disk as a process that was killed does.
    fn killed(&self) {
        let copy = tempfile::tempdir().unwrap();
        let disk = self.open();
        disk.write(&[1], 2 * MIB, WriteFlags::empty()).unwrap();
        for name in self.names() {
            fs::copy(self.path(&name), copy.path().join(&name)).unwrap();
        }
        drop(disk);
        for name in self.names() {
            fs::copy(copy.path().join(&name), self.path(&name)).unwrap();
        }
    }

    fn count(&self, name: &str) -> u64 {
        let disk = OpenOptions::new().read_only(true).open(self.disk()).unwrap();
        disk.bitmap_count(name).unwrap()
    }
}

/// What the only finding is about.
fn subject(report: &CheckReport) -> &str {
    assert_eq!(report.findings.len(), 1, "{report:#?}");
    &report.findings[0].subject
}

fn kinds(report: &CheckReport) -> Vec<(FindingKind, bool)> {
    report.findings.iter().map(|it| (it.kind, it.fixed)).collect()
}

#[track_caller]
fn words(report: &CheckReport, part: &str) {
    assert!(
        report.findings.iter().any(|it| it.message.contains(part)),
        "{part:?} is not in {report:#?}"
    );
}

#[test]
fn a_sound_disk_has_nothing_and_nothing_is_changed() {
    let room = Room::new();
    let before = room.content();
    for repair in [
        Repair::None,
        Repair::Leaks,
        Repair::All,
        Repair::Dirty,
        Repair::Trust,
    ] {
        assert_eq!(kinds(&room.check(repair)), [], "{repair:?}");
    }
    assert_eq!(room.content(), before);
}

#[test]
fn a_descriptor_that_is_none_is_told_in_words() {
    let room = Room::new();
    for (text, part) in [
        ("", "the file is empty"),
        ("{\"QBM\": {\"version\": 1", "not readable as JSON"),
    ] {
        fs::write(room.disk(), text).unwrap();
        let report = room.check(Repair::All);
        assert_eq!(kinds(&report), [(FindingKind::DescriptorInvalid, false)]);
        assert_eq!(report.remaining(Severity::Corruption), 1);
        words(&report, part);
        assert_eq!(fs::read_to_string(room.disk()).unwrap(), text);
    }
    fs::remove_file(room.disk()).unwrap();
    let error = CheckOptions::new()
        .check(room.disk(), &mut |_, _| ControlFlow::Continue(()))
        .unwrap_err();
    assert_eq!(error.code(), ErrorCode::FileNotFound);
}

#[test]
fn files_that_are_gone_or_too_short_are_found_all_at_once() {
    let room = Room::new();
    let disk = room.open();
    disk.bitmap_add("c", AddBitmap::default()).unwrap();
    disk.close().unwrap();
    fs::remove_file(room.path("disk-b.bitmap")).unwrap();
    fs::write(room.path("disk-c.bitmap"), [0; 7]).unwrap();
    let before = room.content();
    let report = room.check(Repair::All);
    assert_eq!(
        kinds(&report),
        [
            (FindingKind::FileMissing, false),
            (FindingKind::FileInvalid, false)
        ]
    );
    words(&report, "disk-b.bitmap: No such file or directory");
    words(
        &report,
        "is too small: 7 bytes, where the bits of the disk need 8",
    );
    assert_eq!(room.content(), before);

    fs::remove_file(room.path("disk-data.img")).unwrap();
    let report = room.check(Repair::None);
    assert!(report.has(FindingKind::FileMissing));
    words(&report, "QBM.image.file: cannot open");
    words(
        &report,
        "; no repair makes up for it: bring the file back, or restore a backup",
    );
}

/// A bitmap's file that is missing or cut short locks the whole disk out; whatever was in it, with every bit set it is right.
#[test]
fn a_dirty_bitmap_whose_file_is_gone_or_cut_gets_a_new_one() {
    type Spoil = fn(&Path);
    let cases: [(Spoil, FindingKind); 2] = [
        (|path| fs::remove_file(path).unwrap(), FindingKind::FileMissing),
        (|path| fs::write(path, [0; 7]).unwrap(), FindingKind::FileInvalid),
    ];
    for (spoil, kind) in cases {
        let room = Room::new();
        let disk = room.open();
        disk.bitmap_add("c", AddBitmap::default()).unwrap();
        let epoch = disk.bitmap_info("b").unwrap().epoch;
        disk.close().unwrap();
        spoil(&room.path("disk-b.bitmap"));
        let said = Disk::open(room.disk()).unwrap_err();
        let hint = "; \"qbm check -r dirty\" makes it anew with every bit set";
        assert!(said.message().ends_with(hint), "{said}");
        let before = room.content();
        for repair in [Repair::None, Repair::Leaks, Repair::All, Repair::Trust] {
            let report = room.check(repair);
            assert_eq!(kinds(&report)[0], (kind, false), "{repair:?}");
            words(&report, "; -r dirty makes it anew with every bit set");
            assert_eq!(room.content(), before);
        }
        let image = room.image();
        let report = room.check(Repair::Dirty);
        let mut expected = vec![(kind, true)];
        // What is left of the old file goes.
        expected.extend((kind == FindingKind::FileInvalid).then_some((FindingKind::Leftover, true)));
        assert_eq!(kinds(&report), expected);
        assert_eq!(kinds(&room.check(Repair::None)), []);
        assert_eq!((room.count("b"), room.count("c")), (64, 0));
        assert_ne!(room.open().bitmap_info("b").unwrap().epoch, epoch);
        assert_eq!(room.image(), image);
    }
}

/// Its old file goes only where nobody else may need it.
#[test]
fn a_cut_file_that_another_descriptor_names_stays() {
    let room = Room::new();
    fs::copy(room.disk(), room.path("copy.qbm")).unwrap();
    fs::write(room.path("disk-b.bitmap"), [0; 7]).unwrap();
    assert_eq!(
        kinds(&room.check(Repair::Dirty)),
        [(FindingKind::FileInvalid, true)]
    );
    assert_eq!(fs::read(room.path("disk-b.bitmap")).unwrap(), [0; 7]);
    assert_eq!(room.count("b"), 64);
}

#[test]
fn a_lost_bitmap_of_a_disk_that_was_not_closed_gets_a_new_file_too() {
    let room = Room::new();
    room.killed();
    fs::remove_file(room.path("disk-b.bitmap")).unwrap();
    let report = room.check(Repair::All);
    words(&report, "it was not repaired: cannot open");
    assert!(room.check(Repair::Dirty).findings[0].fixed);
    assert_eq!(kinds(&room.check(Repair::All)), [(FindingKind::NotClosed, true)]);
    assert_eq!(room.count("b"), 64);
}

/// How long its bits would have to be nobody knows without the image.
#[test]
fn a_lost_bitmap_of_a_disk_without_its_image_stays_lost() {
    let room = Room::new();
    fs::remove_file(room.path("disk-b.bitmap")).unwrap();
    fs::remove_file(room.path("disk-data.img")).unwrap();
    let before = room.content();
    let report = room.check(Repair::Dirty);
    words(
        &report,
        "it is not made anew, as the length of the disk is not known",
    );
    assert_eq!(report.remaining(Severity::Error), 1);
    assert_eq!(room.content(), before);
}

/// What an allocation bitmap said nobody knows: with any bits but its own the disk would show something else.
#[test]
fn an_allocation_bitmap_is_never_made_anew() {
    let room = Room::new();
    CreateOptions::new()
        .backing("disk.qbm", crate::descriptor::Format::Qbm)
        .create(room.path("top.qbm"))
        .unwrap();
    let allocation = room.path("top-allocation.bitmap");
    for cut in [true, false] {
        if cut {
            fs::write(&allocation, [0; 7]).unwrap();
        } else {
            fs::remove_file(&allocation).unwrap();
        }
        let before = room.content();
        for repair in [Repair::All, Repair::Dirty, Repair::Trust] {
            let report = Room::options(repair)
                .check(room.path("top.qbm"), &mut |_, _| ControlFlow::Continue(()))
                .unwrap();
            assert_eq!(report.remaining(Severity::Corruption), 1);
            words(&report, "bring the file back, or restore a backup");
        }
        assert_eq!(room.content(), before);
    }
}

/// That others have made the image longer excuses no file that was too short before: what it had is not known.
#[test]
fn trust_does_not_take_a_cut_file_for_one_that_was_outgrown() {
    for (longer, repair) in [
        (false, Repair::Trust),
        (true, Repair::Trust),
        (true, Repair::Dirty),
    ] {
        let room = Room::new();
        fs::write(room.path("disk-b.bitmap"), [0; 7]).unwrap();
        room.written_by_others();
        if longer {
            let image = fs::OpenOptions::new()
                .write(true)
                .open(room.path("disk-data.img"))
                .unwrap();
            image.set_len(64 * MIB).unwrap();
        }
        room.check(repair);
        let found = Disk::open(room.disk()).map(|disk| disk.bitmap_count("b").unwrap());
        match repair {
            Repair::Dirty => assert_eq!(found.unwrap(), 1024),
            _ => assert_eq!(found.unwrap_err().code(), ErrorCode::FileInvalid),
        }
    }
}

#[test]
fn bits_behind_the_end_are_cleared_and_no_others() {
    let room = Room::new();
    let disk = room.open();
    // 8193 granules: the last byte of bits is shared with bits behind the end.
    disk.truncate(4 * MIB + 512, crate::disk::TruncateFlags::empty())
        .unwrap();
    let options = AddBitmap {
        granularity: Granularity::MIN,
        ..AddBitmap::default()
    };
    disk.bitmap_add("fine", options).unwrap();
    disk.write(&[1; 512], 4 * MIB, WriteFlags::empty()).unwrap();
    disk.close().unwrap();
    let path = room.path("disk-fine.bitmap");
    let sound = fs::read(&path).unwrap();
    for longer in [false, true] {
        let mut bytes = sound.clone();
        if longer {
            bytes.resize(100_000, 0);
            bytes[90_000] = 1;
        } else {
            bytes[1024] |= 0x80;
        }
        fs::write(&path, &bytes).unwrap();
        for repair in [Repair::None, Repair::Leaks] {
            let report = room.check(repair);
            assert_eq!(kinds(&report), [(FindingKind::TailBits, false)]);
            assert_eq!(report.remaining(Severity::Note), 1);
        }
        assert_eq!(fs::read(&path).unwrap(), bytes);
        assert_eq!(kinds(&room.check(Repair::All)), [(FindingKind::TailBits, true)]);
        let mut expected = sound.clone();
        expected.resize(bytes.len(), 0);
        assert_eq!(fs::read(&path).unwrap(), expected);
        assert_eq!(kinds(&room.check(Repair::None)), []);
    }
    assert_eq!(room.count("fine"), 1);
}

/// An image that somebody has cut short: the bits behind its end may be all that tells what was there.
#[test]
fn bits_behind_the_end_of_an_image_that_others_cut_stay() {
    let room = Room::new();
    let disk = room.open();
    disk.write(&[1], 3 * MIB, WriteFlags::empty()).unwrap();
    disk.close().unwrap();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(room.path("disk-data.img"))
        .unwrap();
    file.set_len(MIB).unwrap();
    let before = room.content();
    let report = room.check(Repair::All);
    assert_eq!(
        kinds(&report),
        [
            (FindingKind::ForeignWrites, false),
            (FindingKind::TailBits, false)
        ]
    );
    assert_eq!(room.content(), before);
}

#[test]
fn leftovers_go_and_nothing_else_does() {
    let room = Room::new();
    let ours = [
        ".disk.qbm.tmp",
        ".disk.qbm-3.tmp",
        "disk-1.state",
        "disk-old.bitmap",
        "disk-b-1.bitmap",
    ];
    let others = [
        "disk.txt",
        "disk-data-1.img",
        "disk.bitmap",
        "disk-.bitmap",
        "xdisk-b.bitmap",
        "disk-01.state",
        "disk-b.bitmap.bak",
        ".disk.qbm-x.tmp",
        "config.json",
    ];
    let sound = room.names();
    for name in ours.iter().chain(&others) {
        fs::write(room.path(name), b"{}").unwrap();
    }
    fs::create_dir(room.path("disk-folder.bitmap")).unwrap();
    let report = room.check(Repair::None);
    let found: Vec<&str> = report.findings.iter().map(|it| it.subject.as_str()).collect();
    let mut expected = ours;
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(report.remaining(Severity::Leak), 5);
    let report = room.check(Repair::Leaks);
    assert_eq!(report.fixed(Severity::Leak), 5);
    let mut left: Vec<String> = sound;
    left.extend(others.map(str::to_owned));
    left.push("disk-folder.bitmap".to_owned());
    left.sort();
    assert_eq!(room.names(), left);
    assert_eq!(kinds(&room.check(Repair::None)), []);
}

/// `disk-b.qbm` has files that are called as those of `disk.qbm` could be.
#[test]
fn files_of_other_disks_are_no_leftovers() {
    let room = Room::new();
    CreateOptions::new()
        .size(MIB)
        .create(room.path("disk-b.qbm"))
        .unwrap();
    let other = Disk::open(room.path("disk-b.qbm")).unwrap();
    other.bitmap_add("x", AddBitmap::default()).unwrap();
    other.close().unwrap();
    assert!(room.path("disk-b-x.bitmap").exists());
    assert_eq!(kinds(&room.check(Repair::All)), []);

    // One that neither names could be made by either, just now.
    fs::write(room.path("disk-b-y.bitmap"), b"").unwrap();
    let report = room.check(Repair::Leaks);
    assert_eq!(kinds(&report), [(FindingKind::Leftover, false)]);
    words(&report, "it may be a new file of disk-b.qbm, too");
    fs::remove_file(room.path("disk-b-y.bitmap")).unwrap();

    // Named by a link, and under another name.
    fs::hard_link(room.path("disk-b-x.bitmap"), room.path("disk-same.bitmap")).unwrap();
    assert_eq!(kinds(&room.check(Repair::Leaks)), []);

    // A descriptor that cannot be read may name anything.
    fs::write(room.path("disk-z.bitmap"), b"").unwrap();
    fs::write(room.path("broken"), b"{\"QBM\": {\"version\": 9}}").unwrap();
    let report = room.check(Repair::Leaks);
    assert_eq!(kinds(&report), [(FindingKind::Leftover, false)]);
    words(&report, "broken may name it, and cannot be read as a descriptor");
    fs::remove_file(room.path("broken")).unwrap();
    assert_eq!(kinds(&room.check(Repair::Leaks)), [(FindingKind::Leftover, true)]);
    assert!(room.path("disk-b-x.bitmap").exists());
}

/// A descriptor that was cut, or spoilt by hand, may be another disk's all the same.
#[test]
fn no_leftover_goes_beside_a_descriptor_that_cannot_be_read() {
    let room = Room::new();
    fs::write(room.path("disk-z.bitmap"), b"").unwrap();
    for text in ["", "{", "\0\0\0\0", "{\"QMB\": {\"version\": 1}}", "{}"] {
        fs::write(room.path("e.qbm"), text).unwrap();
        let report = room.check(Repair::Leaks);
        assert_eq!(kinds(&report), [(FindingKind::Leftover, false)], "{text:?}");
        words(&report, "e.qbm may name it, and cannot be read as a descriptor");
    }
    fs::remove_file(room.path("e.qbm")).unwrap();
    assert_eq!(kinds(&room.check(Repair::Leaks)), [(FindingKind::Leftover, true)]);
}

#[test]
fn a_disk_that_was_not_closed_is_recovered() {
    let room = Room::new();
    room.killed();
    let before = room.content();
    let report = room.check(Repair::Leaks);
    assert_eq!(kinds(&report), [(FindingKind::NotClosed, false)]);
    assert_eq!(report.remaining(Severity::Note), 1);
    words(&report, "the disk was not closed");
    assert_eq!(subject(&report), "disk.state");
    assert_eq!(room.content(), before);
    assert_eq!(kinds(&room.check(Repair::All)), [(FindingKind::NotClosed, true)]);
    assert_eq!(kinds(&room.check(Repair::None)), []);
    assert!(room.count("b") >= 2);
}

#[test]
fn a_state_file_that_is_damaged_or_gone_is_made_anew() {
    type Spoil = fn(&Path);
    let cases: [(Spoil, FindingKind); 3] = [
        (
            |path| {
                let mut bytes = fs::read(path).unwrap();
                bytes[0] ^= 1;
                bytes[4096] ^= 1;
                fs::write(path, bytes).unwrap();
            },
            FindingKind::StateDamaged,
        ),
        (|path| fs::write(path, b"").unwrap(), FindingKind::StateDamaged),
        (|path| fs::remove_file(path).unwrap(), FindingKind::StateMissing),
    ];
    for (spoil, kind) in cases {
        let room = Room::new();
        let image = room.image();
        spoil(&room.path("disk.state"));
        let report = room.check(Repair::Leaks);
        assert_eq!(kinds(&report), [(kind, false)]);
        assert_eq!(report.remaining(Severity::Corruption), 1);
        words(&report, "; -r all makes a new one and sets every bit");
        assert_eq!(subject(&report), "disk.state");
        let report = room.check(Repair::All);
        assert_eq!(kinds(&report), [(kind, true)]);
        assert_eq!(kinds(&room.check(Repair::None)), []);
        assert_eq!(room.count("b"), 64, "nothing is known, so every bit");
        assert_eq!(room.image(), image);
    }
}

/// Each piece of the map has a checksum of its own. One that is damaged counts as active throughout, where the map is asked at
/// all, and the others as they are.
#[test]
fn a_damaged_piece_of_the_map_costs_its_regions_and_no_more() {
    const REGION: u64 = 512;
    const OF_A_PIECE: u64 = 4032 * REGION;
    // In the second piece.
    let written = 3 * MIB..3 * MIB + REGION;
    for (piece, closed, next) in [
        (0, true, "one"),
        (1, true, "two"),
        (0, false, "one"),
        (0, false, "two"),
        (1, false, "two"),
    ] {
        let room = Room {
            dir: tempfile::tempdir().unwrap(),
        };
        let create = CreateOptions::new().size(4 * MIB).region_bytes(REGION);
        create.create(room.disk()).unwrap();
        let disk = OpenOptions::new().cache_epoch("one").open(room.disk()).unwrap();
        let options = AddBitmap {
            granularity: Granularity::MIN,
            ..AddBitmap::default()
        };
        disk.bitmap_add("fine", options).unwrap();
        disk.write(&[7], written.start, WriteFlags::empty()).unwrap();
        if closed {
            disk.close().unwrap();
        } else {
            disk.die();
        }
        let mut state = fs::read(room.path("disk.state")).unwrap();
        state[8192 + piece * 512 + 100] ^= 1;
        fs::write(room.path("disk.state"), state).unwrap();
        let (before, image) = (room.content(), room.image());

        let mut expected = vec![FindingKind::StateDamaged];
        expected.extend((!closed).then_some(FindingKind::NotClosed));
        let all = |fixed| expected.iter().map(|kind| (*kind, fixed)).collect::<Vec<_>>();
        let check = |repair| room.run(&Room::options(repair).cache_epoch(next));
        for repair in [Repair::None, Repair::Leaks] {
            let report = check(repair);
            assert_eq!(
                kinds(&report),
                all(false),
                "piece {piece}, closed: {closed}, {next}"
            );
            assert_eq!(report.remaining(Severity::Corruption), 1);
            words(&report, "a part of the map in ");
            words(
                &report,
                "disk.state is damaged, so that all regions of that part count as active",
            );
        }
        let lost = !closed && next == "two";
        let open = OpenOptions::new().read_only(true).cache_epoch(next);
        let recovery = open.open(room.disk()).unwrap().info().unwrap().recovery;
        let reason = recovery.and_then(|it| it.reason);
        assert_eq!(
            reason.is_some_and(|why| why.ends_with(", and a part of the state file's map is damaged")),
            lost
        );
        assert_eq!(room.content(), before);

        assert_eq!(kinds(&check(Repair::All)), all(true));
        assert_eq!(kinds(&check(Repair::None)), []);
        let disk = open.open(room.disk()).unwrap();
        let (mut runs, mut from) = (Vec::new(), 0);
        while let Some(run) = disk.bitmap_next_dirty("fine", from, u64::MAX).unwrap() {
            from = run.end();
            runs.push(run.start()..run.end());
        }
        let expected = match (lost, piece) {
            (false, _) => vec![written.clone()],
            (true, 0) => vec![0..OF_A_PIECE, written.clone()],
            (true, _) => std::iter::once(OF_A_PIECE..2 * OF_A_PIECE).collect(),
        };
        assert_eq!(runs, expected, "piece {piece}, closed: {closed}, {next}");
        assert_eq!(room.image(), image);
    }
}

/// It is no fault, and no repair makes a state file: the next open for writing does.
#[test]
fn a_disk_with_bitmaps_and_no_state_file_is_a_note() {
    let room = Room {
        dir: tempfile::tempdir().unwrap(),
    };
    let create = CreateOptions::new().size(4 * MIB).no_state(true);
    create.create(room.disk()).unwrap();
    assert_eq!(kinds(&room.check(Repair::None)), [], "no bitmap can lose a bit");
    let disk = OpenOptions::new().no_state(true).open(room.disk()).unwrap();
    disk.bitmap_add("b", AddBitmap::default()).unwrap();
    disk.close().unwrap();
    let before = room.content();
    for repair in [
        Repair::None,
        Repair::Leaks,
        Repair::All,
        Repair::Dirty,
        Repair::Trust,
    ] {
        let report = room.check(repair);
        assert_eq!(kinds(&report), [(FindingKind::Unprotected, false)], "{repair:?}");
        assert_eq!(report.remaining(Severity::Note), 1);
        words(
            &report,
            "the disk has no state file: a power cut can cost its bitmaps bits",
        );
    }
    assert_eq!(room.content(), before);
    room.open().close().unwrap();
    assert_eq!(kinds(&room.check(Repair::None)), []);
}

#[test]
fn foreign_writes_make_dirty_or_are_trusted_as_the_user_says() {
    for (repair, dirty) in [(Repair::Dirty, 64), (Repair::Trust, 1)] {
        let room = Room::new();
        room.written_by_others();
        let (before, image) = (room.content(), room.image());
        for repair in [Repair::None, Repair::Leaks, Repair::All] {
            let report = room.check(repair);
            assert_eq!(kinds(&report), [(FindingKind::ForeignWrites, false)]);
            assert_eq!(report.remaining(Severity::Corruption), 1);
            words(&report, "was written to by others");
            assert_eq!(subject(&report), "disk-data.img");
        }
        assert_eq!(room.content(), before, "the user has not chosen");
        assert_eq!(kinds(&room.check(repair)), [(FindingKind::ForeignWrites, true)]);
        assert_eq!(kinds(&room.check(Repair::None)), []);
        assert_eq!(room.count("b"), dirty);
        assert_eq!(room.image(), image);
    }
}

/// An open refuses it, as the bitmap's file has no bits for what is new.
#[test]
fn a_disk_that_others_made_much_longer_is_mended() {
    for repair in [Repair::Dirty, Repair::Trust] {
        let room = Room::new();
        room.written_by_others();
        let image = fs::OpenOptions::new()
            .write(true)
            .open(room.path("disk-data.img"))
            .unwrap();
        image.set_len(64 * MIB).unwrap();
        for repair in [Repair::None, Repair::All] {
            let report = room.check(repair);
            words(&report, "is too small");
            words(
                &report,
                "; the image had 4194304 bytes when the disk was closed, and has 67108864 now",
            );
            // Its file is too short, but it records all the same.
            words(
                &report,
                "changes may be missing in \"b\"; -r dirty sets every bit",
            );
            assert_eq!(report.remaining(Severity::Corruption), 2);
        }
        room.check(repair);
        assert_eq!(kinds(&room.check(Repair::None)), []);
        let dirty = if repair == Repair::Dirty { 1024 } else { 1 };
        assert_eq!(room.count("b"), dirty, "{repair:?}");
    }
}

/// Nobody knows how long it was, nor what else they did: it is for the user to choose.
#[test]
fn a_disk_that_others_made_longer_while_it_was_not_closed_is_mended() {
    for repair in [Repair::Dirty, Repair::Trust] {
        let room = Room::new();
        let disk = room.open();
        let fine = AddBitmap {
            granularity: Granularity::MIN,
            ..AddBitmap::default()
        };
        disk.bitmap_add("fine", fine).unwrap();
        // Its file reaches far enough.
        let coarse = AddBitmap {
            granularity: Granularity::new(MIB).unwrap(),
            ..AddBitmap::default()
        };
        disk.bitmap_add("coarse", coarse).unwrap();
        disk.close().unwrap();
        room.killed();
        let path = room.path("disk-data.img");
        let image = fs::OpenOptions::new().write(true).open(path).unwrap();
        image.set_len(64 * MIB).unwrap();
        let before = room.content();
        for repair in [Repair::None, Repair::Leaks, Repair::All] {
            let report = room.check(repair);
            words(
                &report,
                "the disk was not closed, and the image is longer than its bitmaps' files reach",
            );
            words(
                &report,
                "changes may be missing in \"b\", \"fine\", \"coarse\"; -r dirty sets every bit, -r trust ",
            );
            assert!(report.has(FindingKind::NotClosed));
            assert_eq!(room.content(), before);
        }
        let data = room.image();
        let report = room.check(repair);
        assert!(report.findings.iter().all(|it| it.fixed), "{report:#?}");
        assert_eq!(kinds(&room.check(Repair::None)), []);
        assert_eq!(room.image(), data);
        let disk = room.open();
        assert_eq!(disk.length(), 64 * MIB);
        for (name, granularity) in [("b", 65536), ("fine", 512), ("coarse", MIB)] {
            let dirty = |at: u64| disk.bitmap_get(name, at).unwrap();
            assert!(dirty(2 * MIB), "what was written last, in {name:?}");
            let new: Vec<u64> = (4 * MIB / granularity..64 * MIB / granularity)
                .map(|it| it * granularity)
                .collect();
            assert!(
                new.iter().all(|at| dirty(*at)),
                "what came behind the end, in {name:?}"
            );
            if repair == Repair::Dirty {
                assert_eq!(disk.bitmap_count(name).unwrap(), 64 * MIB / granularity);
            }
        }
    }
}

/// What `lvextend` does, or whoever makes a loop device larger.
#[test]
fn an_open_that_trusts_the_image_takes_a_longer_one() {
    let room = Room::new();
    let image = fs::OpenOptions::new()
        .write(true)
        .open(room.path("disk-data.img"))
        .unwrap();
    image.set_len(64 * MIB).unwrap();
    for read_only in [true, false] {
        let error = OpenOptions::new()
            .read_only(read_only)
            .open(room.disk())
            .unwrap_err();
        assert_eq!(error.code(), ErrorCode::FileInvalid);
        let why = "is too small: 8 bytes, where the bits of the disk need 128; the image had 4194304 bytes when the disk was \
                   closed, and has 67108864 now: \"qbm check -r trust\" takes it as it is, \"qbm check -r dirty\" sets every bit";
        assert!(error.message().ends_with(why), "{error}");
    }
    let before = room.content();
    let options = OpenOptions::new().trust_image(true);
    let disk = options.clone().read_only(true).open(room.disk()).unwrap();
    assert_eq!(disk.bitmap_count("b").unwrap(), 1);
    disk.close().unwrap();
    assert_eq!(room.content(), before);

    let disk = options.open(room.disk()).unwrap();
    assert_eq!((disk.length(), disk.bitmap_count("b").unwrap()), (64 * MIB, 1));
    disk.write(&[1], 60 * MIB, WriteFlags::empty()).unwrap();
    disk.close().unwrap();
    assert_eq!(kinds(&room.check(Repair::None)), []);
    assert_eq!(room.count("b"), 2);
}

/// Once an open for writing has made a bitmap inconsistent, writes went by unrecorded: nothing proves that none did.
#[test]
fn trust_takes_back_no_mark() {
    let room = Room::new();
    room.written_by_others();
    let disk = room.open();
    disk.write(&[1], 3 * MIB, WriteFlags::empty()).unwrap();
    disk.close().unwrap();
    for repair in [Repair::All, Repair::Trust] {
        let report = room.check(repair);
        assert_eq!(kinds(&report), [(FindingKind::BitmapInconsistent, false)]);
        words(&report, "bitmap \"b\" is inconsistent");
    }
    assert_eq!(
        kinds(&room.check(Repair::Dirty)),
        [(FindingKind::BitmapInconsistent, true)]
    );
    assert_eq!(room.count("b"), 64);
}

/// An open for writing that comes to nothing leaves the stamp as it was, and the marks.
#[test]
fn foreign_writes_that_have_made_every_bitmap_inconsistent_are_no_choice_any_more() {
    let room = Room::new();
    room.written_by_others();
    drop(room.open());
    for repair in [Repair::None, Repair::All, Repair::Trust] {
        assert_eq!(
            kinds(&room.check(repair)),
            [(FindingKind::BitmapInconsistent, false)]
        );
    }
    assert_eq!(
        kinds(&room.check(Repair::Dirty)),
        [(FindingKind::BitmapInconsistent, true)]
    );
    assert_eq!(kinds(&room.check(Repair::None)), []);
    assert_eq!(room.count("b"), 64);
}

#[test]
fn foreign_writes_that_no_bitmap_missed_are_a_note() {
    let room = Room::new();
    let disk = room.open();
    disk.bitmap_remove("b").unwrap();
    disk.close().unwrap();
    room.written_by_others();
    let report = room.check(Repair::None);
    assert_eq!(kinds(&report), [(FindingKind::ForeignWrites, false)]);
    assert_eq!(report.remaining(Severity::Corruption), 0);
}

/// A disk that can be looked at can be looked at for a repair, too: nothing is repaired then, and that is told.
#[test]
fn a_state_file_that_cannot_be_written_to_is_checked_all_the_same() {
    let room = Room::new();
    fs::remove_file(room.path("disk.state")).unwrap();
    fs::create_dir(room.path("disk.state")).unwrap();
    let plain = room.check(Repair::None);
    assert_eq!(kinds(&plain), [(FindingKind::FileInvalid, false)]);
    for repair in [Repair::Leaks, Repair::All, Repair::Dirty, Repair::Trust] {
        let report = room.check(repair);
        assert_eq!(report.findings[0], plain.findings[0]);
        assert_eq!(report.findings.len(), 2);
        assert_eq!(report.findings[1].kind, FindingKind::RepairFailed);
        words(&report, "nothing was repaired: QBM.state.file: cannot open");
    }
}

#[test]
fn a_disk_in_use_is_locked() {
    let room = Room::new();
    let looks = |options: &CheckOptions| {
        options
            .check(room.disk(), &mut |_, _| ControlFlow::Continue(()))
            .map_err(|e| e.code())
    };
    let writer = room.open();
    assert_eq!(looks(&CheckOptions::new()), Err(ErrorCode::Locked));
    let unlocked = CheckOptions::new().no_lock(true);
    let in_use = |words_: &str| {
        let report = room.run(&unlocked);
        assert_eq!(kinds(&report), [(FindingKind::InUse, false)]);
        words(&report, words_);
    };
    in_use("the disk is in use by another handle of this process, and is as it was when it was closed");
    writer.write(&[1], MIB, WriteFlags::empty()).unwrap();
    in_use(
        "the disk is in use by another handle of this process, and whoever opens it for writing would recover it",
    );
    let repair = Room::options(Repair::Leaks);
    assert_eq!(looks(&repair), Err(ErrorCode::Locked));
    assert_eq!(
        looks(&repair.clone().no_lock(true)),
        Err(ErrorCode::InvalidArgument)
    );
    writer.close().unwrap();
    let reader = OpenOptions::new().read_only(true).open(room.disk()).unwrap();
    looks(&CheckOptions::new()).unwrap();
    assert_eq!(looks(&repair), Err(ErrorCode::Locked));
    reader.close().unwrap();
    looks(&repair).unwrap();
    room.open().close().unwrap();
}

#[test]
fn a_broken_chain_is_found() {
    let room = Room::new();
    CreateOptions::new()
        .backing("disk.qbm", crate::descriptor::Format::Qbm)
        .create(room.path("top.qbm"))
        .unwrap();
    let check = || {
        CheckOptions::new()
            .check(room.path("top.qbm"), &mut |_, _| ControlFlow::Continue(()))
            .unwrap()
    };
    assert_eq!(kinds(&check()), []);
    fs::rename(room.path("disk-data.img"), room.path("away")).unwrap();
    let report = check();
    assert_eq!(kinds(&report), [(FindingKind::ChainBroken, false)]);
    words(&report, "disk-data.img");
    words(
        &report,
        "bring the image back, or name another one (qbm rebase -u)",
    );
}

#[test]
fn checksums_are_compared_where_that_is_asked_for() {
    let room = Room::new();
    let asked = CheckOptions::new().checksum(true);
    assert_eq!(kinds(&room.run(&asked)), [(FindingKind::ChecksumMissing, false)]);
    let text = fs::read_to_string(room.disk()).unwrap();
    let with = |sum: &str| {
        let text = text.replace(
            "\"format\": \"raw\"",
            &format!("\"format\": \"raw\", \"checksum\": \"sha256:{sum}\""),
        );
        fs::write(room.disk(), text).unwrap();
    };
    // As sha256sum says of a 7, and zeros up to 4 MiB.
    with("6ea8b02cd0e1d1d4c1a8c8a4b4b3d2b3e6ea8b02cd0e1d1d4c1a8c8a4b4b3d2b");
    let report = room.run(&asked);
    assert_eq!(kinds(&report), [(FindingKind::ChecksumWrong, false)]);
    assert_eq!(subject(&report), "disk-data.img");
    let right = report.findings[0]
        .message
        .split_once("sha256:")
        .map(|(_, rest)| rest[..64].to_owned())
        .unwrap();
    assert_eq!(kinds(&room.check(Repair::None)), [], "not asked for");
    let open = OpenOptions::new().verify_checksum(true).read_only(true);
    let error = open.open(room.disk()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::FileInvalid);
    assert!(error.message().contains("QBM.image.checksum"), "{error}");

    let output = std::process::Command::new("sha256sum")
        .arg(room.path("disk-data.img"))
        .output()
        .unwrap();
    assert!(output.stdout.starts_with(right.as_bytes()), "sha256sum differs");
    with(&right);
    let mut told = Vec::new();
    let report = asked
        .check(room.disk(), &mut |done, total| {
            told.push((done, total));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(kinds(&report), []);
    assert_eq!(told.last(), Some(&(4 * MIB, 4 * MIB)));
    open.open(room.disk()).unwrap();
    let error = asked
        .check(room.disk(), &mut |_, _| ControlFlow::Break(()))
        .unwrap_err();
    assert_eq!(error.code(), ErrorCode::Canceled);
}

/// A regular file is the bitmap's own; of a block device only the words that the bits take are.
#[test]
fn of_a_block_device_only_the_last_word_is_looked_at() {
    use crate::bitmap::{BitmapFile, BitmapPolicy};
    use crate::storage::simulated::SimDisk;
    use crate::storage::{Folder as _, Limits, Role};
    for block_device in [false, true] {
        let sim = SimDisk::new();
        sim.set_limits(Limits {
            block_device,
            ..Limits::default()
        });
        let mut bytes = vec![0; 4096];
        bytes[1] = 0x0f;
        bytes[8] = 1;
        sim.put("bits", &bytes);
        let access = crate::storage::Access {
            write: true,
            direct: false,
        };
        let storage = sim.open(Role::Bitmap, Path::new("bits"), access).unwrap();
        let file = BitmapFile::new(storage, "bits".into(), BitmapPolicy::WriteThrough);
        assert_eq!(file.has_tail_bits(12).unwrap(), !block_device);
        assert!(file.has_tail_bits(11).unwrap());
        file.clear_tail_bits(11).unwrap();
        assert!(!file.has_tail_bits(11).unwrap());
        let now = sim.read("bits").unwrap();
        assert_eq!((now[1], now[8]), (0x07, u8::from(block_device)));
    }
}
