//! `qbm map --picture`: to the letter where there are letters, in colours on a terminal, and as SVG.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::FromRawFd as _;
use std::process::Stdio;

use super::room::{Room, TOOL, text};

/// 8 MiB: data in the first MiB and in a piece at 3 MiB, and then, seen by `nightly`, 64 KiB at 2 MiB and 3 MiB from
/// 4 MiB on; by `scratch`, 64 KiB at 7 MiB.
fn room_with_data() -> Room {
    let room = Room::new();
    room.done(&["create", "-q", "disk.qbm", "8M"]);
    room.guest_writes("disk.qbm", 0, 1 << 20);
    room.guest_writes("disk.qbm", 3 << 20, 4096);
    room.done(&["bitmap", "--add", "disk.qbm", "nightly"]);
    room.guest_writes("disk.qbm", 2 << 20, 1);
    room.guest_writes("disk.qbm", 4 << 20, 3 << 20);
    room.done(&["bitmap", "--disable", "disk.qbm", "nightly"]);
    room.done(&["bitmap", "--add", "disk.qbm", "scratch"]);
    room.guest_writes("disk.qbm", 7 << 20, 1);
    room
}

const ANY: &str = "\
disk.qbm: 8 MiB, 8 KiB a cell
      0 B ################################################################
  512 KiB ################################################################
    1 MiB ................................................................
  1.5 MiB ................................................................
    2 MiB DDDDDDDD........................................................
  2.5 MiB ................................................................
    3 MiB -...............................................................
  3.5 MiB ................................................................
    4 MiB DDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDD
  4.5 MiB DDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDD
    5 MiB DDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDD
  5.5 MiB DDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDD
    6 MiB DDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDD
  6.5 MiB DDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDD
    7 MiB DDDDDDDD........................................................
  7.5 MiB ................................................................
. zeros   - some data   # data   d some dirty   D dirty
data: 4.01 MiB (4206592 bytes)
dirty: 3.12 MiB (3276800 bytes) in any of 2 bitmaps
";

#[test]
fn a_picture_in_letters_shows_what_is_dirty_in_any_bitmap() {
    let room = room_with_data();
    assert_eq!(room.done(&["map", "--picture", "disk.qbm"]), ANY);
    // Bytes that both have are counted once.
    room.done(&["bitmap", "--merge", "nightly", "disk.qbm", "scratch"]);
    assert_eq!(room.done(&["map", "--picture=-", "disk.qbm"]), ANY);
}

#[test]
fn a_picture_of_a_part_and_of_one_bitmap() {
    let room = room_with_data();
    let picture = ["map", "--picture", "--bitmap", "nightly"];
    assert_eq!(
        room.done(&[&picture[..], &["-s", "6.9M", "-l", "200k", "disk.qbm"]].concat()),
        "disk.qbm: 200 KiB at 6.9 MiB, 512 B a cell\n  \
         6.9 MiB DDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDD\n \
         6.93 MiB DDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDD\n \
         6.96 MiB DDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDD\n \
         6.99 MiB DDDDDDDDDDDDd#######-...........................................\n \
         7.02 MiB ................................................................\n \
         7.06 MiB ................................................................\n \
         7.09 MiB ................\n\
         . zeros   - some data   # data   d some dirty   D dirty\n\
         data: 106 KiB (108954 bytes)\n\
         dirty: 102 KiB (104858 bytes) in \"nightly\"\n"
    );
}

#[test]
fn a_picture_of_a_disk_without_bitmaps_or_without_bytes() {
    let room = Room::new();
    room.done(&["create", "-q", "disk.qbm", "1b"]);
    assert_eq!(
        room.done(&["map", "--picture", "disk.qbm"]),
        "disk.qbm: 1 B, 512 B a cell\n      \
         0 B .\n\
         . zeros   - some data   # data\n\
         data: 0 B (0 bytes)\n"
    );
    assert_eq!(
        room.done(&["map", "--picture", "-s", "1b", "disk.qbm"]),
        "disk.qbm: 0 B at 1 B, 512 B a cell\n\
         . zeros   - some data   # data\n\
         data: 0 B (0 bytes)\n"
    );
}

/// What the tool prints on a terminal that is so wide.
fn on_terminal(room: &Room, width: u16, environment: &[(&str, &str)]) -> String {
    let size = libc::winsize {
        ws_row: 40,
        ws_col: width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: two places for descriptors, no name and no settings, and a size that outlives the call.
    let opened = unsafe {
        libc::openpty(
            &raw mut master,
            &raw mut slave,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            (&raw const size).cast_mut(),
        )
    };
    assert_eq!(opened, 0, "a terminal");
    // SAFETY: both are open, and nobody else's.
    let (mut master, slave) = unsafe { (File::from_raw_fd(master), File::from_raw_fd(slave)) };
    let mut tool = room
        .command(TOOL, &["map", "--picture", "disk.qbm"])
        .env_remove("NO_COLOR")
        .env("TERM", "xterm")
        .envs(environment.iter().copied())
        .stdout(Stdio::from(slave))
        .spawn()
        .expect("the tool starts");
    // The terminal holds less than a picture in colours, so it is read while the tool writes. When the last writer
    // has gone, reading fails with EIO; that is its end of file.
    let mut said = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(count @ 1..) = master.read(&mut piece) {
        said.extend_from_slice(&piece[..count]);
    }
    assert!(tool.wait().expect("it ends").success());
    text(&said).replace("\r\n", "\n")
}

#[test]
fn a_terminal_gets_colours_unless_it_wants_none() {
    let room = room_with_data();
    let picture = on_terminal(&room, 80, &[]);
    let full = |colour: u8, glyph: &str, count| format!("\x1b[{colour}m{}\x1b[0m", glyph.repeat(count));
    let rows: Vec<&str> = picture.lines().collect();
    assert_eq!(rows[1], format!("      0 B {}", full(34, "█", 64)));
    assert_eq!(
        rows[5],
        format!("    2 MiB {}{}", full(33, "█", 8), full(90, "·", 56))
    );
    assert_eq!(
        rows[7],
        format!("    3 MiB {}{}", full(34, "▒", 1), full(90, "·", 63))
    );
    assert!(rows[17].contains("\x1b[33m▒\x1b[0m some dirty"), "{}", rows[17]);

    for environment in [("NO_COLOR", "1"), ("TERM", "dumb"), ("TERM", "")] {
        assert_eq!(on_terminal(&room, 80, &[environment]), ANY, "{environment:?}");
    }
    // An empty NO_COLOR is none.
    assert_eq!(on_terminal(&room, 80, &[("NO_COLOR", "")]), picture);
}

#[test]
fn a_picture_is_no_wider_than_the_terminal() {
    let room = room_with_data();
    for (width, cells) in [
        (18, 8),
        (26, 16),
        (41, 16),
        (42, 32),
        (79, 64),
        (137, 64),
        (138, 128),
        (500, 128),
    ] {
        let picture = on_terminal(&room, width, &[("NO_COLOR", "1")]);
        let grid: Vec<&str> = picture.lines().skip(1).take(16).collect();
        assert!(
            grid.iter().all(|row| row.chars().count() == 10 + cells),
            "{width}: {picture}"
        );
        let legend = picture
            .lines()
            .skip(17)
            .take_while(|row| !row.starts_with("data:"));
        assert!(
            legend
                .into_iter()
                .all(|row| row.chars().count() <= usize::from(width)),
            "{width}: {picture}"
        );
    }
}

#[test]
fn a_picture_as_svg_is_well_formed_and_shows_every_cell_once() {
    let room = room_with_data();
    let name = "a<b>&\"c\".qbm";
    std::fs::rename(room.path("disk.qbm"), room.path(name)).expect("renamed");
    room.write("disk.svg", b"yesterday's");
    assert_eq!(room.done(&["map", "--picture=disk.svg", name]), "");
    let svg = text(&room.read("disk.svg"));
    well_formed(&svg);
    assert!(svg.contains("<title>a&lt;b&gt;&amp;\"c\".qbm: 8 MiB, 8 KiB a cell</title>"));
    assert!(svg.contains("; dirty: 3.12 MiB (3276800 bytes) in any of 2 bitmaps</text>"));
    let cells = |colour: &str| {
        svg.lines()
            .filter(|line| line.starts_with(&format!("<path fill=\"{colour}\"")))
            .map(|line| line.matches('M').count())
            .sum::<usize>()
    };
    let [zeros, some_data, data, some_dirty, dirty] =
        ["#e8e8e8", "#9ecae1", "#3182bd", "#fdae6b", "#d94801"].map(cells);
    assert_eq!((some_data, data, some_dirty, dirty), (1, 128, 0, 400));
    assert_eq!(zeros + some_data + data + dirty, 1024);
}

/// Every tag is closed in its turn, attributes are quoted, and `&` and `<` begin what they should.
fn well_formed(document: &str) {
    let mut open = Vec::new();
    let mut rest = document;
    while let Some((words, behind)) = rest.split_once('<') {
        for reference in words.split('&').skip(1) {
            let known = ["amp;", "lt;", "gt;"]
                .iter()
                .any(|known| reference.starts_with(known));
            assert!(known, "&{reference}");
        }
        let (tag, behind) = behind.split_once('>').expect("a tag that ends");
        rest = behind;
        assert!(!tag.contains('<'), "{tag}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "</{name}> closes another");
            continue;
        }
        let empty = tag.ends_with('/');
        let tag = tag.trim_end_matches('/');
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        let mut attributes = attributes;
        while !attributes.is_empty() {
            let (key, value) = attributes.split_once("=\"").expect("a quoted value");
            assert!(
                key.trim().chars().all(|c| c.is_ascii_alphabetic() || c == '-'),
                "{key}"
            );
            attributes = value.split_once('"').expect("a closed value").1;
        }
        if !empty {
            open.push(name);
        }
    }
    assert_eq!((open, rest), (Vec::new(), "\n"));
}
