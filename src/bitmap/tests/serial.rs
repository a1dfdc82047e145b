//! The byte form: layout, parts, zeros, ones, tails, pages.

use super::*;
use crate::ErrorCode;
use crate::units::ByteRange;

fn bytes_of(bits: &Bits) -> Vec<u8> {
    let mut bytes = vec![0xaa; usize::try_from(bits.serialized_len()).unwrap()];
    bits.serialize(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn bit_i_is_bit_i_mod_8_of_byte_i_div_8() {
    for len in [1, 7, 8, 63, 64, 65, 200] {
        for index in 0..len {
            let bits = Bits::new(len).unwrap();
            bits.set(GranuleRange::one(at(index)));
            let mut expected = vec![0; usize::try_from(len.div_ceil(64) * 8).unwrap()];
            expected[usize::try_from(index / 8).unwrap()] = 1 << (index % 8);
            assert_eq!(bytes_of(&bits), expected);
        }
    }
}

#[test]
fn parts_of_any_size_make_the_whole() {
    for len in [1, 64, 65, GROUP - 1, GROUP, GROUP + 1, PAGE + 100] {
        let mut pair = Pair::new(len);
        for start in (0..len).step_by(37) {
            pair.set(start, start + start % 11);
        }
        let whole = bytes_of(&pair.bits);
        for part in [8, 16, 24, 504, 512, 520, 4096, 1 << 20] {
            let mut bytes = Vec::new();
            let mut loaded = Bits::new(len).unwrap();
            loaded.set(range(0, len / 2));
            let merged = Bits::new(len).unwrap();
            while bytes.len() < whole.len() {
                let offset = bytes.len();
                let mut buffer = vec![0; part.min(whole.len() - offset)];
                pair.bits.serialize(offset as u64, &mut buffer).unwrap();
                loaded.deserialize(offset as u64, &buffer).unwrap();
                merged.merge_serialized(offset as u64, &buffer).unwrap();
                bytes.extend(buffer);
            }
            assert_eq!(bytes, whole);
            for bits in [loaded, merged] {
                let model = pair.model.clone();
                Pair { bits, model }.check(0);
            }
        }
    }
}

#[test]
fn a_part_replaces_only_itself() {
    let len = 2 * GROUP + 100;
    let total = len.div_ceil(64) * 8;
    for (start, end) in [
        (0, 8),
        (8, 16),
        (504, 520),
        (512, 1024),
        (0, total),
        (total - 8, total),
        (64, 64),
    ] {
        for byte in [0, 0xff, 0x81] {
            for before in [false, true] {
                let mut pair = Pair::new(len);
                if before {
                    pair.set(0, len);
                }
                let part = vec![byte; usize::try_from(end - start).unwrap()];
                pair.bits.deserialize(start, &part).unwrap();
                for index in start * 8..(end * 8).min(len) {
                    pair.fill(GranuleRange::one(at(index)), byte & (1 << (index % 8)) != 0);
                }
                pair.check(0);
                pair.bits
                    .deserialize_zeros(ByteRange::between(start, end))
                    .unwrap();
                pair.fill(range(start * 8, end * 8), false);
                pair.check(0);
                pair.bits
                    .deserialize_ones(ByteRange::between(start, end))
                    .unwrap();
                pair.fill(range(start * 8, end * 8), true);
                pair.check(0);
            }
        }
    }
}

#[test]
fn bits_behind_the_end_are_ignored_and_written_as_zeros() {
    for len in [1, 7, 63, 64, 65, GROUP - 1, GROUP + 1] {
        let mut bits = Bits::new(len).unwrap();
        let ones = vec![0xff; usize::try_from(bits.serialized_len()).unwrap()];
        bits.deserialize(0, &ones).unwrap();
        let merged = Bits::new(len).unwrap();
        assert_eq!(merged.merge_serialized(0, &ones).unwrap(), len);
        for mut bits in [bits, merged] {
            assert_eq!(bits.count(), len);
            let written: u32 = bytes_of(&bits).iter().map(|byte| byte.count_ones()).sum();
            assert_eq!(u64::from(written), len);
            bits.resize(len + 200).unwrap();
            assert_eq!(bits.count(), len);
            assert_eq!(bits.next_set(range(len, len + 200)), None);
        }
    }
}

#[test]
fn crooked_parts_are_refused() {
    let mut bits = Bits::new(1000).unwrap();
    assert_eq!(bits.serialized_len(), 128);
    let mut buffer = vec![0xff; 1024];
    for (offset, len, code) in [
        (1, 8, ErrorCode::InvalidArgument),
        (8, 7, ErrorCode::InvalidArgument),
        (0, 136, ErrorCode::OutOfRange),
        (128, 8, ErrorCode::OutOfRange),
        (136, 0, ErrorCode::OutOfRange),
        (u64::MAX - 7, 8, ErrorCode::OutOfRange),
    ] {
        let part = &mut buffer[..len];
        assert_eq!(bits.serialize(offset, part).unwrap_err().code(), code);
        assert_eq!(bits.deserialize(offset, part).unwrap_err().code(), code);
        assert_eq!(bits.merge_serialized(offset, part).unwrap_err().code(), code);
        if let Some(range) = ByteRange::new(offset, len as u64) {
            assert_eq!(bits.deserialize_zeros(range).unwrap_err().code(), code);
            assert_eq!(bits.deserialize_ones(range).unwrap_err().code(), code);
        }
    }
    assert_eq!(bits.count(), 0);
    bits.serialize(128, &mut []).unwrap();
    let error = bits.serialize(128, &mut buffer[..8]).unwrap_err();
    assert_eq!(
        error.message(),
        "part of a bitmap, 8 bytes at offset 128: past its end at 128"
    );
}

#[test]
fn the_bytes_of_granules() {
    let bytes = |start, end| {
        let bytes = Bits::serialized_range(range(start, end));
        (bytes.start(), bytes.end())
    };
    assert_eq!(bytes(0, 1), (0, 8));
    assert_eq!(bytes(63, 64), (0, 8));
    assert_eq!(bytes(63, 65), (0, 16));
    assert_eq!(bytes(64, 64), (8, 8));
    assert_eq!(bytes(200, 1000), (24, 128));
}

#[test]
fn data_is_found_page_by_page() {
    let mut bits = Bits::new(8 * PAGE + 100).unwrap();
    let stretches = |bits: &Bits| {
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(range) = bits.next_data(at) {
            found.push((range.start(), range.end()));
            at = range.end();
        }
        found
    };
    assert!(stretches(&bits).is_empty());
    bits.set(range(PAGE - 1, PAGE + 1));
    bits.set(range(5 * PAGE - 1, 5 * PAGE));
    assert_eq!(stretches(&bits), [(0, 8192), (4 * 4096, 5 * 4096)]);
    bits.set(range(8 * PAGE + 99, 8 * PAGE + 100));
    assert_eq!(
        stretches(&bits),
        [(0, 8192), (4 * 4096, 5 * 4096), (8 * 4096, 8 * 4096 + 16)]
    );
    assert_eq!(
        bits.next_data(4095).map(ByteRange::start),
        Some(0),
        "from the page that holds the offset"
    );
    assert_eq!(bits.next_data(8 * 4096 + 8), bits.next_data(8 * 4096));
    assert_eq!(
        bits.next_data(8 * 4096 + 16),
        None,
        "its last page is a short one"
    );
    assert_eq!(bits.next_data(9 * 4096), None);
    bits.clear_all();
    assert!(stretches(&bits).is_empty());
}
