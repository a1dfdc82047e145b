//! The gate under the schedule explorer: a backup takes the bits while writers write.
//!
//! What must hold in every schedule: nobody is inside while an operation has the gate closed, everybody gets on in the
//! end, and no change is lost, neither by the backup nor by the bits that are left (durability trap 1). What a crash leaves
//! of that is in [`crash`].

mod crash;

use std::sync::atomic::AtomicUsize as Plain;

use super::Gate;
use crate::bitmap::Bits;
use crate::mutation::{self, Fault};
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, thread};
use crate::units::{GranuleIndex, GranuleRange};

const GRANULES: usize = 2;

/// As little of a disk as can lose a change.
struct World {
    /// Which of `bits` writers set.
    gate: Gate<AtomicUsize>,
    bits: Vec<Bits>,
    data: [AtomicU64; GRANULES],
}

impl World {
    fn new(bitmaps: usize) -> Arc<Self> {
        Arc::new(Self {
            gate: Gate::new(AtomicUsize::new(0)),
            bits: (0..bitmaps)
                .map(|_| Bits::new(GRANULES as u64).unwrap())
                .collect(),
            data: std::array::from_fn(|_| AtomicU64::new(0)),
        })
    }

    /// A guest's write: first the bit, then the data.
    fn write(&self, granule: usize, value: u64) {
        let recording = self.gate.enter();
        let bits = &self.bits[recording.load(Ordering::SeqCst)];
        bits.set(GranuleRange::one(GranuleIndex(granule as u64)));
        self.data[granule].store(value, Ordering::SeqCst);
    }

    /// A backup that succeeds: from now on `bits[next]` record; those before are copied, and dropped.
    fn backup(&self, next: usize, copy: &mut [u64; GRANULES]) {
        let recording = self.gate.close();
        let frozen = recording.load(Ordering::SeqCst);
        recording.store(next, Ordering::SeqCst);
        drop(recording);
        for (granule, (copy, data)) in copy.iter_mut().zip(&self.data).enumerate() {
            if self.bits[frozen].get(GranuleIndex(granule as u64)) {
                *copy = data.load(Ordering::SeqCst);
            }
        }
    }

    /// The next backup must make up for what this one lacks.
    fn assert_nothing_lost(&self, last: usize, copy: &[u64; GRANULES]) {
        for (granule, (copy, data)) in copy.iter().zip(&self.data).enumerate() {
            assert!(
                *copy == data.load(Ordering::SeqCst) || self.bits[last].get(GranuleIndex(granule as u64)),
                "the change of granule {granule} is lost"
            );
        }
    }
}

/// Each of `writes` is a thread's; the main thread makes `backups` backups one after the other.
fn backups(backups: usize, writes: &'static [&'static [usize]]) {
    let world = World::new(backups + 1);
    let mut value = 0;
    let writers: Vec<_> = writes
        .iter()
        .map(|granules| {
            let world = Arc::clone(&world);
            value += 100;
            thread::spawn(move || {
                for (granule, value) in granules.iter().zip(value..) {
                    world.write(*granule, value);
                }
            })
        })
        .collect();
    let mut copy = [0; GRANULES];
    for next in 1..=backups {
        world.backup(next, &mut copy);
    }
    for writer in writers {
        writer.join().unwrap();
    }
    world.assert_nothing_lost(backups, &copy);
}

fn one_backup() {
    backups(1, &[&[0]]);
}

#[test]
fn shuttle_a_gate_closes_behind_one_writer() {
    shuttle::check_dfs(one_backup, Some(300_000));
}

#[test]
fn shuttle_a_gate_closes_between_writers() {
    let model = || backups(2, &[&[0, 1], &[1], &[0]]);
    shuttle::check_random(model, 10_000);
    shuttle::check_pct(model, 10_000, 3);
}

/// Two operations and two writers: an operation is alone, and writers are never with one.
fn turns() {
    /// How many are inside. No step of the model.
    #[derive(Default)]
    struct Inside {
        writers: Plain,
        operations: Plain,
    }

    impl Inside {
        fn check(&self) {
            let operations = self.operations.load(Ordering::SeqCst);
            let writers = self.writers.load(Ordering::SeqCst);
            assert!(
                operations == 0 || (operations == 1 && writers == 0),
                "an operation is not alone"
            );
        }
    }

    let gate = Arc::new(Gate::new(AtomicUsize::new(0)));
    let inside = Arc::new(Inside::default());
    let threads: Vec<_> = [true, false, true, false]
        .into_iter()
        .map(|operates| {
            let (gate, inside) = (Arc::clone(&gate), Arc::clone(&inside));
            thread::spawn(move || {
                // A step between coming in and going out, in which others may do so.
                let stay = |count: &Plain, value: &AtomicUsize| {
                    count.fetch_add(1, Ordering::SeqCst);
                    inside.check();
                    value.load(Ordering::SeqCst);
                    inside.check();
                    count.fetch_sub(1, Ordering::SeqCst);
                };
                if operates {
                    stay(&inside.operations, &gate.close());
                } else {
                    stay(&inside.writers, &gate.enter());
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn shuttle_an_operation_is_alone() {
    shuttle::check_random(turns, 10_000);
    shuttle::check_pct(turns, 10_000, 3);
}

#[test]
fn shuttle_finds_an_operation_that_does_not_drain() {
    for (model, words) in [(one_backup as fn(), "is lost"), (turns, "is not alone")] {
        mutation::must_be_caught(Fault::NoDrain, words, || shuttle::check_random(model, 10_000));
    }
}

#[test]
fn shuttle_finds_a_writer_that_looks_before_it_announces_itself() {
    for (model, words) in [(one_backup as fn(), "is lost"), (turns, "is not alone")] {
        mutation::must_be_caught(Fault::LookBeforeAnnouncing, words, || {
            shuttle::check_random(model, 10_000);
        });
    }
}

#[test]
fn shuttle_finds_a_wakeup_that_is_lost() {
    mutation::must_be_caught(Fault::WakeUnlocked, "deadlock", || {
        shuttle::check_random(one_backup, 10_000);
    });
}
