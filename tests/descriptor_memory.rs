//! How much memory a descriptor can make the library take: a bound that holds for the worst 32 MiB there are.
//!
//! In a file of its own, because it counts every allocation of the process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use qbm::descriptor::Descriptor;

/// Counts the bytes that are allocated, and the most that ever were.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grown(bytes: usize) {
    PEAK.fetch_max(NOW.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promise, handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise, handed on.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // The new and the old one are counted together: both are there while the content moves.
        grown(size);
        // SAFETY: the caller's promise, handed on.
        let moved = unsafe { System.realloc(memory, layout, size) };
        NOW.fetch_sub(layout.size(), Relaxed);
        moved
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The longest descriptor.
const LIMIT: usize = 32 << 20;

/// Long enough to see what grows with a document, short enough for an everyday test run.
const SOME: usize = 4 << 20;

/// A document of nearly `length` bytes around `content`, which is told how much room it has.
fn document(length: usize, before: &str, behind: &str, content: impl Fn(usize) -> String) -> Vec<u8> {
    let image = r#""version":1,"image":{"file":"d","format":"raw"}"#;
    let (before, behind) = (format!(r#"{{"QBM":{{{image},{before}"#), format!("{behind}}}}}"));
    let room = length - before.len() - behind.len();
    let document = format!("{before}{}{behind}", content(room));
    assert!(
        (length - length / 32..=length).contains(&document.len()),
        "{}",
        document.len()
    );
    document.into_bytes()
}

/// As many of `item` as fit into `room`, with commas between.
fn fill(room: usize, item: impl Fn(usize) -> String) -> String {
    let mut out = String::with_capacity(room);
    for index in 0.. {
        let next = item(index);
        if out.len() + next.len() + 1 > room {
            break;
        }
        if index > 0 {
            out.push(',');
        }
        out.push_str(&next);
    }
    out
}

/// An unknown list full of `item`.
fn list(item: &str) -> Vec<u8> {
    document(SOME, r#""bitmaps":{},"x":["#, "]", |room| {
        fill(room, |_| item.to_owned())
    })
}

/// A string full of escapes, which the parser must collect in a buffer of its own.
fn escapes(room: usize) -> String {
    "\\n".repeat(room / 2)
}

/// As many bitmaps as there may be, long enough to fill a descriptor.
fn bitmaps(room: usize) -> String {
    let most = 65_535;
    let pad = "p".repeat(room / most - 75);
    let bitmap = |index| {
        format!(r#""{index:x}":{{"file":"f","type":"dirty","granularity-bytes":512,"epoch":"{pad}"}}"#)
    };
    (0..most).map(bitmap).collect::<Vec<_>>().join(",")
}

#[test]
fn the_worst_descriptor_stays_within_six_times_its_length() {
    let nothing = r#""bitmaps":{},"#;
    let keys = |value: &'static str| move |room| fill(room, |index| format!(r#""{index:x}":{value}"#));
    let name = r#""bitmaps":{"b":{"type":"dirty","granularity-bytes":512,"file":""#;
    let worst = [
        ("zeros", list("0")),
        ("doubles", list("1e15")),
        ("negative zeros", list("-0")),
        ("doubles that get longer", list("12e99")),
        ("empty objects", list("{}")),
        ("short keys", document(SOME, nothing, "", keys("0"))),
        (
            "short keys of doubles that get longer",
            document(SOME, nothing, "", keys("12e99")),
        ),
        (
            "too many bitmaps",
            document(SOME, r#""bitmaps":{"#, "}", keys("0")),
        ),
        (
            "as many bitmaps as there may be",
            document(LIMIT, r#""bitmaps":{"#, "}", bitmaps),
        ),
        (
            "one long string",
            document(SOME, &format!(r#"{nothing}"x":""#), r#"""#, escapes),
        ),
        (
            "one long key",
            document(SOME, &format!(r#"{nothing}""#), r#"":0"#, escapes),
        ),
        ("one long file name", document(SOME, name, r#""}}"#, escapes)),
    ];
    for (what, document) in worst {
        let before = NOW.load(Relaxed);
        PEAK.store(before, Relaxed);
        let descriptor = Descriptor::parse(&document);
        let peak = PEAK.load(Relaxed) - before;
        let kept = NOW.load(Relaxed) - before;
        #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
        let times = |bytes: usize| bytes as f64 / document.len() as f64;
        let error = descriptor
            .err()
            .map_or(String::new(), |error| format!(" ({error})"));
        println!(
            "{what}: at most {:.2} times, then {:.2} times its length{error}",
            times(peak),
            times(kept)
        );
        assert!(peak < 6 * document.len(), "{what}");
        assert!(kept < 3 * document.len(), "{what}");
    }
}
