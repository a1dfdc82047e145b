//! Threads, locks and atomics, as `std` has them or as the schedule explorer `shuttle` models them.
//!
//! Code whose correctness depends on how threads interleave takes these names from here instead of from `std`. In an
//! ordinary build they *are* `std`'s. In the model tests every atomic step, lock and thread is a point where the
//! explorer may switch threads:
//!
//! ```text
//! RUSTFLAGS="--cfg shuttle" cargo test --profile models --lib shuttle_
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

/// A number that differs between threads, to spread them over sharded counters.
///
/// It is the place of the thread's stack, mixed: thread-local storage costs a call in a shared library, and this costs
/// nothing. Two threads may get the same number, and one thread different ones; nothing but speed depends on it.
#[cfg(not(all(test, shuttle)))]
#[inline]
pub(crate) fn shard_index() -> usize {
    let here = 0u8;
    // Two threads' stacks are at least the smallest stack (16 KiB) apart, and mostly 8 MiB.
    let stack = (&raw const here).addr() >> 14;
    // Times the golden ratio, which spreads neighbours best; the upper bits are the mixed ones.
    stack.wrapping_mul(0x9e37_79b9) >> 16
}

/// Of the explorer's threads: the same in each repetition of a schedule, which the place of a stack is not.
#[cfg(all(test, shuttle))]
pub(crate) fn shard_index() -> usize {
    shuttle::current::me().into()
}
