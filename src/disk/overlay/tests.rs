//! Overlays on a simulated disk, whose log shows what was done in which order.

mod basic;
mod below;
mod commit;
mod commit_deeper;
mod commit_failed;
mod commit_qcow2;
mod crash;
mod model;
mod no_room;
mod opening;
mod own_qcow2;
mod rebase;
mod rebase_crash;
mod reshaped;
mod resize;
mod shadow;
mod threads;

use crate::descriptor::Format;
use crate::disk::{CreateOptions, Disk, OpenOptions, TruncateFlags, WriteFlags};
use crate::error::{Error, ErrorCode, Result};
use crate::mutation::{self, Fault};
use crate::storage::simulated::SimDisk;
use crate::units::Granularity;

const TOP: &str = "top.qbm";
const IMAGE: &str = "top-data.img";
const BITS: &str = "top-allocation.bitmap";
const KIB: u64 = 1024;
const G: u64 = 4 * KIB;

/// What a base image has at an offset: no zero, and no two sectors alike.
fn base_byte(at: u64) -> u8 {
    u8::try_from((at / 512 * 7 + at) % 255).unwrap() + 1
}

fn base(length: u64) -> Vec<u8> {
    (0..length).map(base_byte).collect()
}

fn granularity(bytes: u64) -> Granularity {
    Granularity::new(bytes).unwrap()
}

/// An overlay of `length` bytes with granules of 4 KiB over a raw image of `backing` bytes.
fn overlay(length: u64, backing: u64) -> SimDisk {
    let sim = SimDisk::new();
    sim.put("base.img", &base(backing));
    CreateOptions::new()
        .size(length)
        .backing("base.img", Format::Raw)
        .granularity(granularity(G))
        .no_state(true)
        .folder(sim.folder())
        .create(TOP)
        .unwrap();
    sim
}

fn open(sim: &SimDisk) -> Disk {
    open_as(sim, TOP)
}

fn open_as(sim: &SimDisk, name: &str) -> Disk {
    OpenOptions::new()
        .no_state(true)
        .folder(sim.folder())
        .open(name)
        .unwrap()
}

fn read_all(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(disk.length()).unwrap()];
    disk.read(&mut bytes, 0).unwrap();
    bytes
}

fn write(disk: &Disk, byte: u8, offset: u64, len: u64) {
    disk.write(
        &vec![byte; usize::try_from(len).unwrap()],
        offset,
        WriteFlags::empty(),
    )
    .unwrap();
}

/// What `act` comes to on this thread, with a protection missing.
fn with<T>(fault: Option<Fault>, act: impl FnOnce() -> T) -> T {
    match fault {
        Some(fault) => mutation::with(fault, act),
        None => act(),
    }
}

/// The code that a call failed with, and its exact words.
fn assert_fails<T>(result: Result<T>, code: ErrorCode, words: &str) {
    let error: Error = result.err().expect(words);
    assert_eq!((error.code(), error.message()), (code, words));
}

/// Where two contents differ first.
#[track_caller]
fn assert_same(found: &[u8], expected: &[u8]) {
    let first = found.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(
        first.map(|at| (at, found[at], expected[at])),
        None,
        "the first byte that differs"
    );
    assert_eq!(found.len(), expected.len());
}
