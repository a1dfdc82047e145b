//! File systems that a test mounts.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::run::run;

/// A mounted file system. Unmounted when dropped, so also when a test fails.
pub struct Mounted(PathBuf);

impl Mounted {
    /// `mount` with these arguments, at this folder.
    pub fn new(arguments: &[&OsStr], at: &Path) -> Result<Self, String> {
        run(Command::new("mount").args(arguments).arg(at))?;
        Ok(Self(at.to_owned()))
    }

    pub fn folder(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A process that another test starts has our open files until it has become its program.
        for _ in 0..200 {
            match run(Command::new("umount").arg(&self.0)) {
                Err(why) if why.contains("busy") => std::thread::sleep(Duration::from_millis(5)),
                Err(why) => return println!("{why}"),
                Ok(_) => return,
            }
        }
        println!("{} stays busy", self.0.display());
    }
}
