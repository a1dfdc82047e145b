//! A disk's content and its bitmaps as a qcow2 that stands by itself.
//!
//! Invariant: nothing that exists is replaced, and the new file has its name only when all of it is there.

use std::io;
use std::path::Path;

use super::copy::{self, How};
use super::run::threads;
use super::target::{NewQcow2, Target, place_for_new, taken};
use crate::disk::{Disk, ExportOptions, OpenOptions, Progress, bitmaps_for_qemu};
use crate::error::{Error, ErrorCode, Result};
use crate::format::qcow2::{DEFAULT_CLUSTER, Fresh, shown_length};
use crate::storage::NewFile;
use crate::zeros::BLOCK_BYTES;

/// What [`ExportOptions::export_copy`] has made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportedCopy {
    /// The length of the disk that QEMU shows: the disk's, up to the next multiple of 512.
    pub length: u64,
    /// How many bytes of data were copied; the rest are zeros, which take no space.
    pub written: u64,
    /// The disk's bitmaps that are in it.
    pub bitmaps: Vec<String>,
    /// Those that were left out, as they are inconsistent.
    pub left_out: Vec<String>,
}

impl ExportOptions {
    /// Makes the qcow2 `target`, which stands by itself: it has in it what the disk `disk` shows, with all that is below
    /// it, and the disk's dirty bitmaps. Any disk that opens can be copied so. Durable on return.
    ///
    /// The disk and its bitmaps stay as they are; there is no way back from what QEMU writes to the copy. Bits behind an
    /// odd end are zeros, as QEMU counts in sectors of 512 bytes.
    ///
    /// Fails with `BitmapInconsistent` where a bitmap is, `FileExists` where the name is taken, `Locked` where somebody
    /// has the disk open for writing, and `Canceled` where `progress` says so. Then nothing is left behind.
    pub fn export_copy(
        self,
        disk: impl AsRef<Path>,
        target: impl AsRef<Path>,
        progress: &mut Progress<'_>,
    ) -> Result<ExportedCopy> {
        let (disk, target) = (disk.as_ref(), target.as_ref());
        let open = OpenOptions::new().read_only(true).open(disk)?;
        self.copy_parts(&open, target, progress).map_err(|error| {
            error.context(format_args!(
                "cannot export {} to {}",
                disk.display(),
                target.display()
            ))
        })
    }

    fn copy_parts(self, disk: &Disk, target: &Path, progress: &mut Progress<'_>) -> Result<ExportedCopy> {
        let (bitmaps, left_out) = self.choose(disk)?;
        let length = shown_length(disk.length())
            .ok_or_else(|| Error::new(ErrorCode::NotSupported, "QEMU shows no disk of this length"))?;
        let (folder, name) = place_for_new(target)?;
        let failed = |e: &io::Error| Error::io("create", target, e);
        let mut file = NewFile::create(folder).map_err(|e| failed(&e))?;
        let new = Target::Qcow2(NewQcow2 {
            image: Fresh::new(file.storage(), target.to_owned(), length, DEFAULT_CLUSTER)?,
            holes: true,
        });
        let how = How {
            sparse: BLOCK_BYTES,
            offload: false,
            threads: threads(None),
        };
        let copied = copy::copy(disk, &new, how, progress)?;
        new.finish_with(&bitmaps_for_qemu(disk, &bitmaps)?)?;
        file.publish(name).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => taken(),
            _ => failed(&e),
        })?;
        Ok(ExportedCopy {
            length,
            written: copied.written,
            bitmaps: bitmaps.into_iter().map(|info| info.name).collect(),
            left_out,
        })
    }
}
