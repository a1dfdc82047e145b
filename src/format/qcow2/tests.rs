//! What is written reads back as itself; what is not a qcow2 is refused in words; no bytes make it panic. That QEMU takes
//! it, too, is asked in `tests/qemu_import.rs`.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::error::{ErrorCode, Result};
use crate::storage::{Folder, HostFolder, Role, Storage, read_slice, write_slice};
use crate::units::Granularity;

const NAME: &str = "disk.qcow2";

struct Room {
    _dir: TempDir,
    file: Arc<dyn Storage>,
}

impl Room {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = HostFolder::open(dir.path()).expect("it opens");
        let file = folder.create(Role::Image, Path::new(NAME)).expect("a file");
        Self { _dir: dir, file }
    }

    fn with(bytes: &[u8]) -> Self {
        let room = Self::new();
        write_slice(&*room.file, bytes, 0).expect("written");
        room
    }

    fn bytes(&self) -> Vec<u8> {
        let len = self.file.length().expect("a length");
        let mut bytes = vec![0; usize::try_from(len).expect("small")];
        read_slice(&*self.file, &mut bytes, 0).expect("read");
        bytes
    }

    fn read(&self) -> Result<Qcow2<'_>> {
        Qcow2::read(&*self.file, Path::new(NAME))
    }

    /// What it is refused with: when it is opened, or when the bits of its bitmaps are read.
    fn refusal(&self) -> (ErrorCode, String) {
        let refused = self.read().and_then(|qcow2| {
            let mut bitmaps = qcow2.bitmaps().iter();
            bitmaps.try_for_each(|record| qcow2.bits(record, &mut |_, _| Ok(())))
        });
        match refused {
            Ok(()) => panic!("it is read without complaint"),
            Err(error) => (error.code(), error.message().to_owned()),
        }
    }
}

/// A bitmap as bytes.
#[derive(Clone, Debug)]
struct Sample {
    name: String,
    granularity: Granularity,
    recording: bool,
    bits: Vec<u8>,
}

fn sample(name: &str, granularity: u64, recording: bool, size: u64, fill: impl Fn(usize) -> u8) -> Sample {
    let granularity = Granularity::new(granularity).expect("a granularity");
    let len = usize::try_from(serialized_bytes(granularity.granules_in(size))).expect("small");
    Sample {
        name: name.to_owned(),
        granularity,
        recording,
        bits: (0..len).map(fill).collect(),
    }
}

fn write(room: &Room, size: u64, samples: &[Sample]) -> Result<()> {
    let bitmaps = samples.iter().map(|sample| NewBitmap {
        name: &sample.name,
        granularity: sample.granularity,
        recording: sample.recording,
        bytes: sample.bits.len() as u64,
        serialize: Box::new(|offset, out| {
            let at = usize::try_from(offset).expect("small");
            out.copy_from_slice(&sample.bits[at..at + out.len()]);
            Ok(())
        }),
    });
    Thin {
        path: Path::new(NAME),
        size,
        data_file: "disk.img",
        bitmaps: bitmaps.collect(),
    }
    .write(&*room.file)
}

fn bits_of(qcow2: &Qcow2<'_>, record: &BitmapRecord) -> Vec<u8> {
    let mut bits = Vec::new();
    qcow2
        .bits(record, &mut |range, part| {
            assert_eq!(range.start(), bits.len() as u64);
            match part {
                Part::Bytes(bytes) => bits.extend_from_slice(bytes),
                Part::Zeros => bits.resize(usize::try_from(range.end()).expect("small"), 0),
                Part::Ones => bits.resize(usize::try_from(range.end()).expect("small"), 0xff),
            }
            Ok(())
        })
        .expect("the bits");
    bits
}

#[test]
fn what_is_written_reads_back() {
    // The last is long enough for bitmaps of several clusters, and for a second L2 table.
    for size in [0, 512, 1 << 16, (9 << 20) + 512, (1 << 30) + 512 * 3] {
        let samples = [
            sample("sparse", 512, true, size, |at| u8::from(at % 100_000 == 7)),
            sample("none", 4096, false, size, |_| 0),
            sample("all", 512, true, size, |_| 0xff),
            sample("ein Name, with 日本語", 1 << 31, false, size, |_| 1),
        ];
        let room = Room::new();
        write(&room, size, &samples).expect("written");
        assert_eq!(room.file.length().expect("a length") % (1 << MIN_CLUSTER), 0);
        let qcow2 = room.read().expect("it is read");
        assert_eq!(qcow2.size(), size);
        assert_eq!(*qcow2.data_file(), DataFile::Raw(Some("disk.img".to_owned())));
        assert_eq!(qcow2.bitmaps().len(), samples.len());
        for (record, sample) in qcow2.bitmaps().iter().zip(&samples) {
            assert_eq!(record.name, sample.name);
            assert_eq!(record.granularity, sample.granularity);
            assert_eq!(record.recording, sample.recording);
            assert!(!record.in_use);
            assert!(
                bits_of(&qcow2, record) == sample.bits,
                "{} of {size}",
                record.name
            );
        }
    }
}

const MIN_CLUSTER: u32 = 16;

#[test]
fn clusters_that_are_all_the_same_take_no_space() {
    let size = 1 << 30;
    let length = |fill: u8| {
        let room = Room::new();
        write(&room, size, &[sample("b", 512, true, size, |_| fill)]).expect("written");
        room.file.length().expect("a length")
    };
    // 256 KiB of bits.
    assert_eq!(length(0), length(0xff));
    assert_eq!(length(0) + (256 << 10), length(0x55));
}

#[test]
fn what_qemu_cannot_have_is_not_written() {
    let refused = |size, samples: &[Sample]| {
        let room = Room::new();
        let error = write(&room, size, samples).expect_err("it is refused");
        assert_eq!(room.file.length().expect("a length"), 0, "something was written");
        (error.code(), error.message().to_owned())
    };
    let mut big = sample("b", 512, true, 512, |_| 0);
    big.bits = vec![0; usize::try_from(MAX_BITMAP_BYTES + 8).expect("a length")];
    assert_eq!(
        refused(1 << 42, &[big]),
        (
            ErrorCode::NotSupported,
            "bitmap \"b\": a granularity of 512 bytes is too fine for QEMU on a disk of this length, which limits a \
             bitmap to 536870912 bytes"
                .to_owned()
        )
    );
    assert_eq!(
        refused(1 << 60, &[]),
        (
            ErrorCode::NotSupported,
            "a disk of 1152921504606846976 bytes is too long for a qcow2".to_owned()
        )
    );
}

/// A disk of 64 MiB with one bitmap of one stored cluster.
fn valid() -> Vec<u8> {
    let room = Room::new();
    let size = 64 << 20;
    write(
        &room,
        size,
        &[sample("nightly", 4096, true, size, |at| u8::from(at == 5))],
    )
    .expect("written");
    room.bytes()
}

/// Where the first bitmap's directory entry is in [`valid`], and its table's first entry.
fn places(bytes: &[u8]) -> (usize, usize) {
    let number = |at: usize| {
        let number = u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        usize::try_from(number).expect("small")
    };
    // Header, the data file's extension, and in the bitmaps' one the last field.
    let directory = number(104 + 16 + 8 + 16);
    (directory, number(directory))
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table, one case after the other")]
fn every_field_that_is_wrong_is_refused_in_words() {
    use ErrorCode::{FileInvalid, NotSupported};
    let good = valid();
    let (directory, table) = places(&good);
    let length = good.len();
    let data = 104;
    let bitmaps = data + 16;
    let entry = |words: &str| format!("bitmap directory: entry 0: {words}");
    let named = |words: &str| format!("bitmap directory: entry 0: bitmap \"nightly\": {words}");
    let of_bits = |words: &str| format!("bitmap \"nightly\": {words}");
    let cases: Vec<(usize, &[u8], ErrorCode, String)> = vec![
        (
            0,
            b"QFI\xfa",
            FileInvalid,
            "it is no qcow2 image: it does not begin with QFI\\xfb".into(),
        ),
        (
            7,
            &[4],
            NotSupported,
            "it is of qcow2 version 4; 2 and 3 can be read".into(),
        ),
        (
            23,
            &[8],
            FileInvalid,
            "header: 8 cluster bits are not between 9 and 21".into(),
        ),
        (
            23,
            &[22],
            FileInvalid,
            "header: 22 cluster bits are not between 9 and 21".into(),
        ),
        (
            24,
            &[0x80],
            NotSupported,
            "header: a disk of 9223372036921884672 bytes is longer than the limit of 9223372036854775807"
                .into(),
        ),
        (
            72,
            &[1],
            NotSupported,
            "header: the incompatible features 0x100000000000000 are unknown".into(),
        ),
        (
            79,
            &[6],
            FileInvalid,
            "it is marked corrupt; \"qemu-img check -r all\" may repair it".into(),
        ),
        (
            103,
            &[96],
            FileInvalid,
            "header: its length 96 is no multiple of 8 from 104 on".into(),
        ),
        (
            103,
            &[105],
            FileInvalid,
            "header: its length 105 is no multiple of 8 from 104 on".into(),
        ),
        (
            100,
            &[1],
            FileInvalid,
            "header: its length 16777320 reaches behind the first cluster".into(),
        ),
        (
            data + 4,
            &[1],
            FileInvalid,
            "header extension 0x44415441: its 16777224 bytes do not fit in the first cluster".into(),
        ),
        (
            data + 8,
            &[0xff],
            NotSupported,
            "data file extension: the name is not UTF-8".into(),
        ),
        (
            bitmaps + 7,
            &[16],
            FileInvalid,
            "bitmaps extension: it is 16 bytes long, not 24".into(),
        ),
        (
            bitmaps + 11,
            &[0],
            FileInvalid,
            "bitmaps extension: 0 bitmaps are not between 1 and 65535".into(),
        ),
        (
            bitmaps + 9,
            &[1],
            FileInvalid,
            "bitmaps extension: 65537 bitmaps are not between 1 and 65535".into(),
        ),
        (
            bitmaps + 15,
            &[1],
            FileInvalid,
            "bitmaps extension: its reserved field is 0x1, not zero".into(),
        ),
        (
            bitmaps + 16,
            &[1],
            FileInvalid,
            "bitmaps extension: a directory of 72057594037927968 bytes is longer than the limit of 67107840"
                .into(),
        ),
        (
            bitmaps + 31,
            &[8],
            FileInvalid,
            format!(
                "the bitmap directory: offset {} is not where a cluster of its own begins",
                directory + 8
            ),
        ),
        (
            bitmaps + 24,
            &[1],
            FileInvalid,
            format!(
                "the bitmap directory: 32 bytes at offset {} do not lie within the file, which is {length} bytes long",
                directory + (1 << 56)
            ),
        ),
        (
            bitmaps + 11,
            &[2],
            FileInvalid,
            "bitmap directory: entry 1: it ends in the middle of a field".into(),
        ),
        (
            directory + 15,
            &[6],
            FileInvalid,
            named("its flags 0x6 have bits that are unknown"),
        ),
        (
            directory + 16,
            &[2],
            FileInvalid,
            named("its type 2 is not 1, dirty"),
        ),
        (
            directory + 17,
            &[8],
            FileInvalid,
            named("8 granularity bits are not between 9 and 31"),
        ),
        (
            directory + 17,
            &[200],
            FileInvalid,
            named("200 granularity bits are not between 9 and 31"),
        ),
        (
            directory + 19,
            &[0],
            FileInvalid,
            entry("a name of 0 bytes is not between 1 and 1023"),
        ),
        (
            directory + 18,
            &[4],
            FileInvalid,
            entry("a name of 1031 bytes is not between 1 and 1023"),
        ),
        (
            directory + 18,
            &[1],
            FileInvalid,
            entry("it ends in the middle of a field"),
        ),
        (
            directory + 23,
            &[1],
            NotSupported,
            entry("it has 1 bytes of extra data, whose meaning is unknown"),
        ),
        (
            directory + 24,
            &[0xff],
            NotSupported,
            entry("its name is not UTF-8"),
        ),
        (
            directory + 11,
            &[0],
            FileInvalid,
            of_bits("its table has 0 entries, and the bits of the disk take 1 clusters"),
        ),
        (
            directory + 7,
            &[1],
            FileInvalid,
            of_bits(&format!(
                "its table: offset {} is not where a cluster of its own begins",
                table + 1
            )),
        ),
        (
            table,
            &[1],
            FileInvalid,
            of_bits("table entry 0: 0x100000000030000 has bits that are unknown"),
        ),
        (
            table + 7,
            &[1],
            FileInvalid,
            of_bits("table entry 0: 0x30001 has bits that are unknown"),
        ),
        (
            table + 6,
            &[2],
            FileInvalid,
            of_bits("the cluster of table entry 0: offset 197120 is not where a cluster of its own begins"),
        ),
        (
            table + 1,
            &[1],
            FileInvalid,
            of_bits(&format!(
                "the cluster of table entry 0: 2048 bytes at offset 281474976907264 do not lie within the file, which \
                 is {length} bytes long"
            )),
        ),
    ];
    for (at, new, code, words) in cases {
        let mut bytes = good.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        assert_ne!(bytes, good, "nothing is wrong at {at}");
        assert_eq!(Room::with(&bytes).refusal(), (code, words), "byte {at}: {new:x?}");
    }
}

#[test]
fn two_bitmaps_of_one_name_are_refused() {
    let room = Room::new();
    let twice = sample("twice", 65_536, true, 512, |_| 0);
    write(&room, 512, &[twice.clone(), twice]).expect("written");
    assert_eq!(
        room.refusal(),
        (
            ErrorCode::FileInvalid,
            "bitmap directory: there are two bitmaps \"twice\"".to_owned()
        )
    );
}

#[test]
fn flags_are_read() {
    let mut bytes = valid();
    let (directory, _) = places(&bytes);
    bytes[directory + 15] = 1;
    let room = Room::with(&bytes);
    let qcow2 = room.read().expect("it is read");
    assert!(qcow2.bitmaps()[0].in_use);
    assert!(!qcow2.bitmaps()[0].recording);
    bytes[95] = 2;
    let room = Room::with(&bytes);
    let qcow2 = room.read().expect("it is read");
    assert!(qcow2.has_lost_bitmaps() && qcow2.bitmaps().is_empty());
    bytes[35] = 2;
    assert_eq!(
        *Room::with(&bytes).read().expect("read").data_file(),
        DataFile::Mapped,
        "encrypted"
    );
    bytes[35] = 0;
    // The raw bit gone: somebody has written who knows nothing of it.
    bytes[95] = 1;
    assert_eq!(
        *Room::with(&bytes).read().expect("read").data_file(),
        DataFile::Mapped
    );
    bytes[79] = 0;
    assert_eq!(
        *Room::with(&bytes).read().expect("read").data_file(),
        DataFile::Inside
    );
}

#[test]
fn every_cut_is_refused_or_reads_the_same() {
    let good = valid();
    for len in (0..400).chain((400..good.len()).step_by(4099)) {
        read_all(&*Room::with(&good[..len]).file);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), magic in any::<bool>()) {
        let mut bytes = bytes;
        if magic && bytes.len() > 8 {
            bytes[..8].copy_from_slice(&[b'Q', b'F', b'I', 0xfb, 0, 0, 0, 3]);
        }
        read_all(&*Room::with(&bytes).file);
    }

    /// One field after another of a file that is right.
    #[test]
    fn no_change_makes_it_panic(changes in proptest::collection::vec((0usize..4, 0usize..160, any::<u8>()), 1..6)) {
        let mut bytes = valid();
        let (directory, table) = places(&bytes);
        for (place, at, value) in changes {
            let at = match place {
                0 | 1 => at,
                2 => directory + at % 32,
                _ => table + at % 8,
            };
            bytes[at] = value;
        }
        read_all(&*Room::with(&bytes).file);
    }
}
