//! What excuses a write whose bit cannot get into a bitmap's file: that the bitmap is inconsistent from now on.
//!
//! May call `state`. Invariant (D1): the mark is durable in the state file before any write that it excuses goes out,
//! and before anybody is told. Where it cannot be stored, nothing is excused.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Bitmap;
use crate::disk::NoticeCode;
use crate::disk::open::Notify;
use crate::error::{Error, Result};
use crate::mutation::{self, Fault};
use crate::state::{MarkId, StateFile};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard, PoisonError};

/// What becomes of a guest's write where a bitmap cannot be written though the data can. The numbers are part of the C
/// ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(i32)]
pub enum OnBitmapError {
    /// The write fails, and the bitmap stays what it is.
    #[default]
    FailWrite = 0,
    /// The bitmap becomes inconsistent, and the write goes on. Only where that can be stored, in the state file:
    /// elsewhere the write fails.
    MarkInconsistent = 1,
}

/// Whether a bitmap has become inconsistent while the disk was open. All clones of a bitmap share one.
#[derive(Clone, Default)]
pub(super) struct Lost(Arc<AtomicBool>);

impl Lost {
    /// One load, and no write goes by it: only those look here that find a bit missing.
    pub(super) fn is(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What the state file may say of the disk's bitmaps.
#[derive(Default)]
struct Known {
    marks: BTreeSet<MarkId>,
    /// That they were widened.
    notes: BTreeSet<MarkId>,
}

impl Known {
    fn of<'b>(bitmaps: impl Iterator<Item = &'b Bitmap>) -> Self {
        let mut known = Self::default();
        for bitmap in bitmaps {
            known.marks.insert(bitmap.mark());
            known.notes.extend(bitmap.note());
        }
        known
    }
}

/// Marks bitmaps that cannot be written.
pub(in crate::disk) struct Excuses {
    file: Arc<StateFile>,
    notify: Notify,
    /// The bitmaps that the descriptor on disk can name: marks of others mean nothing any more.
    known: Mutex<Known>,
    /// Many writers may meet one broken file; the first marks it.
    one_at_a_time: Mutex<()>,
}

impl Excuses {
    /// Of a disk with these bitmaps.
    pub(in crate::disk) fn new<'b>(
        file: Arc<StateFile>,
        notify: Notify,
        known: impl Iterator<Item = &'b Bitmap>,
    ) -> Self {
        Self {
            file,
            notify,
            known: Mutex::new(Known::of(known)),
            one_at_a_time: Mutex::new(()),
        }
    }

    /// These are the disk's bitmaps now, durably.
    pub(super) fn know<'b>(&self, bitmaps: impl Iterator<Item = &'b Bitmap>) {
        *self.known() = Known::of(bitmaps);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks a bitmap that failed for the reason `why`. On success whatever it lacks is excused; on an error, which
    /// begins with `why`, nothing is.
    pub(super) fn mark(&self, name: &str, id: MarkId, lost: &Lost, why: &Error) -> Result<()> {
        let _alone = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        if lost.is() {
            return Ok(());
        }
        self.file
            .update(|header| {
                if mutation::on(Fault::ExcusedUnmarked) {
                    return Ok(());
                }
                // Bitmaps come and go; their marks would fill the room there is.
                let known = self.known();
                header
                    .marks
                    .retain(|id| known.marks.contains(&id) || known.notes.contains(&id));
                header.marks.insert(id).or_else(|_| {
                    // Notes only explain, and give way.
                    header.marks.retain(|id| known.marks.contains(&id));
                    header.marks.insert(id)
                })
            })
            .map_err(|unmarked| {
                let words = format!("{why}; and that the bitmap is inconsistent cannot be noted: {unmarked}");
                Error::with_errno(why.code(), why.errno(), words)
            })?;
        lost.0.store(true, Ordering::Release);
        self.notify.send(
            NoticeCode::BitmapInconsistent,
            &format!(
                "bitmap {name:?} could not be written and is inconsistent, the guest's writes go on without it: {why}"
            ),
        );
        Ok(())
    }

    /// The same of a bitmap whose file could not be made durable.
    pub(super) fn mark_bitmap(&self, bitmap: &Bitmap, why: &Error) -> Result<()> {
        self.mark(&bitmap.name, bitmap.mark(), &bitmap.lost, why)
    }
}
