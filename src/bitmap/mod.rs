//! Bitmaps: one bit a granule, in memory and in the form that their files have.
//!
//! May call `storage`, `units` and `error`. Invariant: what a bitmap's functions say about a granule is never less than what was
//! set: a summary, a merge or a scaling may say "maybe dirty" too often, never "clean" once too often (D1).

mod bits;
mod file;
mod levels;
mod merge;
mod scan;
mod serial;
mod tail;

#[cfg(test)]
#[cfg(shuttle)]
mod models;
// Under the schedule explorer atomics work only inside a model.
#[cfg(test)]
#[cfg(not(shuttle))]
mod tests;

pub use bits::Bits;
pub use file::{BitmapFile, BitmapPolicy};
pub use scan::Runs;
