//! A gate that writers pass through, and that an operation can close to have the disk to itself.
//!
//! Writers announce themselves before they look at anything that decides what their write must record, and leave
//! when their bytes are in the file. An operation that moves a starting point or changes the disk's shape closes
//! the gate, waits until nobody is inside, and lets later writers wait until it is done (DESIGN §5, trap 1).
//!
//! Invariant: the value inside is only changed while no writer is inside. Passing is two atomic additions on a
//! counter that few other threads use; no two cores fight over it.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};

use crossbeam_utils::CachePadded;

use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError, shard_index};

/// Counters that writers spread over. A power of two.
const SHARDS: usize = 32;

pub(super) struct Gate<T> {
    inside: Box<[CachePadded<AtomicUsize>]>,
    closed: AtomicBool,
    /// Held by the operation that has closed the gate, or is about to.
    operation: Mutex<()>,
    /// Guards nothing but the sleeping on `changed`.
    sleep: Mutex<()>,
    changed: Condvar,
    value: UnsafeCell<T>,
}

// SAFETY: `value` is reached by shared reference from many threads (T: Sync) and by exclusive reference from one
// thread at a time (T: Send), never both at once: see `enter` and `close`.
unsafe impl<T: Send + Sync> Sync for Gate<T> {}
// SAFETY: a gate owns its value.
unsafe impl<T: Send> Send for Gate<T> {}

impl<T> Gate<T> {
    pub(super) fn new(value: T) -> Self {
        Self {
            inside: (0..SHARDS)
                .map(|_| CachePadded::new(AtomicUsize::new(0)))
                .collect(),
            closed: AtomicBool::new(false),
            operation: Mutex::new(()),
            sleep: Mutex::new(()),
            changed: Condvar::new(),
            value: UnsafeCell::new(value),
        }
    }

    /// Goes in, after waiting for an operation that has the gate closed.
    #[inline]
    pub(super) fn enter(&self) -> Inside<'_, T> {
        let shard = &self.inside[shard_index() & (SHARDS - 1)];
        // Announce first, look second; the closer closes first, looks second. With SeqCst on all four, at least
        // one of the two sees the other.
        shard.fetch_add(1, Ordering::SeqCst);
        if self.closed.load(Ordering::SeqCst) {
            self.wait_outside(shard);
        }
        Inside { gate: self, shard }
    }

    #[cold]
    fn wait_outside(&self, shard: &AtomicUsize) {
        loop {
            self.step_out(shard);
            let mut sleep = locked(&self.sleep);
            while self.closed.load(Ordering::SeqCst) {
                sleep = self.changed.wait(sleep).unwrap_or_else(PoisonError::into_inner);
            }
            drop(sleep);
            shard.fetch_add(1, Ordering::SeqCst);
            if !self.closed.load(Ordering::SeqCst) {
                return;
            }
        }
    }

    #[inline]
    fn step_out(&self, shard: &AtomicUsize) {
        shard.fetch_sub(1, Ordering::SeqCst);
        if self.closed.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        // Taking the lock makes sure that a sleeper has either seen the change or is already waiting.
        drop(locked(&self.sleep));
        self.changed.notify_all();
    }

    /// Closes the gate and waits until nobody is inside. Operations come one at a time.
    ///
    /// A thread that is inside must not call this: it would wait for itself.
    pub(super) fn close(&self) -> Closed<'_, T> {
        let operation = locked(&self.operation);
        self.closed.store(true, Ordering::SeqCst);
        let mut sleep = locked(&self.sleep);
        while self.inside.iter().any(|shard| shard.load(Ordering::SeqCst) != 0) {
            sleep = self.changed.wait(sleep).unwrap_or_else(PoisonError::into_inner);
        }
        drop(sleep);
        Closed {
            gate: self,
            _operation: operation,
        }
    }
}

/// A panic elsewhere breaks the whole disk, so a poisoned lock tells nothing new.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A writer that is inside. Dropping it leaves.
pub(super) struct Inside<'g, T> {
    gate: &'g Gate<T>,
    shard: &'g AtomicUsize,
}

impl<T> Deref for Inside<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this writer is counted, so no operation gets past `close`, and none is past it: it would have
        // been seen in `enter`.
        unsafe { &*self.gate.value.get() }
    }
}

impl<T> Drop for Inside<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.gate.step_out(self.shard);
    }
}

/// An operation that has the disk to itself. Dropping it opens the gate again.
pub(super) struct Closed<'g, T> {
    gate: &'g Gate<T>,
    _operation: MutexGuard<'g, ()>,
}

impl<T> Deref for Closed<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: nobody is inside (`close` waited for that) and nobody enters while `closed` is set.
        unsafe { &*self.gate.value.get() }
    }
}

impl<T> DerefMut for Closed<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above; and `operation` keeps every other operation out.
        unsafe { &mut *self.gate.value.get() }
    }
}

impl<T> Drop for Closed<'_, T> {
    fn drop(&mut self) {
        self.gate.closed.store(false, Ordering::SeqCst);
        self.gate.wake();
    }
}
