//! A disk on a simulated disk, to which steps are done while a model writes down what they promise.

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;

use super::check::check_closed;
use super::kind::{Inner, Kind};
use super::model::{MAX, Model, Seen, View};
use super::steps::Step;
use crate::descriptor::{BackingEntry, Format};
use crate::disk::{
    AddBitmap, BackingFlags, BitmapAction, BitmapContent, CheckOptions, Child, CreateOptions, Disk,
    FindingKind, MergeSource, OpenOptions, Repair, Severity, StatusFlags, Thaw, TruncateFlags, WriteFlags,
};
use crate::error::{Error, ErrorCode, Result};
use crate::storage::simulated::{CallKind, Fault, SimDisk};
use crate::storage::{Role, write_slice};
use crate::units::Granularity;

pub(super) const NAME: &str = "disk.qbm";
pub(super) const STATE: &str = "disk.state";
const BASE: &str = "base.img";
/// What an overlay may be put on, besides nothing: of other content, and longer.
const OTHER: &str = "other.img";
/// An overlay itself, which takes from the first.
const MIDDLE: &str = "middle.qbm";
/// The disk that is the image, and its bitmap.
pub(super) const INNER: &str = "inner.qbm";
pub(super) const INNER_STATE: &str = "inner.state";
const INNER_BITMAP: &str = "inner";
const LOW: &str = "low.img";
pub(super) const LENGTH: u64 = 24 << 10;
pub(super) const REGION: u64 = 4096;

pub(super) struct Life {
    pub(super) sim: SimDisk,
    pub(super) kind: Kind,
    pub(super) model: Model,
    disk: Option<Arc<Disk>>,
    cache: String,
    written: u8,
    /// The least length that the disk has had.
    pub(super) shortest: usize,
}

/// What is in a backing: no zero, and no two sectors alike. The second differs from the first in every other 4 KiB.
pub(super) fn base(length: usize, other: bool) -> Vec<u8> {
    (0..length)
        .map(|at| {
            let change = if other { at / 4096 % 2 * 11 } else { 0 };
            u8::try_from((at / 512 * 7 + at + change) % 255).unwrap_or(0) + 1
        })
        .collect()
}

/// The backing number `number` of an overlay of this kind, the one it begins with first; none of the last.
fn backing(kind: Kind, number: usize) -> Option<BackingEntry> {
    let first = if kind.over_qbm {
        (MIDDLE, Format::Qbm)
    } else {
        (BASE, Format::Raw)
    };
    let (file, format) = *[first, (OTHER, Format::Raw)].get(number)?;
    Some(BackingEntry {
        file: file.to_owned(),
        format,
    })
}

impl Life {
    /// A new disk, open. Tells how many calls that took.
    pub(super) fn new(kind: Kind) -> Result<(Self, u64)> {
        let sim = SimDisk::new();
        let base = if kind.overlay {
            sim.put(OTHER, &base(MAX - 700, true));
            base(20_000, false)
        } else {
            Vec::new()
        };
        let create = || CreateOptions::new().region_bytes(REGION).folder(sim.folder());
        let over = |create: CreateOptions, (file, format): (&str, Format)| {
            let granularity = Granularity::new(2048).unwrap_or_default();
            create.backing(file, format).granularity(granularity)
        };
        if kind.overlay {
            put_unsynced(&sim, BASE, &base)?;
        }
        if kind.over_qbm {
            let middle = create().backing(BASE, Format::Raw);
            let granularity = Granularity::new(1024).unwrap_or_default();
            middle.granularity(granularity).create(MIDDLE)?;
        }
        let mut content = base;
        match kind.inner {
            None => {
                let of_size = create().size(LENGTH).no_state(kind.stateless);
                let options = match kind {
                    Kind { over_qbm: true, .. } => over(of_size, (MIDDLE, Format::Qbm)),
                    Kind { overlay: true, .. } => over(of_size, (BASE, Format::Raw)),
                    _ => of_size,
                };
                options.create(NAME)?;
            }
            Some(inner) => {
                let mut of_inner = create().size(LENGTH);
                if inner == Inner::Overlay {
                    sim.put(LOW, &low());
                    of_inner = over(of_inner, (LOW, Format::Raw));
                }
                of_inner.create(INNER)?;
                let disk = kind.options(&sim, "first").open(INNER)?;
                let options = AddBitmap {
                    granularity: Granularity::new(1024).unwrap_or_default(),
                    ..AddBitmap::default()
                };
                disk.bitmap_add(INNER_BITMAP, options)?;
                disk.close()?;
                create().image(INNER).image_format(Format::Qbm).create(NAME)?;
                if kind.overlay {
                    put_bits_above(&sim);
                } else {
                    content = starting(inner);
                }
            }
        }
        let view = View {
            length: LENGTH,
            ..View::default()
        };
        let mut life = Self {
            model: Model::new(content, view),
            sim,
            kind,
            disk: None,
            cache: "first".to_owned(),
            written: 0,
            shortest: bytes(LENGTH),
        };
        life.open()?;
        if kind.overlay {
            // Behind this, whoever made what is below need not have synced it.
            life.step(Step::Flush)?;
        }
        let start = life.now();
        Ok((life, start))
    }

    /// Goes on after a crash, with `disk`, which was opened with `cache`.
    pub(super) fn after(sim: &SimDisk, disk: Disk, kind: Kind, cache: &str, model: Model) -> Self {
        Self {
            sim: sim.clone(),
            kind,
            model,
            disk: Some(Arc::new(disk)),
            cache: cache.to_owned(),
            written: 100,
            shortest: 0,
        }
    }

    /// The process dies.
    fn kill(&mut self) {
        if let Some(disk) = self.disk.take().and_then(Arc::into_inner) {
            disk.die();
        }
    }

    pub(super) fn now(&self) -> u64 {
        self.sim.events().len() as u64
    }

    pub(super) fn length(&self) -> usize {
        self.disk.as_ref().map_or(0, |disk| bytes(disk.length()))
    }

    /// Whether `name` is the disk's own image, or may be, where it is not open.
    pub(super) fn is_image(&self, name: &Path) -> bool {
        let begins = |with| name.to_string_lossy().starts_with(with);
        let Some(disk) = &self.disk else {
            return begins("disk-data") || (self.kind.inner.is_some() && begins("inner-data"));
        };
        if disk.image().disk().is_some() {
            return begins("inner-data");
        }
        disk.layer(0).is_ok_and(|own| own.path == name)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.disk
            .as_ref()
            .is_none_or(|disk| disk.info().is_ok_and(|info| info.failed))
    }

    /// Whether an image that is a disk itself calls itself failed: then so does a flush of the disk above.
    pub(super) fn image_has_failed(&self) -> bool {
        let image = self.disk.as_ref().map(|disk| disk.image());
        image
            .and_then(Child::disk)
            .is_some_and(|inner| inner.alive.has_failed())
    }

    /// The disk, open.
    pub(super) fn disk(&mut self) -> Result<Option<Arc<Disk>>> {
        self.open_again(self.now())?;
        Ok(self.disk.clone())
    }

    fn open(&mut self) -> Result<()> {
        if self.disk.is_none() {
            let disk = self.kind.options(&self.sim, &self.cache).open(NAME)?;
            self.disk = Some(Arc::new(disk));
        }
        Ok(())
    }

    /// The same where the process may have died since.
    fn open_again(&mut self, begun: u64) -> Result<()> {
        let died = self.disk.is_none();
        self.open()?;
        if !died || self.kind.outlives_kill() {
            return Ok(());
        }
        self.look(begun)
    }

    /// Does a step, and writes down what it promised. What is refused, or fails, promised nothing.
    pub(super) fn step(&mut self, step: Step) -> Result<()> {
        let begun = self.now();
        self.written = self.written.wrapping_add(1).max(1);
        if let Step::Backup { name, at, len } = step {
            return self.back_up(name, (at, len));
        }
        let result = self.act(step, begun);
        let ended = self.now();
        if result.is_ok() && step.flushes() {
            self.model.flushed(begun, ended);
        }
        self.observe(begun, ended);
        result
    }

    /// A step has failed by a call that failed, which will not happen again: what it left is what there is.
    pub(super) fn look_again(&mut self, begun: u64) {
        self.model.step_failed();
        let _ = self.look(begun);
        self.observe(begun, self.now());
    }

    /// Takes what is there now for what was written.
    fn look(&mut self, begun: u64) -> Result<()> {
        let Some(disk) = &self.disk else { return Ok(()) };
        let mut found = vec![0; bytes(disk.length())];
        disk.read(&mut found, 0)?;
        let ended = self.now();
        if let Some(sector) = self.model.at(ended, false).unexplained(&found) {
            let words = format!("A1: sector {sector} is neither what was flushed nor newer");
            return Err(Error::new(ErrorCode::Io, words));
        }
        found.resize(MAX, 0);
        self.model.found(begun, &found);
        Ok(())
    }

    /// Looks at what the disk says of itself.
    pub(super) fn observe(&mut self, begun: u64, ended: u64) {
        let Some(disk) = &self.disk else { return };
        let Ok(view) = view_of(disk, |info| disk.bits_kept(info)) else {
            return;
        };
        for info in disk.bitmap_list().unwrap_or_default() {
            for epoch in [info.epoch, info.next_epoch].into_iter().flatten() {
                self.model.starts(&epoch);
            }
        }
        self.model.stepped(begun, ended, view);
    }

    /// What a disk of `length` bytes shows of `backing`.
    fn shown_by(&self, backing: Option<&BackingEntry>, length: usize) -> Vec<u8> {
        // From a copy, in which no call fails. One that cannot be read shows nothing that an overlay on it could.
        let mut content = backing
            .and_then(|it| content_of(&self.sim.kill(), &self.cache, it).ok())
            .unwrap_or_default();
        content.resize(length, 0);
        content.resize(MAX, 0);
        content
    }

    /// No file of the bitmap takes any bits.
    fn break_bitmap(&self, name: &str) {
        for file in self.sim.names() {
            let shown = file.to_string_lossy();
            if shown.starts_with(&format!("disk-{name}")) && shown.ends_with(".bitmap") {
                let fault = Fault::new(libc::ENOSPC).on(CallKind::Write);
                self.sim.fail(fault.on_file(&shown).from_then_on());
            }
        }
    }

    /// Has the disk, which nobody has open, checked and repaired: nothing but bitmaps may be found unsound.
    fn check(&self, repair: Repair) -> Result<()> {
        let options = CheckOptions::new()
            .folder(self.sim.folder())
            .cache_epoch(&self.cache)
            .repair(repair);
        let report = options.check(NAME, &mut |_, _| ControlFlow::Continue(()))?;
        let unsound = report.findings.iter().find(|it| {
            !it.fixed
                && matches!(it.severity, Severity::Corruption | Severity::Error)
                && it.kind != FindingKind::BitmapInconsistent
        });
        match unsound {
            None => Ok(()),
            Some(finding) => Err(Error::new(
                ErrorCode::FileInvalid,
                format!("{repair:?} leaves {finding:?}"),
            )),
        }
    }

    /// Has the guest change `len` bytes at `at`, as far as the disk goes.
    fn change(&mut self, step: Step, (at, len): (usize, usize), begun: u64) -> Result<()> {
        let Some(disk) = &self.disk else { return Ok(()) };
        let length = bytes(disk.length());
        let len = len.min(length.saturating_sub(at));
        let fua = matches!(step, Step::Write { fua: true, .. });
        let content = if matches!(step, Step::Write { .. }) {
            self.written
        } else {
            0
        };
        let content = vec![content; len];
        let flags = if fua { WriteFlags::FUA } else { WriteFlags::empty() };
        let result = match step {
            Step::Write { .. } => disk.write(&content, at as u64, flags),
            Step::Zero { unmap, .. } => {
                let flags = if unmap {
                    WriteFlags::MAY_UNMAP
                } else {
                    WriteFlags::empty()
                };
                disk.write_zeroes(at as u64, len as u64, flags)
            }
            _ => disk.discard(at as u64, len as u64, flags),
        };
        let ended = if result.is_ok() { self.now() } else { u64::MAX };
        if result.is_ok() || !refused(&result) {
            self.model.wrote(begun, ended, at.min(length), &content, fua);
        }
        result
    }

    fn act(&mut self, step: Step, begun: u64) -> Result<()> {
        match step {
            Step::Reopen => {
                if let Some(disk) = self.disk.take().and_then(Arc::into_inner) {
                    disk.close()?;
                    let calls = self.sim.events();
                    let since = calls.iter().skip(bytes(begun));
                    let whole = !since.into_iter().any(|call| call.failure.is_some());
                    check_closed(&self.sim, self.kind, whole)
                        .map_err(|what| Error::new(ErrorCode::Io, what))?;
                }
                return self.open();
            }
            Step::Die => {
                self.kill();
                return self.open_again(begun);
            }
            Step::Check(repair) => {
                self.kill();
                self.check(repair)?;
                return self.open_again(begun);
            }
            _ => self.open_again(begun)?,
        }
        let Some(disk) = &self.disk else { return Ok(()) };
        let length = bytes(disk.length());
        match step {
            Step::Broken { name, at, len } => {
                self.break_bitmap(name);
                let fua = false;
                let result = self.act(Step::Write { at, len, fua }, begun);
                self.sim.heal();
                result
            }
            Step::Write { at, len, .. } | Step::Zero { at, len, .. } | Step::Discard { at, len } => {
                self.change(step, (at, len), begun)
            }
            Step::Unchanged { at, len } => {
                let len = len.min(length.saturating_sub(at));
                let content = self.model.content[at.min(length)..][..len].to_vec();
                let result = disk.write(&content, at as u64, WriteFlags::UNCHANGED);
                let ended = if result.is_ok() { self.now() } else { u64::MAX };
                self.model.wrote(begun, ended, at.min(length), &content, false);
                result
            }
            Step::Flush => disk.flush(),
            Step::Sync => disk.bitmap_sync(None),
            Step::SyncOne(name) => disk.bitmap_sync(Some(name)),
            Step::Truncate(new) => {
                self.shortest = self.shortest.min(new);
                let result = disk.truncate(new as u64, TruncateFlags::SHRINK);
                if result.is_ok() && new < length {
                    self.model
                        .wrote(begun, self.now(), new, &vec![0; length - new], true);
                } else if !refused(&result) && result.is_err() {
                    let low = new.min(length);
                    self.model.wrote(begun, u64::MAX, low, &vec![0; MAX - low], false);
                }
                result
            }
            Step::MakeEmpty => {
                let named = disk.info()?.overlay.and_then(|overlay| overlay.backing);
                let content = self.shown_by(named.as_ref(), length);
                let result = disk.make_empty();
                let ended = self.now();
                shows(&mut self.model, (begun, ended), (0, &content), &result);
                result
            }
            Step::Snapshot => {
                // A life before may have begun one at the same number, and left its file.
                let taken = self.sim.names();
                let mut names = (begun..).map(|number| format!("{number}.qbm"));
                let free = names.find(|name| !taken.iter().any(|it| it == Path::new(name)));
                disk.snapshot(&free.unwrap_or_default(), None)
            }
            Step::Commit => disk.commit(&mut |_, _| ControlFlow::Continue(())),
            Step::Rebase(number) => {
                disk.rebase(backing(self.kind, number), &mut |_, _| ControlFlow::Continue(()))
            }
            Step::ChangeBacking(number) => {
                let backing = backing(self.kind, number);
                let content = self.shown_by(backing.as_ref(), length);
                let ranges = not_own(disk)?;
                let result = disk.change_backing(backing, BackingFlags::empty());
                let ended = self.now();
                for range in ranges {
                    let part = &content[range.clone()];
                    shows(&mut self.model, (begun, ended), (range.start, part), &result);
                }
                result
            }
            _ => change_bitmaps(disk, step),
        }
    }
}

/// What is looked at of a life does not go on when that is over.
impl Drop for Life {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A file that has its name, and its content in the page cache alone.
fn put_unsynced(sim: &SimDisk, name: &str, content: &[u8]) -> Result<()> {
    let folder = sim.folder();
    let put = folder.create(Role::Backing, Path::new(name)).and_then(|file| {
        folder.sync()?;
        write_slice(&*file, content, 0)
    });
    put.map_err(|e| Error::system(&e))
}

/// What is below a disk that is an image.
fn low() -> Vec<u8> {
    let mut bytes = base(16_000, true);
    bytes.reverse();
    bytes
}

/// What a disk that is an image has in the beginning.
fn starting(inner: Inner) -> Vec<u8> {
    let mut bytes = match inner {
        Inner::Plain => Vec::new(),
        Inner::Overlay => low(),
    };
    bytes.resize(self::bytes(LENGTH), 0);
    bytes
}

/// Gives the disk, whose image is a disk, an allocation bitmap over the backing.
pub(super) fn put_bits_above(sim: &SimDisk) {
    let text = sim.read(NAME).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let bits = format!(
        r#""bitmaps": {{"allocation": {{"file": "above.bitmap", "type": "allocation", "granularity-bytes": 2048,
        "backing": {{"file": "{BASE}", "format": "raw"}}}}}}"#
    );
    sim.put("above.bitmap", &[0; 8]);
    sim.put(NAME, text.replace(r#""bitmaps": {}"#, &bits).as_bytes());
}

/// D1 of the disk that is the image, which somebody opens by itself after a crash; of what is before `shortest`.
pub(super) fn check_inner(kind: Kind, state: &SimDisk, cache: &str, shortest: usize) -> Result<(), String> {
    let Some(inner) = kind.inner else { return Ok(()) };
    // From a copy, as the disk above it is opened next.
    let state = state.kill();
    let opened = kind.options(&state, cache).read_only(true).open(INNER);
    let disk = opened.map_err(|e| format!("M1: the inner disk does not open: {e}"))?;
    let mut content = vec![0; bytes(disk.length())];
    disk.read(&mut content, 0)
        .map_err(|e| format!("A1: the inner disk cannot be read: {e}"))?;
    let info = disk.bitmap_info(INNER_BITMAP).map_err(|e| e.to_string())?;
    if info.inconsistent {
        return Err("D2: the inner disk's bitmap is inconsistent".to_owned());
    }
    let before = starting(inner);
    let until = shortest.min(content.len()).min(before.len());
    for at in (0..until).step_by(1024) {
        let granule = at..(at + 1024).min(until);
        let dirty = disk
            .bitmap_get(INNER_BITMAP, at as u64)
            .map_err(|e| e.to_string())?;
        if content[granule.clone()] != before[granule] && !dirty {
            return Err(format!("D1: the inner disk's bitmap lacks byte {at}"));
        }
    }
    Ok(())
}

/// What an image shows to a process whose page cache is `cache`.
fn content_of(sim: &SimDisk, cache: &str, image: &BackingEntry) -> Result<Vec<u8>> {
    if image.format == Format::Raw {
        return sim.read(&image.file).map_err(|e| Error::system(&e));
    }
    let options = OpenOptions::new().folder(sim.folder()).cache_epoch(cache);
    let disk = options.read_only(true).no_lock(true).open(&image.file)?;
    let mut content = vec![0; bytes(disk.length())];
    disk.read(&mut content, 0).map(|()| content)
}

/// The disk shows `content` at `at` if `result` is a success, and may show it where it was not refused.
fn shows(model: &mut Model, (begun, ended): (u64, u64), (at, content): (usize, &[u8]), result: &Result<()>) {
    if result.is_ok() {
        model.wrote(begun, ended, at, content, true);
    } else if !refused(result) {
        model.wrote(begun, u64::MAX, at, content, false);
    }
}

/// The bytes that the disk's own image has not.
fn not_own(disk: &Disk) -> Result<Vec<Range<usize>>> {
    let (mut ranges, mut at) = (Vec::new(), 0);
    while at < disk.length() {
        let status = disk.block_status(at, disk.length() - at)?;
        let end = at + status.length;
        if !status.flags.contains(StatusFlags::ALLOCATED) {
            ranges.push(bytes(at)..bytes(end));
        }
        at = end;
    }
    Ok(ranges)
}

/// What is done to bitmaps.
fn change_bitmaps(disk: &Disk, step: Step) -> Result<()> {
    match step {
        Step::Add {
            name,
            granularity,
            persistent,
            recording,
        } => disk.bitmap_add(
            name,
            AddBitmap {
                granularity: Granularity::new(granularity).unwrap_or_default(),
                persistent,
                recording,
            },
        ),
        Step::Remove(name) => disk.bitmap_remove(name),
        Step::Clear(name) => disk.bitmap_clear(name),
        Step::Enable(name) => disk.bitmap_enable(name),
        Step::Disable(name) => disk.bitmap_disable(name),
        Step::Rename(name, to) => disk.bitmap_rename(name, to),
        Step::Persist(name, persistent) => disk.bitmap_set_persistent(name, persistent),
        Step::Set { name, at, len } => disk.bitmap_set(name, at as u64, len as u64),
        Step::Reset { name, at, len } => disk.bitmap_reset(name, at as u64, len as u64),
        Step::Merge(name, from) => disk.bitmap_merge(name, &[MergeSource::Bitmap(from)]),
        Step::Replace(name, from) => {
            let blank = disk.bitmap_blank(name)?;
            let other = disk.bitmap_content(from).ok();
            let fits = |it: &BitmapContent| it.granularity() == blank.granularity();
            disk.bitmap_replace(name, &other.filter(fits).unwrap_or(blank))
        }
        Step::Mend(name) => disk.bitmap_repair(name),
        Step::Freeze(name) => disk.bitmap_freeze(name),
        Step::Thaw(name, true) => disk.bitmap_thaw(name, Thaw::Commit),
        Step::Thaw(name, false) => disk.bitmap_thaw(name, Thaw::Rollback),
        Step::Hand(from, to) => disk.bitmap_transaction(&[
            BitmapAction::Merge {
                target: to,
                sources: vec![MergeSource::Bitmap(from)],
            },
            BitmapAction::Clear { name: from },
        ]),
        Step::Swap(old, new) => disk.bitmap_transaction(&[
            BitmapAction::Disable { name: old },
            BitmapAction::Add {
                name: new,
                options: AddBitmap {
                    granularity: Granularity::new(2048).unwrap_or_default(),
                    ..AddBitmap::default()
                },
            },
        ]),
        _ => Ok(()),
    }
}

/// Whether a call was refused by the rules, so that nothing was tried. A starting point is, above an image that a killed process
/// has left to be recovered: who commits again recovers it.
pub(super) fn refused(result: &Result<()>) -> bool {
    use crate::error::ErrorCode::{
        BitmapBusy, BitmapExists, BitmapInconsistent, BitmapNotFound, BitmapState, InvalidArgument,
        NotSupported, OutOfRange,
    };
    let code = result.as_ref().err().map(Error::code);
    let unrecovered = |error: &Error| error.message().contains("was not closed by its last user");
    if code == Some(ErrorCode::FileInvalid) && result.as_ref().is_err_and(unrecovered) {
        return true;
    }
    matches!(
        code,
        Some(
            BitmapBusy
                | BitmapExists
                | BitmapInconsistent
                | BitmapNotFound
                | BitmapState
                | InvalidArgument
                | NotSupported
                | OutOfRange
        )
    )
}

/// What `disk` says of itself, with the bits of its bitmaps as `bits` has them.
pub(super) fn view_of(disk: &Disk, bits: impl Fn(&str) -> Result<u64>) -> Result<View> {
    let mut view = View {
        length: disk.length(),
        ..View::default()
    };
    for info in disk.bitmap_list()? {
        if !info.persistent {
            continue;
        }
        let seen = Seen {
            bits: if info.inconsistent { 0 } else { bits(&info.name)? },
            inconsistent: info.inconsistent,
            granularity: info.granularity.bytes(),
            recording: info.recording,
            epoch: info.epoch.unwrap_or_default(),
        };
        view.bitmaps.insert(info.name, seen);
    }
    Ok(view)
}

pub(super) fn bytes(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}
