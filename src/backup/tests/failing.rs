//! A folder of backups whose calls fail, or in which somebody else is at work.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::storage::HostFolder;
use crate::storage::hooked::{Hooked, When};

fn proceed() -> impl FnMut(u64, u64) -> ControlFlow<()> {
    |_, _| ControlFlow::Continue(())
}

fn hooked(
    room: &Room,
    hook: impl Fn(When, &str, &Path) -> io::Result<()> + Send + Sync + 'static,
) -> Result<BackupFolder> {
    room.folder();
    let path = room.path("backups");
    let inner = HostFolder::open(&path).unwrap();
    BackupFolder::within(&path, Arc::new(Hooked::new(inner, hook)), None)
}

/// A folder whose call number `at`, counted from 0, fails with EIO, before it has done anything or afterwards; and
/// whether it came to that.
fn failing(room: &Room, at: usize, when: When) -> (Result<BackupFolder>, Arc<AtomicBool>) {
    let (calls, struck) = (AtomicUsize::new(0), Arc::new(AtomicBool::new(false)));
    let strikes = Arc::clone(&struck);
    let folder = hooked(room, move |now, _, _| {
        if now == when && calls.fetch_add(1, Ordering::Relaxed) == at {
            strikes.store(true, Ordering::Relaxed);
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    });
    (folder, struck)
}

/// All that the folder shows can be restored, and nothing else of a backup is left in it after the next one.
fn assert_sound(room: &Room, contents: &[(String, Vec<u8>)], now: &[u8], when: &str) {
    let folder = room.folder();
    assert!(folder.damaged().is_empty(), "{when}");
    for point in folder.points() {
        let known = contents.iter().find(|(name, _)| *name == point.name);
        let expected = known.map_or(now, |(_, content)| content);
        assert!(room.restored(&point.name) == expected, "{when}: {}", point.name);
    }
    for verified in folder.verify(&mut proceed()).unwrap() {
        assert!(verified.error.is_none(), "{when}: {verified:?}");
    }
}

/// After each of its failures the folder shows whole backups, the bitmap is free, and the next backup is right.
#[test]
fn whichever_call_of_the_folder_fails_a_backup_is_there_or_not() {
    for (when, before) in [(When::Before, 0), (When::Before, 2), (When::After, 2)] {
        for at in 0.. {
            let room = Room::new();
            let mut contents = Vec::new();
            for round in 1..=before {
                room.write(round, u64::from(round) * 10_000, 20_000);
                contents.push((room.back_up().name, room.content()));
            }
            room.write(9, 25_000, 30_000);
            let disk = Disk::open(room.disk()).unwrap();
            let (folder, struck) = failing(&room, at, when);
            let done = folder.and_then(|mut folder| {
                let finished = small().run(&disk, &mut folder, &mut proceed())?;
                assert_eq!(folder.points().last(), Some(&finished.point));
                assert_eq!(finished.not_thawed, None);
                Ok(finished.point)
            });
            let words = format!("call {at} of a backup on {before}: {done:?}");
            let busy = disk.bitmap_list().unwrap().iter().any(|info| info.busy);
            assert!(!busy, "{words}");
            let now = room.content();
            assert_sound(&room, &contents, &now, &words);
            if let Ok(point) = &done {
                assert!(room.restored(&point.name) == now, "{words}");
            }
            disk.write(&[7; 5000], 90_000, WriteFlags::empty()).unwrap();
            disk.close().unwrap();
            let next = room.back_up();
            assert!(room.restored(&next.name) == room.content(), "{words}: {next:?}");
            let folder = room.folder();
            let mut expected: Vec<String> = folder.points().iter().flat_map(BackupPoint::files).collect();
            expected.push("qbm-backup.lock".to_owned());
            expected.sort();
            assert_eq!(names(&room.path("backups")), expected, "{words}");
            if !struck.load(Ordering::Relaxed) {
                assert!(at > 10 && done.is_ok(), "{words}");
                break;
            }
        }
    }
}

/// The same of a prune, which the next one ends.
#[test]
fn whichever_call_of_the_folder_fails_a_prune_loses_nothing_that_stays() {
    for when in [When::Before, When::After] {
        for at in 0.. {
            let room = Room::new();
            let mut contents = Vec::new();
            for round in 1..=3u8 {
                room.write(round, u64::from(round) * 10_000, 20_000);
                contents.push((room.back_up().name, room.content()));
            }
            let keep = Keep::new().last(2);
            let (folder, struck) = failing(&room, at, when);
            let done = folder.and_then(|mut folder| folder.prune(&keep, &mut proceed()));
            let words = format!("call {at} of a prune: {done:?}");
            assert_sound(&room, &contents, &[], &words);
            room.folder().prune(&keep, &mut proceed()).unwrap();
            assert_sound(&room, &contents, &[], &words);
            assert_eq!(room.folder().points().len(), 2, "{words}");
            if !struck.load(Ordering::Relaxed) {
                assert!(at > 10 && done.is_ok(), "{words}");
                break;
            }
        }
    }
}

/// Who removes the lock's file lets a prune in, which sweeps what no backup names yet.
#[test]
fn a_backup_whose_files_were_swept_fails() {
    for (locked, swept) in [(false, true), (true, true), (false, false)] {
        let room = Room::new();
        room.write(1, 0, 50_000);
        let first = room.back_up();
        room.write(2, 25_000, 50_000);
        let disk = Disk::open(room.disk()).unwrap();
        let lock = room.path("backups/qbm-backup.lock");
        let mut once = true;
        let error = small()
            .run(&disk, &mut room.folder(), &mut |_, _| {
                if std::mem::take(&mut once) {
                    let aside = room.path("aside");
                    fs::rename(&lock, &aside).unwrap();
                    if swept {
                        room.folder().prune(&Keep::new().last(9), &mut proceed()).unwrap();
                    }
                    if locked {
                        // As if it had never been away.
                        fs::rename(&aside, &lock).unwrap();
                    }
                }
                ControlFlow::Continue(())
            })
            .unwrap_err();
        assert!(
            error.message().ends_with(
                " was removed meanwhile; as long as the command is at work, qbm-backup.lock must stay"
            ),
            "{error}"
        );
        let name = if locked { "-data.img" } else { "qbm-backup.lock" };
        let name = if locked && error.message().contains("-allocation.bitmap") {
            "-allocation.bitmap"
        } else {
            name
        };
        assert!(error.message().contains(name), "{error}");
        assert!(!disk.bitmap_info("nightly").unwrap().busy);
        disk.close().unwrap();
        let names: Vec<String> = room.folder().points().iter().map(|it| it.name.clone()).collect();
        assert_eq!(names, [first.name]);
        let next = room.back_up();
        assert_eq!(next.kind(), BackupKind::Incremental);
        assert!(room.restored(&next.name) == room.content());
    }
}

/// A lock on a file that has no name any more keeps nobody out.
#[test]
fn a_lock_whose_file_was_removed_before_it_was_locked_is_taken_anew() {
    let room = Room::new();
    for existed in [false, true] {
        let path = room.path("backups/qbm-backup.lock");
        let (removed, left) = (path.clone(), AtomicUsize::new(2));
        let mut folder = hooked(&room, move |when, what, name| {
            let ours = name == Path::new("qbm-backup.lock") && when == When::After;
            let opened = what == "open" || what == "create";
            if ours && opened && left.load(Ordering::Relaxed) > 0 {
                left.fetch_sub(1, Ordering::Relaxed);
                fs::remove_file(&removed)?;
            }
            Ok(())
        })
        .unwrap();
        assert_eq!(path.exists(), existed);
        let lock = folder.lock().unwrap();
        assert!(path.exists());
        assert_eq!(
            room.folder().lock().err().map(|e| e.code()),
            Some(ErrorCode::Locked)
        );
        drop(lock);
    }
    // By somebody who never ends.
    let path = room.path("backups/qbm-backup.lock");
    let mut folder = hooked(&room, move |when, what, name| {
        if name == Path::new("qbm-backup.lock") && when == When::After && what != "remove" {
            fs::remove_file(&path)?;
        }
        Ok(())
    })
    .unwrap();
    let error = folder.lock().err().unwrap();
    assert_eq!(error.code(), ErrorCode::Locked);
    assert!(
        error
            .message()
            .ends_with("qbm-backup.lock is removed again and again by others"),
        "{error}"
    );
}

/// D1: a backup in a folder that a power cut may take away is none. Where nobody may sync the folder above, there is nothing to
/// be done, and whoever made the folder has seen to it.
#[test]
fn a_folder_whose_name_cannot_be_made_durable_gets_no_backup() {
    for (errno, refused) in [
        (libc::EIO, true),
        (libc::ENOENT, true),
        (libc::EACCES, false),
        (libc::EPERM, false),
        (libc::EROFS, false),
        (libc::EINVAL, false),
        (libc::EOPNOTSUPP, false),
    ] {
        let room = Room::new();
        room.write(1, 10_000, 20_000);
        let folder = hooked(&room, move |when, what, _| match (when, what) {
            (When::Before, "sync name") => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        });
        let disk = Disk::open(room.disk()).unwrap();
        let done = small().run(&disk, &mut folder.unwrap(), &mut proceed());
        disk.close().unwrap();
        let Err(error) = done else {
            assert!(!refused, "{errno}");
            continue;
        };
        assert!(refused, "{errno}: {error}");
        let words = format!(
            "cannot sync the folder above {}: ",
            room.path("backups").display()
        );
        assert!(error.message().contains(&words), "{error}");
        assert_eq!(files(&room.path("backups")), BTreeMap::new());
    }
}
