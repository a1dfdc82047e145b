//! Finding set and clear bits, and runs of them.
//!
//! Invariant: a bit whose setting happened before a scan began is found by it (see the levels' invariant S).

use super::bits::{Bits, last_word, mask_in, word_of};
use super::levels::{GROUP, WORD};
use crate::sync::atomic::Ordering;
use crate::units::{GranuleIndex, GranuleRange};

impl Bits {
    /// The first set bit in `within`.
    pub fn next_set(&self, within: GranuleRange) -> Option<GranuleIndex> {
        let within = self.clip(within);
        let last = last_word(within)?;
        let (index, word) = self.next_nonzero(within, last)?;
        Some(lowest(index, word))
    }

    /// The first word with set bits of `within`, and these; `last` is the last word of `within`, all of which exists.
    #[inline]
    fn next_nonzero(&self, within: GranuleRange, last: usize) -> Option<(usize, u64)> {
        let mut index = word_of(within.start);
        let mut word = self.load(index) & mask_in(index, within);
        while word == 0 {
            index = self.words.next_word(index + 1, last)?;
            word = self.load(index) & mask_in(index, within);
        }
        Some((index, word))
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
        let last = last_word(within)?;
        let (index, word) = self.next_nonzero(within, last)?;
        let start = lowest(index, word);
        let longest = start.0.saturating_add(longest).min(within.end.0);
        let end = if let Some(end) = end_of_run(index, word) {
            end.0
        } else {
            let rest = GranuleRange::new((index as u64 + 1) * WORD, longest);
            self.next_clear(rest).map_or(longest, |clear| clear.0)
        };
        Some(GranuleRange::new(start.0, end.min(longest)))
    }

    /// The runs of set bits in `within`, in order, each as long as it can be.
    ///
    /// Bits that change meanwhile may or may not be seen.
    pub fn runs(&self, within: GranuleRange) -> Runs<'_> {
        let within = self.clip(within);
        let mut runs = Runs {
            bits: self,
            within,
            index: 0,
            word: 0,
            others: 0,
        };
        if !within.is_empty() {
            runs.enter(within.start);
        }
        runs
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

/// The end of the lowest run of set bits in `word`, which is the word `index`; `None` where it may go on in the next.
fn end_of_run(index: usize, word: u64) -> Option<GranuleIndex> {
    // Adding its lowest bit to a word carries through the lowest run.
    let (carried, through) = word.overflowing_add(word & word.wrapping_neg());
    (!through).then(|| lowest(index, carried & !word))
}

/// An iterator over runs of set bits; see [`Bits::runs`].
pub struct Runs<'a> {
    bits: &'a Bits,
    within: GranuleRange,
    // The word where the search goes on, and what is left of it.
    index: usize,
    word: u64,
    // The words behind it, in its group, that have set bits.
    others: u64,
}

impl Runs<'_> {
    /// Goes on from `start`, which must be in `within`.
    fn enter(&mut self, start: GranuleIndex) {
        let index = word_of(start);
        let rest = GranuleRange {
            start,
            end: self.within.end,
        };
        self.index = index;
        self.word = self.bits.load(index) & mask_in(index, rest);
        let behind = (u64::MAX << (index % GROUP)) << 1;
        self.others = self.bits.words.select(index / GROUP, |_, word| word != 0) & behind;
    }

    /// Goes on to the next group with set bits.
    #[inline(never)]
    fn next_group(&mut self) -> Option<()> {
        let last = last_word(self.within)?;
        let mut group = self.index / GROUP;
        while self.others == 0 {
            group = self.bits.words.next_group(group + 1, last / GROUP)?;
            self.others = self.bits.words.select(group, |_, word| word != 0);
            self.index = group * GROUP;
        }
        Some(())
    }

    /// Goes on to the next word with set bits.
    #[inline]
    fn next_word(&mut self) -> Option<()> {
        while self.word == 0 {
            if self.others == 0 {
                self.next_group()?;
            }
            self.index = self.index / GROUP * GROUP + self.others.trailing_zeros() as usize;
            self.others &= self.others - 1;
            self.word = self.bits.load(self.index);
            if self.index as u64 * WORD >= self.within.end.0.saturating_sub(WORD) {
                self.word &= mask_in(self.index, self.within);
                if self.word == 0 {
                    return None;
                }
            }
        }
        Some(())
    }
}

impl Iterator for Runs<'_> {
    type Item = GranuleRange;

    #[inline]
    fn next(&mut self) -> Option<GranuleRange> {
        self.next_word()?;
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
        let rest = GranuleRange::new((self.index as u64 + 1) * WORD, self.within.end.0);
        let end = self.bits.next_clear(rest).unwrap_or(self.within.end);
        if end.0 > rest.start.0 {
            if end < self.within.end {
                self.enter(end);
            } else {
                self.within.start = end;
                self.others = 0;
            }
        }
        Some(GranuleRange { start, end })
    }
}
