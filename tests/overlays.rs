//! The same work on a chain of qcow2 overlays by QEMU and on one of qbm overlays by libqbm ends in the same content, and
//! both tools say the same of what is where.

#![allow(
    clippy::expect_used,
    reason = "helpers beside the tests may fail as loudly as the tests"
)]

#[path = "common/random.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod random;
#[path = "common/skip.rs"]
mod skip;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use qbm::{CreateOptions, Disk, Format, Granularity, StatusFlags, WriteFlags};
use random::Random;
use serde_json::Value;
use tempfile::TempDir;

/// QEMU's smallest cluster is 512 bytes, its usual one 64 KiB.
const CLUSTERS: [u64; 3] = [4096, 65536, 1 << 20];
const BASE: u64 = 5 << 20;
const LENGTH: u64 = 8 << 20;

/// One change. Zeros are in whole clusters and so is what lies past the base, for there qcow2 has bits for clusters
/// alone, and a raw file knows holes that are smaller. Past the base there are none: qcow2 allocates a cluster to say
/// what is zero without it, and libqbm does not.
enum Step {
    Write { at: u64, len: u64, byte: u8 },
    Zero { at: u64, len: u64 },
}

fn steps(random: &mut Random, cluster: u64, count: u64) -> Vec<Step> {
    let whole = |random: &mut Random, end: u64| {
        let at = random.below(end / cluster) * cluster;
        let len = (1 + random.below(3)) * cluster;
        (at, len.min(end - at))
    };
    (0..count)
        .map(|_| {
            let byte = u8::try_from(1 + random.below(255)).expect("a byte");
            match random.below(6) {
                0 => {
                    let (at, len) = whole(random, BASE);
                    Step::Zero { at, len }
                }
                1 => {
                    let (at, len) = whole(random, LENGTH);
                    Step::Write { at, len, byte }
                }
                _ => {
                    let at = random.below(BASE);
                    let len = 1 + random.below(3 * cluster);
                    let len = len.min(BASE - at);
                    Step::Write { at, len, byte }
                }
            }
        })
        .collect()
}

struct Room {
    dir: TempDir,
}

impl Room {
    /// A folder with a base image of data with holes, or nothing where QEMU is missing.
    fn new() -> Option<Self> {
        let have = |program: &str| Command::new(program).arg("--version").output().is_ok();
        if !have("qemu-img") || !have("qemu-io") {
            skip::skipped("qemu-img and qemu-io are not installed, so nothing was compared with qcow2");
            return None;
        }
        let dir = tempfile::tempdir().expect("a folder");
        let base = File::create(dir.path().join("base.img")).expect("a file");
        base.set_len(BASE).expect("a length");
        for part in 0..BASE / (256 << 10) {
            if part % 5 != 2 {
                let bytes: Vec<u8> = (0..256u64 << 10)
                    .map(|at| u8::try_from((at * 7 + at / 512 + part) % 255 + 1).expect("a byte"))
                    .collect();
                base.write_all_at(&bytes, part * (256 << 10)).expect("written");
            }
        }
        base.sync_all().expect("synced");
        Some(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, program: &str, args: &[&str]) -> Vec<u8> {
        let output = Command::new(program)
            .args(args)
            .current_dir(self.dir.path())
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && !said.contains("failed"),
            "{program} {args:?}: {said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    }

    /// One more overlay of each kind.
    fn stack(&self, index: u64, cluster: u64, length: u64) {
        let (backing, format, ours) = match index {
            0 => ("base.img".to_owned(), "raw", Format::Raw),
            _ => (format!("{}.qcow2", index - 1), "qcow2", Format::Qbm),
        };
        let options = format!("cluster_size={cluster}");
        let (name, length_text) = (format!("{index}.qcow2"), length.to_string());
        self.run(
            "qemu-img",
            &[
                "create",
                "-q",
                "-f",
                "qcow2",
                "-b",
                &backing,
                "-F",
                format,
                "-o",
                &options,
                &name,
                &length_text,
            ],
        );
        CreateOptions::new()
            .backing(backing.replace("qcow2", "qbm"), ours)
            .granularity(Granularity::new(cluster).expect("a granularity"))
            .size(length)
            .create(self.path(&format!("{index}.qbm")))
            .expect("an overlay");
    }

    fn work(&self, index: u64, steps: &[Step]) {
        let disk = Disk::open(self.path(&format!("{index}.qbm"))).expect("it opens");
        let mut commands = Vec::new();
        for step in steps {
            match *step {
                Step::Write { at, len, byte } => {
                    commands.push(format!("write -q -P {byte:#x} {at} {len}"));
                    let bytes = vec![byte; usize::try_from(len).expect("small")];
                    disk.write(&bytes, at, WriteFlags::empty()).expect("written");
                }
                Step::Zero { at, len } => {
                    // Unmapped: otherwise ext4 may write short runs of zeros as data, which its file then has.
                    commands.push(format!("write -q -z -u {at} {len}"));
                    disk.write_zeroes(at, len, WriteFlags::MAY_UNMAP).expect("zeroed");
                }
            }
        }
        disk.close().expect("it closes");
        let mut args = vec!["-f", "qcow2", "-d", "unmap"];
        for command in &commands {
            args.extend(["-c", command]);
        }
        let name = format!("{index}.qcow2");
        args.push(&name);
        self.run("qemu-io", &args);
    }

    /// What libqbm reads, as a raw file that QEMU compares with the qcow2.
    fn compare(&self, index: u64) {
        let disk = Disk::open(self.path(&format!("{index}.qbm"))).expect("it opens");
        let mut content = vec![0xee; usize::try_from(disk.length()).expect("small")];
        disk.read(&mut content, 0).expect("read");
        std::fs::write(self.path("seen.img"), &content).expect("written");
        let qcow2 = format!("{index}.qcow2");
        self.run(
            "qemu-img",
            &["compare", "-q", "-f", "raw", "-F", "qcow2", "seen.img", &qcow2],
        );
    }

    fn maps_agree(&self, index: u64, cluster: u64) -> usize {
        let (qcow2, qbm) = (format!("{index}.qcow2"), format!("{index}.qbm"));
        let theirs = self.run("qemu-img", &["map", "-f", "qcow2", "--output", "json", &qcow2]);
        let ours = self.run(env!("CARGO_BIN_EXE_qbm"), &["map", "--output", "json", &qbm]);
        let ours = by_clusters(sectors(&ours), cluster, index + 1);
        let theirs = sectors(&theirs);
        assert_eq!(ours.len(), theirs.len());
        let differs = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs);
        assert_eq!(
            differs.map(|at| (at * 512, ours[at], theirs[at])),
            None,
            "the first sector that differs: ours, theirs"
        );
        theirs.chunk_by(|a, b| a == b).count()
    }

    /// On the chain of qcow2 overlays, libqbm and QEMU say the same of where data is, and it is there. How many bytes of
    /// each image were found, from the base on.
    fn data_lies_where_it_is_said(&self, index: u64) -> Vec<u64> {
        let (qcow2, top) = (format!("{index}.qcow2"), self.path(&format!("on-{index}.qbm")));
        CreateOptions::new()
            .backing(&qcow2, Format::Qcow2)
            .create(&top)
            .expect("an overlay");
        let theirs = offsets(&self.run("qemu-img", &["map", "-f", "qcow2", "--output", "json", &qcow2]));
        let disk = qbm::OpenOptions::new()
            .read_only(true)
            .open(&top)
            .expect("it opens");
        let mut found = vec![0; usize::try_from(index).expect("small") + 2];
        let mut at = 0;
        while at < disk.length() {
            let status = disk.block_status(at, disk.length() - at).expect("a status");
            let is_data = status.flags.contains(StatusFlags::DATA);
            let ours = (is_data && status.flags.contains(StatusFlags::OFFSET_VALID)).then_some(status.offset);
            for past in (0..status.length).step_by(512) {
                let sector = usize::try_from((at + past) / 512).expect("small");
                assert_eq!(
                    ours.map(|offset| offset + past),
                    theirs[sector],
                    "sector {sector}"
                );
            }
            if let Some(offset) = ours {
                let layer = disk.layer(status.layer).expect("a layer");
                let mut shown = vec![0; usize::try_from(status.length).expect("small")];
                let mut there = shown.clone();
                disk.read(&mut shown, at).expect("read");
                let file = File::open(&layer.path).expect("it opens");
                file.read_exact_at(&mut there, offset).expect("read");
                assert!(shown == there, "{} bytes at {at}: {status:?}", status.length);
                let from_base = usize::try_from(index + 2 - u64::from(status.layer)).expect("small");
                found[from_base] += status.length;
            }
            at += status.length;
        }
        found
    }
}

/// Where each sector's data is in its file, by QEMU's map.
fn offsets(json: &[u8]) -> Vec<Option<u64>> {
    let list: Vec<Value> = serde_json::from_slice(json).expect("a list");
    let mut offsets = Vec::new();
    for entry in list {
        let length = entry["length"].as_u64().expect("a length");
        let offset = entry["offset"].as_u64().filter(|_| entry["data"] == true);
        offsets.extend(
            (0..length)
                .step_by(512)
                .map(|past| offset.map(|offset| offset + past)),
        );
    }
    offsets
}

/// What a sector is: the depth at which it is, whether it reads as zeros, whether it is data, whether it is anywhere.
type Sector = (u64, bool, bool, bool);

/// A map, sector by sector.
fn sectors(json: &[u8]) -> Vec<Sector> {
    let list: Vec<Value> = serde_json::from_slice(json).expect("a list");
    let mut sectors = Vec::new();
    for entry in list {
        let number = |key: &str| entry[key].as_u64().expect(key);
        let flag = |key: &str| entry[key].as_bool().expect(key);
        assert_eq!(number("start"), sectors.len() as u64 * 512);
        assert_eq!(number("length") % 512, 0);
        let sector = (number("depth"), flag("zero"), flag("data"), flag("present"));
        sectors.extend((0..number("length") / 512).map(|_| sector));
    }
    sectors
}

/// A cluster of a qcow2 is data or zeros as a whole. The image of a qbm overlay is a raw file, where some of a granule
/// that was zeros once can still be a hole when another part of it has been written.
fn by_clusters(mut sectors: Vec<Sector>, cluster: u64, base_depth: u64) -> Vec<Sector> {
    for whole in sectors.chunks_mut(usize::try_from(cluster / 512).expect("small")) {
        let depth = whole[0].0;
        if depth < base_depth && whole.iter().any(|sector| sector.2) {
            whole.fill((depth, false, true, true));
        }
    }
    sectors
}

#[test]
fn qcow2_overlays_by_qemu_and_qbm_overlays_by_libqbm_are_equal() {
    for (round, cluster) in CLUSTERS.into_iter().enumerate() {
        let Some(room) = Room::new() else { return };
        let mut random = Random::new(5 + round as u64);
        let mut extents = 0;
        for index in 0..3 {
            // The middle one is shorter than what is on it.
            room.stack(index, cluster, if index == 1 { 6 << 20 } else { LENGTH });
            room.maps_agree(index, cluster);
            let mut work = steps(&mut random, cluster, 40);
            if index == 1 {
                work.retain(|step| match step {
                    Step::Write { at, len, .. } | Step::Zero { at, len, .. } => at + len <= 6 << 20,
                });
            }
            room.work(index, &work);
            room.compare(index);
            extents += room.maps_agree(index, cluster);
            let found = room.data_lies_where_it_is_said(index);
            // With clusters of 1 MiB, each image hides all that is below it.
            let hidden = if cluster < 1 << 20 { 0 } else { found.len() - 1 };
            assert!(
                found[hidden..].iter().all(|bytes| *bytes > 0),
                "{cluster}: {found:?}"
            );
        }
        // What each has of its own goes into the one below, by both.
        room.run("qemu-img", &["commit", "-q", "-f", "qcow2", "2.qcow2"]);
        room.run(env!("CARGO_BIN_EXE_qbm"), &["commit", "-q", "2.qbm"]);
        room.compare(2);
        room.compare(1);
        assert!(extents > 8, "the maps agree on something: {extents}");
    }
}

/// How this process has the file open, by the kernel's own word.
fn flags_of(path: &Path) -> Vec<i32> {
    let files = std::fs::read_dir("/proc/self/fd").expect("the open files");
    let named = files
        .filter_map(Result::ok)
        .filter(|file| std::fs::read_link(file.path()).is_ok_and(|to| to == path));
    named
        .map(|file| {
            let about = format!("/proc/self/fdinfo/{}", file.file_name().display());
            let about = std::fs::read_to_string(about).expect("facts of a file");
            let flags = about.lines().find_map(|line| line.strip_prefix("flags:"));
            i32::from_str_radix(flags.expect("its flags").trim(), 8).expect("a number")
        })
        .collect()
}

/// The image that a snapshot makes is accessed as the one before it was, and as the disk says.
#[test]
fn a_snapshot_stays_around_the_page_cache() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let folder = dir.path().canonicalize().expect("its path");
    for direct in [false, true] {
        let path = folder.join(format!("{direct}.qbm"));
        CreateOptions::new().size(1 << 20).create(&path).expect("a disk");
        let disk = match qbm::OpenOptions::new().direct(direct).open(&path) {
            Err(error) if direct => {
                skip::skipped(format_args!("snapshots around the page cache: {error}"));
                return;
            }
            opened => opened.expect("it opens"),
        };
        disk.write(&[1; 5000], 100, WriteFlags::empty()).expect("written");
        disk.snapshot(&format!("{direct}-s.qbm"), None)
            .expect("a snapshot");
        disk.write(&[2; 5000], 3000, WriteFlags::empty())
            .expect("written");
        let mut found = vec![0; 9000];
        disk.read(&mut found, 0).expect("read");
        let expected = (0..9000).map(|at| match at {
            3000..8000 => 2,
            100..3000 => 1,
            _ => 0,
        });
        assert!(found.into_iter().eq(expected));
        let layer = disk.layer(0).expect("the image");
        let flags = flags_of(&layer.path);
        assert!(!flags.is_empty(), "{} is open", layer.path.display());
        assert!(
            flags.iter().all(|flags| (flags & libc::O_DIRECT != 0) == direct),
            "{direct}: {flags:?}"
        );
        assert_eq!(disk.info().expect("facts").direct, direct);
    }
}

/// On real files, through the page cache and around it, with dirty bitmaps and resizes, against a plain vector.
#[test]
fn a_chain_of_real_files_reads_as_a_plain_one() {
    for direct in [false, true] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let at = |name: &str| dir.path().join(name);
        let mut content: Vec<u8> = (0..700_001u32).map(|at| at.to_le_bytes()[0] | 1).collect();
        std::fs::write(at("base.img"), &content).expect("a base");
        let mut random = Random::new(0x2545_f491_4f6c_dd1d);
        for (index, granularity) in [4096, 512, 65536].into_iter().enumerate() {
            let (backing, format) = match index {
                0 => ("base.img".to_owned(), Format::Raw),
                _ => (format!("{}.qbm", index - 1), Format::Qbm),
            };
            let path = at(&format!("{index}.qbm"));
            CreateOptions::new()
                .backing(backing, format)
                .granularity(Granularity::new(granularity).expect("a granularity"))
                .create(&path)
                .expect("an overlay");
            // Whatever the image has where no bit is set must never be seen.
            let stale = vec![0xee; content.len()];
            std::fs::write(at(&format!("{index}-data.img")), stale).expect("stale bytes");
            let disk = match qbm::OpenOptions::new().direct(direct).open(&path) {
                Err(error) if direct => {
                    skip::skipped(format_args!("overlays around the page cache: {error}"));
                    return;
                }
                opened => opened.expect("it opens"),
            };
            disk.bitmap_add("b", qbm::AddBitmap::default()).expect("a bitmap");
            for _ in 0..120 {
                let length = content.len() as u64;
                let start = random.below(length);
                let len = (1 + random.below(90_000)).min(length - start);
                let there =
                    usize::try_from(start).expect("small")..usize::try_from(start + len).expect("small");
                match random.below(8) {
                    0 => {
                        content[there].fill(0);
                        disk.discard(start, len, WriteFlags::empty()).expect("discarded");
                    }
                    1 => {
                        content[there].fill(0);
                        disk.write_zeroes(start, len, WriteFlags::empty())
                            .expect("zeroed");
                    }
                    2 => {
                        let length = 500_000 + random.below(400_000);
                        content.resize(usize::try_from(length).expect("small"), 0);
                        disk.truncate(length, qbm::TruncateFlags::SHRINK)
                            .expect("resized");
                    }
                    3 => {
                        let mut read = vec![0; there.len()];
                        disk.read(&mut read, start).expect("read");
                        assert!(read == content[there], "{len} bytes at {start} of {index}");
                    }
                    _ => {
                        content[there.clone()].fill(u8::try_from(1 + random.below(255)).expect("a byte"));
                        disk.write(&content[there], start, WriteFlags::empty())
                            .expect("written");
                    }
                }
            }
            disk.close().expect("it closes");
            let disk = Disk::open(&path).expect("it opens");
            let mut read = vec![0; content.len()];
            disk.read(&mut read, 0).expect("read");
            let first = read.iter().zip(&content).position(|(a, b)| a != b);
            assert_eq!((first, disk.length()), (None, content.len() as u64));
        }
    }
}

/// The comparison itself must be able to fail.
#[test]
fn a_byte_that_differs_is_seen() {
    let Some(room) = Room::new() else { return };
    room.stack(0, 65536, LENGTH);
    let disk = Disk::open(room.path("0.qbm")).expect("it opens");
    disk.write(&[0], 70_001, WriteFlags::empty()).expect("a write");
    disk.close().expect("it closes");
    for compare in [
        |room: &Room| room.compare(0),
        |room: &Room| assert!(room.maps_agree(0, 65536) > 0),
    ] {
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| compare(&room)));
        assert!(seen.is_err());
    }
}

#[test]
fn a_chain_is_told_of_image_by_image() {
    let dir = tempfile::tempdir().expect("a folder");
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_qbm"))
            .args(args)
            .current_dir(dir.path())
            .output()
            .expect("the tool starts");
        (
            String::from_utf8(output.stdout).expect("UTF-8"),
            String::from_utf8(output.stderr).expect("UTF-8"),
        )
    };
    std::fs::write(dir.path().join("base.img"), vec![1; 200_000]).expect("written");
    let (said, _) = run(&["create", "-b", "base.img", "-F", "raw", "-g", "4k", "middle.qbm"]);
    assert_eq!(
        said,
        "created middle.qbm: 195 KiB (200000 bytes), data in middle-data.img\n"
    );
    run(&["create", "-q", "-b", "middle.qbm", "-F", "qbm", "top.qbm", "1M"]);
    let disk = Disk::open(dir.path().join("middle.qbm")).expect("it opens");
    disk.write(&[2; 5000], 4096, WriteFlags::empty())
        .expect("a write");
    disk.close().expect("it closes");

    let (said, complaint) = run(&["info", "--backing-chain", "top.qbm"]);
    assert_eq!(complaint, "");
    let blocks: Vec<&str> = said.split("\n\n").collect();
    assert_eq!(blocks.len(), 3, "{said}");
    for (block, part) in [
        (0, "descriptor: top.qbm\nvirtual size: 1 MiB (1048576 bytes)\n"),
        (
            0,
            "\nbacking file: middle.qbm\nbacking file format: qbm\nallocated: 0 of 16 granules of 64 KiB\n",
        ),
        (
            1,
            "descriptor: middle.qbm\nvirtual size: 195 KiB (200000 bytes)\n",
        ),
        (
            1,
            "\nbacking file: base.img\nbacking file format: raw\nallocated: 2 of 49 granules of 4 KiB\n",
        ),
        (2, "image: base.img (raw)\nvirtual size: 195 KiB (200000 bytes)\n"),
    ] {
        assert!(blocks[block].contains(part), "{said} lacks {part}");
    }
    let (said, _) = run(&["info", "--backing-chain", "--output", "json", "top.qbm"]);
    let list: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(list.as_array().expect("a list").len(), 3);
    assert_eq!(list[0]["backing-filename"], "middle.qbm");
    assert_eq!(list[1]["backing-filename-format"], "raw");
    assert_eq!(list[1]["format-specific"]["data"]["allocation"]["allocated"], 2);
    assert_eq!(list[2]["filename"], "base.img");

    let (said, _) = run(&["map", "top.qbm"]);
    assert_eq!(
        said,
        "Offset          Length          Mapped to       File\n\
         0               0x1000          0               base.img\n\
         0x1000          0x2000          0x1000          middle-data.img\n\
         0x3000          0x2dd40         0x3000          base.img\n"
    );
    for (args, words) in [
        (vec!["create", "-b", "base.img", "new.qbm"], "--backing-format"),
        (
            vec!["create", "-b", "base.img", "-F", "cow", "new.qbm"],
            "it is an unknown format; known are raw, qbm, qcow2 and vmdk",
        ),
        (
            vec!["create", "-b", "base.img", "-F", "qcow2", "new.qbm"],
            "base.img: it is no qcow2 image: it does not begin with QFI",
        ),
        (
            vec!["create", "-b", "base.img", "-F", "raw", "-g", "5k", "new.qbm"],
            "5120 is not a power of two",
        ),
        (vec!["create", "-g", "4k", "new.qbm"], "SIZE"),
    ] {
        let (_, complaint) = run(&args);
        assert!(complaint.contains(words), "{args:?}: {complaint}");
    }
    assert!(!Path::new(&dir.path().join("new.qbm")).exists());
}
