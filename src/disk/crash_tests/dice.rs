//! Steps drawn at random, or as the fuzzer throws.

use super::kind::Kind;
use super::model::SECTOR;
use super::steps::Step;
use crate::disk::Repair;

/// What a run draws its lives by: `QBM_SEED`, or the same each time. Prints it, so that a failure can be tried again.
#[cfg(test)]
pub(super) fn seed() -> u64 {
    let given = std::env::var("QBM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or(1);
    println!("QBM_SEED={seed}");
    seed
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
    #[cfg(any(test, fuzzing))]
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self {
            thrown: bytes.iter().rev().copied().collect(),
            ..Self::new(1)
        }
    }

    #[cfg(any(test, fuzzing))]
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
    pub(super) fn step(&mut self, length: usize, kind: Kind) -> Step {
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
            24 => Step::Check([Repair::Leaks, Repair::All, Repair::Dirty][self.below(3)]),
            25 | 27 | 28 if kind.excuses => Step::Broken { name, at, len },
            26 => Step::Snapshot,
            27 if kind.overlay => Step::Rebase(at % 3),
            28 if kind.overlay => Step::ChangeBacking(at % 3),
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
            47 => Step::Backup { name, at, len },
            48 => Step::Freeze(name),
            49..=50 => Step::Thaw(name, self.below(3) > 0),
            51 => Step::Hand(name, other),
            52 => Step::Swap(name, other),
            53..=54 => Step::Truncate(8192 + self.below(24 << 10)),
            55 if kind.overlay => Step::Commit,
            56 if kind.overlay => Step::MakeEmpty,
            55 if kind.excuses => Step::Mend(name),
            57 => Step::Reopen,
            58 => Step::Die,
            _ => Step::Flush,
        }
    }
}
