//! Putting what an overlay has into its backing, while the guest goes on.
//!
//! What is in the overlay hides the backing, so the copies can be made under running requests: nobody sees them. A
//! granule that is written while it is copied, or later, is copied again; the last ones with the gate closed (durability
//! trap 1). Then the backing is made durable, then the bits go all at once (M1), then the space is freed (trap 6).
//! Invariant: at every moment, crashes included, the disk shows what it showed before.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::Overlay;
use super::chain::{Chain, Layer};
use super::open::Backing;
use super::read::in_memory;
use crate::bitmap::Bits;
use crate::descriptor::Format;
use crate::disk::bitmaps::{Loading, Shape};
use crate::disk::open::{Files, OpenOptions, Place};
use crate::disk::{Child, Disk, Structure, TruncateFlags, WriteFlags};
use crate::error::{Error, ErrorCode, Result};
use crate::mutation::{self, Fault};
use crate::state::{Lock, Sharing};
use crate::storage::{Access, Role, SyncMode, Zeroing, read_slice, write_slice};
use crate::units::ByteRange;

/// The most bytes that are copied in one go.
const STEP: u64 = 1 << 20;
/// So much may be left to copy while the guest waits.
const LAST: u64 = 8 << 20;
/// So often is copied again before, at most: a guest that writes faster than is copied must not keep a commit for ever.
const PASSES: u32 = 5;

/// Who is told how far a long operation is, in bytes done and to do, and may end it.
pub type Progress<'p> = dyn FnMut(u64, u64) -> ControlFlow<()> + 'p;

impl Disk {
    /// Writes all that the disk has in its own image into its backing, and then takes it out of the image, as
    /// [`make_empty`](Disk::make_empty) does. The disk shows what it showed before. Durable on return.
    ///
    /// Requests go on meanwhile, but for a moment at the end; other changes of the disk's structure wait. Holes stay
    /// holes, and a backing that is shorter than the disk is grown. `progress` is called from time to time, and ends it
    /// with [`ErrorCode::Canceled`]. After an error the backing may have some of the bytes, which the disk still hides;
    /// whatever else reads that backing sees them.
    pub fn commit(&self, progress: &mut Progress<'_>) -> Result<()> {
        self.commit_parts(progress)
            .map_err(|e| e.context(format_args!("cannot commit {}", self.path.display())))
    }

    fn commit_parts(&self, progress: &mut Progress<'_>) -> Result<()> {
        self.check_for_change()?;
        self.check_writable()?;
        // Held to the end: a resize, or other bitmaps, would not know of the watch.
        let mut structure = self.structure();
        self.gate.enter().check_no_backup(&self.path)?;
        let overlay = self.gate.enter().overlay.clone();
        let (Some(overlay), Some(backing)) = (overlay, Backing::of(&structure.descriptor)) else {
            return Err(Error::new(ErrorCode::NotSupported, "it has no backing image"));
        };
        let Some(layer) = overlay.chain.layers.first() else {
            return Err(Error::new(
                ErrorCode::NotSupported,
                "it was opened without its backing image",
            ));
        };
        // Our own hold on it would keep us from writing to it.
        let _suspended = layer.hold.suspended();
        let target = Target::open(self, &backing, layer)?;
        target.grow(layer.length, self.length())?;
        self.sync_written()?;
        let mut watch = Watch::begin(self, &overlay)?;
        let mut copy = Copy {
            image: &self.image,
            overlay: &overlay,
            length: self.length(),
            target: &target,
            progress,
            done: 0,
            total: bytes_of(&overlay, &overlay.own.bits),
        };
        copy.granules(&overlay.own.bits)?;
        for _ in 0..PASSES {
            let again = watch.next()?;
            copy.granules(&again)?;
            if bytes_of(&overlay, &again) <= LAST {
                break;
            }
        }
        let mut shape = self.gate.close();
        if !mutation::on(Fault::CommitMissesWrites) {
            copy.granules(&watch.bits)?;
        }
        watch.end(&mut shape);
        target.finish()?;
        let chain = self.chain_again(&structure)?;
        self.clear_allocation(&mut structure, &mut shape, &overlay, Arc::new(chain))?;
        self.free_image();
        Ok(())
    }

    /// The images below as they are now: the nearest has other bits and maybe another length.
    fn chain_again(&self, structure: &Structure) -> Result<Chain> {
        let backing = Backing::of(&structure.descriptor);
        Chain::open(&mut Files::new(&self.place), backing, &Loading::new(None))
    }
}

fn bytes_of(overlay: &Overlay, bits: &Bits) -> u64 {
    bits.count().saturating_mul(overlay.own.granularity.bytes())
}

/// Which granules are written while a commit runs.
struct Watch<'d> {
    disk: &'d Disk,
    overlay: &'d Overlay,
    bits: Arc<Bits>,
    ended: bool,
}

impl<'d> Watch<'d> {
    fn begin(disk: &'d Disk, overlay: &'d Overlay) -> Result<Self> {
        let bits = Arc::new(Bits::new(overlay.own.bits.len())?);
        let watch = Self {
            disk,
            overlay,
            bits,
            ended: false,
        };
        watch.put(&mut disk.gate.close(), Some(Arc::clone(&watch.bits)));
        Ok(watch)
    }

    /// What was written since the last call. With the gate closed, so that a write that was seen is in the image.
    fn next(&mut self) -> Result<Arc<Bits>> {
        let bits = Arc::new(Bits::new(self.overlay.own.bits.len())?);
        self.put(&mut self.disk.gate.close(), Some(Arc::clone(&bits)));
        Ok(std::mem::replace(&mut self.bits, bits))
    }

    fn end(&mut self, shape: &mut Shape) {
        self.put(shape, None);
        self.ended = true;
    }

    fn put(&self, shape: &mut Shape, bits: Option<Arc<Bits>>) {
        shape.watch(self.overlay.own.granularity, bits);
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.put(&mut self.disk.gate.close(), None);
        }
    }
}

/// A copy of granules of the disk's own image into the backing.
struct Copy<'c, 'p> {
    image: &'c Child,
    overlay: &'c Overlay,
    length: u64,
    target: &'c Target,
    progress: &'c mut Progress<'p>,
    done: u64,
    total: u64,
}

impl Copy<'_, '_> {
    /// Copies those of `granules` that the image has.
    fn granules(&mut self, granules: &Bits) -> Result<()> {
        let own = &self.overlay.own;
        let mut buffer = Vec::new();
        for wanted in granules.runs(granules.all()) {
            for run in own.bits.runs(wanted) {
                self.bytes(own.granularity.bytes_of(run, self.length), &mut buffer)?;
            }
        }
        Ok(())
    }

    fn bytes(&mut self, range: ByteRange, buffer: &mut Vec<u8>) -> Result<()> {
        let mut at = range.start();
        while at < range.end() {
            let extent = self
                .image
                .storage
                .extent(ByteRange::between(at, range.end()))
                .map_err(|e| self.image.failed("find the data in", &e))?;
            let mut part = ByteRange::between(at, at.saturating_add(extent.len.max(1)).min(range.end()));
            if extent.data {
                part = ByteRange::between(at, part.end().min(at.saturating_add(STEP)));
                buffer.resize(in_memory(part.len()), 0);
                read_slice(&*self.image.storage, buffer, at)
                    .map_err(|e| self.image.failed(&format!("read {part} from"), &e))?;
                self.target.write(buffer, at)?;
            } else {
                self.target.zero(part)?;
            }
            at = part.end();
            self.done += part.len();
            // What is copied again was not foreseen.
            self.total = self.total.max(self.done);
            if (self.progress)(self.done, self.total).is_break() {
                return Err(Error::new(
                    ErrorCode::Canceled,
                    "the caller ended it; the disk is as it was",
                ));
            }
        }
        Ok(())
    }
}

/// The backing, open for writing.
enum Target {
    Raw(Child),
    Qbm(Box<Disk>),
}

impl Target {
    /// Opens the backing of `disk`, which is open as `layer` already.
    fn open(disk: &Disk, backing: &Backing, layer: &Layer) -> Result<Self> {
        let path = backing.path()?;
        let target = if backing.format() == Format::Qbm {
            Self::open_disk(&disk.place, path)?
        } else {
            Self::open_raw(&disk.place, path)?
        };
        if target.image().storage.identity() == layer.image.storage.identity() {
            return Ok(target);
        }
        Err(Error::new(
            ErrorCode::FileInvalid,
            format!(
                "{} is not the file any more that the disk was opened with",
                target.image().path.display()
            ),
        ))
    }

    fn open_disk(place: &Place, path: &Path) -> Result<Self> {
        let options = OpenOptions::new()
            .confined(place.confined)
            .no_lock(!place.locking);
        let disk = if !place.handed_in {
            options.open(place.shown.join(path))?
        } else if path.parent().is_none_or(|folder| folder.as_os_str().is_empty()) {
            options.folder(Arc::clone(&place.folder)).open(path)?
        } else {
            return Err(Error::new(
                ErrorCode::NotSupported,
                format!(
                    "the backing {} lies in another folder than the disk, and the files come from the caller",
                    path.display()
                ),
            ));
        };
        Ok(Self::Qbm(Box::new(disk)))
    }

    fn open_raw(place: &Place, path: &Path) -> Result<Self> {
        let access = Access {
            write: true,
            direct: false,
        };
        let shown = place.shown.join(path);
        let storage = place
            .folder
            .open(Role::Backing, path, access)
            .map_err(|e| Error::io("open for writing", &shown, &e))?;
        if place.locking {
            // Held for as long as the file is open.
            let _: Option<Lock> = Lock::image(&storage, &shown, Sharing::Write)?;
        }
        Ok(Self::Raw(Child::new(storage, shown)))
    }

    fn image(&self) -> &Child {
        match self {
            Self::Raw(image) => image,
            Self::Qbm(disk) => &disk.image,
        }
    }

    /// Makes it as long as the disk, where it is shorter; what it gains reads as zeros.
    fn grow(&self, from: u64, to: u64) -> Result<()> {
        if to <= from {
            return Ok(());
        }
        match self {
            Self::Raw(image) => image
                .storage
                .set_length(to)
                .map_err(|e| image.failed("resize", &e)),
            Self::Qbm(disk) => disk.truncate(to, TruncateFlags::empty()),
        }
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        match self {
            Self::Raw(image) => write_slice(&*image.storage, bytes, offset)
                .map_err(|e| image.failed(&format!("write {} bytes at offset {offset} to", bytes.len()), &e)),
            Self::Qbm(disk) => disk.write(bytes, offset, WriteFlags::empty()),
        }
    }

    fn zero(&self, range: ByteRange) -> Result<()> {
        let how = Zeroing {
            may_unmap: true,
            no_fallback: false,
        };
        match self {
            Self::Raw(image) => image
                .storage
                .write_zeroes(range, how)
                .map_err(|e| image.failed(&format!("zero {range} of"), &e)),
            Self::Qbm(disk) => disk.write_zeroes(range.start(), range.len(), WriteFlags::MAY_UNMAP),
        }
    }

    /// Makes all of it durable.
    fn finish(self) -> Result<()> {
        match self {
            Self::Raw(_) if mutation::on(Fault::BackingUnsynced) => Ok(()),
            Self::Raw(image) => image
                .storage
                .sync(SyncMode::Data)
                .map_err(|e| image.failed("flush", &e)),
            Self::Qbm(disk) => disk.close(),
        }
    }
}
