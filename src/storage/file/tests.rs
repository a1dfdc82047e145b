//! Real files against a byte vector, through the page cache and around it.

use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::path::PathBuf;

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use tempfile::TempDir;

use super::*;

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
            println!("skipped: {error}");
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
