//! What the benchmarks of calls share: the shared library as a C program would use it, and timing in turn.
//!
//! Two ways of doing the same are timed in one run, in short batches, in the order A B B A and B A A B, so that
//! neither profits from its place; what counts is the median of the rounds' ratios, for on a shared machine single
//! times mean little.

#![allow(dead_code, reason = "each benchmark uses a part")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Barrier, Mutex};
use std::time::Instant;

type Open = unsafe extern "C" fn(*const c_char, *const c_void, *mut *mut c_void) -> c_int;
type Read = unsafe extern "C" fn(*mut c_void, *mut c_void, usize, u64) -> c_int;
type Write = unsafe extern "C" fn(*mut c_void, *const c_void, usize, u64, u32) -> c_int;
type Flush = unsafe extern "C" fn(*mut c_void) -> c_int;
type Close = unsafe extern "C" fn(*mut c_void) -> c_int;

/// libqbm.so, opened with dlopen.
pub struct Library {
    open: Open,
    read: Read,
    write: Write,
    flush: Flush,
    close: Close,
}

impl Library {
    /// The one that was built with the benchmark.
    pub fn load() -> Self {
        let program = std::env::current_exe().expect("the path of this program");
        let deps = program.parent().expect("a folder");
        let path = [deps.join("libqbm.so"), deps.join("../libqbm.so")]
            .into_iter()
            .find(|path| path.exists())
            .expect("libqbm.so beside the benchmark");
        let name = c_string(&path);
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
                flush: std::mem::transmute::<*mut c_void, Flush>(find(c"qbm_flush")),
                close: std::mem::transmute::<*mut c_void, Close>(find(c"qbm_close")),
            }
        }
    }

    /// `qbm_open` with the default options.
    pub fn open(&self, path: &Path) -> OpenDisk<'_> {
        let name = c_string(path);
        let mut disk = std::ptr::null_mut();
        // SAFETY: a path, default options, and room for a handle.
        let done = unsafe { (self.open)(name.as_ptr(), std::ptr::null(), &raw mut disk) };
        assert_eq!(done, 0, "qbm_open of {}", path.display());
        OpenDisk { library: self, disk }
    }
}

fn c_string(path: &Path) -> CString {
    CString::new(path.to_str().expect("a path in UTF-8")).expect("no NUL")
}

/// A `qbm_disk`; dropping it closes it.
pub struct OpenDisk<'l> {
    library: &'l Library,
    disk: *mut c_void,
}

// SAFETY: a disk may be used from any thread.
unsafe impl Send for OpenDisk<'_> {}
// SAFETY: as above, and from several at once.
unsafe impl Sync for OpenDisk<'_> {}

impl OpenDisk<'_> {
    /// `qbm_pread`.
    #[inline]
    pub fn read(&self, buf: &mut [u8], offset: u64) {
        // SAFETY: an open disk and a buffer.
        let done = unsafe { (self.library.read)(self.disk, buf.as_mut_ptr().cast(), buf.len(), offset) };
        assert_eq!(done, 0);
    }

    /// `qbm_pwrite`.
    #[inline]
    pub fn write(&self, buf: &[u8], offset: u64) {
        // SAFETY: an open disk and a buffer.
        let done = unsafe { (self.library.write)(self.disk, buf.as_ptr().cast(), buf.len(), offset, 0) };
        assert_eq!(done, 0);
    }

    /// `qbm_flush`.
    #[inline]
    pub fn flush(&self) {
        // SAFETY: an open disk.
        let done = unsafe { (self.library.flush)(self.disk) };
        assert_eq!(done, 0);
    }
}

impl Drop for OpenDisk<'_> {
    fn drop(&mut self) {
        // SAFETY: an open disk that nobody uses any more.
        let done = unsafe { (self.library.close)(self.disk) };
        assert_eq!(done, 0, "qbm_close");
    }
}

/// `pread` of all of `buf`.
#[inline]
pub fn bare_read(fd: c_int, buf: &mut [u8], offset: u64) {
    // SAFETY: the buffer has that many bytes.
    let done = unsafe { libc::pread(fd, buf.as_mut_ptr().cast(), buf.len(), offset.cast_signed()) };
    assert_eq!(done, buf.len().cast_signed());
}

/// `pwrite` of all of `buf`.
#[inline]
pub fn bare_write(fd: c_int, buf: &[u8], offset: u64) {
    // SAFETY: the buffer has that many bytes.
    let done = unsafe { libc::pwrite(fd, buf.as_ptr().cast(), buf.len(), offset.cast_signed()) };
    assert_eq!(done, buf.len().cast_signed());
}

/// `fdatasync`.
#[inline]
pub fn bare_flush(fd: c_int) {
    // SAFETY: a number.
    let done = unsafe { libc::fdatasync(fd) };
    assert_eq!(done, 0);
}

/// Nanoseconds a call, of a bare batch and of one of ours.
pub type Round = (f64, f64);

/// Who does the work of a batch.
#[derive(Clone, Copy)]
pub enum Side {
    /// The system call alone.
    Bare,
    /// libqbm.
    Ours,
}

/// One thread's part in a measurement.
pub struct Turns<'b> {
    barrier: &'b Barrier,
    /// The number of the thread, from 0 on.
    pub thread: u64,
}

impl Turns<'_> {
    /// A round: bare, ours, ours, bare, or the reverse if it is an odd one. All threads are on the same side at the
    /// same time. `batch` runs one on that side and returns its nanoseconds a call.
    pub fn round(&self, number: usize, mut batch: impl FnMut(Side) -> f64) -> Round {
        let mut times = (0.0, 0.0);
        for turn in 0..4 {
            self.barrier.wait();
            if (turn == 0 || turn == 3) == number.is_multiple_of(2) {
                times.0 += batch(Side::Bare) / 2.0;
            } else {
                times.1 += batch(Side::Ours) / 2.0;
            }
        }
        times
    }
}

/// Runs `work` on that many threads at once; returns all rounds.
pub fn on_threads(threads: u64, work: impl Fn(Turns<'_>) -> Vec<Round> + Sync) -> Vec<Round> {
    let barrier = Barrier::new(usize::try_from(threads).expect("a count"));
    let rounds = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (barrier, work, rounds) = (&barrier, &work, &rounds);
            scope.spawn(move || {
                let mine = work(Turns { barrier, thread });
                rounds.lock().expect("no panic elsewhere").extend(mine);
            });
        }
    });
    rounds.into_inner().expect("no panic elsewhere")
}

/// Nanoseconds a call, over one call at each of `offsets`.
pub fn batch(offsets: impl ExactSizeIterator<Item = u64>, mut call: impl FnMut(u64)) -> f64 {
    let count = offsets.len();
    let start = Instant::now();
    offsets.for_each(&mut call);
    let nanos = start.elapsed().as_nanos();
    #[allow(clippy::cast_precision_loss, reason = "nanoseconds of milliseconds")]
    let each = nanos as f64 / count as f64;
    each
}

/// The columns of a result: median nanoseconds of a bare call and of ours, and the median ratio (bare through ours:
/// 1.00 is as fast as the bare call, 0.97 is 3 % slower).
pub fn columns(rounds: &[Round]) -> String {
    let median = |of: fn(&Round) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    format!(
        "{:>9.0} {:>9.0} {:>8.3}",
        median(|round| round.0),
        median(|round| round.1),
        median(|round| round.0 / round.1)
    )
}

/// What stands above [`columns`].
pub const HEADINGS: &str = "  bare ns    qbm ns    ratio";

/// Offsets at random: multiples of `unit` below `length`.
pub struct Random {
    state: u64,
    unit: u64,
    length: u64,
}

impl Random {
    /// The same offsets for the same `seed`.
    pub fn new(seed: u64, unit: u64, length: u64) -> Self {
        Self {
            state: (seed + 3).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            unit,
            length,
        }
    }

    /// The next of them.
    #[inline]
    pub fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % (self.length / self.unit) * self.unit
    }
}

/// Where to measure: the folders of the command line, or a tmpfs and the build's.
pub fn folders() -> Vec<PathBuf> {
    let given: Vec<PathBuf> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .map(Into::into)
        .collect();
    if !given.is_empty() {
        return given;
    }
    ["/dev/shm", env!("CARGO_TARGET_TMPDIR")]
        .into_iter()
        .map(PathBuf::from)
        .filter(|folder| folder.is_dir())
        .collect()
}
