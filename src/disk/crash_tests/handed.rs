//! A process that was handed a disk's files, and not their folder, opens the disk after a kill: it reads and writes all the same,
//! as it could have changed no name.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::life::NAME;
use crate::disk::{AddBitmap, CreateOptions, OpenOptions, WriteFlags};
use crate::storage::simulated::SimDisk;
use crate::storage::{Access, Folder, Role, Storage};

/// The files of a folder in which no name can be changed.
#[derive(Debug)]
struct FilesAlone(Arc<dyn Folder>);

fn refused<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Folder for FilesAlone {
    fn open(&self, role: Role, name: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        self.0.open(role, name, access)
    }

    fn create(&self, _: Role, _: &Path) -> io::Result<Arc<dyn Storage>> {
        refused()
    }

    fn copy_attributes(&self, _: &Path, _: &Path) -> io::Result<()> {
        refused()
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        refused()
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        refused()
    }

    fn sync(&self) -> io::Result<()> {
        refused()
    }

    fn check_writable(&self) -> io::Result<()> {
        refused()
    }
}

#[test]
fn a_disk_that_was_not_closed_opens_without_its_folder() {
    for no_state in [false, true] {
        let sim = SimDisk::new();
        let create = CreateOptions::new().size(24 << 10).no_state(no_state);
        create.folder(sim.folder()).create(NAME).unwrap();
        let options = || OpenOptions::new().no_state(no_state);
        let disk = options().folder(sim.folder()).open(NAME).unwrap();
        disk.bitmap_add("a", AddBitmap::default()).unwrap();
        disk.write(&[1; 700], 900, WriteFlags::empty()).unwrap();
        let alone = FilesAlone(sim.kill().folder());
        let disk = options().folder(Arc::new(alone)).open(NAME).unwrap();
        disk.write(&[2; 700], 5000, WriteFlags::FUA).unwrap();
        assert!(disk.bitmap_get("a", 900).unwrap());
        disk.close().unwrap();
    }
}
