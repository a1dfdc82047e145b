//! Opening a disk: which files it consists of, and whether they fit together.
//!
//! Invariant: a file is opened as the role and format that the descriptor gives it; nothing is ever probed.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::alive::Alive;
use super::bitmaps::{Bitmap, BitmapContent, Excuses, Loading, OnBitmapError, Shape};
use super::checksum;
use super::gate::Gate;
use super::overlay::{self, Backing, Chain, Hold, Overlay};
use super::recovery::{Recovering, StateAtOpen};
use super::session::Session;
use super::{Child, Disk, StateInfo, Structure};
use crate::bitmap::{BitmapFile, BitmapPolicy};
use crate::descriptor::names::child_path;
use crate::descriptor::{Descriptor, Format};
use crate::error::{Error, ErrorCode, Result};
use crate::state::{Lock, Sharing};
use crate::storage::{Access, FileIdentity, Folder, HostFolder, Role, Storage};
use crate::sync::Mutex;
use crate::units::MAX_LENGTH;

/// How often an open starts anew where the disk changes under it.
pub(super) const ATTEMPTS: usize = 8;

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
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a flag of its own, that any of the others may stand beside"
)]
pub struct OpenOptions {
    pub(super) read_only: bool,
    direct: bool,
    no_backing: bool,
    confined: bool,
    folder: Option<Arc<dyn Folder>>,
    pub(super) notify: Notify,
    pub(super) bitmap_policy: BitmapPolicy,
    on_bitmap_error: OnBitmapError,
    max_bitmap_memory: Option<u64>,
    pub(super) no_state: bool,
    pub(super) no_lock: bool,
    pub(super) trust_image: bool,
    verify_checksum: bool,
    pub(super) cache_epoch: Option<Arc<str>>,
    pub(super) retire_interval: Option<Duration>,
    /// What somebody else has written to the image, as he has recorded it.
    pub(super) foreign_writes: Option<Arc<BitmapContent>>,
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

    /// The backing image, and what is below it, is not opened. What would have to be read from there is an error then.
    #[must_use]
    pub fn no_backing(mut self, yes: bool) -> Self {
        self.no_backing = yes;
        self
    }

    /// Every file must lie beneath the descriptor's folder: absolute names, and `..` and links that lead out of it, are
    /// refused, for the files of backing images too.
    ///
    /// With a [`folder`](Self::folder) of the caller's only the names are judged, as it is the folder that follows links.
    #[must_use]
    pub fn confined(mut self, yes: bool) -> Self {
        self.confined = yes;
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

    /// What becomes of a write where a bitmap cannot be written though the data can: it fails, unless another choice is
    /// given.
    #[must_use]
    pub fn on_bitmap_error(mut self, choice: OnBitmapError) -> Self {
        self.on_bitmap_error = choice;
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

    /// The image is read from its beginning to its end, and an image whose descriptor has a checksum that is another is
    /// not opened. Takes as long as that reading. One without a checksum opens.
    ///
    /// For images that do not change: nothing renews the checksum when the disk is written to.
    #[must_use]
    pub fn verify_checksum(mut self, yes: bool) -> Self {
        self.verify_checksum = yes;
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
        let mut place = Place::find(path, self.folder.as_ref(), self.confined)?;
        place.locking = !self.no_lock;
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
        let mut descriptor = files.descriptor()?;

        let (image, image_path) = self.image(&mut files, &descriptor, access)?;
        let state = files.state(&descriptor, access)?;
        let mut locks = Vec::new();
        if !self.no_lock {
            locks.extend(self.lock(&state, &image, &image_path)?);
            // With a folder of the caller's there is one of each file, and the caller has to know what it hands in.
            if self.folder.is_none() && Files::new(place).descriptor()? != descriptor {
                return Ok(None);
            }
        }
        let child = Child::new(image, image_path);
        if let (true, Some(wanted)) = (self.verify_checksum, descriptor.image().checksum) {
            checksum::verify(&child, wanted)?;
        }
        let length = overlay::measured(&child)?;
        let loading = Loading::new(self.max_bitmap_memory);
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
        let overlay = match allocation {
            Some((name, entry, file)) => {
                let chain = self.chain(&mut files, &descriptor, &loading)?;
                let overlay = Overlay::load(name, entry, file, length, chain, &loading, !self.read_only)
                    .map_err(|e| e.context(format_args!("QBM.bitmaps[{name:?}].file")))?;
                Some(Arc::new(overlay))
            }
            None => None,
        };
        let recovered = Recovering {
            options: self,
            place,
            image: &child,
            length,
            loading: &loading,
        }
        .run(state, &mut descriptor, &mut bitmaps)?;
        locks.extend(recovered.lock);
        let intent = recovered.session.as_ref().map(Session::intent).cloned();
        let excuses = match (&recovered.session, self.on_bitmap_error) {
            (Some(session), OnBitmapError::MarkInconsistent) => {
                let excuses = Excuses::new(Arc::clone(session.file()), self.notify.clone());
                Some(Arc::new(excuses))
            }
            _ => None,
        };
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
            layered: overlay.is_some(),
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
            locks,
        }))
    }

    /// The disk's own image.
    fn image(
        &self,
        files: &mut Files<'_>,
        descriptor: &Descriptor,
        access: Access,
    ) -> Result<(Arc<dyn Storage>, PathBuf)> {
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
        let direct = self.direct;
        let access = Access { direct, ..access };
        files.open(Role::Image, "QBM.image.file", Path::new(""), &image.file, access)
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
    /// The folder is the caller's, and only it knows what a name leads to.
    pub(super) handed_in: bool,
    /// No name may lead out of the folder.
    pub(super) confined: bool,
    /// Whether images are locked.
    pub(super) locking: bool,
}

impl Place {
    /// With `confined`, the folder opens nothing that lies outside of it.
    pub(super) fn find(path: &Path, folder: Option<&Arc<dyn Folder>>, confined: bool) -> Result<Self> {
        // A link is followed first: the children lie beside the file that it leads to, and it is that file which
        // the next save replaces. With a folder from the caller there is no path to follow.
        let followed = match folder {
            None if path.is_symlink() => follow(path)?,
            _ => path.to_owned(),
        };
        let Some(name) = followed.file_name() else {
            return Err(Error::new(ErrorCode::InvalidArgument, "it does not name a file"));
        };
        let shown = followed.parent().unwrap_or(Path::new("")).to_owned();
        let handed_in = folder.is_some();
        let folder = if let Some(folder) = folder {
            folder.clone()
        } else {
            let folder = HostFolder::open(&shown).map_err(|e| Error::io("open the folder", &shown, &e))?;
            Arc::new(if confined { folder.confined() } else { folder })
        };
        Ok(Self {
            folder,
            name: name.into(),
            shown,
            handed_in,
            confined,
            locking: false,
        })
    }

    /// What messages call the folder.
    pub(super) fn folder_name(&self) -> &Path {
        if self.shown.as_os_str().is_empty() {
            Path::new(".")
        } else {
            &self.shown
        }
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

fn follow(link: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(link).map_err(|e| Error::io("follow the link", link, &e))
}

/// The files of one disk, its backing images' too, as they are opened: each once, and no two may be the same file.
pub(super) struct Files<'p> {
    place: &'p Place,
    seen: HashMap<FileIdentity, Seen>,
}

/// What a file has been opened as.
struct Seen {
    /// In words.
    what: String,
    descriptor: bool,
}

impl<'p> Files<'p> {
    pub(super) fn new(place: &'p Place) -> Self {
        Self {
            place,
            seen: HashMap::new(),
        }
    }

    /// The state file that the descriptor names.
    fn state(&mut self, descriptor: &Descriptor, access: Access) -> Result<StateAtOpen> {
        let Some(entry) = descriptor.state() else {
            return Ok(StateAtOpen::None);
        };
        match self.open(Role::State, "QBM.state.file", Path::new(""), &entry.file, access) {
            Ok((storage, path)) => Ok(StateAtOpen::There { storage, path }),
            Err(error) if error.code() == ErrorCode::FileNotFound => {
                Ok(StateAtOpen::Missing(error.message().to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    /// The disk's own descriptor. A caller that hands files in may have one of each only, so this is asked once.
    pub(super) fn descriptor(&mut self) -> Result<Descriptor> {
        let storage = self
            .place
            .folder
            .open(Role::Descriptor, &self.place.name, Access::default())
            .map_err(|e| Error::system(&e))?;
        if let Some(identity) = storage.identity() {
            let what = "the descriptor".to_owned();
            self.seen.insert(
                identity,
                Seen {
                    what,
                    descriptor: true,
                },
            );
        }
        Descriptor::read(&*storage)
    }

    /// Opens a child that the descriptor in the folder `base` (as the disk's folder sees it) names under `key`.
    pub(super) fn open(
        &mut self,
        role: Role,
        key: &str,
        base: &Path,
        name: &str,
        access: Access,
    ) -> Result<(Arc<dyn Storage>, PathBuf)> {
        let path = base.join(child_path(name).map_err(|e| e.context(format_args!("{key}: {name:?}")))?);
        let storage = self.storage(role, key, &path, access)?;
        let path = self.shown(&path);
        if let Some(identity) = storage.identity() {
            let what = if base.as_os_str().is_empty() {
                key.to_owned()
            } else {
                format!("{key} of the descriptor in {}", self.shown(base).display())
            };
            let seen = Seen {
                what,
                descriptor: false,
            };
            if let Some(other) = self.seen.insert(identity, seen) {
                return Err(Error::new(
                    ErrorCode::FileInvalid,
                    format!("{key}: {} is the same file as {}", path.display(), other.what),
                ));
            }
        }
        Ok((storage, path))
    }

    /// Reads the descriptor of a backing image, which the descriptor in the folder `base` names under `key`. Says what
    /// path leads to it from the disk's folder.
    pub(super) fn backing_descriptor(
        &mut self,
        key: &str,
        base: &Path,
        name: &str,
    ) -> Result<(Descriptor, PathBuf)> {
        let path = base.join(child_path(name).map_err(|e| e.context(format_args!("{key}: {name:?}")))?);
        let path = self.followed(path).map_err(|e| e.context(key))?;
        let storage = self.storage(Role::Backing, key, &path, Access::default())?;
        let shown = self.shown(&path);
        if let Some(identity) = storage.identity() {
            let what = format!("the descriptor {}", shown.display());
            if let Some(other) = self.seen.insert(
                identity,
                Seen {
                    what,
                    descriptor: true,
                },
            ) {
                let words = if other.descriptor {
                    format!("the backing chain leads back to {}", shown.display())
                } else {
                    format!("{key}: {} is the same file as {}", shown.display(), other.what)
                };
                return Err(Error::new(ErrorCode::FileInvalid, words));
            }
        }
        let descriptor = Descriptor::read(&*storage).map_err(|e| e.context(shown.display()))?;
        Ok((descriptor, path))
    }

    /// Where a descriptor lies if `path` is a link to it: what it names is relative to that place.
    fn followed(&self, path: PathBuf) -> Result<PathBuf> {
        let whole = self.shown(&path);
        if self.place.handed_in || !whole.is_symlink() {
            return Ok(path);
        }
        let followed = follow(&whole)?;
        if !self.place.confined {
            return Ok(followed);
        }
        let beneath = followed
            .strip_prefix(follow(self.place.folder_name())?)
            .map(Path::to_owned);
        beneath.map_err(|_| outside(&whole))
    }

    fn storage(&self, role: Role, key: &str, path: &Path, access: Access) -> Result<Arc<dyn Storage>> {
        let shown = self.shown(path);
        if self.place.confined && leads_out(path) {
            return Err(outside(&shown).context(key));
        }
        self.place
            .folder
            .open(role, path, access)
            .map_err(|e| match e.raw_os_error() {
                Some(libc::EXDEV) if self.place.confined => outside(&shown),
                _ => Error::io("open", &shown, &e),
            })
            .map_err(|e| e.context(key))
    }

    /// Keeps others from writing to a backing image, for as long as it is open here.
    pub(super) fn hold(&self, image: &Arc<dyn Storage>, path: &Path) -> Result<Hold> {
        let hold = Hold::of(Arc::clone(image), path.to_owned());
        if self.place.locking {
            hold.take()?;
        }
        Ok(hold)
    }

    /// Whether the file has been opened as one of the disk's.
    pub(super) fn has(&self, identity: FileIdentity) -> bool {
        self.seen.contains_key(&identity)
    }

    /// What messages call the file `path` of the disk's folder.
    pub(super) fn shown(&self, path: &Path) -> PathBuf {
        self.place.shown.join(path)
    }
}

/// Whether a name alone tells that it leads out of its folder.
fn leads_out(path: &Path) -> bool {
    let mut depth = 0u64;
    !path.components().all(|part| match part {
        Component::Normal(_) => {
            depth += 1;
            true
        }
        Component::CurDir => true,
        Component::ParentDir => {
            let within = depth > 0;
            depth = depth.saturating_sub(1);
            within
        }
        Component::RootDir | Component::Prefix(_) => false,
    })
}

fn outside(path: &Path) -> Error {
    Error::new(
        ErrorCode::PermissionDenied,
        format!(
            "{} is not beneath the descriptor's folder, to which the disk is confined",
            path.display()
        ),
    )
}
