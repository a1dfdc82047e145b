//! A backup program in a life: each backup is the one before with what is dirty copied over it, and has the name of the
//! starting point at which it was taken. So a bitmap that has a starting point of which there is a backup says what that
//! backup lacks, whatever has crashed since.

use std::path::PathBuf;
use std::sync::Arc;

use super::life::{Life, bytes};
use super::steps::Step;
use crate::disk::{BackupView, Scratch, backup_begin};
use crate::error::{Error, ErrorCode, Result};
use crate::storage::simulated::SimDisk;
use crate::storage::{Role, SyncMode, write_slice};

/// The file of the backup that was taken at `epoch`.
fn file_of(epoch: &str) -> PathBuf {
    format!("{epoch}.backup").into()
}

/// What the backup that was taken at `epoch` has, if there is one.
pub(super) fn taken_at(sim: &SimDisk, epoch: &str) -> Option<Vec<u8>> {
    sim.read(file_of(epoch)).ok()
}

impl Life {
    /// Backs the disk up by the bitmap `name`, while the guest writes `len` bytes at `at`.
    pub(super) fn back_up(&mut self, name: &'static str, (at, len): (usize, usize)) -> Result<()> {
        let Some(disk) = self.disk()? else { return Ok(()) };
        let info = || {
            let mut all = disk.bitmap_list()?.into_iter();
            Ok::<_, Error>(all.find(|it| it.name == name))
        };
        let epochs = || Ok::<_, Error>(info()?.map_or((None, None), |it| (it.epoch, it.next_epoch)));
        // As every backup program must: what is written from here on would be missed by the next one.
        if info()?.is_some_and(|it| !it.recording) {
            let words = format!("bitmap {name:?} does not record");
            return Err(Error::new(ErrorCode::BitmapState, words));
        }
        let (parent, _) = epochs()?;
        let begun = self.now();
        let views = backup_begin(&[(&disk, name)], &Scratch::default());
        if views.is_ok() {
            self.model.flushed(begun, self.now());
        }
        self.observe(begun, self.now());
        let views = views?;
        let (_, epoch) = epochs()?;
        let then = self.model.content[..bytes(disk.length())].to_vec();
        let fua = false;
        let written = self.step(Step::Write { at, len, fua });
        if let (Some(view), Some(epoch)) = (views.views().first(), epoch) {
            let parent = parent.and_then(|it| taken_at(&self.sim, &it));
            let content = copied(view, parent)?;
            if content != then {
                let words = format!("D1: the backup at {epoch} is not what the disk was");
                return Err(Error::new(ErrorCode::Io, words));
            }
            self.keep(&epoch, &content).map_err(|e| Error::system(&e))?;
        }
        let begun = self.now();
        let result = views.end(true);
        if result.is_ok() {
            self.model.flushed(begun, self.now());
        }
        self.observe(begun, self.now());
        result.and(written)
    }

    /// Puts a backup where it is seen: whole, and for good.
    fn keep(&self, epoch: &str, content: &[u8]) -> std::io::Result<()> {
        let folder = self.sim.folder();
        let unfinished = PathBuf::from("unfinished");
        let _ = folder.remove(&unfinished);
        let file: Arc<_> = folder.create(Role::Backing, &unfinished)?;
        write_slice(&*file, content, 0)?;
        file.sync(SyncMode::Data)?;
        folder.rename(&unfinished, &file_of(epoch))?;
        folder.sync()
    }
}

/// What the disk was, by what its backup `parent` has and what is dirty since.
fn copied(view: &BackupView<'_>, parent: Option<Vec<u8>>) -> Result<Vec<u8>> {
    let length = view.length();
    let Some(mut content) = parent else {
        let mut content = vec![0; bytes(length)];
        view.read(&mut content, 0)?;
        return Ok(content);
    };
    // New bits after growth are clean.
    let known = content.len().min(bytes(length));
    content.resize(bytes(length), 0);
    view.read(&mut content[known..], known as u64)?;
    let mut at = 0;
    while let Some(range) = view.next_dirty(at, length - at)? {
        view.read(
            &mut content[bytes(range.start())..bytes(range.end())],
            range.start(),
        )?;
        at = range.end();
    }
    Ok(content)
}
