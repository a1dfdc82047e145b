//! Files that a crash left behind: libqbm made them, and no descriptor came to name them, or names them any more.
//!
//! Invariant: only such a file is called removable that has a name as libqbm makes them for this disk and for no other
//! one here, and that no descriptor in the folder names, whoever's it is. What cannot be read as a descriptor, and might
//! be one, as every `*.qbm` might, counts as naming everything. (libqbm makes files beside the descriptor that is to name them; a descriptor
//! that somebody wrote elsewhere by hand is not seen.)

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::report::{CheckReport, FindingKind};
use crate::descriptor::names::{FileName, child_path};
use crate::descriptor::{BitmapKind, Descriptor};
use crate::disk::open::{Files, Place};
use crate::error::{Error, ErrorCode, Result};
use crate::mutation::{self, Fault};
use crate::storage::{Access, FileIdentity, Role, Storage, read_slice};

/// Finds them, and removes them where `remove` says so.
pub(super) fn look(
    place: &Place,
    own: &Descriptor,
    files: &Files<'_>,
    remove: bool,
    report: &mut CheckReport,
) {
    let names = match place.folder.names() {
        Ok(names) => names,
        Err(error) => {
            let error = Error::io("list the folder", &place.shown, &error);
            return report.add_error(&error.context("leftover files were not looked for"));
        }
    };
    let candidates = candidates(place, own, files, &names, report);
    tell(place, &names, candidates, remove, report);
}

/// Removes of `old` what libqbm made for this disk, and what its descriptor, `own`, does not name any more.
pub(super) fn remove_old(place: &Place, own: &Descriptor, old: &[&str], report: &mut CheckReport) {
    let Ok(names) = place.folder.names() else {
        // A later look tells of what stays.
        return;
    };
    let ours =
        |name: &&str| could_be_made_for(&place.name, name) && !names_of(own).contains(&Path::new(name));
    let candidates = old
        .iter()
        .copied()
        .filter(ours)
        .filter_map(|name| Some((name, identity(place, Path::new(name)).ok()??)))
        .collect();
    tell(place, &names, candidates, true, report);
}

/// Tells of `candidates`, of all `names` in the folder, and removes them where `remove` says so and nobody else may need them.
fn tell(
    place: &Place,
    names: &[OsString],
    candidates: Vec<(&str, FileIdentity)>,
    remove: bool,
    report: &mut CheckReport,
) {
    if candidates.is_empty() {
        return;
    }
    let others: Vec<Other<'_>> = names
        .iter()
        .filter(|name| *name != place.name.as_os_str() && !is_one_of(&candidates, name))
        .filter_map(|name| Other::read(place, name))
        .collect();
    let remove = remove && is_durable(place, report);
    let mut removed = false;
    for (name, identity) in candidates {
        if others.iter().any(|other| other.has(identity)) {
            continue;
        }
        let shown = place.shown.join(name);
        let words = format!(
            "{} is named by no descriptor: perhaps a crash has left it behind",
            shown.display()
        );
        let doubt = others
            .iter()
            .find_map(|other| other.doubt(name))
            .map(|why| format!("{words}; it is not removed, as {why}"));
        let certain = doubt.is_none();
        let finding = report.add(FindingKind::Leftover, name, doubt.unwrap_or(words));
        if !certain {
            finding.mended_by(None);
        }
        if remove && certain {
            match place.folder.remove(Path::new(name)) {
                Ok(()) => {
                    finding.set_fixed();
                    removed = true;
                }
                Err(error) => {
                    let error = Error::io("remove", &shown, &error);
                    report.add(FindingKind::RepairFailed, name, error.message().to_owned());
                }
            }
        }
    }
    if removed && let Err(error) = place.folder.sync() {
        let error = Error::io("sync the folder", &place.shown, &error);
        report.add(FindingKind::RepairFailed, "", error.message().to_owned());
    }
}

/// Makes the folder's names durable: the descriptor that does not name a file may have its name in the page cache alone, and a
/// power cut would bring back the one that does (M1).
fn is_durable(place: &Place, report: &mut CheckReport) -> bool {
    if mutation::on(Fault::FoundNamesUnsynced) {
        return true;
    }
    let synced = place.folder.sync();
    if let Err(error) = &synced {
        let error = Error::io("sync the folder", &place.shown, error);
        report.add(FindingKind::RepairFailed, "", error.message().to_owned());
    }
    synced.is_ok()
}

/// Files that could be of this disk, and are not. What cannot be looked at is told.
fn candidates<'n>(
    place: &Place,
    own: &Descriptor,
    files: &Files<'_>,
    names: &'n [OsString],
    report: &mut CheckReport,
) -> Vec<(&'n str, FileIdentity)> {
    let mut possible: Vec<&str> = names
        .iter()
        .filter_map(|name| name.to_str())
        .filter(|name| could_be_made_for(&place.name, name))
        .filter(|name| !names_of(own).contains(&Path::new(name)))
        .collect();
    possible.sort_unstable();
    let mut candidates = Vec::new();
    for name in possible {
        match identity(place, Path::new(name)) {
            Ok(Some(identity)) if !files.has(identity) => candidates.push((name, identity)),
            Ok(_) => {}
            // Whoever may read the descriptor may read what was made for it.
            Err(error) if error.code() == ErrorCode::PermissionDenied => {}
            Err(error) => {
                report.add(FindingKind::NotChecked, name, error.message().to_owned());
            }
        }
    }
    candidates
}

fn is_one_of(candidates: &[(&str, FileIdentity)], name: &OsStr) -> bool {
    candidates.iter().any(|(it, _)| OsStr::new(it) == name)
}

/// Whether libqbm makes files of this name for the disk that `descriptor` describes, in the course of its life.
fn could_be_made_for(descriptor: &Path, name: &str) -> bool {
    let bitmap = name
        .strip_prefix(&FileName::bitmap_prefix(descriptor))
        .and_then(|rest| rest.strip_suffix(FileName::BITMAP_SUFFIX));
    bitmap.is_some_and(|bitmap| !bitmap.is_empty())
        || FileName::temporary(descriptor).is_of(name)
        || FileName::state(descriptor).is_of(name)
}

fn identity(place: &Place, path: &Path) -> Result<Option<FileIdentity>> {
    Ok(opened(place, path)?.and_then(|it| it.identity()))
}

/// `None` where there is no file of that name that a disk could use.
fn opened(place: &Place, path: &Path) -> Result<Option<Arc<dyn Storage>>> {
    match place.folder.open(Role::Backing, path, Access::default()) {
        Ok(storage) => Ok(Some(storage)),
        Err(error) => {
            let error = Error::io("open", place.shown.join(path), &error);
            match error.code() {
                ErrorCode::FileNotFound | ErrorCode::FileInvalid => Ok(None),
                _ => Err(error),
            }
        }
    }
}

/// The files that a descriptor in this folder names.
pub(super) fn names_of(descriptor: &Descriptor) -> Vec<&Path> {
    let mut names = vec![descriptor.image().file.as_str()];
    names.extend(descriptor.state().map(|state| state.file.as_str()));
    for (_, entry) in descriptor.bitmaps() {
        names.push(&entry.file);
        if let BitmapKind::Allocation {
            backing: Some(backing),
        } = &entry.kind
        {
            names.push(&backing.file);
        }
    }
    names
        .into_iter()
        .filter_map(|name| child_path(name).ok())
        .collect()
}

/// Another file of the folder that is a descriptor, or could be one.
struct Other<'n> {
    name: &'n OsStr,
    /// The files that it names, as far as there are such; an error where that is not known.
    names: Result<Vec<FileIdentity>>,
}

impl<'n> Other<'n> {
    /// `None` where the file is no descriptor.
    fn read(place: &Place, name: &'n OsStr) -> Option<Self> {
        let names = Self::names(place, Path::new(name)).transpose()?;
        Some(Self { name, names })
    }

    fn names(place: &Place, name: &Path) -> Result<Option<Vec<FileIdentity>>> {
        let Some(storage) = opened(place, name)? else {
            return Ok(None);
        };
        // Whatever is left of it, or has become of it.
        let called_one = name.extension().is_some_and(|it| it.eq_ignore_ascii_case("qbm"));
        let first = beginning(&*storage).map_err(|e| Error::io("read", place.shown.join(name), &e))?;
        if !called_one && first.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
            return Ok(None);
        }
        let descriptor = match Descriptor::read(&*storage) {
            // JSON, and none of ours.
            Err(error)
                if error.code() == ErrorCode::DescriptorInvalid
                    && !called_one
                    && !first.windows(5).any(|it| it == b"\"QBM\"") =>
            {
                return Ok(None);
            }
            found => found?,
        };
        let names = names_of(&descriptor).into_iter();
        let found = names.filter_map(|name| identity(place, name).transpose());
        found.collect::<Result<_>>().map(Some)
    }

    fn has(&self, file: FileIdentity) -> bool {
        self.names.as_ref().is_ok_and(|names| names.contains(&file))
    }

    /// Why a file might be this one's, in words.
    fn doubt(&self, name: &str) -> Option<String> {
        let shown = self.name.display();
        match &self.names {
            Err(error)
                if matches!(
                    error.code(),
                    ErrorCode::DescriptorInvalid | ErrorCode::NotSupported
                ) =>
            {
                Some(format!("{shown} may name it, and cannot be read as a descriptor"))
            }
            Err(error) => Some(format!("{shown} may name it: {error}")),
            Ok(_) if could_be_made_for(Path::new(self.name), name) => {
                Some(format!("it may be a new file of {shown}, too"))
            }
            Ok(_) => None,
        }
    }
}

/// The first bytes of a file, as many as tell whether it is a descriptor.
fn beginning(storage: &dyn Storage) -> io::Result<Vec<u8>> {
    let length = storage.length()?.min(512);
    let mut first = vec![0; usize::try_from(length).unwrap_or(0)];
    read_slice(storage, &mut first, 0)?;
    Ok(first)
}
