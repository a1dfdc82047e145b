//! An open vmdk.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::sparse::Sparse;
use crate::format::image::{FormatImage, Mapping, Place, joined, read_or_zeros, within};
use crate::storage::{self, FileIdentity, Gather, Limits, Scatter, Storage, SyncMode, Zeroing};
use crate::units::ByteRange;

/// An open vmdk. It cannot be written to.
#[derive(Debug)]
pub(crate) struct VmdkImage {
    file: Arc<dyn Storage>,
    /// One after the other, each with where it ends on the disk.
    parts: Vec<(u64, Part)>,
    length: u64,
}

/// A part of the disk.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) length: u64,
    pub(super) extent: Extent,
}

#[derive(Debug)]
pub(super) enum Extent {
    Zeros,
    /// The file has it from that byte on.
    Flat(Arc<dyn Storage>, u64),
    Sparse(Arc<dyn Storage>, Sparse),
}

impl VmdkImage {
    /// `length` is that of all parts.
    pub(super) fn new(file: Arc<dyn Storage>, parts: Vec<Part>, length: u64) -> Self {
        let mut end = 0;
        let parts = parts
            .into_iter()
            .map(|part| {
                end += part.length;
                (end, part)
            })
            .collect();
        Self { file, parts, length }
    }

    /// The part that has the first byte of `range`, and what of the range it has, as offsets in the part.
    fn part(&self, range: ByteRange) -> io::Result<(&Part, ByteRange)> {
        let index = self.parts.partition_point(|(end, _)| *end <= range.start());
        let (end, part) = self.parts.get(index).ok_or(io::ErrorKind::UnexpectedEof)?;
        let start = end - part.length;
        Ok((
            part,
            ByteRange::between(range.start() - start, range.end().min(*end) - start),
        ))
    }

    fn look(&self, range: ByteRange) -> io::Result<Mapping> {
        let (part, inner) = self.part(range)?;
        match &part.extent {
            Extent::Zeros => Ok(Mapping {
                place: Place::Zeros,
                len: inner.len(),
            }),
            Extent::Flat(file, offset) => {
                // Where it is a file's hole there are zeros, and no other place for them.
                let there = ByteRange::between(inner.start() + offset, inner.end() + offset);
                let extent = file.extent(there)?;
                let place = if extent.data {
                    Place::Data { offset: None }
                } else {
                    Place::Zeros
                };
                Ok(Mapping {
                    place,
                    len: extent.len,
                })
            }
            Extent::Sparse(file, sparse) if inner.start() < sparse.length => {
                let inner = ByteRange::between(inner.start(), inner.end().min(sparse.length));
                let mut found = sparse.look(&**file, inner)?;
                if let Place::Data { offset } = &mut found.place
                    && !Arc::ptr_eq(file, &self.file)
                {
                    *offset = None;
                }
                Ok(found)
            }
            Extent::Sparse(..) => Ok(Mapping {
                place: Place::Below,
                len: inner.len(),
            }),
        }
    }

    /// Reads the first bytes of `range`; says how many.
    fn read_some(&self, range: ByteRange, into: Scatter<'_>, skip: usize) -> io::Result<u64> {
        let (part, inner) = self.part(range)?;
        let mut room = Vec::new();
        match &part.extent {
            Extent::Flat(file, offset) => {
                let into = into.part(skip, in_memory(inner.len())?, &mut room);
                read_or_zeros(&**file, into, inner.start() + offset)?;
                Ok(inner.len())
            }
            Extent::Sparse(file, sparse) if inner.start() < sparse.length => {
                let inner = ByteRange::between(inner.start(), inner.end().min(sparse.length));
                let found = sparse.look(&**file, inner)?;
                let into = into.part(skip, in_memory(found.len)?, &mut room);
                sparse.read_data(&**file, inner, found.place, into)?;
                Ok(found.len)
            }
            Extent::Zeros | Extent::Sparse(..) => {
                into.part(skip, in_memory(inner.len())?, &mut room).zero();
                Ok(inner.len())
            }
        }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<dyn Storage>> {
        self.parts.iter().filter_map(|(_, part)| match &part.extent {
            Extent::Zeros => None,
            Extent::Flat(file, _) | Extent::Sparse(file, _) => Some(file),
        })
    }
}

impl FormatImage for VmdkImage {
    fn mapping(&self, range: ByteRange) -> io::Result<Mapping> {
        joined(range, |part| self.look(part))
    }
}

impl Storage for VmdkImage {
    fn read(&self, into: Scatter<'_>, offset: u64) -> io::Result<()> {
        let range = within(offset, into.len() as u64, self.length)?;
        let mut at = range.start();
        while at < range.end() {
            let skip = in_memory(at - range.start())?;
            at += self.read_some(ByteRange::between(at, range.end()), into, skip)?;
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
        Ok(self.length)
    }

    fn set_length(&self, _length: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn allocate(&self, _range: ByteRange) -> io::Result<()> {
        Err(read_only())
    }

    fn extent(&self, range: ByteRange) -> io::Result<storage::Extent> {
        let there = ByteRange::between(range.start(), range.end().min(self.length).max(range.start()));
        if there.is_empty() {
            return Ok(storage::Extent {
                data: false,
                len: range.len(),
            });
        }
        let found = self.mapping(there)?;
        Ok(storage::Extent {
            data: matches!(found.place, Place::Data { .. }),
            len: found.len,
        })
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        let mut sum = self.file.allocated_bytes()?;
        for file in self.all().filter(|file| !Arc::ptr_eq(file, &self.file)) {
            sum = sum.saturating_add(file.allocated_bytes()?);
        }
        Ok(sum)
    }

    fn limits(&self) -> Limits {
        self.file.limits()
    }

    fn identity(&self) -> Option<FileIdentity> {
        self.file.identity()
    }

    fn host_file(&self) -> Option<BorrowedFd<'_>> {
        self.file.host_file()
    }
}

fn in_memory(len: u64) -> io::Result<usize> {
    usize::try_from(len).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cold]
fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "a vmdk can only be read")
}
