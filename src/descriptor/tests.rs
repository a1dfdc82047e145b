use std::path::Path;

use proptest::prelude::*;

use super::fake::FakeFolder;
use super::*;
use crate::storage::{Access, Folder, Role};
use crate::units::Granularity;

fn image(file: &str) -> ImageEntry {
    ImageEntry {
        file: file.to_owned(),
        format: Format::Raw,
        checksum: None,
    }
}

fn dirty(file: &str) -> BitmapEntry {
    BitmapEntry {
        file: file.to_owned(),
        kind: BitmapKind::Dirty,
        granularity: Granularity::DEFAULT,
        recording: None,
        epoch: None,
        start_length: None,
    }
}

fn allocation(file: &str, backing: Option<&str>) -> BitmapEntry {
    let backing = backing.map(|file| BackingEntry {
        file: file.to_owned(),
        format: Format::Raw,
    });
    BitmapEntry {
        kind: BitmapKind::Allocation { backing },
        ..dirty(file)
    }
}

/// A descriptor with unknown keys everywhere, on one line as the canonical text has it.
const VENDOR: &str = concat!(
    r#"{"a":1,"QBM":{"b":2,"version":1,"image":{"c":3,"file":"d.img","format":"raw"},"#,
    r#""bitmaps":{"x":{"file":"x.bitmap","d":[4],"type":"dirty","granularity-bytes":512},"#,
    r#""over":{"type":"allocation","file":"o.bitmap","granularity-bytes":512,"format":"raw","#,
    r#""backing":{"e":5,"file":"base","format":"raw"}}},"#,
    r#""state":{"file":"s","f":{"g":6}},"h":"7"},"i":8}"#
);

fn vendor() -> Descriptor {
    Descriptor::parse(VENDOR.as_bytes()).unwrap()
}

/// Checks that `descriptor` is `VENDOR` with some text replaced, and that it reads back as it is.
fn assert_changed(descriptor: &Descriptor, changes: &[(&str, &str)]) {
    let mut expected = VENDOR.to_owned();
    for (old, new) in changes {
        assert_eq!(expected.matches(old).count(), 1, "{old}");
        expected = expected.replace(old, new);
    }
    assert_eq!(descriptor.text(), expected);
    assert_eq!(&Descriptor::parse(&descriptor.to_json()).unwrap(), descriptor);
}

#[test]
fn a_new_descriptor() {
    let descriptor = Descriptor::new("libqbm \"0.1.0\"", image("disk-data.img")).unwrap();
    let text = r#"{"QBM":{"version":1,"creator":"libqbm \"0.1.0\"","image":{"file":"disk-data.img","format":"raw"},"bitmaps":{}}}"#;
    assert_eq!(descriptor.text(), text);
    assert_eq!(Descriptor::parse(&descriptor.to_json()).unwrap(), descriptor);
    assert_eq!(descriptor.bitmaps().len(), 0);
}

#[test]
fn parts_change_without_their_unknown_keys() {
    let mut descriptor = vendor();
    let checksum = Some(Checksum([0xab; 32]));
    descriptor
        .set_image(ImageEntry {
            checksum,
            format: Format::Qcow2,
            ..image("new.img")
        })
        .unwrap();
    let sum = format!(r#""format":"qcow2","checksum":"sha256:{}"}}"#, "ab".repeat(32));
    let old_image = r#""file":"d.img","format":"raw"}"#;
    let new_image = format!(r#""file":"new.img",{sum}"#);
    assert_changed(&descriptor, &[(old_image, &new_image)]);

    descriptor.set_image(image("d.img")).unwrap();
    assert_changed(&descriptor, &[]);

    let state = StateEntry {
        file: "t".to_owned(),
        region_bytes: Some(1 << 26),
    };
    descriptor.set_state(Some(state)).unwrap();
    let new_state = r#"{"file":"t","f":{"g":6},"region-bytes":67108864}"#;
    assert_changed(&descriptor, &[(r#"{"file":"s","f":{"g":6}}"#, new_state)]);
    descriptor.set_state(None).unwrap();
    assert_changed(&descriptor, &[(r#""state":{"file":"s","f":{"g":6}},"#, "")]);
    descriptor
        .set_state(Some(StateEntry {
            file: "s".to_owned(),
            region_bytes: None,
        }))
        .unwrap();
    assert_eq!(descriptor.state().unwrap().file, "s");
}

#[test]
fn bitmaps_change_without_their_unknown_keys() {
    let mut descriptor = vendor();
    let entry = BitmapEntry {
        recording: Some(false),
        epoch: Some("e1".to_owned()),
        start_length: Some(7),
        ..dirty("y.bitmap")
    };
    descriptor.update_bitmap("x", entry.clone()).unwrap();
    assert_eq!(descriptor.bitmap("x"), Some(&entry));
    let old = r#"{"file":"x.bitmap","d":[4],"type":"dirty","granularity-bytes":512}"#;
    let new = r#"{"file":"y.bitmap","d":[4],"type":"dirty","granularity-bytes":65536,"recording":false,"epoch":"e1","start-length":7}"#;
    assert_changed(&descriptor, &[(old, new)]);

    let mut descriptor = vendor();
    descriptor.rename_bitmap("x", "y\n").unwrap();
    assert_changed(&descriptor, &[(r#""x":{"#, r#""y\n":{"#)]);
    descriptor.rename_bitmap("y\n", "x").unwrap();
    descriptor.rename_bitmap("x", "x").unwrap();
    assert_changed(&descriptor, &[]);

    let removed = descriptor.remove_bitmap("x").unwrap();
    assert_eq!(removed.file, "x.bitmap");
    assert_changed(&descriptor, &[(&format!(r#""x":{old},"#), "")]);
    assert_eq!(descriptor.bitmap("x"), None);
}

#[test]
fn a_backing_changes_without_its_unknown_keys() {
    let mut descriptor = vendor();
    let granularity = Granularity::MIN;
    let entry = BitmapEntry {
        granularity,
        ..allocation("o.bitmap", Some("other"))
    };
    descriptor.update_bitmap("over", entry).unwrap();
    assert_changed(&descriptor, &[(r#""file":"base""#, r#""file":"other""#)]);
    let backing = r#","backing":{"e":5,"file":"base","format":"raw"}"#;
    descriptor
        .update_bitmap(
            "over",
            BitmapEntry {
                granularity,
                ..allocation("o.bitmap", None)
            },
        )
        .unwrap();
    assert_changed(&descriptor, &[(backing, "")]);
}

#[test]
fn a_backing_in_a_dirty_bitmap_is_an_unknown_key() {
    let document = VENDOR.replace(r#""d":[4]"#, r#""backing":[4]"#);
    let mut descriptor = Descriptor::parse(document.as_bytes()).unwrap();
    let entry = BitmapEntry {
        granularity: Granularity::MIN,
        ..dirty("x.bitmap")
    };
    descriptor.update_bitmap("x", entry).unwrap();
    assert_eq!(descriptor.text(), document);
}

#[test]
fn bitmaps_that_cannot_be() {
    use ErrorCode::{BitmapExists, BitmapNotFound, InvalidArgument, NotSupported};

    let mut descriptor = vendor();
    let mut refused = |change: &dyn Fn(&mut Descriptor) -> Result<()>, code, words: &str| {
        let error = change(&mut descriptor).unwrap_err();
        assert_eq!((error.code(), error.message()), (code, words));
        assert_changed(&descriptor, &[]);
    };
    refused(
        &|d| d.insert_bitmap("x", dirty("y")),
        BitmapExists,
        "there is a bitmap \"x\" already",
    );
    refused(
        &|d| d.rename_bitmap("x", "over"),
        BitmapExists,
        "there is a bitmap \"over\" already",
    );
    refused(&|d| d.rename_bitmap("y", "z"), BitmapNotFound, "no bitmap \"y\"");
    refused(
        &|d| d.remove_bitmap("y").map(|_| ()),
        BitmapNotFound,
        "no bitmap \"y\"",
    );
    refused(
        &|d| d.update_bitmap("y", dirty("y")),
        BitmapNotFound,
        "no bitmap \"y\"",
    );
    let second = "the disk has an allocation bitmap already, \"over\"";
    refused(
        &|d| d.insert_bitmap("y", allocation("y", None)),
        BitmapExists,
        second,
    );
    refused(
        &|d| d.update_bitmap("x", allocation("y", None)),
        BitmapExists,
        second,
    );
    let empty = "bitmap \"\": a name of 0 bytes; a bitmap's has 1 to 1023";
    refused(&|d| d.insert_bitmap("", dirty("y")), InvalidArgument, empty);
    refused(&|d| d.rename_bitmap("x", ""), InvalidArgument, empty);
    let nul = "bitmap \"\\u0000\": a name with a NUL in it";
    refused(&|d| d.rename_bitmap("x", "\0"), InvalidArgument, nul);
    let scheme = "begins with the scheme \"nbd:\", and only files are supported (\"./\" in front makes it a file's name)";
    refused(
        &|d| d.insert_bitmap("y", dirty("nbd:y")),
        NotSupported,
        &format!("file: \"nbd:y\" {scheme}"),
    );
    refused(
        &|d| d.update_bitmap("x", dirty("")),
        InvalidArgument,
        "file: \"\" names no file",
    );
    refused(
        &|d| d.set_image(image("")),
        InvalidArgument,
        "file: \"\" names no file",
    );
    let state = || {
        Some(StateEntry {
            file: "s".to_owned(),
            region_bytes: Some(3),
        })
    };
    refused(
        &|d| d.set_state(state()),
        InvalidArgument,
        "region-bytes: 3 is not a power of two",
    );
}

#[test]
fn a_backing_without_a_format_opens_for_who_sets_it() {
    for format in ["", r#","format":"""#] {
        let document = VENDOR.replace(
            r#""file":"base","format":"raw""#,
            &format!(r#""file":"base"{format}"#),
        );
        assert!(Descriptor::parse(document.as_bytes()).is_err());
        assert_changed(
            &Descriptor::parse_assuming(document.as_bytes(), Format::Raw).unwrap(),
            &[],
        );
    }
    assert_changed(
        &Descriptor::parse_assuming(VENDOR.as_bytes(), Format::Qcow2).unwrap(),
        &[],
    );
}

#[test]
fn reading_checks_the_length_first() {
    let folder = FakeFolder::default();
    folder.put("disk.qbm", VENDOR.as_bytes(), "");
    folder.put("empty.qbm", b"", "");
    let read = |name| {
        let storage = folder
            .open(Role::Descriptor, Path::new(name), Access::default())
            .unwrap();
        Descriptor::read(&*storage)
    };
    assert_eq!(read("disk.qbm").unwrap(), vendor());
    assert_eq!(read("empty.qbm").unwrap_err().message(), "the file is empty");
    let long = usize::try_from(Descriptor::MAX_BYTES + 1).unwrap();
    folder.put("long.qbm", &vec![b' '; long], "");
    assert!(
        read("long.qbm")
            .unwrap_err()
            .message()
            .starts_with("33554433 bytes are more than")
    );
}

/// How a test changes a descriptor.
#[derive(Clone, Debug)]
enum Edit {
    Insert(u8),
    Update(u8, u64),
    Rename(u8, u8),
    Remove(u8),
    Image(u8),
    State(Option<u8>),
}

fn any_edit() -> impl Strategy<Value = Edit> {
    let name = || 0..4_u8;
    prop_oneof![
        name().prop_map(Edit::Insert),
        (name(), 0..=crate::units::MAX_LENGTH).prop_map(|(name, length)| Edit::Update(name, length)),
        (name(), name()).prop_map(|(old, new)| Edit::Rename(old, new)),
        name().prop_map(Edit::Remove),
        name().prop_map(Edit::Image),
        prop::option::of(name()).prop_map(Edit::State),
    ]
}

proptest! {
    /// The module's invariant: what is in memory is what its text says, after any changes.
    #[test]
    fn edits_keep_text_and_entries_together(edits in prop::collection::vec(any_edit(), 0..20)) {
        let mut descriptor = vendor();
        let word = |number: u8| format!("n\"{number}");
        for edit in edits {
            // An edit that is refused changes nothing; that too is checked below.
            let _ = match edit {
                Edit::Insert(name) => descriptor.insert_bitmap(&word(name), dirty("f")),
                Edit::Update(name, length) => {
                    descriptor.update_bitmap(&word(name), BitmapEntry { start_length: Some(length), ..dirty("g") })
                }
                Edit::Rename(old, new) => descriptor.rename_bitmap(&word(old), &word(new)),
                Edit::Remove(name) => descriptor.remove_bitmap(&word(name)).map(|_| ()),
                Edit::Image(name) => descriptor.set_image(image(&word(name))),
                Edit::State(name) => {
                    descriptor.set_state(name.map(|name| StateEntry { file: word(name), region_bytes: None }))
                }
            };
            prop_assert_eq!(&Descriptor::parse(&descriptor.to_json()).unwrap(), &descriptor);
        }
    }
}
