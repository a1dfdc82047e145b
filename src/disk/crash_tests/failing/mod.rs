//! (d) Every call of a life fails in turn: with EIO and ENOSPC, doing nothing, a part of it, or all of it; a failed call
//! is one, or the first of many. The error is in words, nothing that was promised is lost, neither in a kill nor in a power
//! cut, and the disk is usable afterwards or says that it is not. What failed is tried again, or something else is done instead:
//! zeros over it, another write, a starting point.
//!
//! In an ordinary run every call of a short life of every kind, in one way or more, and of the long ones by hand two calls of each
//! step; `QBM_SEED` draws others. `QBM_LONG=1`: every call of the long ones, in every way.

mod script;
mod single;
mod ways;

use std::path::Path;
use std::sync::Arc;

use ways::{FULL, Failing, THENS, Then, WAYS, in_words, needs_room};

use super::dice::{Dice, seed};
use super::kind::{KINDS, Kind};
use super::life::{INNER, Life, NAME, refused};
use super::power::{Depth, Look};
use super::steps::Step;
use crate::error::ErrorCode;
use crate::storage::Role;
use crate::storage::simulated::{Call, CallKind, Event, Failure};

/// Which call fails: of which step, and the how-manieth there, counted from 1.
#[derive(Clone, Copy, Debug)]
struct Place {
    step: usize,
    call: u64,
}

/// In which way it fails, and what comes next where that ended the step.
type Way = (Failing, Then);

/// The way number `turn`: all of them come in turn.
fn way(turn: usize) -> Way {
    (WAYS[turn % WAYS.len()], THENS[turn % THENS.len()])
}

fn is_sync(call: &Call) -> bool {
    matches!(call.kind(), CallKind::Sync | CallKind::SyncFolder)
}

/// Whether a sync, if it fails, may lose what the disk does not keep a second time: content, its own or that of an image below,
/// and names.
fn loses_content(sync: &Call) -> bool {
    sync.file()
        .is_none_or(|file| matches!(file.role, Role::Image | Role::Backing))
}

/// Whether a descriptor has got its name, and the sync that was to make this durable has failed: it may be the old one or the new
/// one that the next power cut leaves.
fn is_unsure_of_a_name(events: &[Arc<Event>]) -> bool {
    let renames = |call: &Call| matches!(call, Call::Rename { to, .. } if **to == *Path::new(NAME) || **to == *Path::new(INNER));
    events
        .windows(2)
        .any(|pair| renames(&pair[0].call) && pair[1].call == Call::SyncFolder && pair[1].failure.is_some())
}

/// What a call that failed means for the rest of a life.
enum Struck {
    /// There was no such call.
    Not,
    /// Life goes on.
    Bearably,
    /// What the kernel has dropped, no later process can know of: nothing is promised for that one.
    Fatally,
}

/// A life in which something fails.
struct Failed<'s> {
    life: Life,
    steps: &'s [Step],
    /// When crashes are looked at.
    points: Vec<u64>,
    /// Whether a flush has succeeded since.
    flushed: bool,
    /// The call that failed.
    struck: String,
}

impl Failed<'_> {
    /// Does step number `place.step`, in which a call fails.
    fn strike(&mut self, place: Place, (way, then): Way) -> Result<Struck, String> {
        let step = self.steps[place.step];
        let life = &mut self.life;
        life.sim.fail(way.fault(place.call));
        let begun = life.now();
        let result = life.step(step);
        let at = usize::try_from(begun + place.call - 1).unwrap_or(usize::MAX);
        let events = life.sim.events();
        let Some(event) = events
            .get(at)
            .filter(|it| it.failure == Some(Failure::Errno(way.errno)))
        else {
            return Ok(Struck::Not);
        };
        self.struck = event.to_string();
        life.sim.heal();
        if let Err(error) = &result {
            in_words(error, way.errno, life.kind.excuses).map_err(|what| format!("{step:?}: {what}"))?;
        }
        life.look_again(begun);
        self.points.push(life.now());
        if is_unsure_of_a_name(&events[at.saturating_sub(1)..])
            && !life.has_failed()
            && !life.image_has_failed()
        {
            return Err(format!(
                "{step:?}: M1: the disk goes on, and its descriptor may be the old one after a power cut"
            ));
        }
        let failed = events[at..].iter().filter(|it| it.failure == event.failure);
        let syncs: Vec<_> = failed.map(|it| &it.call).filter(|it| is_sync(it)).collect();
        let of_data = syncs.iter().any(|call| call.names().any(|it| life.is_image(it)));
        life.model.image_failed |= of_data || life.image_has_failed();
        if of_data && !matches!(step, Step::Reopen | Step::Die | Step::Check(_)) {
            let retry = life.step(Step::Flush);
            if retry.is_ok() || !life.has_failed() {
                return Err(format!("{step:?}: A2: a flush succeeds after a failed sync"));
            }
        }
        if syncs.iter().any(|call| loses_content(call)) {
            return Ok(Struck::Fatally);
        }
        if result.is_err() && !life.has_failed() {
            for step in then.steps(step) {
                go_on_with(life, step)?;
            }
            self.points.push(life.now());
        }
        Ok(Struck::Bearably)
    }

    /// Does a step after that.
    fn go_on(&mut self, step: Step) -> Result<(), String> {
        let life = &mut self.life;
        let begun = life.now();
        let result = life.step(step);
        if result.is_ok() && step == Step::Flush && !self.flushed {
            // What the failure dropped is durable now, or this flush lied.
            self.points.push(life.now());
            self.flushed = true;
        } else if result.is_err() && !refused(&result) && !life.has_failed() {
            reopen(life, begun, &result).map_err(|what| format!("then {step:?} on a sound disk: {what}"))?;
        } else if life.has_failed() {
            // Dead, and it says so; the next process goes on.
            if let Err(error) = &result
                && error.code() != ErrorCode::Failed
                && !refused(&result)
                && !matches!(step, Step::Reopen | Step::Die | Step::Check(_))
            {
                return Err(format!("then {step:?} on a dead disk: {error:?}"));
            }
            let _ = life.step(Step::Die);
            life.look_again(begun);
        }
        Ok(())
    }

    /// The life from step number `place.step` on, and what crashes leave of it.
    fn live_on(&mut self, place: Place, way: Way, start: u64) -> Result<Option<u64>, String> {
        match self.strike(place, way)? {
            Struck::Not => return Ok(None),
            Struck::Bearably => {
                for step in &self.steps[place.step + 1..] {
                    self.go_on(*step)?;
                }
            }
            Struck::Fatally => {}
        }
        let life = &self.life;
        self.points.push(life.now());
        let look = Look {
            sim: &life.sim,
            model: &life.model,
            kind: life.kind,
            caches: ("first", "second"),
            extra: 0,
            shortest: life.shortest,
            depth: Depth {
                states: 2,
                onward: 24,
            },
        };
        let mut states = 0;
        let points = life.sim.crash_points();
        for point in points.filter(|it| it.events() >= start && self.points.contains(&it.events())) {
            states += look
                .at(&point)
                .map_err(|what| format!("after {} calls: {what}", point.events()))?;
        }
        Ok(Some(states))
    }
}

/// One life in which one call fails. `None` where there is no such call.
fn one(kind: Kind, steps: &[Step], place: Place, way: Way) -> Result<Option<u64>, String> {
    let (life, start) = Life::new(kind).map_err(|e| e.to_string())?;
    let mut failed = Failed {
        life,
        steps,
        points: Vec::new(),
        flushed: false,
        struck: String::new(),
    };
    for step in &steps[..place.step] {
        let result = failed.life.step(*step);
        if !refused(&result) {
            result.map_err(|e| format!("before that, {step:?}: {e}"))?;
        }
    }
    let states = failed.live_on(place, way, start);
    states.map_err(|what| format!("{}: {what}", failed.struck))
}

/// Does a step behind one that failed: it can be done, or the disk says that it must be reopened.
fn go_on_with(life: &mut Life, step: Step) -> Result<(), String> {
    let begun = life.now();
    let result = life.step(step);
    if result.is_ok() || refused(&result) {
        return Ok(());
    }
    if life.has_failed() {
        life.look_again(begun);
        return Ok(());
    }
    reopen(life, begun, &result).map_err(|what| format!("{step:?} cannot be done behind it: {what}"))
}

/// The state file takes nothing after a failed update, and says so: whoever reopens the disk goes on. An error where that is not
/// what `result` says.
fn reopen(life: &mut Life, begun: u64, result: &crate::error::Result<()>) -> Result<(), String> {
    let told = result
        .as_ref()
        .is_err_and(|e| e.code() == ErrorCode::Failed || e.message().ends_with("close and reopen the disk"));
    if told && life.step(Step::Die).is_ok() {
        life.look_again(begun);
        return Ok(());
    }
    Err(format!("{result:?}"))
}

/// How many states were looked at after the calls of these steps had failed.
#[derive(Default)]
struct Count {
    calls: u64,
    states: u64,
}

impl Count {
    /// The call at `place` fails in this way; false where there is no such call.
    fn try_one(&mut self, kind: Kind, steps: &[Step], place: Place, way: Way) -> Result<bool, String> {
        let found = one(kind, steps, place, way)
            .map_err(|what| format!("{:?}, call {}, {way:?}: {what}", steps[place.step], place.call))?;
        self.states += found.unwrap_or(0);
        self.calls += u64::from(found.is_some());
        Ok(found.is_some())
    }

    /// The states, where there were so many calls or more, and some states for each: fewer prove nothing.
    fn enough(self, kind: Kind, calls: u64) -> Result<u64, String> {
        println!("{kind:?}: {} failed calls, {} states", self.calls, self.states);
        if self.calls < calls || self.states < 5 * calls {
            return Err(format!(
                "{} failed calls and {} states are too few to prove anything",
                self.calls, self.states
            ));
        }
        Ok(self.states)
    }
}

/// So many calls, or more, has a life of any kind of disk.
const LEAST: u64 = 200;

/// Every call of these steps fails, each in `count` of the ways, which come in turn.
fn each(kind: Kind, steps: &[Step], count: usize) -> Result<u64, String> {
    let mut done = Count::default();
    let mut turn = 0;
    for step in 0..steps.len() {
        for call in 1.. {
            let mut any = false;
            for _ in 0..count {
                any |= done.try_one(kind, steps, Place { step, call }, way(turn))?;
                turn += 1;
            }
            if !any {
                break;
            }
        }
    }
    done.enough(kind, LEAST * count as u64)
}

/// Every call of a short life of this kind fails.
pub(super) fn every_call(kind: Kind) -> Result<u64, String> {
    // The other kinds differ in what is called, not in how it can fail.
    let count = match kind {
        Kind::RAW => WAYS.len(),
        Kind::LAZY | Kind::OVERLAY | Kind::NESTED => 2,
        _ => 1,
    };
    each(kind, &script::short(kind), count)
}

/// The calls that each step makes in a life where none fails, as `of` has them.
fn calls_of<T>(kind: Kind, steps: &[Step], of: impl Fn(&Call) -> T) -> Result<Vec<Vec<T>>, String> {
    let (mut life, _) = Life::new(kind).map_err(|e| e.to_string())?;
    let mut calls = Vec::new();
    for step in steps {
        let begun = usize::try_from(life.now()).unwrap_or(usize::MAX);
        life.step(*step).map_err(|e| format!("{step:?}: {e}"))?;
        calls.push(life.sim.events()[begun..].iter().map(|it| of(&it.call)).collect());
    }
    Ok(calls)
}

/// Every call of a short life of this kind that needs room finds none; then the step is tried again, or something else is done.
pub(super) fn without_room(kind: Kind) -> Result<u64, String> {
    let steps = script::short(kind);
    let mut count = Count::default();
    for (step, calls) in calls_of(kind, &steps, needs_room)?.into_iter().enumerate() {
        for (call, _) in (1..).zip(calls).filter(|(_, needs)| *needs) {
            for then in [Then::Again, Then::Zeros, Then::Point] {
                count.try_one(kind, &steps, Place { step, call }, (FULL, then))?;
            }
        }
    }
    println!(
        "{kind:?}: {} calls without room, {} states",
        count.calls, count.states
    );
    Ok(count.states)
}

/// How many calls of each step of a long life fail in an ordinary run.
const EACH: usize = 2;

/// Some calls of each step of a long life fail, each in one way; which is drawn by `seed`.
fn some_of_each(kind: Kind, seed: u64) -> Result<u64, String> {
    let steps = kind.script();
    let mut dice = Dice::new(seed);
    let mut count = Count::default();
    for (step, calls) in calls_of(kind, &steps, |_| ())?.into_iter().enumerate() {
        let calls = calls.len();
        if calls == 0 {
            continue;
        }
        for _ in 0..EACH {
            let (call, way) = (
                dice.below(calls) as u64 + 1,
                way(dice.below(WAYS.len() * THENS.len())),
            );
            if !count.try_one(kind, &steps, Place { step, call }, way)? {
                return Err(format!("{:?} has no call {call}", steps[step]));
            }
        }
    }
    count.enough(kind, (EACH * steps.len()) as u64 / 2)
}

/// The lives by hand, of these kinds.
fn long_lives(kinds: &[Kind]) {
    let long = std::env::var_os("QBM_LONG").is_some();
    let seed = seed();
    for (number, kind) in (0..).zip(kinds) {
        let states = if long {
            each(*kind, &kind.script(), WAYS.len() * THENS.len())
        } else {
            some_of_each(*kind, seed.wrapping_mul(100).wrapping_add(number))
        };
        states.unwrap_or_else(|what| panic!("{kind:?}: {what}"));
    }
}

fn short_lives(kinds: impl Iterator<Item = Kind>) {
    for kind in kinds {
        every_call(kind).unwrap_or_else(|what| panic!("{kind:?}: {what}"));
    }
}

#[test]
fn every_call_that_fails_is_told_of_and_costs_nothing() {
    short_lives(KINDS.into_iter().filter(|kind| kind.inner.is_none()));
}

/// The same of both disks where one is the image of the other.
#[test]
fn every_call_of_a_disk_in_a_disk_that_fails_costs_nothing() {
    short_lives(KINDS.into_iter().filter(|kind| kind.inner.is_some()));
}

/// A first touch of an overlay that finds no room for its bit anywhere is neither forgotten nor kept a secret.
#[test]
fn an_overlay_without_room_goes_on_with_what_it_shows() {
    without_room(Kind::OVERLAY).unwrap_or_else(|what| panic!("{what}"));
}

/// Of everything that can be done to a disk.
#[test]
fn calls_of_every_step_that_fail_cost_nothing() {
    let kinds: Vec<_> = KINDS.into_iter().filter(|kind| kind.inner.is_none()).collect();
    long_lives(&kinds);
}

#[test]
fn calls_of_every_step_of_disks_in_disks_that_fail_cost_nothing() {
    let kinds: Vec<_> = KINDS.into_iter().filter(|kind| kind.inner.is_some()).collect();
    long_lives(&kinds);
}
