//! A chain as a file that can be read: for an image that reads what it does not have by itself.

use std::io;
use std::sync::Arc;

use super::chain::Chain;
use super::read::part_of;
use crate::storage::{Extent, FileIdentity, Gather, Limits, Scatter, Storage, SyncMode, Zeroing};
use crate::units::{ByteRange, MAX_LENGTH};

/// What a chain shows from one of its images on.
#[derive(Debug)]
pub(in crate::disk) struct Below {
    pub(in crate::disk) chain: Arc<Chain>,
    first: usize,
}

impl Below {
    /// From the image on that has the index `first` in `chain`.
    pub(super) fn from(chain: &Arc<Chain>, first: usize) -> Self {
        Self {
            chain: Arc::clone(chain),
            first,
        }
    }
}

impl Storage for Below {
    fn read(&self, into: Scatter<'_>, offset: u64) -> io::Result<()> {
        let range = ByteRange::new(offset, into.len() as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut room = Vec::new();
        let mut at = offset;
        while at < range.end() {
            let run = self
                .chain
                .find_from(ByteRange::between(at, range.end()), self.first)?;
            let part = part_of(range, run.range, into, &mut room);
            self.chain.read(run.source, run.range, part)?;
            at = run.range.end();
        }
        Ok(())
    }

    fn write(&self, _from: Gather<'_>, _offset: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn write_zeroes(&self, _range: ByteRange, _how: Zeroing) -> io::Result<()> {
        Err(read_only())
    }

    fn discard(&self, _range: ByteRange) -> io::Result<()> {
        Err(read_only())
    }

    fn sync(&self, _mode: SyncMode) -> io::Result<()> {
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.chain.length_from(self.first).min(MAX_LENGTH))
    }

    fn set_length(&self, _length: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn allocate(&self, _range: ByteRange) -> io::Result<()> {
        Err(read_only())
    }

    fn extent(&self, range: ByteRange) -> io::Result<Extent> {
        Ok(Extent {
            data: true,
            len: range.len(),
        })
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn limits(&self) -> Limits {
        Limits::default()
    }

    fn identity(&self) -> Option<FileIdentity> {
        None
    }
}

#[cold]
fn read_only() -> io::Error {
    io::ErrorKind::ReadOnlyFilesystem.into()
}
