//! The checksum of a data file: of what it says, not of how the file system happens to store it.
//!
//! Of every 4096-byte block that is not all zeros its offset counts, as 8 little-endian bytes, and then its bytes (the last
//! block of a file may be shorter). The SHA-256 of those of one MiB is the sum of that; the SHA-256 over every MiB that
//! has one, its offset and its sum, in order, is the file's. Zeros count for nothing, so that a hole and a stretch of zeros
//! have the same sum, and a sparse file is not read where there is nothing; and each MiB can be summed up by itself.

use std::fmt::Write as _;
use std::ops::Range;

use sha2::{Digest as _, Sha256};

pub(super) use crate::zeros::{BLOCK, is_zero};
use crate::zeros::{BLOCK_BYTES, runs_of_data};

/// The sum of a MiB.
pub(super) type ChunkSum = [u8; 32];

/// The sum of a MiB so far.
#[derive(Default)]
pub(super) struct BlockDigest(Sha256);

impl BlockDigest {
    /// Adds blocks that are not zeros and begin at `offset`, a multiple of [`BLOCK`].
    pub(super) fn add(&mut self, offset: u64, bytes: &[u8]) {
        let mut at = offset;
        for block in bytes.chunks(BLOCK_BYTES) {
            self.0.update(at.to_le_bytes());
            self.0.update(block);
            at += BLOCK;
        }
    }

    pub(super) fn finish(self) -> ChunkSum {
        self.0.finalize().into()
    }
}

/// The sum of a data file so far.
#[derive(Default)]
pub(super) struct TreeDigest(Sha256);

impl TreeDigest {
    /// Adds the sum of the MiB at `offset`.
    pub(super) fn add(&mut self, offset: u64, sum: &ChunkSum) {
        self.0.update(offset.to_le_bytes());
        self.0.update(sum);
    }

    pub(super) fn finish(self) -> String {
        named("sha256-tree", &self.0.finalize())
    }
}

/// The plain SHA-256 of a file so far.
#[derive(Default)]
pub(super) struct FileDigest(Sha256);

impl FileDigest {
    /// Adds the bytes that come next.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn finish(self) -> String {
        named("sha256", &self.0.finalize())
    }
}

fn named(kind: &str, sum: &[u8]) -> String {
    let mut text = format!("{kind}:");
    for byte in sum {
        // Into a string it cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The runs of blocks of `bytes` that are not all zeros.
pub(super) fn runs(bytes: &[u8]) -> impl Iterator<Item = Range<usize>> + '_ {
    runs_of_data(bytes, BLOCK_BYTES, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_knows_where_its_blocks_lie() {
        let sum = |offset| {
            let mut digest = BlockDigest::default();
            digest.add(offset, &[7; 4096]);
            digest.finish()
        };
        assert_ne!(sum(0), sum(4096));
        assert_eq!(
            FileDigest::default().finish(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
