//! The chain of backing images that hangs below a descriptor, as far as the descriptors alone tell.
//!
//! Invariant: following a chain ends: no descriptor is visited twice, and none beyond the depth limit.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::open::Place;
use crate::descriptor::names::child_path;
use crate::descriptor::{BackingEntry, BitmapKind, Descriptor, Format};
use crate::error::{Error, ErrorCode, Result};
use crate::storage::{Access, FileIdentity, Folder, HostFolder, Role};

/// The most images below a disk.
const MAX_DEPTH: usize = 256;

fn backing_of(descriptor: &Descriptor) -> Option<&BackingEntry> {
    match &descriptor.allocation()?.1.kind {
        BitmapKind::Allocation { backing } => backing.as_ref(),
        BitmapKind::Dirty => None,
    }
}

/// Fails where the chain below `descriptor` leads back to itself or is too deep.
///
/// `identity` is the descriptor's file, where anything tells.
pub(super) fn check(place: &Place, descriptor: &Descriptor, identity: Option<FileIdentity>) -> Result<()> {
    let mut visited: HashSet<_> = identity.into_iter().collect();
    let mut folder: Arc<dyn Folder> = place.folder.clone();
    let mut shown: PathBuf = place.shown.clone();
    let mut current = descriptor.clone();
    for _ in 0..MAX_DEPTH {
        let Some(backing) = backing_of(&current).filter(|backing| backing.format == Format::Qbm) else {
            return Ok(());
        };
        let name = child_path(&backing.file)
            .map_err(|e| e.context(format_args!("{:?}", backing.file)))?
            .to_owned();
        let path = shown.join(&name);
        let storage = visit(&*folder, &name, Role::Backing, &shown, &mut visited)?;
        current = Descriptor::read(&*storage).map_err(|e| e.context(path.display()))?;
        // The next names are relative to the folder of the descriptor that holds them.
        if let Some(parent) = name.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            shown.push(parent);
            folder =
                Arc::new(HostFolder::open(&shown).map_err(|e| Error::io("open the folder", &shown, &e))?);
        }
    }
    Err(Error::new(
        ErrorCode::NotSupported,
        format!("the backing chain is deeper than {MAX_DEPTH} images"),
    ))
}

fn visit(
    folder: &dyn Folder,
    name: &Path,
    role: Role,
    shown: &Path,
    visited: &mut HashSet<FileIdentity>,
) -> Result<Arc<dyn crate::storage::Storage>> {
    let path = shown.join(name);
    let storage = folder
        .open(role, name, Access::default())
        .map_err(|e| Error::io("open the backing image", &path, &e))?;
    if let Some(identity) = storage.identity()
        && !visited.insert(identity)
    {
        return Err(Error::new(
            ErrorCode::FileInvalid,
            format!("the backing chain leads back to {}", path.display()),
        ));
    }
    Ok(storage)
}
