//! System calls that fail in turn, for real: strace makes the kernel answer EIO, ENOSPC or EINTR to the tool, and to a guest.
//! The error is told in words, or borne; and the disk is what it was, or what it was to become.
//!
//! An ordinary run fails a few calls of each kind in each story; `QBM_LONG=1` fails every one. Says so and passes where
//! strace cannot be used.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers beside the tests may fail as loudly as the tests"
)]

#[path = "failing_calls/guest.rs"]
mod guest;
#[path = "failing_calls/held.rs"]
mod held;
#[path = "common/names.rs"]
mod names;
#[allow(dead_code, reason = "the tests of the tool need more of it")]
#[path = "tool/room.rs"]
mod room;
#[path = "common/skip.rs"]
mod skip;
#[path = "failing_calls/stories.rs"]
mod stories;
#[path = "failing_calls/traced.rs"]
mod traced;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Output;
use std::sync::atomic::{AtomicUsize, Ordering};

use guest::Kind;
use room::{Room, text};
use skip::skipped;
use stories::{STORIES, Story};
use traced::{Failing, Program};

/// Whether every call is to fail.
fn all() -> bool {
    std::env::var_os("QBM_LONG").is_some()
}

/// Has each of these calls fail, two at a time, in a room that is as `before`.
fn each(before: &Room, calls: &[Failing], what: &str, run: impl Fn(&Room, &Failing) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(failing) = calls.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let room = held::copy(before);
                    let looked = catch_unwind(AssertUnwindSafe(|| run(&room, failing)));
                    assert!(looked.is_ok(), "{what}, {failing:?}: see above");
                }
            });
        }
    });
    println!("{what}: {} calls failed", calls.len());
    assert!(!calls.is_empty(), "{what}");
}

/// Whether the tool says that it has done its work; fails where it says neither that nor why not.
fn told(story: &Story, failing: &Failing, output: &Output) -> bool {
    let (said, complaint) = (text(&output.stdout), text(&output.stderr));
    let code = output.status.code();
    assert!(!complaint.contains("panicked"), "{complaint}");
    if code == Some(0) {
        return true;
    }
    assert!(matches!(code, Some(1..=3)), "{:?}: {complaint}", output.status);
    let told = format!("{complaint}{said}");
    assert!(
        told.contains(failing.reason) && !told.contains("os error"),
        "exit {code:?}, {told:?}"
    );
    let mut names = story.names.iter().chain(&["standard output"]);
    assert!(
        names.any(|name| told.contains(name)),
        "it does not say of what: {told:?}"
    );
    false
}

#[test]
fn the_tool_tells_of_each_call_that_fails_and_loses_nothing() {
    for story in &STORIES {
        let before = Room::new();
        (story.before)(&before);
        let program = Program::tool(story.args);
        let calls = match program.failing(&held::copy(&before), all()) {
            Ok(calls) => calls,
            Err(why) => return skipped(format_args!("failing system calls: {why}")),
        };
        each(&before, &calls, &story.args.join(" "), |room, failing| {
            let done = told(story, failing, &program.run(room, failing));
            (story.after)(room, done);
        });
    }
}

#[test]
fn a_guest_is_told_of_each_call_that_fails_and_loses_nothing() {
    for kind in [Kind::Plain, Kind::Overlay] {
        let before = kind.room();
        let copy = held::copy(&before);
        let calls = match Kind::with(&copy, |guest| guest.failing(&copy, all())) {
            Ok(calls) => calls,
            Err(why) => return skipped(format_args!("failing system calls: {why}")),
        };
        each(&before, &calls, &format!("{kind:?}"), |room, failing| {
            let output = Kind::with(room, |guest| guest.run(room, failing));
            kind.look(room, failing, &output);
        });
    }
}
