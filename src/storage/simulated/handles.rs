//! The two traits on a simulated disk: each function is one call of the log.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::event::{Call, Failure, OpenFile};
use super::file::File;
use super::state::State;
use super::{SimDisk, key, run};
use crate::storage::{
    Access, Extent, FileIdentity, Folder, Gather, Limits, Role, Scatter, Storage, SyncMode, Zeroing,
};
use crate::units::ByteRange;

impl SimDisk {
    /// Opens what has the name after `call`, if that succeeds.
    fn opened(
        &self,
        call: Call,
        role: Role,
        name: &Arc<Path>,
        writable: bool,
    ) -> io::Result<Arc<dyn Storage>> {
        let file = self.perform(call, |state| {
            // `Open` and `Create` succeed only where the name stands for a file.
            let inode = state.inode(name).unwrap_or(0);
            let file = OpenFile {
                inode,
                role,
                name: Arc::clone(name),
                writable,
            };
            SimFile::new(self, Arc::new(file), state)
        })?;
        Ok(Arc::new(file))
    }
}

impl Folder for SimDisk {
    fn open(&self, role: Role, name: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        let name = key(name);
        let call = Call::Open {
            role,
            name: Arc::clone(&name),
            write: access.write,
        };
        self.opened(call, role, &name, access.write)
    }

    fn create(&self, role: Role, name: &Path) -> io::Result<Arc<dyn Storage>> {
        let name = key(name);
        let call = Call::Create {
            role,
            name: Arc::clone(&name),
        };
        self.opened(call, role, &name, true)
    }

    fn names(&self) -> io::Result<Vec<OsString>> {
        Ok(Self::names(self)
            .into_iter()
            .map(PathBuf::into_os_string)
            .collect())
    }

    fn copy_attributes(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (key(from), key(to));
        self.perform(Call::CopyAttributes { from, to }, |_| ())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (key(from), key(to));
        self.perform(Call::Rename { from, to }, |_| ())
    }

    fn remove(&self, name: &Path) -> io::Result<()> {
        self.perform(Call::Remove { name: key(name) }, |_| ())
    }

    fn sync(&self) -> io::Result<()> {
        self.perform(Call::SyncFolder, |_| ())
    }

    fn sync_name(&self) -> io::Result<()> {
        self.perform(Call::SyncName, |_| ())
    }

    fn check_writable(&self) -> io::Result<()> {
        self.perform(Call::CheckWritable, |_| ())
    }
}

/// An open file of a simulated disk.
struct SimFile {
    disk: SimDisk,
    file: Arc<OpenFile>,
    /// Of how many failed syncs of the file this one knows: those before it was opened, and what it was told since.
    told: AtomicU64,
}

impl SimFile {
    fn new(disk: &SimDisk, file: Arc<OpenFile>, state: &State) -> Self {
        let told = state.file(file.inode).map_or(0, |it| it.failed_syncs);
        Self {
            disk: disk.clone(),
            file,
            told: AtomicU64::new(told),
        }
    }

    fn file(&self) -> Arc<OpenFile> {
        Arc::clone(&self.file)
    }

    fn ask<T>(&self, call: Call, answer: impl FnOnce(&File) -> T) -> io::Result<T> {
        let inode = self.file.inode;
        let answer = |state: &State| state.file(inode).map(answer);
        // An open file outlives its names, so it is there.
        self.disk
            .perform(call, answer)?
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EIO))
    }
}

impl Storage for SimFile {
    fn read(&self, into: Scatter<'_>, offset: u64) -> io::Result<()> {
        let call = Call::Read {
            file: self.file(),
            range: ByteRange::between(offset, offset.saturating_add(into.len() as u64)),
        };
        self.ask(call, |file| {
            let mut bytes = vec![0; into.len()];
            file.read(offset, &mut bytes);
            into.copy_from(0, &bytes);
        })
    }

    fn write(&self, from: Gather<'_>, offset: u64) -> io::Result<()> {
        let mut bytes = vec![0; from.len()];
        from.copy_to(0, &mut bytes);
        let call = Call::Write {
            file: self.file(),
            offset,
            bytes: bytes.into(),
        };
        self.disk.perform(call, |_| ())
    }

    fn write_zeroes(&self, range: ByteRange, how: Zeroing) -> io::Result<()> {
        let file = self.file();
        self.disk.perform(Call::WriteZeroes { file, range, how }, |_| ())
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        let file = self.file();
        self.disk.perform(Call::Discard { file, range }, |_| ())
    }

    fn sync(&self, mode: SyncMode) -> io::Result<()> {
        let call = Call::Sync {
            file: self.file(),
            mode,
        };
        let failures = |state: &State| state.file(self.file.inode).map_or(0, |it| it.failed_syncs);
        let (inner, failure) = self.disk.carry_out(call.clone(), |state| {
            if self.told.load(Ordering::Relaxed) < failures(state) {
                return Err(Failure::LostBefore);
            }
            Ok(())
        });
        self.told.store(failures(&inner.state), Ordering::Relaxed);
        drop(inner);
        run(&self.disk.shared.hook_behind, &call);
        failure.map_or(Ok(()), |failure| Err(failure.into()))
    }

    fn sync_apart(&self) -> Option<Arc<dyn Storage>> {
        let inner = self.disk.lock();
        Some(Arc::new(Self::new(&self.disk, self.file(), &inner.state)))
    }

    fn length(&self) -> io::Result<u64> {
        self.ask(Call::Length { file: self.file() }, File::length)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let file = self.file();
        self.disk.perform(Call::SetLength { file, length }, |_| ())
    }

    /// Grows the file; a simulated disk never fills up, so there is nothing to reserve.
    fn allocate(&self, range: ByteRange) -> io::Result<()> {
        let file = self.file();
        self.disk.perform(Call::Allocate { file, range }, |_| ())
    }

    fn extent(&self, range: ByteRange) -> io::Result<Extent> {
        let file = self.file();
        self.ask(Call::Extent { file, range }, |file| file.extent(range))
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.ask(Call::AllocatedBytes { file: self.file() }, File::allocated_bytes)
    }

    fn limits(&self) -> Limits {
        self.disk.lock().state.limits
    }

    fn identity(&self) -> Option<FileIdentity> {
        Some(FileIdentity {
            device: self.disk.lock().state.device,
            inode: self.file.inode,
        })
    }
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimFile").field(&self.file.name).finish()
    }
}
