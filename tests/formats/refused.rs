//! What is refused, in which words; and what images do that want more than they may.

use std::os::unix::fs::symlink;
use std::process::Command;

use proptest::prelude::*;
use qbm::{ErrorCode, Format, OpenOptions};

use crate::room::{MIB, Room, read_all};

#[track_caller]
fn assert_refused(room: &Room, image: &str, format: Format, code: ErrorCode, words: &str) {
    let error = room.try_over(image, format).expect_err(words);
    let said = error
        .message()
        .replace(&format!("{}/", room.path("").display()).replace("//", "/"), "");
    assert!(said.contains(words), "{said}");
    assert_eq!(error.code(), code, "{said}");
}

/// The first bytes of the first `what` in a file become `with`.
fn patch(room: &Room, image: &str, what: &[u8], with: &[u8]) {
    let mut bytes = std::fs::read(room.path(image)).expect("the image");
    let at = bytes
        .windows(what.len())
        .position(|it| it == what)
        .expect("it is there");
    bytes[at..at + with.len()].copy_from_slice(with);
    std::fs::write(room.path(image), bytes).expect("written");
}

fn put(room: &Room, image: &str, at: usize, with: &[u8]) {
    let mut bytes = std::fs::read(room.path(image)).expect("the image");
    bytes[at..at + with.len()].copy_from_slice(with);
    std::fs::write(room.path(image), bytes).expect("written");
}

/// Where qcow2 has its incompatible features; the last byte of them.
const FEATURES: usize = 79;

/// The format of a backing file is never guessed, and the words say how to write it down.
#[test]
fn a_backing_without_a_format() {
    let Some(room) = Room::new() else { return };
    room.raw("base.raw", MIB);
    room.img("create -q -f qcow2 -b base.raw -F raw a.qcow2 1M");
    // As old programs have left it: the header extension that has the format becomes one that means nothing.
    patch(&room, "a.qcow2", &[0xe2, 0x79, 0x2a, 0xca], &[1]);
    assert_refused(
        &room,
        "a.qcow2",
        Format::Qcow2,
        ErrorCode::FileInvalid,
        "the format of its backing file \"base.raw\" is not written in it, and is never guessed; \
         \"qemu-img rebase -u -F FORMAT -b base.raw",
    );
    // And the command is one that helps.
    room.img("rebase -u -F raw -b base.raw a.qcow2");
    room.over("a.qcow2", Format::Qcow2);
}

#[test]
fn backings_that_are_no_files() {
    let Some(room) = Room::new() else { return };
    for (name, words) in [
        ("json:{}", "begins with the scheme \"json:\""),
        ("nbd://host/x", "begins with the scheme \"nbd:\""),
        ("fd:3", "begins with the scheme \"fd:\""),
    ] {
        room.img("create -q -f qcow2 a.qcow2 1M");
        room.run("qemu-img", &["rebase", "-u", "-b", name, "-F", "raw", "a.qcow2"]);
        assert_refused(&room, "a.qcow2", Format::Qcow2, ErrorCode::NotSupported, words);
    }
    room.img("create -q -f qcow2 a.qcow2 1M");
    room.run("qemu-img", &["rebase", "-u", "-b", "x", "-F", "vpc", "a.qcow2"]);
    let words =
        "its backing file \"x\" is of the unknown format \"vpc\"; \"qemu-img rebase -u -F FORMAT -b x";
    assert_refused(&room, "a.qcow2", Format::Qcow2, ErrorCode::NotSupported, words);
}

#[test]
fn features_that_cannot_be_read() {
    let Some(room) = Room::new() else { return };
    let refused = |code, words| assert_refused(&room, "a.qcow2", Format::Qcow2, code, words);
    room.img("create -q -f qcow2 -o extended_l2=on a.qcow2 1M");
    refused(ErrorCode::NotSupported, "extended L2 entries (subclusters)");
    room.img("create -q -f qcow2 -o compression_type=zstd a.qcow2 1M");
    refused(ErrorCode::NotSupported, "compressed otherwise than by zlib");
    room.img(
        "create -q -f qcow2 --object secret,id=key,data=x -o \
         encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10 a.qcow2 1M",
    );
    refused(ErrorCode::NotSupported, "it is encrypted");
    room.img("create -q -f qcow2 a.qcow2 1M");
    put(&room, "a.qcow2", FEATURES, &[1]);
    refused(ErrorCode::FileInvalid, "\"qemu-img check -r all\" repairs it");
    put(&room, "a.qcow2", FEATURES, &[2]);
    refused(ErrorCode::FileInvalid, "it is marked corrupt");
    put(&room, "a.qcow2", FEATURES, &[64]);
    refused(
        ErrorCode::NotSupported,
        "the incompatible features 0x40 are unknown",
    );
    put(&room, "a.qcow2", FEATURES, &[0]);
    // An L1 table of 32 GiB.
    put(&room, "a.qcow2", 36, &[0xff; 4]);
    refused(
        ErrorCode::NotSupported,
        "L1 table of 34359738360 bytes is longer than the limit",
    );
    std::fs::write(room.path("a.qcow2"), b"# Disk DescriptorFile").expect("written");
    refused(ErrorCode::FileInvalid, "it does not begin with QFI");
}

#[test]
fn vmdks_that_cannot_be_read() {
    let Some(room) = Room::new() else { return };
    let refused = |text: &str, code, words| {
        std::fs::write(room.path("a.vmdk"), text).expect("written");
        assert_refused(&room, "a.vmdk", Format::Vmdk, code, words);
    };
    let with = |line: &str| format!("# Disk DescriptorFile\nversion=1\n{line}\n");
    refused(
        "QFI\u{fb}",
        ErrorCode::FileInvalid,
        "no line \"# Disk DescriptorFile\"",
    );
    refused("COWD", ErrorCode::NotSupported, "an ESX server's sparse file");
    refused(
        "KDMV",
        ErrorCode::FileInvalid,
        "it ends before the 512 bytes at 0",
    );
    refused(
        &with("parentCID=1234abcd"),
        ErrorCode::NotSupported,
        "line 3: it is a snapshot that needs a parent",
    );
    refused(
        &with("RW 1 SESPARSE \"x\""),
        ErrorCode::NotSupported,
        "line 3: an extent is SESPARSE",
    );
    refused(
        &with("NOACCESS 1 ZERO"),
        ErrorCode::NotSupported,
        "may not be accessed",
    );
    refused(
        &with("RW 1"),
        ErrorCode::FileInvalid,
        "neither a key with a value nor an extent",
    );
    refused(
        &with("RW 1 FLAT \"nbd:x\" 0"),
        ErrorCode::NotSupported,
        "begins with the scheme \"nbd:\"",
    );
    refused(
        &with("RW 1 FLAT \"a.vmdk\" 0"),
        ErrorCode::FileInvalid,
        "is the same file as",
    );
    refused(
        &with("RW 18014398509481984 ZERO"),
        ErrorCode::FileInvalid,
        "neither a key",
    );
    // No length in these lines is beyond the limit, but their sum is.
    let most = with("RW 18014398509481983 ZERO\nRW 18014398509481983 ZERO");
    refused(&most, ErrorCode::NotSupported, "longer than the limit");
}

/// `VMware`'s own descriptors have keys that QEMU's have not.
#[test]
fn a_descriptor_as_vmware_writes_it() {
    let Some(room) = Room::new() else { return };
    room.raw("flat.raw", MIB);
    let text = "# Disk DescriptorFile\r\nversion=1\r\nencoding=\"UTF-8\"\r\nCID=fffffffe\r\nparentCID=ffffffff\r\n\
                isNativeSnapshot=\"no\"\r\ncreateType=\"vmfs\"\r\n\r\n# Extent description\r\n\
                RW 2047 VMFS \"flat.raw\"\r\nRW 2048 ZERO\r\nRDONLY 1 FLAT \"last.raw\" 1\r\n\r\n\
                # The Disk Data Base\r\nddb.adapterType = \"lsilogic\"\r\n";
    std::fs::write(room.path("a.vmdk"), text).expect("written");
    std::fs::write(room.path("last.raw"), [7; 1024]).expect("written");
    let mut expected = std::fs::read(room.path("flat.raw")).expect("the extent");
    expected.truncate(2047 * 512);
    expected.resize(4095 * 512, 0);
    expected.extend([7; 512]);
    crate::room::assert_same(&read_all(&room.over("a.vmdk", Format::Vmdk)), &expected);
}

/// A chain that leads back to itself, whatever the names are.
#[test]
fn loops() {
    let Some(room) = Room::new() else { return };
    let rebase = |image: &str, to: &str| {
        room.img(&format!("create -q -f qcow2 {image} 1M"));
        room.run("qemu-img", &["rebase", "-u", "-b", to, "-F", "qcow2", image]);
    };
    let refused = |words| assert_refused(&room, "a.qcow2", Format::Qcow2, ErrorCode::FileInvalid, words);
    rebase("a.qcow2", "a.qcow2");
    refused("the backing chain leads back to a.qcow2");
    rebase("a.qcow2", "link.qcow2");
    symlink("a.qcow2", room.path("link.qcow2")).expect("a link");
    refused("the backing chain leads back to link.qcow2");
    rebase("a.qcow2", "hard.qcow2");
    std::fs::hard_link(room.path("a.qcow2"), room.path("hard.qcow2")).expect("a link");
    refused("the backing chain leads back to hard.qcow2");
    rebase("a.qcow2", "b.qcow2");
    rebase("b.qcow2", "c.qcow2");
    rebase("c.qcow2", "a.qcow2");
    refused("the backing chain leads back to a.qcow2");
    // By way of the disk itself, which is a descriptor.
    rebase("a.qcow2", "b.qcow2");
    rebase("b.qcow2", "top.qbm");
    patch(&room, "b.qcow2", b"qcow2", b"qbm\0\0");
    let at = std::fs::read(room.path("b.qcow2")).expect("the image");
    let at = at.windows(5).position(|it| it == b"qbm\0\0").expect("the format") - 4;
    put(&room, "b.qcow2", at, &[0, 0, 0, 3]);
    std::fs::write(room.path("top.qbm"), named("a.qcow2", "qcow2")).expect("written");
    std::fs::write(room.path("top.img"), [0; 512]).expect("written");
    std::fs::write(room.path("top.bits"), [0; 8]).expect("written");
    let error = OpenOptions::new().open(room.path("top.qbm")).expect_err("a loop");
    assert!(
        error.message().contains("the backing chain leads back to "),
        "{error}"
    );
}

/// A descriptor with an image and an allocation bitmap over that.
fn named(backing: &str, format: &str) -> String {
    format!(
        r#"{{"QBM": {{"version": 1, "image": {{"file": "top.img", "format": "raw"}}, "bitmaps": {{"a": {{
           "file": "top.bits", "type": "allocation", "granularity-bytes": 65536,
           "backing": {{"file": "{backing}", "format": "{format}"}}}}}}}}}}"#
    )
}

/// As many images as there may be, and one more.
#[test]
fn a_chain_that_is_too_deep() {
    let Some(room) = Room::new() else { return };
    room.raw("base", 512);
    room.img("create -q -f qcow2 -o cluster_size=512 plain 512");
    room.run(
        "qemu-img",
        &["rebase", "-u", "-b", "d000", "-F", "qcow2", "plain"],
    );
    for index in 0..256 {
        std::fs::copy(room.path("plain"), room.path(format!("d{index:03}"))).expect("a copy");
        patch(
            &room,
            &format!("d{index:03}"),
            b"d000",
            format!("d{:03}", index + 1).as_bytes(),
        );
    }
    room.img("create -q -f qcow2 -o cluster_size=512 d256 512");
    let words = "the backing chain is deeper than 256 images";
    assert_refused(&room, "d000", Format::Qcow2, ErrorCode::NotSupported, words);
    assert_eq!(
        room.over("d001", Format::Qcow2).info().expect("facts").layers,
        257
    );
}

/// What is no disk image: neither opened for good nor waited for.
#[test]
fn things_that_are_no_images() {
    let Some(room) = Room::new() else { return };
    room.run("mkfifo", &["fifo"]);
    let _socket = std::os::unix::net::UnixListener::bind(room.path("socket")).expect("a socket");
    for (name, words) in [
        (
            "/proc/self/mem",
            "it is the kernel's, of a file system of type proc",
        ),
        (
            "/proc/self/environ",
            "it is the kernel's, of a file system of type proc",
        ),
        (
            "/sys/kernel/uevent_seqnum",
            "it is the kernel's, of a file system of type sysfs",
        ),
        ("/dev/zero", "/dev/zero"),
        ("fifo", "fifo"),
        ("socket", "socket"),
        (".", "cannot open"),
        ("/nonexistent/x", "No such file"),
    ] {
        room.img("create -q -f qcow2 a.qcow2 1M");
        room.run("qemu-img", &["rebase", "-u", "-b", name, "-F", "raw", "a.qcow2"]);
        let refused = |image, format| {
            let error = room.try_over(image, format).expect_err(name);
            assert!(error.message().contains(words), "{error}");
        };
        if name.starts_with('/') || name == "." {
            refused(name, Format::Raw);
        }
        refused("a.qcow2", Format::Qcow2);
        let text = format!("# Disk DescriptorFile\nversion=1\nRW 8 FLAT \"{name}\" 0\n");
        std::fs::write(room.path("a.vmdk"), text).expect("written");
        refused("a.vmdk", Format::Vmdk);
    }
}

/// A disk that is confined to its folder stays there, whatever is named below it.
#[test]
fn ways_out_of_a_confined_folder() {
    let Some(room) = Room::new() else { return };
    std::fs::create_dir(room.path("in")).expect("a folder");
    room.raw("secret", MIB);
    symlink("../secret", room.path("in/link")).expect("a link");
    symlink("..", room.path("in/folder")).expect("a link");
    room.raw("in/inside", MIB);
    for file in ["top.img", "top.bits"] {
        std::fs::write(room.path("in").join(file), [0; 4096]).expect("written");
    }
    let absolute = room.path("secret").display().to_string();
    let open = |image: &str, format: &str| {
        std::fs::write(room.path("in/top.qbm"), named(image, format)).expect("written");
        OpenOptions::new()
            .confined(true)
            .no_state(true)
            .open(room.path("in/top.qbm"))
    };
    let ways = ["../secret", "link", "folder/secret", &absolute, "inside"];
    for name in ways {
        room.img("create -q -f qcow2 in/a.qcow2 1M");
        room.run(
            "qemu-img",
            &["rebase", "-u", "-b", name, "-F", "raw", "in/a.qcow2"],
        );
        let text = format!("# Disk DescriptorFile\nversion=1\nRW 2048 FLAT \"{name}\" 0\n");
        std::fs::write(room.path("in/a.vmdk"), text).expect("written");
        let _ = std::fs::remove_file(room.path("in/data"));
        room.img("create -q -f qcow2 -o data_file=in/data in/b.qcow2 1M");
        std::fs::rename(room.path("in/data"), room.path("in/data.moved")).expect("renamed");
        room.run(
            "qemu-img",
            &["amend", "-o", &format!("data_file={name}"), "--image-opts",
              "driver=qcow2,file.filename=in/b.qcow2,data-file.driver=file,data-file.filename=in/data.moved"],
        );
        for (image, format) in [("a.qcow2", "qcow2"), ("a.vmdk", "vmdk"), ("b.qcow2", "qcow2")] {
            match open(image, format) {
                Ok(_) => assert_eq!(name, "inside", "{image}"),
                Err(error) => {
                    assert_ne!(name, "inside", "{error}");
                    assert_eq!(error.code(), ErrorCode::PermissionDenied, "{error}");
                    let words = "is not beneath the descriptor's folder, to which the disk is confined";
                    assert!(error.message().contains(words), "{error}");
                }
            }
        }
    }
}

/// A guest can make its raw disk look like a qcow2 that names the host's files. It stays a raw disk.
#[test]
fn a_raw_disk_is_never_taken_for_another() {
    let Some(room) = Room::new() else { return };
    room.raw("secret", MIB);
    room.img("create -q -f qcow2 -b secret -F raw guest.raw 1M");
    let written = std::fs::read(room.path("guest.raw")).expect("the disk");
    let disk = room.over("guest.raw", Format::Raw);
    crate::room::assert_same(&read_all(&disk), &written);
    drop(disk);
    // Nor below a qcow2 that says that it is raw.
    room.img("create -q -f qcow2 -b guest.raw -F raw a.qcow2");
    let disk = room.over("a.qcow2", Format::Qcow2);
    crate::room::assert_same(&read_all(&disk)[..written.len()], &written);
}

/// While a disk is open nobody may write to what is below it; and what somebody writes to is not opened.
#[test]
fn locks_that_qemu_sees() {
    let Some(room) = Room::new() else { return };
    room.raw("base.raw", MIB);
    room.img("create -q -f qcow2 -b base.raw -F raw a.qcow2 1M");
    room.img("create -q -f qcow2 -o data_file=b.data b.qcow2 1M");
    room.img("convert -f raw -O vmdk -o subformat=monolithicFlat base.raw c.vmdk");
    for (image, format, others) in [
        ("a.qcow2", Format::Qcow2, ["a.qcow2", "base.raw"]),
        ("b.qcow2", Format::Qcow2, ["b.qcow2", "b.data"]),
        ("c.vmdk", Format::Vmdk, ["c.vmdk", "c-flat.vmdk"]),
    ] {
        let disk = room.over(image, format);
        for other in others {
            let write = || {
                Command::new("qemu-io")
                    .args(["-f", "raw", "-c", "write -P 1 1048000 1"])
                    .arg(room.path(other))
                    .output()
                    .expect("it starts")
            };
            let said = String::from_utf8_lossy(&write().stderr).into_owned();
            assert!(said.contains("lock"), "{other}: {said}");
        }
        drop(disk);
    }
}

/// An image, and what it is.
type Seed = (Format, Vec<u8>);

/// Every image that the fuzzer starts from.
fn seeds() -> Option<(Room, Vec<Seed>)> {
    let room = Room::new()?;
    room.raw("a.raw", 300 << 10);
    let mut seeds = Vec::new();
    for (args, format) in [
        ("-c -O qcow2 -o cluster_size=512", Format::Qcow2),
        ("-O qcow2 -o cluster_size=4k", Format::Qcow2),
        ("-c -O qcow2 -o cluster_size=64k,compat=0.10", Format::Qcow2),
        ("-O vmdk -o subformat=monolithicSparse", Format::Vmdk),
        ("-O vmdk -o subformat=streamOptimized", Format::Vmdk),
    ] {
        room.img(&format!("convert -f raw {args} a.raw seed"));
        seeds.push((format, std::fs::read(room.path("seed")).expect("the image")));
    }
    std::fs::write(room.path("top.qbm"), "").expect("written");
    std::fs::write(room.path("top.img"), [0; 512]).expect("written");
    Some((room, seeds))
}

/// Damaged images: bytes or errors, no panic that gets out, and no more memory than the formats' limits.
#[test]
fn damaged_images() {
    let Some((room, seeds)) = seeds() else { return };
    std::fs::File::create(room.path("top.img"))
        .and_then(|it| it.set_len(400 << 10))
        .expect("a file");
    std::fs::write(room.path("top.bits"), [0; 8]).expect("written");
    let byte = prop_oneof![Just(0u8), Just(0xff), Just(1), Just(0x80), any::<u8>()];
    // Mostly where the tables are, which is at the beginning.
    let place = prop_oneof![0..128u32, 0..2048u32, 0..70_000u32, any::<u32>()];
    let damage = (0..seeds.len(), prop::collection::vec((place, byte), 1..6));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let result = runner.run(&damage, |(seed, flips)| {
        let (format, bytes) = &seeds[seed];
        let mut bytes = bytes.clone();
        for (at, byte) in flips {
            let at = at as usize % bytes.len();
            bytes[at] = byte;
        }
        std::fs::write(room.path("damaged"), &bytes).expect("written");
        std::fs::write(room.path("top.qbm"), named("damaged", format.word())).expect("written");
        let options = OpenOptions::new().no_state(true).read_only(true).confined(true);
        if let Ok(disk) = options.open(room.path("top.qbm")) {
            let mut part = vec![0; 64 << 10];
            for at in (0..disk.length()).step_by(part.len()) {
                let len = (disk.length() - at).min(part.len() as u64);
                let _ = disk.read(&mut part[..usize::try_from(len).expect("a part")], at);
                let _ = disk.block_status(at, len);
            }
        }
        Ok(())
    });
    result.expect("no damage brings it down");
    assert!(
        crate::memory::peak() < 200 << 20,
        "{} bytes",
        crate::memory::peak()
    );
}
