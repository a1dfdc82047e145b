//! What an open refuses once the descriptor itself is in order, with the words.

mod changing;
mod failed;

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::{NoticeCode, OpenOptions, check_length};
use crate::descriptor::Format;
use crate::disk::{AddBitmap, CreateOptions, WriteFlags};
use crate::error::ErrorCode;
use crate::mutation::{self, Fault};
use crate::storage::Role;
use crate::storage::simulated::{CallKind, Fault as SimFault, Keep, SimDisk};

/// A descriptor with this image and these bitmaps.
fn descriptor(image: &str, bitmaps: &str) -> String {
    format!(
        r#"{{"QBM": {{"version": 1, "image": {{"file": "{image}", "format": "raw"}}, "bitmaps": {{{bitmaps}}}}}}}"#
    )
}

fn dirty(name: &str, file: &str) -> String {
    format!(r#""{name}": {{"file": "{file}", "type": "dirty", "granularity-bytes": 512}}"#)
}

/// A folder with an image of 1 MiB and, in `disk.qbm`, `text`.
fn folder(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("disk.raw"), vec![0; 1 << 20]).unwrap();
    fs::write(dir.path().join("disk.qbm"), text).unwrap();
    dir
}

#[track_caller]
fn refused(dir: &Path, code: ErrorCode, words: &str) {
    for read_only in [false, true] {
        let error = OpenOptions::new()
            .read_only(read_only)
            .open(dir.join("disk.qbm"))
            .map(drop)
            .unwrap_err();
        let shown = dir.display().to_string();
        assert_eq!(error.message().replace(&shown, "DIR"), words);
        assert_eq!(error.code(), code);
    }
}

#[test]
fn a_bitmap_file_that_is_too_small() {
    let dir = folder(&descriptor("disk.raw", &dirty("b", "b.bitmap")));
    // 1 MiB in granules of 512 bytes are 2048 bits.
    fs::write(dir.path().join("b.bitmap"), [0; 255]).unwrap();
    refused(
        dir.path(),
        ErrorCode::FileInvalid,
        "cannot open DIR/disk.qbm: QBM.bitmaps[\"b\"].file: DIR/b.bitmap is too small: 255 bytes, where the bits of the disk need 256; \"qbm check -r dirty\" makes it anew with every bit set",
    );
    fs::write(dir.path().join("b.bitmap"), [0; 256]).unwrap();
    OpenOptions::new().open(dir.path().join("disk.qbm")).unwrap();
}

#[test]
fn two_children_that_are_the_same_file() {
    for (one, other) in [
        ("b.bitmap", "b.bitmap"),
        ("b.bitmap", "link.bitmap"),
        ("b.bitmap", "hard.bitmap"),
    ] {
        let both = format!("{}, {}", dirty("one", one), dirty("other", other));
        let dir = folder(&descriptor("disk.raw", &both));
        fs::write(dir.path().join("b.bitmap"), [0; 256]).unwrap();
        std::os::unix::fs::symlink("b.bitmap", dir.path().join("link.bitmap")).unwrap();
        fs::hard_link(dir.path().join("b.bitmap"), dir.path().join("hard.bitmap")).unwrap();
        let words = format!(
            "cannot open DIR/disk.qbm: QBM.bitmaps[\"other\"].file: DIR/{other} is the same file as \
             QBM.bitmaps[\"one\"].file"
        );
        refused(dir.path(), ErrorCode::FileInvalid, &words);
    }
    let dir = folder(&descriptor("disk.raw", &dirty("b", "disk.raw")));
    refused(
        dir.path(),
        ErrorCode::FileInvalid,
        "cannot open DIR/disk.qbm: QBM.bitmaps[\"b\"].file: DIR/disk.raw is the same file as QBM.image.file",
    );
    let dir = folder(&descriptor("disk.qbm", ""));
    refused(
        dir.path(),
        ErrorCode::FileInvalid,
        "cannot open DIR/disk.qbm: QBM.image.file: DIR/disk.qbm is the same file as the descriptor",
    );
}

#[test]
fn a_child_that_is_neither_a_regular_file_nor_a_block_device() {
    let cases = [
        ("folder", "it is a directory"),
        ("fifo", "it is a FIFO"),
        ("socket", "it is a socket"),
        ("/dev/null", "it is a character device"),
    ];
    for (image, why) in cases {
        let dir = folder(&descriptor(image, ""));
        fs::create_dir(dir.path().join("folder")).unwrap();
        let fifo = std::ffi::CString::new(dir.path().join("fifo").to_str().unwrap()).unwrap();
        // SAFETY: the name is a terminated string.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        let shown = if image.starts_with('/') {
            image.to_owned()
        } else {
            format!("DIR/{image}")
        };
        let words = format!(
            "cannot open DIR/disk.qbm: QBM.image.file: cannot open {shown}: {why}; only regular files and block \
             devices can be used"
        );
        refused(dir.path(), ErrorCode::FileInvalid, &words);
    }
}

#[test]
fn a_disk_that_is_longer_than_offsets_reach() {
    let image = Path::new("huge.img");
    check_length((1 << 63) - 1, image).unwrap();
    let error = check_length(1 << 63, image).unwrap_err();
    assert_eq!(
        error.message(),
        "huge.img is 9223372036854775808 bytes long, more than the limit of 9223372036854775807"
    );
    assert_eq!(error.code(), ErrorCode::NotSupported);
}

#[test]
fn an_epoch_that_is_none_changes_nothing() {
    for epoch in ["", &"x".repeat(257)] {
        let dir = folder(&descriptor("disk.raw", ""));
        let before = fs::read(dir.path().join("disk.qbm")).unwrap();
        let error = OpenOptions::new()
            .cache_epoch(epoch)
            .open(dir.path().join("disk.qbm"))
            .map(drop)
            .unwrap_err();
        assert_eq!(
            error.message().replace(&dir.path().display().to_string(), "DIR"),
            format!(
                "cannot open DIR/disk.qbm: the cache epoch has {} bytes; it must have 1 to 256",
                epoch.len()
            )
        );
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
        assert_eq!(fs::read(dir.path().join("disk.qbm")).unwrap(), before);
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            2,
            "no state file was made"
        );
    }
}

/// M1 and D1: a disk that had no state file gets one, and the power goes anywhere meanwhile.
#[test]
fn a_state_file_that_is_added_is_there_or_not() {
    cut_while_a_state_file_is_added();
}

#[test]
#[should_panic(expected = "events, seed")]
fn a_state_file_that_is_not_synced_is_missed() {
    mutation::with(Fault::IntentUnsynced, cut_while_a_state_file_is_added);
}

fn cut_while_a_state_file_is_added() {
    let sim = SimDisk::new();
    CreateOptions::new()
        .size(64 << 10)
        .no_state(true)
        .folder(sim.folder())
        .create("disk.qbm")
        .unwrap();
    let open = |sim: &SimDisk, no_state| {
        OpenOptions::new()
            .no_state(no_state)
            .folder(sim.folder())
            .open("disk.qbm")
    };
    let disk = open(&sim, true).unwrap();
    disk.bitmap_add("b", AddBitmap::default()).unwrap();
    disk.close().unwrap();
    let start = sim.events().len() as u64;
    let disk = open(&sim, false).unwrap();
    assert!(disk.info().unwrap().protected);
    disk.write(b"x", 5, WriteFlags::empty()).unwrap();
    disk.flush().unwrap();
    disk.die();

    let (mut without, mut with) = (0, 0);
    for point in sim.crash_points().filter(|point| point.events() >= start) {
        for seed in 0..20 {
            let left = point.power_cut_keeping(Keep::Random(seed));
            let disk = open(&left, true).unwrap();
            let mut byte = [0];
            disk.read(&mut byte, 5).unwrap();
            let dirty = disk.bitmap_get("b", 5).unwrap();
            assert!(
                dirty || byte == [0],
                "after {} events, seed {seed}",
                point.events()
            );
            if disk.info().unwrap().protected {
                with += 1;
            } else {
                without += 1;
            }
        }
    }
    assert!(with > 20 && without > 20, "{with} with, {without} without");
}

/// A name alone protects nothing: the state file that it led to is gone, and no other can be made.
#[test]
fn a_disk_whose_state_file_is_gone_for_good_is_not_protected() {
    let sim = SimDisk::new();
    CreateOptions::new()
        .size(64 << 10)
        .folder(sim.folder())
        .create("disk.qbm")
        .unwrap();
    sim.folder().remove(Path::new("disk.state")).unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let protected = |read_only| {
        let to = Arc::clone(&heard);
        let options = OpenOptions::new()
            .read_only(read_only)
            .folder(sim.folder())
            .notify(move |notice| to.lock().unwrap().push(notice.code));
        let disk = options.open("disk.qbm").unwrap();
        disk.info().unwrap().protected
    };
    assert!(!protected(true));
    sim.fail(SimFault::new(libc::EROFS).on(CallKind::CheckWritable));
    assert!(!protected(false));
    assert_eq!(*heard.lock().unwrap(), [NoticeCode::Unprotected]);
    assert!(protected(false));
    assert!(protected(true));
}

/// Nothing says that such a disk was not closed.
#[test]
fn a_disk_without_its_state_file_is_not_called_one_that_was_not_closed() {
    let sim = SimDisk::new();
    CreateOptions::new()
        .size(64 << 10)
        .folder(sim.folder())
        .create("disk.qbm")
        .unwrap();
    let disk = OpenOptions::new().folder(sim.folder()).open("disk.qbm").unwrap();
    disk.bitmap_add("b", AddBitmap::default()).unwrap();
    disk.close().unwrap();
    let heard = || {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&heard);
        let options = OpenOptions::new()
            .read_only(true)
            .folder(sim.folder())
            .notify(move |notice| to.lock().unwrap().push(notice.message.to_owned()));
        drop(options.open("disk.qbm").unwrap());
        heard.lock().unwrap().join("\n")
    };
    let more = "65536 bytes more count as changed in bitmap \"b\"";
    sim.folder().remove(Path::new("disk.state")).unwrap();
    let missing = "QBM.state.file: cannot open disk.state: No such file or directory";
    assert_eq!(
        heard(),
        format!("it is not known how the disk was last used ({missing}): {more}")
    );
    sim.folder().create(Role::State, Path::new("disk.state")).unwrap();
    let words = heard();
    assert!(
        words.starts_with("it is not known how the disk was last used (disk.state is no valid state file: ")
            && words.ends_with(&format!("): {more}")),
        "{words}"
    );
}

/// An image without a descriptor, as `qbm convert` reads it.
#[test]
fn an_image_by_itself_opens_read_only_as_what_it_is_called() {
    let dir = tempfile::tempdir().unwrap();
    // A name that would be a scheme in a descriptor.
    let path = dir.path().join("host:disk.img");
    std::fs::write(&path, [7; 1000]).unwrap();
    let options = OpenOptions::new().image_format(Format::Raw);
    let refused = options.open(&path).unwrap_err();
    assert!(
        refused.message().ends_with("can only be opened read-only"),
        "{refused}"
    );
    let disk = options.read_only(true).open(&path).unwrap();
    assert_eq!(disk.length(), 1000);
    let mut bytes = [0; 10];
    disk.read(&mut bytes, 990).unwrap();
    assert_eq!(bytes, [7; 10]);
    assert_eq!(disk.layer(0).unwrap().descriptor, None);
    assert_eq!(
        disk.write(&[1], 0, crate::WriteFlags::empty())
            .unwrap_err()
            .code(),
        ErrorCode::ReadOnly
    );
    let missing = dir.path().join("missing.img");
    let options = OpenOptions::new().read_only(true).image_format(Format::Raw);
    assert_eq!(
        options.open(&missing).unwrap_err().message(),
        format!("cannot open {}: No such file or directory", missing.display())
    );
}
