//! The kinds of disks that live, and how they are opened.

use std::time::Duration;

use crate::bitmap::BitmapPolicy;
use crate::disk::{OnBitmapError, OpenOptions};
use crate::storage::simulated::SimDisk;

/// What a life is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a trait of its own")]
pub(super) struct Kind {
    /// The disk takes from a backing image.
    pub(super) overlay: bool,
    pub(super) policy: BitmapPolicy,
    /// That image is an overlay itself.
    pub(super) over_qbm: bool,
    /// Regions are retired at every flush.
    pub(super) eager: bool,
    /// A bitmap that cannot be written becomes inconsistent.
    pub(super) excuses: bool,
    /// The image is a disk itself.
    pub(super) inner: Option<Inner>,
    /// There is no state file.
    pub(super) stateless: bool,
}

/// What a disk is that is an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inner {
    Plain,
    Overlay,
}

impl Kind {
    pub(super) const RAW: Self = Self {
        overlay: false,
        policy: BitmapPolicy::WriteThrough,
        over_qbm: false,
        eager: true,
        excuses: false,
        inner: None,
        stateless: false,
    };
    pub(super) const LAZY: Self = Self {
        policy: BitmapPolicy::Lazy,
        ..Self::RAW
    };
    pub(super) const OVERLAY: Self = Self {
        overlay: true,
        ..Self::RAW
    };
    pub(super) const OVER_QBM: Self = Self {
        over_qbm: true,
        ..Self::OVERLAY
    };
    /// Images that are disks: below a plain disk, and below an overlay.
    pub(super) const NESTED: Self = Self {
        inner: Some(Inner::Plain),
        ..Self::RAW
    };
    pub(super) const NESTED_LOW: Self = Self {
        inner: Some(Inner::Overlay),
        ..Self::RAW
    };
    pub(super) const NESTED_OVERLAY: Self = Self {
        inner: Some(Inner::Overlay),
        ..Self::OVERLAY
    };
    pub(super) const PATIENT: Self = Self {
        eager: false,
        ..Self::RAW
    };
    pub(super) const EXCUSED: Self = Self {
        excuses: true,
        ..Self::RAW
    };

    pub(super) const STATELESS: Self = Self {
        stateless: true,
        ..Self::RAW
    };
    pub(super) const STATELESS_OVERLAY: Self = Self {
        stateless: true,
        ..Self::OVERLAY
    };

    /// Whether what was acknowledged is there after a kill (A3): no overlay has a shadow without a state file, and a snapshot
    /// makes one of any disk.
    pub(super) fn outlives_kill(self) -> bool {
        !self.stateless
    }

    /// Whether a sync of the image that fails gives up what was not flushed: there are allocation bits, in this disk or in its
    /// image, and nobody believes their shadow then.
    pub(super) fn gives_up(self) -> bool {
        self.overlay || self.inner == Some(Inner::Overlay)
    }

    /// How the disk on `sim` is opened; the page cache lives as long as `cache` stays the same.
    pub(super) fn options(self, sim: &SimDisk, cache: &str) -> OpenOptions {
        let options = OpenOptions::new()
            .folder(sim.folder())
            .bitmap_policy(self.policy)
            .no_state(self.stateless)
            .cache_epoch(cache);
        let options = if self.eager {
            options.retire_interval(Duration::ZERO)
        } else {
            options
        };
        if self.excuses {
            options.on_bitmap_error(OnBitmapError::MarkInconsistent)
        } else {
            options
        }
    }
}

/// Every kind of life.
pub(super) const KINDS: [Kind; 11] = [
    Kind::RAW,
    Kind::LAZY,
    Kind::OVERLAY,
    Kind::PATIENT,
    Kind::OVER_QBM,
    Kind::EXCUSED,
    Kind::NESTED,
    Kind::NESTED_LOW,
    Kind::NESTED_OVERLAY,
    Kind::STATELESS,
    Kind::STATELESS_OVERLAY,
];
