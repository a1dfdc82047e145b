//! The state file that a disk is given: by whoever creates it, or opens it for writing and finds none.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{Content, Recovered, Recovering};
use crate::descriptor::names::{FileName, create_unique, create_unique_like};
use crate::descriptor::save::{self, SaveError};
use crate::descriptor::{Descriptor, StateEntry};
use crate::disk::NoticeCode;
use crate::disk::bitmaps::Bitmap;
use crate::disk::open::{Held, Place};
use crate::error::{Error, Result};
use crate::state::{Header, Lock, RegionSet, RegionSize, Sharing, StateFile, Tenure};
use crate::storage::{Role, Storage};

impl Recovering<'_> {
    pub(super) fn new_header(&self, descriptor: &Descriptor) -> Header {
        new_header(region_size(descriptor.state()).for_length(self.length))
    }

    /// Gives a disk that is open for writing a state file, where that can be.
    pub(super) fn add(
        &self,
        descriptor: &mut Descriptor,
        bitmaps: &[Bitmap],
        locks: &mut Held,
    ) -> Result<Recovered> {
        if self.options.read_only || self.options.no_state {
            return Ok(Recovered::default());
        }
        let made = match self.make(descriptor) {
            Ok(made) => made,
            Err(SaveError::Unsure(error)) => return Err(error),
            Err(SaveError::Unchanged(error)) => {
                self.options.notify.send(
                    NoticeCode::Unprotected,
                    &format!("the disk has no state file and can be given none, so that a power cut can lose bits: {error}"),
                );
                return Ok(Recovered::default());
            }
        };
        if !self.options.no_lock {
            locks.extend(Lock::state(&made.storage, made.file.path(), Sharing::Write)?);
        }
        let evidence = self.evidence(&*made.storage, bitmaps)?.ok();
        let session = self.session(made.file, RegionSet::new(), evidence, None)?;
        if !bitmaps.is_empty() {
            // Without a stamp, what others write behind the next close would go unnoticed, if nothing changes until then.
            session.renew_stamp();
        }
        Ok(Recovered {
            session: Some(session),
            recovery: None,
            found: None,
            content: Content::default(),
        })
    }

    fn make(&self, descriptor: &mut Descriptor) -> Result<NewState, SaveError> {
        let region = region_size(descriptor.state()).for_length(self.length);
        let new =
            NewState::create(self.place, region, Some(&self.place.name)).map_err(SaveError::Unchanged)?;
        let mut with = descriptor.clone();
        let saved = with
            .set_state(Some(new.entry.clone()))
            .map_err(SaveError::Unchanged)
            .and_then(|()| save::replace(&*self.place.folder, &self.place.name, &with));
        if let Err(SaveError::Unchanged(_)) = &saved {
            new.remove(self.place);
        }
        saved?;
        *descriptor = with;
        Ok(new)
    }
}

/// The region size that a descriptor asks for.
fn region_size(entry: Option<&StateEntry>) -> RegionSize {
    entry
        .and_then(|entry| entry.region_bytes)
        .and_then(RegionSize::new)
        .unwrap_or(RegionSize::DEFAULT)
}

/// Of a state file that is made. It has a tenure from the beginning, so that whoever has the disk as his image can tell what it
/// was when he came.
fn new_header(region: RegionSize) -> Header {
    Header {
        // Where there are no random bytes, the first change asks for some.
        tenure: Tenure::new().ok(),
        ..Header::new(region)
    }
}

/// A state file that no descriptor names yet. It is durable, and so is its name.
pub(in crate::disk) struct NewState {
    pub(in crate::disk) entry: StateEntry,
    file: StateFile,
    storage: Arc<dyn Storage>,
}

impl NewState {
    /// With the attributes of the file `like`, if it is given.
    pub(in crate::disk) fn create(place: &Place, region: RegionSize, like: Option<&Path>) -> Result<Self> {
        let folder = &*place.folder;
        let in_folder = |action: &str, e: io::Error| Error::io(action, place.folder_name(), &e);
        folder
            .check_writable()
            .map_err(|e| in_folder("create files in", e))?;
        let name = FileName::state(&place.name);
        let (name, storage) = match like {
            None => create_unique(folder, Role::State, &name)?,
            Some(like) => create_unique_like(folder, Role::State, &name, like)?,
        };
        let path = place.shown.join(&name);
        let made = StateFile::create(Arc::clone(&storage), path, new_header(region))
            .and_then(|file| folder.sync().map_err(|e| in_folder("sync", e)).map(|()| file));
        let entry = StateEntry {
            file: name,
            region_bytes: Some(region.bytes()),
        };
        match made {
            Ok(file) => Ok(Self { entry, file, storage }),
            Err(error) => {
                // The first failure is the one to tell.
                let _ = folder.remove(entry.file.as_ref());
                Err(error)
            }
        }
    }

    /// Takes it back: no descriptor came to name it.
    pub(in crate::disk) fn remove(&self, place: &Place) {
        let _ = place.folder.remove(self.entry.file.as_ref());
    }
}
