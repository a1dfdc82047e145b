//! Programs that may hang: a deadlock in a story is to fail its test, not to keep the machine for ever.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

/// Far beyond what any story takes, under valgrind and on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// How the program ended, and all that it said. Panics where it does not start or has to be killed.
pub fn run_limited(command: &mut Command) -> (ExitStatus, String) {
    // A file, not a pipe: it is never full.
    let mut said = tempfile::tempfile().expect("a file for what is said");
    let copy = |file: &File| file.try_clone().expect("the same file once more");
    let mut program = command
        .stdout(copy(&said))
        .stderr(copy(&said))
        .spawn()
        .unwrap_or_else(|why| panic!("{command:?} does not start: {why}"));
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = program.try_wait().expect("its state") {
            break Some(status);
        }
        if begun.elapsed() > LIMIT {
            let _ = program.kill();
            let _ = program.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut text = Vec::new();
    said.seek(SeekFrom::Start(0)).expect("its start");
    said.read_to_end(&mut text).expect("what was said");
    let text = String::from_utf8_lossy(&text).into_owned();
    match status {
        Some(status) => (status, text),
        None => panic!("{command:?} hangs, and was killed after {LIMIT:?}\n{text}"),
    }
}
