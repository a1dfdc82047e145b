//! Any bytes as a state file: not valid in words, or the same when written again.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qbm::fuzz_state_file(bytes));
