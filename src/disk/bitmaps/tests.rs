//! Dirty bitmaps on a simulated disk, whose log shows what was done in which order.

mod crash;
mod excuses;
mod files;
mod freeze;
mod model;
mod recording;
mod resize;
mod several;
mod states;

use std::sync::Arc;

use super::{AddBitmap, Bitmap, BitmapAction, MergeSource, Thaw};
use crate::bitmap::BitmapPolicy;
use crate::disk::{CreateOptions, Disk, OpenOptions, TruncateFlags, WriteFlags};
use crate::error::{Error, ErrorCode, Result};
use crate::storage::simulated::{Call, CallKind, Event, SimDisk};
use crate::units::Granularity;

const NAME: &str = "disk.qbm";
const IMAGE: &str = "disk-data.img";
const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// A new disk of `length` bytes. It has no state file: what that adds is tested where it is built in, and here it would
/// hide bits that are missing behind whole regions.
fn disk_of(length: u64) -> (SimDisk, Disk) {
    let sim = SimDisk::new();
    CreateOptions::new()
        .size(length)
        .no_state(true)
        .folder(sim.folder())
        .create(NAME)
        .unwrap();
    let disk = open(&sim);
    (sim, disk)
}

fn options(sim: &SimDisk) -> OpenOptions {
    OpenOptions::new().folder(sim.folder()).no_state(true)
}

fn open(sim: &SimDisk) -> Disk {
    options(sim).open(NAME).unwrap()
}

fn persistent() -> AddBitmap {
    AddBitmap::default()
}

fn transient() -> AddBitmap {
    AddBitmap {
        persistent: false,
        ..AddBitmap::default()
    }
}

fn of(granularity: u64) -> AddBitmap {
    AddBitmap {
        granularity: Granularity::new(granularity).unwrap(),
        ..AddBitmap::default()
    }
}

fn write(disk: &Disk, offset: u64, len: usize) -> Result<()> {
    disk.write(&vec![7; len], offset, WriteFlags::empty())
}

/// The dirty granules of a bitmap.
fn dirty(disk: &Disk, name: &str) -> Vec<u64> {
    let granularity = disk.bitmap_info(name).unwrap().granularity;
    let granules = granularity.granules_in(disk.length());
    (0..granules)
        .filter(|granule| disk.bitmap_get(name, granule * granularity.bytes()).unwrap())
        .collect()
}

/// The code that a call failed with, and a part that its words must have.
fn assert_refused<T>(result: Result<T>, code: ErrorCode, part: &str) {
    let error: Error = result.err().expect(part);
    assert_eq!(error.code(), code, "{error}");
    assert!(error.message().contains(part), "{error} lacks {part:?}");
}

/// The calls since event `from` that change something.
fn changes(sim: &SimDisk, from: usize) -> Vec<Arc<Event>> {
    let mut events = sim.events();
    events.drain(..from);
    events.retain(|event| event.call.changes());
    events
}

/// Where in `events` the first call of a kind on a file is.
fn position(events: &[Arc<Event>], kind: CallKind, name: &str) -> usize {
    events
        .iter()
        .position(|event| {
            event.call.kind() == kind && event.call.names().any(|it| it.to_string_lossy() == name)
        })
        .unwrap_or_else(|| panic!("no {kind:?} of {name} in {events:#?}"))
}

fn is_write_to(call: &Call, name: &str) -> bool {
    call.kind() == CallKind::Write && call.names().any(|it| it.to_string_lossy() == name)
}

impl Disk {
    /// Marks a bitmap as recovery would.
    pub(crate) fn make_inconsistent(&self, name: &str) {
        let mut shape = self.gate.close();
        let mut bitmaps: Vec<Bitmap> = shape.bitmaps.clone();
        for bitmap in &mut bitmaps {
            bitmap.inconsistent |= &*bitmap.name == name;
        }
        *shape = shape.with(bitmaps, true);
    }
}
