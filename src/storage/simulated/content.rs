//! What a simulated file holds: 512-byte pieces, each there or a hole, shared between copies until they differ.
//!
//! Invariant: a piece never changes in place, so that a copy of the content (a crash state) costs pointers, not bytes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

/// The bytes that reach a device together or not at all (F2).
pub const PIECE: u64 = 512;

/// [`PIECE`] as the length of an array.
pub(super) const PIECE_LEN: usize = small(PIECE);
const PIECES_IN_CHUNK: u64 = 64;

/// 512 bytes that are there.
pub(super) type Bytes = Arc<[u8; PIECE_LEN]>;

/// 512 bytes, or a hole.
pub(super) type Piece = Option<Bytes>;

/// A piece that is there and holds zeros.
pub(super) fn zeros() -> Bytes {
    static ZEROS: LazyLock<Bytes> = LazyLock::new(|| Arc::new([0; PIECE_LEN]));
    Arc::clone(&ZEROS)
}

/// `piece` with `bytes` laid over it from `at` on.
pub(super) fn overlaid(piece: &Piece, at: usize, bytes: &[u8]) -> Bytes {
    let mut new = piece.as_deref().copied().unwrap_or([0; PIECE_LEN]);
    new[at..at + bytes.len()].copy_from_slice(bytes);
    Arc::new(new)
}

/// `piece` with zeros at `zeros`; a hole stays one.
pub(super) fn blanked(piece: &Piece, zeros: Range<usize>) -> Piece {
    piece.as_deref().map(|bytes| {
        let mut new = *bytes;
        new[zeros].fill(0);
        Arc::new(new)
    })
}

/// A number below [`PIECE`] or below the length of a buffer.
#[allow(
    clippy::cast_possible_truncation,
    reason = "callers pass positions inside a buffer in memory"
)]
pub(super) const fn small(n: u64) -> usize {
    n as usize
}

/// A run of bytes within one piece.
#[derive(Clone, Copy)]
pub(super) struct Part {
    /// Which of the request's pieces this is, from zero.
    pub ordinal: u64,
    /// Which of the file's pieces.
    pub piece: u64,
    /// Where in the piece it begins.
    pub at: usize,
    /// How many bytes of the piece.
    pub len: usize,
    /// Where in the request it begins.
    pub from: usize,
}

impl Part {
    /// Whether it is all of its piece.
    pub const fn is_whole(self) -> bool {
        self.len == PIECE_LEN
    }
}

/// `start .. end` cut at the piece boundaries.
pub(super) fn parts(start: u64, end: u64) -> impl Iterator<Item = Part> {
    let first = start / PIECE;
    let last = if end > start { end.div_ceil(PIECE) } else { first };
    (first..last).map(move |piece| {
        let from = start.max(piece * PIECE);
        let to = (end - piece * PIECE).min(PIECE);
        Part {
            ordinal: piece - first,
            piece,
            at: small(from - piece * PIECE),
            len: small(piece * PIECE + to - from),
            from: small(from - start),
        }
    })
}

/// Sparse bytes.
#[derive(Clone, Default)]
pub(super) struct Content {
    chunks: BTreeMap<u64, Arc<[Piece; small(PIECES_IN_CHUNK)]>>,
}

impl Content {
    pub fn get(&self, piece: u64) -> Piece {
        let chunk = self.chunks.get(&(piece / PIECES_IN_CHUNK))?;
        chunk[small(piece % PIECES_IN_CHUNK)].clone()
    }

    pub fn set(&mut self, piece: u64, value: Piece) {
        let (chunk, slot) = (piece / PIECES_IN_CHUNK, small(piece % PIECES_IN_CHUNK));
        if value.is_none() && !self.chunks.contains_key(&chunk) {
            return;
        }
        let pieces = self
            .chunks
            .entry(chunk)
            .or_insert_with(|| Arc::new([const { None }; small(PIECES_IN_CHUNK)]));
        let pieces = Arc::make_mut(pieces);
        pieces[slot] = value;
        if pieces.iter().all(Option::is_none) {
            self.chunks.remove(&chunk);
        }
    }

    /// Fills `out` with the bytes from `offset` on; holes are zeros.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        for part in parts(offset, offset.saturating_add(out.len() as u64)) {
            let into = &mut out[part.from..part.from + part.len];
            match self.get(part.piece) {
                Some(bytes) => into.copy_from_slice(&bytes[part.at..part.at + part.len]),
                None => into.fill(0),
            }
        }
    }

    /// The pieces that are there, from `first` up to, not including, `end`.
    pub fn present(&self, first: u64, end: u64) -> impl Iterator<Item = u64> {
        self.chunks
            .range(first / PIECES_IN_CHUNK..end.div_ceil(PIECES_IN_CHUNK).max(first / PIECES_IN_CHUNK))
            .flat_map(|(&chunk, pieces)| {
                let there = (0..PIECES_IN_CHUNK).filter(|&slot| pieces[small(slot)].is_some());
                there.map(move |slot| chunk * PIECES_IN_CHUNK + slot)
            })
            .filter(move |piece| (first..end).contains(piece))
    }
}
