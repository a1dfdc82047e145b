//! The tool, killed on entering one of its system calls that change files.

use std::path::Path;
use std::process::{Command, Output};

/// Those calls, whichever of them this machine has: strace counts each by itself.
pub const CHANGES: [&str; 13] = [
    "?pwrite64",
    "?pwritev",
    "?fsync",
    "?fdatasync",
    "?ftruncate",
    "?fallocate",
    "?rename",
    "?renameat",
    "?renameat2",
    "?unlink",
    "?unlinkat",
    "?linkat",
    "?ioctl",
];

/// What came of the tool, run in `folder`, that is killed on entering the `count`-th such call; why nothing can tell, in words,
/// where strace cannot be used.
pub fn killed_at(folder: &Path, call: &str, count: u32, args: &[&str]) -> Result<Output, String> {
    let inject = format!("inject={call}:signal=SIGKILL:when={count}");
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", &inject])
        .arg(env!("CARGO_BIN_EXE_qbm"))
        .args(args)
        .current_dir(folder)
        .output()
        .map_err(|why| format!("strace: {why}"))?;
    if output.stderr.is_empty() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("ptrace"), "{said}");
    Err(said.trim().to_owned())
}
