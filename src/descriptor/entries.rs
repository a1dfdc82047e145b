//! What a descriptor says, as types, and how each is written into its object without touching unknown keys.

use std::fmt;
use std::str::FromStr;

use super::json::text;
use crate::error::{Error, ErrorCode, Result};
use crate::units::Granularity;

/// The data image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageEntry {
    /// Its file, as the descriptor names it; see [`child_path`](super::names::child_path).
    pub file: String,
    /// What the file is. It is never probed.
    pub format: Format,
    /// What the content must hash to, where somebody noted it.
    pub checksum: Option<Checksum>,
}

/// What a child image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// The bytes of the disk.
    Raw,
    /// Another QBM descriptor.
    Qbm,
    /// QEMU's qcow2.
    Qcow2,
    /// `VMware`'s vmdk.
    Vmdk,
}

impl Format {
    /// The word for it in a descriptor.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qbm => "qbm",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Format {
    type Err = Error;

    /// Any word but the four is [`ErrorCode::NotSupported`].
    fn from_str(word: &str) -> Result<Self> {
        [Self::Raw, Self::Qbm, Self::Qcow2, Self::Vmdk]
            .into_iter()
            .find(|format| format.word() == word)
            .ok_or_else(|| {
                Error::new(
                    ErrorCode::NotSupported,
                    "is an unknown format; known are raw, qbm, qcow2 and vmdk",
                )
            })
    }
}

/// A SHA-256 of an image's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum(pub [u8; 32]);

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Checksum {
    type Err = Error;

    /// Another algorithm is [`ErrorCode::NotSupported`], a malformed sum [`ErrorCode::InvalidArgument`].
    fn from_str(word: &str) -> Result<Self> {
        let Some(digits) = word.strip_prefix("sha256:") else {
            return Err(Error::new(
                ErrorCode::NotSupported,
                "is no checksum that is known; it begins with \"sha256:\"",
            ));
        };
        let mut sum = [0; 32];
        let well_formed = digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let parsed = sum.iter_mut().enumerate().try_for_each(|(index, byte)| {
            let pair = digits.get(index * 2..index * 2 + 2)?;
            *byte = u8::from_str_radix(pair, 16).ok()?;
            Some(())
        });
        match parsed {
            Some(()) if well_formed => Ok(Self(sum)),
            _ => Err(Error::new(
                ErrorCode::InvalidArgument,
                "is no SHA-256: \"sha256:\" and 64 hexadecimal digits",
            )),
        }
    }
}

/// A persistent bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapEntry {
    /// Its file, as the descriptor names it; see [`child_path`](super::names::child_path).
    pub file: String,
    /// What its bits mean.
    pub kind: BitmapKind,
    /// The bytes that one bit stands for.
    pub granularity: Granularity,
    /// Whether writes set its bits; absent means that they do, as in the driver that the format comes from.
    pub recording: Option<bool>,
    /// The random id of its starting point.
    pub epoch: Option<String>,
    /// The disk's length at its starting point, in bytes.
    pub start_length: Option<u64>,
}

/// What a bitmap's bits mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BitmapKind {
    /// Which granules were written since the starting point.
    Dirty,
    /// Which granules are in the image; the others are in the backing, or zeros where there is none.
    Allocation {
        /// What is read where a bit is clear.
        backing: Option<BackingEntry>,
    },
}

impl BitmapKind {
    /// The word for it in a descriptor.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Dirty => "dirty",
            Self::Allocation { .. } => "allocation",
        }
    }

    /// Whether this is an allocation bitmap. A disk has one at most.
    pub const fn is_allocation(&self) -> bool {
        matches!(self, Self::Allocation { .. })
    }
}

/// A backing image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingEntry {
    /// Its file, as the descriptor names it; see [`child_path`](super::names::child_path).
    pub file: String,
    /// What the file is. It is never probed.
    pub format: Format,
}

/// The state file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateEntry {
    /// Its file, as the descriptor names it; see [`child_path`](super::names::child_path).
    pub file: String,
    /// The bytes that one bit of the intent map stands for.
    pub region_bytes: Option<u64>,
}

impl ImageEntry {
    /// Writes it into `object`, whose unknown keys stay.
    pub(super) fn write_to(&self, object: &mut String) {
        let checksum = self.checksum.map(|sum| text::quote(&sum.to_string()));
        text::set(object, "file", &text::quote(&self.file));
        text::set(object, "format", &text::quote(self.format.word()));
        text::set_or_remove(object, "checksum", checksum.as_deref());
    }
}

impl BitmapEntry {
    /// Writes it into `object`, which said `before` until now, and whose unknown keys stay.
    pub(super) fn write_to(&self, object: &mut String, before: Option<&BitmapKind>) {
        text::set(object, "file", &text::quote(&self.file));
        text::set(object, "type", &text::quote(self.kind.word()));
        text::set(object, "granularity-bytes", &self.granularity.bytes().to_string());
        match &self.kind {
            BitmapKind::Allocation {
                backing: Some(backing),
            } => text::edit(object, "backing", |inner| {
                text::set(inner, "file", &text::quote(&backing.file));
                text::set(inner, "format", &text::quote(backing.format.word()));
            }),
            BitmapKind::Allocation { backing: None } => text::remove(object, "backing"),
            // In a dirty bitmap `backing` is an unknown key, which stays; unless it was ours.
            BitmapKind::Dirty if before.is_some_and(BitmapKind::is_allocation) => {
                text::remove(object, "backing");
            }
            BitmapKind::Dirty => {}
        }
        let recording = self.recording.map(|recording| recording.to_string());
        let epoch = self.epoch.as_deref().map(text::quote);
        let start_length = self.start_length.map(|length| length.to_string());
        text::set_or_remove(object, "recording", recording.as_deref());
        text::set_or_remove(object, "epoch", epoch.as_deref());
        text::set_or_remove(object, "start-length", start_length.as_deref());
    }
}

impl StateEntry {
    /// Writes it into `object`, whose unknown keys stay.
    pub(super) fn write_to(&self, object: &mut String) {
        let region_bytes = self.region_bytes.map(|bytes| bytes.to_string());
        text::set(object, "file", &text::quote(&self.file));
        text::set_or_remove(object, "region-bytes", region_bytes.as_deref());
    }
}
