//! Opening an image that may have no descriptor: as the format that the user says, and never as what it looks like.

use std::path::Path;

use qbm::{Disk, ErrorCode, Format, OpenOptions};

use crate::failure::{Failure, Outcome};
use crate::open::{self, Share};

/// Reads a format's name on the command line.
pub fn parse_format(text: &str) -> Result<Format, String> {
    text.parse()
        .map_err(|error: qbm::Error| format!("it {}", error.message()))
}

/// Whether the name says that it is a descriptor: the one thing that is not to be told.
pub fn is_named_qbm(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("qbm"))
}

/// Opens an image for reading. `letter` is the option that says what it is.
pub fn to_read(path: &Path, format: Option<Format>, share: &Share, letter: &str) -> Outcome<Disk> {
    let format = match format {
        Some(format) => format,
        None if is_named_qbm(path) => Format::Qbm,
        None => {
            return Err(Failure::Usage(format!(
                "{letter} must say what {} is, as its name does not end in .qbm: raw, qbm, qcow2 or vmdk (it is not \
                 guessed: a guest could make a raw image look like another)",
                path.display()
            )));
        }
    };
    if format == Format::Qbm {
        return open::shared(path, share);
    }
    OpenOptions::new()
        .read_only(true)
        .no_lock(share.force_share)
        .image_format(format)
        .open(path)
        .map_err(|error| match error.code() {
            ErrorCode::Locked => Failure::Hint(error, "-U reads it all the same".to_owned()),
            _ => error.into(),
        })
}
