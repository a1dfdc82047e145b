//! Committing: the disk shows the same before, while and after, whatever happens; and its backing shows it afterwards.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::disk::{AddBitmap, StatusFlags};
use crate::storage::simulated::{CallKind, Keep};

fn commit(disk: &Disk) -> Result<()> {
    disk.commit(&mut |_, _| ControlFlow::Continue(()))
}

/// An overlay with data, zeros and a part of a granule in it, flushed; and what it shows.
fn prepared() -> (SimDisk, Disk, Vec<u8>) {
    let sim = overlay(14 * G + 9, 10 * G);
    let disk = open(&sim);
    write(&disk, 1, 100, 3 * G);
    disk.write_zeroes(5 * G, 2 * G, WriteFlags::MAY_UNMAP).unwrap();
    write(&disk, 2, 13 * G, G + 9);
    disk.flush().unwrap();
    let content = read_all(&disk);
    (sim, disk, content)
}

#[test]
fn what_was_committed_is_in_the_backing_and_nowhere_else() {
    let (sim, disk, content) = prepared();
    disk.bitmap_add("b", AddBitmap::default()).unwrap();
    let mut seen = Vec::new();
    disk.commit(&mut |done, total| {
        seen.push((done, total));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(seen.is_sorted() && seen.iter().all(|(done, total)| done <= total));
    assert_eq!(disk.bitmap_count("b").unwrap(), 0, "the content is the same");
    assert_same(&read_all(&disk), &content);
    assert_same(&sim.read("base.img").unwrap(), &content);
    assert!(sim.read(IMAGE).unwrap().iter().all(|byte| *byte == 0));
    assert_eq!(disk.info().unwrap().overlay.unwrap().allocated, 0);
    let status = disk.block_status(5 * G, G).unwrap();
    assert_eq!(
        (status.flags & StatusFlags::ZERO, status.depth),
        (StatusFlags::ZERO, 1)
    );
    // It goes on as an overlay, also where the backing was grown.
    write(&disk, 3, 12 * G, 10);
    disk.close().unwrap();
    let disk = open(&sim);
    let mut content = content;
    content[usize::try_from(12 * G).unwrap()..][..10].fill(3);
    assert_same(&read_all(&disk), &content);
    commit(&disk).unwrap();
    commit(&disk).unwrap();
    assert_same(&sim.read("base.img").unwrap(), &content);
}

#[test]
fn a_backing_that_is_a_disk_takes_it_as_one() {
    let (sim, middle, _) = prepared();
    let options = AddBitmap {
        granularity: granularity(512),
        ..AddBitmap::default()
    };
    middle.bitmap_add("m", options).unwrap();
    middle.close().unwrap();
    CreateOptions::new()
        .backing(TOP, Format::Qbm)
        .granularity(granularity(512))
        .size(20 * G)
        .folder(sim.folder())
        .create("third.qbm")
        .unwrap();
    let disk = open_as(&sim, "third.qbm");
    write(&disk, 7, 9 * G + 512, 512);
    write(&disk, 8, 18 * G, 700);
    disk.write_zeroes(0, 1024, WriteFlags::MAY_UNMAP).unwrap();
    let content = read_all(&disk);
    commit(&disk).unwrap();
    assert_same(&read_all(&disk), &content);
    write(&disk, 9, 9 * G, 10);
    disk.close().unwrap();
    let middle = open(&sim);
    assert_same(&read_all(&middle), &content);
    // Its own bitmap knows what came: three runs, and no more.
    assert_eq!(middle.bitmap_count("m").unwrap(), 1 + 2 + 2);
    assert_same(&sim.read("base.img").unwrap(), &base(10 * G));
}

/// durability trap 1: commit copies X, the guest writes Y, commit clears the bit, Y is gone. A write comes in the middle of
/// each of the first `interruptions` writes to the backing: into what was just copied, what is still to be, and what was
/// not there to be copied.
fn keeps_what_comes_behind_the_copy(interruptions: u64, fault: Option<Fault>) -> bool {
    let (sim, disk, mut content) = prepared();
    let disk = Arc::new(disk);
    let places = |round: u64| [200 + round * 20, 2 * G + 50 + round * 20, 8 * G + 1 + round * 20];
    let count = AtomicU64::new(0);
    let weak = Arc::downgrade(&disk);
    sim.on_call(move |call| {
        let of_base = call.names().any(|name| name.to_str() == Some("base.img"));
        if call.kind() != CallKind::Write || !of_base {
            return;
        }
        let round = count.fetch_add(1, Ordering::SeqCst);
        if round < interruptions {
            let disk = weak.upgrade().unwrap();
            let work = move || {
                for at in places(round) {
                    write(&disk, 0xcc, at, 10);
                }
            };
            std::thread::spawn(work).join().unwrap();
        }
    });
    with(fault, || commit(&disk)).unwrap();
    for at in (0..interruptions).flat_map(places) {
        content[usize::try_from(at).unwrap()..][..10].fill(0xcc);
    }
    read_all(&disk) == content
}

#[test]
fn a_write_that_comes_behind_the_copy_is_kept() {
    // The backing is written to twice in the first pass, and some more times in the second. The last pass has the
    // gate closed, where a write would wait for ever.
    for interruptions in 1..=4 {
        assert!(keeps_what_comes_behind_the_copy(interruptions, None));
    }
}

#[test]
fn a_commit_that_misses_writes_is_seen() {
    assert!(!keeps_what_comes_behind_the_copy(
        4,
        Some(Fault::CommitMissesWrites)
    ));
}

/// A guest writes to a granule that was committed, just when the image's space is given back.
fn keeps_what_comes_while_space_is_freed(fault: Option<Fault>) -> bool {
    let (sim, disk, mut content) = prepared();
    let disk = Arc::new(disk);
    let weak = Arc::downgrade(&disk);
    let writer = Arc::new(Mutex::new(None));
    let begun = Arc::clone(&writer);
    sim.on_call(move |call| {
        let of_image = call.names().any(|name| name.to_str() == Some("top-data.img"));
        let mut begun = begun.lock().unwrap();
        if call.kind() != CallKind::WriteZeroes || !of_image || begun.is_some() {
            return;
        }
        let disk = weak.upgrade().unwrap();
        let (done, is_done) = std::sync::mpsc::channel();
        *begun = Some(std::thread::spawn(move || {
            write(&disk, 0xcc, 0, 10);
            let _ = done.send(());
        }));
        drop(begun);
        // It waits for the granule; without that, it is through by then.
        let _ = is_done.recv_timeout(Duration::from_millis(200));
    });
    with(fault, || commit(&disk)).unwrap();
    let writer = writer.lock().unwrap().take().expect("space was given back");
    writer.join().unwrap();
    content[..10].fill(0xcc);
    read_all(&disk) == content
}

#[test]
fn space_is_given_back_while_guests_write() {
    assert!(keeps_what_comes_while_space_is_freed(None));
}

#[test]
fn space_that_is_given_back_under_a_writer_is_seen() {
    assert!(!keeps_what_comes_while_space_is_freed(Some(
        Fault::FreedUnclaimed
    )));
}

/// Writers hammer the granules that are being committed; none of their bytes is lost.
#[test]
fn nothing_is_lost_under_writers() {
    let sim = overlay(64 * G, 64 * G);
    let disk = open(&sim);
    write(&disk, 1, 0, 64 * G);
    let done = AtomicBool::new(false);
    let written: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4u64)
            .map(|writer| {
                let (disk, done) = (&disk, &done);
                scope.spawn(move || {
                    let mut mine = vec![1u8; usize::try_from(16 * G).unwrap()];
                    let mut round = 0u64;
                    while !done.load(Ordering::Relaxed) || round < 50 {
                        let at = round * 2777 % (16 * G - 300);
                        let byte = u8::try_from(round % 250).unwrap();
                        write(disk, byte, writer * 16 * G + at, 300);
                        mine[usize::try_from(at).unwrap()..][..300].fill(byte);
                        round += 1;
                    }
                    mine
                })
            })
            .collect();
        for _ in 0..5 {
            commit(&disk).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    assert_same(&read_all(&disk), &written.concat());
    commit(&disk).unwrap();
    assert_same(&sim.read("base.img").unwrap(), &written.concat());
}

/// M1: old or new, and the same content either way.
#[test]
fn a_commit_that_is_cut_off_shows_what_was_there() {
    let (sim, disk, content) = prepared();
    let start = sim.events().len() as u64;
    commit(&disk).unwrap();
    for point in sim.crash_points().filter(|point| point.events() >= start) {
        for keep in (0..12).map(Keep::Random).chain([Keep::Nothing, Keep::All]) {
            let state = point.power_cut_keeping(keep);
            assert_same(&read_all(&open(&state)), &content);
        }
        assert_same(&read_all(&open(&point.kill())), &content);
    }
}

#[test]
fn a_commit_that_fails_or_is_ended_shows_what_was_there() {
    let (sim, disk, content) = prepared();
    let start = sim.events().len();
    let result = disk.commit(&mut |_, _| ControlFlow::Break(()));
    let words = "cannot commit top.qbm: the caller ended it; the disk is as it was";
    assert_fails(result, ErrorCode::Canceled, words);
    assert_same(&read_all(&disk), &content);
    commit(&disk).unwrap();
    let calls = (sim.events().len() - start) as u64;
    for call in 1..calls {
        let (sim, disk, content) = prepared();
        sim.fail(crate::storage::simulated::Fault::new(libc::EIO).nth(call));
        let result = commit(&disk);
        sim.heal();
        assert_same(&read_all(&disk), &content);
        if result.is_err() && !disk.info().unwrap().failed {
            commit(&disk).unwrap();
            assert_same(&sim.read("base.img").unwrap(), &content);
        }
        assert_same(&read_all(&open(&sim.kill())), &content);
    }
}

#[test]
fn what_cannot_be_committed_is_refused() {
    let (sim, disk, _) = prepared();
    disk.close().unwrap();
    let with_options = |options: OpenOptions| options.folder(sim.folder()).open(TOP).unwrap();
    let disk = with_options(OpenOptions::new().no_backing(true));
    let words = "cannot commit top.qbm: it was opened without its backing image";
    assert_fails(commit(&disk), ErrorCode::NotSupported, words);
    let disk = with_options(OpenOptions::new().read_only(true));
    assert_eq!(commit(&disk).unwrap_err().code(), ErrorCode::ReadOnly);
    let create = || CreateOptions::new().size(G).folder(sim.folder());
    create().create("plain.qbm").unwrap();
    create().granularity(granularity(G)).create("thin.qbm").unwrap();
    for name in ["plain.qbm", "thin.qbm"] {
        let words = format!("cannot commit {name}: it has no backing image");
        assert_fails(commit(&open_as(&sim, name)), ErrorCode::NotSupported, &words);
    }
    // Another file has the name by now.
    let disk = open(&sim);
    sim.put("base.img", &base(10 * G));
    let words = "cannot commit top.qbm: base.img is not the file any more that the disk was opened with";
    assert_fails(commit(&disk), ErrorCode::FileInvalid, words);
}
