//! How a test says what it could not do here.

use std::fmt::Display;
use std::io::Write as _;

/// Says it past the capture of a passing test's output: what was not tested must be seen.
pub fn skipped(why: impl Display) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}
