//! Letting old backups go.
//!
//! A backup that stays and stands on one that goes gets what it needs of that one first: its own granules, and those of
//! all that go between it and the next one that stays, are copied into a new data file, and its new descriptor takes the
//! place of the old one by one rename, so that it reads the same at every moment. Where nothing below it stays, it becomes
//! a full one. Only then do the others go, the newest first: whoever is killed leaves no backup without its parent.

use std::sync::Arc;

use super::bits::{add_stored, write_bitmap};
use super::copy::{Copied, copy};
use super::folder::BackupFolder;
use super::keep::Keep;
use super::lock::{Files, FolderLock};
use super::pace::Pace;
use super::point::BackupPoint;
use super::run::prepare;
use crate::bitmap::Bits;
use crate::disk::Progress;
use crate::error::{Error, ErrorCode, Result};
use crate::mutation::{self, Fault};
use crate::storage::{Role, SyncMode};
use crate::units::ByteRange;

/// What a prune did, from [`BackupFolder::prune`]; or would do.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Pruned {
    /// The backups that went.
    pub removed: Vec<String>,
    /// Those that had to get what they need of these.
    pub merged: Vec<MergedPoint>,
}

/// A backup that no longer needs those that went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedPoint {
    /// Its name.
    pub name: String,
    /// The backup that it stands on now; `None` where it has become a full one.
    pub parent: Option<String>,
}

/// One that stays, and those that go between it and what it is to stand on.
struct Merge {
    point: BackupPoint,
    between: Vec<BackupPoint>,
    parent: Option<String>,
    parent_starts: Option<String>,
}

impl BackupFolder {
    /// Keeps the backups that `keep` says, always the newest; the others go. Durable on return.
    ///
    /// Needs room for what those that stay take over from those that go; a full backup, where nothing below one stays.
    /// What it is made from is compared with its checksums first: with a backup that is damaged nothing is removed. An
    /// error leaves every backup that was not to go, and maybe some that were; the same call again does the rest.
    pub fn prune(&mut self, keep: &Keep, progress: &mut Progress<'_>) -> Result<Pruned> {
        let shown = self.path().display().to_string();
        self.prune_parts(keep, progress)
            .map_err(|e| e.context(format_args!("cannot prune {shown}")))
    }

    /// What [`prune`](Self::prune) would do. Changes nothing, and reads no data.
    pub fn would_prune(&self, keep: &Keep) -> Result<Pruned> {
        let (merges, gone) = self
            .plan(keep)
            .map_err(|e| e.context(format_args!("cannot prune {}", self.path().display())))?;
        Ok(Pruned {
            removed: gone.iter().map(|point| point.name.clone()).collect(),
            merged: merges.iter().map(Merge::told).collect(),
        })
    }

    fn prune_parts(&mut self, keep: &Keep, progress: &mut Progress<'_>) -> Result<Pruned> {
        let lock = self.lock()?;
        let (merges, gone) = self.plan(keep)?;
        let mut pruned = Pruned::default();
        for merge in &merges {
            self.merge(merge, &lock, progress)?;
            // The next one may stand on it, with other files than before.
            self.rescan()?;
            pruned.merged.push(merge.told());
        }
        // Whoever took the folder for himself meanwhile may stand on what is to go.
        self.check_kept(&lock, &Files::new())?;
        if !gone.is_empty() {
            // Else what stays, or that it reads without what goes, may be in the page cache alone.
            self.assure_newest(None, &lock)?;
        }
        for point in gone.iter().rev() {
            self.remove(&point.descriptor())?;
            // A power cut must not bring a descriptor back without what it stands on, which goes next, or without its files.
            if !mutation::on(Fault::RemovedAtOnce) {
                self.sync()?;
            }
            pruned.removed.push(point.name.clone());
        }
        self.rescan()?;
        self.sweep()?;
        pruned.removed.reverse();
        Ok(pruned)
    }

    fn plan(&self, keep: &Keep) -> Result<(Vec<Merge>, Vec<BackupPoint>)> {
        if let Some((name, error)) = self.damaged().first() {
            return Err(Error::new(
                ErrorCode::FileInvalid,
                format!(
                    "what stands on {name} cannot be known: {}; nothing is removed",
                    error.message()
                ),
            ));
        }
        let stay = keep.choose(self.points())?;
        let (kept, gone): (Vec<_>, Vec<_>) = self
            .points()
            .iter()
            .cloned()
            .partition(|point| stay.contains(&point.name));
        let mut merges = Vec::new();
        for point in kept {
            // Or it is gone already, which the merge finds.
            if point.parent.as_ref().is_none_or(|parent| stay.contains(parent)) {
                continue;
            }
            let below = self.chain(&point)?.split_off(1);
            let next = below.iter().position(|it| stay.contains(&it.name));
            let between = &below[..next.unwrap_or(below.len())];
            merges.push(Merge {
                between: between.iter().map(|it| (*it).clone()).collect(),
                parent: next.map(|at| below[at].name.clone()),
                parent_starts: next.map(|at| below[at].starts.clone()),
                point,
            });
        }
        Ok((merges, gone))
    }

    fn merge(&self, merge: &Merge, lock: &FolderLock, progress: &mut Progress<'_>) -> Result<()> {
        let point = &merge.point;
        self.verify_chain(point, progress)?;
        let source = self.open_point(point)?;
        let set = merge.granules(self)?;
        let mut merged = merge.described();
        let storage = self.create(point, Role::Image, &merged.data_file)?;
        let path = self.shown(&merged.data_file);
        let mut pace = Pace::new(progress, None, point.length);
        let mut files: Files = vec![(merged.data_file.clone(), Arc::clone(&storage))];
        let mut write = || -> Result<Copied> {
            let copied = if let Some(set) = &set {
                pace.total = set.count().saturating_mul(point.granularity.bytes());
                let parts = set
                    .runs(set.all())
                    .map(|run| point.granularity.bytes_of(run, point.length));
                let copied = copy(&source, parts, &*storage, &path, &mut pace)?;
                merged.bitmap_checksum = write_bitmap(self, &merged, set, &mut files)?;
                copied
            } else {
                let whole = ByteRange::between(0, point.length);
                copy(&source, std::iter::once(whole), &*storage, &path, &mut pace)?
            };
            storage
                .sync(SyncMode::All)
                .map_err(|e| Error::io("sync", &path, &e))?;
            Ok(copied)
        };
        match write() {
            Ok(copied) => {
                merged.stored = copied.stored;
                merged.data_checksum = copied.checksum;
            }
            Err(error) => {
                // What cannot be removed now goes with the next change of the folder.
                for file in merged.files().skip(1) {
                    let _ = self.remove(&file);
                }
                return Err(error);
            }
        }
        prepare(self, lock, &merged, &files)?;
        self.publish(&merged)
    }
}

impl Merge {
    fn told(&self) -> MergedPoint {
        MergedPoint {
            name: self.point.name.clone(),
            parent: self.parent.clone(),
        }
    }

    /// What it is to have of its own; `None` where that is all.
    fn granules(&self, folder: &BackupFolder) -> Result<Option<Bits>> {
        if self.parent.is_none() {
            return Ok(None);
        }
        let point = &self.point;
        let set = Bits::new(point.granularity.granules_in(point.length))?;
        for other in self.between.iter().chain([point]) {
            add_stored(folder, other, &set, point)?;
        }
        // One that was shorter hides what lies below it behind its end, and goes.
        let shortest = self.between.iter().map(|it| it.length).min();
        if let Some(shortest) = shortest.filter(|shortest| *shortest < point.length) {
            let hidden = ByteRange::between(shortest, point.length);
            set.set(point.granularity.touched_by(hidden));
        }
        Ok(Some(set))
    }

    /// Its record, without its checksums yet. Its files have other names than those that it has now.
    fn described(&self) -> BackupPoint {
        let point = &self.point;
        let other = |now: Option<&String>, first: &str, second: &str| {
            let first = format!("{}{first}", point.name);
            if now == Some(&first) {
                format!("{}{second}", point.name)
            } else {
                first
            }
        };
        let reason = match &self.parent {
            None => "the backups that it stood on were pruned",
            Some(_) => "backups between it and the one that it stands on were pruned",
        };
        BackupPoint {
            data_file: other(Some(&point.data_file), "-merged.img", "-data.img"),
            bitmap_file: self
                .parent
                .is_some()
                .then(|| other(point.bitmap_file.as_ref(), "-merged.bitmap", "-allocation.bitmap")),
            bitmap_checksum: None,
            // What a full one had of its own is not known any more, so nothing can be built on where it began. What the
            // others have is more than that.
            based_on: self.parent.as_ref().and(point.based_on.clone()),
            parent: self.parent.clone(),
            parent_starts: self.parent_starts.clone(),
            reason: reason.to_owned(),
            ..point.clone()
        }
    }
}
