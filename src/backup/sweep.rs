//! What others have left in a folder of backups: files that no backup names, and names that may not be there for good.
//!
//! Invariant (M1): nothing is removed, and nothing relies on a backup, before the names that this takes for granted are
//! durable. A sync vouches for no name that one before it has failed on, whoever asked for that one; what may be such a
//! name is given anew, and what may be such a removal is done anew.

use std::collections::{BTreeSet, HashSet};
use std::io::ErrorKind;

use super::folder::{BackupFolder, owner, sequence};
use super::lock::{Files, FolderLock};
use super::point::{BackupPoint, REMOVED};
use crate::error::{Error, Result};
use crate::mutation::{self, Fault};

impl BackupFolder {
    /// Removes the files that no backup names.
    pub(super) fn sweep(&self) -> Result<()> {
        self.leftovers()?.iter().try_for_each(|file| self.remove(file))
    }

    /// The same where others had the folder, who may have been killed before a sync, or met one that failed.
    pub(super) fn sweep_after_others(&self, lock: &FolderLock) -> Result<()> {
        let left = self.leftovers()?;
        for name in self.may_come_back(&left) {
            self.remove_anew(name, lock)?;
        }
        // The files of a backup that is there are those from before a merge, or of a merge: a power cut could bring the
        // descriptor back that names them.
        let merged = |point: &&BackupPoint| left.iter().any(|file| owner(file) == Some(&point.name));
        for point in self.points().iter().filter(merged) {
            self.renew(point, lock)?;
        }
        // And those that were removed.
        if !left.is_empty() && !mutation::on(Fault::SweptUnsynced) {
            self.sync()?;
        }
        left.iter().try_for_each(|file| self.remove(file))
    }

    /// The backups whose files are among those `left`, and which a prune may have removed. The newest one stayed then, whose
    /// sequence is no lower: what has a higher one was never there.
    fn may_come_back<'l>(&self, left: &'l [String]) -> BTreeSet<&'l str> {
        let newest = self.points().last().map(|point| point.sequence);
        let was_there = |name: &&str| match (sequence(name), newest) {
            // What cannot be read may be the newest.
            _ if !self.damaged().is_empty() => true,
            (Some(sequence), Some(newest)) => sequence <= newest,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        let owners = left.iter().filter_map(|file| owner(file));
        owners
            .filter(|name| self.named(name).is_none())
            .filter(was_there)
            .collect()
    }

    /// Gives the name of a descriptor that was removed to what is none, and takes it away anew, for the next sync to vouch for.
    fn remove_anew(&self, name: &str, lock: &FolderLock) -> Result<()> {
        if mutation::on(Fault::RemovalsUnrenewed) {
            return Ok(());
        }
        let (descriptor, temporary) = (format!("{name}.qbm"), format!("{name}.new"));
        self.remove(&temporary)?;
        match self.write_new(&temporary, REMOVED) {
            // What is to go makes room. All that could come back is a backup that was to go, too.
            Err(error) if matches!(error.errno(), libc::ENOSPC | libc::EDQUOT) => {
                return self.remove(&temporary);
            }
            written => written?,
        }
        self.check_kept(lock, &Files::new())?;
        self.rename(&temporary, &descriptor)?;
        self.remove(&descriptor)
    }

    /// Makes sure that the folder is there for good, before a bitmap forgets what a backup in it has (D1). Somebody may have
    /// made it just now, or have been killed before he could sync its name.
    pub(super) fn assure_folder(&self) -> Result<()> {
        if mutation::on(Fault::FolderUnnamed) {
            return Ok(());
        }
        match self.names().sync_name() {
            // Where this process may not, or nothing can: whoever could make the folder there has seen to it.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::PermissionDenied
                        | ErrorKind::ReadOnlyFilesystem
                        | ErrorKind::InvalidInput
                        | ErrorKind::Unsupported
                ) =>
            {
                Ok(())
            }
            synced => synced.map_err(|e| Error::io("sync the folder above", self.path(), &e)),
        }
    }

    /// Makes sure that the newest backup is there for good, before another one stands on it, or comes after it, or older
    /// ones go. It is where a bitmap goes on from it, whose `epoch` it starts: that was thawed after the sync.
    pub(super) fn assure_newest(&self, epoch: Option<&str>, lock: &FolderLock) -> Result<()> {
        match self.points().last() {
            Some(newest) if epoch != Some(&*newest.starts) => self.renew(newest, lock),
            _ => Ok(()),
        }
    }

    /// Gives the descriptor of `point` its name anew, durably.
    fn renew(&self, point: &BackupPoint, lock: &FolderLock) -> Result<()> {
        if mutation::on(Fault::NamesUnrenewed) {
            return Ok(());
        }
        let descriptor = self.descriptor(&point.descriptor())?;
        // A merge that was killed has left one.
        self.remove(&point.temporary())?;
        self.prepare(point, &descriptor)?;
        self.check_kept(lock, &Files::new())?;
        self.publish(point)
    }

    fn leftovers(&self) -> Result<Vec<String>> {
        let named: HashSet<String> = self.points().iter().flat_map(BackupPoint::files).collect();
        let mut left = self.list()?;
        left.retain(|file| {
            // What belongs to a descriptor that cannot be read is left to whoever can.
            owner(file).is_some_and(|owner| {
                !named.contains(file) && self.damaged().iter().all(|(name, _)| name != owner)
            })
        });
        Ok(left)
    }
}
