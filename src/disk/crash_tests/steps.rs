//! What is done to a disk: lists of steps, written by hand. [`super::dice`] draws them at random.

use super::kind::Kind;
use crate::disk::Repair;

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
    /// Copies what is dirty to where the backup of the bitmap's starting point is, or all where there is none, while the
    /// guest writes; then the bitmap forgets.
    Backup {
        name: &'static str,
        at: usize,
        len: usize,
    },
    /// A write while nothing can be written to the files of this bitmap.
    Broken {
        name: &'static str,
        at: usize,
        len: usize,
    },
    /// Every bit of an inconsistent bitmap is set.
    Mend(&'static str),
    /// The process dies, the disk is checked and repaired, and opened again.
    Check(Repair),
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
fn everything() -> Vec<Step> {
    use Step::*;
    let recording = |name, granularity| Add {
        name,
        granularity,
        persistent: true,
        recording: true,
    };
    let backup = |at, len| Backup { name: "a", at, len };
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
        backup(100, 5000),
        write(9000, 700),
        Die,
        backup(9100, 700),
        Flush,
        write(3000, 300),
        backup(20_000, 2000),
    ]
}

/// What an overlay adds to that.
fn everything_of_an_overlay() -> Vec<Step> {
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
    steps.extend([write(500, 2500), MakeEmpty, write(4000, 3000), Check(Repair::All)]);
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

/// What broken bitmaps add to that.
fn everything_excused() -> Vec<Step> {
    use Step::*;
    let mut steps = everything();
    let broken = |name, at, len| Broken { name, at, len };
    let more = [
        broken("a", 5000, 3000),
        write(5500, 100),
        Flush,
        Check(Repair::All),
        broken("b", 9000, 5000),
        Mend("a"),
        write(1000, 3000),
        Die,
        Check(Repair::Dirty),
        write(11_000, 700),
        Flush,
        broken("a", 2000, 900),
        Remove("a"),
        Check(Repair::Leaks),
    ];
    steps.splice(4..4, more);
    steps.insert(
        4 + more.len(),
        Add {
            name: "a",
            granularity: 1024,
            persistent: true,
            recording: true,
        },
    );
    steps
}

impl Kind {
    /// All that can be done to a disk of this kind, in an order in which it has something to do.
    pub(super) fn script(self) -> Vec<Step> {
        match self {
            Self { overlay: true, .. } => everything_of_an_overlay(),
            Self { excuses: true, .. } => everything_excused(),
            _ => everything(),
        }
    }
}
