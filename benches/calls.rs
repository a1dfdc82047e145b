//! `qbm_pread` and `qbm_pwrite` beside bare `pread` and `pwrite` on the same raw file, in one run.
//!
//! ```text
//! cargo bench --bench calls [-- FOLDER ...]
//! ```
//!
//! The shared library is opened with dlopen, as a C program would use it. The two are timed in turn, short batches
//! of each, many times; a row gives the median time of a call and the median of the round-by-round ratios (bare time
//! through ours: 1.00 is as fast as the bare call, 0.97 is 3 % slower). Folders default to a tmpfs and the build's.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that cannot run says why and stops"
)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::Instant;

const BLOCK: usize = 4096;
const LENGTH: u64 = 64 << 20;
const BATCH: u32 = 500;
const ROUNDS: usize = 601;

type Open = unsafe extern "C" fn(*const c_char, *const c_void, *mut *mut c_void) -> c_int;
type Read = unsafe extern "C" fn(*mut c_void, *mut c_void, usize, u64) -> c_int;
type Write = unsafe extern "C" fn(*mut c_void, *const c_void, usize, u64, u32) -> c_int;
type Close = unsafe extern "C" fn(*mut c_void) -> c_int;

#[derive(Clone, Copy)]
struct Library {
    open: Open,
    read: Read,
    write: Write,
    close: Close,
}

#[derive(Clone, Copy)]
struct Handle(*mut c_void);

// SAFETY: a disk may be used from any thread.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Library {
    fn load() -> Self {
        let program = std::env::current_exe().expect("the path of this program");
        let deps = program.parent().expect("a folder");
        let path = [deps.join("libqbm.so"), deps.join("../libqbm.so")]
            .into_iter()
            .find(|path| path.exists())
            .expect("libqbm.so beside the benchmark");
        let name = CString::new(path.to_str().expect("a path in UTF-8")).expect("no NUL");
        // SAFETY: our own library, which has no constructors.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
        assert!(!library.is_null(), "cannot load {}", path.display());
        let find = |name: &CStr| {
            // SAFETY: an open library and a string.
            let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
            assert!(!symbol.is_null(), "no {name:?}");
            symbol
        };
        // SAFETY: the types are those of include/qbm.h.
        unsafe {
            Self {
                open: std::mem::transmute::<*mut c_void, Open>(find(c"qbm_open")),
                read: std::mem::transmute::<*mut c_void, Read>(find(c"qbm_pread")),
                write: std::mem::transmute::<*mut c_void, Write>(find(c"qbm_pwrite")),
                close: std::mem::transmute::<*mut c_void, Close>(find(c"qbm_close")),
            }
        }
    }
}

/// Offsets that visit the file at random, the same for both sides.
fn offset(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state % (LENGTH / BLOCK as u64)) * BLOCK as u64
}

/// Nanoseconds a call, over one batch.
fn batch(state: &mut u64, mut call: impl FnMut(u64)) -> f64 {
    let start = Instant::now();
    for _ in 0..BATCH {
        call(offset(state));
    }
    #[allow(clippy::cast_precision_loss, reason = "nanoseconds of milliseconds")]
    let nanos = start.elapsed().as_nanos() as f64;
    nanos / f64::from(BATCH)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// One thread's rounds: each is bare, ours, ours, bare, or the reverse, so that neither profits from its place. All
/// threads are on the same side at the same time. Returns each round's two times.
fn one_thread(
    library: Library,
    disk: Handle,
    image: &File,
    write: bool,
    barrier: &Barrier,
    seed: u64,
) -> Vec<(f64, f64)> {
    let fd = image.as_raw_fd();
    let mut buf = vec![0x5au8; BLOCK];
    let buf = buf.as_mut_ptr().cast::<c_void>();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let run_bare = |state: &mut u64| {
        barrier.wait();
        batch(state, |at| {
            let at = i64::try_from(at).expect("an offset");
            // SAFETY: the buffer has BLOCK bytes.
            let done = unsafe {
                if write {
                    libc::pwrite(fd, buf, BLOCK, at)
                } else {
                    libc::pread(fd, buf, BLOCK, at)
                }
            };
            assert_eq!(done, BLOCK.cast_signed());
        })
    };
    let run_ours = |state: &mut u64| {
        barrier.wait();
        batch(state, |at| {
            // SAFETY: an open disk, and a buffer of BLOCK bytes.
            let done = unsafe {
                if write {
                    (library.write)(disk.0, buf, BLOCK, at, 0)
                } else {
                    (library.read)(disk.0, buf, BLOCK, at)
                }
            };
            assert_eq!(done, 0);
        })
    };
    (0..ROUNDS)
        .map(|round| {
            let (mut bare, mut ours) = (0.0, 0.0);
            for turn in 0..4 {
                if (turn == 0 || turn == 3) == (round % 2 == 0) {
                    bare += run_bare(&mut state) / 2.0;
                } else {
                    ours += run_ours(&mut state) / 2.0;
                }
            }
            (bare, ours)
        })
        .collect()
}

fn measure(library: Library, folder: &Path, write: bool, threads: u64) {
    let dir = tempfile::tempdir_in(folder).expect("a folder to work in");
    let image = dir.path().join("disk.raw");
    std::fs::write(&image, vec![1u8; usize::try_from(LENGTH).expect("a length")]).expect("an image");
    let path = dir.path().join("disk.qbm");
    qbm::CreateOptions::new()
        .image("disk.raw")
        .create(&path)
        .expect("a disk");
    let name = CString::new(path.to_str().expect("a path in UTF-8")).expect("no NUL");
    let mut disk = Handle(std::ptr::null_mut());
    // SAFETY: a path, default options, and room for a handle.
    let opened = unsafe { (library.open)(name.as_ptr(), std::ptr::null(), &raw mut disk.0) };
    assert_eq!(opened, 0);
    let file = File::options()
        .read(true)
        .write(true)
        .open(&image)
        .expect("the image");
    let barrier = Barrier::new(usize::try_from(threads).expect("a count"));
    let rounds: Vec<(f64, f64)> = std::thread::scope(|scope| {
        let started: Vec<_> = (0..threads)
            .map(|seed| {
                let (file, barrier) = (&file, &barrier);
                scope.spawn(move || one_thread(library, disk, file, write, barrier, seed + 3))
            })
            .collect();
        started
            .into_iter()
            .flat_map(|thread| thread.join().expect("a thread"))
            .collect()
    });
    // SAFETY: the disk is open, and no thread uses it any more.
    assert_eq!(unsafe { (library.close)(disk.0) }, 0);
    println!(
        "{:<24} {:<5} {threads} {:>9.0} {:>9.0} {:>8.3}",
        folder.display(),
        if write { "write" } else { "read" },
        median(rounds.iter().map(|round| round.0).collect()),
        median(rounds.iter().map(|round| round.1).collect()),
        median(rounds.iter().map(|round| round.0 / round.1).collect())
    );
}

fn main() {
    let mut folders: Vec<PathBuf> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .map(Into::into)
        .collect();
    if folders.is_empty() {
        folders = ["/dev/shm", env!("CARGO_TARGET_TMPDIR")]
            .into_iter()
            .map(PathBuf::from)
            .filter(|f| f.is_dir())
            .collect();
    }
    let library = Library::load();
    println!("4 KiB at random in 64 MiB; medians of {ROUNDS} rounds of 2 × {BATCH} calls of each, in turn");
    println!(
        "{:<24} {:<5} t {:>9} {:>9} {:>8}",
        "folder", "", "bare ns", "qbm ns", "ratio"
    );
    for folder in &folders {
        for threads in [1, 2] {
            for write in [false, true] {
                measure(library, folder, write, threads);
            }
        }
    }
}
