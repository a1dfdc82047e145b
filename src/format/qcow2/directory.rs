//! The bitmap directory: which bitmaps there are.

use std::collections::HashSet;

use super::fields::{Fields, invalid};
use super::{AUTO, DIRTY, ENTRY_BYTES, IN_USE, MAX_NAME_BYTES};
use crate::error::{Error, ErrorCode, Result};
use crate::units::Granularity;

/// What the directory says of one bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BitmapRecord {
    pub(crate) name: String,
    pub(crate) granularity: Granularity,
    /// Writes set its bits.
    pub(crate) recording: bool,
    /// It was not saved: bits may be missing.
    pub(crate) in_use: bool,
    /// Where its table is.
    pub(super) table: u64,
    /// How many entries that has.
    pub(super) entries: u32,
}

/// The `count` entries in `bytes`.
pub(super) fn parse(bytes: &[u8], count: u32) -> Result<Vec<BitmapRecord>> {
    let mut records = Vec::new();
    let mut names = HashSet::new();
    let mut rest = bytes;
    for index in 0..count {
        let (record, len) =
            entry(rest).map_err(|e| e.context(format_args!("bitmap directory: entry {index}")))?;
        if !names.insert(record.name.clone()) {
            return Err(invalid(format!(
                "bitmap directory: there are two bitmaps {:?}",
                record.name
            )));
        }
        records.push(record);
        // The last may lack its padding.
        rest = rest.get(len.next_multiple_of(8)..).unwrap_or_default();
    }
    Ok(records)
}

/// The entry at the front of `bytes`, and its length without padding.
fn entry(bytes: &[u8]) -> Result<(BitmapRecord, usize)> {
    let mut fields = Fields(bytes);
    let (table, entries, flags) = (fields.u64()?, fields.u32()?, fields.u32()?);
    let (kind, granularity_bits) = (fields.u8()?, fields.u8()?);
    let (name_bytes, extra_bytes) = (fields.u16()?, fields.u32()?);
    if extra_bytes != 0 {
        return Err(Error::new(
            ErrorCode::NotSupported,
            format!("it has {extra_bytes} bytes of extra data, whose meaning is unknown"),
        ));
    }
    if name_bytes == 0 || name_bytes > MAX_NAME_BYTES {
        return Err(invalid(format!(
            "a name of {name_bytes} bytes is not between 1 and {MAX_NAME_BYTES}"
        )));
    }
    let name = std::str::from_utf8(fields.bytes(name_bytes.into())?)
        .map_err(|_| Error::new(ErrorCode::NotSupported, "its name is not UTF-8"))?;
    let wrong = |words: String| invalid(format!("bitmap {name:?}: {words}"));
    if flags & !(IN_USE | AUTO) != 0 {
        return Err(wrong(format!("its flags {flags:#x} have bits that are unknown")));
    }
    if kind != DIRTY {
        return Err(wrong(format!("its type {kind} is not {DIRTY}, dirty")));
    }
    let granularity = 1u64
        .checked_shl(granularity_bits.into())
        .and_then(Granularity::new)
        .ok_or_else(|| {
            wrong(format!(
                "{granularity_bits} granularity bits are not between 9 and 31"
            ))
        })?;
    let record = BitmapRecord {
        name: name.to_owned(),
        granularity,
        recording: flags & AUTO != 0,
        in_use: flags & IN_USE != 0,
        table,
        entries,
    };
    Ok((record, ENTRY_BYTES + usize::from(name_bytes)))
}
