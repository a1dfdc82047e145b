//! The caller's memory as a scatter or gather list.
//!
//! Guest memory is shared with the guest, which may change it at any moment, so it is never turned into a Rust slice:
//! it stays raw pointers that only the kernel, or a raw copy into a bounce buffer, touches.

use std::io::{IoSlice, IoSliceMut};
use std::marker::PhantomData;

/// Memory to be written from, in pieces.
#[derive(Clone, Copy)]
pub struct Gather<'a> {
    vecs: &'a [libc::iovec],
    len: usize,
}

/// Memory to be filled, in pieces.
#[derive(Clone, Copy)]
pub struct Scatter<'a> {
    vecs: &'a [libc::iovec],
    len: usize,
    // A scatter list stands for mutable borrows of the memory it names.
    memory: PhantomData<&'a mut [u8]>,
}

// SAFETY: the lists only carry pointers; whoever made one vouches (see `new`) that the memory may be
// accessed through it from any thread for its lifetime.
unsafe impl Send for Gather<'_> {}
// SAFETY: as above.
unsafe impl Sync for Gather<'_> {}
// SAFETY: as above.
unsafe impl Send for Scatter<'_> {}
// SAFETY: as above.
unsafe impl Sync for Scatter<'_> {}

/// The bytes in `vecs`, or `None` where the sum does not fit.
fn total(vecs: &[libc::iovec]) -> Option<usize> {
    let mut len = 0usize;
    for vec in vecs {
        len = len.checked_add(vec.iov_len)?;
    }
    isize::try_from(len).ok().map(|_| len)
}

impl<'a> Gather<'a> {
    /// A list of raw pieces; `None` where their lengths add up to more than `isize::MAX`.
    ///
    /// # Safety
    ///
    /// Each piece must be readable for `'a`. Its bytes may change meanwhile (guest memory does).
    pub unsafe fn new(vecs: &'a [libc::iovec]) -> Option<Self> {
        let len = total(vecs)?;
        Some(Self { vecs, len })
    }

    /// A list of Rust slices.
    pub fn from_slices(slices: &'a [IoSlice<'a>]) -> Option<Self> {
        // SAFETY: an `IoSlice` is promised to have the layout of an iovec on Unix, and it borrows its bytes for `'a`.
        unsafe { Self::new(std::slice::from_raw_parts(slices.as_ptr().cast(), slices.len())) }
    }

    /// The pieces, as the system wants them.
    pub fn as_iovecs(&self) -> &'a [libc::iovec] {
        self.vecs
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends the pieces of all its bytes to `out`, to be part of a longer list.
    pub fn append_to(&self, out: &mut Vec<libc::iovec>) {
        out.extend_from_slice(self.vecs);
    }

    /// The `len` bytes from `skip` on as a list of their own, whose pieces are kept in `room`.
    ///
    /// # Panics
    ///
    /// Where the list has fewer bytes than that: the caller planned wrongly.
    pub fn part<'b>(&self, skip: usize, len: usize, room: &'b mut Vec<libc::iovec>) -> Gather<'b>
    where
        'a: 'b,
    {
        assert!(skip <= self.len && len <= self.len - skip);
        cut(self.vecs, skip, len, room);
        Gather { vecs: room, len }
    }

    /// Copies the bytes from `skip` on into `out`, as many as it holds.
    ///
    /// # Panics
    ///
    /// Where the list has fewer bytes than that: the caller planned wrongly, and a short copy would hide it.
    pub fn copy_to(&self, mut skip: usize, out: &mut [u8]) {
        assert!(skip <= self.len && out.len() <= self.len - skip);
        let mut done = 0;
        for vec in self.vecs {
            if done == out.len() {
                break;
            }
            if skip >= vec.iov_len {
                skip -= vec.iov_len;
                continue;
            }
            let n = (vec.iov_len - skip).min(out.len() - done);
            // SAFETY: `skip + n` lies within the piece, which `new` promised readable; `done + n` within `out`;
            // a caller's piece never overlaps a buffer of ours.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    vec.iov_base.cast::<u8>().add(skip),
                    out.as_mut_ptr().add(done),
                    n,
                );
            }
            done += n;
            skip = 0;
        }
    }
}

impl<'a> Scatter<'a> {
    /// A list of raw pieces; `None` where their lengths add up to more than `isize::MAX`.
    ///
    /// # Safety
    ///
    /// Each piece must be writable for `'a`.
    pub unsafe fn new(vecs: &'a [libc::iovec]) -> Option<Self> {
        let len = total(vecs)?;
        Some(Self {
            vecs,
            len,
            memory: PhantomData,
        })
    }

    /// A list of Rust slices.
    pub fn from_slices(slices: &'a mut [IoSliceMut<'_>]) -> Option<Self> {
        // SAFETY: an `IoSliceMut` is promised to have the layout of an iovec on Unix, and it borrows its bytes
        // at least as long as `slices` is borrowed.
        unsafe { Self::new(std::slice::from_raw_parts(slices.as_ptr().cast(), slices.len())) }
    }

    /// The pieces, as the system wants them.
    pub fn as_iovecs(&self) -> &'a [libc::iovec] {
        self.vecs
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The `len` bytes from `skip` on as a list of their own, whose pieces are kept in `room`.
    ///
    /// # Panics
    ///
    /// Where the list has fewer bytes than that: the caller planned wrongly.
    pub fn part<'b>(&self, skip: usize, len: usize, room: &'b mut Vec<libc::iovec>) -> Scatter<'b>
    where
        'a: 'b,
    {
        assert!(skip <= self.len && len <= self.len - skip);
        cut(self.vecs, skip, len, room);
        Scatter {
            vecs: room,
            len,
            memory: PhantomData,
        }
    }

    /// Fills all of the memory with zeros.
    pub fn zero(&self) {
        for vec in self.vecs {
            // SAFETY: `new` promised that the piece is writable.
            unsafe { std::ptr::write_bytes(vec.iov_base.cast::<u8>(), 0, vec.iov_len) };
        }
    }

    /// Copies `bytes` into the memory from `skip` on.
    ///
    /// # Panics
    ///
    /// Where the list has no room for them: the caller planned wrongly, and a short copy would hide it.
    pub fn copy_from(&self, mut skip: usize, bytes: &[u8]) {
        assert!(skip <= self.len && bytes.len() <= self.len - skip);
        let mut done = 0;
        for vec in self.vecs {
            if done == bytes.len() {
                break;
            }
            if skip >= vec.iov_len {
                skip -= vec.iov_len;
                continue;
            }
            let n = (vec.iov_len - skip).min(bytes.len() - done);
            // SAFETY: `skip + n` lies within the piece, which `new` promised writable; `done + n` within `bytes`;
            // a caller's piece never overlaps a buffer of ours.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    bytes.as_ptr().add(done),
                    vec.iov_base.cast::<u8>().add(skip),
                    n,
                );
            }
            done += n;
            skip = 0;
        }
    }
}

/// The `len` bytes from `skip` on of a list, which has them, as the pieces in `room`.
fn cut(vecs: &[libc::iovec], mut skip: usize, mut len: usize, room: &mut Vec<libc::iovec>) {
    room.clear();
    for vec in vecs {
        if len == 0 {
            break;
        }
        if skip >= vec.iov_len {
            skip -= vec.iov_len;
            continue;
        }
        let n = (vec.iov_len - skip).min(len);
        room.push(libc::iovec {
            // Within the piece, so this does not wrap.
            iov_base: vec.iov_base.wrapping_byte_add(skip),
            iov_len: n,
        });
        len -= n;
        skip = 0;
    }
}

/// Reads all of `buf`, from one slice.
pub fn read_slice(storage: &dyn super::Storage, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
    let vec = [libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    }];
    // SAFETY: the one piece is `buf`, borrowed for the call.
    match unsafe { Scatter::new(&vec) } {
        Some(list) => storage.read(list, offset),
        None => Err(std::io::ErrorKind::InvalidInput.into()),
    }
}

/// Writes all of `buf`, from one slice.
pub fn write_slice(storage: &dyn super::Storage, buf: &[u8], offset: u64) -> std::io::Result<()> {
    let vec = [libc::iovec {
        iov_base: buf.as_ptr().cast_mut().cast(),
        iov_len: buf.len(),
    }];
    // SAFETY: the one piece is `buf`, borrowed for the call, and only read.
    match unsafe { Gather::new(&vec) } {
        Some(list) => storage.write(list, offset),
        None => Err(std::io::ErrorKind::InvalidInput.into()),
    }
}
