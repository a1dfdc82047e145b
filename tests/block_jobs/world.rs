//! A disk on a chain of images, and a plain model of what it shows.

use std::ops::ControlFlow;

use proptest::prelude::*;
use qbm::descriptor::BackingEntry;
use qbm::{AddBitmap, Disk, Format, Granularity, TruncateFlags, WriteFlags};

use super::drawn::{Drawn, Step, clipped, range, small};
use super::images::{FORMATS, Image, Room, put};

/// A disk, what is below it from the lowest image on, and what they should show.
pub struct World {
    pub room: Room,
    pub below: Vec<Image>,
    pub top: Image,
    pub disk: Option<Disk>,
    /// When its dirty bitmap was added.
    start: Vec<u8>,
}

impl World {
    pub fn new(drawn: &[Drawn], top: &Drawn) -> Self {
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

    pub fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("it is open")
    }

    pub fn length(&self) -> u64 {
        self.top.content.len() as u64
    }

    pub fn entry(&self, image: &Image) -> BackingEntry {
        BackingEntry {
            file: image.named_from(&self.room, self.top.folder),
            format: image.format(),
        }
    }

    /// A callback that sees that what it is told goes up.
    pub fn watched() -> impl FnMut(u64, u64) -> ControlFlow<()> {
        let mut most = 0;
        move |done, total| {
            assert!(done >= most && done <= total, "{done} of {total} after {most}");
            most = done;
            ControlFlow::Continue(())
        }
    }

    pub fn step(&mut self, step: &Step) {
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
            Step::Deeper(number) => self.deeper(*number),
            Step::Rebase(drawn) => self.rebase(drawn),
            Step::Change(drawn) => self.change(drawn),
            Step::Snapshot => self.snapshot(),
        }
    }

    pub fn check(&self) -> Result<Vec<u8>, TestCaseError> {
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
