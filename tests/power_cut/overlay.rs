//! The same for an overlay on a raw image: commits, snapshots, rebases and an emptied disk come between the writes, and
//! commits, snapshots and rebases beside them, too.
//!
//! Its image is full of others' bytes from the beginning, and its granules are of another size than those of every dirty
//! bitmap. Whatever a cut leaves, a unit shows what its backing had or what was written to it (A1).

use std::ops::ControlFlow;
use std::path::Path;

use qbm::descriptor::BackingEntry;
use qbm::{Disk, Format, OpenOptions};

use super::history::Plan;
use super::holds;
use super::random::Random;
use super::record::{EXT4, Kind, XFS};
use super::units::{UNITS, create_overlay, numbers, put, units_of};

const GRANULE: u64 = 8 << 10;
/// Each leaves an image.
const SNAPSHOTS: u64 = 3;
const RAW: [&str; 2] = ["base.img", "other.img"];

pub const PLAN: Plan = Plan {
    overlay: true,
    unsynced: None,
};

/// With room for the images of the snapshots.
pub const LARGE_EXT4: Kind = Kind {
    size: 160 << 20,
    ..EXT4
};

#[test]
fn overlay_on_ext4() {
    holds(LARGE_EXT4, PLAN);
}

#[test]
fn overlay_on_xfs() {
    holds(XFS, PLAN);
}

/// What the backing has.
pub fn base() -> Vec<u64> {
    (0..UNITS).map(|number| number | 0xba5e << 48).collect()
}

/// Beside the backing there is another image to go on from: it has something else here and there.
pub fn create(folder: &Path) {
    let mut other = base();
    for part in other.chunks_mut(40).step_by(9) {
        for unit in part {
            *unit ^= 1 << 63;
        }
    }
    put(&folder.join(RAW[1]), &other);
    create_overlay(folder, GRANULE, &base());
}

/// The image that the disk is on, as its descriptor names it.
pub fn backing(disk: &Disk) -> Option<BackingEntry> {
    let overlay = disk.info().expect("facts").overlay;
    overlay.and_then(|it| it.backing)
}

/// What the disk shows when it has nothing of its own.
pub fn below(folder: &Path, disk: &Disk) -> Vec<u64> {
    let Some(backing) = backing(disk) else {
        return vec![0; base().len()];
    };
    let file = folder.join(backing.file);
    if backing.format == Format::Raw {
        return numbers(&std::fs::read(file).expect("a raw image"));
    }
    let options = OpenOptions::new().read_only(true).no_lock(true);
    units_of(&options.open(file).expect("the backing opens"))
}

/// A change of the disk's structure that the guest does not see.
#[derive(Clone, Debug)]
pub enum Change {
    CommitInto(u32),
    Snapshot(String),
    Rebase(Option<BackingEntry>),
}

impl Change {
    /// One that the disk can take; `snapshots` were taken before.
    pub fn choose(disk: &Disk, snapshots: &mut u64, random: &mut Random) -> Self {
        let deepest = disk.info().expect("facts").layers - 1;
        let on = backing(disk).map(|it| it.file);
        match random.below(8) {
            0..=2 if deepest > 0 => Self::CommitInto(1),
            3 | 4 if deepest > 0 => Self::CommitInto(deepest),
            5 if *snapshots < SNAPSHOTS => {
                *snapshots += 1;
                Self::Snapshot(format!("snapshot-{snapshots}.qbm"))
            }
            6 if on.is_some() => Self::Rebase(None),
            _ => {
                let file = RAW.into_iter().find(|name| on.as_deref() != Some(name));
                Self::Rebase(file.map(|file| BackingEntry {
                    file: file.to_owned(),
                    format: Format::Raw,
                }))
            }
        }
    }

    pub fn make(&self, disk: &Disk) {
        let go_on = &mut |_, _| ControlFlow::Continue(());
        let made = match self {
            Self::CommitInto(layer) => disk.commit_into(*layer, go_on),
            Self::Snapshot(name) => disk.snapshot(name, None),
            Self::Rebase(backing) => disk.rebase(backing.clone(), go_on),
        };
        made.unwrap_or_else(|why| panic!("{self:?}: {why}"));
    }
}
