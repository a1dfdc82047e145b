//! The same end for QEMU: qemu-nbd on a qcow2 with a persistent bitmap. The comparison that README makes, measured.

use std::path::Path;
use std::process::{Command, Output};

use super::nbd::Server;
use super::skip::skipped;

fn run(command: &mut Command) -> Output {
    command.output().expect("QEMU's program runs")
}

fn must(command: &mut Command) -> String {
    let output = run(command);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What qemu-img says of the flags of the one bitmap.
fn flags(image: &Path) -> Vec<String> {
    let said = must(
        Command::new("qemu-img")
            .args(["info", "--output=json"])
            .arg(image),
    );
    let info: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let flags = info["format-specific"]["data"]["bitmaps"][0]["flags"].as_array();
    let flags = flags
        .expect("the flags of a bitmap")
        .iter()
        .filter_map(|flag| flag.as_str());
    flags.map(str::to_owned).collect()
}

#[test]
fn a_killed_qemu_leaves_a_bitmap_that_can_only_be_removed() {
    for program in ["qemu-img", "qemu-io", "qemu-nbd"] {
        if Command::new(program).arg("--version").output().is_err() {
            skipped(format_args!(
                "the comparison with QEMU: {program} is not installed"
            ));
            return;
        }
    }
    let version = must(Command::new("qemu-img").arg("--version"));
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("disk.qcow2");
    must(
        Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&image)
            .arg("8M"),
    );
    must(
        Command::new("qemu-img")
            .args(["bitmap", "--add"])
            .arg(&image)
            .arg("nightly"),
    );

    // A server that is asked to end keeps the bitmap: it is not the image that is at fault below.
    let write = |server: &Server| {
        let commands = ["-f", "raw", "-c", "write 0 64k", "-c", "flush"];
        must(Command::new("qemu-io").args(commands).arg(server.address()))
    };
    let server = Server::start(folder.path(), &["-f", "qcow2"], &image);
    write(&server);
    drop(server);
    assert_eq!(flags(&image), ["auto"], "after a clean end");

    let server = Server::start(folder.path(), &["-f", "qcow2"], &image);
    write(&server);
    server.kill();
    let flags = flags(&image);
    println!(
        "{}after SIGKILL: {flags:?}",
        version.split_inclusive('\n').next().unwrap_or_default()
    );
    assert!(flags.contains(&"in-use".to_owned()), "{flags:?}");
    let other = folder.path().join("other.qcow2");
    must(
        Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&other)
            .arg("8M"),
    );
    must(
        Command::new("qemu-img")
            .args(["bitmap", "--add"])
            .arg(&other)
            .arg("copy"),
    );
    let source = ["-b".as_ref(), image.as_os_str(), "-F".as_ref(), "qcow2".as_ref()];
    for (arguments, bitmap) in [
        (vec!["--clear".as_ref(), image.as_os_str()], "nightly"),
        (vec!["--enable".as_ref(), image.as_os_str()], "nightly"),
        // What a backup would do: take its bits.
        (
            [
                &["--merge".as_ref(), "nightly".as_ref()],
                &source[..],
                &[other.as_os_str()],
            ]
            .concat(),
            "copy",
        ),
    ] {
        let output = run(Command::new("qemu-img")
            .arg("bitmap")
            .args(&arguments)
            .arg(bitmap));
        let said = String::from_utf8_lossy(&output.stderr);
        println!(
            "qemu-img bitmap {}: {}",
            arguments[0].to_string_lossy(),
            said.trim()
        );
        assert!(
            !output.status.success() && said.contains("inconsistent"),
            "{arguments:?}: {said}"
        );
    }
    must(
        Command::new("qemu-img")
            .args(["bitmap", "--remove"])
            .arg(&image)
            .arg("nightly"),
    );
}
