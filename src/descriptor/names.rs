//! Names of a disk's files: what a name in a descriptor means, and how the files that libqbm makes are called.
//!
//! Invariant: a name made here reads back through [`child_path`] as itself, is at most 255 bytes long, and is never
//! taken from a file that exists.

#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, ErrorCode, Result};
use crate::storage::{Folder, NewFile, Role, Storage};

/// The longest file name on the file systems of Linux, in bytes.
const MAX_FILE_NAME: usize = 255;

/// The highest number that [`create_unique`] appends.
const MAX_NUMBER: u32 = 99_999;

/// The longest of its forms: a dash and five digits.
const NUMBER_BYTES: usize = 6;

/// The file that a name in a descriptor stands for: relative to the descriptor's folder, or absolute.
///
/// `file:` in front is stripped. Any other scheme is [`ErrorCode::NotSupported`]; as in QEMU that is what stands
/// before a colon that comes before any slash. An empty name, or one with a NUL, is [`ErrorCode::InvalidArgument`].
pub fn child_path(name: &str) -> Result<&Path> {
    let path = match name.strip_prefix("file:") {
        Some(path) => path,
        None => match scheme(name) {
            None => name,
            Some(scheme) => {
                return Err(Error::new(
                    ErrorCode::NotSupported,
                    format!(
                        "begins with the scheme \"{scheme}:\", and only files are supported (\"./\" in front makes \
                         it a file's name)"
                    ),
                ));
            }
        },
    };
    if path.is_empty() {
        return Err(Error::new(ErrorCode::InvalidArgument, "names no file"));
    }
    if path.contains('\0') {
        return Err(Error::new(ErrorCode::InvalidArgument, "has a NUL in it"));
    }
    Ok(Path::new(path))
}

fn scheme(name: &str) -> Option<&str> {
    let (scheme, _) = name.split_once(':')?;
    let of_scheme = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    (!scheme.is_empty() && scheme.bytes().all(of_scheme)).then_some(scheme)
}

/// A name for a new file: a base, to which a number may be appended, and an extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileName {
    base: String,
    extension: &'static str,
}

impl FileName {
    /// The data image of the disk that `descriptor` describes: `disk-data.img`.
    pub fn data(descriptor: &Path) -> Self {
        Self::shortened(format!("{}-data", stem(descriptor)), ".img")
    }

    /// The file of a bitmap: `disk-nightly.bitmap`.
    pub fn bitmap(descriptor: &Path, bitmap: &str) -> Self {
        Self::shortened(
            format!("{}-{}", stem(descriptor), escaped(bitmap.as_bytes(), true)),
            ".bitmap",
        )
    }

    /// The state file: `disk.state`.
    pub fn state(descriptor: &Path) -> Self {
        Self::shortened(stem(descriptor), ".state")
    }

    /// A file beside `descriptor` that is to take its name: `.disk.qbm.tmp`.
    pub fn temporary(descriptor: &Path) -> Self {
        let name = descriptor.file_name().unwrap_or_default();
        Self::shortened(format!(".{}", escaped(name.as_bytes(), false)), ".tmp")
    }

    /// Whether a file of this name, with a number or without, is called `name`.
    pub fn is_of(&self, name: &str) -> bool {
        let Some(numbered) = name.strip_suffix(self.extension) else {
            return false;
        };
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits && text.len() < NUMBER_BYTES && !text.starts_with('0')
        };
        numbered
            .strip_prefix(self.base.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.strip_prefix('-').is_some_and(number))
    }

    /// What the name of a bitmap's file begins with, where it is not too long for that: `disk-`.
    pub fn bitmap_prefix(descriptor: &Path) -> String {
        format!("{}-", stem(descriptor))
    }

    /// What it ends with.
    pub const BITMAP_SUFFIX: &'static str = ".bitmap";

    /// The name, with `base` cut where the whole would be too long and a hash of all of it at the cut, so that two
    /// long names that differ at the end stay different.
    fn shortened(mut base: String, extension: &'static str) -> Self {
        let room = MAX_FILE_NAME - extension.len() - NUMBER_BYTES;
        if base.len() > room {
            let mark = format!("~{:016x}", fnv1a(base.as_bytes()));
            base.truncate(floor_of(&base, room - mark.len()));
            base.push_str(&mark);
        }
        Self { base, extension }
    }

    /// The name, and then with every number that it may have.
    pub fn candidates(&self) -> impl Iterator<Item = String> + '_ {
        (0..=MAX_NUMBER).map(|number| self.numbered(number))
    }

    /// Gives a new file the first of these names that is free, and says which.
    pub(crate) fn give_to(&self, file: &mut NewFile) -> io::Result<String> {
        let mut refused = io::ErrorKind::AlreadyExists.into();
        for name in self.candidates() {
            match file.publish(Path::new(&name)) {
                Ok(()) => return Ok(name),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => refused = e,
                Err(e) => return Err(e),
            }
        }
        Err(refused)
    }

    fn numbered(&self, number: u32) -> String {
        match number {
            0 => self.to_string(),
            _ => format!("{}-{number}{}", self.base, self.extension),
        }
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.base, self.extension)
    }
}

/// Makes an empty file of that name, or where the name is taken, of that name with a number: `disk-nightly-1.bitmap`.
///
/// Nothing that exists is ever opened or overwritten. Returns the name that the descriptor is to hold. The name is
/// durable only after [`Folder::sync`].
pub fn create_unique(folder: &dyn Folder, role: Role, name: &FileName) -> Result<(String, Arc<dyn Storage>)> {
    create_with(name, |candidate| folder.create(role, candidate))
}

/// The same, with the mode, owner and extended attributes of the file `like`, as far as this process may: who can use that
/// one can use the new one, and nobody else.
pub fn create_unique_like(
    folder: &dyn Folder,
    role: Role,
    name: &FileName,
    like: &Path,
) -> Result<(String, Arc<dyn Storage>)> {
    let (name, storage) = create_with(name, |candidate| folder.create_private(role, candidate))?;
    take_after(folder, Path::new(&name), like)?;
    Ok((name, storage))
}

/// The same, under a name that `taken` says nothing of, whether or not there is such a file.
pub fn create_untaken_like(
    folder: &dyn Folder,
    role: Role,
    name: &FileName,
    like: &Path,
    taken: impl Fn(&Path) -> bool,
) -> Result<(String, Arc<dyn Storage>)> {
    let (name, storage) = create_with(name, |candidate| {
        if taken(candidate) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        folder.create_private(role, candidate)
    })?;
    take_after(folder, Path::new(&name), like)?;
    Ok((name, storage))
}

/// Gives the new, [private](Folder::create_private) file `name` the attributes of `like`. A failure removes it again.
pub(crate) fn take_after(folder: &dyn Folder, name: &Path, like: &Path) -> Result<()> {
    folder.copy_attributes(like, name).map_err(|error| {
        // The first failure is the one to tell.
        let _ = folder.remove(name);
        Error::io("copy the attributes of", like, &error)
    })
}

fn create_with(
    name: &FileName,
    create: impl Fn(&Path) -> io::Result<Arc<dyn Storage>>,
) -> Result<(String, Arc<dyn Storage>)> {
    for candidate in name.candidates() {
        match create(Path::new(&candidate)) {
            Ok(storage) => return Ok((candidate, storage)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io("create", candidate, &error)),
        }
    }
    Err(Error::new(
        ErrorCode::FileExists,
        format!("cannot create {name}: it exists, and so does every name with a number up to {MAX_NUMBER}"),
    ))
}

/// The last place at or before `at` where `text` can be cut without halving a character or an escape.
fn floor_of(text: &str, at: usize) -> usize {
    let whole = |at: &usize| {
        let behind_escape = |back| at.checked_sub(back).is_some_and(|at| text.as_bytes()[at] == b'%');
        text.is_char_boundary(*at) && !behind_escape(1) && !behind_escape(2)
    };
    (0..=at).rev().find(whole).unwrap_or(0)
}

/// The descriptor's file name without its extension.
fn stem(descriptor: &Path) -> String {
    escaped(descriptor.file_stem().map_or(&[][..], OsStr::as_bytes), false)
}

/// `bytes` as part of a file name. `%XX` stands for a byte of what cannot be there: a slash, a control character, a
/// colon (which would make a scheme), a percent sign of a `name`'s own, a `name`'s leading dot, and what is not UTF-8.
fn escaped(bytes: &[u8], name: bool) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for (index, character) in chunk.valid().char_indices() {
            let leading_dot = character == '.' && index == 0 && out.is_empty();
            if matches!(character, '/' | ':')
                || character.is_control()
                || name && (character == '%' || leading_dot)
            {
                percent(&mut out, character.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                out.push(character);
            }
        }
        percent(&mut out, chunk.invalid());
    }
    out
}

fn percent(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(out, "%{byte:02X}");
    }
}

/// FNV-1a: the same on every machine, and names need no more of a hash, as a clash only costs a number.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
