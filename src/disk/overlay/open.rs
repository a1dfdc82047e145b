//! Opening the images below a disk.
//!
//! Invariant: every file is opened once, read-only, through the disk's own folder (so that a caller who hands files in
//! is asked for each), in the format that a descriptor names; and the walk ends: no file is used twice, and there are
//! no more images than the limit.

use std::path::{Path, PathBuf};

use super::chain::{Allocated, Chain, Has, Layer};
use super::formats::{self, OwnImage};
use crate::bitmap::{BitmapFile, BitmapPolicy};
use crate::descriptor::{BackingEntry, BitmapKind, Descriptor, Format};
use crate::disk::Child;
use crate::disk::bitmaps::Loading;
use crate::disk::open::{Files, Place, check_length};
use crate::error::{Error, ErrorCode, Result};
use crate::state::{Evidence, StateFile};
use crate::storage::{Access, Role};

/// The most images below a disk.
const MAX_DEPTH: usize = 256;

impl Chain {
    /// Opens `backing`, which the disk whose files these are names, and all below it.
    pub(in crate::disk) fn open(
        files: &mut Files<'_>,
        backing: Option<Backing>,
        loading: &Loading,
    ) -> Result<Self> {
        Self::open_from(files, PathBuf::new(), None, backing, loading)
    }

    /// Opens `backing`, which the file `named_by` in the folder `base` names, as the disk's folder sees that; and all
    /// below it.
    pub(super) fn open_from(
        files: &mut Files<'_>,
        mut base: PathBuf,
        mut named_by: Option<PathBuf>,
        backing: Option<Backing>,
        loading: &Loading,
    ) -> Result<Self> {
        let mut layers = Vec::new();
        let mut next = backing;
        while let Some(backing) = next.take() {
            if layers.len() == MAX_DEPTH {
                return Err(Error::new(
                    ErrorCode::NotSupported,
                    format!("the backing chain is deeper than {MAX_DEPTH} images"),
                ));
            }
            let explain = |e: Error| match &named_by {
                Some(path) => e.context(path.display()),
                None => e,
            };
            let layer = match backing.entry.format {
                Format::Raw => raw(files, &base, &backing).map_err(explain)?,
                Format::Qcow2 => {
                    let opened = formats::qcow2(files, &base, &backing).map_err(explain)?;
                    base = opened.base;
                    next = opened.backing;
                    named_by = Some(opened.layer.image.path.clone());
                    opened.layer
                }
                Format::Vmdk => formats::vmdk(files, &base, &backing).map_err(explain)?,
                Format::Qbm => {
                    let (descriptor, path) = files
                        .backing_descriptor(&backing.key, &base, &backing.entry.file)
                        .map_err(explain)?;
                    path.parent().unwrap_or(Path::new("")).clone_into(&mut base);
                    let shown = files.shown(&path);
                    next = Backing::of(&descriptor);
                    let (layer, below) = described(files, &base, &descriptor, &shown, loading)
                        .map_err(|e| e.context(shown.display()))?;
                    named_by = Some(shown);
                    if let Some((from, backing)) = below {
                        named_by = Some(layer.image.path.clone());
                        base = from;
                        next = Some(backing);
                    }
                    layer
                }
            };
            layers.push(layer);
        }
        Ok(Self {
            layers,
            unopened: false,
        })
    }
}

/// A backing image, as a descriptor names it.
#[derive(Clone, Debug)]
pub(in crate::disk) struct Backing {
    /// What messages call the file's name: its key in a descriptor.
    pub(super) key: String,
    pub(super) entry: BackingEntry,
}

impl Backing {
    /// What `descriptor` has below its image.
    pub(in crate::disk) fn of(descriptor: &Descriptor) -> Option<Self> {
        let (name, bitmap) = descriptor.allocation()?;
        let BitmapKind::Allocation { backing: Some(entry) } = &bitmap.kind else {
            return None;
        };
        Some(Self {
            key: format!("QBM.bitmaps[{name:?}].backing.file"),
            entry: entry.clone(),
        })
    }

    /// Opens the image, and all below it, for a disk that is not made yet in `place`.
    pub(in crate::disk) fn try_out(self, place: &Place) -> Result<Chain> {
        Chain::open(&mut Files::new(place), Some(self), &Loading::new(None))
    }
}

fn raw(files: &mut Files<'_>, base: &Path, backing: &Backing) -> Result<Layer> {
    let (image, path) = files.open(
        Role::Backing,
        &backing.key,
        base,
        &backing.entry.file,
        Access::default(),
    )?;
    let hold = files.hold(&image, &path)?;
    let image = Child::new(image, path);
    Ok(Layer {
        length: measured(&image)?,
        image,
        holds: vec![hold],
        format: Format::Raw,
        descriptor: None,
        has: Has::All,
        bits_file: None,
        shadowed: false,
    })
}

/// The layer of a descriptor that lies in `base`; and what the image itself names below it, from which folder.
fn described(
    files: &mut Files<'_>,
    base: &Path,
    descriptor: &Descriptor,
    shown: &Path,
    loading: &Loading,
) -> Result<(Layer, Option<(PathBuf, Backing)>)> {
    let entry = descriptor.image();
    let file = files.open(
        Role::Backing,
        "QBM.image.file",
        base,
        &entry.file,
        Access::default(),
    )?;
    let mut holds = vec![files.hold(&file.0, &file.1)?];
    let (image, below) = if entry.format == Format::Raw {
        (Child::new(file.0, file.1), None)
    } else {
        let unopened = OwnImage::look(files, base, entry, file, Role::Backing, Access::default())?;
        let below = unopened.below();
        unopened.hold_parts(files, &mut holds)?;
        (unopened.open(None)?, below)
    };
    let length = measured(&image)?;
    let mut has = match below {
        None => Has::All,
        Some(_) => Has::Tables,
    };
    let mut bits_file = None;
    if let Some((name, entry)) = descriptor.allocation() {
        if below.is_some() {
            return Err(formats::two_backings(name));
        }
        let key = format!("QBM.bitmaps[{name:?}].file");
        let (file, path) = files.open(Role::Backing, &key, base, &entry.file, Access::default())?;
        let file = BitmapFile::new(file, path, BitmapPolicy::WriteThrough);
        let granules = entry.granularity.granules_in(length);
        has = Has::Bits(Box::new(Allocated {
            granularity: entry.granularity,
            bits: loading
                .reserved(granules, || file.load(granules))
                .map_err(|e| e.context(&key))?,
        }));
        bits_file = Some(file);
    }
    let mut shadowed = false;
    // A qcow2 that was killed has lost its own table's entries: no bit says that a granule is there.
    if let (Has::Bits(allocated), Some(entry), None) = (&has, descriptor.state(), &image.mapped) {
        shadowed = add_shadow(files, base, &entry.file, &image, allocated)?;
    }
    let layer = Layer {
        image,
        holds,
        format: entry.format,
        length,
        descriptor: Some(shown.to_owned()),
        has,
        bits_file,
        shadowed,
    };
    Ok((layer, below))
}

/// Whoever had this disk open for writing may have been killed: what he had not flushed shows here, too, where it is sure to
/// be there (A3). In memory alone. Tells whether there was any.
fn add_shadow(
    files: &mut Files<'_>,
    base: &Path,
    state: &str,
    image: &Child,
    allocated: &Allocated,
) -> Result<bool> {
    let opened = files.open(Role::Backing, "QBM.state.file", base, state, Access::default());
    let (state, path) = match opened {
        Err(error) if error.code() == ErrorCode::FileNotFound => return Ok(false),
        opened => opened?,
    };
    // Without a valid state nothing vouches for a shadow.
    let Ok(found) = StateFile::inspect(&*state, &path)? else {
        return Ok(false);
    };
    let now = match files.cache_epoch() {
        Some(epoch) => Ok(Evidence::of_epoch(epoch)?),
        None => Evidence::gather(&*state, [&*image.storage]),
    };
    let shadow = found.shadow(&state, &path, &now, allocated.granularity, allocated.bits.len())?;
    let before = allocated.bits.count();
    if let Some(shadow) = shadow {
        allocated.bits.merge_from(&shadow);
    }
    Ok(allocated.bits.count() > before)
}

/// The length of an image, which must be one that a disk can have.
pub(in crate::disk) fn measured(image: &Child) -> Result<u64> {
    let length = image.storage.length().map_err(|e| image.failed("measure", &e))?;
    check_length(length, &image.path)?;
    Ok(length)
}
