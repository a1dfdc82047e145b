//! The intent map as the state file holds it: 128 pieces of 512 bytes, each with its own checksum.
//!
//! Calls nothing. Invariant (D1): a piece that is not exactly what was written is taken for "every region active", never
//! for fewer.

use std::ops::Range;

/// What a crash keeps or loses as a whole; writes to the map are pieces.
pub(super) const PIECE: usize = 512;
/// Pieces of the map: 64 KiB.
pub(super) const MAP_PIECES: usize = 128;
/// The checksum and the piece's number, which is in it so that a piece in a wrong place is not taken for another.
const HEAD: usize = 8;
const WORDS_PER_PIECE: usize = (PIECE - HEAD) / 8;
/// The most regions that the map has a bit for.
pub(crate) const MAX_REGIONS: u64 = (MAP_PIECES * WORDS_PER_PIECE * 64) as u64;

/// A set of regions.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RegionSet {
    words: Box<[u64]>,
}

impl RegionSet {
    /// None.
    pub(crate) fn new() -> Self {
        Self {
            words: vec![0; MAP_PIECES * WORDS_PER_PIECE].into_boxed_slice(),
        }
    }

    fn place(region: u64) -> Option<(usize, u64)> {
        let word = usize::try_from(region / 64).ok()?;
        (region < MAX_REGIONS).then_some((word, 1 << (region % 64)))
    }

    /// Whether it is in the set.
    pub(crate) fn contains(&self, region: u64) -> bool {
        Self::place(region).is_some_and(|(word, bit)| self.words[word] & bit != 0)
    }

    /// Adds it; false where it was there, or is none that the map has a bit for.
    pub(super) fn insert(&mut self, region: u64) -> bool {
        Self::place(region).is_some_and(|(word, bit)| {
            let new = self.words[word] & bit == 0;
            self.words[word] |= bit;
            new
        })
    }

    pub(super) fn remove(&mut self, region: u64) {
        if let Some((word, bit)) = Self::place(region) {
            self.words[word] &= !bit;
        }
    }

    /// Adds every region.
    pub(super) fn fill(&mut self) {
        self.words.fill(u64::MAX);
    }

    pub(super) fn clear(&mut self) {
        self.words.fill(0);
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// How many.
    pub(crate) fn len(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The regions in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().enumerate().flat_map(|(index, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(index as u64 * 64 + u64::from(bit))
            })
        })
    }

    /// Runs of neighbours, in order.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut regions = self.iter().peekable();
        std::iter::from_fn(move || {
            let start = regions.next()?;
            let mut end = start + 1;
            while regions.next_if_eq(&end).is_some() {
                end += 1;
            }
            Some(start..end)
        })
    }

    /// The piece that has the region's bit.
    pub(super) fn piece_of(region: u64) -> usize {
        usize::try_from(region / 64).map_or(usize::MAX, |word| word / WORDS_PER_PIECE)
    }

    fn words_of(piece: usize) -> Range<usize> {
        piece * WORDS_PER_PIECE..(piece + 1) * WORDS_PER_PIECE
    }

    /// Piece number `piece` as the file is to hold it.
    pub(super) fn encode(&self, piece: usize) -> [u8; PIECE] {
        let mut bytes = [0; PIECE];
        bytes[4..HEAD].copy_from_slice(&number(piece).to_le_bytes());
        for (at, word) in bytes[HEAD..]
            .chunks_exact_mut(8)
            .zip(&self.words[Self::words_of(piece)])
        {
            at.copy_from_slice(&word.to_le_bytes());
        }
        let sum = crc32c::crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Takes piece number `piece` from the file's bytes. Where they are damaged, all its regions are in the set, and the
    /// answer is false.
    pub(super) fn decode(&mut self, piece: usize, bytes: &[u8]) -> bool {
        let sound = bytes.len() == PIECE
            && bytes[..4] == crc32c::crc32c(&bytes[4..]).to_le_bytes()
            && bytes[4..HEAD] == number(piece).to_le_bytes();
        let words = &mut self.words[Self::words_of(piece)];
        if sound {
            for (word, at) in words.iter_mut().zip(bytes[HEAD..].as_chunks().0) {
                *word = u64::from_le_bytes(*at);
            }
        } else {
            words.fill(u64::MAX);
        }
        sound
    }

    /// Whether all of `other` in piece number `piece` is in this set.
    pub(super) fn has_piece(&self, piece: usize, other: &Self) -> bool {
        let words = Self::words_of(piece);
        let mut pairs = self.words[words.clone()].iter().zip(&other.words[words]);
        pairs.all(|(mine, theirs)| theirs & !mine == 0)
    }

    /// Adds what these bytes of piece number `piece`, as [`Self::encode`] made them, hold.
    pub(super) fn add_piece(&mut self, piece: usize, bytes: &[u8; PIECE]) {
        let words = &mut self.words[Self::words_of(piece)];
        for (word, at) in words.iter_mut().zip(bytes[HEAD..].as_chunks().0) {
            *word |= u64::from_le_bytes(*at);
        }
    }
}

impl std::fmt::Debug for RegionSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.runs()).finish()
    }
}

/// Numbers of pieces fit any integer.
#[allow(clippy::cast_possible_truncation, reason = "at most 127")]
const fn number(piece: usize) -> u32 {
    piece as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_survives_its_pieces() {
        let mut set = RegionSet::new();
        for region in [0, 63, 64, 4031, 4032, 100_000, MAX_REGIONS - 1] {
            assert!(set.insert(region) && !set.insert(region));
        }
        assert!(!set.insert(MAX_REGIONS) && !set.contains(MAX_REGIONS));
        let mut again = RegionSet::new();
        for piece in 0..MAP_PIECES {
            assert!(again.decode(piece, &set.encode(piece)));
        }
        assert_eq!(again, set);
        let runs: Vec<_> = set.runs().collect();
        assert_eq!(runs[..3], [0..1, 63..65, 4031..4033]);
        assert_eq!(
            (set.len(), RegionSet::piece_of(4031), RegionSet::piece_of(4032)),
            (7, 0, 1)
        );
    }

    /// A piece of zeros, one with any bit flipped, and one from another place are all damage.
    #[test]
    fn damage_means_every_region_of_the_piece() {
        let mut set = RegionSet::new();
        set.insert(5);
        let good = set.encode(0);
        let mut damaged = vec![vec![0; PIECE], set.encode(1).to_vec(), good[..511].to_vec()];
        for bit in [0, 40, 70, 4095] {
            let mut bytes = good.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            damaged.push(bytes);
        }
        for bytes in damaged {
            let mut read = RegionSet::new();
            assert!(!read.decode(0, &bytes));
            assert!(read.len() == 4032 && read.runs().eq(std::iter::once(0..4032)));
        }
    }
}
