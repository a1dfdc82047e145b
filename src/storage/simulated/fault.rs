//! Calls that fail on demand (F3).
//!
//! Invariant: what a failing call did nevertheless is decided when it fails and recorded in its event, so that a
//! replay does the same.

use std::fmt;

use super::event::{Call, CallKind, Failure};
use super::random::mixed;

/// How much of a failing call took effect all the same. Calls that cannot be halved (a rename, a new length) take
/// effect if their first piece would.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Kept {
    /// Nothing.
    #[default]
    Nothing,
    /// Everything.
    All,
    /// That many 512-byte pieces from the front, as when a full disk or a signal ends a write early.
    First(u64),
    /// Pieces drawn by this seed; another call under the same fault draws anew.
    Random(u64),
}

impl Kept {
    /// Whether piece number `ordinal` of the call took effect.
    pub(super) fn includes(self, ordinal: u64) -> bool {
        match self {
            Self::Nothing => false,
            Self::All => true,
            Self::First(count) => ordinal < count,
            Self::Random(seed) => mixed(seed, ordinal) & 1 == 1,
        }
    }
}

/// Which calls fail, and how.
pub struct Fault {
    failure: Failure,
    matches: Box<dyn Fn(&Call) -> bool + Send>,
    /// Matching calls that still succeed.
    spared: u64,
    for_good: bool,
    kept: Kept,
}

impl Fault {
    /// The next call of any kind fails with `errno`, once, and does nothing.
    pub fn new(errno: i32) -> Self {
        Self {
            failure: Failure::Errno(errno),
            matches: Box::new(|_| true),
            spared: 0,
            for_good: false,
            kept: Kept::Nothing,
        }
    }

    /// The next sync of a file fails because the device cannot flush its own cache. The caller is told, and nobody else ever.
    pub fn of_cache() -> Self {
        Self {
            failure: Failure::CacheLost,
            ..Self::new(libc::EIO).on(CallKind::Sync)
        }
    }

    /// Only calls of this kind.
    #[must_use]
    pub fn on(self, kind: CallKind) -> Self {
        self.matching(move |call| call.kind() == kind)
    }

    /// Only calls on the file that was opened under this name, or on this name.
    #[must_use]
    pub fn on_file(self, name: &str) -> Self {
        let name = std::path::PathBuf::from(name);
        self.matching(move |call| call.names().any(|it| it == name))
    }

    /// Only calls that `test` says so of. It runs under the disk's lock, and must not use the disk.
    #[must_use]
    pub fn matching(mut self, test: impl Fn(&Call) -> bool + Send + 'static) -> Self {
        let before = self.matches;
        self.matches = Box::new(move |call| before(call) && test(call));
        self
    }

    /// The `n`-th matching call, counted from 1, instead of the first.
    #[must_use]
    pub fn nth(mut self, n: u64) -> Self {
        self.spared = n.saturating_sub(1);
        self
    }

    /// And all after it, too.
    #[must_use]
    pub fn from_then_on(mut self) -> Self {
        self.for_good = true;
        self
    }

    /// What failing calls do all the same.
    #[must_use]
    pub fn keeping(mut self, kept: Kept) -> Self {
        self.kept = kept;
        self
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fault")
            .field("failure", &self.failure)
            .field("spared", &self.spared)
            .field("for_good", &self.for_good)
            .field("kept", &self.kept)
            .finish_non_exhaustive()
    }
}

/// The faults that are still to come.
#[derive(Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub fn add(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether `call`, event number `event`, fails: how, and what it does all the same.
    ///
    /// Every fault counts the call; where several would strike, the oldest does and the others go unused.
    pub fn strike(&mut self, call: &Call, event: u64) -> Option<(Failure, Kept)> {
        let mut struck = None;
        self.0.retain_mut(|fault| {
            if !(fault.matches)(call) {
                return true;
            }
            if fault.spared > 0 {
                fault.spared -= 1;
                return true;
            }
            let kept = match fault.kept {
                Kept::Random(seed) => Kept::Random(mixed(seed, event)),
                kept => kept,
            };
            struck = struck.or(Some((fault.failure, kept)));
            fault.for_good
        });
        struck
    }
}
