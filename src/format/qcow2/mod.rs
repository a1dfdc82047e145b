//! QEMU's qcow2: what QEMU's `docs/interop/qcow2.txt` calls the header, its extensions, and the bitmap directory, tables
//! and clusters; and, by way of the library `imago`, the disk that such a file holds.
//!
//! May call `storage`, `units` and `error`. Invariant: no field is used before it was checked, and a file that is
//! written names nothing that is not written yet: the header comes last.

mod bitmaps;
mod directory;
mod fields;
mod fresh;
mod header;
mod image;
mod opening;
mod order;
mod read;
mod tables;
#[cfg(test)]
mod tests;
mod write;

pub(crate) use bitmaps::NewBitmap;
pub(crate) use directory::BitmapRecord;
pub(crate) use fresh::{DEFAULT_CLUSTER, Fresh};
pub(crate) use header::DataFile;
pub(crate) use opening::{Unopened, mark_in};
pub(super) use order::Order;
pub(crate) use read::{Part, Qcow2};
pub(crate) use write::Thin;

/// `QFI\xfb`.
const MAGIC: u32 = 0x5146_49fb;

/// The header of version 3 up to its last field that is not optional.
const HEADER_BYTES: u32 = 104;

/// The header extensions that matter here.
const EXTENSION_END: u32 = 0;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// The length of the bitmaps extension, without its head.
const BITMAPS_EXTENSION_BYTES: u32 = 24;

/// Incompatible feature bits.
const DIRTY_REFCOUNTS: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// Autoclear feature bits: a program that knows nothing of such a feature clears the bit when it writes.
const BITMAPS_VALID: u64 = 1 << 0;
const RAW_EXTERNAL_DATA: u64 = 1 << 1;

/// Autoclear bits that nobody has given a meaning, for a mark of our own: whoever else writes to the image clears them.
const OWN_AUTOCLEAR: u64 = 0xffff_ffff << 32;
/// They are so many bytes, the first ones.
const OWN_AUTOCLEAR_BYTES: u64 = 4;

/// Where the autoclear bits are.
const AUTOCLEAR_AT: usize = 88;

/// Flags of a bitmap.
const IN_USE: u32 = 1 << 0;
const AUTO: u32 = 1 << 1;

/// The only type of bitmap: dirty.
const DIRTY: u8 = 1;

/// A bitmap table's entry without an offset: all of the cluster's bits are set.
const ALL_ONES: u64 = 1;

/// QEMU's own limits.
const MAX_BITMAPS: u32 = 65_535;
const MAX_DIRECTORY_BYTES: u64 = MAX_BITMAPS as u64 * 1024;
const MAX_BITMAP_BYTES: u64 = 512 << 20;
const MAX_NAME_BYTES: u16 = 1023;

/// A directory entry up to its extra data and its name.
const ENTRY_BYTES: usize = 24;

/// QEMU counts disks in sectors of this many bytes.
const SECTOR: u64 = 512;

/// How long QEMU shows a raw image of `length` bytes; `None` where no number says it.
pub(crate) fn shown_length(length: u64) -> Option<u64> {
    length.checked_next_multiple_of(SECTOR)
}

/// The bytes that the bits of `granules` take, in whole 64-bit words, as bitmaps are serialized.
fn serialized_bytes(granules: u64) -> u64 {
    granules.div_ceil(64) * 8
}

/// Any bytes as a qcow2: read to the last bit, or refused in words. For the fuzzer and for tests.
#[cfg(any(fuzzing, test))]
pub(crate) fn read_all(storage: &dyn crate::storage::Storage) {
    let Ok(qcow2) = Qcow2::read(storage, std::path::Path::new("any.qcow2")) else {
        return;
    };
    for record in qcow2.bitmaps() {
        let mut at = 0;
        let whole = qcow2.bits(record, &mut |range, part| {
            assert_eq!(range.start(), at, "the parts have a gap");
            if let Part::Bytes(bytes) = part {
                assert_eq!(bytes.len() as u64, range.len());
            }
            assert_eq!(range.len() % 8, 0);
            at = range.end();
            Ok(())
        });
        if whole.is_ok() {
            assert_eq!(at, serialized_bytes(record.granularity.granules_in(qcow2.size())));
        }
    }
}
