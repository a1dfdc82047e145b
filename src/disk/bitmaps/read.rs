//! What a disk's bitmaps say, without changing them.
//!
//! Reading a frozen bitmap shows the frozen bits. Writers go on meanwhile: what they are just recording may or may
//! not be seen.

use std::sync::Arc;

use super::{Bitmap, BitmapContent, Shape};
use crate::bitmap::Bits;
use crate::descriptor::BitmapKind;
use crate::disk::Disk;
use crate::error::{Error, ErrorCode, Result};
use crate::units::{ByteRange, Granularity};

/// Facts about a bitmap, from [`Disk::bitmap_info`] and [`Disk::bitmap_list`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "they are flags, each with a rule of its own"
)]
pub struct BitmapInfo {
    /// Its name.
    pub name: String,
    /// What its bits mean.
    pub kind: BitmapKind,
    /// The bytes that one bit stands for.
    pub granularity: Granularity,
    /// Writes set its bits.
    pub recording: bool,
    /// It is frozen: a backup uses it.
    pub busy: bool,
    /// It has a file and outlives the open disk.
    pub persistent: bool,
    /// It can no longer be trusted.
    pub inconsistent: bool,
    /// Recovery has added bits to it since its starting point, as the disk was not closed: not all of what is dirty has
    /// changed.
    pub widened: bool,
    /// The bytes that recovery made dirty in it when the disk was opened; 0 once it has another starting point.
    pub recovered_bytes: u64,
    /// How many bits are set; `None` in a list where they are not in memory, as counting them means loading them.
    pub count: Option<u64>,
    /// The random id of its starting point; `None` where its descriptor has none.
    pub epoch: Option<String>,
    /// The disk's length at its starting point, in bytes; `None` where its descriptor does not say.
    pub start_length: Option<u64>,
    /// The id that it will have if the backup that has frozen it succeeds.
    pub next_epoch: Option<String>,
    /// Its file, as the descriptor names it.
    pub file: Option<String>,
}

impl Disk {
    /// Facts about all bitmaps: those of the descriptor in its order, then what was added since.
    pub fn bitmap_list(&self) -> Result<Vec<BitmapInfo>> {
        self.alive.check()?;
        Ok(self.gate.enter().bitmaps.iter().map(info).collect())
    }

    /// Facts about one bitmap, with its count.
    pub fn bitmap_info(&self, name: &str) -> Result<BitmapInfo> {
        self.alive.check()?;
        let shape = self.gate.enter();
        let bitmap = shape.find(name)?;
        if !bitmap.is_inconsistent() {
            self.bits_of(&shape, bitmap)?;
        }
        Ok(info(bitmap))
    }

    /// Whether the granule that the byte at `offset` lies in is dirty.
    pub fn bitmap_get(&self, name: &str, offset: u64) -> Result<bool> {
        self.read_bits(name, |bitmap, bits, length| {
            if offset >= length {
                return Err(behind(offset, length));
            }
            Ok(bits.get(bitmap.granularity.granule_of(offset)))
        })
    }

    /// How many granules are dirty.
    pub fn bitmap_count(&self, name: &str) -> Result<u64> {
        self.read_bits(name, |_, bits, _| Ok(bits.count()))
    }

    /// The first run of dirty bytes at or behind `offset`, at most `len` bytes from there on; `None` where there is
    /// none. It lies within these bytes, and ends where the dirty granules end.
    pub fn bitmap_next_dirty(&self, name: &str, offset: u64, len: u64) -> Result<Option<ByteRange>> {
        self.read_bits(name, |bitmap, bits, length| {
            let within = clip(offset, len, length)?;
            let run = bits.next_run(bitmap.granularity.touched_by(within), u64::MAX);
            Ok(run.map(|run| {
                let bytes = bitmap.granularity.bytes_of(run, length);
                ByteRange::between(bytes.start().max(within.start()), bytes.end().min(within.end()))
            }))
        })
    }

    /// The first byte at or behind `offset` whose granule is clean, at most `len` bytes from there on.
    pub fn bitmap_next_zero(&self, name: &str, offset: u64, len: u64) -> Result<Option<u64>> {
        self.read_bits(name, |bitmap, bits, length| {
            let within = clip(offset, len, length)?;
            let clean = bits.next_clear(bitmap.granularity.touched_by(within));
            Ok(clean.map(|clean| bitmap.granularity.start_of(clean).max(within.start())))
        })
    }

    /// The length of a bitmap's serialized form, in bytes: a multiple of 8.
    pub fn bitmap_serialized_len(&self, name: &str) -> Result<u64> {
        self.read_bits(name, |_, bits, _| Ok(bits.serialized_len()))
    }

    /// Copies the part of the serialized form from `offset` on into `out`; see [`BitmapContent`].
    ///
    /// Parts taken one after the other belong together only if the bitmap does not record meanwhile, or is frozen.
    pub fn bitmap_serialize(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        self.read_bits(name, |_, bits, _| bits.serialize(offset, out))
    }

    /// The bits as they are, apart from this disk. A frozen bitmap is refused, as merging from one is.
    pub fn bitmap_content(&self, name: &str) -> Result<BitmapContent> {
        self.read_bits(name, |bitmap, bits, length| {
            bitmap.check_thawed("merged from")?;
            let content = BitmapContent::new(bitmap.granularity, length)?;
            content.bits.merge_from(bits);
            Ok(content)
        })
    }

    /// Content for [`BitmapAction::Replace`](super::BitmapAction::Replace), no bit set yet, of the shape that the
    /// bitmap has.
    pub fn bitmap_blank(&self, name: &str) -> Result<BitmapContent> {
        self.alive.check()?;
        let shape = self.gate.enter();
        let bitmap = shape.find(name)?;
        bitmap.check_free("replaced")?;
        BitmapContent::new(bitmap.granularity, self.length())
    }

    fn read_bits<T>(&self, name: &str, read: impl FnOnce(&Bitmap, &Bits, u64) -> Result<T>) -> Result<T> {
        self.alive.check()?;
        let shape = self.gate.enter();
        let bitmap = shape.find(name)?;
        bitmap.check_consistent("read")?;
        read(bitmap, self.bits_of(&shape, bitmap)?, self.length())
    }

    fn bits_of<'s>(&self, shape: &Shape, bitmap: &'s Bitmap) -> Result<&'s Arc<Bits>> {
        self.loading.bits(bitmap, &shape.bitmaps, self.length())
    }
}

fn info(bitmap: &Bitmap) -> BitmapInfo {
    let next = bitmap
        .frozen
        .as_ref()
        .and_then(|frozen| frozen.start.epoch.as_deref());
    BitmapInfo {
        name: bitmap.name.to_string(),
        kind: BitmapKind::Dirty,
        granularity: bitmap.granularity,
        recording: bitmap.recording,
        busy: bitmap.frozen.is_some(),
        persistent: bitmap.kept.is_some(),
        inconsistent: bitmap.is_inconsistent(),
        widened: bitmap.is_widened(),
        recovered_bytes: bitmap.start.recovered,
        count: bitmap.loaded().map(|bits| bits.count()),
        epoch: bitmap.start.epoch.as_deref().map(str::to_owned),
        start_length: bitmap.start.length,
        next_epoch: next.map(str::to_owned),
        file: bitmap.kept.as_ref().map(|kept| kept.name.to_string()),
    }
}

/// The part of `len` bytes from `offset` on that the disk has.
fn clip(offset: u64, len: u64, length: u64) -> Result<ByteRange> {
    if offset > length {
        return Err(behind(offset, length));
    }
    Ok(ByteRange::between(offset, offset.saturating_add(len).min(length)))
}

fn behind(offset: u64, length: u64) -> Error {
    Error::new(
        ErrorCode::OutOfRange,
        format!("offset {offset} does not lie within the disk, which is {length} bytes long"),
    )
}

#[cfg(any(test, fuzzing))]
impl Disk {
    /// The first 64 bits of a bitmap as its file should have them: those of a frozen one are its successor's, too.
    pub(crate) fn bits_kept(&self, name: &str) -> Result<u64> {
        self.bitmap_info(name)?;
        let shape = self.gate.enter();
        let bitmap = shape.find(name)?;
        let successor = bitmap.frozen.as_ref().map(|frozen| &frozen.successor);
        let mut all = 0;
        for bits in bitmap.loaded().into_iter().chain(successor) {
            let mut word = [0; 8];
            bits.serialize(0, &mut word)?;
            all |= u64::from_le_bytes(word);
        }
        Ok(all)
    }
}
