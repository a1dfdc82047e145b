//! How a disk is opened, and where it tells of what is no call's result.
//!
//! Calls nothing. Invariant: the defaults are the safe ones.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::bitmap::BitmapPolicy;
use crate::descriptor::Format;
use crate::disk::bitmaps::{BitmapContent, OnBitmapError};
use crate::error::printable;
use crate::storage::Folder;

/// What happened that is no call's result; see [`OpenOptions::notify`]. The numbers are part of the C ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
#[non_exhaustive]
pub enum NoticeCode {
    /// The disk failed: changes report errors until it is reopened.
    Failed = 1,
    /// Recovery made more dirty in a bitmap than is known to have changed: the disk had not been closed, or its state file is
    /// missing or damaged. Of a read-only open each time anew, as that stores nothing.
    BitmapWidened = 2,
    /// A bitmap can no longer be trusted.
    BitmapInconsistent = 3,
    /// The disk has no state file and could not be given one: after a power cut its bitmaps may lack bits.
    Unprotected = 4,
}

/// A notice, in words.
#[derive(Clone, Debug)]
pub struct Notice<'a> {
    /// What happened.
    pub code: NoticeCode,
    /// The same for people: one line, without control characters.
    pub message: &'a str,
}

type Listener = dyn Fn(Notice<'_>) + Send + Sync;

/// Where notices go.
#[derive(Clone, Default)]
pub(in crate::disk) struct Notify(Option<Arc<Listener>>);

impl Notify {
    pub(in crate::disk) fn send(&self, code: NoticeCode, message: &str) {
        if let Some(listener) = &self.0 {
            let message = &*printable(message.to_owned());
            listener(Notice { code, message });
        }
    }
}

/// How to open a disk; then [`open`](OpenOptions::open) it.
#[derive(Clone, Default)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a flag of its own, that any of the others may stand beside"
)]
pub struct OpenOptions {
    pub(in crate::disk) read_only: bool,
    pub(super) direct: bool,
    pub(super) no_backing: bool,
    pub(super) confined: bool,
    /// What is opened is an image by itself, and no descriptor.
    pub(in crate::disk) image_format: Option<Format>,
    /// Such an image is to be written to.
    pub(super) image_writable: bool,
    /// See [`OpenOptions::image_untouched`].
    pub(in crate::disk) image_untouched: bool,
    pub(super) folder: Option<Arc<dyn Folder>>,
    pub(super) backing_format: Option<Format>,
    pub(in crate::disk) notify: Notify,
    pub(in crate::disk) bitmap_policy: BitmapPolicy,
    pub(super) on_bitmap_error: OnBitmapError,
    pub(super) max_bitmap_memory: Option<u64>,
    pub(in crate::disk) no_state: bool,
    pub(in crate::disk) no_lock: bool,
    pub(in crate::disk) trust_image: bool,
    pub(super) verify_checksum: bool,
    pub(in crate::disk) cache_epoch: Option<Arc<str>>,
    pub(in crate::disk) retire_interval: Option<Duration>,
    /// What somebody else has written to the image, as he has recorded it.
    pub(in crate::disk) foreign_writes: Option<Arc<BitmapContent>>,
    /// Files of dirty bitmaps that are too short for a disk that others have made longer are lengthened, for an opener who
    /// sees to the bits.
    pub(in crate::disk) lengthen_bitmaps: bool,
    /// The same of those that held all bits before others made the disk longer, and of no others.
    pub(in crate::disk) lengthen_outgrown: bool,
    /// Set where an image that is a disk itself could not be made durable at its recovery.
    pub(in crate::disk) lost: Option<Arc<AtomicBool>>,
}

impl OpenOptions {
    /// For reading and writing, through the page cache, with files from the file system.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing is written, to no file of the disk.
    #[must_use]
    pub fn read_only(mut self, yes: bool) -> Self {
        self.read_only = yes;
        self
    }

    /// The image is accessed around the page cache (`O_DIRECT`).
    #[must_use]
    pub fn direct(mut self, yes: bool) -> Self {
        self.direct = yes;
        self
    }

    /// The backing image, and what is below it, is not opened. What would have to be read from there is an error then.
    #[must_use]
    pub fn no_backing(mut self, yes: bool) -> Self {
        self.no_backing = yes;
        self
    }

    /// A backing that the disk's descriptor names without a format is taken to be a `format`. Without this such a
    /// descriptor is refused, as a backing is never probed. What the descriptor says itself stands.
    ///
    /// For whoever repairs it: the next change of the disk's structure, such as
    /// [`change_backing`](crate::Disk::change_backing), writes it down.
    #[must_use]
    pub fn backing_format(mut self, format: Format) -> Self {
        self.backing_format = Some(format);
        self
    }

    /// Every file must lie beneath the descriptor's folder: absolute names, and `..` and links that lead out of it, are
    /// refused, for the files of backing images too.
    ///
    /// With a [`folder`](Self::folder) of the caller's only the names are judged, as it is the folder that follows links.
    #[must_use]
    pub fn confined(mut self, yes: bool) -> Self {
        self.confined = yes;
        self
    }

    /// What is at the path is not a descriptor, but an image of this format by itself; it can only be opened read-only.
    ///
    /// The format is never guessed: in a raw image the guest could write what looks like another, and that one could name
    /// any file of the host. [`Format::Qbm`] is a descriptor, as without this.
    #[must_use]
    pub fn image_format(mut self, format: Format) -> Self {
        self.image_format = (format != Format::Qbm).then_some(format);
        self
    }

    /// The bitmaps are to be changed, and the image only read: it is opened, and locked, for reading.
    pub(in crate::disk) fn image_untouched(mut self) -> Self {
        self.image_untouched = true;
        self
    }

    /// An image without a descriptor is opened for writing all the same: for one who replaces what is in it, as nothing but
    /// the image records what is written.
    #[must_use]
    pub(crate) fn image_writable(mut self) -> Self {
        self.image_writable = true;
        self.no_state = true;
        self
    }

    /// All files come from `folder` instead of the file system's folder that the descriptor lies in.
    #[must_use]
    pub fn folder(mut self, folder: Arc<dyn Folder>) -> Self {
        self.folder = Some(folder);
        self
    }

    /// `listener` hears what is no call's result. It is called by whichever thread meets the event, and must not
    /// call the disk.
    #[must_use]
    pub fn notify(mut self, listener: impl Fn(Notice<'_>) + Send + Sync + 'static) -> Self {
        self.notify = Notify(Some(Arc::new(listener)));
        self
    }

    /// When the bits that writes set get into the bitmaps' files.
    #[must_use]
    pub fn bitmap_policy(mut self, policy: BitmapPolicy) -> Self {
        self.bitmap_policy = policy;
        self
    }

    /// What becomes of a write where a bitmap cannot be written though the data can: it fails, unless another choice is
    /// given. Of writes alone: where a bitmap's file cannot be opened for writing, the open fails with either.
    #[must_use]
    pub fn on_bitmap_error(mut self, choice: OnBitmapError) -> Self {
        self.on_bitmap_error = choice;
        self
    }

    /// The most memory that the bitmaps may take, in bytes: opening the disk, and whatever would need more, fails with
    /// `NoMemory`. No limit unless it is given.
    #[must_use]
    pub fn max_bitmap_memory(mut self, bytes: u64) -> Self {
        self.max_bitmap_memory = Some(bytes);
        self
    }

    /// A disk that has no state file is given none. Its bitmaps survive SIGKILL as others do, but a power cut can cost
    /// them bits, writes to the image by others are not noticed, and nothing but the image is locked. What an overlay
    /// allocates survives SIGKILL from the next flush on, not before.
    #[must_use]
    pub fn no_state(mut self, yes: bool) -> Self {
        self.no_state = yes;
        self
    }

    /// Takes no locks and minds none. Only for reading what nobody changes, or where something else keeps others out.
    ///
    /// A disk that another process writes to looks as if that had been killed. Whoever opens it for writing beside that one
    /// recovers it and closes it as clean: from then on bits of either can be missing, and nobody notices.
    #[must_use]
    pub fn no_lock(mut self, yes: bool) -> Self {
        self.no_lock = yes;
        self
    }

    /// Bitmaps stay valid where the image was written to behind their back, or was made longer: the caller knows what was
    /// written.
    ///
    /// That others wrote is noticed of a disk that had been closed, and of no other. An open for writing without this makes
    /// the bitmaps that record inconsistent for good, as from then on writes go by unrecorded: this takes no such mark back.
    #[must_use]
    pub fn trust_image(mut self, yes: bool) -> Self {
        self.trust_image = yes;
        self
    }

    /// The image is read from its beginning to its end, and an image whose descriptor has a checksum that is another is
    /// not opened. Takes as long as that reading. One without a checksum opens.
    ///
    /// For images that do not change: nothing renews the checksum when the disk is written to.
    #[must_use]
    pub fn verify_checksum(mut self, yes: bool) -> Self {
        self.verify_checksum = yes;
        self
    }

    /// A string of 1 to 256 bytes that stays the same for as long as no page cache was lost, in place of all that the
    /// library finds out itself: the boot, the mounts, and that the state file is the one that was used. A copy that was made
    /// of a disk in use passes as the disk, so it needs another string. An epoch that differs from the last opener's, or one
    /// where he gave none, counts as a power cut.
    #[must_use]
    pub fn cache_epoch(mut self, epoch: &str) -> Self {
        self.cache_epoch = Some(epoch.into());
        self
    }

    /// How often, at most, a flush looks for regions that are not written to any more: 10 seconds unless it is given.
    /// Shorter means less to copy after a power cut, and more syncs of bitmap files.
    #[must_use]
    pub fn retire_interval(mut self, interval: Duration) -> Self {
        self.retire_interval = Some(interval);
        self
    }
}
