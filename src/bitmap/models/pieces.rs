//! Writers that get bits into a bitmap's file at the same time.
//!
//! What must hold in every schedule: a writer goes on to its data only when its bits are in the file (D1, "recorded,
//! not set"), and no piece that lands takes another writer's bit with it (durability trap 2).

use std::path::Path;

use super::one;
use crate::bitmap::{BitmapFile, BitmapPolicy, Bits};
use crate::mutation::{self, Fault};
use crate::storage::Role;
use crate::storage::simulated::{self, CallKind, SimDisk};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, thread};
use crate::units::GranuleRange;

const NAME: &str = "disk-b.bitmap";
/// Bits in one piece of the file.
const PIECE: u64 = 4096 * 8;

/// A bitmap and its file.
struct World {
    sim: SimDisk,
    bits: Bits,
    /// What a backup has frozen: the file holds it besides.
    frozen: Option<Bits>,
    file: BitmapFile,
}

impl World {
    /// `len` clear bits. Each call on the file is a step: another thread may come between what a writer puts together
    /// and its landing.
    fn new(len: u64, policy: BitmapPolicy) -> Self {
        let sim = SimDisk::new();
        let storage = sim.folder().create(Role::Bitmap, Path::new(NAME)).unwrap();
        let bits = Bits::new(len).unwrap();
        let file = BitmapFile::new(storage, NAME.into(), policy);
        file.write_new(&bits).unwrap();
        let step = AtomicUsize::new(0);
        sim.on_call(move |_| {
            step.load(Ordering::SeqCst);
        });
        Self {
            sim,
            bits,
            frozen: None,
            file,
        }
    }

    fn with_frozen(mut self, granules: GranuleRange) -> Self {
        let frozen = Bits::new(self.bits.len()).unwrap();
        frozen.set(granules);
        self.file.write_new(&frozen).unwrap();
        self.frozen = Some(frozen);
        self
    }

    /// What comes before a guest's data: nothing where the bits are set, a second try where it failed.
    fn mark(&self, granules: GranuleRange) {
        while !self.bits.all_set(granules) {
            if self
                .file
                .record(&self.bits, self.frozen.as_ref(), granules)
                .is_ok()
            {
                return;
            }
        }
    }

    fn save(&self) {
        self.file.save(&self.bits, self.frozen.as_ref()).unwrap();
    }

    /// In what a killed process leaves.
    fn assert_in_file(&self, granules: GranuleRange) {
        let bytes = self.sim.kill().read(NAME).unwrap();
        for granule in granules.start.0..granules.end.0 {
            let byte = usize::try_from(granule / 8).unwrap();
            assert!(
                bytes[byte] & (1 << (granule % 8)) != 0,
                "granule {granule} is not in the file"
            );
        }
    }
}

/// A thread for each of `ranges` marks it by `write`, after which it must be in the file; in the end, all are.
fn writers(world: World, ranges: &[GranuleRange], write: fn(&World, GranuleRange)) {
    let world = Arc::new(world);
    let workers: Vec<_> = ranges
        .iter()
        .map(|range| {
            let (world, range) = (Arc::clone(&world), *range);
            thread::spawn(move || {
                write(&world, range);
                world.assert_in_file(range);
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    for range in ranges {
        world.assert_in_file(*range);
        assert!(world.bits.all_set(*range));
    }
    if let Some(frozen) = &world.frozen {
        frozen
            .runs(frozen.all())
            .for_each(|run| world.assert_in_file(run));
    }
}

fn different_bits_of_a_piece() {
    let world = World::new(64, BitmapPolicy::WriteThrough);
    writers(world, &[one(5), one(6)], World::mark);
}

fn the_same_bit() {
    let world = World::new(64, BitmapPolicy::WriteThrough);
    writers(world, &[one(5), one(5)], World::mark);
}

/// The first piece does not get into the file; its writer tries again.
fn the_same_bit_and_a_failure() {
    let world = World::new(64, BitmapPolicy::WriteThrough);
    world
        .sim
        .fail(simulated::Fault::new(libc::EIO).on(CallKind::Write));
    writers(world, &[one(5), one(5)], World::mark);
}

fn lazily_with_a_save() {
    let world = World::new(64, BitmapPolicy::Lazy);
    writers(world, &[one(5), one(5)], |world, range| {
        world.mark(range);
        world.save();
    });
}

#[test]
fn shuttle_pieces_keep_the_bits_of_two_writers() {
    shuttle::check_dfs(different_bits_of_a_piece, None);
}

#[test]
fn shuttle_a_writer_waits_for_a_bit_on_its_way() {
    shuttle::check_dfs(the_same_bit, None);
}

#[test]
fn shuttle_a_bit_that_did_not_get_out_is_tried_again() {
    shuttle::check_dfs(the_same_bit_and_a_failure, None);
}

#[test]
fn shuttle_writers_over_several_pieces() {
    let model = || {
        let ranges = [
            GranuleRange::new(PIECE - 1, PIECE + 1),
            GranuleRange::new(PIECE - 2, PIECE),
            GranuleRange::new(PIECE, PIECE + 70),
        ];
        let world = World::new(2 * PIECE, BitmapPolicy::WriteThrough);
        writers(
            world.with_frozen(GranuleRange::new(PIECE - 9, PIECE + 9)),
            &ranges,
            World::mark,
        );
    };
    shuttle::check_random(model, 2_000);
    shuttle::check_pct(model, 2_000, 3);
}

#[test]
fn shuttle_a_save_has_what_was_set_before() {
    shuttle::check_random(lazily_with_a_save, 10_000);
    shuttle::check_pct(lazily_with_a_save, 10_000, 3);
}

#[test]
fn shuttle_finds_writers_that_share_a_piece() {
    mutation::must_be_caught(Fault::PiecesShared, "is not in the file", || {
        shuttle::check_random(different_bits_of_a_piece, 10_000);
    });
}

#[test]
fn shuttle_finds_a_bit_set_before_its_piece_is_out() {
    mutation::must_be_caught(Fault::BitBeforePiece, "is not in the file", || {
        shuttle::check_random(the_same_bit, 10_000);
    });
}

#[test]
fn shuttle_finds_a_bit_left_set_by_a_failure() {
    // One writer is enough: its second try takes the fast path.
    mutation::must_be_caught(Fault::BitBeforePiece, "is not in the file", || {
        let alone = || {
            let world = World::new(64, BitmapPolicy::WriteThrough);
            world
                .sim
                .fail(simulated::Fault::new(libc::EIO).on(CallKind::Write));
            writers(world, &[one(5)], World::mark);
        };
        shuttle::check_dfs(alone, None);
    });
}

#[test]
fn shuttle_finds_a_bit_set_before_it_is_noted() {
    mutation::must_be_caught(Fault::BitBeforeNote, "is not in the file", || {
        shuttle::check_random(lazily_with_a_save, 10_000);
    });
}

#[test]
fn shuttle_finds_a_save_that_does_not_wait_for_another() {
    mutation::must_be_caught(Fault::SaversApart, "is not in the file", || {
        shuttle::check_random(lazily_with_a_save, 10_000);
    });
}
