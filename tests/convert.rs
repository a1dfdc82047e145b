//! `qbm convert`, `compare` and `measure` beside qemu-img: the same content, the same verdicts, the same sizes.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers beside the tests may fail as loudly as the tests"
)]

#[path = "convert/agree.rs"]
mod agree;
#[path = "convert/content.rs"]
mod content;
#[path = "convert/failures.rs"]
mod failures;
#[path = "common/loops.rs"]
mod loops;
#[path = "common/mounted.rs"]
mod mounted;
#[path = "common/names.rs"]
mod names;
#[path = "convert/places.rs"]
mod places;
#[path = "convert/qcow2.rs"]
mod qcow2;
#[path = "common/random.rs"]
mod random;
#[path = "tool/room.rs"]
#[allow(dead_code, reason = "the tests of the tool use all of it")]
mod room;
#[path = "common/run.rs"]
mod run;
#[path = "common/skip.rs"]
mod skip;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::Command;

use random::Random;
use room::Room;

/// Whether qemu-img is there; says so where not.
fn have_qemu() -> bool {
    let there = Command::new("qemu-img").arg("--version").output().is_ok();
    if !there {
        skip::skipped("qemu-img is not installed, so nothing was compared with it");
    }
    there
}

/// Runs qemu-img, which must succeed; what it printed.
fn qemu(room: &Room, args: &[&str]) -> String {
    let output = room.command("qemu-img", args).output().expect("it starts");
    assert!(
        output.status.success(),
        "qemu-img {args:?}: {}",
        room::text(&output.stderr)
    );
    room::text(&output.stdout)
}

/// A sparse raw image of `length` bytes: data, holes, and zeros that are written, of many sizes.
fn scatter(room: &Room, name: &str, length: u64, random: &mut Random) {
    let file = File::create(room.path(name)).expect("a file");
    file.set_len(length).expect("a length");
    for _ in 0..30 {
        let at = random.below(length.max(1));
        let most = [1, 600, 5000, 70_000, 700_000][usize::try_from(random.below(5)).expect("small")];
        let len = (1 + random.below(most)).min(length - at);
        let byte = if random.below(4) == 0 {
            0
        } else {
            u8::try_from(1 + random.below(255)).expect("a byte")
        };
        let bytes = vec![byte; usize::try_from(len).expect("small")];
        file.write_all_at(&bytes, at).expect("written");
    }
}
