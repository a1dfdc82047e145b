//! System calls that stop short, are interrupted or fail, in every pattern that a small list allows.

use std::io::{Error, ErrorKind, IoSlice};

use super::*;
use crate::storage::Gather;

const OFFSET: u64 = 1000;

/// A "system call" that takes at most what the plan says, and writes it down.
struct Fake {
    bytes: Vec<u8>,
    calls: Vec<usize>,
    plan: Vec<Result<usize, i32>>,
}

impl Fake {
    fn new(plan: &[Result<usize, i32>]) -> Self {
        Self {
            bytes: Vec::new(),
            calls: Vec::new(),
            plan: plan.iter().rev().copied().collect(),
        }
    }

    fn call(&mut self, pieces: &[iovec], offset: u64) -> io::Result<usize> {
        assert_eq!(offset, OFFSET + self.bytes.len() as u64);
        self.calls.push(pieces.len());
        let most = self
            .plan
            .pop()
            .unwrap_or(Ok(usize::MAX))
            .map_err(Error::from_raw_os_error)?;
        // SAFETY: the pieces are those of a `Gather` of slices that are still borrowed.
        let gather = unsafe { Gather::new(pieces) }.expect("a list");
        let mut out = vec![0; gather.len().min(most)];
        gather.copy_to(0, &mut out);
        self.bytes.extend(&out);
        Ok(out.len())
    }
}

fn run(slices: &[&[u8]], plan: &[Result<usize, i32>]) -> (io::Result<()>, Fake) {
    let slices: Vec<_> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
    let list = Gather::from_slices(&slices).expect("a list");
    let mut fake = Fake::new(plan);
    let outcome = whole(
        list.as_iovecs(),
        list.len(),
        OFFSET,
        Stuck::NoProgress,
        |p, at| fake.call(p, at),
    );
    (outcome, fake)
}

#[test]
fn what_is_done_at_once_is_one_call() {
    let (outcome, fake) = run(&[b"abc", b"", b"de"], &[]);
    outcome.expect("success");
    assert_eq!(
        (fake.bytes.as_slice(), fake.calls.as_slice()),
        (&b"abcde"[..], &[3][..])
    );
}

#[test]
fn every_pair_of_short_calls_is_continued() {
    let slices: [&[u8]; 6] = [b"", b"abc", b"", b"d", b"efghi", b""];
    for first in 1..9 {
        for second in 1..9 {
            for interrupted in [false, true] {
                let mut plan = vec![Ok(first), Ok(second)];
                if interrupted {
                    plan.insert(1, Err(libc::EINTR));
                    plan.insert(0, Err(libc::EINTR));
                }
                let (outcome, fake) = run(&slices, &plan);
                outcome.expect("success");
                assert_eq!(fake.bytes, b"abcdefghi", "after {first} and {second}");
            }
        }
    }
}

#[test]
fn one_byte_at_a_time_gets_there() {
    let (outcome, fake) = run(&[b"abc", b"def"], &[Ok(1); 6]);
    outcome.expect("success");
    assert_eq!(fake.bytes, b"abcdef");
}

#[test]
fn more_pieces_than_one_call_takes() {
    let bytes: Vec<u8> = (0..3000u32).map(|n| n.to_le_bytes()[0]).collect();
    let slices: Vec<_> = bytes.chunks(1).collect();
    let (outcome, fake) = run(&slices, &[]);
    outcome.expect("success");
    assert_eq!(fake.bytes, bytes);
    assert_eq!(fake.calls, [1024, 1024, 952]);
}

#[test]
fn a_call_full_of_empty_pieces_is_no_end() {
    let mut slices: Vec<&[u8]> = vec![b""; 2500];
    slices[2400] = b"x";
    let (outcome, fake) = run(&slices, &[]);
    outcome.expect("success");
    assert_eq!(fake.bytes, b"x");
}

#[test]
fn an_error_ends_it_wherever_it_comes() {
    for before in 0..3 {
        let mut plan = vec![Ok(1); before];
        plan.push(Err(libc::ENOSPC));
        let (outcome, fake) = run(&[b"abc", b"def"], &plan);
        assert_eq!(outcome.expect_err("a failure").raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(fake.bytes.len(), before);
    }
}

#[test]
fn no_progress_is_an_error_and_no_endless_loop() {
    for before in 0..3 {
        let mut plan = vec![Ok(1); before];
        plan.push(Ok(0));
        let (outcome, _) = run(&[b"", b"abcdef"], &plan);
        assert_eq!(outcome.expect_err("a failure").kind(), ErrorKind::WriteZero);
    }
    let piece = [iovec {
        iov_base: std::ptr::dangling_mut::<u8>().cast(),
        iov_len: 5,
    }];
    let ends = whole(&piece, 5, OFFSET, Stuck::EndOfFile, |_, _| Ok(0)).expect_err("a failure");
    assert_eq!(ends.kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn nothing_to_move_is_one_call() {
    for slices in [&[][..], &[&b""[..]][..], &[&b""[..], &b""[..]][..]] {
        let (outcome, fake) = run(slices, &[Ok(0)]);
        outcome.expect("success");
        assert_eq!(fake.calls, [slices.len()]);
    }
}

#[test]
fn an_offset_that_no_file_has_is_named() {
    let outcome = whole(&[], 0, 1 << 63, Stuck::EndOfFile, |_, _| {
        Err(Error::from_raw_os_error(libc::EINVAL))
    });
    assert!(
        outcome
            .expect_err("a failure")
            .to_string()
            .contains("9223372036854775808")
    );
}
