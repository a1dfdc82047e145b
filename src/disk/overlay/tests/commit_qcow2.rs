//! Committing into a qcow2: the disk shows the same before, while and after, and QEMU's format is kept: what the qcow2 does
//! not get stays where a table leads, also of clusters that it has compressed, which move when a part of them is written.

use std::ops::ControlFlow;

use super::*;
use crate::storage::simulated::{CrashPoint, Fault as Failing, Keep};

pub(super) const QCOW2: &str = "base.qcow2";
const LOW: &str = "low.img";
/// It ends within a cluster.
const LENGTH: u64 = 14 * G + 1536;
const TOP_LENGTH: u64 = 24 * G + 9;

/// A qcow2 whose clusters are data, compressed, zeros and of its backing in turn, over a raw image that is longer. What its
/// last cluster has behind its end is not zeros.
pub(super) fn image(backing: bool) -> Vec<u8> {
    let clusters = LENGTH.div_ceil(G);
    let mut bytes = vec![0; 5 * 4096];
    let put = |bytes: &mut Vec<u8>, at: u64, value: u64, len: usize| {
        let at = usize::try_from(at).unwrap();
        bytes[at..at + len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
    };
    for (at, value, len) in [
        (0, 0x5146_49fb, 4),
        (4, 3, 4),
        (20, 12, 4),
        (24, LENGTH, 8),
        (36, 1, 4),
        (40, G, 8),
        (48, 2 * G, 8),
        (56, 1, 4),
        (96, 4, 4),
        (100, 104, 4),
        (G, (1 << 63) | (4 * G), 8),
        (2 * G, 3 * G, 8),
    ] {
        put(&mut bytes, at, value, len);
    }
    if backing {
        put(&mut bytes, 8, 1024, 8);
        put(&mut bytes, 16, LOW.len() as u64, 4);
        bytes[1024..1024 + LOW.len()].copy_from_slice(LOW.as_bytes());
        put(&mut bytes, 104, 0xe279_2aca_0000_0003, 8);
        bytes[112..115].copy_from_slice(b"raw");
    }
    for cluster in 0..clusters {
        let at = bytes.len() as u64;
        let content: Vec<u8> = (cluster * G..(cluster + 1) * G).map(own_byte).collect();
        let entry = match kind(cluster) {
            0 => {
                bytes.extend(content);
                (1 << 63) | at
            }
            1 => {
                // A stream of one block that is stored as it is; it ends in the second cluster.
                bytes.extend([1, 0x00, 0x10, 0xff, 0xef]);
                bytes.extend(content);
                bytes.resize(bytes.len().next_multiple_of(4096), 0);
                (1 << 62) | (8 << 58) | at
            }
            2 => 1,
            _ => 0,
        };
        put(&mut bytes, 4 * G + 8 * cluster, entry, 8);
    }
    for cluster in 0..bytes.len() as u64 / G {
        put(&mut bytes, 3 * G + 2 * cluster, 1, 2);
    }
    bytes
}

/// What the qcow2 has at an offset, where it has something.
pub(super) fn own_byte(at: u64) -> u8 {
    base_byte(at + 13)
}

/// 0 is data, 1 compressed data, 2 zeros, and 3 what is below.
fn kind(cluster: u64) -> u64 {
    (cluster + 3) % 4
}

/// A disk whose image is `file`.
pub(super) fn disk_on(sim: &SimDisk, name: &str, file: &str, format: Format) {
    CreateOptions::new()
        .image(file)
        .image_format(format)
        .no_state(true)
        .folder(sim.folder())
        .create(name)
        .unwrap();
}

/// An overlay whose granules are smaller than the clusters of the qcow2, with something in the first ones.
fn overlay_on(sim: &SimDisk, backing: &str, format: Format) -> Disk {
    CreateOptions::new()
        .size(TOP_LENGTH)
        .backing(backing, format)
        .granularity(granularity(512))
        .no_state(true)
        .folder(sim.folder())
        .create(TOP)
        .unwrap();
    let disk = open(sim);
    for cluster in 0..14 {
        write(&disk, 200, cluster * G + 600, 300);
    }
    disk
}

/// The qcow2, and an overlay on it whose granules are smaller than its clusters, with something in most of them.
fn prepared_on(backing: bool) -> (SimDisk, Disk, Vec<u8>) {
    let sim = SimDisk::new();
    sim.put(LOW, &base(20 * G));
    sim.put(QCOW2, &image(backing));
    let disk = overlay_on(&sim, QCOW2, Format::Qcow2);
    write(&disk, 201, 5 * G + 512, 2 * G + 700);
    disk.write_zeroes(9 * G + 512, 2 * G, WriteFlags::MAY_UNMAP)
        .unwrap();
    disk.write_zeroes(2 * G + 2048, 512, WriteFlags::MAY_UNMAP)
        .unwrap();
    write(&disk, 202, 14 * G + 1024, 200);
    write(&disk, 203, 22 * G + 5, 700);
    disk.flush().unwrap();
    let mut expected: Vec<u8> = (0..LENGTH)
        .map(|at| match kind(at / G) {
            0 | 1 => own_byte(at),
            3 if backing => base_byte(at),
            _ => 0,
        })
        .collect();
    expected.resize(usize::try_from(TOP_LENGTH).unwrap(), 0);
    let mut fill = |byte, at: u64, len: u64| {
        expected[usize::try_from(at).unwrap()..][..usize::try_from(len).unwrap()].fill(byte);
    };
    for cluster in 0..14 {
        fill(200, cluster * G + 600, 300);
    }
    fill(201, 5 * G + 512, 2 * G + 700);
    fill(0, 9 * G + 512, 2 * G);
    fill(0, 2 * G + 2048, 512);
    fill(202, 14 * G + 1024, 200);
    fill(203, 22 * G + 5, 700);
    assert_same(&read_all(&disk), &expected);
    (sim, disk, expected)
}

fn prepared() -> (SimDisk, Disk, Vec<u8>) {
    prepared_on(true)
}

fn commit(disk: &Disk) -> Result<()> {
    disk.commit(&mut |_, _| ControlFlow::Continue(()))
}

/// What the qcow2 shows by itself.
fn shown(sim: &SimDisk) -> Vec<u8> {
    let options = OpenOptions::new().read_only(true).folder(sim.folder());
    read_all(&options.image_format(Format::Qcow2).open(QCOW2).unwrap())
}

/// Takes away what keeps a qcow2 from being opened that was not closed; tells whether it was there.
fn take_mark(state: &SimDisk) -> bool {
    let mut bytes = state.read(QCOW2).unwrap();
    let marked = bytes[79] & 1 != 0;
    if marked {
        let refused = OpenOptions::new().folder(state.folder()).open(TOP).err().unwrap();
        let words = "base.qcow2: it was not closed by the last program that wrote to it; \"qemu-img check -r all\" repairs it";
        assert!(refused.message().contains(words), "{refused}");
        bytes[79] &= !1;
        state.put(QCOW2, &bytes);
    }
    marked
}

#[test]
fn what_was_committed_is_in_the_qcow2() {
    for backing in [true, false] {
        let (sim, disk, mut content) = prepared_on(backing);
        let low = sim.read(LOW).unwrap();
        commit(&disk).unwrap();
        assert_same(&read_all(&disk), &content);
        assert_eq!(disk.info().unwrap().overlay.unwrap().allocated, 0);
        assert!(sim.read(IMAGE).unwrap().iter().all(|byte| *byte == 0));
        let mut longer = content.clone();
        longer.resize(content.len().next_multiple_of(512), 0);
        assert_same(&shown(&sim), &longer);
        assert!(!take_mark(&sim));
        // It goes on as an overlay, and the next commit finds what the first one left.
        write(&disk, 9, 3 * G + 100, 2 * G);
        content[usize::try_from(3 * G + 100).unwrap()..][..usize::try_from(2 * G).unwrap()].fill(9);
        disk.close().unwrap();
        let disk = open(&sim);
        commit(&disk).unwrap();
        commit(&disk).unwrap();
        assert_same(&read_all(&disk), &content);
        assert_same(&shown(&sim)[..content.len()], &content);
        assert_same(&sim.read(LOW).unwrap(), &low);
    }
}

/// Whether a guest reads something else meanwhile, or a state that a crash leaves shows something else once what keeps it from
/// being opened is taken away.
fn goes_wrong(fault: Option<Fault>) -> bool {
    let (sim, disk, content) = prepared();
    let start = sim.events().len() as u64;
    let mut bad = false;
    let read_by_the_guest = &mut |_, _| {
        let mut found = vec![0; content.len()];
        bad |= disk.read(&mut found, 0).is_err() || found != content;
        ControlFlow::Continue(())
    };
    with(fault, || disk.commit(read_by_the_guest)).unwrap();
    drop(disk);
    let mut points = sim.crash_points().filter(|point| point.events() >= start);
    bad || points.any(|point| shows_another(&point, &content))
}

fn shows_another(point: &CrashPoint, content: &[u8]) -> bool {
    let keeps = (0..4).map(Keep::Random).chain([Keep::Nothing, Keep::All]);
    let mut states = keeps
        .map(|keep| point.power_cut_keeping(keep))
        .chain([point.kill()]);
    states.any(|state| {
        take_mark(&state);
        let Ok(disk) = OpenOptions::new().no_state(true).folder(state.folder()).open(TOP) else {
            return true;
        };
        let mut found = vec![0; content.len()];
        disk.read(&mut found, 0).is_err() || found != content
    })
}

#[test]
fn one_that_is_cut_off_shows_what_was_there() {
    assert!(!goes_wrong(None));
}

/// The test sees each of these, or it guards nothing.
#[test]
fn wrong_orders_are_seen() {
    for fault in [Fault::BackingUnsynced, Fault::TablesUnordered, Fault::FreedAtOnce] {
        assert!(goes_wrong(Some(fault)), "{fault:?} is not seen");
    }
}

#[test]
fn one_in_which_a_call_fails_shows_what_was_there() {
    let (sim, disk, _) = prepared();
    let start = sim.events().len();
    commit(&disk).unwrap();
    let calls = (sim.events().len() - start) as u64;
    for call in 1..=calls {
        let (sim, disk, content) = prepared();
        sim.fail(Failing::new(libc::EIO).nth(call));
        let result = commit(&disk);
        sim.heal();
        assert_same(&read_all(&disk), &content);
        let marked = sim.read(QCOW2).unwrap()[79] & 1 != 0;
        if result.is_err() && !disk.info().unwrap().failed {
            let again = commit(&disk);
            assert_same(&read_all(&disk), &content);
            assert_eq!(again.is_err(), marked, "{again:?}");
        }
        drop(disk);
        let state = sim.kill();
        take_mark(&state);
        assert_same(&read_all(&open(&state)), &content);
    }
}

#[test]
fn one_that_is_ended_leaves_a_qcow2_that_was_closed() {
    let (sim, disk, content) = prepared();
    let mut calls = 0;
    let result = disk.commit(&mut |_, _| {
        calls += 1;
        if calls > 5 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    let words = "cannot commit top.qbm: the caller ended it; the disk is as it was";
    assert_fails(result, ErrorCode::Canceled, words);
    assert_same(&read_all(&disk), &content);
    assert!(!take_mark(&sim));
    commit(&disk).unwrap();
    assert_same(&shown(&sim)[..content.len()], &content);
}

/// All that can be refused is refused before a byte is changed.
#[test]
fn what_cannot_take_a_commit_is_left_alone() {
    let refused = |change: &dyn Fn(&mut Vec<u8>), code, words: &str| {
        let (sim, disk, content) = prepared_on(false);
        disk.close().unwrap();
        let mut bytes = sim.read(QCOW2).unwrap();
        change(&mut bytes);
        sim.put(QCOW2, &bytes);
        let disk = open(&sim);
        assert_fails(commit(&disk), code, &format!("cannot commit top.qbm: {words}"));
        assert_same(&read_all(&disk), &content);
        assert_same(&sim.read(QCOW2).unwrap(), &bytes);
    };
    let version = "base.qcow2: it is of qcow2 version 2, which cannot say that it is being written to, as a crash would need; \
                   \"qemu-img amend -f qcow2 -o compat=1.1\" makes it one of version 3";
    refused(
        &|bytes| {
            bytes[7] = 2;
            bytes[72..].iter_mut().take(32).for_each(|byte| *byte = 0);
            // Version 2 knows no zero clusters.
            for entry in bytes[4 * 4096..5 * 4096].chunks_mut(8) {
                entry[7] &= !1;
            }
        },
        ErrorCode::NotSupported,
        version,
    );
    let (sim, disk, _) = prepared();
    sim.put(QCOW2, &image(true));
    let words = "cannot commit top.qbm: base.qcow2 is not the file any more that the disk was opened with";
    assert_fails(commit(&disk), ErrorCode::FileInvalid, words);
    assert_same(&sim.read(QCOW2).unwrap(), &image(true));
}

/// The target is a disk whose image is a disk whose image is the qcow2: guests read it, compressed clusters that move included,
/// while it is written to; and it grows by whole sectors, though the disk above has a part of one.
#[test]
fn a_qcow2_below_two_disks_is_one_too() {
    let sim = SimDisk::new();
    sim.put(QCOW2, &image(false));
    disk_on(&sim, "inner.qbm", QCOW2, Format::Qcow2);
    disk_on(&sim, "base.qbm", "inner.qbm", Format::Qbm);
    let disk = overlay_on(&sim, "base.qbm", Format::Qbm);
    write(&disk, 203, 22 * G + 5, 700);
    disk.flush().unwrap();
    let content = read_all(&disk);
    let mut seen = 0;
    disk.commit(&mut |_, _| {
        assert_same(&read_all(&disk), &content);
        seen += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(seen > 14);
    assert_same(&read_all(&disk), &content);
    assert_same(&shown(&sim)[..content.len()], &content);
    disk.close().unwrap();
    assert_same(&read_all(&open(&sim)), &content);
}
