//! Flushes beside bare `fdatasync` on the same raw file, in one run; and the first pass over a large sparse disk.
//!
//! ```text
//! cargo bench --bench flush [-- FOLDER ...]
//! ```
//!
//! The disk has two recording bitmaps, all of whose bits are set: this is the steady state, where no region is active
//! and nothing is to be retired. The last part is the opposite, writes of 4 KiB at random to 100 GiB where nothing was
//! written before: each first write to a region waits until the state file has noted the region durably. Between them
//! stands what QEMU does of the same: `qemu-img bench`, which is QEMU's block layer in one process, on a raw file, on a
//! qcow2 and on a qcow2 with two persistent bitmaps, all of which have every byte allocated. Folders default to a tmpfs and
//! the build's.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that cannot run says why and stops"
)]

mod common;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use common::{Library, OpenDisk, Random, Side, bare_flush, bare_write, batch, on_threads};
use qbm::{AddBitmap, CreateOptions, Disk};

const BLOCK: u64 = 4096;
const BYTES: [u8; 4096] = [0x5a; 4096];
const LENGTH: u64 = 64 << 20;
const LARGE: u64 = 100 << 30;
/// Of the large disk, as the default is.
const REGION: u64 = 64 << 20;

#[derive(Clone, Copy)]
struct Work {
    name: &'static str,
    writes: bool,
    threads: u64,
    batch: u64,
    rounds: usize,
}

const WORKS: [Work; 4] = [
    Work {
        name: "flush",
        writes: false,
        threads: 1,
        batch: 100,
        rounds: 101,
    },
    Work {
        name: "flush",
        writes: false,
        threads: 8,
        batch: 100,
        rounds: 25,
    },
    Work {
        name: "4 KiB and flush",
        writes: true,
        threads: 1,
        batch: 20,
        rounds: 61,
    },
    Work {
        name: "4 KiB and flush",
        writes: true,
        threads: 8,
        batch: 10,
        rounds: 25,
    },
];

fn create(folder: &Path, options: &CreateOptions) -> PathBuf {
    let path = folder.join("disk.qbm");
    options.create(&path).expect("a disk");
    let disk = Disk::open(&path).expect("it opens");
    for name in ["b0", "b1"] {
        disk.bitmap_add(name, AddBitmap::default()).expect("a bitmap");
    }
    disk.close().expect("it closes");
    path
}

fn steady(library: &Library, folder: &Path, work: Work) {
    let dir = tempfile::tempdir_in(folder).expect("a folder to work in");
    let image = dir.path().join("disk.raw");
    std::fs::write(&image, vec![1; usize::try_from(LENGTH).expect("a length")]).expect("an image");
    let path = create(dir.path(), &CreateOptions::new().image("disk.raw"));
    let disk = Disk::open(&path).expect("it opens");
    for name in ["b0", "b1"] {
        disk.bitmap_set(name, 0, LENGTH).expect("all bits");
    }
    disk.close().expect("it closes");
    let disk = library.open(&path);
    let file = File::options().write(true).open(&image).expect("the image");
    let fd = file.as_raw_fd();
    // The first write marks the disk as in use.
    disk.write(&BYTES, 0);
    disk.flush();
    let rounds = on_threads(work.threads, |turns| {
        let mut random = Random::new(turns.thread, BLOCK, LENGTH);
        let mut rounds = Vec::new();
        for number in 0..work.rounds {
            rounds.push(turns.round(number, |side| {
                let offsets: Vec<u64> = (0..work.batch).map(|_| random.next()).collect();
                batch(offsets.into_iter(), |at| {
                    one(side, work.writes, &disk, fd, at);
                })
            }));
        }
        rounds
    });
    println!(
        "{:<24} {:<16} {} {}",
        folder.display(),
        work.name,
        work.threads,
        common::columns(&rounds)
    );
}

fn one(side: Side, writes: bool, disk: &OpenDisk<'_>, fd: i32, at: u64) {
    match side {
        Side::Bare => {
            if writes {
                bare_write(fd, &BYTES, at);
            }
            bare_flush(fd);
        }
        Side::Ours => {
            if writes {
                disk.write(&BYTES, at);
            }
            disk.flush();
        }
    }
}

/// Three passes of one write to each region, in a random order: into regions that are not active, then into clean
/// granules of active ones, then into dirty granules.
fn first_pass(library: &Library, folder: &Path) {
    let dir = tempfile::tempdir_in(folder).expect("a folder to work in");
    let path = create(dir.path(), &CreateOptions::new().size(LARGE));
    let bare = File::create_new(dir.path().join("bare")).expect("a sparse file");
    bare.set_len(LARGE).expect("a length");
    let disk = library.open(&path);
    let mut order: Vec<u64> = (0..LARGE / REGION).map(|region| region * REGION).collect();
    let mut random = Random::new(1, 1, order.len() as u64);
    for index in 0..order.len() {
        order.swap(index, usize::try_from(random.next()).expect("an index"));
    }
    for (pass, within) in [
        ("region not active", 0),
        ("granule clean", REGION / 2),
        ("granule dirty", REGION / 2 + BLOCK),
    ] {
        let offsets = || order.iter().map(|region| region + within);
        let theirs = batch(offsets(), |at| bare_write(bare.as_raw_fd(), &BYTES, at));
        let ours = batch(offsets(), |at| disk.write(&BYTES, at));
        println!(
            "{:<24} {pass:<18} {:>9.1} {:>9.1} {:>9.1}",
            folder.display(),
            theirs / 1e3,
            ours / 1e3,
            (ours - theirs) / 1e3
        );
    }
}

/// So many writes of 4 KiB, each with a flush, so far apart.
const COUNT: u32 = 800;
const STEP: u64 = (1 << 20) + BLOCK;
/// So many rounds of each in turn.
const ROUNDS: usize = 9;

/// What writes and flushes, in a column of its own.
#[derive(Clone, Copy)]
enum Engine<'e> {
    Bare(&'e File),
    Ours(&'e OpenDisk<'e>),
    Qemu(&'e Path, &'static str),
}

impl Engine<'_> {
    /// Microseconds for a write and its flush, with `depth` of them at once.
    fn run(self, depth: u64) -> f64 {
        if let Self::Qemu(image, format) = self {
            return qemu_bench(image, format, depth) * 1e6 / f64::from(COUNT);
        }
        let begun = std::time::Instant::now();
        std::thread::scope(|scope| {
            for thread in 0..depth {
                scope.spawn(move || {
                    for number in (thread..u64::from(COUNT)).step_by(usize::try_from(depth).expect("a count"))
                    {
                        let at = number * STEP % LENGTH;
                        match self {
                            Self::Bare(file) => {
                                bare_write(file.as_raw_fd(), &BYTES, at);
                                bare_flush(file.as_raw_fd());
                            }
                            Self::Ours(disk) => {
                                disk.write(&BYTES, at);
                                disk.flush();
                            }
                            Self::Qemu(..) => {}
                        }
                    }
                });
            }
        });
        begun.elapsed().as_secs_f64() * 1e6 / f64::from(COUNT)
    }
}

fn qemu_img(args: &[&str]) -> Option<String> {
    let done = std::process::Command::new("qemu-img").args(args).output().ok()?;
    done.status
        .success()
        .then(|| String::from_utf8_lossy(&done.stdout).into_owned())
}

/// The seconds that it says it took, without opening and closing the image.
fn qemu_bench(image: &Path, format: &str, depth: u64) -> f64 {
    let image = image.to_str().expect("a name");
    let (count, depth, step) = (COUNT.to_string(), depth.to_string(), STEP.to_string());
    let said = qemu_img(&[
        "bench",
        "-w",
        "--flush-interval=1",
        "-s",
        "4096",
        "-f",
        format,
        "-c",
        &count,
        "-d",
        &depth,
        "-S",
        &step,
        image,
    ]);
    let said = said.expect("qemu-img bench");
    let seconds = said
        .split("completed in ")
        .nth(1)
        .and_then(|it| it.split(' ').next());
    seconds.and_then(|it| it.parse().ok()).expect("what it took")
}

fn beside_qemu(library: &Library, folder: &Path) {
    let dir = tempfile::tempdir_in(folder).expect("a folder to work in");
    let bytes = vec![1; usize::try_from(LENGTH).expect("a length")];
    let at = |name: &str| dir.path().join(name);
    for name in ["disk.raw", "bare.raw", "qemu.raw"] {
        std::fs::write(at(name), &bytes).expect("an image");
    }
    let path = create(dir.path(), &CreateOptions::new().image("disk.raw"));
    let name = |it: &Path| it.to_str().expect("a name").to_owned();
    for image in ["plain.qcow2", "bitmaps.qcow2"] {
        let (from, to) = (name(&at("bare.raw")), name(&at(image)));
        qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &from, &to]).expect("qemu-img convert");
    }
    for bitmap in ["b0", "b1"] {
        let image = name(&at("bitmaps.qcow2"));
        qemu_img(&["bitmap", "--add", &image, bitmap]).expect("qemu-img bitmap");
    }
    let bare = File::options()
        .write(true)
        .open(at("bare.raw"))
        .expect("the image");
    let (disk, raw) = (library.open(&path), at("qemu.raw"));
    let (plain, bitmaps) = (at("plain.qcow2"), at("bitmaps.qcow2"));
    let engines = [
        Engine::Bare(&bare),
        Engine::Ours(&disk),
        Engine::Qemu(&raw, "raw"),
        Engine::Qemu(&plain, "qcow2"),
        Engine::Qemu(&bitmaps, "qcow2"),
    ];
    for depth in [1, 8] {
        // The first round sets bits and fills caches.
        for engine in engines {
            engine.run(depth);
        }
        let mut took = [const { Vec::new() }; 5];
        for round in 0..ROUNDS {
            for turn in 0..engines.len() {
                let number = (turn + round) % engines.len();
                took[number].push(engines[number].run(depth));
            }
        }
        let medians = took.map(|mut it: Vec<f64>| {
            it.sort_by(f64::total_cmp);
            format!("{:>9.1}", it[it.len() / 2])
        });
        println!("{:<24} {depth}  {}", folder.display(), medians.join(" "));
    }
}

fn main() {
    let library = Library::load();
    println!(
        "At random in {} MiB, two recording bitmaps, bits set; medians of rounds, in turn",
        LENGTH >> 20
    );
    println!("{:<24} {:<16} t {}", "folder", "", common::HEADINGS);
    for folder in &common::folders() {
        for work in WORKS {
            steady(&library, folder, work);
        }
    }
    if qemu_img(&["--version"]).is_some() {
        println!("\n4 KiB and flush beside QEMU, two bitmaps; medians of {ROUNDS} rounds in turn, µs");
        let engines = ["bare", "qbm", "qemu raw", "qcow2", "+ bitmaps"].map(|it| format!("{it:>9}"));
        println!(
            "{:<24} at once {}",
            "folder",
            engines.join(" ").trim_start_matches(' ')
        );
        for folder in &common::folders() {
            beside_qemu(&library, folder);
        }
    } else {
        println!("\nno qemu-img: nothing to compare with");
    }
    println!(
        "\n4 KiB to each of {} regions of a new sparse disk, two recording bitmaps; µs a write",
        LARGE / REGION
    );
    println!(
        "{:<24} {:<18} {:>9} {:>9} {:>9}",
        "folder", "", "bare", "qbm", "more"
    );
    for folder in &common::folders() {
        first_pass(&library, folder);
    }
}
