//! Orders of steps that are wrong, each of which a test must catch. Outside of unit tests there are none.

/// A wrong order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A bit is set before its granule is in the image.
    BitBeforeData,
    /// A flush writes the bits before it syncs the image.
    BitsBeforeSync,
    /// A flush takes the pending bits after it has synced the image.
    TakenAfterSync,
    /// A flush does not sync the bitmap's file.
    BitsNotSynced,
    /// Bits that were found in the file are taken for durable.
    FoundIsDurable,
    /// A write with FUA syncs the image alone, whatever its bits are.
    FuaOfImageAlone,
    /// A second writer does not look again after it has waited for the first.
    NoSecondLook,
    /// A flush that arrives while another runs takes that one's word.
    JoinsRunningFlush,
    /// A granule that the disk's end cuts keeps showing the backing when the disk grows.
    TailLeftToBacking,
    /// A commit clears the bits of granules that were written after it had copied them.
    CommitMissesWrites,
}

pub(super) use chosen::injected;
#[cfg(test)]
pub(super) use chosen::with;

#[cfg(not(test))]
mod chosen {
    use super::Fault;

    #[inline]
    pub(in crate::disk::overlay) const fn injected(_: Fault) -> bool {
        false
    }
}

#[cfg(test)]
mod chosen {
    use super::Fault;

    thread_local! {
        static NOW: std::cell::Cell<Option<Fault>> = const { std::cell::Cell::new(None) };
    }

    /// Whether this thread is to do it wrong.
    pub(in crate::disk::overlay) fn injected(fault: Fault) -> bool {
        NOW.get() == Some(fault)
    }

    /// Runs `act` with `fault`, on this thread.
    pub(in crate::disk::overlay) fn with<T>(fault: Option<Fault>, act: impl FnOnce() -> T) -> T {
        let before = NOW.replace(fault);
        let result = act();
        NOW.set(before);
        result
    }
}
