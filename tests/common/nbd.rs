//! A qemu-nbd that serves an image until it is dropped, or killed.

#![allow(dead_code, reason = "each test program uses a part")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Server {
    process: Child,
    socket: PathBuf,
}

impl Server {
    /// On a socket in `folder`, once it answers.
    pub fn start(folder: &Path, options: &[&str], image: &Path) -> Self {
        let socket = folder.join("nbd");
        let mut command = Command::new("qemu-nbd");
        command
            .args(["--persistent", "--socket"])
            .arg(&socket)
            .args(options);
        let process = command
            .arg(image)
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-nbd starts");
        let mut server = Self { process, socket };
        let patience = Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(&server.socket).is_err() {
            assert!(
                Instant::now() < patience && server.process.try_wait().expect("its state").is_none(),
                "qemu-nbd does not answer"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    /// What clients connect to.
    pub fn address(&self) -> String {
        format!("nbd:unix:{}", self.socket.display())
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.process.kill().expect("a kill");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // By SIGTERM it closes the image. One that was killed has not been waited for, so the number is still its own.
        // SAFETY: our own process.
        unsafe { libc::kill(self.process.id().cast_signed(), libc::SIGTERM) };
        let _ = self.process.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}
