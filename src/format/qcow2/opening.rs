//! A qcow2 that is about to be opened as an image: what its header asks for, checked.
//!
//! Invariant: the library that reads the tables is given nothing that it would not refuse itself but cannot serve
//! (encryption), or that would have it take memory without bounds.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::fields::{Fields, invalid};
use super::header::{DataFile, FIRST_BYTES, Header, Table};
use super::image::{Parts, Qcow2Image};
use super::{
    AUTOCLEAR_AT, COMPRESSION_TYPE, DIRTY_REFCOUNTS, EXTENDED_L2, MAGIC, MAX_NAME_BYTES, OWN_AUTOCLEAR,
};
use crate::error::{Error, ErrorCode, Result};
use crate::storage::{Storage, read_slice};
use crate::units::MAX_LENGTH;

/// QEMU's own limits for tables, in bytes.
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;

/// The mark that an opener has left in `file`, who changed nothing but the header; zero where there is none.
pub(crate) fn mark_in(file: &dyn Storage) -> io::Result<u64> {
    let mut first = [0; AUTOCLEAR_AT + 8];
    if file.length()? < first.len() as u64 {
        return Ok(0);
    }
    read_slice(file, &mut first, 0)?;
    let mut fields = Fields(&first);
    let (magic, version) = (fields.u32().ok(), fields.u32().ok());
    let autoclear = Fields(&first[AUTOCLEAR_AT..]).u64().unwrap_or(0);
    // An older header has something else there.
    let has_bits = magic == Some(MAGIC) && version == Some(3);
    Ok(if has_bits { autoclear & OWN_AUTOCLEAR } else { 0 })
}

/// A qcow2 whose header was read and found good, and whose other files are not open yet.
pub(crate) struct Unopened {
    file: Arc<dyn Storage>,
    header: Header,
    backing: Option<NamedBacking>,
    path: PathBuf,
}

/// The backing image that a qcow2 names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedBacking {
    pub(crate) file: String,
    /// As the header has it; empty where it has none.
    pub(crate) format: String,
}

impl Unopened {
    /// Reads the header in `file`, which messages call `path`.
    pub(crate) fn read(file: Arc<dyn Storage>, path: &Path) -> Result<Self> {
        let length = file.length().map_err(|e| Error::io("measure", path, &e))?;
        // At most 2 MiB, so this fits.
        let mut first = vec![0; usize::try_from(length.min(FIRST_BYTES)).unwrap_or(0)];
        read_slice(&*file, &mut first, 0).map_err(|e| Error::io("read the header of", path, &e))?;
        let (header, backing) = Self::checked(&first, length).map_err(|e| e.context(path.display()))?;
        Ok(Self {
            file,
            header,
            backing,
            path: path.to_owned(),
        })
    }

    fn checked(first: &[u8], length: u64) -> Result<(Header, Option<NamedBacking>)> {
        let header = Header::parse(first)?;
        if header.encryption != 0 {
            return Err(not_supported(
                "it is encrypted, and only plain images can be read",
            ));
        }
        if header.incompatible & DIRTY_REFCOUNTS != 0 {
            return Err(invalid(
                "it was not closed by the last program that wrote to it; \"qemu-img check -r all\" repairs it",
            ));
        }
        if header.incompatible & EXTENDED_L2 != 0 {
            return Err(not_supported(
                "it has extended L2 entries (subclusters), which this version cannot read; \"qemu-img convert -O qcow2 \
                 -o extended_l2=off\" makes one that it can",
            ));
        }
        if header.incompatible & COMPRESSION_TYPE != 0 {
            return Err(not_supported(
                "its clusters are compressed otherwise than by zlib, which this version cannot read; \"qemu-img convert \
                 -O qcow2\" makes one that it can",
            ));
        }
        let cluster = 1u64 << header.cluster_bits;
        check_table("L1", header.l1, cluster, MAX_L1_BYTES, length)?;
        let refcounts = header.refcounts;
        check_table("refcount", refcounts, cluster, MAX_REFCOUNT_TABLE_BYTES, length)?;
        // One entry of the L1 table stands for a cluster of entries of eight bytes.
        let needed = header.size.div_ceil(cluster).div_ceil(cluster / 8);
        if header.l1.bytes / 8 < needed {
            return Err(invalid(format!(
                "header: an L1 table of {} entries is too short for a disk of {} bytes",
                header.l1.bytes / 8,
                header.size
            )));
        }
        let backing = backing(first, &header)?;
        Ok((header, backing))
    }

    /// The backing image that it names.
    pub(crate) fn backing(&self) -> Option<&NamedBacking> {
        self.backing.as_ref()
    }

    /// Refuses an image that must not be written to here.
    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.header.version < 3 {
            return Err(not_supported(
                "it is of qcow2 version 2, which cannot say that it is being written to, as a crash would need; \
                 \"qemu-img amend -f qcow2 -o compat=1.1\" makes it one of version 3",
            )
            .context(self.path.display()));
        }
        match self.header.data_file {
            DataFile::Raw(_) => Err(not_supported(
                "its data file is a raw image by itself, and would not stay one: make a disk of the data file, or let go of \
                 that with \"qemu-img amend -o data_file_raw=off\"",
            )
            .context(self.path.display())),
            DataFile::Inside | DataFile::Mapped => Ok(()),
        }
    }

    /// Refuses a length that the image cannot be given: its L1 table would become too long.
    pub(crate) fn check_length(&self, length: u64) -> Result<()> {
        let cluster = 1u64 << self.header.cluster_bits;
        let tables = length.div_ceil(cluster).div_ceil(cluster / 8);
        if tables <= MAX_L1_BYTES / 8 && length <= MAX_LENGTH {
            return Ok(());
        }
        Err(not_supported(format!(
            "a disk of {length} bytes is too long for a qcow2 with clusters of {cluster} bytes; \"qemu-img convert -O qcow2 -o \
             cluster_size=2M\" makes one that can be longer"
        ))
        .context(self.path.display()))
    }

    /// The name of its data file; `None` where the data is in the qcow2 itself.
    pub(crate) fn data_file_name(&self) -> Result<Option<&str>> {
        if self.header.data_file == DataFile::Inside {
            return Ok(None);
        }
        match &self.header.data_file_name {
            Some(name) => Ok(Some(name)),
            None => Err(invalid(
                "its data is in another file, which it does not name; \"qemu-img amend -o data_file=NAME\" has it name one",
            )
            .context(self.path.display())),
        }
    }

    /// Opens the image: with its data file if it has one, over `below` if what it does not have is to be read from
    /// there. Where the header has to be changed for writing, it gets that `mark`, until the image is written to.
    pub(crate) fn open(
        self,
        data_file: Option<Arc<dyn Storage>>,
        below: Option<&Arc<dyn Storage>>,
        writable: bool,
        mark: u64,
    ) -> Result<Qcow2Image> {
        let has_backing = self.backing.is_some();
        // The last byte of them.
        let features = (self.header.incompatible & 0xff) as u8;
        let parts = Parts {
            file: self.file,
            data_file,
            below: below.cloned(),
            cluster: 1 << self.header.cluster_bits,
            features,
            has_autoclear: self.header.version >= 3,
            has_backing,
        };
        Qcow2Image::open(parts, writable, mark).map_err(|e| Error::io("open", &self.path, &e))
    }
}

fn check_table(what: &str, table: Table, cluster: u64, most: u64, length: u64) -> Result<()> {
    if table.bytes > most {
        return Err(not_supported(format!(
            "header: a {what} table of {} bytes is longer than the limit of {most}",
            table.bytes
        )));
    }
    let end = table.offset.checked_add(table.bytes);
    if !table.offset.is_multiple_of(cluster) || end.is_none_or(|end| end > length.next_multiple_of(cluster)) {
        return Err(invalid(format!(
            "header: the {what} table of {} bytes at {} does not lie on clusters of the file, which is {length} bytes long",
            table.bytes, table.offset
        )));
    }
    Ok(())
}

fn backing(first: &[u8], header: &Header) -> Result<Option<NamedBacking>> {
    let Some((offset, len)) = header.backing else {
        return Ok(None);
    };
    if len > u32::from(MAX_NAME_BYTES) {
        return Err(invalid(format!(
            "header: the name of the backing file is {len} bytes long, more than {MAX_NAME_BYTES}"
        )));
    }
    let name = usize::try_from(offset)
        .ok()
        .and_then(|at| first.get(at..)?.get(..len as usize))
        .ok_or_else(|| invalid("header: the name of the backing file does not lie in the first cluster"))?;
    if name.is_empty() {
        return Ok(None);
    }
    let text = |bytes: &[u8], what: &str| {
        String::from_utf8(bytes.to_vec())
            .map_err(|_| not_supported(format!("header: the {what} is not UTF-8")))
    };
    Ok(Some(NamedBacking {
        file: text(name, "name of the backing file")?,
        format: text(
            header.backing_format.as_deref().unwrap_or_default(),
            "format of the backing file",
        )?,
    }))
}

#[cold]
fn not_supported(words: impl Into<String>) -> Error {
    Error::new(ErrorCode::NotSupported, words)
}
