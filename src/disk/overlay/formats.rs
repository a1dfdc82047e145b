//! Backing images in the formats of other programs.
//!
//! May call `format`, which says what an image names; it is opened here. Invariant: what an image names is opened as what
//! a descriptor names is: once, confined, by the caller's own way to open files, in a format that is written down.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::chain::{Has, Layer};
use super::open::{Backing, measured};
use crate::descriptor::names::child_path;
use crate::descriptor::{BackingEntry, Format};
use crate::disk::Child;
use crate::disk::open::Files;
use crate::error::{Error, ErrorCode, Result};
use crate::format::{qcow2, vmdk};
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
    let (file, path) = find(files, base, named)?;
    let mut holds = vec![files.hold(&file, &path.shown)?];
    let unopened = qcow2::Unopened::read(file, &path.shown)?;
    let backing = backing_of(&unopened, &path.shown)?;
    let data_file = match unopened.data_file_name()? {
        None => None,
        Some(name) => Some(
            part(files, &path, "the data file", name)
                .and_then(|(data, shown)| {
                    holds.push(files.hold(&data, &shown)?);
                    Ok(data)
                })
                .map_err(|e| e.context(path.shown.display()))?,
        ),
    };
    let image = unopened.open(data_file, None, false)?;
    let image = Child::of_format(Arc::new(image), path.shown);
    let has = match backing {
        Some(_) => Has::Tables,
        None => Has::All,
    };
    Ok(Opened {
        layer: layer(image, holds, Format::Qcow2, has)?,
        backing,
        base: path.base,
    })
}

/// A vmdk that the file in `base` names.
pub(super) fn vmdk(files: &mut Files<'_>, base: &Path, named: &Backing) -> Result<Layer> {
    let (file, path) = find(files, base, named)?;
    let mut holds = vec![files.hold(&file, &path.shown)?];
    let unopened = vmdk::Unopened::read(file, &path.shown)?;
    let mut extents = Vec::new();
    for name in unopened.files() {
        let (extent, shown) =
            part(files, &path, "an extent", name).map_err(|e| e.context(path.shown.display()))?;
        holds.push(files.hold(&extent, &shown)?);
        extents.push((extent, shown));
    }
    let image = Child::of_format(Arc::new(unopened.open(extents)?), path.shown);
    layer(image, holds, Format::Vmdk, Has::All)
}

/// The file of an image that names others.
struct Place {
    /// Its folder, as the disk's sees it. As with QEMU, that is where its name is, whatever links lead from there.
    base: PathBuf,
    shown: PathBuf,
}

fn find(files: &mut Files<'_>, base: &Path, named: &Backing) -> Result<(Arc<dyn Storage>, Place)> {
    let path = base.join(
        child_path(&named.entry.file)
            .map_err(|e| e.context(format_args!("{}: {:?}", named.key, named.entry.file)))?,
    );
    let (file, shown) = files.naming(Role::Backing, &named.key, &path, Access::default())?;
    let base = path.parent().unwrap_or(Path::new("")).to_owned();
    Ok((file, Place { base, shown }))
}

fn part(files: &mut Files<'_>, of: &Place, what: &str, name: &str) -> Result<(Arc<dyn Storage>, PathBuf)> {
    files.open(Role::Backing, what, &of.base, name, Access::default())
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

fn layer(image: Child, holds: Vec<super::Hold>, format: Format, has: Has) -> Result<Layer> {
    Ok(Layer {
        length: measured(&image)?,
        image,
        holds,
        format,
        descriptor: None,
        has,
    })
}
