//! The bitmaps of a qcow2 over NBD, as backup programs see them.

use std::path::Path;
use std::process::Command;

use super::common::must;
use super::nbd::Server;

/// A qcow2 served for reading, with these bitmaps.
pub fn serve(folder: &Path, image: &Path, bitmaps: &[String]) -> Server {
    let mut options = vec!["-f", "qcow2", "--read-only"];
    for name in bitmaps {
        options.extend(["-B", name]);
    }
    Server::start(folder, &options, image)
}

/// What QEMU calls dirty on a disk of `length` bytes, as start and end; extents that touch are one.
pub fn dirty(server: &Server, name: &str, length: u64) -> Vec<(u64, u64)> {
    let said = must(
        Command::new("nbdinfo")
            .arg(format!("--map=qemu:dirty-bitmap:{name}"))
            .arg("--json")
            .arg(server.uri()),
    );
    let extents: Vec<serde_json::Value> = serde_json::from_str(&said).expect("JSON");
    let mut found: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    for extent in &extents {
        let number = |key| extent[key].as_u64().unwrap_or_else(|| panic!("{key} in {said}"));
        let (start, end) = (number("offset"), number("offset") + number("length"));
        assert_eq!(start, at, "the map has a gap");
        at = end;
        match (number("type"), found.last_mut()) {
            (0, _) => (),
            (1, Some(last)) if last.1 == start => last.1 = end,
            (1, _) => found.push((start, end)),
            (other, _) => panic!("type {other} in {said}"),
        }
    }
    assert_eq!(at, length, "the map ends early");
    found
}
