//! Bytes that the kernel moves from one file to another, and writing that begins early.
//!
//! Invariant: nothing here fails where the system only lacks the ability: the answer says so, and the caller copies the
//! ordinary way.

use std::io;

use super::{Storage, sys};
use crate::units::ByteRange;

/// Copies `len` bytes within the kernel. Says how many of them, from the first on; the rest is the caller's, also where
/// the system can do nothing of it.
pub(crate) fn copy_range(
    from: &dyn Storage,
    from_offset: u64,
    to: &dyn Storage,
    to_offset: u64,
    len: u64,
) -> io::Result<u64> {
    let (Some(source), Some(target)) = (from.plain_file(), to.plain_file()) else {
        return Ok(0);
    };
    let mut done = 0;
    while done < len {
        let left = usize::try_from(len - done).unwrap_or(usize::MAX);
        match sys::copy_range(source, from_offset + done, target, to_offset + done, left) {
            // The source ends here: to read it says so in words.
            Ok(0) => break,
            Ok(copied) => done += copied as u64,
            Err(error) => return lacking(&error).map_or(Err(error), |()| Ok(done)),
        }
    }
    Ok(done)
}

/// Has the system begin to write `range` out, so that a sync at the end has less to wait for. A hint: nothing becomes
/// durable by it, and a system that cannot is none the worse.
pub(crate) fn start_writeback(storage: &dyn Storage, range: ByteRange) {
    if let Some(file) = storage.plain_file() {
        let _ = sys::start_writeback(file, range.start(), range.len());
    }
}

/// Has the system write a new file out while it is written: from its beginning on, in order and in large pieces, so that
/// the device gets long writes, and before so much is dirty that writers are slowed down.
#[derive(Default)]
pub(crate) struct Writeback {
    begun: u64,
}

impl Writeback {
    const PIECE: u64 = 8 << 20;

    /// All before `end` is written to `storage`.
    pub(crate) fn reached(&mut self, storage: &dyn Storage, end: u64) {
        if end.saturating_sub(self.begun) >= Self::PIECE {
            start_writeback(storage, ByteRange::between(self.begun, end));
            self.begun = end;
        }
    }
}

/// Something where the error only says that the system cannot do this.
fn lacking(error: &io::Error) -> Option<()> {
    let errno = error.raw_os_error()?;
    matches!(
        errno,
        libc::EOPNOTSUPP
            | libc::EXDEV
            | libc::EINVAL
            | libc::ENOTTY
            | libc::ENOSYS
            | libc::EPERM
            | libc::ETXTBSY
    )
    .then_some(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::storage::{Folder as _, HostFolder, Role, read_slice, write_slice};

    #[test]
    fn what_the_kernel_copies_is_what_is_there_and_the_rest_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let folder = HostFolder::open(dir.path()).unwrap();
        let from = folder.create(Role::Image, Path::new("from")).unwrap();
        let to = folder.create(Role::Image, Path::new("to")).unwrap();
        let bytes: Vec<u8> = (0..100_000u32)
            .map(|at| at.to_le_bytes()[at as usize % 3])
            .collect();
        write_slice(&*from, &bytes, 0).unwrap();
        let done = copy_range(&*from, 1000, &*to, 5000, 200_000).unwrap();
        assert!(done <= 99_000, "{done} bytes are more than there are");
        let mut found = vec![0; usize::try_from(done).unwrap()];
        read_slice(&*to, &mut found, 5000).unwrap();
        assert_eq!(found, bytes[1000..1000 + found.len()]);
        start_writeback(&*to, ByteRange::between(0, 100_000));
    }
}
