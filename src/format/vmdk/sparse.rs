//! A sparse extent: a directory of tables of grains.
//!
//! A grain is what is allocated at once, 64 KiB mostly; a table has the place of each of some grains, and the directory
//! that of each table.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_PARSE_ZLIB_HEADER, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use super::shared::{Share, Shared};
use super::{MAX_DESCRIPTOR, SECTOR, bytes, invalid, not_supported, zeros};
use crate::error::{Error, ErrorCode, Result};
use crate::format::image::{Mapping, Place, read_or_zeros};
use crate::storage::{Scatter, Storage, read_slice};
use crate::units::{ByteRange, MAX_LENGTH};

pub(super) const MAGIC: &[u8; 4] = b"KDMV";

/// The directory's place is in the footer at the file's end.
const IN_FOOTER: u64 = u64::MAX;

const HAS_ZEROED_GRAINS: u32 = 1 << 2;
const COMPRESSED: u32 = 1 << 16;
const HAS_MARKERS: u32 = 1 << 17;

/// The table's entry of a grain of zeros, where the header says that there are such.
const ZEROED: u32 = 1;

/// A grain's marker: which sector of the disk it holds, and how long it is.
const MARKER: usize = 12;

/// Our own limits. `VMware` makes grains of 64 KiB, and tables of 512 entries.
const MAX_GRAIN: u64 = 16 << 20;
const MAX_ENTRIES: u32 = 512;

/// So much of a directory is read in one go.
const STEP: usize = 1 << 20;

/// What a sparse extent says of itself.
#[derive(Debug)]
pub(super) struct Sparse {
    /// Of the part of the disk that it holds, in bytes.
    pub(super) length: u64,
    /// Where in the file the descriptor is, if there is one.
    pub(super) descriptor: Option<ByteRange>,
    grain: u64,
    entries: u32,
    directory: Vec<u32>,
    zeroed: bool,
    compressed: bool,
    markers: bool,
    /// The tables that were read last.
    tables: Mutex<Vec<(usize, Arc<[u32]>)>>,
    place: Share,
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> u32 {
        let mut out = [0; 4];
        out.copy_from_slice(&self.0[at..at + 4]);
        u32::from_le_bytes(out)
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) | u64::from(self.u32(at + 4)) << 32
    }
}

impl Sparse {
    pub(super) fn read(file: &dyn Storage, shared: &Shared) -> Result<Self> {
        let file_length = file.length().map_err(|e| Error::system(&e))?;
        let header = bytes(file, 0, SECTOR)?;
        let mut fields = Fields(&header);
        if !header.starts_with(MAGIC) {
            return Err(invalid("it is no sparse extent: it does not begin with KDMV"));
        }
        let descriptor = descriptor_of(&fields)?;
        let footer;
        if fields.u64(56) == IN_FOOTER {
            // Behind it are its own sector and that of the end mark.
            let at = file_length.checked_sub(2 * SECTOR);
            let at = at.ok_or_else(|| invalid("it has no room for its footer"))?;
            footer = bytes(file, at, SECTOR)?;
            if !footer.starts_with(MAGIC) {
                return Err(invalid(
                    "its footer does not begin with KDMV: it was not written to its end",
                ));
            }
            fields = Fields(&footer);
        }
        let version = fields.u32(4);
        if !(1..=3).contains(&version) {
            return Err(not_supported(format!("it is of the unknown version {version}")));
        }
        let flags = fields.u32(8);
        let compressed = flags & COMPRESSED != 0;
        let algorithm = u16::from_le_bytes([fields.0[77], fields.0[78]]);
        if compressed && algorithm != 1 {
            return Err(not_supported(format!(
                "it is compressed in the unknown way {algorithm}"
            )));
        }
        let in_bytes = |what: &str, sectors: u64, most: u64| {
            sectors
                .checked_mul(SECTOR)
                .filter(|bytes| *bytes <= most)
                .ok_or_else(|| invalid(format!("its {what} of {sectors} sectors is beyond all limits")))
        };
        let length = in_bytes("length", fields.u64(12), MAX_LENGTH)?;
        let grain = in_bytes("grain", fields.u64(20), MAX_GRAIN)?;
        if !grain.is_power_of_two() {
            return Err(invalid(format!(
                "its grains of {grain} bytes are no power of two"
            )));
        }
        let entries = fields.u32(44);
        if entries == 0 || entries > MAX_ENTRIES {
            return Err(invalid(format!(
                "its tables of {entries} entries are not of 1 to {MAX_ENTRIES}"
            )));
        }
        let tables = length.div_ceil(grain).div_ceil(u64::from(entries));
        let directory_at = in_bytes("place of the directory", fields.u64(56), MAX_LENGTH)?;
        let directory_bytes = tables.saturating_mul(4);
        if directory_bytes > file_length.saturating_sub(directory_at) {
            return Err(invalid(format!(
                "its directory of {directory_bytes} bytes at {directory_at} does not lie in the file, which is \
                 {file_length} bytes long"
            )));
        }
        let place = shared.next(directory_bytes)?;
        let directory = directory(file, directory_at, directory_bytes)?;
        Ok(Self {
            length,
            descriptor,
            grain,
            entries,
            directory,
            zeroed: flags & HAS_ZEROED_GRAINS != 0,
            compressed,
            markers: flags & HAS_MARKERS != 0,
            tables: Mutex::default(),
            place,
        })
    }

    /// Where the first bytes of `range`, which lies within the extent, are.
    pub(super) fn look(&self, file: &dyn Storage, range: ByteRange) -> io::Result<Mapping> {
        let (at, rest) = (range.start() / self.grain, range.start() % self.grain);
        let len = range.len().min(self.grain - rest);
        let place = match self.entry(file, at)? {
            0 => Place::Below,
            ZEROED if self.zeroed => Place::Zeros,
            _ if self.compressed => Place::Data { offset: None },
            sector => Place::Data {
                offset: Some(u64::from(sector) * SECTOR + rest),
            },
        };
        Ok(Mapping { place, len })
    }

    /// Reads what a part of a grain has, which was found to be data.
    pub(super) fn read_data(
        &self,
        file: &dyn Storage,
        range: ByteRange,
        place: Place,
        into: Scatter<'_>,
    ) -> io::Result<()> {
        match place {
            Place::Data { offset: Some(offset) } => read_or_zeros(file, into, offset),
            Place::Data { offset: None } => {
                let grain = self.inflated(file, range.start() / self.grain)?;
                let at = in_memory(range.start() % self.grain)?;
                let bytes = grain.get(at..at + into.len());
                into.copy_from(0, bytes.ok_or_else(|| broken("a part of more than one grain"))?);
                Ok(())
            }
            Place::Zeros | Place::Below => {
                into.zero();
                Ok(())
            }
        }
    }

    /// The table's entry for a grain.
    fn entry(&self, file: &dyn Storage, grain: u64) -> io::Result<u32> {
        let entries = u64::from(self.entries);
        let index = in_memory(grain / entries)?;
        let sector = *self
            .directory
            .get(index)
            .ok_or_else(|| broken("a grain behind the end"))?;
        if sector == 0 {
            return Ok(0);
        }
        let within = in_memory(grain % entries)?;
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = tables.iter().position(|(of, _)| *of == index) {
            return Ok(tables[at].1[within]);
        }
        let mut bytes = zeros(self.entries as usize * 4)?;
        read_slice(file, &mut bytes, u64::from(sector) * SECTOR)?;
        let table: Arc<[u32]> = numbers(&bytes).collect();
        let entry = table[within];
        if tables.len() == self.place.tables {
            tables.remove(0);
        }
        tables.push((index, table));
        Ok(entry)
    }

    fn inflated(&self, file: &dyn Storage, grain: u64) -> io::Result<Arc<[u8]>> {
        let here = (self.place.number, grain);
        let kept = || self.place.inflated.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, bytes)) = &*kept()
            && *of == here
        {
            return Ok(Arc::clone(bytes));
        }
        let at = u64::from(self.entry(file, grain)?) * SECTOR;
        let (at, len) = if self.markers {
            let mut marker = [0; MARKER];
            read_slice(file, &mut marker, at)?;
            let marker = Fields(&marker);
            let sector = grain * (self.grain / SECTOR);
            if marker.u64(0) != sector {
                return Err(broken(&format!(
                    "a marker of sector {} at that of {sector}",
                    marker.u64(0)
                )));
            }
            (at + MARKER as u64, u64::from(marker.u32(8)))
        } else {
            (at, self.grain)
        };
        // What does not compress grows a little.
        if len > 2 * self.grain {
            return Err(broken(&format!("a grain of {len} bytes, compressed")));
        }
        let there = file.length()?.saturating_sub(at).min(len);
        let mut packed = zeros(in_memory(there)?)?;
        read_slice(file, &mut packed, at)?;
        let mut whole = zeros(in_memory(self.grain)?)?;
        let flags = TINFL_FLAG_PARSE_ZLIB_HEADER | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let (status, _, written) = decompress(&mut DecompressorOxide::new(), &packed, &mut whole, 0, flags);
        // The last grain may have no more than the disk.
        let wanted = self.grain.min(self.length - grain * self.grain);
        if status != TINFLStatus::Done || (written as u64) < wanted {
            return Err(broken(&format!("a grain that does not decompress: {status:?}")));
        }
        let whole: Arc<[u8]> = whole.into();
        *kept() = Some((here, Arc::clone(&whole)));
        Ok(whole)
    }
}

fn descriptor_of(fields: &Fields<'_>) -> Result<Option<ByteRange>> {
    let (at, len) = (fields.u64(28), fields.u64(36));
    if at == 0 {
        return Ok(None);
    }
    let bytes = |sectors: u64| sectors.checked_mul(SECTOR);
    match (bytes(at), bytes(len)) {
        (Some(at), Some(len)) if len <= MAX_DESCRIPTOR => Ok(ByteRange::new(at, len)),
        _ => Err(invalid(format!(
            "its descriptor of {len} sectors at {at} is beyond all limits"
        ))),
    }
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(4).map(|four| Fields(four).u32(0))
}

/// The numbers in `len` bytes of a file, which has these.
fn directory(file: &dyn Storage, at: u64, len: u64) -> Result<Vec<u32>> {
    let no_memory = || {
        Error::new(
            ErrorCode::NoMemory,
            format!("no memory for its directory of {len} bytes"),
        )
    };
    let mut all = Vec::new();
    let count = usize::try_from(len / 4).map_err(|_| no_memory())?;
    all.try_reserve_exact(count).map_err(|_| no_memory())?;
    let end = at + len;
    let mut at = at;
    while at < end {
        let part = bytes(file, at, (end - at).min(STEP as u64))?;
        at += part.len() as u64;
        all.extend(numbers(&part));
    }
    Ok(all)
}

fn in_memory(len: u64) -> io::Result<usize> {
    usize::try_from(len).map_err(|_| broken("a part that is too long"))
}

#[cold]
fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the vmdk has {what}"))
}
