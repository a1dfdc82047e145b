//! Whether two images show the same.
//!
//! Invariant: what is reported is what comes first in the images, a difference or an error, whichever thread finds which
//! first.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Disk;
use super::copy::canceled;
use super::extents::{Extents, What};
use super::run::threads;
use crate::disk::{Progress, StatusFlags};
use crate::error::{Error, Result};
use crate::parallel::{self, Buffer, Buffers};
use crate::storage::Storage;
use crate::units::ByteRange;
use crate::zeros::is_zero;

/// What a thread takes at a time.
const PIECE: u64 = 2 << 20;
/// What it reads at a time, of each image.
const STEP: u64 = 128 << 10;

/// How to compare two images.
#[derive(Clone, Copy, Debug, Default)]
pub struct Compare {
    strict: bool,
    threads: Option<usize>,
}

/// What a comparison came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They show the same; where one is longer, it has zeros there.
    Identical,
    /// This is the first byte that differs.
    Differs(u64),
    /// Only [strictly](Compare::strict): one is longer.
    LengthDiffers,
    /// Only strictly: from here on one has data, and the other a hole.
    AllocationDiffers(u64),
}

/// What failed when two images were compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareStep {
    /// To find out what is where.
    Status,
    /// To read.
    Read,
    /// Nothing: the caller ended it.
    Canceled,
}

/// Why two images could not be compared.
#[derive(Debug)]
pub struct CompareError {
    /// What failed.
    pub step: CompareStep,
    /// How.
    pub error: Error,
}

impl Compare {
    /// By what they show alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// The lengths must be the same, and so must be what is data and what is a hole.
    #[must_use]
    pub fn strict(mut self, yes: bool) -> Self {
        self.strict = yes;
        self
    }

    /// How many threads do it, 1 to 16; 4 unless it is said.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Compares two images, which must not change meanwhile. `progress` is told in bytes.
    ///
    /// What is a hole in both is not read, nor is what both have from the same place of the same file.
    pub fn run(
        &self,
        one: &Disk,
        other: &Disk,
        progress: &mut Progress<'_>,
    ) -> Result<Verdict, CompareError> {
        if self.strict && one.length() != other.length() {
            return Ok(Verdict::LengthDiffers);
        }
        // What fails unless it is one of the other two.
        let step = Cell::new(CompareStep::Read);
        self.differences(one, other, progress, &step)
            .map_err(|error| CompareError {
                step: step.get(),
                error,
            })
    }

    fn differences(
        &self,
        one: &Disk,
        other: &Disk,
        progress: &mut Progress<'_>,
        step: &Cell<CompareStep>,
    ) -> Result<Verdict> {
        let total = one.length().max(other.length());
        let first = AtomicU64::new(u64::MAX);
        let mut walk = Walk {
            sides: [Extents::new(one), Extents::new(other)],
            strict: self.strict,
            at: 0,
            total,
            allocation: None,
        };
        // Whoever hands out pieces is ahead of those that are read, and may meet an error behind a difference.
        let mut unknown = None;
        let next = || {
            // Pieces are handed out in order: behind a difference none is of interest.
            if first.load(Ordering::Relaxed) <= walk.at {
                return Ok(None);
            }
            walk.next().or_else(|error| {
                unknown = Some(error);
                Ok(None)
            })
        };
        let work = |piece: &Piece, [left, right]: &mut Buffers| {
            let differs = piece.first_difference([one, other], &first, [left, right]);
            if let Ok(Some(at)) = differs {
                first.fetch_min(at, Ordering::Relaxed);
            }
            Ok(differs.map(drop))
        };
        let told = |piece: Piece, read: Result<()>| {
            // All before it are done. Behind a difference it is of no interest that something cannot be read.
            if first.load(Ordering::Relaxed) >= piece.range.start() {
                read?;
            }
            if progress(piece.range.end(), total).is_break() {
                step.set(CompareStep::Canceled);
                return Err(canceled());
            }
            Ok(())
        };
        parallel::in_order_by(threads(self.threads), next, work, told)?;
        let content = first.into_inner();
        if let Some(error) = unknown.filter(|_| content > walk.at) {
            step.set(CompareStep::Status);
            return Err(error);
        }
        Ok(match walk.allocation {
            Some(at) if at <= content => Verdict::AllocationDiffers(at),
            _ if content < u64::MAX => Verdict::Differs(content),
            _ => Verdict::Identical,
        })
    }
}

/// A range in which both images have one kind each.
struct Piece {
    range: ByteRange,
    data: [bool; 2],
}

struct Walk<'d> {
    sides: [Extents<'d>; 2],
    strict: bool,
    at: u64,
    total: u64,
    /// Strictly, where the first difference of kind is; there the walk ends.
    allocation: Option<u64>,
}

impl Walk<'_> {
    /// The next piece that has to be read.
    fn next(&mut self) -> Result<Option<Piece>> {
        while self.at < self.total && self.allocation.is_none() {
            let at = self.at;
            let [one, other] = &mut self.sides;
            let kinds = StatusFlags::DATA | StatusFlags::ZERO;
            let ((a, a_end), (b, b_end)) = (one.at(at)?, other.at(at)?);
            let end = a_end.min(b_end).min(self.total);
            let (same, data) = (same_place(a, b), [a.is_data(), b.is_data()]);
            if self.strict && one.flags() & kinds != other.flags() & kinds {
                self.allocation = Some(at);
                break;
            }
            if same {
                self.at = end;
                continue;
            }
            self.at = end.min(at + PIECE);
            let range = ByteRange::between(at, self.at);
            return Ok(Some(Piece { range, data }));
        }
        Ok(None)
    }
}

/// Whether two sides need not be read: both are zeros, or the same bytes of the same file.
fn same_place(one: &What, other: &What) -> bool {
    let identity = |file: &Option<Arc<dyn Storage>>| file.as_ref().and_then(|file| file.identity());
    match (one, other) {
        (What::Zeros, What::Zeros) => true,
        (What::Data(one), What::Data(other)) => {
            let one = identity(one);
            one.is_some() && one == identity(other)
        }
        _ => false,
    }
}

impl Piece {
    /// Where the first byte differs, if one does before the first difference that is known.
    fn first_difference(
        &self,
        disks: [&Disk; 2],
        known: &AtomicU64,
        buffers: [&mut Buffer; 2],
    ) -> Result<Option<u64>> {
        let [left, right] = buffers;
        let mut at = self.range.start();
        while at < self.range.end() && at < known.load(Ordering::Relaxed) {
            let end = self.range.end().min(at + STEP);
            // At most a step.
            let len = usize::try_from(end - at).unwrap_or(0);
            let (left, right) = (left.take(len), right.take(len));
            let differs = match self.data {
                [true, true] => {
                    disks[0].read(left, at)?;
                    disks[1].read(right, at)?;
                    first_unequal(left, right)
                }
                [false, false] => None,
                [one, _] => {
                    disks[usize::from(!one)].read(left, at)?;
                    first_unequal_to_zero(left)
                }
            };
            if let Some(differs) = differs {
                return Ok(Some(at + differs as u64));
            }
            at = end;
        }
        Ok(None)
    }
}

fn first_unequal(left: &[u8], right: &[u8]) -> Option<usize> {
    if left == right {
        return None;
    }
    left.iter().zip(right).position(|(left, right)| left != right)
}

fn first_unequal_to_zero(bytes: &[u8]) -> Option<usize> {
    if is_zero(bytes) {
        return None;
    }
    bytes.iter().position(|byte| *byte != 0)
}
