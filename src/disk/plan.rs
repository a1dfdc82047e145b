//! What a request means: which file it reaches, at which offsets, which bits it sets, what must be durable when it
//! is done. The only place that decides any of this; executors carry plans out and decide nothing.

use super::bitmaps::{Marks, Shape};
use super::{Child, WriteFlags};
use crate::storage::{Gather, Zeroing};
use crate::units::ByteRange;

/// A read: one run of bytes from one file.
pub(super) struct ReadPlan<'d> {
    pub(super) file: &'d Child,
    pub(super) range: ByteRange,
}

/// A change of what the guest sees: one run of bytes in one file.
pub(super) struct ChangePlan<'d, 'b> {
    pub(super) file: &'d Child,
    pub(super) change: Change<'b>,
    pub(super) range: ByteRange,
    /// What must be recorded before the change may reach the file (D1); mostly nothing is left to.
    pub(super) marks: Option<Marks<'d>>,
    /// The change must be durable before it is reported done.
    pub(super) durable: bool,
}

/// What is to happen to a range.
#[derive(Clone, Copy)]
pub(super) enum Change<'b> {
    /// It takes these bytes.
    Write(Gather<'b>),
    /// It reads as zeros.
    Zero(Zeroing),
    /// It reads as zeros, and its space is given back.
    Discard,
}

#[inline]
pub(super) fn read(image: &Child, range: ByteRange) -> ReadPlan<'_> {
    ReadPlan { file: image, range }
}

#[inline]
pub(super) fn change<'d, 'b>(
    shape: &'d Shape,
    image: &'d Child,
    change: Change<'b>,
    range: ByteRange,
    flags: WriteFlags,
) -> ChangePlan<'d, 'b> {
    let marks = if flags.contains(WriteFlags::UNCHANGED) {
        None
    } else {
        Marks::needed(shape, range)
    };
    ChangePlan {
        file: image,
        change,
        range,
        marks,
        durable: flags.contains(WriteFlags::FUA),
    }
}
