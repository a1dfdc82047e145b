//! Writes: which place new bytes get, and when one that was given free may be used again.
//!
//! Invariant: no place is given out while a table leads there from elsewhere, on disk or in others' memory; and none that
//! a write may be on its way to is given free, but with the image alone.

use std::io;
use std::sync::{PoisonError, RwLockReadGuard, RwLockWriteGuard};

use imago::ShallowMapping;

use super::{Access, BOUNCE, Qcow2Image, contained, in_memory};
use crate::format::image::{Place, joined};
use crate::format::through::Through;
use crate::mutation::{self, Fault};
use crate::storage::{Gather, SyncMode};
use crate::units::ByteRange;

/// What a write does to the tables.
enum Way<'a> {
    /// Nothing: the bytes have a place of their own, which they keep while the image is shared.
    InPlace { file: &'a Through, offset: u64 },
    /// It finds a place for bytes that have none.
    Allocate,
    /// It may find another place, and give free the one that the bytes had.
    Replace,
}

/// When clusters that are given free may be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reuse {
    /// When no table leads there any more, whatever happens.
    Settled,
    /// At once: whoever discards does not count on what was there.
    AtOnce,
}

impl Qcow2Image {
    /// Among those who find places for bytes that have none.
    fn among_others(&self) -> RwLockReadGuard<'_, ()> {
        self.placing.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody else finds places or gives them free.
    fn only_one(&self) -> RwLockWriteGuard<'_, ()> {
        self.placing.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what the library keeps, to the files.
    pub(super) fn write_back(&self, access: &Access) -> io::Result<()> {
        // It takes over what others are about to give free: they must have done so when their turn is over.
        let _others = self.among_others();
        contained(&self.dead, || access.flush())
    }

    /// Makes sure that nobody goes by a table any more that leads to clusters that were given free, after a power cut or in
    /// memory: they may be used again from now on. The caller lets nobody find places meanwhile.
    pub(super) fn settle_freed(&self, access: &Access) -> io::Result<()> {
        let Some(order) = &self.order else { return Ok(()) };
        let Some(freed) = order.has_freed() else {
            return Ok(());
        };
        if !mutation::on(Fault::FreedAtOnce) {
            contained(&self.dead, || access.flush())?;
            self.sync_files(SyncMode::Data)?;
            if let Some(reader) = &*self.reader() {
                reader.reread()?;
            }
        }
        order.settled(freed);
        Ok(())
    }

    fn has_freed(&self) -> bool {
        let order = self.order.as_ref();
        order.is_some_and(|order| order.has_freed().is_some())
    }

    /// How the first bytes of `range` are written, and which those are.
    fn way<'a>(&self, access: &'a Access, range: ByteRange) -> io::Result<(Way<'a>, ByteRange)> {
        let cluster = self.parts.cluster;
        let (way, most) = contained(&self.dead, || {
            let (mapping, len) = access.get_shallow_mapping(range.start(), range.len())?;
            Ok(match mapping {
                ShallowMapping::Raw {
                    storage: file,
                    offset,
                    writable: true,
                    ..
                } => (Way::InPlace { file, offset }, len),
                // One may have a place, and in a run with others it would lose that, though a write that began before
                // it became zeros may be on its way there.
                ShallowMapping::Zero { explicit: true, .. } => {
                    (Way::Replace, cluster - range.start() % cluster)
                }
                ShallowMapping::Zero { .. } | ShallowMapping::Indirect { .. } => (Way::Allocate, len),
                _ => (Way::Replace, len),
            })
        })?;
        let len = most.min(range.len());
        if len == 0 {
            return Err(io::Error::other("a mapping of no bytes"));
        }
        Ok((way, ByteRange::between(range.start(), range.start() + len)))
    }

    pub(super) fn write_all(&self, access: &Access, range: ByteRange, from: Gather<'_>) -> io::Result<()> {
        let mut done = 0;
        while done < from.len() {
            let rest = ByteRange::between(range.start() + done as u64, range.end());
            done += self.write_some(access, rest, from, done)?;
        }
        Ok(())
    }

    /// Writes the first bytes of `range`; says how many.
    fn write_some(
        &self,
        access: &Access,
        range: ByteRange,
        from: Gather<'_>,
        skip: usize,
    ) -> io::Result<usize> {
        let (way, part) = self.way(access, range)?;
        match way {
            Way::InPlace { file, offset } => {
                let len = in_memory(part.len())?;
                let mut room = Vec::new();
                file.file().write(from.part(skip, len, &mut room), offset)?;
                return Ok(len);
            }
            Way::Allocate => {
                let _others = self.among_others();
                // Nobody gives free or makes zeros from here on, so both answers stay.
                if let (Way::Allocate, part) = self.way(access, part)?
                    && !self.has_freed()
                {
                    return self.place(access, part, from, skip);
                }
            }
            Way::Replace => {}
        }
        let _alone = self.only_one();
        self.settle_freed(access)?;
        let (_, part) = self.way(access, part)?;
        self.place(access, part, from, skip)
    }

    /// Writes the first bytes of `range` to where the library has them go. The caller sees to it that whatever comes free is
    /// not in use.
    fn place(&self, access: &Access, range: ByteRange, from: Gather<'_>, skip: usize) -> io::Result<usize> {
        contained(&self.dead, || {
            let mapping = access.prepare_data_mapping(range.start(), range.len(), true)?;
            let len = in_memory(mapping.length().min(range.len()))?;
            let mut room = Vec::new();
            let part = from.part(skip, len, &mut room);
            let storage = mapping.storage();
            storage.file().write(part, mapping.offset())?;
            if !mapping.is_nonblocking() {
                storage.wrote_data();
            }
            access.commit_data_mapping(mapping)?;
            Ok(len)
        })
    }

    /// Splits `range` into the whole clusters, and what comes before and behind them. The image's last one is whole where its
    /// end is the image's.
    fn split(&self, access: &Access, range: ByteRange) -> (ByteRange, [ByteRange; 2]) {
        let cluster = self.parts.cluster;
        let start = range.start().next_multiple_of(cluster).min(range.end());
        let end = match range.end() {
            end if end == access.size() => end,
            end => end - end % cluster,
        };
        let end = end.max(start);
        let edges = [(range.start(), start), (end, range.end())];
        let edges = edges.map(|(start, end)| ByteRange::between(start, end));
        (ByteRange::between(start, end), edges)
    }

    /// Writes zeros where there are none yet. For parts of clusters.
    fn write_zeros(&self, access: &Access, range: ByteRange) -> io::Result<()> {
        let mut at = range.start();
        while at < range.end() {
            let rest = ByteRange::between(at, range.end().min(at + BOUNCE as u64));
            let mapping = self.look(access, rest)?;
            let part = ByteRange::between(at, rest.end().min(at + mapping.len));
            if !self.is_zeros(mapping.place) {
                let zeros = vec![0; in_memory(part.len())?];
                let from = [io::IoSlice::new(&zeros)];
                let from = Gather::from_slices(&from).ok_or(io::ErrorKind::InvalidInput)?;
                self.write_all(access, part, from)?;
            }
            at = part.end();
        }
        Ok(())
    }

    /// Makes the parts of clusters at the ends of `range` zeros; says which whole ones are left, if any.
    fn zero_edges(&self, access: &Access, range: ByteRange) -> io::Result<Option<ByteRange>> {
        let range = ByteRange::between(range.start(), range.end().min(access.size()).max(range.start()));
        if range.is_empty() {
            return Ok(None);
        }
        self.mark()?;
        let (whole, edges) = self.split(access, range);
        edges
            .into_iter()
            .try_for_each(|edge| self.write_zeros(access, edge))?;
        Ok((!whole.is_empty()).then_some(whole))
    }

    /// Makes `range` zeros; what has a place keeps it.
    pub(super) fn zero(&self, range: ByteRange) -> io::Result<()> {
        let access = self.shared();
        let Some(whole) = self.zero_edges(&access, range)? else {
            return Ok(());
        };
        let _alone = self.only_one();
        self.by_table(whole, |part| {
            self.settle_freed(&access)?;
            contained(&self.dead, || access.write_zeroes(part.start(), part.len()))
        })
    }

    /// Makes `range` zeros, and gives the clusters free.
    pub(super) fn give_back(&self, range: ByteRange, reuse: Reuse) -> io::Result<()> {
        let mut access = self.alone();
        match self.zero_edges(&access, range)? {
            Some(whole) => self.give_back_whole(&mut access, whole, reuse),
            None => Ok(()),
        }
    }

    /// The same for whole clusters, by one who has the image alone.
    pub(super) fn give_back_whole(
        &self,
        access: &mut Access,
        whole: ByteRange,
        reuse: Reuse,
    ) -> io::Result<()> {
        self.by_table(whole, |part| {
            self.settle_freed(access)?;
            let mut at = part.start();
            while at < part.end() {
                let rest = ByteRange::between(at, part.end());
                let mapping = joined(rest, |part| self.look(access, part))?;
                let len = mapping.len.min(rest.len());
                // What is nowhere needs no table that says so.
                if mapping.place != Place::Below || self.parts.has_backing {
                    contained(&self.dead, || access.discard_to_zero(at, len))?;
                }
                at += len;
            }
            if let (Reuse::AtOnce, Some(order)) = (reuse, &self.order) {
                order.settled(order.has_freed().unwrap_or(0));
            }
            Ok(())
        })
    }

    /// Does `act` with as much of `range` at a time as one table stands for. A new table may get what was given free before,
    /// so that has to be settled; within one table nothing is needed.
    fn by_table(&self, range: ByteRange, mut act: impl FnMut(ByteRange) -> io::Result<()>) -> io::Result<()> {
        let covers = self.parts.cluster * (self.parts.cluster / 8);
        let mut at = range.start();
        while at < range.end() {
            let end = (at - at % covers).saturating_add(covers).min(range.end());
            act(ByteRange::between(at, end))?;
            at = end;
        }
        Ok(())
    }
}
