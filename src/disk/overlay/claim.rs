//! Who is allocating which granules.
//!
//! A granule that is not allocated has its rest copied from the backing by the first writer. A second writer that
//! finds it unallocated waits here until the first is done, and then finds it allocated; otherwise one of the two
//! would copy the backing over what the other has written (durability trap 4). Writers to allocated granules never come
//! here. Invariant: no granule is claimed twice at a time.

use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use crate::units::GranuleRange;

/// The granules that are being allocated. There are never more ranges than writers, so a list will do.
#[derive(Debug, Default)]
pub(in crate::disk) struct Claims {
    taken: Mutex<Vec<GranuleRange>>,
    freed: Condvar,
}

impl Claims {
    /// Claims `range`, after waiting for all who have a part of it.
    ///
    /// A thread that has a claim must not ask for another: two such threads would wait for each other.
    pub(in crate::disk) fn claim(&self, range: GranuleRange) -> Claim<'_> {
        let mut taken = self.taken();
        while taken.iter().any(|other| !other.intersect(range).is_empty()) {
            taken = self.freed.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        taken.push(range);
        Claim { claims: self, range }
    }

    fn taken(&self) -> MutexGuard<'_, Vec<GranuleRange>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Granules that nobody else allocates meanwhile. Dropping it gives them up.
pub(in crate::disk) struct Claim<'c> {
    claims: &'c Claims,
    range: GranuleRange,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut taken = self.claims.taken();
        if let Some(index) = taken.iter().position(|range| *range == self.range) {
            taken.swap_remove(index);
        }
        drop(taken);
        self.claims.freed.notify_all();
    }
}
