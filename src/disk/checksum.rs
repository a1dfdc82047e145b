//! The checksum of an image: SHA-256 over all of its bytes, holes as the zeros that they read as.

use std::ops::ControlFlow;

use sha2::{Digest, Sha256};

use super::Child;
use super::overlay::Progress;
use crate::descriptor::Checksum;
use crate::error::{Error, ErrorCode, Result};
use crate::storage::read_slice;
use crate::units::ByteRange;

/// The most bytes that are read at once, and the progress is told of.
const STEP: u64 = 1 << 20;

/// What the image hashes to. `progress` is told in bytes, and ends it with [`ErrorCode::Canceled`].
pub(super) fn of(image: &Child, progress: &mut Progress<'_>) -> Result<Checksum> {
    let length = image.storage.length().map_err(|e| image.failed("measure", &e))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; usize::try_from(STEP.min(length)).unwrap_or(usize::MAX)];
    let mut at = 0;
    // Asked for once and not at each step: what answers may have to walk to the end of it.
    let (mut run, mut data) = (0, false);
    while at < length {
        if run == 0 {
            let rest = ByteRange::between(at, length);
            let extent = image
                .storage
                .extent(rest)
                .map_err(|e| image.failed("find the data of", &e))?;
            (run, data) = (extent.len.clamp(1, rest.len()), extent.data);
        }
        let len = run.min(STEP);
        let part = &mut buffer[..usize::try_from(len).unwrap_or(usize::MAX)];
        if data {
            read_slice(&*image.storage, part, at).map_err(|e| image.failed("read", &e))?;
        } else {
            part.fill(0);
        }
        hash.update(&*part);
        at += len;
        run -= len;
        if let ControlFlow::Break(()) = progress(at, length) {
            return Err(Error::new(ErrorCode::Canceled, "the caller ended it"));
        }
    }
    Ok(Checksum(hash.finalize().into()))
}

/// Why an image that hashes to `found` is not what the descriptor says, in words.
pub(super) fn mismatch(image: &Child, wanted: Checksum, found: Checksum) -> String {
    format!(
        "{} has the checksum {found}, and QBM.image.checksum is {wanted}: the image was changed, or is damaged",
        image.path.display()
    )
}

/// Fails where the image does not hash to `wanted`.
pub(super) fn verify(image: &Child, wanted: Checksum) -> Result<()> {
    match of(image, &mut |_, _| ControlFlow::Continue(()))? {
        found if found == wanted => Ok(()),
        found => Err(Error::new(ErrorCode::FileInvalid, mismatch(image, wanted, found))),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::storage::{Extent, FileIdentity, Gather, Limits, Scatter, Storage, SyncMode, Zeroing};

    /// 16 MiB of ones and 16 MiB of a hole, which count how often somebody asks for them.
    #[derive(Debug, Default)]
    struct Halves(AtomicU64);

    const HALF: u64 = 16 * STEP;

    impl Storage for Halves {
        fn read(&self, into: Scatter<'_>, offset: u64) -> io::Result<()> {
            assert!(offset + into.len() as u64 <= HALF, "the hole is read");
            into.copy_from(0, &vec![1; into.len()]);
            Ok(())
        }

        fn extent(&self, range: ByteRange) -> io::Result<Extent> {
            self.0.fetch_add(1, Ordering::Relaxed);
            let data = range.start() < HALF;
            let end = if data { HALF.min(range.end()) } else { range.end() };
            Ok(Extent {
                data,
                len: end - range.start(),
            })
        }

        fn length(&self) -> io::Result<u64> {
            Ok(2 * HALF)
        }

        fn write(&self, _: Gather<'_>, _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn write_zeroes(&self, _: ByteRange, _: Zeroing) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn discard(&self, _: ByteRange) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn sync(&self, _: SyncMode) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn set_length(&self, _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn allocate(&self, _: ByteRange) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn allocated_bytes(&self) -> io::Result<u64> {
            Ok(HALF)
        }

        fn limits(&self) -> Limits {
            Limits::default()
        }

        fn identity(&self) -> Option<FileIdentity> {
            None
        }
    }

    /// A format walks its tables to the end of a run: once for each run, not for each piece that is read.
    #[test]
    fn each_run_is_asked_for_once() {
        let halves = Arc::new(Halves::default());
        let storage: Arc<dyn Storage> = halves.clone();
        let image = Child::new(storage, PathBuf::from("a.img"));
        let mut steps = 0;
        let found = of(&image, &mut |_, _| {
            steps += 1;
            ControlFlow::Continue(())
        });
        let mut hash = Sha256::new();
        hash.update(vec![1; usize::try_from(HALF).unwrap()]);
        hash.update(vec![0; usize::try_from(HALF).unwrap()]);
        assert!(found.unwrap() == Checksum(hash.finalize().into()));
        assert_eq!(steps, 32);
        assert_eq!(halves.0.load(Ordering::Relaxed), 2);
    }
}
