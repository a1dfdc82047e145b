//! A folder of backups: what is in it, who may change it, and how a backup gets in and out.
//!
//! A backup is there when its descriptor has its name, and gone when it has not. Every other file is written, and
//! durable, before that name is given, and removed after it is taken away; so a file that no descriptor names is what
//! somebody who was killed has left, and goes with the next change of the folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::lock::FolderLock;
use super::point::{BackupPoint, REMOVED};
use crate::descriptor::Descriptor;
use crate::descriptor::names::take_after;
use crate::disk::{Disk, OpenOptions};
use crate::error::{Error, ErrorCode, Result};
use crate::storage::{Access, Folder, HostFolder, Role, Storage, SyncMode, read_slice, write_slice};
use crate::time::Moment;

/// A folder of backups.
#[derive(Debug)]
pub struct BackupFolder {
    path: PathBuf,
    /// Made by [`open_or_create`](Self::open_or_create), and not there before.
    new: bool,
    folder: Arc<dyn Folder>,
    /// Where its disks are opened; `None`: in what `path` leads to.
    disks: Option<Arc<dyn Folder>>,
    /// From the oldest on.
    points: Vec<BackupPoint>,
    /// Descriptors with a backup's name that tell of none, and why.
    damaged: Vec<(String, Error)>,
}

impl BackupFolder {
    /// Opens a folder that exists, and finds out what is in it. Nothing is changed.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let folder = HostFolder::open(path).map_err(|e| Error::io("open the folder", path, &e))?;
        Self::within(path, Arc::new(folder), None)
    }

    /// The same in an open folder; its disks are opened in `disks`, or by `path`.
    pub(super) fn within(
        path: &Path,
        folder: Arc<dyn Folder>,
        disks: Option<Arc<dyn Folder>>,
    ) -> Result<Self> {
        let mut opened = Self {
            path: path.to_owned(),
            new: false,
            folder,
            disks,
            points: Vec::new(),
            damaged: Vec::new(),
        };
        opened.scan()?;
        Ok(opened)
    }

    /// The same; a folder that does not exist is made, durably. What holds it must exist.
    pub fn open_or_create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        match fs::create_dir(path) {
            Ok(()) => {}
            // Its name is made durable before there is a backup in it.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Self::open(path),
            Err(error) => return Err(Error::io("make the folder", path, &error)),
        }
        let durable = |made: &Self| {
            let synced = made.folder.sync_name();
            synced.map_err(|e| Error::io("sync the folder above", path, &e))
        };
        let made = Self::open(path)
            .and_then(|made| durable(&made).map(|()| made))
            .inspect_err(|_| {
                // To be made anew: the next sync would not vouch for a name that this one has failed on.
                let _ = fs::remove_dir(path);
            })?;
        Ok(Self { new: true, ..made })
    }

    /// Takes the folder away again, where [`open_or_create`](Self::open_or_create) has made it and nothing is in it: for
    /// whoever has made it for a backup that failed.
    pub fn remove_if_new(self) {
        if self.new {
            // Where another has put something into it, it is his, and stays.
            let _ = fs::remove_dir(&self.path);
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its backups, from the oldest on.
    pub fn points(&self) -> &[BackupPoint] {
        &self.points
    }

    /// Files with the name of a backup that tell of none, and why.
    pub fn damaged(&self) -> &[(String, Error)] {
        &self.damaged
    }

    /// The backup that `name` means: a whole name, the beginning of just one, or `latest`.
    ///
    /// One that cannot be read is never passed over for another: `latest` fails where such a one was made later.
    pub fn find(&self, name: &str) -> Result<&BackupPoint> {
        let none = |words: String| Error::new(ErrorCode::FileNotFound, words);
        let folder = self.path.display();
        let Some(newest) = self.points.last() else {
            return Err(match self.damaged.first() {
                Some((name, why)) => unreadable(name, why),
                None => none(format!("there is no backup in {folder}")),
            });
        };
        if name == "latest" {
            return match self.damaged.iter().find(|(name, _)| is_later(name, newest)) {
                Some((name, why)) => Err(unreadable(name, why).context(format_args!(
                    "which backup is the latest is not known ({} is the newest of the others)",
                    newest.name
                ))),
                None => Ok(newest),
            };
        }
        if let Some(point) = self.named(name) {
            return Ok(point);
        }
        if let Some((name, why)) = self.damaged.iter().find(|(damaged, _)| damaged == name) {
            return Err(unreadable(name, why));
        }
        let mut fitting = self.points.iter().filter(|point| point.name.starts_with(name));
        let mut damaged = self
            .damaged
            .iter()
            .filter(|(damaged, _)| damaged.starts_with(name));
        match (fitting.next(), fitting.next(), damaged.next()) {
            (Some(point), None, None) if !name.is_empty() => Ok(point),
            (None, None, Some((name, why))) => Err(unreadable(name, why)),
            (Some(_), _, _) => Err(none(format!(
                "more than one backup in {folder} has a name that begins with {name:?}"
            ))),
            _ => Err(none(format!(
                "there is no backup {name:?} in {folder}; the newest is {}",
                newest.name
            ))),
        }
    }

    /// The backups that `point` needs to be read: itself first, and the full one last.
    pub fn chain<'f>(&'f self, point: &'f BackupPoint) -> Result<Vec<&'f BackupPoint>> {
        let mut chain = vec![point];
        let mut at = point;
        while let Some(parent) = &at.parent {
            let Some(next) = self.named(parent) else {
                return Err(self.no_parent(at, parent));
            };
            // Parents are older. Whoever edited the records could have made a ring of them.
            if next.sequence >= at.sequence {
                return Err(Error::new(
                    ErrorCode::DescriptorInvalid,
                    format!(
                        "the backup {} says that it came before its parent {parent}",
                        at.name
                    ),
                ));
            }
            // A name is a time, which another disk's backup may have, too.
            if at
                .parent_starts
                .as_ref()
                .is_some_and(|starts| *starts != next.starts)
            {
                return Err(Error::new(
                    ErrorCode::FileInvalid,
                    format!(
                        "the backup {} stands on another {parent} than the one in {}",
                        at.name,
                        self.path.display()
                    ),
                ));
            }
            self.check_start(at)?;
            chain.push(next);
            at = next;
        }
        Ok(chain)
    }

    fn no_parent(&self, point: &BackupPoint, parent: &str) -> Error {
        let needs = format!("the backup {} needs the backup {parent}", point.name);
        match self.damaged.iter().find(|(name, _)| name == parent) {
            Some((name, why)) => unreadable(name, why).context(needs),
            None => Error::new(
                ErrorCode::FileNotFound,
                format!("{needs}, which is not in {}", self.path.display()),
            ),
        }
    }

    /// Fails where the bitmap of `point` cannot have said what had changed since the backup that was the newest then: it
    /// knew that from another starting point on (durability trap 11).
    fn check_start(&self, point: &BackupPoint) -> Result<()> {
        // Another may count the same where that newest one could not be read for a time.
        let newest_then = || {
            self.points
                .iter()
                .filter(|it| it.sequence.checked_add(1) == Some(point.sequence))
        };
        let fits = |newest: &BackupPoint| {
            let based_on = point.based_on.as_deref();
            // One that a prune has made a full one does not know any more what it was based on.
            based_on == Some(&newest.starts)
                || newest.based_on.as_deref().is_none_or(|it| Some(it) == based_on)
        };
        match newest_then().next() {
            Some(newest) if !newest_then().any(fits) => Err(Error::new(
                ErrorCode::FileInvalid,
                format!(
                    "the backup {} was made with what had changed since {:?}, where {}, the newest one then, neither \
                     starts nor is based on",
                    point.name,
                    point.based_on.as_deref().unwrap_or_default(),
                    newest.name
                ),
            )),
            _ => Ok(()),
        }
    }

    /// The disk as it was, for reading.
    pub fn open_point(&self, point: &BackupPoint) -> Result<Disk> {
        self.chain(point)?;
        self.open_alone(point, false)
    }

    pub(super) fn open_alone(&self, point: &BackupPoint, no_backing: bool) -> Result<Disk> {
        let mut options = OpenOptions::new().read_only(true).no_backing(no_backing);
        if let Some(disks) = &self.disks {
            options = options.folder(Arc::clone(disks));
        }
        let disk = options.open(self.path.join(point.descriptor()))?;
        check_length(point, disk.length())?;
        Ok(disk)
    }

    pub(super) fn named(&self, name: &str) -> Option<&BackupPoint> {
        self.points.iter().find(|point| point.name == name)
    }

    pub(super) fn shown(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn names(&self) -> &dyn Folder {
        &*self.folder
    }

    pub(super) fn file(&self, name: &str) -> Result<Arc<dyn Storage>> {
        self.folder
            .open(Role::Backing, Path::new(name), Access::default())
            .map_err(|e| Error::io("open", self.shown(name), &e))
    }

    fn scan(&mut self) -> Result<()> {
        let (mut points, mut damaged) = (Vec::new(), Vec::new());
        for file in self.list()? {
            let Some(name) = file.strip_suffix(".qbm").filter(|name| is_name(name)) else {
                continue;
            };
            let descriptor = self.descriptor(&file);
            if descriptor.as_ref().is_ok_and(|bytes| bytes == REMOVED) {
                continue;
            }
            let point = descriptor.and_then(|bytes| {
                BackupPoint::read(name, &bytes).map_err(|e| e.context(self.shown(&file).display()))
            });
            match point {
                Ok(point) => points.push(point),
                Err(error) => damaged.push((name.to_owned(), error)),
            }
        }
        points.sort_by(|a, b| (a.sequence, &a.name).cmp(&(b.sequence, &b.name)));
        (self.points, self.damaged) = (points, damaged);
        Ok(())
    }

    /// What a descriptor says, which somebody may have put there who means no good: it may be of any kind and length.
    pub(super) fn descriptor(&self, file: &str) -> Result<Vec<u8>> {
        let storage = self.file(file)?;
        let path = self.shown(file);
        let failed = |e: &io::Error| Error::io("read", &path, e);
        let length = storage.length().map_err(|e| failed(&e))?;
        if length > Descriptor::MAX_BYTES {
            return Err(Error::new(
                ErrorCode::DescriptorInvalid,
                format!(
                    "{}: {length} bytes are more than the {} that a descriptor has at most",
                    path.display(),
                    Descriptor::MAX_BYTES
                ),
            ));
        }
        // At most 32 MiB.
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        read_slice(&*storage, &mut bytes, 0).map_err(|e| failed(&e))?;
        Ok(bytes)
    }

    pub(super) fn list(&self) -> Result<Vec<String>> {
        let names = self
            .folder
            .names()
            .map_err(|e| Error::io("list", &self.path, &e))?;
        // A name that is no text is none of ours.
        let mut names: Vec<String> = names
            .into_iter()
            .filter_map(|name| name.into_string().ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// Takes the folder for changes, and clears away what somebody who was killed has left in it.
    pub(super) fn lock(&mut self) -> Result<FolderLock> {
        self.folder
            .check_writable()
            .map_err(|e| Error::io("write to", &self.path, &e))?;
        let lock = self.take_lock()?;
        // Before it was locked, another may have changed it.
        match self.scan().and_then(|()| self.sweep_after_others(&lock)) {
            Ok(()) => Ok(lock),
            Err(error) => {
                self.take_back(lock);
                Err(error)
            }
        }
    }

    pub(super) fn remove(&self, file: &str) -> Result<()> {
        match self.folder.remove(Path::new(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove", self.shown(file), &error))
            }
            _ => Ok(()),
        }
    }

    /// The name, the sequence and the time of a backup that begins now.
    ///
    /// No backup of the folder has had the name before, pruned ones included, whatever the clock does: the newest one stays
    /// in every prune, so that no sequence comes twice. A copy of the folder made by names would else keep the old files.
    pub(super) fn begin_point(&self) -> Result<(String, u64, String)> {
        let now = Moment::now();
        let mut sequence = self.points.last().map_or(0, |point| point.sequence);
        loop {
            sequence = sequence.checked_add(1).ok_or_else(|| self.no_sequence())?;
            let name = format!("{}-{sequence}", now.compact());
            // What is damaged does not tell its sequence.
            if self.named(&name).is_none() && self.damaged.iter().all(|(damaged, _)| *damaged != name) {
                return Ok((name, sequence, now.rfc3339()));
            }
        }
    }

    fn no_sequence(&self) -> Error {
        let folder = self.path.display();
        Error::new(
            ErrorCode::FileInvalid,
            format!("a backup in {folder} has the highest sequence that there is; use another folder"),
        )
    }

    /// Makes a file of `point` that must not exist yet; with the mode and owner of its descriptor, where it has one already.
    pub(super) fn create(&self, point: &BackupPoint, role: Role, name: &str) -> Result<Arc<dyn Storage>> {
        let failed = |e: &io::Error| Error::io("create", self.shown(name), e);
        if self.named(&point.name).is_none() {
            return self.folder.create(role, Path::new(name)).map_err(|e| failed(&e));
        }
        let storage = self.folder.create_private(role, Path::new(name));
        let storage = storage.map_err(|e| failed(&e))?;
        take_after(&*self.folder, Path::new(name), Path::new(&point.descriptor()))?;
        Ok(storage)
    }

    /// Puts a backup's descriptor beside its `files`, under another name. All is durable then, and
    /// [`publish`](Self::publish) makes it visible.
    pub(super) fn prepare(&self, point: &BackupPoint, descriptor: &[u8]) -> Result<()> {
        let temporary = point.temporary();
        let storage = self.create(point, Role::Descriptor, &temporary)?;
        self.fill(&*storage, &temporary, descriptor)?;
        // M1: a power cut must not keep the descriptor's name and lose those of the files in it.
        self.sync()
    }

    /// Makes a file with that content, which is durable then, and its name not.
    pub(super) fn write_new(&self, name: &str, content: &[u8]) -> Result<()> {
        let storage = self
            .folder
            .create(Role::Descriptor, Path::new(name))
            .map_err(|e| Error::io("create", self.shown(name), &e))?;
        self.fill(&*storage, name, content)
    }

    fn fill(&self, storage: &dyn Storage, name: &str, content: &[u8]) -> Result<()> {
        let path = self.shown(name);
        write_slice(storage, content, 0).map_err(|e| Error::io("write", &path, &e))?;
        storage
            .sync(SyncMode::All)
            .map_err(|e| Error::io("sync", &path, &e))
    }

    /// Makes a backup that is prepared visible, or another take its place. An error does not mean that it is not: all that
    /// it needs must stay.
    pub(super) fn publish(&self, point: &BackupPoint) -> Result<()> {
        let renamed = self.rename(&point.temporary(), &point.descriptor());
        renamed.and_then(|()| self.sync()).map_err(|error| {
            error.context(format_args!(
                "the backup {} is whole, but may not be in the folder for good",
                point.name
            ))
        })
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.folder
            .rename(Path::new(from), Path::new(to))
            .map_err(|e| Error::io("rename", self.shown(from), &e))
    }

    pub(super) fn sync(&self) -> Result<()> {
        self.folder
            .sync()
            .map_err(|e| Error::io("sync the folder", &self.path, &e))
    }

    /// What the folder shows now.
    pub(super) fn rescan(&mut self) -> Result<()> {
        self.scan()
    }

    /// The same after `point` was made, which it shows whatever cannot be read.
    pub(super) fn add(&mut self, point: &BackupPoint) {
        if self.scan().is_err() || self.named(&point.name).is_none() {
            self.damaged.retain(|(name, _)| *name != point.name);
            self.points.push(point.clone());
        }
    }
}

/// That a backup is there and its record cannot be read.
fn unreadable(name: &str, why: &Error) -> Error {
    let words = format!("the backup {name} cannot be read: {why}");
    let code = match why.code() {
        ErrorCode::DescriptorInvalid => ErrorCode::FileInvalid,
        other => other,
    };
    Error::with_errno(code, why.errno(), words)
}

/// Fails where the data of `point` has another length than its record says.
pub(super) fn check_length(point: &BackupPoint, found: u64) -> Result<()> {
    if found == point.length {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::FileInvalid,
        format!(
            "the backup {} is of a disk of {} bytes, but its data file has {found}",
            point.name, point.length
        ),
    ))
}

/// The backup that a file with this name would belong to; `None` where it is no name of ours.
pub(super) fn owner(file: &str) -> Option<&str> {
    [
        ".qbm",
        ".new",
        "-data.img",
        "-merged.img",
        "-allocation.bitmap",
        "-merged.bitmap",
    ]
    .iter()
    .find_map(|suffix| file.strip_suffix(suffix))
    .filter(|name| is_name(name))
}

/// The sequence in the name of a backup; `None` where it is one of those without.
pub(super) fn sequence(name: &str) -> Option<u64> {
    name.split_once('-').and_then(|(_, number)| number.parse().ok())
}

/// Whether the backup of that name, which cannot be read, was made after `point`: the name has its sequence, or only a time.
fn is_later(name: &str, point: &BackupPoint) -> bool {
    let sequence = sequence(name).unwrap_or(point.sequence);
    (sequence, name) > (point.sequence, &*point.name)
}

/// Whether it is the name of a backup: `20261123T141339Z-7`, when it was begun and its sequence, which older ones lack.
fn is_name(name: &str) -> bool {
    let (time, number) = name.split_once('-').unwrap_or((name, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let shape = |(date, clock): (&str, &str)| {
        date.len() == 8 && clock.len() == 7 && digits(date) && clock.strip_suffix('Z').is_some_and(digits)
    };
    time.split_once('T').is_some_and(shape) && digits(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_backups_are_ours() {
        let ours = [
            ("20261123T141339Z.qbm", "20261123T141339Z"),
            ("20261123T141339Z-2.qbm", "20261123T141339Z-2"),
            ("20261123T141339Z-data.img", "20261123T141339Z"),
            ("20261123T141339Z-2-allocation.bitmap", "20261123T141339Z-2"),
            ("20261123T141339Z.new", "20261123T141339Z"),
        ];
        for (file, name) in ours {
            assert_eq!(owner(file), Some(name));
        }
        for file in [
            "disk.qbm",
            "20261123.qbm",
            "20261123T141339Z.txt",
            "2026112T141339Z-data.img",
            "notes",
        ] {
            assert_eq!(owner(file), None, "{file}");
        }
    }
}
