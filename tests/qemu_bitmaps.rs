//! QEMU's dirty bitmaps and libqbm's say the same after the same requests.
//!
//! QEMU keeps its bitmaps in a qcow2 file, libqbm beside a raw one. Each request goes through both; then every bitmap
//! is read out of QEMU as NBD tells it (what backup programs see) and as it lies in the qcow2, and compared.
//!
//! Nothing is aligned for the comparison. QEMU marks the granules that a request touches, for all kinds alike: its
//! qcow2 driver takes requests of any byte offset and length (`request_alignment` is 1 there, unless it encrypts), a
//! write of zeros that unaligned ends split in three is marked as the one request that it was, and so is a discard
//! whose ends give no space back. Only one thing differs: a discard on a disk opened without `discard=unmap` is
//! dropped by QEMU before anything is marked; hence `-d unmap` below.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers beside the tests may fail as loudly as the tests"
)]

mod common;
#[path = "common/nbd.rs"]
mod nbd;
#[path = "common/nbd_bitmaps.rs"]
mod nbd_bitmaps;
#[path = "common/random.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod random;

use std::path::PathBuf;
use std::process::Command;

use common::{have, must};
use qbm::{AddBitmap, CreateOptions, Disk, Granularity, MergeSource, WriteFlags};
use random::Random;
use tempfile::TempDir;

/// A multiple of 512, as all of QEMU's disks are, and of no granularity above.
const LENGTH: u64 = (9 << 20) + 3 * 512;

const GRANULARITIES: [u64; 5] = [512, 4096, 32 << 10, 64 << 10, 1 << 20];

/// What is done to both disks.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Write,
    WriteThrough,
    Zero,
    ZeroUnmap,
    Discard,
}

#[derive(Clone, Copy, Debug)]
struct Request {
    kind: Kind,
    offset: u64,
    len: u64,
}

impl Request {
    /// As qemu-io wants it.
    fn command(self) -> String {
        let verb = match self.kind {
            Kind::Write => "write -q",
            Kind::WriteThrough => "write -q -f",
            Kind::Zero => "write -q -z",
            Kind::ZeroUnmap => "write -q -z -u",
            Kind::Discard => "discard -q",
        };
        format!("{verb} {} {}", self.offset, self.len)
    }

    fn run(self, disk: &Disk) {
        let none = WriteFlags::empty();
        let data = || vec![0xcd; usize::try_from(self.len).expect("a length in memory")];
        match self.kind {
            Kind::Write => disk.write(&data(), self.offset, none),
            Kind::WriteThrough => disk.write(&data(), self.offset, WriteFlags::FUA),
            Kind::Zero => disk.write_zeroes(self.offset, self.len, none),
            Kind::ZeroUnmap => disk.write_zeroes(self.offset, self.len, WriteFlags::MAY_UNMAP),
            Kind::Discard => disk.discard(self.offset, self.len, none),
        }
        .unwrap_or_else(|e| panic!("{self:?}: {e}"));
    }
}

impl Random {
    fn one_of<T: Copy>(&mut self, from: &[T]) -> T {
        let index = self.below(from.len() as u64);
        from[usize::try_from(index).expect("an index")]
    }

    /// Any length and place; often a byte beside a boundary of some granularity, at times up to the disk's end.
    fn request(&mut self) -> Request {
        let kind = self.one_of(&[
            Kind::Write,
            Kind::Write,
            Kind::WriteThrough,
            Kind::Zero,
            Kind::ZeroUnmap,
            Kind::Discard,
        ]);
        let longest = self.one_of(&[1, 700, 5000, 70_000, 200_000]);
        let len = 1 + self.below(longest);
        let unit = self.one_of(&[1, 1, 512, 4096, 65_536]);
        let near = self.below(LENGTH) / unit * unit;
        let start = match self.below(8) {
            0 => near.saturating_sub(1),
            1 => near.saturating_sub(len),
            2 => near + 1,
            3 => LENGTH - len,
            _ => near,
        };
        let len = match self.below(4) {
            0 => len.next_multiple_of(unit),
            _ => len,
        };
        let start = start.min(LENGTH - 1);
        Request {
            kind,
            offset: start,
            len: len.min(LENGTH - start),
        }
    }
}

/// The same disk twice, with the same bitmaps.
struct Pair {
    dir: TempDir,
    qcow2: PathBuf,
    qbm: PathBuf,
}

impl Pair {
    /// Both disks, without bitmaps; nothing where QEMU is missing.
    fn new() -> Option<Self> {
        for program in ["qemu-img", "qemu-io", "qemu-nbd", "nbdinfo"] {
            if !have(program) {
                eprintln!("SKIPPED: {program} is not installed, so no bitmap was compared with QEMU's");
                return None;
            }
        }
        let dir = tempfile::tempdir().expect("a folder");
        let (qcow2, qbm) = (dir.path().join("disk.qcow2"), dir.path().join("disk.qbm"));
        must(
            Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2"])
                .arg(&qcow2)
                .arg(LENGTH.to_string()),
        );
        CreateOptions::new().size(LENGTH).create(&qbm).expect("a disk");
        Some(Self { dir, qcow2, qbm })
    }

    /// `qemu-img bitmap` with these actions, on one bitmap of the qcow2.
    fn qemu_bitmap(&self, actions: &[&str], name: &str) {
        let mut run = Command::new("qemu-img");
        must(run.arg("bitmap").args(actions).arg(&self.qcow2).arg(name));
    }

    fn add(&self, name: &str, granularity: u64) {
        self.qemu_bitmap(&["--add", "-g", &granularity.to_string()], name);
        let options = AddBitmap {
            granularity: Granularity::new(granularity).expect("a granularity"),
            ..AddBitmap::default()
        };
        let disk = Disk::open(&self.qbm).expect("it opens");
        disk.bitmap_add(name, options).expect("a bitmap");
        disk.close().expect("it closes");
    }

    /// Does the same to both.
    fn run(&self, requests: &[Request]) {
        let mut run = Command::new("qemu-io");
        run.args(["-f", "qcow2", "-d", "unmap"]);
        for request in requests {
            run.args(["-c", &request.command()]);
        }
        let said = must(run.arg(&self.qcow2));
        assert!(!said.contains("failed"), "{said}");
        let disk = Disk::open(&self.qbm).expect("it opens");
        for request in requests {
            request.run(&disk);
        }
        disk.close().expect("it closes");
    }

    /// Compares the bitmaps `names`, as both sides kept them.
    fn assert_same(&self, names: &[String]) {
        let disk = Disk::open(&self.qbm).expect("it opens");
        let server = nbd_bitmaps::serve(self.dir.path(), &self.qcow2, names);
        for name in names {
            let (ours, theirs) = (dirty(&disk, name), nbd_bitmaps::dirty(&server, name, LENGTH));
            assert_eq!(ours, theirs, "bitmap {name}: (start, end) of dirty bytes");
            let mut bytes = vec![0; stored(&disk, name)];
            disk.bitmap_serialize(name, 0, &mut bytes).expect("the bytes");
            assert!(
                bytes == qcow2::bitmap(&self.qcow2, name, bytes.len()),
                "bitmap {name}: the serialized bytes differ"
            );
        }
    }
}

fn stored(disk: &Disk, name: &str) -> usize {
    let len = disk.bitmap_serialized_len(name).expect("a length");
    usize::try_from(len).expect("it fits in memory")
}

/// What libqbm calls dirty, as start and end.
fn dirty(disk: &Disk, name: &str) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(run) = disk
        .bitmap_next_dirty(name, at, u64::MAX)
        .expect("the bitmap is read")
    {
        found.push((run.start(), run.end()));
        at = run.end();
    }
    found
}

/// As much of qcow2 as it takes to find a bitmap's bytes: QEMU's docs/interop/qcow2.txt, "Bitmaps extension".
mod qcow2 {
    use std::path::Path;

    const BITMAPS: u32 = 0x2385_2875;
    const END: u32 = 0;
    const HEADER_LENGTH: u64 = 100;
    const CLUSTER_BITS: u64 = 20;
    const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    const ALL_ONES: u64 = 1;
    const IN_USE: u32 = 1;

    struct Image(Vec<u8>);

    impl Image {
        fn bytes<const N: usize>(&self, at: u64) -> [u8; N] {
            let at = usize::try_from(at).expect("an offset");
            self.0[at..at + N].try_into().expect("bytes in the file")
        }

        fn u16(&self, at: u64) -> u16 {
            u16::from_be_bytes(self.bytes(at))
        }

        fn u32(&self, at: u64) -> u32 {
            u32::from_be_bytes(self.bytes(at))
        }

        fn u64(&self, at: u64) -> u64 {
            u64::from_be_bytes(self.bytes(at))
        }

        fn slice(&self, at: u64, len: usize) -> &[u8] {
            let at = usize::try_from(at).expect("an offset");
            &self.0[at..at + len]
        }

        /// Where the bitmap directory is, and how many entries it has.
        fn directory(&self) -> (u64, u32) {
            let mut at = u64::from(self.u32(HEADER_LENGTH));
            loop {
                let (kind, len) = (self.u32(at), self.u32(at + 4));
                assert_ne!(kind, END, "there is no bitmap in the file");
                if kind == BITMAPS {
                    return (self.u64(at + 24), self.u32(at + 8));
                }
                at += 8 + u64::from(len).next_multiple_of(8);
            }
        }

        /// The offset and the entries of the table of bitmap `name`.
        fn table(&self, name: &str) -> (u64, u32) {
            let (mut at, count) = self.directory();
            for _ in 0..count {
                let (size, extra) = (self.u16(at + 18), self.u32(at + 20));
                let its_name = at + 24 + u64::from(extra);
                if self.slice(its_name, usize::from(size)) == name.as_bytes() {
                    assert_eq!(self.u32(at + 12) & IN_USE, 0, "QEMU did not save bitmap {name}");
                    return (self.u64(at), self.u32(at + 8));
                }
                at += (24 + u64::from(extra) + u64::from(size)).next_multiple_of(8);
            }
            panic!("there is no bitmap {name} in the file");
        }
    }

    /// The first `len` bytes of the bitmap `name`; those behind must be zeros.
    pub fn bitmap(path: &Path, name: &str, len: usize) -> Vec<u8> {
        let image = Image(std::fs::read(path).expect("the qcow2 file"));
        let cluster = 1 << image.u32(CLUSTER_BITS);
        let (table, entries) = image.table(name);
        let mut bytes = Vec::new();
        for index in 0..entries {
            let entry = image.u64(table + 8 * u64::from(index));
            match entry & OFFSET {
                0 if entry & ALL_ONES != 0 => bytes.resize(bytes.len() + cluster, 0xff),
                0 => bytes.resize(bytes.len() + cluster, 0),
                at => bytes.extend_from_slice(image.slice(at, cluster)),
            }
        }
        assert!(
            bytes[len..].iter().all(|byte| *byte == 0),
            "bits behind the disk's end"
        );
        bytes.truncate(len);
        bytes
    }
}

fn name_of(granularity: u64) -> String {
    format!("every-{granularity}")
}

/// Both disks with a bitmap of each granularity, and their names.
fn with_all_granularities() -> Option<(Pair, Vec<String>)> {
    let pair = Pair::new()?;
    let names = GRANULARITIES.map(|granularity| {
        let name = name_of(granularity);
        pair.add(&name, granularity);
        name
    });
    Some((pair, names.to_vec()))
}

#[test]
fn random_requests_set_the_same_bits() {
    let Some((pair, names)) = with_all_granularities() else {
        return;
    };
    pair.assert_same(&names);
    let mut random = Random::new(0x9e37_79b9_7f4a_7c15);
    for count in [1, 5, 40, 150] {
        let requests: Vec<Request> = (0..count).map(|_| random.request()).collect();
        pair.run(&requests);
        pair.assert_same(&names);
    }
}

/// Each kind alone: among random requests, one kind's bits may hide behind another's.
#[test]
fn every_kind_of_request_sets_the_same_bits() {
    let Some((pair, names)) = with_all_granularities() else {
        return;
    };
    let kinds = [
        Kind::Write,
        Kind::WriteThrough,
        Kind::Zero,
        Kind::ZeroUnmap,
        Kind::Discard,
    ];
    for kind in kinds {
        let request = |offset, len| Request { kind, offset, len };
        pair.run(&[
            request(0, 1),
            request(511, 2),
            request((1 << 20) - 1, 1),
            request((1 << 20) + 512, 512),
            request((3 << 20) + 4095, 4098),
            request((4 << 20) + 65_536, 65_536),
            request((5 << 20) - 1, (1 << 20) + 2),
            request(LENGTH - 1, 1),
        ]);
        pair.assert_same(&names);
        for name in &names {
            pair.qemu_bitmap(&["--clear"], name);
        }
        let disk = Disk::open(&pair.qbm).expect("it opens");
        for name in &names {
            disk.bitmap_clear(name).expect("it is cleared");
        }
        disk.close().expect("it closes");
        pair.assert_same(&names);
    }
}

#[test]
fn bitmaps_that_are_full_and_bitmaps_that_are_off_agree() {
    let Some((pair, names)) = with_all_granularities() else {
        return;
    };
    let off = name_of(4096);
    pair.qemu_bitmap(&["--disable"], &off);
    let disk = Disk::open(&pair.qbm).expect("it opens");
    disk.bitmap_disable(&off).expect("it is disabled");
    disk.close().expect("it closes");
    pair.run(&[Request {
        kind: Kind::Zero,
        offset: 0,
        len: LENGTH,
    }]);
    pair.assert_same(&names);
    let disk = Disk::open(&pair.qbm).expect("it opens");
    assert_eq!(dirty(&disk, &off), []);
    assert_eq!(dirty(&disk, &names[0]), [(0, LENGTH)]);
}

/// Merging makes the same bits of finer, coarser and equal ones.
#[test]
fn merges_across_granularities_agree() {
    let Some((pair, mut names)) = with_all_granularities() else {
        return;
    };
    let mut random = Random::new(0xd1b5_4a32_d192_ed03);
    let requests: Vec<Request> = (0..6).map(|_| random.request()).collect();
    pair.run(&requests);
    for (target, granularity) in [("fine", 512), ("middle", 32 << 10), ("coarse", 1 << 20)] {
        for source in [512, 32 << 10, 64 << 10] {
            let (name, source) = (format!("{target}-of-{source}"), name_of(source));
            pair.add(&name, granularity);
            pair.qemu_bitmap(&["--merge", &source], &name);
            let disk = Disk::open(&pair.qbm).expect("it opens");
            disk.bitmap_merge(&name, &[MergeSource::Bitmap(&source)])
                .expect("it is merged");
            disk.close().expect("it closes");
            names.push(name);
        }
    }
    pair.assert_same(&names);
}

/// The comparison itself must be able to fail.
#[test]
fn a_bit_that_differs_is_seen() {
    let Some(pair) = Pair::new() else { return };
    let names = ["b".to_owned()];
    pair.add(&names[0], 65_536);
    let disk = Disk::open(&pair.qbm).expect("it opens");
    disk.write(&[7], 70_001, WriteFlags::empty()).expect("a write");
    disk.close().expect("it closes");
    let seen = std::panic::catch_unwind(|| pair.assert_same(&names));
    assert!(seen.is_err());
}
