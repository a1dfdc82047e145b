//! Growing and shrinking: nothing comes back that was cut off, and nothing that a longer backing has (durability trap 5).

use super::*;
use crate::storage::simulated::Keep;

fn resized(content: &mut Vec<u8>, length: u64) {
    content.resize(usize::try_from(length).unwrap(), 0);
}

#[test]
fn what_is_gained_reads_as_zeros() {
    // Lengths within a granule, at its end, beyond the backing, back again; the backing has 12 granules and a bit.
    let lengths = [
        G + 10,
        5 * G,
        4 * G + 1,
        20 * G + 7,
        3,
        12 * G + 50,
        64 * G + 1,
        30 * G,
        200 * G,
    ];
    for allocate in [false, true] {
        let sim = overlay(3 * G, 12 * G + 300);
        let mut disk = open(&sim);
        let mut content = base(3 * G);
        for (step, length) in lengths.into_iter().enumerate() {
            disk.truncate(length, TruncateFlags::SHRINK).unwrap();
            resized(&mut content, length);
            assert_same(&read_all(&disk), &content);
            if allocate {
                write(&disk, 7, length - 2, 2);
                let at = content.len() - 2;
                content[at..].fill(7);
            }
            if step % 2 == 1 {
                disk.close().unwrap();
                disk = open(&sim);
            }
            assert_same(&read_all(&disk), &content);
        }
    }
}

#[test]
fn a_tail_that_is_left_to_the_backing_is_seen() {
    let sim = overlay(G + 10, 12 * G);
    let disk = open(&sim);
    with(Some(Fault::TailLeftToBacking), || {
        disk.truncate(3 * G, TruncateFlags::empty()).unwrap();
    });
    let mut content = base(G + 10);
    resized(&mut content, 3 * G);
    assert_ne!(read_all(&disk), content);
}

/// Whatever a power cut leaves of a resize, the disk has one of the two lengths, and the content that belongs to it.
#[test]
fn a_resize_that_is_cut_off_shows_no_foreign_byte() {
    for (from, to) in [
        (3 * G + 10, 9 * G + 5),
        (3 * G, 200 * G),
        (9 * G + 5, 3 * G + 10),
        (70 * G, G),
    ] {
        let sim = overlay(from, 12 * G);
        let disk = open(&sim);
        write(&disk, 7, from - 1, 1);
        write(&disk, 7, G + 5, 20);
        disk.flush().unwrap();
        let before = read_all(&disk);
        let start = sim.events().len() as u64;
        disk.truncate(to, TruncateFlags::SHRINK).unwrap();
        let mut after = before.clone();
        resized(&mut after, to);
        for point in sim.crash_points().filter(|point| point.events() >= start) {
            for keep in (0..12).map(Keep::Random).chain([Keep::Nothing, Keep::All]) {
                let state = point.power_cut_keeping(keep);
                let disk = open(&state);
                let found = read_all(&disk);
                // A file that is cut or grown may stop at any length between, as far as the simulation goes.
                let mut expected = before.clone();
                resized(&mut expected, disk.length());
                // Of what was to be cut off, some may be gone when the length is still the old one.
                let cut = expected.len().min(after.len());
                for (expected, found) in expected[cut..].iter_mut().zip(&found[cut..]) {
                    *expected = if *found == 0 { 0 } else { *expected };
                }
                assert_same(&found, &expected);
                // Nor does any byte come back when the disk grows over what the cut left behind.
                let longer = disk.length() + 7 * G;
                disk.truncate(longer, TruncateFlags::empty()).unwrap();
                resized(&mut expected, longer);
                assert_same(&read_all(&disk), &expected);
            }
        }
        assert_same(&read_all(&disk), &after);
    }
}

#[test]
fn a_resize_that_fails_changes_nothing() {
    let sim = overlay(3 * G + 10, 12 * G);
    let content = base(3 * G + 10);
    let disk = open(&sim);
    let start = sim.events().len();
    disk.truncate(9 * G, TruncateFlags::empty()).unwrap();
    let calls = sim.events().len() - start;
    assert!(calls > 8);
    for call in 1..=calls as u64 {
        let sim = overlay(3 * G + 10, 12 * G);
        let disk = open(&sim);
        sim.fail(crate::storage::simulated::Fault::new(libc::EIO).nth(call));
        let result = disk.truncate(9 * G, TruncateFlags::empty());
        sim.heal();
        let mut expected = content.clone();
        resized(&mut expected, disk.length());
        assert_same(&read_all(&disk), &expected);
        if result.is_err() && !disk.info().unwrap().failed {
            disk.truncate(9 * G, TruncateFlags::empty()).unwrap();
            resized(&mut expected, 9 * G);
            assert_same(&read_all(&disk), &expected);
        }
        let found = open(&sim.kill());
        resized(&mut expected, found.length());
        assert_same(&read_all(&found), &expected);
    }
}
