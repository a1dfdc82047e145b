//! Opening a disk for a verb, with a word of help for the mistake that everybody makes once: naming the image.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use qbm::{Disk, Error, ErrorCode, OpenOptions};

use crate::failure::{Failure, Outcome};

/// Opens the disk for reading; no file of it is changed.
pub fn to_read(path: &Path) -> Outcome<Disk> {
    open(&OpenOptions::new().read_only(true), path)
}

/// Opens the disk for reading and writing.
pub fn to_write(path: &Path) -> Outcome<Disk> {
    open(&OpenOptions::new(), path)
}

fn open(options: &OpenOptions, path: &Path) -> Outcome<Disk> {
    options.open(path).map_err(|error| explain(error, path))
}

fn explain(error: Error, path: &Path) -> Failure {
    if error.code() == ErrorCode::DescriptorInvalid && !begins_like_json(path) {
        let hint = "it is no QBM descriptor; \"qbm create --image\" makes one for a raw image";
        return Failure::Hint(error, hint.to_owned());
    }
    Failure::Engine(error)
}

/// Whether the file's first byte could be a descriptor's. Where it cannot be read, the engine's words stand alone.
fn begins_like_json(path: &Path) -> bool {
    let mut first = [0];
    match File::open(path).and_then(|mut file| file.read(&mut first)) {
        Ok(1) => first[0] == b'{' || first[0].is_ascii_whitespace(),
        _ => true,
    }
}
