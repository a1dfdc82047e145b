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
    while at < length {
        let rest = ByteRange::between(at, length);
        let extent = image
            .storage
            .extent(rest)
            .map_err(|e| image.failed("find the data of", &e))?;
        let len = extent.len.clamp(1, STEP).min(rest.len());
        let part = &mut buffer[..usize::try_from(len).unwrap_or(usize::MAX)];
        if extent.data {
            read_slice(&*image.storage, part, at).map_err(|e| image.failed("read", &e))?;
        } else {
            part.fill(0);
        }
        hash.update(&*part);
        at += len;
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
