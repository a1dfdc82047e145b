//! A folder to run the tool in, and what it said.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use super::names::names_in;

/// The tool itself.
pub const TOOL: &str = env!("CARGO_BIN_EXE_qbm");

pub struct Room {
    dir: TempDir,
}

impl Room {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a folder"),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .current_dir(self.dir.path())
            .env_remove("COLUMNS");
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(TOOL, args).output().expect("the tool starts")
    }

    /// Runs what must succeed without complaint; what it printed.
    pub fn done(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let complaint = text(&output.stderr);
        assert!(
            output.status.success() && complaint.is_empty(),
            "{args:?}: {complaint}"
        );
        text(&output.stdout)
    }

    /// Runs what must fail, with nothing on standard output; the code, and what it complained.
    pub fn fails(&self, args: &[&str]) -> (i32, String) {
        let output = self.run(args);
        assert_eq!(text(&output.stdout), "", "{args:?}");
        let code = output.status.code().expect("an exit, not a signal");
        assert_ne!(code, 0, "{args:?}");
        (code, text(&output.stderr))
    }

    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.done(args)).expect("JSON")
    }

    /// Writes `len` bytes to the disk at `offset`, through the library, as a guest does.
    pub fn guest_writes(&self, disk: &str, offset: u64, len: usize) {
        let disk = qbm::Disk::open(self.path(disk)).expect("it opens");
        disk.write(&vec![0x5a; len], offset, qbm::WriteFlags::empty())
            .expect("written");
        disk.close().expect("closed");
    }

    pub fn folder(&self, name: &str) {
        fs::create_dir(self.path(name)).expect("a folder");
    }

    pub fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.path(name), content).expect("written");
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect("read")
    }

    pub fn meta(&self, name: &str) -> Metadata {
        fs::metadata(self.path(name)).expect("there is such a file")
    }

    pub fn length(&self, name: &str) -> u64 {
        self.meta(name).len()
    }

    pub fn allocated(&self, name: &str) -> u64 {
        self.meta(name).blocks() * 512
    }

    /// The names in the folder, sorted.
    pub fn names(&self) -> Vec<String> {
        names_in(self.dir.path())
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}
