//! A disk that is worked on without a protection: the checks of its cuts must notice, or they guard nothing.
//!
//! The fault is in a process of its own, as this one has other disks at work.

use std::process::Command;

use super::record::{EXT4, Kind};
use super::skip::skipped;
use super::{Plan, RAW, cut, faults, overlay};

/// Names the plan.
const PLAN: &str = "QBM_POWER_CUT_PLAN";
const PLANS: [(&str, Kind, Plan); 2] = [
    ("raw", EXT4, RAW),
    ("overlay", overlay::LARGE_EXT4, overlay::PLAN),
];

/// Not a test by itself: what the tests below start.
#[test]
fn the_process_that_lacks_a_protection() {
    let Ok(name) = std::env::var(PLAN) else { return };
    let (_, kind, plan) = PLANS.into_iter().find(|it| it.0 == name).expect("a plan");
    match cut(kind, plan) {
        None => {}
        Some(Ok(())) => println!("nothing is wrong"),
        Some(Err(wrong)) => println!("found wrong: {wrong}"),
    }
}

/// Power cuts of a disk that has this fault must be found wrong, in these words.
fn is_noticed(plan: &str, fault: &str, words: &str) {
    let program = std::env::current_exe().expect("the path of this program");
    let output = Command::new(program)
        .args([
            "--exact",
            "lacking::the_process_that_lacks_a_protection",
            "--nocapture",
        ])
        .envs([(PLAN, plan), (faults::NAME, fault)])
        .output()
        .expect("this program starts again");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    if let Some((_, why)) = complained.split_once("skipped: ") {
        return skipped(why.trim());
    }
    println!("{said}");
    let wrong = said.lines().find(|line| line.starts_with("found wrong: "));
    assert!(
        wrong.is_some_and(|wrong| wrong.contains(words)),
        "{fault}: {said}{complained}"
    );
}

#[test]
fn regions_that_are_not_durable_before_the_write_are_noticed() {
    is_noticed("raw", "IntentUnsynced", "D1: ");
}

#[test]
fn allocation_bits_before_the_image_are_noticed() {
    is_noticed("overlay", "BitsBeforeImage", ": A");
}

#[test]
fn a_stamp_before_the_image_has_its_time_is_noticed() {
    is_noticed("raw", "StampUnsynced", "nobody wrote behind its back");
}
