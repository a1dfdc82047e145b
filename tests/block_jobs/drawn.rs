//! What is drawn: images, and work on a disk.

use std::ops::Range;

use proptest::prelude::*;

pub const UNIT: u64 = 512;

#[derive(Clone, Debug)]
pub struct Write {
    pub at: u64,
    pub len: u64,
    /// Zero is a hole where the format has some.
    pub byte: u8,
}

/// One image as it is drawn.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// Its format is this one of those that fit, counted round and round.
    pub maker: usize,
    pub length: u64,
    pub granularity: u64,
    pub folder: usize,
    pub absolute: bool,
    pub writes: Vec<Write>,
}

#[derive(Clone, Debug)]
pub enum Step {
    Write(Write),
    Zero(Write),
    Discard(Write),
    Truncate(u64),
    Flush,
    Reopen,
    Empty,
    /// Into which of the images below.
    Commit(usize),
    /// On which of them, or on none where there are not so many.
    Deeper(usize),
    /// On a new image, of which these parts differ from what the disk shows, and others on that.
    Rebase(Vec<Drawn>),
    /// By the name alone, on a copy of what it is on.
    Change(Drawn),
    /// What it is now goes below it.
    Snapshot,
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![
        (1..64u64).prop_map(|units| units * UNIT * 4),
        1..256 * UNIT,
        (0..3u64, 0..3u64).prop_map(|(shift, by)| ((64 * UNIT) << shift) + by - 1)
    ]
}

pub fn write() -> impl Strategy<Value = Write> {
    let len = prop_oneof![1..600u64, 0..20 * UNIT, 0..200 * UNIT];
    (0..256 * UNIT, len, prop_oneof![1 => Just(0), 4 => any::<u8>()]).prop_map(|(at, len, byte)| Write {
        at,
        len,
        byte,
    })
}

pub fn drawn() -> impl Strategy<Value = Drawn> {
    (
        0..60usize,
        length(),
        0..8u32,
        0..2usize,
        any::<bool>(),
        proptest::collection::vec(write(), 0..5),
    )
        .prop_map(|(maker, length, shift, folder, absolute, writes)| Drawn {
            maker,
            length,
            granularity: UNIT << shift,
            folder,
            absolute,
            writes,
        })
}

pub fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => write().prop_map(Step::Write),
        2 => write().prop_map(Step::Zero),
        2 => write().prop_map(Step::Discard),
        2 => length().prop_map(Step::Truncate),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => Just(Step::Empty),
        3 => (0..5usize).prop_map(Step::Commit),
        2 => (0..6usize).prop_map(Step::Deeper),
        3 => proptest::collection::vec(drawn(), 1..=5).prop_map(Step::Rebase),
        1 => drawn().prop_map(Step::Change),
        1 => Just(Step::Snapshot),
    ]
}

pub fn small(bytes: u64) -> usize {
    usize::try_from(bytes).expect("small")
}

pub fn range(write: &Write) -> Range<usize> {
    small(write.at)..small(write.at + write.len)
}

pub fn clipped(write: &Write, length: u64) -> Write {
    let at = write.at.min(length);
    Write {
        at,
        len: write.len.min(length - at),
        byte: write.byte,
    }
}

/// Writes that make this content of nothing.
pub fn pieces(content: &[u8]) -> Vec<Write> {
    let mut at = 0;
    content
        .chunk_by(|a, b| a == b)
        .map(|run| {
            let write = Write {
                at,
                len: run.len() as u64,
                byte: run[0],
            };
            at += write.len;
            write
        })
        .filter(|write| write.byte != 0)
        .collect()
}
