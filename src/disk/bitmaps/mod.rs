//! The dirty bitmaps of an open disk: what they record, what may be done with them, and what of it is on disk.
//!
//! Reading needs the gate entered; whatever changes bits or flags closes it, and so comes between writes, never
//! beside one (durability trap 1). The only bits that change with the gate open are those that writes set.
//! Invariant: [`Shape::recorders`] says for every bitmap that must see a write where its bit goes.

mod actions;
mod content;
mod excuses;
mod load;
mod read;
mod record;
pub(super) mod recover;
mod resize;
mod rules;
mod several;
mod stage;
mod sync;
mod transaction;

#[cfg(test)]
#[cfg(shuttle)]
mod models;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

pub use actions::{AddBitmap, BitmapAction, MergeSource, Thaw};
pub use content::BitmapContent;
pub(super) use excuses::Excuses;
pub use excuses::OnBitmapError;
pub(super) use load::Loading;
pub use read::BitmapInfo;
pub(super) use record::{Marks, UnderWay};
pub(super) use resize::Resized;
pub use several::bitmap_transaction;
pub(super) use several::{AtPoint, at_one_point};

use crate::bitmap::{BitmapFile, Bits};
use crate::descriptor::BitmapEntry;
use crate::disk::overlay::Overlay;
use crate::error::{Error, ErrorCode, Result};
use crate::state::IntentMap;
use crate::units::Granularity;
use excuses::Lost;
use record::Recorder;

/// What a write needs to know of the disk besides its length.
pub(super) struct Shape {
    bitmaps: Vec<Bitmap>,
    recorders: Vec<Recorder>,
    /// What a bitmap's file is to be vouched for by before it is written; `None` where the disk has no state file.
    intent: Option<Arc<IntentMap>>,
    /// What lets a write go on past a bitmap that cannot be written; `None` where nothing does.
    excuses: Option<Arc<Excuses>>,
    /// What is below the image, and which granules it has itself; `None` where it has all.
    pub(super) overlay: Option<Arc<Overlay>>,
    /// The backup that is under way.
    backup: Option<UnderWay>,
}

impl Shape {
    /// The shape of a disk with these bitmaps. The bits of those that record must be loaded where the disk is
    /// `writable`.
    pub(super) fn new(
        bitmaps: Vec<Bitmap>,
        overlay: Option<Arc<Overlay>>,
        intent: Option<Arc<IntentMap>>,
        excuses: Option<Arc<Excuses>>,
        writable: bool,
    ) -> Self {
        let recorders = if writable {
            bitmaps.iter().filter_map(Recorder::of).collect()
        } else {
            Vec::new()
        };
        Self {
            bitmaps,
            recorders,
            intent,
            excuses,
            overlay,
            backup: None,
        }
    }

    /// The same disk with other dirty bitmaps.
    fn with(&self, bitmaps: Vec<Bitmap>, writable: bool) -> Self {
        let mut shape = Self::new(
            bitmaps,
            self.overlay.clone(),
            self.intent.clone(),
            self.excuses.clone(),
            writable,
        );
        shape.set_backup(self.backup.clone());
        shape
    }

    /// The files of the persistent bitmaps.
    pub(super) fn bitmap_files(&self) -> impl Iterator<Item = &BitmapFile> {
        self.bitmaps.iter().filter_map(Bitmap::file)
    }

    /// What the bitmaps take in memory, with what else `loading` counts.
    pub(super) fn memory(&self, loading: &Loading) -> u64 {
        loading.all_used(&self.bitmaps)
    }

    /// Whether there is a dirty bitmap of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    fn find(&self, name: &str) -> Result<&Bitmap> {
        self.bitmaps
            .iter()
            .find(|bitmap| &*bitmap.name == name)
            .ok_or_else(|| not_found(name))
    }

    /// The bitmap that has the file of `other`, which may be the same one under another name.
    fn in_file_of(&self, other: &Bitmap) -> Option<&Bitmap> {
        let file = other.file()?;
        self.bitmaps
            .iter()
            .find(|bitmap| bitmap.file().is_some_and(|its| std::ptr::eq(its, file)))
    }
}

/// One dirty bitmap. Clones share the bits; whoever is to have others is given new ones.
#[derive(Clone)]
pub(super) struct Bitmap {
    name: Arc<str>,
    granularity: Granularity,
    /// Whether writes set its bits.
    recording: bool,
    /// It was so at the open, or recovery found it so.
    inconsistent: bool,
    /// It has become so since.
    lost: Lost,
    /// Where it is kept; `None` of a transient one.
    kept: Option<Kept>,
    start: Start,
    /// The epoch in which recovery has last added bits to it: another one has nothing of them.
    widened_in: Option<Arc<str>>,
    /// Empty until they are loaded.
    bits: Arc<OnceLock<Arc<Bits>>>,
    frozen: Option<Frozen>,
}

/// Where a persistent bitmap is kept.
#[derive(Clone)]
struct Kept {
    /// The file as the descriptor names it.
    name: Arc<str>,
    file: Arc<BitmapFile>,
}

/// The point from which a bitmap knows what changed.
#[derive(Clone)]
struct Start {
    /// Its random id; `None` where the descriptor has none.
    epoch: Option<Arc<str>>,
    /// The disk's length then, in bytes; `None` where the descriptor does not say.
    length: Option<u64>,
    /// The bytes that the recovery of this open has made dirty: another point has nothing of them.
    recovered: u64,
}

/// What records the writes while a backup has the bits.
#[derive(Clone)]
struct Frozen {
    successor: Arc<Bits>,
    /// When it was frozen.
    start: Start,
}

impl Start {
    /// A new one, now, on a disk of `length` bytes.
    fn now(length: u64) -> Result<Self> {
        Ok(Self {
            epoch: Some(new_epoch()?.into()),
            length: Some(length),
            recovered: 0,
        })
    }
}

/// A random id for a starting point.
pub(super) fn new_epoch() -> Result<String> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|e| {
        Error::new(
            ErrorCode::Io,
            format!("cannot get random bytes for the id of a bitmap's starting point: {e}"),
        )
    })?;
    Ok(format!("{:032x}", u128::from_ne_bytes(id)))
}

impl Bitmap {
    /// The bitmap that `entry` describes, its bits still in `file`.
    pub(super) fn from_entry(name: &str, entry: &BitmapEntry, file: BitmapFile) -> Self {
        Self {
            name: name.into(),
            granularity: entry.granularity,
            recording: entry.recording.unwrap_or(true),
            inconsistent: false,
            lost: Lost::default(),
            kept: Some(Kept {
                name: entry.file.as_str().into(),
                file: Arc::new(file),
            }),
            start: Start {
                epoch: entry.epoch.as_deref().map(Into::into),
                length: entry.start_length,
                recovered: 0,
            },
            widened_in: None,
            bits: Arc::default(),
            frozen: None,
        }
    }

    /// The file that it is kept in.
    pub(super) fn file(&self) -> Option<&BitmapFile> {
        self.kept.as_ref().map(|kept| &*kept.file)
    }

    /// Whether writes must be seen by it.
    pub(super) fn records(&self) -> bool {
        self.recording && !self.is_inconsistent()
    }

    /// Whether it can no longer be trusted.
    fn is_inconsistent(&self) -> bool {
        self.inconsistent || self.lost.is()
    }

    /// Whether recovery has added bits to it since its starting point.
    fn is_widened(&self) -> bool {
        self.widened_in.is_some() && self.widened_in == self.start.epoch
    }

    /// The bits that are in memory.
    fn loaded(&self) -> Option<&Arc<Bits>> {
        self.bits.get()
    }

    /// Gives it other bits. Those who share the old ones keep them.
    fn replace_bits(&mut self, bits: Bits) {
        self.bits = Arc::new(OnceLock::from(Arc::new(bits)));
    }

    /// The memory that its bits take, in bytes.
    fn memory(&self) -> u64 {
        let successor = self.frozen.as_ref().map(|frozen| &frozen.successor);
        self.loaded()
            .into_iter()
            .chain(successor)
            .map(|bits| bits.memory())
            .sum()
    }

    /// Puts the bits that are in memory into the file.
    fn save(&self) -> Result<()> {
        let (Some(kept), Some(bits)) = (&self.kept, self.loaded()) else {
            return Ok(());
        };
        match &self.frozen {
            // The file of a frozen bitmap holds both: should the backup never end, nothing is lost (D1).
            Some(frozen) => kept.file.save(&frozen.successor, Some(bits)),
            None => kept.file.save(bits, None),
        }
    }
}

#[cold]
fn not_found(name: &str) -> Error {
    Error::new(ErrorCode::BitmapNotFound, format!("there is no bitmap {name:?}"))
}
