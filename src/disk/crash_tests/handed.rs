//! A process that was handed a disk's files, and not their folder, opens the disk after a kill: it reads and writes all the same.
//! It can change no name; who was killed could.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::life::NAME;
use crate::disk::{AddBitmap, CreateOptions, NoticeCode, OpenOptions, WriteFlags};
use crate::mutation::{Fault as Wrong, with};
use crate::storage::simulated::{CallKind, Keep, SimDisk};
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

/// A process that has the folder is killed behind the rename of a descriptor, before the folder is synced. The next has not, and
/// closes the disk. What a power cut leaves then.
fn what_stays_of_a_rename() -> std::result::Result<(), String> {
    let sim = SimDisk::new();
    sim.keep_names_with_files();
    let create = CreateOptions::new().size(1 << 20);
    create.folder(sim.folder()).create(NAME).unwrap();
    let disk = OpenOptions::new().folder(sim.folder()).open(NAME).unwrap();
    disk.bitmap_add("a", AddBitmap::default()).unwrap();
    disk.bitmap_clear("a").unwrap();
    let events = sim.events();
    let renamed = events
        .iter()
        .rfind(|it| it.call.kind() == CallKind::Rename)
        .unwrap();
    let killed = sim.after(renamed.number).kill();

    let alone = Arc::new(FilesAlone(killed.folder()));
    let disk = OpenOptions::new().folder(alone).open(NAME).unwrap();
    disk.write(&[2; 4096], 512 << 10, WriteFlags::FUA).unwrap();
    disk.close().unwrap();

    let after = killed.power_cut_keeping(Keep::Nothing);
    let disk = OpenOptions::new().folder(after.folder()).open(NAME).unwrap();
    let mut found = [0; 1];
    disk.read(&mut found, 512 << 10).unwrap();
    assert_eq!(found, [2]);
    let bitmap = disk.bitmap_info("a").unwrap();
    if bitmap.inconsistent || disk.bitmap_get("a", 512 << 10).unwrap() {
        return Ok(());
    }
    Err(format!("D1: {bitmap:?}"))
}

#[test]
fn what_goes_on_without_the_folder_loses_no_change_with_the_name() {
    what_stays_of_a_rename().unwrap();
    with(Wrong::FoundFileUnsynced, what_stays_of_a_rename).unwrap_err();
}

/// Each open that would give the disk a state file, and cannot, says so once. What it changes it records all the same.
#[test]
fn an_open_that_can_give_the_disk_no_state_file_says_so() {
    let sim = SimDisk::new();
    let create = CreateOptions::new().size(24 << 10).no_state(true);
    create.folder(sim.folder()).create(NAME).unwrap();
    let options = OpenOptions::new().no_state(true).folder(sim.folder());
    let disk = options.open(NAME).unwrap();
    disk.bitmap_add("a", AddBitmap::default()).unwrap();
    disk.close().unwrap();
    for (read_only, no_state, told) in [
        (false, false, 1),
        (true, false, 0),
        (false, true, 0),
        (false, false, 1),
    ] {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let listener = Arc::clone(&heard);
        let options = OpenOptions::new()
            .folder(Arc::new(FilesAlone(sim.folder())))
            .read_only(read_only)
            .no_state(no_state)
            .notify(move |notice| {
                let words = notice.message.to_owned();
                listener.lock().unwrap().push((notice.code, words));
            });
        let disk = options.open(NAME).unwrap();
        assert!(!disk.info().unwrap().protected);
        if !read_only {
            disk.write(&[2; 700], 5000, WriteFlags::FUA).unwrap();
            assert!(disk.bitmap_get("a", 5000).unwrap());
        }
        disk.close().unwrap();
        let heard = heard.lock().unwrap();
        assert_eq!(heard.len(), told, "{heard:?}");
        for (code, words) in &*heard {
            assert_eq!(*code, NoticeCode::Unprotected);
            assert!(words.contains("so that a power cut can lose bits: "), "{words}");
        }
    }
}
