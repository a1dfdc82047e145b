//! For tests: a folder of the host whose calls fail, or in the middle of which somebody else is at work.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{Access, Folder, HostFolder, Role, Storage};

/// When a hook is called.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Before,
    After,
}

type Hook = dyn Fn(When, &str, &Path) -> io::Result<()> + Send + Sync;

/// A folder that tells of each call before it takes effect and afterwards; either may fail.
pub(crate) struct Hooked {
    inner: HostFolder,
    hook: Box<Hook>,
}

impl std::fmt::Debug for Hooked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Hooked").field(&self.inner).finish()
    }
}

impl Hooked {
    pub(crate) fn new(
        inner: HostFolder,
        hook: impl Fn(When, &str, &Path) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self {
            inner,
            hook: Box::new(hook),
        }
    }

    fn call<T>(&self, what: &str, name: &Path, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        (self.hook)(When::Before, what, name)?;
        let done = act()?;
        (self.hook)(When::After, what, name)?;
        Ok(done)
    }
}

impl Folder for Hooked {
    fn open(&self, role: Role, name: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        self.call("open", name, || self.inner.open(role, name, access))
    }

    fn create(&self, role: Role, name: &Path) -> io::Result<Arc<dyn Storage>> {
        self.call("create", name, || self.inner.create(role, name))
    }

    fn copy_attributes(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call("copy attributes", to, || self.inner.copy_attributes(from, to))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call("rename", to, || self.inner.rename(from, to))
    }

    fn remove(&self, name: &Path) -> io::Result<()> {
        self.call("remove", name, || self.inner.remove(name))
    }

    fn names(&self) -> io::Result<Vec<OsString>> {
        self.call("names", Path::new("."), || self.inner.names())
    }

    fn sync(&self) -> io::Result<()> {
        self.call("sync", Path::new("."), || self.inner.sync())
    }

    fn sync_name(&self) -> io::Result<()> {
        self.call("sync name", Path::new("."), || self.inner.sync_name())
    }

    fn check_writable(&self) -> io::Result<()> {
        self.call("check", Path::new("."), || self.inner.check_writable())
    }
}
