//! The tool on images of other formats.

use std::process::Command;

use serde_json::Value;

use crate::room::{MIB, Room};

fn qbm(room: &Room, args: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_qbm"))
        .args(args)
        .current_dir(room.path(""))
        .output()
        .expect("it starts");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).expect("text"))
}

#[track_caller]
fn must(room: &Room, args: &[&str]) -> String {
    let (done, said) = qbm(room, args);
    assert!(done, "{args:?}: {said}");
    said
}

#[test]
fn a_qcow2_becomes_a_disk() {
    let Some(room) = Room::new() else { return };
    room.raw("base.raw", MIB);
    room.img("create -q -f qcow2 -b base.raw -F raw a.qcow2 2M");
    must(&room, &["create", "--image", "a.qcow2", "-f", "qcow2", "a.qbm"]);
    must(&room, &["bitmap", "--add", "a.qbm", "nightly"]);
    must(&room, &["check", "a.qbm"]);
    assert!(must(&room, &["info", "a.qbm"]).contains("image: a.qcow2 (qcow2"));
    let chain = must(&room, &["info", "--backing-chain", "--output", "json", "a.qbm"]);
    let chain: Value = serde_json::from_str(&chain).expect("JSON");
    let formats: Vec<_> = chain
        .as_array()
        .expect("a list")
        .iter()
        .map(|it| it["format"].clone())
        .collect();
    assert_eq!(formats.len(), 2, "{chain}");
    let map = must(&room, &["map", "--output", "json", "a.qbm"]);
    let map: Vec<Value> = serde_json::from_str(&map).expect("JSON");
    let depths: Vec<_> = map
        .iter()
        .map(|it| it["depth"].as_u64().expect("a depth"))
        .collect();
    assert!(depths.contains(&1), "{depths:?}");
    must(&room, &["resize", "a.qbm", "3M"]);
    assert!(must(&room, &["info", "a.qbm"]).contains("3 MiB"));
    room.img("check -q a.qcow2");
    must(&room, &["create", "-b", "a.qbm", "-F", "qbm", "top.qbm"]);
    must(&room, &["create", "-b", "a.qcow2", "-F", "qcow2", "other.qbm"]);
    must(&room, &["check", "other.qbm"]);
}

#[test]
fn what_cannot_be_done_is_said() {
    let Some(room) = Room::new() else { return };
    room.img("create -q -f qcow2 a.qcow2 2M");
    must(&room, &["create", "--image", "a.qcow2", "-f", "qcow2", "a.qbm"]);
    for (args, words) in [
        (&["create", "-f", "qcow2", "b.qbm", "1M"][..], "--image"),
        (
            &["create", "--image", "a.qcow2", "-f", "vpc", "b.qbm"],
            "unknown format",
        ),
        (
            &["create", "--image", "a.qcow2", "-f", "vmdk", "b.qbm"],
            "it is no vmdk",
        ),
        (&["resize", "a.qbm", "2097153"], "whole sectors"),
        (&["export", "a.qbm", "b.qcow2"], "its image is a qcow2"),
    ] {
        let (done, said) = qbm(&room, args);
        assert!(!done && said.contains(words), "{args:?}: {said}");
    }
    assert!(!room.path("b.qbm").exists());
}
