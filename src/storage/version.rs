//! A version of what is more than one file: a hash of what tells of changes to each of them.

use std::io;
use std::os::unix::fs::MetadataExt;

use super::{Storage, Version};

impl Version {
    /// A number that only files of this version have, in its upper half; zero where the version is no hash of files.
    pub(crate) fn mark(self) -> u64 {
        match self {
            // The upper half is the better one.
            Self::Files(hash) => (hash & !u64::from(u32::MAX)) | 1 << 32,
            Self::Tenure { .. } => 0,
        }
    }
}

/// FNV-1a.
pub(crate) struct VersionHash(u64);

impl Default for VersionHash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl VersionHash {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().chain(&[0]) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// Adds which file this is, its length, and when it was changed last.
    pub(crate) fn add_time(&mut self, file: &dyn Storage) -> io::Result<()> {
        self.add(&file.length()?.to_le_bytes());
        if let Some(fd) = file.host_file().filter(|_| !file.limits().block_device) {
            let metadata = std::fs::File::from(fd.try_clone_to_owned()?).metadata()?;
            self.add(&metadata.ino().to_le_bytes());
            self.add(&metadata.mtime().to_le_bytes());
            self.add(&metadata.mtime_nsec().to_le_bytes());
        }
        Ok(())
    }

    pub(crate) fn version(&self) -> Version {
        Version::Files(self.0)
    }
}
