//! A disk that loses power and fails on demand: a little file system in memory, for crash and fault tests.
//!
//! It stands behind the traits [`super::Storage`] and [`super::Folder`] and calls nothing. Built only with the
//! feature `simulated`, which this package's dev-dependency on itself turns on: unit and integration tests see it
//! under plain `cargo test`, and no library that is shipped has it. Invariant: a crash state shows what the failure
//! model allows (durable values and any unsynced ones, in 512-byte pieces, in any order), and every such state can
//! be had.
//!
//! Where file systems differ the disk is as harsh as POSIX permits: a new file's name needs a sync of the folder, the
//! two names of a rename become durable independently of each other, and a write that grows the file may leave any
//! length that it passed through (ext4 does so when it allocates late).
//!
//! ```
//! use qbm::storage::simulated::{Keep, SimDisk};
//! use qbm::storage::{Folder, Role, Storage, SyncMode, write_slice};
//! use std::path::Path;
//!
//! let disk = SimDisk::new();
//! let file = disk.folder().create(Role::Image, Path::new("a.img"))?;
//! write_slice(&*file, b"synced", 0)?;
//! file.sync(SyncMode::Data)?;
//! disk.folder().sync()?;
//! write_slice(&*file, b"not yet", 512)?;
//!
//! for point in disk.crash_points() {
//!     for state in 0..point.states() {
//!         let after = point.power_cut_keeping(Keep::Numbered(state));
//!         assert!(point.events() < 4 || after.read("a.img")?.starts_with(b"synced"));
//!     }
//! }
//! # Ok::<(), std::io::Error>(())
//! ```

mod content;
mod crash;
mod event;
mod fault;
mod file;
mod handles;
mod history;
mod random;
mod state;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use content::PIECE;
pub use crash::{Choice, Chooser, CrashPoint, Keep, KeepChooser};
pub use event::{Call, CallKind, Event, Failure, OpenFile};
pub use fault::{Fault, Kept};

use super::{Folder, Limits};
use fault::Faults;
use state::State;

/// A simulated disk with one folder. Clones are the same disk; crash states are new ones.
#[derive(Clone)]
pub struct SimDisk {
    shared: Arc<Shared>,
}

type Hook = Arc<dyn Fn(&Call) + Send + Sync>;

struct Shared {
    inner: Mutex<Inner>,
    hook: Mutex<Option<Hook>>,
    hook_behind: Mutex<Option<Hook>>,
}

struct Inner {
    /// The state before the first event.
    base: State,
    state: State,
    log: Vec<Arc<Event>>,
    faults: Faults,
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::from_state(Self::empty())
    }

    /// An empty disk whose folder was made just now: a power cut before [`Folder::sync_name`] may take it away with all that is
    /// in it. Then there is an empty one again, as if somebody had made it anew.
    pub fn just_made() -> Self {
        let mut state = Self::empty();
        state.folder_made();
        Self::from_state(state)
    }

    fn empty() -> State {
        static DEVICES: AtomicU64 = AtomicU64::new(1);
        let limits = Limits {
            memory_alignment: 1,
            request_alignment: 1,
            logical_block: 512,
            physical_block: 512,
            optimal_transfer: 0,
            discard_alignment: 512,
            max_discard: 0,
            max_write_zeroes: 0,
            block_device: false,
        };
        State::new(DEVICES.fetch_add(1, Ordering::Relaxed), limits)
    }

    /// The disk's only folder.
    pub fn folder(&self) -> Arc<dyn Folder> {
        Arc::new(self.clone())
    }

    /// Makes `name` a new file of `bytes`, in place of one that has the name. It is durable at once and never fails.
    pub fn put(&self, name: impl AsRef<Path>, bytes: &[u8]) {
        let call = Call::Put {
            name: key(name.as_ref()),
            bytes: bytes.into(),
        };
        let mut inner = self.lock();
        let begun = inner.state.clock;
        inner.end(call, None, Kept::All, begun);
    }

    /// The whole file, as it reads now. Leaves no event.
    pub fn read(&self, name: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        let inner = self.lock();
        let found = inner.state.inode(&key(name.as_ref()));
        let Some(file) = found.and_then(|inode| inner.state.file(inode)) else {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        };
        let length = usize::try_from(file.length()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length)?;
        bytes.resize(length, 0);
        file.read(0, &mut bytes);
        Ok(bytes)
    }

    /// The names, as they are now, in order. Leaves no event.
    pub fn names(&self) -> Vec<PathBuf> {
        self.lock().state.names()
    }

    /// What [`Storage::limits`](super::Storage::limits) says from now on, and after crashes.
    pub fn set_limits(&self, limits: Limits) {
        let mut inner = self.lock();
        inner.base.limits = limits;
        inner.state.limits = limits;
    }

    /// From now on, and after crashes, a sync of all of a file makes its name durable, as on ext4, XFS and Btrfs.
    pub fn keep_names_with_files(&self) {
        let mut inner = self.lock();
        inner.base.names_with_files = true;
        inner.state.names_with_files = true;
    }

    /// Lets calls fail.
    pub fn fail(&self, fault: Fault) {
        self.lock().faults.add(fault);
    }

    /// No call fails any more.
    pub fn heal(&self) {
        self.lock().faults.clear();
    }

    /// Runs `hook` in every call before it takes effect, without holding a lock: it may block, so that others overtake
    /// the call, and it may use the disk (whose calls run the hook too). In place of an earlier hook.
    pub fn on_call(&self, hook: impl Fn(&Call) + Send + Sync + 'static) {
        *self.shared.hook.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(hook));
    }

    /// The same for syncs of files that have taken effect, and not returned yet.
    pub fn on_synced(&self, hook: impl Fn(&Call) + Send + Sync + 'static) {
        let mut place = self
            .shared
            .hook_behind
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *place = Some(Arc::new(hook));
    }

    /// The calls so far, in the order in which they took effect.
    pub fn events(&self) -> Vec<Arc<Event>> {
        self.lock().log.clone()
    }

    /// The present moment, to crash at.
    pub fn now(&self) -> CrashPoint {
        let inner = self.lock();
        CrashPoint {
            state: inner.state.clone(),
            events: inner.log.len() as u64,
        }
    }

    /// The moment after the first `events` events (or after all of them where there are fewer).
    pub fn after(&self, events: u64) -> CrashPoint {
        let replay = self.crash_points().take_while(|point| point.events() <= events);
        replay.last().unwrap_or_else(|| self.now())
    }

    /// Every moment of this disk's life so far, from before the first event to after the last.
    pub fn crash_points(&self) -> impl Iterator<Item = CrashPoint> + use<> {
        let (mut state, log) = {
            let inner = self.lock();
            (inner.base.clone(), inner.log.clone())
        };
        let start = CrashPoint {
            state: state.clone(),
            events: 0,
        };
        let later = log.into_iter().map(move |event| {
            state.apply(&event);
            CrashPoint {
                state: state.clone(),
                events: event.number,
            }
        });
        std::iter::once(start).chain(later)
    }

    /// F2, now: [`CrashPoint::power_cut`].
    #[must_use]
    pub fn power_cut(&self, chooser: &mut dyn Chooser) -> Self {
        self.now().power_cut(chooser)
    }

    /// F2, now: [`CrashPoint::power_cut_keeping`].
    #[must_use]
    pub fn power_cut_keeping(&self, keep: Keep) -> Self {
        self.now().power_cut_keeping(keep)
    }

    /// F1, now: [`CrashPoint::kill`].
    #[must_use]
    pub fn kill(&self) -> Self {
        self.now().kill()
    }

    /// F1 in the middle of event number `event`, of which only `kept` was done.
    #[must_use]
    pub fn kill_within(&self, event: u64, kept: Kept) -> Self {
        let mut point = self.after(event.saturating_sub(1));
        let next = self.events().into_iter().find(|it| it.number == event);
        // A sync that did not come back vouches for nothing, and a call that failed did what its event says.
        let is_sync = |event: &Event| {
            let kind = event.call.kind();
            matches!(kind, CallKind::Sync | CallKind::SyncFolder | CallKind::SyncName)
        };
        if let Some(event) = next.filter(|it| !is_sync(it) && it.failure.is_none()) {
            let mut torn = Event::clone(&event);
            torn.kept = kept;
            point.state.apply(&torn);
        }
        point.kill()
    }

    fn from_state(state: State) -> Self {
        let inner = Inner {
            base: state.clone(),
            state,
            log: Vec::new(),
            faults: Faults::default(),
        };
        Self {
            shared: Arc::new(Shared {
                inner: Mutex::new(inner),
                hook: Mutex::new(None),
                hook_behind: Mutex::new(None),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries `call` out, and takes `answer` from the state right after it.
    fn perform<T>(&self, call: Call, answer: impl FnOnce(&State) -> T) -> io::Result<T> {
        let (inner, failure) = self.carry_out(call, |_| Ok(()));
        match failure {
            None => Ok(answer(&inner.state)),
            Some(failure) => Err(failure.into()),
        }
    }

    /// Carries `call` out, unless `check`, which is asked right before, says why it fails. The disk is as the call has left it.
    fn carry_out(
        &self,
        call: Call,
        check: impl FnOnce(&State) -> Result<(), Failure>,
    ) -> (MutexGuard<'_, Inner>, Option<Failure>) {
        let begun = self.lock().state.clock;
        run(&self.shared.hook, &call);

        let mut inner = self.lock();
        let clock = inner.state.clock;
        let struck = inner.faults.strike(&call, clock);
        let checked = inner.state.check(&call).and_then(|()| check(&inner.state));
        let (failure, kept) = match (struck, checked) {
            (None, Ok(())) => (None, Kept::All),
            (Some((failure, kept)), Ok(())) => (Some(failure), kept),
            (Some((failure, _)), Err(_)) | (None, Err(failure)) => (Some(failure), Kept::Nothing),
        };
        inner.end(call, failure, kept, begun);
        (inner, failure)
    }
}

/// Runs the hook that is there, if one is, without holding its lock.
fn run(hook: &Mutex<Option<Hook>>, call: &Call) {
    let hook = hook.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(hook) = hook {
        hook(call);
    }
}

impl Inner {
    fn end(&mut self, call: Call, failure: Option<Failure>, kept: Kept, begun: u64) {
        let event = Arc::new(Event {
            number: self.log.len() as u64 + 1,
            call,
            failure,
            kept,
            begun,
        });
        self.state.apply(&event);
        self.log.push(event);
    }
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk")
            .field("names", &self.names())
            .field("events", &self.lock().log.len())
            .finish()
    }
}

/// The log, an event a line.
impl fmt::Display for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.events().iter().try_for_each(|event| writeln!(f, "{event}"))
    }
}

/// A name as the disk knows it: `./a` is `a`.
fn key(name: &Path) -> Arc<Path> {
    let parts = name
        .components()
        .filter(|part| *part != std::path::Component::CurDir);
    parts.collect::<PathBuf>().into()
}
