//! Opening a disk: which files it consists of, and whether they fit together.
//!
//! Invariant: a file is opened as the role and format that the descriptor gives it; nothing is ever probed.

mod files;
mod held;
mod image;
mod options;
#[cfg(test)]
mod tests;
mod within;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::alive::Alive;
use super::bitmaps::{Bitmap, Excuses, Loading, OnBitmapError, Shape};
use super::checksum;
use super::gate::Gate;
use super::overlay::{self, Backing, Chain, Overlay, OwnImage, two_backings};
use super::own_image::{Own, OwnImages};
use super::recovery::{Before, Recovering, StateAtOpen};
use super::session::Session;
use super::{Child, Disk, StateInfo, Structure};
use crate::bitmap::BitmapFile;
use crate::descriptor::{BitmapEntry, Descriptor, Format, ImageEntry};
use crate::error::{Error, ErrorCode, Result};
use crate::state::{Lock, Sharing, StateFile, spoil_shadow};
use crate::storage::{Access, Role, Storage};
use crate::sync::Mutex;
use crate::units::MAX_LENGTH;
pub(super) use files::{Files, Place};
pub(super) use held::Held;
pub(super) use image::ImageFound;
pub(super) use options::Notify;
pub use options::{Notice, NoticeCode, OpenOptions};

/// What to do where a dirty bitmap's file is missing, or too short.
const REMADE: &str = "\"qbm check -r dirty\" makes it anew with every bit set";

/// What to do where others have made the image longer.
const CHOICE: &str = "\"qbm check -r trust\" takes it as it is, \"qbm check -r dirty\" sets every bit";

/// How often an open starts anew where the disk changes under it.
pub(super) const ATTEMPTS: usize = 8;

/// The allocation bitmap: its name, its entry in the descriptor, its file.
type Allocation<'e> = (&'e str, &'e BitmapEntry, BitmapFile);

/// The first files of a disk, open and locked.
pub(super) struct FilesFound {
    descriptor: Descriptor,
    /// The file that has the descriptor's name while the disk is locked; none of an image without a descriptor.
    named: Option<Arc<dyn Storage>>,
    image: ImageFound,
    state: StateAtOpen,
    locks: Held,
}

impl OpenOptions {
    /// Opens the disk that the descriptor at `path` describes. One that was not closed is recovered, and where its state file
    /// is missing or damaged, every bit of every bitmap is set, as nothing is known of the last user.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Disk> {
        let path = path.as_ref();
        // Each open is told by itself.
        self.clone()
            .told_of_loss()
            .open_parts(path)
            .map_err(|error| match self.image_format {
                None => error.context(format_args!("cannot open {}", path.display())),
                // The image is the only file there is, and named in the error.
                Some(_) => error,
            })
    }

    fn open_parts(&self, path: &Path) -> Result<Disk> {
        if self.image_format.is_some() && !self.read_only && !self.image_writable {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                format!(
                    "{} has no descriptor, and so can only be opened read-only",
                    path.display()
                ),
            ));
        }
        let mut place = Place::find(path, self.folder.as_ref(), self.confined)?;
        place.locking = !self.no_lock;
        place.backing_format = self.backing_format;
        place.cache_epoch.clone_from(&self.cache_epoch);
        self.open_in(path, &place)
    }

    fn open_in(&self, path: &Path, place: &Place) -> Result<Disk> {
        // Others may change the disk until it is locked: then what was read before the lock is read again.
        for _ in 0..ATTEMPTS {
            if let Some(disk) = self.attempt(path, place)? {
                return Ok(disk);
            }
        }
        Err(Error::new(
            ErrorCode::Locked,
            "it keeps being changed while it is being opened",
        ))
    }

    /// `None` where the descriptor has changed since it was read.
    fn attempt(&self, path: &Path, place: &Place) -> Result<Option<Disk>> {
        let mut files = Files::new(place);
        let Some(found) = self.find(place, &mut files)? else {
            return Ok(None);
        };
        self.finish((path, place), &mut files, found).map(Some)
    }

    /// Opens and locks the files that a disk cannot do without: the descriptor, the image and the state file, and those of an
    /// image that is a disk itself. Nothing is changed. `None` where a descriptor has changed since it was read.
    fn find(&self, place: &Place, files: &mut Files<'_>) -> Result<Option<FilesFound>> {
        let access = Access {
            write: !self.read_only,
            direct: false,
        };
        let (descriptor, mut named) = self.described(files)?;
        let Some(image) = self.image(files, descriptor.image())? else {
            return Ok(None);
        };
        let state = files.state(&descriptor, access)?;
        let mut locks = Held::new()?;
        if !self.no_lock {
            self.lock(&state, &image, &mut locks)?;
            // With a folder of the caller's there is one of each file, and the caller has to know what it hands in.
            if !place.handed_in {
                let (again, behind_locks) = self.described(&mut Files::new(place))?;
                if again != descriptor {
                    return Ok(None);
                }
                named = behind_locks;
            }
        }
        Ok(Some(FilesFound {
            descriptor,
            named,
            image,
            state,
            locks,
        }))
    }

    /// Opens the rest, recovers the disk if need be, and puts it together.
    fn finish(
        &self,
        (path, place): (&Path, &Place),
        files: &mut Files<'_>,
        found: FilesFound,
    ) -> Result<Disk> {
        let alive = Alive::new()?;
        let FilesFound {
            mut descriptor,
            named,
            image,
            state,
            mut locks,
        } = found;
        let loading = Loading::new(self.max_bitmap_memory);
        let before = match &image {
            ImageFound::File(file, path) if descriptor.image().format == Format::Qcow2 => {
                Some(Before::look(&**file, path)?)
            }
            _ => None,
        };
        let mark = before.map_or(0, |before| before.stamp.mark());
        let (child, below) = self
            .in_format(files, descriptor.image(), (image, mark), &loading, &mut locks)
            .inspect_err(|_| self.distrust_shadow(&state))?;
        let before = before.map(|before| before.with_all_files(&child));
        if let (true, Some(wanted)) = (self.verify_checksum, descriptor.image().checksum) {
            checksum::verify(&child, wanted)?;
        }
        let length = overlay::measured(&child)?;
        let (mut bitmaps, allocation) = self.bitmaps(files, &descriptor, length, &state)?;
        let overlay = match allocation {
            Some((name, ..)) if below.is_some() => return Err(two_backings(name)),
            Some((name, entry, file)) => {
                let chain = self.chain(files, &descriptor, &loading)?;
                let overlay = Overlay::load(name, entry, file, length, chain, &loading, !self.read_only)
                    .map_err(|e| e.context(format_args!("QBM.bitmaps[{name:?}].file")))?;
                Some(overlay)
            }
            None => None,
        };
        let missing = matches!(state, StateAtOpen::Missing(_));
        let recovered = Recovering {
            options: self,
            place,
            named: named.as_deref(),
            image: &child,
            before,
            overlay: overlay.as_ref(),
            length,
            loading: &loading,
        }
        .run(state, &mut descriptor, &mut bitmaps, &mut locks)?;
        let overlay = overlay.map(|mut overlay| {
            overlay.keep_shadow(recovered.session.as_ref().and_then(Session::shadow));
            Arc::new(overlay)
        });
        let intent = recovered.session.as_ref().map(Session::intent).cloned();
        let excuses = match (&recovered.session, self.on_bitmap_error) {
            (Some(session), OnBitmapError::MarkInconsistent) => {
                let excuses = Excuses::new(Arc::clone(session.file()), self.notify.clone(), bitmaps.iter());
                Some(Arc::new(excuses))
            }
            _ => None,
        };
        if recovered.session.is_some() {
            alive.rest();
        }
        Ok(Disk {
            alive,
            own: OwnImages::new(Own::new(child, overlay.is_some())),
            below,
            length: AtomicU64::new(length),
            path: path.to_owned(),
            described: self.image_format.is_none(),
            writable: !self.read_only,
            direct: self.direct,
            gate: Gate::new(Shape::new(
                bitmaps,
                overlay,
                intent,
                excuses.clone(),
                !self.read_only,
            )),
            state: descriptor.state().map(|entry| StateInfo {
                file: entry.file.clone(),
                found: recovered.found,
                missing: missing && recovered.session.is_none(),
            }),
            structure: Mutex::new(Structure {
                descriptor,
                outdated: None,
            }),
            place: place.clone(),
            policy: self.bitmap_policy,
            loading,
            notify: self.notify.clone(),
            session: recovered.session,
            excuses,
            recovery: recovered.recovery,
            found: recovered.content,
            locks: Mutex::new(locks.keep()),
            closed: false,
        })
    }

    /// The dirty bitmaps of a disk of `length` bytes, and the allocation bitmap's entry and file.
    fn bitmaps<'e>(
        &self,
        files: &mut Files<'_>,
        descriptor: &'e Descriptor,
        length: u64,
        state: &StateAtOpen,
    ) -> Result<(Vec<Bitmap>, Option<Allocation<'e>>)> {
        let access = Access {
            write: !self.read_only,
            direct: false,
        };
        let mut bitmaps = Vec::with_capacity(descriptor.bitmaps().len());
        let mut allocation = None;
        for (name, entry) in descriptor.bitmaps() {
            let key = format!("QBM.bitmaps[{name:?}].file");
            let opened = files.open(Role::Bitmap, &key, Path::new(""), &entry.file, access);
            if entry.kind.is_allocation() {
                let (storage, path) = opened?;
                let file = BitmapFile::new(storage, path, self.bitmap_policy);
                file.check_size(entry.granularity.granules_in(length))
                    .map_err(|e| e.context(&key))?;
                allocation = Some((name, entry, file));
                continue;
            }
            let (storage, path) = opened.map_err(|e| match e.code() {
                ErrorCode::FileNotFound => e.hint(REMADE),
                _ => e,
            })?;
            let file = BitmapFile::new(storage, path, self.bitmap_policy);
            let file = self
                .fit(file, entry, length, state)
                .map_err(|e| e.context(&key))?;
            bitmaps.push(Bitmap::from_entry(name, entry, file));
        }
        Ok((bitmaps, allocation))
    }

    /// The file of a dirty bitmap, which must hold the bits of a disk of `length` bytes. Those that it lacks as others have made
    /// the image longer are clear where the opener takes the image as it is.
    fn fit(
        &self,
        file: BitmapFile,
        entry: &BitmapEntry,
        length: u64,
        state: &StateAtOpen,
    ) -> Result<BitmapFile> {
        let granules = entry.granularity.granules_in(length);
        let Err(error) = file.check_size(granules) else {
            return Ok(file);
        };
        let held = |length: &u64| file.check_size(entry.granularity.granules_in(*length)).is_ok();
        // D1: of a file that was too short before, nobody knows what it had.
        let outgrown = outgrown_from(state, length).filter(held);
        if !self.lengthen_bitmaps {
            let Some(then) = outgrown else {
                return Err(error.hint(REMADE));
            };
            if !self.trust_image && !self.lengthen_outgrown {
                return Err(error.hint(format_args!("{}: {CHOICE}", grown(then, length))));
            }
        }
        if self.read_only {
            return Ok(file.outgrown());
        }
        file.grow_unread(granules)?;
        // No change of its bits need ever come and make that durable.
        file.sync()?;
        Ok(file)
    }

    /// The descriptor and its file, or what it would be of an image that has none.
    fn described(&self, files: &mut Files<'_>) -> Result<(Descriptor, Option<Arc<dyn Storage>>)> {
        let Some(format) = self.image_format else {
            return files.descriptor().map(|(it, file)| (it, Some(file)));
        };
        let entry = ImageEntry {
            file: files.own_name()?,
            format,
            checksum: None,
        };
        Ok((Descriptor::new("", entry)?, None))
    }

    fn image_access(&self) -> Access {
        Access {
            write: !self.read_only && !self.image_untouched,
            direct: self.direct,
        }
    }

    /// The file of the disk's image; or those of the disk that it is. `None` where that has changed since it was read.
    fn image(&self, files: &mut Files<'_>, entry: &ImageEntry) -> Result<Option<ImageFound>> {
        if entry.format == Format::Qbm {
            return self.image_disk(files, entry);
        }
        let access = self.image_access();
        let key = match self.image_format {
            None => "QBM.image.file",
            Some(_) => "",
        };
        let (file, path) = files.open(Role::Image, key, Path::new(""), &entry.file, access)?;
        Ok(Some(ImageFound::File(file, path)))
    }

    /// The disk's image in its format, from the file that is open and locked; and what it names below it.
    fn in_format(
        &self,
        files: &mut Files<'_>,
        entry: &ImageEntry,
        (image, mark): (ImageFound, u64),
        loading: &Loading,
        locks: &mut Held,
    ) -> Result<(Child, Option<Arc<Chain>>)> {
        let (file, path) = match image {
            ImageFound::File(file, path) => (file, path),
            ImageFound::Disk(disk) => return Ok((disk.open(files, loading)?, None)),
        };
        if entry.format == Format::Raw {
            return Ok((Child::new(file, path), None));
        }
        let access = self.image_access();
        let image = OwnImage::look(files, Path::new(""), entry, (file, path), Role::Image, access)?;
        if !self.no_lock {
            for (part, path) in image.parts() {
                locks.extend(Lock::image(part, path, self.sharing_image())?);
            }
        }
        let below = image.chain(files, self.no_backing, loading)?;
        Ok((image.marking(mark).open(below.as_ref())?, below))
    }

    /// What lies below the disk's own image.
    fn chain(&self, files: &mut Files<'_>, descriptor: &Descriptor, loading: &Loading) -> Result<Chain> {
        let backing = Backing::of(descriptor);
        if self.no_backing {
            return Ok(Chain::without_images(backing.is_some()));
        }
        Chain::open(files, backing, loading)
    }

    fn sharing(&self) -> Sharing {
        if self.read_only {
            Sharing::Read
        } else {
            Sharing::Write
        }
    }

    fn sharing_image(&self) -> Sharing {
        if self.image_untouched {
            Sharing::Read
        } else {
            self.sharing()
        }
    }

    /// Locks the disk against those who would disturb it.
    fn lock(&self, state: &StateAtOpen, image: &ImageFound, locks: &mut Held) -> Result<()> {
        let sharing = self.sharing();
        if let StateAtOpen::There { storage, path } = state {
            locks.extend(Lock::state(storage, path, sharing)?);
        }
        // A disk has locked its own.
        if let ImageFound::File(image, path) = image {
            locks.extend(Lock::image(image, path, self.sharing_image())?);
        }
        Ok(())
    }

    /// Where the image has failed to keep what a killed process wrote to it, its bits mean nothing any more.
    fn distrust_shadow(&self, state: &StateAtOpen) {
        let lost = self.lost.as_ref().is_some_and(|it| it.load(Ordering::Acquire));
        if let (true, false, StateAtOpen::There { storage, .. }) = (lost, self.read_only, state) {
            spoil_shadow(&**storage);
        }
    }
}

/// How long the image was when the disk was closed, where others have made it longer: `length` bytes.
fn outgrown_from(state: &StateAtOpen, length: u64) -> Option<u64> {
    let StateAtOpen::There { storage, path } = state else {
        return None;
    };
    let found = StateFile::inspect(&**storage, path).ok()?.ok()?;
    found.outgrown_from(length)
}

/// The same in words.
pub(super) fn grown(then: u64, now: u64) -> String {
    format!("the image had {then} bytes when the disk was closed, and has {now} now")
}

/// Offsets beyond this do not fit the system's calls.
pub(super) fn check_length(length: u64, path: &Path) -> Result<()> {
    if length <= MAX_LENGTH {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::NotSupported,
        format!(
            "{} is {length} bytes long, more than the limit of {MAX_LENGTH}",
            path.display()
        ),
    ))
}
