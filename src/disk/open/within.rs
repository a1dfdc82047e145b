//! The folder of a disk that is another one's image, as the outer disk's folder sees it.
//!
//! Invariant: every file is opened by way of the outermost disk's folder, which a caller may have handed in and which knows
//! what it is confined to; only names are changed in the folder itself.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Place;
use crate::storage::{Access, Folder, HostFolder, Role, Storage};

#[derive(Debug)]
pub(super) struct Within {
    outer: Arc<dyn Folder>,
    /// Where it lies, as the outer disk's folder sees it.
    base: PathBuf,
    /// The folder itself, where names can be changed in it.
    itself: Option<Arc<dyn Folder>>,
}

impl Within {
    /// The folder `base` of `outer`, which messages call `shown`.
    pub(super) fn new(outer: &Place, base: &Path, shown: &Path) -> Self {
        let itself = if base.as_os_str().is_empty() {
            Some(Arc::clone(&outer.folder))
        } else if outer.handed_in {
            None
        } else {
            // Where it cannot be opened, neither can any file in it.
            let folder = HostFolder::open(shown).ok();
            folder.map(|it| {
                let it = if outer.confined { it.confined() } else { it };
                Arc::new(it) as Arc<dyn Folder>
            })
        };
        Self {
            outer: Arc::clone(&outer.folder),
            base: base.to_owned(),
            itself,
        }
    }

    fn itself(&self) -> io::Result<&dyn Folder> {
        self.itself
            .as_deref()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EROFS))
    }
}

impl Folder for Within {
    fn open(&self, role: Role, name: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        let role = match role {
            Role::Descriptor => Role::Image,
            role => role,
        };
        self.outer.open(role, &self.base.join(name), access)
    }

    fn create(&self, role: Role, name: &Path) -> io::Result<Arc<dyn Storage>> {
        self.itself()?.create(role, name)
    }

    fn create_private(&self, role: Role, name: &Path) -> io::Result<Arc<dyn Storage>> {
        self.itself()?.create_private(role, name)
    }

    fn copy_attributes(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.itself()?.copy_attributes(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.itself()?.rename(from, to)
    }

    fn remove(&self, name: &Path) -> io::Result<()> {
        self.itself()?.remove(name)
    }

    fn names(&self) -> io::Result<Vec<OsString>> {
        self.itself()?.names()
    }

    fn sync(&self) -> io::Result<()> {
        self.itself()?.sync()
    }

    fn sync_name(&self) -> io::Result<()> {
        self.itself()?.sync_name()
    }

    fn check_writable(&self) -> io::Result<()> {
        let Some(folder) = &self.itself else {
            return Err(io::Error::new(
                io::ErrorKind::ReadOnlyFilesystem,
                format!(
                    "the files come from the caller, who has handed in no folder for the image in {}",
                    self.base.display()
                ),
            ));
        };
        folder.check_writable()
    }
}
