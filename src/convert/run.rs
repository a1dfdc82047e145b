//! Converting: a new image with what another shows, or the same into one that exists.

use std::io;
use std::path::Path;

use super::copy::{self, Copied, How};
use super::target::{NewQcow2, RawTarget, Target, place_for_new, taken};
use crate::descriptor::Format;
use crate::descriptor::names::FileName;
use crate::disk::{CreateOptions, Disk, Progress};
use crate::error::{Error, ErrorCode, Result};
use crate::format::qcow2::{DEFAULT_CLUSTER, Fresh};
use crate::parallel::{MOST_WORKERS, WORKERS};
use crate::storage::NewFile;
use crate::units::ByteRange;
use crate::zeros::BLOCK;

/// The largest [`Convert::sparse`].
const MOST_SPARSE: u64 = 16 << 20;

/// How to convert an image.
#[derive(Clone, Copy, Debug, Default)]
pub struct Convert {
    sparse: Option<u64>,
    offload: bool,
    threads: Option<usize>,
    cluster: Option<u64>,
}

/// What was converted, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Converted {
    /// The length of the image.
    pub length: u64,
    /// What was written; the rest is holes, or shared.
    pub written: u64,
    /// What shares its space with the source, as the file system can do that.
    pub shared: u64,
}

impl Convert {
    /// Zeros of 4 KiB and more become holes.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many zeros at least become a hole: a multiple of 512, at most 16 MiB. With 0 there are no holes: all of the image's
    /// space is taken.
    #[must_use]
    pub fn sparse(mut self, bytes: u64) -> Self {
        self.sparse = Some(bytes);
        self
    }

    /// How many threads do it, 1 to 16; 4 unless it is said.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// The kernel copies (`copy_file_range`) where it can. It does not look for zeros, so that those which are no holes in
    /// the source are none in the new image either.
    #[must_use]
    pub fn offload(mut self, yes: bool) -> Self {
        self.offload = yes;
        self
    }

    /// How many bytes a cluster of a new qcow2 has, a power of two from 512 to 2 MiB; 64 KiB unless it is said. Other formats
    /// have none.
    #[must_use]
    pub fn cluster_size(mut self, bytes: u64) -> Self {
        self.cluster = Some(bytes);
        self
    }

    /// Makes the image `target`, raw, a qcow2 or a QBM disk, with what `source` shows, which must not change meanwhile. Durable on
    /// return.
    ///
    /// The file gets its name when all of it is there: whatever goes wrong before, nothing is left behind, not even where
    /// the process is killed (but on file systems that know no files without a name; and of a QBM disk at most its data
    /// image, which [`CheckOptions`](crate::CheckOptions) finds once there is a disk of that name). Where the file system
    /// can share space between files, nothing is copied.
    ///
    /// A qcow2 is of version 3, and has the clusters that have data.
    ///
    /// Fails with `FileExists` where the name is taken, `NotSupported` for other formats, `InvalidArgument` for a qcow2
    /// whose length is no multiple of 512, or whose cluster size there is not, and `Canceled` where `progress` says so.
    pub fn create(
        &self,
        source: &Disk,
        target: &Path,
        format: Format,
        progress: &mut Progress<'_>,
    ) -> Result<Converted> {
        self.create_parts(source, target, format, progress)
            .map_err(|e| explained(e, source, target))
    }

    fn create_parts(
        &self,
        source: &Disk,
        target: &Path,
        format: Format,
        progress: &mut Progress<'_>,
    ) -> Result<Converted> {
        let how = self.how()?;
        if format == Format::Vmdk {
            return Err(Error::new(
                ErrorCode::NotSupported,
                "vmdk images cannot be written by this version; raw, qbm and qcow2 can",
            ));
        }
        let (folder, name) = place_for_new(target)?;
        let io_failed = |e: &io::Error| Error::io("create", target, e);
        let mut file = NewFile::create(folder).map_err(|e| io_failed(&e))?;
        let copied = if format == Format::Qcow2 {
            let storage = file.storage();
            let cluster = self.cluster.unwrap_or(DEFAULT_CLUSTER);
            let image = Fresh::new(storage, target.to_owned(), source.length(), cluster)?;
            fill_qcow2(image, source, how, progress)?
        } else {
            fill(&file, source, target, how, progress)?
        };
        if format == Format::Qbm {
            let image = FileName::data(name)
                .give_to(&mut file)
                .map_err(|e| io_failed(&e))?;
            let made = CreateOptions::new().image(&*image).create(target);
            if made.is_err() {
                file.take_back(Path::new(&image));
            }
            made?;
        } else {
            file.publish(name).map_err(|e| match e.kind() {
                io::ErrorKind::AlreadyExists => taken(),
                _ => io_failed(&e),
            })?;
        }
        Ok(told(source, copied))
    }

    /// Makes the first bytes of the image or disk `target`, which exists and is as long as `source` at least, what `source`
    /// shows. What lies behind them stays. Durable on return; after a failure part of it is new and part old.
    ///
    /// The bitmaps of a QBM disk record it. Fails with `Locked` where somebody uses the target, `InvalidArgument` where it
    /// is shorter, or is the source, or a part of it.
    pub fn overwrite(
        &self,
        source: &Disk,
        target: &Path,
        format: Format,
        progress: &mut Progress<'_>,
    ) -> Result<Converted> {
        self.overwrite_parts(source, target, format, progress)
            .map_err(|e| explained(e, source, target))
    }

    fn overwrite_parts(
        &self,
        source: &Disk,
        target: &Path,
        format: Format,
        progress: &mut Progress<'_>,
    ) -> Result<Converted> {
        let how = self.how()?;
        let target = match format {
            Format::Qbm => Target::disk(target)?,
            Format::Raw => Target::raw(target)?,
            other => {
                return Err(Error::new(
                    ErrorCode::NotSupported,
                    format!("a {other} image that exists cannot be written to; raw and qbm images can"),
                ));
            }
        };
        check_apart(source, &target)?;
        let (length, wanted) = (target.length()?, source.length());
        if length < wanted {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                format!("it is {length} bytes long, and the source {wanted}"),
            ));
        }
        let copied = copy::copy(source, &target, how, progress)?;
        target.finish()?;
        Ok(told(source, copied))
    }

    fn how(&self) -> Result<How> {
        let bytes = self.sparse.unwrap_or(BLOCK);
        match usize::try_from(bytes) {
            Ok(sparse) if bytes.is_multiple_of(512) && bytes <= MOST_SPARSE => Ok(How {
                sparse,
                offload: self.offload,
                threads: threads(self.threads),
            }),
            _ => Err(Error::new(
                ErrorCode::InvalidArgument,
                format!("holes of {bytes} bytes: it must be a multiple of 512, up to {MOST_SPARSE}"),
            )),
        }
    }
}

/// How many threads are started for so many that are asked for.
pub(super) fn threads(asked: Option<usize>) -> usize {
    asked.unwrap_or(WORKERS).clamp(1, MOST_WORKERS)
}

/// Writes all of the new file.
fn fill(file: &NewFile, source: &Disk, path: &Path, how: How, progress: &mut Progress<'_>) -> Result<Copied> {
    let length = source.length();
    let mut target = RawTarget {
        storage: file.storage(),
        path: path.to_owned(),
        new: true,
        lock: None,
    };
    let storage = file.storage();
    storage
        .set_length(length)
        .map_err(|e| target.failed(&format!("give {length} bytes to"), &e))?;
    if how.sparse == 0 && length > 0 {
        match storage.allocate(ByteRange::between(0, length)) {
            Ok(()) => {}
            // Then zeros have to be written.
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => target.new = false,
            Err(e) => return Err(target.failed(&format!("reserve {length} bytes for"), &e)),
        }
    }
    copy::copy(source, &Target::Raw(target), how, progress)
}

/// Writes all of the new file, a qcow2.
fn fill_qcow2(image: Fresh, source: &Disk, how: How, progress: &mut Progress<'_>) -> Result<Copied> {
    let target = Target::Qcow2(NewQcow2 {
        image,
        holes: how.sparse > 0,
    });
    let copied = copy::copy(source, &target, how, progress)?;
    target.finish()?;
    Ok(copied)
}

/// Fails where the target is a file of the source: without locks, nothing else would keep them apart.
fn check_apart(source: &Disk, target: &Target) -> Result<()> {
    let identity = match target {
        Target::Raw(raw) => raw.storage.identity(),
        Target::Disk(disk) => disk.raw_layer(0).and_then(|image| image.identity()),
        Target::Qcow2(_) => None,
    };
    let layers = source.info()?.layers;
    let same = (0..layers)
        .filter_map(|layer| source.raw_layer(layer))
        .any(|layer| layer.identity() == identity && identity.is_some());
    if same {
        return Err(Error::new(
            ErrorCode::InvalidArgument,
            "it is a part of the source",
        ));
    }
    Ok(())
}

fn told(source: &Disk, copied: Copied) -> Converted {
    Converted {
        length: source.length(),
        written: copied.written,
        shared: copied.shared,
    }
}

fn explained(error: Error, source: &Disk, target: &Path) -> Error {
    error.context(format_args!(
        "cannot convert {} to {}",
        source.path().display(),
        target.display()
    ))
}
