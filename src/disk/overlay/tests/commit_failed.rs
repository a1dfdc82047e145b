//! A commit that was ended, or in which a call failed: what it has put into the image below, the disk hides. When it shows that
//! later, because it was emptied or cut, it shows what whoever opens it next will see, also after a power cut (D1).

use std::ops::ControlFlow;

use super::*;
use crate::disk::{AddBitmap, BackingFlags};
use crate::storage::simulated::{CallKind, Fault as Failing, Keep};

const LENGTH: u64 = 24 * G;
const BACKING: u64 = 14 * G;
const FORMATS: [Format; 3] = [Format::Raw, Format::Qcow2, Format::Qbm];

/// What ends the commit.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The caller, when it was told so often how far it is.
    Told(u64),
    /// The call with this number.
    Call(u64),
}

/// How the disk comes to show what is below.
#[derive(Clone, Copy, Debug)]
enum Shown {
    Emptied,
    CutAndGrown,
}

fn open(sim: &SimDisk, cache: &str) -> Result<Disk> {
    OpenOptions::new()
        .cache_epoch(cache)
        .folder(sim.folder())
        .open(TOP)
}

/// An overlay that is longer than what is below it, with a bitmap. It hides data by zeros and by other data.
fn prepared(format: Format) -> (SimDisk, Disk) {
    let sim = SimDisk::new();
    sim.put("base.img", &base(BACKING));
    sim.put("base.qcow2", &commit_qcow2::image(false));
    let overlay = |length, file, format| {
        CreateOptions::new()
            .size(length)
            .backing(file, format)
            .granularity(granularity(G))
            .folder(sim.folder())
    };
    let file = match format {
        Format::Raw => "base.img",
        Format::Qcow2 => "base.qcow2",
        _ => "middle.qbm",
    };
    overlay(BACKING, "base.img", Format::Raw)
        .create("middle.qbm")
        .unwrap();
    overlay(LENGTH, file, format).create(TOP).unwrap();
    let disk = open(&sim, "one").unwrap();
    disk.bitmap_add("b", AddBitmap::default()).unwrap();
    disk.write_zeroes(G, G, WriteFlags::empty()).unwrap();
    for cluster in [5, 8, 9, 12, 20] {
        write(&disk, 0x99, cluster * G, G);
    }
    disk.flush().unwrap();
    read_all(&disk);
    (sim, disk)
}

/// Whether the disk shows `expected` whenever the power goes now.
fn outlives_power_cuts(sim: &SimDisk, expected: &[u8]) -> bool {
    let mut cuts = (0..3).map(Keep::Random).chain([Keep::Nothing, Keep::All]);
    cuts.all(|keep| open(&sim.power_cut_keeping(keep), "two").is_ok_and(|disk| read_all(&disk) == expected))
}

/// Whether a change goes unnoticed after a commit that ends so; `None` where it does not end before it is done.
fn loses_a_change(format: Format, end: End, shown: Shown, fault: Option<Fault>) -> Option<bool> {
    let (sim, disk) = prepared(format);
    let content = read_all(&disk);
    let mut told = 0;
    if let End::Call(number) = end {
        sim.fail(Failing::new(libc::EIO).nth(number));
    }
    let mut progress = |_, _| {
        told += 1;
        match end {
            End::Told(times) if told > times => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    };
    let result = with(fault, || disk.commit(&mut progress));
    sim.heal();
    assert_same(&read_all(&disk), &content);
    result.err()?;
    let mut expected = content;
    match shown {
        Shown::Emptied => {
            // Where it could not see to it, or the state file fails, it is refused until the disk is reopened.
            if disk.make_empty().is_err() {
                return Some(false);
            }
            expected = read_all(&disk);
            // That is durable: a starting point would make it so as well.
            if !outlives_power_cuts(&sim, &expected) {
                return Some(true);
            }
        }
        Shown::CutAndGrown => {
            if disk.truncate(4 * G, TruncateFlags::SHRINK).is_err() {
                return Some(false);
            }
            disk.truncate(LENGTH, TruncateFlags::empty()).unwrap();
            expected[usize::try_from(4 * G).unwrap()..].fill(0);
            assert_same(&read_all(&disk), &expected);
        }
    }
    // A backup that has read what is shown begins anew.
    disk.bitmap_clear("b").unwrap();
    disk.close().unwrap();
    let cuts = (0..3).map(Keep::Random).chain([Keep::Nothing, Keep::All]);
    let mut states = cuts.map(|keep| sim.power_cut_keeping(keep)).chain([sim.kill()]);
    Some(states.any(|state| match open(&state, "two") {
        Ok(disk) => disk.bitmap_count("b").unwrap() != 0 || read_all(&disk) != expected,
        Err(_) => true,
    }))
}

/// How many commits that the caller ended let a change go unnoticed.
fn ended(format: Format, shown: Shown, fault: Option<Fault>) -> usize {
    let outcomes = (0..).map_while(|told| loses_a_change(format, End::Told(told), shown, fault));
    outcomes.filter(|lost| *lost).count()
}

#[test]
fn one_that_is_ended_hides_no_change() {
    for format in FORMATS {
        for shown in [Shown::Emptied, Shown::CutAndGrown] {
            assert_eq!(ended(format, shown, None), 0, "{format}, {shown:?}");
        }
    }
}

/// The test sees each of these, or it guards nothing.
#[test]
fn a_chain_that_is_outdated_is_seen() {
    for (format, shown, fault) in [
        (Format::Qcow2, Shown::Emptied, Fault::ChainOutdated),
        (Format::Qbm, Shown::Emptied, Fault::ChainOutdated),
        (Format::Raw, Shown::CutAndGrown, Fault::ChainOutdated),
        (Format::Raw, Shown::Emptied, Fault::BackingUnsynced),
    ] {
        assert!(
            ended(format, shown, Some(fault)) > 0,
            "{format}, {shown:?}, {fault:?}"
        );
    }
}

#[test]
fn one_in_which_a_call_fails_hides_no_change() {
    for format in FORMATS {
        for shown in [Shown::Emptied, Shown::CutAndGrown] {
            for call in 1.. {
                match loses_a_change(format, End::Call(call), shown, None) {
                    Some(lost) => assert!(!lost, "{format}, {shown:?}, call {call}"),
                    // What fails behind the end, as space that is not given back, is no failure of the commit.
                    None if !calls_left(format, call) => break,
                    None => {}
                }
            }
        }
    }
}

/// The image below fails, not the disk's own.
#[test]
fn one_that_cannot_see_to_it_lets_guests_go_on() {
    for format in FORMATS {
        let (sim, disk) = prepared(format);
        let image = match format {
            Format::Raw => "base.img",
            Format::Qcow2 => "base.qcow2",
            _ => "middle-data.img",
        };
        sim.fail(Failing::new(libc::EIO).on(CallKind::Sync).on_file(image));
        disk.commit(&mut |_, _| ControlFlow::Continue(())).unwrap_err();
        sim.heal();
        write(&disk, 0x98, 2 * G, G);
        disk.flush().unwrap();
        let content = read_all(&disk);
        // The same image under the same name is no surer; a qcow2 that is marked is not even opened.
        let backing = disk.info().unwrap().overlay.unwrap().backing;
        let renamed = disk.change_backing(backing, BackingFlags::UNCHANGED);
        assert_eq!(renamed.is_ok(), format != Format::Qcow2, "{format}");
        for refused in [disk.make_empty(), disk.truncate(4 * G, TruncateFlags::SHRINK)] {
            let refused = refused.unwrap_err();
            assert_eq!(refused.code(), ErrorCode::Failed, "{format}: {refused}");
            assert!(refused.message().contains("reopen the disk"), "{refused}");
        }
        disk.close().unwrap();
        if format == Format::Qcow2 {
            // Still marked as being written to.
            let mut bytes = sim.read("base.qcow2").unwrap();
            bytes[79] &= !1;
            sim.put("base.qcow2", &bytes);
        }
        let disk = open(&sim, "one").unwrap();
        assert_same(&read_all(&disk), &content);
        if format == Format::Raw {
            // What is below is durable: it is the commit's own sync that fails.
            disk.flush().unwrap();
            sim.fail(Failing::new(libc::EIO).on(CallKind::Sync).on_file(image));
            disk.commit(&mut |_, _| ControlFlow::Continue(())).unwrap_err();
            sim.heal();
            disk.make_empty().unwrap_err();
            // Once it is not below any more, it does not count.
            disk.change_backing(None, BackingFlags::empty()).unwrap();
        }
        disk.make_empty().unwrap();
    }
}

/// Whether a commit makes so many calls.
fn calls_left(format: Format, call: u64) -> bool {
    let (sim, disk) = prepared(format);
    let start = sim.events().len() as u64;
    disk.commit(&mut |_, _| ControlFlow::Continue(())).unwrap();
    sim.events().len() as u64 > start + call
}
