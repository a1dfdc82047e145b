//! The engine of QBM, a disk image format made of plain parts.

pub mod descriptor;
pub mod bitmap;
mod error;
pub mod storage;
mod sync;
mod units;

pub use error::{Error, ErrorCode, Result};
pub use units::{ByteRange, Granularity, GranuleIndex, GranuleRange, MAX_LENGTH};
