//! The way from QEMU and to it: dirty bitmaps in a qcow2 whose data is a raw image, which QBM disks have, too.
//!
//! May call `format`. No byte of an image is copied, and none changed. Invariant (D1): a bitmap is taken along only
//! with every bit that it must have, or it is refused, or left out by name.

mod back;
mod export;
mod import;
mod source;

use std::path::{Path, PathBuf};

pub use back::Merged;
pub use export::{ExportOptions, Exported};
pub use import::{ImportOptions, Imported};

use crate::error::{Error, ErrorCode, Result};

/// In a qcow2 that an export made: what was written through it since. It makes the way back safe, whatever QEMU does to
/// its other bitmaps meanwhile: clears them after backups of its own, removes them, makes new ones of the same name.
const SINCE_EXPORT: &str = "qbm-since-export";

/// How a file in `folder` is to call the file at `path`: by its bare name where that lies in the same folder, so that
/// both can be moved together. Links are followed in the folders only: that of a device is to stay the name it has.
fn name_from(folder: &Path, path: &Path) -> Result<String> {
    let parent = followed(path.parent().unwrap_or(Path::new("")))?;
    let file = path.file_name().ok_or_else(|| {
        Error::new(
            ErrorCode::InvalidArgument,
            format!("{} names no file", path.display()),
        )
    })?;
    let named = if parent == followed(folder)? {
        PathBuf::from(file)
    } else {
        parent.join(file)
    };
    let name = named.to_str().ok_or_else(|| {
        Error::new(
            ErrorCode::NotSupported,
            format!("the name {} is not UTF-8", named.display()),
        )
    })?;
    // What stands before a colon would be a protocol, for QEMU and for libqbm alike.
    let protocol = !name.starts_with('/') && name.contains(':');
    Ok(format!("{}{name}", if protocol { "./" } else { "" }))
}

fn followed(folder: &Path) -> Result<PathBuf> {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    std::fs::canonicalize(folder).map_err(|e| Error::io("find", folder, &e))
}
