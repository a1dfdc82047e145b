//! What a backup is to be: full, or upon which other one, and why.
//!
//! Invariant (durability trap 11): an incremental backup stands on one that ends where its bitmap starts; any other starting
//! point means a full backup, in words.

use std::path::{Path, PathBuf};

use super::folder::BackupFolder;
use super::point::BackupPoint;
use super::run::Backup;
use crate::disk::{AddBitmap, BitmapAction, BitmapInfo, Disk};
use crate::error::{Error, ErrorCode, Result};
use crate::units::Granularity;

/// Why an incremental backup is larger whose bitmap says more than was written.
const WIDENED: &str = "the bitmap was widened by recovery after the disk was not closed: what that added is in this one \
                       too, changed or not";

/// So many backups may stand on one another; reading one opens all below it.
const MAX_CHAIN: usize = 128;

impl Backup {
    /// Decides what is to be copied, and upon what. Changes nothing.
    pub(super) fn plan(&self, disk: &Disk, folder: &BackupFolder) -> Result<Plan> {
        let source = std::fs::canonicalize(disk.path()).unwrap_or_else(|_| disk.path().to_owned());
        let bitmap = match disk.bitmap_info(&self.bitmap) {
            Ok(info) => Some(info),
            Err(error) if error.code() == ErrorCode::BitmapNotFound => None,
            Err(error) => return Err(error),
        };
        self.check_folder(folder, &source, bitmap.as_ref())?;
        self.check_name(disk, folder, bitmap.as_ref())?;
        if let Some(info) = &bitmap {
            check_bitmap(info)?;
        }
        let full = |reason: &str| Plan {
            source: source.clone(),
            bitmap: bitmap.clone(),
            granularity: bitmap.as_ref().map_or(self.granularity, |info| info.granularity),
            basis: None,
            reason: reason.to_owned(),
        };
        if let Some(since) = &self.since {
            // Asked for by name, so that a typo is an error and no full backup.
            folder.find(since)?;
        }
        if self.full {
            return Ok(full("it was asked for"));
        }
        let Some(newest) = folder.points().last() else {
            return Ok(full("it is the first one in the folder"));
        };
        let basis = match Basis::find(disk, folder, newest, bitmap.as_ref(), self.since.as_deref()) {
            Ok(basis) => basis,
            Err(why) => return Ok(full(&why)),
        };
        let mut plan = full("");
        plan.reason.clone_from(&basis.reason);
        plan.basis = Some(basis);
        Ok(plan)
    }

    /// A folder of another disk's backups is mostly a mistake.
    fn check_folder(&self, folder: &BackupFolder, source: &Path, bitmap: Option<&BitmapInfo>) -> Result<()> {
        let Some(newest) = folder.points().last() else {
            return Ok(());
        };
        let epoch = bitmap.and_then(|info| info.epoch.as_deref());
        // A starting point that the folder knows proves more than a path.
        let known = |point: &BackupPoint| {
            epoch.is_some() && (point.based_on.as_deref() == epoch || Some(&*point.starts) == epoch)
        };
        if self.moved || Path::new(&newest.source) == source || folder.points().iter().any(known) {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::InvalidArgument,
            format!(
                "the backups in {} are of {}; use another folder, or say that the disk was moved",
                folder.path().display(),
                newest.source
            ),
        ))
    }

    /// Another bitmap than the folder's, while the disk has that one too, is mostly a typo.
    fn check_name(&self, disk: &Disk, folder: &BackupFolder, bitmap: Option<&BitmapInfo>) -> Result<()> {
        let Some(newest) = folder.points().last() else {
            return Ok(());
        };
        let epoch = bitmap.and_then(|info| info.epoch.as_deref());
        // One that was renamed is known by its starting point.
        let known =
            epoch.is_some() && (newest.based_on.as_deref() == epoch || Some(&*newest.starts) == epoch);
        if self.full || known || newest.bitmap == self.bitmap || !has(disk, &newest.bitmap)? {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::InvalidArgument,
            format!(
                "the backups in {} were made with the bitmap {:?}, which the disk has; a full backup begins a new series",
                folder.path().display(),
                newest.bitmap
            ),
        ))
    }
}

/// What a backup is to be.
pub(super) struct Plan {
    pub(super) source: PathBuf,
    /// As it is before; `None` where it is to be added.
    pub(super) bitmap: Option<BitmapInfo>,
    pub(super) granularity: Granularity,
    /// `None` for a full one.
    pub(super) basis: Option<Basis>,
    pub(super) reason: String,
}

impl Plan {
    /// What begins it: at one point between writes.
    pub(super) fn actions<'n>(&self, name: &'n str) -> Vec<BitmapAction<'n>> {
        let mut actions = Vec::new();
        match &self.bitmap {
            None => actions.push(BitmapAction::Add {
                name,
                options: AddBitmap {
                    granularity: self.granularity,
                    ..AddBitmap::default()
                },
            }),
            // A starting point of its own: whoever is killed before the thaw finds just what was written since.
            Some(info) if self.basis.is_none() => {
                if info.inconsistent {
                    actions.push(BitmapAction::Repair { name });
                }
                actions.push(BitmapAction::Clear { name });
            }
            Some(_) => {}
        }
        actions.push(BitmapAction::Freeze { name });
        actions
    }

    /// The bitmap's, before it is frozen.
    pub(super) fn epoch(&self) -> Option<&str> {
        self.bitmap.as_ref().and_then(|info| info.epoch.as_deref())
    }

    /// Whether the bitmap that was frozen is the one that was planned with.
    pub(super) fn fits(&self, frozen: &BitmapInfo) -> bool {
        let same = |before: &BitmapInfo| {
            (&before.epoch, before.start_length) == (&frozen.epoch, frozen.start_length)
        };
        // A full one takes any: it was cleared together with the freeze.
        frozen.recording && (self.basis.is_none() || self.bitmap.as_ref().is_some_and(same))
    }
}

/// What an incremental backup stands on.
pub(super) struct Basis {
    pub(super) parent: String,
    pub(super) parent_starts: String,
    /// Backups whose granules are to be copied besides the dirty ones.
    pub(super) also: Vec<String>,
    /// The least length, in bytes, that the disk had in between as far as the bitmap does not tell: what lies behind it
    /// was cut off, and what has grown there since is in no bitmap, but in the parent there may be anything (A1).
    pub(super) shortest: u64,
    /// Why these; empty where there are none.
    pub(super) reason: String,
}

impl Basis {
    /// The words are why there is none.
    fn find(
        disk: &Disk,
        folder: &BackupFolder,
        newest: &BackupPoint,
        bitmap: Option<&BitmapInfo>,
        since: Option<&str>,
    ) -> Result<Self, String> {
        let Some(info) = bitmap else {
            return Err("the disk had no such bitmap, and so it is not known what has changed".to_owned());
        };
        if info.inconsistent {
            return Err(
                "the bitmap was inconsistent: the image may have been written to behind its back; what QEMU wrote \
                 through an export comes by \"qbm import --bitmaps\" first"
                    .to_owned(),
            );
        }
        let Some(epoch) = info.epoch.as_deref() else {
            return Err("the bitmap has no epoch, and so it is not known since when it records".to_owned());
        };
        let mut also = Vec::new();
        let mut reasons = Vec::new();
        if newest.starts != epoch {
            if newest.based_on.as_deref() != Some(epoch) {
                return Err(foreign(folder, newest, info, epoch));
            }
            reasons.push(format!(
                "the bitmap starts where it did for {}, as after a backup that was killed at its very end or a disk \
                 that was rolled back: what that backup has is in this one too",
                newest.name
            ));
            // A full one began with a clean bitmap at its very point: nothing was dirty that is not so now.
            also.extend(newest.parent.is_some().then(|| newest.name.clone()));
        }
        if info.widened {
            reasons.push(WIDENED.to_owned());
        }
        let unreadable = |error: Error| {
            format!(
                "the newest backup, {}, cannot be read: {}",
                newest.name,
                error.message()
            )
        };
        let chain = folder.chain(newest).map_err(unreadable)?;
        folder.open_point(newest).map_err(unreadable)?;
        let mut parent = newest;
        if let Some(since) = since {
            let wanted = folder.find(since).map_err(|error| error.message().to_owned())?;
            let Some(at) = chain.iter().position(|point| point.name == wanted.name) else {
                return Err(format!(
                    "the newest backup, {}, does not stand on {}",
                    newest.name, wanted.name
                ));
            };
            for point in &chain[..at] {
                if !also.contains(&point.name) {
                    also.push(point.name.clone());
                }
            }
            parent = wanted;
        }
        let height = folder.chain(parent).map_err(unreadable)?.len();
        if height >= MAX_CHAIN {
            return Err(format!(
                "{height} backups stand on one another, and no more may; a prune makes that fewer"
            ));
        }
        if disk.length() > 0 && info.granularity != newest.granularity && !also.is_empty() {
            return Err("the bitmap has another granularity".to_owned());
        }
        let cut = also
            .iter()
            .filter_map(|name| folder.named(name))
            .map(|it| it.length);
        let shortest = if also.is_empty() {
            u64::MAX
        } else {
            cut.chain(info.start_length).min().unwrap_or(0)
        };
        Ok(Self {
            parent: parent.name.clone(),
            parent_starts: parent.starts.clone(),
            shortest,
            also,
            reason: reasons.join("; "),
        })
    }
}

/// Why a bitmap that starts elsewhere does not fit.
fn foreign(folder: &BackupFolder, newest: &BackupPoint, info: &BitmapInfo, epoch: &str) -> String {
    if newest.bitmap != info.name {
        return format!(
            "the newest backup, {}, was made with bitmap {:?}, not {:?}",
            newest.name, newest.bitmap, info.name
        );
    }
    if let Some(older) = folder.points().iter().find(|point| point.starts == epoch) {
        return format!(
            "the bitmap starts at the older backup {}, not at {}: the disk was rolled back, or this folder came back \
             from a copy",
            older.name, newest.name
        );
    }
    format!(
        "the bitmap does not start at {}: it was cleared, enabled anew, made anew or used for another folder since, \
         a full backup did not end, or the disk was rolled back",
        newest.name
    )
}

fn has(disk: &Disk, bitmap: &str) -> Result<bool> {
    Ok(disk.bitmap_list()?.iter().any(|info| info.name == bitmap))
}

fn check_bitmap(info: &BitmapInfo) -> Result<()> {
    if !info.recording {
        return Err(Error::new(
            ErrorCode::BitmapState,
            format!(
                "bitmap {:?} is disabled, so that it does not see what is written; enable it first",
                info.name
            ),
        ));
    }
    if info.busy {
        return Err(Error::new(
            ErrorCode::BitmapBusy,
            format!("bitmap {:?} is frozen: another backup uses it", info.name),
        ));
    }
    Ok(())
}
