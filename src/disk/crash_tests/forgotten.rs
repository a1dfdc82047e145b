//! A sync of the image fails, and the guest flushes again: what a flush has vouched for then is there after a power cut (A2).
//!
//! The kernel has dropped what it could not write, and has told once. A second sync finds nothing to do and succeeds.

use super::check::Opening;
use super::kind::Kind;
use super::life::Life;
use super::steps::{Step, write};
use crate::mutation::{Fault as Wrong, with};
use crate::storage::simulated::{CallKind, Fault, Keep};

/// What is wrong after a power cut behind the second flush, or that there is none which succeeds.
fn flushed_again(kind: Kind) -> Result<Flushed, String> {
    let (mut life, _) = Life::new(kind).map_err(|e| e.to_string())?;
    life.step(write(700, 3000)).map_err(|e| e.to_string())?;
    let fault = Fault::new(libc::EIO).on(CallKind::Sync).on_file("disk-data.img");
    life.sim.fail(fault);
    let begun = life.now();
    if life.step(Step::Flush).is_ok() {
        return Err("a sync has failed, and the flush has not".to_owned());
    }
    life.look_again(begun);
    if life.step(Step::Flush).is_err() {
        return Ok(Flushed::Refused);
    }
    for keep in [Keep::Nothing, Keep::All] {
        let opening = Opening {
            kind,
            cache: "second",
            writable: true,
            bits: true,
            extra: u64::MAX,
        };
        let model = life.model.at(life.now(), false);
        model.check(&life.sim.power_cut_keeping(keep), opening)?;
    }
    Ok(Flushed::Kept)
}

#[derive(Debug, PartialEq, Eq)]
enum Flushed {
    Refused,
    Kept,
}

#[test]
fn no_flush_vouches_for_what_a_failed_sync_has_dropped() {
    for kind in [Kind::RAW, Kind::OVERLAY] {
        assert_eq!(flushed_again(kind), Ok(Flushed::Refused), "{kind:?}");
    }
}

#[test]
fn a_failed_sync_that_is_forgotten_loses_what_was_flushed() {
    for kind in [Kind::RAW, Kind::OVERLAY] {
        let seen = with(Wrong::FailedSyncForgotten, || flushed_again(kind));
        let words = seen.expect_err("lost bytes");
        assert!(words.contains("A1, A2"), "{kind:?}: {words}");
    }
}
