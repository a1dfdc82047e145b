//! A bitmap's file: reading it, and getting bits into it before the writes that they vouch for.
//!
//! May call `storage`. Invariant (D1): under write-through, a bit that is set in memory is in the file, at least in
//! the page cache; a bit is set in memory last, and only when its piece of the file was written. So "set" is all that
//! the fast path of a guest write has to ask.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bits::Bits;
use crate::error::{Error, ErrorCode, Result};
use crate::mutation::{self, Fault};
use crate::storage::{Storage, SyncMode, read_slice, write_slice};
use crate::sync::{Mutex, MutexGuard, PoisonError};
use crate::units::{ByteRange, GranuleRange};

/// Bytes of one piece of the file; what changes in it goes out in one write.
const PIECE: u64 = PIECE_BYTES as u64;
const PIECE_BYTES: usize = 4096;
/// Granules whose bits are in one piece.
const PIECE_GRANULES: u64 = PIECE * 8;
/// Locks that the pieces share.
const STRIPES: usize = 64;
/// The most bytes that are read at once; a multiple of 8.
const READ_STEP: u64 = 256 << 10;

/// When the bits that writes set get into their files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(i32)]
pub enum BitmapPolicy {
    /// Before the write itself: they survive the end of the process.
    #[default]
    WriteThrough = 0,
    /// When bitmaps are synced and when the disk is closed.
    Lazy = 1,
}

/// The open file of one persistent bitmap.
pub struct BitmapFile {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    /// Where the bits begin: at 0, where the file is theirs alone.
    base: u64,
    /// Of every piece one: two writers that set different bits of a piece write it one after the other, each with the
    /// other's bits (durability trap 2).
    stripes: Box<[Mutex<()>]>,
    policy: BitmapPolicy,
    /// Under the lazy policy: the pieces with bits that are not in the file yet.
    unsaved: Mutex<BTreeSet<u64>>,
    /// Held while pieces go out, so that no second caller returns before they have.
    saving: Mutex<()>,
    /// The bits that it lacks are clear, as its disk has become longer and nobody may write to it.
    outgrown: bool,
    /// Held while the file is synced; whether that has failed once. The kernel tells but one of two callers that it has lost
    /// pieces, and none that comes later.
    sync_failed: Mutex<bool>,
}

impl BitmapFile {
    /// The file `storage`, which messages call `path`.
    pub fn new(storage: Arc<dyn Storage>, path: PathBuf, policy: BitmapPolicy) -> Self {
        Self {
            storage,
            path,
            base: 0,
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
            policy,
            unsaved: Mutex::new(BTreeSet::new()),
            saving: Mutex::new(()),
            outgrown: false,
            sync_failed: Mutex::new(false),
        }
    }

    /// The same of a disk that has become longer, and is only read: the bits that the file lacks are clear.
    pub(crate) fn outgrown(self) -> Self {
        Self {
            outgrown: true,
            ..self
        }
    }

    /// Bits that lie behind something else: from byte `base` of the file `storage` to its end.
    pub(crate) fn behind(storage: Arc<dyn Storage>, path: PathBuf, base: u64) -> Self {
        Self {
            base,
            ..Self::new(storage, path, BitmapPolicy::WriteThrough)
        }
    }

    /// What messages call it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fails where the file is too short to hold `len` bits; whole bytes suffice.
    pub fn check_size(&self, len: u64) -> Result<()> {
        let (need, have) = (len.div_ceil(8), self.length()?);
        if have >= need {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::FileInvalid,
            format!(
                "{} is too small: {have} bytes, where the bits of the disk need {need}",
                self.path.display()
            ),
        ))
    }

    /// The first granule of the file's last word. The bits that the file was made for end in that word, if nobody cut it.
    pub(crate) fn last_word(&self) -> Result<u64> {
        Ok(self.length()?.saturating_sub(1) / 8 * 64)
    }

    /// Reads `len` bits, from the file's data extents alone. What lies behind them is ignored.
    pub fn load(&self, len: u64) -> Result<Bits> {
        if !self.outgrown {
            self.check_size(len)?;
        }
        self.load_what_is_there(len)
    }

    /// The same of a file that may be too short: the bits that it lacks are clear.
    pub(crate) fn load_what_is_there(&self, len: u64) -> Result<Bits> {
        let mut bits = Bits::new(len)?;
        let end = bits.serialized_len().min(self.length()?);
        let mut at = 0;
        while at < end {
            let extent = self
                .storage
                .extent(ByteRange::between(self.base + at, self.base + end))
                .map_err(|e| self.failed("find the data of", &e))?;
            let next = at.saturating_add(extent.len.max(1)).min(end);
            if extent.data {
                self.load_part(&mut bits, ByteRange::between(at, next), end)?;
            }
            at = next;
        }
        Ok(bits)
    }

    /// Reads the words that `part` touches; the file ends, as far as it counts, at `end`.
    fn load_part(&self, bits: &mut Bits, part: ByteRange, end: u64) -> Result<()> {
        let mut buffer = Vec::new();
        let mut at = part.start() / 8 * 8;
        let stop = part.end().next_multiple_of(8);
        while at < stop {
            let words = (stop - at).min(READ_STEP);
            // A file of the older driver ends in the middle of a word; the rest of that word is clear.
            let there = words.min(end - at);
            buffer.clear();
            buffer.resize(in_memory(words), 0);
            read_slice(&*self.storage, &mut buffer[..in_memory(there)], self.base + at)
                .map_err(|e| self.failed("read", &e))?;
            bits.deserialize(at, &buffer)?;
            at += words;
        }
        Ok(())
    }

    /// Sets the bits of `granules`, in the file first. On an error some may be in the file, and none that is not in
    /// it is set.
    ///
    /// `also` are bits that the file holds besides: those that a backup froze while `bits` record what comes after.
    // A piece that could not be written leaves its bits clear in memory, for the guest will try again, and a retry
    // that found them set would write data that no file vouches for (D1).
    pub fn record(&self, bits: &Bits, also: Option<&Bits>, granules: GranuleRange) -> Result<()> {
        if self.policy == BitmapPolicy::Lazy {
            // Under one lock, so that `save` finds the piece of every bit that a write can have found set.
            if mutation::on(Fault::BitBeforeNote) {
                bits.set(granules);
            }
            let mut unsaved = locked(&self.unsaved);
            unsaved.extend(pieces(granules).map(|(piece, _)| piece));
            bits.set(granules);
            return Ok(());
        }
        let mut buffer = [0; PIECE_BYTES];
        for (piece, part) in pieces(granules) {
            let _alone = self.piece(piece);
            // Another writer may have come first.
            if bits.all_set(part) {
                continue;
            }
            if mutation::on(Fault::BitBeforePiece) {
                bits.set(part);
                mutation::linger();
            }
            let span = Bits::serialized_range(part);
            let words = &mut buffer[..in_memory(span.len())];
            union(bits, also, span.start(), words)?;
            mark(words, span.start() * 8, part);
            self.write_at(words, span.start())
                .map_err(|e| self.failed("record changes in", &e))?;
            bits.set(part);
        }
        Ok(())
    }

    /// Writes what the lazy policy has kept back. `also` as in [`record`](Self::record).
    pub fn save(&self, bits: &Bits, also: Option<&Bits>) -> Result<()> {
        let _alone = (!mutation::on(Fault::SaversApart)).then(|| locked(&self.saving));
        let mut pending = std::mem::take(&mut *locked(&self.unsaved));
        let mut buffer = [0; PIECE_BYTES];
        while let Some(piece) = pending.first().copied() {
            if let Err(error) = self.write_piece(bits, also, piece, &mut buffer) {
                locked(&self.unsaved).append(&mut pending);
                return Err(error);
            }
            pending.remove(&piece);
        }
        Ok(())
    }

    /// Writes every piece of `new` that differs from `old`, which the file holds. The caller syncs.
    ///
    /// `new` must have every bit of `old`: then whatever part of this survives a crash is no bit less than `old` (D1).
    pub fn add_in_place(&self, old: &Bits, new: &Bits) -> Result<()> {
        let (mut before, mut after) = ([0; PIECE_BYTES], [0; PIECE_BYTES]);
        let mut at = 0;
        while let Some(data) = new.next_data(at) {
            for start in (data.start()..data.end()).step_by(PIECE_BYTES) {
                let len = in_memory((data.end() - start).min(PIECE));
                old.serialize(start, &mut before[..len])?;
                new.serialize(start, &mut after[..len])?;
                if before[..len] != after[..len] {
                    self.write_at(&after[..len], start)
                        .map_err(|e| self.failed("write", &e))?;
                }
            }
            at = data.end();
        }
        Ok(())
    }

    /// The most bytes that [`write_pieces`](Self::write_pieces) asks for at a time.
    pub(crate) const PIECE: usize = PIECE_BYTES;

    /// Writes the pieces that `of` has bits in, each with what `content` puts into the words from a byte on. The caller syncs.
    pub(crate) fn write_pieces(
        &self,
        of: &Bits,
        content: impl Fn(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let mut buffer = [0; PIECE_BYTES];
        let mut at = 0;
        while let Some(data) = of.next_data(at) {
            for piece in data.start() / PIECE..data.end().div_ceil(PIECE) {
                let start = piece * PIECE;
                let words = &mut buffer[..in_memory((of.serialized_len() - start).min(PIECE))];
                let _alone = self.piece(piece);
                content(start, words)?;
                self.write_at(words, start)
                    .map_err(|e| self.failed("write", &e))?;
            }
            at = data.end();
        }
        Ok(())
    }

    /// Writes the pieces that `bits` or `more` has bits in, each as both together have it. The caller syncs.
    ///
    /// The file must hold no bit that neither has.
    pub fn write_all(&self, bits: &Bits, more: &Bits) -> Result<()> {
        self.write_from(bits, Some(more), 0)
    }

    /// Writes all of `bits` into the file, which must be empty, leaving holes where no bit is set; and syncs.
    pub fn write_new(&self, bits: &Bits) -> Result<()> {
        self.resize(bits.serialized_len())?;
        self.write_from(bits, None, 0)?;
        if mutation::on(Fault::NewBitsUnsynced) {
            return Ok(());
        }
        self.sync()
    }

    /// Writes all that is set in `bits` once more: after a crash what the file shows may be in the page cache alone, where
    /// the kernel takes it for written. The caller syncs.
    pub fn write_again(&self, bits: &Bits) -> Result<()> {
        self.write_from(bits, None, 0)
    }

    /// The file itself.
    pub(crate) fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    /// Makes room for the bits of a longer disk, which had `from` bits until now: the last of them and those behind
    /// are what `bits` and `also` say, whatever stood there before. The caller syncs.
    pub fn grow(&self, bits: &Bits, also: Option<&Bits>, from: u64) -> Result<()> {
        let first = from.saturating_sub(1) / 64 * 8;
        // What an earlier, longer disk left behind must not come back as dirty. The last word stays until it is written
        // over: the present disk still needs it if this fails.
        let keep = from.div_ceil(64) * 8;
        if self.length()? > keep {
            self.resize(keep)?;
        }
        self.resize(bits.serialized_len())?;
        // This one even if it is clear, as the file may say otherwise; the rest of the file reads as zeros now.
        if first < keep {
            self.write_piece(bits, also, first / PIECE, &mut [0; PIECE_BYTES])?;
        }
        self.write_from(bits, also, first)
    }

    /// Makes room for `len` bits that nobody will trust. The caller syncs.
    pub fn grow_unread(&self, len: u64) -> Result<()> {
        if self.length()? >= len.div_ceil(8) {
            return Ok(());
        }
        self.resize(len.div_ceil(64) * 8)
    }

    /// Cuts off what the bits of a shorter disk do not need.
    pub fn shrink(&self, bits: &Bits) -> Result<()> {
        if self.length()? > bits.serialized_len() {
            self.resize(bits.serialized_len())?;
        }
        locked(&self.unsaved).retain(|piece| piece * PIECE < bits.serialized_len());
        Ok(())
    }

    /// Makes what was written durable. A failure is for good: what the file lacks then, nobody knows.
    pub fn sync(&self) -> Result<()> {
        let apart = mutation::on(Fault::SyncsApart);
        let mut failed = if apart {
            None
        } else {
            Some(locked(&self.sync_failed))
        };
        if failed.as_deref() == Some(&true) {
            return Err(Error::new(
                ErrorCode::Failed,
                format!(
                    "an earlier sync of {} failed, so what it holds is not known",
                    self.path.display()
                ),
            ));
        }
        self.storage.sync(SyncMode::Data).map_err(|e| {
            if let Some(failed) = failed.as_deref_mut() {
                *failed = true;
            }
            self.failed("sync", &e)
        })
    }

    fn write_from(&self, bits: &Bits, also: Option<&Bits>, first: u64) -> Result<()> {
        let mut buffer = [0; PIECE_BYTES];
        let next = |at| {
            let own = bits.next_data(at);
            let other = also.and_then(|also| also.next_data(at));
            match (own, other) {
                (Some(own), Some(other)) if other.start() < own.start() => Some(other),
                (Some(own), _) => Some(own),
                (None, other) => other,
            }
        };
        let mut at = first;
        while let Some(data) = next(at) {
            for piece in data.start() / PIECE..data.end().div_ceil(PIECE) {
                self.write_piece(bits, also, piece, &mut buffer)?;
            }
            at = data.end();
        }
        Ok(())
    }

    /// Writes a whole piece as `bits` and `also` have it.
    fn write_piece(
        &self,
        bits: &Bits,
        also: Option<&Bits>,
        piece: u64,
        buffer: &mut [u8; PIECE_BYTES],
    ) -> Result<()> {
        let start = piece * PIECE;
        let len = bits.serialized_len().saturating_sub(start).min(PIECE);
        let words = &mut buffer[..in_memory(len)];
        let _alone = self.piece(piece);
        union(bits, also, start.min(bits.serialized_len()), words)?;
        self.write_at(words, start).map_err(|e| self.failed("write", &e))
    }

    fn write_at(&self, words: &[u8], start: u64) -> io::Result<()> {
        write_slice(&*self.storage, words, self.base + start)
    }

    /// Keeps other writers out of a piece.
    fn piece(&self, piece: u64) -> Option<MutexGuard<'_, ()>> {
        let stripe = &self.stripes[in_memory(piece % STRIPES as u64)];
        (!mutation::on(Fault::PiecesShared)).then(|| locked(stripe))
    }

    fn resize(&self, length: u64) -> Result<()> {
        self.storage
            .set_length(self.base + length)
            .map_err(|e| self.failed("resize", &e))
    }

    fn length(&self) -> Result<u64> {
        let length = self.storage.length().map_err(|e| self.failed("measure", &e))?;
        Ok(length.saturating_sub(self.base))
    }

    fn failed(&self, action: &str, error: &io::Error) -> Error {
        Error::io(action, &self.path, error)
    }
}

/// The pieces that hold the bits of `granules`, each with its share of them.
fn pieces(granules: GranuleRange) -> impl Iterator<Item = (u64, GranuleRange)> {
    let first = granules.start.0 / PIECE_GRANULES;
    let end = if granules.is_empty() {
        first
    } else {
        granules.end.0.div_ceil(PIECE_GRANULES)
    };
    (first..end).map(move |piece| {
        let whole = GranuleRange::new(piece * PIECE_GRANULES, (piece + 1) * PIECE_GRANULES);
        (piece, granules.intersect(whole))
    })
}

/// The words from byte `start` on, with the bits of both.
fn union(bits: &Bits, also: Option<&Bits>, start: u64, words: &mut [u8]) -> Result<()> {
    bits.serialize(start, words)?;
    if let Some(also) = also {
        let mut others = [0; PIECE_BYTES];
        let others = &mut others[..words.len()];
        also.serialize(start, others)?;
        words
            .iter_mut()
            .zip(others)
            .for_each(|(word, other)| *word |= *other);
    }
    Ok(())
}

/// Sets the bits of `granules` in `words`, whose first bit is that of granule `first`.
fn mark(words: &mut [u8], first: u64, granules: GranuleRange) {
    let (start, end) = (granules.start.0 - first, granules.end.0 - first);
    for (byte, index) in words.iter_mut().zip(0..) {
        let low = start.saturating_sub(index * 8).min(8);
        let high = end.saturating_sub(index * 8).min(8);
        let mask = ((1u16 << high) - 1) & !((1u16 << low) - 1);
        *byte |= mask.to_le_bytes()[0];
    }
}

/// A panic elsewhere breaks the whole disk, so a poisoned lock tells nothing new.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number of bytes that lie in memory, or of a stripe.
#[allow(
    clippy::cast_possible_truncation,
    reason = "callers pass lengths of buffers and numbers of stripes"
)]
const fn in_memory(len: u64) -> usize {
    len as usize
}
