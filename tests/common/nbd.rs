//! A qemu-nbd that serves an image until it is dropped, or killed.

#![allow(dead_code, reason = "each test program uses a part")]

use std::io::Read as _;
use std::os::unix::net::UnixStream;
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
            .args(options)
            // From there QEMU takes the relative name of a data file.
            .current_dir(folder);
        let process = command
            .arg(image)
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-nbd starts");
        let mut server = Self { process, socket };
        let patience = Instant::now() + Duration::from_secs(20);
        while !server.greets() {
            assert!(
                Instant::now() < patience && server.process.try_wait().expect("its state").is_none(),
                "qemu-nbd does not answer"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    /// It listens before it opens the image, and greets afterwards.
    fn greets(&self) -> bool {
        let Ok(mut stream) = UnixStream::connect(&self.socket) else {
            return false;
        };
        let mut greeting = [0; 8];
        let patience = stream.set_read_timeout(Some(Duration::from_secs(1)));
        patience.is_ok() && stream.read_exact(&mut greeting).is_ok() && &greeting == b"NBDMAGIC"
    }

    /// What clients connect to.
    pub fn address(&self) -> String {
        format!("nbd:unix:{}", self.socket.display())
    }

    /// The same, for libnbd's programs.
    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
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
        // By SIGTERM it closes the image. It takes no notice of one that comes before its main loop runs.
        let patience = Instant::now() + Duration::from_secs(20);
        while let Ok(None) = self.process.try_wait() {
            if Instant::now() > patience {
                println!("qemu-nbd does not end");
                let _ = self.process.kill();
            }
            // SAFETY: our own process, which nobody has waited for.
            unsafe { libc::kill(self.process.id().cast_signed(), libc::SIGTERM) };
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}
