use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Bytes, covers};
use crate::error::{ErrorCode, Result};
use crate::skip::skipped;
use crate::state::{Lock, Sharing};
use crate::storage::simulated::SimDisk;
use crate::storage::{Access, FileStorage, Folder, Role, Storage};

struct Room {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Room {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.img");
        std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        Self { _dir: dir, path }
    }

    /// A description of its own, as each opener has.
    fn open(&self, sharing: Sharing) -> Arc<dyn Storage> {
        let write = sharing == Sharing::Write;
        Arc::new(FileStorage::open(&self.path, Access { write, direct: false }).unwrap())
    }

    fn image(&self, sharing: Sharing) -> Result<Lock> {
        Lock::image(&self.open(sharing), &self.path, sharing).map(Option::unwrap)
    }

    fn state(&self, sharing: Sharing) -> Result<Lock> {
        Lock::state(&self.open(sharing), &self.path, sharing).map(Option::unwrap)
    }
}

const BOTH: [Sharing; 2] = [Sharing::Read, Sharing::Write];

/// Only two readers bear each other, on either file, and a released lock is gone.
#[test]
fn two_readers_or_one_writer() {
    let room = Room::new();
    for take in [Room::state, Room::image] {
        for first in BOTH {
            for second in BOTH {
                let held = take(&room, first).unwrap();
                let result = take(&room, second);
                if (first, second) == (Sharing::Read, Sharing::Read) {
                    result.unwrap().release();
                } else {
                    let error = result.unwrap_err();
                    assert_eq!((error.code(), error.errno()), (ErrorCode::Locked, libc::EBUSY));
                    let begin = format!(
                        "cannot lock {} for {}: another handle of this process ",
                        room.path.display(),
                        second.words()
                    );
                    assert!(error.message().starts_with(&begin), "{error}");
                }
                held.release();
                take(&room, Sharing::Write).unwrap().release();
            }
        }
    }
}

/// A refused opener leaves none of its bytes locked.
#[test]
fn a_refusal_leaves_nothing_behind() {
    let room = Room::new();
    let reader = room.image(Sharing::Read).unwrap();
    let storage = room.open(Sharing::Write);
    let said = Lock::image(&storage, &room.path, Sharing::Write).unwrap_err();
    assert!(
        said.message().ends_with("allows nobody else who writes to it"),
        "{said}"
    );
    // The refused description is still open.
    room.image(Sharing::Read).unwrap().release();
    reader.release();
    room.image(Sharing::Write).unwrap().release();
}

#[test]
fn closing_the_file_gives_the_lock_up() {
    let room = Room::new();
    drop(room.image(Sharing::Write).unwrap());
    room.image(Sharing::Write).unwrap().release();
}

#[test]
fn what_is_no_file_of_the_host_has_no_lock() {
    let file = SimDisk::new().create(Role::Image, Path::new("a")).unwrap();
    assert!(
        Lock::image(&file, Path::new("a"), Sharing::Write)
            .unwrap()
            .is_none()
    );
    assert!(
        Lock::state(&file, Path::new("a"), Sharing::Write)
            .unwrap()
            .is_none()
    );
}

#[test]
fn lines_of_fdinfo_are_understood() {
    let byte = Bytes { start: 101, len: 1 };
    assert!(covers(
        "lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:12 100 101",
        byte
    ));
    assert!(covers("lock:\t1: OFDLCK ADVISORY  WRITE -1 fe:00:12 0 EOF", byte));
    assert!(!covers(
        "lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:12 102 103",
        byte
    ));
    assert!(!covers("lock:\t1: POSIX ADVISORY  READ 7 fe:00:12 0 EOF", byte));
    assert!(!covers("flags:\t0100002", byte) && !covers("", byte));
}

/// A lock of the other kind, which a process has and not a description: the kernel tells whose.
#[test]
fn a_process_s_lock_is_named() {
    let Some(python) = have("python3") else { return };
    let room = Room::new();
    let script = "import fcntl,sys,time; f=open(sys.argv[1],'r+b'); fcntl.lockf(f,fcntl.LOCK_EX); \
                  print('locked',flush=True); time.sleep(60)";
    let mut child = Started(
        Command::new(python)
            .args(["-c", script])
            .arg(&room.path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut line = String::new();
    let out = child.0.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
    let error = room.image(Sharing::Read).unwrap_err();
    let who = format!("process {} (python", child.0.id());
    assert!(error.message().contains(&who), "{error}");
}

/// A child that is ended with the test.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn have(program: &'static str) -> Option<&'static str> {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        skipped(format_args!("{program} is not installed"));
    }
    found.then_some(program)
}

/// Whether qemu-io may do `command`, and what it says.
fn qemu_io(room: &Room, options: &[&str], command: &str) -> (bool, String) {
    let output = Command::new("qemu-io")
        .args(["-f", "raw"])
        .args(options)
        .args(["-c", command])
        .arg(&room.path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), said)
}

/// QEMU's programs see our locks: none writes while we write or read, readers are let in while we read, and all
/// afterwards.
#[test]
fn qemu_sees_our_locks() {
    if have("qemu-io").is_none() || have("qemu-img").is_none() {
        return;
    }
    let room = Room::new();
    let writer = room.image(Sharing::Write).unwrap();
    let (may, said) = qemu_io(&room, &[], "write 0 512");
    assert!(!may && said.contains("lock"), "{said}");
    // Commands of qemu-img and qemu-io that only read bear a writer of a raw image, ours as QEMU's own.
    let resize = || {
        let run = Command::new("qemu-img")
            .args(["resize", "-f", "raw"])
            .arg(&room.path)
            .arg("2M")
            .output()
            .unwrap();
        (
            run.status.success(),
            String::from_utf8_lossy(&run.stderr).into_owned(),
        )
    };
    let (may, said) = resize();
    assert!(!may && said.contains("lock"), "{said}");
    writer.release();

    let reader = room.image(Sharing::Read).unwrap();
    let (may, said) = qemu_io(&room, &["-r"], "read 0 512");
    assert!(may, "{said}");
    let (may, said) = resize();
    assert!(!may && said.contains("lock"), "{said}");
    let (may, said) = qemu_io(&room, &[], "write 0 512");
    assert!(!may && said.contains("lock"), "{said}");
    reader.release();
    let (may, said) = qemu_io(&room, &[], "write 0 512");
    assert!(may, "{said}");
    let (may, said) = resize();
    assert!(may, "{said}");
}

/// And we see theirs.
#[test]
fn we_see_qemu_s_locks() {
    if have("qemu-nbd").is_none() {
        return;
    }
    for (options, readers) in [(&[][..], false), (&["--read-only"][..], true)] {
        let room = Room::new();
        let socket = room.path.with_extension("sock");
        let nbd = Started(
            Command::new("qemu-nbd")
                .args(["-f", "raw", "--persistent", "--socket"])
                .arg(&socket)
                .args(options)
                .arg(&room.path)
                .spawn()
                .unwrap(),
        );
        let begun = Instant::now();
        while !socket.exists() {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "qemu-nbd does not start"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        if readers {
            room.image(Sharing::Read).unwrap().release();
            continue;
        }
        // The socket may be there before the locks are, and those come one by one.
        for sharing in BOTH {
            while let Ok(lock) = room.image(sharing) {
                lock.release();
                assert!(
                    begun.elapsed() < Duration::from_secs(30),
                    "qemu-nbd does not lock"
                );
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        for sharing in BOTH {
            let error = room.image(sharing).unwrap_err();
            assert_eq!(error.code(), ErrorCode::Locked);
            let who = format!("process {} (qemu-nbd) writes to it", nbd.0.id());
            assert!(error.message().ends_with(&who), "{error}");
        }
        drop(nbd);
        room.image(Sharing::Write).unwrap().release();
    }
}
