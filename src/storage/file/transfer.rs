//! Whole transfers out of system calls that may stop short.
//!
//! The first call is all there is on the common path; what a signal, a kernel limit or a full disk cut off goes on
//! here. Invariant: a transfer that returns success has moved every byte, once or again with the same bytes.

#[cfg(test)]
mod tests;

use std::io;

use libc::iovec;

use crate::storage::sys::IOV_MAX;
use crate::units::MAX_LENGTH;

/// What it means that a call moved nothing though there was something to move.
#[derive(Clone, Copy)]
pub(super) enum Stuck {
    /// A read found the end of the file.
    EndOfFile,
    /// A write found no room and no reason.
    NoProgress,
}

/// Moves all `len` bytes of `pieces` at `offset` by `call`, which does as much as one system call does.
///
/// `call` is given pieces that are not empty as a whole, and at most [`IOV_MAX`] of them; except that a transfer of no
/// bytes makes its one call too, so that its offset and the descriptor are checked.
#[inline]
pub(super) fn whole(
    pieces: &[iovec],
    len: usize,
    offset: u64,
    stuck: Stuck,
    mut call: impl FnMut(&[iovec], u64) -> io::Result<usize>,
) -> io::Result<()> {
    match call(&pieces[..pieces.len().min(IOV_MAX)], offset) {
        Ok(done) if done == len => Ok(()),
        outcome => go_on(pieces, len, offset, stuck, outcome, &mut call),
    }
}

/// Refuses an offset that no file can have, in words.
pub(super) fn check_offset(offset: u64) -> io::Result<()> {
    if offset <= MAX_LENGTH {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("offset {offset} is beyond the largest possible file"),
    ))
}

/// The rest of a transfer whose first call had `outcome`.
///
/// A piece that was cut is finished by a call of its own; from the next piece's start on the caller's list serves
/// again, so that no list is ever copied.
#[cold]
#[inline(never)]
fn go_on(
    pieces: &[iovec],
    len: usize,
    offset: u64,
    stuck: Stuck,
    mut outcome: io::Result<usize>,
    call: &mut dyn FnMut(&[iovec], u64) -> io::Result<usize>,
) -> io::Result<()> {
    check_offset(offset)?;
    let mut left = len;
    let mut cursor = Cursor {
        pieces,
        within: 0,
        cut: None,
    };
    loop {
        match outcome {
            Ok(0) if left > 0 && !cursor.is_at_empty() => {
                return Err(match stuck {
                    Stuck::EndOfFile => io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        format!("the file ends {left} bytes before the transfer does"),
                    ),
                    Stuck::NoProgress => io::ErrorKind::WriteZero.into(),
                });
            }
            Ok(done) => {
                left = left.saturating_sub(done);
                cursor.advance(done);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if left == 0 {
            return Ok(());
        }
        // The sum fits: `offset` is in an i64, and a list holds at most `isize::MAX` bytes.
        outcome = call(cursor.next(), offset + (len - left) as u64);
    }
}

/// Where in a list of pieces a transfer stands.
struct Cursor<'a> {
    pieces: &'a [iovec],
    within: usize,
    cut: Option<iovec>,
}

impl Cursor<'_> {
    /// Steps over `done` bytes.
    fn advance(&mut self, mut done: usize) {
        while let Some((first, rest)) = self.pieces.split_first() {
            let here = first.iov_len - self.within;
            if done < here {
                self.within += done;
                return;
            }
            done -= here;
            self.within = 0;
            self.pieces = rest;
        }
    }

    /// Whether the pieces of one call are all empty: moving nothing is then what the call should do.
    fn is_at_empty(&self) -> bool {
        self.pieces.iter().take(IOV_MAX).all(|piece| piece.iov_len == 0)
    }

    /// The pieces for the next call.
    fn next(&mut self) -> &[iovec] {
        match self.pieces.first() {
            Some(first) if self.within > 0 => {
                let rest = iovec {
                    // Stays inside the piece: `within` is below its length.
                    iov_base: first.iov_base.wrapping_byte_add(self.within),
                    iov_len: first.iov_len - self.within,
                };
                std::slice::from_ref(self.cut.insert(rest))
            }
            _ => &self.pieces[..self.pieces.len().min(IOV_MAX)],
        }
    }
}
