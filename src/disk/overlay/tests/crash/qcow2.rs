//! The same lives of a disk whose image is a qcow2: what was flushed is there after a power cut, and nothing else but what
//! was written since.

use super::*;

const CLUSTER: u64 = 512;
const QCOW2: &str = "a.qcow2";

/// An empty qcow2 with the smallest clusters there are, so that it has many tables; and in its free clusters what others
/// left there.
fn empty() -> Vec<u8> {
    let l1 = LENGTH.div_ceil(CLUSTER).div_ceil(CLUSTER / 8);
    let mut bytes = vec![0; 4 * 512];
    let mut put = |at: usize, value: u64, len: usize| {
        bytes[at..at + len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
    };
    put(0, 0x5146_49fb, 4);
    put(4, 3, 4);
    put(20, 9, 4);
    put(24, LENGTH, 8);
    put(36, l1, 4);
    put(40, CLUSTER, 8);
    put(48, 2 * CLUSTER, 8);
    put(56, 1, 4);
    put(96, 4, 4);
    put(100, 104, 4);
    put(1024, 3 * CLUSTER, 8);
    for cluster in 0..4 {
        put(1536 + 2 * cluster, 1, 2);
    }
    bytes.resize(128 << 10, 0xee);
    bytes
}

fn disk_on_it() -> SimDisk {
    let sim = SimDisk::new();
    sim.put(QCOW2, &empty());
    CreateOptions::new()
        .image(QCOW2)
        .image_format(Format::Qcow2)
        .no_state(true)
        .folder(sim.folder())
        .create(TOP)
        .unwrap();
    sim
}

/// A life without discards: a cluster that is given free is used again at once, before the table says so on disk.
fn live_on_it(seed: u64) -> (SimDisk, Life, u64) {
    let sim = disk_on_it();
    let life = Mutex::new(Life::new(vec![0; usize::try_from(LENGTH).unwrap()]));
    let dice = Mutex::new(Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1));
    let disk = open(&sim);
    let start = now(&sim);
    for _ in 0..20 {
        let act = match roll(&dice, 10) {
            3 => 5,
            act => act,
        };
        act_out(&sim, &disk, &life, &dice, act);
    }
    disk.die();
    (sim, life.into_inner().unwrap(), start)
}

/// How many crash states cannot be explained: the contents, or, of an image that does not say that it must be repaired,
/// what a next life writes over all of it.
fn violations_on_it(seed: u64, fault: Option<Fault>) -> u64 {
    let (sim, life, start) = with(fault, || live_on_it(seed));
    let mut bad = 0;
    for point in sim.crash_points().filter(|point| point.events() >= start) {
        for state in states(&point) {
            let marked = take_mark(&state);
            let disk = open(&state);
            let mut found = vec![0; usize::try_from(LENGTH).unwrap()];
            let explained =
                disk.read(&mut found, 0).is_ok() && life.unexplained(&found, point.events()).is_none();
            bad += u64::from(!explained || !marked && !can_be_written_anew(&disk));
        }
    }
    bad
}

/// Takes away what keeps the image from being opened; tells whether it was there.
fn take_mark(state: &SimDisk) -> bool {
    let mut bytes = state.read(QCOW2).unwrap();
    let marked = bytes[79] & 1 != 0;
    if marked {
        let refused = OpenOptions::new().folder(state.folder()).open(TOP).err().unwrap();
        assert!(refused.message().contains("qemu-img check -r all"), "{refused}");
        bytes[79] &= !1;
        state.put(QCOW2, &bytes);
    }
    marked
}

/// Tables that lack what others count on show when all is written.
fn can_be_written_anew(disk: &Disk) -> bool {
    let byte = |cluster: u64| u8::try_from(cluster % 251).unwrap();
    let clusters = LENGTH / CLUSTER;
    let bytes: Vec<u8> = (0..clusters).flat_map(|cluster| [byte(cluster); 512]).collect();
    let mut found = vec![0; bytes.len()];
    let written = bytes
        .chunks(512)
        .zip(0..)
        .try_for_each(|(part, cluster)| disk.write(part, cluster * CLUSTER, WriteFlags::empty()));
    written.and_then(|()| disk.read(&mut found, 0)).is_ok() && found == bytes
}

#[test]
fn a_qcow2_has_what_was_flushed_and_nothing_foreign() {
    for seed in 1..=3 {
        assert_eq!(violations_on_it(seed, None), 0, "seed {seed}");
    }
}

/// The test sees each of these, or it guards nothing.
#[test]
fn wrong_orders_of_a_qcow2_are_seen() {
    for fault in [Fault::TablesUnordered, Fault::ImageUnmarked] {
        assert!(
            (1..=4).any(|seed| violations_on_it(seed, Some(fault)) > 0),
            "{fault:?} is not seen"
        );
    }
}
