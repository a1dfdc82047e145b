//! Making one backup: one step, after which there is one more in the folder, or all is as it was.
//!
//! In this order: the bitmap is frozen, the data copied and durable, the backup visible by a rename that is durable
//! too, and only then is the bitmap thawed, and forgets what the backup has (D1).
//!
//! Whoever is killed between the rename and the thaw leaves a bitmap that still starts where it started for the newest
//! backup. What is dirty in it then, and what that backup has, is more than has changed since; the same is true of a
//! host that was rolled back to a moment before that backup. So the next one goes on from there with both together.
//! Any other starting point means a full backup (durability trap 11).

use super::bits::{add_dirty, add_stored, release_clean, write_bitmap};
use super::copy::{Copied, copy};
use super::folder::BackupFolder;
use super::lock::{Files, FolderLock};
use super::pace::Pace;
use super::plan::Plan;
use super::point::BackupPoint;
use crate::bitmap::Bits;
use crate::descriptor::{BackingEntry, BitmapEntry, BitmapKind, Descriptor, Format, ImageEntry};
use crate::disk::{BackupView, BackupViews, BitmapInfo, Disk, Progress, Scratch, ScratchFull};
use crate::error::{Error, ErrorCode, Result};
use crate::storage::{Role, SyncMode};
use crate::units::{ByteRange, Granularity};

/// What a backup writes into `creator`.
const CREATOR: &str = concat!("libqbm ", env!("CARGO_PKG_VERSION"));

/// So often a backup is planned anew whose bitmap somebody changes before it is frozen.
const MAX_PLANS: usize = 4;

/// How to back a disk up; then [`run`](Backup::run).
#[derive(Clone, Debug)]
pub struct Backup {
    pub(super) bitmap: String,
    pub(super) granularity: Granularity,
    pub(super) full: bool,
    pub(super) since: Option<String>,
    pub(super) moved: bool,
    pub(super) limit: Option<u64>,
    pub(super) scratch_limit: u64,
    pub(super) scratch_full: ScratchFull,
}

/// A backup that was made.
#[derive(Clone, Debug)]
pub struct Finished {
    /// What the folder shows of it.
    pub point: BackupPoint,
    /// Why the bitmap could not be told; `None` as a rule. The backup is there, and the next one only larger.
    pub not_thawed: Option<String>,
}

impl Backup {
    /// With the bitmap of that name, which is added to the disk if it has none.
    pub fn new(bitmap: impl Into<String>) -> Self {
        Self {
            bitmap: bitmap.into(),
            granularity: Granularity::DEFAULT,
            full: false,
            since: None,
            moved: false,
            limit: None,
            scratch_limit: Scratch::LIMIT,
            scratch_full: ScratchFull::default(),
        }
    }

    /// The granularity of the bitmap, where it has to be added: 64 KiB unless it is given.
    #[must_use]
    pub fn granularity(mut self, granularity: Granularity) -> Self {
        self.granularity = granularity;
        self
    }

    /// A full backup, whatever the bitmap says.
    #[must_use]
    pub fn full(mut self, yes: bool) -> Self {
        self.full = yes;
        self
    }

    /// Upon that backup in place of the newest one, so that it needs none of those between the two. What these have is
    /// copied again.
    #[must_use]
    pub fn since(mut self, point: impl Into<String>) -> Self {
        self.since = Some(point.into());
        self
    }

    /// The disk is the one that the folder's backups are of, though it has another path now.
    #[must_use]
    pub fn moved(mut self, yes: bool) -> Self {
        self.moved = yes;
        self
    }

    /// At most so many bytes in a second.
    #[must_use]
    pub fn limit(mut self, bytes: u64) -> Self {
        self.limit = Some(bytes);
        self
    }

    /// At most so many bytes that the guest overwrites are kept in the folder until the backup is made, 1 GiB unless it is
    /// given. Nothing is kept of what the backup has copied already, or does not need. See [`Scratch`].
    #[must_use]
    pub fn scratch_limit(mut self, bytes: u64) -> Self {
        self.scratch_limit = bytes;
        self
    }

    /// What happens when the guest overwrites more: the backup fails unless it is given.
    #[must_use]
    pub fn scratch_full(mut self, full: ScratchFull) -> Self {
        self.scratch_full = full;
        self
    }

    /// Makes one backup of `disk`, which is open for writing, into `folder`. Durable on return.
    ///
    /// Other threads may write to the disk meanwhile; the backup shows it as it was at one point between their writes.
    /// `progress` is called from time to time with the bytes done and to do, and ends it with [`ErrorCode::Canceled`].
    /// An error leaves the folder and the bitmap's starting point as they were; but for a full backup the bitmap has
    /// been cleared already, so that the next one is full too. One of the very last step says that the backup may be
    /// there: whole then, and the next one makes sure that it stays before it stands on it.
    pub fn run(
        &self,
        disk: &Disk,
        folder: &mut BackupFolder,
        progress: &mut Progress<'_>,
    ) -> Result<Finished> {
        self.run_when_planned(disk, folder, progress, &mut || {})
    }

    /// The same. `planned` is called whenever it is decided what is to be copied, and the bitmap not frozen yet.
    pub(super) fn run_when_planned(
        &self,
        disk: &Disk,
        folder: &mut BackupFolder,
        progress: &mut Progress<'_>,
        planned: &mut dyn FnMut(),
    ) -> Result<Finished> {
        self.run_parts(disk, folder, progress, planned)
            .map_err(|e| e.context(format_args!("cannot back up {}", disk.path().display())))
    }

    fn run_parts(
        &self,
        disk: &Disk,
        folder: &mut BackupFolder,
        progress: &mut Progress<'_>,
        planned: &mut dyn FnMut(),
    ) -> Result<Finished> {
        if !disk.info()?.writable {
            return Err(Error::new(
                ErrorCode::ReadOnly,
                "the disk is open read-only, so that its bitmap could not be told of the backup",
            ));
        }
        let lock = folder.lock()?;
        let made = self.run_locked(disk, (folder, &lock), progress, planned);
        match made {
            Ok(_) => drop(lock),
            Err(_) => folder.take_back(lock),
        }
        made
    }

    fn run_locked(
        &self,
        disk: &Disk,
        (folder, lock): (&mut BackupFolder, &FolderLock),
        progress: &mut Progress<'_>,
        planned: &mut dyn FnMut(),
    ) -> Result<Finished> {
        folder.assure_folder()?;
        let (plan, frozen, views) = self.begin(disk, (folder, lock), planned)?;
        let made: Result<Vec<BackupPoint>> = views
            .views()
            .iter()
            .map(|view| self.make(view, (folder, lock), &plan, &frozen, progress))
            .collect();
        match made {
            Ok(points) => {
                let thawed = views.end(true);
                for point in &points {
                    folder.add(point);
                }
                let not_thawed = thawed.err().map(|error| error.message().to_owned());
                let finished = |point| Finished { point, not_thawed };
                points
                    .into_iter()
                    .next()
                    .map(finished)
                    .ok_or_else(|| Error::new(ErrorCode::BitmapState, "the disk went away"))
            }
            Err(error) => {
                // The first failure is the one to tell. A disk that cannot do this has failed altogether, and on the
                // next open the bitmap has all bits.
                let _ = views.end(false);
                Err(error)
            }
        }
    }

    /// Freezes the bitmap, with a plan that fits what was frozen, and says what that is.
    fn begin<'d>(
        &self,
        disk: &'d Disk,
        (folder, lock): (&BackupFolder, &FolderLock),
        planned: &mut dyn FnMut(),
    ) -> Result<(Plan, BitmapInfo, BackupViews<'d>)> {
        let scratch = Scratch::new(folder.path())
            .limit(self.scratch_limit)
            .when_full(self.scratch_full);
        for attempt in 0..MAX_PLANS {
            let plan = self.plan(disk, folder)?;
            if attempt == 0 {
                folder.assure_newest(plan.epoch(), lock)?;
            }
            planned();
            let actions = plan.actions(&self.bitmap);
            let actions: Vec<_> = actions.iter().map(|action| (disk, action)).collect();
            let views = BackupViews::begin(&[(disk, &self.bitmap)], &actions, &scratch)?;
            let frozen = disk.bitmap_info(&self.bitmap)?;
            // D1: up to the freeze anybody could clear the bitmap, disable it or put another in its place. From there on
            // nobody can.
            if plan.fits(&frozen) {
                return Ok((plan, frozen, views));
            }
            views.end(false)?;
        }
        Err(Error::new(
            ErrorCode::BitmapBusy,
            format!(
                "bitmap {:?} was changed by others each time between the decision what to copy and the freeze",
                self.bitmap
            ),
        ))
    }

    /// All between the freeze and the thaw.
    fn make(
        &self,
        view: &BackupView<'_>,
        (folder, lock): (&BackupFolder, &FolderLock),
        plan: &Plan,
        frozen: &BitmapInfo,
        progress: &mut Progress<'_>,
    ) -> Result<BackupPoint> {
        let Some(starts) = frozen.next_epoch.clone() else {
            return Err(Error::new(
                ErrorCode::BitmapState,
                format!("bitmap {:?} is not frozen any more", self.bitmap),
            ));
        };
        let (name, sequence, time) = folder.begin_point()?;
        let mut point = BackupPoint {
            data_file: format!("{name}-data.img"),
            bitmap_file: plan.basis.is_some().then(|| format!("{name}-allocation.bitmap")),
            name,
            sequence,
            time,
            parent: plan.basis.as_ref().map(|basis| basis.parent.clone()),
            parent_starts: plan.basis.as_ref().map(|basis| basis.parent_starts.clone()),
            source: plan.source.display().to_string(),
            length: view.length(),
            bitmap: self.bitmap.clone(),
            granularity: frozen.granularity,
            based_on: frozen.epoch.clone(),
            starts,
            stored: 0,
            reason: plan.reason.clone(),
            data_checksum: String::new(),
            bitmap_checksum: None,
        };
        let made = self
            .fill(view, folder, plan, &mut point, progress)
            .and_then(|files| prepare(folder, lock, &point, &files));
        if let Err(error) = made {
            // What cannot be removed now goes with the next change of the folder.
            for file in point.files().skip(1).chain([point.temporary()]) {
                let _ = folder.remove(&file);
            }
            return Err(error);
        }
        // Once this was tried, nothing is removed: the backup may be there. Then the next one finds a bitmap that starts
        // where this one's did, and gives this one its name anew.
        folder.publish(&point)?;
        Ok(point)
    }

    fn fill(
        &self,
        view: &BackupView<'_>,
        folder: &BackupFolder,
        plan: &Plan,
        point: &mut BackupPoint,
        progress: &mut Progress<'_>,
    ) -> Result<Files> {
        let mut files = Files::new();
        let storage = folder.create(point, Role::Image, &point.data_file)?;
        let path = folder.shown(&point.data_file);
        let whole = ByteRange::between(0, point.length);
        let mut pace = Pace::new(progress, self.limit, point.length);
        let copied: Copied = if let Some(basis) = &plan.basis {
            let set = Bits::new(point.granularity.granules_in(point.length))?;
            add_dirty(view, &set, point.granularity)?;
            for other in &basis.also {
                let Some(other) = folder.named(other) else {
                    continue;
                };
                add_stored(folder, other, &set, point)?;
            }
            if basis.shortest < point.length {
                let regrown = ByteRange::between(basis.shortest, point.length);
                set.set(point.granularity.touched_by(regrown));
            }
            release_clean(view, &set, point.granularity)?;
            pace.total = set.count().saturating_mul(point.granularity.bytes());
            let parts = set
                .runs(set.all())
                .map(|run| point.granularity.bytes_of(run, point.length));
            let copied = copy(view, parts, &*storage, &path, &mut pace)?;
            point.bitmap_checksum = write_bitmap(folder, point, &set, &mut files)?;
            copied
        } else {
            copy(view, std::iter::once(whole), &*storage, &path, &mut pace)?
        };
        storage
            .sync(SyncMode::All)
            .map_err(|e| Error::io("sync", &path, &e))?;
        point.stored = copied.stored;
        point.data_checksum = copied.checksum;
        files.push((point.data_file.clone(), storage));
        Ok(files)
    }
}

/// Gives a backup, whose `files` are durable, its descriptor, so that nothing is left but to make it visible.
pub(super) fn prepare(
    folder: &BackupFolder,
    lock: &FolderLock,
    point: &BackupPoint,
    files: &Files,
) -> Result<()> {
    let mut descriptor = Descriptor::new(
        CREATOR,
        ImageEntry {
            file: point.data_file.clone(),
            format: Format::Raw,
            checksum: None,
        },
    )?;
    if let (Some(file), Some(parent)) = (&point.bitmap_file, &point.parent) {
        let backing = BackingEntry {
            file: format!("{parent}.qbm"),
            format: Format::Qbm,
        };
        let entry = BitmapEntry {
            file: file.clone(),
            kind: BitmapKind::Allocation {
                backing: Some(backing),
            },
            granularity: point.granularity,
            recording: None,
            epoch: None,
            start_length: None,
        };
        descriptor.insert_bitmap("allocation", entry)?;
    }
    folder.prepare(point, &point.write_to(&descriptor.to_json())?)?;
    folder.check_kept(lock, files)
}
