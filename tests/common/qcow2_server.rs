//! A qcow2 over NBD, as backup programs see it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::common::must;

/// A running qemu-nbd.
pub struct Server {
    process: Child,
    socket: PathBuf,
}

impl Server {
    pub fn start(folder: &Path, image: &Path, bitmaps: &[String]) -> Self {
        let mut options = vec!["--read-only"];
        for name in bitmaps {
            options.extend(["-B", name]);
        }
        Self::run(folder, image, &options)
    }

    /// One that the image can be written through.
    #[allow(dead_code, reason = "each test program uses a part")]
    pub fn start_writable(folder: &Path, image: &Path) -> Self {
        Self::run(folder, image, &[])
    }

    fn run(folder: &Path, image: &Path, options: &[&str]) -> Self {
        let socket = folder.join("nbd");
        // One that an earlier server left.
        let _ = std::fs::remove_file(&socket);
        let mut run = Command::new("qemu-nbd");
        run.args(["--persistent", "-f", "qcow2", "-k"])
            .arg(&socket)
            .args(options)
            // From there QEMU takes the relative name of a data file.
            .current_dir(folder);
        let process = run.arg(image).spawn().expect("qemu-nbd runs");
        let mut server = Self { process, socket };
        let start = Instant::now();
        while !server.socket.exists() {
            let ended = server.process.try_wait().expect("its state");
            assert!(ended.is_none(), "qemu-nbd ended: {ended:?}");
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "qemu-nbd does not listen"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    /// What QEMU calls dirty on a disk of `length` bytes, as start and end; extents that touch are one.
    pub fn dirty(&self, name: &str, length: u64) -> Vec<(u64, u64)> {
        let said = must(
            Command::new("nbdinfo")
                .arg(format!("--map=qemu:dirty-bitmap:{name}"))
                .arg("--json")
                .arg(format!("nbd+unix:///?socket={}", self.socket.display())),
        );
        let extents: Vec<serde_json::Value> = serde_json::from_str(&said).expect("JSON");
        let mut found: Vec<(u64, u64)> = Vec::new();
        let mut at = 0;
        for extent in &extents {
            let number = |key| extent[key].as_u64().unwrap_or_else(|| panic!("{key} in {said}"));
            let (start, end) = (number("offset"), number("offset") + number("length"));
            assert_eq!(start, at, "the map has a gap");
            at = end;
            match (number("type"), found.last_mut()) {
                (0, _) => (),
                (1, Some(last)) if last.1 == start => last.1 = end,
                (1, _) => found.push((start, end)),
                (other, _) => panic!("type {other} in {said}"),
            }
        }
        assert_eq!(at, length, "the map ends early");
        found
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
