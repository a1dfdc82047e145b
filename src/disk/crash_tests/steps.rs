//! What is done to a disk: lists of steps, written by hand or drawn at random.

use super::model::SECTOR;

/// One step. Bitmaps have names of one letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Write {
        at: usize,
        len: usize,
        fua: bool,
    },
    Zero {
        at: usize,
        len: usize,
        unmap: bool,
    },
    Discard {
        at: usize,
        len: usize,
    },
    /// Writes what is there already.
    Unchanged {
        at: usize,
        len: usize,
    },
    Flush,
    Sync,
    SyncOne(&'static str),
    Add {
        name: &'static str,
        granularity: u64,
        persistent: bool,
        recording: bool,
    },
    Remove(&'static str),
    Clear(&'static str),
    Enable(&'static str),
    Disable(&'static str),
    Rename(&'static str, &'static str),
    Persist(&'static str, bool),
    Set {
        name: &'static str,
        at: usize,
        len: usize,
    },
    Reset {
        name: &'static str,
        at: usize,
        len: usize,
    },
    Merge(&'static str, &'static str),
    /// The content becomes that of the second bitmap, or blank where that cannot be had.
    Replace(&'static str, &'static str),
    Freeze(&'static str),
    /// A backup's end: true where it succeeded.
    Thaw(&'static str, bool),
    /// Merge the first into the second and clear the first, at one point.
    Hand(&'static str, &'static str),
    /// Disable the first and add the second, at one point.
    Swap(&'static str, &'static str),
    Truncate(usize),
    MakeEmpty,
    Commit,
    /// On the backing of this number, or on none, the content kept.
    Rebase(usize),
    /// The same by the name alone.
    ChangeBacking(usize),
    Snapshot,
    /// Close and open again.
    Reopen,
    /// The process dies and another one opens the disk, its page cache alive.
    Die,
}

impl Step {
    /// Whether its success means that everything before it is durable.
    pub(super) fn flushes(self) -> bool {
        matches!(
            self,
            Self::Flush
                | Self::Add { .. }
                | Self::Clear(_)
                | Self::Enable(_)
                | Self::Replace(..)
                | Self::Freeze(_)
                | Self::Thaw(_, true)
                | Self::Hand(..)
                | Self::Swap(..)
                | Self::Truncate(_)
                | Self::Commit
                | Self::Rebase(_)
                | Self::ChangeBacking(_)
                | Self::Snapshot
                | Self::Reopen
        )
    }
}

/// A write without FUA.
pub(super) const fn write(at: usize, len: usize) -> Step {
    let fua = false;
    Step::Write { at, len, fua }
}

/// Every operation at least once, in an order in which each of them has something to do.
pub(super) fn everything() -> Vec<Step> {
    use Step::*;
    let recording = |name, granularity| Add {
        name,
        granularity,
        persistent: true,
        recording: true,
    };
    vec![
        recording("a", 1024),
        recording("b", 4096),
        write(700, 3000),
        Flush,
        Write {
            at: 9000,
            len: 1500,
            fua: true,
        },
        Add {
            name: "t",
            granularity: 512,
            persistent: false,
            recording: true,
        },
        write(20_000, 512),
        Freeze("a"),
        write(1024, 2048),
        write(15_000, 600),
        Flush,
        Thaw("a", true),
        Zero {
            at: 0,
            len: 1500,
            unmap: true,
        },
        Freeze("b"),
        Discard { at: 4096, len: 4096 },
        Thaw("b", false),
        Sync,
        write(12_288, 4096),
        SyncOne("a"),
        Disable("a"),
        write(300, 300),
        Enable("a"),
        Merge("b", "t"),
        Unchanged { at: 5000, len: 2000 },
        Set {
            name: "b",
            at: 10_000,
            len: 1,
        },
        Reset {
            name: "b",
            at: 8192,
            len: 4096,
        },
        Truncate(30_000),
        write(25_000, 4000),
        Persist("t", true),
        Rename("t", "c"),
        write(2000, 20),
        Reopen,
        write(18_000, 100),
        Truncate(13_000),
        write(12_800, 200),
        Flush,
        Truncate(24_000),
        Die,
        write(21_000, 2000),
        Hand("a", "b"),
        Replace("c", "a"),
        write(0, 512),
        Flush,
        Swap("c", "d"),
        write(512, 512),
        Clear("b"),
        Persist("d", false),
        Write {
            at: 14_000,
            len: 2000,
            fua: true,
        },
        Remove("c"),
        Flush,
        write(6000, 100),
        Reopen,
    ]
}

/// What an overlay adds to that.
pub(super) fn everything_of_an_overlay() -> Vec<Step> {
    use Step::*;
    let mut steps = everything();
    let at = steps.len() / 2;
    let more = [
        write(3000, 5000),
        Commit,
        write(6000, 2500),
        Flush,
        Write {
            at: 16_000,
            len: 100,
            fua: true,
        },
    ];
    steps.splice(at..at, more);
    let at = steps.len() / 4;
    let more = [
        write(2500, 3000),
        Snapshot,
        write(4000, 1000),
        Flush,
        write(100, 5000),
    ];
    steps.splice(at..at, more);
    steps.extend([write(500, 2500), MakeEmpty]);
    steps.extend([write(700, 600), Flush, write(800, 1500), Snapshot, Flush]);
    steps.extend([write(900, 100), Snapshot, write(1500, 700)]);
    steps.extend([write(100, 8000), Flush, Commit, Reopen]);
    steps.extend([write(9000, 3000), Rebase(1), write(17_000, 700), ChangeBacking(0)]);
    steps.extend([
        write(5000, 100),
        Rebase(2),
        write(13_000, 50),
        Flush,
        Rebase(1),
        Reopen,
    ]);
    steps
}

/// The same numbers for the same seed.
#[derive(Clone)]
pub(super) struct Dice {
    state: u64,
    /// What the fuzzer has thrown already, the next one last.
    thrown: Vec<u8>,
}

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            thrown: Vec::new(),
        }
    }

    /// Dice that fall as `bytes` say, and when these are used up as they like.
    #[cfg(fuzzing)]
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self {
            thrown: bytes.iter().rev().copied().collect(),
            ..Self::new(1)
        }
    }

    #[cfg(fuzzing)]
    pub(super) fn is_empty(&self) -> bool {
        self.thrown.is_empty()
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        if let Some(low) = self.thrown.pop() {
            let high = if limit > 256 {
                self.thrown.pop().unwrap_or(0)
            } else {
                0
            };
            return usize::from(u16::from_le_bytes([low, high])) % limit;
        }
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        usize::try_from((self.state >> 20) % limit as u64).unwrap_or(0)
    }

    fn name(&mut self) -> &'static str {
        ["a", "b", "c", "d"][self.below(4)]
    }

    fn range(&mut self, length: usize) -> (usize, usize) {
        let at = self.below(length);
        let (at, len) = match self.below(4) {
            0 => (at, 1 + self.below(600)),
            1 => (at, 1 + self.below(5000)),
            2 => (at / SECTOR * SECTOR, SECTOR),
            _ => (at / 4096 * 4096, 4096),
        };
        (at, len.min(length - at))
    }

    /// A step that a disk of `length` bytes can be asked for. Some will be refused.
    pub(super) fn step(&mut self, length: usize, overlay: bool) -> Step {
        let (at, len) = self.range(length);
        let (name, other) = (self.name(), self.name());
        match self.below(60) {
            0..=19 => Step::Write {
                at,
                len,
                fua: self.below(6) == 0,
            },
            20 => Step::Zero { at, len, unmap: true },
            21 => Step::Zero {
                at,
                len,
                unmap: false,
            },
            22 => Step::Discard { at, len },
            23 => Step::Unchanged { at, len },
            29 => Step::Sync,
            30 => Step::SyncOne(name),
            31..=35 => Step::Add {
                name,
                granularity: 512 << self.below(4),
                persistent: self.below(5) > 0,
                recording: self.below(5) > 0,
            },
            36 => Step::Remove(name),
            37..=38 => Step::Clear(name),
            39 => Step::Enable(name),
            40 => Step::Disable(name),
            41 => Step::Rename(name, other),
            42 => Step::Persist(name, self.below(3) > 0),
            43 => Step::Set { name, at, len },
            44 => Step::Reset { name, at, len },
            45 => Step::Merge(name, other),
            46 => Step::Replace(name, other),
            47..=48 => Step::Freeze(name),
            49..=50 => Step::Thaw(name, self.below(3) > 0),
            51 => Step::Hand(name, other),
            52 => Step::Swap(name, other),
            53..=54 => Step::Truncate(8192 + self.below(24 << 10)),
            55 if overlay => Step::Commit,
            56 if overlay => Step::MakeEmpty,
            26 => Step::Snapshot,
            27 if overlay => Step::Rebase(at % 3),
            28 if overlay => Step::ChangeBacking(at % 3),
            57 => Step::Reopen,
            58 => Step::Die,
            _ => Step::Flush,
        }
    }
}
