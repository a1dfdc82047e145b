//! Threads, locks and atomics, as `std` has them or as the schedule explorer `shuttle` models them.
//!
//! Code whose correctness depends on how threads interleave takes these names from here instead of from `std`. In an
//! ordinary build they *are* `std`'s. In the model tests every atomic step, lock and thread is a point where the
//! explorer may switch threads:
//!
//! ```text
//! RUSTFLAGS="--cfg shuttle" cargo test --release --lib shuttle_
//! ```
//!
//! runs the tests whose names begin with `shuttle_`. A `cfg` and not a cargo feature, because features must add up:
//! a program that asked for all of them would get a library that works only inside the explorer.
//!
//! Invariant: nothing here behaves differently from `std`. The explorer runs every atomic as sequentially
//! consistent, so it proves the *order of steps*; that the weaker orderings in the code suffice is argued where they
//! stand.

#[cfg(not(all(test, shuttle)))]
mod chosen {
    pub(crate) use std::sync::*;

    /// `count` words of zeros that take no memory until they are written to, or `None` where there is none to have.
    pub(crate) fn zeroed_words(count: usize) -> Option<Box<[atomic::AtomicU64]>> {
        bytemuck::try_zeroed_slice_box(count).ok()
    }
}

#[cfg(all(test, shuttle))]
mod chosen {
    pub(crate) use shuttle::sync::*;
    pub(crate) use shuttle::thread;

    pub(crate) fn zeroed_words(count: usize) -> Option<Box<[atomic::AtomicU64]>> {
        let mut words = Vec::new();
        words.try_reserve_exact(count).ok()?;
        words.resize_with(count, || atomic::AtomicU64::new(0));
        Some(words.into_boxed_slice())
    }
}

pub(crate) use chosen::*;

/// A small number that differs between threads, to spread them over sharded counters.
#[inline]
pub(crate) fn shard_index() -> usize {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static INDEX: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    INDEX.with(|index| {
        let mut mine = index.get();
        if mine == usize::MAX {
            mine = NEXT.fetch_add(1, Ordering::Relaxed);
            index.set(mine);
        }
        mine
    })
}
