//! From QEMU and to it, with QEMU's own programs: what `qemu-img` has made becomes a QBM disk with the same bitmaps, what
//! an export makes is a sound qcow2 for them, and what is written through it comes back.
//!
//! What QEMU's bitmaps say is asked over NBD, as a backup program asks.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers beside the tests may fail as loudly as the tests"
)]

#[path = "common/mod.rs"]
mod common;
#[path = "qemu_import/copies.rs"]
mod copies;
#[path = "common/killed_at.rs"]
mod killed_at;
#[path = "common/names.rs"]
mod names;
#[path = "common/nbd.rs"]
mod nbd;
#[path = "common/nbd_bitmaps.rs"]
mod nbd_bitmaps;
#[path = "common/random.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod random;
#[path = "qemu_import/within.rs"]
mod within;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{have, must, skipped};
use names::names_in;
use qbm::{
    AddBitmap, BitmapInfo, CreateOptions, Disk, ErrorCode, ExportOptions, Exported, Granularity,
    ImportOptions, OpenOptions, WriteFlags,
};
use random::Random;
use tempfile::TempDir;

const GRANULARITIES: [u64; 6] = [512, 4096, 32 << 10, 64 << 10, 1 << 20, 1 << 31];

/// Bytes; of bitmaps of one cluster and of several, one L2 table and several, and at no boundary of anything.
const LENGTHS: [u64; 5] = [
    512,
    1 << 20,
    (9 << 20) + 3 * 512,
    3_000_001,
    (5 << 30) + 7 * 512 + 1,
];

struct Room {
    dir: TempDir,
}

impl Room {
    /// A qcow2 of that name on the disk's own image.
    fn export(&self, qcow2: &str) -> Exported {
        ExportOptions::new()
            .export(self.path("disk.qbm"), self.path(qcow2))
            .expect("exported")
    }

    /// Nothing where QEMU is missing.
    fn new() -> Option<Self> {
        for program in ["qemu-img", "qemu-io", "qemu-nbd", "nbdinfo"] {
            if !have(program) {
                skipped(format!(
                    "no disk went to QEMU and back: {program} is not installed"
                ));
                return None;
            }
        }
        let dir = tempfile::tempdir().expect("a folder");
        Some(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn qemu_img(&self, args: &[&str]) -> String {
        must(Command::new("qemu-img").args(args).current_dir(self.dir.path()))
    }

    /// Runs these commands of qemu-io on a qcow2.
    fn qemu_io(&self, file: &str, commands: &[String]) {
        let mut run = Command::new("qemu-io");
        // QEMU takes the name of a data file from the folder that it runs in.
        run.args(["-f", "qcow2", "-d", "unmap"])
            .current_dir(self.dir.path());
        for command in commands {
            run.args(["-c", command]);
        }
        let said = must(run.arg(file));
        assert!(!said.contains("failed"), "{said}");
    }

    /// A raw image of this length, with a byte in it.
    fn image(&self, name: &str, length: u64) {
        let file = std::fs::File::create_new(self.path(name)).expect("an image");
        file.set_len(length).expect("its length");
        std::os::unix::fs::FileExt::write_at(&file, b"x", length / 2).expect("a byte");
    }

    /// A disk on an image of this length.
    fn plain_disk(&self, length: u64) {
        self.image("disk.img", length);
        CreateOptions::new()
            .image("disk.img")
            .create(self.path("disk.qbm"))
            .expect("a disk");
    }

    /// The same, with a bitmap of each granularity, written to at random.
    fn disk(&self, length: u64, random: &mut Random) -> Disk {
        self.plain_disk(length);
        let disk = self.open();
        for bytes in GRANULARITIES {
            disk.bitmap_add(&format!("every-{bytes}"), of(bytes, true))
                .expect("a bitmap");
        }
        scribble(&disk, random, 12);
        disk.bitmap_add("clean", of(4096, true)).expect("a bitmap");
        disk.bitmap_add("off", of(512, false)).expect("a bitmap");
        disk.bitmap_add("all", of(512, false)).expect("a bitmap");
        disk.bitmap_set("all", 0, length).expect("all set");
        disk
    }

    fn open(&self) -> Disk {
        Disk::open(self.path("disk.qbm")).expect("it opens")
    }

    /// For reading: QEMU reads the same image meanwhile.
    fn look(&self) -> Disk {
        let options = OpenOptions::new().read_only(true);
        options.open(self.path("disk.qbm")).expect("it opens")
    }

    fn names(&self) -> Vec<String> {
        names_in(self.dir.path())
    }

    /// Every bitmap of the disk says the same in the qcow2.
    fn assert_same(&self, disk: &Disk, qcow2: &str) {
        let infos = disk.bitmap_list().expect("a list");
        let facts = self.facts(qcow2);
        let length = disk.length().next_multiple_of(512);
        assert_eq!(facts["virtual-size"].as_u64(), Some(length));
        let listed = facts["format-specific"]["data"]["bitmaps"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let names: Vec<String> = infos.iter().map(|info| info.name.clone()).collect();
        let server = nbd_bitmaps::serve(self.dir.path(), &self.path(qcow2), &names);
        for BitmapInfo {
            name,
            granularity,
            recording,
            ..
        } in infos
        {
            let theirs = listed.iter().find(|it| it["name"] == *name);
            let theirs = theirs.unwrap_or_else(|| panic!("no {name} in {facts}"));
            assert_eq!(
                theirs["granularity"].as_u64(),
                Some(granularity.bytes()),
                "{name}"
            );
            let flags: &[&str] = if recording { &["auto"] } else { &[] };
            assert_eq!(theirs["flags"], serde_json::json!(flags), "{name}");
            let mut ours = dirty(disk, &name);
            // QEMU shows whole sectors.
            if let Some(last) = ours.last_mut().filter(|last| last.1 == disk.length()) {
                last.1 = length;
            }
            assert!(
                ours == nbd_bitmaps::dirty(&server, &name, length),
                "{name}, {length} bytes"
            );
        }
    }

    fn facts(&self, qcow2: &str) -> serde_json::Value {
        serde_json::from_str(&self.qemu_img(&["info", "--output=json", qcow2])).expect("JSON")
    }
}

fn of(granularity: u64, recording: bool) -> AddBitmap {
    AddBitmap {
        granularity: Granularity::new(granularity).expect("a granularity"),
        recording,
        ..AddBitmap::default()
    }
}

fn scribble(disk: &Disk, random: &mut Random, count: u64) {
    for _ in 0..count {
        let at = random.below(disk.length());
        let len = (1 + random.below(70_000)).min(disk.length() - at);
        disk.write_zeroes(at, len, WriteFlags::empty()).expect("a write");
    }
    disk.write(b"y", disk.length() - 1, WriteFlags::empty())
        .expect("a write");
}

fn requests(length: u64, random: &mut Random, count: u64) -> Vec<String> {
    (0..count)
        .map(|_| {
            let at = random.below(length);
            let len = (1 + random.below(70_000)).min(length - at);
            let verb = match random.below(3) {
                0 => "write -q",
                1 => "write -q -z",
                _ => "discard -q",
            };
            format!("{verb} {at} {len}")
        })
        .collect()
}

/// As start and end.
fn dirty(disk: &Disk, name: &str) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(run) = disk
        .bitmap_next_dirty(name, at, u64::MAX)
        .expect("the bitmap is read")
    {
        found.push((run.start(), run.end()));
        at = run.end();
    }
    found
}

fn stamp(path: &Path) -> (u64, i64, i64) {
    let facts = std::fs::metadata(path).expect("its facts");
    (facts.size(), facts.mtime(), facts.mtime_nsec())
}

#[test]
fn an_export_is_sound_and_its_bitmaps_are_the_disks() {
    let mut random = Random::new(Random::seed());
    for length in LENGTHS {
        let Some(room) = Room::new() else { return };
        let disk = room.disk(length, &mut random);
        disk.close().expect("closed");
        let before = stamp(&room.path("disk.img"));
        let exported = room.export("thin.qcow2");
        let image = room.path("disk.img").canonicalize().expect("a path");
        assert_eq!(Path::new(&exported.image), image);
        assert_eq!(exported.bitmaps.len(), GRANULARITIES.len() + 3);
        assert_eq!(stamp(&room.path("disk.img")), before, "the image was changed");
        assert!(
            room.qemu_img(&["check", "thin.qcow2"])
                .contains("No errors were found")
        );
        let facts = room.facts("thin.qcow2");
        assert_eq!(facts["format-specific"]["data"]["data-file"], exported.image);
        assert_eq!(facts["format-specific"]["data"]["data-file-raw"], true);
        room.qemu_img(&["compare", "-f", "qcow2", "-F", "raw", "thin.qcow2", "disk.img"]);
        room.assert_same(&room.look(), "thin.qcow2");
        // QEMU goes on with it: merges, adds, removes.
        room.qemu_img(&["bitmap", "--merge", "every-4096", "thin.qcow2", "off"]);
        room.qemu_img(&["bitmap", "--add", "thin.qcow2", "new"]);
        room.qemu_img(&["bitmap", "--remove", "thin.qcow2", "all"]);
        assert!(
            room.qemu_img(&["check", "thin.qcow2"])
                .contains("No errors were found")
        );
        let disk = room.open();
        disk.bitmap_merge("off", &[qbm::MergeSource::Bitmap("every-4096")])
            .expect("merged");
        disk.bitmap_remove("all").expect("removed");
        disk.close().expect("closed");
        room.assert_same(&room.look(), "thin.qcow2");
    }
}

#[test]
fn what_qemu_made_and_wrote_is_imported_with_its_bitmaps() {
    let mut random = Random::new(Random::seed());
    for (length, cluster) in [
        (1 << 20, "64k"),
        ((9 << 20) + 512, "512"),
        ((3 << 30) + 1536, "2M"),
    ] {
        let Some(room) = Room::new() else { return };
        let options = format!("data_file=vm.img,data_file_raw=on,cluster_size={cluster}");
        room.qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &options,
            "vm.qcow2",
            &length.to_string(),
        ]);
        for bytes in GRANULARITIES {
            let (name, bytes) = (format!("every-{bytes}"), bytes.to_string());
            room.qemu_img(&["bitmap", "--add", "-g", &bytes, "vm.qcow2", &name]);
        }
        room.qemu_img(&["bitmap", "--add", "--disable", "vm.qcow2", "off"]);
        room.qemu_io("vm.qcow2", &requests(length, &mut random, 30));
        let image = std::fs::File::options()
            .write(true)
            .open(room.path("vm.img"))
            .expect("it opens");
        if image.metadata().expect("facts").len() != length {
            // QEMU makes the data file as long as whole clusters are.
            let refused = ImportOptions::new().import(room.path("vm.qcow2"), room.path("disk.qbm"));
            assert_eq!(refused.map_err(|error| error.code()), Err(ErrorCode::FileInvalid));
            image.set_len(length).expect("cut");
        }
        let before = (stamp(&room.path("vm.qcow2")), stamp(&room.path("vm.img")));
        let imported = ImportOptions::new()
            .import(room.path("vm.qcow2"), room.path("disk.qbm"))
            .expect("imported");
        assert_eq!(imported.image, "vm.img");
        assert_eq!(imported.bitmaps.len(), GRANULARITIES.len() + 1);
        assert_eq!(imported.left_out, [] as [&str; 0]);
        let disk = room.look();
        assert!(disk.info().expect("facts").protected, "it has no state file");
        let infos = disk.bitmap_list().expect("a list");
        assert!(
            infos
                .iter()
                .all(|info| info.epoch.is_some() && info.start_length == Some(length))
        );
        room.assert_same(&disk, "vm.qcow2");
        let after = (stamp(&room.path("vm.qcow2")), stamp(&room.path("vm.img")));
        assert_eq!(after, before, "the source was changed");
        drop(disk);
        // It records on.
        let disk = room.open();
        disk.write(b"z", length - 1, WriteFlags::empty())
            .expect("a write");
        assert!(disk.bitmap_get("every-512", length - 1).expect("a bit"));
        disk.close().expect("closed");
    }
}

#[test]
fn many_bitmaps_go_both_ways() {
    let Some(room) = Room::new() else { return };
    room.plain_disk(1 << 20);
    let names: Vec<String> = (0..300)
        .map(|it| format!("bitmap {it}, {}", "long ".repeat(it % 190)))
        .collect();
    let actions: Vec<_> = names
        .iter()
        .map(|name| qbm::BitmapAction::Add {
            name,
            options: AddBitmap::default(),
        })
        .collect();
    let disk = room.open();
    disk.bitmap_transaction(&actions).expect("300 bitmaps");
    disk.write(b"x", 70_000, WriteFlags::empty()).expect("a write");
    disk.close().expect("closed");
    room.export("a.qcow2");
    assert!(
        room.qemu_img(&["check", "a.qcow2"])
            .contains("No errors were found")
    );
    let imported = ImportOptions::new()
        .import(room.path("a.qcow2"), room.path("b.qbm"))
        .expect("imported");
    assert_eq!(imported.bitmaps, names);
    let disk = Disk::open(room.path("b.qbm")).expect("it opens");
    assert!(names.iter().all(|name| dirty(&disk, name) == [(65_536, 131_072)]));
}

/// D1: what QEMU writes is in every bitmap that records, whatever becomes of QEMU's bitmaps of these names.
#[test]
fn what_is_written_through_an_export_comes_back() {
    let mut random = Random::new(Random::seed());
    for length in LENGTHS {
        let Some(room) = Room::new() else { return };
        let disk = room.disk(length, &mut random);
        let before: Vec<_> = disk.bitmap_list().expect("a list");
        let bits: Vec<_> = before.iter().map(|info| dirty(&disk, &info.name)).collect();
        disk.close().expect("closed");
        room.export("thin.qcow2");
        let written = requests(length, &mut random, 10);
        room.qemu_io("thin.qcow2", &written);
        room.qemu_img(&["bitmap", "--clear", "thin.qcow2", "every-512"]);
        room.qemu_img(&["bitmap", "--remove", "thin.qcow2", "every-4096"]);
        room.qemu_img(&["bitmap", "--disable", "thin.qcow2", "clean"]);
        let more = requests(length, &mut random, 10);
        room.qemu_io("thin.qcow2", &more);
        room.qemu_img(&["bitmap", "--add", "thin.qcow2", "foreign"]);

        match OpenOptions::new().read_only(true).open(room.path("disk.qbm")) {
            Ok(seen) => assert!(
                seen.bitmap_info("every-512").expect("facts").inconsistent,
                "the stamp has not noticed"
            ),
            // Some requests have QEMU lengthen a raw image to a whole cluster.
            Err(error) => {
                let image = std::fs::metadata(room.path("disk.img")).expect("the image");
                assert!(image.len() > length, "{error}");
                assert!(error.message().contains("is too small"), "{error}");
            }
        }
        let merged = ImportOptions::new()
            .merge_bitmaps(room.path("thin.qcow2"), room.path("disk.qbm"))
            .expect("merged");
        assert_eq!(merged.bitmaps.len(), before.len());
        assert_eq!(merged.inconsistent, [] as [&str; 0]);
        assert_eq!(merged.left_out, ["foreign"]);

        let disk = room.open();
        for (info, bits) in before.iter().zip(bits) {
            let now = disk.bitmap_info(&info.name).expect("facts");
            assert!(!now.inconsistent && now.epoch == info.epoch, "{}", info.name);
            for (start, end) in bits {
                assert!(
                    is_dirty(&disk, &info.name, start, end),
                    "{}: bits are lost",
                    info.name
                );
            }
            for request in written.iter().chain(&more).filter(|_| info.recording) {
                let mut words = request
                    .rsplit(' ')
                    .map(|word| word.parse::<u64>().expect("a number"));
                let (len, at) = (words.next().expect("a length"), words.next().expect("an offset"));
                assert!(
                    is_dirty(&disk, &info.name, at, at + len),
                    "{}: {request} is lost",
                    info.name
                );
            }
        }
        // No more than that: what did not record has what it had.
        assert_eq!(dirty(&disk, "off"), []);
    }
}

fn is_dirty(disk: &Disk, name: &str, start: u64, end: u64) -> bool {
    let found = disk
        .bitmap_next_zero(name, start, end - start)
        .expect("the bitmap is read");
    found.is_none()
}

#[test]
fn bitmaps_that_qemu_did_not_save_are_refused_by_name() {
    let Some(room) = Room::new() else { return };
    room.qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "data_file=vm.img,data_file_raw=on",
        "vm.qcow2",
        "1M",
    ]);
    for name in ["nightly", "weekly"] {
        room.qemu_img(&["bitmap", "--add", "vm.qcow2", name]);
    }
    room.qemu_img(&["bitmap", "--add", "--disable", "vm.qcow2", "old"]);
    // Killed before it saves: all are in use, those that do not record, too.
    let said = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -q 0 4k", "-c", "abort"])
        .current_dir(room.dir.path())
        .arg(room.path("vm.qcow2"))
        .output()
        .expect("qemu-io runs");
    assert!(!said.status.success(), "it was not killed: {said:?}");
    let before = room.names();
    let import = |options: ImportOptions| options.import(room.path("vm.qcow2"), room.path("disk.qbm"));
    let error = import(ImportOptions::new()).expect_err("it is refused");
    assert_eq!(error.code(), ErrorCode::BitmapInconsistent);
    assert!(
        error
            .message()
            .contains("the bitmaps \"nightly\", \"weekly\", \"old\" are marked as in use"),
        "{error}"
    );
    assert_eq!(room.names(), before);
    let imported = import(ImportOptions::new().skip_in_use(true)).expect("imported");
    assert_eq!(imported.bitmaps, [] as [&str; 0]);
    assert_eq!(imported.left_out, ["nightly", "weekly", "old"]);
}

/// Killed while it writes through an export: its writes are unknown, and the disk's bitmaps stay unusable.
#[test]
fn an_export_whose_user_was_killed_brings_nothing_back() {
    let Some(room) = Room::new() else { return };
    room.disk(1 << 20, &mut Random::new(1)).close().expect("closed");
    room.export("thin.qcow2");
    let _ = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -q 0 4k", "-c", "abort"])
        .current_dir(room.dir.path())
        .arg(room.path("thin.qcow2"))
        .output()
        .expect("qemu-io runs");
    let error = ImportOptions::new()
        .skip_in_use(true)
        .merge_bitmaps(room.path("thin.qcow2"), room.path("disk.qbm"))
        .expect_err("it is refused");
    assert_eq!(error.code(), ErrorCode::FileInvalid);
    assert!(
        error.message().contains("\"qbm-since-export\" was not saved"),
        "{error}"
    );
    assert!(room.open().bitmap_info("every-512").expect("facts").inconsistent);
}

#[test]
fn a_plain_qcow2_is_imported_by_way_of_qemu_img_convert() {
    let Some(room) = Room::new() else { return };
    room.qemu_img(&["create", "-q", "-f", "qcow2", "old.qcow2", "9438208"]);
    room.qemu_img(&["bitmap", "--add", "-g", "4k", "old.qcow2", "nightly"]);
    let mut random = Random::new(Random::seed());
    room.qemu_io("old.qcow2", &requests(9_438_208, &mut random, 20));
    room.qemu_img(&["convert", "-O", "raw", "old.qcow2", "old.img"]);
    ImportOptions::new()
        .image("old.img")
        .import(room.path("old.qcow2"), room.path("disk.qbm"))
        .expect("imported");
    room.assert_same(&room.look(), "old.qcow2");
}

/// QEMU has it open for writing: its bitmaps are not what the file says.
#[test]
fn a_qcow2_that_is_being_written_to_is_locked() {
    let Some(room) = Room::new() else { return };
    room.disk(1 << 20, &mut Random::new(1)).close().expect("closed");
    room.export("thin.qcow2");
    let server = nbd::Server::start(room.dir.path(), &["-f", "qcow2"], &room.path("thin.qcow2"));
    let before = room.names();
    let import = ImportOptions::new().import(room.path("thin.qcow2"), room.path("new.qbm"));
    assert_eq!(import.map_err(|error| error.code()), Err(ErrorCode::Locked));
    let merge = ImportOptions::new().merge_bitmaps(room.path("thin.qcow2"), room.path("disk.qbm"));
    assert_eq!(merge.map_err(|error| error.code()), Err(ErrorCode::Locked));
    let export = ExportOptions::new().export(room.path("disk.qbm"), room.path("two.qcow2"));
    assert_eq!(export.map_err(|error| error.code()), Err(ErrorCode::Locked));
    // The tool says what to do.
    let backup = ["backup", "-B", "every-512", "--to", "new", "disk.qbm"];
    for args in [&["export", "disk.qbm", "new"][..], &backup] {
        let tried = Command::new(env!("CARGO_BIN_EXE_qbm"))
            .args(args)
            .current_dir(room.dir.path())
            .output()
            .expect("qbm");
        let words = String::from_utf8_lossy(&tried.stderr);
        assert!(
            words.contains("stop the program")
                && words.contains("\"qbm import --bitmaps\" then takes what it recorded"),
            "{words}"
        );
    }
    assert_eq!(room.names(), before);
    drop(server);
}

/// In folders of their own, they name the image by where it is.
#[test]
fn the_image_is_found_from_other_folders() {
    let Some(room) = Room::new() else { return };
    room.disk((1 << 20) + 512, &mut Random::new(1))
        .close()
        .expect("closed");
    for folder in ["here", "there"] {
        std::fs::create_dir(room.path(folder)).expect("a folder");
    }
    room.export("here/a.qcow2");
    room.qemu_img(&["compare", "-f", "qcow2", "-F", "raw", "here/a.qcow2", "disk.img"]);
    let imported = ImportOptions::new()
        .import(room.path("here/a.qcow2"), room.path("there/b.qbm"))
        .expect("imported");
    assert_eq!(
        Path::new(&imported.image),
        room.path("disk.img").canonicalize().expect("a path")
    );
    let disk = OpenOptions::new()
        .read_only(true)
        .open(room.path("there/b.qbm"))
        .expect("it opens");
    room.assert_same(&disk, "here/a.qcow2");
}
