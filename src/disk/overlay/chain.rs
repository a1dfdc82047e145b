//! The images below a disk: what is read where its own allocation bits are clear.
//!
//! May call `bitmap`, `format` and `storage`. Invariant: nothing here is ever written to, so that what a chain says of a range
//! stays true for as long as the disk is open.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::hold::{Hold, Suspended};
use super::read::unopened;
use super::status::status_in;
use crate::bitmap::{BitmapFile, Bits};
use crate::descriptor::Format;
use crate::disk::open::Files;
use crate::disk::{Child, StatusFlags, StatusHints};
use crate::error::{Error, ErrorCode, Result};
use crate::format::Place;
use crate::mutation::{self, Fault};
use crate::state::Tenure;
use crate::storage::{Folder, Storage};
use crate::sync::{Mutex, PoisonError};
use crate::units::{ByteRange, Granularity, GranuleIndex};

/// One image below the disk.
#[derive(Debug)]
pub(in crate::disk) struct Layer {
    pub(in crate::disk) image: Child,
    /// What keeps others from writing to it, and to the other files that it consists of.
    pub(in crate::disk) holds: Vec<Hold>,
    /// What the image is.
    pub(in crate::disk) format: Format,
    /// In bytes. What lies behind it reads as zeros, whatever the layers below have there.
    pub(in crate::disk) length: u64,
    /// The descriptor that names the image, if one does.
    pub(in crate::disk) descriptor: Option<PathBuf>,
    /// Where that has its name.
    pub(super) folder: Option<Arc<dyn Folder>>,
    pub(super) has: Has,
    /// Where the bits are kept that say so, if it has such.
    pub(super) bits_file: Option<BitmapFile>,
    /// Some of the bits are only in the shadow that a killed process has left: a power cut takes them, and what they show.
    pub(super) shadowed: bool,
    /// All that was acknowledged to a process that was killed is there, as far as the layer's own bits tell.
    pub(super) kept: bool,
    /// Of a disk that is the image of another one: see [`Tenure`].
    pub(in crate::disk) tenure: Option<Tenure>,
}

/// Which bytes an image has itself.
#[derive(Debug)]
pub(super) enum Has {
    /// All of them: nothing below is ever read.
    All,
    /// Those of the granules whose bits are set.
    Bits(Box<Allocated>),
    /// Those that the image's own tables say are there.
    Tables,
}

impl Layer {
    /// Fails where a killed process has left in the page cache alone what it shows, so that no sync keeps it through a power cut.
    pub(super) fn check_recovered(&self) -> Result<()> {
        if self.shadowed && !mutation::on(Fault::ShadowBelowKept) {
            let shown = self.descriptor.as_ref().unwrap_or(&self.image.path).display();
            return Err(Error::new(
                ErrorCode::FileInvalid,
                format!("{shown} was not closed by its last user; \"qbm check -r all {shown}\" recovers it"),
            ));
        }
        let nested = self.image.nested.as_ref().and_then(|it| it.chain());
        nested.map_or(Ok(()), Chain::check_recovered)
    }

    /// Makes what it shows durable, as far as it can be: whoever made it may not have done so.
    pub(super) fn sync(&self) -> Result<()> {
        self.sync_name()?;
        self.holds
            .iter()
            .try_for_each(|hold| where_it_can_be(hold.sync()))?;
        if let Some(nested) = &self.image.nested {
            nested.sync_found()?;
        }
        self.bits_file
            .as_ref()
            .map_or(Ok(()), |file| where_it_can_be(file.sync()))
    }

    /// Makes the descriptor durable under its name: whoever put it there may have been killed before he did that.
    fn sync_name(&self) -> Result<()> {
        let (Some(folder), Some(shown)) = (&self.folder, &self.descriptor) else {
            return Ok(());
        };
        if mutation::on(Fault::NamesBelowUnsynced) {
            return Ok(());
        }
        match folder.sync() {
            // Where no name can be changed, none was.
            Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(()),
            synced => {
                where_it_can_be(synced.map_err(|e| Error::io("sync the folder of the descriptor", shown, &e)))
            }
        }
    }

    /// Gives the hold on it up, until what this returns is dropped: its own process is to write to it.
    pub(super) fn suspended(&self) -> Vec<Suspended<'_>> {
        let mut suspended: Vec<_> = self.holds.iter().map(Hold::suspended).collect();
        // Of a disk that is the image, the image alone is written to.
        let nested = self.image.nested.as_ref().and_then(|it| it.chain());
        if let Some(nearest) = nested.and_then(|chain| chain.layers.first()) {
            suspended.extend(nearest.suspended());
        }
        suspended
    }

    /// Whether the byte at `at` is in the image, and where that ends to be so, at most `end`.
    fn run(&self, at: u64, end: u64) -> Result<(bool, u64)> {
        match &self.has {
            Has::All => Ok((true, end)),
            Has::Bits(allocated) => Ok(allocated.run(at, end)),
            Has::Tables => self.image.run(at, end),
        }
    }
}

/// The outcome of a sync of a file that is only read. A file system that never writes, as squashfs, has none: EINVAL.
fn where_it_can_be(synced: Result<()>) -> Result<()> {
    match synced {
        Err(error) if error.errno() == libc::EINVAL => Ok(()),
        synced => synced,
    }
}

impl Child {
    /// Whether the byte at `at` is in the image, as its own tables have it, and where that ends to be so, at most `end`.
    pub(super) fn run(&self, at: u64, end: u64) -> Result<(bool, u64)> {
        let Some(image) = &self.mapped else {
            return Ok((true, end));
        };
        let range = ByteRange::between(at, end);
        let mapping = image
            .mapping(range)
            .map_err(|e| self.failed(&format!("find {range} in"), &e))?;
        Ok((mapping.place != Place::Below, end.min(at + mapping.len)))
    }
}

/// Which granules an image has.
#[derive(Debug)]
pub(super) struct Allocated {
    pub(super) granularity: Granularity,
    pub(super) bits: Bits,
}

impl Allocated {
    /// Whether the byte at `at` is in the image, and where that ends to be so, at most `end`.
    pub(super) fn run(&self, at: u64, end: u64) -> (bool, u64) {
        let granules = self.granularity.touched_by(ByteRange::between(at, end));
        let set = self.bits.get(granules.start);
        if granules.len() == 1 {
            return (set, end);
        }
        let change = if set {
            self.bits.next_clear(granules)
        } else {
            self.bits.next_set(granules)
        };
        // A bit that was set between the two looks ends no run before the end of its own granule: a reader that took
        // a part of a granule from before and the rest from after would see what never was.
        let first_end = GranuleIndex(granules.start.0 + 1);
        let stop = change.map_or(end, |granule| self.granularity.start_of(granule.max(first_end)));
        (set, stop.min(end))
    }
}

/// Where a run of bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::disk) enum Source {
    /// In the disk's own image.
    Own,
    /// In the image of the layer with this index, at the same offset.
    Layer(usize),
    /// Nowhere: it reads as zeros. So says the layer that has so many images above it: it has no backing, or the
    /// backing ends before here.
    Zeros {
        /// How many images lie above that layer; 0 is the disk itself.
        depth: usize,
    },
    /// In a backing image that was not opened, or not asked.
    Unopened,
}

/// A run of bytes that are at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::disk) struct Run {
    pub(in crate::disk) source: Source,
    pub(in crate::disk) range: ByteRange,
}

/// All images below a disk, from the nearest on.
#[derive(Debug, Default)]
pub(in crate::disk) struct Chain {
    pub(in crate::disk) layers: Vec<Layer>,
    /// The disk has a backing image, and it was not opened.
    pub(in crate::disk) unopened: bool,
    /// Held while it is synced, as the kernel tells but one of two that something was lost.
    synced: Mutex<Synced>,
}

/// Whether what a chain shows is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Synced {
    #[default]
    Unknown,
    Yes,
    /// It may be lost, and no later sync would tell.
    Failed,
}

/// What a run of bytes of a chain is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shown<'c> {
    /// Zeros, as far as is known without a look at bytes.
    Zeros,
    /// Data of this layer's image.
    Data(&'c Layer),
}

impl Layer {
    /// Whether both are the same file in the same format, and so have the same bytes at the same offsets.
    pub(super) fn is_the_image_of(&self, other: &Self) -> bool {
        let identity = self.image.storage.identity();
        let same =
            identity.is_some() && identity == other.image.storage.identity() && self.format == other.format;
        match (&self.image.nested, &other.image.nested) {
            (None, None) => same,
            (Some(one), Some(other)) => same && one.has_the_files_of(other),
            _ => false,
        }
    }
}

impl Chain {
    /// Of these images, the nearest first.
    pub(super) fn of(layers: Vec<Layer>) -> Self {
        Self {
            layers,
            ..Self::default()
        }
    }

    /// Of none, be it that there is none, or that it is `unopened`.
    pub(in crate::disk) fn without_images(unopened: bool) -> Self {
        Self {
            unopened,
            ..Self::default()
        }
    }

    /// Where the first bytes of `range` are, for which no layer above has bits.
    pub(super) fn find(&self, range: ByteRange) -> Result<Run> {
        self.find_to(range, usize::MAX)
    }

    /// The same, with no look at more than so many layers.
    pub(super) fn find_to(&self, range: ByteRange, limit: usize) -> Result<Run> {
        self.find_in(range, 0, limit)
    }

    /// The same, from the layer with the index `first` on.
    pub(super) fn find_from(&self, range: ByteRange, first: usize) -> Result<Run> {
        self.find_in(range, first, usize::MAX)
    }

    fn find_in(&self, range: ByteRange, first: usize, limit: usize) -> Result<Run> {
        let (at, mut end) = (range.start(), range.end());
        for (index, layer) in self.layers.iter().enumerate().skip(first) {
            if index == limit {
                return Ok(run(Source::Unopened, at, end));
            }
            if at >= layer.length {
                return Ok(run(Source::Zeros { depth: index }, at, end));
            }
            end = end.min(layer.length);
            let (has, stop) = layer.run(at, end)?;
            end = stop;
            if has {
                return Ok(run(Source::Layer(index), at, end));
            }
        }
        if self.unopened {
            return Ok(run(Source::Unopened, at, end));
        }
        let depth = self.layers.len();
        Ok(run(Source::Zeros { depth }, at, end))
    }

    /// What the first bytes of `range` are, for which no layer above has bits, and where that ends.
    pub(super) fn shown(&self, range: ByteRange) -> Result<(Shown<'_>, u64)> {
        let run = self.find(range)?;
        let end = run.range.end();
        match run.source {
            Source::Layer(index) => {
                let layer = &self.layers[index];
                let status = status_in(&layer.image, run.range, index + 1, StatusHints::default())?;
                let shown = if status.flags.contains(StatusFlags::ZERO) {
                    Shown::Zeros
                } else {
                    Shown::Data(layer)
                };
                Ok((shown, end.min(run.range.start() + status.length)))
            }
            Source::Unopened => Err(unopened(run.range)),
            Source::Own | Source::Zeros { .. } => Ok((Shown::Zeros, end)),
        }
    }

    /// Makes what it shows durable, as far as it can be, whoever made it. Once, as nothing of it changes; a failure is for good.
    pub(in crate::disk) fn sync(&self) -> Result<()> {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        match *synced {
            Synced::Yes => return Ok(()),
            Synced::Failed => {
                return Err(Error::new(
                    ErrorCode::Failed,
                    "an earlier flush of an image below the disk failed, so what it shows may be lost",
                ));
            }
            Synced::Unknown => {}
        }
        let result = self.layers.iter().try_for_each(Layer::sync);
        *synced = if result.is_ok() {
            Synced::Yes
        } else {
            Synced::Failed
        };
        result
    }

    /// Fails where [`sync`](Self::sync) cannot make all of it durable.
    pub(in crate::disk) fn check_recovered(&self) -> Result<()> {
        self.layers.iter().try_for_each(Layer::check_recovered)
    }

    /// Whether all that was acknowledged to a process that was killed, and that had written to the nearest image, is there.
    pub(in crate::disk) fn kept_all(&self) -> bool {
        let nearest = self.layers.first();
        nearest.is_some_and(|layer| layer.kept && layer.image.kept_all())
    }

    /// The files that the nearest image consists of, and that vouch for it.
    pub(in crate::disk) fn caches(&self) -> Vec<Arc<dyn Storage>> {
        self.layers
            .first()
            .map_or_else(Vec::new, |layer| layer.image.caches())
    }

    /// Counts its images as files that are open.
    pub(in crate::disk) fn note(&self, files: &Files<'_>) {
        for layer in &self.layers {
            if layer.image.nested.is_some() {
                layer.image.note(files);
            } else {
                let what = layer.image.path.display().to_string();
                files.note(&what, &**layer.image.storage.shared(), false);
            }
        }
    }

    /// Takes the hold on every image, of those that are disks too.
    pub(in crate::disk) fn take_holds(&self) {
        for layer in &self.layers {
            for hold in &layer.holds {
                // Somebody may have come between; then he is refused nothing, and this disk goes on without the lock.
                let _ = hold.take();
            }
            if let Some(chain) = layer.image.nested.as_ref().and_then(|it| it.chain()) {
                chain.take_holds();
            }
        }
    }

    /// Where the bytes that a granule without a bit could show end: behind that it reads as zeros.
    pub(super) fn length(&self) -> u64 {
        self.length_from(0)
    }

    /// The same of what lies above the layer with the index `first`.
    pub(super) fn length_from(&self, first: usize) -> u64 {
        match self.layers.get(first) {
            Some(layer) => layer.length,
            None if self.unopened => u64::MAX,
            None => 0,
        }
    }
}

fn run(source: Source, start: u64, end: u64) -> Run {
    Run {
        source,
        range: ByteRange::between(start, end),
    }
}
