//! The whole simulated file system at one moment, and what each call does to it.
//!
//! Invariant: the state after an event follows from the state before it and the event alone, so that replaying a log
//! gives the very same states.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::crash::{Choice, Chooser};
use super::event::{Call, Event, Failure};
use super::file::File;
use super::history::History;
use crate::storage::{Limits, SyncMode};
use crate::units::MAX_LENGTH;

#[derive(Clone)]
pub(super) struct State {
    /// Counts events, also over a kill, because unsynced changes outlive it.
    pub clock: u64,
    pub device: u64,
    pub limits: Limits,
    /// A sync of all of a file makes the names that it has durable.
    pub names_with_files: bool,
    last_inode: u64,
    /// Whether the folder itself is there.
    folder: History<bool>,
    files: BTreeMap<u64, Arc<File>>,
    names: BTreeMap<Arc<Path>, History<Option<u64>>>,
}

impl State {
    pub fn new(device: u64, limits: Limits) -> Self {
        Self {
            clock: 0,
            device,
            limits,
            names_with_files: false,
            last_inode: 0,
            folder: History::new(true),
            files: BTreeMap::new(),
            names: BTreeMap::new(),
        }
    }

    /// From the next sync of its name on, the folder is there for good.
    pub fn folder_made(&mut self) {
        self.folder = History::new(false);
        self.folder.set(self.clock, true);
    }

    /// The number of the file with that name.
    pub fn inode(&self, name: &Path) -> Option<u64> {
        self.names.get(name).and_then(|history| *history.live())
    }

    pub fn file(&self, inode: u64) -> Option<&File> {
        self.files.get(&inode).map(Arc::as_ref)
    }

    pub fn names(&self) -> Vec<PathBuf> {
        let bound = self.names.iter().filter(|(_, history)| history.live().is_some());
        bound.map(|(name, _)| name.to_path_buf()).collect()
    }

    /// Whether `call` would succeed, were it not for faults.
    pub fn check(&self, call: &Call) -> Result<(), Failure> {
        let must_exist = |name: &Path| match self.inode(name) {
            Some(_) => Ok(()),
            None => Err(Failure::Errno(libc::ENOENT)),
        };
        if let Some(file) = call.file()
            && !file.writable
            && call.changes()
            && !matches!(call, Call::Sync { .. })
        {
            return Err(Failure::Errno(libc::EBADF));
        }
        match call {
            Call::Open { name, .. } | Call::Remove { name } => must_exist(name),
            Call::Rename { from, .. } => must_exist(from),
            Call::CopyAttributes { from, to } => must_exist(from).and(must_exist(to)),
            Call::Create { name, .. } => match self.inode(name) {
                Some(_) => Err(Failure::Errno(libc::EEXIST)),
                None => Ok(()),
            },
            Call::Read { file, range } => {
                within_off_t(range.start(), range.len())?;
                let length = self.file(file.inode).map_or(0, File::length);
                if range.is_empty() || range.end() <= length {
                    Ok(())
                } else {
                    Err(Failure::PastEnd)
                }
            }
            Call::Write { offset, bytes, .. } => within_off_t(*offset, bytes.len() as u64),
            Call::WriteZeroes { range, .. }
            | Call::Discard { range, .. }
            | Call::Allocate { range, .. }
            | Call::Extent { range, .. } => within_off_t(range.start(), range.len()),
            Call::SetLength { length, .. } => within_off_t(*length, 0),
            Call::SyncFolder
            | Call::SyncName
            | Call::CheckWritable
            | Call::Sync { .. }
            | Call::Length { .. }
            | Call::AllocatedBytes { .. }
            | Call::Put { .. } => Ok(()),
        }
    }

    /// Does what `event` did.
    pub fn apply(&mut self, event: &Event) {
        self.clock += 1;
        let now = self.clock;
        let kept = event.kept;
        let whole = kept.includes(0);
        let failed = event.failure.is_some();
        match &event.call {
            Call::Create { name, .. } if whole => {
                let inode = self.add(File::new());
                self.bind(name, Some(inode), now);
            }
            Call::Rename { from, to } if whole && from != to => {
                let inode = self.inode(from);
                self.bind(to, inode, now);
                self.bind(from, None, now);
            }
            Call::Remove { name } if whole => self.bind(name, None, now),
            Call::SyncFolder => {
                for history in self.names.values_mut() {
                    if failed {
                        history.sync_failed(event.begun);
                    } else {
                        history.synced(event.begun);
                    }
                }
                self.names
                    .retain(|_, history| !history.is_settled() || history.live().is_some());
            }
            Call::SyncName if failed => self.folder.sync_failed(event.begun),
            Call::SyncName => self.folder.synced(event.begun),
            Call::Put { name, bytes } => {
                let inode = self.add(File::durable(bytes));
                self.names.insert(Arc::clone(name), History::new(Some(inode)));
            }
            Call::Write { file, offset, bytes } => {
                self.change(file.inode, |it| it.write(*offset, bytes, kept, now));
            }
            Call::WriteZeroes { file, range, how } => self.change(file.inode, |it| {
                if how.may_unmap {
                    it.punch(*range, kept, now);
                } else {
                    it.write_zeroes(*range, kept, now);
                }
            }),
            Call::Discard { file, range } => self.change(file.inode, |it| it.punch(*range, kept, now)),
            Call::SetLength { file, length } if whole => {
                self.change(file.inode, |it| it.set_length(*length, now));
            }
            Call::Allocate { file, range } if whole && !range.is_empty() => {
                self.change(file.inode, |it| it.grow(range.end(), now));
            }
            Call::Sync { file, mode } => {
                self.change(file.inode, |it| match event.failure {
                    None => it.synced(event.begun),
                    // What it has written may be durable by now, or not.
                    Some(Failure::LostBefore) => {}
                    Some(Failure::CacheLost) => it.lose(event.begun),
                    Some(_) => it.sync_failed(event.begun),
                });
                if self.names_with_files && *mode == SyncMode::All && !failed {
                    let its = |name: &&mut History<_>| *name.live() == Some(file.inode);
                    self.names
                        .values_mut()
                        .filter(its)
                        .for_each(|name| name.synced(event.begun));
                }
            }
            _ => {}
        }
    }

    /// How many values each open thing may have, in the order in which choosers are asked.
    pub fn open_counts(&self) -> impl Iterator<Item = usize> {
        let reachable = self.reachable();
        let names = self.names.values().map(History::count);
        let files = self
            .files
            .iter()
            .filter(move |(inode, _)| reachable.contains(inode))
            .flat_map(|(_, file)| file.counts());
        let folder = std::iter::once(self.folder.count());
        folder.chain(names).chain(files).filter(|&count| count > 1)
    }

    /// The state that the next boot finds; all of it is durable.
    pub fn after_power_cut(&self, chooser: &mut dyn Chooser) -> Self {
        let there = *self.folder.choose(Choice::Folder, chooser);
        let mut names = BTreeMap::new();
        for (name, history) in &self.names {
            if let Some(inode) = history.choose(Choice::Name(name), chooser) {
                names.insert(Arc::clone(name), History::new(Some(*inode)));
            }
        }
        let bound: BTreeSet<u64> = names.values().filter_map(|history| *history.live()).collect();
        let mut files = BTreeMap::new();
        // A file that lost its name is asked for too, so that the choices are the same whatever the names become.
        for inode in self.reachable() {
            let Some(file) = self.files.get(&inode) else {
                continue;
            };
            let after = if file.is_settled() {
                Arc::clone(file)
            } else {
                Arc::new(file.after_power_cut(inode, chooser))
            };
            if bound.contains(&inode) {
                files.insert(inode, after);
            }
        }
        if !there {
            (names, files) = (BTreeMap::new(), BTreeMap::new());
        }
        Self {
            clock: self.clock,
            device: self.device,
            limits: self.limits,
            names_with_files: self.names_with_files,
            last_inode: self.last_inode,
            folder: History::new(true),
            files,
            names,
        }
    }

    /// The files that may have a name after a power cut.
    fn reachable(&self) -> BTreeSet<u64> {
        self.names
            .values()
            .flat_map(History::values)
            .copied()
            .flatten()
            .collect()
    }

    fn add(&mut self, file: File) -> u64 {
        self.last_inode += 1;
        self.files.insert(self.last_inode, Arc::new(file));
        self.last_inode
    }

    fn bind(&mut self, name: &Arc<Path>, inode: Option<u64>, event: u64) {
        self.names
            .entry(Arc::clone(name))
            .or_insert_with(|| History::new(None))
            .set(event, inode);
    }

    fn change(&mut self, inode: u64, change: impl FnOnce(&mut File)) {
        if let Some(file) = self.files.get_mut(&inode) {
            change(Arc::make_mut(file));
        }
    }
}

/// What Linux says to offsets and ends that an `off_t` cannot hold.
fn within_off_t(offset: u64, len: u64) -> Result<(), Failure> {
    if offset > MAX_LENGTH {
        Err(Failure::Errno(libc::EINVAL))
    } else if len > MAX_LENGTH - offset {
        Err(Failure::Errno(libc::EFBIG))
    } else {
        Ok(())
    }
}
