//! What image files of other programs look like.
//!
//! May call `storage`, `units` and `error`; knows bytes, and nothing of disks: what an image names is told to the
//! caller, who opens it and hands it in. Invariant: whatever is in a file that is read here, the answer is facts or an
//! error in words: no panic, and no more memory than a format's own limits.

mod image;
pub(crate) mod qcow2;
mod through;
pub(crate) mod vmdk;

pub(crate) use image::{FormatImage, Place};
