//! Why a verb failed, as the one line that people see.

use std::fmt;
use std::io;
use std::process::ExitCode;

use qbm::{ErrorCode, printable};

/// What a verb ends with.
pub type Outcome<T = ()> = Result<T, Failure>;

/// Why it failed.
pub enum Failure {
    /// The engine's own words.
    Engine(qbm::Error),
    /// The engine's words, and what the user may do about it.
    Hint(qbm::Error, String),
    /// What the tool itself refuses.
    Refused(String),
    /// A command line that makes no sense, whatever the files are like.
    Usage(String),
    /// Standard output took no more.
    Output(io::Error),
}

impl Failure {
    /// What to exit with.
    pub fn code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }

    /// Whether the reader of standard output went away.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Engine(error) => write!(f, "{error}"),
            Self::Hint(error, hint) => write!(f, "{error} ({})", printable(hint.clone())),
            Self::Refused(words) | Self::Usage(words) => f.write_str(&printable(words.clone())),
            Self::Output(error) => {
                write!(f, "{}", qbm::Error::io("write to", "standard output", error))
            }
        }
    }
}

impl From<qbm::Error> for Failure {
    fn from(error: qbm::Error) -> Self {
        match error.code() {
            // What repairs it depends on why it is so, and that is not known here.
            ErrorCode::BitmapInconsistent => {
                Self::Hint(error, "\"qbm check\" says why, and what repairs it".to_owned())
            }
            _ => Self::Engine(error),
        }
    }
}

impl From<io::Error> for Failure {
    /// The only `io::Error`s that reach a verb are those of its output.
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}
