//! Regions: the coarse ranges of the disk that the intent map has a bit for.
//!
//! Calls nothing. Invariant: a size that [`RegionSize::for_length`] gives never needs more bits than the map has.

use std::ops::Range;

use super::map::MAX_REGIONS;
use crate::units::ByteRange;

/// How many bytes a region has: a power of two, 512 to 2^62.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegionSize {
    shift: u8,
}

impl RegionSize {
    /// 64 MiB.
    pub(crate) const DEFAULT: Self = Self { shift: 26 };

    /// The size of `bytes`, or `None` where that is no power of two or out of range.
    pub(crate) const fn new(bytes: u64) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= 512 && bytes <= 1 << 62 {
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

    pub(crate) const fn bytes(self) -> u64 {
        1 << self.shift
    }

    /// This size, doubled until the map has a bit for each region of a disk of `length` bytes.
    #[must_use]
    pub(crate) const fn for_length(mut self, length: u64) -> Self {
        while self.regions_in(length) > MAX_REGIONS {
            self.shift += 1;
        }
        self
    }

    /// How many regions a disk of `length` bytes has; the last one may be partial.
    pub(crate) const fn regions_in(self, length: u64) -> u64 {
        length.div_ceil(self.bytes())
    }

    /// The regions that `range` touches, even in part.
    pub(super) const fn touched_by(self, range: ByteRange) -> Range<u64> {
        let start = range.start() >> self.shift;
        if range.is_empty() {
            return start..start;
        }
        start..((range.end() - 1) >> self.shift) + 1
    }

    /// The bytes of `regions` on a disk of `length` bytes.
    pub(super) fn bytes_of(self, regions: Range<u64>, length: u64) -> ByteRange {
        let at = |region: u64| region.saturating_mul(self.bytes()).min(length);
        ByteRange::between(at(regions.start), at(regions.end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::MAX_LENGTH;

    #[test]
    fn sizes_double_until_the_map_has_room() {
        let largest = MAX_REGIONS * RegionSize::DEFAULT.bytes();
        assert_eq!(RegionSize::DEFAULT.for_length(0), RegionSize::DEFAULT);
        assert_eq!(RegionSize::DEFAULT.for_length(largest), RegionSize::DEFAULT);
        assert_eq!(RegionSize::DEFAULT.for_length(largest + 1).bytes(), 128 << 20);
        let huge = RegionSize::DEFAULT.for_length(MAX_LENGTH);
        assert!(huge.regions_in(MAX_LENGTH) <= MAX_REGIONS && huge.bytes() == 1 << 45);
    }

    #[test]
    fn only_powers_of_two_in_range_are_sizes() {
        for bytes in [0, 1, 256, 513, 3 << 20, 1 << 63] {
            assert_eq!(RegionSize::new(bytes), None, "{bytes}");
        }
        assert_eq!(RegionSize::new(512).map(RegionSize::bytes), Some(512));
        assert_eq!(RegionSize::new(1 << 62).map(RegionSize::bytes), Some(1 << 62));
    }

    #[test]
    fn ranges_touch_the_regions_of_their_first_and_last_byte() {
        let size = RegionSize::new(512).unwrap();
        let touched = |start, end| size.touched_by(ByteRange::between(start, end));
        assert_eq!(touched(0, 512), 0..1);
        assert_eq!(touched(511, 513), 0..2);
        assert_eq!(touched(512, 512), 1..1);
        assert_eq!(size.bytes_of(1..3, 1100), ByteRange::between(512, 1100));
    }
}
