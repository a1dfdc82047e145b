//! Any sequence of operations on a disk, cut off by crashes at every call: no bit, no flushed byte and no structure is lost.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qbm::fuzz_life(bytes));
