//! The log of a simulated disk: every call, what was asked and how it ended.
//!
//! Invariant: an event holds all that it takes to do the call again on the state before it.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::fault::Kept;
use crate::storage::{Role, SyncMode, Zeroing};
use crate::units::ByteRange;

/// An open file, as the log names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFile {
    /// Its number; stays when its name changes.
    pub inode: u64,
    /// What it was opened as.
    pub role: Role,
    /// The name that it was opened under.
    pub name: Arc<Path>,
    /// Whether it was opened for writing.
    pub writable: bool,
}

/// One call of the traits [`Folder`](crate::storage::Folder) and [`Storage`](crate::storage::Storage).
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "each variant is the trait function of that name with its arguments"
)]
pub enum Call {
    Open {
        role: Role,
        name: Arc<Path>,
        write: bool,
    },
    Create {
        role: Role,
        name: Arc<Path>,
    },
    CopyAttributes {
        from: Arc<Path>,
        to: Arc<Path>,
    },
    Rename {
        from: Arc<Path>,
        to: Arc<Path>,
    },
    Remove {
        name: Arc<Path>,
    },
    SyncFolder,
    SyncName,
    CheckWritable,
    Read {
        file: Arc<OpenFile>,
        range: ByteRange,
    },
    Write {
        file: Arc<OpenFile>,
        offset: u64,
        bytes: Arc<[u8]>,
    },
    WriteZeroes {
        file: Arc<OpenFile>,
        range: ByteRange,
        how: Zeroing,
    },
    Discard {
        file: Arc<OpenFile>,
        range: ByteRange,
    },
    Sync {
        file: Arc<OpenFile>,
        mode: SyncMode,
    },
    Length {
        file: Arc<OpenFile>,
    },
    SetLength {
        file: Arc<OpenFile>,
        length: u64,
    },
    Allocate {
        file: Arc<OpenFile>,
        range: ByteRange,
    },
    Extent {
        file: Arc<OpenFile>,
        range: ByteRange,
    },
    AllocatedBytes {
        file: Arc<OpenFile>,
    },
    /// The test's own hand: [`SimDisk::put`](super::SimDisk::put). Never fails.
    Put {
        name: Arc<Path>,
        bytes: Arc<[u8]>,
    },
}

/// A [`Call`] without its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "see `Call`")]
pub enum CallKind {
    Open,
    Create,
    CopyAttributes,
    Rename,
    Remove,
    SyncFolder,
    SyncName,
    CheckWritable,
    Read,
    Write,
    WriteZeroes,
    Discard,
    Sync,
    Length,
    SetLength,
    Allocate,
    Extent,
    AllocatedBytes,
    Put,
}

impl Call {
    /// Which call it is.
    pub fn kind(&self) -> CallKind {
        match self {
            Self::Open { .. } => CallKind::Open,
            Self::Create { .. } => CallKind::Create,
            Self::CopyAttributes { .. } => CallKind::CopyAttributes,
            Self::Rename { .. } => CallKind::Rename,
            Self::Remove { .. } => CallKind::Remove,
            Self::SyncFolder => CallKind::SyncFolder,
            Self::SyncName => CallKind::SyncName,
            Self::CheckWritable => CallKind::CheckWritable,
            Self::Read { .. } => CallKind::Read,
            Self::Write { .. } => CallKind::Write,
            Self::WriteZeroes { .. } => CallKind::WriteZeroes,
            Self::Discard { .. } => CallKind::Discard,
            Self::Sync { .. } => CallKind::Sync,
            Self::Length { .. } => CallKind::Length,
            Self::SetLength { .. } => CallKind::SetLength,
            Self::Allocate { .. } => CallKind::Allocate,
            Self::Extent { .. } => CallKind::Extent,
            Self::AllocatedBytes { .. } => CallKind::AllocatedBytes,
            Self::Put { .. } => CallKind::Put,
        }
    }

    /// Whether a success changes content, a length, a name, or what is durable.
    pub fn changes(&self) -> bool {
        !matches!(
            self.kind(),
            CallKind::Open
                | CallKind::CopyAttributes
                | CallKind::CheckWritable
                | CallKind::Read
                | CallKind::Length
                | CallKind::Extent
                | CallKind::AllocatedBytes
        )
    }

    /// The open file that it is a call on.
    pub fn file(&self) -> Option<&OpenFile> {
        match self {
            Self::Open { .. }
            | Self::Create { .. }
            | Self::CopyAttributes { .. }
            | Self::Rename { .. }
            | Self::Remove { .. }
            | Self::SyncFolder
            | Self::SyncName
            | Self::CheckWritable
            | Self::Put { .. } => None,
            Self::Read { file, .. }
            | Self::Write { file, .. }
            | Self::WriteZeroes { file, .. }
            | Self::Discard { file, .. }
            | Self::Sync { file, .. }
            | Self::Length { file }
            | Self::SetLength { file, .. }
            | Self::Allocate { file, .. }
            | Self::Extent { file, .. }
            | Self::AllocatedBytes { file } => Some(file),
        }
    }

    /// The names that it is a call on: a file's when it was opened, or one, or both of a rename.
    pub fn names(&self) -> impl Iterator<Item = &Path> {
        let (one, other) = match self {
            Self::Open { name, .. }
            | Self::Create { name, .. }
            | Self::Remove { name }
            | Self::Put { name, .. } => (Some(&**name), None),
            Self::CopyAttributes { from, to } | Self::Rename { from, to } => (Some(&**from), Some(&**to)),
            _ => (self.file().map(|file| &*file.name), None),
        };
        one.into_iter().chain(other)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::SyncFolder | Self::SyncName | Self::CheckWritable = self {
            return write!(f, "{:?}", self.kind());
        }
        write!(f, "{:?}", self.kind())?;
        for (i, name) in self.names().enumerate() {
            write!(f, "{} {}", if i == 0 { "" } else { " to" }, name.display())?;
        }
        match self {
            Self::Write { offset, bytes, .. } => write!(f, ", {} bytes at offset {offset}", bytes.len()),
            Self::Read { range, .. }
            | Self::WriteZeroes { range, .. }
            | Self::Discard { range, .. }
            | Self::Allocate { range, .. }
            | Self::Extent { range, .. } => write!(f, ", {range}"),
            Self::SetLength { length, .. } => write!(f, ", {length} bytes"),
            Self::Put { bytes, .. } => write!(f, ", {} bytes", bytes.len()),
            _ => Ok(()),
        }
    }
}

/// Why a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// With this errno.
    Errno(i32),
    /// It read past the end of the file.
    PastEnd,
    /// A sync that wrote all there was to write, where another's had lost bytes since this file was opened: each open file is
    /// told once.
    LostBefore,
    /// A sync of a device that could not flush its own cache. What was in it is lost, and nobody else is told.
    CacheLost,
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Errno(errno) => Self::from_raw_os_error(errno),
            Failure::PastEnd => io::ErrorKind::UnexpectedEof.into(),
            Failure::LostBefore | Failure::CacheLost => Self::from_raw_os_error(libc::EIO),
        }
    }
}

/// One call that has ended, in the order in which calls took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Counts from 1.
    pub number: u64,
    /// What was asked.
    pub call: Call,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
    /// What took effect: all of it if the call succeeded.
    pub kept: Kept,
    /// The last event when the call began, on the state's own clock: a sync vouches for what came up to it, and for
    /// nothing that slipped in while it ran.
    pub(super) begun: u64,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:4} {}", self.number, self.call)?;
        match self.failure {
            None => Ok(()),
            Some(failure) => write!(f, ": {} (kept: {:?})", io::Error::from(failure), self.kept),
        }
    }
}
