//! Putting a disk on another image, or on none, so that it shows what it showed, while the guest goes on.
//!
//! One look at each granule is enough: what the disk has itself it keeps, and what it has not reads the same from both
//! chains, or is copied up first; nothing goes back to the backing meanwhile, as whatever could do that waits. So at the
//! end all granules without a bit read the same from either chain, and the descriptor can name the other one.
//! Invariant (A1): what was copied, and what the guest has written, is durable with its bits before it does.

use super::backing::Below;
use super::chain::Shown;
use super::progress::{Account, Progress};
use super::read::in_memory;
use super::write::{Top, buffer};
use super::{Chain, Overlay};
use crate::descriptor::BackingEntry;
use crate::disk::Disk;
use crate::error::{Error, ErrorCode, Result};
use crate::mutation::{self, Fault};
use crate::storage::Zeroing;
use crate::units::{ByteRange, GranuleIndex, GranuleRange};

/// The most bytes that are compared and copied in one go.
const STEP: u64 = 1 << 20;
/// Runs of zeros of so many bytes are not written where the image has a hole.
const BLOCK: usize = 4096;

impl Disk {
    /// Puts the disk on another image, or on none, and shows what it showed before: what the two differ in is copied
    /// into the disk's own image first. On none, that is all that the backing has (QEMU calls it streaming); on an image
    /// that is deeper in the disk's own chain, what the images above that one have. What reads as zeros from both is not
    /// copied, and holes stay holes.
    ///
    /// The name goes into the descriptor as it is: a relative one is relative to the descriptor's folder. Durable on
    /// return. Requests go on meanwhile, but for a moment at the end; other changes of the disk's structure wait until
    /// it is over. No dirty bitmap records anything, as nothing changes for the guest.
    ///
    /// `progress` is called from time to time, and ends it with [`ErrorCode::Canceled`]. After an error the disk is on
    /// the image that it was on; what was copied takes room, and is found there when it is tried again.
    pub fn rebase(&self, backing: Option<BackingEntry>, progress: &mut Progress<'_>) -> Result<()> {
        self.rebase_parts(backing, progress)
            .map_err(|e| e.context(format_args!("cannot rebase {}", self.path.display())))
    }

    fn rebase_parts(&self, backing: Option<BackingEntry>, progress: &mut Progress<'_>) -> Result<()> {
        self.check_for_arrangement()?;
        self.check_writable()?;
        // Held to the end: nothing else may take a granule out of the image, or make the disk longer.
        let mut structure = self.structure();
        self.gate.enter().check_no_backup(&self.path)?;
        let overlay = self.overlay_of_its_own()?;
        if overlay.chain.unopened {
            return Err(Error::new(
                ErrorCode::NotSupported,
                "it was opened without its backing image",
            ));
        }
        let below = self.below((&structure.descriptor, &self.gate.enter()), &overlay, backing)?;
        below.chain.check_in_place_of(&overlay.chain)?;
        self.pull(&overlay, &below, progress)?;
        if !mutation::on(Fault::RebasedUnflushed) {
            // What can be done while the guest goes on.
            self.sync_written()?;
        }
        let mut shape = self.gate.close();
        self.check_for_arrangement()?;
        self.switch(&mut structure, &mut shape, &overlay, below)
    }

    /// Copies up what would read otherwise from `below`.
    fn pull(&self, overlay: &Overlay, below: &Below, progress: &mut Progress<'_>) -> Result<()> {
        let length = self.length();
        let mut pull = Pull {
            disk: self,
            top: Top {
                disk: self,
                overlay,
                image: self.image(),
                length,
            },
            new: &below.chain,
            account: Account::new(progress, length),
            seen: (buffer(STEP.min(length))?, buffer(STEP.min(length))?),
        };
        pull.all()
    }
}

/// A disk's granules on their way to another chain.
struct Pull<'j, 'p> {
    disk: &'j Disk,
    top: Top<'j>,
    new: &'j Chain,
    account: Account<'j, 'p>,
    /// Room for what the old and the new chain show.
    seen: (Vec<u8>, Vec<u8>),
}

impl Pull<'_, '_> {
    fn all(&mut self) -> Result<()> {
        let own = &self.top.overlay.own;
        let mut rest = own.bits.all();
        let mut at = 0;
        while let Some(start) = own.bits.next_clear(rest) {
            rest.start = start;
            let end = own.bits.next_set(rest).unwrap_or(rest.end);
            let run = own
                .granularity
                .bytes_of(GranuleRange { start, end }, self.top.length);
            self.account.add(run.start() - at)?;
            self.run(run)?;
            at = run.end();
            rest.start = end;
        }
        self.account.add(self.top.length - at)
    }

    /// A run of granules that had no bit when it was looked for.
    fn run(&mut self, run: ByteRange) -> Result<()> {
        let granularity = self.top.overlay.own.granularity;
        let whole = |at: u64| {
            let granule = granularity.granule_of(at);
            granularity.start_of(granule)
        };
        let mut at = run.start();
        while at < run.end() {
            self.disk.alive.check_unfailed()?;
            let rest = ByteRange::between(at, run.end());
            let (same, end) = self.known(rest)?;
            let skipped = if end == run.end() { end } else { whole(end) };
            let stop = if same && skipped > at {
                skipped
            } else {
                // Whole granules, at least one, and not much more than what is known of.
                let granule = granularity.bytes();
                let wanted = end.min(at.saturating_add(STEP));
                let stop = whole(wanted.saturating_add(granule - 1)).max(at.saturating_add(granule));
                let stop = stop.min(run.end());
                self.part(ByteRange::between(at, stop))?;
                stop
            };
            self.account.add(stop - at)?;
            at = stop;
        }
        Ok(())
    }

    /// Whether the first bytes of `range` are known to be the same in both chains without a look at them; and how far
    /// that goes.
    fn known(&self, range: ByteRange) -> Result<(bool, u64)> {
        let (old, end) = self.top.overlay.chain.shown(range)?;
        let (new, end) = self.new.shown(ByteRange::between(range.start(), end))?;
        let same = match (old, new) {
            (Shown::Zeros, Shown::Zeros) => true,
            (Shown::Data(old), Shown::Data(new)) => old.is_the_image_of(new),
            _ => false,
        };
        Ok((same, end))
    }

    /// Compares granules, and copies those that differ.
    fn part(&mut self, range: ByteRange) -> Result<()> {
        if range.len() > STEP {
            return self.large(range);
        }
        let (mut old, mut new) = std::mem::take(&mut self.seen);
        let result = self.small(range, (&mut old, &mut new));
        self.seen = (old, new);
        result
    }

    fn small(&self, range: ByteRange, (old, new): (&mut [u8], &mut [u8])) -> Result<()> {
        let len = in_memory(range.len());
        let (old, new) = (&mut old[..len], &mut new[..len]);
        self.top.overlay.chain.read_below(range, old)?;
        self.new.read_below(range, new)?;
        if old == new {
            return Ok(());
        }
        let granularity = self.top.overlay.own.granularity;
        let granules = granularity.touched_by(range);
        let part = |granule: u64| {
            let bytes = granularity.bytes_of(GranuleRange::one(GranuleIndex(granule)), self.top.length);
            in_memory(bytes.start() - range.start())..in_memory(bytes.end() - range.start())
        };
        let differs = |granule: u64| old[part(granule)] != new[part(granule)];
        let mut at = granules.start.0;
        while at < granules.end.0 {
            let end = (at..granules.end.0)
                .find(|it| !differs(*it))
                .unwrap_or(granules.end.0);
            if end > at {
                self.copy(
                    GranuleRange::new(at, end),
                    &old[part(at).start..part(end - 1).end],
                )?;
            }
            at = end.max(at + 1);
        }
        Ok(())
    }

    /// Puts `bytes`, which the old chain has in `granules`, into the image, and allocates these, but for those that
    /// another has allocated meanwhile.
    fn copy(&self, granules: GranuleRange, bytes: &[u8]) -> Result<()> {
        let own = &self.top.overlay.own;
        let whole = own.granularity.bytes_of(granules, self.top.length);
        let _claim = self.top.overlay.claims.claim(granules);
        let mut rest = granules;
        loop {
            let next = if mutation::on(Fault::NoSecondLook) {
                (!rest.is_empty()).then_some(rest.start)
            } else {
                own.bits.next_clear(rest)
            };
            let Some(start) = next else { return Ok(()) };
            rest.start = start;
            let end = match own.bits.next_set(rest) {
                Some(end) if !mutation::on(Fault::NoSecondLook) => end,
                _ => rest.end,
            };
            let run = GranuleRange { start, end };
            let range = own.granularity.bytes_of(run, self.top.length);
            let from = in_memory(range.start() - whole.start());
            self.put(range.start(), &bytes[from..from + in_memory(range.len())])?;
            self.top.publish(run)?;
            rest.start = end;
        }
    }

    /// Writes `bytes` into granules that are claimed. Zeros stay holes, or become some.
    fn put(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let zeros = |block: &[u8]| block.iter().all(|byte| *byte == 0);
        let mut at = 0;
        for run in bytes
            .chunks(BLOCK)
            .collect::<Vec<_>>()
            .chunk_by(|a, b| zeros(a) == zeros(b))
        {
            let len = run.iter().map(|block| block.len()).sum::<usize>();
            let start = offset + at as u64;
            if zeros(run[0]) {
                self.hole(ByteRange::between(start, start + len as u64))?;
            } else {
                self.top.write_bytes(start, &bytes[at..at + len])?;
            }
            at += len;
        }
        Ok(())
    }

    fn hole(&self, range: ByteRange) -> Result<()> {
        let how = Zeroing {
            may_unmap: true,
            no_fallback: false,
        };
        self.top.zero_hidden(range, how)
    }

    /// Compares one granule that is too long to be held in memory, and copies it where it differs.
    fn large(&mut self, range: ByteRange) -> Result<()> {
        let mut at = range.start();
        while at < range.end() {
            let (same, end) = self.known(ByteRange::between(at, range.end()))?;
            let step = ByteRange::between(at, end.min(at.saturating_add(STEP)));
            if same {
                at = end;
                continue;
            }
            let (old, new) = &mut self.seen;
            let len = in_memory(step.len());
            self.top.overlay.chain.read_below(step, &mut old[..len])?;
            self.new.read_below(step, &mut new[..len])?;
            if old[..len] != new[..len] {
                return self.copy_large(range);
            }
            self.account.add(0)?;
            at = step.end();
        }
        Ok(())
    }

    fn copy_large(&mut self, range: ByteRange) -> Result<()> {
        let overlay = self.top.overlay;
        let granules = overlay.own.granularity.touched_by(range);
        let _claim = overlay.claims.claim(granules);
        if overlay.own.bits.any_set(granules) {
            return Ok(());
        }
        let mut at = range.start();
        while at < range.end() {
            let (shown, end) = overlay.chain.shown(ByteRange::between(at, range.end()))?;
            let stop = match shown {
                Shown::Zeros => {
                    self.hole(ByteRange::between(at, end))?;
                    end
                }
                Shown::Data(_) => {
                    let step = ByteRange::between(at, end.min(at.saturating_add(STEP)));
                    let len = in_memory(step.len());
                    overlay.chain.read_below(step, &mut self.seen.0[..len])?;
                    self.put(at, &self.seen.0[..len])?;
                    step.end()
                }
            };
            self.account.add(0)?;
            at = stop;
        }
        self.top.publish(granules)
    }
}
