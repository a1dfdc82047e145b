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
pub(crate) use export::bitmaps_for_qemu;
pub use export::{ExportOptions, Exported};
pub use import::{ImportOptions, Imported};

use crate::error::{Error, ErrorCode, Result};

/// In a qcow2 that an export made: what was written through it since. It makes the way back safe, whatever QEMU does to
/// its other bitmaps meanwhile: clears them after backups of its own, removes them, makes new ones of the same name.
const SINCE_EXPORT: &str = "qbm-since-export";

/// How the descriptor in `folder` is to call the file at `path`: by its bare name where that lies in the same folder, so
/// that both can be moved together.
fn name_from(folder: &Path, path: &Path) -> Result<String> {
    let whole = whole_path(path)?;
    let same_folder = whole.parent() == Some(&*followed(folder)?);
    let name = match whole.file_name() {
        Some(file) if same_folder => in_words(Path::new(file))?,
        _ => return in_words(&whole),
    };
    // What stands before a colon would be a scheme.
    Ok(format!("{}{name}", if name.contains(':') { "./" } else { "" }))
}

/// The file's path from the root. Links are followed in the folders only: that of a device is to stay the name it has.
fn whole_path(path: &Path) -> Result<PathBuf> {
    let Some(file) = path.file_name() else {
        return Err(Error::new(
            ErrorCode::InvalidArgument,
            format!("{} names no file", path.display()),
        ));
    };
    Ok(followed(path.parent().unwrap_or(Path::new("")))?.join(file))
}

fn in_words(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Error::new(
            ErrorCode::NotSupported,
            format!("the name {} is not UTF-8", path.display()),
        )
    })
}

fn followed(folder: &Path) -> Result<PathBuf> {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    std::fs::canonicalize(folder).map_err(|e| Error::io("find", folder, &e))
}
