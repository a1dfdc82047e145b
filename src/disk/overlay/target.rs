//! The image that a commit writes to.
//!
//! Invariant: it is the very file that the disk has open as a layer, whatever has happened to its name since; and nothing of
//! it is changed before that is known.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Chain;
use super::below::Below;
use super::chain::{Has, Layer};
use super::formats::OwnImage;
use super::hold::Hold;
use crate::descriptor::names::child_path;
use crate::descriptor::{BackingEntry, Format, ImageEntry};
use crate::disk::open::{Files, OpenOptions, Place};
use crate::disk::{Child, Disk, TruncateFlags, WriteFlags};
use crate::error::{Error, ErrorCode, Result};
use crate::format::qcow2;
use crate::mutation::{self, Fault};
use crate::state::{Lock, Sharing};
use crate::storage::{Access, FileIdentity, Role, Storage, SyncMode, Zeroing, start_writeback, write_slice};
use crate::units::ByteRange;

/// It, open for writing.
pub(super) struct Target {
    kind: Kind,
    _locks: Locks,
    /// A flush of it has failed: none that comes later proves anything (A2).
    unsure: AtomicBool,
}

enum Kind {
    Raw(Child),
    Qcow2(Child),
    Qbm(Box<Disk>),
}

impl Kind {
    fn image(&self) -> &Child {
        match self {
            Self::Raw(image) | Self::Qcow2(image) => image,
            Self::Qbm(disk) => disk.image(),
        }
    }
}

/// What keeps others away. Given up when dropped, and not only when the files are closed: a child that another thread is
/// just starting has a copy of each for a moment, and would keep the disk itself from reading the image again.
#[derive(Default)]
struct Locks(Vec<Lock>);

impl Locks {
    fn take(&mut self, place: &Place, file: &Arc<dyn Storage>, shown: &Path) -> Result<()> {
        if place.locking {
            self.0.extend(Lock::image(file, shown, Sharing::Write)?);
        }
        Ok(())
    }
}

impl Drop for Locks {
    fn drop(&mut self) {
        self.0.drain(..).for_each(Lock::release);
    }
}

/// For writing through the page cache.
const WRITING: Access = Access {
    write: true,
    direct: false,
};

impl Target {
    /// Opens the layer of `chain` with the index `index`, which `backing` names, for a commit of `disk`.
    pub(super) fn open(
        disk: &Disk,
        backing: &BackingEntry,
        chain: &Arc<Chain>,
        (index, layer): (usize, &Layer),
    ) -> Result<Self> {
        let path = child_path(&backing.file).map_err(|e| e.context(format_args!("{:?}", backing.file)))?;
        let mut locks = Locks::default();
        let kind = match backing.format {
            Format::Raw => Kind::Raw(Self::open_raw(&disk.place, path, layer, &mut locks)?),
            Format::Qcow2 => {
                let below = matches!(layer.has, Has::Tables).then(|| Below::from(chain, index + 1));
                Kind::Qcow2(Self::open_qcow2(disk, backing, (layer, below), &mut locks)?)
            }
            Format::Qbm => Self::open_disk(&disk.place, path)?,
            Format::Vmdk => {
                return Err(Error::new(
                    ErrorCode::NotSupported,
                    format!(
                        "{} is a vmdk, which can only be read; \"qbm rebase\" puts the overlay on another image, and \"qbm \
                         convert\" makes one of all that it shows",
                        layer.image.path.display()
                    ),
                ));
            }
        };
        let target = Self {
            kind,
            _locks: locks,
            unsure: AtomicBool::new(false),
        };
        match target.check_is(layer) {
            Ok(()) => Ok(target),
            Err(error) => {
                // A qcow2 says by now that it is being written to.
                let _ = target.finish();
                Err(error)
            }
        }
    }

    /// Fails where it is not the file that is open as `layer`; has that read what is written here from now on.
    fn check_is(&self, layer: &Layer) -> Result<()> {
        check_identity(self.image(), layer.image.storage.identity())?;
        if let (Some(writer), Some(reader)) = (self.image().tables(), layer.image.tables()) {
            writer
                .read_by(Arc::clone(reader))
                .map_err(|e| layer.image.failed("read the tables of", &e))?;
        }
        Ok(())
    }

    fn open_disk(place: &Place, path: &Path) -> Result<Kind> {
        let mut options = OpenOptions::new()
            .confined(place.confined)
            .no_lock(!place.locking);
        if let Some(epoch) = &place.cache_epoch {
            options = options.cache_epoch(epoch);
        }
        let disk = if !place.handed_in {
            options.open(place.shown.join(path))?
        } else if path.parent().is_none_or(|folder| folder.as_os_str().is_empty()) {
            options.folder(Arc::clone(&place.folder)).open(path)?
        } else {
            return Err(Error::new(
                ErrorCode::NotSupported,
                format!(
                    "the backing {} lies in another folder than the disk, and the files come from the caller",
                    path.display()
                ),
            ));
        };
        Ok(Kind::Qbm(Box::new(disk)))
    }

    fn open_raw(place: &Place, path: &Path, layer: &Layer, locks: &mut Locks) -> Result<Child> {
        let shown = place.shown.join(path);
        let storage = place
            .folder
            .open(Role::Backing, path, WRITING)
            .map_err(|e| Error::io("open for writing", &shown, &e))?;
        locks.take(place, &storage, &shown)?;
        let image = Child::new(storage, shown);
        check_identity(&image, layer.image.storage.identity())?;
        Ok(image)
    }

    /// A qcow2 is changed as soon as it is open: all that can be refused is refused before.
    fn open_qcow2(
        disk: &Disk,
        backing: &BackingEntry,
        (layer, below): (&Layer, Option<Below>),
        locks: &mut Locks,
    ) -> Result<Child> {
        let place = &disk.place;
        let file = Self::open_raw(place, child_path(&backing.file)?, layer, locks)?;
        let mut files = Files::new(place);
        files.note("the image itself", &*file.storage, true);
        let entry = ImageEntry {
            file: backing.file.clone(),
            format: backing.format,
            checksum: None,
        };
        let file = (Arc::clone(file.storage.shared()), file.path);
        let image = OwnImage::look(&mut files, Path::new(""), &entry, file, Role::Backing, WRITING)?;
        let known = layer.holds.iter().skip(1).map(Hold::identity);
        for ((part, path), known) in image.parts().zip(known) {
            locks.take(place, part, path)?;
            check_identity(&Child::new(Arc::clone(part), path.to_owned()), known)?;
        }
        if let Some(length) = qcow2::shown_length(disk.length()) {
            image.check_length(length)?;
        }
        image.open_over(below)
    }

    fn image(&self) -> &Child {
        self.kind.image()
    }

    /// Makes it as long as the disk, where it is shorter; what it gains reads as zeros.
    pub(super) fn grow(&self, from: u64, to: u64) -> Result<()> {
        // A qcow2 has whole sectors.
        let to = match self.image().tables() {
            Some(_) => qcow2::shown_length(to).unwrap_or(to),
            None => to,
        };
        if to <= from {
            return Ok(());
        }
        match &self.kind {
            Kind::Raw(image) | Kind::Qcow2(image) => image
                .storage
                .set_length(to)
                .map_err(|e| image.failed("resize", &e)),
            Kind::Qbm(disk) => disk.truncate(to, TruncateFlags::empty()),
        }
    }

    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        match &self.kind {
            Kind::Raw(image) | Kind::Qcow2(image) => write_slice(&*image.storage, bytes, offset)
                .map_err(|e| image.failed(&format!("write {} bytes at offset {offset} to", bytes.len()), &e)),
            Kind::Qbm(disk) => disk.write(bytes, offset, WriteFlags::empty()),
        }
    }

    /// Has the system begin to write `range` out, so that the sync at the end has less to wait for.
    pub(super) fn start_writeback(&self, range: ByteRange) {
        start_writeback(&*self.image().storage, range);
    }

    pub(super) fn zero(&self, range: ByteRange) -> Result<()> {
        let how = Zeroing {
            may_unmap: true,
            no_fallback: false,
        };
        let failed = |image: &Child, e| image.failed(&format!("zero {range} of"), &e);
        match &self.kind {
            Kind::Raw(image) => image
                .storage
                .write_zeroes(range, how)
                .map_err(|e| failed(image, e)),
            // The overlay hides what was there: clusters may be used again at once.
            Kind::Qcow2(image) => image.storage.discard(range).map_err(|e| failed(image, e)),
            Kind::Qbm(disk) => disk.write_zeroes(range.start(), range.len(), WriteFlags::MAY_UNMAP),
        }
    }

    /// Makes what was written so far durable.
    pub(super) fn flush(&self) -> Result<()> {
        let flushed = match &self.kind {
            _ if mutation::on(Fault::BackingUnsynced) => Ok(()),
            Kind::Raw(image) | Kind::Qcow2(image) => {
                let done = image.storage.sync(SyncMode::Data);
                done.map_err(|e| image.failed("flush", &e))
            }
            Kind::Qbm(disk) => disk.flush(),
        };
        flushed.inspect_err(|_| self.unsure.store(true, Ordering::Relaxed))
    }

    /// Makes all of it durable; a qcow2 then says that it was closed.
    pub(super) fn finish(self) -> Result<()> {
        if self.unsure.into_inner() {
            return Err(Error::new(
                ErrorCode::Failed,
                format!(
                    "{}: an earlier flush of it failed",
                    self.kind.image().path.display()
                ),
            ));
        }
        let (image, mode) = match self.kind {
            Kind::Raw(_) if mutation::on(Fault::BackingUnsynced) => return Ok(()),
            Kind::Raw(image) => (image, SyncMode::Data),
            Kind::Qcow2(image) => (image, SyncMode::All),
            Kind::Qbm(disk) => return disk.close(),
        };
        image.storage.sync(mode).map_err(|e| image.failed("flush", &e))
    }
}

fn check_identity(image: &Child, known: Option<FileIdentity>) -> Result<()> {
    if image.storage.identity() == known {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::FileInvalid,
        format!(
            "{} is not the file any more that the disk was opened with",
            image.path.display()
        ),
    ))
}
