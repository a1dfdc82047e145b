//! A file system that really runs full under a bitmap, while the guest's data has room elsewhere: the guest's write fails, or
//! the bitmap becomes inconsistent and the guest goes on. With space again all is well.
//!
//! On tmpfs and on ext4, small and mounted for the purpose. Needs root; says so and passes where it cannot mount.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers beside the tests may fail as loudly as the tests"
)]

#[path = "common/mounted.rs"]
mod mounted;
#[path = "common/run.rs"]
mod run;
#[path = "common/skip.rs"]
mod skip;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};

use mounted::Mounted;
use qbm::{AddBitmap, CreateOptions, Disk, ErrorCode, NoticeCode, OnBitmapError, OpenOptions, WriteFlags};
use run::run;
use skip::skipped;
use tempfile::TempDir;

const GIB: u64 = 1 << 30;
/// Sparse, and so long that its bitmap's bits lie in many blocks of the file, which has none of them in the beginning.
const LENGTH: u64 = 64 * GIB;
const GRANULE: u64 = 64 << 10;
/// The bits of these lie in other blocks of the bitmap's file than those of the first granule.
const FAR: u64 = 16 * GIB;
const FARTHER: u64 = 40 * GIB;
const NONE: WriteFlags = WriteFlags::empty();

/// The image lies in a folder with room, all else on a small file system.
struct Place {
    small: Mounted,
    dir: TempDir,
}

/// One on each kind of file system that can be mounted.
fn places() -> Vec<Place> {
    let made = [tmpfs(), ext4()];
    let usable = made.into_iter().filter_map(|place| match place {
        Ok(place) => Some(place),
        Err(why) => {
            skipped(format_args!("no small file system could be mounted: {why}"));
            None
        }
    });
    usable.collect()
}

fn tmpfs() -> Result<Place, String> {
    let dir = tempfile::tempdir().expect("a folder");
    let at = dir.path().join("small");
    fs::create_dir(&at).expect("a folder");
    let options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"].map(OsStr::new);
    let small = Mounted::new(&options, &at)?;
    Ok(Place { small, dir })
}

fn ext4() -> Result<Place, String> {
    let dir = tempfile::tempdir().expect("a folder");
    let (at, device) = (dir.path().join("small"), dir.path().join("device"));
    fs::create_dir(&at).expect("a folder");
    let file = File::create(&device).and_then(|file| file.set_len(16 << 20));
    file.expect("a file");
    run(Command::new("mkfs.ext4")
        .args(["-q", "-m", "0", "-b", "4096"])
        .arg(&device))?;
    let small = Mounted::new(&[OsStr::new("-o"), OsStr::new("loop"), device.as_os_str()], &at)?;
    Ok(Place { small, dir })
}

/// What a disk has told its listener.
type Heard = Arc<Mutex<Vec<String>>>;

impl Place {
    /// A disk with a bitmap, of which one granule is recorded.
    fn make_disk(&self) {
        let image = self.dir.path().join("disk.img");
        File::create(&image)
            .and_then(|file| file.set_len(LENGTH))
            .expect("an image");
        CreateOptions::new()
            .image(image.to_str().expect("UTF-8"))
            .create(self.disk())
            .expect("a disk");
        let (disk, _) = self.open(OnBitmapError::FailWrite);
        disk.bitmap_add("b", AddBitmap::default()).expect("a bitmap");
        disk.write(&[1], 0, NONE).expect("a write");
        disk.close().expect("it closes");
    }

    fn disk(&self) -> PathBuf {
        self.small.folder().join("disk.qbm")
    }

    fn open(&self, choice: OnBitmapError) -> (Disk, Heard) {
        let heard = Heard::default();
        let listener = Arc::clone(&heard);
        let options = OpenOptions::new().on_bitmap_error(choice).notify(move |notice| {
            if notice.code == NoticeCode::BitmapInconsistent {
                listener.lock().expect("whole").push(notice.message.to_owned());
            }
        });
        (options.open(self.disk()).expect("it opens"), heard)
    }

    fn filler(&self) -> PathBuf {
        self.small.folder().join("filler")
    }

    /// Takes all space there is.
    fn fill(&self) {
        let mut filler = File::create(self.filler()).expect("a file");
        for size in [64 << 10, 4096, 512, 1] {
            while filler.write_all(&vec![1; size]).is_ok() {}
        }
        let _ = filler.sync_all();
        while filler.write_all(&[1]).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.filler()).expect("removed");
    }
}

fn byte(disk: &Disk, at: u64) -> u8 {
    let mut byte = [0];
    disk.read(&mut byte, at).expect("a read");
    byte[0]
}

/// The first bytes of the granules that are dirty, of those that the tests write to.
fn dirty(disk: &Disk) -> Vec<u64> {
    let is = |at: &u64| disk.bitmap_get("b", *at).expect("a bit");
    let found: Vec<u64> = [0, FAR, FARTHER].into_iter().filter(is).collect();
    assert_eq!(disk.bitmap_count("b").expect("a count"), found.len() as u64);
    found
}

#[test]
fn the_write_fails_until_there_is_room() {
    for place in places() {
        place.make_disk();
        let (disk, heard) = place.open(OnBitmapError::FailWrite);
        disk.write(&[2], 1, NONE).expect("a write");
        place.fill();
        for _ in 0..2 {
            let why = disk.write(&[3], FAR, NONE).expect_err("no room for its bit");
            assert_eq!(why.errno(), libc::ENOSPC, "{why}");
            for part in ["bitmap \"b\"", "disk-b.bitmap", "No space left on device"] {
                assert!(why.message().contains(part), "{why}");
            }
            assert_eq!(byte(&disk, FAR), 0, "the data went out without its bit");
        }
        // What needs no room goes on.
        disk.write(&[4], 2, NONE)
            .expect("a write to a granule that is recorded");
        disk.flush().expect("a flush");
        disk.bitmap_sync(None).expect("a sync");
        assert!(!disk.info().expect("facts").failed);
        place.make_room();
        disk.write(&[5], FAR, NONE).expect("now it can be recorded");
        place.fill();
        disk.close().expect("it closes though there is no room");

        let (disk, _) = place.open(OnBitmapError::FailWrite);
        disk.write(&[6], FARTHER, NONE).expect_err("no room for its bit");
        assert_eq!((byte(&disk, 1), byte(&disk, FAR)), (2, 5));
        // As if it were killed. Whoever recovers writes to no place that has no room.
        disk.die();
        let (disk, _) = place.open(OnBitmapError::FailWrite);
        assert_eq!(dirty(&disk), [0, FAR]);
        place.make_room();
        disk.write(&[7], FARTHER, NONE).expect("now it can be recorded");
        disk.close().expect("it closes");
        let (disk, _) = place.open(OnBitmapError::FailWrite);
        assert_eq!(dirty(&disk), [0, FAR, FARTHER]);
        assert!(heard.lock().expect("whole").is_empty());
    }
}

#[test]
fn the_bitmap_becomes_inconsistent_and_the_guest_goes_on() {
    for place in places() {
        place.make_disk();
        let (disk, heard) = place.open(OnBitmapError::MarkInconsistent);
        disk.write(&[2], 1, NONE).expect("a write");
        place.fill();
        disk.write(&[3], FAR, NONE).expect("it is excused");
        disk.write(&[4], FARTHER, NONE).expect("so is this one");
        {
            let heard = heard.lock().expect("whole");
            assert_eq!(heard.len(), 1, "{heard:?}");
            assert!(heard[0].contains("No space left on device"), "{heard:?}");
        }
        assert!(disk.bitmap_info("b").expect("facts").inconsistent);
        disk.flush().expect("a flush");
        // As if it were killed: the mark was there before the data.
        disk.die();
        let (disk, _) = place.open(OnBitmapError::MarkInconsistent);
        assert_eq!((byte(&disk, FAR), byte(&disk, FARTHER)), (3, 4));
        assert!(disk.bitmap_info("b").expect("facts").inconsistent);
        let why = disk.bitmap_count("b").expect_err("nobody may rely on it");
        assert_eq!(why.code(), ErrorCode::BitmapInconsistent);
        disk.close().expect("it closes though there is no room");

        let (disk, _) = place.open(OnBitmapError::FailWrite);
        let why = disk.bitmap_repair("b").expect_err("no room for a new file");
        assert_eq!(why.errno(), libc::ENOSPC, "{why}");
        assert!(disk.bitmap_info("b").expect("facts").inconsistent);
        place.make_room();
        disk.bitmap_repair("b").expect("it can be repaired");
        assert_eq!(disk.bitmap_count("b").expect("a count"), LENGTH / GRANULE);
        disk.close().expect("it closes");
        let (disk, _) = place.open(OnBitmapError::FailWrite);
        assert_eq!(disk.bitmap_count("b").expect("a count"), LENGTH / GRANULE);
    }
}

/// The kernel writes as much as there is room for, says how much that was, and then that there is no more room.
#[test]
fn a_write_that_the_kernel_cuts_short_is_an_error() {
    for place in places() {
        let path = place.disk();
        CreateOptions::new().size(24 << 20).create(&path).expect("a disk");
        let disk = Disk::open(&path).expect("it opens");
        disk.bitmap_add("b", AddBitmap::default()).expect("a bitmap");
        disk.write(&[1; 4096], 0, NONE).expect("a write");
        let data = vec![2; 20 << 20];
        let why = disk.write(&data, 4096, NONE).expect_err("no room for it");
        assert_eq!(why.errno(), libc::ENOSPC, "{why}");
        assert!(why.message().contains("disk-data.img"), "{why}");
        // What may have come there is dirty, and nothing behind it is lost.
        let tried = (4096 + data.len() as u64).div_ceil(GRANULE);
        assert_eq!(disk.bitmap_count("b").expect("a count"), tried);
        assert_eq!(byte(&disk, 4095), 1);
        assert!(!disk.info().expect("facts").failed);
        disk.discard(4096, data.len() as u64, NONE).expect("room again");
        disk.write(&data[..65536], 4096, NONE).expect("now there is room");
        disk.close().expect("it closes");
    }
}
