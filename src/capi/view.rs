//! Disks and views behind the one kind of handle that C has, and who outlives whom.
//!
//! The views of a backup hold their disks, so that no call of C's frees memory that another handle leads to. Invariant: a
//! view is used with its backup's lock held for reading, and the backup ends, by `qbm_backup_end` or by the closing of one
//! of its disks, with it held for writing.

use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use super::boundary::null;
use super::{Kind, qbm_disk};
use crate::disk::Born;
use crate::error::{Error, ErrorCode, Result};
use crate::{BackupView, BackupViews, Disk};

/// What a handle from `qbm_open` is.
pub(super) struct OpenDisk {
    pub(super) disk: Disk,
    /// The backup that has views of it, while there is one.
    backup: Mutex<Weak<Backup>>,
}

impl OpenDisk {
    pub(super) fn new(disk: Disk) -> Self {
        Self {
            disk,
            backup: Mutex::default(),
        }
    }

    fn set_backup(&self, backup: &Arc<Backup>) {
        *self.backup.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(backup);
    }

    fn backup(&self) -> Option<Arc<Backup>> {
        let backup = self.backup.lock().unwrap_or_else(PoisonError::into_inner);
        backup.upgrade()
    }
}

/// What a handle from `qbm_backup_begin` is.
pub(super) struct View {
    backup: Arc<Backup>,
    index: usize,
}

/// What all views of one `qbm_backup_begin` share.
pub(super) struct Backup {
    born: Born,
    state: RwLock<State>,
}

enum State {
    Running(Running),
    /// With the words why, for whoever still looks at a view.
    Ended(String),
}

/// Views, and the disks that they borrow.
struct Running {
    /// Before the disks, as fields are dropped in their order.
    views: BackupViews<'static>,
    _disks: Vec<Arc<qbm_disk>>,
}

impl Backup {
    /// Makes `begin`'s views of `disks`, and holds these for as long as there are views.
    pub(super) fn begin(
        disks: Vec<Arc<qbm_disk>>,
        begin: impl FnOnce(&[&'static Disk]) -> Result<BackupViews<'static>>,
    ) -> Result<Arc<Self>> {
        let mut open = Vec::with_capacity(disks.len());
        for disk in &disks {
            // SAFETY: the disk lies in an `Arc` that is kept beside the views, and dropped after them.
            let disk: &'static qbm_disk = unsafe { &*Arc::as_ptr(disk) };
            open.push(opened(disk)?);
        }
        let borrowed: Vec<_> = open.iter().map(|open| &open.disk).collect();
        let views = begin(&borrowed)?;
        let backup = Arc::new(Self {
            born: Born::here(),
            state: RwLock::new(State::Running(Running { views, _disks: disks })),
        });
        for open in open {
            open.set_backup(&backup);
        }
        Ok(backup)
    }

    /// Ends it at one point of all its disks. Fails where it has ended already.
    pub(super) fn end(&self, success: bool, why: &str) -> Result<()> {
        self.born.check()?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Ended(why) => Err(ended(why)),
            State::Running(_) => match std::mem::replace(&mut *state, State::Ended(why.to_owned())) {
                State::Running(running) => running.views.end(success),
                State::Ended(_) => Ok(()),
            },
        }
    }

    /// The handles of the views, each to be given to C.
    pub(super) fn handles(self: &Arc<Self>, count: usize) -> Vec<Arc<qbm_disk>> {
        let handle = |index| {
            let backup = Arc::clone(self);
            Arc::new(qbm_disk {
                kind: Kind::View(View { backup, index }),
            })
        };
        (0..count).map(handle).collect()
    }
}

impl View {
    /// Runs `body` on the view; the backup does not end meanwhile.
    pub(super) fn look<T>(&self, body: impl FnOnce(&BackupView<'_>) -> Result<T>) -> Result<T> {
        self.backup.born.check()?;
        let state = self.backup.state.read().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Running(running) => match running.views.views().get(self.index) {
                Some(view) => body(view),
                None => Err(null("disk")),
            },
            State::Ended(why) => Err(ended(why)),
        }
    }
}

/// The disk behind a handle that must not be a view.
pub(super) fn opened(handle: &qbm_disk) -> Result<&OpenDisk> {
    match &handle.kind {
        Kind::Disk(open) => Ok(open),
        Kind::View(view) => view.look(|view| Err(no_disk(view))),
    }
}

/// Closes a disk that C gives back. A backup that has views of it ends as one that failed.
pub(super) fn close(handle: Arc<qbm_disk>) -> Result<()> {
    let shown = match &handle.kind {
        Kind::Disk(open) => {
            // In a forked child, a lock may be one that nobody opens any more.
            if open.disk.is_ours()
                && let Some(backup) = open.backup()
            {
                let why = format!("{} was closed", open.disk.path().display());
                // That it fails with a disk is what the closing of the disk will say. It may have ended by itself.
                let _ = backup.end(false, &why);
            }
            open.disk.path().display().to_string()
        }
        Kind::View(_) => {
            std::mem::forget(handle);
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                "this is a view of a backup, which qbm_backup_end() ends",
            ));
        }
    };
    match Arc::into_inner(handle).map(|handle| handle.kind) {
        Some(Kind::Disk(open)) => open.disk.close(),
        _ => Err(Error::new(
            ErrorCode::Forked,
            format!("{shown} was opened by the parent process, whose backup holds it"),
        )),
    }
}

fn ended(why: &str) -> Error {
    Error::new(
        ErrorCode::BitmapState,
        format!("the backup has ended as one that failed: {why}"),
    )
}

/// What a call answers that needs a disk.
#[cold]
pub(super) fn no_disk(view: &BackupView<'_>) -> Error {
    Error::new(
        ErrorCode::NotSupported,
        format!(
            "this is a view of {} as it was at one moment, which does not do that",
            view.path().display()
        ),
    )
}

/// What a call answers that would change something.
#[cold]
pub(super) fn read_only(view: &BackupView<'_>) -> Error {
    Error::new(
        ErrorCode::ReadOnly,
        format!(
            "this is a view of {} as it was at one moment, which nothing changes",
            view.path().display()
        ),
    )
}
