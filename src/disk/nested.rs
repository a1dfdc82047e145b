//! An image that is a disk itself: what is written to it is recorded there, too, and what it shows may come from wherever it
//! takes it.
//!
//! A disk's own image is an open [`Disk`], one below it a [`Below`]. Invariant: nobody else has the inner disk; it has begun
//! before the outer one tells of a change, and has ended before the outer one is said to be clean.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::info::Listed;
use super::open::Files;
use super::overlay::{Below, Chain};
use super::session::Session;
use super::status::{BlockStatus, StatusHints};
use super::{Child, Disk, StatusFlags, TruncateFlags, WriteFlags};
use crate::error::Result;
use crate::format::FormatImage;
use crate::state::{Evidence, Lock, NoEvidence, Tenure};
use crate::storage::{
    Access, Extent, FileIdentity, Gather, Limits, Role, Scatter, Storage, SyncMode, Version, VersionHash,
    Zeroing,
};
use crate::sync::PoisonError;
use crate::units::ByteRange;

/// A disk that is an image.
#[derive(Debug)]
pub(super) enum Nested {
    /// Of a disk that is open.
    Disk(Box<Disk>),
    /// Of an image below one.
    Chain(Below),
}

impl Child {
    /// An image that is a disk itself, whose descriptor messages call `path`.
    pub(super) fn nested(inner: Nested, path: PathBuf) -> Self {
        let inner = Arc::new(inner);
        Self {
            nested: Some(Arc::clone(&inner)),
            ..Self::new(inner, path)
        }
    }

    /// The same disk where it is open by itself.
    pub(super) fn disk(&self) -> Option<&Disk> {
        match self.nested.as_deref() {
            Some(Nested::Disk(disk)) => Some(disk),
            _ => None,
        }
    }

    /// The image of a format of its own that has its bytes at last, however many disks are between.
    pub(super) fn tables(&self) -> Option<&Arc<dyn FormatImage>> {
        match self.nested.as_deref() {
            None => self.mapped.as_ref(),
            Some(Nested::Disk(disk)) => disk.image().tables(),
            Some(Nested::Chain(below)) => below.chain.layers.first()?.image.tables(),
        }
    }

    /// Before the first change above it, which has noted this tenure for it.
    pub(super) fn begin(&self, tenure: Option<Tenure>) -> Result<()> {
        match self.disk() {
            Some(disk) if !disk.has_begun() => disk.begin_changes(true, tenure),
            _ => Ok(()),
        }
    }

    /// Before the disk above it is said to be clean.
    pub(super) fn end(&self) -> Result<()> {
        self.disk().map_or(Ok(()), Disk::end)
    }

    /// Whether what is written to it is there after its process was killed, for as long as the page cache of
    /// [its files](Self::caches) lives.
    pub(super) fn outlives_kill(&self) -> bool {
        match self.nested.as_deref() {
            // What was written to new clusters of a qcow2 is gone with its tables.
            None => self.mapped.is_none(),
            Some(Nested::Disk(disk)) => disk.outlives_kill(),
            Some(Nested::Chain(_)) => false,
        }
    }

    /// Whether all that was acknowledged to a process that was killed is there, as far as the image itself can tell.
    pub(super) fn kept_all(&self) -> bool {
        match self.nested.as_deref() {
            None => self.mapped.is_none(),
            Some(Nested::Disk(disk)) => disk.found.kept && disk.image().kept_all(),
            Some(Nested::Chain(below)) => below.chain.kept_all(),
        }
    }

    /// The files that what is written to it goes to.
    pub(super) fn caches(&self) -> Vec<Arc<dyn Storage>> {
        match self.nested.as_deref() {
            None => vec![Arc::clone(self.storage.shared())],
            // The disk itself vouches for its bits.
            Some(Nested::Disk(disk)) => disk.image().caches(),
            Some(Nested::Chain(below)) => below.chain.caches(),
        }
    }

    /// What vouches for the page cache of its files, and for that of the state file.
    pub(super) fn evidence(&self, state: &dyn Storage) -> Result<Evidence, NoEvidence> {
        let files = self.caches();
        Evidence::gather(state, files.iter().map(|it| &**it))
    }

    /// Counts its files as ones that are open.
    pub(super) fn note(&self, files: &Files<'_>) {
        match self.nested.as_deref() {
            None => files.note("QBM.image.file", &**self.storage.shared(), false),
            Some(Nested::Disk(disk)) => disk.note(files),
            Some(Nested::Chain(below)) => below.chain.note(files),
        }
    }

    /// How many layers a disk has for what its image, or one below it, is made of.
    pub(super) fn parts(&self) -> u32 {
        match self.nested.as_deref() {
            None => 0,
            Some(Nested::Disk(disk)) => disk.count_layers(),
            Some(Nested::Chain(below)) => below.chain.count_layers(),
        }
    }

    /// These layers, the first of which is number `first`.
    pub(super) fn list_parts(&self, of: u32, first: u32, list: &mut Vec<Listed>) {
        let before = list.len();
        match self.nested.as_deref() {
            None => {}
            Some(Nested::Disk(disk)) => disk.list_layers(first, list),
            Some(Nested::Chain(below)) => below.chain.list_layers(first, list),
        }
        for (layer, _) in &mut list[before..] {
            layer.part_of.get_or_insert(of);
        }
    }
}

impl Nested {
    /// What the first bytes of `range` are, with the number of the layer among the disk's own.
    pub(super) fn status(&self, range: ByteRange, hints: StatusHints) -> Result<BlockStatus> {
        let hints = StatusHints {
            deepest: None,
            ..hints
        };
        match self {
            Self::Disk(disk) => disk.block_status_with(range.start(), range.len(), hints),
            Self::Chain(below) => below.chain.status(range, hints),
        }
    }

    /// Whether both are made of the same files.
    pub(super) fn has_the_files_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Chain(one), Self::Chain(other)) => one.chain.has_the_files_of(&other.chain),
            // One that may be written to is like no other.
            _ => false,
        }
    }

    /// Makes what it shows durable, as far as it can be, whoever made it.
    pub(super) fn sync_found(&self) -> Result<()> {
        match self {
            Self::Disk(disk) => disk.flush(),
            Self::Chain(below) => below.chain.sync(),
        }
    }

    /// The chain, of an image below a disk.
    pub(super) fn chain(&self) -> Option<&Chain> {
        match self {
            Self::Disk(_) => None,
            Self::Chain(below) => Some(&below.chain),
        }
    }
}

impl Storage for Nested {
    fn read(&self, into: Scatter<'_>, offset: u64) -> io::Result<()> {
        match self {
            Self::Disk(disk) => Ok(disk.read_scatter(into, offset)?),
            Self::Chain(below) => below.read(into, offset),
        }
    }

    fn write(&self, from: Gather<'_>, offset: u64) -> io::Result<()> {
        match self {
            Self::Disk(disk) => Ok(disk.write_gather(from, offset, WriteFlags::empty())?),
            Self::Chain(below) => below.write(from, offset),
        }
    }

    fn write_zeroes(&self, range: ByteRange, how: Zeroing) -> io::Result<()> {
        let disk = match self {
            Self::Disk(disk) => disk,
            Self::Chain(below) => return below.write_zeroes(range, how),
        };
        let mut flags = WriteFlags::empty();
        flags.set(WriteFlags::MAY_UNMAP, how.may_unmap);
        flags.set(WriteFlags::NO_FALLBACK, how.no_fallback);
        let range = within(range, disk.length());
        Ok(disk.write_zeroes(range.start(), range.len(), flags)?)
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        match self {
            Self::Disk(disk) => {
                let range = within(range, disk.length());
                Ok(disk.discard(range.start(), range.len(), WriteFlags::empty())?)
            }
            Self::Chain(below) => below.discard(range),
        }
    }

    fn sync(&self, mode: SyncMode) -> io::Result<()> {
        match self {
            Self::Disk(disk) => {
                disk.flush()?;
                if mode == SyncMode::All && disk.writable {
                    disk.image().storage.sync(mode)?;
                }
                Ok(())
            }
            Self::Chain(below) => below.sync(mode),
        }
    }

    fn length(&self) -> io::Result<u64> {
        match self {
            Self::Disk(disk) => Ok(disk.length()),
            Self::Chain(below) => below.length(),
        }
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        match self {
            Self::Disk(disk) => Ok(disk.truncate(length, TruncateFlags::SHRINK)?),
            Self::Chain(below) => below.set_length(length),
        }
    }

    fn allocate(&self, range: ByteRange) -> io::Result<()> {
        match self {
            Self::Disk(_) => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
            Self::Chain(below) => below.allocate(range),
        }
    }

    fn extent(&self, range: ByteRange) -> io::Result<Extent> {
        let whole = |data| Extent {
            data,
            len: range.len(),
        };
        let length = self.length()?;
        let there = within(range, length);
        if range.is_empty() || there.is_empty() {
            return Ok(whole(false));
        }
        let status = self.status(there, StatusHints::default())?;
        Ok(Extent {
            // What was not opened is an error to read, and no hole.
            data: !status.flags.contains(StatusFlags::ZERO),
            len: status.length,
        })
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        match self {
            Self::Disk(disk) => disk.image().storage.allocated_bytes(),
            Self::Chain(below) => below
                .chain
                .layers
                .first()
                .map_or(Ok(0), |it| it.image.storage.allocated_bytes()),
        }
    }

    fn limits(&self) -> Limits {
        match self {
            Self::Disk(disk) => disk.image().storage.limits(),
            Self::Chain(below) => below.limits(),
        }
    }

    /// That of the file which has what is written: the descriptor is another file after each change of it.
    fn identity(&self) -> Option<FileIdentity> {
        match self {
            Self::Disk(disk) => disk.image().storage.identity(),
            Self::Chain(below) => below.chain.layers.first()?.image.storage.identity(),
        }
    }

    fn version(&self) -> io::Result<Option<Version>> {
        match self {
            Self::Disk(disk) => disk.version().map(Some),
            Self::Chain(below) => {
                let tenure = below.chain.layers.first().and_then(|it| it.tenure);
                Ok(tenure.map(version_of))
            }
        }
    }
}

fn within(range: ByteRange, length: u64) -> ByteRange {
    let start = range.start().min(length);
    ByteRange::between(start, range.end().min(length).max(start))
}

fn version_of(tenure: Tenure) -> Version {
    Version::Tenure {
        now: tenure.number(),
        next: 0,
    }
}

impl Disk {
    /// Whether it has begun to be changed, as far as its header tells.
    pub(super) fn has_begun(&self) -> bool {
        self.alive.may_change()
    }

    /// Why its content is not what its last user left, if it is not, in words.
    pub(super) fn foreign(&self) -> Option<&str> {
        self.found.foreign.as_deref()
    }

    /// Whether what is acknowledged is there after a kill, for as long as the page cache lives.
    fn outlives_kill(&self) -> bool {
        let shadowed = !self.own.current().layered
            || self
                .session
                .as_ref()
                .and_then(Session::shadow)
                .is_some_and(|it| it.serves());
        shadowed && self.image().outlives_kill()
    }

    /// Gives its locks up, and those of an image that is a disk itself: it is read only from now on, and held as such.
    pub(super) fn give_up_locks(&self) {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.drain(..).for_each(Lock::release);
        if let Some(inner) = self.image().disk() {
            inner.give_up_locks();
        }
    }

    /// Counts its files as ones that are open.
    fn note(&self, files: &Files<'_>) {
        let descriptor = self
            .place
            .folder
            .open(Role::Descriptor, &self.place.name, Access::default());
        if let Ok(storage) = descriptor {
            files.note(&self.path.display().to_string(), &*storage, true);
        }
        self.image().note(files);
        let shape = self.gate.enter();
        for file in shape.bitmap_files() {
            files.note(&file.path().display().to_string(), file.storage(), false);
        }
        if let Some(overlay) = &shape.overlay {
            let bits = overlay.bits_file();
            files.note(&bits.path().display().to_string(), bits.storage(), false);
            overlay.chain().note(files);
        }
        if let Some(below) = &self.below {
            below.note(files);
        }
        if let Some(session) = &self.session {
            let state = session.file();
            files.note(&state.path().display().to_string(), state.storage(), false);
        }
    }

    /// What its bitmaps take in memory, and those of its image.
    pub(super) fn bitmap_memory(&self) -> u64 {
        self.gate.enter().memory(&self.loading)
    }

    /// What tells whoever has this disk as his image that it was changed without him.
    fn version(&self) -> io::Result<Version> {
        let tenure = match &self.session {
            Some(session) => session.tenure(),
            None => self.found.tenure,
        };
        if let Some(tenure) = tenure {
            return Ok(version_of(tenure));
        }
        // Without a state file: whatever is written to, or named otherwise, by a change.
        let mut hash = VersionHash::default();
        let descriptor = &self.structure().descriptor;
        hash.add(descriptor.image().file.as_bytes());
        if let Some((_, entry)) = descriptor.allocation() {
            hash.add(format!("{entry:?}").as_bytes());
        }
        let image = self.image();
        match image.storage.version()? {
            Some(Version::Tenure { now: it, .. } | Version::Files(it)) => hash.add(&it.to_le_bytes()),
            None => hash.add_time(&**image.storage.shared())?,
        }
        let shape = self.gate.enter();
        if let Some(overlay) = &shape.overlay {
            hash.add_time(overlay.bits_file().storage())?;
        }
        Ok(hash.version())
    }
}
