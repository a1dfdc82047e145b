//! Whole images: converted into another, compared with another, measured as what they would be.
//!
//! May call the disk, `format`, `parallel`, `zeros` and `storage`. What is read is an open [`Disk`], with all that lies below it, or an image
//! without a descriptor ([`OpenOptions::image_format`](crate::OpenOptions::image_format)).
//! Invariant: nothing that exists is replaced, and of what is new there is all or nothing.

mod compare;
mod copy;
mod export;
mod extents;
mod measure;
mod run;
mod target;
#[cfg(test)]
mod tests;

pub use compare::{Compare, CompareError, CompareStep, Verdict};
pub use export::ExportedCopy;
pub use measure::{MeasureSource, Measured, QCOW2_CLUSTER, measure};
pub use run::{Convert, Converted};

use crate::disk::Disk;
