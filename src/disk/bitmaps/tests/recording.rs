//! What writes leave in the bits and in the files.

use super::*;
use crate::storage::simulated::Fault;

#[test]
fn every_kind_of_change_is_recorded() {
    let (_sim, disk) = disk_of(10 * MIB);
    disk.bitmap_add("b", persistent()).unwrap();
    disk.bitmap_add("t", transient()).unwrap();
    write(&disk, 64 * KIB - 1, 2).unwrap();
    disk.write_zeroes(5 * 64 * KIB, 1, WriteFlags::empty()).unwrap();
    disk.discard(7 * 64 * KIB, 64 * KIB, WriteFlags::empty()).unwrap();
    disk.write(b"same", 20 * 64 * KIB, WriteFlags::UNCHANGED).unwrap();
    write(&disk, 9 * 64 * KIB, 0).unwrap();
    for name in ["b", "t"] {
        assert_eq!(dirty(&disk, name), [0, 1, 5, 7]);
        assert_eq!(disk.bitmap_count(name).unwrap(), 4);
    }
}

#[test]
fn the_piece_goes_out_before_the_data_and_only_once() {
    let (sim, disk) = disk_of(10 * MIB);
    disk.bitmap_add("b", persistent()).unwrap();
    let before = sim.events().len();
    write(&disk, 65 * 64 * KIB, 4096).unwrap();
    let events = changes(&sim, before);
    assert_eq!(events.len(), 2);
    assert!(is_write_to(&events[0].call, "disk-b.bitmap"));
    assert!(is_write_to(&events[1].call, IMAGE));
    let Call::Write { offset, bytes, .. } = &events[0].call else {
        unreachable!()
    };
    assert_eq!((*offset, &bytes[..]), (8, &[2, 0, 0, 0, 0, 0, 0, 0][..]));

    let before = sim.events().len();
    write(&disk, 65 * 64 * KIB + 4096, 4096).unwrap();
    assert_eq!(changes(&sim, before).len(), 1, "the bit was recorded already");
}

#[test]
fn a_range_over_many_pieces_goes_out_whole() {
    let (sim, disk) = disk_of(64 * MIB);
    disk.bitmap_add("b", of(512)).unwrap();
    disk.write_zeroes(20 * MIB + 100, 30 * MIB, WriteFlags::empty())
        .unwrap();
    let expected: Vec<u64> = (20 * 2048..=50 * 2048).collect();
    assert_eq!(dirty(&disk, "b"), expected);
    drop(disk);
    assert_eq!(dirty(&open(&sim.kill()), "b"), expected);
}

#[test]
fn a_piece_that_cannot_be_written_fails_the_write_and_is_tried_again() {
    let (sim, disk) = disk_of(10 * MIB);
    disk.bitmap_add("b", persistent()).unwrap();
    let before = sim.events().len();
    sim.fail(Fault::new(libc::EIO).on(CallKind::Write).on_file("disk-b.bitmap"));
    assert_refused(
        write(&disk, 0, 512),
        ErrorCode::Io,
        "bitmap \"b\": cannot record changes in disk-b.bitmap",
    );
    let events = changes(&sim, before);
    assert!(
        events.iter().all(|event| !is_write_to(&event.call, IMAGE)),
        "no data without its bit"
    );
    assert!(dirty(&disk, "b").is_empty());

    let before = sim.events().len();
    write(&disk, 0, 512).unwrap();
    let events = changes(&sim, before);
    assert!(position(&events, CallKind::Write, "disk-b.bitmap") < position(&events, CallKind::Write, IMAGE));
    assert_eq!(dirty(&open(&sim.kill()), "b"), [0]);
}

#[test]
fn a_write_that_fails_leaves_its_bits_set() {
    let (sim, disk) = disk_of(10 * MIB);
    disk.bitmap_add("b", persistent()).unwrap();
    sim.fail(Fault::new(libc::EIO).on(CallKind::Write).on_file(IMAGE));
    assert_refused(write(&disk, 3 * 64 * KIB, 512), ErrorCode::Io, IMAGE);
    assert_eq!(dirty(&disk, "b"), [3]);
    assert_eq!(dirty(&open(&sim.kill()), "b"), [3]);
}

/// durability trap 2. One writer has put its word together and is slow to write it; another sets a bit of the same word
/// meanwhile. Were they not kept apart, the older word would land last, without the other's bit.
#[test]
fn two_writers_in_one_piece_lose_no_bit() {
    let (sim, disk) = disk_of(64 * MIB);
    disk.bitmap_add("b", of(512)).unwrap();
    let (slow, under_way) = std::sync::mpsc::channel();
    let slow = std::sync::Mutex::new(Some(slow));
    sim.on_call(move |call| {
        if is_write_to(call, "disk-b.bitmap")
            && let Some(slow) = slow.lock().unwrap().take()
        {
            slow.send(()).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    });
    std::thread::scope(|scope| {
        scope.spawn(|| write(&disk, 0, 512).unwrap());
        under_way.recv().unwrap();
        write(&disk, 512, 512).unwrap();
    });
    assert_eq!(dirty(&disk, "b"), [0, 1]);
    assert_eq!(dirty(&open(&sim.kill()), "b"), [0, 1]);
}

#[test]
fn many_writers_lose_no_bit() {
    let (sim, disk) = disk_of(64 * MIB);
    disk.bitmap_add("b", of(512)).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let disk = &disk;
            scope.spawn(move || {
                for round in 0..200 {
                    write(disk, (round * 4 + writer) * 512, 512).unwrap();
                }
            });
        }
    });
    let expected: Vec<u64> = (0..800).collect();
    assert_eq!(dirty(&disk, "b"), expected);
    assert_eq!(dirty(&open(&sim.kill()), "b"), expected);
}

#[test]
fn a_disabled_bitmap_sees_nothing_and_loads_late() {
    let (sim, disk) = disk_of(10 * MIB);
    disk.bitmap_add("b", persistent()).unwrap();
    write(&disk, 0, 1).unwrap();
    disk.bitmap_disable("b").unwrap();
    write(&disk, MIB, 1).unwrap();
    assert_eq!(dirty(&disk, "b"), [0]);
    disk.close().unwrap();

    let before = sim.events().len();
    let disk = open(&sim);
    let read = |event: &Arc<Event>| {
        event.call.kind() == CallKind::Read && event.call.names().any(|name| name.ends_with("disk-b.bitmap"))
    };
    assert!(!sim.events()[before..].iter().any(read), "not needed yet");
    assert_eq!(disk.bitmap_list().unwrap()[0].count, None);
    assert_eq!(disk.bitmap_info("b").unwrap().count, Some(1));
    assert!(sim.events()[before..].iter().any(read));
    disk.bitmap_enable("b").unwrap();
    write(&disk, 2 * MIB, 1).unwrap();
    assert_eq!(dirty(&disk, "b"), [0, 32]);
}

#[test]
fn the_lazy_policy_writes_on_sync_and_close() {
    let (sim, disk) = disk_of(64 * MIB);
    disk.bitmap_add("b", of(512)).unwrap();
    disk.close().unwrap();
    let disk = options(&sim)
        .bitmap_policy(BitmapPolicy::Lazy)
        .open(NAME)
        .unwrap();
    let before = sim.events().len();
    write(&disk, 0, 512).unwrap();
    write(&disk, 40 * MIB, 512).unwrap();
    assert!(
        changes(&sim, before)
            .iter()
            .all(|event| is_write_to(&event.call, IMAGE))
    );
    disk.bitmap_sync(Some("b")).unwrap();
    assert_eq!(dirty(&open(&sim.kill()), "b"), [0, 40 * 2048]);
    write(&disk, 512, 512).unwrap();
    // A piece that does not go out is not forgotten.
    sim.fail(
        Fault::new(libc::ENOSPC)
            .on(CallKind::Write)
            .on_file("disk-b.bitmap"),
    );
    assert_eq!(disk.bitmap_sync(None).unwrap_err().errno(), libc::ENOSPC);
    disk.close().unwrap();
    assert_eq!(dirty(&open(&sim.kill()), "b"), [0, 1, 40 * 2048]);
}

#[test]
fn memory_has_a_limit() {
    let (sim, disk) = disk_of(64 * MIB);
    disk.bitmap_add("b", of(512)).unwrap();
    disk.close().unwrap();
    assert_refused(
        options(&sim).max_bitmap_memory(16 * KIB - 1).open(NAME),
        ErrorCode::NoMemory,
        "more than the limit of 16383",
    );
    let disk = options(&sim).max_bitmap_memory(20 * KIB).open(NAME).unwrap();
    assert_refused(
        disk.bitmap_add("c", of(512)),
        ErrorCode::NoMemory,
        "cannot add bitmap \"c\"",
    );
    disk.bitmap_add("c", of(64 * KIB)).unwrap();
}
