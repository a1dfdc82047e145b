//! Putting the bits of one bitmap into another.
//!
//! Invariant: no dirty byte gets lost, whatever the granularities (D1); bytes that share a granule with one may become
//! dirty with it.

use super::bits::{Bits, last_word, mask_in};
use super::levels::GROUP;
use crate::sync::atomic::Ordering;
use crate::units::{Granularity, GranuleRange};

impl Bits {
    /// Sets the bits that are set in `other`, as far as they exist here; tells how many were clear.
    ///
    /// Bits that are being set in `other` meanwhile may or may not come along.
    pub fn merge_from(&self, other: &Self) -> u64 {
        let common = self.clip(other.all());
        let Some(last) = last_word(common) else { return 0 };
        let mut newly = 0;
        let mut at = 0;
        while let Some(group) = other.words.next_group(at, last / GROUP) {
            // Acquires, because a word that is skipped counts as set by this call.
            let mut news = other.words.select(group, |index, word| {
                let own = self.words.words().get(index);
                own.is_some_and(|own| word & !own.load(Ordering::Acquire) != 0)
            });
            while news != 0 {
                let index = group * GROUP + news.trailing_zeros() as usize;
                news &= news - 1;
                newly += self
                    .words
                    .set_in_word(index, other.load(index) & mask_in(index, common));
            }
            at = group + 1;
        }
        self.add(newly);
        newly
    }

    /// Sets the bits of every granule that shares a byte with a set one of `other`; tells how many were clear.
    ///
    /// `length` is that of the disk, in bytes: what lies behind it does not count.
    pub fn merge_scaled(
        &self,
        other: &Self,
        other_granularity: Granularity,
        own_granularity: Granularity,
        length: u64,
    ) -> u64 {
        if other_granularity == own_granularity {
            return self.merge_from(other);
        }
        let within = GranuleRange::new(0, other_granularity.granules_in(length));
        other
            .runs(within)
            .map(|run| self.set(own_granularity.touched_by(other_granularity.bytes_of(run, length))))
            .sum()
    }
}
