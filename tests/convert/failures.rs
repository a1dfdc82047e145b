//! What goes wrong leaves nothing behind, and is told in words.

use std::ffi::OsStr;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use qbm::{Disk, OpenOptions};

use super::mounted::Mounted;
use super::random::Random;
use super::room::{Room, TOOL, text};
use super::{scatter, skip};

fn refused(room: &Room, args: &[&str], line: &str) {
    let before = room.names();
    let (code, complaint) = room.fails(args);
    assert_eq!(complaint, format!("qbm: {line}\n"), "{args:?}");
    // What makes no sense whatever the files are like is told without what cannot be done.
    let expected = if line.starts_with("cannot ") { 1 } else { 2 };
    assert_eq!(code, expected, "{args:?}");
    assert_eq!(room.names(), before, "{args:?} left something behind");
}

#[test]
fn mistakes_are_told_in_words() {
    let room = Room::new();
    room.write("in.img", &[1; 1000]);
    room.write("short.img", &[2; 999]);
    room.done(&["create", "-q", "disk.qbm", "1000"]);
    symlink("nowhere", room.path("dangling")).expect("a link");
    let never = "-f must say what in.img is, as its name does not end in .qbm: raw, qbm, qcow2 or vmdk (it is not \
                 guessed: a guest could make a raw image look like another)";
    for (args, line) in [
        (&["convert", "in.img", "out.img"][..], never),
        (&["measure", "in.img"], never),
        (
            &["convert", "-f", "raw", "missing.img", "out.img"],
            "cannot open missing.img: No such file or directory",
        ),
        (
            &["convert", "missing.qbm", "out.img"],
            "cannot open missing.qbm: No such file or directory",
        ),
        (
            &["convert", "-f", "raw", "in.img", "short.img"],
            "cannot convert in.img to short.img: it exists already, and is not overwritten (-n overwrites what exists)",
        ),
        (
            &["convert", "-f", "raw", "in.img", "dangling"],
            "cannot convert in.img to dangling: it exists already, and is not overwritten (-n overwrites what exists)",
        ),
        (
            &["convert", "-f", "raw", "in.img", "disk.qbm"],
            "cannot convert in.img to disk.qbm: it exists already, and is not overwritten (-n overwrites what exists)",
        ),
        (
            &["convert", "-n", "-f", "raw", "in.img", "short.img"],
            "cannot convert in.img to short.img: it is 999 bytes long, and the source 1000",
        ),
        (
            &["convert", "-n", "-f", "raw", "in.img", "missing.img"],
            "cannot convert in.img to missing.img: cannot open for writing missing.img: No such file or directory \
             (without -n it is made)",
        ),
        (
            &["convert", "-n", "-O", "raw", "-f", "raw", "in.img", "disk.qbm"],
            "cannot convert in.img to disk.qbm: it is a QBM descriptor, which a raw image would replace; ask for the \
             format qbm, or name the image",
        ),
        (
            &["convert", "-U", "-n", "-f", "raw", "in.img", "in.img"],
            "cannot convert in.img to in.img: it is a part of the source",
        ),
        (
            &["convert", "-U", "-n", "disk.qbm", "disk-data.img"],
            "cannot convert disk.qbm to disk-data.img: it is a part of the source",
        ),
        (
            &["convert", "-f", "raw", "in.img", "nowhere/out.img"],
            "cannot convert in.img to nowhere/out.img: cannot open the folder nowhere: No such file or directory",
        ),
        (
            &["convert", "-S", "1000", "-f", "raw", "in.img", "out.img"],
            "cannot convert in.img to out.img: holes of 1000 bytes: it must be a multiple of 512, up to 16777216",
        ),
        (
            &["convert", "-O", "vmdk", "-f", "raw", "in.img", "out.vmdk"],
            "cannot convert in.img to out.vmdk: vmdk images cannot be written by this version; raw, qbm and qcow2 \
             can",
        ),
        (
            &["convert", "-O", "qcow2", "-f", "raw", "in.img", "out.qcow2"],
            "cannot convert in.img to out.qcow2: a qcow2 cannot be 1000 bytes long: it must be a multiple of 512",
        ),
        (
            &["convert", "-O", "qcow2", "-f", "raw", "in.img", "short.img"],
            "cannot convert in.img to short.img: it exists already, and is not overwritten (-n overwrites what exists)",
        ),
        (
            &["convert", "-n", "-O", "qcow2", "-f", "raw", "in.img", "short.img"],
            "cannot convert in.img to short.img: a qcow2 image that exists cannot be written to; raw and qbm images can",
        ),
        (
            &["convert", "-c", "-f", "raw", "in.img", "out.img"],
            "-c: what is written is not compressed",
        ),
        (
            &["convert", "-l", "snap", "-f", "raw", "in.img", "out.img"],
            "-l: snapshots within an image cannot be read",
        ),
        (
            &["measure", "-o", "cluster_size=4k", "--size", "1M"],
            "cluster_size is of qcow2 images, not of raw ones",
        ),
    ] {
        refused(&room, args, line);
    }
}

#[test]
fn what_cannot_be_compared_has_an_exit_code_of_its_own() {
    let room = Room::new();
    room.write("in.img", &[1; 1000]);
    for args in [
        &["compare", "-f", "raw", "-F", "raw", "in.img", "missing.img"][..],
        &["compare", "-f", "raw", "-F", "raw", "missing.img", "in.img"],
        &["compare", "-f", "raw", "in.img", "in.img"],
        &["compare", "in.img"],
    ] {
        let (code, complaint) = room.fails(args);
        assert_eq!(code, 2, "{args:?}: {complaint}");
    }
}

#[test]
fn a_disk_in_use_is_read_only_by_force_and_never_written() {
    let room = Room::new();
    room.write("in.img", &[1; 1000]);
    room.done(&["create", "-q", "disk.qbm", "1000"]);
    let disk = Disk::open(room.path("disk.qbm")).expect("it opens");
    for source in [&["disk.qbm"][..], &["-f", "raw", "disk-data.img"]] {
        let (code, complaint) = room.fails(&[&["convert"], source, &["out.img"]].concat());
        assert_eq!(code, 1, "{complaint}");
        assert!(complaint.ends_with("(-U reads it all the same)\n"), "{complaint}");
        room.done(&[&["convert", "-q", "-U"], source, &["out.img"]].concat());
        assert_eq!(room.length("out.img"), 1000);
        std::fs::remove_file(room.path("out.img")).expect("removed");
    }
    drop(disk);
    // Whoever only reads keeps writers out.
    let disk = OpenOptions::new()
        .read_only(true)
        .open(room.path("disk.qbm"))
        .expect("it opens");
    for target in ["disk.qbm", "disk-data.img"] {
        let (_, complaint) = room.fails(&["convert", "-n", "-f", "raw", "in.img", target]);
        assert!(complaint.contains("cannot lock"), "{complaint}");
    }
    drop(disk);
    room.done(&["convert", "-q", "-n", "-f", "raw", "in.img", "disk.qbm"]);
}

#[test]
fn a_full_file_system_is_told_and_nothing_stays() {
    let room = Room::new();
    room.folder("small");
    let options = ["-t", "tmpfs", "-o", "size=2m", "tmpfs"].map(OsStr::new);
    let small = match Mounted::new(&options, &room.path("small")) {
        Ok(small) => small,
        Err(why) => return skip::skipped(format_args!("no small file system could be mounted: {why}")),
    };
    room.write("in.img", &vec![5; 8 << 20]);
    for (target, more) in [
        ("small/out.img", &[][..]),
        ("small/disk.qbm", &[]),
        ("small/out.img", &["-S", "0"]),
        ("small/out.img", &["-C"]),
        ("small/out.qcow2", &["-O", "qcow2"]),
        ("small/out.qcow2", &["-O", "qcow2", "-S", "0"]),
    ] {
        let args = [&["convert", "-f", "raw"], more, &["in.img", target]].concat();
        let (code, complaint) = room.fails(&args);
        assert_eq!(code, 1, "{args:?}");
        assert!(
            complaint.ends_with("No space left on device\n"),
            "{args:?}: {complaint}"
        );
        let left = std::fs::read_dir(small.folder()).expect("a folder").count();
        assert_eq!(left, 0, "{args:?} left something behind");
    }
    // There is room for the image, and none for what belongs to it.
    room.write("fits.img", &vec![5; (2 << 20) - 4096]);
    let (_, complaint) = room.fails(&["convert", "-f", "raw", "fits.img", "small/disk.qbm"]);
    assert!(complaint.contains("No space left on device"), "{complaint}");
    assert_eq!(std::fs::read_dir(small.folder()).expect("a folder").count(), 0);
}

#[test]
fn killed_at_any_moment_it_leaves_nothing_or_all() {
    let room = Room::new();
    let mut random = Random::new(Random::seed());
    scatter(&room, "in.img", 40_000_000, &mut random);
    room.write("dense.img", &vec![3; 40 << 20]);
    let (mut caught, mut whole) = (0, 0);
    for (source, target, image) in [
        ("in.img", "out.img", "out.img"),
        ("dense.img", "out.img", "out.img"),
        ("dense.img", "disk.qbm", "disk-data.img"),
    ] {
        let args = ["convert", "-q", "-f", "raw", source, target];
        let begun = Instant::now();
        room.done(&args);
        let usual = u64::try_from(begun.elapsed().as_micros()).expect("small");
        let content = room.read(source);
        let clear = || {
            for name in room.names() {
                if !["in.img", "dense.img"].contains(&&*name) {
                    std::fs::remove_file(room.path(&name)).expect("removed");
                }
            }
        };
        for _ in 0..40 {
            clear();
            let mut child = room
                .command(TOOL, &args)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("it starts");
            sleep(Duration::from_micros(random.below(usual + usual / 4)));
            caught += u32::from(child.try_wait().expect("its state").is_none());
            child.kill().expect("killed");
            child.wait().expect("gone");
            if room.names().iter().any(|name| name == target) {
                whole += 1;
                assert!(room.read(image) == content, "{target} is there in part");
                if target == "disk.qbm" {
                    room.done(&["check", "-q", target]);
                }
            } else if target == "out.img" {
                assert_eq!(room.names(), ["dense.img", "in.img"], "something is left behind");
            }
            // What may stay of a disk is what the next try does not trip over.
        }
        clear();
        room.done(&args);
        clear();
    }
    assert!(
        caught > 10 && whole > 0,
        "{caught} were caught at work, {whole} were whole"
    );
}

#[test]
fn what_cannot_be_read_or_written_is_an_error_and_leaves_nothing() {
    // Once is not enough: the shortest way to a file is tried, and then the ordinary one.
    let strace = |options: &[&str], room: &Room, args: &[&str]| {
        Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null"])
            .args(options)
            .arg("--")
            .arg(TOOL)
            .args(args)
            .current_dir(room.path("."))
            .output()
    };
    let room = Room::new();
    room.write("in.img", &vec![3; 8 << 20]);
    room.write("other.img", &vec![3; 8 << 20]);
    let args = ["convert", "-f", "raw", "-m", "2", "in.img", "out.img"];
    for (call, what) in [("pread64", "read"), ("pwrite64", "write")] {
        let inject = format!("inject={call}:error=EIO:when=8+");
        let Ok(output) = strace(&["-e", &inject], &room, &args) else {
            return skip::skipped("strace is not installed, so no system call was made to fail");
        };
        let complaint = text(&output.stderr);
        if complaint.contains("ptrace") {
            return skip::skipped(format_args!("strace: {complaint}"));
        }
        assert_eq!(output.status.code(), Some(1), "{call}: {complaint}");
        assert!(
            complaint.contains(what) && complaint.ends_with("Input/output error\n"),
            "{call}: {complaint}"
        );
        assert_eq!(room.names(), ["in.img", "other.img"]);
    }
    let compare = ["compare", "-f", "raw", "-F", "raw", "in.img", "other.img"];
    let output = strace(&["-e", "inject=pread64:error=EIO:when=8+"], &room, &compare).expect("it starts");
    assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
    let output = strace(&["-e", "inject=lseek:error=EIO:when=1+"], &room, &compare).expect("it starts");
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
}
