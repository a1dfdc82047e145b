//! Bytes and granules as types, so that one is never taken for the other.
//!
//! Invariant: a [`ByteRange`] never wraps around: its end fits in 64 bits.

use std::fmt;

/// The largest disk: lengths and offsets must fit a signed 64-bit integer, as `off_t` is one.
pub const MAX_LENGTH: u64 = i64::MAX as u64;

/// A run of bytes, `start .. start + len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ByteRange {
    start: u64,
    len: u64,
}

impl ByteRange {
    /// The range of `len` bytes from `start`, or `None` where its end would not fit.
    pub const fn new(start: u64, len: u64) -> Option<Self> {
        match start.checked_add(len) {
            Some(_) => Some(Self { start, len }),
            None => None,
        }
    }

    /// The range from `start` up to, not including, `end`; empty where `end` is not behind `start`.
    pub const fn between(start: u64, end: u64) -> Self {
        Self {
            start,
            len: end.saturating_sub(start),
        }
    }

    /// The first byte.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// How many bytes.
    pub const fn len(self) -> u64 {
        self.len
    }

    /// The byte behind the last.
    pub const fn end(self) -> u64 {
        self.start + self.len
    }

    /// Whether there is no byte in it.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at offset {}", self.len, self.start)
    }
}

/// How many bytes one bit stands for: a power of two from 512 to 2 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Granularity {
    shift: u8,
}

impl Granularity {
    /// 512 bytes, the smallest.
    pub const MIN: Self = Self { shift: 9 };
    /// 2 GiB, the largest.
    pub const MAX: Self = Self { shift: 31 };
    /// 64 KiB.
    pub const DEFAULT: Self = Self { shift: 16 };

    /// The granularity of `bytes`, or `None` where that is no power of two or out of range.
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= Self::MIN.bytes() && bytes <= Self::MAX.bytes() {
            #[allow(
                clippy::cast_possible_truncation,
                reason = "trailing_zeros of a u64 is at most 64"
            )]
            let shift = bytes.trailing_zeros() as u8;
            Some(Self { shift })
        } else {
            None
        }
    }

    /// Bytes per granule.
    pub const fn bytes(self) -> u64 {
        1 << self.shift
    }

    /// The granule that the byte at `offset` lies in.
    pub const fn granule_of(self, offset: u64) -> GranuleIndex {
        GranuleIndex(offset >> self.shift)
    }

    /// How many granules a disk of `length` bytes has; the last one may be partial.
    pub const fn granules_in(self, length: u64) -> u64 {
        (length >> self.shift) + (length & (self.bytes() - 1) != 0) as u64
    }

    /// Where granule `index` begins.
    pub const fn start_of(self, index: GranuleIndex) -> u64 {
        index.0 << self.shift
    }

    /// The bytes that `granules` stand for on a disk of `length` bytes, whose last granule may be partial.
    pub const fn bytes_of(self, granules: GranuleRange, length: u64) -> ByteRange {
        let whole = self.granules_in(length);
        if granules.end.0 < whole {
            ByteRange::between(self.start_of(granules.start), self.start_of(granules.end))
        } else if granules.start.0 < whole {
            ByteRange::between(self.start_of(granules.start), length)
        } else {
            ByteRange::between(length, length)
        }
    }

    /// The granules that `range` touches, even in part.
    pub const fn touched_by(self, range: ByteRange) -> GranuleRange {
        if range.is_empty() {
            let at = self.granule_of(range.start());
            return GranuleRange { start: at, end: at };
        }
        GranuleRange {
            start: self.granule_of(range.start()),
            end: GranuleIndex(((range.end() - 1) >> self.shift) + 1),
        }
    }

    /// The granules that lie wholly in `range`, where the granule at the disk's end (`length`) counts as
    /// whole when `range` reaches that end.
    pub const fn covered_by(self, range: ByteRange, length: u64) -> GranuleRange {
        let start = self.granules_in(range.start());
        let end = if range.end() >= length {
            self.granules_in(length)
        } else {
            range.end() >> self.shift
        };
        GranuleRange {
            start: GranuleIndex(start),
            end: GranuleIndex(if end > start { end } else { start }),
        }
    }
}

impl Default for Granularity {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The number of a granule, and of its bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GranuleIndex(pub u64);

/// A run of granules, `start .. end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GranuleRange {
    /// The first.
    pub start: GranuleIndex,
    /// The one behind the last.
    pub end: GranuleIndex,
}

impl GranuleRange {
    /// The granules `start .. end`; none where `end` is not behind `start`.
    pub const fn new(start: u64, end: u64) -> Self {
        Self {
            start: GranuleIndex(start),
            end: GranuleIndex(if end > start { end } else { start }),
        }
    }

    /// The one granule `index`.
    pub const fn one(index: GranuleIndex) -> Self {
        Self {
            start: index,
            end: GranuleIndex(index.0.saturating_add(1)),
        }
    }

    /// What lies in both.
    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        Self::new(self.start.0.max(other.start.0), self.end.0.min(other.end.0))
    }

    /// How many granules.
    pub const fn len(self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.end.0 <= self.start.0
    }
}
