//! Writing a descriptor so that after any failure the file is the old one or the new one, never between (M1).
//!
//! Invariant: the name of the descriptor only ever belongs to a file whose content is whole and synced.

#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;

use super::names::{FileName, create_unique_like, take_after};
use super::{Descriptor, shown};
use crate::error::{Error, ErrorCode, Result};
use crate::mutation::{self, Fault};
use crate::storage::{Folder, Role, Storage, SyncMode, write_slice};

/// Why a descriptor was not replaced, or not for certain.
///
/// The difference decides which other files may be removed: those that only the new descriptor names, or none.
#[derive(Debug)]
pub enum SaveError {
    /// The old descriptor stands, and no temporary is left that could be removed.
    Unchanged(Error),
    /// The new descriptor has, or may have, its name, and a power cut may leave the old one or the new one. Files that either
    /// names must stay.
    Unsure(Error),
}

impl From<SaveError> for Error {
    fn from(error: SaveError) -> Self {
        match error {
            SaveError::Unchanged(error) | SaveError::Unsure(error) => error,
        }
    }
}

/// Puts `descriptor` in the place of the file `name`, atomically; mode, owner and extended attributes stay.
///
/// On return the new one is durable. A read-only folder is refused (`EROFS`) before anything is done.
pub fn replace(folder: &dyn Folder, name: &Path, descriptor: &Descriptor) -> Result<(), SaveError> {
    let bytes = bytes_of(descriptor, name).map_err(SaveError::Unchanged)?;
    check_writable(folder, name).map_err(SaveError::Unchanged)?;
    let (temporary, storage) = create_unique_like(folder, Role::Descriptor, &FileName::temporary(name), name)
        .map_err(SaveError::Unchanged)?;
    let temporary = Path::new(&temporary);
    let prepared = (|| {
        write_slice(&*storage, &bytes, 0).map_err(|error| Error::io("write", temporary, &error))?;
        // M1: the content must be durable before the name is, or a power cut could leave an empty descriptor.
        storage
            .sync(SyncMode::All)
            .map_err(|error| Error::io("sync", temporary, &error))
    })();
    if let Err(error) = prepared {
        // The first failure is the one to tell; a temporary that stays is found by `qbm check`.
        let _ = folder.remove(temporary);
        return Err(SaveError::Unchanged(error));
    }
    if let Err(error) = folder.rename(temporary, name) {
        let error = Error::io("replace", name, &error);
        // A rename that failed may have happened, on a network file system. It has not if its source is still there.
        return Err(match folder.remove(temporary) {
            Ok(()) => SaveError::Unchanged(error),
            Err(_) => unsure(error),
        });
    }
    if mutation::on(Fault::RenameUnsynced) {
        return Ok(());
    }
    folder
        .sync()
        .map_err(|error| unsure(Error::io("sync the folder of", name, &error)))
}

fn unsure(error: Error) -> SaveError {
    SaveError::Unsure(error.context("a power cut may leave the old descriptor or the new one"))
}

/// Makes the file `name`, which must not exist yet, with `descriptor` in it, and with the mode, owner and extended attributes
/// of the file `like`, if one is given. On return it is durable.
///
/// A failure removes it again; a power cut meanwhile can leave it empty or cut short, which no open accepts.
pub fn create_new(
    folder: &dyn Folder,
    name: &Path,
    descriptor: &Descriptor,
    like: Option<&Path>,
) -> Result<()> {
    let bytes = bytes_of(descriptor, name)?;
    check_writable(folder, name)?;
    let failed = |error: &io::Error| Error::io("create", name, error);
    let storage = if let Some(like) = like {
        let storage = folder
            .create_private(Role::Descriptor, name)
            .map_err(|e| failed(&e))?;
        take_after(folder, name, like)?;
        storage
    } else {
        folder.create(Role::Descriptor, name).map_err(|e| failed(&e))?
    };
    let written = fill(folder, &*storage, &bytes).map_err(|error| Error::io("write", name, &error));
    if written.is_err() {
        // The first failure is the one to tell.
        let _ = folder.remove(name);
    }
    written
}

fn fill(folder: &dyn Folder, storage: &dyn Storage, bytes: &[u8]) -> io::Result<()> {
    write_slice(storage, bytes, 0)?;
    if mutation::on(Fault::NewUnsynced) {
        return Ok(());
    }
    storage.sync(SyncMode::All)?;
    folder.sync()
}

fn check_writable(folder: &dyn Folder, name: &Path) -> Result<()> {
    folder
        .check_writable()
        .map_err(|error| Error::io("change", name, &error))
}

/// The new content, which must be one that can be opened again.
fn bytes_of(descriptor: &Descriptor, name: &Path) -> Result<Vec<u8>> {
    let bytes = descriptor.to_json();
    if bytes.len() as u64 > Descriptor::MAX_BYTES {
        return Err(Error::new(
            ErrorCode::NotSupported,
            format!(
                "cannot save {}: the descriptor would take {} bytes, more than the limit of {} (32 MiB)",
                shown(&name.to_string_lossy()),
                bytes.len(),
                Descriptor::MAX_BYTES
            ),
        ));
    }
    Ok(bytes)
}
