//! What is refused, and in which words; which files are asked for.

use super::*;
use crate::storage::simulated::CallKind;

/// The descriptor of an overlay whose image and bitmap are `stem.img` and `stem.bits`.
fn descriptor(stem: &str, backing: &str) -> Vec<u8> {
    format!(
        r#"{{"QBM": {{"version": 1, "image": {{"file": "{stem}.img", "format": "raw"}}, "bitmaps": {{"a":
        {{"file": "{stem}.bits", "type": "allocation", "granularity-bytes": 4096, "backing": {backing}}}}}}}}}"#
    )
    .into_bytes()
}

fn put_overlay(sim: &SimDisk, folder: &str, stem: &str, backing: &str) {
    sim.put(format!("{folder}{stem}.qbm"), &descriptor(stem, backing));
    sim.put(format!("{folder}{stem}.img"), &[0; 8192]);
    sim.put(format!("{folder}{stem}.bits"), &[0; 8]);
}

fn named(file: &str, format: &str) -> String {
    format!(r#"{{"file": "{file}", "format": "{format}"}}"#)
}

fn opened(sim: &SimDisk, name: &str) -> Result<Disk> {
    OpenOptions::new().no_state(true).folder(sim.folder()).open(name)
}

#[test]
fn a_chain_that_leads_back_is_refused() {
    let sim = SimDisk::new();
    put_overlay(&sim, "", "a", &named("b.qbm", "qbm"));
    put_overlay(&sim, "", "b", &named("c.qbm", "qbm"));
    put_overlay(&sim, "", "c", &named("b.qbm", "qbm"));
    let words = "cannot open a.qbm: c.qbm: the backing chain leads back to b.qbm";
    assert_fails(opened(&sim, "a.qbm"), ErrorCode::FileInvalid, words);
    put_overlay(&sim, "", "c", &named("a.qbm", "qbm"));
    let words = "cannot open a.qbm: c.qbm: the backing chain leads back to a.qbm";
    assert_fails(opened(&sim, "a.qbm"), ErrorCode::FileInvalid, words);
    put_overlay(&sim, "", "a", &named("a.qbm", "qbm"));
    let words = "cannot open a.qbm: the backing chain leads back to a.qbm";
    assert_fails(opened(&sim, "a.qbm"), ErrorCode::FileInvalid, words);
}

#[test]
fn no_file_is_used_twice_in_a_chain() {
    let sim = SimDisk::new();
    put_overlay(&sim, "", "a", &named("a.img", "raw"));
    let words =
        "cannot open a.qbm: QBM.bitmaps[\"a\"].backing.file: a.img is the same file as QBM.image.file";
    assert_fails(opened(&sim, "a.qbm"), ErrorCode::FileInvalid, words);
    put_overlay(&sim, "", "a", &named("b.qbm", "qbm"));
    put_overlay(&sim, "", "b", &named("a.img", "raw"));
    let words =
        "cannot open a.qbm: b.qbm: QBM.bitmaps[\"a\"].backing.file: a.img is the same file as QBM.image.file";
    assert_fails(opened(&sim, "a.qbm"), ErrorCode::FileInvalid, words);
    put_overlay(&sim, "", "a", &named("a.qbm", "raw"));
    let words =
        "cannot open a.qbm: QBM.bitmaps[\"a\"].backing.file: a.qbm is the same file as the descriptor";
    assert_fails(opened(&sim, "a.qbm"), ErrorCode::FileInvalid, words);
    put_overlay(&sim, "", "a", &named("a.bits", "qbm"));
    let words = "cannot open a.qbm: QBM.bitmaps[\"a\"].backing.file: a.bits is the same file as \
                 QBM.bitmaps[\"a\"].file";
    assert_fails(opened(&sim, "a.qbm"), ErrorCode::FileInvalid, words);
}

#[test]
fn a_chain_has_256_images_below_the_disk_at_most() {
    let sim = SimDisk::new();
    for index in 0..258 {
        let next = named(&format!("d{}.qbm", index + 1), "qbm");
        put_overlay(&sim, "", &format!("d{index}"), &next);
    }
    sim.put("d258.qbm", &descriptor("d258", &named("base.img", "raw")));
    let words = "cannot open d0.qbm: the backing chain is deeper than 256 images";
    assert_fails(opened(&sim, "d0.qbm"), ErrorCode::NotSupported, words);
    // 255 with descriptors and a raw one.
    put_overlay(&sim, "", "d257", &named("base.img", "raw"));
    sim.put("base.img", &base(8192));
    let words = "cannot open d1.qbm: the backing chain is deeper than 256 images";
    assert_fails(opened(&sim, "d1.qbm"), ErrorCode::NotSupported, words);
    let disk = open_as(&sim, "d2.qbm");
    assert_eq!(disk.info().unwrap().layers, 257);
    assert_same(&read_all(&disk), &base(8192));
}

#[test]
fn formats_that_are_missing_or_cannot_be_read_are_refused() {
    let sim = SimDisk::new();
    for (backing, code, words) in [
        (
            named("b", "vhdx"),
            ErrorCode::NotSupported,
            "cannot open a.qbm: QBM.bitmaps[\"a\"].backing.format: \"vhdx\" is an unknown format; known are raw, qbm, \
             qcow2 and vmdk",
        ),
        (
            named("b", "raw"),
            ErrorCode::FileNotFound,
            "cannot open a.qbm: QBM.bitmaps[\"a\"].backing.file: cannot open b: No such file or directory",
        ),
        (
            named("nbd://host/x", "raw"),
            ErrorCode::NotSupported,
            "cannot open a.qbm: QBM.bitmaps[\"a\"].backing.file: \"nbd://host/x\" begins with the scheme \"nbd:\", and \
             only files are supported (\"./\" in front makes it a file's name)",
        ),
    ] {
        put_overlay(&sim, "", "a", &backing);
        assert_fails(opened(&sim, "a.qbm"), code, words);
    }
    for backing in [named("b", ""), r#"{"file": "b"}"#.to_owned()] {
        put_overlay(&sim, "", "a", &backing);
        let error = opened(&sim, "a.qbm").err().unwrap();
        assert_eq!(error.code(), ErrorCode::DescriptorInvalid);
        assert!(error.message().contains("format"), "{error}");
    }
    // What looks like a descriptor is not taken for one.
    put_overlay(&sim, "", "a", &named("b.qbm", "raw"));
    put_overlay(&sim, "", "b", &named("secret", "raw"));
    let disk = open_as(&sim, "a.qbm");
    let json = sim.read("b.qbm").unwrap();
    assert_same(&read_all(&disk)[..json.len()], &json);
}

#[test]
fn errors_below_name_the_descriptor_that_they_are_in() {
    let sim = SimDisk::new();
    put_overlay(&sim, "", "a", &named("sub/b.qbm", "qbm"));
    put_overlay(&sim, "sub/", "b", &named("../base.img", "raw"));
    sim.put("sub/b.bits", &[]);
    let words = "cannot open a.qbm: sub/b.qbm: QBM.bitmaps[\"a\"].file: sub/b.bits is too small: 0 bytes, where the bits \
                 of the disk need 1";
    assert_fails(opened(&sim, "a.qbm"), ErrorCode::FileInvalid, words);
    sim.put("sub/b.qbm", b"{}");
    let error = opened(&sim, "a.qbm").err().unwrap();
    assert!(
        error.message().starts_with("cannot open a.qbm: sub/b.qbm: "),
        "{error}"
    );
}

/// Names are relative to the descriptor that has them, and the one folder is asked for every file, once, to read only.
#[test]
fn every_file_of_a_chain_comes_from_the_folder() {
    let sim = SimDisk::new();
    put_overlay(&sim, "", "a", &named("sub/b.qbm", "qbm"));
    put_overlay(&sim, "sub/", "b", &named("deep/c.qbm", "qbm"));
    put_overlay(&sim, "sub/deep/", "c", &named("/abs/base.img", "raw"));
    sim.put("/abs/base.img", &base(8192));
    let start = sim.events().len();
    let disk = open_as(&sim, "a.qbm");
    assert_same(&read_all(&disk), &base(8192));
    let events = sim.events();
    let opened: Vec<_> = events[start..]
        .iter()
        .filter(|event| event.call.kind() == CallKind::Open)
        .flat_map(|event| event.call.names())
        .map(|name| name.to_str().unwrap())
        .collect();
    assert_eq!(
        opened,
        [
            "a.qbm",
            "a.img",
            "a.bits",
            "sub/b.qbm",
            "sub/b.img",
            "sub/b.bits",
            "sub/deep/c.qbm",
            "sub/deep/c.img",
            "sub/deep/c.bits",
            "/abs/base.img"
        ]
    );
    write(&disk, 1, 0, 8192);
    disk.close().unwrap();
    let changed: Vec<_> = sim.events()[start..]
        .iter()
        .filter(|event| event.call.changes() && event.call.kind() != CallKind::Sync)
        .flat_map(|event| {
            event
                .call
                .names()
                .map(|it| it.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        })
        .filter(|name| !["a.img", "a.bits"].contains(&name.as_str()))
        .collect();
    assert_eq!(changed, [""; 0]);
}

#[test]
fn without_its_backing_a_disk_says_what_it_cannot_read() {
    let sim = overlay(8 * G, 8 * G);
    let disk = OpenOptions::new()
        .no_backing(true)
        .folder(sim.folder())
        .open(TOP)
        .unwrap();
    let mut bytes = vec![0; 100];
    let words = "100 bytes at offset 10 are in the backing image, and the disk was opened without it";
    assert_fails(disk.read(&mut bytes, 10), ErrorCode::NotSupported, words);
    let words = "10 bytes at offset 0 are in the backing image, and the disk was opened without it";
    assert_fails(
        disk.write(&[1; 10], 10, WriteFlags::empty()),
        ErrorCode::NotSupported,
        words,
    );
    write(&disk, 1, G, G);
    disk.write_zeroes(2 * G, G, WriteFlags::empty()).unwrap();
    disk.read(&mut bytes, G).unwrap();
    assert_eq!(bytes, [1; 100]);
    assert_eq!(disk.info().unwrap().layers, 1);
    assert!(disk.block_status(0, 8 * G).unwrap().flags.is_empty());
    disk.close().unwrap();
    let mut content = base(8 * G);
    content[usize::try_from(G).unwrap()..usize::try_from(2 * G).unwrap()].fill(1);
    content[usize::try_from(2 * G).unwrap()..usize::try_from(3 * G).unwrap()].fill(0);
    assert_same(&read_all(&open(&sim)), &content);
}

#[test]
fn names_that_lead_out_of_the_folder_are_refused_when_confined() {
    let sim = SimDisk::new();
    let confined = |sim: &SimDisk| {
        OpenOptions::new()
            .confined(true)
            .folder(sim.folder())
            .open("a.qbm")
    };
    for name in ["/abs/base.img", "../base.img", "sub/../../base.img"] {
        put_overlay(&sim, "", "a", &named(name, "raw"));
        sim.put(name, &base(8192));
        assert!(opened(&sim, "a.qbm").is_ok());
        let words = format!(
            "cannot open a.qbm: QBM.bitmaps[\"a\"].backing.file: {name} is not beneath the descriptor's folder, to \
             which the disk is confined"
        );
        assert_fails(confined(&sim), ErrorCode::PermissionDenied, &words);
    }
    put_overlay(&sim, "", "a", &named("sub/b.qbm", "qbm"));
    put_overlay(&sim, "sub/", "b", &named("../../base.img", "raw"));
    let words = "cannot open a.qbm: sub/b.qbm: QBM.bitmaps[\"a\"].backing.file: sub/../../base.img is not beneath the \
                 descriptor's folder, to which the disk is confined";
    assert_fails(confined(&sim), ErrorCode::PermissionDenied, words);
    put_overlay(&sim, "sub/", "b", &named("../base.img", "raw"));
    // The simulated folder knows names only as they are written.
    sim.put("sub/../base.img", &base(8192));
    assert!(confined(&sim).is_ok());
}

/// On a real file system, where links can lead anywhere.
#[test]
fn links_that_lead_out_of_the_folder_are_refused_when_confined() {
    use std::os::unix::fs::symlink;
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("inner");
    std::fs::create_dir_all(folder.join("sub")).unwrap();
    let put = |name: &str, bytes: &[u8]| std::fs::write(outer.path().join(name), bytes).unwrap();
    put("inner/a.qbm", &descriptor("a", &named("base.img", "raw")));
    put("inner/a.img", &[0; 8192]);
    put("inner/a.bits", &[0; 8]);
    put("secret.img", &base(8192));
    put("inner/sub/base.img", &base(8192));
    let open = |confined| OpenOptions::new().confined(confined).open(folder.join("a.qbm"));
    symlink("sub/base.img", folder.join("base.img")).unwrap();
    match open(true) {
        Ok(disk) => assert_same(&read_all(&disk), &base(8192)),
        Err(error) if error.errno() == libc::ENOTSUP => return,
        Err(error) => panic!("{error}"),
    }
    let words = format!(
        "cannot open {0}/a.qbm: QBM.bitmaps[\"a\"].backing.file: {0}/base.img is not beneath the descriptor's folder, \
         to which the disk is confined",
        folder.display()
    );
    for target in ["../secret.img", outer.path().join("secret.img").to_str().unwrap()] {
        std::fs::remove_file(folder.join("base.img")).unwrap();
        symlink(target, folder.join("base.img")).unwrap();
        assert_same(&read_all(&open(false).unwrap()), &base(8192));
        assert_fails(open(true), ErrorCode::PermissionDenied, &words);
    }
    // The image and the bitmaps too.
    std::fs::remove_file(folder.join("base.img")).unwrap();
    put("inner/base.img", &base(8192));
    std::fs::remove_file(folder.join("a.bits")).unwrap();
    put("a.bits", &[0; 8]);
    symlink("../a.bits", folder.join("a.bits")).unwrap();
    assert!(open(false).is_ok());
    let error = open(true).err().unwrap();
    assert!(error.message().contains("a.bits is not beneath"), "{error}");
}

/// A hard link and a symbolic link are other names, not other files; a nested descriptor's names are relative to where
/// it really lies.
#[test]
fn links_do_not_hide_what_a_file_is() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let put = |name: &str, bytes: &[u8]| std::fs::write(at(name), bytes).unwrap();
    std::fs::create_dir(at("sub")).unwrap();
    for (place, stem, backing) in [
        ("", "a", named("link.qbm", "qbm")),
        ("sub/", "b", named("base.img", "raw")),
    ] {
        put(&format!("{place}{stem}.qbm"), &descriptor(stem, &backing));
        put(&format!("{place}{stem}.img"), &[0; 8192]);
        put(&format!("{place}{stem}.bits"), &[0; 8]);
    }
    put("sub/base.img", &base(8192));
    symlink("sub/b.qbm", at("link.qbm")).unwrap();
    for confined in [false, true] {
        match OpenOptions::new().confined(confined).open(at("a.qbm")) {
            Ok(disk) => assert_same(&read_all(&disk), &base(8192)),
            Err(error) => assert_eq!(error.errno(), libc::ENOTSUP, "{error}"),
        }
    }
    std::fs::remove_file(at("sub/base.img")).unwrap();
    std::fs::hard_link(at("a.img"), at("sub/base.img")).unwrap();
    let error = Disk::open(at("a.qbm")).err().unwrap();
    assert!(
        error
            .message()
            .ends_with("sub/base.img is the same file as QBM.image.file"),
        "{error}"
    );
    // A FIFO would keep the open waiting for ever, and a device could do anything.
    std::fs::remove_file(at("sub/base.img")).unwrap();
    symlink("/dev/zero", at("sub/base.img")).unwrap();
    let error = Disk::open(at("a.qbm")).err().unwrap();
    assert!(error.message().contains("a character device"), "{error}");
    symlink("/proc/self/mem", at("mem")).unwrap();
    put("sub/b.qbm", &descriptor("b", &named("../mem", "raw")));
    let memory = Disk::open(at("a.qbm")).map(|disk| read_all(&disk));
    assert!(memory.is_err() || memory.is_ok_and(|bytes| bytes.iter().all(|byte| *byte == 0)));
}

/// The driver that the format comes from rounds a bitmap's file up to bytes, not to words.
#[test]
fn a_bitmap_file_of_whole_bytes_is_enough() {
    let sim = SimDisk::new();
    put_overlay(&sim, "", "a", &named("base.img", "raw"));
    sim.put("base.img", &base(8192));
    sim.put("a.bits", &[0b10]);
    let disk = open_as(&sim, "a.qbm");
    write(&disk, 1, 10, 1);
    disk.close().unwrap();
    assert_eq!(sim.read("a.bits").unwrap(), [0b11, 0, 0, 0, 0, 0, 0, 0]);
    let mut content = base(8192);
    content[4096..].fill(0);
    content[10] = 1;
    assert_same(&read_all(&open_as(&sim, "a.qbm")), &content);
}

/// Many may read an image, and nobody may write to what others read.
#[test]
fn a_backing_image_is_shared_by_readers_and_kept_from_writers() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    CreateOptions::new()
        .size(64 * KIB)
        .create(at("base.qbm"))
        .unwrap();
    for name in ["one.qbm", "two.qbm"] {
        CreateOptions::new()
            .backing("base.qbm", Format::Qbm)
            .create(at(name))
            .unwrap();
    }
    let one = Disk::open(at("one.qbm")).unwrap();
    let two = Disk::open(at("two.qbm")).unwrap();
    let locked = |result: Result<Disk>| {
        let error = result.expect_err("it is locked");
        assert_eq!(error.code(), ErrorCode::Locked, "{error}");
        assert!(error.message().contains("base-data.img"), "{error}");
    };
    locked(Disk::open(at("base.qbm")));
    drop(OpenOptions::new().read_only(true).open(at("base.qbm")).unwrap());
    // Nor may one overlay be committed under another; and afterwards it holds the backing as before.
    write(&one, 7, 0, 10);
    let commit = |disk: &Disk| disk.commit(&mut |_, _| std::ops::ControlFlow::Continue(()));
    let error = commit(&one).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Locked, "{error}");
    two.close().unwrap();
    locked(Disk::open(at("base.qbm")));
    commit(&one).unwrap();
    locked(Disk::open(at("base.qbm")));
    assert_eq!(read_all(&one)[..10], [7; 10]);
    one.close().unwrap();
    let base = Disk::open(at("base.qbm")).unwrap();
    assert_eq!(read_all(&base)[..10], [7; 10]);
    locked(Disk::open(at("two.qbm")));
    drop(OpenOptions::new().no_lock(true).open(at("two.qbm")).unwrap());
}

#[test]
fn a_new_overlay_has_the_size_of_its_backing() {
    let sim = SimDisk::new();
    sim.put("base.img", &base(5 * G + 3));
    let create = || CreateOptions::new().folder(sim.folder());
    create()
        .backing("base.img", Format::Raw)
        .create("one.qbm")
        .unwrap();
    create()
        .backing("one.qbm", Format::Qbm)
        .create("two.qbm")
        .unwrap();
    let disk = open_as(&sim, "two.qbm");
    assert_same(&read_all(&disk), &base(5 * G + 3));
    let text = String::from_utf8(sim.read("two.qbm").unwrap()).unwrap();
    for part in [
        r#""file": "two-allocation.bitmap""#,
        r#""granularity-bytes": 65536"#,
        r#""format": "qbm""#,
    ] {
        assert!(text.contains(part), "{text}");
    }
    let names = sim.names().len();
    for (options, code, words) in [
        (
            create().backing("none.img", Format::Raw),
            ErrorCode::FileNotFound,
            "cannot create new.qbm: QBM.bitmaps[\"allocation\"].backing.file: cannot open none.img: No such file or \
             directory",
        ),
        (
            create().backing("base.img", Format::Raw).image("one-data.img"),
            ErrorCode::InvalidArgument,
            "cannot create new.qbm: an allocation bitmap is for a new image: it would hide all that an existing one \
             has",
        ),
        (
            create()
                .backing("base.img", Format::Raw)
                .preallocation(crate::Preallocation::Full),
            ErrorCode::InvalidArgument,
            "cannot create new.qbm: preallocation is for a disk that has all of its bytes, and this one takes them as \
             they are written",
        ),
        (
            create().granularity(granularity(G)),
            ErrorCode::InvalidArgument,
            "cannot create new.qbm: neither a size nor an existing image was given",
        ),
    ] {
        assert_fails(options.create("new.qbm"), code, words);
        assert_eq!(sim.names().len(), names, "nothing is left behind");
    }
    // A failure in the middle leaves nothing either. (The first call asks whether the name is free.)
    for call in 2..30 {
        sim.fail(crate::storage::simulated::Fault::new(libc::ENOSPC).nth(call));
        let made = create().backing("base.img", Format::Raw).create("new.qbm");
        sim.heal();
        if made.is_ok() {
            assert!(call > 8);
            return;
        }
        assert_eq!(sim.names().len(), names, "call {call}");
    }
}

#[test]
fn the_bits_of_all_layers_count_as_memory() {
    let sim = overlay(64 * G, 64 * G);
    let of = |bytes| {
        OpenOptions::new()
            .max_bitmap_memory(bytes)
            .folder(sim.folder())
            .open(TOP)
    };
    assert!(of(1 << 20).is_ok());
    assert_eq!(of(7).err().unwrap().code(), ErrorCode::NoMemory);
}
