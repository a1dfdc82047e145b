//! What a qcow2 image was before this open, which changes its header, looked into it.

use std::path::Path;

use crate::disk::Child;
use crate::error::{Error, Result};
use crate::format::qcow2::mark_in;
use crate::mutation::{self, Fault};
use crate::state::Stamp;
use crate::storage::Storage;

/// A qcow2 before it was opened in its format. For writing, that has the bitmaps in it made invalid by a change of its header:
/// this is no foreign write.
#[derive(Clone, Copy)]
pub(in crate::disk) struct Before {
    pub(in crate::disk) stamp: Stamp,
    /// Of the stamp that it had before an earlier open, which was killed behind that change.
    mark: u64,
}

impl Before {
    pub(in crate::disk) fn look(file: &dyn Storage, path: &Path) -> Result<Self> {
        Ok(Self {
            stamp: Stamp::of(file, path)?,
            mark: mark_in(file).map_err(|e| Error::io("read the header of", path, &e))?,
        })
    }

    /// The same of `image`, the opened one, which may be more files than that.
    pub(in crate::disk) fn with_all_files(self, image: &Child) -> Self {
        let version = image.mapped.as_ref().and_then(|it| it.version_found());
        Self {
            stamp: version.map_or(self.stamp, |version| self.stamp.of_files(version)),
            ..self
        }
    }

    /// The image as it was found where `then` was kept of it, and whether it is that one but for its header.
    pub(super) fn found(&self, then: &Stamp, now: Stamp) -> (Stamp, bool) {
        let marked = self.mark != 0 && self.mark == then.mark() && !mutation::on(Fault::MarkUnread);
        let found = if marked { then } else { &self.stamp };
        (now.as_found(found), marked)
    }
}
