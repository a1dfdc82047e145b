//! Checking a disk that nobody uses, and repairing what can be repaired without guessing.
//!
//! [`look`] finds, file by file and so also on a disk that cannot be opened; what only an open can repair is repaired by
//! one. May call the rest of the disk's engine. Invariant: no byte of an image, and no set bit of the disk, is ever taken
//! away to make a check pass; what is removed is a file that provably belongs to nobody.

mod leftovers;
mod look;
mod mend;
mod report;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{Arc, OnceLock};

pub use report::{CheckReport, Finding, FindingKind, Severity};

use super::open::{OpenOptions, Place};
use super::{Disk, NoticeCode, Progress};
use crate::error::{Error, ErrorCode, Result};
use crate::storage::Folder;
use look::Looking;

/// What a check may change. The numbers are part of the C ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(i32)]
pub enum Repair {
    /// Nothing.
    #[default]
    None = 0,
    /// Files that no descriptor names are removed, and nothing else is changed.
    Leaks = 1,
    /// That, and bits behind the disk's end are cleared, a disk that was not closed is recovered, and a state file that is
    /// damaged or missing is made anew: then every bit of every bitmap is set, as nothing is known of the last user.
    All = 2,
    /// Every bit is set in bitmaps that are inconsistent, or are so since others wrote to the image; and in those whose file is
    /// missing or too short, which get a new one.
    Dirty = 3,
    /// The image is taken as it is: that others wrote to it does not count. What was inconsistent before stays so.
    Trust = 4,
}

/// How to check a disk; then [`check`](CheckOptions::check) it.
#[derive(Clone, Default)]
pub struct CheckOptions {
    repair: Repair,
    checksum: bool,
    no_lock: bool,
    folder: Option<Arc<dyn Folder>>,
    /// Of the opens that repair.
    cache_epoch: Option<Arc<str>>,
}

impl CheckOptions {
    /// Changes nothing, and leaves the image's checksum out.
    pub fn new() -> Self {
        Self::default()
    }

    /// What may be repaired.
    #[must_use]
    pub fn repair(mut self, repair: Repair) -> Self {
        self.repair = repair;
        self
    }

    /// The image is read from its beginning to its end, and compared with the checksum in the descriptor.
    #[must_use]
    pub fn checksum(mut self, yes: bool) -> Self {
        self.checksum = yes;
        self
    }

    /// Looks without a lock, at a disk that may be in use: then what is found may be how files look in the middle of a
    /// change. Refused with a repair.
    #[must_use]
    pub fn no_lock(mut self, yes: bool) -> Self {
        self.no_lock = yes;
        self
    }

    /// All files come from `folder`.
    #[must_use]
    pub fn folder(mut self, folder: Arc<dyn Folder>) -> Self {
        self.folder = Some(folder);
        self
    }

    /// See [`OpenOptions::cache_epoch`].
    #[must_use]
    pub fn cache_epoch(mut self, epoch: &str) -> Self {
        self.cache_epoch = Some(epoch.into());
        self
    }

    /// Checks the disk that the descriptor at `path` describes, and repairs what it may. Nobody may write to the disk
    /// meanwhile, nor, for a repair, use it: that is [`ErrorCode::Locked`].
    ///
    /// An error says that there could be no check; what was found is in the report. `progress` is told of the reading of
    /// a checksum alone, in bytes, and may end it.
    pub fn check(&self, path: impl AsRef<Path>, progress: &mut Progress<'_>) -> Result<CheckReport> {
        let path = path.as_ref();
        self.check_parts(path, progress)
            .map_err(|error| error.context(format_args!("cannot check {}", path.display())))
    }

    fn check_parts(&self, path: &Path, progress: &mut Progress<'_>) -> Result<CheckReport> {
        if self.no_lock && self.repair != Repair::None {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                "a repair needs the disk for itself, and cannot do without the lock",
            ));
        }
        let place = Place::find(path, self.folder.as_ref(), false)?;
        let mut before = self.look(&place, self.repair, progress)?;
        if before.locked_out.is_some() {
            before.tell_of_lockout();
            return Ok(before);
        }
        if !self.opens_for(&before) {
            return Ok(before);
        }
        let told = match self.repair_by_open(path) {
            Ok(told) => told,
            Err(error) => {
                let mut report = before;
                report.add(
                    FindingKind::RepairFailed,
                    "",
                    format!("it was not repaired: {error}"),
                );
                return Ok(report);
            }
        };
        // What the repair did is seen by looking again; the checksum has been compared.
        let unread = Self {
            checksum: false,
            ..self.clone()
        };
        let after = unread.look(&place, Repair::None, progress)?;
        // An open does what it can, and tells of the rest.
        let failed = self.opens_for(&after);
        let mut report = before.repaired(after);
        if failed {
            let why = told.unwrap_or_else(|| "an open for writing did not mend it".to_owned());
            report.add(
                FindingKind::RepairFailed,
                "",
                format!("it was not repaired: {why}"),
            );
        }
        Ok(report)
    }

    /// Looks at the disk in `place`, and then at its image where that is a disk itself.
    fn look(&self, place: &Place, repair: Repair, progress: &mut Progress<'_>) -> Result<CheckReport> {
        let (mut report, image) = Looking::new(self, place, repair).look(progress)?;
        if let Some(image) = image {
            let shown = image.shown.join(&image.name);
            let found = self
                .look(&image, repair, progress)
                .map_err(|e| e.context(shown.display()))?;
            report.add_all_of(&shown, found);
        }
        Ok(report)
    }

    /// Whether something was found that opening the disk for writing repairs, in the way that was asked for.
    fn opens_for(&self, found: &CheckReport) -> bool {
        let any = |kinds: &[FindingKind]| kinds.iter().any(|kind| found.has(*kind));
        match self.repair {
            Repair::None | Repair::Leaks => false,
            // An open for writing turns foreign writes into marks that no `Trust` takes back; the user has not chosen yet.
            Repair::All => {
                !found.has(FindingKind::ForeignWrites)
                    && any(&[
                        FindingKind::NotClosed,
                        FindingKind::StateMissing,
                        FindingKind::StateDamaged,
                    ])
            }
            Repair::Dirty => any(&[FindingKind::ForeignWrites, FindingKind::BitmapInconsistent]),
            Repair::Trust => found.has(FindingKind::ForeignWrites),
        }
    }

    /// How an image that is a disk itself is looked at.
    fn of_image(&self) -> OpenOptions {
        let options = OpenOptions::new().read_only(true).no_lock(self.no_lock);
        match &self.cache_epoch {
            Some(epoch) => options.cache_epoch(epoch),
            None => options,
        }
    }

    /// Says what the open has told of that it could not do.
    fn repair_by_open(&self, path: &Path) -> Result<Option<String>> {
        // What is below the disk is not needed for any of it, and may be what is broken.
        let mut options = OpenOptions::new()
            .no_backing(true)
            .trust_image(self.repair == Repair::Trust);
        // The bits are all set then, or those of a longer disk as they must be.
        options.lengthen_outgrown = matches!(self.repair, Repair::Dirty | Repair::Trust);
        if let Some(folder) = &self.folder {
            options = options.folder(Arc::clone(folder));
        }
        if let Some(epoch) = &self.cache_epoch {
            options = options.cache_epoch(epoch);
        }
        let told = Arc::new(OnceLock::new());
        let heard = Arc::clone(&told);
        options = options.notify(move |notice| {
            if notice.code == NoticeCode::Unprotected {
                // The first is the one to tell.
                let _ = heard.set(notice.message.to_owned());
            }
        });
        let disk: Disk = options.open(path)?;
        let mut next = Some(&disk).filter(|_| self.repair == Repair::Dirty);
        while let Some(it) = next {
            for bitmap in it.bitmap_list()? {
                if bitmap.inconsistent {
                    it.bitmap_repair(&bitmap.name)?;
                }
            }
            next = it.image().disk();
        }
        disk.close()?;
        Ok(told.get().cloned())
    }
}
