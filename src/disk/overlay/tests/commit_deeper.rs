//! Committing into a layer further down: the disk shows the same before, while and after, the layers between leave the
//! chain, and that layer shows what the disk shows.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use super::rebase::{at, on};
use super::*;
use crate::disk::AddBitmap;
use crate::storage::simulated::{Fault as Failing, Keep};

fn into(disk: &Disk, layer: u32) -> Result<()> {
    disk.commit_into(layer, &mut |_, _| ControlFlow::Continue(()))
}

/// `base.img`, `low.qbm`, `mid.qbm`, `top.qbm`, each with granules of its own of another size. The middle one is shorter
/// than what is below it, and so hides the end of that.
fn chain() -> (SimDisk, Disk, Vec<u8>) {
    let sim = SimDisk::new();
    sim.put("base.img", &base(20 * G));
    let mut below = ("base.img", Format::Raw);
    for (name, granule, length) in [
        ("low.qbm", 2 * G, 24 * G),
        ("mid.qbm", 512, 17 * G + 5),
        (TOP, G, 28 * G + 9),
    ] {
        CreateOptions::new()
            .backing(below.0, below.1)
            .granularity(granularity(granule))
            .size(length)
            .folder(sim.folder())
            .create(name)
            .unwrap();
        below = (name, Format::Qbm);
        let image = name.replace(".qbm", "-data.img");
        sim.put(image, &vec![0xee; at(length)]);
        let disk = open_as(&sim, name);
        let byte = u8::try_from(granule / 512).unwrap();
        write(&disk, byte, granule / 4 + 100, 3 * G);
        write(&disk, byte + 1, 12 * G + granule, 700);
        disk.write_zeroes(8 * G + granule, 1500, WriteFlags::MAY_UNMAP)
            .unwrap();
        if name == "low.qbm" {
            write(&disk, 99, 22 * G + 7, 500);
            disk.bitmap_add("m", AddBitmap::default()).unwrap();
        }
        if name == TOP {
            write(&disk, 77, 27 * G, G + 9);
            disk.write_zeroes(18 * G, 100, WriteFlags::MAY_UNMAP).unwrap();
            let content = read_all(&disk);
            assert!(content[at(17 * G + 5)..at(27 * G)].iter().all(|byte| *byte == 0));
            disk.flush().unwrap();
            return (sim, disk, content);
        }
        disk.close().unwrap();
    }
    unreachable!()
}

/// What the layer shows that the disk was committed into, and the disk as it is opened again.
fn shown_below(sim: &SimDisk, layer: u32) -> Vec<u8> {
    match layer {
        1 => read_all(&open_as(sim, "mid.qbm")),
        2 => read_all(&open_as(sim, "low.qbm")),
        _ => sim.read("base.img").unwrap(),
    }
}

#[test]
fn what_is_above_a_layer_goes_into_it() {
    for (layer, file, format) in [
        (1, "mid.qbm", Format::Qbm),
        (2, "low.qbm", Format::Qbm),
        (3, "base.img", Format::Raw),
    ] {
        let (sim, disk, content) = chain();
        let dirty = AddBitmap {
            granularity: granularity(512),
            ..AddBitmap::default()
        };
        disk.bitmap_add("b", dirty).unwrap();
        let between = sim.read("mid-data.img").unwrap();
        let mut seen = Vec::new();
        disk.commit_into(layer, &mut |done, total| {
            seen.push((done, total));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert!(seen.is_sorted() && seen.iter().all(|(done, total)| done <= total));
        assert_same(&read_all(&disk), &content);
        assert_eq!(disk.bitmap_count("b").unwrap(), 0, "the content is the same");
        let info = disk.info().unwrap();
        let overlay = info.overlay.unwrap();
        assert_eq!((overlay.allocated, overlay.backing), (0, on(file, format)));
        assert_eq!(info.layers, 5 - layer);
        assert!(sim.read(IMAGE).unwrap().iter().all(|byte| *byte == 0));
        if layer > 1 {
            assert_same(&sim.read("mid-data.img").unwrap(), &between);
        }
        // It goes on as an overlay on that.
        write(&disk, 5, 21 * G, 100);
        disk.close().unwrap();
        assert_same(&shown_below(&sim, layer), &content);
        let disk = open(&sim);
        let mut content = content;
        content[at(21 * G)..][..100].fill(5);
        assert_same(&read_all(&disk), &content);
        into(&disk, 1).unwrap();
        drop(disk);
        assert_same(&shown_below(&sim, layer), &content);
    }
}

/// A shorter layer in between hides what the target has behind its end; when it is gone, nothing else would.
#[test]
fn what_a_shorter_layer_hid_stays_hidden() {
    for layer in [2, 3] {
        let (_sim, disk, content) = chain();
        with(Some(Fault::HiddenByLength), || into(&disk, layer)).unwrap();
        assert_ne!(read_all(&disk), content, "it must be able to fail");
    }
}

#[test]
fn nothing_is_lost_under_writers() {
    for layer in [2, 3] {
        let (sim, disk, content) = chain();
        let done = AtomicBool::new(false);
        let part = 7 * G;
        let written: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4u64)
                .map(|writer| {
                    let (disk, done) = (&disk, &done);
                    let mut mine = content[at(writer * part)..][..at(part)].to_vec();
                    scope.spawn(move || {
                        let mut round = 0u64;
                        while !done.load(Ordering::Relaxed) || round < 50 {
                            let from = round * 2777 % (part - 300);
                            let byte = u8::try_from(round % 200).unwrap();
                            if round.is_multiple_of(4) {
                                let offset = writer * part + from;
                                disk.write_zeroes(offset, 300, WriteFlags::MAY_UNMAP).unwrap();
                                mine[at(from)..][..300].fill(0);
                            } else {
                                write(disk, byte, writer * part + from, 300);
                                mine[at(from)..][..300].fill(byte);
                            }
                            round += 1;
                        }
                        mine
                    })
                })
                .collect();
            into(&disk, layer).unwrap();
            into(&disk, 1).unwrap();
            done.store(true, Ordering::Relaxed);
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        let mut expected = written.concat();
        expected.extend(&content[at(28 * G)..]);
        assert_same(&read_all(&disk), &expected);
        into(&disk, 1).unwrap();
        drop(disk);
        assert_same(&shown_below(&sim, layer), &expected);
    }
}

/// M1: the whole chain or the short one, and the same content either way.
#[test]
fn one_that_is_cut_off_shows_what_was_there() {
    for layer in [2, 3] {
        let (sim, disk, content) = chain();
        let start = sim.events().len() as u64;
        into(&disk, layer).unwrap();
        let mut sides = [0, 0];
        for point in sim.crash_points().filter(|point| point.events() >= start) {
            let keeps = (0..6).map(Keep::Random).chain([Keep::Nothing, Keep::All]);
            for state in keeps
                .map(|keep| point.power_cut_keeping(keep))
                .chain([point.kill()])
            {
                let disk = open(&state);
                assert_same(&read_all(&disk), &content);
                sides[usize::from(disk.info().unwrap().layers < 4)] += 1;
            }
        }
        assert!(sides.iter().all(|side| *side > 5), "{sides:?}");
    }
}

#[test]
fn a_target_that_is_not_durable_is_seen() {
    let (sim, disk, content) = chain();
    let start = sim.events().len() as u64;
    with(Some(Fault::BackingUnsynced), || into(&disk, 3)).unwrap();
    let bad = sim
        .crash_points()
        .filter(|point| point.events() >= start)
        .filter(|point| read_all(&open(&point.power_cut_keeping(Keep::Nothing))) != content)
        .count();
    assert!(bad > 0);
}

#[test]
fn one_in_which_a_call_fails_shows_what_was_there() {
    let (sim, disk, _) = chain();
    let start = sim.events().len();
    into(&disk, 2).unwrap();
    let calls = (sim.events().len() - start) as u64;
    for call in 1..=calls {
        let (sim, disk, content) = chain();
        sim.fail(Failing::new(libc::EIO).nth(call));
        let result = into(&disk, 2);
        sim.heal();
        assert_same(&read_all(&disk), &content);
        if result.is_err() && !disk.info().unwrap().failed {
            into(&disk, 2).unwrap();
            assert_same(&read_all(&disk), &content);
        }
        assert_same(&read_all(&open(&sim.kill())), &content);
    }
}

#[test]
fn one_that_is_ended_leaves_the_chain_as_it_was() {
    let (sim, disk, content) = chain();
    let before = sim.read(TOP).unwrap();
    for last in [0, 3] {
        let mut calls = 0;
        let result = disk.commit_into(3, &mut |_, _| {
            calls += 1;
            if calls > last {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        let words = "cannot commit top.qbm: the caller ended it; the disk is as it was";
        assert_fails(result, ErrorCode::Canceled, words);
        assert!(sim.read(TOP).unwrap() == before);
        assert_same(&read_all(&disk), &content);
    }
}

#[test]
fn a_layer_that_is_not_there_is_refused() {
    let (_sim, disk, _) = chain();
    for layer in [0, 4, u32::MAX] {
        let words = format!("cannot commit top.qbm: there is no layer {layer} below it: it has 3");
        assert_fails(into(&disk, layer), ErrorCode::OutOfRange, &words);
    }
}
