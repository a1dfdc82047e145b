//! Real threads on one bitmap, and that a set bit is not written to again.

use std::sync::Barrier;
use std::thread;

use super::*;

#[test]
fn bits_go_to_any_thread() {
    fn shared<T: Send + Sync>() {}
    shared::<Bits>();
}

#[test]
fn threads_count_exactly() {
    const THREADS: u64 = 4;
    let len = GROUP + 77;
    for round in 0..50 {
        let bits = Bits::new(len).unwrap();
        let barrier = Barrier::new(usize::try_from(THREADS).unwrap());
        let newly: u64 = thread::scope(|scope| {
            let workers: Vec<_> = (0..THREADS)
                .map(|worker| {
                    let (bits, barrier) = (&bits, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        // Each bit is set by two threads; one of them clears some again.
                        let mut net = 0u64;
                        for index in (0..len).filter(|index| (index + round) % THREADS / 2 == worker / 2) {
                            let one = GranuleRange::one(at(index));
                            let cleared = index % 7 < 3;
                            net = net.wrapping_add(bits.set(one));
                            assert!(cleared || bits.any_set(one));
                            if cleared && worker % 2 == 1 {
                                net = net.wrapping_sub(bits.clear(one));
                            }
                        }
                        net
                    })
                })
                .collect();
            workers
                .into_iter()
                .fold(0u64, |sum, worker| sum.wrapping_add(worker.join().unwrap()))
        });
        let set: u64 = bits.runs(bits.all()).map(GranuleRange::len).sum();
        assert_eq!(bits.count(), set);
        assert_eq!(newly, set);
    }
}

/// Bits that have their pages for themselves.
#[repr(align(4096))]
struct Alone(Bits);

/// Lets `memory`, as far as it fills whole pages, only be read.
fn protect<T>(memory: &[T]) {
    let start = memory.as_ptr() as usize;
    let first = start.next_multiple_of(4096);
    let end = (start + size_of_val(memory)) / 4096 * 4096;
    assert!(first < end, "too small to be protected");
    // SAFETY: whole pages of `memory`; what else this process does, does not write there.
    let result = unsafe { libc::mprotect(first as *mut libc::c_void, end - first, libc::PROT_READ) };
    assert_eq!(result, 0);
}

/// Whether `act` can run while the words of `bits`, their summary and count may only be read.
///
/// Tried in a forked child, which a write kills.
fn writes_nothing(bits: &Alone, act: impl FnOnce(&Bits)) -> bool {
    // SAFETY: the child calls mprotect and `act`, neither of which takes a lock, and leaves by _exit.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        protect(bits.0.words.words());
        protect(bits.0.words.above.words());
        protect(std::slice::from_ref(bits));
        act(&bits.0);
        // SAFETY: ends the child without running what belongs to its parent.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: waits for the child above.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

#[test]
fn a_set_bit_is_not_written_to_again() {
    // So long that the summary too has pages for itself.
    let bits = Box::new(Alone(Bits::new(1 << 34).unwrap()));
    let middle = 1 << 33;
    bits.0.set(range(middle, middle + 200));
    bits.0.set(GranuleRange::one(at(middle + 1000)));
    assert!(writes_nothing(&bits, |bits| {
        let mut changed = bits.set(range(middle, middle + 200));
        changed += bits.set(GranuleRange::one(at(middle + 1000)));
        changed += bits.clear(range(middle + 200, middle + 1000));
        if changed != 0 {
            std::process::abort();
        }
    }));
    // And the trap does snap.
    assert!(!writes_nothing(&bits, |bits| {
        bits.set(range(middle, middle + 201));
    }));
}
