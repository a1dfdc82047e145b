//! Many callers, few syncs: whoever finds a free lane syncs; the others share the next sync that begins.
//!
//! Invariant (A2): a call returns success only after a round that began behind the call's own beginning succeeded.
//! One that was already running vouches for nothing that came later. No two rounds run in one lane at a time: of two syncs
//! through one open file description the kernel tells but one that bytes were lost, and the other's success would be a lie.
//!
//! A lane that is opened later knows nothing of what was lost before, and told to another. So it is not used until a round
//! in an older lane, which began when the new one was there, has succeeded: that one would have been told.
//!
//! Lanes do not help where a device cannot flush its own cache: that is told to the one who asked, and noted nowhere, and the
//! next flush may succeed though the bytes are gone. So a round counts when those that ran beside it have ended, too, and
//! none of them has failed.

use crate::error::Result;
use crate::mutation::{self, Fault};
use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// With the first. Each may be an open file.
const MAX_LANES: usize = 16;

#[derive(Debug)]
pub(in crate::disk) struct Rounds<L> {
    state: Mutex<State<L>>,
    /// A lane is free, or a round has succeeded.
    ended: Condvar,
    /// The oldest round at work has ended.
    outlasted: Condvar,
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
    /// The rounds at work, the oldest first.
    at_work: Vec<u64>,
    /// How many callers wait for a lane, or for a round that serves them.
    waiting: u64,
    /// How many rounds are done and wait for others.
    outlasting: u64,
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
                at_work: Vec::with_capacity(MAX_LANES),
                waiting: 0,
                outlasting: 0,
            }),
            ended: Condvar::new(),
            outlasted: Condvar::new(),
        }
    }

    /// Returns when a round that had not begun yet has succeeded: one that another caller runs, or `round` here. Where no lane
    /// is free, `another` may open one more, for later callers.
    ///
    /// Where another's round fails, this caller runs its own, and so gets an error of its own. A round that has succeeded is
    /// asked by `unfailed`, when those beside it have ended, whether any of them has failed.
    pub(in crate::disk) fn join(
        &self,
        another: impl FnOnce() -> Option<L>,
        round: impl FnOnce(&L) -> Result<()>,
        unfailed: impl FnOnce() -> Result<()>,
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
                return self.run(state, lane, round, unfailed);
            }
            state = self.wait(state);
        }
    }

    /// Runs `round`, whatever others do, as soon as a lane is free.
    pub(in crate::disk) fn own(
        &self,
        round: impl FnOnce(&L) -> Result<()>,
        unfailed: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let mut state = self.state();
        loop {
            if let Some(lane) = state.free.pop() {
                return self.run(state, lane, round, unfailed);
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
        unfailed: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        state.begun += 1;
        let number = state.begun;
        state.at_work.push(number);
        drop(state);
        let running = Running {
            rounds: self,
            number,
            lane: Some(lane),
        };
        if let Some(lane) = &running.lane {
            round(lane)?;
        }
        running.count(unfailed)
    }

    fn wait<'s>(&self, mut state: MutexGuard<'s, State<L>>) -> MutexGuard<'s, State<L>> {
        state.waiting += 1;
        let mut state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state
    }

    /// Returns when the rounds that are at work now have ended.
    #[cold]
    fn outlast<'s>(&'s self, mut state: MutexGuard<'s, State<L>>) -> MutexGuard<'s, State<L>> {
        // The lane that this round has left is for others meanwhile.
        if state.waiting > 0 {
            self.ended.notify_all();
        }
        let last = state.begun;
        state.outlasting += 1;
        while state.at_work.first().is_some_and(|oldest| *oldest <= last) {
            state = self.outlasted.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.outlasting -= 1;
        state
    }

    /// Wakes those who wait for a lane, or to be served: by a call of the system, which a flush that is alone does not need.
    fn tell(&self, state: MutexGuard<'_, State<L>>) {
        if state.waiting > 0 {
            drop(state);
            self.ended.notify_all();
        }
    }

    fn state(&self) -> MutexGuard<'_, State<L>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<L> State<L> {
    fn is_running(&self) -> bool {
        !self.at_work.is_empty()
    }

    /// Round `number` is done, well or not. True if somebody may have waited for that.
    fn leave(&mut self, number: u64, lane: Option<L>) -> bool {
        self.free.extend(lane);
        let oldest = self.at_work.first() == Some(&number);
        self.at_work.retain(|it| *it != number);
        oldest && self.outlasting > 0
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
    number: u64,
    /// Until the round is done.
    lane: Option<L>,
}

impl<'r, L> Running<'r, L> {
    /// The round has succeeded: it counts unless one beside it has failed. Waits for those that have begun by now, and not for
    /// later ones, of which nobody could make undone what is durable.
    fn count(mut self, unfailed: impl FnOnce() -> Result<()>) -> Result<()> {
        let rounds = self.rounds;
        let mut state = self.leave();
        if !mutation::on(Fault::CountedAlone) {
            if !state.at_work.is_empty() {
                state = rounds.outlast(state);
            }
            // Of those that wait, none is served by this round, and there is a lane for one.
            if let Err(error) = unfailed() {
                rounds.tell(state);
                return Err(error);
            }
        }
        state.succeeded(self.number);
        rounds.tell(state);
        Ok(())
    }

    fn leave(&mut self) -> MutexGuard<'r, State<L>> {
        let mut state = self.rounds.state();
        if state.leave(self.number, self.lane.take()) {
            self.rounds.outlasted.notify_all();
        }
        state
    }
}

impl<L> Drop for Running<'_, L> {
    fn drop(&mut self) {
        if self.lane.is_some() {
            let state = self.leave();
            self.rounds.tell(state);
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A round that is done waits for an older one, and not for one that has begun since.
    #[test]
    fn later_rounds_are_not_waited_for() {
        let rounds = Rounds::new(0);
        rounds.state().free.extend([1, 2]);
        rounds.state().lanes = 3;
        let (older, older_goes_on) = mpsc::channel();
        let (later, later_goes_on) = mpsc::channel();
        let (done, is_done) = mpsc::channel();
        let begins = |goes_on: mpsc::Receiver<()>| {
            let (begun, has_begun) = mpsc::channel();
            let rounds = &rounds;
            let round = move || {
                let round = |_: &i32| {
                    begun.send(()).unwrap();
                    goes_on.recv().unwrap();
                    Ok(())
                };
                rounds.own(round, || Ok(()))
            };
            (round, has_begun)
        };
        std::thread::scope(|scope| {
            let (round, has_begun) = begins(older_goes_on);
            scope.spawn(round);
            has_begun.recv().unwrap();
            scope.spawn(|| done.send(rounds.own(|_| Ok(()), || Ok(()))).unwrap());
            while rounds.state().outlasting == 0 {
                std::thread::yield_now();
            }
            let (round, has_begun) = begins(later_goes_on);
            scope.spawn(round);
            has_begun.recv().unwrap();
            is_done.try_recv().unwrap_err();
            older.send(()).unwrap();
            is_done.recv().unwrap().unwrap();
            assert_eq!(rounds.state().at_work.len(), 1);
            later.send(()).unwrap();
        });
        assert_eq!(rounds.state().free.len(), 3);
    }
}
