//! How fast it goes at most, and that whoever ends it in the middle finds all as it was.

use std::time::{Duration, Instant};

use super::*;

/// Ends it at call number `at`, counted from 0.
fn end_at(at: usize) -> impl FnMut(u64, u64) -> ControlFlow<()> {
    let mut calls = 0;
    move |_, _| {
        calls += 1;
        if calls > at {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

/// Does it again and again, ended one call later each time, until it is done. Says how often it was ended.
fn ended_everywhere<T>(mut act: impl FnMut(usize) -> Result<T>, unchanged: impl Fn(usize)) -> usize {
    for at in 0..10_000 {
        match act(at) {
            Ok(_) => return at,
            Err(error) => assert_eq!(error.code(), ErrorCode::Canceled, "{error}"),
        }
        unchanged(at);
    }
    panic!("it never ends");
}

#[test]
fn the_limit_is_kept() {
    const STORED: usize = 4 << 20;
    const BURST: u64 = 1 << 20;
    const RATE: u64 = 4 << 20;
    let room = Room::new();
    room.with(|disk| disk.truncate(8 << 20, crate::TruncateFlags::empty()));
    room.write(1, 0, STORED);
    let least =
        Duration::from_secs(1) * u32::try_from(STORED as u64 - BURST).unwrap() / u32::try_from(RATE).unwrap();
    let begun = Instant::now();
    let point = room.back_up_with(&small().limit(RATE));
    assert!(begun.elapsed() >= least, "the backup: {:?}", begun.elapsed());
    assert_eq!(point.stored, STORED as u64);
    let folder = room.folder();
    let to = room.path("limited.img");
    for what in ["a new file", "one that exists"] {
        let begun = Instant::now();
        let mut go_on = |_, _| ControlFlow::Continue(());
        let restored = Restore::new()
            .limit(RATE)
            .run(&folder, &point, &to, &mut go_on)
            .unwrap();
        assert!(begun.elapsed() >= least, "{what}: {:?}", begun.elapsed());
        assert_eq!(restored.written, STORED as u64, "{what}");
        assert!(fs::read(&to).unwrap() == room.content(), "{what}");
        fs::write(&to, []).unwrap();
    }
}

/// Not even the folder, where that is new, nor its lock.
#[test]
fn a_first_backup_that_is_canceled_leaves_nothing() {
    let room = Room::new();
    room.write(1, 0, 20_000);
    fs::create_dir(room.path("empty")).unwrap();
    let disk = Disk::open(room.disk()).unwrap();
    for name in ["empty", "new"] {
        let path = room.path(name);
        let back_up = |at| {
            let mut folder = BackupFolder::open_or_create(&path)?;
            let done = small().run(&disk, &mut folder, &mut end_at(at));
            if done.is_err() {
                folder.remove_if_new();
            }
            done
        };
        let ended = ended_everywhere(back_up, |at| {
            if name == "new" {
                assert!(!path.exists(), "ended at {at}");
            } else {
                assert_eq!(names(&path), Vec::<String>::new(), "ended at {at}");
            }
        });
        assert!(ended > 0);
        assert!(names(&path).contains(&"qbm-backup.lock".to_owned()));
    }
}

#[test]
fn a_restore_that_is_canceled_leaves_what_was_there() {
    let (room, points) = three();
    let folder = room.folder();
    let before = files(&room.path("backups"));
    fs::create_dir(room.path("to")).unwrap();
    let point = folder.find("latest").unwrap();
    for format in [RestoreFormat::Raw, RestoreFormat::Qbm] {
        let to = room.path("to/new.img");
        let how = Restore::new().format(format);
        let ended = ended_everywhere(
            |at| how.run(&folder, point, &to, &mut end_at(at)),
            |at| {
                let left = names(&room.path("to"));
                assert_eq!(left, Vec::<String>::new(), "{format:?}, ended at {at}");
            },
        );
        assert!(ended > 0);
        for name in names(&room.path("to")) {
            fs::remove_file(room.path("to").join(name)).unwrap();
        }
    }
    // Onto something that exists: nothing is written before all checksums were compared.
    let to = room.path("to/old.img");
    let old = vec![9; points[2].1.len()];
    fs::write(&to, &old).unwrap();
    Restore::new()
        .run(&folder, point, &to, &mut end_at(0))
        .unwrap_err();
    assert!(fs::read(&to).unwrap() == old);
    let ended = ended_everywhere(
        |at| Restore::new().run(&folder, point, &to, &mut end_at(at)),
        |_| assert_eq!(names(&room.path("to")), ["old.img"]),
    );
    assert!(ended > 0);
    assert!(
        fs::read(&to).unwrap() == points[2].1,
        "the same restore does the rest"
    );
    assert!(files(&room.path("backups")) == before);
}

#[test]
fn a_verification_or_a_prune_that_is_canceled_changes_nothing() {
    let (room, points) = three();
    let backups = room.path("backups");
    let before = files(&backups);
    let same = |at| assert!(files(&backups) == before, "ended at {at}");
    let ended = ended_everywhere(|at| room.folder().verify(&mut end_at(at)), same);
    assert!(ended > 0);
    same(ended);
    let keep = Keep::new().last(1);
    let ended = ended_everywhere(|at| room.folder().prune(&keep, &mut end_at(at)), same);
    assert!(ended > 0);
    let (last, content) = &points[2];
    assert_eq!(room.folder().points().len(), 1);
    assert!(room.restored(last) == *content);
}
