//! The C programs of `c-tests/` and `examples/c/`, linked into this program: one test each.
//!
//! A story may fork, change its root or drop rights, so each runs in a process of its own: the test starts this very
//! program again for itself alone, and that process runs the story on its main thread and leaves with its status.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/limited.rs"]
mod limited;
#[path = "common/skip.rs"]
mod skip;

use std::ffi::c_int;
use std::process::{Command, exit};

// Nothing here calls the crate, but the stories do: this links it.
use qbm as _;

/// Set in the process that runs a story.
const INSIDE: &str = "QBM_STORY_INSIDE";
const SKIPPED: i32 = 77;

macro_rules! story {
    ($name:ident, $symbol:ident, $file:literal) => {
        #[link(name = "qbm_c_stories", kind = "static")]
        unsafe extern "C" {
            fn $symbol() -> c_int;
        }
        #[test]
        fn $name() {
            run(stringify!($name), $file, $symbol);
        }
    };
}
include!(concat!(env!("OUT_DIR"), "/c_stories.rs"));

fn run(name: &str, file: &str, story: unsafe extern "C" fn() -> c_int) {
    if std::env::var_os(INSIDE).is_some() {
        // SAFETY: a C `main` without arguments, called once, on the main thread of a process of its own.
        exit(unsafe { story() });
    }
    let folder = tempfile::tempdir().expect("a folder for the story");
    let (status, said) = limited::run_limited(
        Command::new(std::env::current_exe().expect("the path of this program"))
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(INSIDE, "1")
            .env("QBM_STORY_DIR", folder.path()),
    );
    match status.code() {
        Some(0) => {}
        Some(SKIPPED) => skip::skipped(format_args!("{file}: {}", said.trim())),
        _ => panic!("{file}: {status}\n{said}"),
    }
}
