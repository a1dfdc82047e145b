//! Transactions over several disks.

use std::sync::mpsc::channel;
use std::sync::{Barrier, Mutex};
use std::time::Duration;

use super::*;
use crate::disk::bitmap_transaction;
use crate::mutation::{self, Fault as Missing};
use crate::storage::simulated::{Fault, Keep};

/// Two disks with a dirty granule each, in a recording bitmap `b`.
fn two() -> [(SimDisk, Disk); 2] {
    [0, MIB].map(disk_with)
}

/// A disk whose granule at `offset` is dirty in a recording bitmap `b`.
fn disk_with(offset: u64) -> (SimDisk, Disk) {
    let (sim, disk) = disk_of(4 * MIB);
    disk.bitmap_add("b", persistent()).unwrap();
    write(&disk, offset, 1).unwrap();
    disk.flush().unwrap();
    disk.bitmap_sync(None).unwrap();
    (sim, disk)
}

/// What a backup of two disks at one point does: what it covers goes into a bitmap beside, and `b` starts anew.
fn act(one: &Disk, two: &Disk) -> Result<()> {
    let add = |name| BitmapAction::Add {
        name,
        options: persistent(),
    };
    bitmap_transaction(&[
        (one, add("all")),
        (
            one,
            BitmapAction::Merge {
                target: "all",
                sources: vec![
                    MergeSource::Bitmap("b"),
                    MergeSource::Other { disk: two, name: "b" },
                ],
            },
        ),
        (two, BitmapAction::Clear { name: "b" }),
        (two, add("next")),
        (one, BitmapAction::Clear { name: "b" }),
    ])
}

type State = (Option<Vec<u64>>, Vec<u64>);

fn state(disk: &Disk, beside: &str) -> State {
    let beside = disk.bitmap_info(beside).ok().map(|info| dirty(disk, &info.name));
    (beside, dirty(disk, "b"))
}

fn old() -> [State; 2] {
    [(None, vec![0]), (None, vec![16])]
}

fn new() -> [State; 2] {
    [(Some(vec![0, 16]), vec![]), (Some(vec![]), vec![])]
}

fn both(one: &Disk, two: &Disk) -> [State; 2] {
    [state(one, "all"), state(two, "next")]
}

#[test]
fn all_disks_change_together() {
    let [(sim_one, one), (sim_two, two)] = two();
    act(&one, &two).unwrap();
    assert_eq!(both(&one, &two), new());
    assert_eq!(both(&open(&sim_one.kill()), &open(&sim_two.kill())), new());
    bitmap_transaction(&[]).unwrap();
}

#[test]
fn a_refusal_at_one_disk_changes_none() {
    let [(sim_one, one), (sim_two, two)] = two();
    for (first, second) in [(&one, &two), (&two, &one)] {
        let events = [sim_one.events().len(), sim_two.events().len()];
        let result = bitmap_transaction(&[
            (first, BitmapAction::Disable { name: "b" }),
            (first, BitmapAction::Remove { name: "b" }),
            (second, BitmapAction::Clear { name: "b" }),
            (second, BitmapAction::Clear { name: "absent" }),
        ]);
        assert_refused(
            result,
            ErrorCode::BitmapNotFound,
            "disk.qbm: cannot clear bitmap \"absent\"",
        );
        assert_eq!(both(&one, &two), old());
        for (sim, from) in [(&sim_one, events[0]), (&sim_two, events[1])] {
            let written = changes(sim, from);
            assert!(
                written.iter().all(|event| event.call.kind() == CallKind::Sync),
                "{written:?}"
            );
        }
    }
}

/// One call after the other fails, on either disk. Both say all of the old or all of the new, in memory and to whoever
/// opens them next, but for a disk that says itself that it has failed; and whatever crashes, no bit is lost from both.
#[test]
fn a_failure_at_one_disk_leaves_all_old_or_all_new() {
    let calls = {
        let [(sim_one, one), (sim_two, two)] = two();
        let from = [sim_one.events().len(), sim_two.events().len()];
        act(&one, &two).unwrap();
        [sim_one.events().len() - from[0], sim_two.events().len() - from[1]]
    };
    let (mut undone, mut done, mut failed) = (0, 0, [0; 3]);
    for faulty in 0..2 {
        for call in 1..=calls[faulty] as u64 {
            let [(sim_one, one), (sim_two, two)] = two();
            let sims = [&sim_one, &sim_two];
            sims[faulty].fail(Fault::new(libc::EIO).nth(call));
            let result = act(&one, &two);
            sims[faulty].heal();
            for seed in 0..20 {
                let cut = |sim: &SimDisk| open(&sim.power_cut_keeping(Keep::Random(seed)));
                assert_no_bit_lost(&both(&cut(&sim_one), &cut(&sim_two)));
            }
            let found = both(&open(&sim_one.kill()), &open(&sim_two.kill()));
            assert_no_bit_lost(&found);
            let expected = if result.is_ok() { new() } else { old() };
            let have_failed = [&one, &two].map(|disk| disk.info().unwrap().failed);
            for at in 0..2 {
                let names = sims[at].names();
                if have_failed[at] {
                    // `one` keeps what it has merged from `two`, of which nobody knows whether it still has it.
                    assert!(at == faulty || at == 0 && have_failed[1]);
                    assert!([&old()[at], &new()[at]].contains(&&found[at]), "{found:?}");
                } else {
                    assert_eq!(found[at], expected[at], "disk {faulty}, call {call}");
                    assert_eq!(both(&one, &two)[at], expected[at], "disk {faulty}, call {call}");
                    let files = if result.is_ok() { 4 } else { 3 };
                    // A file that could not be removed is left to a check.
                    assert!(
                        names.len() == files || (result.is_ok() && at == faulty && names.len() == 5),
                        "disk {faulty}, call {call}: {names:?}"
                    );
                }
            }
            failed[have_failed.iter().filter(|failed| **failed).count()] += 1;
            match result {
                Ok(()) => done += 1,
                Err(_) => undone += 1,
            }
        }
    }
    assert!(
        undone > 25 && done > 0 && failed[1] > 0 && failed[2] > 0,
        "{undone} undone, {done} done, {failed:?} with so many disks failed"
    );
}

/// What `b` had of either disk before [`act`] is in it still, or in what it was merged into.
fn assert_no_bit_lost([one, two]: &[State; 2]) {
    let merged = one.0.as_ref().is_some_and(|bits| *bits == [0, 16]);
    assert!(one.1 == [0] || merged, "{one:?} {two:?}");
    assert!(two.1 == [16] || merged, "{one:?} {two:?}");
}

/// The bits of `two` go to `one`, and other disks do something besides.
fn hand_over(one: &Disk, two: &Disk, besides: &[&Disk]) -> Result<()> {
    let clear = |disk| (disk, BitmapAction::Clear { name: "b" });
    let sources = vec![MergeSource::Other { disk: two, name: "b" }];
    let mut actions = vec![(one, BitmapAction::Merge { target: "b", sources }), clear(two)];
    actions.extend(besides.iter().copied().map(clear));
    bitmap_transaction(&actions)
}

/// Whether one of two disks, which are found after a crash, has the bit that `two` had before [`hand_over`].
fn is_in_one(found: &[SimDisk; 2]) -> bool {
    found.iter().any(|sim| dirty(&open(sim), "b").contains(&16))
}

/// The states after a crash in which neither of the two disks has the bit, whichever call fails at either.
fn losses_where_a_call_fails() -> u64 {
    let mut losses = 0;
    for faulty in 0..2 {
        for lasting in [false, true] {
            for call in 1.. {
                let [(sim_one, one), (sim_two, two)] = two();
                let sims = [&sim_one, &sim_two];
                let from = sims[faulty].events().len();
                let fault = Fault::new(libc::EIO).nth(call);
                sims[faulty].fail(if lasting { fault.from_then_on() } else { fault });
                let _ = hand_over(&one, &two, &[]);
                sims[faulty].heal();
                if sims[faulty].events().len() - from < usize::try_from(call).unwrap() {
                    break;
                }
                losses += u64::from(!is_in_one(&sims.map(SimDisk::kill)));
                for seed in 0..20 {
                    let cut = |sim: &SimDisk| sim.power_cut_keeping(Keep::Random(seed));
                    losses += u64::from(!is_in_one(&sims.map(cut)));
                }
            }
        }
    }
    losses
}

/// A disk whose descriptor is replaced, and may be for good, may have lost what another has merged from it: then that one is not
/// taken back.
#[test]
fn what_may_be_lost_at_one_disk_stays_where_it_was_merged() {
    assert_eq!(losses_where_a_call_fails(), 0);
    let losses = mutation::with(Missing::MergedTakenBack, losses_where_a_call_fails);
    assert!(losses > 0);
}

/// The states in which neither of two disks has the bit, when they take back what they have saved as a third cannot follow, and
/// the crash comes anywhere on the way.
fn losses_while_taking_back() -> u64 {
    // Saved in the order of their addresses.
    let disks: Vec<_> = two().into_iter().chain([disk_with(2 * MIB)]).collect();
    let [(sim_one, one), (sim_two, two), (sim_three, three)] = &disks[..] else {
        return 0;
    };
    sim_three.fail(Fault::new(libc::ENOSPC).on(CallKind::Rename));
    let (send, seen) = channel();
    for sim in [sim_one, sim_two] {
        let (send, sims) = (send.clone(), [sim_one.clone(), sim_two.clone()]);
        sim.on_call(move |call| {
            if call.changes() {
                let _ = send.send(sims.each_ref().map(|sim| sim.events().len()));
            }
        });
    }
    hand_over(one, two, &[three]).unwrap_err();
    assert_eq!([one, two, three].map(|disk| dirty(disk, "b")), [[0], [16], [32]]);
    drop(send);
    let (mut losses, mut states) = (0, 0);
    for ends in seen.try_iter() {
        let at = |sim: &SimDisk, end: usize| sim.after(end as u64);
        let (one, two) = (at(sim_one, ends[0]), at(sim_two, ends[1]));
        losses += u64::from(!is_in_one(&[one.kill(), two.kill()]));
        for seed in 0..10 {
            let cut = [&one, &two].map(|point| point.power_cut_keeping(Keep::Random(seed)));
            losses += u64::from(!is_in_one(&cut));
            states += 1;
        }
    }
    assert!(states > 100, "{states}");
    losses
}

/// A disk that has merged bits goes back when the one that it has them from has them again.
#[test]
fn a_crash_while_disks_are_taken_back_loses_no_bit() {
    assert_eq!(losses_while_taking_back(), 0);
    let losses = mutation::with(Missing::TakenBackInOrder, losses_while_taking_back);
    assert!(losses > 0);
}

/// The other disk cannot follow, and the first, which has its new descriptor already, cannot go back either.
#[test]
fn a_disk_that_cannot_go_back_says_that_it_failed() {
    let [(sim_one, one), (sim_two, two)] = two();
    // `one` is saved first, as it merges from `two`; the second time it is to be put back.
    sim_one.fail(Fault::new(libc::EIO).on(CallKind::Rename).nth(2).from_then_on());
    sim_two.fail(Fault::new(libc::ENOSPC).on(CallKind::Rename));
    let error = act(&one, &two).unwrap_err();
    assert_eq!(error.errno(), libc::ENOSPC, "{error}");
    assert!(one.info().unwrap().failed && !two.info().unwrap().failed);
    assert_refused(write(&one, 0, 1), ErrorCode::Failed, "reopen");
    let found = both(&open(&sim_one.kill()), &open(&sim_two.kill()));
    assert_eq!(found, [new()[0].clone(), old()[1].clone()], "no bit is lost");
}

/// The power goes after any call of either disk. Each is old or new; and never have the bits gone from the disk that
/// they were merged from while the other has not got them.
#[test]
fn a_crash_between_two_disks_loses_no_bit() {
    for swap in [false, true] {
        let [a, b] = two();
        // Both ways round: addresses order the locks, and must not order the descriptors.
        let [(sim_one, one), (sim_two, two)] = if swap { [&b, &a] } else { [&a, &b] };
        let (kept_one, kept_two) = (dirty(one, "b"), dirty(two, "b"));
        let (send, seen) = channel();
        // What a crash would find of each disk whenever a call of either comes.
        for sim in [sim_one, sim_two] {
            let (send, sims) = (send.clone(), [sim_one.clone(), sim_two.clone()]);
            sim.on_call(move |call| {
                if call.changes() {
                    let _ = send.send(sims.each_ref().map(|sim| sim.events().len()));
                }
            });
        }
        act(one, two).unwrap();
        drop(send);
        let mut cuts = 0;
        for ends in seen.try_iter() {
            for seed in 0..10 {
                let cut = |sim: &SimDisk, end: usize| {
                    let point = sim.crash_points().find(|point| point.events() == end as u64);
                    open(&point.unwrap().power_cut_keeping(Keep::Random(seed)))
                };
                let (cut_one, cut_two) = (cut(sim_one, ends[0]), cut(sim_two, ends[1]));
                let found = both(&cut_one, &cut_two);
                let all = [kept_one.clone(), kept_two.clone()].concat();
                let merged = found[0]
                    .0
                    .as_ref()
                    .is_some_and(|bits| all.iter().all(|b| bits.contains(b)));
                assert!(found[0].1 == kept_one || merged, "{found:?}");
                assert!(found[1].1 == kept_two || merged, "{found:?}");
                cuts += 1;
            }
        }
        assert!(cuts > 100, "{cuts} cuts");
    }
}

#[test]
fn merges_in_a_circle_cannot_lose_bits_as_well() {
    let [(_sim_one, one), (_sim_two, two)] = two();
    let merge = |disk| BitmapAction::Merge {
        target: "b",
        sources: vec![MergeSource::Other { disk, name: "b" }],
    };
    let circle = || vec![(&one, merge(&two)), (&two, merge(&one))];
    let mut losing = circle();
    losing.push((&one, BitmapAction::Clear { name: "b" }));
    assert_refused(
        bitmap_transaction(&losing),
        ErrorCode::NotSupported,
        "in a circle",
    );
    assert_eq!(both(&one, &two), old());
    bitmap_transaction(&circle()).unwrap();
    assert_eq!([dirty(&one, "b"), dirty(&two, "b")], [vec![0, 16], vec![0, 16]]);
}

#[test]
fn a_merge_takes_what_the_other_disk_has_at_that_point() {
    let [(_sim_one, one), (sim_two, two)] = two();
    let from = MergeSource::Other {
        disk: &two,
        name: "b",
    };
    let events = sim_two.events().len();
    one.bitmap_merge("b", &[from]).unwrap();
    assert_eq!(dirty(&one, "b"), [0, 16]);
    assert!(
        changes(&sim_two, events).is_empty(),
        "merging from a disk changes nothing there"
    );
    assert_refused(
        one.bitmap_merge(
            "b",
            &[MergeSource::Other {
                disk: &two,
                name: "absent",
            }],
        ),
        ErrorCode::BitmapNotFound,
        "cannot merge into bitmap \"b\": disk.qbm: there is no bitmap \"absent\"",
    );
    let (_sim_three, longer) = disk_of(5 * MIB);
    longer.bitmap_add("b", persistent()).unwrap();
    assert_refused(
        longer.bitmap_merge("b", &[from]),
        ErrorCode::InvalidArgument,
        "a disk of 4194304 bytes",
    );
    // What an earlier action did to the other disk counts, too.
    bitmap_transaction(&[
        (
            &two,
            BitmapAction::Set {
                name: "b",
                offset: 2 * MIB,
                len: 1,
            },
        ),
        (
            &one,
            BitmapAction::Merge {
                target: "b",
                sources: vec![from],
            },
        ),
    ])
    .unwrap();
    assert_eq!(dirty(&one, "b"), [0, 16, 32]);
}

/// While one disk's gate is closed and another's is waited for, no write may come between: a write on the first that
/// completes after the transaction began waiting on the second is behind the point on both.
#[test]
fn a_write_in_flight_at_one_disk_holds_the_point_of_all() {
    let [(sim_one, one), (_sim_two, two)] = two();
    let (stopped, reached) = channel::<()>();
    let (release, go) = channel::<()>();
    let hold = Mutex::new(Some((stopped, go)));
    sim_one.on_call(move |call| {
        if is_write_to(call, IMAGE)
            && let Some((stopped, go)) = hold.lock().unwrap().take()
        {
            stopped.send(()).unwrap();
            go.recv().unwrap();
        }
    });
    let (done, ended) = channel();
    std::thread::scope(|scope| {
        let (one, two) = (&one, &two);
        scope.spawn(move || write(one, 2 * MIB, 1).unwrap());
        reached.recv().unwrap();
        scope.spawn(move || {
            bitmap_transaction(&[
                (two, BitmapAction::Clear { name: "b" }),
                (one, BitmapAction::Clear { name: "b" }),
            ])
            .unwrap();
            done.send(()).unwrap();
        });
        let early = ended.recv_timeout(Duration::from_millis(150));
        release.send(()).unwrap();
        assert!(
            early.is_err(),
            "the transaction did not wait for a write in flight"
        );
    });
    assert_eq!([dirty(&one, "b"), dirty(&two, "b")], [[0u64; 0]; 2]);
}

/// Runs `act` with the disks in one order and in the other, each on a thread of its own. The threads are not joined:
/// those that wait for each other never end, and the test must.
fn in_both_orders(one: &Arc<Disk>, two: &Arc<Disk>, act: fn(&Disk, &Disk)) {
    let (done, ended) = channel();
    let start = Arc::new(Barrier::new(2));
    for (first, second) in [(one, two), (two, one)] {
        let (first, second) = (Arc::clone(first), Arc::clone(second));
        let (done, start) = (done.clone(), Arc::clone(&start));
        std::thread::spawn(move || {
            start.wait();
            act(&first, &second);
            done.send(()).unwrap();
        });
    }
    for _ in 0..2 {
        ended
            .recv_timeout(Duration::from_secs(60))
            .expect("no thread waits for ever");
    }
}

/// Transactions that name the same disks in opposite orders must take their locks in one. So one that names first the
/// disk that is to be locked second, and must wait for the other, holds nothing meanwhile.
#[test]
fn opposite_orders_do_not_wait_for_each_other() {
    let [a, b] = two();
    let in_order = std::ptr::from_ref(&a.1) < std::ptr::from_ref(&b.1);
    let ((sim, low), (_sim, high)) = if in_order { (&a, &b) } else { (&b, &a) };
    let (stopped, reached) = channel::<()>();
    let (release, go) = channel::<()>();
    let hold = Mutex::new(Some((stopped, go)));
    sim.on_call(move |call| {
        if call.kind() == CallKind::SetLength
            && let Some((stopped, go)) = hold.lock().unwrap().take()
        {
            stopped.send(()).unwrap();
            go.recv().unwrap();
        }
    });
    let (done, ended) = channel();
    std::thread::scope(|scope| {
        scope.spawn(|| low.truncate(8 * MIB, TruncateFlags::empty()).unwrap());
        reached.recv().unwrap();
        scope.spawn(|| {
            let nothing = |disk| (disk, BitmapAction::Rename { name: "b", to: "b" });
            bitmap_transaction(&[nothing(high), nothing(low)]).unwrap();
        });
        // Time for it to get as far as it can.
        std::thread::sleep(Duration::from_millis(100));
        scope.spawn(move || {
            high.bitmap_disable("b").unwrap();
            done.send(()).unwrap();
        });
        let free = ended.recv_timeout(Duration::from_secs(10));
        release.send(()).unwrap();
        free.expect("who waits for the first disk must not hold the second");
    });
}

#[test]
fn merges_writes_and_resizes_of_two_disks_go_on_together() {
    let [(_sim_one, one), (_sim_two, two)] = two();
    let (one, two) = (Arc::new(one), Arc::new(two));
    in_both_orders(&one, &two, |first, second| {
        let from = MergeSource::Other {
            disk: second,
            name: "b",
        };
        for at in 0..100 {
            write(second, at % 64 * 64 * KIB, 1).unwrap();
            first.bitmap_merge("b", &[from]).unwrap();
            first.truncate(4 * MIB, TruncateFlags::empty()).unwrap();
        }
    });
    for (into, name, disk) in [(&one, "b", &*two), (&two, "b", &*one)] {
        into.bitmap_merge("b", &[MergeSource::Other { disk, name }])
            .unwrap();
    }
    assert_eq!(dirty(&one, "b").len(), 64);
    assert_eq!(dirty(&two, "b"), dirty(&one, "b"));
}
