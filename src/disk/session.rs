//! An open disk's stay in its state file, from the verdict about the last one to the clean end.
//!
//! May call `state`. Invariant (D1): the disk is marked unclean, durably and with the evidence that vouches for it,
//! before the first change of any kind; and clean only when every bitmap file and the image are durable.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Child;
use crate::bitmap::BitmapPolicy;
use crate::error::Result;
use crate::mutation::{self, Fault};
use crate::state::{Evidence, IntentMap, MarkId, RegionSet, Shadow, Stamp, StateFile};
use crate::sync::{Mutex, MutexGuard, PoisonError};
use crate::units::Granularity;

/// Between two looks for regions that have become cold, unless the opener says otherwise.
pub(super) const RETIRE_INTERVAL: Duration = Duration::from_secs(10);

/// What recovery did at the open: the disk had not been closed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovery {
    /// Why bits had to be added; `None` where the bitmap files were exact.
    pub reason: Option<String>,
    /// What was added to which bitmap; none that lacked nothing.
    pub added: Vec<AddedBits>,
}

/// Bytes of the disk that recovery made dirty in a bitmap, because they may have changed unseen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AddedBits {
    /// Which bitmap.
    pub bitmap: String,
    /// How many bytes became dirty that were not.
    pub bytes: u64,
}

/// What a disk that is open for writing has to do with its state file.
pub(super) struct Session {
    file: Arc<StateFile>,
    intent: Arc<IntentMap>,
    policy: BitmapPolicy,
    evidence: Option<Evidence>,
    /// Of an overlay, where anything vouches for its image's page cache.
    shadow: Mutex<Option<Arc<Shadow>>>,
    /// Whether the file says that the disk is unclean, or what it says must be renewed at the end.
    owes: AtomicBool,
    /// Held by the thread that makes the disk unclean.
    beginning: Mutex<()>,
}

impl Session {
    /// Goes on with a state file, whose regions `active` no bitmap file is known to show yet.
    pub(super) fn new(
        file: StateFile,
        active: RegionSet,
        length: u64,
        interval: Duration,
        policy: BitmapPolicy,
        evidence: Option<Evidence>,
    ) -> Result<Self> {
        let file = Arc::new(file);
        let owes = !file.header().clean;
        let intent = IntentMap::new(Arc::clone(&file), active, length, interval)?;
        Ok(Self {
            file,
            intent: Arc::new(intent),
            policy,
            evidence,
            shadow: Mutex::new(None),
            owes: AtomicBool::new(owes),
            beginning: Mutex::new(()),
        })
    }

    /// Keeps a shadow of allocation bits of `granularity`; `evidence` vouches for the page cache of the image too.
    pub(super) fn keep_shadow(&self, granularity: Granularity, evidence: Evidence) {
        let shadow = Shadow::new(Arc::clone(&self.file), granularity, evidence);
        *self.own_shadow() = Some(Arc::new(shadow));
    }

    /// The same in the middle, for a disk that is about to have another image. Nothing may be pending.
    ///
    /// Where the state file cannot say so, and where that image does not come, the old one must be spoilt.
    pub(super) fn renew_shadow(&self, granularity: Granularity, evidence: Evidence) -> Result<()> {
        self.keep_shadow(granularity, evidence);
        let id = self.shadow().and_then(|shadow| shadow.begin());
        self.file.update(|header| {
            header.shadow = id;
            Ok(())
        })
    }

    pub(super) fn shadow(&self) -> Option<Arc<Shadow>> {
        self.own_shadow().clone()
    }

    fn own_shadow(&self) -> MutexGuard<'_, Option<Arc<Shadow>>> {
        self.shadow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn file(&self) -> &Arc<StateFile> {
        &self.file
    }

    pub(super) fn intent(&self) -> &Arc<IntentMap> {
        &self.intent
    }

    /// Marks the disk unclean, before the first change. Once is enough.
    pub(super) fn begin(&self) -> Result<()> {
        let _one = self.beginning.lock().unwrap_or_else(PoisonError::into_inner);
        let policy = if mutation::on(Fault::PolicyUntold) {
            BitmapPolicy::WriteThrough
        } else {
            self.policy
        };
        let shadow = self.shadow().and_then(|shadow| shadow.begin());
        self.file.begin(policy, self.evidence.clone(), shadow)?;
        self.owes.store(true, Ordering::Release);
        Ok(())
    }

    /// Marks the disk clean, where it is not. All else must be durable; no region may be active.
    pub(super) fn end(&self, image: &Child) -> Result<()> {
        if !self.owes.load(Ordering::Acquire) {
            return Ok(());
        }
        let stamp = Stamp::take(&*image.storage, &image.path)?;
        self.file.end(Some(stamp))?;
        if let Some(shadow) = self.shadow() {
            shadow.end();
        }
        Ok(())
    }

    /// A sync of the image has failed, so that it may lack what the shadow says that it has (A1).
    pub(super) fn image_failed(&self) {
        if let Some(shadow) = self.shadow() {
            shadow.spoil();
        }
    }

    /// A file of the disk lost what was written to it: whatever the evidence says later, the bitmap files are not exact.
    pub(super) fn note_failure(&self) {
        // Where this fails too, the state file takes nothing any more, and no region is retired: no bit is owed then.
        let _ = self.file.note_failure();
    }

    /// Puts the marks of inconsistent bitmaps into the file, durably; and forgets those of bitmaps that are no more.
    pub(super) fn mark(&self, inconsistent: &[MarkId]) -> Result<()> {
        self.file.update(|header| {
            header.marks.retain(|id| inconsistent.contains(&id));
            inconsistent.iter().try_for_each(|id| header.marks.insert(*id))
        })?;
        self.owes.store(true, Ordering::Release);
        Ok(())
    }

    /// The image's stamp does not count any more: the end is to renew it, whether or not anything changes.
    pub(super) fn renew_stamp(&self) {
        self.owes.store(true, Ordering::Release);
    }
}
