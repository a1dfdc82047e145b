//! Real files against a byte vector, through the page cache and around it.

use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use tempfile::TempDir;

use super::*;
use crate::skip::skipped;
use crate::storage::{read_slice, write_slice};

const WRITE: Access = Access {
    write: true,
    direct: false,
};
const DIRECT: Access = Access {
    write: true,
    direct: true,
};

/// A folder for test files on a file system that is no `tmpfs` where the machine has one.
fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn new_file(dir: &TempDir, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join("file");
    std::fs::write(&path, bytes).expect("a test file");
    path
}

/// The file, around the page cache; `None`, with a word, where the file system cannot.
fn open_direct(path: &Path) -> Option<FileStorage> {
    match FileStorage::open(path, DIRECT) {
        Ok(file) => Some(file),
        Err(error) => {
            skipped(error);
            None
        }
    }
}

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(start, len).expect("a range that fits")
}

fn contents(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("the test file")
}

struct Random(TestRng);

impl Random {
    fn new() -> Self {
        Self(TestRng::deterministic_rng(RngAlgorithm::ChaCha))
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.0.next_u64() % bound as u64).expect("below the bound")
    }

    /// An offset or length below `bound`, often at or near a multiple of a block.
    fn position(&mut self, bound: usize) -> usize {
        let at = self.below(bound);
        match self.below(4) {
            0 => at,
            1 => at & !511,
            2 => at & !4095,
            _ => ((at & !4095) + self.below(3)).saturating_sub(1),
        }
    }

    /// Cuts `bytes` into a few pieces, some of them empty.
    fn cuts(&mut self, len: usize) -> Vec<usize> {
        let mut cuts: Vec<_> = (0..self.below(5)).map(|_| self.below(len + 1)).collect();
        cuts.extend([0, len]);
        cuts.sort_unstable();
        cuts
    }
}

/// Random transfers and zeros at random places and from badly aligned memory; the file must always be the vector.
fn follows_the_model(file: &FileStorage, path: &Path, mut model: Vec<u8>, rounds: usize) {
    const SPAN: usize = 300_000;
    let mut random = Random::new();
    let mut memory = vec![0u8; SPAN + 4096];
    for round in 0..rounds {
        let at = random.position(SPAN);
        let len = match random.below(3) {
            0 => random.position(9000),
            1 => random.below(SPAN - at).min(70_000),
            _ => 4096 * random.below(4),
        };
        let skew = random.below(4096);
        let bytes = &mut memory[skew..skew + len];
        match random.below(6) {
            0 | 1 => {
                random.0.fill_bytes(bytes);
                let slices: Vec<_> = random
                    .cuts(len)
                    .windows(2)
                    .map(|w| IoSlice::new(&bytes[w[0]..w[1]]))
                    .collect();
                file.write(Gather::from_slices(&slices).expect("a list"), at as u64)
                    .expect("a write");
                if len > 0 {
                    model.resize(model.len().max(at + len), 0);
                    model[at..at + len].copy_from_slice(bytes);
                }
            }
            2 | 3 => {
                let cuts = random.cuts(len);
                bytes.fill(0xEE);
                let mut rest = &mut bytes[..];
                let mut slices = Vec::new();
                for pair in cuts.windows(2) {
                    let (head, tail) = rest.split_at_mut(pair[1] - pair[0]);
                    slices.push(IoSliceMut::new(head));
                    rest = tail;
                }
                let outcome = file.read(Scatter::from_slices(&mut slices).expect("a list"), at as u64);
                if len == 0 || at + len <= model.len() {
                    outcome.expect("a read");
                    assert!(
                        len == 0 || *bytes == model[at..at + len],
                        "round {round}: read {len} at {at}"
                    );
                } else {
                    assert_eq!(
                        outcome.expect_err("past the end").kind(),
                        ErrorKind::UnexpectedEof
                    );
                }
            }
            4 => {
                let how = Zeroing {
                    may_unmap: random.below(2) == 0,
                    no_fallback: false,
                };
                file.write_zeroes(range(at as u64, len as u64), how)
                    .expect("zeros");
                let end = (at + len).min(model.len());
                model[at.min(end)..end].fill(0);
            }
            _ => {
                file.discard(range(at as u64, len as u64)).expect("a discard");
                let end = (at + len).min(model.len());
                model[at.min(end)..end].fill(0);
            }
        }
        assert_eq!(
            file.length().expect("a length"),
            model.len() as u64,
            "round {round}"
        );
        if round % 50 == 0 {
            let now = contents(path);
            assert!(
                now == model,
                "round {round}: differs at {:?}",
                now.iter().zip(&model).position(|(a, b)| a != b)
            );
        }
    }
    assert!(contents(path) == model);
}

#[test]
fn buffered_follows_the_model() {
    let dir = folder();
    let path = new_file(&dir, &[7; 10_001]);
    let file = FileStorage::open(&path, WRITE).expect("an open");
    assert_eq!(
        (file.limits().memory_alignment, file.limits().request_alignment),
        (1, 1)
    );
    follows_the_model(&file, &path, vec![7; 10_001], 3000);
}

#[test]
fn direct_follows_the_model() {
    let dir = folder();
    let path = new_file(&dir, &[7; 10_001]);
    let Some(file) = open_direct(&path) else { return };
    assert!(file.limits().request_alignment >= 512);
    follows_the_model(&file, &path, vec![7; 10_001], 3000);
}

/// Memory at a multiple of 4096, as a caller who knows about alignment would have it.
struct Aligned(Vec<u8>);

impl Aligned {
    fn new() -> Self {
        Self(vec![0; 3 * 4096])
    }

    fn bytes(&mut self, len: usize) -> &mut [u8] {
        let skew = self.0.as_ptr().align_offset(4096);
        &mut self.0[skew..skew + len]
    }
}

/// The story of trap 4: an aligned writer owns a block but for its last bytes; another writes those and the next
/// block's first. Were the second's block read before and written after the first's write, the first would find old
/// bytes in what only he writes. (Most file systems keep such writes of one inode apart themselves; the same story on
/// a block device, where nothing else does, is in `tests/block_device.rs`.)
fn writers_in_one_block_lose_nothing(file: &FileStorage) {
    let block = file.limits().request_alignment as usize;
    let rounds = 2000u32;
    let done = AtomicBool::new(false);
    write_slice(file, &vec![0; 8 * block], 0).expect("a first content");
    std::thread::scope(|scope| {
        for edge in 0..2 {
            let done = &done;
            scope.spawn(move || {
                // The last ten bytes of the block and the first ten behind it, each writer its own half.
                let at = block - 10 + edge * 10;
                let (mut back, mut round) = ([0u8; 10], 0u8);
                while !done.load(Ordering::Relaxed) {
                    round = round.wrapping_add(1);
                    write_slice(file, &[round; 10], at as u64).expect("a write of an edge");
                    read_slice(file, &mut back, at as u64).expect("a read");
                    assert!(edge == 0 || back == [round; 10], "an edge's bytes were lost");
                }
            });
        }
        let mut memory = Aligned::new();
        for round in 0..rounds {
            let value = round.to_le_bytes()[0];
            let bytes = memory.bytes(block);
            bytes.fill(value);
            write_slice(file, bytes, 0).expect("an aligned write");
            bytes.fill(!value);
            read_slice(file, bytes, 0).expect("an aligned read");
            let own = &bytes[..block - 10];
            if own.iter().any(|&byte| byte != value) {
                done.store(true, Ordering::Relaxed);
                panic!("round {round}: the aligned writer's bytes were lost");
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn direct_writers_in_one_block_lose_nothing() {
    let dir = folder();
    let path = new_file(&dir, &[]);
    let Some(file) = open_direct(&path) else { return };
    writers_in_one_block_lose_nothing(&file);
}

#[test]
fn direct_writers_of_single_bytes_lose_nothing() {
    let dir = folder();
    let path = new_file(&dir, &[0; 16]);
    let Some(file) = open_direct(&path) else { return };
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let file = &file;
            scope.spawn(move || {
                for at in (u64::from(thread)..2000).step_by(4) {
                    write_slice(file, &[thread + 1], at).expect("a write");
                }
            });
        }
    });
    let expected: Vec<u8> = (0..2000u16).map(|at| at.to_le_bytes()[0] % 4 + 1).collect();
    assert_eq!(contents(&path), expected);
}

#[test]
fn a_direct_write_never_makes_the_file_longer_than_asked() {
    let dir = folder();
    let path = new_file(&dir, &[]);
    let Some(file) = open_direct(&path) else { return };
    let done = AtomicBool::new(false);
    let limit = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let length = file.length().expect("a length");
                let asked = limit.load(Ordering::SeqCst);
                assert!(length <= asked, "{length} bytes where {asked} were asked for");
            }
        });
        let mut at = 0;
        for len in (1..400).map(|n| n * 37 % 6000 + 1) {
            limit.store(at + len, Ordering::SeqCst);
            write_slice(&file, &vec![1; usize::try_from(len).expect("small")], at).expect("a write");
            at += len;
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(file.length().expect("a length"), limit.load(Ordering::SeqCst));
}

#[test]
fn more_pieces_than_one_call_takes() {
    let dir = folder();
    let path = new_file(&dir, &[]);
    for access in [WRITE, DIRECT] {
        let Ok(file) = FileStorage::open(&path, access) else {
            skipped("no O_DIRECT here");
            continue;
        };
        let bytes: Vec<u8> = (0..9000u32).map(|n| (n % 251).to_le_bytes()[0]).collect();
        let slices: Vec<_> = bytes.chunks(3).map(IoSlice::new).collect();
        assert!(slices.len() > 2 * sys::IOV_MAX);
        file.write(Gather::from_slices(&slices).expect("a list"), 5)
            .expect("a write");
        let mut back = vec![0; bytes.len()];
        let mut slices: Vec<_> = back.chunks_mut(5).map(IoSliceMut::new).collect();
        file.read(Scatter::from_slices(&mut slices).expect("a list"), 5)
            .expect("a read");
        assert!(back == bytes);
    }
}

#[test]
fn offsets_that_no_file_has_are_refused() {
    let dir = folder();
    let path = new_file(&dir, &[1; 100]);
    for access in [WRITE, DIRECT] {
        let Ok(file) = FileStorage::open(&path, access) else {
            continue;
        };
        for offset in [1 << 63, u64::MAX] {
            for len in [0, 1, 512] {
                let mut buf = vec![0; len];
                assert_eq!(
                    read_slice(&file, &mut buf, offset).expect_err("a read").kind(),
                    ErrorKind::InvalidInput
                );
                assert_eq!(
                    write_slice(&file, &buf, offset).expect_err("a write").kind(),
                    ErrorKind::InvalidInput
                );
            }
        }
        write_slice(&file, &[1, 2], i64::MAX as u64).expect_err("a write over the edge");
    }
    assert_eq!(contents(&path), [1; 100]);
}

#[test]
fn every_way_of_zeroing_reads_back_as_zeros() {
    const MIB: u64 = 1 << 20;
    for dir in [Some(folder()), tempfile::tempdir_in("/dev/shm").ok()]
        .into_iter()
        .flatten()
    {
        for (may_unmap, no_fallback) in [(false, false), (true, false), (false, true), (true, true)] {
            let path = new_file(&dir, &vec![9; 4 * 1024 * 1024]);
            let file = FileStorage::open(&path, WRITE).expect("an open");
            let how = Zeroing {
                may_unmap,
                no_fallback,
            };
            match file.write_zeroes(range(MIB + 3, 2 * MIB), how) {
                Ok(()) => {}
                Err(error) => {
                    assert!(
                        no_fallback && error.raw_os_error() == Some(libc::EOPNOTSUPP),
                        "{error}"
                    );
                    assert!(
                        contents(&path).iter().all(|&byte| byte == 9),
                        "a refusal changes nothing"
                    );
                    continue;
                }
            }
            let bytes = contents(&path);
            for (at, &byte) in (0u64..).zip(&bytes) {
                assert_eq!(
                    byte == 0,
                    (MIB + 3..3 * MIB + 3).contains(&at),
                    "byte {at} is {byte}"
                );
            }
            let taken = file.allocated_bytes().expect("the space taken");
            assert_eq!(taken >= 4 * MIB, !may_unmap, "{taken} bytes are taken");
        }
    }
}

#[test]
fn zeros_are_written_where_nothing_else_works() {
    let dir = folder();
    let path = new_file(&dir, &vec![9; 3_000_000]);
    let file = FileStorage::open(&path, WRITE).expect("an open");
    file.unsupported.nothing_works();
    let how = Zeroing {
        may_unmap: true,
        no_fallback: true,
    };
    let refused = file.write_zeroes(range(0, 10), how).expect_err("a refusal");
    assert_eq!(refused.raw_os_error(), Some(libc::EOPNOTSUPP));
    file.write_zeroes(range(5, 2_500_000), Zeroing::default())
        .expect("zeros");
    file.discard(range(2_900_000, 200_000)).expect("zeros to the end");
    let mut expected = vec![9; 3_000_000];
    expected[5..2_500_005].fill(0);
    expected[2_900_000..].fill(0);
    assert!(contents(&path) == expected);
}

#[test]
fn extents_tell_holes_from_data() {
    const MIB: u64 = 1 << 20;
    let dir = folder();
    let path = new_file(&dir, &[]);
    let file = FileStorage::open(&path, WRITE).expect("an open");
    file.set_length(8 * MIB).expect("a length");
    write_slice(&file, &vec![1; 65536], MIB).expect("a write");
    let extent = |start, len| {
        let found = file.extent(range(start, len)).expect("an extent");
        (found.data, found.len)
    };
    if extent(0, 4 * MIB) == (true, 4 * MIB) {
        skipped("this file system does not tell holes");
        return;
    }
    assert_eq!(extent(0, 4 * MIB), (false, MIB));
    assert_eq!(extent(0, 100), (false, 100));
    assert_eq!(extent(MIB, 4 * MIB), (true, 65536));
    assert_eq!(extent(MIB + 5, 10), (true, 10));
    assert_eq!(extent(2 * MIB, 6 * MIB), (false, 6 * MIB));
    assert_eq!(extent(9 * MIB, 5), (false, 5));
    assert_eq!(extent(3, 0).1, 0);
}

#[test]
fn length_space_and_identity() {
    let dir = folder();
    let path = new_file(&dir, b"abc");
    let file = FileStorage::open(&path, WRITE).expect("an open");
    match file.allocate(range(0, 1_000_000)) {
        Ok(()) => {
            assert_eq!(file.length().expect("a length"), 1_000_000);
            assert!(file.allocated_bytes().expect("the space taken") >= 1_000_000);
        }
        Err(error) => skipped(error),
    }
    file.set_length(2).expect("a cut");
    assert_eq!(contents(&path), b"ab");
    file.set_length(1 << 63).expect_err("a length that no file has");
    file.sync(SyncMode::Data).expect("a sync");
    file.sync(SyncMode::All).expect("a sync");
    let other = dir.path().join("link");
    std::fs::hard_link(&path, &other).expect("a link");
    let same = FileStorage::open(&other, Access::default()).expect("an open");
    assert_eq!(file.identity(), same.identity());
    std::fs::write(dir.path().join("third"), b"").expect("a file");
    let third = FileStorage::open(&dir.path().join("third"), WRITE).expect("an open");
    assert_ne!(file.identity(), third.identity());
}

#[test]
fn other_kinds_of_file_are_refused_in_words() {
    let dir = folder();
    let fifo = dir.path().join("fifo");
    let name = terminated(&fifo).expect("a name");
    // SAFETY: the name is a terminated string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    for (path, kind) in [
        (fifo.as_path(), "a FIFO"),
        (dir.path(), "a directory"),
        (Path::new("/dev/null"), "a character device"),
        (&socket, "a socket"),
    ] {
        for access in [Access::default(), WRITE, DIRECT] {
            let error = FileStorage::open(path, access).expect_err(kind);
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(kind), "{error}");
        }
    }
    let open = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&fifo)
        .expect("a FIFO");
    let error = FileStorage::from_fd(open.into(), WRITE).expect_err("a FIFO");
    assert!(error.to_string().contains("a FIFO"), "{error}");
}

#[test]
fn descriptors_must_allow_what_is_asked() {
    let dir = folder();
    let path = new_file(&dir, b"abc");
    let reading: OwnedFd = File::open(&path).expect("an open").into();
    let error = FileStorage::from_fd(reading.try_clone().expect("a copy"), WRITE).expect_err("read-only");
    assert!(error.to_string().contains("reading and writing"), "{error}");
    FileStorage::from_fd(reading, Access::default()).expect("reading is all that is asked");
    let writing = std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .expect("an open");
    FileStorage::from_fd(writing.into(), Access::default()).expect_err("write-only");
    let named = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(O_PATH)
        .open(&path)
        .expect("an open");
    let error = FileStorage::from_fd(named.into(), Access::default()).expect_err("a name only");
    assert!(error.to_string().contains("O_PATH"), "{error}");
}

#[test]
fn flags_of_a_descriptor_are_set_right() {
    let dir = folder();
    let path = new_file(&dir, b"abc");
    let appending = std::fs::OpenOptions::new()
        .read(true)
        .append(true)
        .open(&path)
        .expect("an open");
    let file = FileStorage::from_fd(appending.into(), WRITE).expect("an appending descriptor");
    write_slice(&file, b"X", 1).expect("a write");
    assert_eq!(contents(&path), b"aXc");
    let plain = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .expect("an open");
    match FileStorage::from_fd(plain.into(), DIRECT) {
        Ok(file) => {
            assert_ne!(sys::status_flags(file.as_fd()).expect("flags") & O_DIRECT, 0);
            write_slice(&file, b"Y", 2).expect("an edge");
            assert_ne!(
                sys::status_flags(file.as_fd()).expect("flags") & O_DIRECT,
                0,
                "on again after an edge"
            );
        }
        Err(error) => skipped(error),
    }
}

#[test]
fn a_file_is_synced_apart_whatever_its_name_is_by_now() {
    let dir = folder();
    let path = new_file(&dir, b"content");
    let file = FileStorage::open(&path, WRITE).expect("an open");
    std::fs::rename(&path, dir.path().join("other")).expect("another name");
    std::fs::write(&path, b"another's").expect("another file");
    let apart = file.sync_apart();
    if !file.syncs_apart().expect("the kind of file system") {
        assert!(apart.is_none());
        return;
    }
    let apart = apart.expect("the same file");
    assert_eq!(apart.identity(), file.identity());
    apart.sync(SyncMode::Data).expect("a sync");
    apart.sync(SyncMode::All).expect("a sync");
    write_slice(&*apart, b"x", 0).expect_err("it is for syncs alone");
}

/// Of two syncs of a file without a journal, one does not wait for what the other has begun to write.
#[test]
fn a_file_is_synced_apart_where_there_is_a_journal() {
    for (make, apart) in [
        (&["mkfs.ext4", "-qF", "-O", "^has_journal"][..], false),
        (&["mkfs.ext2", "-qF"], false),
        (&["mkfs.ext4", "-qF"], true),
    ] {
        let dir = folder();
        let (image, at) = (dir.path().join("fs.img"), dir.path().join("m"));
        std::fs::create_dir(&at).expect("a mount point");
        File::create(&image)
            .and_then(|file| file.set_len(16 << 20))
            .expect("a sparse file");
        let done = |command: &mut Command| command.output().is_ok_and(|it| it.status.success());
        if !done(Command::new(make[0]).args(&make[1..]).arg(&image)) {
            skipped(format_args!("{make:?} fails here"));
            continue;
        }
        if !done(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at)) {
            skipped("cannot mount here");
            continue;
        }
        let found = FileStorage::from_fd(
            File::create_new(at.join("f")).expect("a file").into(),
            Access::default(),
        );
        let found = found.map(|it| it.sync_apart().is_some());
        assert!(done(Command::new("umount").arg(&at)), "umount");
        assert_eq!(found.ok(), Some(apart), "{make:?}");
    }
}
