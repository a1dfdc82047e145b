//! Random chains and random operations against plain vectors.

use proptest::prelude::*;

use super::*;
use crate::disk::AddBitmap;

const UNIT: u64 = 512;

/// One layer: its length and granularity, from the lowest on; the lowest has no granules of its own if it is raw.
#[derive(Clone, Debug)]
struct Shape {
    length: u64,
    granularity: u64,
    /// What was written to it before the next was put on it.
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    Write { at: u64, len: u64, byte: u8, fua: bool },
    Zero { at: u64, len: u64, unmap: bool },
    Discard { at: u64, len: u64 },
    Read { at: u64, len: u64 },
    Truncate(u64),
    Flush,
    Reopen,
    Empty,
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![
        (1..64u64).prop_map(|units| units * UNIT * 4),
        1..128 * UNIT,
        (0..4u64, 0..3u64).prop_map(|(shift, by)| ((32 * UNIT) << shift) + by - 1)
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..256 * UNIT, prop_oneof![0..600u64, 0..20 * UNIT, 0..200 * UNIT]);
    prop_oneof![
        6 => (range(), 1..=255u8, any::<bool>())
            .prop_map(|((at, len), byte, fua)| Step::Write { at, len, byte, fua }),
        2 => (range(), any::<bool>()).prop_map(|((at, len), unmap)| Step::Zero { at, len, unmap }),
        2 => range().prop_map(|(at, len)| Step::Discard { at, len }),
        2 => range().prop_map(|(at, len)| Step::Read { at, len }),
        1 => length().prop_map(Step::Truncate),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => Just(Step::Empty),
    ]
}

fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    let shape =
        (length(), 0..6u32, proptest::collection::vec(step(), 0..12)).prop_map(|(length, shift, steps)| {
            Shape {
                length,
                granularity: UNIT << shift,
                steps,
            }
        });
    proptest::collection::vec(shape, 1..=4)
}

/// What the layers should be: the content that each shows, from the lowest on.
struct World {
    sim: SimDisk,
    name: String,
    below: Vec<u8>,
    content: Vec<u8>,
    disk: Option<Disk>,
}

impl World {
    /// A new layer on what is there.
    fn put(&mut self, index: usize, shape: &Shape) {
        let lower = std::mem::replace(&mut self.name, format!("layer{index}.qbm"));
        let (backing, format) = match index {
            0 => ("base.img".to_owned(), Format::Raw),
            _ => (lower, Format::Qbm),
        };
        CreateOptions::new()
            .backing(backing, format)
            .granularity(granularity(shape.granularity))
            .size(shape.length)
            .folder(self.sim.folder())
            .create(&self.name)
            .unwrap();
        let image = format!("layer{index}-data.img");
        // Whatever the image has where no bit is set must never be seen.
        self.sim
            .put(image, &vec![0xee; usize::try_from(shape.length).unwrap()]);
        self.below = std::mem::take(&mut self.content);
        self.content.clone_from(&self.below);
        self.content.resize(usize::try_from(shape.length).unwrap(), 0);
        self.disk = Some(open_as(&self.sim, &self.name));
        let dirty = AddBitmap {
            granularity: granularity(1024),
            ..AddBitmap::default()
        };
        self.disk().bitmap_add("dirty", dirty).unwrap();
    }

    fn disk(&self) -> &Disk {
        self.disk.as_ref().unwrap()
    }

    fn close(&mut self) {
        self.disk.take().unwrap().close().unwrap();
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let found = read_all(self.disk());
        prop_assert_eq!(found.len(), self.content.len());
        let first = found.iter().zip(&self.content).position(|(a, b)| a != b);
        prop_assert_eq!(first, None, "the first byte that differs");
        // The status covers the disk and tells no lie about zeros.
        let mut at = 0;
        while at < self.disk().length() {
            let status = self.disk().block_status(at, self.disk().length() - at).unwrap();
            prop_assert!(status.length > 0);
            if status.flags.contains(crate::StatusFlags::ZERO) {
                let part = &found[usize::try_from(at).unwrap()..][..usize::try_from(status.length).unwrap()];
                prop_assert!(part.iter().all(|byte| *byte == 0));
            }
            at += status.length;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let length = self.content.len() as u64;
        let clip = |at: u64, len: u64| {
            let at = at.min(length);
            (at, len.min(length - at))
        };
        let before = self.content.clone();
        match *step {
            Step::Write { at, len, byte, fua } => {
                let (at, len) = clip(at, len);
                let bytes = vec![byte; usize::try_from(len).unwrap()];
                let flags = if fua { WriteFlags::FUA } else { WriteFlags::empty() };
                // In pieces, as a guest's memory is.
                let (one, other) = bytes.split_at(bytes.len() / 3);
                let pieces = [one, other].map(std::io::IoSlice::new);
                self.disk().write_vectored(&pieces, at, flags).unwrap();
                self.fill(at, len, byte);
            }
            Step::Zero { at, len, unmap } => {
                let (at, len) = clip(at, len);
                let flags = if unmap {
                    WriteFlags::MAY_UNMAP
                } else {
                    WriteFlags::empty()
                };
                self.disk().write_zeroes(at, len, flags).unwrap();
                self.fill(at, len, 0);
            }
            Step::Discard { at, len } => {
                let (at, len) = clip(at, len);
                self.disk().discard(at, len, WriteFlags::empty()).unwrap();
                self.fill(at, len, 0);
            }
            Step::Read { at, len } => {
                let (at, len) = clip(at, len);
                let mut bytes = vec![0xdd; usize::try_from(len).unwrap()];
                let (one, other) = bytes.split_at_mut(usize::try_from(len / 3).unwrap());
                let mut pieces = [one, other].map(std::io::IoSliceMut::new);
                self.disk().read_vectored(&mut pieces, at).unwrap();
                let expected = &self.content[usize::try_from(at).unwrap()..][..bytes.len()];
                prop_assert_eq!(bytes.as_slice(), expected);
            }
            Step::Truncate(length) => {
                self.disk().truncate(length, TruncateFlags::SHRINK).unwrap();
                self.content.resize(usize::try_from(length).unwrap(), 0);
            }
            Step::Flush => self.disk().flush().unwrap(),
            Step::Reopen => {
                self.close();
                self.disk = Some(open_as(&self.sim, &self.name));
            }
            Step::Empty => {
                self.disk().make_empty().unwrap();
                let length = self.content.len();
                self.content.clone_from(&self.below);
                self.content.resize(length, 0);
            }
        }
        self.check_dirty(&before)?;
        self.check()
    }

    /// D1: what differs from before is dirty. (The bitmap is never cleared here, so it has all since the start.)
    fn check_dirty(&self, before: &[u8]) -> Result<(), TestCaseError> {
        let differs = before.iter().zip(&self.content).position(|(a, b)| a != b);
        if let Some(at) = differs {
            prop_assert!(
                self.disk().bitmap_get("dirty", at as u64).unwrap(),
                "byte {} is not dirty",
                at
            );
        }
        Ok(())
    }

    fn fill(&mut self, at: u64, len: u64, byte: u8) {
        self.content[usize::try_from(at).unwrap()..][..usize::try_from(len).unwrap()].fill(byte);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn a_chain_reads_as_the_model(base_length in length(), shapes in shapes()) {
        let sim = SimDisk::new();
        sim.put("base.img", &base(base_length));
        let mut world = World {
            sim,
            name: String::new(),
            below: Vec::new(),
            content: base(base_length),
            disk: None,
        };
        for (index, shape) in shapes.iter().enumerate() {
            world.put(index, shape);
            world.check()?;
            for step in &shape.steps {
                world.step(step)?;
            }
            world.close();
        }
        // Nothing below the top was touched by what was above.
        assert_same(&world.sim.read("base.img").unwrap(), &base(base_length));
        let disk = open_as(&world.sim, &world.name);
        world.disk = Some(disk);
        world.check()?;
    }
}
