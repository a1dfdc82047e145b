//! Images of every format, and how they are made.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use qbm::{CreateOptions, Disk, Format, Granularity, WriteFlags};
use tempfile::TempDir;

use super::drawn::{Drawn, UNIT, Write, clipped, range, small};

/// The formats that an image below the disk may have. One more is one more entry.
pub const FORMATS: &[Maker] = &[
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
pub struct Maker {
    pub format: Format,
    /// What it can have as a backing itself.
    stacks_on: &'static [Format],
    /// What its length is a multiple of.
    pub unit: u64,
    make: fn(&Room, &Image, Option<&Image>, &[Write]),
}

/// The first so many of the formats can be made here.
fn known() -> usize {
    if have_qemu() { FORMATS.len() } else { 2 }
}

/// An image that was made: where it is, and what it shows by itself.
#[derive(Clone)]
pub struct Image {
    pub folder: usize,
    pub name: String,
    pub maker: usize,
    pub granularity: u64,
    pub absolute: bool,
    pub content: Vec<u8>,
}

impl Image {
    pub fn format(&self) -> Format {
        FORMATS[self.maker].format
    }

    /// How a descriptor in `folder` names it.
    pub fn named_from(&self, room: &Room, folder: usize) -> String {
        match (self.absolute, self.folder == folder) {
            (true, _) => room.path(self).to_str().expect("UTF-8").to_owned(),
            (false, true) => self.name.clone(),
            (false, false) => format!("../{}/{}", self.folder, self.name),
        }
    }
}

/// Two folders with images.
pub struct Room {
    pub dir: TempDir,
    made: usize,
}

impl Room {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        for folder in ["0", "1"] {
            std::fs::create_dir(dir.path().join(folder)).expect("a folder");
        }
        Self { dir, made: 0 }
    }

    pub fn path(&self, image: &Image) -> PathBuf {
        self.dir.path().join(image.folder.to_string()).join(&image.name)
    }

    /// One that no image has yet.
    pub fn name(&mut self, format: Format) -> String {
        self.made += 1;
        format!("{}.{format}", self.made)
    }

    /// Puts images on those that there are.
    pub fn stack(&mut self, images: &mut Vec<Image>, drawn: &[Drawn]) {
        for drawn in drawn {
            let image = match images.last().cloned() {
                None => self.make(drawn, None),
                Some(below) => self.make(&stacking(drawn, &below), Some(&below)),
            };
            images.push(image);
        }
    }

    /// Makes the image that was drawn on what is `below`, where its format can have that; by itself otherwise.
    pub fn make(&mut self, drawn: &Drawn, below: Option<&Image>) -> Image {
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
pub fn put(disk: &Disk, write: &Write) {
    let Write { at, len, byte } = *write;
    if byte == 0 {
        disk.write_zeroes(at, len, WriteFlags::MAY_UNMAP)
    } else {
        disk.write(&vec![byte; small(len)], at, WriteFlags::empty())
    }
    .expect("written");
}

pub fn have_qemu() -> bool {
    static HAVE: OnceLock<bool> = OnceLock::new();
    let have = |program| Command::new(program).arg("--version").output().is_ok();
    *HAVE.get_or_init(|| have("qemu-img") && have("qemu-io"))
}
