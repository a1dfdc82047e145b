//! The C surface: checks what C hands in, converts it, makes one call into the engine. Nothing else is decided here.
//!
//! All `unsafe` that foreign pointers need is in this module. Invariant: nothing unwinds into C, nothing is printed,
//! and a handle whose engine panicked refuses all further use.

mod bitmap_arguments;
mod boundary;
mod files;
mod structs;
mod view;

// What C sees, in the order of the header. The empty lines keep rustfmt from sorting it.
mod errors;

mod life;

mod bytes;

mod commit;

mod rebase;
mod snapshot;

mod facts;

mod bitmaps;

mod bitmap_changes;

mod bitmap_bits;

mod bitmap_facts;

mod bitmap_transaction;

mod backup_views;

mod backup;

mod backups;

mod check;

#[cfg(test)]
mod tests;

/// An open disk, from qbm_open() to qbm_close(); or a view of one as it was at
/// one moment, from qbm_backup_begin() to qbm_backup_end(), which can only be
/// read.
// Each handle is an `Arc` that C has as a pointer: the views of a backup hold the disks that they are of.
#[allow(non_camel_case_types, reason = "the name in C")]
pub struct qbm_disk {
    kind: Kind,
}

#[allow(
    clippy::large_enum_variant,
    reason = "few are views, and a disk costs no indirection"
)]
enum Kind {
    Disk(view::OpenDisk),
    View(view::View),
}

impl qbm_disk {
    fn of(disk: crate::Disk) -> Self {
        Self {
            kind: Kind::Disk(view::OpenDisk::new(disk)),
        }
    }
}
