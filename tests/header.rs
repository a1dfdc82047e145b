//! The example in the header's first comment is a program that runs: `c-tests/header_example.c`.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

#[test]
fn the_example_of_the_header_is_a_story() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/");
    let read = |name: &str| std::fs::read_to_string(folder.to_owned() + name).expect(name);
    let (header, story) = (read("include/qbm.h"), read("c-tests/header_example.c"));
    let comment = header.split("*/").next().unwrap_or_default();
    let example: Vec<&str> = comment
        .lines()
        .filter_map(|line| line.strip_prefix(" *     "))
        .collect();
    assert!(example.len() > 10, "the header begins with no example: {comment}");
    // In order, and with nothing between its lines.
    let mut lines = story
        .lines()
        .map(|line| line.strip_prefix("    ").unwrap_or(line));
    assert!(lines.by_ref().any(|line| line == example[0]), "{}", example[0]);
    for wanted in &example[1..] {
        let found = lines.by_ref().find(|line| !line.is_empty());
        assert_eq!(found, Some(*wanted));
    }
}
