//! Random chains of images and random work on them against plain vectors: what guests do, and every job that moves what an
//! overlay has or what it is on. What the disk shows is read through the library, and compared by QEMU.

#![allow(
    clippy::expect_used,
    reason = "helpers beside the tests may fail as loudly as the tests"
)]

#[path = "common/skip.rs"]
mod skip;

use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use proptest::prelude::*;
use qbm::convert::{Compare, Convert, MeasureSource, QCOW2_CLUSTER, Verdict, measure};
use qbm::descriptor::BackingEntry;
use qbm::{
    AddBitmap, BackingFlags, CreateOptions, Disk, Format, Granularity, OpenOptions, TruncateFlags, WriteFlags,
};
use tempfile::TempDir;

const UNIT: u64 = 512;

/// The formats that an image below the disk may have. One more is one more entry.
const FORMATS: &[Maker] = &[
    Maker {
        format: Format::Raw,
        stacks_on: &[],
        unit: 1,
        make: make_raw,
    },
    Maker {
        format: Format::Qbm,
        stacks_on: &[Format::Raw, Format::Qbm, Format::Qcow2, Format::Vmdk],
        unit: 1,
        make: make_qbm,
    },
    // Made by QEMU, which reads no qbm.
    Maker {
        format: Format::Qcow2,
        stacks_on: &[Format::Raw, Format::Qcow2, Format::Vmdk],
        unit: 512,
        make: make_qcow2,
    },
    // Only read: nothing can be committed into it.
    Maker {
        format: Format::Vmdk,
        stacks_on: &[],
        unit: 512,
        make: make_vmdk,
    },
];

/// How an image of a format is made.
struct Maker {
    format: Format,
    /// What it can have as a backing itself.
    stacks_on: &'static [Format],
    /// What its length is a multiple of.
    unit: u64,
    make: fn(&Room, &Image, Option<&Image>, &[Write]),
}

/// The first so many of the formats can be made here.
fn known() -> usize {
    if have_qemu() { FORMATS.len() } else { 2 }
}

#[derive(Clone, Debug)]
struct Write {
    at: u64,
    len: u64,
    /// Zero is a hole where the format has some.
    byte: u8,
}

/// One image as it is drawn.
#[derive(Clone, Debug)]
struct Drawn {
    /// Its format is this one of those that fit, counted round and round.
    maker: usize,
    length: u64,
    granularity: u64,
    folder: usize,
    absolute: bool,
    writes: Vec<Write>,
}

#[derive(Clone, Debug)]
enum Step {
    Write(Write),
    Zero(Write),
    Discard(Write),
    Truncate(u64),
    Flush,
    Reopen,
    Empty,
    /// Into which of the images below.
    Commit(usize),
    /// On which of them, or on none where there are not so many.
    Deeper(usize),
    /// On a new image, of which these parts differ from what the disk shows, and others on that.
    Rebase(Vec<Drawn>),
    /// By the name alone, on a copy of what it is on.
    Change(Drawn),
    /// What it is now goes below it.
    Snapshot,
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![
        (1..64u64).prop_map(|units| units * UNIT * 4),
        1..256 * UNIT,
        (0..3u64, 0..3u64).prop_map(|(shift, by)| ((64 * UNIT) << shift) + by - 1)
    ]
}

fn write() -> impl Strategy<Value = Write> {
    let len = prop_oneof![1..600u64, 0..20 * UNIT, 0..200 * UNIT];
    (0..256 * UNIT, len, prop_oneof![1 => Just(0), 4 => any::<u8>()]).prop_map(|(at, len, byte)| Write {
        at,
        len,
        byte,
    })
}

fn drawn() -> impl Strategy<Value = Drawn> {
    (
        0..60usize,
        length(),
        0..8u32,
        0..2usize,
        any::<bool>(),
        proptest::collection::vec(write(), 0..5),
    )
        .prop_map(|(maker, length, shift, folder, absolute, writes)| Drawn {
            maker,
            length,
            granularity: UNIT << shift,
            folder,
            absolute,
            writes,
        })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => write().prop_map(Step::Write),
        2 => write().prop_map(Step::Zero),
        2 => write().prop_map(Step::Discard),
        2 => length().prop_map(Step::Truncate),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => Just(Step::Empty),
        3 => (0..5usize).prop_map(Step::Commit),
        2 => (0..6usize).prop_map(Step::Deeper),
        3 => proptest::collection::vec(drawn(), 1..=5).prop_map(Step::Rebase),
        1 => drawn().prop_map(Step::Change),
        1 => Just(Step::Snapshot),
    ]
}

/// An image that was made: where it is, and what it shows by itself.
#[derive(Clone)]
struct Image {
    folder: usize,
    name: String,
    maker: usize,
    granularity: u64,
    absolute: bool,
    content: Vec<u8>,
}

impl Image {
    fn format(&self) -> Format {
        FORMATS[self.maker].format
    }

    /// How a descriptor in `folder` names it.
    fn named_from(&self, room: &Room, folder: usize) -> String {
        match (self.absolute, self.folder == folder) {
            (true, _) => room.path(self).to_str().expect("UTF-8").to_owned(),
            (false, true) => self.name.clone(),
            (false, false) => format!("../{}/{}", self.folder, self.name),
        }
    }
}

/// Two folders with images.
struct Room {
    dir: TempDir,
    made: usize,
}

impl Room {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        for folder in ["0", "1"] {
            std::fs::create_dir(dir.path().join(folder)).expect("a folder");
        }
        Self { dir, made: 0 }
    }

    fn path(&self, image: &Image) -> PathBuf {
        self.dir.path().join(image.folder.to_string()).join(&image.name)
    }

    /// One that no image has yet.
    fn name(&mut self, format: Format) -> String {
        self.made += 1;
        format!("{}.{format}", self.made)
    }

    /// Puts images on those that there are.
    fn stack(&mut self, images: &mut Vec<Image>, drawn: &[Drawn]) {
        for drawn in drawn {
            let image = match images.last().cloned() {
                None => self.make(drawn, None),
                Some(below) => self.make(&stacking(drawn, &below), Some(&below)),
            };
            images.push(image);
        }
    }

    /// Makes the image that was drawn on what is `below`, where its format can have that; by itself otherwise.
    fn make(&mut self, drawn: &Drawn, below: Option<&Image>) -> Image {
        let maker = &FORMATS[drawn.maker % known()];
        let mut content = below.map_or_else(Vec::new, |image| image.content.clone());
        content.resize(small(drawn.length.next_multiple_of(maker.unit)), 0);
        let writes: Vec<Write> = drawn
            .writes
            .iter()
            .map(|write| clipped(write, drawn.length))
            .collect();
        for write in &writes {
            content[range(write)].fill(write.byte);
        }
        let image = Image {
            folder: drawn.folder,
            name: self.name(maker.format),
            maker: drawn.maker % known(),
            granularity: drawn.granularity,
            absolute: drawn.absolute,
            content,
        };
        (maker.make)(self, &image, below, &writes);
        image
    }
}

/// The same, in a format that can have `below` as its backing.
fn stacking(drawn: &Drawn, below: &Image) -> Drawn {
    let stacking: Vec<usize> = (0..known())
        .filter(|maker| FORMATS[*maker].stacks_on.contains(&below.format()))
        .collect();
    Drawn {
        maker: stacking[drawn.maker % stacking.len()],
        ..drawn.clone()
    }
}

fn make_raw(room: &Room, image: &Image, _: Option<&Image>, writes: &[Write]) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::create(room.path(image)).expect("a file");
    file.set_len(image.content.len() as u64).expect("a length");
    for write in writes {
        file.write_all_at(&vec![write.byte; small(write.len)], write.at)
            .expect("written");
    }
}

fn make_qbm(room: &Room, image: &Image, below: Option<&Image>, writes: &[Write]) {
    let mut options = CreateOptions::new()
        .size(image.content.len() as u64)
        .granularity(Granularity::new(image.granularity).expect("a granularity"));
    if let Some(below) = below {
        options = options.backing(below.named_from(room, image.folder), below.format());
    }
    let path = room.path(image);
    options.create(&path).expect("an overlay");
    // Whatever its image has where no bit is set must never be seen.
    let stale = path.with_file_name(format!(
        "{}-data.img",
        path.file_stem().and_then(|stem| stem.to_str()).expect("a name")
    ));
    std::fs::write(stale, vec![0xee; image.content.len()]).expect("stale bytes");
    let disk = Disk::open(&path).expect("it opens");
    for write in writes {
        put(&disk, write);
    }
    disk.close().expect("it closes");
}

/// Runs one of QEMU's programs in the folder where the image is to be.
fn run_beside(room: &Room, image: &Image, program: &str, args: &[&str]) {
    let output = Command::new(program)
        .args(args)
        .current_dir(room.dir.path().join(image.folder.to_string()))
        .output()
        .expect("it runs");
    let said = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success() && !String::from_utf8_lossy(&said).contains("failed"),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&said)
    );
}

/// Of one file or of two: a granularity is drawn with every image, and says which.
fn make_vmdk(room: &Room, image: &Image, _: Option<&Image>, _: &[Write]) {
    let content = room.path(image).with_extension("content");
    std::fs::write(&content, &image.content).expect("written");
    let kind = if image.granularity < 8 * UNIT {
        "subformat=monolithicSparse"
    } else {
        "subformat=monolithicFlat"
    };
    let content = content.to_str().expect("UTF-8");
    let args = [
        "convert",
        "-q",
        "-f",
        "raw",
        "-O",
        "vmdk",
        "-o",
        kind,
        content,
        &image.name,
    ];
    run_beside(room, image, "qemu-img", &args);
}

fn make_qcow2(room: &Room, image: &Image, below: Option<&Image>, writes: &[Write]) {
    let run = |program: &str, args: &[&str]| run_beside(room, image, program, args);
    let (options, length) = (
        format!("cluster_size={}", image.granularity),
        image.content.len().to_string(),
    );
    let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &options];
    let named = below.map(|below| (below.named_from(room, image.folder), below.format()));
    if let Some((name, format)) = &named {
        args.extend(["-b", name, "-F", format.word()]);
    }
    args.extend([image.name.as_str(), &length]);
    run("qemu-img", &args);
    let commands: Vec<String> = writes
        .iter()
        .filter(|write| write.len > 0)
        .map(|Write { at, len, byte }| match byte {
            0 => format!("write -q -z {at} {len}"),
            byte => format!("write -q -P {byte} {at} {len}"),
        })
        .collect();
    let mut args = vec!["-f", "qcow2"];
    for command in &commands {
        args.extend(["-c", command]);
    }
    args.push(&image.name);
    if !commands.is_empty() {
        run("qemu-io", &args);
    }
}

/// A write; of zeros, as zeros.
fn put(disk: &Disk, write: &Write) {
    let Write { at, len, byte } = *write;
    if byte == 0 {
        disk.write_zeroes(at, len, WriteFlags::MAY_UNMAP)
    } else {
        disk.write(&vec![byte; small(len)], at, WriteFlags::empty())
    }
    .expect("written");
}

fn small(bytes: u64) -> usize {
    usize::try_from(bytes).expect("small")
}

fn range(write: &Write) -> Range<usize> {
    small(write.at)..small(write.at + write.len)
}

fn clipped(write: &Write, length: u64) -> Write {
    let at = write.at.min(length);
    Write {
        at,
        len: write.len.min(length - at),
        byte: write.byte,
    }
}

/// A disk, what is below it from the lowest image on, and what they should show.
struct World {
    room: Room,
    below: Vec<Image>,
    top: Image,
    disk: Option<Disk>,
    /// When its dirty bitmap was added.
    start: Vec<u8>,
}

impl World {
    fn new(drawn: &[Drawn], top: &Drawn) -> Self {
        let mut room = Room::new();
        let mut below: Vec<Image> = Vec::new();
        room.stack(&mut below, drawn);
        let qbm = FORMATS
            .iter()
            .position(|it| it.format == Format::Qbm)
            .expect("ours");
        let top = Drawn {
            maker: qbm,
            ..top.clone()
        };
        let top = room.make(&top, below.last());
        let disk = Disk::open(room.path(&top)).expect("it opens");
        let dirty = AddBitmap {
            granularity: Granularity::MIN,
            ..AddBitmap::default()
        };
        disk.bitmap_add("b", dirty).expect("a bitmap");
        Self {
            room,
            below,
            start: top.content.clone(),
            top,
            disk: Some(disk),
        }
    }

    fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("it is open")
    }

    fn length(&self) -> u64 {
        self.top.content.len() as u64
    }

    fn entry(&self, image: &Image) -> BackingEntry {
        BackingEntry {
            file: image.named_from(&self.room, self.top.folder),
            format: image.format(),
        }
    }

    /// A callback that sees that what it is told goes up.
    fn watched() -> impl FnMut(u64, u64) -> ControlFlow<()> {
        let mut most = 0;
        move |done, total| {
            assert!(done >= most && done <= total, "{done} of {total} after {most}");
            most = done;
            ControlFlow::Continue(())
        }
    }

    fn step(&mut self, step: &Step) {
        let length = self.length();
        match step {
            Step::Write(write) => {
                let write = clipped(write, length);
                put(self.disk(), &write);
                self.top.content[range(&write)].fill(write.byte);
            }
            Step::Zero(write) => {
                let write = clipped(write, length);
                let done = self.disk().write_zeroes(write.at, write.len, WriteFlags::empty());
                done.expect("zeroed");
                self.top.content[range(&write)].fill(0);
            }
            Step::Discard(write) => {
                let write = clipped(write, length);
                let done = self.disk().discard(write.at, write.len, WriteFlags::empty());
                done.expect("discarded");
                self.top.content[range(&write)].fill(0);
            }
            Step::Truncate(length) => {
                self.disk()
                    .truncate(*length, TruncateFlags::SHRINK)
                    .expect("resized");
                self.top.content.resize(small(*length), 0);
                let kept = self.start.len().min(self.top.content.len());
                // What was cut off is gone for good; what comes back is dirty, and zeros.
                self.start.truncate(kept);
            }
            Step::Flush => self.disk().flush().expect("flushed"),
            Step::Reopen => {
                self.disk.take().expect("it is open").close().expect("it closes");
                self.disk = Some(Disk::open(self.room.path(&self.top)).expect("it opens"));
            }
            Step::Empty => {
                self.disk().make_empty().expect("emptied");
                let shown = self.below.last().map_or(&[][..], |image| &image.content);
                let kept = shown.len().min(self.top.content.len());
                self.top.content.fill(0);
                self.top.content[..kept].copy_from_slice(&shown[..kept]);
            }
            Step::Commit(number) => self.commit(*number),
            Step::Deeper(number) => {
                let kept = self.below.len().saturating_sub(*number);
                let backing = kept.checked_sub(1).map(|at| self.entry(&self.below[at]));
                let done = self.disk().rebase(backing, &mut Self::watched());
                done.expect("rebased");
                self.below.truncate(kept);
            }
            Step::Rebase(drawn) => {
                let Some((first, others)) = drawn.split_first() else {
                    return;
                };
                let mut images = vec![self.image_like_the_disk(first)];
                self.room.stack(&mut images, others);
                let entry = images.last().map(|image| self.entry(image));
                let done = self.disk().rebase(entry, &mut Self::watched());
                done.expect("rebased");
                self.below = images;
            }
            Step::Change(drawn) => {
                let Some(nearest) = self.below.last() else { return };
                let copy = Drawn {
                    length: nearest.content.len() as u64,
                    writes: pieces(&nearest.content),
                    ..drawn.clone()
                };
                let image = self.room.make(&copy, None);
                let entry = Some(self.entry(&image));
                let done = self.disk().change_backing(entry, BackingFlags::UNCHANGED);
                done.expect("changed");
                self.below = vec![image];
            }
            Step::Snapshot => {
                let image = Image {
                    name: self.room.name(Format::Qbm),
                    ..self.top.clone()
                };
                self.disk().snapshot(&image.name, None).expect("taken");
                self.below.push(image);
            }
        }
    }

    fn commit(&mut self, number: usize) {
        if self.below.is_empty() {
            return;
        }
        let at = self.below.len() - 1 - number % self.below.len();
        let layer = u32::try_from(self.below.len() - at).expect("few");
        let done = self.disk().commit_into(layer, &mut Self::watched());
        if self.below[at].format() == Format::Vmdk {
            let error = done.expect_err("a vmdk");
            let words = "is a vmdk, which can only be read";
            assert!(error.to_string().contains(words), "{error}");
            return;
        }
        done.expect("committed");
        self.below.truncate(at + 1);
        let unit = FORMATS[self.below[at].maker].unit;
        let grown = small(self.length().next_multiple_of(unit));
        let target = &mut self.below[at].content;
        let whole = target.len().max(grown);
        target.resize(whole, 0);
        target[..self.top.content.len()].copy_from_slice(&self.top.content);
        let overlay = self.disk().info().expect("facts").overlay.expect("an overlay");
        assert_eq!(overlay.allocated, 0);
        let target = &self.below[at];
        if target.format() == Format::Qcow2 {
            accepted(&self.room.path(target), &target.content);
        }
    }

    /// What the disk shows, but for what was drawn; longer or shorter.
    fn image_like_the_disk(&mut self, drawn: &Drawn) -> Image {
        let mut content = self.top.content.clone();
        content.resize(small(drawn.length), 0);
        let mut writes = pieces(&content);
        writes.extend(drawn.writes.iter().cloned());
        let like = Drawn {
            writes,
            ..drawn.clone()
        };
        self.room.make(&like, None)
    }

    fn check(&self) -> Result<Vec<u8>, TestCaseError> {
        let mut found = vec![0xee; self.top.content.len()];
        prop_assert_eq!(self.disk().length(), self.length());
        self.disk().read(&mut found, 0).expect("read");
        let first = found.iter().zip(&self.top.content).position(|(a, b)| a != b);
        prop_assert_eq!(first, None, "the first byte that differs");
        prop_assert_eq!(
            self.disk().info().expect("facts").layers as usize,
            1 + self.below.len()
        );
        // D1: what differs from the bitmap's starting point is dirty.
        for (sector, (now, then)) in found.chunks(512).zip(self.start.chunks(512)).enumerate() {
            if now[..then.len().min(now.len())] != then[..then.len().min(now.len())] {
                let at = sector as u64 * 512;
                prop_assert!(self.disk().bitmap_get("b", at).expect("a bit"), "byte {}", at);
            }
        }
        Ok(found)
    }
}

/// Writes that make this content of nothing.
fn pieces(content: &[u8]) -> Vec<Write> {
    let mut at = 0;
    content
        .chunk_by(|a, b| a == b)
        .map(|run| {
            let write = Write {
                at,
                len: run.len() as u64,
                byte: run[0],
            };
            at += write.len;
            write
        })
        .filter(|write| write.byte != 0)
        .collect()
}

fn have_qemu() -> bool {
    static HAVE: OnceLock<bool> = OnceLock::new();
    let have = |program| Command::new(program).arg("--version").output().is_ok();
    *HAVE.get_or_init(|| have("qemu-img") && have("qemu-io"))
}

/// QEMU finds nothing wrong with a qcow2, and this content in it.
fn accepted(image: &Path, content: &[u8]) {
    let model = image.with_extension("model");
    std::fs::write(&model, content).expect("written");
    let run = |args: &[&str], files: &[&Path]| {
        let output = Command::new("qemu-img").args(args).args(files).output();
        let output = output.expect("it runs");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(
            output.status.success() && !said.contains("mismatch"),
            "{args:?}: {said}"
        );
    };
    run(&["check", "-f", "qcow2"], &[image]);
    run(&["compare", "-f", "qcow2", "-F", "raw"], &[image, &model]);
}

/// QEMU finds the same in what was read and in what should be there; and in a raw image that all was committed into.
fn compare(world: &World, found: &[u8]) {
    let file = |name: &str, content: &[u8]| {
        let path = world.room.dir.path().join(name);
        std::fs::write(&path, content).expect("written");
        path
    };
    let same = |a: &PathBuf, b: &PathBuf| {
        let output = Command::new("qemu-img")
            .args(["compare", "-q", "-f", "raw", "-F", "raw"])
            .args([a, b])
            .output()
            .expect("it runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
    };
    // QEMU rounds lengths up to sectors, and so does this.
    let padded = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    };
    let model = file("model.img", &padded(&world.top.content));
    same(&file("found.img", &padded(found)), &model);
    let converted = world.room.dir.path().join("converted.img");
    let done = Convert::new().create(world.disk(), &converted, Format::Raw, &mut World::watched());
    done.expect("converted");
    let content = std::fs::read(&converted).expect("read");
    std::fs::write(&converted, padded(&content)).expect("written");
    same(&converted, &model);
    if let Some(image) = world.below.first().filter(|image| image.format() == Format::Raw) {
        let content = std::fs::read(world.room.path(image)).expect("read");
        same(
            &file("raw.img", &padded(&content)),
            &file("model.img", &padded(&image.content)),
        );
    }
}

/// The library's own comparison finds the model the same; and with one byte changed, it finds that byte.
fn compare_with_the_model(world: &World, at: u64) {
    let model = world.room.dir.path().join("own.img");
    let verdict = |content: &[u8]| {
        std::fs::write(&model, content).expect("written");
        let options = OpenOptions::new().read_only(true).image_format(Format::Raw);
        let raw = options.open(&model).expect("it opens");
        let compared = Compare::new().run(world.disk(), &raw, &mut World::watched());
        compared.map_err(|it| it.error).expect("compared")
    };
    let mut content = world.top.content.clone();
    assert_eq!(verdict(&content), Verdict::Identical);
    let at = at % world.length();
    content[small(at)] ^= 0x55;
    assert_eq!(verdict(&content), Verdict::Differs(at));
}

/// What is measured is enough for all that is no zeros, and for what a conversion makes of it.
fn measured(world: &World, format: Format) {
    let measured = measure(MeasureSource::Image(world.disk()), format, QCOW2_CLUSTER).expect("measured");
    let (required, most) = (measured.required, measured.fully_allocated);
    let unit = match format {
        Format::Raw => {
            let whole = world.length().next_multiple_of(512);
            assert_eq!((required, most), (whole, whole));
            return;
        }
        Format::Qcow2 => QCOW2_CLUSTER,
        _ => 4096,
    };
    let has_data = |piece: &&[u8]| piece.iter().any(|byte| *byte != 0);
    let pieces = world.top.content.chunks(small(unit)).filter(has_data).count() as u64;
    assert!(
        pieces * unit <= required && required <= most,
        "{pieces} of {unit}: {measured:?}"
    );
    if format == Format::Qcow2 && world.length().is_multiple_of(512) {
        let converted = world.room.dir.path().join("measured.qcow2");
        let done = Convert::new().create(world.disk(), &converted, format, &mut World::watched());
        done.expect("converted");
        let takes = std::fs::metadata(&converted).expect("it is there").len();
        assert!(takes <= required, "{takes}: {measured:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn jobs_keep_what_the_model_has(
        below in proptest::collection::vec(drawn(), 0..=5),
        top in drawn(),
        steps in proptest::collection::vec(step(), 0..20),
        differs in any::<u64>(),
        format in prop_oneof![Just(Format::Raw), Just(Format::Qbm), Just(Format::Qcow2)],
    ) {
        let mut world = World::new(&below, &top);
        world.check()?;
        for step in &steps {
            world.step(step);
            world.check()?;
        }
        world.step(&Step::Reopen);
        let found = world.check()?;
        if have_qemu() {
            compare(&world, &found);
            for image in world.below.iter().filter(|image| image.format() == Format::Qcow2) {
                accepted(&world.room.path(image), &image.content);
            }
        }
        compare_with_the_model(&world, differs);
        measured(&world, format);
        // And as a chain that nobody writes to.
        world.disk.take().expect("it is open").close().expect("it closes");
        let disk = OpenOptions::new().read_only(true).open(world.room.path(&world.top)).expect("it opens");
        world.disk = Some(disk);
        world.check()?;
    }
}

#[test]
fn it_is_said_where_qemu_is_missing() {
    if !have_qemu() {
        skip::skipped(
            "qemu-img and qemu-io are not installed: no qcow2 and no vmdk was in the chains, and nothing compared by QEMU",
        );
    }
}
