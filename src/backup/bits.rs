//! The granules that a backup has of its own, and the file that says so.

use std::sync::Arc;

use super::digest::FileDigest;
use super::folder::BackupFolder;
use super::lock::Files;
use super::point::BackupPoint;
use crate::bitmap::{BitmapFile, BitmapPolicy, Bits};
use crate::disk::{BackupView, StatusFlags};
use crate::error::{Error, Result};
use crate::storage::{Role, read_slice};
use crate::units::{ByteRange, Granularity};

/// So many bytes of a bitmap's file are in memory at a time.
const PIECE: usize = 128 << 10;

/// Sets the bits that are dirty in a frozen bitmap.
pub(super) fn add_dirty(view: &BackupView<'_>, set: &Bits, granularity: Granularity) -> Result<()> {
    let length = view.length();
    let mut at = 0;
    while let Some(run) = view.next_dirty(at, length - at)? {
        set.set(granularity.touched_by(run));
        at = run.end();
    }
    Ok(())
}

/// Nothing is to be kept of what is not copied.
pub(super) fn release_clean(view: &BackupView<'_>, set: &Bits, granularity: Granularity) -> Result<()> {
    let mut at = 0;
    for run in set.runs(set.all()) {
        let dirty = granularity.bytes_of(run, view.length());
        view.release(at, dirty.start() - at)?;
        at = dirty.end();
    }
    view.release(at, view.length() - at)
}

/// Sets the bits of what `other` has of its own, as far as the disk of `point` has such granules.
pub(super) fn add_stored(
    folder: &BackupFolder,
    other: &BackupPoint,
    set: &Bits,
    point: &BackupPoint,
) -> Result<()> {
    let disk = folder.open_alone(other, true)?;
    let end = other.length.min(point.length);
    let mut at = 0;
    while at < end {
        let status = disk.block_status(at, end - at)?;
        let run = ByteRange::between(at, at.saturating_add(status.length).min(end));
        if status.flags.contains(StatusFlags::ALLOCATED) {
            set.set(point.granularity.touched_by(run));
        }
        at = run.end();
    }
    Ok(())
}

/// Writes the allocation bitmap of `point`, durably. Returns its checksum; `None` of a full one, which has none.
pub(super) fn write_bitmap(
    folder: &BackupFolder,
    point: &BackupPoint,
    set: &Bits,
    files: &mut Files,
) -> Result<Option<String>> {
    let Some(name) = &point.bitmap_file else {
        return Ok(None);
    };
    let storage = folder.create(point, Role::Bitmap, name)?;
    let path = folder.shown(name);
    files.push((name.clone(), Arc::clone(&storage)));
    BitmapFile::new(storage, path, BitmapPolicy::WriteThrough).write_new(set)?;
    bitmap_checksum(folder, name).map(Some)
}

/// The checksum of an allocation bitmap's file.
pub(super) fn bitmap_checksum(folder: &BackupFolder, name: &str) -> Result<String> {
    let storage = folder.file(name)?;
    let failed = |e: &std::io::Error| Error::io("read", folder.shown(name), e);
    let mut left = storage.length().map_err(|e| failed(&e))?;
    let mut digest = FileDigest::default();
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while left > 0 {
        let len = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        let piece = &mut buffer[..len];
        read_slice(&*storage, piece, at).map_err(|e| failed(&e))?;
        digest.add(piece);
        at += len as u64;
        left -= len as u64;
    }
    Ok(digest.finish())
}
