//! A folder, the programs that make images in it, and what they say of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use qbm::{CreateOptions, Disk, Format, Granularity, OpenOptions, StatusFlags};
use serde_json::Value;
use tempfile::TempDir;

use crate::skip::skipped;

pub const KIB: u64 = 1024;
pub const MIB: u64 = 1024 * KIB;

/// A folder.
pub struct Room(TempDir);

impl Room {
    /// `None`, with a line that says so, where QEMU's programs are missing.
    pub fn new() -> Option<Self> {
        let have = |program: &str| Command::new(program).arg("--version").output().is_ok();
        if !have("qemu-img") || !have("qemu-io") {
            skipped("qemu-img and qemu-io are not installed, so no image of another format was read");
            return None;
        }
        Some(Self(tempfile::tempdir().expect("a folder")))
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a program here; what it said.
    pub fn run(&self, program: &str, args: &[&str]) -> Vec<u8> {
        let output = Command::new(program)
            .args(args)
            .current_dir(self.0.path())
            .output()
            .expect("it starts");
        assert!(
            output.status.success(),
            "{program} {args:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    }

    /// `qemu-img`, its arguments in one string.
    pub fn img(&self, args: &str) {
        self.run("qemu-img", &args.split(' ').collect::<Vec<_>>());
    }

    /// The commands of `qemu-io`, one each.
    pub fn io(&self, image: &str, format: &str, commands: &[&str]) {
        let mut args = vec!["-f", format];
        for command in commands {
            args.extend(["-c", command]);
        }
        args.push(image);
        let said = self.run("qemu-io", &args);
        let said = String::from_utf8_lossy(&said);
        assert!(!said.contains("rror"), "qemu-io {args:?}: {said}");
    }

    /// The bytes that QEMU shows of an image.
    pub fn content(&self, image: &str, format: &str) -> Vec<u8> {
        self.img(&format!("convert -f {format} -O raw {image} content.raw"));
        std::fs::read(self.path("content.raw")).expect("the content")
    }

    /// A raw file with data and holes.
    pub fn raw(&self, name: &str, length: u64) {
        let mut bytes: Vec<u8> = (0..length)
            .map(|at| u8::try_from((at * 7 + at / 512) % 255 + 1).expect("a byte"))
            .collect();
        for hole in bytes.chunks_mut(192 << 10).skip(1).step_by(3) {
            hole.fill(0);
        }
        std::fs::write(self.path(name), bytes).expect("written");
        self.img(&format!("convert -f raw -O raw -S 4k {name} sparse.tmp"));
        std::fs::rename(self.path("sparse.tmp"), self.path(name)).expect("renamed");
    }

    /// An empty overlay `top.qbm` over the image; opened.
    pub fn over(&self, image: &str, format: Format) -> Disk {
        self.try_over(image, format).expect("an overlay")
    }

    pub fn try_over(&self, image: &str, format: Format) -> qbm::Result<Disk> {
        for name in ["top.qbm", "top-data.img", "top-allocation.bitmap", "top.state"] {
            let _ = std::fs::remove_file(self.path(name));
        }
        CreateOptions::new()
            .backing(image, format)
            .granularity(Granularity::new(4096).expect("a granularity"))
            .create(self.path("top.qbm"))?;
        OpenOptions::new().open(self.path("top.qbm"))
    }

    /// What QEMU says of what is where; of the whole chain.
    pub fn map(&self, image: &str, format: &str) -> Vec<Status> {
        Self::of_map(&self.run("qemu-img", &["map", "-f", format, "--output", "json", image]))
    }

    /// The same of an image that is in use.
    pub fn map_unlocked(&self, image: &str, format: &str) -> Vec<Status> {
        Self::of_map(&self.run(
            "qemu-img",
            &["map", "-U", "-f", format, "--output", "json", image],
        ))
    }

    fn of_map(said: &[u8]) -> Vec<Status> {
        let Value::Array(extents) = serde_json::from_slice(said).expect("JSON") else {
            panic!("no array");
        };
        let number = |extent: &Value, key: &str| extent[key].as_u64();
        let runs = extents.iter().map(|extent| Status {
            start: number(extent, "start").expect("a start"),
            length: number(extent, "length").expect("a length"),
            depth: u32::try_from(number(extent, "depth").expect("a depth")).expect("a small one"),
            zero: extent["zero"] == true,
            data: extent["data"] == true && extent["zero"] != true,
            offset: number(extent, "offset").filter(|_| extent["data"] == true),
        });
        merged(runs)
    }
}

/// A run of bytes with one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub start: u64,
    pub length: u64,
    pub depth: u32,
    pub zero: bool,
    pub data: bool,
    pub offset: Option<u64>,
}

fn merged(runs: impl Iterator<Item = Status>) -> Vec<Status> {
    let mut whole: Vec<Status> = Vec::new();
    for next in runs {
        if let Some(last) = whole.last_mut() {
            let same = (last.depth, last.zero, last.data) == (next.depth, next.zero, next.data);
            let place = match (last.offset, next.offset) {
                (Some(here), Some(there)) => here + last.length == there,
                (None, None) => true,
                _ => false,
            };
            if same && place {
                last.length += next.length;
                continue;
            }
        }
        whole.push(next);
    }
    whole
}

/// What libqbm says; depths as they would be without the disk itself.
pub fn statuses(disk: &Disk) -> Vec<Status> {
    let mut runs = Vec::new();
    let mut at = 0;
    while at < disk.length() {
        let status = disk.block_status(at, disk.length() - at).expect("a status");
        let has = |flag| status.flags.contains(flag);
        runs.push(Status {
            start: at,
            length: status.length,
            depth: status.depth,
            zero: has(StatusFlags::ZERO),
            data: has(StatusFlags::DATA),
            offset: has(StatusFlags::OFFSET_VALID)
                .then_some(status.offset)
                .filter(|_| has(StatusFlags::DATA)),
        });
        at += status.length;
    }
    merged(runs.into_iter())
}

/// All bytes of a disk, read in steps that fit nothing.
pub fn read_all(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(disk.length()).expect("in memory")];
    let mut at = 0;
    for part in bytes.chunks_mut(199 * 1024 + 77) {
        disk.read(part, at).expect("a read");
        at += part.len() as u64;
    }
    bytes
}

/// Fails with the first byte that differs.
#[track_caller]
pub fn assert_same(found: &[u8], expected: &[u8]) {
    let first = found.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(first.map(|at| (at, found[at], expected[at])), None);
    assert_eq!(found.len(), expected.len());
}
