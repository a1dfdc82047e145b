//! A program under strace, which counts its system calls, or has one of them fail.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::{Command, Output};

use super::room::{Room, TOOL};

/// What may fail. Memory is left out.
const CALLS: [&str; 36] = [
    "openat",
    "openat2",
    "read",
    "write",
    "pread64",
    "preadv",
    "pwrite64",
    "pwritev",
    "fsync",
    "fdatasync",
    "sync_file_range",
    "fallocate",
    "ftruncate",
    "copy_file_range",
    "lseek",
    "fstat",
    "newfstatat",
    "statx",
    "fcntl",
    "ioctl",
    "flock",
    "rename",
    "renameat",
    "renameat2",
    "linkat",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "getdents64",
    "flistxattr",
    "fgetxattr",
    "fsetxattr",
    "fchmod",
    "fchown",
    "fstatfs",
];

/// The errors that calls are given, and what people call them.
const ERRORS: [(&str, &str); 3] = [
    ("EIO", "Input/output error"),
    ("ENOSPC", "No space left on device"),
    ("EINTR", "Interrupted system call"),
];
/// What may meet a full disk.
const SPACE: [&str; 14] = [
    "openat",
    "write",
    "pwrite64",
    "pwritev",
    "fsync",
    "fdatasync",
    "fallocate",
    "ftruncate",
    "copy_file_range",
    "renameat",
    "rename",
    "linkat",
    "mkdir",
    "fsetxattr",
];
/// What a signal may interrupt.
const SLOW: [&str; 11] = [
    "openat",
    "openat2",
    "read",
    "pread64",
    "write",
    "pwrite64",
    "fsync",
    "fdatasync",
    "fallocate",
    "ftruncate",
    "copy_file_range",
];

/// One call that fails: the how-manieth of each thread, counted from 1.
#[derive(Debug)]
pub struct Failing {
    pub call: String,
    pub error: &'static str,
    pub reason: &'static str,
    pub nth: u64,
}

/// What is traced.
pub struct Program<'p> {
    path: &'p Path,
    args: &'p [&'p str],
    /// The call before the first one that may fail.
    from: &'static str,
    /// Whether the same call comes again behind the last one.
    until: bool,
    variable: Option<(&'p str, &'p OsStr)>,
}

impl<'p> Program<'p> {
    /// The tool, from where it has been loaded to its end.
    pub fn tool(args: &'p [&'p str]) -> Self {
        Self {
            path: Path::new(TOOL),
            args,
            // A Rust program does that when it has been loaded, and not before.
            from: "sigaltstack",
            until: false,
            variable: None,
        }
    }

    /// Another one, between two calls of `getppid`.
    pub fn marked(path: &'p Path, args: &'p [&'p str]) -> Self {
        Self {
            path,
            args,
            from: "getppid",
            until: true,
            variable: None,
        }
    }

    pub fn with_variable(self, name: &'p str, value: &'p OsStr) -> Self {
        let variable = Some((name, value));
        Self { variable, ..self }
    }

    fn strace(&self, room: &Room, expression: &str, to: &Path) -> Command {
        // Whoever hangs is to fail, not to keep the machine for ever.
        let mut command = room.command("timeout", &["-s", "KILL", "120", "strace", "-f", "-qq", "-o"]);
        command.arg(to).args(["-e", expression]).arg(self.path);
        command.args(self.args).envs(self.variable);
        command
    }

    /// What comes of it when that call fails.
    pub fn run(&self, room: &Room, failing: &Failing) -> Output {
        let Failing { call, error, nth, .. } = failing;
        let expression = format!("inject={call}:error={error}:when={nth}");
        let mut command = self.strace(room, &expression, Path::new("/dev/null"));
        command.output().expect("strace starts")
    }

    /// The calls that are to fail, all of them or a few of each kind; or why strace cannot tell, in words.
    pub fn failing(&self, room: &Room, all: bool) -> Result<Vec<Failing>, String> {
        let mut failing = Vec::new();
        for (call, numbers) in self.calls(room)? {
            for (error, reason) in ERRORS {
                let few = match error {
                    "ENOSPC" if !SPACE.contains(&&*call) => 0,
                    "EINTR" if !SLOW.contains(&&*call) => 0,
                    "EIO" => 3,
                    _ => 1,
                };
                let count = if all && few > 0 { u64::MAX } else { few };
                failing.extend(spread(numbers.clone(), count).map(|nth| Failing {
                    call: call.clone(),
                    error,
                    reason,
                    nth,
                }));
            }
        }
        Ok(failing)
    }

    /// How many of each call there are: from which number to which.
    fn calls(&self, room: &Room) -> Result<BTreeMap<String, RangeInclusive<u64>>, String> {
        let trace = room.path("trace");
        // A question mark: the machine may have no such call.
        let names: Vec<_> = CALLS.iter().map(|call| format!("?{call}")).collect();
        let expression = format!("trace={},{}", self.from, names.join(","));
        let output = self
            .strace(room, &expression, &trace)
            .output()
            .map_err(|why| format!("strace: {why}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("ptrace") || said.contains("invalid") {
            return Err(said.trim().to_owned());
        }
        assert!(output.status.success(), "{:?}: {said}", self.args);
        let trace =
            std::fs::read_to_string(trace).map_err(|why| format!("strace has left no trace: {why}"))?;
        Ok(self.counted(&trace))
    }

    /// A line is `12345 pwrite64(7, ...) = 4096`, or `12345 <... pwrite64 resumed>` of a call that has begun before.
    fn counted(&self, trace: &str) -> BTreeMap<String, RangeInclusive<u64>> {
        let lines = trace.lines().filter_map(|line| line.split_once(' '));
        let calls = lines.filter_map(|(thread, call)| Some((thread, call.trim_start().split_once('(')?.0)));
        let mut threads: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        let mut before: BTreeMap<&str, u64> = BTreeMap::new();
        let mut marks = 0;
        for (thread, name) in calls.filter(|(_, name)| !name.starts_with('<')) {
            if name == self.from {
                marks += 1;
                if marks == 1 {
                    // Of other threads too: what has the same number there is not to fail.
                    for ((_, name), count) in &threads {
                        let most = before.entry(*name).or_default();
                        *most = (*most).max(*count);
                    }
                } else if self.until {
                    break;
                }
            } else {
                *threads.entry((thread, name)).or_default() += 1;
            }
        }
        let mut counted = BTreeMap::new();
        for ((_, name), count) in threads {
            let first = before.get(name).copied().unwrap_or(0) + 1;
            let range = counted.entry(name.to_owned()).or_insert(first..=0);
            *range = first..=count.max(*range.end());
        }
        counted
    }
}

/// `count` of the numbers of a range, as far apart as can be.
fn spread(range: RangeInclusive<u64>, count: u64) -> impl Iterator<Item = u64> {
    let (first, last) = range.into_inner();
    let all = (last + 1).saturating_sub(first);
    let count = count.min(all);
    (0..count).map(move |at| first + at * all / count + all / count / 2)
}
