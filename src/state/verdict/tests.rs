use std::path::Path;

use crate::bitmap::BitmapPolicy;
use crate::state::{Evidence, Found, Header, IntentMap, NoEvidence, RegionSize, StateFile, Verdict};
use crate::storage::simulated::SimDisk;
use crate::storage::{Folder, Role};
use crate::units::ByteRange;

const MIB: u64 = 1 << 20;
const LENGTH: u64 = 1000 * MIB;

fn epoch(epoch: &str) -> Evidence {
    Evidence::of_epoch(epoch).unwrap()
}

/// A state file on which regions 0, 1 and the last one are active, as `prepare` left the header.
fn found(prepare: impl FnOnce(&StateFile)) -> Found {
    let disk = SimDisk::new();
    let storage = disk.create(Role::State, Path::new("s")).unwrap();
    let header = Header::new(RegionSize::DEFAULT);
    let file = StateFile::create(storage.clone(), "s".into(), header).unwrap();
    prepare(&file);
    let map = IntentMap::new(
        file.into(),
        crate::state::map::RegionSet::new(),
        LENGTH,
        std::time::Duration::ZERO,
    )
    .unwrap();
    for range in [
        ByteRange::between(0, 65 * MIB),
        ByteRange::between(LENGTH - 1, LENGTH),
    ] {
        drop(map.pin(range).unwrap());
    }
    StateFile::inspect(&*storage, Path::new("s")).unwrap().unwrap()
}

fn widened(verdict: Verdict) -> String {
    match verdict {
        Verdict::Widen { ranges, why } => {
            let expected = [
                ByteRange::between(0, 128 * MIB),
                ByteRange::between(960 * MIB, LENGTH),
            ];
            assert_eq!(ranges, expected);
            why
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_evidence_under_write_through_without_a_failure_is_exact() {
    let through = BitmapPolicy::WriteThrough;
    let now = Ok(epoch("e"));
    let begun = |policy, evidence| found(|file| file.begin(policy, evidence, None).unwrap());

    assert_eq!(
        begun(through, Some(epoch("e"))).verdict(&now, LENGTH),
        Verdict::Exact
    );
    assert_eq!(found(|_| ()).verdict(&now, LENGTH), Verdict::Clean);

    let why = |found: &Found, now: &Result<Evidence, NoEvidence>| widened(found.verdict(now, LENGTH));
    let vouched = begun(through, Some(epoch("e")));
    assert_eq!(
        why(&vouched, &Ok(epoch("f"))),
        r#"the cache epoch was "e" and is "f""#
    );
    assert_eq!(why(&vouched, &Err(NoEvidence::because("no /proc"))), "no /proc");
    assert_eq!(
        why(&begun(through, None), &now),
        "there was no evidence to keep when the disk was opened"
    );
    assert_eq!(
        why(&begun(BitmapPolicy::Lazy, Some(epoch("e"))), &now),
        "the bitmaps were saved lazily"
    );
    let failed = found(|file| {
        file.begin(through, Some(epoch("e")), None).unwrap();
        file.note_failure().unwrap();
    });
    assert_eq!(why(&failed, &now), "a bitmap file could not be written");
}

#[test]
fn what_lies_behind_the_disk_s_end_is_not_widened() {
    let found = found(|file| file.begin(BitmapPolicy::Lazy, None, None).unwrap());
    match found.verdict(&Err(NoEvidence::because("none")), MIB) {
        Verdict::Widen { ranges, .. } => assert_eq!(ranges, [ByteRange::between(0, MIB)]),
        other => panic!("{other:?}"),
    }
}
