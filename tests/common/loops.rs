//! Loop devices.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::run::run;

/// A file as a block device. Detached when dropped, so also when a test fails.
pub struct Loop(PathBuf);

impl Loop {
    /// Of `file`, with these options of losetup; the reason in words where the machine cannot.
    pub fn new(file: &Path, options: &[&str]) -> Result<Self, String> {
        let mut command = Command::new("losetup");
        command.args(["--find", "--show"]).args(options).arg(file);
        run(&mut command).map(|device| Self(device.into()))
    }

    pub fn device(&self) -> &Path {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Err(why) = run(Command::new("losetup").arg("--detach").arg(&self.0)) {
            println!("{why}");
        }
    }
}
