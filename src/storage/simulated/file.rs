//! One simulated file: what it reads as now, and what it may read as after a power cut.
//!
//! Invariant: bytes past the length are zeros, so that growing never shows what was cut.

use std::collections::BTreeMap;

use super::content::{self, Content, PIECE, PIECE_LEN, Part, Piece, parts};
use super::crash::{Choice, Chooser};
use super::fault::Kept;
use super::history::History;
use crate::storage::Extent;
use crate::units::ByteRange;

#[derive(Clone)]
pub(super) struct File {
    live: Content,
    length: History<u64>,
    /// The pieces that are not settled; of any other the live value is durable.
    unsynced: BTreeMap<u64, History<Piece>>,
    /// How many syncs have failed. Each open file is told once, as on Linux.
    pub failed_syncs: u64,
}

impl File {
    pub fn new() -> Self {
        Self {
            live: Content::default(),
            length: History::new(0),
            unsynced: BTreeMap::new(),
            failed_syncs: 0,
        }
    }

    /// A file of `bytes`, all durable.
    pub fn durable(bytes: &[u8]) -> Self {
        let mut file = Self::new();
        file.write(0, bytes, Kept::All, 0);
        file.synced(0);
        file
    }

    pub fn length(&self) -> u64 {
        *self.length.live()
    }

    pub fn read(&self, offset: u64, out: &mut [u8]) {
        self.live.read(offset, out);
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8], kept: Kept, event: u64) {
        for part in parts(offset, offset.saturating_add(bytes.len() as u64)) {
            if kept.includes(part.ordinal) {
                let new = &bytes[part.from..part.from + part.len];
                let new = content::overlaid(&self.live.get(part.piece), part.at, new);
                self.set(part.piece, Some(new), event);
                let end = part.piece * PIECE + (part.at + part.len) as u64;
                if end > self.length() {
                    self.length.set(event, end);
                }
            }
        }
    }

    /// Zeros in `range` within the length, as bytes that are there.
    pub fn write_zeroes(&mut self, range: ByteRange, kept: Kept, event: u64) {
        for part in parts(range.start(), range.end().min(self.length())) {
            if kept.includes(part.ordinal) {
                let new = if part.is_whole() {
                    content::zeros()
                } else {
                    let zeros = &[0; PIECE_LEN][..part.len];
                    content::overlaid(&self.live.get(part.piece), part.at, zeros)
                };
                self.set(part.piece, Some(new), event);
            }
        }
    }

    /// Holes in `range` within the length.
    pub fn punch(&mut self, range: ByteRange, kept: Kept, event: u64) {
        self.clear(range.start(), range.end().min(self.length()), kept, event);
    }

    pub fn set_length(&mut self, length: u64, event: u64) {
        self.clear(length, self.length(), Kept::All, event);
        self.length.set(event, length);
    }

    pub fn grow(&mut self, length: u64, event: u64) {
        if length > self.length() {
            self.length.set(event, length);
        }
    }

    /// A sync that began when event `begun` was the last has succeeded.
    pub fn synced(&mut self, begun: u64) {
        self.length.synced(begun);
        self.unsynced.retain(|_, piece| {
            piece.synced(begun);
            !piece.is_settled()
        });
    }

    /// A sync that began when event `begun` was the last has failed.
    pub fn sync_failed(&mut self, begun: u64) {
        self.failed_syncs += 1;
        self.lose(begun);
    }

    /// What a sync was to make durable that began when event `begun` was the last is lost.
    pub fn lose(&mut self, begun: u64) {
        self.length.sync_failed(begun);
        for piece in self.unsynced.values_mut() {
            piece.sync_failed(begun);
        }
    }

    pub fn is_settled(&self) -> bool {
        self.length.is_settled() && self.unsynced.is_empty()
    }

    /// This file, numbered `inode`, as a power cut leaves it.
    pub fn after_power_cut(&self, inode: u64, chooser: &mut dyn Chooser) -> Self {
        let length = *self.length.choose(Choice::Length { inode }, chooser);
        let mut live = self.live.clone();
        for (&piece, history) in &self.unsynced {
            let choice = Choice::Piece {
                inode,
                offset: piece * PIECE,
            };
            live.set(piece, history.choose(choice, chooser).clone());
        }
        let mut file = Self {
            live,
            length: History::new(length),
            unsynced: BTreeMap::new(),
            failed_syncs: 0,
        };
        file.clear(length, u64::MAX - PIECE, Kept::All, 0);
        file.unsynced.clear();
        file
    }

    /// How many values each thing in it may have after a power cut.
    pub fn counts(&self) -> impl Iterator<Item = usize> {
        std::iter::once(self.length.count()).chain(self.unsynced.values().map(History::count))
    }

    pub fn extent(&self, range: ByteRange) -> Extent {
        let end = range.end().min(self.length());
        let mut data = self.live.present(range.start() / PIECE, end.div_ceil(PIECE));
        let first = data.next().map_or(u64::MAX, |piece| piece * PIECE);
        if first > range.start() {
            // A hole, up to the next data; the file's end is none, because nothing but zeros follows it.
            let len = first.min(range.end()) - range.start();
            return Extent { data: false, len };
        }
        let mut behind = first / PIECE + 1;
        while data.next() == Some(behind) {
            behind += 1;
        }
        Extent {
            data: true,
            len: (behind * PIECE).min(end) - range.start(),
        }
    }

    pub fn allocated_bytes(&self) -> u64 {
        self.live.present(0, u64::MAX / PIECE).count() as u64 * PIECE
    }

    fn set(&mut self, piece: u64, value: Piece, event: u64) {
        let before = self.live.get(piece);
        self.unsynced
            .entry(piece)
            .or_insert_with(|| History::new(before))
            .set(event, value.clone());
        self.live.set(piece, value);
    }

    /// Holes and, where a piece is touched in part, zeros. A hole that is durable already is left alone, so that the
    /// cost is that of what is there, not of the range.
    fn clear(&mut self, start: u64, end: u64, kept: Kept, event: u64) {
        if end <= start {
            return;
        }
        let (first, behind) = (start / PIECE, end.div_ceil(PIECE));
        let mut touched: Vec<u64> = self.live.present(first, behind).collect();
        touched.extend(self.unsynced.range(first..behind).map(|(&piece, _)| piece));
        touched.sort_unstable();
        touched.dedup();
        // What shares the last piece with the file's end is past it, and zeros already.
        let end = if end >= self.length() {
            end.next_multiple_of(PIECE)
        } else {
            end
        };
        for piece in touched {
            let within = parts(start.max(piece * PIECE), end.min((piece + 1) * PIECE)).next();
            let Some(Part { at, len, .. }) = within else {
                continue;
            };
            if kept.includes(piece - first) {
                let new = if len == PIECE_LEN {
                    None
                } else {
                    content::blanked(&self.live.get(piece), at..at + len)
                };
                self.set(piece, new, event);
            }
        }
    }
}
