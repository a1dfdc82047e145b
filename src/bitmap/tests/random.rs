//! Random operations beside the model, at the sizes where mistakes live.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Set(u64, u64),
    Clear(u64, u64),
    ClearAll,
    Tidy,
    Resize(u64),
    RoundTrip(usize),
    Load(u64, Vec<u8>),
    MergeLoad(u64, Vec<u8>),
    Merge(Vec<(u64, u64)>),
    Look(u64, u64),
}

fn size() -> impl Strategy<Value = u64> {
    let edges = [
        1,
        63,
        64,
        65,
        127,
        128,
        129,
        GROUP - 1,
        GROUP,
        GROUP + 1,
        PAGE - 1,
        PAGE,
        PAGE + 1,
    ];
    prop_oneof![prop::sample::select(edges.to_vec()), 1u64..5000,]
}

/// A start anywhere, a length that is short, word-like or long.
fn stretch() -> impl Strategy<Value = (u64, u64)> {
    let len = prop_oneof![0u64..4, 60u64..70, 0u64..6000];
    let start = prop_oneof![0u64..6000, 0..PAGE + 10, (0u64..600).prop_map(|word| word * 64)];
    (start, len).prop_map(|(start, len)| (start, start + len))
}

fn part() -> impl Strategy<Value = (u64, Vec<u8>)> {
    let byte = prop_oneof![Just(0u8), Just(0xff), any::<u8>()];
    (
        0u64..520,
        prop_oneof![prop::collection::vec(byte, 0..1100), Just(vec![0; 800])],
    )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => stretch().prop_map(|(start, end)| Op::Set(start, end)),
        6 => stretch().prop_map(|(start, end)| Op::Clear(start, end)),
        1 => Just(Op::ClearAll),
        1 => Just(Op::Tidy),
        3 => size().prop_map(Op::Resize),
        1 => (1usize..700).prop_map(Op::RoundTrip),
        2 => part().prop_map(|(word, bytes)| Op::Load(word, bytes)),
        2 => part().prop_map(|(word, bytes)| Op::MergeLoad(word, bytes)),
        2 => prop::collection::vec(stretch(), 0..5).prop_map(Op::Merge),
        6 => stretch().prop_map(|(start, end)| Op::Look(start, end)),
    ]
}

/// The part, cut to whole words that exist.
fn fit(bits: &Bits, word: u64, bytes: &[u8]) -> (u64, usize) {
    let offset = (word * 8).min(bits.serialized_len());
    let room = usize::try_from(bits.serialized_len() - offset).unwrap();
    (offset, bytes.len().min(room) / 8 * 8)
}

fn apply(pair: &mut Pair, op: &Op) {
    match op {
        Op::Set(start, end) => pair.set(*start, *end),
        Op::Clear(start, end) => pair.clear(*start, *end),
        Op::ClearAll => pair.clear_all(),
        Op::Tidy => pair.bits.tidy(),
        Op::Resize(len) => pair.resize(*len),
        Op::RoundTrip(words) => {
            let mut copy = Bits::new(pair.len()).unwrap();
            let mut bytes = vec![0; usize::try_from(copy.serialized_len()).unwrap()];
            let part = words * 8;
            for (index, chunk) in bytes.chunks_mut(part).enumerate() {
                pair.bits.serialize((index * part) as u64, chunk).unwrap();
                copy.deserialize((index * part) as u64, chunk).unwrap();
            }
            pair.bits = copy;
        }
        Op::Load(word, bytes) => {
            let (offset, len) = fit(&pair.bits, *word, bytes);
            pair.bits.deserialize(offset, &bytes[..len]).unwrap();
            for (index, byte) in (offset..).zip(&bytes[..len]) {
                for bit in 0..8 {
                    pair.fill(GranuleRange::one(at(index * 8 + bit)), byte & (1 << bit) != 0);
                }
            }
        }
        Op::MergeLoad(word, bytes) => {
            let (offset, len) = fit(&pair.bits, *word, bytes);
            let newly = pair.bits.merge_serialized(offset, &bytes[..len]).unwrap();
            let mut expected = 0;
            for (index, byte) in (offset..).zip(&bytes[..len]) {
                for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
                    expected += pair.fill(GranuleRange::one(at(index * 8 + bit)), true);
                }
            }
            assert_eq!(newly, expected);
        }
        Op::Merge(stretches) => {
            let other = Bits::new(pair.len()).unwrap();
            let mut expected = 0;
            for (start, end) in stretches {
                other.set(range(*start, *end));
                expected += pair.fill(range(*start, *end), true);
            }
            assert_eq!(pair.bits.merge_from(&other), expected);
        }
        Op::Look(start, end) => pair.check_within(range(*start, *end)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn random_operations_match_the_model(len in size(), ops in prop::collection::vec(op(), 1..40)) {
        let mut pair = Pair::new(len);
        for op in &ops {
            apply(&mut pair, op);
            prop_assert_eq!(pair.bits.count(), pair.count(), "after {:?}", op);
        }
        pair.check(0);
        pair.check_within(range(0, pair.len()));
    }
}
