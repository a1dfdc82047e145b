//! The engine of QBM, a disk image format made of plain parts.

pub mod bitmap;
#[allow(
    missing_docs,
    clippy::doc_markdown,
    reason = "written for C, and generated into the header"
)]
mod capi;
pub mod descriptor;
mod disk;
mod error;
mod mutation;
#[cfg(test)]
#[path = "../tests/common/skip.rs"]
mod skip;
pub mod storage;
mod sync;
mod units;

pub use bitmap::BitmapPolicy;
pub use descriptor::Format;
pub use disk::{
    AddBitmap, BitmapAction, BitmapContent, BitmapInfo, BlockStatus, CreateOptions, Disk, Info, Layer,
    MergeSource, Notice, NoticeCode, OpenOptions, Preallocation, StatusFlags, Thaw, TruncateFlags,
    WriteFlags, bitmap_transaction,
};
pub use error::{Error, ErrorCode, Result};
pub use units::{ByteRange, Granularity, GranuleIndex, GranuleRange, MAX_LENGTH};

/// So that the Rust in README.md compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
