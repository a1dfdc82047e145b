//! Flushes beside bare `fdatasync` on the same raw file, in one run; and the first pass over a large sparse disk.
//!
//! ```text
//! cargo bench --bench flush [-- FOLDER ...]
//! ```
//!
//! The disk has two recording bitmaps, all of whose bits are set: this is the steady state, where no region is active
//! and nothing is to be retired. The last part is the opposite, writes of 4 KiB at random to 100 GiB where nothing was
//! written before: each first write to a region waits until the state file has noted the region durably. Between them
//! stands what QEMU does of the same, on a raw file and on a qcow2 with two persistent bitmaps: in one process
//! (`qemu-img bench`, one write at a time), and behind NBD, where there can be several. Folders default to a tmpfs and the
//! build's.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that cannot run says why and stops"
)]

mod common;
#[path = "common/peers.rs"]
mod peers;

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use common::{Library, OpenDisk, Random, Side, bare_flush, bare_write, batch, on_threads};
use peers::{QemuBench, ROUNDS, figures, in_turn, said};
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
/// What writes and flushes, in a column of its own.
#[derive(Clone, Copy)]
enum Engine<'e> {
    Bare(&'e File),
    Ours(&'e OpenDisk<'e>),
    /// QEMU's block layer in one process, one write at a time.
    Bench(QemuBench<'e>),
    /// The same behind NBD, where fio's threads have a connection each.
    Nbd(&'e Served),
}

impl Engine<'_> {
    /// Microseconds for a write and its flush, on so many threads.
    fn run(self, threads: u32) -> f64 {
        match self {
            Self::Bench(bench) => return bench.run(),
            Self::Nbd(served) => return 1e6 / served.writes_a_second(threads),
            Self::Bare(_) | Self::Ours(_) => {}
        }
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for thread in 0..threads {
                scope.spawn(move || {
                    for number in (thread..COUNT).step_by(threads as usize) {
                        self.one(u64::from(number) * STEP % LENGTH);
                    }
                });
            }
        });
        begun.elapsed().as_secs_f64() * 1e6 / f64::from(COUNT)
    }

    fn one(self, at: u64) {
        match self {
            Self::Bare(file) => {
                bare_write(file.as_raw_fd(), &BYTES, at);
                bare_flush(file.as_raw_fd());
            }
            Self::Ours(disk) => {
                disk.write(&BYTES, at);
                disk.flush();
            }
            Self::Bench(_) | Self::Nbd(_) => {}
        }
    }
}

/// An image that qemu-nbd serves.
struct Served {
    server: Child,
    socket: PathBuf,
}

impl Served {
    fn new(image: &Path, format: &str) -> Self {
        let socket = image.with_extension("socket");
        let server = Command::new("qemu-nbd")
            .args(["-t", "-e", "8", "--cache=writeback", "-f", format, "-k"])
            .args([&socket, image])
            .spawn()
            .expect("qemu-nbd");
        let nbd = Self { server, socket };
        let patience = Instant::now() + Duration::from_secs(10);
        while !nbd.greets() {
            assert!(
                Instant::now() < patience,
                "qemu-nbd does not serve {}",
                image.display()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        nbd
    }

    /// It is ready when it does.
    fn greets(&self) -> bool {
        let greeting = UnixStream::connect(&self.socket).and_then(|mut it| it.read_exact(&mut [0; 8]));
        greeting.is_ok()
    }

    /// By fio, each write with its flush.
    fn writes_a_second(&self, threads: u32) -> f64 {
        let options = [
            format!("--uri=nbd+unix:///?socket={}", self.socket.display()),
            format!("--numjobs={threads}"),
            format!("--number_ios={}", COUNT / threads),
            format!("--size={LENGTH}"),
        ];
        let mut args = vec![
            "--name=x",
            "--ioengine=nbd",
            "--rw=randwrite",
            "--bs=4k",
            "--fsync=1",
            "--thread",
            "--group_reporting",
            "--output-format=json",
        ];
        args.extend(options.iter().map(String::as_str));
        let said = said("fio", &args).expect("fio");
        // Words of its own come first.
        let said = said.find('{').map_or("", |at| &said[at..]);
        let said: serde_json::Value = serde_json::from_str(said).expect("JSON");
        said["jobs"][0]["write"]["iops"]
            .as_f64()
            .expect("writes a second")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// All images have every byte allocated, and two bitmaps if any.
fn beside_qemu(library: &Library, folder: &Path) {
    let dir = tempfile::tempdir_in(folder).expect("a folder to work in");
    let bytes = vec![1; usize::try_from(LENGTH).expect("a length")];
    let at = |name: &str| dir.path().join(name);
    let name = |it: &str| at(it).to_str().expect("a name").to_owned();
    for image in ["disk.raw", "bare.raw", "qemu.raw", "nbd.raw"] {
        std::fs::write(at(image), &bytes).expect("an image");
    }
    for image in ["bench.qcow2", "nbd.qcow2"] {
        let (from, to) = (name("bare.raw"), name(image));
        said("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &from, &to]).expect("qemu-img convert");
        for bitmap in ["b0", "b1"] {
            said("qemu-img", &["bitmap", "--add", &to, bitmap]).expect("qemu-img bitmap");
        }
    }
    let path = create(dir.path(), &CreateOptions::new().image("disk.raw"));
    let bare = File::options()
        .write(true)
        .open(at("bare.raw"))
        .expect("the image");
    let disk = library.open(&path);
    let (raw, qcow2) = (at("qemu.raw"), at("bench.qcow2"));
    let alone = [
        Engine::Bare(&bare),
        Engine::Ours(&disk),
        Engine::Bench(bench(&raw, "raw")),
        Engine::Bench(bench(&qcow2, "qcow2")),
    ];
    race(folder, "qemu-img bench", 1, alone);
    if said("fio", &["--enghelp=nbd"]).is_none() {
        return println!("no fio with NBD: nothing to compare threads with");
    }
    let (raw, qcow2) = (
        Served::new(&at("nbd.raw"), "raw"),
        Served::new(&at("nbd.qcow2"), "qcow2"),
    );
    let served = [
        Engine::Bare(&bare),
        Engine::Ours(&disk),
        Engine::Nbd(&raw),
        Engine::Nbd(&qcow2),
    ];
    for threads in [1, 8] {
        race(folder, "qemu-nbd, fio", threads, served);
    }
}

fn bench<'a>(image: &'a Path, format: &'a str) -> QemuBench<'a> {
    QemuBench {
        image,
        format,
        write: true,
        flush: true,
        size: BYTES.len(),
        step: STEP,
        count: COUNT,
    }
}

fn race(folder: &Path, qemu: &str, threads: u32, engines: [Engine<'_>; 4]) {
    let medians: [f64; 4] = in_turn(|number| engines[number].run(threads));
    println!(
        "{:<24} {qemu:<16} {threads} {}",
        folder.display(),
        figures(&medians)
    );
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
    if said("qemu-img", &["--version"]).is_some() {
        println!("\n4 KiB and flush beside QEMU, two bitmaps; medians of {ROUNDS} rounds in turn, µs");
        let engines = ["bare", "qbm", "raw", "qcow2"].map(|it| format!("{it:>9}"));
        println!("{:<24} {:<16} t {}", "folder", "QEMU by", engines.join(" "));
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
