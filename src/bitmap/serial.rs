//! The bits as bytes: little-endian 64-bit words, as bitmap files, qcow2 and QEMU's migration have them.
//!
//! Offsets and lengths are bytes of that form, and multiples of 8; the granule `i` is bit `i % 8` of byte `i / 8` on
//! every machine. Invariant: bits from the bitmap's end on are zero when written and ignored when read.

use super::bits::{Bits, mask_in};
use super::levels::{GROUP, WORD};
use crate::error::{Error, ErrorCode, Result};
use crate::sync::atomic::Ordering;
use crate::units::{ByteRange, GranuleRange};

/// Bytes of a word.
const WORD_BYTES: u64 = WORD / 8;
/// Bytes of a page, the unit in which [`Bits::next_data`] tells zeros from data.
const PAGE: u64 = 4096;

impl Bits {
    /// The length of all bits as bytes.
    pub fn serialized_len(&self) -> u64 {
        self.len().div_ceil(WORD) * WORD_BYTES
    }

    /// The bytes that hold the bits of `granules`, in whole words.
    pub fn serialized_range(granules: GranuleRange) -> ByteRange {
        ByteRange::between(
            granules.start.0 / WORD * WORD_BYTES,
            granules.end.0.div_ceil(WORD) * WORD_BYTES,
        )
    }

    /// Writes the bytes from `offset` on into `out`, as many as it holds.
    ///
    /// Fails with `InvalidArgument` where the part is not in whole words, `OutOfRange` where it is not within the bits.
    pub fn serialize(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let first = self.part(offset, out.len() as u64)?;
        let words = self.words.words()[first..].iter();
        for (bytes, word) in out.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        Ok(())
    }

    /// Replaces the bits whose bytes begin at `offset` by those in `bytes`. Fails as [`serialize`](Self::serialize).
    pub fn deserialize(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let first = self.part(offset, bytes.len() as u64)?;
        let mut at = first;
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = (GROUP - at % GROUP) * 8;
            let (part, behind) = rest.split_at(rest.len().min(room));
            self.replace_in_group(at, part);
            at += part.len() / 8;
            rest = behind;
        }
        Ok(())
    }

    /// Replaces the words from `first` on, all of one group, by those in `bytes`.
    fn replace_in_group(&mut self, first: usize, bytes: &[u8]) {
        let (group, skip, count) = (first / GROUP, first % GROUP, bytes.len() / 8);
        let was_empty = self.words.next_group(group, group).is_none();
        // Words that are and stay zero are not touched: they take no memory.
        if was_empty && words_in(bytes).fold(0, |any, word| any | word) == 0 {
            return;
        }
        let tail = mask_in(first + count - 1, self.all());
        let words = &mut self.words.group_mut(group)[skip..skip + count];
        let mut cleared = 0;
        if !was_empty {
            cleared = words.iter_mut().map(|word| ones_in(*word.get_mut())).sum();
        }
        for (word, new) in words.iter_mut().zip(words_in(bytes)) {
            *word.get_mut() = new;
        }
        let mut set = words_in(bytes).map(ones_in).sum();
        if let Some(word) = words.last_mut() {
            let word = word.get_mut();
            set -= ones_in(*word & !tail);
            *word &= tail;
        }
        self.recount(set, cleared);
        self.words.settle(group);
    }

    /// Sets the bits that are set in `bytes`, which begin at `offset`, and clears none; tells how many were clear.
    ///
    /// Loads a part of bits that other threads may be setting already. Fails as [`serialize`](Self::serialize).
    pub fn merge_serialized(&self, offset: u64, bytes: &[u8]) -> Result<u64> {
        let first = self.part(offset, bytes.len() as u64)?;
        let all = self.all();
        let mut newly = 0;
        for (index, word) in (first..).zip(words_in(bytes)) {
            if word != 0 {
                newly += self.words.set_in_word(index, word & mask_in(index, all));
            }
        }
        self.add(newly);
        Ok(newly)
    }

    /// Replaces the bits whose bytes are `part` by clear ones. Fails as [`serialize`](Self::serialize).
    pub fn deserialize_zeros(&mut self, part: ByteRange) -> Result<()> {
        self.part(part.start(), part.len())?;
        self.clear(granules_in(part));
        Ok(())
    }

    /// Replaces the bits whose bytes are `part` by set ones. Fails as [`serialize`](Self::serialize).
    pub fn deserialize_ones(&mut self, part: ByteRange) -> Result<()> {
        self.part(part.start(), part.len())?;
        self.set(granules_in(part));
        Ok(())
    }

    /// The first stretch of bytes that is not all zeros, in whole pages of 4096 bytes up to the end, from the page
    /// that holds `offset` on.
    ///
    /// What lies between such stretches is zeros, and may be a hole in the file.
    pub fn next_data(&self, offset: u64) -> Option<ByteRange> {
        let len = self.serialized_len();
        if offset >= len {
            return None;
        }
        let from = offset - offset % PAGE;
        let start = self.next_set(granules_in(ByteRange::between(from, len)))?;
        let start = start.0 / 8 / PAGE * PAGE;
        let mut end = start + PAGE;
        while end < len && self.any_set(granules_in(ByteRange::between(end, end + PAGE))) {
            end += PAGE;
        }
        Some(ByteRange::between(start, end.min(len)))
    }

    /// Checks that a part is in whole words and exists; returns its first word.
    fn part(&self, offset: u64, len: u64) -> Result<usize> {
        if !offset.is_multiple_of(WORD_BYTES) || !len.is_multiple_of(WORD_BYTES) {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                format!("part of a bitmap, {len} bytes at offset {offset}: not in whole words of 8 bytes"),
            ));
        }
        let total = self.serialized_len();
        if offset > total || len > total - offset {
            return Err(Error::new(
                ErrorCode::OutOfRange,
                format!("part of a bitmap, {len} bytes at offset {offset}: past its end at {total}"),
            ));
        }
        #[allow(
            clippy::cast_possible_truncation,
            reason = "the words are in memory, so their number fits"
        )]
        let first = (offset / WORD_BYTES) as usize;
        Ok(first)
    }
}

/// The granules whose bits lie in `bytes`.
fn granules_in(bytes: ByteRange) -> GranuleRange {
    GranuleRange::new(bytes.start().saturating_mul(8), bytes.end().saturating_mul(8))
}

/// The words whose bytes these are.
// Loops over these are plain enough for the compiler to turn them into vector code.
fn words_in(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks_exact(8).map(|bytes| {
        let mut word = [0; 8];
        word.copy_from_slice(bytes);
        u64::from_le_bytes(word)
    })
}

/// How many bits of a word are set.
fn ones_in(word: u64) -> u64 {
    u64::from(word.count_ones())
}
