//! A guest, whose disk's calls fail: what the disk took from it is there afterwards, and dirty; and what failed says so.

use std::path::Path;

use qbm::{AddBitmap, Disk, OpenOptions, Result, WriteFlags};

use super::held::{content, overlay, sound};
use super::room::{Room, text};
use super::stories::above_base;
use super::traced::{Failing, Program};

/// Where the guest's disk is, for the process that is the guest.
const DISK: &str = "QBM_FAILING_CALLS_DISK";
const NAME: &str = "disk.qbm";
/// What the guest writes, and where: places in which nothing was before.
const WRITES: [(u64, usize); 5] = [
    (0, 4096),
    (200_000, 100_000),
    (400_001, 5),
    (460_000, 512),
    (900_000, 70_000),
];
const BYTE: u8 = 0xc3;
const NONE: WriteFlags = WriteFlags::empty();

/// Not a test by itself: what runs under strace.
#[test]
fn the_guest() {
    if let Some(disk) = std::env::var_os(DISK) {
        // Of each call more than the thread has made that has loaded the program: strace counts for each thread.
        for _ in 0..10 {
            let _ = OpenOptions::new().read_only(true).open(&disk);
        }
        mark();
        let said = live(Path::new(&disk));
        mark();
        for line in said {
            println!("{line}");
        }
    }
}

fn mark() {
    // SAFETY: it only returns a number.
    unsafe { libc::getppid() };
}

/// What it does, and what came of each thing.
fn live(path: &Path) -> Vec<String> {
    let mut said = Vec::new();
    let mut say = |what: String, result: Result<()>| match result {
        Ok(()) => said.push(format!("DONE {what}")),
        Err(why) => said.push(format!("FAILED {what}: {why}")),
    };
    let disk = match Disk::open(path) {
        Ok(disk) => disk,
        Err(why) => {
            say("open".to_owned(), Err(why));
            return said;
        }
    };
    for (number, (at, len)) in WRITES.into_iter().enumerate() {
        say(format!("write {number}"), disk.write(&vec![BYTE; len], at, NONE));
        match number {
            1 | 3 => say("flush".to_owned(), disk.flush()),
            2 => {
                say("add".to_owned(), disk.bitmap_add("n", AddBitmap::default()));
                say("sync".to_owned(), disk.bitmap_sync(None));
            }
            _ => {}
        }
    }
    say("close".to_owned(), disk.close());
    said
}

/// The disks that it gets.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Plain,
    Overlay,
}

impl Kind {
    pub fn room(self) -> Room {
        let room = Room::new();
        match self {
            Self::Plain => drop(room.done(&["create", "-q", NAME, "1M"])),
            Self::Overlay => overlay(&room, NAME),
        }
        room.done(&["bitmap", "--add", NAME, "b"]);
        room
    }

    fn before(self) -> Vec<u8> {
        match self {
            Self::Plain => vec![0; 1 << 20],
            Self::Overlay => above_base(),
        }
    }

    /// With the guest running in `room`.
    pub fn with<T>(room: &Room, act: impl FnOnce(&Program<'_>) -> T) -> T {
        let program = std::env::current_exe().expect("the path of this program");
        let args = ["--exact", "guest::the_guest", "--nocapture", "--test-threads=1"];
        let disk = room.path(NAME);
        act(&Program::marked(&program, &args).with_variable(DISK, disk.as_os_str()))
    }

    /// Holds what is left against what the guest was told.
    pub fn look(self, room: &Room, failing: &Failing, output: &std::process::Output) {
        let said = text(&output.stdout);
        let complaint = text(&output.stderr);
        assert!(output.status.success(), "{:?}: {said}{complaint}", output.status);
        for line in said.lines().filter(|line| line.contains("FAILED ")) {
            let in_words = line.contains(failing.reason) || line.contains("close and reopen the disk");
            assert!(in_words && !line.contains("os error"), "{line}");
        }
        let disk = sound(room, NAME);
        let found = content(&disk);
        let before = self.before();
        // What the kernel may have dropped is not believed, of an overlay.
        let dropped = matches!(self, Self::Overlay) && failing.call.ends_with("sync");
        for (number, (at, len)) in WRITES.into_iter().enumerate() {
            let at = usize::try_from(at).expect("small");
            let done = said.contains(&format!("DONE write {number}"));
            let part = &found[at..at + len];
            let written = part.iter().all(|byte| *byte == BYTE);
            let kept = part
                .iter()
                .zip(&before[at..])
                .all(|(byte, before)| byte == before || *byte == BYTE);
            assert!(
                written || (kept && (!done || dropped)),
                "write {number}, done: {done}: {said}"
            );
        }
        let mine = |at: usize| {
            WRITES
                .iter()
                .any(|(from, len)| (*from..*from + *len as u64).contains(&(at as u64)))
        };
        for (at, (byte, was)) in found.iter().zip(&before).enumerate() {
            assert!(byte == was || mine(at), "byte {at} is {byte}, and was {was}");
            let dirty = byte == was || disk.bitmap_get("b", at as u64).expect("a bit");
            assert!(dirty, "D1: byte {at} has changed and is clean: {said}");
        }
        disk.write(&[1], 0, NONE).expect("a write");
        disk.close().expect("it closes");
    }
}
