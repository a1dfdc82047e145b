//! The tool killed at random moments: whatever it was about, the folder shows no half backup, and the next run goes on.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::random::Random;
use super::room::Room;

const KILLS: u32 = 60;

/// Starts the tool and kills it after a while. Whether it was still at work.
pub fn killed(room: &Room, args: &[&str], after: Duration) -> bool {
    let mut child = room
        .command(super::room::TOOL, args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    sleep(after);
    let running = child.try_wait().expect("its state").is_none();
    child.kill().expect("killed");
    child.wait().expect("gone");
    running
}

fn names(room: &Room) -> Vec<String> {
    let list = room.json(&["backup", "list", "--output", "json", "backups"]);
    let list = list.as_array().expect("a list");
    list.iter()
        .map(|facts| facts["name"].as_str().expect("a name").to_owned())
        .collect()
}

#[test]
fn a_backup_that_is_killed_at_any_moment_shows_nothing_or_all() {
    let room = Room::new();
    room.done(&["create", "-q", "disk.qbm", "4M"]);
    let backup = [
        "backup", "-q", "--bitmap", "nightly", "-g", "4k", "--to", "backups", "disk.qbm",
    ];
    let prune = ["backup", "prune", "-q", "--keep-last", "3", "backups"];
    room.folder("backups");
    let random = &mut Random::new(7);
    let mut expected: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut usual = Duration::from_millis(50);
    let (mut caught, mut appeared, mut full) = (0, 0, 0);
    for round in 0..KILLS {
        for _ in 0..random.below(4) {
            let len = usize::try_from(1 + random.below(200_000)).expect("small");
            guest_writes(&room, "disk.qbm", random.below(256), random.below(3_900_000), len);
        }
        let content = room.read("disk-data.img");
        let limit = u64::try_from(usual.as_micros()).expect("small");
        caught += u32::from(killed(&room, &backup, Duration::from_micros(random.below(limit))));
        let fresh = |expected: &BTreeMap<String, Vec<u8>>| {
            names(&room)
                .into_iter()
                .filter(|name| !expected.contains_key(name))
                .collect::<Vec<_>>()
        };
        for name in fresh(&expected) {
            appeared += 1;
            expected.insert(name, content.clone());
        }
        if round % 3 == 0 {
            let begun = Instant::now();
            room.done(&backup);
            usual = begun.elapsed();
            let new = fresh(&expected);
            assert_eq!(new.len(), 1);
            expected.extend(new.into_iter().map(|name| (name, content.clone())));
            let list = room.json(&["backup", "list", "--output", "json", "backups"]);
            full += u32::from(list.as_array().and_then(|list| list.last()).expect("one")["parent"].is_null());
        }
        if round % 10 == 9 {
            killed(&room, &prune, Duration::from_micros(random.below(limit)));
            let left = names(&room);
            assert!(left.len() >= 3.min(expected.len()));
            expected.retain(|name, _| left.contains(name));
        }
        if round % 10 == 9 {
            room.done(&["backup", "verify", "--output", "json", "backups"]);
            for (name, content) in &expected {
                room.done(&[
                    "restore",
                    "-q",
                    &format!("backups@{name}"),
                    "--to",
                    "restored.img",
                ]);
                assert!(room.read("restored.img") == *content, "round {round}, {name}");
            }
        }
    }
    room.done(&prune);
    assert_eq!(names(&room).len(), 3);
    eprintln!(
        "{caught} of {KILLS} were killed at work, {appeared} of which, or of the others, had made a backup"
    );
    assert!(caught > KILLS / 3, "{caught}");
    assert!(full <= 2, "{full} full ones: the chain was lost");
}

pub fn guest_writes(room: &Room, disk: &str, byte: u64, offset: u64, len: usize) {
    let disk = qbm::Disk::open(room.path(disk)).expect("it opens");
    let byte = u8::try_from(byte).expect("a byte");
    disk.write(&vec![byte; len], offset, qbm::WriteFlags::empty())
        .expect("written");
    disk.close().expect("closed");
}
