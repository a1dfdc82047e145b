//! What a folder keeps, what it lets go, and what it says of what somebody has spoilt.

use super::*;
use crate::descriptor::Descriptor;

fn proceed() -> impl FnMut(u64, u64) -> ControlFlow<()> {
    |_, _| ControlFlow::Continue(())
}

#[test]
fn the_files_of_a_backup_are_a_qbm_disk() {
    let (room, points) = three();
    let (last, content) = &points[2];
    let descriptor = room.path("backups").join(format!("{last}.qbm"));
    let parsed = Descriptor::parse(&fs::read(&descriptor).unwrap()).unwrap();
    assert_eq!(parsed.image().file, format!("{last}-data.img"));
    let mut read = vec![0; content.len()];
    crate::OpenOptions::new()
        .read_only(true)
        .open(&descriptor)
        .unwrap()
        .read(&mut read, 0)
        .unwrap();
    assert!(read == *content);
}

#[test]
fn what_is_canceled_leaves_nothing() {
    let (room, _) = three();
    room.write(9, 0, 100_000);
    let before = files(&room.path("backups"));
    let disk = Disk::open(room.disk()).unwrap();
    let dirty = disk.bitmap_count("nightly").unwrap();
    let error = small()
        .run(&disk, &mut room.folder(), &mut |_, _| ControlFlow::Break(()))
        .unwrap_err();
    assert_eq!(error.code(), ErrorCode::Canceled);
    assert!(files(&room.path("backups")) == before);
    let info = disk.bitmap_info("nightly").unwrap();
    assert_eq!((info.busy, info.count), (false, Some(dirty)));
    drop(disk);
    let point = room.back_up();
    assert_eq!(point.kind(), BackupKind::Incremental);
    assert!(room.restored(&point.name) == room.content());
}

#[test]
fn what_the_killed_have_left_is_swept() {
    let (room, _) = three();
    let folder = room.path("backups");
    let before = names(&folder);
    for name in [
        "20200101T000000Z-data.img",
        "20200101T000000Z-allocation.bitmap",
        "20200101T000000Z.new",
    ] {
        fs::write(folder.join(name), b"half").unwrap();
    }
    fs::write(folder.join("notes.txt"), b"mine").unwrap();
    let point = room.back_up();
    let mut expected = before;
    expected.extend(point.files());
    expected.push("notes.txt".to_owned());
    expected.sort();
    assert_eq!(names(&folder), expected);
}

#[test]
fn a_second_one_at_work_is_refused() {
    let (room, _) = three();
    let mut folder = room.folder();
    let _lock = folder.lock().unwrap();
    let error = room
        .folder()
        .prune(&Keep::new().last(1), &mut proceed())
        .unwrap_err();
    assert_eq!(error.code(), ErrorCode::Locked);
    let shown = room.path("backups");
    assert_eq!(
        error.message(),
        format!(
            "cannot prune {0}: another backup or prune is at work in {0}; wait for its end",
            shown.display()
        )
    );
}

#[test]
fn a_prune_merges_and_the_rest_goes_on() {
    let (room, points) = three();
    let pruned = room.folder().prune(&Keep::new().last(2), &mut proceed()).unwrap();
    assert_eq!(pruned.removed, [points[0].0.clone()]);
    let full = MergedPoint {
        name: points[1].0.clone(),
        parent: None,
    };
    assert_eq!(pruned.merged, [full]);
    let kept: Vec<String> = room
        .folder()
        .points()
        .iter()
        .flat_map(BackupPoint::files)
        .collect();
    let mut expected: Vec<String> = kept.into_iter().chain(["qbm-backup.lock".to_owned()]).collect();
    expected.sort();
    assert_eq!(names(&room.path("backups")), expected);
    for (name, content) in &points[1..] {
        assert!(room.restored(name) == *content);
    }
    assert_eq!(room.back_up().kind(), BackupKind::Incremental);
    assert_eq!(
        room.folder()
            .prune(&Keep::new().last(0), &mut proceed())
            .unwrap_err()
            .code(),
        ErrorCode::InvalidArgument
    );
    assert_eq!(
        room.folder().prune(&Keep::new().last(9), &mut proceed()).unwrap(),
        Pruned::default()
    );
}

/// What goes between two that stay is in the later one, which stays an incremental one.
#[test]
fn a_prune_in_the_middle_merges_forward() {
    let room = Room::new();
    room.write(1, 0, 500_000);
    let first = room.back_up();
    let mut contents = Vec::new();
    for byte in 2..6u8 {
        room.write(byte, u64::from(byte) * 100 * KIB, 40_000);
        let point = room.back_up();
        room.set_time(&point.name, &format!("2026-11-0{byte}T00:00:00Z"));
        contents.push((point.name, room.content()));
    }
    room.set_time(&first.name, "2026-10-01T00:00:00Z");
    // Of four, the last of November stays; and October.
    let keep = Keep::new().monthly(2);
    let would = room.folder().would_prune(&keep).unwrap();
    let before = files(&room.path("backups"));
    assert_eq!(files(&room.path("backups")), before);
    let pruned = room.folder().prune(&keep, &mut proceed()).unwrap();
    assert_eq!(pruned, would);
    let (last, content) = &contents[3];
    let merged = MergedPoint {
        name: last.clone(),
        parent: Some(first.name.clone()),
    };
    assert_eq!((pruned.merged, pruned.removed.len()), (vec![merged], 3));
    let folder = room.folder();
    let point = folder.find(last).unwrap();
    assert_eq!(point.kind(), BackupKind::Incremental);
    assert!((160_000..200_000).contains(&point.stored), "{}", point.stored);
    assert!(room.restored(last) == *content);
    // It goes on from there, and can be merged once more.
    room.write(9, 0, 10);
    let next = room.back_up();
    assert_eq!(next.parent.as_ref(), Some(last));
    room.set_time(&next.name, "2026-11-30T00:00:00Z");
    let pruned = room.folder().prune(&keep, &mut proceed()).unwrap();
    assert_eq!(pruned.removed, std::slice::from_ref(last));
    room.write(9, 5000, 10);
    let last = room.back_up();
    room.set_time(&last.name, "2026-11-30T00:00:01Z");
    room.folder().prune(&keep, &mut proceed()).unwrap();
    assert!(room.restored("latest") == room.content());
    assert_eq!(room.folder().points().len(), 2);
    for verified in room.folder().verify(&mut proceed()).unwrap() {
        assert!(verified.error.is_none(), "{verified:?}");
    }
}

/// One that was shorter hid what is below it, and still does when it is gone.
#[test]
fn a_prune_of_a_shorter_one_shows_nothing_old() {
    let room = Room::new();
    room.write(1, 0, 800_000);
    let first = room.back_up();
    room.with(|disk| disk.truncate(100_000, crate::TruncateFlags::SHRINK));
    let second = room.back_up();
    room.with(|disk| disk.truncate(900_000, crate::TruncateFlags::empty()));
    let third = room.back_up();
    for (point, month) in [(&first, "09"), (&second, "10"), (&third, "10")] {
        room.set_time(&point.name, &format!("2026-{month}-01T00:00:00Z"));
    }
    assert!(third.parent.is_some());
    let pruned = room
        .folder()
        .prune(&Keep::new().monthly(2), &mut proceed())
        .unwrap();
    assert_eq!(pruned.removed, [second.name]);
    assert!(room.restored("latest") == room.content());
}

/// As if it was killed after each of its steps: what is left must read the same, and the next prune ends it.
#[test]
fn a_prune_that_was_killed_is_ended_by_the_next() {
    let (room, points) = three();
    let whole = files(&room.path("backups"));
    room.folder().prune(&Keep::new().last(1), &mut proceed()).unwrap();
    let pruned = files(&room.path("backups"));
    let (last, content) = &points[2];
    let descriptor = format!("{last}.qbm");
    let merged = format!("{last}-merged.img");
    let lay = |state: &BTreeMap<String, Vec<u8>>| {
        fs::remove_dir_all(room.path("backups")).unwrap();
        fs::create_dir(room.path("backups")).unwrap();
        for (name, bytes) in state {
            fs::write(room.path("backups").join(name), bytes).unwrap();
        }
    };
    let mut state = whole;
    let mut states = Vec::new();
    state.insert(merged.clone(), b"half".to_vec());
    states.push(state.clone());
    state.insert(merged.clone(), pruned[&merged].clone());
    state.insert(format!("{last}.new"), pruned[&descriptor].clone());
    states.push(state.clone());
    state.remove(&format!("{last}.new"));
    state.insert(descriptor.clone(), pruned[&descriptor].clone());
    states.push(state.clone());
    for (gone, _) in [&points[1], &points[0]] {
        state.remove(&format!("{gone}.qbm"));
        states.push(state.clone());
    }
    for (index, state) in states.iter().enumerate() {
        lay(state);
        for point in room.folder().points() {
            let (_, content) = points.iter().find(|(name, _)| *name == point.name).unwrap();
            assert!(room.restored(&point.name) == *content, "{index}: {}", point.name);
        }
        room.folder().prune(&Keep::new().last(1), &mut proceed()).unwrap();
        let ended = files(&room.path("backups"));
        assert_eq!(
            ended.keys().collect::<Vec<_>>(),
            pruned.keys().collect::<Vec<_>>()
        );
        assert!(room.restored(last) == *content, "{index}");
    }
}

#[test]
fn verify_finds_every_kind_of_damage_and_restores_refuse_it() {
    type Spoil = fn(&Path, &str);
    let spoils: [(Spoil, &str); 5] = [
        (
            |folder, name| {
                let path = folder.join(format!("{name}-data.img"));
                let mut bytes = fs::read(&path).unwrap();
                bytes[25_000] ^= 1;
                fs::write(path, bytes).unwrap();
            },
            "-data.img has the checksum sha256-tree:",
        ),
        (
            |folder, name| {
                let path = folder.join(format!("{name}-allocation.bitmap"));
                let mut bytes = fs::read(&path).unwrap();
                bytes[0] ^= 1;
                fs::write(path, bytes).unwrap();
            },
            "-allocation.bitmap has the checksum sha256:",
        ),
        (
            |folder, name| fs::remove_file(folder.join(format!("{name}-data.img"))).unwrap(),
            "No such file",
        ),
        (
            |folder, name| {
                let file = fs::OpenOptions::new()
                    .write(true)
                    .open(folder.join(format!("{name}-data.img")))
                    .unwrap();
                file.set_len(1000).unwrap();
            },
            "",
        ),
        (
            |folder, name| fs::remove_file(folder.join(format!("{name}.qbm"))).unwrap(),
            "which is not in",
        ),
    ];
    for (index, (spoil, words)) in spoils.into_iter().enumerate() {
        let (room, points) = three();
        spoil(&room.path("backups"), &points[1].0);
        let folder = room.folder();
        let verified = folder.verify(&mut proceed()).unwrap();
        assert_eq!(
            (&verified[0].name, verified[0].error.is_none()),
            (&points[0].0, true)
        );
        let wrong: Vec<String> = verified[1..]
            .iter()
            .map(|it| it.error.as_ref().unwrap().message().to_owned())
            .collect();
        assert!(wrong[0].contains(words), "{index}: {wrong:?}");
        assert_refused(&room, &points[2].0, words);
        assert!(
            room.folder().prune(&Keep::new().last(1), &mut proceed()).is_err(),
            "{index}"
        );
        assert_eq!(room.folder().points().len(), folder.points().len());
    }
}

/// Neither a new file nor one that exists gets a byte.
fn assert_refused(room: &Room, last: &str, words: &str) {
    let folder = room.folder();
    let there = room.path("there.img");
    fs::write(&there, b"mine").unwrap();
    let before = names(room.dir.path());
    for (format, to) in [
        (RestoreFormat::Raw, room.path("restored.img")),
        (RestoreFormat::Qbm, room.path("restored.qbm")),
        (RestoreFormat::Raw, there.clone()),
    ] {
        let error = Restore::new()
            .format(format)
            .run(&folder, folder.find(last).unwrap(), &to, &mut proceed())
            .unwrap_err();
        let said = error.message();
        let begins = format!("cannot restore {last} to {}: ", to.display());
        assert!(said.starts_with(&begins) && said.contains(words), "{said}");
    }
    assert_eq!(names(room.dir.path()), before);
    assert_eq!(fs::read(there).unwrap(), b"mine");
}

/// What a later backup hides is read and compared all the same: one that stands on damage is not trusted.
#[test]
fn damage_to_what_is_hidden_is_damage() {
    let room = Room::new();
    room.write(1, 0, 500_000);
    let first = room.back_up().name;
    room.write(2, 0, 500_000);
    let second = room.back_up().name;
    let path = room.path("backups").join(format!("{first}-data.img"));
    let mut bytes = fs::read(&path).unwrap();
    bytes[100_000] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_refused(&room, &second, "-data.img has the checksum sha256-tree:");
}

#[test]
fn a_chain_does_not_grow_for_ever() {
    let room = Room::new();
    let mut kinds = Vec::new();
    for round in 0..130u64 {
        room.write(1, round * 100, 1);
        kinds.push(room.back_up().kind());
    }
    let full: Vec<usize> = (0..130).filter(|at| kinds[*at] == BackupKind::Full).collect();
    assert_eq!(full, [0, 128]);
    assert!(room.restored("latest") == room.content());
}

/// Whoever has a copy of the folder, made by names, has under each name what he has always had there.
#[test]
fn a_name_comes_only_once() {
    let room = Room::new();
    let mut seen = std::collections::BTreeSet::new();
    for round in 1..=4 {
        for _ in 0..3 {
            room.write(round, 0, 10_000);
            let name = room.back_up().name;
            assert!(seen.insert(name.clone()), "{name} came again");
        }
        room.folder().prune(&Keep::new().last(1), &mut proceed()).unwrap();
        assert_eq!(room.folder().points().len(), 1);
    }
}

/// Two disks that are backed up in one second have backups of one name. One in the place of the other is found out, though
/// its checksums are right.
#[test]
fn a_parent_of_the_same_name_is_not_taken_for_the_parent() {
    let (room, points) = three();
    let (other, _) = three();
    let parent = &points[0].0;
    let their = other.folder().points()[0].clone();
    for file in their.files() {
        let from = fs::read(other.path("backups").join(&file)).unwrap();
        let to = room.path("backups").join(file.replace(&their.name, parent));
        if file == their.descriptor() {
            let text = String::from_utf8(from).unwrap().replace(&their.name, parent);
            fs::write(to, text).unwrap();
        } else {
            fs::write(to, from).unwrap();
        }
    }
    let folder = room.folder();
    let verified = folder.verify(&mut proceed()).unwrap();
    assert!(verified[0].error.is_none(), "{verified:?}");
    for verified in &verified[1..] {
        let error = verified.error.as_ref().unwrap();
        assert_eq!(error.code(), ErrorCode::FileInvalid);
        assert!(
            error
                .message()
                .contains(&format!("stands on another {parent} than")),
            "{error}"
        );
    }
    let to = room.path("never.img");
    let restored = Restore::new().run(&folder, &folder.points()[2], &to, &mut proceed());
    assert_eq!(restored.unwrap_err().code(), ErrorCode::FileInvalid);
    assert!(!to.exists());
    let pruned = room.folder().prune(&Keep::new().last(1), &mut proceed());
    assert_eq!(pruned.unwrap_err().code(), ErrorCode::FileInvalid);
    let next = room.back_up();
    assert_eq!(next.kind(), BackupKind::Full);
    assert!(next.reason.contains("cannot be read"), "{}", next.reason);
    assert!(room.restored(&next.name) == room.content());
}

/// Found before anything is read.
#[test]
fn a_restore_to_a_link_that_leads_nowhere_is_refused() {
    let (room, points) = three();
    let folder = room.folder();
    let to = room.path("link.img");
    std::os::unix::fs::symlink(room.path("nothing.img"), &to).unwrap();
    for format in [RestoreFormat::Raw, RestoreFormat::Qbm, RestoreFormat::Qcow2] {
        let mut calls = 0;
        let error = Restore::new()
            .format(format)
            .run(&folder, folder.find("latest").unwrap(), &to, &mut |_, _| {
                calls += 1;
                ControlFlow::Continue(())
            })
            .unwrap_err();
        assert_eq!((error.code(), calls), (ErrorCode::FileExists, 0));
        assert_eq!(
            error.message(),
            format!(
                "cannot restore {} to {}: it is a link to a file that does not exist, and is not overwritten",
                points[2].0,
                to.display()
            )
        );
    }
    assert!(!room.path("nothing.img").exists());
}
