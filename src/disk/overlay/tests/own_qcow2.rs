//! A qcow2 as the image of a disk: whatever is given free, made zeros or cut off, no cluster shows what belongs to another or
//! was there before, after a crash or with several writers.

use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use super::commit_qcow2::{QCOW2, image, own_byte};
use super::*;
use crate::storage::simulated::{Call, CrashPoint, Keep};

const OWN: &str = "own.qbm";
const CLUSTERS: u64 = 14;
/// Long enough for a thread to come to where it waits. What is checked holds also where it was not.
const A_WHILE: Duration = Duration::from_millis(200);
const AT_MOST: Duration = Duration::from_secs(10);

/// A disk on a qcow2 whose clusters are nowhere, data, compressed and zeros in turn: 3 mod 4, 1, 2 and so on.
fn own() -> (SimDisk, Disk) {
    let sim = SimDisk::new();
    let mut bytes = image(false);
    bytes[24..32].copy_from_slice(&(CLUSTERS * G).to_be_bytes());
    sim.put(QCOW2, &bytes);
    CreateOptions::new()
        .image(QCOW2)
        .image_format(Format::Qcow2)
        .no_state(true)
        .folder(sim.folder())
        .create(OWN)
        .unwrap();
    let disk = open_as(&sim, OWN);
    (sim, disk)
}

fn take_mark(state: &SimDisk) {
    let mut bytes = state.read(QCOW2).unwrap();
    bytes[79] &= !1;
    state.put(QCOW2, &bytes);
}

fn after(state: &SimDisk) -> Disk {
    take_mark(state);
    open_as(state, OWN)
}

fn cluster(disk: &Disk, index: u64) -> Result<Vec<u8>> {
    let mut found = vec![0xee; usize::try_from(G).unwrap()];
    disk.read(&mut found, index * G)?;
    Ok(found)
}

fn crashes(sim: &SimDisk, start: u64) -> impl Iterator<Item = SimDisk> + '_ {
    let points = sim.crash_points().filter(move |point| point.events() >= start);
    points.flat_map(|point| {
        let cut = |keep| CrashPoint::power_cut_keeping(&point, keep);
        let keeps = (0..12).map(Keep::Random).chain([Keep::Nothing, Keep::All]);
        keeps.map(cut).chain([point.kill()]).collect::<Vec<_>>()
    })
}

/// After how many crashes a cluster that was overwritten with `new` shows neither that nor what it had.
fn foreign(sim: &SimDisk, start: u64, index: u64, new: u8) -> usize {
    let strange = |state: &SimDisk| {
        // What cannot be decompressed is something else as well.
        let Ok(found) = cluster(&after(state), index) else {
            return true;
        };
        (index * G..)
            .zip(found)
            .any(|(at, byte)| byte != own_byte(at) && byte != new)
    };
    crashes(sim, start).filter(strange).count()
}

/// Holds the write that `held` knows until what is returned second is dropped; what is returned first tells of it.
fn hold(sim: &SimDisk, held: fn(&[u8]) -> bool) -> (mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (arrive, arrived) = mpsc::channel();
    let (free, freed) = mpsc::channel();
    let freed = Mutex::new(freed);
    sim.on_call(move |call| {
        if let Call::Write { bytes, .. } = call
            && held(bytes)
        {
            let _ = arrive.send(());
            let _ = freed.lock().unwrap().recv_timeout(AT_MOST);
        }
    });
    (arrived, free)
}

/// One writer overwrites a compressed cluster, whose places come free with that; another one needs a place.
fn reused(together: bool, fault: Option<Fault>) -> usize {
    let (sim, disk) = own();
    let start = sim.events().len() as u64;
    if together {
        let (arrived, free) = hold(&sim, |bytes| {
            bytes.len() == 4096 && bytes.iter().all(|b| *b == 0x11)
        });
        thread::scope(|scope| {
            let disk = &disk;
            scope.spawn(move || write(disk, 0x11, 2 * G, G));
            arrived.recv().unwrap();
            scope.spawn(move || write(disk, 0x44, 4 * G, G));
            thread::sleep(A_WHILE);
            drop(free);
        });
        sim.on_call(|_| {});
    } else {
        with(fault, || {
            write(&disk, 0x11, 2 * G, G);
            write(&disk, 0x44, 4 * G, G);
        });
    }
    drop(disk);
    foreign(&sim, start, 2, 0x11)
}

#[test]
fn a_compressed_cluster_is_not_used_again_while_a_table_leads_there() {
    assert_eq!(reused(false, None), 0);
    for _ in 0..3 {
        assert_eq!(reused(true, None), 0);
    }
    assert!(
        reused(false, Some(Fault::FreedAtOnce)) > 0,
        "the test sees nothing"
    );
}
