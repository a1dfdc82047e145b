//! Making a disk: a descriptor for an image that exists, or for a new one.
//!
//! Invariant: nothing that exists is overwritten, and a failure leaves nothing behind (M1).

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::open::Place;
use super::overlay::{Backing, OwnImage};
use super::recovery::NewState;
use crate::bitmap::{BitmapFile, BitmapPolicy, Bits};
use crate::descriptor::names::{FileName, child_path, create_unique};
use crate::descriptor::{BackingEntry, BitmapEntry, BitmapKind, Descriptor, Format, ImageEntry, save};
use crate::error::{Error, ErrorCode, Result};
use crate::state::RegionSize;
use crate::storage::{Access, Folder, Role, Storage, SyncMode};
use crate::units::{ByteRange, Granularity, MAX_LENGTH};

/// What is written into a new descriptor's `creator`.
const CREATOR: &str = concat!("libqbm ", env!("CARGO_PKG_VERSION"));

/// The name of the allocation bitmap in a new descriptor.
pub(super) const ALLOCATION: &str = "allocation";

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
    image_format: Option<Format>,
    preallocation: Preallocation,
    backing: Option<BackingEntry>,
    granularity: Option<Granularity>,
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

    /// An image that exists becomes the disk's; nothing in it is changed. It is raw unless a
    /// [format](Self::image_format) is given.
    ///
    /// The name goes into the descriptor as it is: a relative one is relative to the descriptor's folder.
    #[must_use]
    pub fn image(mut self, name: impl Into<String>) -> Self {
        self.image = Some(name.into());
        self
    }

    /// What the image that exists is: raw, qbm (a descriptor), qcow2 or vmdk. It is never guessed. A vmdk can only be read.
    #[must_use]
    pub fn image_format(mut self, format: Format) -> Self {
        self.image_format = Some(format);
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

    /// What is not written to the new disk is read from the image `name`, which is a `format`: raw, another QBM
    /// disk, qcow2 or vmdk.
    ///
    /// The name goes into the descriptor as it is: a relative one is relative to the descriptor's folder. The format is
    /// never guessed: in a raw image the guest could write what looks like another. Nothing in it is ever changed. The
    /// new disk is as long as the backing unless a [`size`](Self::size) is given.
    #[must_use]
    pub fn backing(mut self, name: impl Into<String>, format: Format) -> Self {
        self.backing = Some(BackingEntry {
            file: name.into(),
            format,
        });
        self
    }

    /// The unit in which the new disk takes things from its backing: 64 KiB unless it is given. Without a backing this
    /// makes a disk that only knows which granules have been written; the others read as zeros.
    #[must_use]
    pub fn granularity(mut self, granularity: Granularity) -> Self {
        self.granularity = Some(granularity);
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
        let place = Place::find(path, self.folder.as_ref(), false)?;
        // Asked first, so that no image is made for a descriptor that cannot be.
        check_free(&place)?;
        let is_overlay = self.backing.is_some() || self.granularity.is_some();
        match (&self.image, self.size) {
            (Some(_), _) if is_overlay => Err(Error::new(
                ErrorCode::InvalidArgument,
                "an allocation bitmap is for a new image: it would hide all that an existing one has",
            )),
            (Some(image), size) => self.adopt(&place, image, size),
            (None, _) if self.image_format.is_some() => Err(Error::new(
                ErrorCode::InvalidArgument,
                "a format is given for an image that exists, and none is named",
            )),
            (None, size) if is_overlay => self.create_overlay(&place, size),
            (None, Some(size)) => self.create_image(&place, size, |_, _| Ok(None)),
            (None, None) => Err(no_size()),
        }
    }

    /// A new image with an allocation bitmap, over the backing if there is one.
    fn create_overlay(&self, place: &Place, size: Option<u64>) -> Result<()> {
        if self.preallocation != Preallocation::Off {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                "preallocation is for a disk that has all of its bytes, and this one takes them as they are written",
            ));
        }
        let granularity = self.granularity.unwrap_or_default();
        let entry = |file: &str| allocation_entry(file, self.backing.clone(), granularity);
        let size = match Self::length_of_backing(place, entry(ALLOCATION))? {
            Some(length) => size.unwrap_or(length),
            None => size.ok_or_else(no_size)?,
        };
        self.create_image(place, size, |made, folder| {
            let file = FileName::bitmap(&place.name, ALLOCATION);
            let (name, storage) = create_unique(folder, Role::Bitmap, &file)?;
            made.push(name.clone());
            let path = place.shown.join(&name);
            BitmapFile::new(storage, path, BitmapPolicy::WriteThrough)
                .write_new(&Bits::new(granularity.granules_in(size))?)?;
            Ok(Some(entry(&name)))
        })
    }

    /// Opens the backing as the new disk would, so that nothing is made that cannot be opened.
    fn length_of_backing(place: &Place, allocation: BitmapEntry) -> Result<Option<u64>> {
        let mut draft = descriptor_for("draft", Format::Raw)?;
        draft.insert_bitmap(ALLOCATION, allocation)?;
        let Some(backing) = Backing::of(&draft) else {
            return Ok(None);
        };
        let chain = backing.try_out(place)?;
        Ok(chain.layers.first().map(|layer| layer.length))
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
        let descriptor = descriptor_for(image, self.image_format.unwrap_or(Format::Raw))?;
        let length = match descriptor.image().format {
            Format::Raw => storage.length().map_err(|e| Error::io("measure", &shown, &e))?,
            // Opened as it will be, with all that it names: what cannot be is told now.
            _ => OwnImage::measure(place, descriptor.image(), (Arc::clone(&storage), shown.clone()))?,
        };
        if let Some(size) = size.filter(|size| *size != length) {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                format!("the image {} is {length} bytes long, not {size}", shown.display()),
            ));
        }
        // Whoever may use the image is to be able to use the disk, and nobody else.
        self.save_new(place, descriptor, length, place.model(name, &*storage))
    }

    /// A new image, and a descriptor for it. The descriptor comes last: a crash before it leaves no disk at all.
    ///
    /// `allocation` makes the file of the allocation bitmap, if there is to be one, and notes its name.
    fn create_image(
        &self,
        place: &Place,
        size: u64,
        allocation: impl FnOnce(&mut Vec<String>, &dyn Folder) -> Result<Option<BitmapEntry>>,
    ) -> Result<()> {
        let folder = &*place.folder;
        folder
            .check_writable()
            .map_err(|e| Error::io("create files in", place.folder_name(), &e))?;
        let (name, storage) = create_unique(folder, Role::Image, &FileName::data(&place.name))?;
        let mut files = vec![name.clone()];
        let made = self
            .fill(&*storage, size)
            .map_err(|e| Error::io(&format!("give {size} bytes to"), place.shown.join(&name), &e))
            .and_then(|()| allocation(&mut files, folder))
            .and_then(|entry| {
                let mut descriptor = descriptor_for(&name, Format::Raw)?;
                if let Some(entry) = entry {
                    descriptor.insert_bitmap(ALLOCATION, entry)?;
                }
                self.save_new(place, descriptor, size, None)
            });
        if made.is_err() {
            for name in &files {
                // The first failure is the one to tell.
                let _ = folder.remove(Path::new(name));
            }
        }
        made
    }

    /// The descriptor, and before it the state file that it names; with the attributes of the file `like`, if it is given.
    fn save_new(
        &self,
        place: &Place,
        mut descriptor: Descriptor,
        length: u64,
        like: Option<&Path>,
    ) -> Result<()> {
        if self.no_state {
            return save::create_new(&*place.folder, &place.name, &descriptor, like);
        }
        let region = match self.region_bytes {
            None => RegionSize::DEFAULT,
            Some(bytes) => RegionSize::new(bytes).ok_or_else(|| {
                Error::new(
                    ErrorCode::InvalidArgument,
                    format!(
                        "a region of {bytes} bytes is not possible: it must be a power of two from 512 on"
                    ),
                )
            })?,
        };
        let state = NewState::create(place, region.for_length(length), like)?;
        let saved = descriptor
            .set_state(Some(state.entry.clone()))
            .and_then(|()| save::create_new(&*place.folder, &place.name, &descriptor, like));
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
            "find out whether there is a file",
            place.shown.join(&place.name),
            &e,
        )),
        _ => Err(Error::new(
            ErrorCode::FileExists,
            "it exists already, and is not overwritten",
        )),
    }
}

#[cold]
fn no_size() -> Error {
    Error::new(
        ErrorCode::InvalidArgument,
        "neither a size nor an existing image was given",
    )
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

fn descriptor_for(image: &str, format: Format) -> Result<Descriptor> {
    Descriptor::new(CREATOR, image_entry(image, format))
}

/// An image, as a descriptor names it.
pub(super) fn image_entry(file: &str, format: Format) -> ImageEntry {
    ImageEntry {
        file: file.to_owned(),
        format,
        checksum: None,
    }
}

/// An allocation bitmap, as a descriptor names it.
pub(super) fn allocation_entry(
    file: &str,
    backing: Option<BackingEntry>,
    granularity: Granularity,
) -> BitmapEntry {
    BitmapEntry {
        file: file.to_owned(),
        kind: BitmapKind::Allocation { backing },
        granularity,
        recording: None,
        epoch: None,
        start_length: None,
    }
}
