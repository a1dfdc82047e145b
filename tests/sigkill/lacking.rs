//! The process that is killed lacks a protection: what it leaves must be found wrong, or the suite guards nothing.

use std::time::Duration;

use super::disk::{BITMAPS, Found, Precision, Shape, UNIT, check, path};
use super::log;
use super::random::Random;
use super::{Places, Start};

/// Most faults show in the first rounds.
const ROUNDS: u64 = 300;

/// A process that is started so, and killed again and again, must leave something that is wrong in these words.
fn is_noticed(shape: Shape<'_>, start: Start<'_>, words: &str) {
    let mut random = Random::new(Random::seed());
    let places = Places::find();
    let folder = places.folders[0].path();
    let start = Start {
        epoch: places.epoch,
        ..start
    };
    shape.create(folder);
    let mut before = Found::new(shape);
    for round in 1..=ROUNDS {
        start.killed(folder, round, Duration::from_micros(random.below(40_000)));
        let disk = places
            .options()
            .open(path(folder))
            .expect("it opens after the kill");
        let found = Found::on(&disk);
        if let Err(wrong) = check(&before, &log::read(folder), &found, Precision::Exact) {
            println!("{:?}: round {round}: {wrong}", start.fault);
            assert!(wrong.contains(words), "{wrong}");
            return;
        }
        before = found;
        disk.close().expect("it closes");
    }
    panic!("nobody notices {:?} in {ROUNDS} kills", start.fault);
}

/// Another writer finds the bit and relies on it, so they all write to one granule of the coarsest bitmap.
#[test]
fn a_bit_that_comes_before_its_piece_is_noticed() {
    let start = Start {
        fault: Some("BitBeforePiece"),
        room: Some(BITMAPS[0].granularity / UNIT),
        ..Start::default()
    };
    is_noticed(Shape::Raw, start, "D1: ");
}

#[test]
fn an_allocation_bit_that_comes_before_its_shadow_is_noticed() {
    let start = Start {
        fault: Some("BitBeforeShadow"),
        unflushed: true,
        ..Start::default()
    };
    is_noticed(Shape::Overlay, start, "A3: ");
}
