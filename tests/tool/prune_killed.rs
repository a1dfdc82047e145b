//! A prune that is killed while it merges: at each of its system calls that change anything, and at random moments. Every
//! backup that is listed reads as it did, and the next prune and the next backup go on.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use qbm::backup::{BackupFolder, Restore};
use serde_json::Value;

use super::backup_killed::{guest_writes, killed};
use super::killed_at::{CHANGES, killed_at};
use super::names::names_in;
use super::random::Random;
use super::room::Room;
use super::skip::skipped;

const BACKUP: [&str; 9] = [
    "backup",
    "-q",
    "--bitmap",
    "nightly",
    "-g",
    "4k",
    "--to",
    "backups",
    "vm/disk.qbm",
];
/// The first has three points take over what they need of one or two others; the second makes one of these full.
const PRUNES: [&[&str]; 2] = [
    &["backup", "prune", "-q", "--keep-daily", "3", "backups"],
    &["backup", "prune", "-q", "--keep-last", "2", "backups"],
];
/// On which day of January each of them was made.
const DAYS: [u8; 7] = [1, 1, 2, 2, 3, 3, 3];

const RANDOM_KILLS: u32 = 12;

/// A folder of backups, and what each of them has.
struct Story {
    room: Room,
    contents: BTreeMap<String, Vec<u8>>,
}

fn cp(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    // With the times: the stamp of the disk's image is one.
    let done = Command::new("cp")
        .args(["-a", "--sparse=always"])
        .args([from, to])
        .status();
    assert!(done.expect("cp runs").success());
}

impl Story {
    /// Seven backups of a disk of `length` bytes, which gets shorter and longer again in between.
    fn new(length: u64, random: &mut Random) -> Self {
        let room = Room::new();
        room.folder("vm");
        room.done(&["create", "-q", "vm/disk.qbm", &length.to_string()]);
        let mut story = Self {
            room,
            contents: BTreeMap::new(),
        };
        for (round, day) in DAYS.iter().enumerate() {
            match round {
                2 => story.resize(length / 3),
                4 => story.resize(length),
                _ => {}
            }
            let now = story.room.length("vm/disk-data.img");
            for _ in 0..6 {
                let len = usize::try_from(1 + random.below(now / 10)).expect("small");
                story.writes(random.below(256), random.below(now - len as u64), len);
            }
            story.back_up();
            story.set_day(*day);
        }
        story.keep("whole");
        story
    }

    fn folder(&self) -> BackupFolder {
        BackupFolder::open(self.room.path("backups")).expect("a folder")
    }

    fn writes(&self, byte: u64, offset: u64, len: usize) {
        guest_writes(&self.room, "vm/disk.qbm", byte, offset, len);
    }

    fn resize(&self, length: u64) {
        let disk = qbm::Disk::open(self.room.path("vm/disk.qbm")).expect("it opens");
        disk.truncate(length, qbm::TruncateFlags::SHRINK)
            .expect("another length");
        disk.close().expect("closed");
    }

    /// One more backup; it must be an incremental one, but for the first.
    fn back_up(&mut self) {
        self.room.done(&BACKUP);
        let folder = self.folder();
        let newest = folder.points().last().expect("a backup");
        assert_eq!(
            newest.parent.is_none(),
            self.contents.is_empty(),
            "{}",
            newest.reason
        );
        let content = self.room.read("vm/disk-data.img");
        assert!(self.contents.insert(newest.name.clone(), content).is_none());
    }

    /// As if the newest had been made on that day.
    fn set_day(&self, day: u8) {
        let folder = self.folder();
        let newest = folder.points().last().expect("a backup");
        let path = folder.path().join(newest.descriptor());
        let mut record: Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
        record["backup"]["time"] = format!("2026-01-{day:02}T0{day}:00:00Z").into();
        fs::write(path, record.to_string()).expect("written");
    }

    fn keep(&self, name: &str) {
        for part in ["vm", "backups"] {
            cp(&self.room.path(part), &self.room.path(&format!("{name}-{part}")));
        }
    }

    fn lay(&self, name: &str) {
        for part in ["vm", "backups"] {
            cp(&self.room.path(&format!("{name}-{part}")), &self.room.path(part));
        }
    }

    fn names(&self) -> Vec<String> {
        self.folder()
            .points()
            .iter()
            .map(|point| point.name.clone())
            .collect()
    }

    /// Every backup that is listed is sound and has what it had.
    fn check(&self, when: &str) {
        let folder = self.folder();
        assert!(folder.damaged().is_empty(), "{when}: {:?}", folder.damaged());
        for verified in folder
            .verify(&mut |_, _| ControlFlow::Continue(()))
            .expect("nobody ends it")
        {
            assert!(verified.error.is_none(), "{when}: {verified:?}");
        }
        self.check_content(when);
    }

    fn check_content(&self, when: &str) {
        let folder = self.folder();
        for point in folder.points() {
            let disk = folder.open_point(point).expect("it opens");
            let mut found = vec![0; usize::try_from(disk.length()).expect("small")];
            disk.read(&mut found, 0).expect("it can be read");
            assert!(
                found == self.contents[&point.name],
                "{when}: {} reads otherwise",
                point.name
            );
        }
        let newest = folder.points().last().expect("a backup");
        let to = self.room.path("restored.img");
        let _ = fs::remove_file(&to);
        Restore::new()
            .run(&folder, newest, &to, &mut |_, _| ControlFlow::Continue(()))
            .expect(when);
        assert!(
            fs::read(&to).expect("read") == self.contents[&newest.name],
            "{when}"
        );
    }

    /// What was left by a prune that was killed: nothing lost, and both the same prune and the next backup go on.
    fn check_killed(&mut self, when: &str, prune: &[&str], stays: &[String]) {
        let names = self.names();
        assert!(stays.iter().all(|name| names.contains(name)), "{when}: {names:?}");
        self.check(when);
        // A backup before the next prune, or behind it.
        let before = when.len().is_multiple_of(2);
        self.writes(201, 50_000, 70_000);
        if before {
            self.back_up();
        } else {
            self.room.done(prune);
            assert_eq!(self.names(), stays, "{when}");
            self.back_up();
        }
        self.check_content(when);
        let newest = self.names().pop().expect("a backup");
        self.contents.remove(&newest);
        // No file is left of those that went.
        if !before {
            let mut files = names_in(&self.room.path("backups"));
            files.retain(|file| {
                let of_newest = [".", "-data", "-allocation"].map(|part| format!("{newest}{part}"));
                file != "qbm-backup.lock" && !of_newest.iter().any(|part| file.starts_with(part))
            });
            files.retain(|file| !stays.iter().any(|name| file.starts_with(name)));
            assert_eq!(files, Vec::<String>::new(), "{when}");
        }
    }
}

/// Which backups are there when `prune` was not killed; the folder is as it was, then.
fn stay(story: &Story, prune: &[&str]) -> Vec<String> {
    story.room.done(prune);
    let stays = story.names();
    story.lay("whole");
    stays
}

#[test]
fn a_prune_that_is_killed_at_any_call_loses_nothing() {
    // Less than what is copied in one go, so that one thread does all and every run is the same.
    let mut story = Story::new(600_700, &mut Random::new(11));
    for (round, prune) in PRUNES.into_iter().enumerate() {
        let stays = stay(&story, prune);
        let mut kills = 0;
        for call in CHANGES {
            for count in 1.. {
                story.lay("whole");
                let output = match killed_at(&story.room.path("."), call, count, prune) {
                    Ok(output) => output,
                    Err(why) => {
                        return skipped(format_args!("a prune that is killed at every call: {why}"));
                    }
                };
                if output.status.success() {
                    break;
                }
                kills += 1;
                let when = format!("{prune:?}, killed at {call} {count}");
                story.check_killed(&when, prune, &stays);
            }
        }
        eprintln!("prune {round}: killed at {kills} calls");
        assert!(kills > 10, "{kills}");
        story.check("at the end");
        story.lay("whole");
        story.room.done(prune);
        story.keep("whole");
    }
}

#[test]
fn a_prune_that_is_killed_at_any_moment_loses_nothing() {
    let random = &mut Random::new(12);
    let mut story = Story::new(2 << 20, random);
    let prune = PRUNES[0];
    let begun = Instant::now();
    let stays = stay(&story, prune);
    let usual = u64::try_from(begun.elapsed().as_micros()).expect("short");
    let mut caught = 0;
    for kill in 0..RANDOM_KILLS {
        story.lay("whole");
        let after = Duration::from_micros(random.below(usual));
        caught += u32::from(killed(&story.room, prune, after));
        story.check_killed(&format!("kill {kill} after {after:?}"), prune, &stays);
    }
    eprintln!("{caught} of {RANDOM_KILLS} were killed at work");
    assert!(caught > 0);
}
