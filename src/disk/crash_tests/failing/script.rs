//! Few steps, in which there is every kind of call: all of them can fail in an ordinary run.

use super::super::kind::Kind;
use super::super::steps::{Step, write};

/// Few steps, in which there is every kind of call.
pub(super) fn short(kind: Kind) -> Vec<Step> {
    use Step::*;
    let mut steps = vec![
        Add {
            name: "a",
            granularity: 1024,
            persistent: true,
            recording: true,
        },
        write(700, 3000),
        Flush,
        Write {
            at: 9000,
            len: 1500,
            fua: true,
        },
        Freeze("a"),
        write(1024, 2048),
        Thaw("a", true),
        Truncate(13_000),
        Truncate(20_000),
        write(9500, 600),
        Flush,
        Set {
            name: "a",
            at: 15_000,
            len: 1,
        },
        Zero {
            at: 4096,
            len: 4096,
            unmap: true,
        },
        Add {
            name: "b",
            granularity: 512,
            persistent: true,
            recording: true,
        },
        Die,
        write(18_000, 700),
        Hand("a", "b"),
        Sync,
        Disable("b"),
        write(3000, 512),
        Remove("b"),
        Discard { at: 0, len: 2048 },
        Reopen,
        write(12_000, 300),
        Flush,
        Backup {
            name: "a",
            at: 12_000,
            len: 3000,
        },
        Backup {
            name: "a",
            at: 100,
            len: 900,
        },
    ];
    if kind.overlay {
        steps.splice(8..8, [MakeEmpty, write(100, 5000)]);
        steps.splice(5..5, [Snapshot, write(300, 300)]);
        // Behind the end of the backing.
        steps.insert(3, write(22_000, 700));
        steps.extend([
            Commit,
            write(2000, 100),
            Rebase(1),
            write(8000, 300),
            ChangeBacking(2),
        ]);
    }
    steps
}
