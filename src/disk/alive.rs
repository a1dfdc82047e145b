//! Whether a handle may still be used: it dies in a forked child, after a panic, and for changes after a failed flush.
//!
//! Invariant: checking costs two loads, no system call (durability trap 10).

use std::sync::Once;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use crate::error::{Error, ErrorCode, Result};

/// Counts how often the process that we are was made by a fork, as seen from the first open on.
static GENERATION: AtomicU32 = AtomicU32::new(0);

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

const SOUND: u8 = 0;
/// As sound, and the content has not been changed yet: something is to be done before it is.
const ARRANGED: u8 = 1;
/// As sound, and no change of any kind was made yet: something is to be done before the first one.
const RESTING: u8 = 2;
/// A flush failed: what was written may be lost, so no change may report success any more (A2).
const CHANGES_FAILED: u8 = 3;
/// The engine met a bug of its own: nothing it knows can be relied on.
const BROKEN: u8 = 4;

/// The process that something was made in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Born(u32);

impl Born {
    /// This one.
    pub(crate) fn new() -> Result<Self> {
        watch_forks()?;
        Ok(Self::here())
    }

    /// This one. Some disk must have been opened in it before.
    pub(crate) fn here() -> Self {
        Self(GENERATION.load(Ordering::Relaxed))
    }

    /// Fails in a child of it, which must not even take a lock: another thread may have had it at the fork.
    pub(crate) fn check(self) -> Result<()> {
        if self.0 == GENERATION.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(forked())
    }
}

/// The state of a handle.
pub(super) struct Alive {
    born: u32,
    failure: AtomicU8,
}

impl Alive {
    /// A handle that was opened in this process, just now.
    pub(super) fn new() -> Result<Self> {
        watch_forks()?;
        Ok(Self {
            born: GENERATION.load(Ordering::Relaxed),
            failure: AtomicU8::new(SOUND),
        })
    }

    /// Whether the handle was opened by the process that asks, not by its parent.
    pub(super) fn is_ours(&self) -> bool {
        self.born == GENERATION.load(Ordering::Relaxed)
    }

    /// Whether the handle may be read from.
    #[inline]
    pub(super) fn check(&self) -> Result<()> {
        if self.is_ours() && self.failure.load(Ordering::Relaxed) != BROKEN {
            return Ok(());
        }
        Err(self.why())
    }

    /// Whether the handle may be written to, right away.
    #[inline]
    pub(super) fn may_change(&self) -> bool {
        self.is_ours() && self.failure.load(Ordering::Relaxed) == SOUND
    }

    /// Whether what is not content may be changed, right away.
    pub(super) fn may_arrange(&self) -> bool {
        self.is_ours() && self.failure.load(Ordering::Relaxed) <= ARRANGED
    }

    /// Whether the handle may be written to or flushed, if need be after what the first change asks for.
    pub(super) fn check_unfailed(&self) -> Result<()> {
        if self.is_ours() && !self.has_failed() {
            return Ok(());
        }
        Err(self.why())
    }

    /// The first change is to be prepared for.
    pub(super) fn rest(&self) {
        self.exchange(SOUND, RESTING);
    }

    /// The next change is to be prepared for again.
    pub(super) fn rest_again(&self) {
        self.exchange(SOUND, RESTING);
        self.exchange(ARRANGED, RESTING);
    }

    /// The first change has been prepared for: of the content, or of anything else.
    pub(super) fn wake(&self, content: bool) {
        if content {
            self.exchange(ARRANGED, SOUND);
        }
        self.exchange(RESTING, if content { SOUND } else { ARRANGED });
    }

    fn exchange(&self, from: u8, to: u8) {
        // Where it was another state, it is a worse one, and stays.
        let _ = self
            .failure
            .compare_exchange(from, to, Ordering::Release, Ordering::Relaxed);
    }

    /// Whether a flush has failed, or worse.
    pub(super) fn has_failed(&self) -> bool {
        self.failure.load(Ordering::Relaxed) >= CHANGES_FAILED
    }

    /// From now on no change reports success. True for the call that made it so.
    pub(super) fn fail_changes(&self) -> bool {
        self.failure.fetch_max(CHANGES_FAILED, Ordering::Relaxed) < CHANGES_FAILED
    }

    /// From now on nothing reports success. True for the call that made it so.
    pub(super) fn break_down(&self) -> bool {
        self.failure.fetch_max(BROKEN, Ordering::Relaxed) != BROKEN
    }

    #[cold]
    fn why(&self) -> Error {
        if !self.is_ours() {
            return forked();
        }
        let reason = if self.failure.load(Ordering::Relaxed) == BROKEN {
            "the disk met an internal error and refuses further use; close and reopen it"
        } else {
            "an earlier flush or save failed, so what was written may be lost; close and reopen the disk"
        };
        Error::new(ErrorCode::Failed, reason)
    }
}

/// Counts forks from the first call on.
fn watch_forks() -> Result<()> {
    static REGISTER: Once = Once::new();
    static FAILED: AtomicU8 = AtomicU8::new(0);
    REGISTER.call_once(|| {
        // SAFETY: `in_child` only adds to an atomic, which is safe in a forked child.
        let result = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        if result != 0 {
            FAILED.store(1, Ordering::Relaxed);
        }
    });
    if FAILED.load(Ordering::Relaxed) != 0 {
        return Err(Error::new(ErrorCode::NoMemory, "cannot register a fork handler"));
    }
    Ok(())
}

#[cold]
fn forked() -> Error {
    Error::new(
        ErrorCode::Forked,
        "this handle was opened before a fork and belongs to the parent process; open the disk again",
    )
}
