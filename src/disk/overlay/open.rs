//! Opening the images below a disk.
//!
//! Invariant: every file is opened once, read-only, through the disk's own folder (so that a caller who hands files in
//! is asked for each), in the format that a descriptor names; and the walk ends: no file is used twice, and there are
//! no more images than the limit.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::below::Below;
use super::chain::{Allocated, Chain, Has, Layer};
use super::formats::{self, OwnImage};
use super::hold::Hold;
use crate::bitmap::{BitmapFile, BitmapPolicy};
use crate::descriptor::{BackingEntry, BitmapKind, Descriptor, Format};
use crate::disk::Child;
use crate::disk::bitmaps::Loading;
use crate::disk::nested::Nested;
use crate::disk::open::{Files, Place, check_length};
use crate::error::{Error, ErrorCode, Result};
use crate::state::{Evidence, Stamp, StateFile, Tenure};
use crate::storage::{Access, Role};

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
            files.count_image()?;
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
                    // What tells of its users is asked of a disk that is an image.
                    let is_image = files.is_within() && layers.is_empty();
                    let (layer, below) = described(files, &base, &descriptor, (&shown, is_image), loading)
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
        Ok(Self::of(layers))
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
        folder: None,
        has: Has::All,
        bits_file: None,
        shadowed: false,
        kept: true,
        tenure: None,
    })
}

/// The layer of a descriptor that lies in `base`; and what the image itself names below it, from which folder.
fn described(
    files: &mut Files<'_>,
    base: &Path,
    descriptor: &Descriptor,
    (shown, is_image): (&Path, bool),
    loading: &Loading,
) -> Result<(Layer, Option<(PathBuf, Backing)>)> {
    let entry = descriptor.image();
    let named = (shown, is_image);
    if entry.format == Format::Qbm {
        let image = nested(files, base, shown, &entry.file, loading)?;
        return layer_of(files, base, descriptor, named, (image, Vec::new(), None), loading);
    }
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
    layer_of(files, base, descriptor, named, (image, holds, below), loading)
}

/// An image below a disk that is a QBM disk itself, as `file`, which the descriptor `shown` in `base` names.
pub(super) fn nested(
    files: &mut Files<'_>,
    base: &Path,
    shown: &Path,
    file: &str,
    loading: &Loading,
) -> Result<Child> {
    let _level = files.enter_level()?;
    let backing = Backing {
        key: "QBM.image.file".to_owned(),
        entry: BackingEntry {
            file: file.to_owned(),
            format: Format::Qbm,
        },
    };
    // Its own errors name the files below; this one is named by the caller.
    let chain = Chain::open_from(files, base.to_owned(), None, Some(backing), loading)?;
    let path = chain.layers.first().and_then(|it| it.descriptor.clone());
    let path = path.unwrap_or_else(|| shown.to_owned());
    Ok(Child::nested(
        Nested::Chain(Below::from(&Arc::new(chain), 0)),
        path,
    ))
}

fn layer_of(
    files: &mut Files<'_>,
    base: &Path,
    descriptor: &Descriptor,
    (shown, is_image): (&Path, bool),
    (image, holds, below): (Child, Vec<Hold>, Option<(PathBuf, Backing)>),
    loading: &Loading,
) -> Result<(Layer, Option<(PathBuf, Backing)>)> {
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
    let mut state = Seen {
        // Bits that no state file vouches for may have gone with the process that set them.
        kept: !matches!(has, Has::Bits(_)),
        tenure: None,
    };
    if let Some(entry) = descriptor
        .state()
        .filter(|_| matches!(has, Has::Bits(_)) || is_image)
    {
        let allocated = match &has {
            Has::Bits(allocated) => Some(&**allocated),
            Has::All | Has::Tables => None,
        };
        let before = allocated.map_or(0, |it| it.bits.count());
        if let Some(found) = look_at_state(files, base, &entry.file, &image, allocated)? {
            state = found;
        }
        shadowed = allocated.is_some_and(|it| it.bits.count() > before);
    }
    let layer = Layer {
        image,
        holds,
        format: descriptor.image().format,
        length,
        descriptor: Some(shown.to_owned()),
        folder: files.folder_of(base),
        has,
        bits_file,
        shadowed,
        kept: state.kept,
        tenure: state.tenure,
    };
    Ok((layer, below))
}

/// Whoever had this disk open for writing may have been killed: what he had not flushed shows here, too, where it is sure to
/// be there (A3). In memory alone.
fn look_at_state(
    files: &mut Files<'_>,
    base: &Path,
    state: &str,
    image: &Child,
    allocated: Option<&Allocated>,
) -> Result<Option<Seen>> {
    let opened = files.open(Role::Backing, "QBM.state.file", base, state, Access::default());
    let (state, path) = match opened {
        Err(error) if error.code() == ErrorCode::FileNotFound => return Ok(None),
        opened => opened?,
    };
    // Without a valid state nothing vouches for a shadow.
    let Ok(found) = StateFile::inspect(&*state, &path)? else {
        return Ok(None);
    };
    let header = found.header();
    let mut seen = Seen {
        kept: allocated.is_none() || header.clean,
        tenure: header.tenure,
    };
    let Some(allocated) = allocated else {
        return Ok(Some(seen));
    };
    // Of an image that is a disk itself, and that another has used since, nothing is known.
    let other_user = match &header.stamp {
        Some(then) if image.nested.is_some() => then
            .other_user(&Stamp::of(&*image.storage, &image.path)?)
            .is_some(),
        _ => false,
    };
    if other_user || !image.kept_all() {
        return Ok(Some(seen));
    }
    let now = match files.cache_epoch() {
        Some(epoch) => Ok(Evidence::of_epoch(epoch)?),
        None => image.evidence(&*state),
    };
    let shadow = found.shadow(&state, &path, &now, allocated.granularity, allocated.bits.len())?;
    if let Some(shadow) = shadow {
        allocated.bits.merge_from(&shadow);
        seen.kept = true;
    }
    Ok(Some(seen))
}

/// What the state file of a backing disk says.
struct Seen {
    /// See [`Layer::kept`].
    kept: bool,
    tenure: Option<Tenure>,
}

/// The length of an image, which must be one that a disk can have.
pub(in crate::disk) fn measured(image: &Child) -> Result<u64> {
    let length = image.storage.length().map_err(|e| image.failed("measure", &e))?;
    check_length(length, &image.path)?;
    Ok(length)
}
