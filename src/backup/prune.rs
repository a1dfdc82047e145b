//! Letting old backups go.
//!
//! A backup that is kept and stands on one that goes becomes a full one first: its content is copied into a new data
//! file, and its new descriptor takes the place of the old one by one rename, so that it reads the same at every
//! moment. Only then do the others go, the newest first: whoever is killed leaves no backup without its parent.

use super::copy::copy;
use super::folder::BackupFolder;
use super::pace::Pace;
use super::point::BackupPoint;
use super::run::publish;
use crate::disk::Progress;
use crate::error::{Error, ErrorCode, Result};
use crate::storage::{Role, SyncMode};
use crate::units::ByteRange;

/// What a prune did, from [`BackupFolder::prune`].
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Pruned {
    /// The backups that went.
    pub removed: Vec<String>,
    /// Those that became full ones.
    pub merged: Vec<String>,
}

impl BackupFolder {
    /// Keeps the newest `keep` backups, at least one; the others go. Durable on return.
    ///
    /// Needs room for a full backup where one that is kept has to become one. What it is made from is compared with
    /// its checksums first: with a backup that is damaged nothing is removed. An error leaves every backup that was not
    /// to go, and maybe some that were; the same call again does the rest.
    pub fn prune(&mut self, keep: usize, progress: &mut Progress<'_>) -> Result<Pruned> {
        let shown = self.path().display().to_string();
        self.prune_parts(keep, progress)
            .map_err(|e| e.context(format_args!("cannot prune {shown}")))
    }

    fn prune_parts(&mut self, keep: usize, progress: &mut Progress<'_>) -> Result<Pruned> {
        if keep == 0 {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                "at least one backup must be kept",
            ));
        }
        let _lock = self.lock()?;
        if let Some((name, error)) = self.damaged().first() {
            return Err(Error::new(
                ErrorCode::FileInvalid,
                format!(
                    "what stands on {name} cannot be known: {}; nothing is removed",
                    error.message()
                ),
            ));
        }
        let first = self.points().len().saturating_sub(keep);
        let (old, kept) = self.points().split_at(first);
        let (old, kept) = (old.to_vec(), kept.to_vec());
        let mut pruned = Pruned::default();
        for point in &kept {
            // Or it is gone already, which the merge finds.
            let stays = |parent: &String| kept.iter().any(|it| it.name == *parent);
            if point.parent.as_ref().is_some_and(|parent| !stays(parent)) {
                self.merge(point, progress)?;
                pruned.merged.push(point.name.clone());
            }
        }
        for point in old.iter().rev() {
            self.remove(&point.descriptor())?;
            pruned.removed.push(point.name.clone());
        }
        // A power cut must not bring a descriptor back whose files are gone.
        self.names()
            .sync()
            .map_err(|e| Error::io("sync the folder", self.path(), &e))?;
        self.rescan()?;
        self.sweep()?;
        pruned.removed.reverse();
        Ok(pruned)
    }

    /// Makes a full backup of one that stands on others.
    fn merge(&self, point: &BackupPoint, progress: &mut Progress<'_>) -> Result<()> {
        self.verify_chain(point, progress)?;
        let source = self.open_point(point)?;
        let mut merged = BackupPoint {
            data_file: format!("{}-merged.img", point.name),
            bitmap_file: None,
            bitmap_checksum: None,
            parent: None,
            // What it had of its own is not known any more, so nothing can be built on where it began.
            based_on: None,
            reason: "the backups that it stood on were pruned".to_owned(),
            ..point.clone()
        };
        let storage = self.create(Role::Image, &merged.data_file)?;
        let path = self.shown(&merged.data_file);
        let mut pace = Pace::new(progress, None, point.length);
        let whole = ByteRange::between(0, point.length);
        let written = copy(&source, std::iter::once(whole), &*storage, &path, &mut pace).and_then(|copied| {
            storage
                .sync(SyncMode::All)
                .map_err(|e| Error::io("sync", &path, &e))?;
            Ok(copied)
        });
        let copied = match written {
            Ok(copied) => copied,
            Err(error) => {
                // What cannot be removed now goes with the next change of the folder.
                let _ = self.remove(&merged.data_file);
                return Err(error);
            }
        };
        merged.stored = copied.stored;
        merged.data_checksum = copied.checksum;
        publish(self, &merged)
    }
}
