//! A kill, and then a file system that is mounted again: its page cache is gone, and nobody vouches for what was in it.
//! Also where it has the bitmaps alone, or the image of an overlay, and the state file's own file system stayed.
//!
//! On ext4, xfs and btrfs, each on a loop device that stays attached, so that nothing but the mount differs.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use qbm::{CreateOptions, Disk, ErrorCode, Format, OpenOptions, Recovery};
use tempfile::TempDir;

use super::disk::{Active, BITMAPS, Found, LENGTH, Precision, Shape, check, path};
use super::log;
use super::loops::Loop;
use super::mounted::Mounted;
use super::run::run;
use super::skip::skipped;
use super::{LOOPS, Start, first_byte, is_exact, recovery, write_as_killed};

/// A file system to make: its name, the size of its device, and what makes it.
struct Kind(&'static str, u64, &'static [&'static str]);

const KINDS: [Kind; 3] = [
    Kind("ext4", 48 << 20, &["mkfs.ext4", "-q"]),
    Kind("xfs", 300 << 20, &["mkfs.xfs", "-q"]),
    Kind("btrfs", 128 << 20, &["mkfs.btrfs", "-q"]),
];

/// A mounted file system that can be mounted again.
struct System {
    // In the order in which they have to go.
    mounted: Option<Mounted>,
    device: Loop,
    at: PathBuf,
}

impl System {
    fn new(Kind(_, size, mkfs): &Kind, place: &Path, name: &str) -> Result<Self, String> {
        let (file, at) = (place.join(format!("{name}.device")), place.join(name));
        let made = File::create(&file).and_then(|file| file.set_len(*size));
        made.and_then(|()| std::fs::create_dir(&at)).expect("a place");
        run(Command::new(mkfs[0]).args(&mkfs[1..]).arg(&file))?;
        let device = Loop::new(&file, &[])?;
        let mounted = Some(Mounted::new(&[device.device().as_os_str()], &at)?);
        Ok(Self { mounted, device, at })
    }

    fn mount_again(&mut self) {
        self.mounted = None;
        let mounted = Mounted::new(&[self.device.device().as_os_str()], &self.at);
        self.mounted = Some(mounted.expect("it was mounted before"));
    }

    /// Nothing can be written any more, and the page cache stays.
    fn make_read_only(&self) {
        // A process that another test starts has our open files until it has become its program.
        for _ in 0..200 {
            match run(Command::new("mount").args(["-o", "remount,ro"]).arg(&self.at)) {
                Err(why) if why.contains("busy") => std::thread::sleep(Duration::from_millis(5)),
                done => return drop(done.expect("it is mounted")),
            }
        }
        panic!("{} stays busy", self.at.display());
    }

    fn new_folder(&self, name: &str) -> PathBuf {
        let folder = self.at.join(name);
        std::fs::create_dir(&folder).expect("a folder");
        folder
    }
}

/// For a disk, and for what lies elsewhere.
struct Systems {
    disk: System,
    other: System,
    _place: TempDir,
}

/// Two of each kind that this machine can mount.
fn systems() -> impl Iterator<Item = Systems> {
    let made = |kind: &Kind| {
        let place = tempfile::tempdir().expect("a folder");
        let disk = System::new(kind, place.path(), "disk")?;
        let other = System::new(kind, place.path(), "other")?;
        Ok(Systems {
            disk,
            other,
            _place: place,
        })
    };
    KINDS.iter().filter_map(move |kind| {
        let told = |why: &String| skipped(format_args!("kills on {} that is mounted again: {why}", kind.0));
        made(kind).inspect_err(told).ok()
    })
}

/// Makes the descriptor name a file by this path.
fn name_by(path: &Path, file: &str, now: &Path) {
    let descriptor = std::fs::read_to_string(path).expect("a descriptor");
    let quoted = |name: &str| format!("\"{name}\"");
    let other = descriptor.replace(&quoted(file), &quoted(now.to_str().expect("a name")));
    assert_ne!(other, descriptor, "it names {file}");
    std::fs::write(path, other).expect("a descriptor");
}

/// Kills a process on a new disk in `folder`, its bitmaps moved to `bitmaps`, has `then` happen, and opens the disk.
fn killed(folder: &Path, bitmaps: Option<&Path>, then: impl FnOnce()) -> Recovery {
    let shape = Shape::Raw;
    shape.create(folder);
    if let Some(bitmaps) = bitmaps {
        for kind in BITMAPS {
            let name = format!("disk-{}.bitmap", kind.name);
            let now = bitmaps.join(&name);
            std::fs::copy(folder.join(&name), &now).expect("a copy");
            std::fs::remove_file(folder.join(&name)).expect("a file");
            name_by(&path(folder), &name, &now);
        }
    }
    // Nothing is retired without a flush. And soon: where all bits are set none can be added.
    let start = Start {
        unflushed: true,
        ..Start::default()
    };
    start.killed_behind(log::has_written, folder, 1, Duration::ZERO);
    then();
    let active = Active::read(folder);
    let disk = Disk::open(path(folder)).expect("it opens after the kill");
    let recovery = recovery(&disk);
    let precision = if recovery.reason.is_none() {
        Precision::Exact
    } else {
        Precision::Regions(active)
    };
    check(
        &Found::new(shape),
        &log::read(folder),
        &Found::on(&disk),
        precision,
    )
    .unwrap_or_else(|wrong| panic!("{wrong}"));
    disk.close().expect("it closes");
    recovery
}

fn is_widened(recovery: &Recovery) -> bool {
    let reason = recovery.reason.as_deref().unwrap_or_default();
    reason.contains("a file system was mounted again") && !recovery.added.is_empty()
}

#[test]
fn bitmaps_whose_file_system_is_mounted_again_may_lack_bits() {
    let _alone = LOOPS.lock();
    for mut systems in systems() {
        let bitmaps = systems.other.new_folder("stays");
        let recovery = killed(&systems.disk.new_folder("stays"), Some(&bitmaps), || ());
        assert!(is_exact(&recovery), "{recovery:?}");

        let folder = systems.disk.new_folder("bitmaps");
        let bitmaps = systems.other.new_folder("bitmaps");
        let recovery = killed(&folder, Some(&bitmaps), || systems.other.mount_again());
        assert!(is_widened(&recovery), "the bitmaps': {recovery:?}");

        let folder = systems.disk.new_folder("whole");
        let recovery = killed(&folder, None, || systems.disk.mount_again());
        assert!(is_widened(&recovery), "the whole disk's: {recovery:?}");
    }
}

/// What nobody has flushed is known to the shadow alone, and a power cut may have taken it from the image.
#[test]
fn an_image_whose_file_system_is_mounted_again_may_lack_what_was_not_flushed() {
    let _alone = LOOPS.lock();
    for mut systems in systems() {
        let folder = systems.disk.new_folder("overlay");
        let path = path(&folder);
        std::fs::write(folder.join("base.img"), vec![0xbb; 1 << 20]).expect("a backing");
        CreateOptions::new()
            .size(LENGTH)
            .backing("base.img", Format::Raw)
            .create(&path)
            .expect("a disk");
        let image = systems.other.new_folder("overlay").join("image");
        std::fs::rename(folder.join("disk-data.img"), folder.join("moved")).expect("an image");
        std::fs::copy(folder.join("moved"), &image).expect("a copy");
        name_by(&path, "disk-data.img", &image);
        write_as_killed(&path);
        systems.other.mount_again();
        assert_eq!(first_byte(&path), 0xbb);
    }
}

/// What each file in a folder has, and the times of its last changes.
fn files(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, [i64; 4])> {
    let entries = std::fs::read_dir(folder).expect("the folder");
    let look = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.expect("a file").path();
        let it = path.metadata().expect("its facts");
        let times = [it.mtime(), it.mtime_nsec(), it.ctime(), it.ctime_nsec()];
        (path.clone(), (std::fs::read(path).expect("its content"), times))
    };
    entries.map(look).collect()
}

/// It recovers in memory alone: where files could be changed, and where nothing can.
#[test]
fn whoever_only_reads_a_killed_disk_changes_no_file_nor_its_times() {
    let _alone = LOOPS.lock();
    for systems in systems() {
        let shapes = [Shape::Raw, Shape::Overlay];
        let killed = shapes.map(|shape| {
            let folder = systems.disk.new_folder(&format!("{shape:?}"));
            shape.create(&folder);
            let start = Start {
                unflushed: true,
                ..Start::default()
            };
            start.killed_behind(log::has_written, &folder, 1, Duration::ZERO);
            let before = files(&folder);
            (shape, folder, before)
        });
        for read_only_mount in [false, true] {
            if read_only_mount {
                systems.disk.make_read_only();
            }
            for (shape, folder, before) in &killed {
                // Nothing vouches for the page cache the second time: bits are added, in memory.
                for epoch in [None, Some("another")] {
                    let options = OpenOptions::new().read_only(true);
                    let options = match epoch {
                        Some(epoch) => options.cache_epoch(epoch),
                        None => options,
                    };
                    let disk = options.open(path(folder)).expect("it opens after the kill");
                    let recovery = recovery(&disk);
                    assert_eq!(is_exact(&recovery), epoch.is_none(), "{recovery:?}");
                    if epoch.is_none() {
                        check(
                            &Found::new(*shape),
                            &log::read(folder),
                            &Found::on(&disk),
                            Precision::Exact,
                        )
                        .unwrap_or_else(|wrong| panic!("{shape:?}: {wrong}"));
                    }
                    disk.close().expect("it closes");
                    // Not by the text of them, which is long.
                    assert!(
                        files(folder) == *before,
                        "{shape:?}, {epoch:?}, read-only: {read_only_mount}"
                    );
                }
            }
        }
        for (_, folder, before) in &killed {
            let refused = Disk::open(path(folder))
                .map(drop)
                .expect_err("a disk to write to");
            assert_eq!(refused.code(), ErrorCode::ReadOnly, "{refused}");
            assert!(files(folder) == *before);
        }
    }
}
