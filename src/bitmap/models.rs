//! The bits under the schedule explorer: every interleaving of a few threads, step by step.
//!
//! Run by `RUSTFLAGS="--cfg shuttle" cargo test --release --lib shuttle_`.

mod pieces;

use super::Bits;
use crate::mutation::{self, Fault};
use crate::sync::{Arc, thread};
use crate::units::{GranuleIndex, GranuleRange};

/// Bits under one summary bit, and under one word of the summary.
const GROUP: u64 = 4096;
const SUMMARY_WORD: u64 = 64 * GROUP;

fn one(index: u64) -> GranuleRange {
    GranuleRange::one(GranuleIndex(index))
}

/// Each of `threads` sets its bits; then all are found, and counted once.
fn setters(len: u64, threads: &'static [&'static [u64]]) {
    let bits = Arc::new(Bits::new(len).unwrap());
    let workers: Vec<_> = threads
        .iter()
        .map(|indexes| {
            let bits = Arc::clone(&bits);
            thread::spawn(move || {
                let mut newly = 0;
                for index in *indexes {
                    newly += bits.set(one(*index));
                    // What this thread has set, or found set, a scan finds.
                    assert_eq!(bits.next_set(one(*index)), Some(GranuleIndex(*index)));
                    assert!(bits.next_set(bits.all()).is_some_and(|found| found.0 <= *index));
                }
                newly
            })
        })
        .collect();
    let newly: u64 = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
    let mut expected: Vec<u64> = threads.iter().copied().flatten().copied().collect();
    expected.sort_unstable();
    expected.dedup();
    let found: Vec<u64> = bits
        .runs(bits.all())
        .flat_map(|run| run.start.0..run.end.0)
        .collect();
    assert_eq!(found, expected);
    assert_eq!(bits.count(), expected.len() as u64);
    assert_eq!(newly, expected.len() as u64, "every bit is new to one thread");
}

/// What a scan finds first from the last word of the first group on: few steps, but through the summary.
fn found(bits: &Bits) -> Option<GranuleIndex> {
    bits.next_set(GranuleRange::new(GROUP - 64, bits.len()))
}

/// One thread sets `index`; the others, once a look says that it is set, must find it by a scan from afar.
fn scanners(len: u64, index: u64, scanners: usize) {
    let bits = Arc::new(Bits::new(len).unwrap());
    let mut workers = Vec::new();
    for _ in 0..scanners {
        let bits = Arc::clone(&bits);
        workers.push(thread::spawn(move || {
            if bits.all_set(one(index)) {
                assert_eq!(found(&bits), Some(GranuleIndex(index)), "a set bit is missed");
            }
        }));
    }
    bits.set(one(index));
    for worker in workers {
        worker.join().unwrap();
    }
    assert_eq!(found(&bits), Some(GranuleIndex(index)));
}

/// Two threads set one bit; whichever returns first, a scan of its own finds it.
fn two_setters_scan(len: u64, index: u64) {
    let bits = Arc::new(Bits::new(len).unwrap());
    let other = Arc::clone(&bits);
    let set_and_scan = move |bits: &Bits| {
        bits.set(one(index));
        assert_eq!(found(bits), Some(GranuleIndex(index)), "a set bit is missed");
    };
    let worker = thread::spawn(move || set_and_scan(&other));
    set_and_scan(&bits);
    worker.join().unwrap();
    assert_eq!(bits.count(), 1);
}

#[test]
fn shuttle_setters_of_the_same_bit() {
    shuttle::check_dfs(|| setters(64, &[&[5], &[5]]), None);
}

#[test]
fn shuttle_setters_of_bits_in_one_word() {
    shuttle::check_dfs(|| setters(64, &[&[5], &[6]]), None);
}

#[test]
fn shuttle_setters_of_words_under_one_summary_bit() {
    shuttle::check_dfs(|| setters(192, &[&[1], &[190]]), None);
}

#[test]
fn shuttle_setters_of_many_places() {
    let model = || {
        setters(
            2 * SUMMARY_WORD,
            &[
                &[1, GROUP, SUMMARY_WORD + 3],
                &[GROUP, 64, SUMMARY_WORD + 3],
                &[SUMMARY_WORD + 3, 2, GROUP + 1],
            ],
        );
    };
    shuttle::check_random(model, 20_000);
    shuttle::check_pct(model, 20_000, 3);
}

#[test]
fn shuttle_a_set_bit_is_found() {
    shuttle::check_dfs(|| scanners(SUMMARY_WORD, GROUP + 64, 1), None);
    shuttle::check_random(|| scanners(2 * SUMMARY_WORD, SUMMARY_WORD + GROUP, 3), 20_000);
    shuttle::check_random(|| two_setters_scan(SUMMARY_WORD, GROUP + 64), 20_000);
}

#[test]
fn shuttle_clearing_loses_no_neighbour() {
    let model = || {
        let bits = Arc::new(Bits::new(2 * GROUP).unwrap());
        bits.set(GranuleRange::new(GROUP, GROUP + 2));
        let worker = {
            let bits = Arc::clone(&bits);
            thread::spawn(move || bits.clear(GranuleRange::new(GROUP, GROUP + 2)))
        };
        bits.set(one(GROUP + 2));
        let newly = bits.set(one(GROUP));
        assert_eq!(bits.next_set(one(GROUP + 2)), Some(GranuleIndex(GROUP + 2)));
        let cleared = worker.join().unwrap();
        assert_eq!(bits.count(), 3 + newly - cleared);
        assert_eq!(
            bits.runs(bits.all()).map(GranuleRange::len).sum::<u64>(),
            bits.count()
        );
    };
    shuttle::check_dfs(model, Some(200_000));
}

#[test]
fn shuttle_merging_meets_setters() {
    let model = || {
        let bits = Arc::new(Bits::new(2 * GROUP).unwrap());
        let merger = {
            let bits = Arc::clone(&bits);
            thread::spawn(move || {
                let other = Bits::new(2 * GROUP).unwrap();
                other.set(GranuleRange::new(GROUP - 1, GROUP + 1));
                bits.merge_from(&other)
            })
        };
        let newly = bits.set(one(GROUP)) + bits.set(one(GROUP + 1));
        assert_eq!(newly + merger.join().unwrap(), 3);
        assert_eq!(bits.count(), 3);
        assert_eq!(
            bits.next_run(bits.all(), 100),
            Some(GranuleRange::new(GROUP - 1, GROUP + 2))
        );
    };
    shuttle::check_random(model, 20_000);
}

#[test]
fn shuttle_finds_a_word_set_before_its_summary_by_a_scanner() {
    mutation::must_be_caught(Fault::WordBeforeSummary, "a set bit is missed", || {
        shuttle::check_dfs(|| scanners(SUMMARY_WORD, GROUP + 64, 1), None);
    });
}

#[test]
fn shuttle_finds_a_word_set_before_its_summary_by_a_second_setter() {
    mutation::must_be_caught(Fault::WordBeforeSummary, "a set bit is missed", || {
        shuttle::check_dfs(|| two_setters_scan(SUMMARY_WORD, GROUP + 64), None);
    });
}
