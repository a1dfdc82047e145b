//! What the bitmaps do a second, beside `memcpy` of as many bytes in the same run.
//!
//! ```text
//! cargo bench --bench bits [-- FOLDER ...]
//! ```
//!
//! The bits of one tebibyte in 64 KiB granules, laid out in several ways. Each figure is the median of several rounds,
//! in GB of bitmap a second, and as a share of memcpy's rate; where the work goes with the runs that are found and not
//! with the bytes, nanoseconds a run stand beside it. `load` and `save` are those of a bitmap file in FOLDER (a tmpfs
//! and the build's unless others are given), which is in the page cache; a save ends with fdatasync. `next_dirty` is
//! that of an open disk, a call for each run, as a backup makes them; the lines above it are the bit store's alone.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that cannot run says why and stops"
)]

mod common;

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use qbm::bitmap::{BitmapFile, Bits};
use qbm::storage::{Folder, HostFolder, Role};
use qbm::{
    AddBitmap, BitmapContent, BitmapPolicy, CreateOptions, Disk, Granularity, GranuleIndex, GranuleRange,
    Result,
};

/// One tebibyte of 64 KiB granules: 2 MiB of bits.
const BITS: u64 = 1 << 24;
/// One pebibyte.
const HUGE: u64 = 1 << 34;
const ROUNDS: usize = 31;
/// Single looks in a round.
const LOOKS: u64 = 1 << 16;

fn main() -> Result<()> {
    let memcpy = memcpy();
    println!(
        "memcpy of {} KiB: {:.1} GB/s",
        BITS / 8 / 1024,
        rate(BITS, memcpy)
    );
    println!();
    println!(
        "{:<46}{:>12}{:>12}{:>10}{:>12}",
        "work", "set bits", "GB/s", "memcpy", "ns a run"
    );
    let folders = common::folders();
    for pattern in PATTERNS {
        scans(pattern, memcpy)?;
        on_a_disk(pattern, memcpy, &folders[0])?;
        copies(pattern, memcpy)?;
        for folder in &folders {
            files(pattern, memcpy, folder)?;
        }
        println!();
    }
    lookups()?;
    huge()
}

/// A way to lay set bits out.
struct Pattern {
    name: &'static str,
    lay: fn(&Bits),
}

const PATTERNS: &[Pattern] = &[
    Pattern {
        name: "none",
        lay: |_| (),
    },
    Pattern {
        name: "0.01 % scattered",
        lay: |bits| scatter(bits, 10_000),
    },
    Pattern {
        name: "1 % scattered",
        lay: |bits| scatter(bits, 100),
    },
    Pattern {
        name: "1 % in runs of 256",
        lay: |bits| stripes(bits, 256, 25_600),
    },
    Pattern {
        name: "1 % in runs of 32768",
        lay: |bits| stripes(bits, 32_768, 3_276_800),
    },
    Pattern {
        name: "50 % scattered",
        lay: |bits| scatter(bits, 2),
    },
    Pattern {
        name: "all",
        lay: |bits| {
            bits.set(bits.all());
        },
    },
];

/// Sets one bit of `one_in`, at random.
fn scatter(bits: &Bits, one_in: u64) {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for index in 0..bits.len() {
        // Xorshift; as good as needed here.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if (state >> 20).is_multiple_of(one_in) {
            bits.set(GranuleRange::one(GranuleIndex(index)));
        }
    }
}

/// Sets `run` bits of every `period`.
fn stripes(bits: &Bits, run: u64, period: u64) {
    for start in (period / 3..bits.len()).step_by(usize::try_from(period).unwrap_or(usize::MAX)) {
        bits.set(GranuleRange::new(start, start + run));
    }
}

fn laid(pattern: &Pattern) -> Result<Bits> {
    let bits = Bits::new(BITS)?;
    (pattern.lay)(&bits);
    Ok(bits)
}

/// The median time of `work`, before which `prepare` makes what it works on.
fn median<T>(mut prepare: impl FnMut() -> Result<T>, mut work: impl FnMut(&mut T)) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let mut subject = prepare()?;
        let start = Instant::now();
        work(&mut subject);
        times.push(start.elapsed());
        drop(black_box(subject));
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

fn bytes() -> Vec<u8> {
    vec![0x55; usize::try_from(BITS / 8).unwrap_or(0)]
}

fn memcpy() -> Duration {
    let from = bytes();
    let mut to = bytes();
    median(
        || Ok(()),
        |()| black_box(&mut to).copy_from_slice(black_box(&from)),
    )
    .unwrap_or_default()
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn rate(bits: u64, time: Duration) -> f64 {
    (bits / 8) as f64 / time.as_secs_f64() / 1e9
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn row(work: &str, pattern: &Pattern, bits: &Bits, time: Duration, memcpy: Duration, runs: Option<u64>) {
    let each = match runs {
        Some(runs) if runs > 0 => format!("{:.2}", time.as_nanos() as f64 / runs as f64),
        _ => String::new(),
    };
    println!(
        "{:<46}{:>12}{:>12.1}{:>10.2}{:>12}",
        format!("{work}, {}", pattern.name),
        bits.count(),
        rate(BITS, time),
        memcpy.as_secs_f64() / time.as_secs_f64(),
        each
    );
}

fn scans(pattern: &Pattern, memcpy: Duration) -> Result<()> {
    let bits = laid(pattern)?;
    let runs = bits.runs(bits.all()).count() as u64;
    let time = median(
        || Ok(()),
        |()| {
            let sum = black_box(&bits)
                .runs(bits.all())
                .fold(0, |sum, run| sum + run.start.0 + run.end.0);
            black_box(sum);
        },
    )?;
    row("runs", pattern, &bits, time, memcpy, Some(runs));
    let time = median(
        || Ok(()),
        |()| {
            let (mut from, mut sum) = (0, 0);
            while let Some(found) = black_box(&bits).next_set(GranuleRange::new(from, BITS)) {
                sum += found.0;
                from = found.0 + 1;
            }
            black_box(sum);
        },
    )?;
    row("next_set", pattern, &bits, time, memcpy, Some(bits.count()));
    let time = median(
        || Ok(()),
        |()| {
            let (mut from, mut sum) = (0, 0);
            while let Some(run) = black_box(&bits).next_run(GranuleRange::new(from, BITS), u64::MAX) {
                sum += run.start.0;
                from = run.end.0;
            }
            black_box(sum);
        },
    )?;
    row("next_run", pattern, &bits, time, memcpy, Some(runs));
    Ok(())
}

fn copies(pattern: &Pattern, memcpy: Duration) -> Result<()> {
    let bits = laid(pattern)?;
    let mut buffer = bytes();
    let time = median(
        || Ok(()),
        |()| {
            // The whole is within the bits.
            let _ = black_box(&bits).serialize(0, black_box(&mut buffer));
        },
    )?;
    row("serialize", pattern, &bits, time, memcpy, None);
    let load = |to: &mut Bits| {
        let _ = to.deserialize(0, black_box(&buffer));
    };
    let time = median(|| Bits::new(BITS), load)?;
    row("deserialize, fresh memory", pattern, &bits, time, memcpy, None);
    let mut to = laid(pattern)?;
    let time = median(|| Ok(()), |()| load(&mut to))?;
    row("deserialize again", pattern, &bits, time, memcpy, None);
    let time = median(
        || Bits::new(BITS),
        |to| {
            to.merge_from(black_box(&bits));
        },
    )?;
    row("merge into fresh memory", pattern, &bits, time, memcpy, None);
    let time = median(
        || Ok(()),
        |()| {
            to.merge_from(black_box(&bits));
        },
    )?;
    row("merge again", pattern, &bits, time, memcpy, None);
    let coarse = Bits::new(BITS / 16)?;
    let (own, other) = (Granularity::new(1 << 20), Granularity::new(1 << 16));
    let time = median(
        || Ok(()),
        |()| {
            if let (Some(own), Some(other)) = (own, other) {
                coarse.merge_scaled(black_box(&bits), other, own, BITS << 16);
            }
        },
    )?;
    row("merge to 16 times coarser", pattern, &bits, time, memcpy, None);
    Ok(())
}

/// What a backup asks an open disk for.
fn on_a_disk(pattern: &Pattern, memcpy: Duration, folder: &Path) -> Result<()> {
    let bits = laid(pattern)?;
    let dir = tempfile::tempdir_in(folder).expect("a folder to work in");
    let path = dir.path().join("disk.qbm");
    let length = BITS * Granularity::DEFAULT.bytes();
    CreateOptions::new().size(length).create(&path)?;
    let disk = Disk::open(&path)?;
    let options = AddBitmap {
        persistent: false,
        ..AddBitmap::default()
    };
    disk.bitmap_add("b", options)?;
    let mut content = BitmapContent::new(options.granularity, length)?;
    let mut buffer = bytes();
    bits.serialize(0, &mut buffer)?;
    content.deserialize(0, &buffer)?;
    disk.bitmap_replace("b", &content)?;
    let mut runs = 0;
    let time = median(
        || Ok(()),
        |()| {
            let mut at = 0;
            runs = 0;
            while let Ok(Some(run)) = black_box(&disk).bitmap_next_dirty("b", at, u64::MAX) {
                at = run.end();
                runs += 1;
            }
        },
    )?;
    assert_eq!(runs, bits.runs(bits.all()).count() as u64);
    row("next_dirty", pattern, &bits, time, memcpy, Some(runs));
    disk.close()
}

/// A bitmap's file: written anew, and read.
fn files(pattern: &Pattern, memcpy: Duration, folder: &Path) -> Result<()> {
    let bits = laid(pattern)?;
    let dir = tempfile::tempdir_in(folder).expect("a folder to work in");
    let place = HostFolder::open(dir.path()).expect("it opens");
    let mut number = 0;
    let mut new_file = || {
        number += 1;
        let name = format!("{number}.bitmap");
        let storage = place
            .create(Role::Bitmap, Path::new(&name))
            .expect("a bitmap file");
        BitmapFile::new(storage, name.into(), BitmapPolicy::WriteThrough)
    };
    let time = median(
        || Ok(new_file()),
        |file| file.write_new(black_box(&bits)).expect("it is saved"),
    )?;
    let on = |work| format!("{work} ({})", folder.display());
    row(&on("save"), pattern, &bits, time, memcpy, None);
    let file = new_file();
    file.write_new(&bits)?;
    let time = median(
        || Ok(()),
        |()| {
            black_box(file.load(BITS).expect("it is loaded"));
        },
    )?;
    row(&on("load"), pattern, &bits, time, memcpy, None);
    Ok(())
}

/// Single looks, as a guest's write takes them.
#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn lookups() -> Result<()> {
    let bits = Bits::new(BITS)?;
    bits.set(bits.all());
    let each = |time: Duration| time.as_nanos() as f64 / LOOKS as f64;
    let time = median(
        || Ok(()),
        |()| {
            for look in 0..LOOKS {
                let start = look.wrapping_mul(0x9e37_79b9) % BITS;
                black_box(black_box(&bits).all_set(GranuleRange::new(start, start + 1)));
            }
        },
    )?;
    println!("all_set of one granule: {:.2} ns", each(time));
    let time = median(
        || Ok(()),
        |()| {
            for look in 0..LOOKS {
                let start = look.wrapping_mul(0x9e37_79b9) % BITS;
                black_box(black_box(&bits).set(GranuleRange::new(start, start + 1)));
            }
        },
    )?;
    println!("set of a set granule: {:.2} ns", each(time));
    let time = median(
        || Ok(()),
        |()| {
            for _ in 0..LOOKS {
                black_box(black_box(&bits).count());
            }
        },
    )?;
    println!("count: {:.2} ns", each(time));
    Ok(())
}

/// A pebibyte with a bit here and there.
fn huge() -> Result<()> {
    let few = |bits: &Bits| {
        for index in (0..1000).map(|i| i * (HUGE / 1000)) {
            bits.set(GranuleRange::one(GranuleIndex(index)));
        }
    };
    let mut bits = Bits::new(HUGE)?;
    few(&bits);
    let time = median(
        || Ok(()),
        |()| {
            black_box(bits.runs(bits.all()).count());
        },
    )?;
    println!("2^34 bits, 1000 set: scanned in {time:?}");
    let mut times: Vec<_> = (0..ROUNDS)
        .map(|_| {
            few(&bits);
            let start = Instant::now();
            bits.clear_all();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!("2^34 bits, 1000 set: cleared in {:?}", times[ROUNDS / 2]);
    let time = median(|| Ok(()), |()| drop(black_box(Bits::new(HUGE))))?;
    println!("2^34 bits: made and dropped in {time:?}");
    Ok(())
}
