//! Whether a file may be overwritten as a raw image, by whoever opens no disk for it.
//!
//! Invariant (D1): what is written so is found out by the disk whose image it is. That takes a disk that was closed: its
//! stamp tells. One whose user was killed has none, and would take the writes for its own.

use std::path::Path;

use super::Disk;
use crate::descriptor::Descriptor;
use crate::descriptor::names::child_path;
use crate::error::{Error, ErrorCode, Result};
use crate::state::StateFile;
use crate::storage::{Access, Folder, Role, Storage};

/// What a descriptor's name ends in, by custom.
const SUFFIX: &str = ".qbm";

impl Disk {
    /// Fails where `image`, a file in `folder`, is a descriptor, or the image of a disk there that was not closed.
    pub(crate) fn check_overwrite(folder: &dyn Folder, image: &dyn Storage) -> Result<()> {
        if descriptor(image).is_some() {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                "it is a QBM descriptor, which a raw image would replace; ask for the format qbm, or name the image",
            ));
        }
        // A folder that cannot be listed says nothing.
        let names = folder.names().unwrap_or_default();
        let names = names.iter().filter_map(|name| name.to_str());
        match names
            .filter(|name| name.ends_with(SUFFIX))
            .find(|name| is_unclosed(folder, name, image))
        {
            None => Ok(()),
            Some(name) => Err(Error::new(
                ErrorCode::InvalidArgument,
                format!(
                    "it is the image of {name}, which was not closed and would not notice: its next backup would miss what \
                     is written; close it (\"qbm check -r all {name}\"), or name {name} and the format qbm"
                ),
            )),
        }
    }
}

/// What a file says, if it is a descriptor.
fn descriptor(storage: &dyn Storage) -> Option<Descriptor> {
    let short = storage.length().is_ok_and(|it| it <= Descriptor::MAX_BYTES);
    short.then(|| Descriptor::read(storage).ok()).flatten()
}

/// Whether the file `name` describes a disk of `image` that was not closed.
fn is_unclosed(folder: &dyn Folder, name: &str, image: &dyn Storage) -> bool {
    let open = |name: &Path| folder.open(Role::Backing, name, Access::default()).ok();
    let named = |file: &str| child_path(file).ok().and_then(open);
    let Some(described) = open(Path::new(name)).and_then(|it| descriptor(&*it)) else {
        return false;
    };
    let own = named(&described.image().file).and_then(|it| it.identity());
    if own.is_none() || own != image.identity() {
        return false;
    }
    let state = described.state().and_then(|it| named(&it.file));
    state.is_some_and(|state| {
        StateFile::inspect(&*state, Path::new(name))
            .is_ok_and(|it| it.is_ok_and(|found| !found.header().clean))
    })
}
