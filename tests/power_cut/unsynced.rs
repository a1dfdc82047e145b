//! Syncs that are left out, as by a disk that reports what it has not done: each check of a cut must notice.
//!
//! The kernel leaves them out, by a filter on the system calls of one thread and those that it starts; the code under test is
//! as everywhere.

use std::path::Path;

use super::cut;
use super::history::Plan;
use super::record::EXT4;
use super::skip::skipped;

/// From now on the syncs of `file`, which is open, do nothing and succeed: those of this thread, and of what it starts.
pub fn leave_out(file: &Path) -> Result<(), String> {
    let numbers = descriptors_of(file);
    assert!(!numbers.is_empty(), "{} is not open", file.display());
    let mut program = program(&numbers);
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).expect("a short program"),
        filter: program.as_mut_ptr(),
    };
    let [yes, none]: [libc::c_ulong; 2] = [1, 0];
    let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
    // SAFETY: this thread gives up what it never does, to become another user.
    let given_up = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, yes, none, none, none) };
    // SAFETY: the kernel copies the program, which lives until then.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter) };
    if given_up == 0 && set == 0 {
        Ok(())
    } else {
        Err(format!("seccomp: {}", std::io::Error::last_os_error()))
    }
}

fn descriptors_of(file: &Path) -> Vec<u32> {
    let file = file.canonicalize().expect("the file");
    let open = std::fs::read_dir("/proc/self/fd").expect("the open files");
    let open = open.filter_map(Result::ok);
    let is_it = |link: &Path| std::fs::read_link(link).is_ok_and(|target| target == file);
    open.filter(|entry| is_it(&entry.path()))
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
        .collect()
}

/// Looks at the call, then at its first argument, and answers 0 for those that are left out.
fn program(numbers: &[u32]) -> Vec<libc::sock_filter> {
    const NUMBER: u32 = 0;
    const FIRST_ARGUMENT: u32 = if cfg!(target_endian = "little") { 16 } else { 20 };
    let line = |code: u32, k: u32, jt: usize| libc::sock_filter {
        code: u16::try_from(code).expect("a code"),
        jt: u8::try_from(jt).expect("a short way"),
        jf: 0,
        k,
    };
    let load = |at| line(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0);
    let if_equal = |value, skip| line(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, skip);
    let end = |answer| line(libc::BPF_RET | libc::BPF_K, answer, 0);
    let calls = [libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_sync_file_range];
    let mut program = vec![load(NUMBER)];
    for (index, call) in calls.iter().enumerate() {
        // Over the other calls, and the end.
        program.push(if_equal(
            u32::try_from(*call).expect("a number"),
            calls.len() - index,
        ));
    }
    program.extend([end(libc::SECCOMP_RET_ALLOW), load(FIRST_ARGUMENT)]);
    for (index, number) in numbers.iter().enumerate() {
        program.push(if_equal(*number, numbers.len() - index));
    }
    program.extend([end(libc::SECCOMP_RET_ALLOW), end(libc::SECCOMP_RET_ERRNO)]);
    program
}

/// Power cuts of a disk that lacks the syncs of `file` must be found wrong, in these words.
fn is_noticed(overlay: bool, file: &'static str, words: &str) {
    let plan = Plan {
        overlay,
        unsynced: Some(file),
    };
    match cut(EXT4, plan) {
        None => {}
        Some(Ok(())) => panic!("nobody notices that {file} is not synced"),
        Some(Err(why)) if why.starts_with("seccomp") => {
            skipped(format_args!("power cuts that lack a sync: {why}"));
        }
        Some(Err(wrong)) => assert!(wrong.contains(words), "{wrong}"),
    }
}

#[test]
fn an_image_that_is_not_synced_is_noticed() {
    is_noticed(true, "disk-data.img", "A1: ");
}

#[test]
fn allocation_bits_that_are_not_synced_are_noticed() {
    is_noticed(true, "disk-allocation.bitmap", "A2: ");
}

#[test]
fn dirty_bits_that_are_not_synced_are_noticed() {
    is_noticed(false, "disk-coarse.bitmap", "D1: ");
}
