//! The bitmaps as a transaction would leave them: its actions are tried out here, one after the other, in memory.
//!
//! Invariant: nothing that the disk uses changes; bits that an action changes are copies.

use std::sync::{Arc, OnceLock};

use super::excuses::Lost;
use super::rules::wrong_state;
use super::{AddBitmap, Bitmap, BitmapAction, BitmapContent, Frozen, Loading, Start, Thaw, not_found};
use crate::bitmap::Bits;
use crate::descriptor::{Descriptor, MAX_BITMAPS};
use crate::error::{Error, ErrorCode, Result};
use crate::units::{ByteRange, Granularity, GranuleRange};

/// What a transaction has made of the bitmaps so far.
pub(super) struct Stage<'d> {
    pub(super) bitmaps: Vec<Staged>,
    /// What the descriptor will say, but for the entries of bitmaps, which follow when their files are made.
    pub(super) descriptor: Descriptor,
    /// The bitmap that only the end of a backup thaws.
    pub(super) lent: Option<Arc<str>>,
    pub(super) loading: &'d Loading,
    pub(super) length: u64,
    pub(super) writable: bool,
}

/// One bitmap, and what of it must get to the disk.
pub(super) struct Staged {
    pub(super) bitmap: Bitmap,
    pub(super) change: Change,
    /// It has lost its right to be told of writes, so what it has been told must be durable.
    pub(super) stopped: bool,
    /// It is to have a file and has none yet.
    pub(super) to_keep: bool,
}

/// What became of the bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    /// They are those that the file holds, or will hold as soon as they are saved.
    None,
    /// There are more of them.
    Added,
    /// There are others.
    Replaced,
}

/// What a merge takes bits from: a bitmap of this or another disk, or content apart from any.
pub(super) struct Source<'a> {
    bits: SourceBits<'a>,
    granularity: Granularity,
    /// Of the disk that they are about, in bytes.
    length: u64,
}

enum SourceBits<'a> {
    Shared(Arc<Bits>),
    Lent(&'a Bits),
}

impl Source<'_> {
    fn bits(&self) -> &Bits {
        match &self.bits {
            SourceBits::Shared(bits) => bits,
            SourceBits::Lent(bits) => bits,
        }
    }
}

impl<'a> From<&'a BitmapContent> for Source<'a> {
    fn from(content: &'a BitmapContent) -> Self {
        Self {
            bits: SourceBits::Lent(&content.bits),
            granularity: content.granularity,
            length: content.length,
        }
    }
}

impl Staged {
    pub(super) fn new(bitmap: Bitmap) -> Self {
        Self {
            bitmap,
            change: Change::None,
            stopped: false,
            to_keep: false,
        }
    }

    /// Whether it has a file, or will have one.
    pub(super) fn persistent(&self) -> bool {
        self.to_keep || self.bitmap.kept.is_some()
    }

    fn replace_bits(&mut self, bits: Bits, change: Change) {
        self.bitmap.replace_bits(bits);
        self.change = self.change.max(change);
    }
}

impl Stage<'_> {
    /// Tries `action` out; a merge takes bits from `sources`, which are the action's.
    pub(super) fn apply(&mut self, action: &BitmapAction<'_>, sources: &[Source<'_>]) -> Result<()> {
        match action {
            BitmapAction::Add { name, options } => self.add(name, *options),
            BitmapAction::Remove { name } => self.remove(name),
            BitmapAction::Clear { name } => self.clear(name),
            BitmapAction::Enable { name } => self.enable(name),
            BitmapAction::Disable { name } => self.disable(name),
            BitmapAction::Rename { name, to } => self.rename(name, to),
            BitmapAction::SetPersistent { name, persistent } => self.set_persistent(name, *persistent),
            BitmapAction::Set { name, offset, len } => self.set(name, *offset, *len),
            BitmapAction::Reset { name, offset, len } => self.reset(name, *offset, *len),
            BitmapAction::Merge { target, .. } => self.merge(target, sources),
            BitmapAction::Replace { name, content } => self.replace(name, content),
            BitmapAction::Freeze { name } => self.freeze(name),
            BitmapAction::Thaw { name, outcome } => self.thaw(name, *outcome),
            BitmapAction::Repair { name } => self.repair(name),
        }
    }

    fn add(&mut self, name: &str, options: AddBitmap) -> Result<()> {
        self.check_new_name(name)?;
        if self.bitmaps.len() >= MAX_BITMAPS {
            return Err(Error::new(
                ErrorCode::NotSupported,
                format!("a disk has {MAX_BITMAPS} bitmaps at most"),
            ));
        }
        let bits = self.blank(options.granularity)?;
        let mut staged = Staged::new(Bitmap {
            name: name.into(),
            granularity: options.granularity,
            recording: options.recording,
            inconsistent: false,
            lost: Lost::default(),
            kept: None,
            start: Start::now(self.length)?,
            widened_in: None,
            bits: Arc::new(OnceLock::from(Arc::new(bits))),
            frozen: None,
        });
        staged.to_keep = options.persistent && self.writable;
        self.bitmaps.push(staged);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        let index = self.find(name)?;
        let bitmap = &self.bitmaps[index].bitmap;
        bitmap.check_thawed("removed")?;
        bitmap.check_changeable(self.writable, "removed")?;
        self.forget(name)?;
        self.bitmaps.remove(index);
        Ok(())
    }

    fn clear(&mut self, name: &str) -> Result<()> {
        let index = self.changeable(name, "cleared")?;
        let bits = self.blank(self.bitmaps[index].bitmap.granularity)?;
        self.restart(index, bits)
    }

    fn enable(&mut self, name: &str) -> Result<()> {
        let index = self.changeable(name, "enabled")?;
        if self.bitmaps[index].bitmap.recording {
            return Ok(());
        }
        self.load(index)?;
        let start = Start::now(self.length)?;
        let staged = &mut self.bitmaps[index];
        staged.bitmap.recording = true;
        // Writes may have gone by unseen: whoever knows the old point must not go on from it (durability trap 11).
        staged.bitmap.start = start;
        staged.stopped = false;
        Ok(())
    }

    fn disable(&mut self, name: &str) -> Result<()> {
        let index = self.changeable(name, "disabled")?;
        let staged = &mut self.bitmaps[index];
        staged.stopped |= staged.bitmap.recording;
        staged.bitmap.recording = false;
        Ok(())
    }

    fn rename(&mut self, name: &str, to: &str) -> Result<()> {
        let index = self.changeable(name, "renamed")?;
        if name == to {
            return Ok(());
        }
        self.check_new_name(to)?;
        if self.descriptor.bitmap(name).is_some() {
            self.descriptor.rename_bitmap(name, to)?;
        }
        self.bitmaps[index].bitmap.name = to.into();
        Ok(())
    }

    fn set_persistent(&mut self, name: &str, persistent: bool) -> Result<()> {
        let done = if persistent {
            "made persistent"
        } else {
            "made transient"
        };
        let index = self.changeable(name, done)?;
        if persistent && !self.writable {
            return Err(Error::new(
                ErrorCode::ReadOnly,
                "the disk is open read-only: its bitmaps can only be transient",
            ));
        }
        if self.bitmaps[index].persistent() == persistent {
            return Ok(());
        }
        self.load(index)?;
        self.forget(name)?;
        let staged = &mut self.bitmaps[index];
        staged.to_keep = persistent;
        staged.bitmap.kept = None;
        Ok(())
    }

    fn set(&mut self, name: &str, offset: u64, len: u64) -> Result<()> {
        let index = self.changeable(name, "changed")?;
        let range = self.range(offset, len)?;
        let granules = self.bitmaps[index].bitmap.granularity.touched_by(range);
        let bits = self.copy(index)?;
        if bits.set(granules) > 0 {
            self.bitmaps[index].replace_bits(bits, Change::Added);
        }
        Ok(())
    }

    fn reset(&mut self, name: &str, offset: u64, len: u64) -> Result<()> {
        let index = self.changeable(name, "changed")?;
        let range = self.range(offset, len)?;
        let granules = self.bitmaps[index]
            .bitmap
            .granularity
            .covered_by(range, self.length);
        let mut bits = self.copy(index)?;
        if bits.clear(granules) > 0 {
            bits.tidy();
            self.restart(index, bits)?;
        }
        Ok(())
    }

    /// The bits of `name` as they are by now, to be merged into another bitmap.
    pub(super) fn source(&self, name: &str) -> Result<Source<'static>> {
        let index = self.find(name)?;
        let bitmap = &self.bitmaps[index].bitmap;
        bitmap.check_free("merged from")?;
        Ok(Source {
            bits: SourceBits::Shared(self.load(index)?),
            granularity: bitmap.granularity,
            length: self.length,
        })
    }

    fn merge(&mut self, target: &str, sources: &[Source<'_>]) -> Result<()> {
        let index = self.changeable(target, "merged into")?;
        let granularity = self.bitmaps[index].bitmap.granularity;
        let bits = self.copy(index)?;
        let mut newly = 0;
        for source in sources {
            self.check_same_length(source.length)?;
            newly += bits.merge_scaled(source.bits(), source.granularity, granularity, self.length);
        }
        if newly > 0 {
            self.bitmaps[index].replace_bits(bits, Change::Added);
        }
        Ok(())
    }

    fn replace(&mut self, name: &str, content: &BitmapContent) -> Result<()> {
        let index = self.changeable(name, "replaced")?;
        self.check_same_length(content.length)?;
        let granularity = self.bitmaps[index].bitmap.granularity;
        if content.granularity != granularity {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                format!(
                    "the content has a granularity of {} bytes, the bitmap one of {}",
                    content.granularity.bytes(),
                    granularity.bytes()
                ),
            ));
        }
        let bits = self.blank(granularity)?;
        bits.merge_from(&content.bits);
        self.restart(index, bits)
    }

    fn freeze(&mut self, name: &str) -> Result<()> {
        let index = self.changeable(name, "frozen")?;
        self.load(index)?;
        let frozen = Frozen {
            successor: Arc::new(self.blank(self.bitmaps[index].bitmap.granularity)?),
            start: Start::now(self.length)?,
        };
        self.bitmaps[index].bitmap.frozen = Some(frozen);
        Ok(())
    }

    fn thaw(&mut self, name: &str, outcome: Thaw) -> Result<()> {
        let index = self.find(name)?;
        let bitmap = &self.bitmaps[index].bitmap;
        if self.lent.as_deref() == Some(name) {
            return Err(bitmap.is_lent());
        }
        let Some(frozen) = bitmap.frozen.clone() else {
            return Err(wrong_state(bitmap, "is not frozen"));
        };
        match outcome {
            Thaw::Commit => {
                // The successor lacks what could not be recorded: only the way back to the old point is left.
                bitmap.check_consistent("thawed as a success (roll it back)")?;
                let staged = &mut self.bitmaps[index];
                staged.bitmap.bits = Arc::new(OnceLock::from(frozen.successor));
                staged.bitmap.start = frozen.start;
                staged.change = Change::Replaced;
            }
            // What it has in memory means nothing any more, and may be of another length.
            Thaw::Rollback if bitmap.is_inconsistent() => self.bitmaps[index].bitmap.bits = Arc::default(),
            Thaw::Rollback => {
                // The file holds the union already, or will when the pieces kept back are saved.
                let bits = self.copy(index)?;
                bits.merge_from(&frozen.successor);
                self.bitmaps[index].bitmap.replace_bits(bits);
            }
        }
        self.bitmaps[index].bitmap.frozen = None;
        Ok(())
    }

    fn repair(&mut self, name: &str) -> Result<()> {
        let index = self.find(name)?;
        let bitmap = &self.bitmaps[index].bitmap;
        if !bitmap.is_inconsistent() {
            return Err(wrong_state(
                bitmap,
                "is not inconsistent: there is nothing to repair",
            ));
        }
        bitmap.check_thawed("repaired")?;
        bitmap.check_changeable(self.writable, "repaired")?;
        let bits = self.blank(bitmap.granularity)?;
        bits.set(bits.all());
        let bitmap = &mut self.bitmaps[index].bitmap;
        bitmap.inconsistent = false;
        bitmap.lost = Lost::default();
        // Another starting point, and so another id: what the state file says of the old one means nothing from the
        // moment on that the descriptor has it.
        self.restart(index, bits)
    }

    /// Gives a bitmap other bits as of a new starting point.
    fn restart(&mut self, index: usize, bits: Bits) -> Result<()> {
        let start = Start::now(self.length)?;
        let staged = &mut self.bitmaps[index];
        staged.bitmap.start = start;
        staged.replace_bits(bits, Change::Replaced);
        Ok(())
    }

    fn find(&self, name: &str) -> Result<usize> {
        self.bitmaps
            .iter()
            .position(|staged| &*staged.bitmap.name == name)
            .ok_or_else(|| not_found(name))
    }

    /// The bitmap `name`, none of whose flags forbids that it be `done`.
    fn changeable(&self, name: &str, done: &str) -> Result<usize> {
        let index = self.find(name)?;
        let bitmap = &self.bitmaps[index].bitmap;
        bitmap.check_free(done)?;
        // Merging from one is not a change of it, but a freeze is: its end will be.
        bitmap.check_changeable(self.writable, done)?;
        Ok(index)
    }

    fn check_new_name(&self, name: &str) -> Result<()> {
        if let Some(reason) = Descriptor::refusal_of_bitmap_name(name) {
            return Err(Error::new(ErrorCode::InvalidArgument, reason));
        }
        let is_allocation = self
            .descriptor
            .allocation()
            .is_some_and(|(allocation, _)| allocation == name);
        if is_allocation || self.find(name).is_ok() {
            return Err(Error::new(
                ErrorCode::BitmapExists,
                format!("there is a bitmap {name:?} already"),
            ));
        }
        Ok(())
    }

    fn check_same_length(&self, length: u64) -> Result<()> {
        if length == self.length {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::InvalidArgument,
            format!(
                "the content is that of a disk of {length} bytes, and this one is {} bytes long",
                self.length
            ),
        ))
    }

    /// Takes a bitmap's entry out of the descriptor.
    fn forget(&mut self, name: &str) -> Result<()> {
        if self.descriptor.bitmap(name).is_some() {
            self.descriptor.remove_bitmap(name)?;
        }
        Ok(())
    }

    fn range(&self, offset: u64, len: u64) -> Result<ByteRange> {
        match ByteRange::new(offset, len) {
            Some(range) if range.end() <= self.length => Ok(range),
            _ => Err(Error::new(
                ErrorCode::OutOfRange,
                format!(
                    "{len} bytes at offset {offset} do not lie within the disk, which is {} bytes long",
                    self.length
                ),
            )),
        }
    }

    fn load(&self, index: usize) -> Result<Arc<Bits>> {
        let bitmap = &self.bitmaps[index].bitmap;
        self.loading.bits(bitmap, &self.all(), self.length).cloned()
    }

    /// The bits of a bitmap, to be changed.
    fn copy(&self, index: usize) -> Result<Bits> {
        let old = self.load(index)?;
        let bits = self.blank(self.bitmaps[index].bitmap.granularity)?;
        bits.merge_from(&old);
        Ok(bits)
    }

    fn blank(&self, granularity: Granularity) -> Result<Bits> {
        let granules = GranuleRange::new(0, granularity.granules_in(self.length)).len();
        Bits::new(granules)
    }

    /// The bitmaps as they would be.
    pub(super) fn all(&self) -> Vec<Bitmap> {
        self.bitmaps.iter().map(|staged| staged.bitmap.clone()).collect()
    }

    /// Fails where the bitmaps, as they would be, take too much memory.
    pub(super) fn check_memory(&self) -> Result<()> {
        self.loading.check_all(&self.all())
    }
}
