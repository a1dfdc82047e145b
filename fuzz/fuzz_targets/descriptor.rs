//! Any bytes as a descriptor: refused in words, or saved and read again unchanged.
//!
//! Start from the tests' corpus: `cargo +nightly fuzz run descriptor fuzz/corpus/descriptor tests/data/descriptor`.
#![no_main]

#[path = "../../tests/descriptor/oracle.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| oracle::survives_saving(bytes));
