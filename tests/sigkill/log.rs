//! What a process that is about to be killed says of itself: a record before each thing that it does, and one after.
//!
//! Each thread appends to a file of its own, which outlives the process in the page cache. A record is one small write
//! within a page, which a signal does not cut. A counter that all threads share orders the records.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

const RECORD: usize = 32;

/// What is done, with what a checker has to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// The unit `value` is written to this many units from `first` on; zeros have the value 0.
    Write {
        first: u32,
        units: u32,
        value: u64,
    },
    Flush,
    /// The bitmap of this number starts anew.
    Clear(u32),
    Freeze(u32),
    ThawCommit(u32),
    ThawRollback(u32),
    Add(u32),
    Remove(u32),
    /// What the overlay has goes into its backing.
    Commit,
    /// The disk is open, and work begins.
    Open,
}

/// One thing that was done, or was on its way.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub act: Act,
    pub began: u64,
    /// `None` where the process died first.
    pub ended: Option<u64>,
}

/// One thread's file.
pub struct Log<'c> {
    file: File,
    clock: &'c AtomicU64,
}

impl<'c> Log<'c> {
    pub fn create(folder: &Path, thread: usize, clock: &'c AtomicU64) -> Self {
        let path = folder.join(format!("log.{thread}"));
        Self {
            file: File::create(path).expect("a log"),
            clock,
        }
    }

    /// Says that it begins, does it, and says that it is done.
    pub fn around<T>(&mut self, act: Act, work: impl FnOnce() -> T) -> T {
        self.say(act, false);
        let result = work();
        self.say(act, true);
        result
    }

    fn say(&mut self, act: Act, done: bool) {
        let (kind, first, units, value) = match act {
            Act::Write { first, units, value } => (0, first, units, value),
            Act::Flush => (1, 0, 0, 0),
            Act::Clear(bitmap) => (2, bitmap, 0, 0),
            Act::Freeze(bitmap) => (3, bitmap, 0, 0),
            Act::ThawCommit(bitmap) => (4, bitmap, 0, 0),
            Act::ThawRollback(bitmap) => (5, bitmap, 0, 0),
            Act::Add(bitmap) => (6, bitmap, 0, 0),
            Act::Remove(bitmap) => (7, bitmap, 0, 0),
            Act::Open => (8, 0, 0, 0u64),
            Act::Commit => (9, 0, 0, 0),
        };
        let mut record = [0; RECORD];
        record[..4].copy_from_slice(&u32::to_le_bytes(kind));
        record[4..8].copy_from_slice(&u32::from(done).to_le_bytes());
        record[8..12].copy_from_slice(&first.to_le_bytes());
        record[12..16].copy_from_slice(&units.to_le_bytes());
        record[16..24].copy_from_slice(&value.to_le_bytes());
        // Taken last before a beginning and first after an end: what overlaps for the clock may overlap, and the reverse.
        let now = self.clock.fetch_add(1, Ordering::SeqCst);
        record[24..].copy_from_slice(&now.to_le_bytes());
        self.file.write_all(&record).expect("a record");
    }
}

/// All that the threads of a dead process have said.
pub fn read(folder: &Path) -> Vec<Event> {
    let mut events = Vec::new();
    for thread in 0.. {
        let Ok(bytes) = std::fs::read(folder.join(format!("log.{thread}"))) else {
            break;
        };
        let mut open: Option<Event> = None;
        for record in bytes.chunks_exact(RECORD) {
            let (act, done, clock) = parse(record);
            if done {
                let mut event = open.take().expect("a beginning before the end");
                assert_eq!(event.act, act);
                event.ended = Some(clock);
                events.push(event);
            } else {
                assert!(open.is_none(), "an end before the next beginning");
                open = Some(Event {
                    act,
                    began: clock,
                    ended: None,
                });
            }
        }
        events.extend(open);
    }
    events.sort_by_key(|event| event.began);
    events
}

/// Whether the process says that it has the disk open.
pub fn is_open(folder: &Path) -> bool {
    has_ended_one(folder, 0)
}

/// Whether it says that a write has ended.
pub fn has_written(folder: &Path) -> bool {
    (1..=3).any(|thread| has_ended_one(folder, thread))
}

fn has_ended_one(folder: &Path, thread: usize) -> bool {
    std::fs::metadata(folder.join(format!("log.{thread}"))).is_ok_and(|it| it.len() >= 2 * RECORD as u64)
}

/// Forgets all.
pub fn remove(folder: &Path) {
    for thread in 0.. {
        if std::fs::remove_file(folder.join(format!("log.{thread}"))).is_err() {
            break;
        }
    }
}

fn parse(record: &[u8]) -> (Act, bool, u64) {
    let small = |at: usize| u32::from_le_bytes(record[at..at + 4].try_into().expect("four bytes"));
    let large = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().expect("eight bytes"));
    let bitmap = small(8);
    let act = match small(0) {
        0 => Act::Write {
            first: bitmap,
            units: small(12),
            value: large(16),
        },
        1 => Act::Flush,
        2 => Act::Clear(bitmap),
        3 => Act::Freeze(bitmap),
        4 => Act::ThawCommit(bitmap),
        5 => Act::ThawRollback(bitmap),
        6 => Act::Add(bitmap),
        7 => Act::Remove(bitmap),
        8 => Act::Open,
        9 => Act::Commit,
        other => panic!("a record of kind {other}"),
    };
    (act, small(4) == 1, large(24))
}
