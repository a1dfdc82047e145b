//! An open disk's stay in its state file, from the verdict about the last one to the clean end.
//!
//! May call `state`. Invariant (D1): the disk is marked unclean, durably and with the evidence that vouches for it,
//! before the first change of any kind; and clean only when every bitmap file and the image are durable.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Child;
use crate::bitmap::BitmapPolicy;
use crate::error::Result;
use crate::mutation::{self, Fault};
use crate::state::{
    Evidence, Header, IntentMap, MarkId, RegionSet, Shadow, ShadowId, Stamp, StateFile, Tenure,
};
use crate::storage::SyncMode;
use crate::sync::{Mutex, MutexGuard, PoisonError};
use crate::units::Granularity;

/// Between two looks for regions that have become cold, unless the opener says otherwise.
pub(super) const RETIRE_INTERVAL: Duration = Duration::from_secs(10);

/// What recovery did at the open: the disk had not been closed, or nothing is known of its last user. A read-only open does
/// it in memory.
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
    /// The image is left alone.
    untouched: bool,
    evidence: Option<Evidence>,
    /// Of an overlay, where anything vouches for its image's page cache.
    shadow: Mutex<Option<Arc<Shadow>>>,
    /// Whether the file says that the disk is unclean, or what it says must be renewed at the end.
    owes: AtomicBool,
    /// Held by the thread that makes the disk unclean.
    beginning: Mutex<Begun>,
    /// What was acknowledged to the last user, or written by others, makes this another content than the one he left.
    other_content: AtomicBool,
}

/// How far the disk's header is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begun {
    No,
    /// Unclean; the content is as it was.
    Arranged,
    /// And the content changes.
    Content,
}

impl Session {
    /// Whether the file is to be told of the end.
    pub(super) fn owes(&self) -> bool {
        self.owes.load(Ordering::Acquire)
    }

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
            untouched: false,
            evidence,
            shadow: Mutex::new(None),
            owes: AtomicBool::new(owes),
            beginning: Mutex::new(Begun::No),
            other_content: AtomicBool::new(false),
        })
    }

    /// One that leaves the image alone: while it is unclean, the header says so, and has the stamp of what it found.
    pub(super) fn untouched(mut self, yes: bool) -> Self {
        self.untouched = yes;
        self
    }

    /// Keeps a shadow of allocation bits of `granularity`; `evidence` vouches for the page cache of the image too. It
    /// takes the place of the last user's where recovery has `adopted` that one.
    pub(super) fn keep_shadow(
        &self,
        granularity: Granularity,
        evidence: Evidence,
        adopted: Option<ShadowId>,
    ) {
        let shadow = Shadow::new(Arc::clone(&self.file), granularity, evidence, adopted);
        *self.own_shadow() = Some(Arc::new(shadow));
    }

    /// The same in the middle, for a disk that is about to have another image. Nothing may be pending.
    ///
    /// Where the state file cannot say so, and where that image does not come, the old one must be spoilt.
    pub(super) fn renew_shadow(&self, granularity: Granularity, evidence: Evidence) -> Result<()> {
        self.keep_shadow(granularity, evidence, None);
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

    /// Marks the disk unclean, before the first change; before the first one of its `content`, with a new tenure. Once is
    /// enough. Behind that an image that is a disk itself begins.
    ///
    /// In this order: whichever of the two a crash finds begun, the image is in a tenure that the header tells of.
    pub(super) fn begin(&self, image: &Child, content: bool, tenure: Option<Tenure>) -> Result<()> {
        let mut begun = self.beginning.lock().unwrap_or_else(PoisonError::into_inner);
        let enough = match *begun {
            Begun::No => false,
            Begun::Arranged => !content,
            Begun::Content => true,
        };
        // Noted before the first write, so that whoever uses the image without this disk is found out even after a crash.
        let (stamp, of_image) = match image.disk() {
            Some(inner) if !inner.has_begun() && !mutation::on(Fault::UserUnnoted) => {
                let noted = self.file.header().stamp;
                let (stamp, next) = Stamp::of(&*image.storage, &image.path)?.announcing(noted.as_ref())?;
                (Some(stamp), next)
            }
            _ if self.untouched && *begun == Begun::No => {
                // It is written to by nobody, so that a sync that fails loses nothing of this disk's.
                let sync = || {
                    let synced = image.storage.sync(SyncMode::All);
                    synced.map_err(|e| image.failed("sync", &e))
                };
                (Some(Stamp::take(&*image.storage, &image.path, sync)?), None)
            }
            _ => (None, None),
        };
        if enough && stamp.is_none() {
            return Ok(());
        }
        let other = content || self.other_content.load(Ordering::Acquire);
        let tenure = match tenure {
            _ if !other || enough || mutation::on(Fault::TenureSilent) => None,
            None => Some(Tenure::new()?),
            announced => announced,
        };
        if mutation::on(Fault::ImageBegunFirst) {
            image.begin(of_image)?;
        }
        let also = |header: &mut Header| {
            header.tenure = tenure.or(header.tenure);
            header.stamp = stamp.or(header.stamp);
            header.untouched = self.untouched && !mutation::on(Fault::UntouchedUntold);
        };
        if *begun != Begun::No {
            self.file.update(|header| {
                also(header);
                Ok(())
            })?;
            if content {
                *begun = Begun::Content;
            }
            self.other_content.store(false, Ordering::Release);
            return self.begin_image(image, of_image);
        }
        let policy = if mutation::on(Fault::PolicyUntold) {
            BitmapPolicy::WriteThrough
        } else {
            self.policy
        };
        let shadow = self.shadow().and_then(|shadow| shadow.begin());
        self.file.begin_and(policy, self.evidence.clone(), shadow, also)?;
        self.owes.store(true, Ordering::Release);
        *begun = if content { Begun::Content } else { Begun::Arranged };
        self.other_content.store(false, Ordering::Release);
        self.begin_image(image, of_image)
    }

    /// Begins an image that is a disk itself. Where that has found no room for its shadow, its recovery does not know what it
    /// has kept, and no shadow above it will be believed: what this one would have kept is made durable instead, too.
    fn begin_image(&self, image: &Child, tenure: Option<Tenure>) -> Result<()> {
        image.begin(tenure)?;
        if let Some(shadow) = self.shadow().filter(|_| !image.outlives_kill()) {
            shadow.spoil();
        }
        Ok(())
    }

    /// The disk has not the content that its last user left, or has lost what was acknowledged to him: whoever has it as his
    /// image must learn of it.
    pub(super) fn note_other_content(&self) {
        self.other_content.store(true, Ordering::Release);
    }

    /// The tenure that the header tells of.
    pub(super) fn tenure(&self) -> Option<Tenure> {
        self.file.header().tenure
    }

    /// Marks the disk clean, where it is not. All else must be durable; no region may be active. `sync` makes the image
    /// durable with its times.
    pub(super) fn end(&self, image: &Child, sync: impl FnOnce() -> Result<()>) -> Result<()> {
        if !self.owes() {
            return Ok(());
        }
        let mut begun = self.beginning.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = Stamp::take(&*image.storage, &image.path, sync)?;
        let tenure = match *begun {
            // It would go unnoticed when the stamp, or the evidence, that tells of it is gone.
            Begun::No if self.other_content.load(Ordering::Acquire) && !mutation::on(Fault::TenureKept) => {
                Some(Tenure::new()?)
            }
            _ => None,
        };
        self.file.end_and(Some(stamp), |header| {
            header.tenure = tenure.or(header.tenure);
        })?;
        *begun = Begun::No;
        self.other_content.store(false, Ordering::Release);
        self.owes.store(false, Ordering::Release);
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
        // Where nothing at all can be told, neither can it be to the caller, who is about to hear of the first failure.
        let _ = self.file.note_failure();
    }

    /// Puts the marks of inconsistent bitmaps, and the notes of those that were `widened`, into the file, durably; and
    /// forgets those of bitmaps that are no more.
    pub(super) fn mark(&self, inconsistent: &[MarkId], widened: &[MarkId]) -> Result<()> {
        self.file.update(|header| {
            header.marks.retain(|id| inconsistent.contains(&id));
            inconsistent.iter().try_for_each(|id| header.marks.insert(*id))?;
            for id in widened {
                header.marks.note(*id);
            }
            Ok(())
        })?;
        self.owes.store(true, Ordering::Release);
        Ok(())
    }

    /// The image's stamp does not count any more: the end is to renew it, whether or not anything changes.
    pub(super) fn renew_stamp(&self) {
        self.owes.store(true, Ordering::Release);
    }
}
