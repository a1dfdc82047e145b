use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::state::file::Unusable;
use crate::state::{MarkId, Marks, RegionSize};
use crate::storage::simulated::{CallKind, Fault, Keep, Kept, SimDisk};
use crate::storage::{Access, FileStorage, Folder, Role};

const NAME: &str = "disk.state";

fn opened(disk: &SimDisk) -> Arc<dyn Storage> {
    let access = Access {
        write: true,
        direct: false,
    };
    disk.open(Role::State, Path::new(NAME), access).unwrap()
}

fn created(disk: &SimDisk) -> StateFile {
    let storage = disk.create(Role::State, Path::new(NAME)).unwrap();
    Folder::sync(disk).unwrap();
    StateFile::create(storage, PathBuf::from(NAME), Header::new(RegionSize::DEFAULT)).unwrap()
}

fn found(disk: &SimDisk) -> Result<Found, Unusable> {
    StateFile::inspect(&*opened(disk), Path::new(NAME)).unwrap()
}

/// A header that is easily told from its neighbours, some with marks that take more pieces.
fn numbered(header: &mut Header, number: u64) {
    header.stamp = Some(crate::state::stamp::tests::some(number, None));
    header.clean = number.is_multiple_of(3);
    header.marks = Marks::default();
    for mark in 0..(number * 53) % 400 {
        let mark = MarkId::of(&format!("{number} {mark}"), None);
        header.marks.insert(mark).unwrap();
    }
}

fn number_of(found: &Found) -> u64 {
    let stamp = |number: &u64| Some(crate::state::stamp::tests::some(*number, None));
    let number = (0..100).find(|number| found.header().stamp == stamp(number));
    let mut expected = Header::new(RegionSize::DEFAULT);
    numbered(&mut expected, number.expect("a header that was written"));
    assert_eq!(*found.header(), expected, "a mixture of headers");
    number.unwrap()
}

/// Every crash state of a row of updates, with every opener's own crash after it: the header is always the last that was
/// acknowledged, or one begun since.
#[test]
fn every_crash_finds_the_last_header_or_the_one_in_flight() {
    let disk = SimDisk::new();
    let file = created(&disk);
    let mut acknowledged = vec![];
    for number in 0..12 {
        acknowledged.push(disk.now().events());
        file.update(|header| {
            numbered(header, number);
            Ok(())
        })
        .unwrap();
    }
    acknowledged.push(disk.now().events());
    let mut states = 0;
    for point in disk
        .crash_points()
        .filter(|point| point.events() >= acknowledged[1])
    {
        let begun = acknowledged.iter().filter(|at| **at <= point.events()).count() as u64 - 1;
        let cuts = (0..12).map(|seed| point.power_cut_keeping(Keep::Random(seed)));
        for after in cuts.chain([point.kill()]) {
            let seen = found(&after).unwrap();
            let number = number_of(&seen);
            assert!(number == begun || number + 1 == begun, "{number} after {begun}");
            states += 1;
            // A second crash, while the opener goes on from what it found: that is not taken back, and what the first
            // crash left of an update does not mix with the next one.
            let (file, _) = StateFile::adopt(opened(&after), NAME.into(), seen).unwrap();
            let adopted = after.now().events();
            file.update(|header| {
                numbered(header, 50);
                Ok(())
            })
            .unwrap();
            for point in after.crash_points().filter(|point| point.events() >= adopted) {
                for seed in 0..8 {
                    let after = point.power_cut_keeping(Keep::Random(seed));
                    let now = number_of(&found(&after).unwrap());
                    assert!(now == number || now == 50, "{now} after {number}");
                    states += 1;
                }
            }
        }
    }
    assert!(states > 1000, "{states}");
}

/// A crash while the file is made anew over an old one leaves the old, nothing valid, or the new: never an old header with
/// the new map.
#[test]
fn making_it_anew_is_never_half_valid() {
    let disk = SimDisk::new();
    let file = created(&disk);
    file.update(|header| {
        numbered(header, 5);
        Ok(())
    })
    .unwrap();
    let mut set = RegionSet::new();
    set.insert(9);
    file.write_map(&[(0, set.encode(0))]).unwrap();
    file.sync().unwrap();
    let before = disk.now().events();
    let mut header = Header::new(RegionSize::DEFAULT);
    numbered(&mut header, 8);
    StateFile::create(opened(&disk), NAME.into(), header).unwrap();
    let mut seen = [0; 3];
    for point in disk.crash_points().filter(|point| point.events() >= before) {
        for seed in 0..200 {
            let after = point.power_cut_keeping(Keep::Random(seed));
            match found(&after) {
                Err(_) => seen[0] += 1,
                Ok(found) if number_of(&found) == 5 => {
                    seen[1] += 1;
                    assert!(found.active().contains(9), "an old header with the new map");
                }
                Ok(found) => {
                    assert_eq!(number_of(&found), 8);
                    assert!(found.active().is_empty());
                    seen[2] += 1;
                }
            }
        }
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

/// A2: after a failed sync nothing succeeds, whoever asks; after a failed write of a header neither.
#[test]
fn a_failed_update_is_for_good() {
    for kind in [CallKind::Sync, CallKind::Write] {
        for kept in [Kept::Nothing, Kept::All] {
            let disk = SimDisk::new();
            let file = created(&disk);
            disk.fail(Fault::new(libc::EIO).on(kind).keeping(kept));
            let error = file.begin(BitmapPolicy::WriteThrough, None, None).unwrap_err();
            assert_eq!(error.errno(), libc::EIO);
            assert!(error.message().contains("disk.state: Input/output error"));
            for result in [
                file.begin(BitmapPolicy::WriteThrough, None, None),
                file.sync(),
                file.note_failure(),
                file.write_map(&[(0, RegionSet::new().encode(0))]),
            ] {
                assert_eq!(result.unwrap_err().code(), ErrorCode::Failed);
            }
            assert!(file.header().clean, "the header in force is the old one");
        }
    }
}

/// A failed write of the map may be tried again: each of its pieces is old or new.
#[test]
fn a_failed_write_of_the_map_is_not() {
    let disk = SimDisk::new();
    let file = created(&disk);
    disk.fail(Fault::new(libc::ENOSPC).on(CallKind::Write));
    let piece = [(0, RegionSet::new().encode(0))];
    assert_eq!(file.write_map(&piece).unwrap_err().errno(), libc::ENOSPC);
    file.write_map(&piece).unwrap();
    file.sync().unwrap();
}

#[test]
fn the_life_of_a_header() {
    let disk = SimDisk::new();
    let file = created(&disk);
    assert!(file.header().clean && file.path() == Path::new(NAME));
    let epoch = Evidence::of_epoch("boot 7").unwrap();
    file.begin(BitmapPolicy::Lazy, Some(epoch.clone()), None).unwrap();
    file.note_failure().unwrap();
    file.note_failure().unwrap();
    let seen = found(&disk.power_cut_keeping(Keep::Nothing)).unwrap();
    let header = seen.header();
    assert!(!header.clean && header.failure_noted && header.policy == BitmapPolicy::Lazy);
    assert_eq!(header.evidence, Some(epoch));
    let stamp = crate::state::stamp::tests::some(7, None);
    file.end(Some(stamp)).unwrap();
    let seen = found(&disk.power_cut_keeping(Keep::Nothing)).unwrap();
    assert!(seen.header().clean && !seen.header().failure_noted);
    assert_eq!((seen.header().stamp, seen.damaged_pieces()), (Some(stamp), 0));
    assert!(format!("{file:?}").contains(NAME));
}

/// "Clean" in the older slot must not come back where the newer slot is damaged.
#[test]
fn a_damaged_slot_spoils_the_file() {
    let disk = SimDisk::new();
    created(&disk)
        .begin(BitmapPolicy::WriteThrough, None, None)
        .unwrap();
    let good = disk.read(NAME).unwrap();
    for slot in [0, SLOT] {
        let mut bytes = good.clone();
        bytes[slot + 33] ^= 1;
        disk.put(NAME, &bytes);
        let why = found(&disk).unwrap_err().to_string();
        let number = usize::from(slot != 0);
        assert_eq!(
            why,
            format!(
                "disk.state is no valid state file: header slot {number} is damaged: the checksum of piece 0 is wrong"
            )
        );
    }
    disk.put(NAME, &good[..LENGTH - 1]);
    assert!(
        found(&disk)
            .unwrap_err()
            .to_string()
            .ends_with("it has 73727 bytes, and a state file 73728")
    );
    disk.put(NAME, &vec![0; LENGTH]);
    assert!(
        found(&disk)
            .unwrap_err()
            .to_string()
            .ends_with("neither header slot holds a header")
    );
    // Only the known part is read of a file that is longer than memory.
    disk.put(NAME, &good);
    opened(&disk).set_length(1 << 60).unwrap();
    found(&disk).unwrap();
}

/// On a real file: it never grows, has no holes, and its folder need not be writable once it is there.
#[test]
fn a_real_file_is_allocated_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(NAME);
    let storage: Arc<dyn Storage> = {
        std::fs::File::create_new(&path).unwrap();
        Arc::new(
            FileStorage::open(
                &path,
                Access {
                    write: true,
                    direct: false,
                },
            )
            .unwrap(),
        )
    };
    let header = Header::new(RegionSize::DEFAULT);
    let file = StateFile::create(Arc::clone(&storage), path.clone(), header).unwrap();
    let blocks = storage.allocated_bytes().unwrap();
    assert!(blocks >= LENGTH as u64);
    file.begin(BitmapPolicy::WriteThrough, None, None).unwrap();
    file.end(None).unwrap();
    assert_eq!(storage.length().unwrap(), LENGTH as u64);
    assert_eq!(storage.allocated_bytes().unwrap(), blocks);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_are_survived(
        bytes in proptest::collection::vec(any::<u8>(), 0..2 * PIECE),
        at in 0..2 * SLOT,
    ) {
        oracle::survives_rewriting(&bytes);
        let mut whole = vec![0; LENGTH];
        whole[at..at + bytes.len()].copy_from_slice(&bytes);
        oracle::survives_rewriting(&whole);
    }
}
