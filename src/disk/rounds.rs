//! Many callers, few syncs: whoever finds a free lane syncs; the others share the next sync that begins.
//!
//! Invariant (A2): a call returns success only after a round that began behind the call's own beginning succeeded.
//! One that was already running vouches for nothing that came later. No two rounds run in one lane at a time: of two syncs
//! through one open file description the kernel tells but one that bytes were lost, and the other's success would be a lie.
//!
//! A lane that is opened later knows nothing of what was lost before, and told to another. So it is not used until a round
//! in an older lane, which began when the new one was there, has succeeded: that one would have been told.

use crate::error::Result;
use crate::mutation::{self, Fault};
use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// With the first. Each may be an open file.
const MAX_LANES: usize = 16;

#[derive(Debug)]
pub(in crate::disk) struct Rounds<L> {
    state: Mutex<State<L>>,
    ended: Condvar,
}

/// Rounds are numbered from 1.
#[derive(Debug)]
struct State<L> {
    begun: u64,
    /// The last that succeeded.
    succeeded: u64,
    /// Lanes in which no round runs.
    free: Vec<L>,
    /// Lanes that are not used yet, with the last round that had begun when they were opened.
    unproven: Vec<(u64, L)>,
    /// How many lanes there are, whatever they do.
    lanes: usize,
    /// Whether there may be more of them.
    widens: bool,
    /// How many callers wait for a round to end.
    waiting: u64,
}

impl<L> Rounds<L> {
    pub(in crate::disk) fn new(first: L) -> Self {
        let mut free = Vec::with_capacity(MAX_LANES);
        free.push(first);
        Self {
            state: Mutex::new(State {
                begun: 0,
                succeeded: 0,
                free,
                unproven: Vec::new(),
                lanes: 1,
                widens: true,
                waiting: 0,
            }),
            ended: Condvar::new(),
        }
    }

    /// Returns when a round that had not begun yet has succeeded: one that another caller runs, or `round` here. Where no lane
    /// is free, `another` may open one more, for later callers.
    ///
    /// Where another's round fails, this caller runs its own, and so gets an error of its own.
    pub(in crate::disk) fn join(
        &self,
        another: impl FnOnce() -> Option<L>,
        round: impl FnOnce(&L) -> Result<()>,
    ) -> Result<()> {
        let mut state = self.state();
        let mine = if mutation::on(Fault::RunningFlushJoined) && state.is_running() {
            state.begun
        } else {
            state.begun + 1
        };
        if state.free.is_empty() {
            state.widen(another);
        }
        loop {
            if state.succeeded >= mine {
                return Ok(());
            }
            if let Some(lane) = state.free.pop() {
                return self.run(state, lane, round);
            }
            state = self.wait(state);
        }
    }

    /// Runs `round`, whatever others do, as soon as a lane is free.
    pub(in crate::disk) fn own(&self, round: impl FnOnce(&L) -> Result<()>) -> Result<()> {
        let mut state = self.state();
        loop {
            if let Some(lane) = state.free.pop() {
                return self.run(state, lane, round);
            }
            state = self.wait(state);
        }
    }

    /// Closes lanes that are not needed when this is hardly used any more.
    pub(in crate::disk) fn narrow(&self) {
        let mut state = self.state();
        state.widens = false;
        let unneeded = state.unproven.len() + state.free.len().saturating_sub(1);
        state.unproven.clear();
        state.free.truncate(1);
        state.lanes -= unneeded;
    }

    fn run(
        &self,
        mut state: MutexGuard<'_, State<L>>,
        lane: L,
        round: impl FnOnce(&L) -> Result<()>,
    ) -> Result<()> {
        state.begun += 1;
        let number = state.begun;
        drop(state);
        let mut running = Running {
            rounds: self,
            lane: Some(lane),
            succeeded: None,
        };
        if let Some(lane) = &running.lane {
            round(lane)?;
        }
        running.succeeded = Some(number);
        Ok(())
    }

    fn wait<'s>(&self, mut state: MutexGuard<'s, State<L>>) -> MutexGuard<'s, State<L>> {
        state.waiting += 1;
        let mut state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state
    }

    fn state(&self) -> MutexGuard<'_, State<L>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<L> State<L> {
    fn is_running(&self) -> bool {
        self.free.len() + self.unproven.len() < self.lanes
    }

    #[cold]
    fn widen(&mut self, another: impl FnOnce() -> Option<L>) {
        if !self.widens {
            return;
        }
        match another() {
            Some(lane) if mutation::on(Fault::LaneUnproven) => self.free.push(lane),
            Some(lane) => self.unproven.push((self.begun, lane)),
            None => {
                self.widens = false;
                return;
            }
        }
        self.lanes += 1;
        self.widens = self.lanes < MAX_LANES;
    }

    /// A round has succeeded: it vouches for lanes that were there when it began.
    fn succeeded(&mut self, number: u64) {
        self.succeeded = self.succeeded.max(number);
        while let Some(at) = self.unproven.iter().position(|(opened, _)| *opened < number) {
            let (_, lane) = self.unproven.swap_remove(at);
            self.free.push(lane);
        }
    }
}

/// A round at work. Dropping it, after whatever end, lets the next begin in its lane.
struct Running<'r, L> {
    rounds: &'r Rounds<L>,
    lane: Option<L>,
    /// Its number, if it did.
    succeeded: Option<u64>,
}

impl<L> Drop for Running<'_, L> {
    fn drop(&mut self) {
        let mut state = self.rounds.state();
        state.free.extend(self.lane.take());
        if let Some(number) = self.succeeded {
            state.succeeded(number);
        }
        // A call of the system, which a flush that is alone does not need.
        if state.waiting > 0 {
            drop(state);
            self.rounds.ended.notify_all();
        }
    }
}
