//! What a state file that was found asks of whoever opens the disk.
//!
//! Calls nothing. Invariant (D1): the bitmap files count as exact only after a clean close, or with evidence, under
//! write-through, and with no failure noted.

use super::evidence::{Evidence, NoEvidence};
use super::file::Found;
use super::stamp::Stamp;
use crate::bitmap::BitmapPolicy;
use crate::units::ByteRange;

/// How much of a disk's past the bitmap files show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It was closed cleanly: the files are exact, and the stamp of the image counts.
    Clean,
    /// It was not closed, but nothing was lost: the files are exact. They must be made durable before anything relies on
    /// them for longer, as they may be in the page cache alone.
    Exact,
    /// These bytes may have changed without a bit: they are added to every recording and frozen bitmap.
    Widen {
        /// In order, none touching another.
        ranges: Vec<ByteRange>,
        /// Why the files are not exact.
        why: String,
    },
}

impl Found {
    /// What to do about a disk of `length` bytes, with the evidence of now.
    pub(crate) fn verdict(&self, now: &Result<Evidence, NoEvidence>, length: u64) -> Verdict {
        let header = self.header();
        if header.clean {
            return Verdict::Clean;
        }
        let Some(why) = self.why_not_exact(now) else {
            return Verdict::Exact;
        };
        let region = header.region;
        let mut ranges: Vec<_> = self
            .active()
            .runs()
            .map(|run| region.bytes_of(run, length))
            .filter(|range| !range.is_empty())
            .collect();
        // A disk that was made longer than the map reaches: nobody was asked about the rest.
        let reached = region.bytes_of(0..super::map::MAX_REGIONS, length).end();
        if reached < length {
            ranges.push(ByteRange::between(reached, length));
        }
        Verdict::Widen { ranges, why }
    }

    /// How long the image was when the disk was closed, where it is longer now: `length` bytes.
    pub(crate) fn outgrown_from(&self, length: u64) -> Option<u64> {
        let header = self.header();
        let counts = header.clean || header.untouched;
        let then = header.stamp.as_ref().filter(|_| counts)?.size();
        (then < length).then_some(then)
    }

    /// Whether a disk that was not closed may have been made longer by others, to `length` bytes: that is not what it was at the
    /// last close.
    pub(crate) fn may_be_outgrown(&self, length: u64) -> bool {
        let header = self.header();
        !header.clean && !header.untouched && header.stamp.as_ref().map(Stamp::size) != Some(length)
    }

    fn why_not_exact(&self, now: &Result<Evidence, NoEvidence>) -> Option<String> {
        let header = self.header();
        if header.failure_noted {
            return Some("a bitmap file could not be written".to_owned());
        }
        if header.policy == BitmapPolicy::Lazy {
            return Some("the bitmaps were saved lazily".to_owned());
        }
        match (&header.evidence, now) {
            (None, _) => Some("there was no evidence to keep when the disk was opened".to_owned()),
            (Some(_), Err(why)) => Some(why.to_string()),
            (Some(then), Ok(now)) => then.difference(now),
        }
    }
}

#[cfg(test)]
mod tests;
