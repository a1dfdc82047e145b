//! How a call fails, what is to be said of it, and what is done next.

use std::sync::atomic::{AtomicU64, Ordering};

use super::super::model::MAX;
use super::super::steps::{Step, write};
use crate::error::{Error, ErrorCode};
use crate::storage::simulated::{Call, CallKind, Fault, Kept};

/// How a call fails.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failing {
    pub(super) errno: i32,
    pub(super) kept: Kept,
    pub(super) on: On,
}

/// Which of the calls that follow it fail, too, until the step is over.
#[derive(Clone, Copy, Debug)]
pub(super) enum On {
    /// None.
    Once,
    /// All.
    All,
    /// Those that need room.
    Room,
}

pub(super) const WAYS: [Failing; 5] = [
    Failing {
        errno: libc::EIO,
        kept: Kept::Nothing,
        on: On::Once,
    },
    Failing {
        errno: libc::ENOSPC,
        kept: Kept::First(1),
        on: On::Once,
    },
    Failing {
        errno: libc::EIO,
        kept: Kept::All,
        on: On::Once,
    },
    Failing {
        errno: libc::ENOSPC,
        kept: Kept::Nothing,
        on: On::All,
    },
    FULL,
];

/// The file system is full.
pub(super) const FULL: Failing = Failing {
    errno: libc::ENOSPC,
    kept: Kept::Nothing,
    on: On::Room,
};

impl Failing {
    /// The same for the simulated disk, of the call with this number, counted from 1.
    pub(super) fn fault(self, number: u64) -> Fault {
        let fault = Fault::new(self.errno).keeping(self.kept);
        match self.on {
            On::Once => fault.nth(number),
            On::All => fault.nth(number).from_then_on(),
            On::Room => {
                let calls = AtomicU64::new(0);
                let fails = move |call: &Call| match calls.fetch_add(1, Ordering::Relaxed) + 1 {
                    it if it == number => true,
                    it => it > number && needs_room(call),
                };
                fault.matching(fails).from_then_on()
            }
        }
    }
}

pub(super) fn needs_room(call: &Call) -> bool {
    use CallKind::{Allocate, Create, SetLength, Write, WriteZeroes};
    matches!(call.kind(), Create | Write | WriteZeroes | SetLength | Allocate)
}

/// What comes behind a step that has failed, when calls do not fail any more.
#[derive(Clone, Copy, Debug)]
pub(super) enum Then {
    /// The same step, as guests do: it may not be taken for done.
    Again,
    /// Zeros over all: what has failed may not come to light behind them.
    Zeros,
    /// A starting point: nor may it behind that.
    Point,
    /// Another write.
    Other,
}

pub(super) const THENS: [Then; 4] = [Then::Again, Then::Zeros, Then::Point, Then::Other];

impl Then {
    /// What is done behind `step`, which has failed.
    pub(super) fn steps(self, step: Step) -> Vec<Step> {
        let zeros = Step::Zero {
            at: 0,
            len: MAX,
            unmap: true,
        };
        let point = Step::Add {
            name: "p",
            granularity: 1024,
            persistent: true,
            recording: true,
        };
        match self {
            Self::Again => vec![step],
            Self::Zeros => vec![zeros, Step::Flush],
            Self::Point => vec![point],
            Self::Other => vec![write(5000, 9000), Step::Flush],
        }
    }
}

/// What an error must be to be one in words.
pub(super) fn in_words(error: &Error, errno: i32, excuses: bool) -> Result<(), String> {
    let words = error.message();
    let reason = if errno == libc::EIO {
        "Input/output error"
    } else {
        "No space left on device"
    };
    // A bitmap that could not be written is marked, where the opener wants it so, and a call that is about it says that.
    let marked = excuses && error.code() == ErrorCode::BitmapInconsistent;
    let told = marked || words.contains(reason) || error.code() == ErrorCode::Failed;
    let clean = !words.contains("os error") && words.contains(' ') && !words.contains(" :");
    if told && clean {
        return Ok(());
    }
    Err(format!("no words for people: {error:?}"))
}
