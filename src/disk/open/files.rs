//! The files of a disk and of what lies below it, as they are opened: each once, none twice.
//!
//! Invariant: a file is opened as the role that the descriptor gives it, and under `confined` nothing outside of the
//! descriptor's folder is.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use crate::descriptor::names::child_path;
use crate::descriptor::{Descriptor, Format};
use crate::disk::overlay::Hold;
use crate::disk::recovery::StateAtOpen;
use crate::error::{Error, ErrorCode, Result};
use crate::storage::{Access, FileIdentity, Folder, HostFolder, Role, Storage};

use super::within::Within;

/// The most images below a disk, of all kinds.
const MAX_IMAGES: usize = 256;
/// So many disks may be images of each other, one within the other: an open, and a request, go through each.
const MAX_LEVELS: usize = 32;

/// Where a descriptor is: its folder, and its name there.
#[derive(Clone)]
pub(in crate::disk) struct Place {
    pub(in crate::disk) folder: Arc<dyn Folder>,
    pub(in crate::disk) name: PathBuf,
    /// The folder as messages call it.
    pub(in crate::disk) shown: PathBuf,
    /// The folder is the caller's, and only it knows what a name leads to.
    pub(in crate::disk) handed_in: bool,
    /// No name may lead out of the folder.
    pub(in crate::disk) confined: bool,
    /// Whether images are locked.
    pub(in crate::disk) locking: bool,
    /// What a backing is that the descriptor names without a format.
    pub(super) backing_format: Option<Format>,
    /// What the opener says of the page cache, if he does.
    pub(in crate::disk) cache_epoch: Option<Arc<str>>,
    /// Of a disk that is another one's image.
    outer: Option<Outer>,
}

/// Where a disk lies that is another one's image.
#[derive(Clone)]
struct Outer {
    /// Its folder, as that of the outermost disk sees it.
    base: PathBuf,
    /// What messages call the outermost disk's folder.
    shown: PathBuf,
    /// How many disks are around it.
    level: usize,
}

impl Place {
    /// With `confined`, the folder opens nothing that lies outside of it.
    pub(in crate::disk) fn find(
        path: &Path,
        folder: Option<&Arc<dyn Folder>>,
        confined: bool,
    ) -> Result<Self> {
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
            backing_format: None,
            cache_epoch: None,
            outer: None,
        })
    }

    /// `image`, which `storage` is, where it is a file whose owner and mode the disk's own files may have.
    pub(in crate::disk) fn model<'n>(&self, image: &'n Path, storage: &dyn Storage) -> Option<&'n Path> {
        (!self.handed_in && !storage.limits().block_device).then_some(image)
    }

    /// Whether the disk is another one's image.
    pub(in crate::disk) fn is_image(&self) -> bool {
        self.outer.is_some()
    }

    /// The place of the disk whose descriptor is `path`, as this one's folder sees it, and which is this one's image.
    fn of_image(&self, path: &Path) -> Result<Self> {
        let level = self.outer.as_ref().map_or(0, |outer| outer.level) + 1;
        if level > MAX_LEVELS {
            return Err(too_nested());
        }
        let (Some(name), Some(folder)) = (path.file_name(), path.parent()) else {
            return Err(Error::new(ErrorCode::InvalidArgument, "it does not name a file"));
        };
        let shown = self.shown.join(folder);
        let outer = Outer {
            base: self
                .outer
                .as_ref()
                .map_or_else(PathBuf::new, |outer| outer.base.clone())
                .join(folder),
            shown: self.outermost().to_owned(),
            level,
        };
        Ok(Self {
            folder: Arc::new(Within::new(self, folder, &shown)),
            name: name.into(),
            shown,
            backing_format: None,
            outer: Some(outer),
            ..self.clone()
        })
    }

    /// What messages call the folder of the outermost disk, to which all is confined.
    fn outermost(&self) -> &Path {
        self.outer.as_ref().map_or(&self.shown, |outer| &outer.shown)
    }

    /// A name of this place, as the outermost disk's folder sees it.
    fn seen_from_outermost(&self, path: &Path) -> PathBuf {
        match &self.outer {
            Some(outer) => outer.base.join(path),
            None => path.to_owned(),
        }
    }

    /// The same, for images that whoever opens them locks later.
    pub(in crate::disk) fn unlocked(&self) -> Self {
        Self {
            locking: false,
            ..self.clone()
        }
    }

    /// What messages call the folder.
    pub(in crate::disk) fn folder_name(&self) -> &Path {
        if self.shown.as_os_str().is_empty() {
            Path::new(".")
        } else {
            &self.shown
        }
    }
}

fn follow(link: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(link).map_err(|e| Error::io("follow the link", link, &e))
}

/// The files of one disk, its backing images' too, as they are opened: each once, and no two may be the same file.
pub(in crate::disk) struct Files<'p> {
    place: &'p Place,
    all: Rc<RefCell<All>>,
}

/// The files of all disks that are opened together, one as the image of the other.
#[derive(Default)]
struct All {
    seen: HashMap<FileIdentity, Seen>,
    /// How many images there are below the outermost disk.
    images: usize,
    /// How many disks are open around the one that is looked at, each as the image of another below a disk.
    levels: usize,
}

/// A disk that is looked at as the image of another. Dropping it leaves it.
pub(in crate::disk) struct Level(Rc<RefCell<All>>);

impl Drop for Level {
    fn drop(&mut self) {
        self.0.borrow_mut().levels -= 1;
    }
}

/// What a file has been opened as.
struct Seen {
    /// In words.
    what: String,
    /// It is a link of the chain, not an end.
    names_others: bool,
}

impl<'p> Files<'p> {
    pub(in crate::disk) fn new(place: &'p Place) -> Self {
        Self {
            place,
            all: Rc::default(),
        }
    }

    /// The same files, for a disk that is the image of this one.
    pub(super) fn within<'q>(&self, place: &'q Place) -> Files<'q> {
        Files {
            place,
            all: Rc::clone(&self.all),
        }
    }

    /// Goes on to a disk below that is the image of the one that was looked at.
    pub(in crate::disk) fn enter_level(&self) -> Result<Level> {
        let level = Level(Rc::clone(&self.all));
        let mut all = self.all.borrow_mut();
        all.levels += 1;
        if all.levels > MAX_LEVELS {
            drop(all);
            return Err(too_nested());
        }
        drop(all);
        Ok(level)
    }

    /// Whether the disk that is looked at is an image of another one below a disk.
    pub(in crate::disk) fn is_within(&self) -> bool {
        self.all.borrow().levels > 0
    }

    /// Counts an image below the disk; fails where there are too many.
    pub(in crate::disk) fn count_image(&self) -> Result<()> {
        let mut all = self.all.borrow_mut();
        if all.images == MAX_IMAGES {
            return Err(Error::new(
                ErrorCode::NotSupported,
                format!("the backing chain is deeper than {MAX_IMAGES} images"),
            ));
        }
        all.images += 1;
        Ok(())
    }

    /// The place of the disk that the descriptor names as its image.
    pub(in crate::disk) fn image_place(&self, key: &str, name: &str) -> Result<Place> {
        let path = child_path(name).map_err(|e| e.context(format_args!("{key}: {name:?}")))?;
        if self.place.confined && leads_out(&self.place.seen_from_outermost(path)) {
            return Err(outside(&self.shown(path)).context(key));
        }
        let path = self.followed(path.to_owned()).map_err(|e| e.context(key))?;
        self.count_image()?;
        self.place.of_image(&path).map_err(|e| e.context(key))
    }

    /// Counts a file as one that is open, as what `seen` says; tells what it is open as already.
    fn add(&self, identity: FileIdentity, seen: Seen) -> Option<Seen> {
        self.all.borrow_mut().seen.insert(identity, seen)
    }

    /// The state file that the descriptor names.
    pub(super) fn state(&mut self, descriptor: &Descriptor, access: Access) -> Result<StateAtOpen> {
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

    /// The disk's own descriptor, and its file. A caller that hands files in may have one of each only, so this is asked once.
    pub(in crate::disk) fn descriptor(&mut self) -> Result<(Descriptor, Arc<dyn Storage>)> {
        let storage = self
            .place
            .folder
            .open(Role::Descriptor, &self.place.name, Access::default())
            .map_err(|e| match e.raw_os_error() {
                Some(libc::EXDEV) if self.place.confined => outside(&self.shown(&self.place.name)),
                _ => Error::system(&e),
            })?;
        if self.place.outer.is_none() {
            self.note("the descriptor", &*storage, true);
        } else {
            let shown = self.shown(&self.place.name);
            self.add_naming(&*storage, "QBM.image.file", &shown)?;
        }
        let descriptor = Descriptor::read_assuming(&*storage, self.place.backing_format)?;
        Ok((descriptor, storage))
    }

    /// Counts a file as one that is open already, as `what`.
    pub(in crate::disk) fn note(&self, what: &str, storage: &dyn Storage, names_others: bool) {
        if let Some(identity) = storage.identity() {
            let what = what.to_owned();
            self.add(identity, Seen { what, names_others });
        }
    }

    /// The name of an image that has no descriptor, as one beside it would have it.
    pub(super) fn own_name(&self) -> Result<String> {
        let name = self.place.name.to_str().ok_or_else(|| {
            Error::new(
                ErrorCode::NotSupported,
                format!("the name {} is not UTF-8", self.place.name.display()),
            )
        })?;
        // What stands before a colon would be a scheme.
        Ok(format!("{}{name}", if name.contains(':') { "./" } else { "" }))
    }

    /// Opens a child that the descriptor in the folder `base` (as the disk's folder sees it) names under `key`.
    pub(in crate::disk) fn open(
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
            let what = if base.as_os_str().is_empty() && self.place.outer.is_none() {
                key.to_owned()
            } else {
                format!("{key} of the descriptor in {}", self.shown(base).display())
            };
            let seen = Seen {
                what,
                names_others: false,
            };
            if let Some(other) = self.add(identity, seen) {
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
    pub(in crate::disk) fn backing_descriptor(
        &mut self,
        key: &str,
        base: &Path,
        name: &str,
    ) -> Result<(Descriptor, PathBuf)> {
        let path = base.join(child_path(name).map_err(|e| e.context(format_args!("{key}: {name:?}")))?);
        let path = self.followed(path).map_err(|e| e.context(key))?;
        let (storage, shown) = self.naming(Role::Backing, key, &path, Access::default())?;
        let descriptor = Descriptor::read(&*storage).map_err(|e| e.context(shown.display()))?;
        Ok((descriptor, path))
    }

    /// Opens a file that names other files, be it a descriptor or an image: `path`, as the disk's folder sees it. Says
    /// what messages call it.
    pub(in crate::disk) fn naming(
        &mut self,
        role: Role,
        key: &str,
        path: &Path,
        access: Access,
    ) -> Result<(Arc<dyn Storage>, PathBuf)> {
        let storage = self.storage(role, key, path, access)?;
        let shown = self.shown(path);
        self.add_naming(&*storage, key, &shown)?;
        Ok((storage, shown))
    }

    /// Counts a file as open that names others.
    fn add_naming(&self, storage: &dyn Storage, key: &str, shown: &Path) -> Result<()> {
        let Some(identity) = storage.identity() else {
            return Ok(());
        };
        let seen = Seen {
            what: shown.display().to_string(),
            names_others: true,
        };
        let Some(other) = self.add(identity, seen) else {
            return Ok(());
        };
        let words = if other.names_others {
            format!("the backing chain leads back to {}", shown.display())
        } else {
            format!("{key}: {} is the same file as {}", shown.display(), other.what)
        };
        Err(Error::new(ErrorCode::FileInvalid, words))
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
        let root = match self.place.outermost() {
            it if it.as_os_str().is_empty() => Path::new("."),
            it => it,
        };
        let beneath = followed
            .strip_prefix(follow(root)?)
            .map_err(|_| outside(&whole))?;
        let Some(outer) = &self.place.outer else {
            return Ok(beneath.to_owned());
        };
        // As this disk's folder sees it, which lies so far below the outermost one's.
        let mut path = PathBuf::new();
        for part in outer.base.components() {
            match part {
                Component::Normal(_) => path.push(".."),
                Component::CurDir => {}
                _ => return Err(outside(&whole)),
            }
        }
        Ok(path.join(beneath))
    }

    fn storage(&self, role: Role, key: &str, path: &Path, access: Access) -> Result<Arc<dyn Storage>> {
        let shown = self.shown(path);
        if self.place.confined && leads_out(&self.place.seen_from_outermost(path)) {
            return Err(outside(&shown).context(key));
        }
        self.place
            .folder
            .open(role, path, access)
            .map_err(|e| match e.raw_os_error() {
                Some(libc::EXDEV) if self.place.confined => outside(&shown),
                _ => Error::io("open", &shown, &e),
            })
            .map_err(|e| if key.is_empty() { e } else { e.context(key) })
    }

    /// Keeps others from writing to a backing image, for as long as it is open here.
    pub(in crate::disk) fn hold(&self, image: &Arc<dyn Storage>, path: &Path) -> Result<Hold> {
        let hold = Hold::of(Arc::clone(image), path.to_owned());
        if self.place.locking {
            hold.take()?;
        }
        Ok(hold)
    }

    /// The folder in which a descriptor has its name, by which `base` leads from the disk's folder; none where only the caller
    /// can open it.
    pub(in crate::disk) fn folder_of(&self, base: &Path) -> Option<Arc<dyn Folder>> {
        if base.as_os_str().is_empty() {
            return Some(Arc::clone(&self.place.folder));
        }
        if self.place.handed_in {
            return None;
        }
        let folder = HostFolder::open(&self.shown(base)).ok()?;
        Some(Arc::new(folder))
    }

    /// What the opener says of the page cache.
    pub(in crate::disk) fn cache_epoch(&self) -> Option<&str> {
        self.place.cache_epoch.as_deref()
    }

    /// Whether the file has been opened as one of the disk's.
    pub(in crate::disk) fn has(&self, identity: FileIdentity) -> bool {
        self.all.borrow().seen.contains_key(&identity)
    }

    /// What messages call the file `path` of the disk's folder.
    pub(in crate::disk) fn shown(&self, path: &Path) -> PathBuf {
        self.place.shown.join(path)
    }
}

fn too_nested() -> Error {
    Error::new(
        ErrorCode::NotSupported,
        format!("more than {MAX_LEVELS} disks are images of each other, one within the other"),
    )
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
