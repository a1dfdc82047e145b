//! Many callers, one flush: those that arrive while one runs share the next.
//!
//! Invariant (A2): a call returns success only after a round that began behind the call's own beginning succeeded.
//! One that was already running vouches for nothing that came later. No two rounds run at a time: of two syncs of one file
//! the kernel tells but one that bytes were lost, and the other's success would be a lie.

use crate::error::Result;
use crate::mutation::{self, Fault};
use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
pub(in crate::disk) struct Rounds {
    state: Mutex<State>,
    ended: Condvar,
}

/// Rounds are numbered from 1.
#[derive(Debug, Default)]
struct State {
    begun: u64,
    /// The last that succeeded.
    succeeded: u64,
    running: bool,
    /// How many wait for the one that runs.
    waiting: u64,
}

impl Rounds {
    /// Returns when a round that had not begun yet has succeeded: one that another caller runs, or `round` here.
    ///
    /// Where another's fails, this caller runs its own, and so gets an error of its own.
    pub(in crate::disk) fn join(&self, round: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut state = self.state();
        let mine = if mutation::on(Fault::RunningFlushJoined) && state.running {
            state.begun
        } else {
            state.begun + 1
        };
        loop {
            if state.succeeded >= mine {
                return Ok(());
            }
            if !state.running || mutation::on(Fault::SyncsApart) {
                break;
            }
            state = self.wait(state);
        }
        self.run(state, round)
    }

    /// Runs `round`, whatever others do, when none of theirs runs.
    pub(in crate::disk) fn alone(&self, round: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut state = self.state();
        while state.running {
            state = self.wait(state);
        }
        self.run(state, round)
    }

    fn run(&self, mut state: MutexGuard<'_, State>, round: impl FnOnce() -> Result<()>) -> Result<()> {
        state.begun += 1;
        state.running = true;
        let number = state.begun;
        drop(state);
        let running = Running(self);
        round()?;
        self.state().succeeded = number;
        drop(running);
        Ok(())
    }

    fn wait<'s>(&self, mut state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        state.waiting += 1;
        let mut state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A round at work. Dropping it, after whatever end, lets the next begin.
struct Running<'r>(&'r Rounds);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.running = false;
        // A call of the system, which a flush that is alone does not need.
        if state.waiting > 0 {
            drop(state);
            self.0.ended.notify_all();
        }
    }
}
