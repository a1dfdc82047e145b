//! Recording: the bit of everything a write touches is set before the write goes out.
//!
//! Invariant (D1): a change reaches the image only when each of its granules is set in every recording bitmap, and,
//! under write-through, in their files. A change that then fails leaves its bits set (durability trap 3).

use std::path::Path;
use std::sync::Arc;

use super::excuses::{Excuses, Lost};
use super::{Bitmap, Shape};
use crate::bitmap::{BitmapFile, Bits};
use crate::disk::view::before::BeforeWrite;
use crate::error::{Error, ErrorCode, Result};
use crate::state::{IntentMap, MarkId};
use crate::units::{ByteRange, Granularity};

/// Where one bitmap wants to see writes: all that the fast path needs, side by side.
pub(super) struct Recorder {
    granularity: Granularity,
    /// The bits that writes set: a frozen bitmap's successor, or its own.
    bits: Arc<Bits>,
    /// The bits of a frozen bitmap, which its file holds besides.
    also: Option<Arc<Bits>>,
    file: Option<Arc<BitmapFile>>,
    name: Arc<str>,
    /// What the state file calls it.
    mark: MarkId,
    lost: Lost,
    /// No bitmap of the disk's: an operation wants to know what is written while it is at work.
    watch: bool,
    /// Nor this: what is about to be overwritten is kept for a backup first.
    before: Option<Arc<BeforeWrite>>,
}

impl Recorder {
    /// Where the writes go that `bitmap` must see.
    pub(super) fn of(bitmap: &Bitmap) -> Option<Self> {
        if !bitmap.records() {
            return None;
        }
        let own = bitmap.loaded()?;
        let (bits, also) = match &bitmap.frozen {
            Some(frozen) => (&frozen.successor, Some(own)),
            None => (own, None),
        };
        Some(Self {
            granularity: bitmap.granularity,
            bits: Arc::clone(bits),
            also: also.cloned(),
            file: bitmap.kept.as_ref().map(|kept| Arc::clone(&kept.file)),
            name: Arc::clone(&bitmap.name),
            mark: bitmap.mark(),
            lost: bitmap.lost.clone(),
            watch: false,
            before: None,
        })
    }

    #[inline]
    fn has(&self, range: ByteRange) -> bool {
        self.bits.all_set(self.granularity.touched_by(range))
    }

    fn record(&self, range: ByteRange) -> Result<()> {
        if let Some(before) = &self.before {
            before.keep(range);
            return Ok(());
        }
        let granules = self.granularity.touched_by(range);
        let Some(file) = self.file.as_ref().filter(|_| !self.lost.is()) else {
            self.bits.set(granules);
            return Ok(());
        };
        file.record(&self.bits, self.also.as_deref(), granules)
            .map_err(|e| e.context(format_args!("bitmap {:?}", self.name)))
    }
}

impl Shape {
    /// From now on the bits of what is written are set in `bits` too, in place of those that were watched before;
    /// `None` ends it. The caller holds the disk's structure until it has ended it: whatever else makes a new shape
    /// does not know of it.
    pub(in crate::disk) fn watch(&mut self, granularity: Granularity, bits: Option<Arc<Bits>>) {
        self.recorders.retain(|recorder| !recorder.watch);
        self.recorders.extend(bits.map(|bits| Recorder {
            granularity,
            bits,
            also: None,
            file: None,
            name: "".into(),
            mark: MarkId::of("", None),
            lost: Lost::default(),
            watch: true,
            before: None,
        }));
    }
}

/// A backup with views of a disk.
#[derive(Clone)]
pub(in crate::disk) struct UnderWay {
    /// Where old content is kept.
    pub(in crate::disk) before: Arc<BeforeWrite>,
    /// The bitmap that is frozen for it.
    pub(in crate::disk) bitmap: Arc<str>,
}

impl Shape {
    /// From now on old content is kept for `backup` before it is overwritten; `None` ends it. By the way of the recorders, so
    /// that a write pays nothing for it while there is no backup.
    pub(in crate::disk) fn set_backup(&mut self, backup: Option<UnderWay>) {
        let before = backup.as_ref().map(|backup| &backup.before);
        self.recorders.retain(|recorder| recorder.before.is_none());
        self.recorders.extend(before.map(|before| Recorder {
            granularity: BeforeWrite::granularity(),
            bits: Arc::clone(before.kept()),
            also: None,
            file: None,
            name: "".into(),
            mark: MarkId::of("", None),
            lost: Lost::default(),
            watch: false,
            before: Some(Arc::clone(before)),
        }));
        self.backup = backup;
    }

    /// The bitmap that a backup with views has frozen.
    pub(super) fn lent(&self) -> Option<&Arc<str>> {
        self.backup.as_ref().map(|backup| &backup.bitmap)
    }

    /// Fails where a backup would miss what is about to be done to the disk at `path`.
    pub(in crate::disk) fn check_no_backup(&self, path: &Path) -> Result<()> {
        if self.backup.is_none() {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::BitmapBusy,
            format!("a backup of {} is under way; wait for its end", path.display()),
        ))
    }
}

/// What must be recorded before a change of `range` may go out.
pub(in crate::disk) struct Marks<'d> {
    recorders: &'d [Recorder],
    intent: Option<&'d IntentMap>,
    excuses: Option<&'d Excuses>,
    range: ByteRange,
}

impl<'d> Marks<'d> {
    /// What is not recorded yet; `None` where all is, as it mostly is: one load a bitmap finds that out.
    #[inline]
    pub(in crate::disk) fn needed(shape: &'d Shape, range: ByteRange) -> Option<Self> {
        let recorders = &*shape.recorders;
        let all = recorders.iter().all(|recorder| recorder.has(range));
        (!all).then_some(Self {
            recorders,
            intent: shape.intent.as_deref(),
            excuses: shape.excuses.as_deref(),
            range,
        })
    }

    /// What the writer has to come to, outside of the gate, before it may record.
    #[cold]
    pub(in crate::disk) fn delayed_by(&self) -> Option<&'d Arc<BeforeWrite>> {
        let mut befores = self.recorders.iter().filter_map(|it| it.before.as_ref());
        befores.find(|before| before.delays(self.range))
    }

    /// Records it. On an error the change must not go out.
    #[cold]
    pub(in crate::disk) fn record(&self) -> Result<()> {
        let missing = || self.recorders.iter().filter(|it| !it.has(self.range));
        // Held until every bit is published: what is retired later than that finds them in the files. A pin is not
        // needed where only transient bitmaps lack bits; nobody recovers those.
        let _pin = match self.intent {
            Some(intent) if missing().any(|it| it.file.is_some()) => Some(intent.pin(self.range)?),
            _ => None,
        };
        missing().try_for_each(|it| match (it.record(self.range), self.excuses) {
            (Err(why), Some(excuses)) => {
                excuses.mark(&it.name, it.mark, &it.lost, &why)?;
                // Now that nobody trusts them, they are set so that the next write finds nothing missing.
                it.record(self.range)
            }
            (result, _) => result,
        })
    }
}
