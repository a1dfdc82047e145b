//! Overlays beside a qcow2 with the same backing: in imago, the Rust library, and in QEMU's block layer (`qemu-img bench`).
//!
//! ```text
//! cargo bench --bench peers [-- FOLDER ...]
//! ```
//!
//! 64 KiB granules and clusters on a dense raw base, everything in the page cache, one thread, one request at a time, in
//! strides of 68 KiB. The shared library stands for libqbm. Folders default to a tmpfs and the build's.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that cannot run says why and stops"
)]

mod common;
#[path = "common/peers.rs"]
mod peers;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Instant;

use common::{Library, OpenDisk, bare_read, bare_write};
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};
use peers::{QemuBench, figures, in_turn, said};
use qbm::{CreateOptions, Disk, Format, WriteFlags};

const LENGTH: u64 = 64 << 20;
const GRANULE: u64 = 64 << 10;

/// A kind of work.
#[derive(Clone, Copy)]
struct Work {
    name: &'static str,
    write: bool,
    size: usize,
    step: u64,
    count: u32,
    /// Which granules the overlay has.
    has: fn(u64) -> bool,
    /// The file that the bare calls go to: where the bytes are.
    bare: &'static str,
    /// The images are made anew for each round: the writes are the first ones.
    first: bool,
}

const READ: Work = Work {
    name: "read of 4 KiB, allocated",
    write: false,
    size: 4096,
    step: GRANULE + 4096,
    count: 20_000,
    has: |_| true,
    bare: "disk-data.img",
    first: false,
};

const FIRST: Work = Work {
    name: "first write of 64 KiB",
    write: true,
    size: 65536,
    step: GRANULE,
    count: 1024,
    has: |_| false,
    bare: "bare.img",
    first: true,
};

const WORKS: [Work; 6] = [
    READ,
    Work {
        name: "read of 4 KiB, in the backing",
        has: |_| false,
        bare: "base.img",
        ..READ
    },
    Work {
        name: "read of 4 KiB, every other granule",
        has: |index| index.is_multiple_of(2),
        bare: "base.img",
        ..READ
    },
    Work {
        name: "write of 4 KiB, allocated",
        write: true,
        ..READ
    },
    FIRST,
    Work {
        name: "first write of 4 KiB",
        size: 4096,
        ..FIRST
    },
];

/// Both overlays on one base, with the granules that the work wants, and a sparse file.
fn images(folder: &Path, work: Work) {
    let path = |name: &str| folder.join(name);
    if !path("base.img").exists() {
        let bytes = vec![1u8; usize::try_from(LENGTH).expect("a length")];
        std::fs::write(path("base.img"), bytes).expect("a base");
    }
    for name in [
        "disk.qbm",
        "disk-data.img",
        "disk-allocation.bitmap",
        "disk.state",
        "disk.qcow2",
        "bare.img",
    ] {
        let _ = std::fs::remove_file(path(name));
    }
    File::create(path("bare.img"))
        .and_then(|it| it.set_len(LENGTH))
        .expect("a sparse file");
    CreateOptions::new()
        .backing("base.img", Format::Raw)
        .create(path("disk.qbm"))
        .expect("an overlay");
    let qcow2 = path("disk.qcow2");
    let qcow2_name = qcow2.to_str().expect("a name");
    let args = [
        "create", "-q", "-f", "qcow2", "-b", "base.img", "-F", "raw", qcow2_name,
    ];
    said("qemu-img", &args).expect("qemu-img create");
    let disk = Disk::open(path("disk.qbm")).expect("it opens");
    let peer = imago(&qcow2);
    let granule = vec![2u8; usize::try_from(GRANULE).expect("a granule")];
    for at in (0..LENGTH / GRANULE)
        .filter(|it| (work.has)(*it))
        .map(|it| it * GRANULE)
    {
        disk.write(&granule, at, WriteFlags::empty()).expect("written");
        peer.write(&granule[..], at).expect("written");
    }
    disk.close().expect("it closes");
    peer.flush().expect("flushed");
}

fn imago(image: &Path) -> FormatAccess<imago::file::File> {
    let builder = Qcow2::<imago::file::File>::builder_path(image).write(true);
    let image = builder.open(PermissiveImplicitOpenGate::default());
    FormatAccess::new(image.expect("imago opens it"))
}

/// What does the work, in a column of its own.
enum Engine<'l> {
    Bare(File),
    Ours(OpenDisk<'l>),
    Imago(Box<FormatAccess<imago::file::File>>),
    Qemu,
}

impl<'l> Engine<'l> {
    fn open(number: usize, library: &'l Library, folder: &Path, work: Work) -> Self {
        match number {
            0 => {
                let file = File::options()
                    .read(true)
                    .write(true)
                    .open(folder.join(work.bare));
                Self::Bare(file.expect("a file"))
            }
            1 => Self::Ours(library.open(&folder.join("disk.qbm"))),
            2 => Self::Imago(Box::new(imago(&folder.join("disk.qcow2")))),
            _ => Self::Qemu,
        }
    }

    /// Microseconds a request.
    fn run(&self, folder: &Path, work: Work) -> f64 {
        if let Self::Qemu = self {
            let bench = QemuBench {
                image: &folder.join("disk.qcow2"),
                format: "qcow2",
                write: work.write,
                flush: false,
                size: work.size,
                step: work.step,
                count: work.count,
            };
            return bench.run();
        }
        let mut buf = vec![0x5au8; work.size];
        if work.first && work.write {
            // The very first change of a disk marks it unclean, which costs a sync.
            self.one(work, &mut buf, LENGTH - GRANULE);
        }
        let begun = Instant::now();
        for number in 0..u64::from(work.count) {
            self.one(work, &mut buf, number * work.step % LENGTH);
        }
        begun.elapsed().as_secs_f64() * 1e6 / f64::from(work.count)
    }

    fn one(&self, work: Work, buf: &mut [u8], at: u64) {
        match (self, work.write) {
            (Self::Bare(file), false) => bare_read(file.as_raw_fd(), buf, at),
            (Self::Bare(file), true) => bare_write(file.as_raw_fd(), buf, at),
            (Self::Ours(disk), false) => disk.read(buf, at),
            (Self::Ours(disk), true) => disk.write(buf, at),
            (Self::Imago(image), false) => image.read(buf, at).expect("a read"),
            (Self::Imago(image), true) => image.write(&*buf, at).expect("a write"),
            (Self::Qemu, _) => {}
        }
    }
}

fn main() {
    let library = Library::load();
    if said("qemu-img", &["--version"]).is_none() {
        println!("no qemu-img: nothing to compare with");
        return;
    }
    println!("medians of {} rounds in turn, µs a request", peers::ROUNDS);
    let columns = ["bare", "qbm", "imago", "QEMU"].map(|it| format!("{it:>9}"));
    println!("{:<24} {:<36} {}", "folder", "", columns.join(" "));
    for folder in &common::folders() {
        for work in WORKS {
            let dir = tempfile::tempdir_in(folder).expect("a folder to work in");
            let dir = dir.path();
            if !work.first {
                images(dir, work);
            }
            let medians: [f64; 4] = in_turn(|number| {
                if work.first {
                    images(dir, work);
                }
                Engine::open(number, &library, dir, work).run(dir, work)
            });
            println!("{:<24} {:<36} {}", folder.display(), work.name, figures(&medians));
        }
    }
}
