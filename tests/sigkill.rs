//! SIGKILL, for real: a process with four threads on a disk is killed at random moments, and what it leaves is held
//! against what it said to be doing. On tmpfs and on a file system on a disk; where there are neither, anywhere, with a
//! `cache_epoch` that vouches.
//!
//! After such an end the page cache lives on, so everything must be there that was acknowledged (A3), each change must
//! have its bit (D1), and no bit may be there without a change (D2), flushed or not. `QBM_LONG=1` kills ten times as
//! often; `QBM_SEED` repeats a run's choices, though not its timing.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers beside the tests may fail as loudly as the tests"
)]

#[path = "sigkill/disk.rs"]
mod disk;
#[path = "common/faults.rs"]
mod faults;
#[cfg(feature = "faults")]
#[path = "sigkill/lacking.rs"]
mod lacking;
#[path = "sigkill/log.rs"]
mod log;
#[path = "common/loops.rs"]
mod loops;
#[path = "common/mounted.rs"]
mod mounted;
#[path = "common/nbd.rs"]
mod nbd;
#[path = "sigkill/qemu.rs"]
mod qemu;
#[path = "common/random.rs"]
mod random;
#[path = "sigkill/remounted.rs"]
mod remounted;
#[path = "common/run.rs"]
mod run;
#[path = "common/skip.rs"]
mod skip;
#[path = "common/units.rs"]
mod units;
#[path = "sigkill/worker.rs"]
mod worker;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use disk::{Active, Found, LENGTH, Precision, Shape, check, path};
use loops::Loop;
use mounted::Mounted;
use qbm::{CreateOptions, Disk, Format, NoticeCode, OpenOptions, Recovery, WriteFlags};
use random::Random;
use skip::skipped;
use tempfile::TempDir;

/// Of each kind of disk, on all file systems together: so many, and more until so many of them have hit a disk in use.
const KILLS: u64 = 240;
const UNCLEAN: u64 = 200;

/// Who has it attaches and detaches loop devices alone, so that he gets the one back that he has just given up.
static LOOPS: Mutex<()> = Mutex::new(());

/// How a process is started.
#[derive(Clone, Copy, Default)]
struct Start<'s> {
    namespace: bool,
    /// An empty file system lies over this folder: the kernel tells nothing there.
    hidden: Option<&'s str>,
    epoch: Option<&'s str>,
    lazy: bool,
    unflushed: bool,
    /// So many units are written to: fewer than there are, so that writers meet.
    room: Option<u64>,
    /// Which protection the process lacks.
    fault: Option<&'s str>,
}

/// Not a test by itself: what the tests below start, and kill.
#[test]
fn the_process_that_is_killed() {
    if let Some(folder) = std::env::var_os(worker::FOLDER) {
        faults::put_in();
        worker::work(Path::new(&folder));
    }
}

impl Start<'_> {
    fn process(self, folder: &Path, seed: u64) -> Child {
        log::remove(folder);
        let program = std::env::current_exe().expect("the path of this program");
        let mut command = if self.namespace || self.hidden.is_some() {
            let mut command = Command::new("unshare");
            command.args(["-m", "--"]);
            if let Some(folder) = self.hidden {
                let hide = "mount -t tmpfs none \"$1\" && shift && exec \"$@\"";
                command.args(["sh", "-c", hide, "sh", folder]);
            }
            command.arg(program);
            command
        } else {
            Command::new(program)
        };
        command
            .args(["--exact", "the_process_that_is_killed", "--nocapture"])
            .env(worker::FOLDER, folder)
            .env(worker::SEED, seed.to_string());
        if let Some(epoch) = self.epoch {
            command.env(worker::EPOCH, epoch);
        }
        if self.lazy {
            command.env(worker::LAZY, "1");
        }
        if self.unflushed {
            command.env(worker::UNFLUSHED, "1");
        }
        if let Some(units) = self.room {
            command.env(worker::ROOM, units.to_string());
        }
        if let Some(fault) = self.fault {
            command.env(faults::NAME, fault);
        }
        let process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        process.expect("this program starts again")
    }

    /// Starts one, and kills it some time after it has opened the disk.
    fn killed(self, folder: &Path, seed: u64, after: Duration) {
        self.killed_behind(log::is_open, folder, seed, after);
    }

    /// Starts one, and kills it some time after it has said so much.
    fn killed_behind(self, said: impl Fn(&Path) -> bool, folder: &Path, seed: u64, after: Duration) {
        let mut process = self.process(folder, seed);
        let patience = Instant::now() + Duration::from_secs(60);
        while !said(folder) && process.try_wait().expect("its state").is_none() {
            assert!(Instant::now() < patience, "the process gets nowhere");
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(after);
        end(process);
    }
}

/// Kills it. It must have been alive: a process that fails by itself has failed the test.
fn end(mut process: Child) {
    process.kill().expect("a kill");
    let output = process.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code().is_none(),
        "it failed before it was killed:\n{said}"
    );
}

/// What the kernel calls the file system that a folder lies on.
fn file_system(folder: &Path) -> String {
    let output = Command::new("stat").args(["-f", "-c", "%T"]).arg(folder).output();
    let output = output.map(|it| String::from_utf8_lossy(&it.stdout).trim().to_owned());
    output.unwrap_or_default()
}

/// A folder on tmpfs and one on a disk, where there are such.
fn folders() -> Vec<TempDir> {
    let usable = |places: &[&str], systems: &[&str]| {
        let place = places
            .iter()
            .find(|it| systems.contains(&&*file_system(Path::new(it))));
        if place.is_none() {
            skipped(format_args!(
                "kills on {}: {places:?} lie on none",
                systems.join(" or ")
            ));
        }
        place.map(|place| tempfile::tempdir_in(place).expect("a folder"))
    };
    let temporary = std::env::temp_dir();
    let on_disk = [
        env!("CARGO_TARGET_TMPDIR"),
        temporary.to_str().unwrap_or_default(),
    ];
    [
        usable(&["/dev/shm", "/run", "/tmp"], &["tmpfs"]),
        usable(&on_disk, &["ext2/ext3", "xfs", "btrfs"]),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Where a disk is killed again and again.
struct Places {
    folders: Vec<TempDir>,
    /// What vouches for the page cache where no file system does.
    epoch: Option<&'static str>,
    /// On each.
    kills: u64,
    unclean: u64,
}

impl Places {
    /// However few there are, all kills take place.
    fn find() -> Self {
        let (mut folders, mut epoch) = (folders(), None);
        if folders.is_empty() {
            folders.push(tempfile::tempdir().expect("a folder"));
            epoch = Some("boot 1");
        }
        let long = std::env::var_os("QBM_LONG").is_some();
        let times = if long { 10 } else { 1 };
        let on_each = |count: u64| (times * count).div_ceil(folders.len() as u64);
        Self {
            kills: on_each(KILLS),
            unclean: on_each(UNCLEAN),
            folders,
            epoch,
        }
    }

    fn options(&self) -> OpenOptions {
        let options = OpenOptions::new();
        match self.epoch {
            Some(epoch) => options.cache_epoch(epoch),
            None => options,
        }
    }
}

#[test]
fn killed_at_random_moments() {
    kill_on_every_file_system(Shape::Raw);
}

/// What an overlay has taken without a flush is known to the shadow of its allocation bits alone.
#[test]
fn an_overlay_is_killed_at_random_moments() {
    kill_on_every_file_system(Shape::Overlay);
}

fn kill_on_every_file_system(shape: Shape<'_>) {
    let seed = Random::seed();
    let places = Places::find();
    std::thread::scope(|scope| {
        for folder in &places.folders {
            let places = &places;
            scope.spawn(|| kill_again_and_again(places, folder.path(), shape, seed));
        }
    });
}

/// One disk all the way: what a kill leaves is what the next process works on.
fn kill_again_and_again(places: &Places, folder: &Path, shape: Shape<'_>, seed: u64) {
    let mut random = Random::new(seed);
    shape.create(folder);
    let mut before = Found::new(shape);
    let (mut round, mut unclean, mut acts) = (0, 0, 0);
    while round < places.kills || unclean < places.unclean {
        assert!(
            round < 4 * places.kills,
            "only {unclean} of {round} kills hit a disk in use"
        );
        round += 1;
        let start = Start {
            epoch: places.epoch,
            unflushed: shape == Shape::Overlay && random.one_in(2),
            ..Start::default()
        };
        if random.one_in(8) {
            // Mostly while the disk is being opened, or recovered.
            let process = start.process(folder, round);
            std::thread::sleep(Duration::from_micros(random.below(20_000)));
            end(process);
        } else {
            start.killed(folder, round, Duration::from_micros(random.below(40_000)));
        }
        let events = log::read(folder);
        acts += events.len();
        let read_only = random.one_in(3).then(|| places.options().read_only(true));
        for options in read_only.into_iter().chain([places.options()]) {
            let disk = options.open(path(folder)).expect("it opens after the kill");
            let recovery = disk.info().expect("facts").recovery;
            assert!(recovery.iter().all(is_exact), "round {round}: {recovery:?}");
            let found = Found::on(&disk);
            check(&before, &events, &found, Precision::Exact)
                .unwrap_or_else(|wrong| panic!("round {round} on {}: {wrong}", file_system(folder)));
            if disk.info().expect("facts").writable {
                unclean += u64::from(recovery.is_some());
                before = found;
                // If not, recovery was the last that happened to the disk.
                if random.one_in(2) {
                    disk.close().expect("it closes");
                }
            }
        }
    }
    println!(
        "{shape:?} on {}: {round} kills, {unclean} of an unclean disk, {acts} acts",
        file_system(folder)
    );
}

fn is_exact(recovery: &Recovery) -> bool {
    recovery.reason.is_none() && recovery.added.is_empty()
}

/// Kills a process on a new disk, and opens it with `options`, where nothing has more bits than written or, if it is not
/// `exact`, active. Returns the disk and the notices.
fn once(
    folder: &Path,
    shape: Shape<'_>,
    start: Start<'_>,
    options: OpenOptions,
    exact: bool,
) -> (Disk, Vec<NoticeCode>) {
    shape.create(folder);
    start.killed(folder, 1, Duration::from_millis(40));
    let precision = if exact {
        Precision::Exact
    } else {
        Precision::Regions(Active::read(folder))
    };
    let notices = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&notices);
    let options = options.notify(move |notice| heard.lock().expect("a list").push(notice.code));
    let disk = options.open(path(folder)).expect("it opens after the kill");
    let events = log::read(folder);
    let found = Found::on(&disk);
    check(&Found::new(shape), &events, &found, precision).unwrap_or_else(|wrong| panic!("{wrong}"));
    let notices = notices.lock().expect("a list").clone();
    (disk, notices)
}

fn recovery(disk: &Disk) -> Recovery {
    disk.info()
        .expect("facts")
        .recovery
        .expect("the disk was not closed")
}

/// Whether a process can have a mount namespace of its own, and run `mount` there with these arguments.
fn can_unshare(mount: &str) -> bool {
    let output = Command::new("unshare").args(["-m", "sh", "-c", mount]).output();
    output.is_ok_and(|output| output.status.success())
}

#[test]
fn the_next_process_may_be_in_another_mount_namespace() {
    if !can_unshare("true") {
        skipped("kills in another mount namespace: unshare -m is not permitted here");
        return;
    }
    for folder in folders() {
        let start = Start {
            namespace: true,
            ..Start::default()
        };
        for shape in [Shape::Raw, Shape::Overlay] {
            let folder = tempfile::tempdir_in(folder.path()).expect("a folder");
            let (disk, notices) = once(folder.path(), shape, start, OpenOptions::new(), true);
            assert!(is_exact(&recovery(&disk)), "{:?}", recovery(&disk));
            assert!(notices.is_empty());
        }
    }
}

/// Without the boot id nothing vouches for any page cache, and without sysfs for that of a file system on a disk: regions are
/// added, and no bit is lost. The id of a tmpfs comes from elsewhere.
#[test]
fn a_process_that_the_kernel_tells_nothing_leaves_no_evidence() {
    for hidden in ["/proc", "/sys"] {
        if !can_unshare(&format!("mount -t tmpfs none {hidden}")) {
            skipped(format_args!("kills without {hidden}: it cannot be hidden here"));
            continue;
        }
        for folder in folders() {
            let start = Start {
                hidden: Some(hidden),
                ..Start::default()
            };
            let told = hidden == "/sys" && file_system(folder.path()) == "tmpfs";
            let place = tempfile::tempdir_in(folder.path()).expect("a folder");
            let (disk, _) = once(place.path(), Shape::Raw, start, OpenOptions::new(), told);
            let recovery = recovery(&disk);
            assert_eq!(recovery.reason.is_none(), told, "without {hidden}: {recovery:?}");
        }
    }
}

/// A block device has a page cache of its own.
#[test]
fn the_image_may_be_a_block_device() {
    let places = Places::find();
    for folder in &places.folders {
        let file = folder.path().join("device");
        let made = std::fs::File::create(&file).and_then(|it| it.set_len(LENGTH));
        made.expect("a file");
        let device = match Loop::new(&file, &[]) {
            Ok(device) => device,
            Err(why) => return skipped(format_args!("kills on a block device: {why}")),
        };
        let shape = Shape::Device(device.device());
        kill_again_and_again(&places, folder.path(), shape, Random::seed());
        forget_what_was_attached(folder.path(), &file, device);
    }
}

/// Writes 0x77 to the beginning of an overlay, which is then shown.
fn write_as_killed(path: &Path) {
    let disk = Disk::open(path).expect("it opens");
    disk.write(&[0x77; 512], 0, WriteFlags::empty()).expect("a write");
    // As a kill does.
    disk.die();
    assert_eq!(first_byte(path), 0x77);
}

fn first_byte(path: &Path) -> u8 {
    let disk = OpenOptions::new().read_only(true).open(path);
    let mut byte = [0];
    disk.and_then(|it| it.read(&mut byte, 0)).expect("a read");
    byte[0]
}

/// What an overlay was given and nobody has flushed is there after a kill. When the device has been attached again, nothing
/// vouches for what was in its page cache.
fn forget_what_was_attached(folder: &Path, file: &Path, device: Loop) {
    let name = device.device().to_owned();
    let path = folder.join("overlay.qbm");
    std::fs::write(folder.join("base.img"), vec![0xbb; 1 << 20]).expect("a backing");
    CreateOptions::new()
        .size(LENGTH)
        .backing("base.img", Format::Raw)
        .create(&path)
        .expect("a disk");
    let descriptor = std::fs::read_to_string(&path).expect("a descriptor");
    let image = name.to_str().expect("a name");
    std::fs::write(&path, descriptor.replace("overlay-data.img", image)).expect("a descriptor");
    write_as_killed(&path);
    let _alone = LOOPS.lock();
    drop(device);
    let device = Loop::new(file, &[]).expect("it was attached before");
    if device.device() == name {
        assert_eq!(first_byte(&path), 0xbb);
    } else {
        skipped("a device that is attached again: somebody else has taken it");
    }
}

#[test]
fn another_cache_epoch_is_a_lost_page_cache() {
    for folder in folders() {
        let start = Start {
            epoch: Some("boot 1"),
            ..Start::default()
        };
        // A process that has just flushed, or not yet written, leaves nothing to be added.
        let tries = (0..20).map(|_| tempfile::tempdir_in(folder.path()).expect("a folder"));
        let widened = tries.into_iter().any(|folder| {
            let options = OpenOptions::new().cache_epoch("boot 2");
            let (disk, notices) = once(folder.path(), Shape::Raw, start, options, false);
            let recovery = recovery(&disk);
            assert!(recovery.reason.is_some(), "{recovery:?}");
            let told = notices.contains(&NoticeCode::BitmapWidened);
            assert_eq!(told, !recovery.added.is_empty(), "{recovery:?}, and {notices:?}");
            told
        });
        assert!(widened, "nothing was ever added");
    }
}

#[test]
fn the_same_cache_epoch_vouches_on_any_file_system() {
    let place = tempfile::tempdir().expect("a folder");
    let mounted = match Mounted::new(&["-t", "ramfs", "ramfs"].map(str::as_ref), place.path()) {
        Ok(mounted) => mounted,
        Err(why) => return skipped(format_args!("kills on ramfs: {why}")),
    };
    let folder = |name: &str| {
        let folder = mounted.folder().join(name);
        std::fs::create_dir(&folder).expect("a folder");
        folder
    };
    let start = Start {
        epoch: Some("boot 1"),
        ..Start::default()
    };
    let options = OpenOptions::new().cache_epoch("boot 1");
    let (disk, notices) = once(&folder("epoch"), Shape::Overlay, start, options, true);
    assert!(is_exact(&recovery(&disk)), "{:?}", recovery(&disk));
    assert!(notices.is_empty());

    // Of this file system nothing is known that would tell.
    let (disk, _) = once(
        &folder("none"),
        Shape::Raw,
        Start::default(),
        OpenOptions::new(),
        false,
    );
    assert!(recovery(&disk).reason.is_some());
}

#[test]
fn lazily_saved_bitmaps_lose_no_bit() {
    for folder in folders() {
        let start = Start {
            lazy: true,
            ..Start::default()
        };
        let (disk, _) = once(folder.path(), Shape::Raw, start, OpenOptions::new(), false);
        let recovery = recovery(&disk);
        assert!(recovery.reason.is_some_and(|reason| reason.contains("lazily")));
    }
}
