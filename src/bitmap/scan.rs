//! Finding set and clear bits, and runs of them.
//!
//! Invariant: a bit whose setting happened before a scan began is found by it (see the levels' invariant S).

use super::bits::{Bits, last_word, mask_in, word_of};
use super::levels::WORD;
use crate::sync::atomic::Ordering;
use crate::units::{GranuleIndex, GranuleRange};

impl Bits {
    /// The first set bit in `within`.
    pub fn next_set(&self, within: GranuleRange) -> Option<GranuleIndex> {
        let within = self.clip(within);
        let last = last_word(within)?;
        let mut index = word_of(within.start);
        let mut word = self.load(index) & mask_in(index, within);
        while word == 0 {
            index = self.words.next_word(index + 1, last)?;
            word = self.load(index) & mask_in(index, within);
        }
        Some(lowest(index, word))
    }

    /// The first clear bit in `within`.
    pub fn next_clear(&self, within: GranuleRange) -> Option<GranuleIndex> {
        let within = self.clip(within);
        let last = last_word(within)?;
        let first = word_of(within.start);
        let clear = |index| !self.load(index) & mask_in(index, within);
        let word = clear(first);
        if word != 0 {
            return Some(lowest(first, word));
        }
        let words = self.words.words().get(first + 1..=last)?;
        let full = words
            .iter()
            .take_while(|word| word.load(Ordering::Relaxed) == u64::MAX)
            .count();
        let index = first + 1 + full;
        // The last word's bits behind `within` may be the ones that are clear.
        let word = if index <= last { clear(index) } else { 0 };
        (word != 0).then(|| lowest(index, word))
    }

    /// The first run of set bits in `within`, cut after `longest` granules.
    ///
    /// `None` where there is no set bit, or where `longest` is zero.
    pub fn next_run(&self, within: GranuleRange, longest: u64) -> Option<GranuleRange> {
        if longest == 0 {
            return None;
        }
        let within = self.clip(within);
        let start = self.next_set(within)?;
        let end = start.0.saturating_add(longest).min(within.end.0);
        let rest = GranuleRange::new(start.0 + 1, end);
        let end = self.next_clear(rest).map_or(end, |clear| clear.0);
        Some(GranuleRange::new(start.0, end))
    }

    /// The runs of set bits in `within`, in order, each as long as it can be.
    ///
    /// Bits that change meanwhile may or may not be seen.
    pub fn runs(&self, within: GranuleRange) -> Runs<'_> {
        let within = self.clip(within);
        let index = word_of(within.start);
        Runs {
            bits: self,
            within,
            index,
            word: if within.is_empty() {
                0
            } else {
                self.load(index) & mask_in(index, within)
            },
        }
    }

    /// The word `index` as it is now.
    pub(super) fn load(&self, index: usize) -> u64 {
        self.words.words()[index].load(Ordering::Relaxed)
    }
}

/// The lowest set bit of `word`, which is the word `index`.
fn lowest(index: usize, word: u64) -> GranuleIndex {
    GranuleIndex(index as u64 * WORD + u64::from(word.trailing_zeros()))
}

/// An iterator over runs of set bits; see [`Bits::runs`].
pub struct Runs<'a> {
    bits: &'a Bits,
    within: GranuleRange,
    index: usize,
    // What is left of the word `index`.
    word: u64,
}

impl Iterator for Runs<'_> {
    type Item = GranuleRange;

    fn next(&mut self) -> Option<GranuleRange> {
        let last = last_word(self.within)?;
        while self.word == 0 {
            self.index = self.bits.words.next_word(self.index + 1, last)?;
            self.word = self.bits.load(self.index) & mask_in(self.index, self.within);
        }
        let start = lowest(self.index, self.word);
        // Adding its lowest bit to a word carries through the lowest run and clears it.
        let (carried, through) = self.word.overflowing_add(self.word & self.word.wrapping_neg());
        if !through {
            let end = lowest(self.index, carried & !self.word);
            self.word &= carried;
            return Some(GranuleRange { start, end });
        }
        // The run reaches the end of its word.
        self.word = 0;
        while self.index < last {
            self.index += 1;
            let word = self.bits.load(self.index) & mask_in(self.index, self.within);
            if word != u64::MAX {
                self.word = word & word.wrapping_add(1);
                let end = self.index as u64 * WORD + u64::from(word.trailing_ones());
                return Some(GranuleRange::new(start.0, end));
            }
        }
        Some(GranuleRange {
            start,
            end: self.within.end,
        })
    }
}
