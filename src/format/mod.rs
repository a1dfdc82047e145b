//! What image files of other programs look like.
//!
//! May call `storage`, `units` and `error`; knows bytes, and nothing of disks. Invariant: whatever is in a file that is
//! read here, the answer is facts or an error in words: no panic, and no more memory than a format's own limits.

pub(crate) mod qcow2;
