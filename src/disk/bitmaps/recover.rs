//! What recovery does to the bitmaps of a disk that was not closed.
//!
//! Invariant (D1): whatever may have changed unseen is set before anybody asks; and what the disk goes on to rely on is
//! written again and synced, as it may have been in the page cache alone.

use super::{Bitmap, BitmapContent, Loading};
use crate::disk::AddedBits;
use crate::error::{Error, ErrorCode, Result};
use crate::mutation::{self, Fault};
use crate::state::{MarkId, Marks};
use crate::units::ByteRange;

/// Which bitmaps may lack bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::disk) enum Suspects {
    /// Those that record: all others had every bit of guests when they stopped.
    Recording,
    /// Every one: nothing is known of what happened to them.
    All,
}

impl Suspects {
    fn has(self, bitmap: &Bitmap) -> bool {
        !bitmap.is_inconsistent() && (bitmap.recording || self == Self::All)
    }
}

impl Bitmap {
    /// What the state file calls it.
    pub(in crate::disk) fn mark(&self) -> MarkId {
        MarkId::of(&self.name, self.start.epoch.as_deref())
    }

    /// What the state file says of it if it was widened. Without an epoch it could never be forgotten.
    pub(in crate::disk) fn note(&self) -> Option<MarkId> {
        let epoch = self.start.epoch.as_deref()?;
        Some(MarkId::widened(&self.name, epoch))
    }
}

/// The bitmaps that `marks` names are inconsistent, or were widened.
pub(in crate::disk) fn apply_marks(bitmaps: &mut [Bitmap], marks: &Marks) {
    for bitmap in bitmaps {
        bitmap.inconsistent |= marks.contains(bitmap.mark());
        if bitmap.note().is_some_and(|note| marks.contains(note)) {
            bitmap.widened_in.clone_from(&bitmap.start.epoch);
        }
    }
}

/// The bitmaps that record can no longer be trusted; returns their names.
pub(in crate::disk) fn distrust(bitmaps: &mut [Bitmap]) -> Vec<String> {
    let recording = bitmaps.iter_mut().filter(|bitmap| bitmap.records());
    recording
        .map(|bitmap| {
            bitmap.inconsistent = true;
            bitmap.name.to_string()
        })
        .collect()
}

/// The marks of those that are inconsistent.
pub(in crate::disk) fn marks_of(bitmaps: &[Bitmap]) -> Vec<MarkId> {
    let inconsistent = bitmaps.iter().filter(|bitmap| bitmap.inconsistent);
    inconsistent.map(Bitmap::mark).collect()
}

/// The notes of those that were widened.
pub(in crate::disk) fn notes_of(bitmaps: &[Bitmap]) -> Vec<MarkId> {
    let widened = bitmaps.iter().filter(|bitmap| bitmap.is_widened());
    widened.filter_map(Bitmap::note).collect()
}

/// Makes `ranges` dirty in the bitmaps that may lack them. In memory alone.
pub(in crate::disk) fn widen(
    bitmaps: &mut [Bitmap],
    suspects: Suspects,
    ranges: &[ByteRange],
    loading: &Loading,
    length: u64,
) -> Result<Vec<AddedBits>> {
    let mut added = Vec::new();
    for index in 0..bitmaps.len() {
        let bitmap = &bitmaps[index];
        if !suspects.has(bitmap) {
            continue;
        }
        let bits = loading.bits(bitmap, bitmaps, length)?;
        let bytes: u64 = ranges
            .iter()
            .map(|range| bits.set(bitmap.granularity.touched_by(*range)))
            .sum::<u64>()
            .saturating_mul(bitmap.granularity.bytes())
            .min(length);
        if bytes > 0 {
            added.push(AddedBits {
                bitmap: bitmap.name.to_string(),
                bytes,
            });
            bitmaps[index].start.recovered = bytes;
            bitmaps[index].widened_in.clone_from(&bitmaps[index].start.epoch);
        }
    }
    Ok(added)
}

/// Makes dirty in the bitmaps that record what others have put back behind the `old` end of a disk that is `length` bytes
/// long now: it was there at a bitmap's starting point, and may have been cut off since. In memory alone; says whether
/// there was any.
pub(in crate::disk) fn regrown(bitmaps: &[Bitmap], loading: &Loading, old: u64, length: u64) -> Result<bool> {
    let mut any = false;
    for bitmap in bitmaps.iter().filter(|bitmap| Suspects::Recording.has(bitmap)) {
        let back = ByteRange::between(old, length.min(bitmap.start.length.unwrap_or(length)));
        if !back.is_empty() {
            let bits = loading.bits(bitmap, bitmaps, length)?;
            bits.set(bitmap.granularity.touched_by(back));
            any = true;
        }
    }
    Ok(any)
}

/// Makes dirty in the bitmaps that record whatever is dirty in `writes`. In memory alone.
pub(in crate::disk) fn add(
    bitmaps: &[Bitmap],
    writes: &BitmapContent,
    loading: &Loading,
    length: u64,
) -> Result<()> {
    if writes.length != length {
        return Err(Error::new(
            ErrorCode::Locked,
            format!("its image has become {length} bytes long, from {}", writes.length),
        ));
    }
    for bitmap in bitmaps.iter().filter(|bitmap| Suspects::Recording.has(bitmap)) {
        let bits = loading.bits(bitmap, bitmaps, length)?;
        bits.merge_scaled(&writes.bits, writes.granularity, bitmap.granularity, length);
    }
    Ok(())
}

/// Writes the bits of those bitmaps again.
pub(in crate::disk) fn write_again(bitmaps: &[Bitmap], suspects: Suspects) -> Result<()> {
    for bitmap in bitmaps.iter().filter(|bitmap| suspects.has(bitmap)) {
        if let (Some(kept), Some(bits)) = (&bitmap.kept, bitmap.loaded()) {
            kept.file.write_again(bits).map_err(|e| named(bitmap, e))?;
        }
    }
    Ok(())
}

/// Makes the files of all durable. Of one that does not record, too: whoever was killed while he set bits in it has left them
/// in the page cache, and who sees them there may clear another that they came from.
pub(in crate::disk) fn sync(bitmaps: &[Bitmap]) -> Result<()> {
    let all = !mutation::on(Fault::StoppedUnsynced);
    for bitmap in bitmaps.iter().filter(|bitmap| !bitmap.is_inconsistent()) {
        if let Some(kept) = bitmap.kept.as_ref().filter(|_| all || bitmap.recording) {
            kept.file.sync().map_err(|e| named(bitmap, e))?;
        }
    }
    Ok(())
}

fn named(bitmap: &Bitmap, error: Error) -> Error {
    error.context(format_args!("bitmap {:?}", bitmap.name))
}
