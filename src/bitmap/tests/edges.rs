//! Hand-picked ranges around every boundary.

use super::*;
use crate::units::{ByteRange, Granularity};

/// Around every boundary of a bitmap of `len` bits, and past its end.
fn edges(len: u64) -> Vec<u64> {
    let mut edges: Vec<u64> = [0, WORD, 2 * WORD, GROUP, GROUP + WORD, 2 * GROUP, PAGE, len]
        .into_iter()
        .flat_map(|edge| [edge.saturating_sub(1), edge, edge + 1])
        .filter(|edge| *edge <= len + 1)
        .collect();
    edges.sort_unstable();
    edges.dedup();
    edges
}

#[test]
fn no_bits_at_all() {
    let mut pair = Pair::new(0);
    pair.check(0);
    pair.set(0, 10);
    pair.clear(0, 10);
    pair.clear_all();
    pair.bits.tidy();
    pair.check_within(range(0, 0));
    pair.check_within(range(0, 1));
    assert!(pair.bits.is_empty());
    pair.resize(0);
    pair.resize(1);
    pair.set(0, 1);
    pair.check(0);
    pair.resize(0);
    pair.check(0);
}

#[test]
fn set_and_clear_between_all_edges() {
    let len = 2 * GROUP + 23;
    for start in edges(len) {
        for end in edges(len).into_iter().filter(|end| *end > start) {
            let mut pair = Pair::new(len);
            pair.set(start, end);
            pair.check(start.saturating_sub(1));
            pair.check_within(range(start, end));
            let mut pair = Pair::new(len);
            pair.set(0, len);
            pair.clear(start, end);
            pair.check(0);
            pair.check_within(range(start.saturating_sub(1), end + 1));
        }
    }
}

#[test]
fn overlapping_sets_and_clears_one_after_another() {
    let mut pair = Pair::new(3 * GROUP);
    for (set, start, end) in [
        (true, WORD - 1, 2 * WORD + 1),
        (false, 2 * WORD - 1, 4 * WORD + 1),
        (true, 0, 3 * WORD),
        (false, 8 * WORD - 1, GROUP + 8 * WORD),
        (true, GROUP, GROUP + WORD),
        (false, GROUP - WORD - 1, GROUP + 7 * WORD + 1),
        (true, GROUP, 3 * GROUP),
        (true, 3 * GROUP - 1, 5 * GROUP),
        (false, 3 * GROUP - 1, 5 * GROUP),
        (true, 0, 3 * GROUP),
        (true, WORD, WORD + 1),
        (false, 0, WORD),
        (false, 0, GROUP),
        (true, GROUP / 2, 2 * GROUP + GROUP / 2),
    ] {
        if set {
            pair.set(start, end);
        } else {
            pair.clear(start, end);
        }
        pair.check(0);
        pair.bits.tidy();
        pair.check(WORD - 1);
    }
    pair.clear_all();
    pair.check(0);
    pair.set(GROUP - 1, GROUP + 1);
    pair.check(0);
}

#[test]
fn look_within_all_edges() {
    for step in [1, 2, 3, 63, 64, 65, GROUP - 1, GROUP, GROUP + 1] {
        let len = 2 * GROUP + 23;
        let mut pair = Pair::new(len);
        for start in (0..len).step_by(usize::try_from(2 * step).unwrap()) {
            pair.set(start, start + step);
        }
        for start in edges(len) {
            for end in edges(len) {
                pair.check_within(range(start, end));
            }
        }
        pair.check_within(range(len, u64::MAX));
        pair.check_within(range(0, u64::MAX));
        pair.check_within(range(u64::MAX - 1, u64::MAX));
        pair.check_within(range(u64::MAX, u64::MAX));
        assert!(!pair.bits.get(at(u64::MAX)));
    }
}

#[test]
fn resize_by_every_step() {
    let sizes = [
        1,
        63,
        64,
        65,
        1000,
        GROUP - 1,
        GROUP,
        GROUP + 1,
        2 * GROUP,
        PAGE - 1,
        PAGE,
        PAGE + 1,
    ];
    for old in sizes {
        for step in [0, 1, 2, 63, 64, 65, GROUP - 1, GROUP, GROUP + 1, PAGE, PAGE + 77] {
            for new in [old + step, old.saturating_sub(step)] {
                let mut pair = Pair::new(old);
                // The first and last bits, those around the new end, and a few between.
                for bit in [0, new.saturating_sub(1), new, new + 1, old / 2, old / 3, old - 1] {
                    pair.set(bit, bit + 1);
                }
                pair.resize(new);
                pair.check(0);
                // What was cut off must not come back.
                pair.resize(old + PAGE);
                pair.check(0);
                pair.set(0, old + PAGE);
                pair.resize(new);
                pair.check(0);
            }
        }
    }
}

#[test]
fn a_failed_resize_changes_nothing() {
    let mut pair = Pair::new(100);
    pair.set(3, 70);
    let error = pair.bits.resize(u64::MAX).unwrap_err();
    assert_eq!(error.code(), crate::ErrorCode::NoMemory);
    pair.check(0);
    assert_eq!(Bits::new(1 << 62).unwrap_err().errno(), libc::ENOMEM);
}

#[test]
fn tidy_makes_the_summary_exact() {
    let mut bits = Bits::new(4 * SUMMARY_WORD).unwrap();
    bits.set(bits.all());
    bits.clear(bits.all());
    assert!(
        bits.words.next_group(0, 200).is_some(),
        "a shared clear leaves a maybe"
    );
    bits.set(range(SUMMARY_WORD + 5, SUMMARY_WORD + 6));
    bits.tidy();
    assert_eq!(bits.words.next_group(0, 255), Some(64));
    assert_eq!(bits.words.next_group(65, 255), None);
    bits.clear_all();
    assert_eq!(bits.words.next_group(0, 255), None);
}

#[test]
fn merge_common_part() {
    for (own, other) in [
        (100, 100),
        (GROUP + 3, 70),
        (70, GROUP + 3),
        (0, 10),
        (10, 0),
        (PAGE, PAGE + 1),
    ] {
        let mut from = Pair::new(other);
        for start in (0..other).step_by(7) {
            from.set(start, start + 3);
        }
        let mut to = Pair::new(own);
        to.set(5, 40);
        let newly = to.bits.merge_from(&from.bits);
        let mut expected = 0;
        for run in from.find_runs(range(0, other)) {
            expected += to.fill(run, true);
        }
        assert_eq!(newly, expected);
        to.check(0);
    }
}

#[test]
fn merge_between_granularities_marks_every_dirty_byte() {
    let granularity = |shift: u32| Granularity::new(512 << shift).unwrap();
    for length in [
        1,
        511,
        512,
        513,
        64 * 512,
        1_000_001,
        512 * (GROUP + 5),
        512 * GROUP * 3 - 1,
    ] {
        for (other, own) in [
            (0, 0),
            (0, 1),
            (1, 0),
            (0, 7),
            (7, 0),
            (3, 9),
            (9, 3),
            (0, 22),
            (22, 0),
        ] {
            let (other_granularity, own_granularity) = (granularity(other), granularity(own));
            let mut from = Pair::new(other_granularity.granules_in(length));
            for (start, run) in (0..from.len()).step_by(29).zip([1, 2, 3, 17].into_iter().cycle()) {
                from.set(start, start + run);
            }
            from.set(from.len() - 1, from.len());
            let mut to = Pair::new(own_granularity.granules_in(length));
            let newly = to
                .bits
                .merge_scaled(&from.bits, other_granularity, own_granularity, length);
            // The model goes byte range by byte range of 512, the finest granule there is.
            for sector in 0..length.div_ceil(512) {
                let byte = sector * 512;
                if from.bits.get(other_granularity.granule_of(byte)) {
                    to.fill(GranuleRange::one(own_granularity.granule_of(byte)), true);
                }
            }
            assert_eq!(newly, to.count(), "{length} bytes, {other} into {own}");
            to.check(0);
        }
    }
}

#[test]
fn a_merge_ignores_what_lies_behind_the_length() {
    let fine = Granularity::new(512).unwrap();
    let coarse = Granularity::new(4096).unwrap();
    let from = Bits::new(100).unwrap();
    from.set(from.all());
    let to = Bits::new(1000).unwrap();
    assert_eq!(to.merge_scaled(&from, coarse, fine, 10_000), 20);
    let touched = fine.touched_by(ByteRange::between(0, 10_000));
    assert_eq!(to.runs(to.all()).collect::<Vec<_>>(), [touched]);
}
