//! Bits apart from any disk: what a bitmap said at one point, or what it is to say.

use std::fmt;

use crate::bitmap::Bits;
use crate::error::Result;
use crate::units::{ByteRange, Granularity};

/// The bits of a bitmap at one point, apart from its disk: to be merged into a bitmap of another disk, or taken in part
/// by part and then put in a bitmap's place by [`BitmapAction::Replace`](super::BitmapAction::Replace).
///
/// Its serialized form is that of bitmap files: little-endian 64-bit words, granule `i` at bit `i % 8` of byte `i / 8`.
/// Offsets and lengths of parts are in bytes and multiples of 8.
pub struct BitmapContent {
    pub(super) granularity: Granularity,
    /// Of the disk, in bytes.
    pub(super) length: u64,
    pub(super) bits: Bits,
}

impl BitmapContent {
    /// No bit set, for a disk of `length` bytes. Fails with `NoMemory`.
    pub fn new(granularity: Granularity, length: u64) -> Result<Self> {
        let bits = Bits::new(granularity.granules_in(length))?;
        Ok(Self {
            granularity,
            length,
            bits,
        })
    }

    /// The bytes that one bit stands for.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// The length of the disk that the bits are about, in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// How many bits are set.
    pub fn count(&self) -> u64 {
        self.bits.count()
    }

    /// The length of the serialized form, in bytes.
    pub fn serialized_len(&self) -> u64 {
        self.bits.serialized_len()
    }

    /// Copies the part from `offset` on into `out`, as many bytes as that holds.
    pub fn serialize(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.bits.serialize(offset, out)
    }

    /// Takes the part that begins at `offset`, in place of what was there. Bits past the disk's end are ignored.
    pub fn deserialize(&mut self, offset: u64, part: &[u8]) -> Result<()> {
        self.bits.deserialize(offset, part)
    }

    /// As [`deserialize`](Self::deserialize) of a part that is all zeros.
    pub fn deserialize_zeros(&mut self, part: ByteRange) -> Result<()> {
        self.bits.deserialize_zeros(part)
    }

    /// As [`deserialize`](Self::deserialize) of a part that is all ones.
    pub fn deserialize_ones(&mut self, part: ByteRange) -> Result<()> {
        self.bits.deserialize_ones(part)
    }
}

impl fmt::Debug for BitmapContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BitmapContent")
            .field("granularity", &self.granularity.bytes())
            .field("length", &self.length)
            .field("bits", &self.bits)
            .finish()
    }
}
