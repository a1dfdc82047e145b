//! A block device whose every write is recorded: qemu-storage-daemon's `blklogwrites`, exported by FUSE, under a loop
//! device, with a file system on it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::loops::Loop;
use super::mounted::Mounted;
use super::run::run;
use super::skip::skipped;

/// A file system to make.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub name: &'static str,
    pub size: u64,
    pub mkfs: &'static [&'static str],
}

pub const EXT4: Kind = Kind {
    name: "ext4",
    size: 48 << 20,
    mkfs: &[
        "mkfs.ext4",
        "-q",
        "-J",
        "size=4",
        "-E",
        "lazy_itable_init=0,lazy_journal_init=0",
    ],
};

/// No smaller one is made.
pub const XFS: Kind = Kind {
    name: "xfs",
    size: 300 << 20,
    mkfs: &["mkfs.xfs", "-q", "-f"],
};

/// The daemon; ended when dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // By SIGTERM it brings the log to its end.
        // SAFETY: our own process, which nobody has waited for.
        unsafe { libc::kill(self.0.id().cast_signed(), libc::SIGTERM) };
        if let Err(why) = self.0.wait() {
            println!("qemu-storage-daemon: {why}");
        }
    }
}

/// File systems on one device, which is recorded.
pub struct Recorder {
    // In the order in which they have to go.
    mounted: Vec<Mounted>,
    _devices: Vec<Loop>,
    _daemon: Daemon,
    log: PathBuf,
}

impl Recorder {
    /// So many, one behind the other, in an empty folder. `None`, with a word, where the machine cannot.
    pub fn start(folder: &Path, kind: Kind, systems: u64) -> Option<Self> {
        if let Some(why) = missing(kind) {
            skipped(format_args!("power cuts on {}: {why}", kind.name));
            return None;
        }
        Some(Self::try_start(folder, kind, systems).expect("a recorded block device"))
    }

    fn try_start(folder: &Path, kind: Kind, systems: u64) -> Result<Self, String> {
        let (data, log) = (folder.join("data"), folder.join("log"));
        let export = folder.join("export");
        let size = kind.size * systems;
        let file = |path: &Path| File::create(path).map_err(|error| error.to_string());
        let length = |file: File| file.set_len(size).map_err(|error| error.to_string());
        length(file(&data)?)?;
        file(&log)?;
        file(&export)?;
        let daemon = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!("file,node-name=data,filename={}", data.display()))
            .arg("--blockdev")
            .arg(format!("file,node-name=log,filename={}", log.display()))
            .args([
                "--blockdev",
                "blklogwrites,node-name=logged,file=data,log=log,log-sector-size=512",
            ])
            .arg("--export")
            .arg(format!(
                "fuse,id=export,node-name=logged,writable=on,mountpoint={}",
                export.display()
            ))
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| error.to_string())?;
        let daemon = Daemon(daemon);
        let patience = Instant::now() + Duration::from_secs(20);
        while std::fs::metadata(&export).map_or(0, |it| it.len()) != size {
            if Instant::now() > patience {
                return Err("qemu-storage-daemon exports nothing".to_owned());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let (mut devices, mut mounted) = (Vec::new(), Vec::new());
        for system in 0..systems {
            let (start, length) = ((system * kind.size).to_string(), kind.size.to_string());
            let device = Loop::new(&export, &["--offset", &start, "--sizelimit", &length])?;
            run(Command::new(kind.mkfs[0])
                .args(&kind.mkfs[1..])
                .arg(device.device()))?;
            let mount = folder.join(format!("mount-{system}"));
            std::fs::create_dir(&mount).map_err(|error| error.to_string())?;
            let options = ["-o".as_ref(), "noatime".as_ref(), device.device().as_os_str()];
            mounted.push(Mounted::new(&options, &mount)?);
            devices.push(device);
        }
        Ok(Self {
            mounted,
            _devices: devices,
            _daemon: daemon,
            log,
        })
    }

    /// The first file system.
    pub fn folder(&self) -> &Path {
        self.system(0)
    }

    pub fn system(&self, index: usize) -> &Path {
        self.mounted[index].folder()
    }

    /// How far the log has got: whatever was finished is before it, and whatever has not begun is behind.
    pub fn position(&self) -> u64 {
        std::fs::metadata(&self.log).expect("the log").len()
    }
}

/// What keeps this machine from such a device, in words.
fn missing(kind: Kind) -> Option<String> {
    let output = run(Command::new("id").arg("-u"));
    if output.as_deref() != Ok("0") {
        return Some("only root can mount".to_owned());
    }
    for device in ["/dev/fuse", "/dev/loop-control"] {
        if File::options().read(true).write(true).open(device).is_err() {
            return Some(format!("{device} cannot be opened"));
        }
    }
    for program in [kind.mkfs[0], "qemu-storage-daemon", "losetup"] {
        if Command::new(program)
            .arg("-V")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_err()
        {
            return Some(format!("{program} is not installed"));
        }
    }
    let systems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !systems.split_whitespace().any(|it| it == kind.name) {
        return Some("the kernel does not know it".to_owned());
    }
    let daemon = run(Command::new("qemu-storage-daemon").arg("--help")).unwrap_or_default();
    (!daemon.contains("type=]fuse")).then(|| "this qemu-storage-daemon has no FUSE exports".to_owned())
}
