//! The engine of QBM, a disk image format made of plain parts.

pub mod backup;
pub mod bitmap;
#[allow(
    missing_docs,
    clippy::doc_markdown,
    reason = "written for C, and generated into the header"
)]
mod capi;
pub mod convert;
pub mod descriptor;
mod disk;
mod error;
mod format;
mod mutation;
mod parallel;
#[cfg(test)]
#[path = "../tests/common/skip.rs"]
mod skip;
mod state;
pub mod storage;
mod sync;
mod time;
mod units;
mod zeros;

pub use bitmap::BitmapPolicy;
pub use descriptor::Format;
pub use disk::{
    AddBitmap, AddedBits, BackingFlags, BackupView, BackupViews, BitmapAction, BitmapContent, BitmapInfo,
    BlockStatus, CheckOptions, CheckReport, CreateOptions, Disk, ExportOptions, Exported, Finding,
    FindingKind, ImportOptions, Imported, Info, Layer, MergeSource, Merged, Notice, NoticeCode,
    OnBitmapError, OpenOptions, OverlayInfo, Preallocation, Progress, Recovery, Repair, Scratch, ScratchFull,
    Severity, StateFound, StateInfo, StatusFlags, StatusHints, Thaw, TruncateFlags, WriteFlags, backup_begin,
    bitmap_transaction,
};
pub use error::{Error, ErrorCode, Result, printable};
pub use units::{ByteRange, Granularity, GranuleIndex, GranuleRange, MAX_LENGTH};

/// For `tests/sigkill.rs` and `tests/real_power_cut.rs` alone.
#[cfg(all(feature = "faults", not(test)))]
#[doc(hidden)]
pub mod faults {
    pub use crate::mutation::{Fault, put_in, take_out};
}

/// For `fuzz/fuzz_targets/state.rs` alone, as the state file is no part of the API.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn fuzz_state_file(bytes: &[u8]) {
    state::survives_rewriting(bytes);
}

/// For `fuzz/fuzz_targets/lives.rs` alone.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn fuzz_life(bytes: &[u8]) {
    disk::crash_tests::of_bytes(bytes).unwrap_or_else(|what| panic!("{what}"));
}

/// For `fuzz/fuzz_targets/qcow2.rs` alone.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn fuzz_qcow2(storage: &dyn storage::Storage) {
    format::qcow2::read_all(storage);
}

/// So that the Rust in README.md compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
