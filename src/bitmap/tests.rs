//! The bits beside a plain vector of booleans, at every boundary that the words and summaries have.

mod edges;
mod memory;
mod random;
mod serial;
mod threads;

use super::Bits;
use crate::units::{GranuleIndex, GranuleRange};

/// A word, a summary bit's group, a page of bits, and the bits under one word of the first summary.
const WORD: u64 = 64;
const GROUP: u64 = 64 * WORD;
const PAGE: u64 = 8 * 4096;
const SUMMARY_WORD: u64 = 64 * GROUP;

fn range(start: u64, end: u64) -> GranuleRange {
    GranuleRange::new(start, end)
}

fn at(index: u64) -> GranuleIndex {
    GranuleIndex(index)
}

/// Bits, and what they must be.
struct Pair {
    bits: Bits,
    model: Vec<bool>,
}

impl Pair {
    fn new(len: u64) -> Self {
        Self {
            bits: Bits::new(len).unwrap(),
            model: vec![false; usize::try_from(len).unwrap()],
        }
    }

    fn len(&self) -> u64 {
        self.model.len() as u64
    }

    fn model_range(&self, range: GranuleRange) -> std::ops::Range<usize> {
        let start = range.start.0.min(self.len());
        let end = range.end.0.min(self.len()).max(start);
        usize::try_from(start).unwrap()..usize::try_from(end).unwrap()
    }

    fn fill(&mut self, range: GranuleRange, value: bool) -> u64 {
        let range = self.model_range(range);
        let part = &mut self.model[range];
        let changed = part.iter().filter(|bit| **bit != value).count();
        part.fill(value);
        changed as u64
    }

    fn set(&mut self, start: u64, end: u64) {
        let newly = self.bits.set(range(start, end));
        assert_eq!(newly, self.fill(range(start, end), true), "set {start}..{end}");
    }

    fn clear(&mut self, start: u64, end: u64) {
        let newly = self.bits.clear(range(start, end));
        assert_eq!(newly, self.fill(range(start, end), false), "clear {start}..{end}");
    }

    fn clear_all(&mut self) {
        self.bits.clear_all();
        self.model.fill(false);
    }

    fn resize(&mut self, len: u64) {
        self.bits.resize(len).unwrap();
        self.model.resize(usize::try_from(len).unwrap(), false);
    }

    fn count(&self) -> u64 {
        self.model.iter().filter(|bit| **bit).count() as u64
    }

    /// The first bit of `value` in `within`, by the model.
    fn find(&self, within: GranuleRange, value: bool) -> Option<GranuleIndex> {
        let within = self.model_range(within);
        let start = within.start;
        let found = self.model[within].iter().position(|bit| *bit == value)?;
        Some(at((start + found) as u64))
    }

    /// The runs in `within`, by the model.
    fn find_runs(&self, within: GranuleRange) -> Vec<GranuleRange> {
        let end = within.end.0.min(self.len());
        let mut runs = Vec::new();
        let mut from = within.start.0;
        while let Some(start) = self.find(range(from, end), true) {
            let stop = self.find(range(start.0, end), false).map_or(end, |clear| clear.0);
            runs.push(range(start.0, stop));
            from = stop;
        }
        runs
    }

    /// Checks the count, every bit, and the runs from `start` on.
    fn check(&self, start: u64) {
        assert_eq!(self.bits.len(), self.len());
        assert_eq!(self.bits.count(), self.count());
        for (index, bit) in (0..).zip(&self.model) {
            assert_eq!(self.bits.get(at(index)), *bit, "bit {index}");
        }
        let within = range(start, self.len());
        let runs: Vec<_> = self.bits.runs(within).collect();
        assert_eq!(runs, self.find_runs(within), "runs from {start}");
    }

    /// Checks everything that looks within `within`.
    fn check_within(&self, within: GranuleRange) {
        let part = &self.model[self.model_range(within)];
        let exists = within.end.0 <= self.len();
        let all = within.is_empty() || (exists && part.iter().all(|bit| *bit));
        assert_eq!(self.bits.all_set(within), all, "all_set {within:?}");
        let any = part.iter().any(|bit| *bit);
        assert_eq!(self.bits.any_set(within), any, "any_set {within:?}");
        assert_eq!(
            self.bits.next_set(within),
            self.find(within, true),
            "next_set {within:?}"
        );
        assert_eq!(
            self.bits.next_clear(within),
            self.find(within, false),
            "next_clear {within:?}"
        );
        let runs = self.find_runs(within);
        for longest in [0, 1, 2, 63, 64, 65, 5000, u64::MAX] {
            let first = runs.first().filter(|_| longest > 0).map(|run| {
                let end = run.end.0.min(run.start.0.saturating_add(longest));
                range(run.start.0, end)
            });
            assert_eq!(
                self.bits.next_run(within, longest),
                first,
                "next_run {within:?} {longest}"
            );
        }
        assert_eq!(
            self.bits.runs(within).collect::<Vec<_>>(),
            runs,
            "runs {within:?}"
        );
    }
}
