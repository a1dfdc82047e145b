//! Opening a disk for a verb, with a word of help for the mistake that everybody makes once: naming the image; and for
//! the refusal that everybody meets once: a disk in use.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use qbm::{Disk, Error, ErrorCode, OpenOptions};

use crate::failure::{Failure, Outcome};

/// What a verb that only reads may do without.
#[derive(clap::Args)]
pub struct Share {
    /// Read the disk though it may be in use: without a lock, what is shown may be out of date, or of the middle of a
    /// change
    #[arg(short = 'U', long)]
    pub force_share: bool,
}

/// Opens the disk for reading; no file of it is changed.
pub fn to_read(path: &Path) -> Outcome<Disk> {
    shared(path, &Share { force_share: false })
}

/// The same, without a lock where the user says so.
pub fn shared(path: &Path, share: &Share) -> Outcome<Disk> {
    OpenOptions::new()
        .read_only(true)
        .no_lock(share.force_share)
        .open(path)
        .map_err(|error| match error.code() {
            ErrorCode::Locked => Failure::Hint(error, "-U reads it all the same".to_owned()),
            _ => explain(error, path),
        })
}

/// Opens the disk for reading and writing.
pub fn to_write(path: &Path) -> Outcome<Disk> {
    OpenOptions::new().open(path).map_err(|error| match error.code() {
        ErrorCode::Locked => Failure::Hint(
            error,
            "close the disk there first, or have it done by the program that has it open".to_owned(),
        ),
        _ => explain(error, path),
    })
}

/// What to do where another program has a lock that is in the way.
pub const STOP_IT: &str = "stop the program that has it open, or have it closed there";

/// And where that is a QEMU, which may have recorded what it wrote: it names its process with its lock.
pub fn stop_it_and_take(error: &Error) -> String {
    if error.message().contains("(qemu") {
        return format!(
            "{STOP_IT}; if it runs on an export of the disk, \"qbm import --bitmaps\" then takes what it recorded"
        );
    }
    STOP_IT.to_owned()
}

pub fn explain(error: Error, path: &Path) -> Failure {
    if error.code() == ErrorCode::DescriptorInvalid && !begins_like_json(path) {
        return Failure::Hint(error, NO_DESCRIPTOR.to_owned());
    }
    error.into()
}

/// What to tell whoever names an image.
pub const NO_DESCRIPTOR: &str = "it is no QBM descriptor; \"qbm create --image\" makes one for a raw image";

/// The command that makes the descriptor `disk` for the raw image `image`.
pub fn how_to_describe(image: &Path, disk: &Path) -> String {
    // The name of an image is relative to the descriptor's folder.
    let name = if image.is_absolute() || image.parent() != disk.parent() {
        std::path::absolute(image).unwrap_or_else(|_| image.to_owned())
    } else {
        image.file_name().map_or_else(|| image.to_owned(), Into::into)
    };
    format!("\"qbm create --image {} {}\"", name.display(), disk.display())
}

/// Whether the file's first byte could be a descriptor's. Where it cannot be read, the engine's words stand alone.
pub fn begins_like_json(path: &Path) -> bool {
    let mut first = [0];
    match File::open(path).and_then(|mut file| file.read(&mut first)) {
        Ok(1) => first[0] == b'{' || first[0].is_ascii_whitespace(),
        _ => true,
    }
}
