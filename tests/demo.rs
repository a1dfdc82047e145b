//! The demo runs whole, with the library and the tool of this build, and its table tells the story that it is for.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{libraries, must, root, skipped};

/// A row of the table.
struct Row<'o> {
    what: &'o str,
    kind: &'o str,
    written: Option<u64>,
    stored: u64,
}

impl<'o> Row<'o> {
    /// The last four columns are one word each.
    fn read(line: &'o str) -> Self {
        let mut what = line;
        let mut last = || {
            let (rest, word) = what
                .rsplit_once(char::is_whitespace)
                .unwrap_or_else(|| panic!("too few columns: {line:?}"));
            what = rest.trim_end();
            word
        };
        let (_, stored, written, kind) = (last(), last(), last(), last());
        Self {
            what,
            kind,
            written: written.parse().ok(),
            stored: stored.parse().expect("a number of bytes"),
        }
    }
}

#[test]
fn a_kill_costs_an_incremental_backup_and_a_qcow2_a_full_copy() {
    let tool = Path::new(env!("CARGO_BIN_EXE_qbm")).parent().expect("its folder");
    let path = std::env::var("PATH").unwrap_or_default();
    let said = must(
        Command::new(root().join("examples/demo.sh"))
            .env("PATH", format!("{}:{path}", tool.display()))
            .env("QBM_SOURCE", root())
            .env("QBM_LIBRARY", libraries().join("libqbm.so")),
    );
    if let Some(why) = said.lines().find(|line| line.starts_with("nothing is shown")) {
        skipped(format_args!("the demo: {why}"));
        return;
    }
    let (_, table) = said
        .rsplit_once("\n\n")
        .unwrap_or_else(|| panic!("no table:\n{said}"));
    let rows: Vec<Row<'_>> = table.lines().skip(1).map(Row::read).collect();
    let kinds: Vec<_> = rows.iter().map(|row| (row.what, row.kind)).collect();
    let raw = [
        ("raw: the first backup", "full"),
        ("raw: the next one", "incremental"),
        ("raw: kill -9 in the next one", "none"),
        ("raw: started again, the next one", "incremental"),
        ("raw: guests stopped, the next one", "incremental"),
    ];
    assert_eq!(kinds[..raw.len().min(kinds.len())], raw, "{said}");
    let full = rows[0].stored;
    assert!(full > 64 << 20, "{said}");
    for row in rows.iter().filter(|row| row.kind == "incremental") {
        assert!(row.written > Some(0), "{}: {said}", row.what);
        assert!(row.stored > 0 && row.stored < full / 4, "{}: {said}", row.what);
    }
    if let Some(why) = said.lines().find(|line| line.contains("is not shown")) {
        skipped(format_args!("a part of the demo: {why}"));
        return;
    }
    let qcow2 = [
        ("qcow2: the first copy", "full"),
        ("qcow2: kill -9, the next one", "full"),
    ];
    assert_eq!(kinds[raw.len()..], qcow2, "{said}");
    assert!(
        rows.iter().skip(raw.len()).all(|row| row.stored > full / 2),
        "{said}"
    );
    assert!(said.contains("in-use"), "{said}");
}
