//! What can be done to a disk's bitmaps: as a list that takes effect at one point, or one thing at a time.
//!
//! Invariant: every change is a [`BitmapAction`] and goes through [`Disk::bitmap_transaction`], so that it has one set
//! of rules and one way to become durable.

use super::BitmapContent;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::units::Granularity;

/// One change, for [`Disk::bitmap_transaction`].
#[derive(Debug)]
#[non_exhaustive]
pub enum BitmapAction<'a> {
    /// A new bitmap, all clean.
    Add {
        /// A name that no bitmap has: 1 to 1023 bytes.
        name: &'a str,
        /// What it is to be.
        options: AddBitmap,
    },
    /// The bitmap goes, and with it its file.
    Remove {
        /// Which.
        name: &'a str,
    },
    /// All its granules are clean from now on.
    Clear {
        /// Which.
        name: &'a str,
    },
    /// Writes set its bits from now on.
    Enable {
        /// Which.
        name: &'a str,
    },
    /// Writes no longer set its bits.
    Disable {
        /// Which.
        name: &'a str,
    },
    /// It gets another name; its file keeps its own.
    Rename {
        /// Which.
        name: &'a str,
        /// A name that no bitmap has.
        to: &'a str,
    },
    /// It gets a file and outlives the open disk, or loses it.
    SetPersistent {
        /// Which.
        name: &'a str,
        /// Whether it is to have a file.
        persistent: bool,
    },
    /// Every granule that shares a byte with the range is dirty.
    Set {
        /// Which.
        name: &'a str,
        /// In bytes.
        offset: u64,
        /// In bytes.
        len: u64,
    },
    /// Every granule that lies wholly in the range is clean; the one at the disk's end may be shorter.
    Reset {
        /// Which.
        name: &'a str,
        /// In bytes.
        offset: u64,
        /// In bytes.
        len: u64,
    },
    /// Whatever is dirty in a source is dirty in the target, too.
    Merge {
        /// Into which.
        target: &'a str,
        /// From which.
        sources: Vec<MergeSource<'a>>,
    },
    /// It says what the content says: the end of taking in a serialized bitmap.
    Replace {
        /// Which.
        name: &'a str,
        /// Of the same granularity and disk length.
        content: &'a BitmapContent,
    },
    /// A backup gets its bits; a successor records what comes after.
    Freeze {
        /// Which.
        name: &'a str,
    },
    /// The backup is over.
    Thaw {
        /// Which.
        name: &'a str,
        /// How it went.
        outcome: Thaw,
    },
    /// Every granule of an inconsistent bitmap is dirty, and so it can be trusted again.
    Repair {
        /// Which.
        name: &'a str,
    },
}

/// What a merge takes bits from.
#[derive(Clone, Copy, Debug)]
pub enum MergeSource<'a> {
    /// A bitmap of the same disk.
    Bitmap(&'a str),
    /// A bitmap of another disk of the same length, as it is at the point at which the merge takes effect.
    Other {
        /// Which disk.
        disk: &'a Disk,
        /// Which of its bitmaps.
        name: &'a str,
    },
    /// Bits apart from any disk; see [`Disk::bitmap_content`].
    Content(&'a BitmapContent),
}

/// How the backup went that a frozen bitmap was for. The numbers are part of the C ABI; none is zero, so that what was
/// never set drops no bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Thaw {
    /// It has what it needs: the frozen bits go, and what was written since it began stays.
    Commit = 1,
    /// It failed: the bitmap has the frozen bits and what was written since.
    Rollback = 2,
}

/// What a new bitmap is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddBitmap {
    /// The bytes that one bit stands for.
    pub granularity: Granularity,
    /// Whether it gets a file. On a disk that is open read-only it gets none in any case.
    pub persistent: bool,
    /// Whether writes set its bits.
    pub recording: bool,
}

impl Default for AddBitmap {
    /// 64 KiB, persistent, recording.
    fn default() -> Self {
        Self {
            granularity: Granularity::DEFAULT,
            persistent: true,
            recording: true,
        }
    }
}

impl BitmapAction<'_> {
    /// Whether it makes a point from which a bitmap knows what changed. What was written before must be durable by
    /// then: a backup that read it dropped its bit, and would be wrong once a power cut takes the data back.
    pub(super) fn starts(&self) -> bool {
        match self {
            Self::Add { .. }
            | Self::Clear { .. }
            | Self::Enable { .. }
            | Self::Reset { .. }
            | Self::Replace { .. }
            | Self::Freeze { .. } => true,
            Self::Thaw { outcome, .. } => *outcome == Thaw::Commit,
            Self::Remove { .. }
            | Self::Disable { .. }
            | Self::Rename { .. }
            | Self::SetPersistent { .. }
            | Self::Set { .. }
            | Self::Merge { .. }
            | Self::Repair { .. } => false,
        }
    }

    /// Whether a bitmap can have fewer bits by it than before.
    pub(super) fn takes_bits(&self) -> bool {
        match self {
            Self::Remove { .. }
            | Self::Clear { .. }
            | Self::SetPersistent { .. }
            | Self::Reset { .. }
            | Self::Replace { .. } => true,
            Self::Thaw { outcome, .. } => *outcome == Thaw::Commit,
            Self::Add { .. }
            | Self::Enable { .. }
            | Self::Disable { .. }
            | Self::Rename { .. }
            | Self::Set { .. }
            | Self::Merge { .. }
            | Self::Freeze { .. }
            | Self::Repair { .. } => false,
        }
    }

    /// What it takes bits from.
    pub(super) fn sources(&self) -> &[MergeSource<'_>] {
        match self {
            Self::Merge { sources, .. } => sources,
            _ => &[],
        }
    }

    /// Says what was being tried.
    pub(super) fn explain(&self, error: Error) -> Error {
        let (verb, name) = match self {
            Self::Add { name, .. } => ("add", name),
            Self::Remove { name } => ("remove", name),
            Self::Clear { name } => ("clear", name),
            Self::Enable { name } => ("enable", name),
            Self::Disable { name } => ("disable", name),
            Self::Rename { name, .. } => ("rename", name),
            Self::SetPersistent { name, .. } => ("change where to keep", name),
            Self::Set { name, .. } => ("set bits of", name),
            Self::Reset { name, .. } => ("reset bits of", name),
            Self::Merge { target, .. } => ("merge into", target),
            Self::Replace { name, .. } => ("replace", name),
            Self::Freeze { name } => ("freeze", name),
            Self::Thaw { name, .. } => ("thaw", name),
            Self::Repair { name } => ("repair", name),
        };
        error.context(format_args!("cannot {verb} bitmap {name:?}"))
    }
}

/// One change at a time. Each is durable on return, and an error leaves all as it was; see
/// [`Disk::bitmap_transaction`] for what they wait for and how they fail.
impl Disk {
    /// Adds a bitmap, all clean.
    pub fn bitmap_add(&self, name: &str, options: AddBitmap) -> Result<()> {
        self.bitmap_transaction(&[BitmapAction::Add { name, options }])
    }

    /// Removes a bitmap, and its file.
    pub fn bitmap_remove(&self, name: &str) -> Result<()> {
        self.bitmap_transaction(&[BitmapAction::Remove { name }])
    }

    /// Makes all granules clean.
    pub fn bitmap_clear(&self, name: &str) -> Result<()> {
        self.bitmap_transaction(&[BitmapAction::Clear { name }])
    }

    /// Lets writes set its bits. Does nothing to a bitmap that records already.
    pub fn bitmap_enable(&self, name: &str) -> Result<()> {
        self.bitmap_transaction(&[BitmapAction::Enable { name }])
    }

    /// Lets writes no longer set its bits.
    pub fn bitmap_disable(&self, name: &str) -> Result<()> {
        self.bitmap_transaction(&[BitmapAction::Disable { name }])
    }

    /// Gives it another name.
    pub fn bitmap_rename(&self, name: &str, to: &str) -> Result<()> {
        self.bitmap_transaction(&[BitmapAction::Rename { name, to }])
    }

    /// Gives it a file, or takes it away.
    pub fn bitmap_set_persistent(&self, name: &str, persistent: bool) -> Result<()> {
        self.bitmap_transaction(&[BitmapAction::SetPersistent { name, persistent }])
    }

    /// Makes every granule dirty that shares a byte with `len` bytes at `offset`.
    pub fn bitmap_set(&self, name: &str, offset: u64, len: u64) -> Result<()> {
        self.bitmap_transaction(&[BitmapAction::Set { name, offset, len }])
    }

    /// Makes every granule clean that lies wholly in `len` bytes at `offset`.
    pub fn bitmap_reset(&self, name: &str, offset: u64, len: u64) -> Result<()> {
        self.bitmap_transaction(&[BitmapAction::Reset { name, offset, len }])
    }

    /// Makes everything dirty in `target` that is dirty in one of `sources`.
    pub fn bitmap_merge(&self, target: &str, sources: &[MergeSource<'_>]) -> Result<()> {
        let sources = sources.to_vec();
        self.bitmap_transaction(&[BitmapAction::Merge { target, sources }])
    }

    /// Puts `content` in the place of its bits.
    pub fn bitmap_replace(&self, name: &str, content: &BitmapContent) -> Result<()> {
        self.bitmap_transaction(&[BitmapAction::Replace { name, content }])
    }

    /// Hands its bits to a backup; a successor records from now on.
    pub fn bitmap_freeze(&self, name: &str) -> Result<()> {
        self.bitmap_transaction(&[BitmapAction::Freeze { name }])
    }

    /// Ends a freeze.
    pub fn bitmap_thaw(&self, name: &str, outcome: Thaw) -> Result<()> {
        self.bitmap_transaction(&[BitmapAction::Thaw { name, outcome }])
    }

    /// Makes an inconsistent bitmap trustworthy by making every granule dirty.
    pub fn bitmap_repair(&self, name: &str) -> Result<()> {
        self.bitmap_transaction(&[BitmapAction::Repair { name }])
    }
}
