//! Every refusal of a descriptor, word for word, and what survives being saved.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking too"
)]

#[path = "descriptor/oracle.rs"]
mod oracle;
#[path = "descriptor/properties.rs"]
mod properties;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use oracle::survives_saving;
use qbm::ErrorCode;
use qbm::descriptor::{Descriptor, Format};

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/descriptor")
        .join(name)
}

/// The files of a folder in the corpus, by name.
fn files(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(data(folder)).unwrap().map(Result::unwrap);
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    files
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}

#[test]
fn every_refusal_in_words() {
    for (file, code, words) in REFUSALS {
        let error = Descriptor::parse(&fs::read(data(file)).unwrap()).expect_err(file);
        assert_eq!((error.code(), error.message()), (*code, *words), "{file}");
    }
    let expected = REFUSALS.iter().map(|(file, ..)| (*file).to_owned()).collect();
    assert_eq!(files("."), expected, "a file has no entry, or an entry no file");
}

#[test]
fn valid_descriptors_survive_saving() {
    let files = files("valid");
    assert!(files.len() >= 4);
    for file in files {
        let bytes = fs::read(data("valid").join(&file)).unwrap();
        if let Err(error) = Descriptor::parse(&bytes) {
            panic!("{file}: {error}");
        }
        survives_saving(&bytes);
    }
}

/// Written by hand as the library writes, so that saving it changes no byte: the layout is part of what users see.
#[test]
fn layout_of_a_saved_descriptor() {
    let bytes = fs::read(data("valid/layout.json")).unwrap();
    let saved = Descriptor::parse(&bytes).unwrap().to_json();
    assert_eq!(
        String::from_utf8(saved).unwrap(),
        String::from_utf8(bytes).unwrap()
    );
}

#[test]
fn the_old_drivers_descriptor_opens() {
    let descriptor = Descriptor::parse(&fs::read(data("valid/qemu-driver.json")).unwrap()).unwrap();
    let names: Vec<_> = descriptor.bitmaps().map(|(name, _)| name).collect();
    assert_eq!(names, ["dirty.1", "allocation", "dirty.0"]);
    assert_eq!(descriptor.image().format, Format::Raw);
    assert_eq!(descriptor.bitmap("dirty.0").unwrap().recording, None);
    assert_eq!(descriptor.allocation().unwrap().0, "allocation");
    assert_eq!(descriptor.state(), None);
}

#[test]
fn too_long_a_descriptor_is_refused_by_its_length() {
    let limit = usize::try_from(Descriptor::MAX_BYTES).unwrap();
    let mut bytes = fs::read(data("valid/minimal.json")).unwrap();
    bytes.resize(limit, b' ');
    assert!(Descriptor::parse(&bytes).is_ok());
    bytes.push(b' ');
    let error = Descriptor::parse(&bytes).unwrap_err();
    assert_eq!(error.code(), ErrorCode::DescriptorInvalid);
    assert_eq!(
        error.message(),
        "33554433 bytes are more than the limit of 33554432 (32 MiB)"
    );
}

#[test]
fn too_many_bitmaps() {
    let document = |count: usize| {
        let bitmap =
            |index| format!(r#""b{index}":{{"file":"f{index}","type":"dirty","granularity-bytes":512}}"#);
        let bitmaps = (0..count).map(bitmap).collect::<Vec<_>>().join(",");
        let image = r#"{"file":"d","format":"raw"}"#;
        format!(r#"{{"QBM":{{"version":1,"image":{image},"bitmaps":{{{bitmaps}}}}}}}"#)
    };
    let full = Descriptor::parse(document(65_535).as_bytes()).unwrap();
    assert_eq!(full.bitmaps().len(), 65_535);
    let error = Descriptor::parse(document(65_536).as_bytes()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::DescriptorInvalid);
    assert_eq!(
        error.message(),
        "QBM.bitmaps: 65536 bitmaps are more than the limit of 65535"
    );

    let mut more = full.clone();
    let entry = full.bitmap("b0").unwrap().clone();
    let error = more.insert_bitmap("one more", entry).unwrap_err();
    assert_eq!(error.message(), "a disk has 65535 bitmaps at most");
    assert_eq!(more, full);
}

/// Indentation may not take a descriptor over the limit that its content keeps.
#[test]
fn a_long_descriptor_is_saved_on_one_line() {
    let list = vec!["0"; 12 << 20].join(",");
    let image = r#"{"file":"d","format":"raw"}"#;
    let document = format!(r#"{{"QBM":{{"version":1,"image":{image},"bitmaps":{{}},"a":[[[[{list}]]]]}}}}"#);
    let saved = Descriptor::parse(document.as_bytes()).unwrap().to_json();
    assert_eq!(saved, format!("{document}\n").into_bytes());
}

/// Every file of the corpus.
fn corpus() -> Vec<Vec<u8>> {
    let paths = |folder: &'static str| files(folder).into_iter().map(move |file| data(folder).join(file));
    paths(".")
        .chain(paths("valid"))
        .map(|path| fs::read(path).unwrap())
        .collect()
}

#[test]
fn the_corpus_holds_what_the_fuzz_target_checks() {
    for bytes in corpus() {
        survives_saving(&bytes);
    }
}

const REFUSALS: &[(&str, ErrorCode, &str)] = &[
    (
        "allocation-twice.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"second\"]: a second allocation bitmap, after \"allocation\"; a disk has one at most",
    ),
    (
        "backing-file-empty.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"allocation\"].backing.file: \"\" names no file",
    ),
    (
        "backing-file-missing.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"allocation\"].backing: \"file\" is missing",
    ),
    (
        "backing-file-scheme.json",
        ErrorCode::NotSupported,
        "QBM.bitmaps[\"allocation\"].backing.file: \"rbd:pool/base\" begins with the scheme \"rbd:\", and only files are supported (\"./\" in front makes it a file's name)",
    ),
    (
        "backing-format-empty.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"allocation\"].backing.format: \"\" names no format, and a backing is never probed: set it with `qbm rebase -u -F FORMAT`",
    ),
    (
        "backing-format-missing.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"allocation\"].backing: \"format\" is missing, and a backing is never probed: set it with `qbm rebase -u -F FORMAT`",
    ),
    (
        "backing-format-unknown.json",
        ErrorCode::NotSupported,
        "QBM.bitmaps[\"allocation\"].backing.format: \"luks\" is an unknown format; known are raw, qbm, qcow2 and vmdk",
    ),
    (
        "backing-no-object.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"allocation\"].backing: \"base.img\" is not an object",
    ),
    (
        "backing-null.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"allocation\"].backing: null is not an object",
    ),
    (
        "bitmap-file-empty.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"nightly\"].file: \"\" names no file",
    ),
    (
        "bitmap-file-missing.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"nightly\"]: \"file\" is missing",
    ),
    (
        "bitmap-file-scheme.json",
        ErrorCode::NotSupported,
        "QBM.bitmaps[\"nightly\"].file: \"disk-night:1.bitmap\" begins with the scheme \"disk-night:\", and only files are supported (\"./\" in front makes it a file's name)",
    ),
    (
        "bitmap-no-object.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"nightly\"]: true is not an object",
    ),
    (
        "bitmap-type-missing.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"nightly\"]: \"type\" is missing",
    ),
    (
        "bitmap-type-number.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"nightly\"].type: 1 is not a string",
    ),
    (
        "bitmap-type-unknown.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"nightly\"].type: \"meta\" is an unknown type; a bitmap is \"dirty\" or \"allocation\"",
    ),
    (
        "bitmaps-list.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps: [] is not an object",
    ),
    (
        "bitmaps-missing.json",
        ErrorCode::DescriptorInvalid,
        "QBM: \"bitmaps\" is missing",
    ),
    (
        "byte-order-mark.json",
        ErrorCode::DescriptorInvalid,
        "a byte order mark at the start; a descriptor is UTF-8 without one",
    ),
    (
        "checksum-md5.json",
        ErrorCode::NotSupported,
        "QBM.image.checksum: \"md5:d41d8cd98f00b204e9800998ecf8427e\" is no checksum that is known; it begins with \"sha256:\"",
    ),
    (
        "checksum-not-hex.json",
        ErrorCode::DescriptorInvalid,
        "QBM.image.checksum: \"sha256:+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1…\" is no SHA-256: \"sha256:\" and 64 hexadecimal digits",
    ),
    (
        "checksum-number.json",
        ErrorCode::DescriptorInvalid,
        "QBM.image.checksum: 5 is not a string",
    ),
    (
        "checksum-short.json",
        ErrorCode::DescriptorInvalid,
        "QBM.image.checksum: \"sha256:abcd\" is no SHA-256: \"sha256:\" and 64 hexadecimal digits",
    ),
    (
        "cut-short.json",
        ErrorCode::DescriptorInvalid,
        "not readable as JSON: EOF while parsing an object at line 9 column 13",
    ),
    (
        "deep.json",
        ErrorCode::DescriptorInvalid,
        "lists and objects are nested more than 100 deep",
    ),
    (
        "duplicate-key-escaped.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps.night: the key is there twice",
    ),
    (
        "duplicate-key-unknown.json",
        ErrorCode::DescriptorInvalid,
        "QBM.vendor[1][\"the key\"]: the key is there twice",
    ),
    (
        "duplicate-key.json",
        ErrorCode::DescriptorInvalid,
        "QBM.image.file: the key is there twice",
    ),
    ("empty.json", ErrorCode::DescriptorInvalid, "the file is empty"),
    (
        "epoch-empty.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"nightly\"].epoch: \"\" is empty",
    ),
    (
        "epoch-number.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"nightly\"].epoch: 5 is not a string",
    ),
    (
        "features-no-list.json",
        ErrorCode::DescriptorInvalid,
        "QBM.features.incompatible: \"x\" is not a list",
    ),
    (
        "features-no-object.json",
        ErrorCode::DescriptorInvalid,
        "QBM.features: [] is not an object",
    ),
    (
        "features-number.json",
        ErrorCode::DescriptorInvalid,
        "QBM.features.incompatible[0]: 1 is not a string",
    ),
    (
        "features-unknown.json",
        ErrorCode::NotSupported,
        "QBM.features.incompatible[0]: \"encrypted-bitmaps\" is a feature that this library does not know",
    ),
    (
        "granularity-float.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"nightly\"].granularity-bytes: 65536.0 is not an unsigned 64-bit integer",
    ),
    (
        "granularity-huge.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"nightly\"].granularity-bytes: 1.8446744073709552e19 is not an unsigned 64-bit integer",
    ),
    (
        "granularity-large.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"nightly\"].granularity-bytes: 4294967296 is not within 512 and 2147483648 (2 GiB)",
    ),
    (
        "granularity-missing.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"nightly\"]: \"granularity-bytes\" is missing",
    ),
    (
        "granularity-negative.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"nightly\"].granularity-bytes: -65536 is not an unsigned 64-bit integer",
    ),
    (
        "granularity-odd.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"nightly\"].granularity-bytes: 65537 is not a power of two",
    ),
    (
        "granularity-small.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"nightly\"].granularity-bytes: 256 is not within 512 and 2147483648 (2 GiB)",
    ),
    (
        "granularity-string.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"nightly\"].granularity-bytes: \"65536\" is not an unsigned 64-bit integer",
    ),
    (
        "granularity-zero.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"nightly\"].granularity-bytes: 0 is not a power of two",
    ),
    (
        "half-surrogate.json",
        ErrorCode::DescriptorInvalid,
        "not readable as JSON: unexpected end of hex escape at line 1 column 28",
    ),
    (
        "huge-number.json",
        ErrorCode::DescriptorInvalid,
        "not readable as JSON: number out of range at line 1 column 38",
    ),
    (
        "image-file-empty.json",
        ErrorCode::DescriptorInvalid,
        "QBM.image.file: \"\" names no file",
    ),
    (
        "image-file-missing.json",
        ErrorCode::DescriptorInvalid,
        "QBM.image: \"file\" is missing",
    ),
    (
        "image-file-nul.json",
        ErrorCode::DescriptorInvalid,
        "QBM.image.file: \"disk\\u0000.img\" has a NUL in it",
    ),
    (
        "image-file-number.json",
        ErrorCode::DescriptorInvalid,
        "QBM.image.file: 7 is not a string",
    ),
    (
        "image-file-scheme-json.json",
        ErrorCode::NotSupported,
        "QBM.image.file: \"json:{\\\"driver\\\": \\\"nbd\\\"}\" begins with the scheme \"json:\", and only files are supported (\"./\" in front makes it a file's name)",
    ),
    (
        "image-file-scheme-only.json",
        ErrorCode::DescriptorInvalid,
        "QBM.image.file: \"file:\" names no file",
    ),
    (
        "image-file-scheme.json",
        ErrorCode::NotSupported,
        "QBM.image.file: \"nbd://host/disk\" begins with the scheme \"nbd:\", and only files are supported (\"./\" in front makes it a file's name)",
    ),
    (
        "image-format-case.json",
        ErrorCode::NotSupported,
        "QBM.image.format: \"RAW\" is an unknown format; known are raw, qbm, qcow2 and vmdk",
    ),
    (
        "image-format-empty.json",
        ErrorCode::NotSupported,
        "QBM.image.format: \"\" is an unknown format; known are raw, qbm, qcow2 and vmdk",
    ),
    (
        "image-format-long.json",
        ErrorCode::NotSupported,
        "QBM.image.format: \"raw\\u001b[31m\\u{202e}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…\" is an unknown format; known are raw, qbm, qcow2 and vmdk",
    ),
    (
        "image-format-missing.json",
        ErrorCode::DescriptorInvalid,
        "QBM.image: \"format\" is missing",
    ),
    (
        "image-format-null.json",
        ErrorCode::DescriptorInvalid,
        "QBM.image.format: null is not a string",
    ),
    (
        "image-format-unknown.json",
        ErrorCode::NotSupported,
        "QBM.image.format: \"vhdx\" is an unknown format; known are raw, qbm, qcow2 and vmdk",
    ),
    (
        "image-missing.json",
        ErrorCode::DescriptorInvalid,
        "QBM: \"image\" is missing",
    ),
    (
        "image-no-object.json",
        ErrorCode::DescriptorInvalid,
        "QBM.image: \"disk-data.img\" is not an object",
    ),
    (
        "name-empty.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"\"]: a name of 0 bytes; a bitmap's has 1 to 1023",
    ),
    (
        "name-long.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn…\"]: a name of 1024 bytes; a bitmap's has 1 to 1023",
    ),
    (
        "name-nul.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"a\\u0000b\"]: a name with a NUL in it",
    ),
    (
        "no-object.json",
        ErrorCode::DescriptorInvalid,
        "the document: [1,2,3] is not an object",
    ),
    (
        "no-qbm.json",
        ErrorCode::DescriptorInvalid,
        "the document: \"QBM\" is missing",
    ),
    (
        "not-json.json",
        ErrorCode::DescriptorInvalid,
        "not readable as JSON: expected value at line 1 column 1",
    ),
    (
        "not-utf-8.json",
        ErrorCode::DescriptorInvalid,
        "not UTF-8 from byte 24 on",
    ),
    (
        "qbm-no-object.json",
        ErrorCode::DescriptorInvalid,
        "QBM: \"version 1\" is not an object",
    ),
    (
        "recording-string.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"nightly\"].recording: \"yes\" is neither true nor false",
    ),
    (
        "single-quotes.json",
        ErrorCode::DescriptorInvalid,
        "not readable as JSON: key must be a string at line 1 column 2",
    ),
    (
        "start-length-large.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"nightly\"].start-length: 9223372036854775808 is more than a disk can have, 2^63 - 1",
    ),
    (
        "start-length-negative.json",
        ErrorCode::DescriptorInvalid,
        "QBM.bitmaps[\"nightly\"].start-length: -1 is not an unsigned 64-bit integer",
    ),
    (
        "state-file-empty.json",
        ErrorCode::DescriptorInvalid,
        "QBM.state.file: \"\" names no file",
    ),
    (
        "state-file-missing.json",
        ErrorCode::DescriptorInvalid,
        "QBM.state: \"file\" is missing",
    ),
    (
        "state-no-object.json",
        ErrorCode::DescriptorInvalid,
        "QBM.state: \"disk.state\" is not an object",
    ),
    (
        "state-region-large.json",
        ErrorCode::DescriptorInvalid,
        "QBM.state.region-bytes: 9223372036854775808 is not within 512 and 2^62",
    ),
    (
        "state-region-odd.json",
        ErrorCode::DescriptorInvalid,
        "QBM.state.region-bytes: 1000 is not a power of two",
    ),
    (
        "state-region-small.json",
        ErrorCode::DescriptorInvalid,
        "QBM.state.region-bytes: 256 is not within 512 and 2^62",
    ),
    (
        "state-region-string.json",
        ErrorCode::DescriptorInvalid,
        "QBM.state.region-bytes: \"64M\" is not an unsigned 64-bit integer",
    ),
    (
        "trailing-garbage.json",
        ErrorCode::DescriptorInvalid,
        "not readable as JSON: trailing characters at line 2 column 1",
    ),
    (
        "trailing-zeros.json",
        ErrorCode::DescriptorInvalid,
        "not readable as JSON: trailing characters at line 2 column 1",
    ),
    (
        "utf-16.json",
        ErrorCode::DescriptorInvalid,
        "not UTF-8 from byte 0 on",
    ),
    (
        "version-2.json",
        ErrorCode::NotSupported,
        "QBM.version: 2 is a newer version than this library knows; it knows 1",
    ),
    (
        "version-float.json",
        ErrorCode::DescriptorInvalid,
        "QBM.version: 1.0 is not a version; the version is 1",
    ),
    (
        "version-missing.json",
        ErrorCode::DescriptorInvalid,
        "QBM: \"version\" is missing",
    ),
    (
        "version-string.json",
        ErrorCode::DescriptorInvalid,
        "QBM.version: \"1\" is not a version; the version is 1",
    ),
    (
        "version-zero.json",
        ErrorCode::DescriptorInvalid,
        "QBM.version: 0 is not a version; the version is 1",
    ),
];
