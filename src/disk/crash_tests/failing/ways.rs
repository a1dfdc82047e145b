//! How a call fails, and what is to be said of it.

use crate::error::{Error, ErrorCode};
use crate::storage::simulated::Kept;

/// How a call fails.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failing {
    pub(super) errno: i32,
    pub(super) kept: Kept,
    /// So do all like it that follow, until the step is over.
    pub(super) on: bool,
}

pub(super) const WAYS: [Failing; 4] = [
    Failing {
        errno: libc::EIO,
        kept: Kept::Nothing,
        on: false,
    },
    Failing {
        errno: libc::ENOSPC,
        kept: Kept::First(1),
        on: false,
    },
    Failing {
        errno: libc::EIO,
        kept: Kept::All,
        on: false,
    },
    Failing {
        errno: libc::ENOSPC,
        kept: Kept::Nothing,
        on: true,
    },
];

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
