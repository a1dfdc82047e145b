//! What a disk leaves behind for whoever opens it after a crash: the state file, and the locks that keep two apart.
//!
//! The parts: [`StateFile`] is the file ([`Header`] and map), [`IntentMap`] the regions in which writes may change what no
//! durable bitmap shows yet, [`Shadow`] which granules of an overlay no durable bit shows yet, [`Evidence`] whether the page cache can have been lost, [`Stamp`] whether somebody else wrote
//! to the image, [`Tenure`] the same for whoever has the disk as his image, [`Lock`] who may use the files now. May call `storage`, and knows files, never disks. Invariant: every
//! answer of this layer that could cost a bitmap a bit (D1) is the pessimistic one where anything is missing, damaged or
//! unknown.
//!
//! The order in which an opener uses them: lock; [`StateFile::inspect`]; [`Found::verdict`]; whatever the verdict asks
//! for, synced; [`StateFile::adopt`] (or [`StateFile::create`] where there was no valid state); before the first write of
//! any kind [`StateFile::begin_and`]; at the close [`IntentMap::retire_all`], [`Stamp::take`] and [`StateFile::end_and`].

mod evidence;
mod file;
mod header;
mod intent;
mod locks;
mod map;
mod region;
mod shadow;
mod stamp;
mod sys;
mod tenure;
mod verdict;

pub(crate) use evidence::{Evidence, NoEvidence};
pub(crate) use file::{Found, LENGTH_BYTES as STATE_FILE_BYTES, StateFile, Unusable};
pub(crate) use header::{Header, MarkId, Marks};
pub(crate) use intent::IntentMap;
pub(crate) use locks::{Lock, Sharing};
pub(crate) use map::RegionSet;
pub(crate) use region::RegionSize;
pub(crate) use shadow::{Shadow, ShadowId, spoil as spoil_shadow};
pub(crate) use stamp::Stamp;
pub(crate) use tenure::Tenure;
pub(crate) use verdict::Verdict;

/// Any bytes as a state file: read without a panic, and what is valid survives being written again. For the fuzzer.
#[cfg(fuzzing)]
pub(crate) fn survives_rewriting(bytes: &[u8]) {
    file::oracle::survives_rewriting(bytes);
}
