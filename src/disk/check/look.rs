//! Looking at a disk, file by file, from the descriptor on. What one file lacks keeps no other from being looked at.
//!
//! Invariant: with no repair nothing is written, and with one only under the locks of a writer; they are given up at
//! the end.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::report::{CheckReport, Finding, FindingKind, Severity};
use super::{CheckOptions, Repair, leftovers, mend};
use crate::bitmap::{BitmapFile, BitmapPolicy};
use crate::descriptor::{BitmapEntry, Descriptor, Format, ImageEntry};
use crate::disk::bitmaps::Loading;
use crate::disk::open::{ATTEMPTS, Files, Held, ImageFound, Place, grown};
use crate::disk::overlay::{Backing, Chain, OwnImage, measured};
use crate::disk::{Child, Progress, checksum};
use crate::error::{Error, ErrorCode, Result};
use crate::mutation::{self, Fault};
use crate::state::{Evidence, Found, Lock, MarkId, Sharing, Stamp, StateFile, Unusable, Verdict};
use crate::storage::{Access, Role, Storage, SyncMode};
use crate::units::ByteRange;

/// What to do where a dirty bitmap's file is missing, or too short.
const REMADE: &str = "-r dirty makes it anew with every bit set";

/// And where the state file is missing, or cannot be relied on.
const NEW_STATE: &str = "-r all makes a new one and sets every bit, as the next open for writing does";

/// One look at a disk.
pub(super) struct Looking<'o> {
    options: &'o CheckOptions,
    place: &'o Place,
    repair: Repair,
    report: CheckReport,
    /// As the descriptor names them.
    state_file: String,
    image_file: String,
}

/// A bitmap whose file is there; or a dirty one whose file can be made anew.
pub(super) struct BitmapSeen<'d> {
    pub(super) name: &'d str,
    pub(super) entry: &'d BitmapEntry,
    pub(super) file: Has,
}

/// What a bitmap has for a file.
pub(super) enum Has {
    /// One that holds the bits of the disk.
    All(BitmapFile),
    /// One that held the bits of the disk, until others made its image longer.
    Outgrown,
    /// One that is too short.
    Part(BitmapFile),
    /// None.
    Nothing,
}

/// Whether others have made the image longer than it was when a bitmap's file was made for it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Longer {
    No,
    /// It had so many bytes when the disk was closed.
    Than(u64),
    /// The disk was not closed, and nobody knows.
    Perhaps,
}

impl Longer {
    fn of(found: Option<&Found>, length: Option<u64>) -> Self {
        let (Some(found), Some(length)) = (found, length) else {
            return Self::No;
        };
        match found.outgrown_from(length) {
            Some(then) => Self::Than(then),
            None if found.may_be_outgrown(length) => Self::Perhaps,
            None => Self::No,
        }
    }
}

impl BitmapSeen<'_> {
    /// The file, where it holds all the bits.
    fn whole(&self) -> Option<&BitmapFile> {
        match &self.file {
            Has::All(file) => Some(file),
            Has::Outgrown | Has::Part(_) | Has::Nothing => None,
        }
    }

    /// Whether the state file calls it inconsistent.
    fn is_marked(&self, found: &Found) -> bool {
        let mark = MarkId::of(self.name, self.entry.epoch.as_deref());
        self.is_dirty() && found.header().marks.contains(mark)
    }

    /// The file, as far as it holds any.
    pub(super) fn any_file(&self) -> Option<&BitmapFile> {
        match &self.file {
            Has::All(file) | Has::Part(file) => Some(file),
            Has::Outgrown | Has::Nothing => None,
        }
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.entry.kind.is_allocation()
    }

    pub(super) fn records(&self) -> bool {
        self.is_dirty() && self.entry.recording.unwrap_or(true)
    }
}

/// The files that must be locked, and the descriptor that named them.
struct Locked<'p> {
    files: Files<'p>,
    descriptor: Descriptor,
    image: Option<Child>,
    state: Option<(Arc<dyn Storage>, PathBuf)>,
    report: CheckReport,
    _held: Held,
}

impl<'o> Looking<'o> {
    pub(super) fn new(options: &'o CheckOptions, place: &'o Place, repair: Repair) -> Self {
        Self {
            options,
            place,
            repair,
            report: CheckReport::default(),
            state_file: String::new(),
            image_file: String::new(),
        }
    }

    /// What is found, and the place of the image where that is a disk itself.
    pub(super) fn look(mut self, progress: &mut Progress<'_>) -> Result<(CheckReport, Option<Place>)> {
        let mut locked = None;
        // As at an open: what was read before the lock is read again.
        for _ in 0..ATTEMPTS {
            match self.locked() {
                Ok(None) => {}
                Ok(found) => {
                    locked = found;
                    break;
                }
                Err(error) if error.code() == ErrorCode::DescriptorInvalid => {
                    let words = error.message().to_owned();
                    self.report.add(FindingKind::DescriptorInvalid, "", words);
                    return Ok((self.report, None));
                }
                Err(error) => return Err(error),
            }
        }
        let Some(locked) = locked else {
            let words = "it keeps being changed while it is being checked";
            return Err(Error::new(ErrorCode::Locked, words));
        };
        let Locked {
            mut files,
            descriptor,
            image,
            state,
            report,
            _held,
        } = locked;
        self.report = report;
        self.image_file.clone_from(&descriptor.image().file);
        if let Some(entry) = descriptor.state() {
            self.state_file.clone_from(&entry.file);
        }
        if self.report.locked_out.is_some() {
            self.repair = Repair::None;
        }
        let length = self.length(image.as_ref());
        let state = state.map(|(storage, path)| {
            let found = StateFile::inspect(&*storage, &path);
            (storage, path, found)
        });
        let found = state
            .as_ref()
            .and_then(|(.., it)| it.as_ref().ok()?.as_ref().ok());
        let longer = Longer::of(found, length);
        let bitmaps = self.bitmaps(&mut files, &descriptor, length, longer);
        let short = bitmaps.iter().any(|it| matches!(it.file, Has::Part(_)));
        let outgrown = longer == Longer::Perhaps && short;
        self.chain(&mut files, &descriptor);
        let foreign = match (&state, length) {
            (Some((storage, path, found)), Some(length)) => {
                let image = image.as_ref();
                self.state((&**storage, path), found, image, length, &bitmaps, outgrown)?
            }
            _ => false,
        };
        if descriptor.state().is_none() && bitmaps.iter().any(BitmapSeen::is_dirty) {
            self.report.add(
                FindingKind::Unprotected,
                "",
                "the disk has no state file: a power cut can cost its bitmaps bits, and foreign writes go unnoticed; \
                 the next open for writing makes one, unless it is told not to"
                    .to_owned(),
            );
        }
        if let Some(length) = length {
            // With an image that others have cut, the bits behind its end may be all that tells what was there.
            let clear = self.repair == Repair::All && !foreign;
            for bitmap in &bitmaps {
                self.tail(bitmap, length, image.as_ref().filter(|_| clear));
            }
        }
        let remove = matches!(self.repair, Repair::Leaks | Repair::All);
        leftovers::look(self.place, &descriptor, &files, remove, &mut self.report);
        // Behind that: what is made here the old descriptor does not name.
        let disk = image.as_ref().zip(length);
        mend::bitmaps(
            (self.place, &descriptor, disk),
            self.repair,
            &bitmaps,
            outgrown,
            &mut self.report,
        );
        if let (true, Some(image)) = (self.options.checksum, &image) {
            self.checksum(&descriptor, image, progress)?;
        }
        let inner = match descriptor.image() {
            entry if entry.format == Format::Qbm && image.is_some() => {
                Some(Files::new(self.place).image_place("QBM.image.file", &entry.file)?)
            }
            _ => None,
        };
        Ok((self.report, inner))
    }

    /// `None` where the descriptor has changed since it was read.
    fn locked(&self) -> Result<Option<Locked<'o>>> {
        let mut files = Files::new(self.place);
        let (descriptor, _) = files.descriptor()?;
        let mut report = CheckReport::default();
        let repairs = self.repair != Repair::None;
        let access = Access {
            write: repairs,
            direct: false,
        };
        let entry = descriptor.image();
        let image = if entry.format == Format::Qbm {
            match self.options.of_image().image_disk(&mut files, entry) {
                Ok(None) => return Ok(None),
                Ok(found) => found,
                Err(error) if error.code() == ErrorCode::Locked => return Err(error),
                Err(error) => {
                    Self::note_lost(&mut report, &entry.file, &error);
                    None
                }
            }
        } else {
            let key = "QBM.image.file";
            Self::open(
                &mut report,
                &mut files,
                Role::Image,
                key,
                &entry.file,
                Access::default(),
            )
            .map(|(file, path)| ImageFound::File(file, path))
        };
        let mut state = None;
        if let Some(entry) = descriptor.state() {
            let key = "QBM.state.file";
            match files.open(Role::State, key, Path::new(""), &entry.file, access) {
                Ok(found) => state = Some(found),
                Err(error) if error.code() == ErrorCode::FileNotFound => {
                    let words = format!("{error}: nothing is known of the last user");
                    report
                        .add(FindingKind::StateMissing, &entry.file, words)
                        .advise(NEW_STATE);
                }
                // Without its lock nothing may be repaired; but whoever may read it may look.
                Err(error) => {
                    report.locked_out = repairs.then(|| error.message().to_owned());
                    let opened = if repairs {
                        files.open(Role::State, key, Path::new(""), &entry.file, Access::default())
                    } else {
                        Err(error)
                    };
                    match opened {
                        Ok(found) => state = Some(found),
                        Err(error) => {
                            let finding = Self::note(&mut report, &entry.file, &error);
                            if finding.kind == FindingKind::FileInvalid {
                                finding.advise("where nothing is in its place, -r all makes a new one");
                            }
                        }
                    }
                }
            }
        }
        let repairs = repairs && report.locked_out.is_none();
        let mut held = Held::new()?;
        if !self.options.no_lock {
            let sharing = if repairs { Sharing::Write } else { Sharing::Read };
            if let Some((storage, path)) = &state {
                held.extend(Lock::state(storage, path, sharing)?);
            }
            if let Some(ImageFound::File(storage, path)) = &image {
                held.extend(Lock::image(storage, path, sharing)?);
            }
            if !self.place.handed_in && Files::new(self.place).descriptor()?.0 != descriptor {
                return Ok(None);
            }
        }
        let image = image.and_then(|file| Self::image(&mut report, &mut files, descriptor.image(), file));
        Ok(Some(Locked {
            files,
            descriptor,
            image,
            state,
            report,
            _held: held,
        }))
    }

    /// The image in its format.
    fn image(
        report: &mut CheckReport,
        files: &mut Files<'_>,
        entry: &ImageEntry,
        file: ImageFound,
    ) -> Option<Child> {
        let loading = Loading::new(None);
        let file = match file {
            ImageFound::File(file, path) => (file, path),
            ImageFound::Disk(disk) => {
                return disk
                    .open(files, &loading)
                    .inspect_err(|error| Self::note_lost(report, &entry.file, error))
                    .ok();
            }
        };
        if entry.format == Format::Raw {
            return Some(Child::new(file.0, file.1));
        }
        OwnImage::of_disk(files, entry, file, &loading)
            .inspect_err(|error| Self::note_lost(report, &entry.file, error))
            .ok()
            .map(|(image, _)| image)
    }

    fn open(
        report: &mut CheckReport,
        files: &mut Files<'_>,
        role: Role,
        key: &str,
        name: &str,
        access: Access,
    ) -> Option<(Arc<dyn Storage>, PathBuf)> {
        files
            .open(role, key, Path::new(""), name, access)
            .inspect_err(|error| Self::note_lost(report, name, error))
            .ok()
    }

    /// A file of the disk that cannot be used.
    fn note<'r>(report: &'r mut CheckReport, name: &str, error: &Error) -> &'r mut Finding {
        let kind = match error.code() {
            ErrorCode::FileNotFound => FindingKind::FileMissing,
            ErrorCode::FileInvalid => FindingKind::FileInvalid,
            _ => FindingKind::NotChecked,
        };
        report.add(kind, name, error.message().to_owned())
    }

    /// The same of one that nothing can stand in for.
    fn note_lost(report: &mut CheckReport, name: &str, error: &Error) {
        let finding = Self::note(report, name, error);
        if finding.kind != FindingKind::NotChecked {
            finding.advise("no repair makes up for it: bring the file back, or restore a backup");
        }
    }

    fn length(&mut self, image: Option<&Child>) -> Option<u64> {
        let length = measured(image?);
        length.inspect_err(|error| self.report.add_error(error)).ok()
    }

    /// The bitmaps whose files can be read, or be made anew.
    fn bitmaps<'d>(
        &mut self,
        files: &mut Files<'_>,
        descriptor: &'d Descriptor,
        length: Option<u64>,
        longer: Longer,
    ) -> Vec<BitmapSeen<'d>> {
        let mut seen = Vec::new();
        for (name, entry) in descriptor.bitmaps() {
            let key = format!("QBM.bitmaps[{name:?}].file");
            match self.bitmap(files, (&key, entry), length, longer) {
                Ok(file) => seen.push(BitmapSeen { name, entry, file }),
                Err(error) => Self::note_lost(&mut self.report, &entry.file, &error),
            }
        }
        seen
    }

    /// What a bitmap has for a file; an error where that can be used for nothing.
    fn bitmap(
        &mut self,
        files: &mut Files<'_>,
        (key, entry): (&str, &BitmapEntry),
        length: Option<u64>,
        longer: Longer,
    ) -> Result<Has> {
        let access = Access {
            write: self.repair == Repair::All,
            direct: false,
        };
        let remade = |error: &Error, code| error.code() == code && !entry.kind.is_allocation();
        let (storage, path) = match files.open(Role::Bitmap, key, Path::new(""), &entry.file, access) {
            Err(error) if remade(&error, ErrorCode::FileNotFound) => {
                let finding = Self::note(&mut self.report, &entry.file, &error);
                finding.advise(REMADE);
                finding.mended_by(Some(Repair::Dirty));
                return Ok(Has::Nothing);
            }
            found => found?,
        };
        let file = BitmapFile::new(storage, path, BitmapPolicy::WriteThrough);
        let Some(length) = length else {
            return Ok(Has::All(file));
        };
        let granules = |length| entry.granularity.granules_in(length);
        match file.load(granules(length)) {
            Ok(_) => Ok(Has::All(file)),
            Err(error) if remade(&error, ErrorCode::FileInvalid) => {
                let finding = Self::note(&mut self.report, &entry.file, &error.context(key));
                finding.mended_by(Some(Repair::Dirty));
                let held = |length| file.check_size(granules(length)).is_ok();
                match longer {
                    Longer::Than(then) if held(then) => {
                        finding.advise(&grown(then, length));
                        finding.advise("-r trust and -r dirty make it longer");
                        return Ok(Has::Outgrown);
                    }
                    // What to do is said where others' writes are told of.
                    Longer::Perhaps => {}
                    Longer::Than(_) | Longer::No => finding.advise(REMADE),
                }
                Ok(Has::Part(file))
            }
            Err(error) => Err(error.context(key)),
        }
    }

    fn chain(&mut self, files: &mut Files<'_>, descriptor: &Descriptor) {
        if let Err(error) = Chain::open(files, Backing::of(descriptor), &Loading::new(None)) {
            let kind = match error.code() {
                ErrorCode::FileNotFound | ErrorCode::FileInvalid | ErrorCode::DescriptorInvalid => {
                    FindingKind::ChainBroken
                }
                _ => FindingKind::NotChecked,
            };
            let finding = self.report.add(kind, "chain", error.message().to_owned());
            if kind == FindingKind::ChainBroken {
                finding.advise(
                    "no repair makes up for it: bring the image back, or name another one (qbm rebase -u)",
                );
            }
        }
    }

    /// What the state file says; tells whether others wrote to the image.
    fn state(
        &mut self,
        (storage, path): (&dyn Storage, &Path),
        found: &Result<Result<Found, Unusable>>,
        image: Option<&Child>,
        length: u64,
        bitmaps: &[BitmapSeen<'_>],
        outgrown: bool,
    ) -> Result<bool> {
        let found = match found {
            Ok(Ok(found)) => found,
            Ok(Err(unusable)) => {
                let words = format!("{unusable}; nothing is known of the last user");
                self.report
                    .add(FindingKind::StateDamaged, &self.state_file, words)
                    .advise(NEW_STATE);
                return Ok(false);
            }
            Err(error) => {
                self.report.add_error(error);
                return Ok(false);
            }
        };
        if found.damaged_pieces() > 0 {
            let words = format!(
                "a part of the map in {} is damaged, so that all regions of that part count as active",
                path.display()
            );
            self.report
                .add(FindingKind::StateDamaged, &self.state_file, words)
                .advise("-r all writes it anew, as the next open for writing does");
        }
        self.inconsistent(found, bitmaps);
        let user = self.options.no_lock.then(|| Lock::writer(storage)).flatten();
        if let Some(user) = &user {
            let what = if found.header().clean {
                "and is as it was when it was closed"
            } else {
                "and whoever opens it for writing would recover it, were that killed now"
            };
            let words = format!("the disk is in use by {user}, {what}");
            self.report.add(FindingKind::InUse, &self.state_file, words);
        }
        if let Some(why) = image.and_then(|image| other_user(found, image)) {
            self.written_by_others(found, image, &why, bitmaps);
            return Ok(true);
        }
        if user.is_some() && !found.header().clean {
            return Ok(false);
        }
        match found.verdict(&self.evidence(storage, bitmaps)?, length) {
            Verdict::Clean => {
                let foreign = image.is_some_and(|image| self.foreign(found, image, bitmaps));
                return Ok(foreign);
            }
            Verdict::Exact => self.not_closed("nothing was lost, so that its bitmaps are exact"),
            Verdict::Widen { ranges, why } => {
                let bytes: u64 = ranges.iter().copied().map(ByteRange::len).sum();
                self.not_closed(&format!(
                    "{why}: up to {bytes} bytes more count as changed in every bitmap that records"
                ));
            }
        }
        if outgrown {
            let why = "the disk was not closed, and the image is longer than its bitmaps' files reach";
            self.written_by_others(found, image, why, bitmaps);
        }
        Ok(outgrown)
    }

    fn evidence(
        &self,
        storage: &dyn Storage,
        bitmaps: &[BitmapSeen<'_>],
    ) -> Result<Result<Evidence, crate::state::NoEvidence>> {
        if let Some(epoch) = &self.options.cache_epoch {
            return Evidence::of_epoch(epoch).map(Ok);
        }
        let dirty = bitmaps.iter().filter(|it| it.is_dirty());
        let files = dirty.filter_map(BitmapSeen::whole);
        Ok(Evidence::gather(storage, files.map(BitmapFile::storage)))
    }

    fn not_closed(&mut self, what: &str) {
        let words = format!("the disk was not closed, and {what}");
        self.report
            .add(FindingKind::NotClosed, &self.state_file, words)
            .advise("the next open for writing, or -r all, recovers it");
    }

    fn inconsistent(&mut self, found: &Found, bitmaps: &[BitmapSeen<'_>]) {
        for bitmap in bitmaps.iter().filter(|it| it.is_marked(found)) {
            let words = format!(
                "bitmap {:?} is inconsistent: changes may be missing in it, and none has been recorded since it is",
                bitmap.name
            );
            self.report
                .add(FindingKind::BitmapInconsistent, bitmap.name, words)
                .advise("-r dirty sets every bit, or remove it");
        }
    }

    fn foreign(&mut self, found: &Found, image: &Child, bitmaps: &[BitmapSeen<'_>]) -> bool {
        let Some(then) = &found.header().stamp else {
            return false;
        };
        let why = match Stamp::of(&*image.storage, &image.path) {
            Ok(now) => then.difference(&now),
            Err(error) => {
                self.report.add_error(&error);
                None
            }
        };
        let Some(why) = why else { return false };
        self.written_by_others(found, Some(image), &why, bitmaps);
        true
    }

    fn written_by_others(
        &mut self,
        found: &Found,
        image: Option<&Child>,
        why: &str,
        bitmaps: &[BitmapSeen<'_>],
    ) {
        let path = image.map_or(Path::new(""), |it| &it.path);
        let written = format!("{} was written to by others ({why})", path.display());
        let recording = || bitmaps.iter().filter(|it| it.records());
        if recording().next().is_none() {
            let words = format!("{written}, and no bitmap records");
            self.report.add_as(
                FindingKind::ForeignWrites,
                Severity::Note,
                &self.image_file,
                words,
            );
            return;
        }
        // Those that are inconsistent already have nothing to lose any more, and nobody can choose for them.
        let names: Vec<String> = recording()
            .filter(|it| !it.is_marked(found))
            .map(|it| format!("{:?}", it.name))
            .collect();
        if names.is_empty() {
            return;
        }
        let words = format!("{written}: changes may be missing in {}", names.join(", "));
        self.report
            .add(FindingKind::ForeignWrites, &self.image_file, words)
            .advise(
                "-r dirty sets every bit, -r trust takes the image as it is, and the next open for writing makes them \
                 inconsistent for good",
            );
    }

    /// Looks for bits behind the end, and clears them where that of `image` is to be relied on.
    fn tail(&mut self, bitmap: &BitmapSeen<'_>, length: u64, image: Option<&Child>) {
        let Some(file) = bitmap.whole() else { return };
        let granules = bitmap.entry.granularity.granules_in(length);
        match file.has_tail_bits(granules) {
            Ok(false) => return,
            Ok(true) => {}
            Err(error) => return self.report.add_error(&error),
        }
        let words = format!(
            "{} has bits behind the disk's end, which libqbm does not read",
            file.path().display()
        );
        let finding = self.report.add(FindingKind::TailBits, bitmap.name, words);
        finding.advise("-r all clears them");
        if let Some(image) = image {
            // Whoever cut it may not have made that durable: a power cut would bring back what the bits stand for (D1).
            let durable = if mutation::on(Fault::FoundLengthUnsynced) {
                Ok(())
            } else {
                let synced = image.storage.sync(SyncMode::Data);
                synced.map_err(|e| image.failed("flush", &e))
            };
            match durable.and_then(|()| file.clear_tail_bits(granules)) {
                Ok(()) => finding.set_fixed(),
                Err(error) => {
                    let words = error.message().to_owned();
                    self.report.add(FindingKind::RepairFailed, bitmap.name, words);
                }
            }
        }
    }

    fn checksum(
        &mut self,
        descriptor: &Descriptor,
        image: &Child,
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        let Some(wanted) = descriptor.image().checksum else {
            let words = "the descriptor has no checksum (QBM.image.checksum) to compare the image with";
            self.report
                .add(FindingKind::ChecksumMissing, &self.image_file, words.to_owned());
            return Ok(());
        };
        match checksum::of(image, progress) {
            Ok(found) if found == wanted => {}
            Ok(found) => {
                let words = checksum::mismatch(image, wanted, found);
                self.report
                    .add(FindingKind::ChecksumWrong, &self.image_file, words);
            }
            Err(error) if error.code() == ErrorCode::Canceled => return Err(error),
            Err(error) => self.report.add_error(&error),
        }
        Ok(())
    }
}

/// Why somebody else has used an image that is a disk itself, if somebody has.
fn other_user(found: &Found, image: &Child) -> Option<String> {
    let inner = image.disk()?;
    if let Some(why) = inner.foreign() {
        return Some(why.to_owned());
    }
    let now = Stamp::of(&*image.storage, &image.path).ok()?;
    found.header().stamp.as_ref()?.other_user(&now)
}
