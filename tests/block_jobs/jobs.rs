//! The jobs that move what an overlay has, or what it is on.

use qbm::{BackingFlags, Format};

use super::compare::accepted;
use super::drawn::{Drawn, pieces, small};
use super::images::{FORMATS, Image};
use super::world::World;

impl World {
    pub fn commit(&mut self, number: usize) {
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

    /// Onto one of the images below, or onto none.
    pub fn deeper(&mut self, number: usize) {
        let kept = self.below.len().saturating_sub(number);
        let backing = kept.checked_sub(1).map(|at| self.entry(&self.below[at]));
        let done = self.disk().rebase(backing, &mut Self::watched());
        done.expect("rebased");
        self.below.truncate(kept);
    }

    pub fn rebase(&mut self, drawn: &[Drawn]) {
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

    pub fn change(&mut self, drawn: &Drawn) {
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

    pub fn snapshot(&mut self) {
        let image = Image {
            name: self.room.name(Format::Qbm),
            ..self.top.clone()
        };
        self.disk().snapshot(&image.name, None).expect("taken");
        self.below.push(image);
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
}
