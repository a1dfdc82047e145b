//! The C surface: checks what C hands in, converts it, makes one call into the engine. Nothing else is decided here.
//!
//! All `unsafe` that foreign pointers need is in this module. Invariant: nothing unwinds into C, nothing is printed,
//! and a handle whose engine panicked refuses all further use.

mod bitmap_arguments;
mod boundary;
mod files;
mod structs;

// What C sees, in the order of the header. The empty lines keep rustfmt from sorting it.
mod errors;

mod life;

mod bytes;

mod commit;

mod facts;

mod bitmaps;

mod bitmap_changes;

mod bitmap_bits;

mod bitmap_facts;

mod bitmap_transaction;

mod check;

#[cfg(test)]
mod tests;

/// An open disk. Made by qbm_open(), ended by qbm_close().
#[allow(non_camel_case_types, reason = "the name in C")]
pub struct qbm_disk {
    disk: crate::Disk,
}
