//! Opening a disk: which files it consists of, and whether they fit together.
//!
//! Invariant: a file is opened as the role and format that the descriptor gives it; nothing is ever probed.

mod files;
mod options;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::alive::Alive;
use super::bitmaps::{Bitmap, Excuses, Loading, OnBitmapError, Shape};
use super::checksum;
use super::gate::Gate;
use super::overlay::{self, Backing, Chain, Overlay, OwnImage, two_backings};
use super::own_image::{Own, OwnImages};
use super::recovery::{Recovering, StateAtOpen};
use super::session::Session;
use super::{Child, Disk, StateInfo, Structure};
use crate::bitmap::BitmapFile;
use crate::descriptor::{BitmapEntry, Descriptor, Format, ImageEntry};
use crate::error::{Error, ErrorCode, Result};
use crate::state::{Lock, Sharing};
use crate::storage::{Access, Role, Storage};
use crate::sync::Mutex;
use crate::units::MAX_LENGTH;
pub(super) use files::{Files, Place};
pub(super) use options::Notify;
pub use options::{Notice, NoticeCode, OpenOptions};

/// How often an open starts anew where the disk changes under it.
pub(super) const ATTEMPTS: usize = 8;

/// The allocation bitmap: its name, its entry in the descriptor, its file.
type Allocation<'e> = (&'e str, &'e BitmapEntry, BitmapFile);

impl OpenOptions {
    /// Opens the disk that the descriptor at `path` describes.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Disk> {
        let path = path.as_ref();
        self.open_parts(path).map_err(|error| match self.image_format {
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
        // Others may change the disk until it is locked: then what was read before the lock is read again.
        for _ in 0..ATTEMPTS {
            if let Some(disk) = self.attempt(path, &place)? {
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
        let alive = Alive::new()?;
        let access = Access {
            write: !self.read_only,
            direct: false,
        };
        let mut files = Files::new(place);
        let mut descriptor = self.described(&mut files)?;

        let entry = descriptor.image();
        let (image, image_path) = self.image(&mut files, entry)?;
        let state = files.state(&descriptor, access)?;
        let mut locks = Vec::new();
        if !self.no_lock {
            locks.extend(self.lock(&state, &image, &image_path)?);
            // With a folder of the caller's there is one of each file, and the caller has to know what it hands in.
            if self.folder.is_none() && self.described(&mut Files::new(place))? != descriptor {
                return Ok(None);
            }
        }
        let loading = Loading::new(self.max_bitmap_memory);
        let (child, below) = self.in_format(&mut files, entry, (image, image_path), &loading, &mut locks)?;
        if let (true, Some(wanted)) = (self.verify_checksum, descriptor.image().checksum) {
            checksum::verify(&child, wanted)?;
        }
        let length = overlay::measured(&child)?;
        let (mut bitmaps, allocation) = self.bitmaps(&mut files, &descriptor, length)?;
        let overlay = match allocation {
            Some((name, ..)) if below.is_some() => return Err(two_backings(name)),
            Some((name, entry, file)) => {
                let chain = self.chain(&mut files, &descriptor, &loading)?;
                let overlay = Overlay::load(name, entry, file, length, chain, &loading, !self.read_only)
                    .map_err(|e| e.context(format_args!("QBM.bitmaps[{name:?}].file")))?;
                Some(overlay)
            }
            None => None,
        };
        let recovered = Recovering {
            options: self,
            place,
            image: &child,
            overlay: overlay.as_ref(),
            length,
            loading: &loading,
        }
        .run(state, &mut descriptor, &mut bitmaps)?;
        locks.extend(recovered.lock);
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
        Ok(Some(Disk {
            alive,
            own: OwnImages::new(Own {
                child,
                layered: overlay.is_some(),
            }),
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
            }),
            structure: Mutex::new(Structure { descriptor }),
            place: place.clone(),
            policy: self.bitmap_policy,
            loading,
            notify: self.notify.clone(),
            session: recovered.session,
            excuses,
            recovery: recovered.recovery,
            locks: Mutex::new(locks),
        }))
    }

    /// The dirty bitmaps of a disk of `length` bytes, and the allocation bitmap's entry and file.
    fn bitmaps<'e>(
        &self,
        files: &mut Files<'_>,
        descriptor: &'e Descriptor,
        length: u64,
    ) -> Result<(Vec<Bitmap>, Option<Allocation<'e>>)> {
        let access = Access {
            write: !self.read_only,
            direct: false,
        };
        let mut bitmaps = Vec::with_capacity(descriptor.bitmaps().len());
        let mut allocation = None;
        for (name, entry) in descriptor.bitmaps() {
            let key = format!("QBM.bitmaps[{name:?}].file");
            let (storage, path) = files.open(Role::Bitmap, &key, Path::new(""), &entry.file, access)?;
            let file = BitmapFile::new(storage, path, self.bitmap_policy);
            file.check_size(entry.granularity.granules_in(length))
                .map_err(|e| e.context(&key))?;
            if entry.kind.is_allocation() {
                allocation = Some((name, entry, file));
            } else {
                bitmaps.push(Bitmap::from_entry(name, entry, file));
            }
        }
        Ok((bitmaps, allocation))
    }

    /// The descriptor, or what it would be of an image that has none.
    fn described(&self, files: &mut Files<'_>) -> Result<Descriptor> {
        match self.image_format {
            None => files.descriptor(),
            Some(format) => Descriptor::new(
                "",
                ImageEntry {
                    file: files.own_name()?,
                    format,
                    checksum: None,
                },
            ),
        }
    }

    fn image_access(&self) -> Access {
        Access {
            write: !self.read_only,
            direct: self.direct,
        }
    }

    /// The file of the disk's image.
    fn image(&self, files: &mut Files<'_>, entry: &ImageEntry) -> Result<(Arc<dyn Storage>, PathBuf)> {
        let access = self.image_access();
        let key = match self.image_format {
            None => "QBM.image.file",
            Some(_) => "",
        };
        files.open(Role::Image, key, Path::new(""), &entry.file, access)
    }

    /// The disk's image in its format, from the file that is open and locked; and what it names below it.
    fn in_format(
        &self,
        files: &mut Files<'_>,
        entry: &ImageEntry,
        (file, path): (Arc<dyn Storage>, PathBuf),
        loading: &Loading,
        locks: &mut Vec<Lock>,
    ) -> Result<(Child, Option<Arc<Chain>>)> {
        if entry.format == Format::Raw {
            return Ok((Child::new(file, path), None));
        }
        let access = self.image_access();
        let image = OwnImage::look(files, Path::new(""), entry, (file, path), Role::Image, access)?;
        if !self.no_lock {
            for (part, path) in image.parts() {
                locks.extend(Lock::image(part, path, self.sharing())?);
            }
        }
        let below = image.chain(files, self.no_backing, loading)?;
        Ok((image.open(below.as_ref())?, below))
    }

    /// What lies below the disk's own image.
    fn chain(&self, files: &mut Files<'_>, descriptor: &Descriptor, loading: &Loading) -> Result<Chain> {
        let backing = Backing::of(descriptor);
        if self.no_backing {
            return Ok(Chain {
                layers: Vec::new(),
                unopened: backing.is_some(),
            });
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

    /// Locks the disk against those who would disturb it.
    fn lock(
        &self,
        state: &StateAtOpen,
        image: &Arc<dyn Storage>,
        image_path: &Path,
    ) -> Result<impl Iterator<Item = Lock>> {
        let sharing = self.sharing();
        let state = match state {
            StateAtOpen::There { storage, path } => Lock::state(storage, path, sharing)?,
            StateAtOpen::None | StateAtOpen::Missing(_) => None,
        };
        let image = Lock::image(image, image_path, sharing)?;
        Ok(state.into_iter().chain(image))
    }
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
