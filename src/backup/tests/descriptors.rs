//! Descriptors that are not what was written.

use serde_json::Value;

use super::*;

fn proceed() -> impl FnMut(u64, u64) -> ControlFlow<()> {
    |_, _| ControlFlow::Continue(())
}

fn three() -> (Room, Vec<String>) {
    let room = Room::new();
    let mut points = Vec::new();
    for round in 1..=3u8 {
        room.write(round, u64::from(round) * 10_000, 20_000);
        points.push(room.back_up().name);
    }
    (room, points)
}

/// D1: one that was made upon another starting point has not all that has changed since its parent.
#[test]
fn a_backup_of_another_starting_point_than_its_parent_s_is_not_sound() {
    let (room, points) = three();
    let path = room.path(&format!("backups/{}.qbm", points[2]));
    let mut document: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    document["backup"]["based-on"] = "00112233445566778899aabbccddeeff".into();
    fs::write(&path, document.to_string()).unwrap();
    let folder = room.folder();
    let verified = folder.verify(&mut proceed()).unwrap();
    assert!(verified[..2].iter().all(|it| it.error.is_none()), "{verified:?}");
    let words = format!(
        "the backup {} was made with what had changed since \"00112233445566778899aabbccddeeff\", where {}, the newest \
         one then, neither starts nor is based on",
        points[2], points[1]
    );
    assert_eq!(verified[2].error.as_ref().unwrap().message(), words);
    let point = folder.find("latest").unwrap();
    for to in [room.path("restored.img"), room.path("vm/disk-data.img")] {
        let restored = Restore::new().run(&folder, point, &to, &mut proceed());
        assert!(restored.unwrap_err().message().ends_with(&words));
    }
    let prune = room.folder().prune(&Keep::new().last(1), &mut proceed());
    assert!(prune.unwrap_err().message().ends_with(&words));
    // The next one stands on nothing of it.
    assert_eq!(room.back_up().kind(), BackupKind::Full);
}
