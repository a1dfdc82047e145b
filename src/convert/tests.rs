//! Converting and comparing through the library: what the tool's tests cannot reach.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use super::{Compare, CompareStep, Convert, Verdict};
use crate::descriptor::Format;
use crate::disk::{CreateOptions, Disk, OpenOptions, WriteFlags};
use crate::error::ErrorCode;
use crate::storage::simulated::{Call, Fault, SimDisk};
use crate::storage::{Access, Role};
use crate::units::ByteRange;

fn open(path: &Path) -> Disk {
    OpenOptions::new()
        .read_only(true)
        .image_format(Format::Raw)
        .open(path)
        .unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn progress_goes_up_to_the_length_and_may_end_it() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from.img");
    std::fs::write(&from, vec![1; 9 << 20]).unwrap();
    let source = open(&from);
    for threads in [1, 4] {
        let to = dir.path().join("to.img");
        let mut seen = Vec::new();
        let mut progress = |done: u64, total: u64| {
            assert_eq!(total, 9 << 20);
            seen.push(done);
            ControlFlow::Continue(())
        };
        Convert::new()
            .threads(threads)
            .create(&source, &to, Format::Raw, &mut progress)
            .unwrap();
        assert!(seen.is_sorted(), "{seen:?}");
        assert_eq!(seen.last(), Some(&(9 << 20)));
        std::fs::remove_file(&to).unwrap();
        let mut enough = |_: u64, _: u64| ControlFlow::Break(());
        let canceled = Convert::new()
            .threads(threads)
            .create(&source, &to, Format::Qbm, &mut enough)
            .unwrap_err();
        assert_eq!(canceled.code(), ErrorCode::Canceled);
        assert_eq!(names(dir.path()), ["from.img"]);
    }
}

#[test]
fn of_two_differences_the_first_is_told_whoever_finds_which() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    let mut bytes = vec![1; 40 << 20];
    std::fs::write(&one, &bytes).unwrap();
    bytes[3 << 20] = 2;
    for byte in bytes[4 << 20..].iter_mut().step_by(1 << 20) {
        *byte = 2;
    }
    std::fs::write(&other, &bytes).unwrap();
    for threads in [1, 2, 8, 16] {
        let compare = Compare::new().threads(threads);
        let verdict = compare
            .run(&open(&one), &open(&other), &mut |_, _| ControlFlow::Continue(()))
            .unwrap();
        assert_eq!(verdict, Verdict::Differs(3 << 20));
    }
}

/// Two raw images of `length` bytes on a disk of the test's, which differ in the bytes at `differs`.
fn two_images(length: usize, differs: &[usize]) -> (SimDisk, impl Fn(&str) -> Disk + use<>) {
    let sim = SimDisk::new();
    let mut bytes = vec![1; length];
    sim.put("one.img", &bytes);
    for at in differs {
        bytes[*at] = 2;
    }
    sim.put("other.img", &bytes);
    let folder = sim.folder();
    let open = move |name: &str| {
        OpenOptions::new()
            .read_only(true)
            .image_format(Format::Raw)
            .folder(Arc::clone(&folder))
            .open(name)
            .unwrap()
    };
    (sim, open)
}

/// A thread that is ahead finds that it cannot read before another has found the difference.
#[test]
fn what_cannot_be_read_behind_a_difference_is_not_told() {
    const PIECE: u64 = 2 << 20;
    for differs in [true, false] {
        let places: &[usize] = if differs { &[5, 3 << 20] } else { &[3 << 20] };
        let (sim, open) = two_images(8 << 20, places);
        let (one, other) = (open("one.img"), open("other.img"));
        let is_read = |call: &Call, within: std::ops::Range<u64>| match call {
            Call::Read { file, range } => {
                *file.name == *Path::new("other.img") && within.contains(&range.start())
            }
            _ => false,
        };
        let behind = Arc::new((Mutex::new(false), Condvar::new()));
        sim.on_call(move |call| {
            let (reached, changed) = &*behind;
            let mut reached = reached.lock().unwrap();
            if is_read(call, PIECE..2 * PIECE) {
                *reached = true;
                changed.notify_all();
            } else if is_read(call, 0..1) {
                while !*reached {
                    reached = changed.wait(reached).unwrap();
                }
            }
        });
        sim.fail(Fault::new(libc::EIO).matching(move |call| is_read(call, PIECE..2 * PIECE)));
        let found = Compare::new()
            .threads(2)
            .run(&one, &other, &mut |_, _| ControlFlow::Continue(()));
        match found {
            Ok(verdict) => assert!(differs && verdict == Verdict::Differs(5), "{verdict:?}"),
            Err(error) => assert!(!differs && error.step == CompareStep::Read, "{error:?}"),
        }
    }
}

#[test]
fn a_status_that_cannot_be_told_behind_a_difference_is_not_told_either() {
    for differs in [true, false] {
        let places: &[usize] = if differs { &[5] } else { &[] };
        let (sim, open) = two_images(8 << 20, places);
        let (one, other) = (open("one.img"), open("other.img"));
        // What it is told at first goes only so far.
        let file = sim
            .folder()
            .open(
                Role::Image,
                Path::new("one.img"),
                Access {
                    write: true,
                    direct: false,
                },
            )
            .unwrap();
        file.discard(ByteRange::between(2 << 20, 4 << 20)).unwrap();
        sim.fail(
            Fault::new(libc::EIO)
                .matching(|call| matches!(call, Call::Extent { range, .. } if range.start() >= 2 << 20))
                .from_then_on(),
        );
        for threads in [1, 4] {
            let found = Compare::new()
                .threads(threads)
                .run(&one, &other, &mut |_, _| ControlFlow::Continue(()));
            match found {
                Ok(verdict) => assert!(differs && verdict == Verdict::Differs(5), "{verdict:?}"),
                Err(error) => assert!(!differs && error.step == CompareStep::Status, "{error:?}"),
            }
        }
    }
}

#[test]
fn a_disk_that_is_open_for_writing_can_be_the_source() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qbm");
    CreateOptions::new().size(1 << 20).create(&path).unwrap();
    let disk = Disk::open(&path).unwrap();
    disk.write(&[9; 1000], 5000, WriteFlags::empty()).unwrap();
    let to = dir.path().join("to.img");
    Convert::new()
        .create(&disk, &to, Format::Raw, &mut |_, _| ControlFlow::Continue(()))
        .unwrap();
    let verdict = Compare::new().run(&disk, &open(&to), &mut |_, _| ControlFlow::Continue(()));
    assert_eq!(verdict.unwrap(), Verdict::Identical);
}

/// Its user was killed, so that it has no stamp to find out by.
#[test]
fn the_image_of_a_disk_that_was_not_closed_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from.img"), dir.path().join("disk-data.img"));
    std::fs::write(&from, vec![1; 1 << 20]).unwrap();
    let source = open(&from);
    CreateOptions::new()
        .size(1 << 20)
        .create(dir.path().join("disk.qbm"))
        .unwrap();
    let overwrite = || {
        let mut go_on = |_: u64, _: u64| ControlFlow::Continue(());
        Convert::new().overwrite(&source, &to, Format::Raw, &mut go_on)
    };
    let disk = Disk::open(dir.path().join("disk.qbm")).unwrap();
    disk.write(b"x", 0, WriteFlags::empty()).unwrap();
    disk.die();
    let refused = overwrite().unwrap_err();
    assert_eq!(refused.code(), ErrorCode::InvalidArgument);
    assert!(
        refused
            .message()
            .contains("the image of disk.qbm, which was not closed"),
        "{refused}"
    );
    assert_eq!(std::fs::read(&to).unwrap()[..2], *b"x\0");
    let disk = Disk::open(dir.path().join("disk.qbm")).unwrap();
    disk.close().unwrap();
    overwrite().unwrap();
    assert_eq!(std::fs::read(&to).unwrap()[..2], [1, 1]);
}
