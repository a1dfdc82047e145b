//! Each rule of the simulated disk, then random scripts against two models that know nothing of its code.

mod durability;
mod faults;
mod model;
mod real_file;
mod speed;

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};

use super::{CallKind, CrashPoint, Keep, SimDisk};
use crate::storage::{Role, Storage, SyncMode, write_slice};
use crate::units::ByteRange;

const F: &str = "f";

/// A disk with one empty, durable file, open.
fn disk_with_file() -> (SimDisk, Arc<dyn Storage>) {
    let disk = SimDisk::new();
    disk.put(F, b"");
    let file = open(&disk, F);
    (disk, file)
}

fn open(disk: &SimDisk, name: &str) -> Arc<dyn Storage> {
    let access = crate::storage::Access {
        write: true,
        direct: false,
    };
    disk.folder().open(Role::Image, Path::new(name), access).unwrap()
}

fn write(file: &dyn Storage, offset: u64, bytes: &[u8]) {
    write_slice(file, bytes, offset).unwrap();
}

fn sync(file: &dyn Storage) {
    file.sync(SyncMode::Data).unwrap();
}

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(start, len).unwrap()
}

/// Every content that `f` may have after a power cut; `None` where the file is gone.
fn outcomes(point: &CrashPoint) -> BTreeSet<Option<Vec<u8>>> {
    assert!(point.states() < 100_000, "too many states for a test");
    (0..point.states())
        .map(|n| point.power_cut_keeping(Keep::Numbered(n)).read(F).ok())
        .collect()
}

fn set(contents: &[&[u8]]) -> BTreeSet<Option<Vec<u8>>> {
    contents.iter().map(|bytes| Some(bytes.to_vec())).collect()
}

fn pieces(fill: &[u8]) -> Vec<u8> {
    fill.iter().flat_map(|&byte| [byte; 512]).collect()
}

fn errno(result: io::Result<()>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// Holds the first call of `kind` before it takes effect. The receiver hears of it; the sender lets it go.
fn held(disk: &SimDisk, kind: CallKind) -> (mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (reached, at_gate) = mpsc::channel();
    let (release, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(Some((reached, gate)));
    disk.on_call(move |call| {
        if call.kind() != kind {
            return;
        }
        let first = gate.lock().unwrap().take();
        if let Some((reached, gate)) = first {
            reached.send(()).unwrap();
            gate.recv().unwrap();
        }
    });
    (at_gate, release)
}
