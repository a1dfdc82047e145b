//! Disks whose image is a disk itself: what is written to the outer one is in both, and so are the bits.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers beside the tests may fail as loudly as the tests"
)]

#[path = "nested/others.rs"]
mod others;
#[path = "common/random.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod random;
#[path = "nested/refused.rs"]
mod refused;
#[path = "common/skip.rs"]
mod skip;
#[path = "nested/stacks.rs"]
mod stacks;
#[path = "nested/status.rs"]
mod status;
#[path = "nested/tool.rs"]
mod tool;

use std::path::{Path, PathBuf};

use qbm::{AddBitmap, CreateOptions, Disk, Format, Granularity, OpenOptions, TruncateFlags, WriteFlags};
use random::Random;
use tempfile::TempDir;

const KIB: u64 = 1024;
const NONE: WriteFlags = WriteFlags::empty();
const LENGTH: u64 = 600 * KIB + 512;

/// A folder.
struct Room(TempDir);

impl Room {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    /// A disk of its own.
    fn plain(&self, name: &str) {
        CreateOptions::new()
            .size(LENGTH)
            .create(self.path(name))
            .expect("a disk");
    }

    /// An overlay in granules of 4 KiB over a raw image with data in it.
    fn overlay(&self, name: &str, base: &str) {
        let bytes: Vec<u8> = (0..LENGTH - 9000)
            .map(|at| u8::try_from((at * 7 + at / 512) % 255 + 1).expect("a byte"))
            .collect();
        std::fs::write(self.path(base), bytes).expect("written");
        CreateOptions::new()
            .size(LENGTH)
            .backing(base, Format::Raw)
            .granularity(Granularity::new(4096).expect("a granularity"))
            .create(self.path(name))
            .expect("an overlay");
    }

    /// A disk whose image is the disk `inner`.
    fn around(&self, inner: &str, name: &str) -> qbm::Result<()> {
        CreateOptions::new()
            .image(inner)
            .image_format(Format::Qbm)
            .create(self.path(name))
    }

    /// The same with an allocation bitmap, in granules of 8 KiB, over a raw image.
    fn overlay_around(&self, inner: &str, name: &str, base: &str) {
        self.around(inner, name).expect("a disk");
        let bytes: Vec<u8> = (0..LENGTH - 30_000)
            .map(|at| u8::try_from((at * 5 + at / 512) % 255 + 1).expect("a byte"))
            .collect();
        std::fs::write(self.path(base), bytes).expect("written");
        let text = std::fs::read_to_string(self.path(name)).expect("a descriptor");
        let mut value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let bits = format!("{name}.bits");
        std::fs::write(self.path(&bits), [0; 16]).expect("written");
        value["QBM"]["bitmaps"]["allocation"] = serde_json::json!({
            "file": bits, "type": "allocation", "granularity-bytes": 8192,
            "backing": { "file": base, "format": "raw" },
        });
        std::fs::write(self.path(name), value.to_string()).expect("written");
    }

    fn open(&self, name: &str) -> Disk {
        OpenOptions::new().open(self.path(name)).expect("opened")
    }

    fn look(&self, name: &str) -> Disk {
        OpenOptions::new()
            .read_only(true)
            .open(self.path(name))
            .expect("opened")
    }

    /// What a disk shows that nobody has open.
    fn content(&self, name: &str) -> Vec<u8> {
        read_all(&self.look(name))
    }

    /// What is dirty in a bitmap of a disk that nobody has open.
    fn dirty(&self, name: &str, bitmap: &str) -> Vec<bool> {
        dirty(&self.look(name), bitmap)
    }
}

fn add(disk: &Disk, name: &str, granularity: u64) {
    let options = AddBitmap {
        granularity: Granularity::new(granularity).expect("a granularity"),
        ..AddBitmap::default()
    };
    disk.bitmap_add(name, options).expect("a bitmap");
}

fn read_all(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(disk.length()).expect("in memory")];
    disk.read(&mut bytes, 0).expect("a read");
    bytes
}

/// Whether each granule of 4 KiB is dirty.
fn dirty(disk: &Disk, bitmap: &str) -> Vec<bool> {
    (0..disk.length().div_ceil(4096))
        .map(|granule| disk.bitmap_get(bitmap, granule * 4096).expect("a bit"))
        .collect()
}

/// Whether each granule of 4 KiB differs from what it was; what is gained was zeros.
fn changed(before: &[u8], after: &[u8]) -> Vec<bool> {
    let mut before = before.to_vec();
    before.resize(after.len(), 0);
    let pairs = before.chunks(4096).zip(after.chunks(4096));
    pairs.map(|(before, after)| before != after).collect()
}

/// All that is set in the first is set in the second.
#[track_caller]
fn assert_covers(needed: &[bool], bits: &[bool]) {
    for (granule, needed) in needed.iter().enumerate() {
        assert!(
            !needed || bits[granule],
            "granule {granule} has changed and is clean"
        );
    }
}

#[track_caller]
fn assert_same(found: &[u8], expected: &[u8]) {
    let first = found.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(first.map(|at| (at, found[at], expected[at])), None);
    assert_eq!(found.len(), expected.len());
}

/// Changes of every kind, on the disk and on a plain copy of what it shows.
fn change(disk: &Disk, model: &mut Vec<u8>, random: &mut Random, count: usize) {
    for _ in 0..count {
        let length = disk.length();
        let at = random.below(length);
        let len = (1 + random.below(40 * KIB)).min(length - at);
        let part = usize::try_from(at).expect("in memory")..usize::try_from(at + len).expect("in memory");
        match random.below(8) {
            0 => {
                disk.write_zeroes(at, len, WriteFlags::MAY_UNMAP).expect("zeros");
                model[part].fill(0);
            }
            1 => {
                disk.discard(at, len, NONE).expect("a discard");
                model[part].fill(0);
            }
            2 => disk.flush().expect("a flush"),
            3 if random.below(3) == 0 => {
                let new = (length + random.below(40 * KIB))
                    .saturating_sub(20 * KIB)
                    .max(9000);
                disk.truncate(new, TruncateFlags::SHRINK).expect("a resize");
                model.resize(usize::try_from(new).expect("in memory"), 0);
            }
            _ => {
                let byte = u8::try_from(1 + random.below(254)).expect("a byte");
                let flags = if random.below(5) == 0 {
                    WriteFlags::FUA
                } else {
                    NONE
                };
                disk.write(&vec![byte; part.len()], at, flags).expect("a write");
                model[part].fill(byte);
            }
        }
    }
}
