//! QEMU's own way to an incremental backup of a disk that no QEMU has open: a qcow2 with a persistent bitmap, exported with it
//! by qemu-nbd; what is dirty, as nbdinfo tells it, copied by qemu-io into an overlay (`-C`), which is then put on the backup
//! before.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The disk as a qcow2, and the backup before.
pub struct Increments {
    folder: PathBuf,
    length: u64,
}

impl Increments {
    /// `None` where the programs are not there.
    pub fn new(folder: &Path, raw: &Path, length: u64) -> Option<Self> {
        for program in ["qemu-img", "qemu-io", "qemu-nbd", "nbdinfo"] {
            Command::new(program).arg("--version").output().ok()?;
        }
        let this = Self {
            folder: folder.to_owned(),
            length,
        };
        let raw = raw.to_str().expect("a name");
        let disk = this.name("disk.qcow2");
        this.run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", raw, &disk]);
        this.run("qemu-img", &["bitmap", "--add", &disk, "b"]);
        let length = length.to_string();
        this.run(
            "qemu-img",
            &["create", "-f", "qcow2", &this.name("full.qcow2"), &length],
        );
        Some(this)
    }

    fn name(&self, file: &str) -> String {
        self.folder.join(file).to_str().expect("a name").to_owned()
    }

    fn run(&self, program: &str, args: &[&str]) -> String {
        let done = Command::new(program)
            .current_dir(&self.folder)
            .args(args)
            .output();
        let done = done.expect("it runs");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{program} {args:?}: {said}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    /// Has qemu-io do all of `commands` to an image.
    fn qemu_io(&self, options: &[&str], image: &str, commands: impl Iterator<Item = String>) {
        let process = Command::new("qemu-io")
            .current_dir(&self.folder)
            .args(options)
            .args(["-f", "qcow2", image])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        let mut process = process.expect("qemu-io");
        let script: String = commands.map(|it| it + "\n").collect();
        let input = process.stdin.take();
        let written = input.expect("its input").write_all(script.as_bytes());
        written.expect("written");
        assert!(process.wait().expect("its end").success(), "qemu-io");
    }

    /// The guest writes 4 KiB at each of these.
    pub fn dirty(&self, offsets: impl Iterator<Item = u64>) {
        let commands = offsets.map(|at| format!("write -P 7 {at} 4096"));
        self.qemu_io(&[], "disk.qcow2", commands);
    }

    /// One incremental backup, durable at its end.
    pub fn back_up(&self) {
        let socket = self.name("nbd.socket");
        let mut server = Command::new("qemu-nbd")
            .current_dir(&self.folder)
            .args(["-r", "-t", "-f", "qcow2", "-B", "b", "-k", &socket, "disk.qcow2"])
            .spawn()
            .expect("qemu-nbd");
        let patience = Instant::now() + Duration::from_secs(10);
        let greets = || UnixStream::connect(&socket).and_then(|mut it| it.read_exact(&mut [0; 8]));
        while greets().is_err() {
            assert!(Instant::now() < patience, "qemu-nbd does not serve");
            std::thread::sleep(Duration::from_millis(1));
        }
        let uri = format!("nbd+unix:///?socket={socket}");
        let map = self.run("nbdinfo", &["--json", "--map=qemu:dirty-bitmap:b", &uri]);
        let map: serde_json::Value = serde_json::from_str(&map).expect("JSON");
        let dirty = map
            .as_array()
            .expect("extents")
            .iter()
            .filter(|it| it["type"] == 1);
        let number = |extent: &serde_json::Value, key: &str| extent[key].as_u64().expect("a number");
        let dirty = dirty.map(|it| format!("read {} {}", number(it, "offset"), number(it, "length")));
        let _ = std::fs::remove_file(self.name("increment.qcow2"));
        let length = self.length.to_string();
        let create = [
            "create",
            "-f",
            "qcow2",
            "-F",
            "raw",
            "-b",
            &uri,
            "increment.qcow2",
            &length,
        ];
        self.run("qemu-img", &create);
        self.qemu_io(&["-C"], "increment.qcow2", dirty.chain(["flush".to_owned()]));
        server.kill().expect("ended");
        server.wait().expect("its end");
        let rebase = [
            "rebase",
            "-u",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            "full.qcow2",
            "increment.qcow2",
        ];
        self.run("qemu-img", &rebase);
        let made = std::fs::File::open(self.name("increment.qcow2")).and_then(|it| it.sync_all());
        made.expect("synced");
        self.run("qemu-img", &["bitmap", "--clear", "disk.qcow2", "b"]);
    }

    /// The bytes that the last one takes.
    pub fn stored(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let made = std::fs::metadata(self.name("increment.qcow2"));
        made.map_or(0, |it| it.blocks() * 512)
    }
}
