//! Large bitmaps: what they reserve, what they touch, and that both summaries are crossed rightly.

use std::collections::BTreeSet;

use super::*;

/// The bits under one word of the upper summary, and under its first bit.
const STRETCH: u64 = 64 * SUMMARY_WORD;

/// The memory that is really there under the words of `bits`, in bytes.
///
/// Of the mapping that they lie in, for other tests of this process take memory at the same time.
fn resident(bits: &Bits) -> u64 {
    let start = bits.words.words().as_ptr() as u64;
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in smaps.lines() {
        let bounds = line.split(' ').next().and_then(|bounds| bounds.split_once('-'));
        let hex = |text| u64::from_str_radix(text, 16).ok();
        if let Some((Some(first), Some(end))) = bounds.map(|(first, end)| (hex(first), hex(end))) {
            inside = (first..end).contains(&start);
        } else if let Some(rest) = line.strip_prefix("Rss:").filter(|_| inside) {
            let kilobytes: u64 = rest.trim().trim_end_matches(" kB").parse().unwrap();
            return kilobytes * 1024;
        }
    }
    panic!("no mapping holds the words");
}

#[test]
fn bits_around_the_upper_summary() {
    let len = 3 * STRETCH + 17;
    let mut bits = Bits::new(len).unwrap();
    let mut model = BTreeSet::new();
    for edge in [
        SUMMARY_WORD,
        STRETCH - SUMMARY_WORD,
        STRETCH,
        2 * STRETCH,
        3 * STRETCH,
        len,
    ] {
        for index in [edge.saturating_sub(1), edge, edge + 5]
            .into_iter()
            .filter(|index| *index < len)
        {
            assert_eq!(
                bits.set(GranuleRange::one(at(index))),
                u64::from(model.insert(index))
            );
        }
    }
    let set = |bits: &Bits| -> Vec<u64> {
        bits.runs(bits.all())
            .flat_map(|run| run.start.0..run.end.0)
            .collect()
    };
    let expected = |model: &BTreeSet<u64>| -> Vec<u64> { model.iter().copied().collect() };
    assert_eq!(set(&bits), expected(&model));
    for from in [
        0,
        1,
        SUMMARY_WORD,
        SUMMARY_WORD + 6,
        STRETCH - 1,
        STRETCH + 6,
        2 * STRETCH + 6,
        len - 1,
        len,
    ] {
        let found = bits.next_set(range(from, len)).map(|index| index.0);
        assert_eq!(found, model.range(from..).next().copied(), "from {from}");
    }
    bits.clear(range(STRETCH, 2 * STRETCH + 1));
    model.retain(|index| *index < STRETCH || *index > 2 * STRETCH);
    assert_eq!(set(&bits), expected(&model));
    bits.tidy();
    assert_eq!(set(&bits), expected(&model));
    bits.resize(2 * STRETCH + 6).unwrap();
    model.retain(|index| *index < 2 * STRETCH + 6);
    assert_eq!(set(&bits), expected(&model));
    assert_eq!(bits.count(), model.len() as u64);
    bits.resize(1 << 30).unwrap();
    assert_eq!(set(&bits), expected(&model));
    bits.clear_all();
    assert!(set(&bits).is_empty());
    assert_eq!(bits.count(), 0);
}

#[test]
fn a_tebibyte_and_a_pebibyte_of_64_kib_granules() {
    for len in [1u64 << 24, 1 << 34] {
        let mut bits = Bits::new(len).unwrap();
        let plain = len / 8;
        assert!(bits.memory() >= plain && bits.memory() <= plain + plain / 10);
        assert_eq!(bits.serialized_len(), plain);

        let few: Vec<u64> = (0..64).map(|i| i * (len / 64) + i).chain([len - 1]).collect();
        for index in &few {
            bits.set(GranuleRange::one(at(*index)));
        }
        let found: Vec<u64> = bits.runs(bits.all()).map(|run| run.start.0).collect();
        assert_eq!(found, few);
        assert_eq!(bits.next_data(0).map(crate::ByteRange::len), Some(4096));
        assert_eq!(bits.next_clear(range(len - 1, len)), None);

        bits.clear_all();
        assert_eq!(bits.count(), 0);
        assert_eq!(bits.next_set(bits.all()), None);
        // A huge page may come with every bit. What must not happen is that all of it is touched: 2 GiB.
        let resident = resident(&bits);
        assert!(resident <= 400 << 20, "{len} bits: {resident} bytes are resident");
    }
}

#[test]
fn a_sparse_load_takes_no_memory_for_its_zeros() {
    let mut bits = Bits::new(1 << 31).unwrap();
    let zeros = vec![0; 1 << 20];
    for offset in (0..bits.serialized_len()).step_by(zeros.len()) {
        bits.deserialize(offset, &zeros).unwrap();
    }
    bits.deserialize_zeros(crate::ByteRange::between(0, bits.serialized_len()))
        .unwrap();
    let resident = resident(&bits);
    assert!(resident <= 64 << 20, "{resident} bytes are resident");
    assert_eq!(bits.count(), 0);
}
