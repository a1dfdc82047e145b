//! Crash tests of the whole engine on the simulated disk, held against what a guest and a backup
//! were told.
//!
//! A [`life::Life`] is an open disk to which [`steps`] are done, written by hand or drawn by [`dice`], while a
//! [`model::Model`] writes down what each of them promised. [`power`] stops that life after every call that changes
//! something and looks at what is left with the rules of [`check`]; [`failing`] has every call fail in
//! turn, [`together`] one of two, and [`waiting`] one that another waits for; [`added`] begins with a disk that has no state
//! file; [`mutations`] takes the engine's protections away one by one, and shows that the tests notice. The tests of parts stand beside the parts.
//!
//! An ordinary run has each list of steps by hand, and two random lives of each kind; `QBM_SEED` draws others. A long run:
//! `QBM_CRASH_STATES=10000000 cargo test --release --lib crash_tests -- --nocapture`.

#![cfg_attr(fuzzing, allow(dead_code, reason = "the fuzzer tells no story by hand"))]

#[cfg(test)]
mod added;
mod backup;
mod check;
mod dice;
#[cfg(test)]
mod failing;
#[cfg(test)]
mod foreign;
#[cfg(test)]
mod forgotten;
#[cfg(test)]
mod handed;
mod kind;
mod life;
mod model;
#[cfg(test)]
mod mutations;
#[cfg(test)]
mod nested;
mod power;
mod steps;
#[cfg(test)]
mod together;
#[cfg(test)]
mod waiting;

#[cfg(fuzzing)]
pub(crate) use power::of_bytes;
