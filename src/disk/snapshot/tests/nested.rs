//! Snapshots of a disk whose image is a disk itself, in which a call fails: the inner disk may have ended by then, and what is
//! written afterwards must find it begun again, with its shadow; nothing of that goes unnoticed (D1) or is lost (A2, A3).

use super::*;
use crate::storage::simulated::Keep;

const INNER: &str = "inner.qbm";

fn open_at(sim: &SimDisk, cache: &str) -> crate::error::Result<Disk> {
    OpenOptions::new()
        .folder(sim.folder())
        .cache_epoch(cache)
        .open(NAME)
}

/// What a disk was told to keep.
struct Kept {
    /// What it showed when its bitmap began.
    start: Vec<u8>,
    /// What must be there after a power cut, or what was written since.
    flushed: Vec<u8>,
    /// What must be there after a kill, or what was written since.
    acknowledged: Vec<u8>,
    /// What it shows if all that was begun is done.
    written: Vec<u8>,
}

/// A disk whose image is a disk over `low.img`. With a bitmap, and with a write that was not flushed.
fn nested(inner_layered: bool) -> (SimDisk, Disk, Kept) {
    let sim = SimDisk::new();
    let low: Vec<u8> = (0..6 * G).map(|at| u8::try_from(at % 190).unwrap() + 1).collect();
    sim.put("low.img", &low);
    let mut inner = CreateOptions::new().size(LENGTH).folder(sim.folder());
    if inner_layered {
        inner = inner
            .backing("low.img", Format::Raw)
            .granularity(Granularity::new(2048).unwrap());
    }
    inner.create(INNER).unwrap();
    CreateOptions::new()
        .image(INNER)
        .image_format(Format::Qbm)
        .folder(sim.folder())
        .create(NAME)
        .unwrap();
    let disk = open_at(&sim, "one").unwrap();
    disk.bitmap_add("b", AddBitmap::default()).unwrap();
    let start = content_of(&disk);
    let mut content = start.clone();
    put(&disk, &mut content, 201, 3 * G - 100, 300);
    disk.flush().unwrap();
    let flushed = content.clone();
    put(&disk, &mut content, 202, 5 * G - 100, 3000);
    let kept = Kept {
        start,
        flushed,
        written: content.clone(),
        acknowledged: content,
    };
    (sim, disk, kept)
}

impl Kept {
    /// A write, and a flush; of which each may fail.
    fn write(&mut self, disk: &Disk, byte: u8, at: u64, len: u64) {
        let place = usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap();
        self.written[place.clone()].fill(byte);
        if let Err(error) = disk.write(&self.written[place.clone()], at, WriteFlags::empty()) {
            // The disk has failed; or one of the state files has, which takes nothing more until the disk is reopened.
            assert_eq!(error.code(), ErrorCode::Failed, "{error}");
            return;
        }
        self.acknowledged[place.clone()].fill(byte);
        assert!(content_of(disk)[place].iter().all(|it| *it == byte));
        if disk.flush().is_ok() {
            self.flushed.clone_from(&self.acknowledged);
        }
    }

    /// What is wrong with the disk as a crash has left it, if anything.
    fn check(&self, state: &SimDisk, cache: &str, oldest: &[u8]) -> Result<(), String> {
        let disk = open_at(state, cache).map_err(|e| format!("it does not open: {e}"))?;
        let found = content_of(&disk);
        let trusted = !disk.bitmap_info("b").unwrap().inconsistent;
        for (at, byte) in found.iter().enumerate() {
            if ![oldest[at], self.acknowledged[at], self.written[at]].contains(byte) {
                return Err(format!("byte {at} is {byte}, not {}", oldest[at]));
            }
            if trusted && *byte != self.start[at] && !disk.bitmap_get("b", at as u64).unwrap() {
                return Err(format!("byte {at} has no bit"));
            }
        }
        Ok(())
    }
}

#[test]
fn one_that_fails_is_followed_by_writes_that_last() {
    for inner_layered in [false, true] {
        let (sim, disk, _) = nested(inner_layered);
        let start = sim.events().len();
        disk.snapshot("s.qbm", None).unwrap();
        let calls = (sim.events().len() - start) as u64;
        let (mut went_on, mut bad) = (0, Vec::new());
        for (call, error) in (1..=calls).flat_map(|call| [(call, libc::EIO), (call, libc::ENOSPC)]) {
            let (sim, disk, mut kept) = nested(inner_layered);
            let names = sim.names();
            sim.fail(Fault::new(error).nth(call));
            let result = disk.snapshot("s.qbm", None);
            sim.heal();
            let what = format!("inner overlay {inner_layered}, call {call}, error {error}, {result:?}");
            assert_shows(&disk, &kept.acknowledged);
            let failed = disk.info().unwrap().failed;
            if result.is_err() && !failed {
                assert_eq!(sim.names(), names, "{what}");
                went_on += 1;
            }
            // Where both disks had nothing yet, in what the snapshot has flushed, and in both.
            for (byte, at) in [(9, 7 * G - 20), (8, 5 * G), (7, 8 * G)] {
                kept.write(&disk, byte, at, 1500);
            }
            let mut check = |kept: &Kept, state: &SimDisk, cache, oldest: &[u8]| {
                let borne = kept.check(state, cache, oldest);
                bad.extend(borne.err().map(|words| format!("{what}, {cache}: {words}")));
            };
            let cuts = (0..3).map(Keep::Random).chain([Keep::Nothing, Keep::All]);
            for state in cuts.map(|keep| sim.power_cut_keeping(keep)) {
                check(&kept, &state, "two", &kept.flushed);
            }
            // A sync of the image that fails has the disk fail, and takes what no flush has made durable: nobody knows which
            // bytes the kernel has dropped.
            let oldest = if failed { &kept.flushed } else { &kept.acknowledged };
            check(&kept, &sim.kill(), "one", oldest);
            if failed || result.is_ok() {
                continue;
            }
            match disk.snapshot("s.qbm", None) {
                Err(error) if error.code() == ErrorCode::Failed => {}
                again => {
                    again.unwrap();
                    kept.write(&disk, 6, 2 * G, 1500);
                    check(&kept, &sim.power_cut_keeping(Keep::Nothing), "two", &kept.flushed);
                }
            }
            // Where that fails the disk is as after a crash.
            let _ = disk.close();
            check(&kept, &sim.kill(), "one", &kept.acknowledged);
        }
        let first = &bad[..bad.len().min(6)];
        assert!(bad.is_empty(), "{} are bad, first these: {first:#?}", bad.len());
        assert!(
            went_on > 10,
            "of {calls} calls, {went_on} were failures that it went on behind"
        );
    }
}
