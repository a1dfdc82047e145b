//! Making a disk: a descriptor for an image that exists, or for a new one.
//!
//! Invariant: nothing that exists is overwritten, and a failure leaves nothing behind (M1).

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::open::Place;
use super::recovery::NewState;
use crate::descriptor::names::{FileName, child_path, create_unique};
use crate::descriptor::{Descriptor, Format, ImageEntry, save};
use crate::error::{Error, ErrorCode, Result};
use crate::state::RegionSize;
use crate::storage::{Access, Folder, Role, Storage, SyncMode};
use crate::units::{ByteRange, MAX_LENGTH};

/// What is written into a new descriptor's `creator`.
const CREATOR: &str = concat!("libqbm ", env!("CARGO_PKG_VERSION"));

/// Whether a new image's space is reserved when it is made. The numbers are part of the C ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(i32)]
pub enum Preallocation {
    /// It is not: the image is one hole.
    #[default]
    Off = 0,
    /// It is reserved (`fallocate`).
    Falloc = 1,
    /// It is reserved and written with zeros.
    Full = 2,
}

/// How to make a disk; then [`create`](CreateOptions::create) it.
#[derive(Clone, Default)]
pub struct CreateOptions {
    size: Option<u64>,
    image: Option<String>,
    preallocation: Preallocation,
    folder: Option<Arc<dyn Folder>>,
    no_state: bool,
    region_bytes: Option<u64>,
}

impl CreateOptions {
    /// Neither a size nor an image yet; one of the two must be given.
    pub fn new() -> Self {
        Self::default()
    }

    /// The length of the new image, in bytes. With an image that exists: what its length must be.
    #[must_use]
    pub fn size(mut self, bytes: u64) -> Self {
        self.size = Some(bytes);
        self
    }

    /// A raw image that exists becomes the disk's; nothing in it is changed.
    ///
    /// The name goes into the descriptor as it is: a relative one is relative to the descriptor's folder.
    #[must_use]
    pub fn image(mut self, name: impl Into<String>) -> Self {
        self.image = Some(name.into());
        self
    }

    /// Whether the new image's space is reserved.
    #[must_use]
    pub fn preallocation(mut self, how: Preallocation) -> Self {
        self.preallocation = how;
        self
    }

    /// The disk gets no state file: see [`OpenOptions::no_state`](super::OpenOptions::no_state) for what that costs.
    #[must_use]
    pub fn no_state(mut self, yes: bool) -> Self {
        self.no_state = yes;
        self
    }

    /// How many bytes of the disk one bit of the state file's intent map stands for: a power of two from 512 on, 64 MiB
    /// unless it is given, and more where the disk would have too many regions. Smaller regions mean less to copy again
    /// after a power cut, and more syncs of the state file before it.
    #[must_use]
    pub fn region_bytes(mut self, bytes: u64) -> Self {
        self.region_bytes = Some(bytes);
        self
    }

    /// All files are made in, and opened from, `folder`.
    #[must_use]
    pub fn folder(mut self, folder: Arc<dyn Folder>) -> Self {
        self.folder = Some(folder);
        self
    }

    /// Makes the disk, durably. A file that has the name `path` already is an error and stays as it is.
    pub fn create(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        self.create_parts(path)
            .map_err(|error| error.context(format_args!("cannot create {}", path.display())))
    }

    fn create_parts(&self, path: &Path) -> Result<()> {
        if self.size.is_some_and(|size| size > MAX_LENGTH) {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                format!(
                    "a disk of {} bytes is longer than the limit of {MAX_LENGTH}",
                    self.size.unwrap_or(0)
                ),
            ));
        }
        let place = Place::find(path, self.folder.as_ref())?;
        // Asked first, so that no image is made for a descriptor that cannot be.
        check_free(&place)?;
        match (&self.image, self.size) {
            (Some(image), size) => self.adopt(&place, image, size),
            (None, Some(size)) => self.create_image(&place, size),
            (None, None) => Err(Error::new(
                ErrorCode::InvalidArgument,
                "neither a size nor an existing image was given",
            )),
        }
    }

    /// A descriptor for an image that exists.
    fn adopt(&self, place: &Place, image: &str, size: Option<u64>) -> Result<()> {
        if self.preallocation != Preallocation::Off {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                "preallocation is for a new image, and an existing one was given",
            ));
        }
        let name = child_path(image).map_err(|e| e.context(format_args!("image {image:?}")))?;
        let shown = place.shown.join(name);
        let storage = place
            .folder
            .open(Role::Image, name, Access::default())
            .map_err(|e| Error::io("open the image", &shown, &e))?;
        let length = storage.length().map_err(|e| Error::io("measure", &shown, &e))?;
        if let Some(size) = size.filter(|size| *size != length) {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                format!("the image {} is {length} bytes long, not {size}", shown.display()),
            ));
        }
        self.save_new(place, image, length)
    }

    /// A new image, and a descriptor for it. The descriptor comes last: a crash before it leaves no disk at all.
    fn create_image(&self, place: &Place, size: u64) -> Result<()> {
        let folder = &*place.folder;
        folder
            .check_writable()
            .map_err(|e| Error::io("create files in", &place.shown, &e))?;
        let (name, storage) = create_unique(folder, Role::Image, &FileName::data(&place.name))?;
        let made = self
            .fill(&*storage, size)
            .map_err(|e| Error::io(&format!("give {size} bytes to"), place.shown.join(&name), &e))
            .and_then(|()| self.save_new(place, &name, size));
        if made.is_err() {
            // The first failure is the one to tell.
            let _ = folder.remove(Path::new(&name));
        }
        made
    }

    /// The descriptor, and before it the state file that it names.
    fn save_new(&self, place: &Place, image: &str, length: u64) -> Result<()> {
        let mut descriptor = descriptor_for(image)?;
        if self.no_state {
            return save::create_new(&*place.folder, &place.name, &descriptor);
        }
        let region = match self.region_bytes {
            None => RegionSize::DEFAULT,
            Some(bytes) => RegionSize::new(bytes).ok_or_else(|| {
                Error::new(
                    ErrorCode::InvalidArgument,
                    format!("a region of {bytes} bytes is not possible: it must be a power of two from 512 on"),
                )
            })?,
        };
        let state = NewState::create(place, region.for_length(length))?;
        let saved = descriptor
            .set_state(Some(state.entry.clone()))
            .and_then(|()| save::create_new(&*place.folder, &place.name, &descriptor));
        if saved.is_err() {
            state.remove(place);
        }
        saved
    }

    fn fill(&self, storage: &dyn Storage, size: u64) -> io::Result<()> {
        storage.set_length(size)?;
        let whole = ByteRange::between(0, size);
        if size > 0 && self.preallocation != Preallocation::Off {
            storage.allocate(whole)?;
        }
        if self.preallocation == Preallocation::Full {
            write_zeros(storage, size)?;
        }
        storage.sync(SyncMode::All)
    }
}

/// Fails where the descriptor's name is taken, by whatever it is.
fn check_free(place: &Place) -> Result<()> {
    match place
        .folder
        .open(Role::Descriptor, &place.name, Access::default())
    {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        // What is no file that could be a descriptor (a folder, a FIFO) has the name all the same; an errno, which the
        // system or a callback gave, says nothing of the kind.
        Err(e) if e.kind() != io::ErrorKind::InvalidInput || e.raw_os_error().is_some() => Err(Error::io(
            "find out whether the name is taken of",
            place.shown.join(&place.name),
            &e,
        )),
        _ => Err(Error::new(
            ErrorCode::FileExists,
            "it exists already, and is not overwritten",
        )),
    }
}

/// Zeros that are really written, so that the first guest write meets blocks that are initialised.
fn write_zeros(storage: &dyn Storage, size: u64) -> io::Result<()> {
    const STEP: usize = 1 << 20;
    let zeros = vec![0u8; STEP];
    let mut at = 0;
    while at < size {
        let len = usize::try_from(size - at).unwrap_or(STEP).min(STEP);
        crate::storage::write_slice(storage, &zeros[..len], at)?;
        at += len as u64;
    }
    Ok(())
}

fn descriptor_for(image: &str) -> Result<Descriptor> {
    Descriptor::new(
        CREATOR,
        ImageEntry {
            file: image.to_owned(),
            format: Format::Raw,
            checksum: None,
        },
    )
}
