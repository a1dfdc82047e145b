//! (e) The engine's protections, each taken out: the crash tests must notice, or they guard nothing.
//!
//! Those that take several threads to show are left to the models under shuttle, and those of allocation bits to
//! `overlay::tests::crash`; `docs/durability.md` has the whole table.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::failing;
use super::kind::Kind;
use super::power::{Depth, look_at, random};
use super::steps::{Step, write};
use crate::mutation::{Fault, with};

/// Which of the tests notices.
#[derive(Clone, Copy)]
enum By {
    /// [`super::power`]: power cuts and kills in a life of this kind, with these words.
    Power(Kind, &'static str),
    /// The same in these few steps, where life goes on after each crash: what a recovery has relied on goes in the next one.
    Onward(Kind, &'static [Step], &'static str),
    /// [`super::failing`]: a call that fails in a life of this kind, with these words.
    Failing(Kind, &'static str),
    /// The same where there is no room.
    Full(Kind, &'static str),
}

const WRITING: [(Fault, By); 19] = [
    (Fault::ExcusedUnmarked, By::Power(Kind::EXCUSED, "D1")),
    (Fault::BegunSilently, By::Power(Kind::RAW, "D1")),
    (Fault::PolicyUntold, By::Power(Kind::LAZY, "D1")),
    (Fault::IntentUnsynced, By::Power(Kind::RAW, "D1")),
    (Fault::ClearedUnsettled, By::Power(Kind::RAW, "D1")),
    (Fault::StartUnflushed, By::Power(Kind::RAW, "A1, A2")),
    (Fault::StoppedUnsettled, By::Power(Kind::RAW, "D1")),
    (Fault::AddedUnsynced, By::Power(Kind::PATIENT, "D1")),
    (Fault::NamesUnsynced, By::Power(Kind::RAW, "M1")),
    (Fault::RenameUnsynced, By::Power(Kind::RAW, "M1")),
    (Fault::GrownFirst, By::Power(Kind::RAW, "D1")),
    (Fault::RegrownClean, By::Power(Kind::RAW, "D1")),
    (Fault::RegrownClean, By::Power(Kind::STATELESS, "killed: D1")),
    (Fault::BackingUnsynced, By::Power(Kind::OVERLAY, "A1, A2")),
    (Fault::BelowUnsynced, By::Power(Kind::OVERLAY, "A1, A2")),
    (Fault::RebasedUnflushed, By::Power(Kind::OVERLAY, "A1, A2")),
    (Fault::RebasedClean, By::Power(Kind::OVERLAY, "D1")),
    (Fault::SnapshotUnflushed, By::Power(Kind::OVERLAY, "A1, A2")),
    (Fault::NewUnsynced, By::Power(Kind::OVERLAY, "M1")),
];

/// The second crash takes back what the first has left in the page cache alone: a length, or a name.
const CUT: &[Step] = &[
    RECORDING,
    write(20_000, 3000),
    Step::Flush,
    Step::Truncate(13_000),
];
const RENAMED: &[Step] = &[RECORDING, write(20_000, 3000), Step::Flush, Step::Clear("a")];
const RECORDING: Step = Step::Add {
    name: "a",
    granularity: 1024,
    persistent: true,
    recording: true,
};

const SET: &[Step] = &[
    RECORDING,
    Step::Disable("a"),
    Step::Set {
        name: "a",
        at: 10_000,
        len: 1,
    },
];

const CLOSING_AND_RECOVERY: [(Fault, By); 7] = [
    (Fault::CleanFirst, By::Power(Kind::LAZY, "D1")),
    (Fault::EvidenceFirst, By::Power(Kind::RAW, "D1")),
    (Fault::NotRewritten, By::Power(Kind::RAW, "D1")),
    (Fault::FoundNamesUnsynced, By::Onward(Kind::RAW, RENAMED, "M1")),
    (
        Fault::FoundNamesUnsynced,
        By::Onward(Kind::STATELESS, RENAMED, "M1"),
    ),
    (Fault::StoppedUnsynced, By::Onward(Kind::RAW, SET, "D1")),
    (Fault::FoundLengthUnsynced, By::Onward(Kind::RAW, CUT, "M1")),
];

const SHADOW: [(Fault, By); 5] = [
    (Fault::ShadowLeftOut, By::Power(Kind::OVERLAY, "killed: A1, A2")),
    (
        Fault::ShadowBeforeGranule,
        By::Power(Kind::OVERLAY, "killed: A1, A2"),
    ),
    (Fault::ShadowWithoutEvidence, By::Power(Kind::OVERLAY, "A1, A2")),
    (Fault::ShadowKept, By::Power(Kind::OVERLAY, "killed: A1, A2")),
    (Fault::ShadowBeforeImage, By::Power(Kind::OVERLAY, "A1, A2")),
];

const NESTED: [(Fault, By); 1] = [(Fault::ImageBegunFirst, By::Power(Kind::NESTED, "is inconsistent"))];

const FAILING_CALLS: [(Fault, By); 6] = [
    (Fault::UnsureForgotten, By::Failing(Kind::RAW, "M1")),
    (Fault::FailedSyncForgotten, By::Failing(Kind::RAW, "A2")),
    (Fault::BitBeforePiece, By::Failing(Kind::RAW, "D1")),
    (Fault::BitBeforePiece, By::Failing(Kind::STATELESS, "D1")),
    (Fault::FailedUnshown, By::Full(Kind::OVERLAY, "D1")),
    (Fault::OwedForgotten, By::Full(Kind::OVERLAY, "killed: A1, A2")),
];

/// What the tests say of a disk with `fault`.
fn verdict(fault: Fault, by: By) -> Result<u64, String> {
    let depth = Depth {
        states: 12,
        onward: 5,
    };
    let tried = with(fault, || {
        catch_unwind(AssertUnwindSafe(|| match by {
            By::Failing(kind, _) => failing::every_call(kind),
            By::Onward(kind, steps, _) => look_at(kind, steps, Depth { states: 4, onward: 1 }),
            By::Full(kind, _) => failing::without_room(kind),
            By::Power(kind, _) => {
                let by_hand = look_at(kind, &kind.script(), depth)?;
                (0..4).try_fold(by_hand, |all, seed| Ok(all + random(kind, seed, 40, depth)?))
            }
        }))
    });
    tried.unwrap_or_else(|_| Err("it panicked".to_owned()))
}

fn all_are_missed(table: &[(Fault, By)]) {
    let mut unseen = Vec::new();
    for (fault, by) in table.iter().copied() {
        let (By::Power(_, words) | By::Onward(_, _, words) | By::Failing(_, words) | By::Full(_, words)) = by;
        match verdict(fault, by) {
            Err(what) if what.contains(words) => {
                println!("{fault:?}: {}", what.lines().next().unwrap_or_default());
            }
            Err(what) => unseen.push(format!("{fault:?} shows otherwise: {what}")),
            Ok(states) => unseen.push(format!("{fault:?} is not seen in {states} states")),
        }
    }
    assert!(unseen.is_empty(), "{unseen:#?}");
}

#[test]
fn every_protection_of_changes_is_missed() {
    all_are_missed(&WRITING);
}

#[test]
fn every_protection_of_a_close_and_a_recovery_is_missed() {
    all_are_missed(&CLOSING_AND_RECOVERY);
}

#[test]
fn every_protection_of_the_shadow_is_missed() {
    all_are_missed(&SHADOW);
}

#[test]
fn every_protection_of_disks_in_disks_is_missed() {
    all_are_missed(&NESTED);
}

#[test]
fn every_protection_from_failing_calls_is_missed() {
    all_are_missed(&FAILING_CALLS);
}
