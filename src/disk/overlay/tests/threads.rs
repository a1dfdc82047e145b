//! Many threads and one granule (durability trap 4), and flushes that come while one runs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, mpsc};

use super::*;
use crate::storage::simulated::CallKind;

/// Sixteen writers at a time, each with a part of its own of the same granule; nobody's part may end as the backing's.
fn foreign_bytes(fault: Option<Fault>, rounds: u64) -> usize {
    const WRITERS: u64 = 16;
    let part = G / WRITERS;
    let sim = overlay(rounds * G, rounds * G);
    // Each write waits a little before it takes effect, so that others overtake it.
    let turn = AtomicU64::new(0);
    sim.on_call(move |call| {
        if call.kind() == CallKind::Write && turn.fetch_add(1, Ordering::Relaxed).is_multiple_of(3) {
            std::thread::yield_now();
        }
    });
    let disk = open(&sim);
    let barrier = Barrier::new(usize::try_from(WRITERS).unwrap());
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (disk, barrier) = (&disk, &barrier);
            scope.spawn(move || {
                with(fault, || {
                    for round in 0..rounds {
                        barrier.wait();
                        write(disk, 255, round * G + writer * part, part);
                    }
                });
            });
        }
    });
    read_all(&disk).into_iter().filter(|byte| *byte != 255).count()
}

#[test]
fn nobody_copies_the_backing_over_another_writers_bytes() {
    assert_eq!(foreign_bytes(None, 200), 0);
}

#[test]
fn a_writer_that_does_not_look_again_is_seen() {
    assert!((0..20).any(|_| foreign_bytes(Some(Fault::NoSecondLook), 50) > 0));
}

/// Writers, zeroers and readers on a few granules. A reader sees the backing or somebody's write, in each sector
/// whole, and never goes back to the backing.
#[test]
fn a_reader_sees_before_or_after() {
    let sim = overlay(4 * G, 4 * G);
    let stale = vec![0xee; usize::try_from(4 * G).unwrap()];
    sim.put(IMAGE, &stale);
    for _ in 0..20 {
        let disk = open(&sim);
        disk.make_empty().unwrap();
        sim.put(IMAGE, &stale);
        drop(disk);
        let disk = open(&sim);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4u64)
                .map(|writer| {
                    let disk = &disk;
                    scope.spawn(move || {
                        for round in 0..8 {
                            let at = (round * 5 + writer * 3) % 32 * 512;
                            match (round + writer) % 4 {
                                0 => disk.write_zeroes(at, 512, WriteFlags::MAY_UNMAP).unwrap(),
                                1 if at + G <= 4 * G => write(disk, 0xf0, at, G),
                                _ => write(disk, 0xf0, at, 512),
                            }
                        }
                    })
                })
                .collect();
            let (disk, done) = (&disk, &done);
            scope.spawn(move || {
                let mut was_written = [false; 32];
                while !done.load(Ordering::Relaxed) {
                    for (index, sector) in read_all(disk).chunks(512).enumerate() {
                        let at = index * 512;
                        let from_base = sector
                            .iter()
                            .zip(at as u64..)
                            .all(|(byte, at)| *byte == base_byte(at));
                        let written =
                            sector.iter().all(|byte| *byte == sector[0]) && [0, 0xf0].contains(&sector[0]);
                        assert!(from_base || written, "sector {index}: {:?}", &sector[..8]);
                        assert!(!from_base || !was_written[index], "sector {index} went back");
                        was_written[index] |= written;
                    }
                }
            });
            for writer in writers {
                writer.join().unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        disk.close().unwrap();
    }
}

/// A flush that begins while another runs must not take that one's word: its write may have come too late.
fn second_flush_syncs(fault: Option<Fault>) -> bool {
    let sim = overlay(4 * G, 4 * G);
    let disk = Arc::new(open(&sim));
    write(&disk, 1, 0, G);
    let (reached, wait_for_reached) = mpsc::channel();
    let (go_on, wait_for_go) = mpsc::channel::<()>();
    let (wait_for_go, armed) = (std::sync::Mutex::new(wait_for_go), AtomicBool::new(true));
    sim.on_call(move |call| {
        let of_image = call.names().any(|name| name.to_str() == Some(IMAGE));
        if call.kind() == CallKind::Sync && of_image && armed.swap(false, Ordering::SeqCst) {
            reached.send(()).unwrap();
            wait_for_go.lock().unwrap().recv().unwrap();
        }
    });
    let first = std::thread::spawn({
        let disk = Arc::clone(&disk);
        move || disk.flush().unwrap()
    });
    wait_for_reached.recv().unwrap();
    // The first flush is in the middle of its sync.
    write(&disk, 2, G, G);
    let others: Vec<_> = (0..3)
        .map(|_| {
            let disk = Arc::clone(&disk);
            std::thread::spawn(move || with(fault, || disk.flush().unwrap()))
        })
        .collect();
    std::thread::sleep(std::time::Duration::from_millis(20));
    go_on.send(()).unwrap();
    first.join().unwrap();
    for other in others {
        other.join().unwrap();
    }
    let syncs = sim
        .events()
        .iter()
        .filter(|event| event.call.kind() == CallKind::Sync)
        .filter(|event| event.call.names().any(|name| name.to_str() == Some(IMAGE)))
        .count();
    assert!(
        syncs <= 1 + 2,
        "the three share one sync: {syncs} with that of the creation"
    );
    let after = open(&sim.power_cut_keeping(crate::storage::simulated::Keep::Nothing));
    read_all(&after)[usize::try_from(G).unwrap()] == 2
}

#[test]
fn a_flush_joins_only_a_sync_that_has_not_begun() {
    assert!(second_flush_syncs(None));
    assert!(
        !second_flush_syncs(Some(Fault::RunningFlushJoined)),
        "it must be able to fail"
    );
}
