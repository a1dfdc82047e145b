//! Backups where real block devices and file systems matter: restored onto loop devices, and made on a file system that
//! shares blocks.
//!
//! Needs root, `losetup`, `mkfs.xfs` and `mount`; says so and passes where the machine has not got them.

#![allow(
    clippy::expect_used,
    reason = "a test ends where its ground is missing; helpers count as no tests for clippy"
)]

#[path = "common/loops.rs"]
mod loops;
#[path = "common/mounted.rs"]
mod mounted;
#[path = "common/run.rs"]
mod run;
#[path = "common/skip.rs"]
mod skip;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use loops::Loop;
use mounted::Mounted;
use qbm::backup::{Backup, BackupFolder, Restore, Restored};
use qbm::{CreateOptions, Disk, WriteFlags};
use run::run;
use skip::skipped;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;

#[allow(clippy::unnecessary_wraps, reason = "what a progress callback returns")]
fn go_on(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A disk in `folder` with some data, and one backup of it.
fn backed_up(folder: &Path) -> (Disk, BackupFolder) {
    let path = folder.join("disk.qbm");
    CreateOptions::new().size(SIZE).create(&path).expect("a disk");
    let disk = Disk::open(&path).expect("it opens");
    for at in [0, 3 * MIB + 512, 9 * MIB] {
        let bytes: Vec<u8> = (0..2 * MIB)
            .map(|byte| u8::try_from(1 + byte / 7 % 251).expect("a byte"))
            .collect();
        disk.write(&bytes, at, WriteFlags::empty()).expect("written");
    }
    let mut backups = BackupFolder::open_or_create(folder.join("backups")).expect("a folder");
    Backup::new("b")
        .run(&disk, &mut backups, &mut go_on)
        .expect("a backup");
    (disk, backups)
}

fn content(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(disk.length()).expect("in memory")];
    disk.read(&mut bytes, 0).expect("read");
    bytes
}

fn restore(backups: &BackupFolder, to: &Path) -> qbm::Result<Restored> {
    let point = backups.find("latest").expect("a backup");
    Restore::new().run(backups, point, to, &mut go_on)
}

#[test]
fn a_block_device_gets_a_backup_and_then_only_what_differs() {
    for block in [512, 4096] {
        let dir = tempfile::tempdir().expect("a folder");
        let (disk, mut backups) = backed_up(dir.path());
        let backing = dir.path().join("backing");
        // Longer than the disk, and full of something else.
        fs::write(
            &backing,
            vec![0xab; usize::try_from(SIZE + MIB).expect("in memory")],
        )
        .expect("a file");
        let device = match Loop::new(&backing, &["--sector-size", &block.to_string()]) {
            Ok(device) => device,
            Err(why) => return skipped(why),
        };
        let on_device = || {
            let mut bytes = vec![0; usize::try_from(SIZE + MIB).expect("in memory")];
            let file = File::open(device.device()).expect("it opens");
            file.read_exact_at(&mut bytes, 0).expect("read");
            bytes
        };
        let whole = restore(&backups, device.device()).expect("restored");
        assert_eq!((whole.length, whole.written), (SIZE, SIZE), "blocks of {block}");
        let expected = content(&disk);
        let found = on_device();
        assert!(found[..expected.len()] == expected, "blocks of {block}");
        assert!(
            found[expected.len()..].iter().all(|byte| *byte == 0xab),
            "behind the disk's end"
        );

        disk.write(&[7; 100], 5 * MIB + 1, WriteFlags::empty())
            .expect("written");
        Backup::new("b")
            .run(&disk, &mut backups, &mut go_on)
            .expect("a backup");
        let again = restore(&backups, device.device()).expect("restored");
        assert_eq!(again.written, 4096, "blocks of {block}");
        assert!(
            on_device()[..expected.len()] == content(&disk),
            "blocks of {block}"
        );
    }
}

#[test]
fn a_block_device_that_is_too_small_is_left_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    let (_disk, backups) = backed_up(dir.path());
    let backing = dir.path().join("backing");
    fs::write(&backing, vec![0xab; usize::try_from(MIB).expect("in memory")]).expect("a file");
    let device = match Loop::new(&backing, &[]) {
        Ok(device) => device,
        Err(why) => return skipped(why),
    };
    let error = restore(&backups, device.device()).expect_err("it does not fit");
    assert!(
        error
            .message()
            .ends_with("the backup is of a disk of 16777216 bytes, and the block device has only 1048576"),
        "{error}"
    );
    drop(device);
    assert!(fs::read(&backing).expect("read").iter().all(|byte| *byte == 0xab));
}

/// What is free on the file system of `folder`, in KiB.
fn free(folder: &Path) -> u64 {
    run(Command::new("sync").arg("-f").arg(folder)).expect("synced");
    let told = run(Command::new("df").args(["-k", "--output=avail"]).arg(folder)).expect("df");
    let number = told.lines().last().map(str::trim);
    number.and_then(|it| it.parse().ok()).expect("a number")
}

#[test]
fn blocks_are_shared_where_the_file_system_can() {
    let dir = tempfile::tempdir().expect("a folder");
    let image = dir.path().join("xfs.img");
    File::create(&image)
        .and_then(|file| file.set_len(400 * MIB))
        .expect("a file");
    let mut make = Command::new("mkfs.xfs");
    let at = dir.path().join("mounted");
    fs::create_dir(&at).expect("a folder");
    let mounted = run(make.args(["-q", "-m", "reflink=1"]).arg(&image))
        .and_then(|_| Mounted::new(&[OsStr::new("-o"), OsStr::new("loop"), image.as_os_str()], &at));
    let mounted = match mounted {
        Ok(mounted) => mounted,
        Err(why) => return skipped(why),
    };
    let folder = mounted.folder();
    let (disk, _) = backed_up(folder);
    disk.write(&vec![5; 15 * (1 << 20)], 0, WriteFlags::empty())
        .expect("written");
    disk.flush().expect("flushed");
    let mut others = BackupFolder::open_or_create(folder.join("others")).expect("a folder");
    let before = free(folder);
    let finished = Backup::new("c")
        .run(&disk, &mut others, &mut go_on)
        .expect("a backup");
    let taken = before.saturating_sub(free(folder));
    assert!(finished.point.stored >= 15 * MIB);
    assert!(taken < 4 * 1024, "{taken} KiB were taken");
    // What the guest writes later is seen in its image alone.
    let expected = content(&disk);
    disk.write(&vec![6; 8 << 20], MIB, WriteFlags::empty())
        .expect("written");
    for verified in others.verify(&mut go_on).expect("verified") {
        assert!(verified.error.is_none(), "{verified:?}");
    }
    let to = folder.join("restored.raw");
    restore(&others, &to).expect("restored");
    assert!(fs::read(&to).expect("read") == expected);
    disk.close().expect("closed");
}
