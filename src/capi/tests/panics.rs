//! A panic inside of the library: `-EIO`, the disk is broken from then on, close frees it, and nothing is printed.

use std::ffi::{CStr, c_int};
use std::io;
use std::path::Path;
use std::process::Command;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use crate::capi::backup_views::{qbm_backup_begin, qbm_backup_source};
use crate::capi::bitmap_changes::{qbm_bitmap_freeze, qbm_bitmap_merge};
use crate::capi::bitmap_transaction::{qbm_action, qbm_bitmap_action, qbm_bitmap_transaction};
use crate::capi::bitmaps::qbm_bitmap_add;
use crate::capi::boundary::call;
use crate::capi::bytes::{qbm_discard, qbm_flush, qbm_pread, qbm_pwrite, qbm_truncate, qbm_write_zeroes};
use crate::capi::errors::{qbm_error_code, qbm_error_message};
use crate::capi::facts::{qbm_block_status, qbm_chain_info, qbm_extent, qbm_get_info, qbm_info, qbm_layer};
use crate::capi::life::qbm_close;
use crate::capi::qbm_disk;
use crate::storage::{
    Access, Extent, FileIdentity, Folder, Gather, Limits, Role, Scatter, Storage, SyncMode, Zeroing,
};
use crate::units::ByteRange;
use crate::{ErrorCode, OpenOptions};

const LENGTH: u64 = 65536;
const DESCRIPTOR: &[u8] =
    br#"{"QBM": {"version": 1, "image": {"file": "image", "format": "raw"}, "bitmaps": {}}}"#;

/// The descriptor, or an image of which all but the length panics.
#[derive(Debug)]
enum Fake {
    Descriptor,
    Image,
}

fn bug() -> ! {
    panic!("a bug of the library's own")
}

impl Storage for Fake {
    fn read(&self, into: Scatter<'_>, offset: u64) -> io::Result<()> {
        match self {
            Self::Descriptor => {
                let from = usize::try_from(offset).unwrap();
                into.copy_from(0, &DESCRIPTOR[from..from + into.len()]);
                Ok(())
            }
            Self::Image => bug(),
        }
    }

    fn length(&self) -> io::Result<u64> {
        Ok(match self {
            Self::Descriptor => DESCRIPTOR.len() as u64,
            Self::Image => LENGTH,
        })
    }

    fn limits(&self) -> Limits {
        Limits::default()
    }

    fn identity(&self) -> Option<FileIdentity> {
        None
    }

    fn write(&self, _: Gather<'_>, _: u64) -> io::Result<()> {
        bug()
    }

    fn write_zeroes(&self, _: ByteRange, _: Zeroing) -> io::Result<()> {
        bug()
    }

    fn discard(&self, _: ByteRange) -> io::Result<()> {
        bug()
    }

    fn sync(&self, _: SyncMode) -> io::Result<()> {
        bug()
    }

    fn set_length(&self, _: u64) -> io::Result<()> {
        bug()
    }

    fn allocate(&self, _: ByteRange) -> io::Result<()> {
        bug()
    }

    fn extent(&self, _: ByteRange) -> io::Result<Extent> {
        bug()
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        bug()
    }
}

/// Holds the image, so that a test can see whether it was freed.
#[derive(Debug)]
struct FakeFolder(Arc<Fake>);

impl Folder for FakeFolder {
    fn open(&self, role: Role, _: &Path, _: Access) -> io::Result<Arc<dyn Storage>> {
        Ok(match role {
            Role::Image => self.0.clone(),
            _ => Arc::new(Fake::Descriptor),
        })
    }

    fn create(&self, _: Role, _: &Path) -> io::Result<Arc<dyn Storage>> {
        bug()
    }

    fn copy_attributes(&self, _: &Path, _: &Path) -> io::Result<()> {
        bug()
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        bug()
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        bug()
    }

    /// An open for writing does it.
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn check_writable(&self) -> io::Result<()> {
        bug()
    }
}

struct Subject {
    disk: *mut qbm_disk,
    image: Weak<Fake>,
    notices: Arc<AtomicUsize>,
}

fn open() -> Subject {
    let image = Arc::new(Fake::Image);
    let weak = Arc::downgrade(&image);
    let notices = Arc::new(AtomicUsize::new(0));
    let heard = notices.clone();
    let mut disk = null_mut();
    // As qbm_open() does it, which has no argument for a folder that is none.
    let opened = call(|| {
        let opened = OpenOptions::new()
            .folder(Arc::new(FakeFolder(image)))
            .no_state(true)
            .notify(move |_| {
                heard.fetch_add(1, Ordering::Relaxed);
            })
            .open("fake.qbm")?;
        disk = Arc::into_raw(Arc::new(qbm_disk::of(opened))).cast_mut();
        Ok(())
    });
    assert_eq!(opened, 0, "{}", words());
    Subject {
        disk,
        image: weak,
        notices,
    }
}

fn words() -> String {
    unsafe { CStr::from_ptr(qbm_error_message()) }
        .to_string_lossy()
        .into_owned()
}

fn failed(result: c_int, part: &str) {
    assert_eq!(result, -libc::EIO, "{}", words());
    assert_eq!(qbm_error_code(), ErrorCode::Failed as c_int);
    assert!(words().contains(part), "{}", words());
}

type Call = fn(*mut qbm_disk) -> c_int;

const CALLS: [Call; 11] = [
    |disk| unsafe { qbm_pread(disk, [0u8; 8].as_mut_ptr().cast(), 8, 0) },
    |disk| unsafe { qbm_pwrite(disk, [0u8; 8].as_ptr().cast(), 8, 0, 0) },
    |disk| unsafe { qbm_write_zeroes(disk, 0, 8, 0) },
    |disk| unsafe { qbm_discard(disk, 0, 8, 0) },
    |disk| unsafe { qbm_flush(disk) },
    |disk| unsafe { qbm_truncate(disk, LENGTH * 2, 0) },
    |disk| {
        let mut info: qbm_info = unsafe { std::mem::zeroed() };
        info.struct_size = size_of::<qbm_info>();
        unsafe { qbm_get_info(disk, &raw mut info) }
    },
    |disk| unsafe { qbm_bitmap_add(disk, c"b".as_ptr(), null()) },
    |disk| transaction(disk, disk),
    |disk| unsafe { qbm_bitmap_freeze(disk, c"b".as_ptr(), 0) },
    |disk| {
        let mut source = qbm_backup_source {
            disk,
            bitmap: c"b".as_ptr(),
            view: disk,
        };
        let mut views = null_mut();
        let size = size_of::<qbm_backup_source>();
        unsafe { qbm_backup_begin(&raw mut source, 1, size, null(), &raw mut views) }
    },
];

/// Adds a bitmap to both disks at once.
fn transaction(one: *mut qbm_disk, two: *mut qbm_disk) -> c_int {
    let actions = [one, two].map(|disk| {
        let mut action: qbm_bitmap_action = unsafe { std::mem::zeroed() };
        (action.disk, action.name) = (disk, c"b".as_ptr());
        action.kind = qbm_action::QBM_ACTION_ADD as u32;
        action
    });
    unsafe { qbm_bitmap_transaction(actions.as_ptr(), 2, size_of::<qbm_bitmap_action>(), 0) }
}

/// Calls that would meet no panic of the image, and must be refused once another has.
const REFUSED: [Call; 3] = [
    |disk| unsafe { qbm_bitmap_merge(disk, c"b".as_ptr(), disk, c"b".as_ptr(), 0) },
    |disk| {
        let mut layer: qbm_layer = unsafe { std::mem::zeroed() };
        layer.struct_size = size_of::<qbm_layer>();
        unsafe { qbm_chain_info(disk, 0, &raw mut layer) }
    },
    |disk| {
        let mut extent: qbm_extent = unsafe { std::mem::zeroed() };
        extent.struct_size = size_of::<qbm_extent>();
        unsafe { qbm_block_status(disk, 0, 1, 0, &raw mut extent) }
    },
];

#[test]
fn a_panic_breaks_the_disk_and_close_frees_it() {
    for first in CALLS {
        let subject = open();
        failed(first(subject.disk), "internal error");
        assert_eq!(subject.notices.load(Ordering::Relaxed), 1);
        for later in CALLS.iter().chain(&REFUSED) {
            failed(later(subject.disk), "refuses further use");
        }
        failed(unsafe { qbm_close(subject.disk) }, "refuses further use");
        assert!(subject.image.upgrade().is_none(), "close did not free the image");
        assert_eq!(subject.notices.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn a_panic_in_a_transaction_breaks_all_of_its_disks() {
    let (one, two) = (open(), open());
    failed(transaction(one.disk, two.disk), "internal error");
    for subject in [one, two] {
        assert_eq!(subject.notices.load(Ordering::Relaxed), 1);
        failed(unsafe { qbm_close(subject.disk) }, "refuses further use");
    }
}

#[test]
fn a_panic_in_close_frees_the_disk() {
    let subject = open();
    failed(unsafe { qbm_close(subject.disk) }, "internal error");
    assert!(subject.image.upgrade().is_none(), "close did not free the image");
}

#[test]
fn a_panic_without_a_disk_is_an_error() {
    failed(call(|| bug()), "internal error");
    // One that std raises, in a file that is not ours.
    failed(
        call(|| {
            let nothing: Option<u8> = std::hint::black_box(None);
            std::hint::black_box(Vec::<u8>::with_capacity(nothing.map_or(usize::MAX, usize::from)));
            Ok(())
        }),
        "internal error",
    );
}

/// The tests above once more, in a process whose output nobody catches.
#[test]
fn nothing_is_printed() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["capi::tests::panics::a_panic", "--nocapture", "--test-threads=1"])
        .output()
        .unwrap();
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("4 passed"), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

/// A program's own panics, beside the library, are still its own.
#[test]
fn other_panics_reach_the_hook_that_was_there() {
    const INSIDE: &str = "QBM_TEST_PANIC";
    if std::env::var_os(INSIDE).is_some() {
        assert_eq!(call(|| Ok(())), 0);
        panic!("seen by whoever watches");
    }
    let name = "capi::tests::panics::other_panics_reach_the_hook_that_was_there";
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("seen by whoever watches"));
}
