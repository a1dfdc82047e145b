//! Descriptors that are not what was written: of another disk than their record, of another kind, too long.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;

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

/// No checksum covers the descriptor: what leads elsewhere than its record says is told by the two of them.
#[test]
fn a_descriptor_that_leads_elsewhere_than_its_record_is_damaged() {
    let (room, points) = three();
    let [first, second, third] = [&points[0], &points[1], &points[2]];
    let name = |end: &str| Value::from(format!("{first}{end}"));
    // All files that these name are there, and are such files; in the second backup, and in the full one.
    let cases: [(&str, &str, Value); 16] = [
        (second, "/QBM/image/file", name("-data.img")),
        (second, "/QBM/image/format", "qcow2".into()),
        (
            second,
            "/QBM/bitmaps/allocation/file",
            format!("{third}-allocation.bitmap").into(),
        ),
        (
            second,
            "/QBM/bitmaps/allocation/backing/file",
            format!("{third}.qbm").into(),
        ),
        (second, "/QBM/bitmaps/allocation/backing/format", "raw".into()),
        (second, "/QBM/bitmaps/allocation/granularity-bytes", 2048.into()),
        (second, "/backup/granularity", 2048.into()),
        (second, "/backup/data-file", name("-data.img")),
        (
            second,
            "/backup/bitmap-file",
            format!("{third}-allocation.bitmap").into(),
        ),
        (second, "/backup/bitmap-file", Value::Null),
        (second, "/backup/bitmap-checksum", Value::Null),
        (second, "/backup/parent", third.as_str().into()),
        (second, "/backup/parent", Value::Null),
        (second, "/backup/kind", "full".into()),
        (first, "/QBM/image/file", format!("{second}-data.img").into()),
        (first, "/backup/bitmap-checksum", "sha256:00".into()),
    ];
    for (spoilt, key, value) in cases {
        let path = room.path(&format!("backups/{spoilt}.qbm"));
        let sound = fs::read(&path).unwrap();
        let mut document: Value = serde_json::from_slice(&sound).unwrap();
        *document.pointer_mut(key).unwrap() = value.clone();
        fs::write(&path, document.to_string()).unwrap();
        let before = files(&room.path("backups"));

        let folder = room.folder();
        let [(damaged, error)] = folder.damaged() else {
            panic!("{key}: {:?}", folder.damaged());
        };
        let said = error.message();
        let (dotted, value) = (key[1..].replace('/', "."), value.to_string());
        assert_eq!(damaged, spoilt);
        assert!(said.starts_with(&path.display().to_string()), "{said}");
        assert!(
            said.contains(&dotted) || key.starts_with("/backup"),
            "{said} without {dotted}"
        );
        assert!(
            said.contains(&value) || said.contains(value.trim_matches('"')) || key == "/backup/parent",
            "{said} without {value}"
        );
        let verified = folder.verify(&mut proceed()).unwrap();
        for it in verified.iter().filter(|it| it.name != *first) {
            assert!(it.error.is_some(), "{key}: {it:?}");
        }
        let prune = room.folder().prune(&Keep::new().last(1), &mut proceed());
        assert_eq!(prune.unwrap_err().code(), ErrorCode::FileInvalid, "{key}");
        assert!(folder.find(spoilt).unwrap_err().message().contains(said), "{key}");
        let to = room.path("restored.img");
        let error = Restore::new()
            .run(&folder, folder.find(third).unwrap(), &to, &mut proceed())
            .unwrap_err();
        assert!(error.message().contains("cannot be read: "), "{error}");
        assert!(!to.exists());
        assert!(files(&room.path("backups")) == before);
        fs::write(&path, sound).unwrap();
    }
    assert!(room.restored("latest") == room.content());
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

#[test]
fn what_has_the_name_of_a_descriptor_and_is_none_is_told_and_not_read() {
    let (room, points) = three();
    let folder = room.path("backups");
    let fifo = folder.join("20200101T000000Z.qbm");
    let name = CString::new(fifo.as_os_str().as_bytes()).unwrap();
    // SAFETY: `name` ends with a zero byte.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let sparse = folder.join("20200101T000001Z.qbm");
    fs::File::create(&sparse).unwrap().set_len(600 << 20).unwrap();
    fs::create_dir(folder.join("20200101T000002Z.qbm")).unwrap();
    let opened = room.folder();
    assert_eq!(opened.points().len(), points.len());
    let said: Vec<&str> = opened
        .damaged()
        .iter()
        .map(|(_, error)| error.message())
        .collect();
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(
        said[0].starts_with(&format!("cannot open {}: ", fifo.display())),
        "{said:?}"
    );
    assert_eq!(
        said[1],
        format!(
            "{}: 629145600 bytes are more than the 33554432 that a descriptor has at most",
            sparse.display()
        )
    );
}

/// Sets a number of a backup's record.
fn set(room: &Room, name: &str, key: &str, value: u64) {
    let path = room.path(&format!("backups/{name}.qbm"));
    let mut document: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    document["backup"][key] = value.into();
    fs::write(path, document.to_string()).unwrap();
}

#[test]
fn lengths_that_no_disk_has_are_told_and_summed_up_by_nobody() {
    let (room, points) = three();
    let most = crate::MAX_LENGTH;
    for key in ["length", "stored"] {
        set(&room, &points[1], key, most + 1);
        let folder = room.folder();
        let said = folder.damaged()[0].1.message();
        let file = room.path(&format!("backups/{}.qbm", points[1]));
        let words = "9223372036854775808 is more than a disk can have, 2^63 - 1";
        assert_eq!(said, format!("{}: backup.{key}: {words}", file.display()));
        set(&room, &points[1], key, 1);
    }
    // Three of them are more than a number holds.
    for name in &points {
        set(&room, name, "length", most);
    }
    let folder = room.folder();
    assert_eq!(folder.damaged().len(), 0);
    for it in folder.verify(&mut proceed()).unwrap() {
        let said = it.error.unwrap();
        assert!(
            said.message()
                .contains("is of a disk of 9223372036854775807 bytes"),
            "{said}"
        );
    }
    let latest = folder.find("latest").unwrap();
    let onto = room.path("vm/disk-data.img");
    for to in [&room.path("new.img"), &onto] {
        let restored = Restore::new().run(&folder, latest, to, &mut proceed());
        assert_eq!(restored.unwrap_err().code(), ErrorCode::FileInvalid);
    }
    let prune = room.folder().prune(&Keep::new().last(1), &mut proceed());
    assert_eq!(prune.unwrap_err().code(), ErrorCode::FileInvalid);
    assert_eq!(room.back_up().kind(), BackupKind::Full);
}

/// One that comes behind it would count the same, and could stand on nothing.
#[test]
fn behind_the_highest_sequence_comes_no_backup() {
    let (room, points) = three();
    set(&room, &points[2], "sequence", u64::MAX - 1);
    room.write(4, 40_000, 20_000);
    let last = room.back_up();
    assert_eq!((last.sequence, last.kind()), (u64::MAX, BackupKind::Incremental));
    assert!(room.restored("latest") == room.content());
    room.write(5, 50_000, 20_000);
    let before = files(&room.path("backups"));
    let error = room.try_back_up(&small(), "backups").unwrap_err();
    let words = "has the highest sequence that there is; use another folder";
    assert!(error.message().ends_with(words), "{error}");
    assert!(files(&room.path("backups")) == before);
    let verified = room.folder().verify(&mut proceed()).unwrap();
    assert!(verified.iter().all(|it| it.error.is_none()), "{verified:?}");
}

/// The order of backups is that of their sequences, whatever the clock did.
#[test]
fn no_older_backup_is_taken_for_the_latest_where_that_cannot_be_read() {
    let (room, points) = three();
    let backups = room.path("backups");
    let spoil = |name: &str, new: &str| {
        fs::remove_file(backups.join(format!("{name}.qbm"))).unwrap();
        fs::write(backups.join(format!("{new}.qbm")), "{}").unwrap();
    };
    // One of the middle may be damaged that says that it was begun later.
    spoil(&points[1], "20990101T000000Z-2");
    assert_eq!(room.folder().find("latest").unwrap().name, points[2]);
    // And the newest, that it was begun earlier.
    spoil(&points[2], "20200101T000000Z-3");
    let folder = room.folder();
    let error = folder.find("latest").unwrap_err();
    let words = format!(
        "which backup is the latest is not known ({} is the newest of the others): the backup 20200101T000000Z-3 cannot be \
         read: ",
        points[0]
    );
    assert!(error.message().starts_with(&words), "{error}");
}
