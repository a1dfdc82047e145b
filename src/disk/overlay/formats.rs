//! Images in the formats of other programs: a disk's own, and those below it.
//!
//! May call `format`, which says what an image names; it is opened here. Invariant: what an image names is opened as what
//! a descriptor names is: once, confined, by the caller's own way to open files, in a format that is written down.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::below::Below;
use super::chain::{Chain, Has, Layer};
use super::hold::Hold;
use super::open::{Backing, measured, nested};
use crate::descriptor::names::child_path;
use crate::descriptor::{BackingEntry, Format, ImageEntry};
use crate::disk::Child;
use crate::disk::bitmaps::Loading;
use crate::disk::open::{Files, Place};
use crate::error::{Error, ErrorCode, Result};
use crate::format::{FormatImage, qcow2, vmdk};
use crate::storage::{Access, Role, Storage};

/// An image, and what it names.
pub(super) struct Opened {
    pub(super) layer: Layer,
    pub(super) backing: Option<Backing>,
    /// Where names in it are relative to, as the disk's folder sees it.
    pub(super) base: PathBuf,
}

/// A qcow2 that the file in `base` names.
pub(super) fn qcow2(files: &mut Files<'_>, base: &Path, named: &Backing) -> Result<Opened> {
    let (image, holds) = find(files, base, named)?;
    let (base, backing) = match image.below() {
        Some((base, backing)) => (base, Some(backing)),
        None => (PathBuf::new(), None),
    };
    let has = match backing {
        Some(_) => Has::Tables,
        None => Has::All,
    };
    Ok(Opened {
        layer: layer(image.open(None)?, holds, Format::Qcow2, has)?,
        backing,
        base,
    })
}

/// A vmdk that the file in `base` names.
pub(super) fn vmdk(files: &mut Files<'_>, base: &Path, named: &Backing) -> Result<Layer> {
    let (image, holds) = find(files, base, named)?;
    layer(image.open(None)?, holds, Format::Vmdk, Has::All)
}

fn find(files: &mut Files<'_>, base: &Path, named: &Backing) -> Result<(OwnImage, Vec<Hold>)> {
    let entry = &named.entry;
    let name =
        child_path(&entry.file).map_err(|e| e.context(format_args!("{}: {:?}", named.key, entry.file)))?;
    let path = base.join(name);
    let file = files.naming(Role::Backing, &named.key, &path, Access::default())?;
    let mut holds = vec![files.hold(&file.0, &file.1)?];
    let from = path.parent().unwrap_or(Path::new("")).to_owned();
    let image = OwnImage::read(files, from, entry.format, file, Role::Backing, Access::default())?;
    image.hold_parts(files, &mut holds)?;
    Ok((image, holds))
}

/// An image that is no raw one, with the other files that it consists of.
pub(in crate::disk) struct OwnImage {
    shown: PathBuf,
    parts: Vec<(Arc<dyn Storage>, PathBuf)>,
    /// Its folder, as the disk's sees it: names in it are relative to that. As with QEMU, it is where the image's name
    /// is, whatever links lead from there.
    base: PathBuf,
    backing: Option<Backing>,
    writable: bool,
    /// What its header gets where the open has to change it; zero for nothing.
    mark: u64,
    kind: Kind,
}

enum Kind {
    Qcow2(qcow2::Unopened),
    Vmdk(vmdk::Unopened),
}

impl OwnImage {
    /// The image that `entry` of the descriptor in `base` names, and that was opened as `file`.
    pub(in crate::disk) fn look(
        files: &mut Files<'_>,
        base: &Path,
        entry: &ImageEntry,
        file: (Arc<dyn Storage>, PathBuf),
        role: Role,
        access: Access,
    ) -> Result<Self> {
        let path = base.join(child_path(&entry.file)?);
        let from = path.parent().unwrap_or(Path::new("")).to_owned();
        Self::read(files, from, entry.format, file, role, access)
    }

    fn read(
        files: &mut Files<'_>,
        base: PathBuf,
        format: Format,
        (file, shown): (Arc<dyn Storage>, PathBuf),
        role: Role,
        access: Access,
    ) -> Result<Self> {
        let mut parts = Vec::new();
        let mut backing = None;
        let mut part = |what: &str, name: &str| {
            let opened = files
                .open(role, what, &base, name, access)
                .map_err(|e| e.context(shown.display()))?;
            parts.push(opened);
            Ok::<_, Error>(())
        };
        let kind = match format {
            Format::Qcow2 => {
                let unopened = qcow2::Unopened::read(file, &shown)?;
                if access.write {
                    unopened.check_writable()?;
                }
                backing = backing_of(&unopened, &shown)?;
                if let Some(name) = unopened.data_file_name()? {
                    part("the data file", name)?;
                }
                Kind::Qcow2(unopened)
            }
            Format::Vmdk if access.write => {
                return Err(Error::new(
                    ErrorCode::NotSupported,
                    format!(
                        "{} is a vmdk, which can only be read: open the disk read-only",
                        shown.display()
                    ),
                ));
            }
            Format::Vmdk => {
                let unopened = vmdk::Unopened::read(file, &shown)?;
                unopened.files().try_for_each(|name| part("an extent", name))?;
                Kind::Vmdk(unopened)
            }
            // Whoever asks has seen to these, which have no tables.
            Format::Raw | Format::Qbm => {
                return Err(Error::new(
                    ErrorCode::NotSupported,
                    format!("{} is a {format} image, and has no tables", shown.display()),
                ));
            }
        };
        Ok(Self {
            shown,
            parts,
            base,
            backing,
            writable: access.write,
            mark: 0,
            kind,
        })
    }

    /// Opens the image `entry` of a disk that is not made yet in `place`, for reading and with all that it names; its
    /// length.
    pub(in crate::disk) fn measure(
        place: &Place,
        entry: &ImageEntry,
        file: (Arc<dyn Storage>, PathBuf),
    ) -> Result<u64> {
        let mut files = Files::new(place);
        if entry.format == Format::Qbm {
            let shown = files.shown(Path::new(""));
            let image = nested(
                &mut files,
                Path::new(""),
                &shown,
                &entry.file,
                &Loading::new(None),
            )?;
            return measured(&image);
        }
        files.note("the image", &*file.0, true);
        let image = Self::of_disk(&mut files, entry, file, &Loading::new(None))?;
        measured(&image.0)
    }

    /// Opens the image `entry` of a disk to be read, over what it names.
    pub(in crate::disk) fn of_disk(
        files: &mut Files<'_>,
        entry: &ImageEntry,
        file: (Arc<dyn Storage>, PathBuf),
        loading: &Loading,
    ) -> Result<(Child, Option<Arc<Chain>>)> {
        let image = Self::look(files, Path::new(""), entry, file, Role::Image, Access::default())?;
        let below = image.chain(files, false, loading)?;
        Ok((image.open(below.as_ref())?, below))
    }

    /// Has a header that the open changes tell which image it was.
    pub(in crate::disk) fn marking(mut self, mark: u64) -> Self {
        self.mark = mark;
        self
    }

    /// The other files that it consists of.
    pub(in crate::disk) fn parts(&self) -> impl Iterator<Item = (&Arc<dyn Storage>, &Path)> {
        self.parts.iter().map(|(file, path)| (file, &**path))
    }

    /// The image below it that it names, and the folder from which it does.
    pub(super) fn below(&self) -> Option<(PathBuf, Backing)> {
        Some((self.base.clone(), self.backing.clone()?))
    }

    /// Opens the chain below it, if there is one; or does not, on request.
    pub(in crate::disk) fn chain(
        &self,
        files: &mut Files<'_>,
        unopened: bool,
        loading: &Loading,
    ) -> Result<Option<Arc<Chain>>> {
        let Some((base, backing)) = self.below() else {
            return Ok(None);
        };
        let chain = if unopened {
            Chain::without_images(unopened)
        } else {
            Chain::open_from(files, base, Some(self.shown.clone()), Some(backing), loading)?
        };
        Ok(Some(Arc::new(chain)))
    }

    /// The image; with a chain, what it does not have is read from there.
    pub(in crate::disk) fn open(self, below: Option<&Arc<Chain>>) -> Result<Child> {
        self.open_over(below.map(|chain| Below::from(chain, 0)))
    }

    /// Fails where the format cannot have an image of `length` bytes that is like this one.
    pub(super) fn check_length(&self, length: u64) -> Result<()> {
        match &self.kind {
            Kind::Qcow2(unopened) => unopened.check_length(length),
            Kind::Vmdk(_) => Ok(()),
        }
    }

    /// The image; what it does not have is read from `below`.
    pub(super) fn open_over(self, below: Option<Below>) -> Result<Child> {
        let image: Arc<dyn FormatImage> = match self.kind {
            Kind::Qcow2(unopened) => {
                let data = self.parts.into_iter().next().map(|(data, _)| data);
                let below = below.map(|below| Arc::new(below) as Arc<dyn Storage>);
                Arc::new(unopened.open(data, below.as_ref(), self.writable, self.mark)?)
            }
            Kind::Vmdk(unopened) => Arc::new(unopened.open(self.parts)?),
        };
        Ok(Child::of_format(image, self.shown))
    }

    /// Keeps others from writing to the other files.
    pub(super) fn hold_parts(&self, files: &Files<'_>, holds: &mut Vec<Hold>) -> Result<()> {
        for (part, path) in self.parts() {
            holds.push(files.hold(part, path)?);
        }
        Ok(())
    }
}

/// An image with a backing of its own has no use for an allocation bitmap, which has another.
pub(in crate::disk) fn two_backings(bitmap: &str) -> Error {
    Error::new(
        ErrorCode::NotSupported,
        format!(
            "QBM.image.file: the image has a backing file of its own, and the allocation bitmap {bitmap:?} says what is \
             below it: it cannot have both"
        ),
    )
}

/// What a qcow2 has below it. Its format must be written in it: a raw disk's guest can make it look like any other.
fn backing_of(image: &qcow2::Unopened, path: &Path) -> Result<Option<Backing>> {
    let Some(named) = image.backing() else {
        return Ok(None);
    };
    let refuse = |code, words: String| Err(Error::new(code, words).context(path.display()));
    let Ok(format) = named.format.parse::<Format>() else {
        let rebase = format!(
            "qemu-img rebase -u -F FORMAT -b {} {}",
            named.file,
            path.display()
        );
        if named.format.is_empty() {
            return refuse(
                ErrorCode::FileInvalid,
                format!(
                    "the format of its backing file {:?} is not written in it, and is never guessed; \"{rebase}\" writes it",
                    named.file
                ),
            );
        }
        return refuse(
            ErrorCode::NotSupported,
            format!(
                "its backing file {:?} is of the unknown format {:?}; \"{rebase}\" names another",
                named.file, named.format
            ),
        );
    };
    if let Err(e) = child_path(&named.file) {
        return Err(e
            .context(format_args!("its backing file {:?}", named.file))
            .context(path.display()));
    }
    Ok(Some(Backing {
        key: "the backing file".to_owned(),
        entry: BackingEntry {
            file: named.file.clone(),
            format,
        },
    }))
}

fn layer(image: Child, holds: Vec<Hold>, format: Format, has: Has) -> Result<Layer> {
    Ok(Layer {
        length: measured(&image)?,
        image,
        holds,
        format,
        descriptor: None,
        folder: None,
        has,
        bits_file: None,
        shadowed: false,
        kept: true,
        tenure: None,
    })
}
