//! One error type for the whole library: a stable code, an errno for C, and a sentence for people.
//!
//! Invariant: the sentence names what was tried, on which file, and why it failed; it is one line, without control
//! characters, so that it can be printed as it is.

use std::fmt::{self, Display};
use std::io;
use std::path::Path;

/// What kind of failure an [`Error`] is. The numbers are part of the C ABI and never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
#[non_exhaustive]
pub enum ErrorCode {
    /// An argument that no disk could accept: a NULL pointer, an unknown flag, a malformed option.
    InvalidArgument = 1,
    /// A range that does not lie within the disk.
    OutOfRange = 2,
    /// Memory could not be had, or a limit that the caller set would be exceeded.
    NoMemory = 3,
    /// A system call on one of the disk's files failed; the errno is the system's.
    Io = 4,
    /// A file does not exist.
    FileNotFound = 5,
    /// A file exists already and is never overwritten.
    FileExists = 6,
    /// The system denied access to a file.
    PermissionDenied = 7,
    /// The disk, or its folder, may not be changed.
    ReadOnly = 8,
    /// The descriptor is not one: malformed, incomplete, or with a value out of its range.
    DescriptorInvalid = 9,
    /// A file of the disk does not fit the descriptor: missing bits, wrong kind, used twice.
    FileInvalid = 10,
    /// A feature, format or operation that this library or this image cannot do.
    NotSupported = 11,
    /// The disk has failed before and refuses further use until it is reopened.
    Failed = 12,
    /// The handle was opened by the parent process and is dead in this forked child.
    Forked = 13,
    /// Another process, or another handle, uses the disk.
    Locked = 14,
    /// The caller's callback ended the operation.
    Canceled = 15,
    /// No bitmap has that name.
    BitmapNotFound = 16,
    /// A bitmap has that name already.
    BitmapExists = 17,
    /// The bitmap is frozen: a backup uses it.
    BitmapBusy = 18,
    /// The bitmap can no longer be trusted; it may only be removed or repaired.
    BitmapInconsistent = 19,
    /// The bitmap is not in the state that the operation needs.
    BitmapState = 20,
    /// A struct from a newer header sets a field that this library does not know.
    StructTooLarge = 21,
}

impl ErrorCode {
    /// The errno of this kind of failure where no system call supplied one.
    const fn default_errno(self) -> i32 {
        match self {
            Self::InvalidArgument
            | Self::OutOfRange
            | Self::DescriptorInvalid
            | Self::FileInvalid
            | Self::BitmapState => libc::EINVAL,
            Self::NoMemory => libc::ENOMEM,
            Self::Io | Self::Failed => libc::EIO,
            Self::FileNotFound | Self::BitmapNotFound => libc::ENOENT,
            Self::FileExists | Self::BitmapExists => libc::EEXIST,
            Self::PermissionDenied => libc::EACCES,
            Self::ReadOnly => libc::EROFS,
            Self::NotSupported => libc::ENOTSUP,
            Self::Forked => libc::ESTALE,
            Self::Locked | Self::BitmapBusy => libc::EBUSY,
            Self::Canceled => libc::ECANCELED,
            Self::BitmapInconsistent => libc::EUCLEAN,
            Self::StructTooLarge => libc::E2BIG,
        }
    }
}

/// A failure: a stable [`ErrorCode`], an errno, and a sentence that names the file and the reason.
///
/// One pointer wide, so that the success path of every call stays cheap.
pub struct Error(Box<Inner>);

struct Inner {
    code: ErrorCode,
    errno: i32,
    message: String,
}

/// A result whose failure is an [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `code`, in words, with the errno that belongs to the code.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::with_errno(code, code.default_errno(), message)
    }

    /// An error of `code` with an errno of its own.
    pub fn with_errno(code: ErrorCode, errno: i32, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            code,
            errno,
            message: printable(message.into()),
        }))
    }

    /// What a system call on a file failed with: `cannot read disk.img: Input/output error`.
    pub fn io(action: &str, file: impl AsRef<Path>, error: &io::Error) -> Self {
        let reason = Self::system(error);
        let message = format!(
            "cannot {action} {}: {}",
            file.as_ref().display(),
            reason.message()
        );
        Self::with_errno(reason.code(), reason.errno(), message)
    }

    /// The same in fewer words, where what was tried on which file stands in front already: `Input/output error`.
    pub fn system(error: &io::Error) -> Self {
        // One of ours, from an image that is a disk itself: it has said all of it.
        if let Some(ours) = error.get_ref().and_then(|it| it.downcast_ref::<Self>()) {
            return Self::with_errno(ours.code(), ours.errno(), ours.message());
        }
        let errno = errno_of(error);
        let code = match errno {
            libc::ENOENT => ErrorCode::FileNotFound,
            libc::EEXIST => ErrorCode::FileExists,
            libc::EACCES | libc::EPERM => ErrorCode::PermissionDenied,
            libc::EROFS => ErrorCode::ReadOnly,
            libc::ENOMEM => ErrorCode::NoMemory,
            libc::ENOTSUP => ErrorCode::NotSupported,
            // Not the system's refusal but our own: what was opened is no file of the kind that it must be.
            libc::EINVAL if error.raw_os_error().is_none() => ErrorCode::FileInvalid,
            _ => ErrorCode::Io,
        };
        Self::with_errno(code, errno, words(error))
    }

    /// The same error with what was being tried in front: `context: message`.
    #[must_use]
    pub fn context(mut self, context: impl Display) -> Self {
        self.0.message = printable(format!("{context}: {}", self.0.message));
        self
    }

    /// The same error with what to do about it behind: `message; hint`.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Display) -> Self {
        self.0.message = printable(format!("{}; {hint}", self.0.message));
        self
    }

    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        self.0.code
    }

    /// The errno, positive.
    pub fn errno(&self) -> i32 {
        self.0.errno
    }

    /// The sentence.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

/// `text` with escapes in place of control characters, as `\u{1b}`, line breaks included: what a descriptor calls its files
/// may be meant for the terminal of whoever reads of them.
///
/// Errors and notices are so already.
pub fn printable(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for char in text.chars() {
        if char.is_control() {
            escaped.extend(char.escape_default());
        } else {
            escaped.push(char);
        }
    }
    escaped
}

/// The errno in an [`io::Error`], or the nearest one where it was not made by a system call.
fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(match error.kind() {
        io::ErrorKind::OutOfMemory => libc::ENOMEM,
        io::ErrorKind::InvalidInput => libc::EINVAL,
        io::ErrorKind::Unsupported => libc::ENOTSUP,
        io::ErrorKind::ReadOnlyFilesystem => libc::EROFS,
        _ => libc::EIO,
    })
}

/// The reason alone, without the `(os error 5)` that `io::Error` appends.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error ") {
        Some((reason, _)) => reason.to_owned(),
        None => text,
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("code", &self.0.code)
            .field("errno", &self.0.errno)
            .field("message", &self.0.message)
            .finish()
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file's name comes from a descriptor, and may be made to write to the terminal of whoever reads of it.
    #[test]
    fn a_message_has_no_control_characters() {
        let error = io::Error::from_raw_os_error(libc::ENOENT);
        let error = Error::io("open", "d\u{1b}[31m\n\u{9b}é.img", &error).context("a\tb");
        assert_eq!(
            error.message(),
            "a\\tb: cannot open d\\u{1b}[31m\\n\\u{9b}é.img: No such file or directory"
        );
    }
}
