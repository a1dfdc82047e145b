//! Random scripts against two models that share no code with the disk: plain byte vectors for what it shows now, and
//! for what a power cut may leave a list of the values that each piece, length and name has had.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use crate::storage::simulated::{CallKind, Choice, CrashPoint, Fault, Keep, Kept, SimDisk};
use crate::storage::{Access, Role, Storage, SyncMode, Zeroing, write_slice};
use crate::units::ByteRange;

const NAMES: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Debug)]
enum Op {
    Create(usize),
    Rename(usize, usize),
    Remove(usize),
    SyncFolder {
        fails: bool,
    },
    Write {
        file: usize,
        at: u64,
        len: usize,
        fill: u8,
        kept: Option<u64>,
    },
    Zero {
        file: usize,
        at: u64,
        len: u64,
        unmap: bool,
    },
    Discard {
        file: usize,
        at: u64,
        len: u64,
    },
    SetLength {
        file: usize,
        length: u64,
    },
    Allocate {
        file: usize,
        at: u64,
        len: u64,
    },
    Sync {
        file: usize,
        fails: bool,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let name = || 0..NAMES.len();
    let at = || prop_oneof![0..2600u64, (0..5u64).prop_map(|n| n * 512)];
    let len = || prop_oneof![0..1500u64, (0..4u64).prop_map(|n| n * 512)];
    let fails = || prop::bool::weighted(0.25);
    prop_oneof![
        2 => name().prop_map(Op::Create),
        1 => (name(), name()).prop_map(|(from, to)| Op::Rename(from, to)),
        1 => name().prop_map(Op::Remove),
        1 => fails().prop_map(|fails| Op::SyncFolder { fails }),
        6 => (name(), at(), len(), 1..=255u8, prop::option::weighted(0.2, 0..5u64)).prop_map(
            |(file, at, len, fill, kept)| Op::Write { file, at, len: usize::try_from(len).unwrap(), fill, kept }
        ),
        1 => (name(), at(), len(), any::<bool>())
            .prop_map(|(file, at, len, unmap)| Op::Zero { file, at, len, unmap }),
        1 => (name(), at(), len()).prop_map(|(file, at, len)| Op::Discard { file, at, len }),
        2 => (name(), at()).prop_map(|(file, length)| Op::SetLength { file, length }),
        1 => (name(), at(), len()).prop_map(|(file, at, len)| Op::Allocate { file, at, len }),
        3 => (name(), fails()).prop_map(|(file, fails)| Op::Sync { file, fails }),
    ]
}

/// Values that a power cut may leave; the last is the live one.
#[derive(Clone, Debug)]
struct Allowed<T> {
    values: Vec<T>,
    /// Whether the next good sync reaches the live one: a failed sync forgets that there is something to write.
    dirty: bool,
}

impl<T: Clone> Allowed<T> {
    fn only(value: T) -> Self {
        Self {
            values: vec![value],
            dirty: false,
        }
    }

    fn push(&mut self, value: T) {
        self.values.push(value);
        self.dirty = true;
    }

    fn sync(&mut self, fails: bool) {
        if self.dirty && !fails {
            self.values.drain(..self.values.len() - 1);
        }
        self.dirty = false;
    }
}

/// One file: its bytes, and per piece and length what may be left.
#[derive(Clone, Debug)]
struct Naive {
    bytes: Vec<u8>,
    length: Allowed<usize>,
    pieces: BTreeMap<usize, Allowed<Vec<u8>>>,
}

impl Naive {
    fn new() -> Self {
        Self {
            bytes: vec![],
            length: Allowed::only(0),
            pieces: BTreeMap::new(),
        }
    }

    fn piece(bytes: &[u8], index: usize) -> Vec<u8> {
        let mut piece: Vec<u8> = bytes.iter().skip(index * 512).take(512).copied().collect();
        piece.resize(512, 0);
        piece
    }

    /// Puts `new` in the place of the bytes, with the pieces of `from .. to` touched.
    fn become_(&mut self, new: Vec<u8>, from: usize, to: usize) {
        if to > from {
            for index in from / 512..to.div_ceil(512) {
                let was = Self::piece(&self.bytes, index);
                let piece = self.pieces.entry(index).or_insert_with(|| Allowed::only(was));
                piece.push(Self::piece(&new, index));
            }
        }
        self.bytes = new;
    }

    fn write(&mut self, at: usize, len: usize, fill: u8, kept: Option<u64>) {
        for index in at / 512..(at + len).div_ceil(512).max(at / 512) {
            let ordinal = (index - at / 512) as u64;
            if kept.is_some_and(|count| ordinal >= count) {
                continue;
            }
            let (from, to) = (at.max(index * 512), (at + len).min(index * 512 + 512));
            if to <= from {
                continue;
            }
            let mut new = self.bytes.clone();
            if new.len() < to {
                new.resize(to, 0);
                self.length.push(to);
            }
            new[from..to].fill(fill);
            self.become_(new, from, to);
        }
    }

    fn zero(&mut self, at: usize, len: usize) {
        let to = (at + len).min(self.bytes.len());
        if at < to {
            let mut new = self.bytes.clone();
            new[at..to].fill(0);
            self.become_(new, at, to);
        }
    }

    fn set_length(&mut self, length: usize) {
        let old = self.bytes.len();
        let mut new = self.bytes.clone();
        new.resize(length, 0);
        self.become_(new, length, old);
        self.length.push(length);
    }

    fn sync(&mut self, fails: bool) {
        self.length.sync(fails);
        self.pieces.values_mut().for_each(|piece| piece.sync(fails));
    }

    fn allows(&self, left: &[u8]) -> bool {
        self.length.values.contains(&left.len())
            && (0..left.len().div_ceil(512)).all(|index| {
                let len = (left.len() - index * 512).min(512);
                let found = &left[index * 512..index * 512 + len];
                match self.pieces.get(&index) {
                    Some(piece) => piece.values.iter().any(|value| &value[..len] == found),
                    None => found.iter().all(|&byte| byte == 0),
                }
            })
    }
}

#[derive(Clone)]
struct NaiveDisk {
    files: Vec<Naive>,
    names: [Allowed<Option<usize>>; 3],
}

impl NaiveDisk {
    fn live(&self, name: usize) -> Option<usize> {
        *self.names[name].values.last().unwrap()
    }

    fn allows(&self, disk: &SimDisk) -> bool {
        NAMES.iter().zip(&self.names).all(|(name, bound)| {
            let left = disk.read(name).ok();
            bound.values.iter().any(|file| match (file, &left) {
                (Some(file), Some(bytes)) => self.files[*file].allows(bytes),
                (None, None) => true,
                _ => false,
            })
        })
    }
}

/// The disk, the model, and the open files; file number `i` of the model is `open[i]`.
struct Both {
    disk: SimDisk,
    naive: NaiveDisk,
    open: Vec<Arc<dyn Storage>>,
}

impl Both {
    fn new() -> Self {
        let disk = SimDisk::new();
        let naive = NaiveDisk {
            files: vec![],
            names: std::array::from_fn(|_| Allowed::only(None)),
        };
        Self {
            disk,
            naive,
            open: vec![],
        }
    }

    /// Does `op` to both, and checks that they agree whether it works.
    fn apply(&mut self, op: &Op) {
        let folder = self.disk.folder();
        let path = |name: usize| Path::new(NAMES[name]);
        match *op {
            Op::Create(name) => {
                let made = folder.create(Role::Image, path(name));
                assert_eq!(made.is_ok(), self.naive.live(name).is_none());
                if let Ok(file) = made {
                    self.naive.names[name].push(Some(self.naive.files.len()));
                    self.naive.files.push(Naive::new());
                    self.open.push(file);
                }
            }
            Op::Rename(from, to) => {
                let file = self.naive.live(from);
                assert_eq!(folder.rename(path(from), path(to)).is_ok(), file.is_some());
                if file.is_some() && from != to {
                    self.naive.names[to].push(file);
                    self.naive.names[from].push(None);
                }
            }
            Op::Remove(name) => {
                let there = self.naive.live(name).is_some();
                assert_eq!(folder.remove(path(name)).is_ok(), there);
                if there {
                    self.naive.names[name].push(None);
                }
            }
            Op::SyncFolder { fails } => {
                self.fail_if(fails, CallKind::SyncFolder);
                assert_eq!(folder.sync().is_err(), fails);
                self.naive.names.iter_mut().for_each(|name| name.sync(fails));
            }
            Op::Write { file, .. }
            | Op::Zero { file, .. }
            | Op::Discard { file, .. }
            | Op::SetLength { file, .. }
            | Op::Allocate { file, .. }
            | Op::Sync { file, .. } => {
                if let Some(file) = self.naive.live(file) {
                    self.apply_to_file(op, file);
                }
            }
        }
    }

    fn apply_to_file(&mut self, op: &Op, file: usize) {
        let small = |n: u64| usize::try_from(n).unwrap();
        let open = Arc::clone(&self.open[file]);
        let range = |at: u64, len: u64| ByteRange::new(at, len).unwrap();
        if let Op::Sync { fails, .. } = *op {
            self.fail_if(fails, CallKind::Sync);
        }
        if let Op::Write {
            kept: Some(count), ..
        } = *op
        {
            let fault = Fault::new(libc::EIO).on(CallKind::Write);
            self.disk.fail(fault.keeping(Kept::First(count)));
        }
        let naive = &mut self.naive.files[file];
        match *op {
            Op::Write {
                at, len, fill, kept, ..
            } => {
                assert_eq!(write_slice(&*open, &vec![fill; len], at).is_err(), kept.is_some());
                naive.write(small(at), len, fill, kept);
            }
            Op::Zero { at, len, unmap, .. } => {
                let how = Zeroing {
                    may_unmap: unmap,
                    no_fallback: false,
                };
                open.write_zeroes(range(at, len), how).unwrap();
                naive.zero(small(at), small(len));
            }
            Op::Discard { at, len, .. } => {
                open.discard(range(at, len)).unwrap();
                naive.zero(small(at), small(len));
            }
            Op::SetLength { length, .. } => {
                open.set_length(length).unwrap();
                naive.set_length(small(length));
            }
            Op::Allocate { at, len, .. } => {
                open.allocate(range(at, len)).unwrap();
                if len > 0 && small(at + len) > naive.bytes.len() {
                    naive.set_length(small(at + len));
                }
            }
            Op::Sync { fails, .. } => {
                assert_eq!(open.sync(SyncMode::Data).is_err(), fails);
                naive.sync(fails);
            }
            _ => unreachable!("not an operation on a file"),
        }
    }

    fn fail_if(&self, fails: bool, kind: CallKind) {
        if fails {
            self.disk.fail(Fault::new(libc::EIO).on(kind));
        }
    }

    fn check_live(&self) {
        for (i, name) in NAMES.iter().enumerate() {
            let expected = self
                .naive
                .live(i)
                .map(|file| self.naive.files[file].bytes.clone());
            assert_eq!(self.disk.read(name).ok(), expected);
        }
        for (file, open) in self.naive.files.iter().zip(&self.open) {
            assert_eq!(open.length().unwrap(), file.bytes.len() as u64);
            let mut at = 0;
            while at < file.bytes.len() as u64 {
                let rest = ByteRange::between(at, file.bytes.len() as u64);
                let extent = open.extent(rest).unwrap();
                assert!(extent.len > 0 && at + extent.len <= rest.end());
                let run = usize::try_from(at).unwrap()..usize::try_from(at + extent.len).unwrap();
                assert!(extent.data || file.bytes[run].iter().all(|&byte| byte == 0));
                at += extent.len;
            }
        }
    }
}

fn keeps(point: &CrashPoint) -> Vec<Keep> {
    let choices = point.choices();
    let mut keeps = vec![Keep::Nothing, Keep::All];
    keeps.extend((0..choices).flat_map(|it| [Keep::AllBut(it), Keep::Only(it)]));
    keeps.extend((0..20).map(Keep::Random));
    keeps.extend((0..point.states().min(20)).map(Keep::Numbered));
    keeps
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_disk_shows_what_a_plain_model_shows(ops in prop::collection::vec(op(), 1..60)) {
        let mut both = Both::new();
        for op in &ops {
            both.apply(op);
            both.check_live();
        }
    }

    #[test]
    fn every_crash_state_is_one_that_the_naive_checker_allows(ops in prop::collection::vec(op(), 1..25)) {
        let mut both = Both::new();
        let mut after = BTreeMap::from([(0, both.naive.clone())]);
        for op in &ops {
            both.apply(op);
            after.insert(both.disk.events().len() as u64, both.naive.clone());
        }
        for point in both.disk.crash_points() {
            let naive = &after[&point.events()];
            for keep in keeps(&point) {
                let left = point.power_cut_keeping(keep);
                prop_assert!(naive.allows(&left), "{keep:?} after event {}:\n{}", point.events(), both.disk);
            }
            let killed = point.kill();
            for (i, name) in NAMES.iter().enumerate() {
                let live = naive.live(i).map(|file| naive.files[file].bytes.clone());
                prop_assert_eq!(killed.read(name).ok(), live);
            }
        }
    }

    /// The other direction: what the naive checker allows for one file can all be had.
    #[test]
    fn every_state_that_the_naive_checker_allows_can_be_had(ops in prop::collection::vec(op(), 1..10)) {
        let mut both = Both::new();
        both.apply(&Op::Create(0));
        both.apply(&Op::SyncFolder { fails: false });
        for op in &ops {
            match op {
                Op::Create(_) | Op::Rename(..) | Op::Remove(_) => {}
                op => both.apply(op),
            }
        }
        let point = both.disk.now();
        let file = &both.naive.files[0];
        let longest = *file.length.values.iter().max().unwrap();
        for &length in &file.length.values {
            for index in 0..longest.div_ceil(512) {
                let Some(piece) = file.pieces.get(&index) else { continue };
                let len = length.saturating_sub(index * 512).min(512);
                let allowed: BTreeSet<Vec<u8>> = piece.values.iter().map(|value| value[..len].to_vec()).collect();
                let had = (0..piece.values.len()).map(|which| left(&point, length, index, which)).collect();
                prop_assert_eq!(allowed, had);
            }
        }
    }
}

/// Piece `index` of file `a` where a power cut keeps `length`, and value number `which` of the piece.
fn left(point: &CrashPoint, length: usize, index: usize, which: usize) -> Vec<u8> {
    for which_length in 0..64 {
        let left = point.power_cut(&mut |choice: Choice<'_>, _: usize| match choice {
            Choice::Piece { offset, .. } if offset == index as u64 * 512 => which,
            Choice::Length { .. } => which_length,
            _ => 0,
        });
        let bytes = left.read(NAMES[0]).unwrap();
        if bytes.len() == length {
            return bytes.into_iter().skip(index * 512).take(512).collect();
        }
    }
    panic!("no power cut leaves {length} bytes");
}

#[test]
fn the_checker_refuses_what_must_not_be() {
    let mut both = Both::new();
    let write = |at: u64, fill: u8| Op::Write {
        file: 0,
        at,
        len: 512,
        fill,
        kept: None,
    };
    for op in [
        Op::Create(0),
        Op::SyncFolder { fails: false },
        write(0, 1),
        Op::Sync {
            file: 0,
            fails: false,
        },
    ] {
        both.apply(&op);
    }
    let disk = SimDisk::new();
    assert!(!both.naive.allows(&disk), "the synced file is gone");
    for (bytes, allowed) in [
        (vec![1; 512], true),
        (vec![], false),
        (vec![0; 512], false),
        (vec![1; 511], false),
    ] {
        disk.put("a", &bytes);
        assert_eq!(both.naive.allows(&disk), allowed);
    }
    let reopened = disk.folder().open(Role::Image, Path::new("a"), Access::default());
    assert!(reopened.is_ok());
}
