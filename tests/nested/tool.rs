//! The tool on disks whose image is a disk.

use std::process::{Command, Output};

use serde_json::Value;

use crate::*;

fn tool(room: &Room, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_qbm"))
        .args(args)
        .current_dir(room.path(""))
        .output()
        .expect("the tool starts")
}

fn said(room: &Room, args: &[&str]) -> String {
    let output = tool(room, args);
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn json(room: &Room, args: &[&str]) -> Value {
    serde_json::from_str(&said(room, args)).expect("JSON")
}

fn made() -> Room {
    let room = Room::new();
    room.overlay("inner.qbm", "low.img");
    let words = said(
        &room,
        &["create", "--image", "inner.qbm", "-f", "qbm", "outer.qbm"],
    );
    assert!(words.contains("data in inner.qbm"), "{words}");
    let disk = room.open("outer.qbm");
    add(&disk, "bits", 4096);
    disk.write(&[7; 3000], 9000, NONE).expect("a write");
    disk.close().expect("closed");
    room
}

#[test]
fn it_makes_and_shows_them() {
    let room = made();
    let facts = json(&room, &["info", "--output", "json", "outer.qbm"]);
    assert_eq!(facts["format-specific"]["data"]["image"]["filename"], "inner.qbm");
    assert_eq!(facts["format-specific"]["data"]["image"]["format"], "qbm");
    let chain = json(
        &room,
        &["info", "--backing-chain", "--output", "json", "outer.qbm"],
    );
    let list: Vec<_> = chain
        .as_array()
        .expect("a list")
        .iter()
        .map(|it| (it["filename"].as_str().expect("a name"), it["part-of"].as_u64()))
        .collect();
    assert_eq!(
        list,
        [("outer.qbm", None), ("inner.qbm", Some(0)), ("low.img", Some(0))]
    );
    let words = said(&room, &["info", "--backing-chain", "outer.qbm"]);
    assert!(
        words.contains("part of: the image of block 1\ndescriptor: inner.qbm"),
        "{words}"
    );
    let map = json(&room, &["map", "--output", "json", "outer.qbm"]);
    let extents = map.as_array().expect("a list");
    assert!(extents.iter().all(|it| it["depth"] == 0), "{map}");
    let human = said(&room, &["map", "outer.qbm"]);
    assert!(
        human.contains("inner-data.img") && human.contains("low.img"),
        "{human}"
    );
    // Those that read a disk.
    let content = room.content("outer.qbm");
    said(&room, &["convert", "outer.qbm", "copy.img"]);
    assert_same(&std::fs::read(room.path("copy.img")).expect("the copy"), &content);
    said(&room, &["compare", "-F", "raw", "outer.qbm", "copy.img"]);
    said(
        &room,
        &["backup", "outer.qbm", "--bitmap", "bits", "--to", "backups"],
    );
    said(&room, &["backup", "verify", "backups"]);
    said(&room, &["restore", "backups", "--to", "restored.img"]);
    assert_same(
        &std::fs::read(room.path("restored.img")).expect("the copy"),
        &content,
    );
    said(&room, &["resize", "outer.qbm", "+1M"]);
    assert_eq!(room.content("inner.qbm").len(), content.len() + (1 << 20));
    said(&room, &["snapshot", "outer.qbm", "before.qbm"]);
    said(&room, &["commit", "outer.qbm"]);
    assert_same(&room.content("outer.qbm")[..content.len()], &content);
}

/// The codes and findings of a check, after which the same is found of both disks.
#[test]
fn it_checks_both() {
    let room = made();
    let sound = tool(&room, &["check", "outer.qbm"]);
    assert_eq!(sound.status.code(), Some(0), "{sound:?}");
    let kinds = |args: &[&str]| {
        let output = tool(&room, args);
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let found: Vec<_> = report["findings"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|it| {
                let of_inner = it["message"].as_str().expect("words").starts_with("inner.qbm: ");
                (
                    it["kind"].as_str().expect("a kind").to_owned(),
                    of_inner,
                    it["fixed"] == true,
                )
            })
            .collect();
        (output.status.code(), found)
    };
    let check = ["check", "--output", "json", "outer.qbm"];
    let repair = ["check", "-r", "all", "--output", "json", "outer.qbm"];
    let own = |kind: &str, inner, fixed| (kind.to_owned(), inner, fixed);
    let disk = room.open("outer.qbm");
    disk.write(&[8; 3000], 90_000, NONE).expect("a write");
    disk.die();
    let unclosed = |fixed| vec![own("not-closed", false, fixed), own("not-closed", true, fixed)];
    assert_eq!(kinds(&check), (Some(0), unclosed(false)));
    assert_eq!(kinds(&repair), (Some(0), unclosed(true)));
    assert_eq!(kinds(&check), (Some(0), Vec::new()));
    std::fs::write(room.path("inner-old.bitmap"), [0; 64]).expect("written");
    assert_eq!(kinds(&check), (Some(3), vec![own("leftover", true, false)]));
    assert_eq!(kinds(&repair), (Some(0), vec![own("leftover", true, true)]));
    let disk = room.open("inner.qbm");
    disk.write(&[8; 3000], 90_000, NONE).expect("a write");
    disk.close().expect("closed");
    let foreign = vec![own("foreign-writes", false, false)];
    assert_eq!(kinds(&check), (Some(2), foreign.clone()));
    assert_eq!(kinds(&repair), (Some(2), foreign));
    let (code, _) = kinds(&["check", "-r", "dirty", "--output", "json", "outer.qbm"]);
    assert_eq!(code, Some(0));
    assert_eq!(kinds(&check), (Some(0), Vec::new()));
    assert!(room.dirty("outer.qbm", "bits").iter().all(|it| *it));
    std::fs::remove_file(room.path("inner-data.img")).expect("removed");
    assert_eq!(tool(&room, &check).status.code(), Some(2));
}
