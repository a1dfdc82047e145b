//! The lock of a folder of backups: who may change it, and whether that is still so.
//!
//! Invariant: whoever makes a backup visible holds the lock that all others find, and its files are still those that he
//! wrote.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::folder::BackupFolder;
use crate::error::{Error, ErrorCode, Result};
use crate::state::{Lock, Sharing};
use crate::storage::{Access, Role, Storage};

/// The file that whoever changes the folder has locked.
const LOCK: &str = "qbm-backup.lock";

/// So often a lock is taken anew whose file somebody has removed.
const MAX_LOCKS: usize = 16;

/// Files that are to be a backup's, open since they were made.
pub(super) type Files = Vec<(String, Arc<dyn Storage>)>;

/// The right to change a folder.
pub(super) struct FolderLock {
    lock: Option<Lock>,
    storage: Arc<dyn Storage>,
    /// Whether the file was made for it.
    new: bool,
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        if let Some(lock) = self.lock.take() {
            lock.release();
        }
    }
}

impl BackupFolder {
    /// Takes the folder for changes.
    pub(super) fn take_lock(&self) -> Result<FolderLock> {
        let path = self.shown(LOCK);
        let access = Access {
            write: true,
            direct: false,
        };
        let name = Path::new(LOCK);
        for _ in 0..MAX_LOCKS {
            let (storage, new) = match self.names().create(Role::State, name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    match self.names().open(Role::State, name, access) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                        other => (other, false),
                    }
                }
                other => (other, true),
            };
            let storage = storage.map_err(|e| Error::io("open", &path, &e))?;
            let lock = Lock::state(&storage, &path, Sharing::Write).map_err(|error| match error.code() {
                ErrorCode::Locked => Error::new(
                    ErrorCode::Locked,
                    format!(
                        "another backup or prune is at work in {}; wait for its end",
                        self.path().display()
                    ),
                ),
                _ => error,
            })?;
            let lock = FolderLock { lock, storage, new };
            // What was removed between the open and the lock keeps nobody out who comes later.
            if self.leads_to(LOCK, &*lock.storage)? {
                return Ok(lock);
            }
        }
        Err(Error::new(
            ErrorCode::Locked,
            format!("{} is removed again and again by others", path.display()),
        ))
    }

    /// Gives the folder back after a failure: what was made to lock it goes again.
    pub(super) fn take_back(&self, lock: FolderLock) {
        if lock.new {
            // While it is locked: whoever has opened it meanwhile finds that the name does not lead to it, and makes one
            // that others find too. Where it cannot be removed, it is in nobody's way.
            let _ = self.names().remove(Path::new(LOCK));
        }
        drop(lock);
    }

    /// Whether the name is still one of that open file.
    fn leads_to(&self, name: &str, storage: &dyn Storage) -> Result<bool> {
        match self
            .names()
            .open(Role::Backing, Path::new(name), Access::default())
        {
            Ok(found) => Ok(found.identity() == storage.identity()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("open", self.shown(name), &error)),
        }
    }

    /// Fails where somebody has taken the folder, or one of `files`, which are to be a backup's, away meanwhile: who removes
    /// the lock's file lets others at the folder, and these remove what no backup names yet.
    pub(super) fn check_kept(&self, lock: &FolderLock, files: &Files) -> Result<()> {
        let lock = [(LOCK.to_owned(), Arc::clone(&lock.storage))];
        for (name, storage) in lock.iter().chain(files) {
            if !self.leads_to(name, &**storage)? {
                return Err(Error::new(
                    ErrorCode::Locked,
                    format!(
                        "{} was removed meanwhile; as long as the command is at work, {LOCK} must stay",
                        self.shown(name).display()
                    ),
                ));
            }
        }
        Ok(())
    }
}
