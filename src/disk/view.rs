//! Disks as they were at one moment, for backups, while the guest goes on.
//!
//! At one point between writes the bitmaps are frozen, and from then on each write to a granule is preceded by a copy
//! of what it was (`before`). Reading a view takes the disk's bytes where nothing was written since, and the copy where
//! something was. Invariant: what a view shows is what the disk showed at that point, or an error.

pub(in crate::disk) mod before;
#[cfg(test)]
mod tests;

use std::io::{self, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bitmaps::{AtPoint, BitmapAction, Shape, Thaw, UnderWay, at_one_point};
use super::overlay::in_memory;
use super::status::StatusFlags;
use super::{Child, Disk};
use crate::error::{Error, ErrorCode, Result};
use crate::storage::{Extent, Folder, HostFolder, Role, Scatter, Storage};
use crate::units::ByteRange;
use before::BeforeWrite;
pub use before::ScratchFull;

/// Where the old content of what a guest overwrites during a backup is kept.
#[derive(Clone, Debug)]
pub struct Scratch {
    /// `None`: that of each disk's descriptor.
    folder: Option<PathBuf>,
    limit: u64,
    full: ScratchFull,
}

impl Default for Scratch {
    /// In the folder of each disk's descriptor. With a folder of the caller's, in that.
    fn default() -> Self {
        Self {
            folder: None,
            limit: Self::LIMIT,
            full: ScratchFull::default(),
        }
    }
}

impl Scratch {
    /// The most bytes of each disk that are kept unless another limit is given: 1 GiB.
    pub const LIMIT: u64 = 1 << 30;

    /// In a sparse file in `folder` that has no name, so that nobody has to remove it.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: Some(folder.into()),
            ..Self::default()
        }
    }

    /// At most so many bytes of each disk.
    #[must_use]
    pub fn limit(mut self, bytes: u64) -> Self {
        self.limit = bytes;
        self
    }

    /// What happens once a guest has overwritten more than that.
    #[must_use]
    pub fn when_full(mut self, full: ScratchFull) -> Self {
        self.full = full;
        self
    }

    fn make(&self, disk: &Disk, length: u64) -> Result<Child> {
        let (folder, shown): (Arc<dyn Folder>, &Path) = match &self.folder {
            None => (Arc::clone(&disk.place.folder), disk.place.folder_name()),
            Some(path) => {
                let folder = HostFolder::open(path).map_err(|e| Error::io("open the folder", path, &e))?;
                (Arc::new(folder), path)
            }
        };
        let mut id = [0; 8];
        getrandom::fill(&mut id).map_err(|e| {
            Error::new(
                ErrorCode::Io,
                format!("cannot get random bytes for a file name: {e}"),
            )
        })?;
        let name = PathBuf::from(format!(".qbm-scratch-{:016x}", u64::from_ne_bytes(id)));
        let path = shown.join(&name);
        let storage = folder
            .create_private(Role::Backing, &name)
            .map_err(|e| Error::io("create", &path, &e))?;
        folder.remove(&name).map_err(|e| Error::io("remove", &path, &e))?;
        storage
            .set_length(length)
            .map_err(|e| Error::io("resize", &path, &e))?;
        Ok(Child::new(storage, path))
    }
}

/// Several disks at one moment, from [`backup_begin`]. Dropping it ends the backup as one that failed.
#[derive(Debug)]
pub struct BackupViews<'d> {
    views: Vec<BackupView<'d>>,
    ended: bool,
}

/// One disk at that moment. May be used from any number of threads at once.
pub struct BackupView<'d> {
    disk: &'d Disk,
    bitmap: Arc<str>,
    before: Arc<BeforeWrite>,
}

impl std::fmt::Debug for BackupView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupView")
            .field("disk", self.disk)
            .field("bitmap", &self.bitmap)
            .finish_non_exhaustive()
    }
}

/// Takes all of `disks` at one point between the writes to any of them, each with the bitmap that says what has changed
/// on it and that is frozen until the end. No disk may be named twice.
///
/// Waits for the writes in flight, and flushes the disks. Guests go on afterwards; the first write to each 64 KiB copies
/// what was there. The disks cannot be resized, committed, rebased or emptied until the end.
pub fn backup_begin<'d>(disks: &[(&'d Disk, &str)], scratch: &Scratch) -> Result<BackupViews<'d>> {
    let actions: Vec<_> = disks
        .iter()
        .map(|(disk, name)| (*disk, BitmapAction::Freeze { name }))
        .collect();
    let actions: Vec<_> = actions.iter().map(|(disk, action)| (*disk, action)).collect();
    BackupViews::begin(disks, &actions, scratch)
}

impl<'d> BackupViews<'d> {
    /// With `actions` that freeze the bitmaps of `disks`, and may do more before.
    pub(crate) fn begin(
        disks: &[(&'d Disk, &str)],
        actions: &[(&Disk, &BitmapAction<'_>)],
        scratch: &Scratch,
    ) -> Result<Self> {
        for (index, (disk, _)) in disks.iter().enumerate() {
            if disks[..index]
                .iter()
                .any(|(other, _)| std::ptr::eq(*other, *disk))
            {
                return Err(Error::new(
                    ErrorCode::InvalidArgument,
                    format!("{} is to be backed up twice at once", disk.path.display()),
                ));
            }
        }
        let mut begin = Begin {
            disks,
            scratch,
            made: Vec::new(),
        };
        at_one_point(actions, &mut begin)?;
        let view = |(disk, _): &(&'d Disk, &str)| {
            let made = begin.made.iter().find(|(other, _)| std::ptr::eq(*other, *disk));
            made.map(|(_, backup)| BackupView {
                disk,
                bitmap: Arc::clone(&backup.bitmap),
                before: Arc::clone(&backup.before),
            })
        };
        Ok(Self {
            views: disks.iter().filter_map(view).collect(),
            ended: false,
        })
    }

    /// The disks, in the order in which they were named.
    pub fn views(&self) -> &[BackupView<'d>] {
        &self.views
    }

    /// Ends the backup at one point of all the disks. With `success` the bitmaps forget what was dirty when it began;
    /// whoever says so has all of it where it is durable. Otherwise they keep it.
    ///
    /// After an error they keep it too, and the backup is over on every disk that can go on. A disk that has failed must be
    /// reopened, and what it finds then may be that its bitmap has forgotten all the same, as the very last step was done
    /// when it failed. So whatever was copied of it is to be kept: where the bitmap's epoch is the `next_epoch` that it had
    /// during the backup, it lacks what was dirty.
    pub fn end(mut self, success: bool) -> Result<()> {
        self.finish(if success { Thaw::Commit } else { Thaw::Rollback })
    }

    fn finish(&mut self, outcome: Thaw) -> Result<()> {
        self.ended = true;
        // In a forked child nobody is left who would let go of a lock, or open a gate that was closed.
        let ours = || self.views.iter().filter(|view| view.disk.alive.is_ours());
        // Before anything that would wait for a writer who waits for us.
        ours().for_each(|view| view.before.end());
        let actions: Vec<_> = self
            .views
            .iter()
            .map(|view| {
                let name = &*view.bitmap;
                (view.disk, BitmapAction::Thaw { name, outcome })
            })
            .collect();
        let actions: Vec<_> = actions.iter().map(|(disk, action)| (*disk, action)).collect();
        let ended = at_one_point(&actions, &mut End);
        if ended.is_err() {
            ours().for_each(BackupView::roll_back);
        }
        ended
    }
}

impl Drop for BackupViews<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // Nobody is there to be told; the bitmaps have all bits in any case.
            let _ = self.finish(Thaw::Rollback);
        }
    }
}

/// The beginning of a backup, with the gates of all disks closed.
struct Begin<'s, 'a> {
    disks: &'s [(&'s Disk, &'s str)],
    scratch: &'s Scratch,
    made: Vec<(&'a Disk, UnderWay)>,
}

impl<'a> AtPoint<'a> for Begin<'_, 'a> {
    fn prepare(&mut self, disk: &'a Disk, shape: &Shape) -> Result<()> {
        shape.check_no_backup(&disk.path)?;
        let Some((_, bitmap)) = self.disks.iter().find(|(other, _)| std::ptr::eq(*other, disk)) else {
            return Ok(());
        };
        let image = disk.image().again();
        let length = disk.length();
        let scratch = self.scratch.make(disk, length)?;
        let before = BeforeWrite::new(
            image,
            shape.overlay.clone(),
            length,
            scratch,
            self.scratch.limit,
            self.scratch.full,
        )?;
        let backup = UnderWay {
            before: Arc::new(before),
            bitmap: (*bitmap).into(),
        };
        self.made.push((disk, backup));
        Ok(())
    }

    fn finish(&mut self, disk: &'a Disk, shape: &mut Shape) {
        let made = self.made.iter().find(|(other, _)| std::ptr::eq(*other, disk));
        shape.set_backup(made.map(|(_, backup)| backup.clone()));
    }
}

/// Its end.
struct End;

impl<'a> AtPoint<'a> for End {
    fn prepare(&mut self, _: &'a Disk, _: &Shape) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self, _: &'a Disk, shape: &mut Shape) {
        shape.set_backup(None);
    }

    fn ends_backup(&self) -> bool {
        true
    }
}

impl BackupView<'_> {
    /// Ends the backup of this disk alone, as one that failed.
    fn roll_back(&self) {
        let name = &*self.bitmap;
        let outcome = Thaw::Rollback;
        // Nothing has to be stored for it. Who cannot do it is a disk that has failed, and has all bits when it is opened
        // again; or there is no memory, and then the bitmap is anybody's to thaw from here on.
        if at_one_point(&[(self.disk, &BitmapAction::Thaw { name, outcome })], &mut End).is_err() {
            self.disk.gate.close().set_backup(None);
        }
    }

    /// The disk's length in bytes.
    pub fn length(&self) -> u64 {
        self.before.length()
    }

    /// The path of the disk that it is of.
    pub fn path(&self) -> &Path {
        &self.disk.path
    }

    /// Says that nobody will read these bytes of the view any more. In whole 64 KiB, nothing is kept of what is written to
    /// them from now on, and what was kept makes room; reading them is an error.
    pub fn release(&self, offset: u64, len: u64) -> Result<()> {
        self.disk.alive.check()?;
        self.before.release(self.range(offset, len)?);
        Ok(())
    }

    /// Lets `target` have the blocks of `range`, at the same place, in common with the disk's image. False where they are
    /// not what they were by now; `None` where they do not lie in one image at the same place.
    pub(crate) fn share(&self, range: ByteRange, target: &dyn Storage) -> Option<io::Result<bool>> {
        if self.disk.own.current().layered {
            return None;
        }
        let shared = target.share(&**self.disk.image().storage.shared(), range);
        // As for a read: who overwrites it sets the bit first.
        Some(shared.map(|()| self.before.unkept(range) == range))
    }

    /// How many bytes of old content are kept for it now.
    pub fn kept(&self) -> u64 {
        self.before.stored()
    }

    /// The bitmap that says what has changed.
    pub fn bitmap(&self) -> &str {
        &self.bitmap
    }

    /// The disk as it is now.
    pub(crate) fn disk(&self) -> &Disk {
        self.disk
    }

    /// Reads `buf.len()` bytes from `offset` on, as they were; the whole of it lies within the disk.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut bufs = [IoSliceMut::new(buf)];
        self.read_scatter(
            Scatter::from_slices(&mut bufs).ok_or_else(super::too_long)?,
            offset,
        )
    }

    /// The same into the caller's raw memory.
    pub fn read_scatter(&self, into: Scatter<'_>, offset: u64) -> Result<()> {
        self.disk.alive.check()?;
        let whole = self.range(offset, into.len() as u64)?;
        let mut room = Vec::new();
        let mut at = whole.start();
        while at < whole.end() {
            let (kept, run) = self.before.run(ByteRange::between(at, whole.end()));
            let part = into.part(in_memory(at - offset), in_memory(run.len()), &mut room);
            if kept {
                self.before.read_kept(part, at)?;
                at = run.end();
            } else {
                self.disk.read_scatter(part, at)?;
                // What was written to meanwhile is read again, from where it is kept: a writer sets the bit before it
                // writes, so what has no bit now was read before any write.
                at = self.before.unkept(run).end();
            }
        }
        // Last, as a writer that could keep nothing says so before it writes.
        self.before.check(whole)
    }

    /// Whether the first bytes of a range are data or zeros, and how far that goes within it.
    pub fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        self.disk.alive.check()?;
        let whole = self.range(offset, len)?;
        if whole.is_empty() {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                "the status of no bytes was asked for",
            ));
        }
        loop {
            let (kept, run) = self.before.run(whole);
            if kept {
                let extent = self.before.kept_extent(run)?;
                self.before.check(run)?;
                return Ok(extent);
            }
            let status = self.disk.block_status(run.start(), run.len())?;
            let told = ByteRange::between(run.start(), run.start() + status.length);
            let still = self.before.unkept(told);
            if !still.is_empty() {
                return Ok(Extent {
                    data: !status.flags.contains(StatusFlags::ZERO),
                    len: still.len(),
                });
            }
        }
    }

    /// The first run of bytes at or behind `offset` that was dirty in the bitmap; see [`Disk::bitmap_next_dirty`].
    pub fn next_dirty(&self, offset: u64, len: u64) -> Result<Option<ByteRange>> {
        self.disk.bitmap_next_dirty(&self.bitmap, offset, len)
    }

    fn range(&self, offset: u64, len: u64) -> Result<ByteRange> {
        match ByteRange::new(offset, len) {
            Some(range) if range.end() <= self.length() => Ok(range),
            _ => Err(super::out_of_range(offset, len, self.length())),
        }
    }
}
