//! Backups on a file system of their own, and the power cut under them: the folder shows whole backups only, each has what
//! it had, and the next one goes on from there.
//!
//! The disk lies on another file system than its backups, as it should; both are on one recorded device, so that a cut
//! is one moment for both. That a sync is missing is shown by the tool itself, under strace, which leaves it out.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use qbm::backup::{Backup, BackupFolder, BackupKind};
use qbm::{CreateOptions, Disk, WriteFlags};

use super::random::Random;
use super::record::{EXT4, Kind, Recorder, XFS};
use super::replay::Log;
use super::skip::skipped;
use super::{at_each, cuts, place};

const LENGTH: u64 = 700 << 10;
const BACKUPS: u64 = 7;
/// Behind which of them the older ones are pruned, with a merge.
const PRUNED_AFTER: [u64; 2] = [3, 5];
/// In an ordinary run.
const CUTS: usize = 25;

/// A sync that the tool leaves out of each incremental backup, as strace injects it.
#[derive(Clone, Copy, Debug)]
enum Missing {
    /// That of the new backup's data; nor does it begin to write it out.
    Data,
    /// That of the folder, when the new backup has its name.
    Name,
}

impl Missing {
    /// Which of the tool's calls of `fsync` it is: the folder above, data, descriptor, folder, and the folder once more.
    fn inject(self) -> &'static [&'static str] {
        match self {
            Self::Data => &[
                "-e",
                "inject=fsync:retval=0:when=2",
                "-e",
                "inject=sync_file_range:retval=0",
            ],
            Self::Name => &["-e", "inject=fsync:retval=0:when=5"],
        }
    }
}

/// What a backup has, and when it came.
struct Made {
    content: Vec<u8>,
    /// Nothing of it is before this place in the log.
    began: u64,
    /// And nothing behind this one.
    ended: u64,
    /// A prune of it began.
    pruned: Option<u64>,
}

struct Story {
    start: u64,
    made: BTreeMap<String, Made>,
}

fn disk(system: &Path) -> PathBuf {
    system.join("disk.qbm")
}

fn backups(system: &Path) -> PathBuf {
    system.join("backups")
}

fn read(disk: &Disk) -> Result<Vec<u8>, String> {
    let mut content = vec![0; usize::try_from(disk.length()).expect("small")];
    disk.read(&mut content, 0).map_err(|why| why.to_string())?;
    Ok(content)
}

fn guest_writes(system: &Path, random: &mut Random) -> Vec<u8> {
    let disk = Disk::open(disk(system)).expect("it opens");
    for _ in 0..=random.below(5) {
        let offset = random.below(LENGTH - 1);
        let len = 1 + random.below((LENGTH - offset).min(60_000));
        let byte = u8::try_from(1 + random.below(255)).expect("a byte");
        let bytes = vec![byte; usize::try_from(len).expect("small")];
        disk.write(&bytes, offset, WriteFlags::empty()).expect("a write");
        if random.one_in(3) {
            disk.flush().expect("a flush");
        }
    }
    let content = read(&disk).expect("all of it");
    disk.close().expect("it closes");
    content
}

impl Story {
    /// `None` where strace cannot leave a sync out.
    fn make(recorder: &Recorder, missing: Option<Missing>, random: &mut Random) -> Option<Self> {
        let (first, second) = (recorder.system(0), recorder.system(1));
        CreateOptions::new()
            .size(LENGTH)
            .create(disk(first))
            .expect("a disk");
        let mut story = Self {
            start: recorder.position(),
            made: BTreeMap::new(),
        };
        let (to, from) = (backups(second), disk(first));
        let list = || -> Vec<String> {
            let folder = BackupFolder::open(&to).expect("a folder");
            folder.points().iter().map(|point| point.name.clone()).collect()
        };
        for number in 0..BACKUPS {
            let content = guest_writes(first, random);
            let began = recorder.position();
            let tool = env!("CARGO_BIN_EXE_qbm");
            let mut command = match missing.filter(|_| number > 0) {
                None => Command::new(tool),
                Some(missing) => {
                    let mut command = Command::new("strace");
                    command
                        .args(["-f", "-qq", "-o", "/dev/null"])
                        .args(missing.inject())
                        .arg(tool);
                    command
                }
            };
            command
                .args(["backup", "-q", "--bitmap", "nightly", "-g", "4k", "--to"])
                .args([&to, &from]);
            match command.output() {
                Ok(output) if output.status.success() => {}
                Ok(output) => {
                    let said = String::from_utf8_lossy(&output.stderr).into_owned();
                    assert!(missing.is_some() && said.contains("ptrace"), "{said}");
                    skipped(format_args!("backups that lack a sync: {}", said.trim()));
                    return None;
                }
                Err(why) => {
                    skipped(format_args!("backups that lack a sync: strace: {why}"));
                    return None;
                }
            }
            let ended = recorder.position();
            let name = list().pop().expect("a backup");
            let made = Made {
                content,
                began,
                ended,
                pruned: None,
            };
            assert!(story.made.insert(name, made).is_none());
            if PRUNED_AFTER.contains(&number) {
                let began = recorder.position();
                let mut prune = Command::new(tool);
                let prune = prune.args(["backup", "prune", "-q", "--keep-last", "2"]).arg(&to);
                assert!(prune.status().expect("the tool runs").success());
                let left = list();
                for (name, made) in &mut story.made {
                    if !left.contains(name) {
                        made.pruned.get_or_insert(began);
                    }
                }
                // Names are times in seconds, and those that went must not come again.
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        Some(story)
    }

    /// What is wrong after a power cut when the log had got to `cut`.
    fn check(&self, (first, second): (&Path, &Path), cut: u64) -> Result<(), String> {
        let words = |why: qbm::Error| why.to_string();
        let go_on = &mut |_, _| ControlFlow::Continue(());
        let finished = self.made.values().any(|made| made.ended <= cut);
        let mut folder = BackupFolder::open_or_create(backups(second)).map_err(words)?;
        if let Some((name, why)) = folder.damaged().first() {
            return Err(format!("{name} is damaged: {why}"));
        }
        for verified in folder.verify(go_on).map_err(words)? {
            if let Some(why) = verified.error {
                return Err(format!("{} is not sound: {why}", verified.name));
            }
        }
        for (name, made) in &self.made {
            let listed = folder.points().iter().find(|point| point.name == *name);
            let must = made.ended <= cut && made.pruned.is_none_or(|pruned| pruned > cut);
            match listed {
                None if must => return Err(format!("{name} is lost")),
                Some(_) if made.began > cut => return Err(format!("{name} is there before its time")),
                Some(point) if read(&folder.open_point(point).map_err(words)?)? != made.content => {
                    return Err(format!("{name} reads otherwise"));
                }
                _ => {}
            }
        }
        // It goes on, and no bit of what was written since the newest is missing.
        let disk = Disk::open(disk(first)).map_err(words)?;
        disk.write(&[7; 5000], 300_000, WriteFlags::empty())
            .map_err(words)?;
        let made = Backup::new("nightly")
            .run(&disk, &mut folder, go_on)
            .map_err(words)?;
        let expected = read(&disk)?;
        disk.close().map_err(words)?;
        if finished && made.point.kind() == BackupKind::Full {
            return Err(format!("the next backup is a full one: {}", made.point.reason));
        }
        if read(&folder.open_point(&made.point).map_err(words)?)? != expected {
            return Err("the next backup lacks something".to_owned());
        }
        Ok(())
    }
}

/// What was found wrong with backups that lack a sync, or none. `None` where the machine cannot.
fn cut_backups(kind: Kind, missing: Option<Missing>) -> Option<Result<(), String>> {
    let mut random = Random::new(Random::seed());
    let place = place();
    let recorder = Recorder::start(place.path(), kind, 2)?;
    let story = Story::make(&recorder, missing, &mut random);
    drop(recorder);
    let story = story?;
    let log = Log::read(&place.path().join("log"));
    let cuts = cuts(&log, log.entries_before(story.start), CUTS, &mut random);
    let checked = at_each(
        &log,
        &cuts,
        place.path(),
        (kind, 2),
        &mut random,
        |systems, cut| story.check((systems[0].folder(), systems[1].folder()), cut),
    );
    println!(
        "backups on {}, without {missing:?}: {} entries, {} cuts: {checked:?}",
        kind.name,
        log.len(),
        cuts.len()
    );
    Some(checked)
}

#[test]
fn backups_on_ext4() {
    if let Some(checked) = cut_backups(EXT4, None) {
        checked.expect("whole backups");
    }
}

#[test]
fn backups_on_xfs() {
    if let Some(checked) = cut_backups(XFS, None) {
        checked.expect("whole backups");
    }
}

#[test]
fn data_that_is_not_synced_is_found() {
    if let Some(checked) = cut_backups(EXT4, Some(Missing::Data)) {
        let wrong = checked.expect_err("what lacks a sync");
        assert!(
            wrong.contains("is not sound") || wrong.contains("reads otherwise"),
            "{wrong}"
        );
    }
}

#[test]
fn a_name_that_is_not_synced_is_found() {
    if let Some(checked) = cut_backups(EXT4, Some(Missing::Name)) {
        let wrong = checked.expect_err("what lacks a sync");
        assert!(
            wrong.contains("is lost") || wrong.contains("a full one"),
            "{wrong}"
        );
    }
}
