//! The shadow of the allocation bits: what a process that was killed had written and not flushed (A3).

use super::*;
use crate::storage::simulated::{CallKind, Keep};

const STATE: &str = "top.state";
/// Of a state file without a shadow.
const BARE: usize = 73_728;
const LENGTH: u64 = 8 * G;

/// An overlay with a state file, whose image has other people's bytes in it.
fn with_state() -> SimDisk {
    let sim = SimDisk::new();
    sim.put("base.img", &base(LENGTH));
    CreateOptions::new()
        .backing("base.img", Format::Raw)
        .granularity(granularity(G))
        .folder(sim.folder())
        .create(TOP)
        .unwrap();
    sim.put(IMAGE, &vec![0xee; usize::try_from(LENGTH).unwrap()]);
    sim
}

fn in_cache(sim: &SimDisk, cache: &str) -> OpenOptions {
    OpenOptions::new().folder(sim.folder()).cache_epoch(cache)
}

/// The same overlay after a process was killed that had written 100 bytes of `byte` to each of `granules`.
fn killed(granules: &[u64], byte: u8) -> SimDisk {
    let sim = with_state();
    let disk = in_cache(&sim, "cache").open(TOP).unwrap();
    for granule in granules {
        write(&disk, byte, granule * G + 50, 100);
    }
    sim.kill()
}

fn expected(granules: &[u64], byte: u8) -> Vec<u8> {
    let mut content = base(LENGTH);
    for granule in granules {
        let at = usize::try_from(granule * G + 50).unwrap();
        content[at..at + 100].fill(byte);
    }
    content
}

fn files(sim: &SimDisk) -> Vec<Vec<u8>> {
    let names = sim.names();
    names.iter().map(|name| sim.read(name).unwrap()).collect()
}

#[test]
fn a_reader_sees_what_was_not_flushed_and_changes_nothing() {
    let sim = killed(&[1, 5], 9);
    let before = files(&sim);
    let disk = in_cache(&sim, "cache").read_only(true).open(TOP).unwrap();
    assert_same(&read_all(&disk), &expected(&[1, 5], 9));
    drop(disk);
    assert_eq!(files(&sim), before);

    let disk = in_cache(&sim, "another").read_only(true).open(TOP).unwrap();
    assert_same(&read_all(&disk), &base(LENGTH));
}

#[test]
fn what_recovery_shows_outlives_a_power_cut() {
    let sim = killed(&[1, 5], 9);
    drop(in_cache(&sim, "cache").open(TOP).unwrap());
    let after = sim.power_cut_keeping(Keep::Nothing);
    let disk = in_cache(&after, "another").open(TOP).unwrap();
    assert_same(&read_all(&disk), &expected(&[1, 5], 9));
}

#[test]
fn a_disk_above_sees_it_too() {
    let sim = killed(&[2], 7);
    CreateOptions::new()
        .backing(TOP, Format::Qbm)
        .folder(sim.folder())
        .create("upper.qbm")
        .unwrap();
    let read = |cache| read_all(&in_cache(&sim, cache).open("upper.qbm").unwrap());
    assert_same(&read("cache"), &expected(&[2], 7));
    assert_same(&read("another"), &base(LENGTH));
    // Whoever has thrown the state file away has thrown that away.
    sim.folder().remove(STATE.as_ref()).unwrap();
    assert_same(&read("cache"), &base(LENGTH));
}

/// The story: bits of an earlier user come to light when the granules have long been given back.
#[test]
fn the_shadow_of_an_earlier_user_says_nothing() {
    let old = killed(&[1], 9);
    let shadow = old.read(STATE).unwrap()[BARE..].to_vec();
    let disk = in_cache(&old, "cache").open(TOP).unwrap();
    disk.make_empty().unwrap();
    write(&disk, 3, 6 * G + 50, 100);
    let sim = old.kill();
    let mut state = sim.read(STATE).unwrap();
    state.truncate(BARE);
    state.extend(shadow);
    sim.put(STATE, &state);
    sim.put(IMAGE, &vec![0xee; usize::try_from(LENGTH).unwrap()]);
    let disk = in_cache(&sim, "cache").read_only(true).open(TOP).unwrap();
    assert_same(&read_all(&disk), &base(LENGTH));
}

#[test]
fn a_first_touch_costs_one_small_write_and_nothing_else_any() {
    let sim = with_state();
    let disk = in_cache(&sim, "cache").open(TOP).unwrap();
    write(&disk, 1, 0, 10);
    let calls = |act: &dyn Fn()| {
        let before = sim.events().len();
        act();
        let calls = sim.events();
        calls[before..]
            .iter()
            .filter(|it| it.call.changes() || it.call.kind() == CallKind::Sync)
            .map(|it| it.call.to_string())
            .collect::<Vec<_>>()
    };
    let first = calls(&|| write(&disk, 1, 3 * G, G));
    let image = "Write top-data.img, 4096 bytes at offset 12288";
    assert_eq!(first, [image, "Write top.state, 8 bytes at offset 77824"]);
    assert_eq!(calls(&|| write(&disk, 2, 3 * G, G)), [image]);
    let flushed = calls(&|| disk.flush().unwrap());
    assert!(flushed.iter().all(|call| !call.contains(STATE)), "{flushed:?}");
    disk.close().unwrap();
    assert_eq!(sim.read(STATE).unwrap().len(), BARE);
}

/// No room for the shadow: what it would have kept is made durable at once.
#[test]
fn without_its_shadow_a_write_is_durable() {
    for kind in [CallKind::Write, CallKind::SetLength] {
        let sim = killed(&[4], 5);
        // A longer file than a new shadow's, so that there is something to be cut.
        let disk = in_cache(&sim, "cache").open(TOP).unwrap();
        if kind == CallKind::Write {
            write(&disk, 5, 0, 10);
        }
        let fault = crate::storage::simulated::Fault::new(libc::ENOSPC);
        sim.fail(fault.on(kind).on_file(STATE).from_then_on());
        if kind == CallKind::SetLength {
            // Which is when the shadow begins.
            write(&disk, 5, 0, 10);
        }
        write(&disk, 5, 7 * G + 50, 100);
        for (after, cache) in [
            (sim.kill(), "cache"),
            (sim.power_cut_keeping(Keep::Nothing), "another"),
        ] {
            let disk = in_cache(&after, cache).read_only(true).open(TOP).unwrap();
            let granule = usize::try_from(7 * G).unwrap();
            assert_same(&read_all(&disk)[granule..], &expected(&[7], 5)[granule..]);
        }
    }
}

#[test]
fn a_disk_that_nothing_vouches_for_keeps_no_shadow() {
    let sim = with_state();
    let disk = OpenOptions::new().folder(sim.folder()).open(TOP).unwrap();
    write(&disk, 1, 0, 10);
    assert_eq!(sim.read(STATE).unwrap().len(), BARE);
}
