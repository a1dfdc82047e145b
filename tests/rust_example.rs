//! The Rust example runs, and leaves a disk that opens.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

#[path = "../examples/roundtrip.rs"]
#[allow(dead_code, reason = "its main reads the command line")]
mod example;

#[test]
fn the_round_trip_of_the_example() {
    let folder = tempfile::tempdir().expect("a folder for the disk");
    let path = folder.path().join("rust.qbm");
    example::round_trip(&path).expect("the example runs");
    assert_eq!(qbm::Disk::open(&path).expect("its disk opens").length(), 4 << 20);
}
