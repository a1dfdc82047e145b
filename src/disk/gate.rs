//! A gate that writers pass through, and that an operation can close to have the disk to itself.
//!
//! Writers announce themselves before they look at anything that decides what their write must record, and leave
//! when their bytes are in the file. An operation that moves a starting point or changes the disk's shape closes
//! the gate, waits until nobody is inside, and lets later writers wait until it is done (durability trap 1).
//!
//! Invariant: the value inside is only changed while no writer is inside. Passing is one atomic exchange and one plain
//! store, in a place that few other threads use; no two cores fight over it.

#[cfg(test)]
#[cfg(shuttle)]
mod models;

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use crossbeam_utils::CachePadded;

use crate::mutation::{self, Fault};
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError, shard_index};

/// Doors that writers spread over. A power of two. The explorer looks at each in every operation, so it gets two.
const DOORS: usize = if cfg!(all(test, shuttle)) { 2 } else { 32 };

/// How long the closer sleeps before it looks again by itself: see [`Inside::drop`].
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Where some writers pass, and are counted.
#[derive(Default)]
struct Door {
    /// A writer is inside that has this to itself, so that leaving takes no atomic exchange, only a store.
    alone: AtomicBool,
    /// The writers inside that found the door taken.
    crowd: AtomicUsize,
}

pub(super) struct Gate<T> {
    doors: Box<[CachePadded<Door>; DOORS]>,
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
            doors: Box::default(),
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
        let door = &self.doors[shard_index() % DOORS];
        let too_early = mutation::on(Fault::LookBeforeAnnouncing) && !self.closed.load(Ordering::SeqCst);
        // Announce first, look second; the closer closes first, looks second. With SeqCst on all four, at least
        // one of the two sees the other.
        let alone = door.pass();
        let inside = Inside {
            gate: self,
            door,
            alone,
        };
        if !too_early && self.closed.load(Ordering::SeqCst) {
            return self.wait_outside(inside);
        }
        inside
    }

    #[cold]
    fn wait_outside<'g>(&'g self, mut inside: Inside<'g, T>) -> Inside<'g, T> {
        loop {
            let door = inside.door;
            drop(inside);
            let mut sleep = locked(&self.sleep);
            while self.closed.load(Ordering::SeqCst) {
                sleep = self.changed.wait(sleep).unwrap_or_else(PoisonError::into_inner);
            }
            drop(sleep);
            inside = Inside {
                gate: self,
                door,
                alone: door.pass(),
            };
            if !self.closed.load(Ordering::SeqCst) {
                return inside;
            }
        }
    }

    #[cold]
    fn wake(&self) {
        // Taking the lock makes sure that a sleeper has either seen the change or is already waiting.
        if !mutation::on(Fault::WakeUnlocked) {
            drop(locked(&self.sleep));
        }
        self.changed.notify_all();
    }

    fn is_used(&self) -> bool {
        !mutation::on(Fault::NoDrain) && self.doors.iter().any(|door| door.is_used())
    }

    /// Closes the gate and waits until nobody is inside. Operations come one at a time.
    ///
    /// A thread that is inside must not call this: it would wait for itself.
    pub(super) fn close(&self) -> Closed<'_, T> {
        let operation = locked(&self.operation);
        self.closed.store(true, Ordering::SeqCst);
        let mut sleep = locked(&self.sleep);
        while self.is_used() {
            sleep = match self.changed.wait_timeout(sleep, LOOK_AGAIN) {
                Ok((sleep, _)) => sleep,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        drop(sleep);
        Closed {
            gate: self,
            _operation: operation,
        }
    }
}

impl Door {
    /// Counts a writer. Returns whether it has the door to itself.
    #[inline]
    fn pass(&self) -> bool {
        let alone = self
            .alone
            .compare_exchange(false, true, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok();
        if !alone {
            self.crowd.fetch_add(1, Ordering::SeqCst);
        }
        alone
    }

    fn is_used(&self) -> bool {
        self.alone.load(Ordering::SeqCst) || self.crowd.load(Ordering::SeqCst) != 0
    }
}

/// A panic elsewhere breaks the whole disk, so a poisoned lock tells nothing new.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A writer that is inside. Dropping it leaves.
pub(super) struct Inside<'g, T> {
    gate: &'g Gate<T>,
    door: &'g Door,
    alone: bool,
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
        if self.alone {
            self.door.alone.store(false, Ordering::Release);
        } else {
            self.door.crowd.fetch_sub(1, Ordering::Release);
        }
        // The store may become visible only after this load, so that a closer that has just looked is not woken: it
        // looks again by itself. A full fence here would cost every write what this costs a rare operation.
        if self.gate.closed.load(Ordering::Relaxed) {
            self.gate.wake();
        }
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
