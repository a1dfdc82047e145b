//! The C surface: checks what C hands in, converts it, makes one call into the engine. Nothing else is decided here.
//!
//! All `unsafe` that foreign pointers need is in this module. Invariant: nothing unwinds into C, nothing is printed,
//! and a handle whose engine panicked refuses all further use.

mod boundary;
mod bytes;
mod errors;
mod facts;
mod files;
mod life;
mod structs;

/// An open disk. Made by qbm_open(), ended by qbm_close().
#[allow(non_camel_case_types, reason = "the name in C")]
pub struct qbm_disk {
    disk: crate::Disk,
}
