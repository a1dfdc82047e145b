//! Putting what an overlay has into its backing, while the guest goes on.
//!
//! What is in the overlay hides the backing, so the copies can be made under running requests: nobody sees them. A
//! granule that is written while it is copied, or later, is copied again; the last ones with the gate closed (durability
//! trap 1). Then the backing is made durable, then the bits go all at once (M1), then the space is freed (trap 6).
//! Invariant: at every moment, crashes included, the disk shows what it showed before.

use std::sync::Arc;

use super::Overlay;
use super::backing::name_from;
use super::chain::Source;
use super::progress::{Account, Progress};
use super::read::{in_memory, unopened};
use super::target::Target;
use crate::bitmap::Bits;
use crate::descriptor::{BackingEntry, Format};
use crate::disk::bitmaps::Shape;
use crate::disk::gate::Closed;
use crate::disk::{Child, Disk, Structure};
use crate::error::{Error, ErrorCode, Result};
use crate::mutation::{self, Fault};
use crate::storage::read_slice;
use crate::units::ByteRange;

/// The most bytes that are copied in one go: few enough to be still in the processor's cache when they are written.
const STEP: u64 = 256 << 10;
/// So much is written before the system is told to begin writing it out.
const PIECE: u64 = 8 << 20;
/// So much may be left to copy while the guest waits.
const LAST: u64 = 8 << 20;
/// So often is copied again before, at most: a guest that writes faster than is copied must not keep a commit for ever.
const PASSES: u32 = 5;

impl Disk {
    /// Writes all that the disk has in its own image into its backing, and then takes it out of the image, as
    /// [`make_empty`](Disk::make_empty) does. The disk shows what it showed before. Durable on return.
    ///
    /// The same as [`commit_into`](Disk::commit_into) layer 1.
    pub fn commit(&self, progress: &mut Progress<'_>) -> Result<()> {
        self.commit_into(1, progress)
    }

    /// Writes all that the disk has above `layer` into that, which is counted as by [`layer`](Disk::layer), and goes on
    /// as an empty overlay on it. The disk shows what it showed before. Durable on return.
    ///
    /// Layer 1 is the nearest backing image. Of a deeper one, the layers between give what they have, too, and are no
    /// part of the chain any more; their files stay as they are. What they show as disks of their own changes where they
    /// take from the layer that was written to, as does whatever else takes from it.
    ///
    /// Requests go on meanwhile, but for a moment at the end; other changes of the disk's structure wait until it is over.
    /// Holes stay holes, and a layer that is shorter than the disk is grown. `progress` is called from time to time, and
    /// ends it with [`ErrorCode::Canceled`]. After an error the layer may have some of the bytes, durably, which the disk
    /// still hides; where it cannot make sure of that, or cannot open the layer again, it cannot be emptied or resized until it
    /// is reopened.
    ///
    /// The layer may be raw, qbm or qcow2. A qcow2 is marked as one that is written to; where the process dies, `qemu-img
    /// check -r all` takes the mark away, and until then the disk is refused.
    pub fn commit_into(&self, layer: u32, progress: &mut Progress<'_>) -> Result<()> {
        self.commit_parts(layer, progress)
            .map_err(|e| e.context(format_args!("cannot commit {}", self.path.display())))
    }

    fn commit_parts(&self, number: u32, progress: &mut Progress<'_>) -> Result<()> {
        self.check_for_arrangement()?;
        self.check_writable()?;
        // Held to the end: a resize, or other bitmaps, would not know of the watch.
        let mut structure = self.structure();
        self.gate.enter().check_no_backup(&self.path)?;
        let overlay = self.gate.enter().overlay.clone();
        let Some((overlay, named)) = overlay.and_then(|it| it.backing.clone().map(|named| (it, named)))
        else {
            return Err(Error::new(ErrorCode::NotSupported, "it has no backing image"));
        };
        if overlay.chain.unopened {
            return Err(Error::new(
                ErrorCode::NotSupported,
                "it was opened without its backing image",
            ));
        }
        let above = number.saturating_sub(1) as usize;
        let Some(layer) = overlay.chain.layers.get(above).filter(|_| number > 0) else {
            return Err(Error::new(
                ErrorCode::OutOfRange,
                format!(
                    "there is no layer {number} below it: it has {}",
                    overlay.chain.layers.len()
                ),
            ));
        };
        let backing = if above == 0 {
            named
        } else {
            BackingEntry {
                file: name_from(
                    &self.place.shown,
                    layer.descriptor.as_deref().unwrap_or(&layer.image.path),
                )?,
                format: layer.descriptor.as_ref().map_or(layer.format, |_| Format::Qbm),
            }
        };
        self.check_folder()?;
        // Our own hold on it would keep us from writing to it.
        let _suspended = layer.suspended();
        let target = Target::open(self, &backing, &overlay.chain, (above, layer))?;
        let mut copy = Copy {
            image: self.image(),
            overlay: &overlay,
            length: self.length(),
            above,
            target: &target,
            begun: 0,
            account: Account::new(progress, 0),
        };
        let (mut shape, copied) = match self.copy_down(&mut copy, layer.length) {
            Ok(shape) => (shape, Ok(())),
            Err(error) => (self.gate.close(), Err(error)),
        };
        // However it ends: what the target has got may come to light some day, and must not change then.
        let finished = target.finish();
        let is_durable = finished.is_ok();
        let result = copied
            .and(finished)
            // Where a flush of the image failed meanwhile, what was copied last may be what a power cut takes back (A2).
            .and_then(|()| self.check_for_arrangement())
            .and_then(|()| self.go_on_above(backing, &mut structure, &mut shape, &overlay));
        if result.is_err() && !mutation::on(Fault::ChainOutdated) {
            self.see_anew(&mut structure, &mut shape, &overlay, is_durable);
        }
        drop(shape);
        result?;
        self.free_image();
        Ok(())
    }

    /// Copies all that lies above the target, which was `had` bytes long; the gate is closed when that is done.
    fn copy_down(&self, copy: &mut Copy<'_, '_>, had: u64) -> Result<Closed<'_, Shape>> {
        let (overlay, target) = (copy.overlay, copy.target);
        target.grow(had, copy.length)?;
        self.sync_written()?;
        let mut watch = Watch::begin(self, overlay)?;
        copy.all()?;
        for _ in 0..PASSES {
            let again = watch.next()?;
            copy.granules(&again)?;
            if bytes_of(overlay, &again) <= LAST {
                break;
            }
        }
        // Most of it; so that guests wait only for the rest.
        target.flush()?;
        let mut shape = self.gate.close();
        let copied = if mutation::on(Fault::CommitMissesWrites) {
            Ok(())
        } else {
            copy.granules(&watch.bits)
        };
        watch.end(&mut shape);
        copied.map(|()| shape)
    }

    /// The disk is an empty overlay on `backing` from now on. The gate is closed.
    fn go_on_above(
        &self,
        backing: BackingEntry,
        structure: &mut Structure,
        shape: &mut Shape,
        overlay: &Overlay,
    ) -> Result<()> {
        // As it is now: it has other bits, and maybe another length.
        let below = self.below((&structure.descriptor, shape), overlay, Some(backing))?;
        let named = (below.descriptor, Arc::new(below.chain));
        self.clear_allocation(structure, shape, overlay, named)?;
        self.loading.follow(&below.loading);
        structure.outdated = None;
        Ok(())
    }

    /// Reads the images below anew, one of which a commit that failed has written to: the disk hides what that has got, until
    /// it is emptied or cut (D1). By then it must see the same as who opens it next. The gate is closed.
    ///
    /// Where that cannot be, guests go on all the same: they see nothing of it before the disk is reopened.
    fn see_anew(&self, structure: &mut Structure, shape: &mut Shape, overlay: &Overlay, is_durable: bool) {
        let anew = if is_durable {
            self.reopen_chain(&structure.descriptor, shape, overlay)
        } else {
            Err(Error::new(ErrorCode::Failed, "it could not be made durable"))
        };
        structure.outdated = anew.err().map(|error| error.message().to_owned());
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

/// A copy of what the disk has above a layer into that layer.
struct Copy<'c, 'p> {
    image: &'c Child,
    overlay: &'c Overlay,
    length: u64,
    /// How many backing images lie above the target.
    above: usize,
    target: &'c Target,
    /// Up to here the system was told to begin writing out.
    begun: u64,
    account: Account<'c, 'p>,
}

impl Copy<'_, '_> {
    /// Copies all that lies above the target.
    fn all(&mut self) -> Result<()> {
        let mut total = 0;
        self.each(|_, _, range| {
            total += range.len();
            Ok(())
        })?;
        self.account.expect(total);
        let mut buffer = Vec::new();
        self.each(|copy, from, range| {
            if let Some(image) = from {
                return copy.bytes(image, range, &mut buffer);
            }
            copy.target.zero(range)?;
            copy.account.add(range.len())
        })
    }

    /// What lies above the target, run by run, and the image that has it; none where it is zeros.
    fn each(
        &mut self,
        mut act: impl FnMut(&mut Self, Option<&Child>, ByteRange) -> Result<()>,
    ) -> Result<()> {
        let (image, overlay, above) = (self.image, self.overlay, self.above);
        let mut at = 0;
        while at < self.length {
            let run = overlay.find(ByteRange::between(at, self.length))?;
            at = run.range.end();
            match run.source {
                Source::Own => act(self, Some(image), run.range)?,
                Source::Layer(index) if index < above => {
                    act(self, Some(&overlay.chain.layers[index].image), run.range)?;
                }
                // A layer in between that is too short hides what the target has there.
                Source::Zeros { depth } if depth < above && !mutation::on(Fault::HiddenByLength) => {
                    let end = run.range.end().min(overlay.chain.layers[above].length);
                    if end > run.range.start() {
                        act(self, None, ByteRange::between(run.range.start(), end))?;
                    }
                }
                Source::Unopened => return Err(unopened(run.range)),
                Source::Layer(_) | Source::Zeros { .. } => {}
            }
        }
        Ok(())
    }

    /// Copies those of `granules` that the disk's own image has.
    fn granules(&mut self, granules: &Bits) -> Result<()> {
        let (own, image) = (&self.overlay.own, self.image);
        let mut buffer = Vec::new();
        for wanted in granules.runs(granules.all()) {
            for run in own.bits.runs(wanted) {
                self.bytes(image, own.granularity.bytes_of(run, self.length), &mut buffer)?;
            }
        }
        Ok(())
    }

    fn bytes(&mut self, image: &Child, range: ByteRange, buffer: &mut Vec<u8>) -> Result<()> {
        let mut at = range.start();
        while at < range.end() {
            let extent = image
                .storage
                .extent(ByteRange::between(at, range.end()))
                .map_err(|e| image.failed("find the data in", &e))?;
            let run = ByteRange::between(at, at.saturating_add(extent.len.max(1)).min(range.end()));
            at = run.end();
            if extent.data {
                self.data(image, run, buffer)?;
            } else {
                self.target.zero(run)?;
                self.account.add(run.len())?;
            }
        }
        Ok(())
    }

    fn data(&mut self, image: &Child, range: ByteRange, buffer: &mut Vec<u8>) -> Result<()> {
        let mut at = range.start();
        while at < range.end() {
            // Cut where clusters of other formats begin, too.
            let part = ByteRange::between(at, range.end().min((at / STEP + 1).saturating_mul(STEP)));
            buffer.resize(in_memory(part.len()), 0);
            read_slice(&*image.storage, buffer, at)
                .map_err(|e| image.failed(&format!("read {part} from"), &e))?;
            self.target.write(buffer, at)?;
            at = part.end();
            if at < self.begun {
                // A granule that was written meanwhile is copied again.
                self.begun = at;
            } else if at - self.begun >= PIECE {
                self.target.start_writeback(ByteRange::between(self.begun, at));
                self.begun = at;
            }
            self.account.add(part.len())?;
        }
        Ok(())
    }
}
