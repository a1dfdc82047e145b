//! Whole images beside qemu-img: convert, compare and commit of data that is dense, sparse or in fragments.
//!
//! ```text
//! cargo bench --bench convert [-- FOLDER ...]
//! ```
//!
//! The tool and qemu-img in turn, each as a process, in the order A B B A and B A A B; the sources are in the page cache.
//! qemu-img convert flushes its target only with `-t writeback`; qbm always does. So it is measured both ways, and the
//! ratio that counts is the one of equal promises. What a run leaves behind is removed, and that synced, before the next.
//! `QBM_BENCH_MIB` is the length of the images, 4096 unless it is set.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that cannot run says why and stops"
)]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use qbm::{CreateOptions, Disk, Format, WriteFlags};

const QBM: &str = env!("CARGO_BIN_EXE_qbm");
const PIECE: u64 = 64 << 10;
const ROUNDS: usize = 3;

/// Which pieces of 64 KiB have data.
#[derive(Clone, Copy)]
struct Layout {
    name: &'static str,
    has: fn(u64) -> bool,
}

const LAYOUTS: [Layout; 3] = [
    Layout {
        name: "dense",
        has: |_| true,
    },
    // 1 MiB of every 10.
    Layout {
        name: "sparse",
        has: |piece| piece % 160 < 16,
    },
    // Every other piece.
    Layout {
        name: "fragments",
        has: |piece| piece.is_multiple_of(2),
    },
];

fn length() -> u64 {
    std::env::var("QBM_BENCH_MIB")
        .ok()
        .and_then(|mib| mib.parse::<u64>().ok())
        .unwrap_or(4096)
        << 20
}

/// Bytes that are no zeros, and no two pieces the same.
fn piece(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..PIECE / 8)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect()
}

fn each_piece(layout: Layout, mut write: impl FnMut(&[u8], u64)) {
    for number in (0..length() / PIECE).filter(|number| (layout.has)(*number)) {
        write(&piece(number), number * PIECE);
    }
}

fn run(program: &str, args: &[&str], folder: &Path) {
    let status = Command::new(program)
        .args(args)
        .current_dir(folder)
        .stdout(Stdio::null())
        .status()
        .expect("it starts");
    assert!(status.success(), "{program} {args:?}");
}

/// Seconds of one run; what it needs is made before, and not timed.
fn timed(prepare: &dyn Fn(), program: &str, args: &[&str], folder: &Path) -> f64 {
    prepare();
    let begun = Instant::now();
    run(program, args, folder);
    begun.elapsed().as_secs_f64()
}

/// One way to do a piece of work.
struct Way<'w> {
    program: &'w str,
    args: &'w [&'w str],
    prepare: &'w dyn Fn(),
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Prints the medians of both in seconds, and how many times as long qemu-img takes.
fn race(folder: &Path, what: &str, layout: &str, ours: &Way<'_>, theirs: &Way<'_>) {
    let once = |way: &Way<'_>| timed(way.prepare, way.program, way.args, folder);
    let (mut mine, mut other, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (mut a, mut b) = (0.0, 0.0);
        for turn in 0..4 {
            let first = turn == 0 || turn == 3;
            if first == (round % 2 == 0) {
                a += once(ours) / 2.0;
            } else {
                b += once(theirs) / 2.0;
            }
        }
        mine.push(a);
        other.push(b);
        ratios.push(b / a);
    }
    println!(
        "{:<12} {what:<34} {layout:<10} qbm {:6.2} s   qemu-img {:6.2} s   {:5.2} times as fast",
        folder.parent().unwrap_or(folder).display(),
        median(mine),
        median(other),
        median(ratios)
    );
}

fn gone(folder: &Path, name: &str) -> impl Fn() {
    let path = folder.join(name);
    let folder = folder.to_owned();
    move || {
        let _ = std::fs::remove_file(&path);
        sync(&folder);
    }
}

/// Space that was given up goes back to the device with the next commit of the file system: not in the time of whoever
/// syncs next.
fn sync(folder: &Path) {
    run("sync", &["-f", "."], folder);
}

fn raw(path: PathBuf, layout: Layout) {
    let file = File::create(path).expect("a file");
    file.set_len(length()).expect("a length");
    each_piece(layout, |bytes, at| file.write_all_at(bytes, at).expect("written"));
    file.sync_all().expect("synced");
}

fn images(folder: &Path, layout: Layout) {
    let dir = tempfile::tempdir_in(folder).expect("a folder to work in");
    let dir = dir.path();
    raw(dir.join("in.img"), layout);
    let prepare = gone(dir, "out.img");
    let ours = Way {
        program: QBM,
        args: &["convert", "-q", "-f", "raw", "in.img", "out.img"],
        prepare: &prepare,
    };
    let flushed = [
        "convert",
        "-t",
        "writeback",
        "-f",
        "raw",
        "-O",
        "raw",
        "in.img",
        "out.img",
    ];
    let plain = ["convert", "-f", "raw", "-O", "raw", "in.img", "out.img"];
    for (what, args) in [
        ("convert", &flushed[..]),
        ("convert, qemu-img without a flush", &plain),
    ] {
        let theirs = Way {
            program: "qemu-img",
            args,
            prepare: &prepare,
        };
        race(dir, what, layout.name, &ours, &theirs);
    }
    run("qemu-img", &plain, dir);
    let args = ["compare", "-f", "raw", "-F", "raw", "in.img", "out.img"];
    let way = |program| Way {
        program,
        args: &args,
        prepare: &|| {},
    };
    race(dir, "compare", layout.name, &way(QBM), &way("qemu-img"));
}

/// Overlays in both formats, with the same in them, on an empty base; committed into it.
fn commit(folder: &Path, layout: Layout) {
    let dir = tempfile::tempdir_in(folder).expect("a folder to work in");
    let dir = dir.path();
    let empty_base = || {
        let base = File::create(dir.join("base.img")).expect("a file");
        base.set_len(length()).expect("a length");
    };
    empty_base();
    CreateOptions::new()
        .backing("base.img", Format::Raw)
        .create(dir.join("top.qbm"))
        .expect("an overlay");
    let disk = Disk::open(dir.join("top.qbm")).expect("it opens");
    each_piece(layout, |bytes, at| {
        disk.write(bytes, at, WriteFlags::empty()).expect("written");
    });
    disk.close().expect("closed");
    let args = ["convert", "-f", "raw", "-O", "qcow2", "top-data.img", "top.qcow2"];
    run("qemu-img", &args, dir);
    let rebase = ["rebase", "-u", "-b", "base.img", "-F", "raw", "top.qcow2"];
    run("qemu-img", &rebase, dir);
    let files = [
        "top-data.img",
        "top-allocation.bitmap",
        "top.state",
        "top.qbm",
        "top.qcow2",
    ];
    std::fs::create_dir(dir.join("kept")).expect("a folder");
    for name in files {
        std::fs::rename(dir.join(name), dir.join("kept").join(name)).expect("renamed");
    }
    let again = |names: &[&str]| {
        empty_base();
        for name in names {
            let kept = format!("kept/{name}");
            run(
                "cp",
                &["--sparse=always", "--preserve=timestamps", &kept, "."],
                dir,
            );
            let file = File::open(dir.join(name)).expect("it opens");
            file.sync_all().expect("synced");
        }
        sync(dir);
    };
    let ours = Way {
        program: QBM,
        args: &["commit", "-q", "top.qbm"],
        prepare: &|| again(&files[..4]),
    };
    let theirs = Way {
        program: "qemu-img",
        args: &["commit", "-q", "-t", "writeback", "top.qcow2"],
        prepare: &|| again(&files[4..]),
    };
    race(dir, "commit", layout.name, &ours, &theirs);
    let prepare = gone(dir, "out.img");
    again(&files);
    let ours = Way {
        program: QBM,
        args: &["convert", "-q", "top.qbm", "out.img"],
        prepare: &prepare,
    };
    let theirs = Way {
        program: "qemu-img",
        args: &["convert", "-t", "writeback", "-O", "raw", "top.qcow2", "out.img"],
        prepare: &prepare,
    };
    race(dir, "convert of an overlay", layout.name, &ours, &theirs);
}

fn main() {
    let folders: Vec<PathBuf> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .map(PathBuf::from)
        .collect();
    let folders = if folders.is_empty() {
        vec![std::env::temp_dir()]
    } else {
        folders
    };
    for folder in &folders {
        for layout in LAYOUTS {
            images(folder, layout);
            commit(folder, layout);
        }
    }
}
