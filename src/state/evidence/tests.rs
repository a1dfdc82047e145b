use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::skip::skipped;
use crate::storage::simulated::SimDisk;
use crate::storage::{Access, FileStorage, Folder, Role};

/// Any evidence that a header may hold.
pub(in crate::state) fn some_evidence() -> impl Strategy<Value = Option<Evidence>> {
    let witness = (any::<u32>(), any::<u64>(), any::<u64>()).prop_map(|(magic, superblock, id)| Witness {
        magic,
        superblock,
        id,
    });
    let witnesses = proptest::collection::vec(witness, 1..=MAX_WITNESSES);
    let cache = (any::<[u8; 16]>(), any::<(u64, (i64, u32))>(), witnesses).prop_map(
        |(boot, (inode, born), witnesses)| Kind::PageCache {
            boot,
            original: Original { inode, born },
            witnesses,
        },
    );
    let epoch = "[a-z0-9]{1,256}".prop_map(Kind::Epoch);
    proptest::option::of(prop_oneof![cache, epoch].prop_map(Evidence))
}

fn open(path: &Path) -> FileStorage {
    FileStorage::open(path, Access::default()).unwrap()
}

fn new_file(path: &Path) -> FileStorage {
    fs::write(path, b"state").unwrap();
    open(path)
}

fn gather(path: &Path) -> Result<Evidence, NoEvidence> {
    let storage = open(path);
    Evidence::gather(&storage, [&storage as &dyn Storage])
}

/// Set in the environment of a child that only prints the evidence of a file.
const ASK: &str = "QBM_TEST_EVIDENCE_OF";

/// What the test below, run in another process by `program`, finds.
fn ask_in(program: &mut Command, path: &Path) -> Option<String> {
    let output = program
        .arg(std::env::current_exe().unwrap())
        .args([
            "state::evidence::tests::prints_evidence_for_another_test",
            "--exact",
            "--nocapture",
        ])
        .env(ASK, path)
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .find_map(|line| line.split_once("EVIDENCE "))
        .map(|(_, it)| it.to_owned())
}

#[test]
fn prints_evidence_for_another_test() {
    if let Some(path) = std::env::var_os(ASK) {
        println!("\nEVIDENCE {:?}", gather(Path::new(&path)));
    }
}

/// A service that is started again in a private mount namespace must still match.
#[test]
fn another_mount_namespace_matches() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    new_file(&path);
    let here = gather(&path);
    if let Err(why) = &here {
        skipped(format_args!("no evidence on this file system: {why}"));
        return;
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--propagation", "private"]);
    match ask_in(&mut unshare, &path) {
        Some(there) => assert_eq!(there, format!("{here:?}")),
        None => skipped("`unshare --mount` is not permitted here"),
    }
}

/// A container whose boot id is a file that was mounted there has no evidence, as it would agree after the next boot.
#[test]
fn a_boot_id_that_was_mounted_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let (path, id) = (dir.path().join("s"), dir.path().join("id"));
    new_file(&path);
    fs::write(&id, "6f1c29d4-0b7e-4c38-9a55-d2e8f1047b63\n").unwrap();
    let script = r#"mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@""#;
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--propagation", "private", "sh", "-c", script]);
    match ask_in(unshare.arg(&id), &path) {
        Some(there) => assert!(there.contains("boot_id is not the kernel's own"), "{there}"),
        None => skipped("`unshare --mount` and a mount are not permitted here"),
    }
}

/// Signals interrupt some file systems' answers to `statfs`.
#[test]
fn interrupted_questions_are_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    new_file(&path);
    let mut strace = Command::new("strace");
    strace.args([
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "inject=fstatfs:error=EINTR:when=1+2",
    ]);
    match ask_in(&mut strace, &path) {
        Some(there) => assert_eq!(there, format!("{:?}", gather(&path))),
        None => skipped("no strace here, or it is not permitted"),
    }
}

/// Mounts `source`, runs `test` on the mount point, and unmounts.
fn mounted<T>(arguments: &[&str], source: &Path, at: &Path, test: impl FnOnce(&Path) -> T) -> Option<T> {
    let run = Command::new("mount").args(arguments).arg(source).arg(at).output();
    if !run.as_ref().is_ok_and(|output| output.status.success()) {
        skipped(format_args!("cannot mount here: {run:?}"));
        return None;
    }
    let result = test(at);
    let done = Command::new("umount").arg(at).status().unwrap();
    assert!(done.success());
    Some(result)
}

/// What the kernel keeps of a file system goes at the unmount, and the page cache with it: the next mount of the same
/// file system, on the same device, must not match.
#[test]
fn the_next_mount_does_not_match() {
    for (kind, make, megabytes) in [
        ("ext4", &["mkfs.ext4", "-qF"][..], 16),
        ("xfs", &["mkfs.xfs", "-qf"][..], 320),
        ("btrfs", &["mkfs.btrfs", "-qf"][..], 128),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (image, at) = (dir.path().join("fs.img"), dir.path().join("m"));
        fs::create_dir(&at).unwrap();
        fs::File::create(&image)
            .unwrap()
            .set_len(megabytes << 20)
            .unwrap();
        let made = Command::new(make[0]).args(&make[1..]).arg(&image).output();
        if !made.as_ref().is_ok_and(|output| output.status.success()) {
            skipped(format_args!("{kind}: cannot make one: {made:?}"));
            continue;
        }
        let path = at.join("s");
        let options = ["-t", kind, "-o", "loop"];
        let Some((first, same)) = mounted(&options, &image, &at, |_| {
            new_file(&path);
            (gather(&path).unwrap(), gather(&path).unwrap())
        }) else {
            continue;
        };
        assert_eq!(first.difference(&same), None, "{kind}");
        let second = mounted(&options, &image, &at, |_| gather(&path).unwrap()).unwrap();
        assert_eq!(
            first.difference(&second).as_deref(),
            Some("a file system was mounted again, or the files were moved to another one"),
            "{kind}"
        );
    }
}

#[test]
fn the_next_tmpfs_does_not_match() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("m");
    fs::create_dir(&at).unwrap();
    let mut seen = Vec::new();
    for _ in 0..2 {
        let gathered = mounted(&["-t", "tmpfs"], Path::new("tmpfs"), &at, |at| {
            new_file(&at.join("s"));
            gather(&at.join("s"))
        });
        match gathered {
            Some(Ok(evidence)) => seen.push(evidence),
            Some(Err(why)) => return skipped(why),
            None => return,
        }
    }
    assert!(seen[0].difference(&seen[1]).is_some());
    let witnesses = |evidence: &Evidence| match &evidence.0 {
        Kind::PageCache { witnesses, .. } => witnesses.clone(),
        Kind::Epoch(_) => Vec::new(),
    };
    // Not by the file's inode and time of birth alone: bitmap files have only the witness.
    assert_ne!(witnesses(&seen[0]), witnesses(&seen[1]));
}

/// A copy is what a snapshot or a backup took at some moment: torn, if it was taken of a disk in use.
#[test]
fn a_copied_state_file_does_not_match() {
    let dir = tempfile::tempdir().unwrap();
    let (path, copy) = (dir.path().join("s"), dir.path().join("t"));
    new_file(&path);
    fs::copy(&path, &copy).unwrap();
    let (Ok(then), Ok(now)) = (gather(&path), gather(&copy)) else {
        return skipped("no evidence on this file system");
    };
    assert_eq!(
        then.difference(&now).as_deref(),
        Some("the state file is a copy of the one that was used")
    );
    fs::rename(&path, dir.path().join("renamed")).unwrap();
    assert_eq!(
        then.difference(&gather(&dir.path().join("renamed")).unwrap()),
        None
    );
}

#[test]
fn where_the_kernel_does_not_tell_there_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let state = new_file(&dir.path().join("s"));
    let boot_id = dir.path().join("boot_id");
    let gather = |sources: &Sources| Evidence::gather_from(sources, &state, []);
    let said = |sources: &Sources| gather(sources).unwrap_err().to_string();

    let no_proc = Sources {
        boot_id: boot_id.clone(),
        ..Sources::default()
    };
    assert!(said(&no_proc).ends_with("boot_id: No such file or directory"));
    for text in ["", "what?", "00000000-0000-0000-0000-000000000000\n"] {
        assert_eq!(id_in(text), None, "{text:?}");
    }
    // One that somebody has put there.
    fs::write(&boot_id, "6f1c29d4-0b7e-4c38-9a55-d2e8f1047b63\n").unwrap();
    assert!(said(&no_proc).ends_with("boot_id is not the kernel's own"));
    if let Ok(real) = gather(&Sources::default()) {
        let mut other = real.clone();
        if let Kind::PageCache { boot, .. } = &mut other.0 {
            *boot = id_in("6f1c29d4-0b7e-4c38-9a55-d2e8f1047b63\n").unwrap();
        }
        assert_eq!(
            real.difference(&other).as_deref(),
            Some("the machine was started again")
        );
    }

    // Without /sys, and with a folder in its place that is none of the kernel's.
    let sys = dir.path().join("sys");
    let no_sys = Sources {
        sys: sys.clone(),
        ..Sources::default()
    };
    let found = sys::file_system(state.host_file().unwrap()).unwrap();
    if found.magic == EXT4 {
        assert!(said(&no_sys).contains("/sys/dev/block/"), "{}", said(&no_sys));
        let device = fs::metadata(dir.path()).unwrap().dev();
        let name = format!("{}:{}", libc::major(device), libc::minor(device));
        fs::create_dir_all(sys.join("dev/block")).unwrap();
        fs::create_dir_all(sys.join("fs/ext4/sda")).unwrap();
        std::os::unix::fs::symlink("../../devices/sda", sys.join("dev/block").join(name)).unwrap();
        assert!(said(&no_sys).ends_with("fs/ext4/sda is not the kernel's own"));
    }
}

#[test]
fn other_file_systems_have_none() {
    // procfs stands for every kind that is not in the list.
    let proc = fs::File::open("/proc/self/status").unwrap();
    let why = witness(&Sources::default(), proc.as_fd())
        .unwrap_err()
        .to_string();
    assert_eq!(
        why,
        "the file system is of a kind (magic number 0x9fa0) that does not tell whether it was mounted again"
    );
    let simulated = SimDisk::new().create(Role::State, Path::new("s")).unwrap();
    let why = Evidence::gather(&*simulated, []).unwrap_err().to_string();
    assert_eq!(why, "a file of the disk is no file of this host");
}

/// A bitmap on a file system that was not there when the evidence was kept has none; one that went away does no harm.
#[test]
fn every_file_system_must_have_been_there() {
    let witness = |superblock| Witness {
        magic: EXT4,
        superblock,
        id: 1,
    };
    let of = |superblocks: &[u64]| {
        Evidence(Kind::PageCache {
            boot: [1; 16],
            original: Original {
                inode: 1,
                born: (1, 1),
            },
            witnesses: superblocks.iter().copied().map(witness).collect(),
        })
    };
    assert_eq!(of(&[1, 2]).difference(&of(&[1, 2])), None);
    assert_eq!(of(&[1, 2]).difference(&of(&[1])), None);
    assert!(of(&[1]).difference(&of(&[1, 2])).is_some());
}

#[test]
fn a_supervisor_s_epoch_stands_alone() {
    let of = |epoch: &str| Evidence::of_epoch(epoch).unwrap();
    assert_eq!(of("a").difference(&of("a")), None);
    assert_eq!(
        of("a").difference(&of("b")).as_deref(),
        Some(r#"the cache epoch was "a" and is "b""#)
    );
    for wrong in [String::new(), "x".repeat(257)] {
        let error = Evidence::of_epoch(&wrong).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
    }
    let dir = tempfile::tempdir().unwrap();
    new_file(&dir.path().join("s"));
    if let Ok(kernel) = gather(&dir.path().join("s")) {
        assert_eq!(
            kernel.difference(&of("a")).as_deref(),
            Some("its last user gave no cache epoch, and this one gives one")
        );
        assert_eq!(
            of("a").difference(&kernel).as_deref(),
            Some("its last user gave a cache epoch, and this one gives none")
        );
    }
}
