//! The disk of the crash suites with real processes: its content is told apart by units of 512 bytes, each full of one
//! number, so that every write can be known again.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use qbm::{AddBitmap, CreateOptions, Disk, Format, Granularity};

pub const UNIT: u64 = 512;
pub const LENGTH: u64 = 8 << 20;
pub const UNITS: u64 = LENGTH / UNIT;
/// Of the intent map: much less than the disk, so that whole regions would be seen in the bits.
pub const REGION: u64 = 256 << 10;

/// What an overlay's image is full of before it is the disk's.
pub const STALE: u64 = 0xeeee_eeee_eeee_eeee;

pub struct Kind {
    pub name: &'static str,
    pub granularity: u64,
    /// It is added and removed while writes go on.
    pub comes_and_goes: bool,
}

pub const BITMAPS: [Kind; 3] = [
    Kind {
        name: "coarse",
        granularity: 64 << 10,
        comes_and_goes: false,
    },
    Kind {
        name: "fine",
        granularity: 4 << 10,
        comes_and_goes: false,
    },
    Kind {
        name: "guest",
        granularity: 16 << 10,
        comes_and_goes: true,
    },
];

impl Kind {
    pub fn options(&self) -> AddBitmap {
        AddBitmap {
            granularity: Granularity::new(self.granularity).expect("a granularity"),
            ..AddBitmap::default()
        }
    }
}

pub fn path(folder: &Path) -> PathBuf {
    folder.join("disk.qbm")
}

pub fn create(folder: &Path) {
    CreateOptions::new()
        .size(LENGTH)
        .region_bytes(REGION)
        .create(path(folder))
        .expect("a disk");
    add_bitmaps(folder);
}

/// A disk over `base.img`, whose units are full of these numbers, with an image that is full of others' bytes.
pub fn create_overlay(folder: &Path, granularity: u64, base: &[u64]) {
    put(&folder.join("base.img"), base);
    CreateOptions::new()
        .backing("base.img", Format::Raw)
        .granularity(Granularity::new(granularity).expect("a granularity"))
        .region_bytes(REGION)
        .create(path(folder))
        .expect("a disk");
    put(&folder.join("disk-data.img"), &vec![STALE; base.len()]);
    add_bitmaps(folder);
}

/// A file whose units are full of these numbers; it outlives a power cut.
pub fn put(file: &Path, units: &[u64]) {
    let bytes: Vec<u8> = units.iter().flat_map(|value| content(*value, 1)).collect();
    let file = File::create(file).and_then(|mut file| {
        file.write_all(&bytes)?;
        file.sync_all()
    });
    file.expect("a file of units");
}

pub fn add_bitmaps(folder: &Path) {
    let disk = Disk::open(path(folder)).expect("it opens");
    for kind in BITMAPS {
        disk.bitmap_add(kind.name, kind.options()).expect("a bitmap");
    }
    disk.close().expect("it closes");
}

/// What a write of this number to so many units writes.
pub fn content(value: u64, units: u64) -> Vec<u8> {
    value
        .to_le_bytes()
        .repeat(usize::try_from(units * UNIT / 8).expect("a length"))
}

/// The number that each unit of the disk is full of.
pub fn units_of(disk: &Disk) -> Vec<u64> {
    let mut content = vec![0; usize::try_from(LENGTH).expect("a length")];
    disk.read(&mut content, 0).expect("all of the disk");
    numbers(&content)
}

/// The number that each unit of these bytes is full of.
pub fn numbers(content: &[u8]) -> Vec<u64> {
    let (words, _) = content.as_chunks::<8>();
    words
        .chunks_exact(64)
        .map(|unit| {
            assert!(unit.iter().all(|word| word == &unit[0]), "a unit is torn");
            u64::from_le_bytes(unit[0])
        })
        .collect()
}

/// Whether each granule is dirty; `None` where there is no such bitmap.
pub fn bits_of(disk: &Disk, kind: &Kind) -> Option<Vec<bool>> {
    let list = disk.bitmap_list().expect("the bitmaps");
    let info = list.iter().find(|it| it.name == kind.name)?;
    assert!(!info.inconsistent && !info.busy && info.recording, "{info:?}");
    let offsets = (0..LENGTH / kind.granularity).map(|granule| granule * kind.granularity);
    let bits = offsets.map(|offset| disk.bitmap_get(kind.name, offset).expect("a bit"));
    Some(bits.collect())
}

/// The regions that the intent map calls active; none by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Active(u32);

impl Active {
    /// Of the disk in this folder as it lies there. As `docs/format.md` has it: the first bits of the first piece.
    pub fn read(folder: &Path) -> Self {
        const MAP: usize = 8192 + 8;
        const { assert!(LENGTH / REGION == 32) };
        let state = std::fs::read(folder.join("disk.state")).expect("a state file");
        let map = state[MAP..MAP + 4].try_into().expect("four bytes");
        Self(u32::from_le_bytes(map))
    }

    pub fn has(self, offset: u64) -> bool {
        self.0 >> (offset / REGION) & 1 == 1
    }
}
