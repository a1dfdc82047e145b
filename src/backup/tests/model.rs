//! Random writes and backups, each held against the disk's bytes of its moment.

use super::*;
use crate::TruncateFlags;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % limit
    }
}

fn some_writes(room: &Room, random: &mut Random) {
    room.with(|disk| {
        for _ in 0..random.below(12) {
            let length = disk.length();
            let offset = random.below(length);
            let len = random.below(40_000).min(length - offset);
            match random.below(5) {
                0 => disk.write_zeroes(offset, len, WriteFlags::MAY_UNMAP)?,
                1 => disk.discard(offset, len, WriteFlags::empty())?,
                kind => {
                    let byte = u8::try_from(kind * 50 + random.below(50)).unwrap();
                    disk.write(
                        &vec![byte; usize::try_from(len).unwrap()],
                        offset,
                        WriteFlags::empty(),
                    )?;
                }
            }
        }
        if random.below(4) == 0 {
            let length = LENGTH - 300_000 + random.below(600_000);
            disk.truncate(length, TruncateFlags::SHRINK)?;
        }
        Ok(())
    });
}

#[test]
fn every_point_reads_as_the_disk_did() {
    for seed in 1..=4 {
        let room = Room::new();
        let random = &mut Random(seed);
        let mut expected: Vec<(String, Vec<u8>)> = Vec::new();
        for round in 0..20 {
            some_writes(&room, random);
            let mut how = small();
            if let (0, Some((oldest, _))) = (random.below(4), expected.first()) {
                how = how.since(oldest);
            }
            let point = room.back_up_with(&how);
            assert_eq!(point.parent.is_none(), round == 0, "{}", point.reason);
            // Two a day.
            let day = 10 + round / 2;
            room.set_time(&point.name, &format!("2026-11-{day}T12:00:00Z"));
            expected.push((point.name, room.content()));
            if random.below(4) == 0 {
                let count = usize::try_from(1 + random.below(4)).unwrap();
                // Gaps between those that stay, too.
                let keep = match random.below(3) {
                    0 => Keep::new().last(count),
                    1 => Keep::new().daily(count),
                    _ => Keep::new().last(1).weekly(count),
                };
                let would = room.folder().would_prune(&keep).unwrap();
                let pruned = room
                    .folder()
                    .prune(&keep, &mut |_, _| ControlFlow::Continue(()))
                    .unwrap();
                assert_eq!(pruned, would);
                expected.retain(|(name, _)| !pruned.removed.contains(name));
                assert!(expected.len() <= count + 1);
                for merged in &pruned.merged {
                    let folder = room.folder();
                    assert_eq!(folder.find(&merged.name).unwrap().parent, merged.parent);
                }
            }
            for (name, content) in &expected {
                assert!(
                    room.restored(name) == *content,
                    "seed {seed}, round {round}, {name}"
                );
            }
        }
        let folder = room.folder();
        let found: Vec<&String> = folder.points().iter().map(|point| &point.name).collect();
        assert_eq!(found, expected.iter().map(|(name, _)| name).collect::<Vec<_>>());
        for verified in folder.verify(&mut |_, _| ControlFlow::Continue(())).unwrap() {
            assert!(verified.error.is_none(), "{verified:?}");
        }
    }
}

#[test]
fn holes_and_zeros_are_not_stored() {
    let room = Room::new();
    room.write(1, 100 * KIB, 4096);
    room.write(0, 200 * KIB, 100_000);
    assert_eq!(room.back_up().stored, 4096);
    room.write(0, 100 * KIB, 4096);
    let point = room.back_up();
    assert_eq!((point.kind(), point.stored), (BackupKind::Incremental, 0));
    assert!(room.restored(&point.name) == room.content());
}

#[test]
fn a_restore_writes_only_what_differs() {
    let room = Room::new();
    room.write(1, 0, 300_000);
    let first = room.back_up();
    room.write(2, 8192, 4096);
    room.write(3, 500 * KIB, 1);
    let content = room.content();
    let folder = room.folder();
    let point = folder.find(&first.name).unwrap();
    let image = room.path("vm/disk-data.img");
    let restored = Restore::new()
        .run(&folder, point, &image, &mut |_, _| ControlFlow::Continue(()))
        .unwrap();
    assert_eq!(restored.written, 2 * 4096);
    assert!(fs::read(&image).unwrap() == room.restored(&first.name));
    assert!(fs::read(&image).unwrap() != content);
}

#[test]
fn a_restore_onto_a_disk_is_seen_by_its_bitmaps() {
    let room = Room::new();
    room.write(1, 0, 300_000);
    let first = room.back_up();
    let then = room.content();
    room.write(2, 8192, 4096);
    room.back_up();
    let folder = room.folder();
    let onto = |to: &Path| {
        Restore::new()
            .format(RestoreFormat::Qbm)
            .run(&folder, folder.find(&first.name).unwrap(), to, &mut |_, _| {
                ControlFlow::Continue(())
            })
            .unwrap()
    };
    assert_eq!(onto(&room.disk()).written, 4096);
    assert!(room.content() == then);
    let third = room.back_up();
    assert_eq!((third.kind(), third.stored), (BackupKind::Incremental, 4096));
    assert!(room.restored(&third.name) == then);

    let new = room.path("new.qbm");
    onto(&new);
    let mut read = vec![0; then.len()];
    Disk::open(&new).unwrap().read(&mut read, 0).unwrap();
    assert!(read == then);
    assert!(
        !names(room.dir.path())
            .iter()
            .any(|name| name.contains("restoring"))
    );
}
