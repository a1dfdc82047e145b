//! A folder in memory that writes down what is done to it, fails on demand, and knows what a power cut would leave.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::storage::{
    Access, Extent, FileIdentity, Folder, Gather, Limits, Role, Scatter, Storage, SyncMode, Zeroing,
};
use crate::units::ByteRange;

type Names = BTreeMap<String, FakeFile>;

#[derive(Debug, Default)]
struct State {
    names: Names,
    durable_names: Names,
    /// What was called, in order.
    calls: Vec<String>,
    /// The calls, by number, that fail.
    failing: Vec<usize>,
    /// A rename that fails has happened all the same.
    rename_lies: bool,
}

#[derive(Debug, Default)]
pub struct FakeFolder(Arc<Mutex<State>>);

#[derive(Clone, Debug, Default)]
pub struct FakeFile {
    folder: Arc<Mutex<State>>,
    content: Arc<Mutex<Content>>,
}

/// What is in a file, and what of it would outlive a power cut.
#[derive(Clone, Debug, Default, PartialEq)]
struct Content {
    bytes: Vec<u8>,
    attributes: &'static str,
    durable: Option<(Vec<u8>, &'static str)>,
}

impl State {
    fn call(&mut self, what: String) -> io::Result<()> {
        self.calls.push(what);
        if self.failing.contains(&(self.calls.len() - 1)) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }

    fn file(&self, name: &str) -> io::Result<FakeFile> {
        let missing = || io::Error::from_raw_os_error(libc::ENOENT);
        self.names.get(name).cloned().ok_or_else(missing)
    }
}

impl FakeFolder {
    /// Puts a durable file there.
    pub fn put(&self, name: &str, bytes: &[u8], attributes: &'static str) {
        let file = FakeFile {
            folder: self.0.clone(),
            ..FakeFile::default()
        };
        let durable = Some((bytes.to_vec(), attributes));
        *file.lock() = Content {
            bytes: bytes.to_vec(),
            attributes,
            durable,
        };
        let mut state = self.lock();
        state.names.insert(name.to_owned(), file.clone());
        state.durable_names.insert(name.to_owned(), file);
    }

    /// Lets the calls with these numbers fail with `EIO`.
    pub fn fail(&self, calls: &[usize]) {
        self.lock().failing = calls.to_vec();
    }

    /// Lets a rename that fails happen all the same.
    pub fn rename_lies(&self) {
        self.lock().rename_lies = true;
    }

    /// What was called, in order.
    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    /// The names that exist now.
    pub fn names(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }

    /// What a reader sees now.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        self.lock().names.get(name).map(|file| file.lock().bytes.clone())
    }

    /// Content and attributes of `name` after a power cut: whether the last changes of names got through, or not.
    /// A file that was never synced is empty.
    pub fn after_power_cut(&self, name: &str) -> [Option<(Vec<u8>, &'static str)>; 2] {
        let state = self.lock();
        [&state.names, &state.durable_names].map(|names| {
            names
                .get(name)
                .map(|file| file.lock().durable.clone().unwrap_or_default())
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

fn text(name: &Path) -> String {
    name.to_str().unwrap().to_owned()
}

impl Folder for FakeFolder {
    fn open(&self, _: Role, name: &Path, _: Access) -> io::Result<Arc<dyn Storage>> {
        Ok(Arc::new(self.lock().file(&text(name))?))
    }

    fn create(&self, _: Role, name: &Path) -> io::Result<Arc<dyn Storage>> {
        let mut state = self.lock();
        state.call(format!("create {}", name.display()))?;
        if state.names.contains_key(&text(name)) {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        let file = FakeFile {
            folder: self.0.clone(),
            ..FakeFile::default()
        };
        state.names.insert(text(name), file.clone());
        Ok(Arc::new(file))
    }

    fn copy_attributes(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.call(format!("copy_attributes {} {}", from.display(), to.display()))?;
        let attributes = state.file(&text(from))?.lock().attributes;
        state.file(&text(to))?.lock().attributes = attributes;
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let called = state.call(format!("rename {} {}", from.display(), to.display()));
        if called.is_ok() || state.rename_lies {
            let file = state.file(&text(from))?;
            state.names.remove(&text(from));
            state.names.insert(text(to), file);
        }
        called
    }

    fn remove(&self, name: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.call(format!("remove {}", name.display()))?;
        state.file(&text(name))?;
        state.names.remove(&text(name));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.call("sync the folder".to_owned())?;
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn check_writable(&self) -> io::Result<()> {
        self.lock().call("check_writable".to_owned())
    }
}

impl FakeFile {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap()
    }

    fn call(&self, what: &str) -> io::Result<()> {
        self.folder.lock().unwrap().call(what.to_owned())
    }
}

impl Storage for FakeFile {
    fn read(&self, into: Scatter<'_>, offset: u64) -> io::Result<()> {
        let content = self.lock();
        let start = usize::try_from(offset).unwrap();
        let end = start + into.len();
        let bytes = content
            .bytes
            .get(start..end)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from(0, bytes);
        Ok(())
    }

    fn write(&self, from: Gather<'_>, offset: u64) -> io::Result<()> {
        let called = self.call("write");
        // A write that fails may have done a part of its work.
        let done = if called.is_ok() {
            from.len()
        } else {
            from.len() / 2
        };
        let start = usize::try_from(offset).unwrap();
        let mut content = self.lock();
        content.bytes.resize(start + done, 0);
        from.copy_to(0, &mut content.bytes[start..]);
        called
    }

    fn sync(&self, mode: SyncMode) -> io::Result<()> {
        self.call(&format!("sync {mode:?}"))?;
        let mut content = self.lock();
        let attributes = match mode {
            SyncMode::All => content.attributes,
            SyncMode::Data => "",
        };
        content.durable = Some((content.bytes.clone(), attributes));
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.lock().bytes.len() as u64)
    }

    fn write_zeroes(&self, _: ByteRange, _: Zeroing) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn discard(&self, _: ByteRange) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn set_length(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn allocate(&self, _: ByteRange) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn extent(&self, range: ByteRange) -> io::Result<Extent> {
        Ok(Extent {
            data: true,
            len: range.len(),
        })
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.length()
    }

    fn limits(&self) -> Limits {
        Limits {
            memory_alignment: 1,
            request_alignment: 1,
            logical_block: 0,
            physical_block: 0,
            optimal_transfer: 0,
            discard_alignment: 0,
            max_discard: 0,
            max_write_zeroes: 0,
            block_device: false,
        }
    }

    fn identity(&self) -> Option<FileIdentity> {
        None
    }
}
