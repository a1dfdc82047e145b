//! What C programs cannot provoke: panics inside of the library, structs of another age byte by byte,
//! and bitmaps that can no longer be trusted.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::undocumented_unsafe_blocks,
    reason = "in a test, a failure may panic, and every pointer is to a local"
)]

mod inconsistent;
mod panics;
mod sizes;
