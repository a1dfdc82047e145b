//! Opening a disk: which files it consists of, and whether they fit together.
//!
//! Invariant: a file is opened as the role and format that the descriptor gives it; nothing is ever probed.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::alive::Alive;
use super::bitmaps::{Bitmap, Loading, Shape};
use super::chain;
use super::gate::Gate;
use super::{Child, Disk, Structure};
use crate::bitmap::{BitmapFile, BitmapPolicy};
use crate::descriptor::names::child_path;
use crate::descriptor::{BitmapKind, Descriptor, Format};
use crate::error::{Error, ErrorCode, Result};
use crate::storage::{Access, FileIdentity, Folder, HostFolder, Role, Storage};
use crate::sync::Mutex;
use crate::units::MAX_LENGTH;

/// What happened that is no call's result; see [`OpenOptions::notify`]. The numbers are part of the C ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
#[non_exhaustive]
pub enum NoticeCode {
    /// The disk failed: changes report errors until it is reopened.
    Failed = 1,
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

    /// Opens the disk that the descriptor at `path` describes.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Disk> {
        let path = path.as_ref();
        self.open_parts(path)
            .map_err(|error| error.context(format_args!("cannot open {}", path.display())))
    }

    fn open_parts(&self, path: &Path) -> Result<Disk> {
        let alive = Alive::new()?;
        let place = Place::find(path, self.folder.as_ref())?;
        let access = Access {
            write: !self.read_only,
            direct: false,
        };
        let (descriptor, identity) = place.read_descriptor()?;
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
        if !self.read_only {
            loading.recording(&bitmaps, length)?;
        }
        Ok(Disk {
            alive,
            image: child,
            length: AtomicU64::new(length),
            path: path.to_owned(),
            writable: !self.read_only,
            direct: self.direct,
            gate: Gate::new(Shape::new(bitmaps, !self.read_only)),
            structure: Mutex::new(Structure { descriptor }),
            place,
            policy: self.bitmap_policy,
            loading,
            notify: self.notify.clone(),
        })
    }
}

/// Where a descriptor is: its folder, and its name there.
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
