//! What must hold for any bytes at all; the property test and the fuzz target run this same function.

use super::{Found, LENGTH, MAP};
use crate::state::evidence::NoEvidence;
use crate::state::header::{SLOT, reseal};
use crate::state::map::{MAP_PIECES, PIECE, RegionSet};
use crate::state::verdict::Verdict;
use crate::units::MAX_LENGTH;

/// Reads `bytes` as they are, and once more with checksums put right, so that what lies behind them is reached.
pub(in crate::state) fn survives_rewriting(bytes: &[u8]) {
    check(bytes);
    let mut sealed = bytes.to_vec();
    sealed.resize(LENGTH, 0);
    for (slot, bytes) in (0..).zip(sealed[..MAP].chunks_exact_mut(SLOT)) {
        reseal(bytes, slot);
    }
    for (piece, bytes) in sealed[MAP..].chunks_exact_mut(PIECE).enumerate() {
        // Every second piece stays damaged.
        if piece % 2 == 0 {
            let number = u8::try_from(piece).unwrap_or(u8::MAX);
            bytes[4..8].copy_from_slice(&[number, 0, 0, 0]);
            let sum = crc32c::crc32c(&bytes[4..]);
            bytes[..4].copy_from_slice(&sum.to_le_bytes());
        }
    }
    check(&sealed);
}

/// What is valid says the same when it is written again, and widens to ranges of the disk, in order.
fn check(bytes: &[u8]) {
    let Ok(found) = Found::parse(bytes) else {
        return;
    };
    let mut again = vec![0; MAP];
    let at = super::slot_of(found.generation);
    let header = found.header.encode(found.generation);
    again[at..at + header.len()].copy_from_slice(&header);
    (0..MAP_PIECES).for_each(|piece| again.extend(found.active.encode(piece)));
    let read = Found::parse(&again);
    assert_eq!(
        read,
        Ok(Found {
            damaged_pieces: 0,
            highest: found.generation,
            ..found.clone()
        })
    );

    let nothing = Err(NoEvidence::because("the fuzzer has none"));
    for length in [0, 1, 1 << 30, MAX_LENGTH] {
        match found.verdict(&nothing, length) {
            Verdict::Clean => assert!(found.header.clean),
            Verdict::Exact => unreachable!("exact without evidence"),
            Verdict::Widen { ranges, .. } => {
                assert!(
                    ranges
                        .iter()
                        .all(|range| !range.is_empty() && range.end() <= length)
                );
                assert!(ranges.windows(2).all(|two| two[0].end() <= two[1].start()));
                assert!(length == 0 || found.active != RegionSet::new() || ranges.len() <= 1);
            }
        }
    }
}
