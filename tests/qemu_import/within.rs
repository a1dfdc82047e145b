//! A qcow2 that has its data in itself becomes the image of a disk.

use std::path::{Path, PathBuf};
use std::process::Command;

use qbm::{BitmapInfo, Disk, ErrorCode, Format, ImportOptions, OpenOptions, WriteFlags};

use super::killed_at::{CHANGES, killed_at};
use super::{GRANULARITIES, Random, Room, dirty, nbd_bitmaps, of, requests, scribble, skipped, stamp};

/// `vm.qcow2`, made and written by QEMU, with a bitmap of each granularity and one that is off.
fn of_qemu(room: &Room, options: &[&str], length: u64, random: &mut Random) -> Vec<String> {
    let size = length.to_string();
    let args = [&["create", "-q", "-f", "qcow2"], options, &["vm.qcow2", &size]].concat();
    room.qemu_img(&args);
    room.qemu_io("vm.qcow2", &requests(length, random, 20));
    let mut names = Vec::new();
    for bytes in GRANULARITIES {
        let (name, bytes) = (format!("every-{bytes}"), bytes.to_string());
        room.qemu_img(&["bitmap", "--add", "-g", &bytes, "vm.qcow2", &name]);
        names.push(name);
    }
    room.qemu_img(&["bitmap", "--add", "--disable", "vm.qcow2", "off"]);
    names.push("off".to_owned());
    room.qemu_io("vm.qcow2", &requests(length, random, 10));
    names
}

fn import(room: &Room) -> qbm::Result<qbm::Imported> {
    ImportOptions::new().import(room.path("vm.qcow2"), room.path("vm.qbm"))
}

fn open(room: &Room) -> Disk {
    Disk::open(room.path("vm.qbm")).expect("it opens")
}

/// QEMU believes in no bitmap of the image.
fn assert_none_of_qemu(room: &Room) {
    let facts = room.facts("vm.qcow2");
    let listed = &facts["format-specific"]["data"]["bitmaps"];
    assert!(listed.is_null() || listed == &serde_json::json!([]), "{facts}");
    let served = Command::new("qemu-nbd")
        .args(["-f", "qcow2", "--read-only", "-B", "every-512", "-k"])
        .arg(room.path("never.sock"))
        .arg(room.path("vm.qcow2"))
        .output()
        .expect("qemu-nbd");
    assert!(!served.status.success(), "a stale bitmap is served");
}

#[test]
fn it_brings_its_bitmaps_and_they_go_on() {
    let mut random = Random::new(Random::seed());
    for (length, options) in [
        (1 << 20, &[][..]),
        ((9 << 20) + 512, &["-o", "cluster_size=512"]),
        ((3 << 30) + 1536, &["-o", "cluster_size=2M"]),
        (5 << 20, &["-b", "base.img", "-F", "raw"]),
        (4 << 20, &["-o", "data_file=vm.data"]),
    ] {
        let Some(room) = Room::new() else { return };
        room.image("base.img", 3 << 20);
        let names = of_qemu(&room, options, length, &mut random);
        room.qemu_img(&["convert", "-f", "qcow2", "-O", "raw", "vm.qcow2", "before.img"]);
        let server = nbd_bitmaps::serve(room.dir.path(), &room.path("vm.qcow2"), &names);
        let theirs: Vec<_> = names
            .iter()
            .map(|name| nbd_bitmaps::dirty(&server, name, length))
            .collect();
        drop(server);
        let imported = import(&room).expect("imported");
        assert_eq!((&*imported.image, imported.format), ("vm.qcow2", Format::Qcow2));
        assert_eq!(imported.bitmaps, names);
        assert_none_of_qemu(&room);
        // Once more: the image's own header was changed, and by nobody else.
        open(&room).close().expect("closed");
        let disk = open(&room);
        let bits = |disk: &Disk| -> Vec<_> { names.iter().map(|name| dirty(disk, name)).collect() };
        assert_eq!(bits(&disk), theirs);
        for BitmapInfo {
            name,
            recording,
            inconsistent,
            granularity,
            epoch,
            ..
        } in disk.bitmap_list().expect("a list")
        {
            assert_eq!(recording, name != "off", "{name}");
            assert!(!inconsistent && epoch.is_some(), "{name}");
            assert!(
                name == "off" || name == format!("every-{}", granularity.bytes()),
                "{name}"
            );
        }
        room.qemu_img(&[
            "compare",
            "-U",
            "-f",
            "qcow2",
            "-F",
            "raw",
            "vm.qcow2",
            "before.img",
        ]);
        disk.write(b"z", length - 1, WriteFlags::empty())
            .expect("a write");
        assert!(disk.bitmap_get("every-512", length - 1).expect("a bit"));
        scribble(&disk, &mut random, 5);
        disk.close().expect("closed");
        assert_none_of_qemu(&room);
        // Only the space of the bitmaps is lost, which QEMU gives back.
        room.qemu_img(&["check", "-q", "-r", "leaks", "vm.qcow2"]);
        assert!(
            room.qemu_img(&["check", "vm.qcow2"])
                .contains("No errors were found")
        );
        let seen = OpenOptions::new()
            .read_only(true)
            .open(room.path("vm.qbm"))
            .expect("it opens");
        drop(seen);
    }
}

/// D1: what QEMU writes to the image afterwards is in no bitmap of the disk, which must know.
#[test]
fn what_qemu_writes_to_it_afterwards_makes_its_bitmaps_inconsistent() {
    let mut random = Random::new(Random::seed());
    let Some(room) = Room::new() else { return };
    of_qemu(&room, &[], 1 << 20, &mut random);
    import(&room).expect("imported");
    // With a bitmap of its own in it again, so that the open has a header to change.
    room.qemu_img(&["bitmap", "--add", "vm.qcow2", "theirs"]);
    room.qemu_io("vm.qcow2", &["write -q 0 4096".to_owned()]);
    let disk = open(&room);
    let infos = disk.bitmap_list().expect("a list");
    assert!(
        infos.iter().all(|info| info.inconsistent == info.recording),
        "{infos:?}"
    );
}

#[test]
fn a_qcow2_whose_bitmaps_cannot_be_had_stays_as_it_is() {
    let mut random = Random::new(Random::seed());
    let Some(room) = Room::new() else { return };
    of_qemu(&room, &[], 1 << 20, &mut random);
    let before = (room.names(), stamp(&room.path("vm.qcow2")));
    let there: PathBuf = room.path("there.qbm");
    std::fs::write(&there, "mine").expect("written");
    let taken = ImportOptions::new().import(room.path("vm.qcow2"), &there);
    assert_eq!(taken.map_err(|e| e.code()), Err(ErrorCode::FileExists));
    std::fs::remove_file(&there).expect("removed");
    // The same disk twice: the other user keeps it.
    let server = nbd_bitmaps::serve(room.dir.path(), &room.path("vm.qcow2"), &[]);
    let locked = import(&room);
    assert_eq!(locked.map_err(|e| e.code()), Err(ErrorCode::Locked));
    drop(server);
    assert_eq!((room.names(), stamp(&room.path("vm.qcow2"))), before);
    let facts = room.facts("vm.qcow2");
    assert_eq!(
        facts["format-specific"]["data"]["bitmaps"]
            .as_array()
            .map(Vec::len),
        Some(7)
    );
    import(&room).expect("imported");
    open(&room).bitmap_add("more", of(4096, true)).expect("a bitmap");
}

/// Has `act` killed at each of its calls that change anything, beginning with the files of `start` each time; then `check`
/// looks. How often it was killed; `None` where that cannot be.
fn killed_everywhere(room: &Room, act: &[&str], start: &[&str], check: &mut dyn FnMut(&str)) -> Option<u32> {
    let kept = room.path("kept");
    std::fs::create_dir(&kept).expect("a folder");
    let cp = |files: &[PathBuf], to: &Path| {
        let done = Command::new("cp").arg("-a").args(files).arg(to).status();
        assert!(done.expect("cp runs").success());
    };
    let named = |folder: &Path| -> Vec<PathBuf> { start.iter().map(|name| folder.join(name)).collect() };
    cp(&named(room.dir.path()), &kept);
    let mut kills = 0;
    for call in CHANGES {
        for count in 1.. {
            for name in room.names().iter().filter(|name| *name != "kept") {
                std::fs::remove_file(room.path(name)).expect("removed");
            }
            cp(&named(&kept), room.dir.path());
            let output = killed_at(room.dir.path(), call, count, act)
                .map_err(|why| skipped(format_args!("an import that is killed at every call: {why}")))
                .ok()?;
            if output.status.success() {
                break;
            }
            kills += 1;
            check(&format!("killed at {call} {count}"));
        }
    }
    std::fs::remove_dir_all(&kept).expect("removed");
    Some(kills)
}

/// The disk, for reading.
fn look(room: &Room) -> Disk {
    let disk = OpenOptions::new().read_only(true).open(room.path("vm.qbm"));
    disk.expect("it opens")
}

/// Whether there is a disk, and it has bitmaps.
fn has_any(room: &Room) -> bool {
    // An empty file is a name that was taken, and no disk yet.
    let made = std::fs::metadata(room.path("vm.qbm")).is_ok_and(|it| it.len() > 0);
    made && !look(room).bitmap_list().expect("a list").is_empty()
}

/// The disk has all of its bitmaps, and they are right; and so they are for those who open it next.
fn has_bitmaps(room: &Room, names: &[String], bits: &[Vec<(u64, u64)>], when: &str) -> bool {
    if !has_any(room) {
        return false;
    }
    for again in [false, true] {
        let disk = look(room);
        for (name, bits) in names.iter().zip(bits) {
            let info = disk.bitmap_info(name).expect(when);
            assert!(!info.inconsistent, "{when}, opened {again}: {info:?}");
            assert!(dirty(&disk, name) == *bits, "{when}, opened {again}: {name}");
        }
        drop(disk);
        if !again {
            open(room).close().expect(when);
        }
    }
    true
}

/// QEMU's bitmaps lose their validity when the disk has them, and not before: whoever kills the import has the one or the
/// other.
#[test]
fn an_import_that_is_killed_at_any_call_loses_no_bitmap() {
    let mut random = Random::new(Random::seed());
    let Some(room) = Room::new() else { return };
    let names = of_qemu(&room, &[], 9 << 20, &mut random);
    std::fs::copy(room.path("vm.qcow2"), room.path("whole.qcow2")).expect("copied");
    import(&room).expect("imported");
    let bits: Vec<_> = names.iter().map(|name| dirty(&open(&room), name)).collect();
    std::fs::rename(room.path("whole.qcow2"), room.path("vm.qcow2")).expect("renamed");
    let mut seen = [0; 2];
    let kills = killed_everywhere(
        &room,
        &["import", "-q", "vm.qcow2", "vm.qbm"],
        &["vm.qcow2"],
        &mut |when| {
            let facts = room.facts("vm.qcow2");
            let theirs = facts["format-specific"]["data"]["bitmaps"].as_array();
            let theirs = theirs.map(Vec::len) == Some(names.len());
            let qemu_goes_on = seen[1] % 2 == 1;
            if qemu_goes_on {
                // Nobody takes that for a change of the header alone.
                room.qemu_io("vm.qcow2", &["write -q 0 4096".to_owned()]);
                if has_any(&room) {
                    let infos = open(&room).bitmap_list().expect("a list");
                    let all = infos.iter().all(|info| info.inconsistent == info.recording);
                    assert!(all, "{when}: {infos:?}");
                    seen[1] += 1;
                }
                return;
            }
            let ours = has_bitmaps(&room, &names, &bits, when);
            assert!(theirs || ours, "{when}: the bitmaps are lost");
            seen[usize::from(ours)] += 1;
        },
    );
    if kills.is_some() {
        println!("killed before and behind the disk's bitmaps: {seen:?}");
        assert!(seen.iter().all(|count| *count > 5), "{seen:?}");
    }
}

/// The first to open it changes the header again.
#[test]
fn an_open_that_is_killed_at_any_call_loses_no_bitmap() {
    let mut random = Random::new(Random::seed());
    let Some(room) = Room::new() else { return };
    let names = of_qemu(&room, &[], 9 << 20, &mut random);
    import(&room).expect("imported");
    let bits: Vec<_> = names.iter().map(|name| dirty(&look(&room), name)).collect();
    let files = room.names();
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let kills = killed_everywhere(
        &room,
        &["bitmap", "--add", "vm.qbm", "more"],
        &files,
        &mut |when| assert!(has_bitmaps(&room, &names, &bits, when), "{when}"),
    );
    assert!(kills.is_none_or(|kills| kills > 5), "{kills:?}");
}
