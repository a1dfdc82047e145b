use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use proptest::prelude::*;

use super::*;
use crate::descriptor::fake::FakeFolder;

#[test]
fn child_names() {
    for (name, path) in [
        ("disk.img", "disk.img"),
        ("../base/disk.img", "../base/disk.img"),
        ("/srv/disk.img", "/srv/disk.img"),
        ("file:disk.img", "disk.img"),
        ("file:/srv/disk.img", "/srv/disk.img"),
        ("file:nbd:x", "nbd:x"),
        ("./nbd:x", "./nbd:x"),
        ("a/b:c", "a/b:c"),
        ("two words: and a colon", "two words: and a colon"),
        (":x", ":x"),
    ] {
        assert_eq!(child_path(name).unwrap(), Path::new(path), "{name}");
    }
    for name in [
        "nbd:unix:/x",
        "nbd+unix:///x",
        "json:{}",
        "host_device.2-b:x",
        "2024:disk.img",
        "FILE:x",
    ] {
        let refused = child_path(name).map_err(|error| error.code());
        let expected = if name.starts_with("host_") {
            Ok(Path::new(name))
        } else {
            Err(ErrorCode::NotSupported)
        };
        assert_eq!(refused, expected, "{name}");
    }
    for name in ["", "file:", "a\0b"] {
        assert_eq!(
            child_path(name).unwrap_err().code(),
            ErrorCode::InvalidArgument,
            "{name:?}"
        );
    }
}

#[test]
fn made_names() {
    let disk = Path::new("/srv/disk.qbm");
    assert_eq!(FileName::data(disk).to_string(), "disk-data.img");
    assert_eq!(FileName::state(disk).to_string(), "disk.state");
    assert_eq!(FileName::temporary(disk).to_string(), ".disk.qbm.tmp");
    for (bitmap, name) in [
        ("nightly", "disk-nightly.bitmap"),
        ("dirty.0", "disk-dirty.0.bitmap"),
        ("täglich", "disk-täglich.bitmap"),
        ("a/b", "disk-a%2Fb.bitmap"),
        ("..", "disk-%2E..bitmap"),
        ("100%", "disk-100%25.bitmap"),
        ("at 12:30\n", "disk-at 12%3A30%0A.bitmap"),
    ] {
        assert_eq!(FileName::bitmap(disk, bitmap).to_string(), name);
    }
    for (descriptor, name) in [
        ("disk", "disk-data.img"),
        ("vm.1.qbm", "vm.1-data.img"),
        (".qbm", ".qbm-data.img"),
        ("a:b.qbm", "a%3Ab-data.img"),
        ("100%.qbm", "100%-data.img"),
    ] {
        assert_eq!(FileName::data(Path::new(descriptor)).to_string(), name);
    }
    let not_utf8 = OsString::from_vec(b"caf\xe9.qbm".to_vec());
    assert_eq!(FileName::state(Path::new(&not_utf8)).to_string(), "caf%E9.state");
}

#[test]
fn long_names_stay_apart() {
    let disk = Path::new("disk.qbm");
    let names: HashSet<_> = ["a", "b", "c"]
        .map(|end| FileName::bitmap(disk, &format!("{}{end}", "ü".repeat(400))).to_string())
        .into();
    assert_eq!(names.len(), 3);
    assert!(names.iter().all(|name| name.contains('~')));
}

#[test]
fn a_taken_name_gets_a_number() {
    let folder = FakeFolder::default();
    folder.put("disk-nightly.bitmap", b"somebody's", "");
    folder.put("disk-nightly-1.bitmap", b"somebody's", "");
    let name = FileName::bitmap(Path::new("disk.qbm"), "nightly");
    let (made, storage) = create_unique(&folder, Role::Bitmap, &name).unwrap();
    assert_eq!(made, "disk-nightly-2.bitmap");
    assert_eq!(storage.length().unwrap(), 0);
    assert_eq!(folder.content("disk-nightly.bitmap").unwrap(), b"somebody's");
    assert_eq!(folder.content("disk-nightly-1.bitmap").unwrap(), b"somebody's");
}

#[test]
fn another_failure_is_no_reason_for_a_number() {
    let folder = FakeFolder::default();
    folder.fail(&[0]);
    let error = create_unique(&folder, Role::State, &FileName::state(Path::new("disk.qbm"))).unwrap_err();
    assert_eq!(error.message(), "cannot create disk.state: Input/output error");
    assert_eq!(folder.calls().len(), 1);
}

/// What `%XX` stands for, undone.
fn unescaped(text: &str) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&byte, behind)) = rest.split_first() {
        if byte == b'%' {
            out.push(u8::from_str_radix(std::str::from_utf8(&behind[..2]).unwrap(), 16).unwrap());
            rest = &behind[2..];
        } else {
            out.push(byte);
            rest = behind;
        }
    }
    out
}

proptest! {
    #[test]
    fn any_bitmap_gets_a_file_name(
        descriptor in prop::collection::vec(1..=255_u8, 1..255),
        bitmap in prop_oneof![any::<String>(), "[./:%a\n]{1,300}"],
        number in 0..=MAX_NUMBER,
    ) {
        let descriptor = OsString::from_vec(descriptor);
        let name = FileName::bitmap(Path::new(&descriptor), &bitmap).numbered(number);
        prop_assert!(name.len() <= 255, "{} bytes", name.len());
        prop_assert!(!name.contains('/') && !name.chars().any(char::is_control));
        prop_assert_eq!(child_path(&name).unwrap(), Path::new(&name));
    }

    #[test]
    fn escapes_can_be_undone(bitmap in any::<String>()) {
        prop_assert_eq!(unescaped(&escaped(bitmap.as_bytes(), true)), bitmap.as_bytes());
    }
}
