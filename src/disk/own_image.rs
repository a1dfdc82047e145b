//! The disk's own image, for which a snapshot puts another while requests go on.
//!
//! Invariant: an image that was the disk's once stays open until the disk is closed. So whoever has looked which one it
//! is may use it for as long as the request lasts, and the look takes one load: no lock, no count.

use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::Child;
use super::rounds::Rounds;
use crate::storage::Storage;
use crate::sync::{Mutex, PoisonError};

/// An image, and how the disk takes from it.
pub(super) struct Own {
    pub(super) child: Child,
    /// Whether the disk has an allocation bitmap, which is in the gate: without one, all is in the image.
    pub(super) layered: bool,
    /// Through what it is synced: itself (`None`), or the same file once more.
    pub(super) syncs: Rounds<Option<Arc<dyn Storage>>>,
}

impl Own {
    pub(super) fn new(child: Child, layered: bool) -> Self {
        Self {
            child,
            layered,
            syncs: Rounds::new(None),
        }
    }
}

/// The image that is the disk's now.
pub(super) struct OwnImages {
    current: AtomicPtr<Own>,
    /// That one, and all before it.
    all: Mutex<Vec<Arc<Own>>>,
}

impl OwnImages {
    pub(super) fn new(image: Own) -> Self {
        let image = Arc::new(image);
        Self {
            current: AtomicPtr::new(Arc::as_ptr(&image).cast_mut()),
            all: Mutex::new(vec![image]),
        }
    }

    #[inline(always)]
    pub(super) fn current(&self) -> &Own {
        // SAFETY: the pointer is to an image in `all`, which nothing is taken out of before `self` is dropped; and
        // nobody ever has more than a shared reference to it.
        unsafe { &*self.current.load(Ordering::Acquire) }
    }

    /// From now on this is the disk's image. The caller has closed the gate.
    pub(super) fn switch_to(&self, image: Own) {
        let image = Arc::new(image);
        let pointer = Arc::as_ptr(&image).cast_mut();
        self.current().syncs.narrow();
        self.all
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(image);
        self.current.store(pointer, Ordering::Release);
    }
}
