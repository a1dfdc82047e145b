//! What may be there after the power was cut, or the process killed.
//!
//! Invariant: a crash state is made of values that the histories allow, one for each thing, chosen independently: each
//! unsynced 512-byte piece, each length and each name (F2).

use std::path::{Path, PathBuf};

use super::SimDisk;
use super::history::History;
use super::random::mixed;
use super::state::State;

/// One thing whose value after a power cut is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice<'a> {
    /// Whether the folder itself is there.
    Folder,
    /// Which file a name stands for, if any.
    Name(&'a Path),
    /// A file's length.
    Length {
        /// The file.
        inode: u64,
    },
    /// The 512 bytes at `offset`.
    Piece {
        /// The file.
        inode: u64,
        /// Where the piece begins.
        offset: u64,
    },
}

/// Decides what a power cut leaves.
pub trait Chooser {
    /// Which of the `count` values (at least 2) the thing has: 0 is the durable one, the last the newest.
    fn choose(&mut self, choice: Choice<'_>, count: usize) -> usize;
}

impl<F: FnMut(Choice<'_>, usize) -> usize> Chooser for F {
    fn choose(&mut self, choice: Choice<'_>, count: usize) -> usize {
        self(choice, count)
    }
}

/// The choosers that tests need most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing that was not synced.
    Nothing,
    /// The newest of everything.
    All,
    /// The newest of everything but open thing number so-and-so, of which the durable value.
    AllBut(usize),
    /// The newest of this one, and else what is durable.
    Only(usize),
    /// Drawn by this seed; some seeds keep little, some nearly all.
    Random(u64),
    /// All open values counted through, least significant first: number 0 to [`CrashPoint::states`] − 1.
    Numbered(u128),
}

impl Keep {
    /// This rule, at its first choice.
    pub const fn chooser(self) -> KeepChooser {
        KeepChooser { keep: self, made: 0 }
    }
}

/// A [`Keep`] at work: it counts the choices it has made.
#[derive(Clone, Debug)]
pub struct KeepChooser {
    keep: Keep,
    made: usize,
}

impl Chooser for KeepChooser {
    fn choose(&mut self, _: Choice<'_>, count: usize) -> usize {
        let this = self.made;
        self.made += 1;
        let newest = count - 1;
        match &mut self.keep {
            Keep::Nothing => 0,
            Keep::All => newest,
            Keep::AllBut(it) => usize::from(this != *it) * newest,
            Keep::Only(it) => usize::from(this == *it) * newest,
            Keep::Random(seed) => {
                let eighths_kept = mixed(*seed, u64::MAX) % 9;
                let drawn = mixed(*seed, this as u64);
                if drawn % 8 < eighths_kept {
                    newest
                } else {
                    usize::try_from((drawn >> 3) % newest as u64).unwrap_or(0)
                }
            }
            Keep::Numbered(rest) => {
                let digit = usize::try_from(*rest % count as u128).unwrap_or(0);
                *rest /= count as u128;
                digit
            }
        }
    }
}

impl<T> History<T> {
    /// The value that `chooser` picks; it is not asked where there is only one.
    pub(super) fn choose(&self, choice: Choice<'_>, chooser: &mut dyn Chooser) -> &T {
        if self.is_settled() {
            return self.live();
        }
        self.nth(chooser.choose(choice, self.count()).min(self.count() - 1))
    }
}

/// A moment between two events at which the machine, or the process, may stop. Cheap to make, and independent of the
/// disk that it comes from.
#[derive(Clone)]
pub struct CrashPoint {
    pub(super) state: State,
    pub(super) events: u64,
}

impl CrashPoint {
    /// How many events came before it.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// How many things are open: how often a [`Chooser`] is asked.
    pub fn choices(&self) -> usize {
        self.state.open_counts().count()
    }

    /// How many crash states there are (some may look alike), or `u128::MAX` where they are more.
    pub fn states(&self) -> u128 {
        self.state
            .open_counts()
            .fold(1, |product, count| product.saturating_mul(count as u128))
    }

    /// F2: the disk that the next boot finds.
    pub fn power_cut(&self, chooser: &mut dyn Chooser) -> SimDisk {
        SimDisk::from_state(self.state.after_power_cut(chooser))
    }

    /// [`power_cut`](Self::power_cut) by one of the ready rules.
    pub fn power_cut_keeping(&self, keep: Keep) -> SimDisk {
        self.power_cut(&mut keep.chooser())
    }

    /// F1: the process dies and the page cache lives. All that was written is there; what was not synced still may go
    /// in a later power cut, and what a failed sync has dropped stays dropped.
    pub fn kill(&self) -> SimDisk {
        SimDisk::from_state(self.state.clone())
    }

    /// The names at this moment.
    pub fn names(&self) -> Vec<PathBuf> {
        self.state.names()
    }
}
