//! Words of bits, with coarser words of bits above them that tell where the set ones are.
//!
//! A *group* is [`GROUP`] words of a level: 512 bytes, 4096 bits. One bit of the level above stands for a group and is
//! set where the group *may* have a set bit. Over the bits of a bitmap stand two such levels, so that one zero word
//! skips 32 KiB of the first and 128 MiB of the second: a terabyte of clean 64 KiB granules is one clear bit on top.
//!
//! Invariant (S): whoever sees a set bit also sees the bits above it set. Hence
//!
//! - setting goes from the top down, and the bit itself is set last, with release: an acquiring load that sees it
//!   sees all that was set above before;
//! - a thread that finds a bit set already does nothing above it: it acquired the bit, so what its setter did above
//!   happened before, for this thread and for all that learn of the bit through it;
//! - clearing bits of a level leaves the levels above alone while threads may share it, so that no interleaving of
//!   setters and clearers can lose a summary bit. What is left above is a "maybe" too many. Only exclusive access
//!   ([`Above::lower`]) takes it away.

use crate::mutation::{self, Fault};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::zeroed_words;

/// Bits in a word.
pub(super) const WORD: u64 = u64::BITS as u64;
/// Words that one bit of the level above stands for.
pub(super) const GROUP: usize = 64;
/// Words that are looked at together: as many as a cache line has. The explorer has no time for the loads of words that
/// do not matter any more.
const CHUNK: usize = if cfg!(all(test, shuttle)) { 1 } else { 8 };

const WORD_BITS: usize = u64::BITS as usize;

/// What stands above a level: a coarser level, or nothing.
pub(super) trait Above: Sized {
    /// A clear level for `groups` groups; `None` where there is no memory.
    fn new(groups: usize) -> Option<Self>;

    /// Notes that `group` may get a set bit.
    fn raise(&self, group: usize);

    /// Notes that `group` has no set bit.
    fn lower(&mut self, group: usize);

    /// The first group of `from ..= last` that may have a set bit.
    fn next(&self, from: usize, last: usize) -> Option<usize>;

    /// The memory it takes, in bytes.
    fn bytes(&self) -> usize;
}

/// Nothing: every group may have a set bit.
pub(super) struct Top;

impl Above for Top {
    fn new(_groups: usize) -> Option<Self> {
        Some(Self)
    }

    fn raise(&self, _group: usize) {}

    fn lower(&mut self, _group: usize) {}

    fn next(&self, from: usize, last: usize) -> Option<usize> {
        (from <= last).then_some(from)
    }

    fn bytes(&self) -> usize {
        0
    }
}

/// One level of bits.
pub(super) struct Level<A> {
    words: Box<[AtomicU64]>,
    pub(super) above: A,
}

impl<A: Above> Level<A> {
    /// `words` clear words. They take no memory before they are written to.
    pub(super) fn with_words(words: usize) -> Option<Self> {
        Some(Self {
            words: zeroed_words(words)?,
            above: A::new(words.div_ceil(GROUP))?,
        })
    }

    /// The words, for reading.
    #[inline]
    pub(super) fn words(&self) -> &[AtomicU64] {
        &self.words
    }

    /// Sets the bits of `mask` in the word `index`; tells how many were clear. Writes to nothing if none was.
    pub(super) fn set_in_word(&self, index: usize, mask: u64) -> u64 {
        let word = &self.words[index];
        if word.load(Ordering::Acquire) & mask == mask {
            return 0;
        }
        if !mutation::on(Fault::WordBeforeSummary) {
            self.above.raise(index / GROUP);
        }
        let old = word.fetch_or(mask, Ordering::AcqRel);
        if mutation::on(Fault::WordBeforeSummary) {
            self.above.raise(index / GROUP);
        }
        u64::from((mask & !old).count_ones())
    }

    /// Clears the bits of `mask` in the word `index`; tells how many were set. Writes to nothing if none was.
    pub(super) fn clear_in_word(&self, index: usize, mask: u64) -> u64 {
        let word = &self.words[index];
        if word.load(Ordering::Relaxed) & mask == 0 {
            return 0;
        }
        let old = word.fetch_and(!mask, Ordering::AcqRel);
        u64::from((mask & old).count_ones())
    }

    /// The words of `group`, to be changed at will, after which [`Self::settle`] must be called for it.
    pub(super) fn group_mut(&mut self, group: usize) -> &mut [AtomicU64] {
        let first = group * GROUP;
        let end = (first + GROUP).min(self.words.len());
        &mut self.words[first..end]
    }

    /// Makes the levels above say exactly whether `group` has a set bit.
    pub(super) fn settle(&mut self, group: usize) {
        if self.group_mut(group).iter_mut().all(|word| *word.get_mut() == 0) {
            self.above.lower(group);
        } else {
            self.above.raise(group);
        }
    }

    /// The first group of `from ..= last` that may have a set bit.
    #[inline]
    pub(super) fn next_group(&self, from: usize, last: usize) -> Option<usize> {
        self.above.next(from, last)
    }

    /// The first word of `from ..= last` that has a set bit.
    ///
    /// Looks through the rest of the group that `from` lies in before it asks above, for a caller that goes on from a
    /// word with set bits mostly finds the next one there.
    // The loads need not acquire: a caller that knows of a set bit has acquired it, and with it all that stands above
    // (S); so these loads see it.
    #[inline]
    pub(super) fn next_word(&self, from: usize, last: usize) -> Option<usize> {
        if from > last || from.is_multiple_of(GROUP) {
            return self.next_word_above(from, last);
        }
        let end = (from | (GROUP - 1)).min(last) + 1;
        self.first_nonzero(from, end)
            .or_else(|| self.next_word_above(end, last))
    }

    /// [`next_word`](Self::next_word) from the first word of a group on.
    #[inline(never)]
    fn next_word_above(&self, mut at: usize, last: usize) -> Option<usize> {
        while at <= last {
            let group = self.above.next(at / GROUP, last / GROUP)?;
            let first = group * GROUP;
            let end = (first + GROUP).min(last + 1);
            let found = self.first_nonzero(first, end);
            if found.is_some() {
                return found;
            }
            at = end;
        }
        None
    }

    /// The first word of `first .. end` that has a set bit.
    // Takes no branch on a single word: where set bits lie scattered, each would be mispredicted every other time.
    #[inline]
    fn first_nonzero(&self, first: usize, end: usize) -> Option<usize> {
        let mut chunks = self.words[first..end].chunks_exact(CHUNK);
        let mut at = first;
        for chunk in &mut chunks {
            let mut nonzero = 0;
            for (index, word) in chunk.iter().enumerate() {
                nonzero |= u32::from(word.load(Ordering::Relaxed) != 0) << index;
            }
            if nonzero != 0 {
                return Some(at + nonzero.trailing_zeros() as usize);
            }
            at += CHUNK;
        }
        chunks
            .remainder()
            .iter()
            .position(|word| word.load(Ordering::Relaxed) != 0)
            .map(|found| at + found)
    }

    /// Which words of `group` are `wanted`, given their numbers and values: bit `i` for its word `i`.
    ///
    /// Takes no branch on a word, where nobody could predict it: what follows then goes from set bit to set bit.
    #[inline]
    pub(super) fn select(&self, group: usize, wanted: impl Fn(usize, u64) -> bool) -> u64 {
        let first = group * GROUP;
        let end = (first + GROUP).min(self.words.len());
        let mut selected = 0;
        for (index, word) in self.words[first..end].iter().enumerate() {
            selected |= u64::from(wanted(first + index, word.load(Ordering::Relaxed))) << index;
        }
        selected
    }

    /// The memory it takes with what stands above, in bytes.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.words) + self.above.bytes()
    }
}

impl<A: Above> Above for Level<A> {
    fn new(groups: usize) -> Option<Self> {
        Self::with_words(groups.div_ceil(WORD_BITS))
    }

    fn raise(&self, group: usize) {
        self.set_in_word(group / WORD_BITS, 1 << (group % WORD_BITS));
    }

    fn lower(&mut self, group: usize) {
        let index = group / WORD_BITS;
        let word = self.words[index].get_mut();
        if *word & (1 << (group % WORD_BITS)) != 0 {
            *word &= !(1 << (group % WORD_BITS));
            if *word == 0 {
                self.settle(index / GROUP);
            }
        }
    }

    fn next(&self, from: usize, last: usize) -> Option<usize> {
        if from > last {
            return None;
        }
        let mut index = from / WORD_BITS;
        let mut word = self.words[index].load(Ordering::Relaxed) & (u64::MAX << (from % WORD_BITS));
        while word == 0 {
            index = self.next_word(index + 1, last / WORD_BITS)?;
            word = self.words[index].load(Ordering::Relaxed);
        }
        let found = index * WORD_BITS + word.trailing_zeros() as usize;
        (found <= last).then_some(found)
    }

    fn bytes(&self) -> usize {
        Level::bytes(self)
    }
}
