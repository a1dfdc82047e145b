use proptest::prelude::*;

use super::*;
use crate::state::evidence::tests::some_evidence;
use crate::state::stamp;

fn any_header() -> impl Strategy<Value = Header> {
    let stamp = proptest::option::of((any::<u64>(), proptest::option::of(any::<(i64, u32)>())));
    let marks = proptest::collection::vec(any::<u64>(), 0..MAX_MARKS);
    (any::<[bool; 3]>(), 9..=62_u32, stamp, some_evidence(), marks).prop_map(
        |([clean, lazy, failure_noted], shift, stamp, evidence, marks)| {
            let mut header = Header::new(RegionSize::new(1 << shift).unwrap());
            header.clean = clean;
            header.policy = if lazy {
                BitmapPolicy::Lazy
            } else {
                BitmapPolicy::WriteThrough
            };
            header.failure_noted = failure_noted;
            header.stamp = stamp.map(|(size, modified)| match modified {
                Some((number, next)) if size % 3 == 0 => {
                    stamp::tests::of_disk(size, number.cast_unsigned(), next % 2 == 0)
                }
                modified => stamp::tests::some(size, modified),
            });
            header.tenure = header.tenure.filter(|_| clean);
            header.evidence = evidence;
            for mark in marks {
                header.marks.insert(MarkId(mark)).unwrap();
            }
            header
        },
    )
}

/// The slot after writing `new` over `old`.
fn over(old: &[u8], new: &[u8]) -> Vec<u8> {
    let mut slot = old.to_vec();
    slot.resize(SLOT, 0);
    slot[..new.len()].copy_from_slice(new);
    slot
}

fn valid(generation: u64, header: &Header) -> Slot {
    Slot::Valid {
        generation,
        header: Box::new(header.clone()),
    }
}

proptest! {
    #[test]
    fn a_header_survives_its_bytes(header in any_header(), generation in 1..=MAX_GENERATION) {
        let slot = over(&[], &header.encode(generation));
        prop_assert_eq!(Header::decode(&slot, generation % 2), valid(generation, &header));
    }

    /// Every subset of the pieces of a write: the old header, the new one, or torn, but never a mixture.
    #[test]
    fn a_torn_slot_is_seen(old in any_header(), new in any_header(), kept in any::<u8>()) {
        let before = over(&[], &old.encode(4));
        let write = new.encode(6);
        let mut slot = before.clone();
        for (index, piece) in write.chunks_exact(PIECE).enumerate() {
            if kept & (1 << index) != 0 {
                slot[index * PIECE..(index + 1) * PIECE].copy_from_slice(piece);
            }
        }
        let found = Header::decode(&slot, 0);
        prop_assert!(
            found == Slot::Torn || found == valid(4, &old) || found == valid(6, &new),
            "{found:?}"
        );
        // The header proper is one piece: without marks nothing tears.
        if old.marks.is_empty() && new.marks.is_empty() {
            prop_assert!(found != Slot::Torn);
        }
    }

    #[test]
    fn a_flipped_bit_is_damage(header in any_header(), bit in 0..8 * PIECE) {
        let mut slot = over(&[], &header.encode(7));
        slot[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(matches!(Header::decode(&slot, 1), Slot::Damaged(_)));
    }
}

#[test]
fn damage_is_told_in_words() {
    let header = Header::new(RegionSize::DEFAULT);
    let said = |change: &dyn Fn(&mut [u8]), reseal: bool| {
        let mut slot = over(&[], &header.encode(2));
        change(&mut slot);
        if reseal {
            let sum = checksum(&slot[..PIECE]);
            put(&mut slot, 8, &sum);
        }
        match Header::decode(&slot, 0) {
            Slot::Damaged(why) => why,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        said(&|slot| slot[0] = b'X', true),
        "it does not begin with QBMSTATE"
    );
    assert_eq!(
        said(&|slot| slot[50] = 1, false),
        "the checksum of piece 0 is wrong"
    );
    assert_eq!(
        said(&|slot| slot[12] = 9, true),
        "it has version 9, and this library knows 1"
    );
    assert_eq!(
        said(&|slot| slot[16] = 3, true),
        "its generation 3 belongs to the other slot"
    );
    assert_eq!(
        said(&|slot| slot[23] = 0x80, true),
        "its generation 9223372036854775810 is not possible"
    );
    assert_eq!(
        said(&|slot| slot[24] = 1, true),
        "piece 0 says that it is piece 1"
    );
    assert_eq!(said(&|slot| slot[32] = 16, true), "its flags 0x10 are not known");
    assert_eq!(
        said(&|slot| slot[37] = 2, true),
        "it has 512 marks, more than fit"
    );
    assert_eq!(
        said(&|slot| slot[40] = 1, true),
        "its region size 67108865 is not possible"
    );
    assert_eq!(
        said(&|slot| slot[48] = 5, true),
        "its stamp of the image is of the unknown kind 5"
    );
    assert_eq!(
        said(&|slot| slot[72] = 3, true),
        "its evidence is of the unknown kind 3"
    );
    assert_eq!(
        said(&|slot| slot[72] = 1, true),
        "its evidence has the impossible count 0"
    );
    assert_eq!(Header::decode(&[0; SLOT], 0), Slot::Empty);
    assert!(matches!(Header::decode(&[0; 100], 0), Slot::Damaged(_)));
}

#[test]
fn marks_are_of_a_bitmap_at_one_starting_point() {
    let mut marks = Marks::default();
    let nightly = MarkId::of("nightly", Some("e1"));
    marks.insert(nightly).unwrap();
    marks.insert(nightly).unwrap();
    assert!(marks.contains(nightly));
    for other in [
        MarkId::of("nightly", Some("e2")),
        MarkId::of("nightly", None),
        MarkId::of("nightlye1", None),
    ] {
        assert!(!marks.contains(other));
    }
    // The documented hash, so that others can compute it: FNV-1a of "a", then of a zero byte.
    assert_eq!(MarkId::of("a", None), MarkId(0x089b_e207_b544_f1e4));
    marks.retain(|id| id != nightly);
    assert!(marks.is_empty());
}

#[test]
fn marks_that_do_not_fit_are_refused() {
    let mut marks = Marks::default();
    (0..MAX_MARKS as u64).for_each(|mark| marks.insert(MarkId(mark)).unwrap());
    let error = marks.insert(MarkId(u64::MAX)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::NotSupported);
    assert!(error.message().starts_with("420 bitmaps are inconsistent"));
    marks.insert(MarkId(7)).unwrap();
}
