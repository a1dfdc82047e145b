//! (a) The power goes, or the process dies, after every call that changes something, and what was not synced is kept
//! in part: by every subset where these are few, by hostile and random ones where they are many. Now and then life goes on
//! after that, into the next crash.
//!
//! The story that they guard against: a backup was told that a granule did not change, and it had.

#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};

use super::check::Opening;
use super::dice::Dice;
#[cfg(test)]
use super::dice::seed;
use super::kind::{KINDS, Kind};
use super::life::{Life, check_inner};
use super::model::{Model, Moments};
use super::steps::Step;
use crate::storage::simulated::{CrashPoint, Keep, SimDisk};

/// How many states are looked at at one moment, and how often life goes on after one of them.
#[derive(Clone, Copy)]
pub(super) struct Depth {
    pub(super) states: u64,
    /// One state in so many is opened for writing, and life goes on.
    pub(super) onward: u64,
}

impl Depth {
    pub(super) const FULL: Self = Self {
        states: 16,
        onward: 20,
    };
    /// Where another kind of lives looks at most of the same calls as closely.
    #[cfg(test)]
    const SHALLOW: Self = Self {
        states: 16,
        onward: 200,
    };
    const SECOND: Self = Self {
        states: 5,
        onward: u64::MAX,
    };
}

/// The subsets of what is not synced that are tried at `point`.
fn keeps(point: &CrashPoint, limit: u64) -> Vec<Keep> {
    if point.states() <= u128::from(limit) {
        return (0..point.states()).map(Keep::Numbered).collect();
    }
    let mut keeps = vec![Keep::Nothing, Keep::All];
    let each = point.choices().min(usize::try_from(limit / 4).unwrap_or(1));
    keeps.extend((0..each).flat_map(|it| [Keep::AllBut(it), Keep::Only(it)]));
    let random = limit.saturating_sub(keeps.len() as u64);
    keeps.extend((0..random).map(|seed| Keep::Random(seed * 1000 + point.events())));
    keeps.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    keeps
}

/// One look at what crashes leave of a life.
pub(super) struct Look<'a> {
    pub(super) sim: &'a SimDisk,
    pub(super) model: &'a Model,
    pub(super) kind: Kind,
    /// The epochs of the page cache: of this life, and after the power has gone.
    pub(super) caches: (&'a str, &'a str),
    /// See [`Opening::extra`].
    pub(super) extra: u64,
    /// See [`Life::shortest`].
    pub(super) shortest: usize,
    pub(super) depth: Depth,
}

impl Look<'_> {
    /// Looks at every crash from event `start` on. Tells how many there were, or what is wrong.
    pub(super) fn everywhere(&self, start: u64) -> Result<u64, String> {
        let events = self.sim.events();
        let mut states = 0;
        for point in self.sim.crash_points() {
            let last = usize::try_from(point.events())
                .ok()
                .and_then(|at| events.get(at.wrapping_sub(1)));
            let changed = last.is_some_and(|event| event.call.changes());
            if point.events() >= start && (changed || point.events() == start) {
                states += self.at(&point).map_err(|what| {
                    let last = last.map(ToString::to_string).unwrap_or_default();
                    format!("after {} calls, the last of them {last}: {what}", point.events())
                })?;
            }
        }
        Ok(states)
    }

    /// Looks at the crashes at one moment.
    pub(super) fn at(&self, point: &CrashPoint) -> Result<u64, String> {
        let keeps = keeps(point, self.depth.states);
        let mut states = 0;
        let cut = self.model.at(point.events(), false);
        let given_up = self.kind.gives_up() && self.model.image_failed;
        let kill = self
            .model
            .at(point.events(), self.kind.outlives_kill() && !given_up);
        states += self
            .one((&kill, &cut), &point.kill(), self.caches.0, point.events())
            .map_err(|what| format!("killed: {what}"))?;
        for (nth, keep) in keeps.into_iter().enumerate() {
            let state = point.power_cut_keeping(keep);
            states += self
                .one(
                    (&cut, &cut),
                    &state,
                    self.caches.1,
                    point.events() * 7 + nth as u64 + 1,
                )
                .map_err(|what| format!("power cut, keeping {keep:?}: {what}"))?;
        }
        Ok(states)
    }

    fn one(
        &self,
        (moments, unsynced): (&Moments<'_>, &Moments<'_>),
        state: &SimDisk,
        cache: &str,
        number: u64,
    ) -> Result<u64, String> {
        let onward = number.is_multiple_of(self.depth.onward);
        let killed = cache == self.caches.0;
        let opening = Opening {
            kind: self.kind,
            cache,
            writable: onward,
            bits: killed || !self.kind.stateless,
            extra: self.extra,
        };
        check_inner(self.kind, state, cache, self.shortest)?;
        let found = moments.check(state, opening)?;
        // A cut that was cut off leaves what no file system does; see `check_changes`. And what a failed sync has dropped,
        // no later process can know of.
        let lost = (killed && moments.anything_failed()) || !opening.bits;
        if !onward || lost || moments.after.length < found.view.length {
            return Ok(1);
        }
        // What a killed process wrote may still go, if it was not synced.
        let model = unsynced.next_life(found.content, found.view, state.events().len() as u64);
        let mut life = Life::after(state, found.disk, self.kind, cache, model);
        life.shortest = self.shortest;
        let mut dice = Dice::new(number);
        let mut steps = Vec::new();
        for _ in 0..2 {
            let (at, len) = (dice.below(life.length()), 700);
            let _ = life.step(Step::Write { at, len, fua: false });
            let step = dice.step(life.length(), self.kind);
            let result = life.step(step);
            steps.push((at, step));
            if !super::life::refused(&result) {
                result.map_err(|e| format!("then {step:?}: {e}"))?;
            }
        }
        let next = Look {
            sim: &life.sim,
            model: &life.model,
            kind: self.kind,
            caches: (cache, "third"),
            extra: found.extra,
            shortest: life.shortest,
            depth: Depth::SECOND,
        };
        let states = next
            .everywhere(1)
            .map_err(|what| format!("then, writing before each of {steps:?}, {what}"))?;
        Ok(1 + states)
    }
}

/// A life of these steps, and what crashes leave of it.
pub(super) fn look_at(kind: Kind, steps: &[Step], depth: Depth) -> Result<u64, String> {
    let (mut life, start) = Life::new(kind).map_err(|e| e.to_string())?;
    for step in steps {
        let result = life.step(*step);
        if !super::life::refused(&result) {
            result.map_err(|e| format!("{step:?}: {e}"))?;
        }
    }
    look_back(&life, start, depth)
}

fn look_back(life: &Life, start: u64, depth: Depth) -> Result<u64, String> {
    Look {
        sim: &life.sim,
        model: &life.model,
        kind: life.kind,
        caches: ("first", "second"),
        extra: 0,
        shortest: life.shortest,
        depth,
    }
    .everywhere(start)
}

/// A life of random steps.
pub(super) fn random(kind: Kind, seed: u64, count: usize, depth: Depth) -> Result<u64, String> {
    let (mut life, start) = Life::new(kind).map_err(|e| e.to_string())?;
    let mut dice = Dice::new(seed);
    for _ in 0..count {
        let step = dice.step(life.length(), kind);
        let result = life.step(step);
        if !super::life::refused(&result) {
            result.map_err(|e| format!("seed {seed}: {step:?}: {e}"))?;
        }
    }
    look_back(&life, start, depth).map_err(|what| format!("seed {seed}: {what}"))
}

/// A life whose steps the fuzzer chooses, and a few crashes at each of its moments.
#[cfg(any(test, fuzzing))]
pub(crate) fn of_bytes(bytes: &[u8]) -> Result<u64, String> {
    /// More would be slow, and no step needs so many before it.
    const MOST: usize = 24;
    let Some((kind, bytes)) = bytes.split_first() else {
        return Ok(0);
    };
    let kind = KINDS[usize::from(*kind) % KINDS.len()];
    let mut dice = Dice::of(bytes);
    let mut steps = Vec::new();
    let (mut life, start) = Life::new(kind).map_err(|e| format!("{kind:?}: {e}"))?;
    while !dice.is_empty() && steps.len() < MOST {
        let step = dice.step(life.length(), kind);
        steps.push(step);
        let result = life.step(step);
        if !super::life::refused(&result) {
            result.map_err(|e| format!("{kind:?}: {step:?}: {e}"))?;
        }
    }
    let depth = Depth {
        states: 4,
        onward: 50,
    };
    look_back(&life, start, depth).map_err(|what| format!("{kind:?}: {steps:?}: {what}"))
}

/// What the fuzzer runs, from bytes that are the same each time: the fuzzer itself runs elsewhere, and seldom.
#[test]
fn lives_of_bytes_lose_nothing() {
    for (number, kind) in (0..).zip(KINDS) {
        let life = |seed| {
            let mut dice = Dice::new(seed);
            let drawn = (0..100).map(|_| u8::try_from(dice.below(256)).unwrap_or(0));
            let bytes: Vec<u8> = [number].into_iter().chain(drawn).collect();
            of_bytes(&bytes).unwrap_or_else(|what| panic!("{what}"))
        };
        let states: u64 = (1..=4).map(life).sum();
        assert!(states > 300, "{states} states of {kind:?}");
    }
}

/// Each step of the lists by hand does what it is there for: none is refused.
#[test]
fn the_scripts_do_what_they_say() {
    for kind in KINDS {
        let (mut life, _) = Life::new(kind).unwrap();
        for step in kind.script() {
            life.step(step).unwrap_or_else(|e| panic!("{step:?}: {e}"));
        }
    }
}

/// How many random lives of each kind there are in every run, however many states the others have.
#[cfg(test)]
const DRAWN: u64 = 2;

/// One life, by its number: first those by hand, then random ones, by `seed`. The kinds come in turn.
#[cfg(test)]
fn numbered(number: u64, seed: u64) -> Result<u64, String> {
    const COUNT: u64 = KINDS.len() as u64;
    let kind = KINDS[usize::try_from(number % COUNT).unwrap_or(0)];
    let shallow = matches!(kind, Kind::OVER_QBM | Kind::EXCUSED) || kind.inner.is_some();
    let depth = if shallow { Depth::SHALLOW } else { Depth::FULL };
    let states = if number < COUNT {
        look_at(kind, &kind.script(), depth)
    } else {
        random(kind, seed.wrapping_mul(1_000_000).wrapping_add(number), 40, depth)
    };
    states.map_err(|what| format!("{kind:?}: {what}"))
}

/// Lives of one sort that a run has had, and the states in which crashes left them.
#[cfg(test)]
#[derive(Default)]
struct Had {
    lives: AtomicU64,
    states: AtomicU64,
}

#[cfg(test)]
impl Had {
    fn add(&self, states: u64) {
        self.lives.fetch_add(1, Ordering::Relaxed);
        self.states.fetch_add(states, Ordering::Relaxed);
    }

    fn states(&self) -> u64 {
        self.states.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
impl std::fmt::Display for Had {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lives = self.lives.load(Ordering::Relaxed);
        write!(f, "{} crash states of {lives} lives", self.states())
    }
}

/// All operations by hand, random lives of each kind, and more of these until there are enough states: 100,000, or what
/// `QBM_CRASH_STATES` says. `QBM_SEED` draws other ones.
#[test]
fn a_hundred_thousand_crashes_cost_nothing() {
    const COUNT: u64 = KINDS.len() as u64;
    let wanted = std::env::var("QBM_CRASH_STATES")
        .ok()
        .and_then(|it| it.parse().ok());
    let wanted = wanted.unwrap_or(100_000);
    let seed = seed();
    let (next, by_hand, drawn) = (AtomicU64::new(0), Had::default(), Had::default());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= COUNT * (1 + DRAWN) && by_hand.states() + drawn.states() >= wanted {
                        return;
                    }
                    let sort = if number < COUNT { &by_hand } else { &drawn };
                    sort.add(numbered(number, seed).unwrap_or_else(|what| panic!("{what}")));
                }
            });
        }
    });
    println!("by hand {by_hand}, drawn {drawn}");
    let states = by_hand.states() + drawn.states();
    assert!(states >= wanted, "{states} states are too few to prove anything");
    let lives = drawn.lives.into_inner();
    assert!(
        lives >= COUNT * DRAWN,
        "{lives} random lives are too few to prove anything"
    );
}

/// Disks whose image is a disk, of every kind: neither of the two loses anything.
#[test]
fn disks_in_disks_lose_nothing() {
    let depth = Depth {
        states: 5,
        onward: 40,
    };
    for kind in [Kind::NESTED, Kind::NESTED_LOW, Kind::NESTED_OVERLAY] {
        let states = look_at(kind, &kind.script(), depth).unwrap_or_else(|what| panic!("{kind:?}: {what}"));
        println!("{kind:?}: {states} states");
        assert!(states > 5000, "{states} states of {kind:?}");
    }
}
