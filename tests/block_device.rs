//! Block devices: loop devices with blocks of 512 and 4096 bytes, through the page cache and around it.
//!
//! Needs root and `losetup`; says so and passes where the machine has not got them.

#![allow(
    clippy::expect_used,
    reason = "a test ends where its ground is missing; helpers count as no tests for clippy"
)]

#[path = "common/loops.rs"]
mod loops;
#[path = "common/mounted.rs"]
mod mounted;
#[path = "common/run.rs"]
mod run;
#[path = "common/skip.rs"]
mod skip;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use loops::Loop;
use mounted::Mounted;
use qbm::storage::{Access, FileStorage, Storage, SyncMode, Zeroing, read_slice, write_slice};
use qbm::{AddBitmap, ByteRange, CreateOptions, OpenOptions};
use skip::skipped;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;

/// A loop device over a file of its own.
struct Device {
    node: PathBuf,
    backing: PathBuf,
    // In the order in which they have to go.
    _loop: Loop,
    _dir: tempfile::TempDir,
}

impl Device {
    /// `None`, with a word, where the machine cannot.
    fn new(block: u32) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let backing = dir.path().join("backing");
        File::create(&backing)
            .expect("a file")
            .set_len(SIZE)
            .expect("a length");
        let device = Loop::new(&backing, &["--sector-size", &block.to_string()])
            .map_err(skipped)
            .ok()?;
        Some(Self {
            node: device.device().to_owned(),
            backing,
            _loop: device,
            _dir: dir,
        })
    }
}

/// Runs `test` for both block sizes, through the page cache and around it.
fn on_devices(test: impl Fn(&Device, u32, &FileStorage)) {
    for block in [512, 4096] {
        for direct in [false, true] {
            let Some(device) = Device::new(block) else { return };
            let access = Access { write: true, direct };
            let file = FileStorage::open(&device.node, access).expect("the device opens");
            test(&device, block, &file);
        }
    }
}

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(start, len).expect("a range that fits")
}

fn read(file: &FileStorage, start: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xEE; len];
    read_slice(file, &mut bytes, start).expect("a read");
    bytes
}

/// What a descriptor of nobody's sees, through the page cache that all share.
fn contents(device: &Path) -> Vec<u8> {
    std::fs::read(device).expect("the device")
}

#[test]
fn limits_length_and_identity() {
    on_devices(|device, block, file| {
        let limits = file.limits();
        assert!(limits.block_device);
        assert_eq!(limits.logical_block, block);
        assert!(limits.physical_block >= block);
        assert!([1, block].contains(&limits.request_alignment));
        assert!(limits.memory_alignment >= 1);
        assert_eq!(file.length().expect("a length"), SIZE);
        assert_eq!(file.allocated_bytes().expect("the space taken"), SIZE);
        let identity = file.identity().expect("an identity");
        assert_eq!(identity.inode, 0);
        let again = FileStorage::open(&device.node, Access::default()).expect("an open");
        assert_eq!(again.identity(), Some(identity));
        file.set_length(SIZE).expect("the length it has");
        let error = file.set_length(SIZE / 2).expect_err("no other length");
        assert!(error.to_string().contains("block device"), "{error}");
        assert_eq!(file.extent(range(5, 1000)).expect("an extent").len, 1000);
        file.sync(SyncMode::Data).expect("a sync");
    });
}

#[test]
fn a_resized_device_has_its_new_length() {
    let Some(device) = Device::new(512) else { return };
    let file = FileStorage::open(&device.node, Access::default()).expect("an open");
    File::options()
        .write(true)
        .open(&device.backing)
        .expect("the backing file")
        .set_len(2 * SIZE)
        .expect("a length");
    let status = Command::new("losetup")
        .arg("--set-capacity")
        .arg(&device.node)
        .status();
    assert!(status.expect("losetup").success());
    assert_eq!(file.length().expect("a length"), 2 * SIZE);
}

#[test]
fn bytes_at_any_place_are_written_and_read() {
    on_devices(|device, _, file| {
        let mut model = vec![0u8; usize::try_from(SIZE).expect("small")];
        let mut seed = 1u64;
        let mut next = |bound: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % bound
        };
        for round in 0..300u64 {
            let len = [next(10), next(5000), 4096 * next(5), next(300_000)]
                [usize::try_from(round % 4).expect("small")];
            let at = if next(2) == 0 {
                next(SIZE - len)
            } else {
                next(SIZE - len) & !4095
            };
            let bytes: Vec<u8> = (0..len).map(|n| (n * 7 + round).to_le_bytes()[0]).collect();
            write_slice(file, &bytes, at).expect("a write");
            let at = usize::try_from(at).expect("small");
            model[at..at + bytes.len()].copy_from_slice(&bytes);
            let from = at.saturating_sub(100);
            let back = read(file, from as u64, (bytes.len() + 150).min(model.len() - from));
            assert!(back == model[from..from + back.len()], "round {round}");
        }
        assert!(contents(&device.node) == model);
        read_slice(file, &mut [0; 2], SIZE - 1).expect_err("a read over the end");
        write_slice(file, &[0; 2], SIZE - 1).expect_err("a write over the end");
    });
}

#[test]
fn zeros_and_discards_read_back_as_zeros() {
    on_devices(|device, block, file| {
        for how in [
            Some(Zeroing {
                may_unmap: false,
                no_fallback: false,
            }),
            Some(Zeroing {
                may_unmap: true,
                no_fallback: false,
            }),
            Some(Zeroing {
                may_unmap: true,
                no_fallback: true,
            }),
            Some(Zeroing {
                may_unmap: false,
                no_fallback: true,
            }),
            None,
        ] {
            for (start, len) in [
                (MIB, MIB),
                (MIB + 3, 2 * MIB),
                (MIB + 100, 50),
                (u64::from(block) * 7 - 1, 2),
            ] {
                write_slice(file, &vec![9; usize::try_from(4 * MIB).expect("small")], 0).expect("a write");
                // The page cache holds the old bytes when the device gets its zeros.
                contents(&device.node);
                let outcome = match how {
                    Some(how) => file.write_zeroes(range(start, len), how),
                    None => file.discard(range(start, len)),
                };
                if let Err(error) = outcome {
                    assert!(how.is_some_and(|how| how.no_fallback), "{how:?}: {error}");
                    continue;
                }
                let bytes = contents(&device.node);
                let own = read(file, 0, usize::try_from(4 * MIB).expect("small"));
                assert!(own == bytes[..own.len()], "the device and its cache agree");
                for (at, &byte) in (0u64..).zip(&own) {
                    let inside = (start..start + len).contains(&at);
                    assert_eq!(
                        byte,
                        if inside { 0 } else { 9 },
                        "byte {at} after {how:?} of {len} at {start}"
                    );
                }
            }
        }
    });
}

#[test]
fn discards_give_space_back() {
    use std::os::unix::fs::MetadataExt;
    on_devices(|device, _, file| {
        write_slice(file, &vec![9; usize::try_from(8 * MIB).expect("small")], 0).expect("a write");
        file.sync(SyncMode::Data).expect("a sync");
        let taken = || device.backing.metadata().expect("metadata").blocks() * 512;
        let before = taken();
        file.discard(range(0, 8 * MIB)).expect("a discard");
        if file.limits().max_write_zeroes > 0 {
            assert!(
                taken() + 4 * MIB < before,
                "{} of {before} bytes are still taken",
                taken()
            );
        } else {
            skipped("this device unmaps nothing");
        }
    });
}

/// The story: one writer owns a block but for its last bytes, two others write those and the next block's first. A
/// block that is read before the first's write, and written back after it, undoes it. The kernel does not keep them
/// apart on a block device: without the lock on edges, bytes are lost within some ten thousand rounds.
#[test]
fn writers_in_one_block_lose_nothing() {
    on_devices(|_, block, file| {
        let block = block as usize;
        let done = AtomicBool::new(false);
        write_slice(file, &vec![0; 8 * block], 0).expect("a first content");
        std::thread::scope(|scope| {
            for edge in 0..2 {
                let done = &done;
                scope.spawn(move || {
                    let (at, mut back, mut round) = ((block - 10 + edge * 10) as u64, [0u8; 10], 0u8);
                    while !done.load(Ordering::Relaxed) {
                        round = round.wrapping_add(1);
                        write_slice(file, &[round; 10], at).expect("a write of an edge");
                        read_slice(file, &mut back, at).expect("a read");
                        assert!(edge == 0 || back == [round; 10], "an edge's bytes were lost");
                    }
                });
            }
            let mut memory = vec![0u8; block + 4096];
            let skew = memory.as_ptr().align_offset(4096);
            let mut lost = None;
            for round in 0..20_000u32 {
                let value = round.to_le_bytes()[0];
                let bytes = &mut memory[skew..skew + block];
                bytes.fill(value);
                write_slice(file, bytes, 0).expect("an aligned write");
                bytes.fill(!value);
                read_slice(file, bytes, 0).expect("an aligned read");
                if bytes[..block - 10].iter().any(|&byte| byte != value) {
                    lost = Some(round);
                    break;
                }
            }
            done.store(true, Ordering::Relaxed);
            assert_eq!(lost, None, "the aligned writer's bytes were lost");
        });
    });
}

#[test]
fn another_device_node_is_the_same_device() {
    let Some(device) = Device::new(512) else { return };
    let link = device.backing.with_file_name("link");
    std::os::unix::fs::symlink(&device.node, &link).expect("a link");
    let by_link = FileStorage::open(&link, Access::default()).expect("an open");
    let by_name = FileStorage::open(&device.node, Access::default()).expect("an open");
    assert_eq!(by_link.identity(), by_name.identity());
    let file = FileStorage::open(&device.backing, Access::default()).expect("an open");
    assert_ne!(file.identity(), by_name.identity());
}

/// What clears it gives it a new file. The device, of which the name is others', is not removed.
#[test]
fn a_bitmap_leaves_its_device_there() {
    let Some(device) = Device::new(512) else { return };
    let descriptor = device.backing.with_file_name("disk.qbm");
    let on_device = device.backing.with_file_name("disk-b.bitmap");
    let options = CreateOptions::new().size(SIZE);
    options.create(&descriptor).expect("a disk");
    let disk = OpenOptions::new().open(&descriptor).expect("an open");
    disk.bitmap_add("b", AddBitmap::default()).expect("a bitmap");
    disk.close().expect("a close");
    std::fs::remove_file(&on_device).expect("its file");
    std::os::unix::fs::symlink(&device.node, &on_device).expect("a link");
    let disk = OpenOptions::new().open(&descriptor).expect("an open");
    disk.bitmap_set("b", 0, SIZE).expect("bits");
    disk.bitmap_clear("b").expect("new bits");
    disk.close().expect("a close");
    assert_eq!(std::fs::read_link(&on_device).expect("the link"), device.node);
    assert!(contents(&device.node).iter().any(|byte| *byte != 0));
    let disk = OpenOptions::new().open(&descriptor).expect("an open");
    assert_eq!(disk.bitmap_count("b").expect("a count"), 0);
    disk.bitmap_remove("b").expect("no bitmap");
}

/// That is what lets syncs of one image run side by side (A2). The kernel, not this library, is under test.
#[test]
fn of_bytes_that_are_lost_each_open_file_is_told() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let full = Mounted::new(
        &["-t", "tmpfs", "-o", "size=1M", "tmpfs"].map(AsRef::as_ref),
        dir.path(),
    );
    let Ok(full) = full.map_err(skipped) else { return };
    let backing = full.folder().join("backing");
    let file = File::create(&backing).expect("a file");
    file.set_len(SIZE).expect("a length");
    let Ok(device) = Loop::new(&backing, &[]).map_err(skipped) else {
        return;
    };
    let access = Access {
        write: true,
        direct: false,
    };
    let file = FileStorage::open(device.device(), access).expect("the device opens");
    let apart = file.sync_apart().expect("the device, once more");
    assert_eq!(apart.identity(), file.identity());
    // There is no room for these.
    write_slice(&file, &vec![1; 4 << 20], 0).expect("a write to the page cache");
    apart.sync(SyncMode::Data).expect_err("what is lost");
    file.sync(SyncMode::Data).expect_err("the same");
    file.sync(SyncMode::Data).expect("nobody is told twice");
    let late = file.sync_apart().expect("the device, once more");
    late.sync(SyncMode::Data).expect("nor whoever comes late");
}
