//! Faults that tests put into the code on purpose, to show that the schedule explorer, or a crash test, finds them.
//!
//! Each stands for a protection that a reader might take for one too many. Where it is taken out, the code asks
//! [`on`]; outside the tests the answer is a constant and the compiler drops the question.
//!
//! The suites with real processes link the library as everybody does. For them the feature `faults` has `put_in`: a function of
//! Rust's side alone, so that neither the C library nor the tool has a way to it, whatever they were built with.
//! Invariant: no fault is ever on in a build that anybody uses.

/// A protection that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A word of bits is set before what stands above it.
    WordBeforeSummary,
    /// Writers do not keep each other out of a piece of a bitmap's file.
    PiecesShared,
    /// A bit is set in memory before its piece is in the file.
    BitBeforePiece,
    /// Under the lazy policy: a bit is set before its piece is noted as unsaved.
    BitBeforeNote,
    /// Under the lazy policy: a caller who finds nothing to save does not wait for one who is still saving.
    SaversApart,
    /// A writer looks whether the gate is closed before it announces itself.
    LookBeforeAnnouncing,
    /// An operation does not wait for the writers that are inside the gate.
    NoDrain,
    /// Whoever leaves or opens the gate wakes sleepers without their lock.
    WakeUnlocked,
    /// A write leaves the gate when its bits are recorded, and its data goes out later.
    DataOutsideGate,
    /// Regions of the intent map are activated without a sync.
    IntentUnsynced,
    /// Who waited for a sync of the intent map counts as served by it, whenever it began.
    RunningSyncJoined,
    /// Regions are retired without waiting for pins.
    RetiredUnderPin,
    /// Regions are cleared without the bitmaps being synced.
    ClearedUnsettled,
    /// A bit is set before its granule is in the image.
    BitBeforeGranule,
    /// A flush writes the bits before it syncs the image.
    BitsBeforeImage,
    /// A flush takes the pending bits after it has synced the image.
    PendingTakenLate,
    /// A flush does not sync the bitmap's file.
    AllocationUnsynced,
    /// Bits that were found in the file are taken for durable.
    FoundIsDurable,
    /// Bits that were found in the file are synced, not written again.
    FoundIsWritten,
    /// A write with FUA syncs the image alone, whatever its bits are.
    FuaOfImageAlone,
    /// A second writer does not look again after it has waited for the first.
    NoSecondLook,
    /// A flush that arrives while another runs takes that one's word.
    RunningFlushJoined,
    /// A writer who has waited at the gate does not look whether the disk has failed meanwhile.
    NoLookBehindGate,
    /// Two syncs of a file run at a time, through one open file description.
    SyncsApart,
    /// A sync goes through a file description that was opened just now, of which nobody knows what was lost before.
    LaneUnproven,
    /// A sync that has succeeded counts, whatever has become of those that ran beside it.
    CountedAlone,
    /// A granule that the disk's end cuts keeps showing the backing when the disk grows.
    TailLeftToBacking,
    /// A commit clears the bits of granules that were written after it had copied them.
    CommitMissesWrites,
    /// After a commit that failed the disk goes on with what it knew of the images below.
    ChainOutdated,
    /// Space is given back without a claim on its granules.
    FreedUnclaimed,
    /// The first change goes out before the state file says unclean.
    BegunSilently,
    /// The state file does not say that bitmaps are saved lazily.
    PolicyUntold,
    /// A starting point is taken without a flush.
    StartUnflushed,
    /// A starting point is flushed before the gate is closed, and not behind it: D1.
    FlushedOutsideGate,
    /// A recovery does not sync the files of bitmaps that do not record: D1.
    StoppedUnsynced,
    /// A bitmap stops recording without being made durable.
    StoppedUnsettled,
    /// Bits that an operation adds to a bitmap's file are not synced.
    AddedUnsynced,
    /// A descriptor names new files whose names are not durable.
    NamesUnsynced,
    /// A descriptor's rename is taken for durable.
    RenameUnsynced,
    /// A descriptor that may be the old one again after a power cut is told of, and the disk goes on.
    UnsureForgotten,
    /// A disk of several loses the bits that it merged, though the one that it merged them from may have lost them too.
    MergedTakenBack,
    /// What several disks have saved is taken back in the order in which it was saved.
    TakenBackInOrder,
    /// A new descriptor that a power cut may take back is left in its place, though the call that put it there fails.
    UnsureLeft,
    /// A disk gets longer before its bitmaps do.
    GrownFirst,
    /// What was cut off a disk comes back clean.
    RegrownClean,
    /// The state file says clean before the bitmaps are durable.
    CleanFirst,
    /// The image's times are not durable when the stamp that has them is kept.
    StampUnsynced,
    /// Recovery renews the evidence before it has written what it relies on.
    EvidenceFirst,
    /// Recovery does not write what it relies on.
    NotRewritten,
    /// Recovery takes the descriptor's name for durable.
    FoundNamesUnsynced,
    /// Recovery takes the descriptor's name for durable where it has no folder to sync.
    FoundFileUnsynced,
    /// Recovery takes the image's length for durable.
    FoundLengthUnsynced,
    /// Bitmaps that a foreign write has made inconsistent are not marked before the stamp is replaced.
    StampFirst,
    /// A failed sync of the image is reported and forgotten.
    FailedSyncForgotten,
    /// A commit clears the allocation bits before the backing is durable.
    BackingUnsynced,
    /// The descriptor names another backing before what the disk has itself is durable.
    RebasedUnflushed,
    /// A new backing is taken for durable.
    FoundBackingUnsynced,
    /// A flush takes for durable what is below the disk.
    BelowUnsynced,
    /// A flush takes for durable the names of the descriptors below the disk.
    NamesBelowUnsynced,
    /// What a killed process has left below the disk, in the page cache alone, is taken for durable.
    ShadowBelowKept,
    /// What another backing shows otherwise is not dirty.
    RebasedClean,
    /// A qcow2 does not say that it is being written to.
    ImageUnmarked,
    /// A qcow2 that is written to keeps the mark that tells of a change of its header alone.
    MarkKept,
    /// An open does not look for the mark in a qcow2 that tells of a change of its header alone.
    MarkUnread,
    /// Who leaves the image alone does not say so.
    UntouchedUntold,
    /// The tables of a qcow2 go out before what they lead to is durable.
    TablesUnordered,
    /// Clusters that were given free are used again while a table leads there.
    FreedAtOnce,
    /// A commit into a deeper layer leaves there what a shorter layer in between hid.
    HiddenByLength,
    /// A write goes on past a bitmap that cannot be written, and no mark says so.
    ExcusedUnmarked,
    /// A first touch leaves no bit in the shadow.
    ShadowLeftOut,
    /// A flush does not know of bits that are durable and not yet in memory.
    LateForgotten,
    /// A granule does not show whose bit could be put nowhere, and will be when there is room.
    FailedUnshown,
    /// Who writes to such a granule is answered before its bit is anywhere but in memory.
    OwedForgotten,
    /// A granule's bit is in the shadow before the granule is in the image.
    ShadowBeforeGranule,
    /// A bit is set in memory before it is in the shadow.
    BitBeforeShadow,
    /// Recovery believes the shadow whatever may have become of the page cache.
    ShadowWithoutEvidence,
    /// The shadow keeps its bits where the allocation bits go.
    ShadowKept,
    /// Recovery makes the bits of the shadow durable before the image.
    ShadowBeforeImage,
    /// The shadow is believed after a sync of the image that failed.
    ShadowOutlivesFailure,
    /// A snapshot is taken without making durable what is in the old image.
    SnapshotUnflushed,
    /// A shadow that takes the place of the last user's cuts that one off first.
    ShadowCutFirst,
    /// A shadow takes the place of one that was not believed, as if nothing had been lost.
    ShadowGoesOn,
    /// A disk does not note in which tenure of its image, which is a disk itself, it writes.
    UserUnnoted,
    /// A disk keeps its tenure though others have changed its content, or some of it is lost.
    TenureKept,
    /// A disk that changes its content keeps its tenure.
    TenureSilent,
    /// A shadow is believed though another has used the image, which is a disk itself, since, or that has dropped something.
    ShadowOfOthers,
    /// An image that is a disk itself begins before the disk above it has noted it.
    ImageBegunFirst,
    /// A new descriptor is not synced, nor are the names of what it names.
    NewUnsynced,
    /// A new file for a bitmap is named before its bits are durable.
    NewBitsUnsynced,
    /// A bitmap that has lost its file gets a new one under the name that the descriptor has.
    RemadeInPlace,
    /// That a bitmap's sync failed is noted in the state file's header, or nowhere.
    FailureUntold,
    /// A recovery that cannot make a bitmap durable notes nothing.
    RecoveryForgotten,
    /// Files that no backup names are removed from a folder whose names may not be durable.
    SweptUnsynced,
    /// A sync is taken to vouch for a backup's name that one before it has failed on.
    NamesUnrenewed,
    /// The name of a folder of backups is taken for durable.
    FolderUnnamed,
    /// A sync is taken to vouch for a backup's removal that one before it has failed on.
    RemovalsUnrenewed,
    /// A prune syncs the folder when all that goes is gone.
    RemovedAtOnce,
}

#[cfg(all(shuttle, test))]
pub(crate) use switch::must_be_caught;
pub(crate) use switch::on;
#[cfg(test)]
pub(crate) use switch::with;
#[cfg(all(feature = "faults", not(test)))]
pub use switch::{put_in, take_out};

/// Where only who comes between two steps notices that they are the wrong way round, and a process is killed at any moment:
/// gives him time.
#[inline]
pub(crate) fn linger() {
    #[cfg(all(feature = "faults", not(test)))]
    std::thread::sleep(std::time::Duration::from_millis(2));
}

#[cfg(not(any(test, feature = "faults")))]
mod switch {
    use super::Fault;

    /// Never, outside the tests.
    #[inline]
    pub(crate) const fn on(_: Fault) -> bool {
        false
    }
}

#[cfg(all(feature = "faults", not(test)))]
mod switch {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Fault;

    const NONE: u8 = u8::MAX;

    static PRESENT: AtomicU8 = AtomicU8::new(NONE);

    /// Whether `fault` is in the code now.
    #[inline]
    pub(crate) fn on(fault: Fault) -> bool {
        PRESENT.load(Ordering::Relaxed) == fault as u8
    }

    /// From now on `fault` is in the code of this process, on all threads, instead of any other.
    pub fn put_in(fault: Fault) {
        PRESENT.store(fault as u8, Ordering::Relaxed);
    }

    /// The code is whole again.
    pub fn take_out() {
        PRESENT.store(NONE, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod switch {
    use std::cell::Cell;

    use super::Fault;

    thread_local! {
        // The explorer runs all threads of a model on the one that started it; a crash test has only one.
        static PRESENT: Cell<Option<Fault>> = const { Cell::new(None) };
    }

    /// Whether `fault` is in the code now.
    pub(crate) fn on(fault: Fault) -> bool {
        PRESENT.get() == Some(fault)
    }

    /// What `test` comes to with `fault` in the code of this thread.
    pub(crate) fn with<T>(fault: Fault, test: impl FnOnce() -> T) -> T {
        PRESENT.set(Some(fault));
        let result = test();
        PRESENT.set(None);
        result
    }

    /// Runs `explore`, which explores a model's schedules, with `fault` in the code: one of them must fail, with words
    /// that have `expected` in them.
    #[cfg(shuttle)]
    pub(crate) fn must_be_caught(fault: Fault, expected: &str, explore: impl FnOnce()) {
        let result = with(fault, || {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(explore))
        });
        let Err(panic) = result else {
            panic!("{fault:?} was not found");
        };
        let words = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or_default();
        assert!(words.contains(expected), "{fault:?} failed otherwise: {words}");
    }
}
