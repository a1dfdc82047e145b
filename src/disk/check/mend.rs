//! Dirty bitmaps whose files cannot be used get new ones.
//!
//! Invariant (D1, M1): a new file is durable, with its name, before the descriptor names it, and what its bits were made for
//! is durable before that. Allocation bitmaps are left alone: nobody knows what theirs said.

use std::path::Path;

use super::look::{BitmapSeen, Has};
use super::report::{CheckReport, FindingKind};
use super::{Repair, leftovers};
use crate::bitmap::{BitmapFile, BitmapPolicy, Bits};
use crate::descriptor::names::{FileName, create_untaken_like};
use crate::descriptor::save::{self, SaveError};
use crate::descriptor::{BitmapEntry, Descriptor};
use crate::disk::Child;
use crate::disk::bitmaps::new_epoch;
use crate::disk::open::Place;
use crate::error::{Error, Result};
use crate::mutation::{self, Fault};
use crate::storage::{Role, SyncMode};
use crate::units::GranuleRange;

/// A bitmap that is to have another file: its name, its bits, and its entry but for the file.
struct Mended<'d> {
    name: &'d str,
    bits: Bits,
    entry: BitmapEntry,
}

/// What is checked, with its image and its length where they are known.
type Checked<'a> = (&'a Place, &'a Descriptor, Option<(&'a Child, u64)>);

/// Gives those of `bitmaps` new files that cannot be opened as they are, as far as `repair` does; of a disk that others may have
/// `outgrown` while it was not closed, also those that do not know of that. Tells `report` of it.
pub(super) fn bitmaps(
    (place, descriptor, disk): Checked<'_>,
    repair: Repair,
    bitmaps: &[BitmapSeen<'_>],
    outgrown: bool,
    report: &mut CheckReport,
) {
    let lacking = |it: &&BitmapSeen<'_>| matches!(it.file, Has::Nothing | Has::Part(_));
    let unknowing = |it: &&BitmapSeen<'_>| outgrown && it.records();
    let chosen: Vec<_> = match repair {
        Repair::Dirty => bitmaps.iter().filter(|it| lacking(it) || unknowing(it)).collect(),
        Repair::Trust if outgrown => {
            let kept = |it: &&BitmapSeen<'_>| it.any_file().is_some() && (lacking(it) || unknowing(it));
            bitmaps.iter().filter(kept).collect()
        }
        _ => return,
    };
    let Some(first) = chosen.first() else { return };
    let Some((image, length)) = disk else {
        let words = "it is not made anew, as the length of the disk is not known";
        report.add(FindingKind::RepairFailed, &first.entry.file, words.to_owned());
        return;
    };
    let mended: Result<Vec<_>> = if repair == Repair::Dirty {
        chosen.iter().map(|it| every_bit(it, length)).collect()
    } else {
        with_what_they_lack(&chosen, length)
    };
    match mended.and_then(|mended| replace(place, descriptor, image, mended)) {
        Ok(new) => {
            for bitmap in &chosen {
                let kinds = [FindingKind::FileMissing, FindingKind::FileInvalid];
                report.fix(&kinds, &bitmap.entry.file);
                if repair == Repair::Dirty {
                    // It has another starting point, of which the state file says nothing.
                    report.fix(&[FindingKind::BitmapInconsistent], bitmap.name);
                }
            }
            let old: Vec<&str> = chosen.iter().map(|it| &*it.entry.file).collect();
            leftovers::remove_old(place, &new, &old, report);
        }
        Err(error) => {
            let words = format!("it was not made anew: {error}");
            report.add(FindingKind::RepairFailed, &first.entry.file, words);
        }
    }
}

/// With the bits that they have, and all from where the file's last word begins: the image ended in that, unless the file was
/// cut, and then nobody knows of any bit that it lacks.
fn with_what_they_lack<'d>(chosen: &[&BitmapSeen<'d>], length: u64) -> Result<Vec<Mended<'d>>> {
    let mut mended = Vec::new();
    for bitmap in chosen {
        let Some(file) = bitmap.any_file() else { continue };
        let granules = bitmap.entry.granularity.granules_in(length);
        let bits = file.load_what_is_there(granules)?;
        bits.set(GranuleRange::new(file.last_word()?.min(granules), granules));
        mended.push(Mended {
            name: bitmap.name,
            bits,
            entry: bitmap.entry.clone(),
        });
    }
    Ok(mended)
}

/// As of a new starting point: whoever knows the old one must not go on from it.
fn every_bit<'d>(bitmap: &BitmapSeen<'d>, length: u64) -> Result<Mended<'d>> {
    let bits = Bits::new(bitmap.entry.granularity.granules_in(length))?;
    bits.set(bits.all());
    let entry = BitmapEntry {
        epoch: Some(new_epoch()?),
        start_length: Some(length),
        ..bitmap.entry.clone()
    };
    let name = bitmap.name;
    Ok(Mended { name, bits, entry })
}

/// Makes the files, and the descriptor that names them.
fn replace(
    place: &Place,
    descriptor: &Descriptor,
    image: &Child,
    mended: Vec<Mended<'_>>,
) -> Result<Descriptor> {
    place
        .folder
        .check_writable()
        .map_err(|e| Error::io("create files in", place.folder_name(), &e))?;
    // Whoever cut the image may not have made that durable: a power cut would bring back what there are no bits for (D1).
    if !mutation::on(Fault::FoundLengthUnsynced) {
        let synced = image.storage.sync(SyncMode::Data);
        synced.map_err(|e| image.failed("flush", &e))?;
    }
    let mut made = Vec::new();
    let saved = files(place, descriptor, mended, &mut made)
        .map_err(SaveError::Unchanged)
        .and_then(|new| save::replace(&*place.folder, &place.name, &new).map(|()| new));
    if let Err(SaveError::Unchanged(_)) = &saved {
        for name in made {
            // The first failure is the one to tell; a file that stays is found by the next check.
            let _ = place.folder.remove(name.as_ref());
        }
    }
    Ok(saved?)
}

/// The files, durable, with their names. Appends these to `made`, also when it fails.
fn files(
    place: &Place,
    descriptor: &Descriptor,
    mended: Vec<Mended<'_>>,
    made: &mut Vec<String>,
) -> Result<Descriptor> {
    let old = descriptor;
    // D1: the file of a bitmap that has none would have its name, and the descriptor would name it before its bits are there.
    let taken = |name: &Path| {
        let mut names = leftovers::names_of(old).into_iter();
        !mutation::on(Fault::RemadeInPlace) && names.any(|it| it.file_name() == name.file_name())
    };
    let mut descriptor = old.clone();
    for Mended { name, bits, entry } in mended {
        let file = FileName::bitmap(&place.name, name);
        let (file, storage) = create_untaken_like(&*place.folder, Role::Bitmap, &file, &place.name, taken)?;
        made.push(file.clone());
        BitmapFile::new(storage, place.shown.join(&file), BitmapPolicy::WriteThrough).write_new(&bits)?;
        descriptor.update_bitmap(name, BitmapEntry { file, ..entry })?;
    }
    if !mutation::on(Fault::NamesUnsynced) {
        let synced = place.folder.sync();
        synced.map_err(|e| Error::io("sync the folder", place.folder_name(), &e))?;
    }
    Ok(descriptor)
}
