//! Making one backup: one step, after which there is one more in the folder, or all is as it was.
//!
//! In this order: the bitmap is frozen, the data copied and durable, the backup visible by a rename that is durable
//! too, and only then is the bitmap thawed, and forgets what the backup has (D1).
//!
//! Whoever is killed between the rename and the thaw leaves a bitmap that still starts where it started for the newest
//! backup. What is dirty in it then, and what that backup has, is more than has changed since; the same is true of a
//! host that was rolled back to a moment before that backup. So the next one goes on from there with both together.
//! Any other starting point means a full backup (durability trap 11).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::copy::{Copied, copy};
use super::digest::FileDigest;
use super::folder::BackupFolder;
use super::lock::{Files, FolderLock};
use super::pace::Pace;
use super::point::BackupPoint;
use crate::bitmap::{BitmapFile, BitmapPolicy, Bits};
use crate::descriptor::{BackingEntry, BitmapEntry, BitmapKind, Descriptor, Format, ImageEntry};
use crate::disk::{
    AddBitmap, BackupView, BackupViews, BitmapAction, BitmapInfo, Disk, Progress, Scratch, ScratchFull,
    StatusFlags,
};
use crate::error::{Error, ErrorCode, Result};
use crate::storage::{Role, SyncMode, read_slice};
use crate::units::{ByteRange, Granularity};

/// What a backup writes into `creator`.
const CREATOR: &str = concat!("libqbm ", env!("CARGO_PKG_VERSION"));

/// Why an incremental backup is larger whose bitmap says more than was written.
const WIDENED: &str = "the bitmap was widened by recovery after the disk was not closed: what that added is in this one \
                       too, changed or not";

/// So many backups may stand on one another; reading one opens all below it.
const MAX_CHAIN: usize = 128;

/// So many bytes of a bitmap's file are in memory at a time.
const PIECE: usize = 128 << 10;

/// So often a backup is planned anew whose bitmap somebody changes before it is frozen.
const MAX_PLANS: usize = 4;

/// How to back a disk up; then [`run`](Backup::run).
#[derive(Clone, Debug)]
pub struct Backup {
    bitmap: String,
    granularity: Granularity,
    full: bool,
    since: Option<String>,
    moved: bool,
    limit: Option<u64>,
    scratch_limit: u64,
    scratch_full: ScratchFull,
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
    /// there: whole then, and the next one stands on it.
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
        let (plan, frozen, views) = self.begin(disk, folder, planned)?;
        let made: Result<Vec<BackupPoint>> = views
            .views()
            .iter()
            .map(|view| self.make(view, (folder, &lock), &plan, &frozen, progress))
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
        folder: &BackupFolder,
        planned: &mut dyn FnMut(),
    ) -> Result<(Plan, BitmapInfo, BackupViews<'d>)> {
        let scratch = Scratch::new(folder.path())
            .limit(self.scratch_limit)
            .when_full(self.scratch_full);
        for _ in 0..MAX_PLANS {
            let plan = self.plan(disk, folder)?;
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

    /// Decides what is to be copied, and upon what. Changes nothing.
    fn plan(&self, disk: &Disk, folder: &BackupFolder) -> Result<Plan> {
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
        let (name, sequence, time) = folder.begin_point();
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
        // where this one's did.
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
        let storage = folder.create(Role::Image, &point.data_file)?;
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

/// What a backup is to be.
struct Plan {
    source: PathBuf,
    /// As it is before; `None` where it is to be added.
    bitmap: Option<BitmapInfo>,
    granularity: Granularity,
    /// `None` for a full one.
    basis: Option<Basis>,
    reason: String,
}

impl Plan {
    /// What begins it: at one point between writes.
    fn actions<'n>(&self, name: &'n str) -> Vec<BitmapAction<'n>> {
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

    /// Whether the bitmap that was frozen is the one that was planned with.
    fn fits(&self, frozen: &BitmapInfo) -> bool {
        let same = |before: &BitmapInfo| {
            (&before.epoch, before.start_length) == (&frozen.epoch, frozen.start_length)
        };
        // A full one takes any: it was cleared together with the freeze.
        frozen.recording && (self.basis.is_none() || self.bitmap.as_ref().is_some_and(same))
    }
}

/// What an incremental backup stands on.
struct Basis {
    parent: String,
    parent_starts: String,
    /// Backups whose granules are to be copied besides the dirty ones.
    also: Vec<String>,
    /// The least length, in bytes, that the disk had in between as far as the bitmap does not tell: what lies behind it
    /// was cut off, and what has grown there since is in no bitmap, but in the parent there may be anything (A1).
    shortest: u64,
    /// Why these; empty where there are none.
    reason: String,
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
         or the disk was rolled back",
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

/// Sets the bits that are dirty in a frozen bitmap.
fn add_dirty(view: &BackupView<'_>, set: &Bits, granularity: Granularity) -> Result<()> {
    let length = view.length();
    let mut at = 0;
    while let Some(run) = view.next_dirty(at, length - at)? {
        set.set(granularity.touched_by(run));
        at = run.end();
    }
    Ok(())
}

/// Nothing is to be kept of what is not copied.
fn release_clean(view: &BackupView<'_>, set: &Bits, granularity: Granularity) -> Result<()> {
    let mut at = 0;
    for run in set.runs(set.all()) {
        let dirty = granularity.bytes_of(run, view.length());
        view.release(at, dirty.start() - at)?;
        at = dirty.end();
    }
    view.release(at, view.length() - at)
}

/// Sets the bits of what `other` has of its own, as far as the disk of `point` has such granules.
pub(super) fn add_stored(
    folder: &BackupFolder,
    other: &BackupPoint,
    set: &Bits,
    point: &BackupPoint,
) -> Result<()> {
    let disk = folder.open_alone(other, true)?;
    let end = other.length.min(point.length);
    let mut at = 0;
    while at < end {
        let status = disk.block_status(at, end - at)?;
        let run = ByteRange::between(at, at.saturating_add(status.length).min(end));
        if status.flags.contains(StatusFlags::ALLOCATED) {
            set.set(point.granularity.touched_by(run));
        }
        at = run.end();
    }
    Ok(())
}

/// Writes the allocation bitmap of `point`, durably. Returns its checksum; `None` of a full one, which has none.
pub(super) fn write_bitmap(
    folder: &BackupFolder,
    point: &BackupPoint,
    set: &Bits,
    files: &mut Files,
) -> Result<Option<String>> {
    let Some(name) = &point.bitmap_file else {
        return Ok(None);
    };
    let storage = folder.create(Role::Bitmap, name)?;
    let path = folder.shown(name);
    files.push((name.clone(), Arc::clone(&storage)));
    BitmapFile::new(storage, path, BitmapPolicy::WriteThrough).write_new(set)?;
    bitmap_checksum(folder, name).map(Some)
}

/// The checksum of an allocation bitmap's file.
pub(super) fn bitmap_checksum(folder: &BackupFolder, name: &str) -> Result<String> {
    let storage = folder.file(name)?;
    let failed = |e: &std::io::Error| Error::io("read", folder.shown(name), e);
    let mut left = storage.length().map_err(|e| failed(&e))?;
    let mut digest = FileDigest::default();
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while left > 0 {
        let len = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        let piece = &mut buffer[..len];
        read_slice(&*storage, piece, at).map_err(|e| failed(&e))?;
        digest.add(piece);
        at += len as u64;
        left -= len as u64;
    }
    Ok(digest.finish())
}
