//! Bitmaps in real files, and files that others made.

use super::*;

fn in_folder(length: u64) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(NAME);
    CreateOptions::new().size(length).create(&path).unwrap();
    (folder, path)
}

#[test]
fn bitmaps_are_there_again_after_a_reopen() {
    let (folder, path) = in_folder(10 * MIB + 1);
    let disk = Disk::open(&path).unwrap();
    for (name, granularity) in [("a/b", 512), ("half", 64 * KIB), ("whole", 2 << 30)] {
        disk.bitmap_add(name, of(granularity)).unwrap();
    }
    disk.bitmap_add("transient", transient()).unwrap();
    write(&disk, 10 * MIB, 1).unwrap();
    disk.bitmap_rename("half", "renamed").unwrap();
    disk.bitmap_disable("whole").unwrap();
    let infos: Vec<_> = disk.bitmap_list().unwrap().drain(..3).collect();
    disk.close().unwrap();

    let disk = Disk::open(&path).unwrap();
    let names = ["a/b", "renamed", "whole"];
    for name in names {
        disk.bitmap_info(name).unwrap();
    }
    assert_eq!(disk.bitmap_list().unwrap(), infos);
    assert_eq!(dirty(&disk, "a/b"), [20480]);
    assert_eq!(dirty(&disk, "renamed"), [160]);
    assert_eq!(dirty(&disk, "whole"), [0]);
    assert!(folder.path().join("disk-a%2Fb.bitmap").exists());
    for name in names {
        disk.bitmap_remove(name).unwrap();
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 3, "descriptor, image and state: {left:?}");
}

#[test]
fn a_bitmap_comes_to_disk_and_leaves_it() {
    let (folder, path) = in_folder(10 * MIB);
    let disk = Disk::open(&path).unwrap();
    disk.bitmap_add("b", transient()).unwrap();
    write(&disk, MIB, 1).unwrap();
    disk.bitmap_set_persistent("b", true).unwrap();
    write(&disk, 2 * MIB, 1).unwrap();
    drop(disk);
    let disk = Disk::open(&path).unwrap();
    assert_eq!(dirty(&disk, "b"), [16, 32]);
    disk.bitmap_set_persistent("b", false).unwrap();
    assert!(!folder.path().join("disk-b.bitmap").exists());
    write(&disk, 3 * MIB, 1).unwrap();
    assert_eq!(dirty(&disk, "b"), [16, 32, 48]);
    disk.close().unwrap();
    assert!(Disk::open(&path).unwrap().bitmap_list().unwrap().is_empty());
}

/// A disk of 10 granules and one byte with a bitmap file of these bytes, as another program may have left it.
fn foreign(bytes: &[u8]) -> SimDisk {
    let (sim, disk) = disk_of(10 * 64 * KIB + 1);
    disk.bitmap_add("b", persistent()).unwrap();
    disk.close().unwrap();
    sim.put("disk-b.bitmap", bytes);
    sim
}

#[test]
fn files_may_end_early_or_late_and_have_bits_behind_the_disk() {
    assert_eq!(dirty(&open(&foreign(&[1, 4])), "b"), [0, 10]);
    assert_eq!(dirty(&open(&foreign(&[1, 0xff])), "b"), [0, 8, 9, 10]);
    assert_eq!(open(&foreign(&[0xff; 5000])).bitmap_count("b").unwrap(), 11);
    assert_refused(
        options(&foreign(&[1])).open(NAME),
        ErrorCode::FileInvalid,
        "disk-b.bitmap is too small: 1 bytes, where the bits of the disk need 2",
    );
}

#[test]
fn writing_masks_the_tail_and_lengthens_a_short_file() {
    let sim = foreign(&[1, 0xf0]);
    let disk = open(&sim);
    write(&disk, 9 * 64 * KIB, 1).unwrap();
    assert_eq!(sim.read("disk-b.bitmap").unwrap(), [1, 2, 0, 0, 0, 0, 0, 0]);
    let sim = foreign(&[0xff; 5000]);
    open(&sim).bitmap_clear("b").unwrap();
    assert!(sim.read("disk-b.bitmap").is_err());
    assert_eq!(sim.read("disk-b-1.bitmap").unwrap(), [0; 8]);
}

#[test]
fn holes_are_not_read() {
    let (sim, disk) = disk_of(64 << 30);
    disk.bitmap_add("b", of(512)).unwrap();
    write(&disk, 40 << 30, 512).unwrap();
    drop(disk);
    let before = sim.events().len();
    let disk = open(&sim);
    let read: u64 = sim.events()[before..]
        .iter()
        .filter_map(|event| match &event.call {
            Call::Read { file, range } if file.name.ends_with("disk-b.bitmap") => Some(range.len()),
            _ => None,
        })
        .sum();
    assert!(read <= 8192, "{read} bytes of a file of 16 MiB");
    assert_eq!(disk.bitmap_count("b").unwrap(), 1);
    assert!(disk.bitmap_get("b", 40 << 30).unwrap());
}

#[test]
fn unknown_keys_and_silent_entries_stay_as_they_are() {
    let sim = SimDisk::new();
    sim.put("disk-data.img", &[0; 4096]);
    sim.put("x.bitmap", &[0; 8]);
    let text = r#"{"QBM":{"version":1,"image":{"file":"disk-data.img","format":"raw"},"bitmaps":{"x":
        {"file":"x.bitmap","type":"dirty","granularity-bytes":512,"colour":"blue"}}}}"#;
    sim.put(NAME, text.as_bytes());
    let disk = open(&sim);
    let info = disk.bitmap_info("x").unwrap();
    assert!(info.recording && info.epoch.is_none() && info.start_length.is_none());
    write(&disk, 0, 1).unwrap();
    disk.bitmap_rename("x", "y").unwrap();
    let saved = String::from_utf8(sim.read(NAME).unwrap()).unwrap();
    assert!(saved.contains(r#""colour": "blue""#), "{saved}");
    assert!(
        !saved.contains("recording") && !saved.contains("epoch"),
        "{saved}"
    );
    assert_eq!(dirty(&open(&sim.kill()), "y"), [0]);
}
