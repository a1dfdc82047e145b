//! The first cluster of a qcow2: the header and its extensions.
//!
//! Invariant: a [`Header`] has only values that were checked by themselves; whether they fit the file is asked where
//! they are used.

use super::fields::{Fields, invalid};
use super::{
    BITMAPS_EXTENSION_BYTES, BITMAPS_VALID, CORRUPT, EXTENSION_BACKING_FORMAT, EXTENSION_BITMAPS,
    EXTENSION_DATA_FILE, EXTENSION_END, EXTERNAL_DATA, HEADER_BYTES, MAGIC, MAX_BITMAPS, MAX_DIRECTORY_BYTES,
    RAW_EXTERNAL_DATA,
};
use crate::error::{Error, ErrorCode, Result};
use crate::units::MAX_LENGTH;

/// The header of version 2.
const OLD_HEADER_BYTES: u32 = 72;

/// All incompatible features that QEMU knows so far: dirty, corrupt, external data, compression type, extended L2.
const KNOWN_INCOMPATIBLE: u64 = 0x1f;

/// What a header says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) cluster_bits: u32,
    /// The length of the disk that it shows.
    pub(super) size: u64,
    pub(super) data_file: DataFile,
    /// The name of a data file, whatever is in it.
    pub(super) data_file_name: Option<String>,
    pub(super) directory: Option<Directory>,
    /// The autoclear bit: no program that knows nothing of bitmaps has written since.
    pub(super) bitmaps_valid: bool,
    pub(super) version: u32,
    /// Where the name of the backing file is, and how many bytes it has.
    pub(super) backing: Option<(u64, u32)>,
    pub(super) backing_format: Option<Vec<u8>>,
    pub(super) encryption: u32,
    pub(super) incompatible: u64,
    pub(super) l1: Table,
    pub(super) refcounts: Table,
}

/// A table of 64-bit entries in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// Where a qcow2 has its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DataFile {
    /// In itself.
    Inside,
    /// In a file that is no raw image, or an encrypted one.
    Mapped,
    /// In a raw image; the name that it has in the header, if any.
    Raw(Option<String>),
}

/// Where the bitmap directory is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Directory {
    pub(super) bitmaps: u32,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// How many bytes of the file's beginning [`Header::parse`] wants: the largest cluster, or all there is.
pub(super) const FIRST_BYTES: u64 = 1 << 21;

impl Header {
    /// Reads a header from the file's first bytes.
    pub(super) fn parse(first: &[u8]) -> Result<Self> {
        let mut fields = Fields(first);
        if fields.u32().ok() != Some(MAGIC) {
            return Err(invalid("it is no qcow2 image: it does not begin with QFI\\xfb"));
        }
        let version = fields.u32()?;
        if !matches!(version, 2 | 3) {
            return Err(not_supported(format!(
                "it is of qcow2 version {version}; 2 and 3 can be read"
            )));
        }
        let backing_offset = fields.u64()?;
        let backing_bytes = fields.u32()?;
        let cluster_bits = fields.u32()?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(invalid(format!(
                "header: {cluster_bits} cluster bits are not between 9 and 21"
            )));
        }
        let size = fields.u64()?;
        if size > MAX_LENGTH {
            return Err(not_supported(format!(
                "header: a disk of {size} bytes is longer than the limit of {MAX_LENGTH}"
            )));
        }
        let encryption = fields.u32()?;
        let l1_bytes = u64::from(fields.u32()?) * 8;
        let l1 = Table {
            offset: fields.u64()?,
            bytes: l1_bytes,
        };
        let refcounts = Table {
            offset: fields.u64()?,
            bytes: u64::from(fields.u32()?) << cluster_bits,
        };
        // The snapshots.
        fields.bytes(4 + 8)?;
        let (mut incompatible, mut autoclear, mut header_bytes) = (0, 0, OLD_HEADER_BYTES);
        if version == 3 {
            incompatible = fields.u64()?;
            let _compatible = fields.u64()?;
            autoclear = fields.u64()?;
            let _refcount_order = fields.u32()?;
            header_bytes = fields.u32()?;
            if header_bytes < HEADER_BYTES || header_bytes % 8 != 0 {
                return Err(invalid(format!(
                    "header: its length {header_bytes} is no multiple of 8 from {HEADER_BYTES} on"
                )));
            }
        }
        check_features(incompatible)?;
        // The extensions end where the name of the backing file begins, or with the cluster.
        let cluster = 1u64 << cluster_bits;
        let end = match backing_offset {
            0 => cluster,
            at => at.min(cluster),
        };
        let end = usize::try_from(end).unwrap_or(usize::MAX).min(first.len());
        let extensions = first.get(header_bytes as usize..end).ok_or_else(|| {
            invalid(format!(
                "header: its length {header_bytes} reaches behind the first cluster"
            ))
        })?;
        let found = Extensions::parse(extensions)?;
        let data_file_name = found.data_file.clone();
        let data_file = match (
            incompatible & EXTERNAL_DATA != 0,
            autoclear & RAW_EXTERNAL_DATA != 0,
        ) {
            (false, _) => DataFile::Inside,
            (true, true) if encryption == 0 => DataFile::Raw(found.data_file),
            (true, _) => DataFile::Mapped,
        };
        Ok(Self {
            cluster_bits,
            size,
            data_file,
            data_file_name,
            directory: found.directory,
            bitmaps_valid: autoclear & BITMAPS_VALID != 0,
            version,
            backing: (backing_offset != 0).then_some((backing_offset, backing_bytes)),
            backing_format: found.backing_format,
            encryption,
            incompatible,
            l1,
            refcounts,
        })
    }
}

fn check_features(incompatible: u64) -> Result<()> {
    if incompatible & !KNOWN_INCOMPATIBLE != 0 {
        return Err(not_supported(format!(
            "header: the incompatible features {:#x} are unknown",
            incompatible & !KNOWN_INCOMPATIBLE
        )));
    }
    if incompatible & CORRUPT != 0 {
        return Err(invalid(
            "it is marked corrupt; \"qemu-img check -r all\" may repair it",
        ));
    }
    Ok(())
}

/// What the extensions say.
#[derive(Default)]
struct Extensions {
    data_file: Option<String>,
    directory: Option<Directory>,
    backing_format: Option<Vec<u8>>,
}

impl Extensions {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let mut found = Self::default();
        let mut fields = Fields(bytes);
        // They may fill the cluster to its end, with no mark behind.
        while fields.0.len() >= 8 {
            let (kind, len) = (fields.u32()?, fields.u32()?);
            if kind == EXTENSION_END {
                break;
            }
            let content = usize::try_from(len)
                .ok()
                .and_then(|len| fields.bytes(len).ok())
                .ok_or_else(|| {
                    invalid(format!(
                        "header extension {kind:#x}: its {len} bytes do not fit in the first cluster"
                    ))
                })?;
            // Padding; the last one may lack it.
            let padding = (content.len().next_multiple_of(8) - content.len()).min(fields.0.len());
            fields.bytes(padding)?;
            let twice = match kind {
                EXTENSION_BITMAPS => found.directory.replace(bitmaps(content)?).is_some(),
                EXTENSION_DATA_FILE => found.data_file.replace(data_file(content)?).is_some(),
                EXTENSION_BACKING_FORMAT => found.backing_format.replace(content.to_vec()).is_some(),
                _ => false,
            };
            if twice {
                return Err(invalid(format!("header extension {kind:#x}: it is there twice")));
            }
        }
        Ok(found)
    }
}

fn bitmaps(content: &[u8]) -> Result<Directory> {
    let wrong = |words: String| invalid(format!("bitmaps extension: {words}"));
    if content.len() != BITMAPS_EXTENSION_BYTES as usize {
        return Err(wrong(format!(
            "it is {} bytes long, not {BITMAPS_EXTENSION_BYTES}",
            content.len()
        )));
    }
    let mut fields = Fields(content);
    let bitmaps = fields.u32()?;
    let reserved = fields.u32()?;
    let (bytes, offset) = (fields.u64()?, fields.u64()?);
    if reserved != 0 {
        return Err(wrong(format!("its reserved field is {reserved:#x}, not zero")));
    }
    if bitmaps == 0 || bitmaps > MAX_BITMAPS {
        return Err(wrong(format!(
            "{bitmaps} bitmaps are not between 1 and {MAX_BITMAPS}"
        )));
    }
    if bytes > MAX_DIRECTORY_BYTES {
        return Err(wrong(format!(
            "a directory of {bytes} bytes is longer than the limit of {MAX_DIRECTORY_BYTES}"
        )));
    }
    Ok(Directory {
        bitmaps,
        offset,
        bytes,
    })
}

fn data_file(content: &[u8]) -> Result<String> {
    String::from_utf8(content.to_vec())
        .map_err(|_| not_supported("data file extension: the name is not UTF-8"))
}

#[cold]
fn not_supported(words: impl Into<String>) -> Error {
    Error::new(ErrorCode::NotSupported, words)
}
