//! Durability trap 11: an incremental backup knows that its bitmap starts where its parent ended; all else is a full one,
//! in words.

use super::*;

/// Backs up once more, which must be right whatever it is.
fn next(room: &Room) -> BackupPoint {
    let point = room.back_up();
    assert!(room.restored(&point.name) == room.content(), "{}", point.reason);
    point
}

fn two_backups() -> (Room, BackupPoint) {
    let room = Room::new();
    room.write(1, 0, 50_000);
    assert_eq!(next(&room).reason, "it is the first one in the folder");
    room.write(2, 60_000, 5000);
    let second = next(&room);
    assert_eq!((second.kind(), &*second.reason), (BackupKind::Incremental, ""));
    room.write(3, 1000, 3);
    (room, second)
}

type Act = fn(&Room);

#[test]
fn a_bitmap_that_starts_elsewhere_means_a_full_backup() {
    let elsewhere = |point: &BackupPoint| {
        format!(
            "the bitmap does not start at {}: it was cleared, enabled anew, made anew or used for another folder \
             since, a full backup did not end, or the disk was rolled back",
            point.name
        )
    };
    let acts: [Act; 6] = [
        |room| room.with(|disk| disk.bitmap_clear("nightly")),
        |room| {
            room.with(|disk| {
                disk.bitmap_disable("nightly")?;
                disk.write(&[9; 100], 70_000, WriteFlags::empty())?;
                disk.bitmap_enable("nightly")
            });
        },
        |room| {
            room.with(|disk| {
                disk.bitmap_remove("nightly")?;
                disk.write(&[9; 100], 70_000, WriteFlags::empty())?;
                disk.bitmap_add("nightly", crate::AddBitmap::default())
            });
        },
        |room| room.with(|disk| disk.bitmap_reset("nightly", 0, 50_000)),
        |room| {
            room.try_back_up(&small(), "elsewhere").unwrap();
        },
        |room| {
            room.with(|disk| {
                let full = small().full(true);
                let ended = full.run(disk, &mut room.folder(), &mut |_, _| ControlFlow::Break(()));
                assert_eq!(ended.unwrap_err().code(), ErrorCode::Canceled);
                Ok(())
            });
        },
    ];
    for (index, act) in acts.into_iter().enumerate() {
        let (room, second) = two_backups();
        act(&room);
        room.write(4, 2000, 3);
        let third = next(&room);
        assert_eq!(third.reason, elsewhere(&second), "{index}");
        assert_eq!(third.kind(), BackupKind::Full);
        room.write(5, 4000, 3);
        assert_eq!(
            next(&room).kind(),
            BackupKind::Incremental,
            "it goes on from there"
        );
    }
}

type Race = fn(&Room, &Disk);

/// Backs up, and lets `race` have the disk each time when the backup is planned and the bitmap not frozen yet.
fn overtaken(room: &Room, disk: &Disk, race: &mut dyn FnMut()) -> Result<BackupPoint> {
    let mut folder = room.folder();
    let mut go_on = |_, _| ControlFlow::Continue(());
    let finished = small().run_when_planned(disk, &mut folder, &mut go_on, race)?;
    assert_eq!(finished.not_thawed, None);
    Ok(finished.point)
}

/// D1: what is dirty is known only since the starting point that the bitmap has when it is frozen, not when somebody
/// looked at it before.
#[test]
fn a_bitmap_that_starts_anew_before_it_is_frozen_means_a_full_backup() {
    let races: [Race; 5] = [
        |_, disk| disk.bitmap_clear("nightly").unwrap(),
        |_, disk| {
            disk.bitmap_disable("nightly").unwrap();
            disk.write(&[9; 100], 70_000, WriteFlags::empty()).unwrap();
            disk.bitmap_enable("nightly").unwrap();
        },
        |_, disk| {
            disk.bitmap_remove("nightly").unwrap();
            disk.write(&[9; 100], 70_000, WriteFlags::empty()).unwrap();
            disk.bitmap_add("nightly", crate::AddBitmap::default()).unwrap();
        },
        |_, disk| disk.bitmap_reset("nightly", 0, 50_000).unwrap(),
        |room, disk| {
            let mut elsewhere = BackupFolder::open_or_create(room.path("elsewhere")).unwrap();
            let mut go_on = |_, _| ControlFlow::Continue(());
            small().run(disk, &mut elsewhere, &mut go_on).unwrap();
        },
    ];
    for (index, race) in races.into_iter().enumerate() {
        for always in [false, true] {
            let (room, _) = two_backups();
            let disk = Disk::open(room.disk()).unwrap();
            disk.write(&[4; 3], 2000, WriteFlags::empty()).unwrap();
            let mut again = true;
            let point = overtaken(&room, &disk, &mut || {
                if again {
                    race(&room, &disk);
                    again = always;
                }
            })
            .unwrap();
            assert_eq!(point.kind(), BackupKind::Full, "{index}");
            assert!(
                point.reason.starts_with("the bitmap does not start at"),
                "{}",
                point.reason
            );
            disk.close().unwrap();
            assert!(room.restored(&point.name) == room.content(), "{index}");
            room.write(5, 4000, 3);
            assert_eq!(next(&room).kind(), BackupKind::Incremental);
        }
    }
}

/// What is written to a bitmap's disk while it is disabled leaves no trace, and its epoch is the same.
#[test]
fn a_bitmap_that_is_disabled_before_it_is_frozen_is_refused() {
    let (room, _) = two_backups();
    let before = files(&room.path("backups"));
    let disk = Disk::open(room.disk()).unwrap();
    let error = overtaken(&room, &disk, &mut || {
        disk.bitmap_disable("nightly").unwrap();
        disk.write(&[9; 100], 70_000, WriteFlags::empty()).unwrap();
    })
    .unwrap_err();
    assert!(error.message().contains("is disabled"), "{error}");
    assert!(files(&room.path("backups")) == before);
    assert!(!disk.bitmap_info("nightly").unwrap().busy);
}

#[test]
fn a_bitmap_that_is_gone_or_inconsistent_means_a_full_backup() {
    let (room, _) = two_backups();
    room.with(|disk| disk.bitmap_remove("nightly"));
    assert_eq!(
        next(&room).reason,
        "the disk had no such bitmap, and so it is not known what has changed"
    );
    let image = room.path("vm/disk-data.img");
    let mut content = room.content();
    content[12_345] = 77;
    content.extend([1; 512]);
    fs::write(&image, content).unwrap();
    assert_eq!(
        next(&room).reason,
        "the bitmap was inconsistent: the image may have been written to behind its back; what QEMU wrote through an \
         export comes by \"qbm import --bitmaps\" first"
    );
    room.write(5, 4000, 3);
    assert_eq!(next(&room).kind(), BackupKind::Incremental);
}

#[test]
fn a_bitmap_of_another_name_is_refused_while_the_disk_has_the_folder_s() {
    let (room, second) = two_backups();
    for exists in [false, true] {
        if exists {
            room.with(|disk| disk.bitmap_add("weekly", crate::AddBitmap::default()));
        }
        let before = files(&room.path("backups"));
        let error = room.try_back_up(&Backup::new("weekly"), "backups").unwrap_err();
        assert!(
            error.message().ends_with(
                "were made with the bitmap \"nightly\", which the disk has; a full backup begins a new series"
            ),
            "{error}"
        );
        assert!(files(&room.path("backups")) == before);
        room.with(|disk| {
            assert_eq!(disk.bitmap_list()?.len(), if exists { 2 } else { 1 });
            Ok(())
        });
    }
    // One that is the folder's, by another name.
    room.with(|disk| disk.bitmap_rename("nightly", "daily"));
    room.with(|disk| disk.bitmap_add("nightly", crate::AddBitmap::default()));
    let third = room.back_up_with(&Backup::new("daily"));
    assert_eq!(
        (third.kind(), third.parent),
        (BackupKind::Incremental, Some(second.name))
    );
    let series = room.back_up_with(&Backup::new("weekly").full(true));
    assert_eq!(series.reason, "it was asked for");
    assert!(room.restored(&series.name) == room.content());
}

#[test]
fn a_bitmap_of_another_name_means_a_full_backup_where_the_folder_s_is_gone() {
    let (room, second) = two_backups();
    room.with(|disk| disk.bitmap_add("weekly", crate::AddBitmap::default()));
    room.with(|disk| disk.bitmap_remove("nightly"));
    let point = room.back_up_with(&Backup::new("weekly"));
    let expected = format!(
        "the newest backup, {}, was made with bitmap \"nightly\", not \"weekly\"",
        second.name
    );
    assert_eq!(point.reason, expected);
    assert!(room.restored(&point.name) == room.content());
}

#[test]
fn a_folder_whose_newest_cannot_be_read_gets_a_full_backup() {
    let (room, second) = two_backups();
    fs::remove_file(room.path("backups").join(format!("{}-data.img", second.name))).unwrap();
    let third = next(&room);
    assert_eq!(third.kind(), BackupKind::Full);
    assert!(
        third
            .reason
            .starts_with(&format!("the newest backup, {}, cannot be read: ", second.name)),
        "{}",
        third.reason
    );
}

/// The disk's folder as it was before the newest backup ended: somebody was killed before the thaw, or the host was
/// rolled back. What that backup has and the disk has not is in no bitmap then.
#[test]
fn a_disk_from_before_the_newest_backup_goes_on_with_all_that_this_one_has() {
    for newest_is_full in [false, true] {
        let room = Room::new();
        room.write(1, 0, 50_000);
        if !newest_is_full {
            next(&room);
            room.write(2, 100_000, 5000);
        }
        room.snapshot("snapshot");
        room.write(3, 200_000, 5000);
        let newest = next(&room);
        room.roll_back("snapshot");
        room.write(4, 300_000, 5000);
        let point = next(&room);
        if newest_is_full {
            // The bitmap did not exist yet.
            assert_eq!(point.kind(), BackupKind::Full);
        } else {
            assert_eq!(point.kind(), BackupKind::Incremental);
            assert_eq!(
                point.reason,
                format!(
                    "the bitmap starts where it did for {}, as after a backup that was killed at its very end or a \
                     disk that was rolled back: what that backup has is in this one too",
                    newest.name
                )
            );
        }
        room.write(5, 400_000, 5000);
        let point = next(&room);
        assert_eq!((point.kind(), &*point.reason), (BackupKind::Incremental, ""));
    }
}

#[test]
fn a_disk_from_before_several_backups_gets_a_full_one() {
    let (room, second) = two_backups();
    room.snapshot("snapshot");
    next(&room);
    room.write(4, 200_000, 5000);
    let newest = next(&room);
    room.roll_back("snapshot");
    let point = next(&room);
    assert_eq!(point.kind(), BackupKind::Full);
    assert_eq!(
        point.reason,
        format!(
            "the bitmap starts at the older backup {}, not at {}: the disk was rolled back, or this folder came back \
             from a copy",
            second.name, newest.name
        )
    );
}

#[test]
fn a_folder_of_another_disk_is_refused() {
    let (room, _) = two_backups();
    let before = files(&room.path("backups"));
    fs::rename(room.path("vm"), room.path("old")).unwrap();
    fs::create_dir(room.path("vm")).unwrap();
    CreateOptions::new()
        .size(LENGTH)
        .create(room.path("vm/other.qbm"))
        .unwrap();
    let disk = Disk::open(room.path("vm/other.qbm")).unwrap();
    let mut folder = room.folder();
    let error = small()
        .run(&disk, &mut folder, &mut |_, _| ControlFlow::Continue(()))
        .unwrap_err();
    let source = fs::canonicalize(room.dir.path()).unwrap().join("vm/disk.qbm");
    assert_eq!(
        error.message(),
        format!(
            "cannot back up {}: the backups in {} are of {}; use another folder, or say that the disk was moved",
            disk.path().display(),
            folder.path().display(),
            source.display()
        )
    );
    assert_eq!(disk.bitmap_list().unwrap().len(), 0, "nothing was changed");
    assert!(files(&room.path("backups")) == before);
}

#[test]
fn a_disk_that_moved_is_known_by_its_bitmap() {
    let (room, _) = two_backups();
    fs::rename(room.path("vm"), room.path("elsewhere")).unwrap();
    let disk = Disk::open(room.path("elsewhere/disk.qbm")).unwrap();
    let mut folder = room.folder();
    let done = small()
        .run(&disk, &mut folder, &mut |_, _| ControlFlow::Continue(()))
        .unwrap();
    assert_eq!(done.point.kind(), BackupKind::Incremental);
}

/// Recovery belongs to an earlier open than the backup, and others that close come between the two.
#[test]
fn a_bitmap_that_recovery_had_widened_says_so_until_it_starts_anew() {
    for state_is_lost in [false, true] {
        let (room, _) = two_backups();
        let disk = Disk::open(room.disk()).unwrap();
        disk.write(&[5; 100], 200_000, WriteFlags::empty()).unwrap();
        // As it is found after a crash, and in other files, so that nothing vouches for them.
        room.snapshot("crashed");
        drop(disk);
        room.roll_back("crashed");
        if state_is_lost {
            fs::remove_file(room.path("vm/disk.state")).unwrap();
        }
        let widened = |disk: &Disk| disk.bitmap_info("nightly").unwrap().widened;
        room.with(|disk| {
            assert!(!disk.info().unwrap().recovery.unwrap().added.is_empty());
            assert!(widened(disk));
            Ok(())
        });
        room.write(6, 300_000, 100);
        room.with(|disk| {
            assert!(disk.info().unwrap().recovery.is_none());
            assert!(widened(disk), "state is lost: {state_is_lost}");
            Ok(())
        });
        let canceled = |_, _| ControlFlow::Break(());
        let disk = Disk::open(room.disk()).unwrap();
        small()
            .run(&disk, &mut room.folder(), &mut { canceled })
            .unwrap_err();
        disk.close().unwrap();

        let point = next(&room);
        assert_eq!(point.kind(), BackupKind::Incremental);
        assert_eq!(
            point.reason,
            "the bitmap was widened by recovery after the disk was not closed: what that added is in this one too, \
             changed or not"
        );
        room.with(|disk| {
            assert!(!widened(disk));
            Ok(())
        });
        room.write(7, 400_000, 100);
        let point = next(&room);
        assert_eq!((point.kind(), &*point.reason), (BackupKind::Incremental, ""));
    }
}

/// What is restored to the image alone is not in the bitmaps, and a disk that was not closed has no stamp to notice by.
#[test]
fn the_image_of_a_disk_that_was_not_closed_is_not_restored_to() {
    let (room, second) = two_backups();
    let image = room.path("vm/disk-data.img");
    let restore = || {
        Restore::new().run(&room.folder(), &second, &image, &mut |_, _| {
            ControlFlow::Continue(())
        })
    };
    let disk = Disk::open(room.disk()).unwrap();
    disk.write(&[7; 100], 200, WriteFlags::empty()).unwrap();
    disk.die();
    let refused = restore().unwrap_err();
    assert!(
        refused
            .message()
            .contains("the image of disk.qbm, which was not closed"),
        "{refused}"
    );
    room.with(|_| Ok(()));
    restore().unwrap();
    assert_eq!(next(&room).kind(), BackupKind::Full, "it is noticed");
}
