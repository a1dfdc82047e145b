//! The bits of one bitmap in memory.
//!
//! May call `units`, `error` and the levels below. Invariant: [`Bits::count`] is the number of set bits whenever no
//! call is changing them, and bits from [`Bits::len`] on are clear.

use std::fmt;

use crossbeam_utils::CachePadded;

use super::levels::{GROUP, Level, Top, WORD};
use crate::error::{Error, ErrorCode, Result};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::units::{GranuleIndex, GranuleRange};

/// One bit a granule, which any number of threads set, clear and read at once without locks.
///
/// Setting and clearing through a shared reference is safe in any mixture: no set bit is lost, none is missed by a
/// scan that begins after the call that set it (or after a look that found it set), and the count stays exact. What
/// must not overlap with others, [`clear_all`](Self::clear_all), [`resize`](Self::resize), replacing bits by serialized
/// ones, takes `&mut self`.
///
/// Memory is reserved at once (`len / 8` bytes and a 4000th more for the summaries) but taken only where bits are set.
///
/// Granules at or behind `len` do not exist: they read as clear, and setting or clearing them does nothing.
pub struct Bits {
    pub(super) words: Level<Level<Level<Top>>>,
    len: u64,
    // A line of its own: a thread that sets a new bit must not take `words` and `len` out of the caches of those that
    // only look.
    count: CachePadded<AtomicU64>,
}

impl Bits {
    /// `len` clear bits. Fails with `NoMemory`.
    pub fn new(len: u64) -> Result<Self> {
        let words = usize::try_from(len.div_ceil(WORD))
            .ok()
            .and_then(Level::with_words)
            .ok_or_else(|| {
                Error::new(
                    ErrorCode::NoMemory,
                    format!(
                        "cannot get {} bytes of memory for a bitmap of {len} bits",
                        len.div_ceil(8)
                    ),
                )
            })?;
        Ok(Self {
            words,
            len,
            count: CachePadded::new(AtomicU64::new(0)),
        })
    }

    /// How many bits there are, set or clear.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no bit, as for a disk of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All granules that have a bit.
    pub fn all(&self) -> GranuleRange {
        GranuleRange::new(0, self.len)
    }

    /// How many bits are set. Costs one load.
    ///
    /// While other threads change bits, it may be off by what they are just changing.
    pub fn count(&self) -> u64 {
        let count = self.count.load(Ordering::Relaxed);
        // A clearer may subtract a bit before its setter has added it.
        if count > self.len { 0 } else { count }
    }

    /// The memory reserved, in bytes.
    pub fn memory(&self) -> u64 {
        (size_of::<Self>() + self.words.bytes()) as u64
    }

    /// Whether the bit of `index` is set.
    #[inline]
    pub fn get(&self, index: GranuleIndex) -> bool {
        usize::try_from(index.0 / WORD)
            .ok()
            .and_then(|word| self.words.words().get(word))
            .is_some_and(|word| word.load(Ordering::Acquire) & (1 << (index.0 % WORD)) != 0)
    }

    /// Whether every bit of `range` is set. One load where the range lies within 64 granules that share a word, as
    /// that of most guest writes does.
    #[inline]
    pub fn all_set(&self, range: GranuleRange) -> bool {
        match in_one_word(range) {
            Some((index, mask)) => usize::try_from(index)
                .ok()
                .and_then(|index| self.words.words().get(index))
                .is_some_and(|word| word.load(Ordering::Acquire) & mask == mask),
            None => self.all_set_long(range),
        }
    }

    #[cold]
    fn all_set_long(&self, range: GranuleRange) -> bool {
        if range.is_empty() {
            return true;
        }
        range.end.0 <= self.len
            && masks(range).all(|(index, mask)| {
                // Acquires, as in `all_set`: whoever sees the bits must see what their setters did before.
                self.words.words()[index].load(Ordering::Acquire) & mask == mask
            })
    }

    /// Whether any bit of `range` is set.
    pub fn any_set(&self, range: GranuleRange) -> bool {
        self.next_set(range).is_some()
    }

    /// Sets every bit of `range`; tells how many were clear.
    ///
    /// A bit that is set already is not written to, so that threads that write to the same granules again and again
    /// share its cache line in peace.
    pub fn set(&self, range: GranuleRange) -> u64 {
        if in_one_word(range).is_some() && self.all_set(range) {
            return 0;
        }
        let mut newly = 0;
        for (index, mask) in masks(self.clip(range)) {
            newly += self.words.set_in_word(index, mask);
        }
        self.add(newly);
        newly
    }

    /// Clears every bit of `range`; tells how many were set.
    ///
    /// The summary keeps its "maybe" for what became empty, so that setters need not be kept out; a scan then looks
    /// into those words. [`tidy`](Self::tidy) ends that, when somebody has the bits to themselves.
    pub fn clear(&self, range: GranuleRange) -> u64 {
        let range = self.clip(range);
        let Some(last) = last_word(range) else { return 0 };
        let mut at = word_of(range.start);
        let mut cleared = 0;
        while let Some(index) = self.words.next_word(at, last) {
            cleared += self.words.clear_in_word(index, mask_in(index, range));
            at = index + 1;
        }
        if cleared != 0 {
            self.count.fetch_sub(cleared, Ordering::Relaxed);
        }
        cleared
    }

    /// Clears every bit, in a time that goes with how many stretches have set ones, not with the length.
    pub fn clear_all(&mut self) {
        self.change_groups(|words| {
            for word in words {
                *word.get_mut() = 0;
            }
        });
        *self.count.get_mut() = 0;
    }

    /// Makes scans skip again what [`clear`](Self::clear) left empty.
    pub fn tidy(&mut self) {
        self.change_groups(|_| ());
    }

    /// Gives the bitmap `len` bits. What stays keeps its value, new bits are clear. Fails with `NoMemory`, and then
    /// leaves all as it was.
    pub fn resize(&mut self, len: u64) -> Result<()> {
        if len.div_ceil(WORD) != self.len.div_ceil(WORD) {
            let mut other = Self::new(len)?;
            let mut count = 0;
            let keep = GranuleRange::new(0, len.min(self.len));
            if let Some(last) = last_word(keep) {
                let mut at = 0;
                while let Some(group) = self.words.next_group(at, last / GROUP) {
                    let first = group * GROUP;
                    let from = self.words.group_mut(group);
                    for (index, (to, from)) in other.words.group_mut(group).iter_mut().zip(from).enumerate() {
                        let word = *from.get_mut() & mask_in(first + index, keep);
                        *to.get_mut() = word;
                        count += u64::from(word.count_ones());
                    }
                    other.words.settle(group);
                    at = group + 1;
                }
            }
            *other.count.get_mut() = count;
            *self = other;
        } else if len < self.len {
            self.clear(GranuleRange::new(len, self.len));
        }
        self.len = len;
        Ok(())
    }

    /// Lets `change` loose on the words of each group that may have a set bit, and makes the summary exact.
    fn change_groups(&mut self, mut change: impl FnMut(&mut [AtomicU64])) {
        let Some(last) = last_word(self.all()) else { return };
        let mut at = 0;
        while let Some(group) = self.words.next_group(at, last / GROUP) {
            change(self.words.group_mut(group));
            self.words.settle(group);
            at = group + 1;
        }
    }

    /// Counts bits that were newly set.
    pub(super) fn add(&self, newly: u64) {
        if newly != 0 {
            self.count.fetch_add(newly, Ordering::Relaxed);
        }
    }

    /// Counts bits that exclusive access set and cleared.
    pub(super) fn recount(&mut self, set: u64, cleared: u64) {
        let count = self.count.get_mut();
        *count = count.wrapping_add(set).wrapping_sub(cleared);
    }

    /// The part of `range` that exists.
    pub(super) fn clip(&self, range: GranuleRange) -> GranuleRange {
        range.intersect(self.all())
    }
}

impl fmt::Debug for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bits")
            .field("len", &self.len)
            .field("count", &self.count())
            .finish_non_exhaustive()
    }
}

/// The word that the bit of `index` lies in, which must exist.
#[allow(
    clippy::cast_possible_truncation,
    reason = "the words are in memory, so their number fits"
)]
pub(super) const fn word_of(index: GranuleIndex) -> usize {
    (index.0 / WORD) as usize
}

/// The last word that has bits of `range`, which must exist; `None` where it is empty.
pub(super) fn last_word(range: GranuleRange) -> Option<usize> {
    (!range.is_empty()).then(|| word_of(GranuleIndex(range.end.0 - 1)))
}

/// The bits of `range` in the word `index`.
pub(super) fn mask_in(index: usize, range: GranuleRange) -> u64 {
    let base = index as u64 * WORD;
    ones(range.end.0.saturating_sub(base)) & !ones(range.start.0.saturating_sub(base))
}

/// The number of the word that holds all of `range`, and its bits there; `None` where no one word does, or where the
/// range is empty.
#[inline]
const fn in_one_word(range: GranuleRange) -> Option<(u64, u64)> {
    let bit = range.start.0 % WORD;
    let len = range.end.0.wrapping_sub(range.start.0);
    // Of an empty range, the left side wraps around.
    if len.wrapping_sub(1) < WORD - bit {
        Some((range.start.0 / WORD, (u64::MAX >> (WORD - len)) << bit))
    } else {
        None
    }
}

/// The words that have bits of `range`, which must exist, with its bits in them.
fn masks(range: GranuleRange) -> impl Iterator<Item = (usize, u64)> {
    let words = match last_word(range) {
        Some(last) => word_of(range.start)..last + 1,
        None => 0..0,
    };
    words.map(move |index| (index, mask_in(index, range)))
}

/// The lowest `count` bits.
fn ones(count: u64) -> u64 {
    if count < WORD { (1 << count) - 1 } else { u64::MAX }
}
