//! Several pieces of one long operation at a time, in order at its end.
//!
//! A few threads of its own do the work, with all signals blocked, as those are the program's business. The calling
//! thread hands out the pieces and hears of each, in their order; so callbacks stay on it. Invariant: no thread outlives
//! the call.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use crate::error::{Error, ErrorCode, Result};

/// So many threads work: enough to keep a device and two cores busy, few enough not to be felt.
pub(crate) const WORKERS: usize = 4;

/// More than these only wait for each other.
pub(crate) const MOST_WORKERS: usize = 16;

/// So many pieces for each of them are handed out before the first must be done.
const AHEAD: usize = 2;

/// Memory that a worker keeps from piece to piece.
pub(crate) type Buffers = [Buffer; 2];

/// Memory that begins at a page: from elsewhere the kernel takes half as long again to copy it to a file.
#[derive(Default)]
pub(crate) struct Buffer {
    memory: Vec<u8>,
}

impl Buffer {
    const ALIGNMENT: usize = 4096;

    /// The first `len` bytes of it, which are whatever they were.
    pub(crate) fn take(&mut self, len: usize) -> &mut [u8] {
        let enough = len + Self::ALIGNMENT;
        if self.memory.len() < enough {
            self.memory.resize(enough, 0);
        }
        let start = self.memory.as_ptr().addr().wrapping_neg() % Self::ALIGNMENT;
        &mut self.memory[start..start + len]
    }
}

/// Does `work` to each of the pieces that `next` hands out, several at a time, and then `done`, in the order of the
/// pieces. Ends with the first error, in that order, of any of the three; pieces behind it may be done or not.
pub(crate) fn in_order<P: Send, R: Send>(
    next: impl FnMut() -> Result<Option<P>>,
    work: impl Fn(&P, &mut Buffers) -> Result<R> + Sync,
    done: impl FnMut(P, R) -> Result<()>,
) -> Result<()> {
    in_order_by(WORKERS, next, work, done)
}

/// The same by `workers` threads.
pub(crate) fn in_order_by<P: Send, R: Send>(
    workers: usize,
    mut next: impl FnMut() -> Result<Option<P>>,
    work: impl Fn(&P, &mut Buffers) -> Result<R> + Sync,
    mut done: impl FnMut(P, R) -> Result<()>,
) -> Result<()> {
    let Some(first) = next()? else { return Ok(()) };
    let Some(second) = next()? else {
        // One piece is not worth a thread.
        let result = work(&first, &mut Buffers::default())?;
        return done(first, result);
    };
    let mut handed = [first, second].into_iter();
    let mut next = || handed.next().map_or_else(&mut next, |piece| Ok(Some(piece)));

    let stop = AtomicBool::new(false);
    let (jobs, queue) = mpsc::channel::<(u64, P)>();
    let queue = Mutex::new(queue);
    let (results, finished) = mpsc::channel::<(u64, P, Result<R>)>();
    let worker = |results: mpsc::Sender<(u64, P, Result<R>)>| {
        let mut buffers = Buffers::default();
        loop {
            let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((number, piece)) = job else { return };
            if stop.load(Ordering::Relaxed) {
                continue;
            }
            let result = catch_unwind(AssertUnwindSafe(|| work(&piece, &mut buffers)));
            let (result, panic) = match result {
                Ok(result) => (result, None),
                Err(panic) => (Err(gone()), Some(panic)),
            };
            let heard = results.send((number, piece, result));
            if let Some(panic) = panic {
                // The scope raises it again, on the caller's thread, which waits for this piece no longer.
                resume_unwind(panic);
            }
            if heard.is_err() {
                return;
            }
        }
    };
    thread::scope(|scope| {
        // Dropped where this returns, so that the workers end.
        let jobs = jobs;
        let mut spawned = 0;
        let quiet = Quiet::new();
        for _ in 0..workers {
            let results = results.clone();
            let thread = thread::Builder::new().name("qbm-copy".to_owned());
            spawned += usize::from(thread.spawn_scoped(scope, || worker(results)).is_ok());
        }
        drop(quiet);
        drop(results);
        if spawned == 0 {
            let mut buffers = Buffers::default();
            while let Some(piece) = next()? {
                let result = work(&piece, &mut buffers)?;
                done(piece, result)?;
            }
            return Ok(());
        }
        let mut through = || {
            let (mut handed_out, mut expected) = (0, 0);
            let mut early = BTreeMap::new();
            let mut more = true;
            loop {
                while more && handed_out - expected < (AHEAD * workers) as u64 {
                    match next()? {
                        Some(piece) => {
                            jobs.send((handed_out, piece)).map_err(|_| gone())?;
                            handed_out += 1;
                        }
                        None => more = false,
                    }
                }
                if expected == handed_out {
                    return Ok(());
                }
                let (number, piece, result) = finished.recv().map_err(|_| gone())?;
                early.insert(number, (piece, result));
                while let Some((piece, result)) = early.remove(&expected) {
                    expected += 1;
                    done(piece, result?)?;
                }
            }
        };
        let ended = through();
        stop.store(true, Ordering::Relaxed);
        ended
    })
}

/// A worker has panicked, which the scope says louder.
fn gone() -> Error {
    Error::new(ErrorCode::Failed, "a thread of the library ended early")
}

/// While it lives, this thread, and those that it makes, get no signal.
struct Quiet {
    before: libc::sigset_t,
}

impl Quiet {
    fn new() -> Self {
        // SAFETY: both sets are ours; any bytes are a set, and `sigfillset` fills the one.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            Self { before }
        }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // SAFETY: the set is the one that was in force.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: u32) -> impl FnMut() -> Result<Option<u32>> {
        let mut all = 0..count;
        move || Ok(all.next())
    }

    fn failed(words: &str) -> Error {
        Error::new(ErrorCode::Io, words)
    }

    #[test]
    fn memory_begins_at_a_page_however_it_grows() {
        let mut buffer = Buffer::default();
        for len in [0, 1, 4096, 5000, 1 << 20, 12] {
            let bytes = buffer.take(len);
            assert_eq!((bytes.len(), bytes.as_ptr().addr() % 4096), (len, 0));
        }
    }

    #[test]
    fn results_come_in_order_whoever_is_quicker() {
        for count in [0, 1, 2, 3, 100] {
            let mut seen = Vec::new();
            in_order(
                numbers(count),
                |piece, _| {
                    thread::sleep(std::time::Duration::from_micros(u64::from(piece * 7919 % 500)));
                    Ok(piece * 2)
                },
                |piece, result| {
                    seen.push((piece, result));
                    Ok(())
                },
            )
            .unwrap();
            let expected: Vec<_> = (0..count).map(|it| (it, it * 2)).collect();
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn the_first_error_in_order_is_told() {
        for count in [1, 2, 50] {
            let mut seen = 0;
            let error = in_order(
                numbers(count),
                |piece, _| match piece % 10 {
                    0 if *piece + 20 >= count => Err(failed(&format!("work {piece}"))),
                    _ => Ok(()),
                },
                |_, ()| {
                    seen += 1;
                    Ok(())
                },
            )
            .unwrap_err();
            let first = if count == 50 { 30 } else { 0 };
            assert_eq!(
                (error.message(), seen),
                (&*format!("work {first}"), first),
                "{count}"
            );
        }
        let error = in_order(
            numbers(50),
            |_, _| Ok(()),
            |piece, ()| if piece == 7 { Err(failed("done")) } else { Ok(()) },
        );
        assert_eq!(error.unwrap_err().message(), "done");
        let mut left = 20;
        let next = || {
            left -= 1;
            if left == 0 {
                Err(failed("next"))
            } else {
                Ok(Some(()))
            }
        };
        assert_eq!(
            in_order(next, |(), _| Ok(()), |(), ()| Ok(()))
                .unwrap_err()
                .message(),
            "next"
        );
    }

    #[test]
    fn a_panic_in_a_worker_reaches_the_caller() {
        let panicked = catch_unwind(|| {
            in_order(
                numbers(50),
                |piece, _| {
                    assert!(*piece != 20, "a bug");
                    Ok(())
                },
                |_, ()| Ok(()),
            )
        });
        assert!(panicked.is_err());
    }

    #[test]
    fn workers_get_no_signal_and_the_caller_all_as_before() {
        let blocked = || {
            // SAFETY: the sets are ours.
            unsafe {
                let mut set: libc::sigset_t = std::mem::zeroed();
                libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), &raw mut set);
                libc::sigismember(&raw const set, libc::SIGUSR1) == 1
            }
        };
        let before = blocked();
        in_order(
            numbers(20),
            |_, _| Ok(blocked()),
            |_, quiet| {
                assert!(quiet && blocked() == before);
                Ok(())
            },
        )
        .unwrap();
    }
}
