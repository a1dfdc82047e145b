//! A qcow2 as the image of a disk: whatever is given free, made zeros or cut off, no cluster shows what belongs to another or
//! was there before, after a crash or with several writers.

use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use super::commit_qcow2::{QCOW2, disk_on, image, own_byte};
use super::*;
use crate::disk::AddBitmap;
use crate::storage::simulated::{Call, CrashPoint, Fault as Failing, Keep};

const OWN: &str = "own.qbm";
const DATA: &str = "a.data";
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
    disk_on(&sim, OWN, QCOW2, Format::Qcow2);
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

/// One that is zeros has its place still, and a write from before may be on its way there.
#[test]
fn a_write_on_its_way_hits_no_other_cluster() {
    let (sim, disk) = own();
    write(&disk, 0x40, 4 * G, G);
    disk.flush().unwrap();
    let (arrived, free) = hold(&sim, |bytes| {
        bytes.len() == 512 && bytes.iter().all(|b| *b == 0x51)
    });
    thread::scope(|scope| {
        let disk = &disk;
        scope.spawn(move || write(disk, 0x51, 5 * G + 512, 512));
        arrived.recv().unwrap();
        // Their places are not side by side.
        disk.write_zeroes(4 * G, 2 * G, WriteFlags::empty()).unwrap();
        write(disk, 0x52, 4 * G, 2 * G);
        write(disk, 0x88, 8 * G, G);
        drop(free);
    });
    assert_same(&cluster(&disk, 8).unwrap(), &[0x88; 4096]);
}

fn zeroed(flags: WriteFlags, fault: Option<Fault>) -> usize {
    let (sim, disk) = own();
    let start = sim.events().len() as u64;
    with(fault, || {
        disk.write_zeroes(G, 2 * G, flags).unwrap();
        write(&disk, 0x44, 0, G);
        write(&disk, 0x45, 4 * G, G);
    });
    drop(disk);
    foreign(&sim, start, 1, 0) + foreign(&sim, start, 2, 0)
}

/// Whoever asks for zeros counts on zeros or on what was there.
#[test]
fn zeros_that_give_clusters_free_show_nothing_foreign() {
    assert_eq!(zeroed(WriteFlags::empty(), None), 0);
    assert_eq!(zeroed(WriteFlags::MAY_UNMAP, None), 0);
    let fault = Some(Fault::FreedAtOnce);
    assert!(zeroed(WriteFlags::MAY_UNMAP, fault) > 0, "the test sees nothing");
}

/// A qcow2 with all of its data in another file; both.
fn split() -> (Vec<u8>, Vec<u8>) {
    let mut bytes = vec![0; 5 * 4096];
    let mut put = |at: u64, value: u64, len: usize| {
        let at = usize::try_from(at).unwrap();
        bytes[at..at + len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
    };
    for (at, value, len) in [
        (0, 0x5146_49fb, 4),
        (4, 3, 4),
        (20, 12, 4),
        (24, CLUSTERS * G, 8),
        (36, 1, 4),
        (40, G, 8),
        (48, 2 * G, 8),
        (56, 1, 4),
        (72, 4, 8),
        (96, 4, 4),
        (100, 104, 4),
        (104, 0x4441_5441_0000_0006, 8),
        (G, (1 << 63) | (4 * G), 8),
        (2 * G, 3 * G, 8),
    ] {
        put(at, value, len);
    }
    for cluster in 0..CLUSTERS {
        put(4 * G + 8 * cluster, (1 << 63) | (cluster * G), 8);
    }
    for cluster in 0..5 {
        put(3 * G + 2 * cluster, 1, 2);
    }
    bytes[112..118].copy_from_slice(DATA.as_bytes());
    (bytes, (0..CLUSTERS * G).map(own_byte).collect())
}

fn own_split() -> (SimDisk, Disk) {
    let sim = SimDisk::new();
    let (qcow2, data) = split();
    sim.put(QCOW2, &qcow2);
    sim.put(DATA, &data);
    disk_on(&sim, OWN, QCOW2, Format::Qcow2);
    let disk = open_as(&sim, OWN);
    (sim, disk)
}

/// A disk of each kind is cut: after how many crashes one that is as long as before lacks something; and one that is shorter
/// shows, when it has grown again, what was cut off.
fn cut(made: fn() -> (SimDisk, Disk), fault: Option<Fault>) -> (usize, usize) {
    let (sim, disk) = made();
    let content = read_all(&disk);
    let start = sim.events().len() as u64;
    with(fault, || disk.truncate(4 * G, TruncateFlags::SHRINK)).unwrap();
    drop(disk);
    let (mut lost, mut shown, mut kinds) = (0, 0, [false; 2]);
    for state in crashes(&sim, start) {
        let disk = after(&state);
        let long = disk.length() == CLUSTERS * G;
        kinds[usize::from(long)] = true;
        if long {
            let mut found = vec![0xee; content.len()];
            lost += usize::from(disk.read(&mut found, 0).is_err() || found != content);
            continue;
        }
        assert_eq!(disk.length(), 4 * G);
        disk.truncate(CLUSTERS * G, TruncateFlags::empty()).unwrap();
        let (kept, new) = (usize::try_from(4 * G).unwrap(), read_all(&disk));
        assert_same(&new[..kept], &content[..kept]);
        shown += usize::from(new[kept..].iter().any(|byte| *byte != 0));
        // As the next one finds it.
        disk.close().unwrap();
        assert_same(&read_all(&open_as(&state, OWN)), &new);
    }
    assert_eq!(kinds, [true; 2]);
    (lost, shown)
}

#[test]
fn a_cut_that_a_crash_ends_is_whole_or_not_begun() {
    for made in [own, own_split] {
        assert_eq!(cut(made, None), (0, 0));
        let (lost, _) = cut(made, Some(Fault::TablesUnordered));
        assert!(lost > 0, "the test sees nothing");
    }
}

/// A call that fails leaves the disk as it was, or is the last one.
#[test]
fn a_cut_in_which_a_call_fails_is_whole_or_the_end() {
    for made in [own, own_split] {
        let shrink = |disk: &Disk| disk.truncate(4 * G, TruncateFlags::SHRINK);
        let (sim, disk) = made();
        let start = sim.events().len();
        shrink(&disk).unwrap();
        let calls = (sim.events().len() - start) as u64;
        for call in 1..=calls {
            let (sim, disk) = made();
            let content = read_all(&disk);
            sim.fail(Failing::new(libc::EIO).nth(call));
            let result = shrink(&disk);
            sim.heal();
            if result.is_err() && !disk.info().unwrap().failed {
                assert_same(&read_all(&disk), &content);
                disk.close().unwrap();
            } else {
                drop(disk);
            }
            let found = read_all(&after(&sim.kill()));
            let kept = if result.is_ok() { 4 * G } else { found.len() as u64 };
            assert!([4 * G, CLUSTERS * G].contains(&kept));
            assert_same(&found, &content[..usize::try_from(kept).unwrap()]);
        }
    }
}

/// QEMU overwrites a cluster that has its place: the qcow2 itself does not change.
#[test]
fn a_foreign_write_to_the_data_file_alone_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (qcow2, data) = split();
    std::fs::write(dir.path().join(QCOW2), qcow2).unwrap();
    std::fs::write(dir.path().join(DATA), data).unwrap();
    let path = dir.path().join(OWN);
    CreateOptions::new()
        .image(QCOW2)
        .image_format(Format::Qcow2)
        .create(&path)
        .unwrap();
    let open = || OpenOptions::new().open(&path).unwrap();
    let disk = open();
    disk.bitmap_add("b", AddBitmap::default()).unwrap();
    write(&disk, 7, G, G);
    disk.close().unwrap();
    // What opening it does to the header is no foreign write, nor is what it writes itself.
    for _ in 0..2 {
        let disk = open();
        assert!(!disk.bitmap_info("b").unwrap().inconsistent);
        disk.close().unwrap();
    }
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(dir.path().join(DATA))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"foreign", 3 * G).unwrap();
    let disk = open();
    assert!(disk.bitmap_info("b").unwrap().inconsistent);
}
