//! A transaction at one point of several disks: nobody writes to any of them while it takes effect.
//!
//! All gates are closed together, and always in one order, so that two transactions over the same disks cannot wait
//! for each other. Descriptors are saved one after the other, so a crash may come between two disks, never within one
//! (M1). Invariant: what is in memory changes last, when nothing can fail any more.

use super::stage::{Source, Stage};
use super::transaction::Part;
use super::{BitmapAction, MergeSource, Shape};
use crate::descriptor::save::SaveError;
use crate::disk::gate::Closed;
use crate::disk::{Disk, Structure};
use crate::error::{Error, ErrorCode, Result};
use crate::mutation::{self, Fault};
use crate::sync::MutexGuard;

/// Applies all of `actions`, each to its disk and in their order, or none, at one point between the writes to all of
/// the disks. Durable on return.
///
/// For one disk this is [`Disk::bitmap_transaction`], which says what is waited for and how it fails. With several:
///
/// - An error leaves every disk as it was, but for those that have failed by it and must be reopened. Should a disk have
///   got its new descriptor already when the system fails at another's, it gets the old one back, and has failed where
///   even that fails. A disk that has merged bits from one of which nobody knows whether it has lost them keeps its new
///   descriptor, and has failed too.
/// - A crash leaves each disk old or new, but maybe not all the same. Bits that one disk merges from another are
///   durable there before any disk of the transaction loses bits. Disks that merge from each other in a circle, in a
///   transaction in which some lose bits, are therefore refused with `NotSupported`.
pub fn bitmap_transaction(actions: &[(&Disk, BitmapAction<'_>)]) -> Result<()> {
    let actions: Vec<_> = actions.iter().map(|(disk, action)| (*disk, action)).collect();
    at_one_point(&actions, &mut ())
}

/// What else is done at the point of a transaction, on each disk that it acts on.
pub(in crate::disk) trait AtPoint<'a> {
    /// Before anything is saved. An error ends the transaction.
    fn prepare(&mut self, disk: &'a Disk, shape: &Shape) -> Result<()>;
    /// When all has taken effect.
    fn finish(&mut self, disk: &'a Disk, shape: &mut Shape);
    /// Whether it is the end of the backup that bitmaps are lent to.
    fn ends_backup(&self) -> bool {
        false
    }
}

/// Nothing.
impl<'a> AtPoint<'a> for () {
    fn prepare(&mut self, _: &'a Disk, _: &Shape) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self, _: &'a Disk, _: &mut Shape) {}
}

type Actions<'a> = [(&'a Disk, &'a BitmapAction<'a>)];

/// One disk of a transaction.
struct Party<'a> {
    disk: &'a Disk,
    /// Whether anything is done to it; a disk may also only be merged from.
    acts: bool,
    /// Whether an action on it makes a starting point.
    starts: bool,
}

impl Party<'_> {
    fn check(&self) -> Result<()> {
        if self.acts {
            self.disk.check_for_arrangement()
        } else {
            self.disk.alive.check()
        }
    }

    /// A starting point needs what was written before to be durable, and what lies below. `shape` is there when the gate is
    /// closed.
    fn flush(&self, shape: Option<&Shape>) -> Result<()> {
        match shape {
            _ if !self.starts || mutation::on(Fault::StartUnflushed) => Ok(()),
            Some(_) if mutation::on(Fault::FlushedOutsideGate) => Ok(()),
            Some(shape) => self.disk.sync_shape(shape),
            None => {
                self.disk.check_recovered_below()?;
                self.disk.sync_written()
            }
        }
    }
}

/// As [`bitmap_transaction`], and with it what `also` does.
pub(in crate::disk) fn at_one_point<'a>(actions: &Actions<'a>, also: &mut dyn AtPoint<'a>) -> Result<()> {
    let parties = parties(actions);
    let first = saved_first(&parties, actions);
    let order = saving_order(&first)?;
    parties.iter().try_for_each(Party::check)?;
    let mut structures: Vec<_> = parties.iter().map(|party| party.disk.structure()).collect();
    let explain = |error: Error| match actions {
        [(_, action)] => action.explain(error),
        _ => error,
    };
    // Twice, so that writers wait only for what was written since.
    parties
        .iter()
        .try_for_each(|party| party.flush(None))
        .map_err(explain)?;
    let mut shapes: Vec<_> = parties.iter().map(|party| party.disk.gate.close()).collect();
    parties.iter().try_for_each(Party::check)?;
    parties
        .iter()
        .zip(&shapes)
        .try_for_each(|(party, shape)| party.flush(Some(shape)))
        .map_err(explain)?;

    let mut stages: Vec<_> = parties
        .iter()
        .zip(&structures)
        .zip(&shapes)
        .map(|((party, structure), shape)| party.disk.stage(structure, shape))
        .collect();
    if also.ends_backup() {
        for stage in &mut stages {
            stage.lent = None;
        }
    }
    for (disk, action) in actions {
        try_out(&parties, &mut stages, disk, action)
            .map_err(|error| on_disk(&parties, disk, action.explain(error)))?;
    }

    if let [(disk, BitmapAction::Set { .. } | BitmapAction::Merge { .. })] = actions {
        let at = index(&parties, disk);
        if disk.commit_added(&mut shapes[at], &stages[at]).map_err(explain)? {
            return Ok(());
        }
    }
    let order: Vec<_> = order.into_iter().filter(|at| parties[*at].acts).collect();
    for at in &order {
        also.prepare(parties[*at].disk, &shapes[*at])?;
    }
    commit(
        &parties,
        (&order, &first),
        &mut structures,
        &mut shapes,
        &mut stages,
    )
    .map_err(|(at, error)| explain(on_disk(&parties, parties[at].disk, error)))?;
    for at in order {
        also.finish(parties[at].disk, &mut shapes[at]);
    }
    Ok(())
}

/// Makes what was tried out true, on the disks in `order`, which obeys `first`. Tells with an error at which disk it was.
fn commit(
    parties: &[Party<'_>],
    (order, first): (&[usize], &[Vec<usize>]),
    structures: &mut [MutexGuard<'_, Structure>],
    shapes: &mut [Closed<'_, Shape>],
    stages: &mut [Stage<'_>],
) -> Result<(), (usize, Error)> {
    for at in order {
        stages[*at].check_memory().map_err(|error| (*at, error))?;
    }
    let mut parts: Vec<(usize, Part<'_>)> = Vec::with_capacity(order.len());
    for at in order {
        match Part::prepare(parties[*at].disk, &mut stages[*at], &shapes[*at]) {
            Ok(part) => parts.push((*at, part)),
            Err(error) => {
                abandon(&parts);
                return Err((*at, error));
            }
        }
    }
    for saved in 0..parts.len() {
        let (at, part) = &parts[saved];
        if let Err(error) = part.save(&structures[*at]) {
            abandon(&parts[saved + 1..]);
            let lost = matches!(error, SaveError::Unsure(_)).then_some(*at);
            let error = error.into();
            take_back(parties, &parts[..saved], structures, (first, lost), &error);
            return Err((*at, error));
        }
    }
    for (at, part) in parts {
        part.finish(&mut structures[at], &mut shapes[at]);
    }
    Ok(())
}

/// Gives the disks of `parts`, which were saved, their old descriptors again, because of `why`. Of `lost` nobody knows
/// whether it has its old one.
fn take_back(
    parties: &[Party<'_>],
    parts: &[(usize, Part<'_>)],
    structures: &[MutexGuard<'_, Structure>],
    (first, lost): (&[Vec<usize>], Option<usize>),
    why: &Error,
) {
    let mut lost: Vec<usize> = lost.into_iter().collect();
    let mut take_back = |(at, part): &(usize, Part<'_>)| {
        // D1: what was merged from a disk that may have lost it stays where it went.
        let stays = lost.iter().any(|from| first[*from].contains(at));
        if stays && !mutation::on(Fault::MergedTakenBack) {
            parties[*at].disk.fail(&Error::new(
                ErrorCode::Failed,
                format!("it has merged bits from a disk that may have lost them: {why}"),
            ));
            lost.push(*at);
        } else if !part.take_back(&structures[*at]) {
            lost.push(*at);
        }
    };
    if mutation::on(Fault::TakenBackInOrder) {
        parts.iter().for_each(&mut take_back);
    } else {
        // D1: a crash between two must not find the bits gone from where they were merged to, and not back yet.
        parts.iter().rev().for_each(&mut take_back);
    }
}

fn abandon(parts: &[(usize, Part<'_>)]) {
    for (_, part) in parts {
        part.abandon();
    }
}

/// The disks of `actions`, each once, by their addresses. Nobody can move a disk while a transaction borrows it, so all
/// transactions that run at the same time agree on this order, and none waits for one that waits for it.
fn parties<'a>(actions: &Actions<'a>) -> Vec<Party<'a>> {
    let mut parties: Vec<Party<'a>> = Vec::new();
    let mut join = |disk: &'a Disk, acts: bool, starts: bool| {
        if let Some(party) = parties.iter_mut().find(|party| std::ptr::eq(party.disk, disk)) {
            party.acts |= acts;
            party.starts |= starts;
        } else {
            parties.push(Party { disk, acts, starts });
        }
    };
    for (disk, action) in actions {
        join(disk, true, disk.writable && action.starts());
        for source in action.sources() {
            if let MergeSource::Other { disk, .. } = source {
                join(disk, false, false);
            }
        }
    }
    parties.sort_by_key(|party| std::ptr::from_ref(party.disk).addr());
    parties
}

fn index(parties: &[Party<'_>], disk: &Disk) -> usize {
    // `parties` was made from all disks that are asked for, so the search ends before the vector does.
    parties
        .iter()
        .take_while(|party| !std::ptr::eq(party.disk, disk))
        .count()
}

/// For each disk those that are saved before it. Where some disk loses bits, each comes before those that it merges
/// from: a crash between the two must not find the bits gone from the one and not yet in the other (D1).
fn saved_first(parties: &[Party<'_>], actions: &Actions<'_>) -> Vec<Vec<usize>> {
    let mut first = vec![Vec::new(); parties.len()];
    if actions.iter().any(|(_, action)| action.takes_bits()) {
        for (into, action) in actions {
            for source in action.sources() {
                if let MergeSource::Other { disk: from, .. } = source
                    && !std::ptr::eq(*from, *into)
                {
                    first[index(parties, from)].push(index(parties, into));
                }
            }
        }
    }
    first
}

/// An order in which the descriptors can be saved.
fn saving_order(first: &[Vec<usize>]) -> Result<Vec<usize>> {
    let mut order = Vec::with_capacity(first.len());
    while order.len() < first.len() {
        let free = |at: &usize| !order.contains(at) && first[*at].iter().all(|other| order.contains(other));
        let Some(next) = (0..first.len()).find(free) else {
            return Err(Error::new(
                ErrorCode::NotSupported,
                "disks that merge from each other in a circle cannot lose bits in the same transaction: merge in one, \
                 and clear in the next",
            ));
        };
        order.push(next);
    }
    Ok(order)
}

/// Tries `action` out on its disk, with the bits that a merge takes from disks as they are by then.
fn try_out(
    parties: &[Party<'_>],
    stages: &mut [Stage<'_>],
    disk: &Disk,
    action: &BitmapAction<'_>,
) -> Result<()> {
    let at = index(parties, disk);
    let sources: Result<Vec<Source<'_>>> = action
        .sources()
        .iter()
        .map(|source| match source {
            MergeSource::Bitmap(name) => stages[at].source(name),
            MergeSource::Other { disk, name } => stages[index(parties, disk)]
                .source(name)
                .map_err(|error| error.context(disk.path().display())),
            MergeSource::Content(content) => Ok(Source::from(*content)),
        })
        .collect();
    stages[at].apply(action, &sources?)
}

/// Says which disk it was, where there are several.
fn on_disk(parties: &[Party<'_>], disk: &Disk, error: Error) -> Error {
    if parties.iter().filter(|party| party.acts).count() > 1 {
        error.context(disk.path().display())
    } else {
        error
    }
}
