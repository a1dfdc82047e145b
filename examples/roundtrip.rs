//! Makes a disk, writes to it, reads back, and walks its data.
//!
//! ```text
//! cargo run --example roundtrip -- FOLDER
//! ```

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use qbm::{CreateOptions, Disk, Result, StatusFlags, WriteFlags};

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1) else {
        eprintln!("usage: roundtrip FOLDER");
        return ExitCode::FAILURE;
    };
    match round_trip(&PathBuf::from(folder).join("rust.qbm")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Does it all with a new disk at `path`.
///
/// # Panics
///
/// Where something else is read back than what was written.
pub fn round_trip(path: &Path) -> Result<()> {
    CreateOptions::new().size(4 << 20).create(path)?;
    let disk = Disk::open(path)?;

    let text = b"written by Rust";
    disk.write(text, 1 << 20, WriteFlags::empty())?;
    disk.write(&[0xff], disk.length() - 1, WriteFlags::FUA)?;
    disk.flush()?;

    let mut back = [0; 15];
    disk.read(&mut back, 1 << 20)?;
    assert_eq!(&back, text, "what was written is read back");

    let mut offset = 0;
    while offset < disk.length() {
        let extent = disk.block_status(offset, disk.length() - offset)?;
        let kind = if extent.flags.contains(StatusFlags::DATA) {
            "data"
        } else {
            "zero"
        };
        println!("{offset:>10} {:>10} {kind}", extent.length);
        offset += extent.length;
    }

    if let Err(error) = disk.read(&mut back, disk.length()) {
        println!("as it should, this fails: {error}");
    }
    disk.close()
}
