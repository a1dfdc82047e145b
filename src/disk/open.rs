//! Opening a disk: which files it consists of, and whether they fit together.
//!
//! Invariant: a file is opened as the role and format that the descriptor gives it; nothing is ever probed.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::alive::Alive;
use super::bitmaps::{Bitmap, Loading, Shape};
use super::chain;
use super::gate::Gate;
use super::recovery::{Recovering, StateAtOpen};
use super::session::{RETIRE_INTERVAL, Session};
use super::{Child, Disk, Structure};
use crate::bitmap::{BitmapFile, BitmapPolicy};
use crate::descriptor::names::child_path;
use crate::descriptor::{BitmapKind, Descriptor, Format};
use crate::error::{Error, ErrorCode, Result};
use crate::state::{Lock, Sharing};
use crate::storage::{Access, FileIdentity, Folder, HostFolder, Role, Storage};
use crate::sync::Mutex;
use crate::units::MAX_LENGTH;

/// How often an open starts anew where the disk changes under it.
const ATTEMPTS: usize = 8;

/// What happened that is no call's result; see [`OpenOptions::notify`]. The numbers are part of the C ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
#[non_exhaustive]
pub enum NoticeCode {
    /// The disk failed: changes report errors until it is reopened.
    Failed = 1,
    /// Recovery made more dirty in a bitmap than is known to have changed.
    BitmapWidened = 2,
    /// A bitmap can no longer be trusted.
    BitmapInconsistent = 3,
    /// The disk has no state file and could not be given one: after a power cut its bitmaps may lack bits.
    Unprotected = 4,
}

/// A notice, in words.
#[derive(Clone, Debug)]
pub struct Notice<'a> {
    /// What happened.
    pub code: NoticeCode,
    /// The same for people.
    pub message: &'a str,
}

type Listener = dyn Fn(Notice<'_>) + Send + Sync;

/// Where notices go.
#[derive(Clone, Default)]
pub(super) struct Notify(Option<Arc<Listener>>);

impl Notify {
    pub(super) fn send(&self, code: NoticeCode, message: &str) {
        if let Some(listener) = &self.0 {
            listener(Notice { code, message });
        }
    }
}

/// How to open a disk; then [`open`](OpenOptions::open) it.
#[derive(Clone, Default)]
pub struct OpenOptions {
    read_only: bool,
    direct: bool,
    folder: Option<Arc<dyn Folder>>,
    notify: Notify,
    bitmap_policy: BitmapPolicy,
    max_bitmap_memory: Option<u64>,
    no_state: bool,
    no_lock: bool,
    trust_image: bool,
    cache_epoch: Option<Arc<str>>,
    retire_interval: Option<Duration>,
}

impl OpenOptions {
    /// For reading and writing, through the page cache, with files from the file system.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing is written, to no file of the disk.
    #[must_use]
    pub fn read_only(mut self, yes: bool) -> Self {
        self.read_only = yes;
        self
    }

    /// The image is accessed around the page cache (`O_DIRECT`).
    #[must_use]
    pub fn direct(mut self, yes: bool) -> Self {
        self.direct = yes;
        self
    }

    /// All files come from `folder` instead of the file system's folder that the descriptor lies in.
    #[must_use]
    pub fn folder(mut self, folder: Arc<dyn Folder>) -> Self {
        self.folder = Some(folder);
        self
    }

    /// `listener` hears what is no call's result. It is called by whichever thread meets the event, and must not
    /// call the disk.
    #[must_use]
    pub fn notify(mut self, listener: impl Fn(Notice<'_>) + Send + Sync + 'static) -> Self {
        self.notify = Notify(Some(Arc::new(listener)));
        self
    }

    /// When the bits that writes set get into the bitmaps' files.
    #[must_use]
    pub fn bitmap_policy(mut self, policy: BitmapPolicy) -> Self {
        self.bitmap_policy = policy;
        self
    }

    /// The most memory that the bitmaps may take, in bytes: opening the disk, and whatever would need more, fails with
    /// `NoMemory`. No limit unless it is given.
    #[must_use]
    pub fn max_bitmap_memory(mut self, bytes: u64) -> Self {
        self.max_bitmap_memory = Some(bytes);
        self
    }

    /// A disk that has no state file is given none. Its bitmaps survive SIGKILL as others do, but a power cut can cost
    /// them bits, writes to the image by others are not noticed, and nothing but the image is locked.
    #[must_use]
    pub fn no_state(mut self, yes: bool) -> Self {
        self.no_state = yes;
        self
    }

    /// Takes no locks and minds none. Only for reading what nobody changes, or where something else keeps others out.
    #[must_use]
    pub fn no_lock(mut self, yes: bool) -> Self {
        self.no_lock = yes;
        self
    }

    /// Bitmaps stay valid where the image was written to behind their back: the caller knows what was written.
    #[must_use]
    pub fn trust_image(mut self, yes: bool) -> Self {
        self.trust_image = yes;
        self
    }

    /// A string of 1 to 256 bytes that stays the same for as long as no page cache was lost, in place of what the
    /// library finds out itself. An epoch that differs from the last opener's counts as a power cut.
    #[must_use]
    pub fn cache_epoch(mut self, epoch: &str) -> Self {
        self.cache_epoch = Some(epoch.into());
        self
    }

    /// How often, at most, a flush looks for regions that are not written to any more: 10 seconds unless it is given.
    /// Shorter means less to copy after a power cut, and more syncs of bitmap files.
    #[must_use]
    pub fn retire_interval(mut self, interval: Duration) -> Self {
        self.retire_interval = Some(interval);
        self
    }

    /// Opens the disk that the descriptor at `path` describes.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Disk> {
        let path = path.as_ref();
        self.open_parts(path)
            .map_err(|error| error.context(format_args!("cannot open {}", path.display())))
    }

    fn open_parts(&self, path: &Path) -> Result<Disk> {
        let place = Place::find(path, self.folder.as_ref())?;
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
        let (mut descriptor, identity) = place.read_descriptor()?;
        chain::check(&place, &descriptor, identity)?;
        let mut files = Files::new(&place, identity);

        let image = descriptor.image();
        if image.format != Format::Raw {
            return Err(Error::new(
                ErrorCode::NotSupported,
                format!(
                    "QBM.image.format: {} images cannot be opened by this version; raw can",
                    image.format
                ),
            ));
        }
        let (image, image_path) = files.open(
            Role::Image,
            "QBM.image.file",
            &image.file,
            Access {
                direct: self.direct,
                ..access
            },
        )?;
        let state = files.state(&descriptor, access)?;
        let mut locks = Vec::new();
        if !self.no_lock {
            locks.extend(self.lock(&state, &image, &image_path)?);
            // With a folder of the caller's there is one of each file, and the caller has to know what it hands in.
            if self.folder.is_none() && place.read_descriptor()?.0 != descriptor {
                return Ok(None);
            }
        }
        let child = Child::new(image, image_path);
        let length = child.storage.length().map_err(|e| child.failed("measure", &e))?;
        check_length(length, &child.path)?;
        let mut bitmaps = Vec::with_capacity(descriptor.bitmaps().len());
        for (name, entry) in descriptor.bitmaps() {
            let key = format!("QBM.bitmaps[{name:?}].file");
            let (storage, path) = files.open(Role::Bitmap, &key, &entry.file, access)?;
            let file = BitmapFile::new(storage, path, self.bitmap_policy);
            file.check_size(entry.granularity.granules_in(length))
                .map_err(|e| e.context(&key))?;
            if matches!(entry.kind, BitmapKind::Allocation { .. }) {
                return Err(Error::new(
                    ErrorCode::NotSupported,
                    format!("QBM.bitmaps[{name:?}].type: overlays cannot be opened by this version"),
                ));
            }
            bitmaps.push(Bitmap::from_entry(name, entry, file));
        }
        let loading = Loading::new(self.max_bitmap_memory);
        let recovered = Recovering {
            place,
            image: &child,
            length,
            loading: &loading,
            notify: &self.notify,
            writable: !self.read_only,
            policy: self.bitmap_policy,
            cache_epoch: self.cache_epoch.as_deref(),
            trust_image: self.trust_image,
            retire_interval: self.retire_interval.unwrap_or(RETIRE_INTERVAL),
            add_state: !self.no_state,
            lock: !self.no_lock,
        }
        .run(state, &mut descriptor, &mut bitmaps)?;
        locks.extend(recovered.lock);
        let intent = recovered.session.as_ref().map(Session::intent).cloned();
        if recovered.session.is_some() {
            alive.rest();
        }
        Ok(Some(Disk {
            alive,
            image: child,
            length: AtomicU64::new(length),
            path: path.to_owned(),
            writable: !self.read_only,
            direct: self.direct,
            gate: Gate::new(Shape::new(bitmaps, intent, !self.read_only)),
            structure: Mutex::new(Structure { descriptor }),
            place: place.clone(),
            policy: self.bitmap_policy,
            loading,
            notify: self.notify.clone(),
            session: recovered.session,
            recovery: recovered.recovery,
            locks,
        }))
    }

    /// Locks the disk against those who would disturb it.
    fn lock(
        &self,
        state: &StateAtOpen,
        image: &Arc<dyn Storage>,
        image_path: &Path,
    ) -> Result<impl Iterator<Item = Lock>> {
        let sharing = if self.read_only {
            Sharing::Read
        } else {
            Sharing::Write
        };
        let state = match state {
            StateAtOpen::There { storage, path } => Lock::state(storage, path, sharing)?,
            StateAtOpen::None | StateAtOpen::Missing(_) => None,
        };
        let image = Lock::image(image, image_path, sharing)?;
        Ok(state.into_iter().chain(image))
    }
}

/// Where a descriptor is: its folder, and its name there.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) folder: Arc<dyn Folder>,
    pub(super) name: PathBuf,
    /// The folder as messages call it.
    pub(super) shown: PathBuf,
}

impl Place {
    pub(super) fn find(path: &Path, folder: Option<&Arc<dyn Folder>>) -> Result<Self> {
        // A link is followed first: the children lie beside the file that it leads to, and it is that file which
        // the next save replaces. With a folder from the caller there is no path to follow.
        let followed = match folder {
            None if path.is_symlink() => {
                std::fs::canonicalize(path).map_err(|e| Error::io("follow the link", path, &e))?
            }
            _ => path.to_owned(),
        };
        let Some(name) = followed.file_name() else {
            return Err(Error::new(ErrorCode::InvalidArgument, "it does not name a file"));
        };
        let shown = followed.parent().unwrap_or(Path::new("")).to_owned();
        let folder = match folder {
            Some(folder) => folder.clone(),
            None => Arc::new(HostFolder::open(&shown).map_err(|e| Error::io("open the folder", &shown, &e))?),
        };
        Ok(Self {
            folder,
            name: name.into(),
            shown,
        })
    }

    /// The descriptor, and which file it is. Opened once: a caller that hands files in may have one of each only.
    pub(super) fn read_descriptor(&self) -> Result<(Descriptor, Option<FileIdentity>)> {
        let storage = self
            .folder
            .open(Role::Descriptor, &self.name, Access::default())
            .map_err(|e| Error::system(&e))?;
        Ok((Descriptor::read(&*storage)?, storage.identity()))
    }
}

/// Offsets beyond this do not fit the system's calls.
fn check_length(length: u64, path: &Path) -> Result<()> {
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

/// The files of one disk as they are opened: no two may be the same file.
struct Files<'p> {
    place: &'p Place,
    seen: HashMap<FileIdentity, String>,
}

impl<'p> Files<'p> {
    /// `descriptor` is the descriptor's own file, where anything tells.
    fn new(place: &'p Place, descriptor: Option<FileIdentity>) -> Self {
        Self {
            place,
            seen: descriptor
                .map(|identity| (identity, "the descriptor".to_owned()))
                .into_iter()
                .collect(),
        }
    }

    /// The state file that the descriptor names.
    fn state(&mut self, descriptor: &Descriptor, access: Access) -> Result<StateAtOpen> {
        let Some(entry) = descriptor.state() else {
            return Ok(StateAtOpen::None);
        };
        match self.open(Role::State, "QBM.state.file", &entry.file, access) {
            Ok((storage, path)) => Ok(StateAtOpen::There { storage, path }),
            Err(error) if error.code() == ErrorCode::FileNotFound => {
                Ok(StateAtOpen::Missing(error.message().to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    fn open(
        &mut self,
        role: Role,
        key: &str,
        name: &str,
        access: Access,
    ) -> Result<(Arc<dyn Storage>, PathBuf)> {
        let name = child_path(name).map_err(|e| e.context(format_args!("{key}: {name:?}")))?;
        let path = self.place.shown.join(name);
        let storage = self
            .place
            .folder
            .open(role, name, access)
            .map_err(|e| Error::io("open", &path, &e).context(key))?;
        if let Some(identity) = storage.identity()
            && let Some(other) = self.seen.insert(identity, key.to_owned())
        {
            return Err(Error::new(
                ErrorCode::FileInvalid,
                format!("{key}: {} is the same file as {other}", path.display()),
            ));
        }
        Ok((storage, path))
    }
}
