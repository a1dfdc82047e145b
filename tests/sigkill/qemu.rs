//! The same end for QEMU: qemu-nbd on a qcow2 with a persistent bitmap. The comparison that README makes, measured.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use super::nbd::Server;
use super::random::Random;
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

fn can() -> bool {
    for program in ["qemu-img", "qemu-io", "qemu-nbd"] {
        if Command::new(program).arg("--version").output().is_err() {
            skipped(format_args!(
                "the comparison with QEMU: {program} is not installed"
            ));
            return false;
        }
    }
    true
}

/// A new qcow2 with a bitmap.
fn create(folder: &Path, name: &str, bitmap: &str) -> PathBuf {
    let image = folder.join(name);
    let make = ["create", "-q", "-f", "qcow2"];
    must(Command::new("qemu-img").args(make).arg(&image).arg("8M"));
    must(
        Command::new("qemu-img")
            .args(["bitmap", "--add"])
            .arg(&image)
            .arg(bitmap),
    );
    image
}

/// As ours is killed: at random moments, while a guest writes. Each time on a new image, for a bitmap that was lost once does
/// not come back.
#[test]
fn a_qemu_that_is_killed_at_random_moments_keeps_no_bitmap() {
    const KILLS: u64 = 20;
    if !can() {
        return;
    }
    let mut random = Random::new(Random::seed());
    let folder = tempfile::tempdir().expect("a folder");
    let (mut lost, mut written) = (0, 0);
    for round in 0..KILLS {
        let image = create(folder.path(), &format!("{round}.qcow2"), "nightly");
        let server = Server::start(folder.path(), &["-f", "qcow2"], &image);
        let guest = Command::new("qemu-io")
            .args(["-f", "raw", &server.address()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut guest = guest.expect("qemu-io");
        let input = guest.stdin.take();
        let commands: Vec<String> = (0..5000)
            .map(|_| format!("write {} 4096\n", random.below(2048) * 4096))
            .collect();
        let script = commands.concat();
        // It stops reading when the server is gone.
        let feeder = std::thread::spawn(move || {
            let _ = input.expect("its input").write_all(script.as_bytes());
        });
        std::thread::sleep(Duration::from_micros(20_000 + random.below(80_000)));
        server.kill();
        let _ = guest.kill();
        let said = guest.wait_with_output().expect("its end");
        feeder.join().expect("the script");
        written += u64::from(String::from_utf8_lossy(&said.stdout).contains("wrote 4096/4096"));
        lost += u64::from(flags(&image).contains(&"in-use".to_owned()));
    }
    println!("QEMU: {KILLS} kills, {written} after a write was answered, {lost} bitmaps lost");
    assert!(
        written > KILLS / 2,
        "only {written} kills came while a guest wrote"
    );
    assert_eq!(lost, KILLS, "README says that all are");
}

#[test]
fn a_killed_qemu_leaves_a_bitmap_that_can_only_be_removed() {
    if !can() {
        return;
    }
    let version = must(Command::new("qemu-img").arg("--version"));
    let folder = tempfile::tempdir().expect("a folder");
    let image = create(folder.path(), "disk.qcow2", "nightly");

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
    let other = create(folder.path(), "other.qcow2", "copy");
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
