//! Backups on real files: every point reads as the disk did, whatever happened in between.

mod descriptors;
mod epochs;
mod failing;
mod keeping;
mod limits;
mod model;
mod online;
mod power;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;
use crate::{CreateOptions, Disk, ErrorCode, Result, WriteFlags};

const KIB: u64 = 1024;
const LENGTH: u64 = 1000 * KIB + 700;

/// A disk in one folder, its backups in another.
struct Room {
    dir: TempDir,
}

impl Room {
    fn new() -> Self {
        let room = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(room.path("vm")).unwrap();
        CreateOptions::new().size(LENGTH).create(room.disk()).unwrap();
        room
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn disk(&self) -> PathBuf {
        self.path("vm/disk.qbm")
    }

    fn folder(&self) -> BackupFolder {
        BackupFolder::open_or_create(self.path("backups")).unwrap()
    }

    /// Writes, as a guest does that opens and closes the disk.
    fn write(&self, byte: u8, offset: u64, len: usize) {
        self.with(|disk| disk.write(&vec![byte; len], offset, WriteFlags::empty()));
    }

    fn with(&self, act: impl FnOnce(&Disk) -> Result<()>) {
        let disk = Disk::open(self.disk()).unwrap();
        act(&disk).unwrap();
        disk.close().unwrap();
    }

    /// As if a backup had been made at that time.
    fn set_time(&self, name: &str, time: &str) {
        let path = self.path(&format!("backups/{name}.qbm"));
        let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        record["backup"]["time"] = time.into();
        fs::write(path, record.to_string()).unwrap();
    }

    fn content(&self) -> Vec<u8> {
        fs::read(self.path("vm/disk-data.img")).unwrap()
    }

    fn back_up(&self) -> BackupPoint {
        self.back_up_with(&small())
    }

    fn back_up_with(&self, how: &Backup) -> BackupPoint {
        self.try_back_up(how, "backups").unwrap()
    }

    fn try_back_up(&self, how: &Backup, folder: &str) -> Result<BackupPoint> {
        let mut folder = BackupFolder::open_or_create(self.path(folder))?;
        let disk = Disk::open(self.disk())?;
        let finished = how.run(&disk, &mut folder, &mut |_, _| ControlFlow::Continue(()))?;
        assert_eq!(finished.not_thawed, None);
        disk.close()?;
        Ok(finished.point)
    }

    /// The point as a raw image.
    fn restored(&self, name: &str) -> Vec<u8> {
        restored(&self.folder(), name, &self.path("restored.img"))
    }

    fn snapshot(&self, name: &str) {
        copy_folder(&self.path("vm"), &self.path(name));
    }

    fn roll_back(&self, name: &str) {
        fs::remove_dir_all(self.path("vm")).unwrap();
        copy_folder(&self.path(name), &self.path("vm"));
    }
}

/// Three backups, and what the disk had at each.
fn three() -> (Room, Vec<(String, Vec<u8>)>) {
    let room = Room::new();
    let mut points = Vec::new();
    for round in 1..=3u8 {
        room.write(round, u64::from(round) * 10_000, 20_000);
        points.push((room.back_up().name, room.content()));
    }
    (room, points)
}

/// With granules that are no whole blocks, too.
fn small() -> Backup {
    Backup::new("nightly").granularity(crate::Granularity::new(1024).unwrap())
}

/// As a new file, and then onto what was restored to it before.
fn restored(folder: &BackupFolder, name: &str, to: &Path) -> Vec<u8> {
    let point = folder.find(name).unwrap();
    let restore = |to: &Path| {
        let told = Restore::new().run(folder, point, to, &mut |_, _| ControlFlow::Continue(()));
        assert_eq!(told.unwrap().length, point.length);
        fs::read(to).unwrap()
    };
    let new = to.with_extension("new");
    let content = restore(&new);
    fs::remove_file(&new).unwrap();
    assert!(restore(to) == content, "{name}");
    content
}

/// With the times: the stamp of the image is one.
fn copy_folder(from: &Path, to: &Path) {
    let done = std::process::Command::new("cp")
        .args(["-a", "--sparse=always"])
        .args([from, to])
        .status()
        .unwrap();
    assert!(done.success());
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// All that a folder holds, but for the lock.
fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
    names(path)
        .into_iter()
        .filter(|name| name != "qbm-backup.lock")
        .map(|name| (name.clone(), fs::read(path.join(&name)).unwrap()))
        .collect()
}
