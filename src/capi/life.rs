//! Making, opening and closing disks.

use std::ffi::{CString, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::boundary::{call, fail, null, optional_text, string};
use super::files::{Callback, HandedFolder, OpenFile};
use super::structs::{self, Extensible, Plain};
use super::{qbm_disk, view};
use crate::error::{Error, ErrorCode, Result};
use crate::{
    BitmapPolicy, CreateOptions, Disk, Format, Granularity, Notice, OnBitmapError, OpenOptions, Preallocation,
};

/// Of qbm_open(): nothing is written, to no file of the disk.
pub const QBM_OPEN_RDONLY: u32 = 1;
/// Of qbm_open(): the image is accessed around the page cache (O_DIRECT).
pub const QBM_OPEN_DIRECT: u32 = 2;
/// Of qbm_open(): the backing image, and what is below it, is not opened. What
/// would have to be read from there is -ENOTSUP then.
pub const QBM_OPEN_NO_BACKING: u32 = 4;
/// Of qbm_open(): no lock is taken or minded. Only for reading what nobody
/// changes, or where something else keeps others out. A disk that another
/// process writes to looks as if that had been killed: whoever opens it for
/// writing beside that one recovers it and closes it as clean, and from then on
/// bits of either can be missing, and nobody notices.
pub const QBM_OPEN_NO_LOCK: u32 = 8;
/// Of qbm_open(): every file must lie beneath the descriptor's folder.
/// Absolute names, and .. and links that lead out of it, are -EACCES, for the
/// files of backing images too. With open_file only the names are judged;
/// without it, kernels before Linux 5.6 answer -ENOTSUP.
pub const QBM_OPEN_CONFINED: u32 = 16;
/// Of qbm_open(): the bitmaps stay valid though the image was written to by
/// others since it was closed; the caller knows what was written. It takes no
/// mark back that an open for writing without it has made; see qbm_open().
pub const QBM_OPEN_TRUST_IMAGE: u32 = 32;
/// Of qbm_open(): the image is read from its beginning to its end, and refused
/// (QBM_ERROR_FILE_INVALID) where the descriptor has another checksum for it.
/// Nothing renews a checksum when the disk is written to.
pub const QBM_OPEN_VERIFY_CHECKSUM: u32 = 64;
/// Of qbm_open(): a disk that has no state file is given none. Its bitmaps
/// survive SIGKILL, but a power cut can cost them bits unnoticed; and SIGKILL
/// costs an overlay what it has allocated since the last flush.
pub const QBM_OPEN_NO_STATE: u32 = 128;

/// Of qbm_create(): the disk gets no state file; see QBM_OPEN_NO_STATE.
pub const QBM_CREATE_NO_STATE: u32 = 1;

/// Of qbm_create(): a new image is one hole.
pub const QBM_PREALLOCATION_OFF: u32 = 0;
/// Of qbm_create(): a new image's space is reserved.
pub const QBM_PREALLOCATION_FALLOC: u32 = 1;
/// Of qbm_create(): a new image's space is reserved and written with zeros.
pub const QBM_PREALLOCATION_FULL: u32 = 2;

/// What a file is to the disk, for open_file.
#[allow(non_camel_case_types, reason = "the name in C")]
#[allow(dead_code, reason = "read by C only")]
#[repr(C)]
pub enum qbm_role {
    /// The JSON descriptor.
    QBM_ROLE_DESCRIPTOR = 1,
    /// The folder that the descriptor lies in; wanted with O_DIRECTORY.
    QBM_ROLE_FOLDER = 2,
    /// The data image.
    QBM_ROLE_IMAGE = 3,
    /// A bitmap's file.
    QBM_ROLE_BITMAP = 4,
    /// The state file.
    QBM_ROLE_STATE = 5,
    /// A backing image, or a part of one.
    QBM_ROLE_BACKING = 6,
}

/// What becomes of a write where a bitmap cannot be written though the data can.
#[allow(non_camel_case_types, reason = "the name in C")]
#[allow(dead_code, reason = "read by C only")]
#[repr(C)]
pub enum qbm_on_bitmap_error {
    /// The write fails, and the bitmap stays what it is.
    QBM_ON_BITMAP_ERROR_FAIL_WRITE = 0,
    /// The bitmap becomes inconsistent (a notice tells), durably and before the write goes out. Where that cannot be
    /// stored, as on a disk without a state file, the write fails.
    QBM_ON_BITMAP_ERROR_MARK_INCONSISTENT = 1,
}

/// What a notice is about.
#[allow(non_camel_case_types, reason = "the name in C")]
#[allow(dead_code, reason = "read by C only")]
#[repr(C)]
pub enum qbm_notice {
    /// The disk failed: writes and flushes report errors until it is reopened.
    QBM_NOTICE_FAILED = 1,
    /// The disk had not been closed, or its state file is missing or damaged, so that nothing is known of its last user;
    /// and recovery made more dirty in a bitmap than is known to have changed. Sent by qbm_open(), once for each such
    /// bitmap; by each read-only one again, as that stores nothing.
    QBM_NOTICE_BITMAP_WIDENED = 2,
    /// A bitmap can no longer be trusted, and may only be removed or repaired: others wrote to the image, or it could
    /// not be written and the guest's writes go on without it.
    QBM_NOTICE_BITMAP_INCONSISTENT = 3,
    /// The disk has no state file and could be given none: a power cut can cost its bitmaps bits.
    QBM_NOTICE_UNPROTECTED = 4,
}

const _: () = {
    use crate::NoticeCode;
    use crate::storage::Role;
    assert!(qbm_role::QBM_ROLE_DESCRIPTOR as i32 == Role::Descriptor as i32);
    assert!(qbm_role::QBM_ROLE_FOLDER as i32 == Role::Folder as i32);
    assert!(qbm_role::QBM_ROLE_IMAGE as i32 == Role::Image as i32);
    assert!(qbm_role::QBM_ROLE_BITMAP as i32 == Role::Bitmap as i32);
    assert!(qbm_role::QBM_ROLE_STATE as i32 == Role::State as i32);
    assert!(qbm_role::QBM_ROLE_BACKING as i32 == Role::Backing as i32);
    assert!(qbm_on_bitmap_error::QBM_ON_BITMAP_ERROR_FAIL_WRITE as i32 == OnBitmapError::FailWrite as i32);
    assert!(
        qbm_on_bitmap_error::QBM_ON_BITMAP_ERROR_MARK_INCONSISTENT as i32
            == OnBitmapError::MarkInconsistent as i32
    );
    assert!(qbm_notice::QBM_NOTICE_FAILED as i32 == NoticeCode::Failed as i32);
    assert!(qbm_notice::QBM_NOTICE_BITMAP_WIDENED as i32 == NoticeCode::BitmapWidened as i32);
    assert!(qbm_notice::QBM_NOTICE_BITMAP_INCONSISTENT as i32 == NoticeCode::BitmapInconsistent as i32);
    assert!(qbm_notice::QBM_NOTICE_UNPROTECTED as i32 == NoticeCode::Unprotected as i32);
};

/// Opens a file for the library, instead of open(2).
///
/// role is one of enum qbm_role. path is what the descriptor names, put behind
/// the folder of the path that qbm_open() or qbm_create() was given. flags are
/// open(2)'s (O_RDONLY or O_RDWR, O_DIRECT, O_DIRECTORY, O_CLOEXEC).
///
/// The files of a backing image that has a descriptor are asked for too, each
/// as QBM_ROLE_BACKING, to be read only.
///
/// Returns a file descriptor, which becomes the library's to close, or a
/// negative errno. It must be a fresh open file description of its own: none
/// that is used elsewhere, and no dup() of one. Called only during qbm_open(),
/// qbm_create(), qbm_commit(), qbm_rebase(), qbm_change_backing() and
/// qbm_snapshot(), on their thread; qbm_commit(), qbm_rebase() and
/// qbm_change_backing() ask for the descriptor again, too, and qbm_snapshot()
/// with QBM_OPEN_DIRECT for the new image.
#[allow(non_camel_case_types, reason = "the name in C")]
pub type qbm_open_file = Option<
    unsafe extern "C" fn(opaque: *mut c_void, role: c_int, path: *const c_char, flags: c_int) -> c_int,
>;

/// Hears what is no call's result.
///
/// notice is one of enum qbm_notice, message says it in words and is valid
/// during the call only. Called by any thread that uses the disk; it must not
/// call the library.
#[allow(non_camel_case_types, reason = "the name in C")]
pub type qbm_notify =
    Option<unsafe extern "C" fn(opaque: *mut c_void, notice: c_int, message: *const c_char)>;

/// Options of qbm_open(). Set struct_size to sizeof(struct qbm_open_options)
/// and all that you do not use to zero, which is the default.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_open_options {
    /// sizeof(struct qbm_open_options).
    pub struct_size: usize,
    /// QBM_OPEN_...; a flag that is not known is -EINVAL.
    pub flags: u32,
    /// One of enum qbm_bitmap_policy; zero is write-through.
    pub bitmap_policy: u32,
    /// Opens the disk's files; NULL: the library does.
    pub open_file: qbm_open_file,
    /// The first argument of open_file.
    pub open_file_opaque: *mut c_void,
    /// Hears notices; may be NULL.
    pub notify: qbm_notify,
    /// The first argument of notify.
    pub notify_opaque: *mut c_void,
    /// The most memory that bitmaps may take, in bytes: opening the disk, and
    /// whatever would need more, is -ENOMEM. Zero: no limit.
    pub max_bitmap_memory: u64,
    /// A string of 1 to 256 bytes that stays the same for as long as no page
    /// cache was lost (a supervisor's word), in place of all that the library
    /// finds out itself: the boot, the mounts, and that the state file is the
    /// one that was used. A copy that was made of a disk in use passes as the
    /// disk, so it needs another string. Another one than the last opener's,
    /// or one where he gave none, counts as a power cut. NULL: the library
    /// finds out.
    pub cache_epoch: *const c_char,
    /// How often, at most, qbm_flush() looks for regions that are not written
    /// to any more, in milliseconds. Zero: 10 seconds.
    pub retire_interval_ms: u64,
    /// What becomes of a write where a bitmap cannot be written though the data
    /// can: one of enum qbm_on_bitmap_error. Of writes alone: where a bitmap's
    /// file cannot be opened for writing, qbm_open() fails with either.
    pub on_bitmap_error: u32,
    /// Zero.
    pub reserved: u32,
}

/// Options of qbm_create(). Set struct_size to sizeof(struct
/// qbm_create_options) and all that you do not use to zero.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_create_options {
    /// sizeof(struct qbm_create_options).
    pub struct_size: usize,
    /// QBM_CREATE_...; a flag that is not known is -EINVAL.
    pub flags: u32,
    /// QBM_PREALLOCATION_..., for a new image.
    pub preallocation: u32,
    /// The length of the new image in bytes. With image: zero, or what the
    /// length of that image must be.
    pub size: u64,
    /// An image or block device that exists; nothing in it is changed. The
    /// name (UTF-8) goes into the descriptor as it is: a relative one is
    /// relative to the descriptor's folder. NULL: a new image is made beside
    /// the descriptor.
    pub image: *const c_char,
    /// Opens the folder that files are made in, and image; also asked for the
    /// descriptor, to see that there is none. NULL: the library does.
    pub open_file: qbm_open_file,
    /// The first argument of open_file.
    pub open_file_opaque: *mut c_void,
    /// How many bytes of the disk one bit of the state file's intent map
    /// stands for: a power of two from 512 on. Smaller means less to copy
    /// again after a power cut, and more syncs before it. Zero: 64 MiB, or
    /// more where the disk is larger than 31.5 TiB.
    pub region_bytes: u64,
    /// What is not written to the new disk is read from this image, in which
    /// nothing is ever changed. The name (UTF-8) goes into the descriptor as it
    /// is: a relative one is relative to the descriptor's folder. The disk is as
    /// long as the backing unless size is set. NULL: none.
    pub backing_file: *const c_char,
    /// What the backing is: "raw", "qbm", "qcow2" or "vmdk"; must be set with
    /// backing_file. It is never guessed: the guest of a raw image could make it
    /// look like another.
    pub backing_format: *const c_char,
    /// The unit in which the new disk takes things from its backing, in bytes: a
    /// power of two from 512 to 2 GiB. Zero: 65536, with a backing. Without one,
    /// a disk that only knows which granules were written.
    pub granularity: u64,
    /// What the image is: "raw", "qcow2" or "vmdk" (which can only be read); only
    /// with image. It is never guessed. NULL: raw.
    pub image_format: *const c_char,
}

// SAFETY: `repr(C)`, `struct_size` first, and integers, nullable pointers and nullable functions after it.
unsafe impl Plain for qbm_open_options {}
// SAFETY: as above.
unsafe impl Extensible for qbm_open_options {}
// SAFETY: as above.
unsafe impl Plain for qbm_create_options {}
// SAFETY: as above.
unsafe impl Extensible for qbm_create_options {}

/// section: Life of a disk
///
/// A disk is a small JSON descriptor, the data image that it names, and a file
/// for each bitmap. A qbm_disk may be used from any number of threads at once;
/// closing it must be the last call. A handle that was opened before a fork
/// belongs to the parent: in the child every call on it that can fail is
/// -ESTALE, qbm_close() too.
/// ---
/// Makes a disk: the descriptor at path, for an image that exists or for a new
/// one. Nothing that exists is overwritten; a failure leaves nothing behind.
///
/// options: the size, the image or a backing must be given.
///
/// Returns 0; everything is durable then. -EEXIST: path exists. -EINVAL: an
/// option; no size, image or backing; an image of another length. -ENOTSUP: a
/// format that cannot be a backing. -ENOENT,
/// -EACCES, -EROFS, -ENOSPC ...: what the system said. -EROFS also: open_file
/// did not hand in the folder. Any thread.
///
/// # Safety
///
/// The pointers are NULL or point to what the text says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_create(path: *const c_char, options: *const qbm_create_options) -> c_int {
    call(|| {
        // SAFETY: the caller's promise: a string.
        let path = unsafe { path_from(path) }?;
        // SAFETY: the caller's promise: a struct as long as its first field says.
        let options = unsafe { structs::read(options, "options") }?;
        if options.flags & !QBM_CREATE_NO_STATE != 0 {
            return Err(unknown_flags(options.flags & !QBM_CREATE_NO_STATE));
        }
        let mut create = CreateOptions::new().preallocation(match options.preallocation {
            QBM_PREALLOCATION_OFF => Preallocation::Off,
            QBM_PREALLOCATION_FALLOC => Preallocation::Falloc,
            QBM_PREALLOCATION_FULL => Preallocation::Full,
            other => {
                return Err(Error::new(
                    ErrorCode::InvalidArgument,
                    format!("options: preallocation {other} is not one of QBM_PREALLOCATION_..."),
                ));
            }
        });
        // SAFETY: the caller's promise: NULL or a string.
        let image = unsafe { optional_text(options.image, "options.image") }?;
        if let Some(image) = image {
            create = create.image(image);
        }
        // SAFETY: as above.
        if let Some(format) = unsafe { optional_text(options.image_format, "options.image_format") }? {
            create = create.image_format(format_from(format, "image_format")?);
        }
        // SAFETY: as above.
        let backing = unsafe { optional_text(options.backing_file, "options.backing_file") }?;
        // SAFETY: as above.
        let format = unsafe { optional_text(options.backing_format, "options.backing_format") }?;
        match (backing, format) {
            (Some(file), Some(format)) => {
                create = create.backing(file, format_from(format, "backing_format")?);
            }
            (None, None) => {}
            _ => {
                return Err(Error::new(
                    ErrorCode::InvalidArgument,
                    "options: backing_file and backing_format must be set together; a format is never guessed",
                ));
            }
        }
        if options.granularity != 0 {
            create = create.granularity(granularity(options.granularity)?);
        }
        if options.size != 0 {
            create = create.size(options.size);
        }
        if options.region_bytes != 0 {
            create = create.region_bytes(options.region_bytes);
        }
        create = create.no_state(options.flags & QBM_CREATE_NO_STATE != 0);
        if let Some(folder) = handed(options.open_file, options.open_file_opaque, path)? {
            create = create.folder(folder);
        }
        create.create(path)
    })
}

/// Opens the disk that the descriptor at path describes.
///
/// options: NULL is the defaults: for reading and writing, through the page
/// cache. *disk is set on success, and to NULL otherwise.
///
/// A disk that was not closed is recovered: after the end of its process the
/// bitmaps are exact, after a power cut they have what they must, and the
/// regions that were being written to besides; qbm_get_info() and notices tell.
/// A disk that is opened for writing and has no state file is given one. Where
/// one is named and is missing or damaged, nothing is known of the last user:
/// every bit of every bitmap is set.
///
/// Where others wrote to the image of a disk that had been closed, the bitmaps
/// that record are inconsistent, unless QBM_OPEN_TRUST_IMAGE is set. An open for
/// writing makes that last: from then on writes go by unrecorded, and only
/// qbm_bitmap_repair() or qbm_bitmap_remove() ends it. Of a disk that was not
/// closed, nothing tells that others wrote to its image.
///
/// Returns 0. -EINVAL: an option, or a descriptor or file that is not as it
/// must be; the message names the file, the key and the value. -ENOTSUP: a
/// format or feature that this library does not have. -EBUSY
/// (QBM_ERROR_LOCKED): another process, QEMU's programs among them, or another
/// handle, uses the disk in a way that excludes this one. -ENOENT, -EACCES ...:
/// what the system said. -ENOMEM, also where the bitmaps that record take more
/// than max_bitmap_memory. Any thread.
///
/// # Safety
///
/// The pointers are NULL or point to what the text says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_open(
    path: *const c_char,
    options: *const qbm_open_options,
    disk: *mut *mut qbm_disk,
) -> c_int {
    call(|| {
        if disk.is_null() {
            return Err(null("disk"));
        }
        // SAFETY: not NULL, and writable by the caller's promise.
        unsafe { disk.write(std::ptr::null_mut()) };
        // SAFETY: the caller's promise: a string.
        let path = unsafe { path_from(path) }?;
        // SAFETY: the caller's promise: a struct as long as its first field says.
        let options = unsafe { structs::read(options, "options") }?;
        let known = QBM_OPEN_RDONLY
            | QBM_OPEN_DIRECT
            | QBM_OPEN_NO_BACKING
            | QBM_OPEN_NO_LOCK
            | QBM_OPEN_CONFINED
            | QBM_OPEN_TRUST_IMAGE
            | QBM_OPEN_VERIFY_CHECKSUM
            | QBM_OPEN_NO_STATE;
        if options.flags & !known != 0 {
            return Err(unknown_flags(options.flags & !known));
        }
        structs::check_reserved(options.reserved)?;
        let policies = [BitmapPolicy::WriteThrough, BitmapPolicy::Lazy];
        let Some(policy) = policies
            .into_iter()
            .find(|policy| *policy as u32 == options.bitmap_policy)
        else {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                format!(
                    "options: bitmap_policy {} is not one of QBM_BITMAP_POLICY_...",
                    options.bitmap_policy
                ),
            ));
        };
        let mut open = OpenOptions::new()
            .bitmap_policy(policy)
            .read_only(options.flags & QBM_OPEN_RDONLY != 0)
            .direct(options.flags & QBM_OPEN_DIRECT != 0)
            .no_backing(options.flags & QBM_OPEN_NO_BACKING != 0)
            .no_lock(options.flags & QBM_OPEN_NO_LOCK != 0)
            .confined(options.flags & QBM_OPEN_CONFINED != 0)
            .trust_image(options.flags & QBM_OPEN_TRUST_IMAGE != 0)
            .verify_checksum(options.flags & QBM_OPEN_VERIFY_CHECKSUM != 0)
            .on_bitmap_error(on_bitmap_error(options.on_bitmap_error)?)
            .no_state(options.flags & QBM_OPEN_NO_STATE != 0);
        // SAFETY: the caller's promise: NULL or a string.
        if let Some(epoch) = unsafe { optional_text(options.cache_epoch, "options.cache_epoch") }? {
            open = open.cache_epoch(epoch);
        }
        if options.retire_interval_ms != 0 {
            open = open.retire_interval(Duration::from_millis(options.retire_interval_ms));
        }
        if options.max_bitmap_memory != 0 {
            open = open.max_bitmap_memory(options.max_bitmap_memory);
        }
        if let Some(folder) = handed(options.open_file, options.open_file_opaque, path)? {
            open = open.folder(folder);
        }
        if let Some(function) = options.notify {
            let listener = Listener {
                function,
                opaque: options.notify_opaque,
            };
            open = open.notify(move |notice| listener.hear(&notice));
        }
        let opened = Arc::new(qbm_disk::of(open.open(path)?));
        // SAFETY: not NULL, and writable by the caller's promise.
        unsafe { disk.write(Arc::into_raw(opened).cast_mut()) };
        Ok(())
    })
}

/// Flushes a disk, saves its bitmaps, closes its files and frees it, whatever
/// happens. A frozen bitmap is saved as if it had been rolled back. A backup
/// that has a view of it ends as one that failed: its views answer -EINVAL
/// (QBM_ERROR_BITMAP_STATE) from then on, and are freed by qbm_backup_end().
///
/// The last call on a disk: no other thread may be in one.
///
/// Returns 0: all that was written is durable. Otherwise the first error that
/// was met, as qbm_flush() or qbm_bitmap_sync() would have returned it; the
/// disk is gone all the same.
/// In a child of the process that opened it: -ESTALE, and no file is touched.
/// NULL, or a view: -EINVAL, and nothing is done.
///
/// # Safety
///
/// `disk` is NULL or a handle from `qbm_open` that no other call uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_close(disk: *mut qbm_disk) -> c_int {
    if disk.is_null() {
        return fail(&null("disk"));
    }
    call(|| {
        // SAFETY: a handle from `qbm_open`, given back by its owner.
        view::close(unsafe { Arc::from_raw(disk) })
    })
}

/// # Safety
///
/// As [`string`].
pub(super) unsafe fn path_from<'a>(path: *const c_char) -> Result<&'a Path> {
    // SAFETY: the caller's promise is ours.
    let path = unsafe { string(path, "path") }?;
    Ok(Path::new(OsStr::from_bytes(path.to_bytes())))
}

fn on_bitmap_error(number: u32) -> Result<OnBitmapError> {
    [OnBitmapError::FailWrite, OnBitmapError::MarkInconsistent]
        .into_iter()
        .find(|choice| *choice as u32 == number)
        .ok_or_else(|| {
            Error::new(
                ErrorCode::InvalidArgument,
                format!("options: on_bitmap_error {number} is not one of QBM_ON_BITMAP_ERROR_..."),
            )
        })
}

fn format_from(word: &str, option: &str) -> Result<Format> {
    word.parse()
        .map_err(|e: Error| Error::new(e.code(), format!("options: {option} {word:?} {}", e.message())))
}

pub(super) fn granularity(bytes: u64) -> Result<Granularity> {
    Granularity::new(bytes).ok_or_else(|| {
        Error::new(
            ErrorCode::InvalidArgument,
            format!("options: granularity {bytes} is not a power of two from 512 to 2147483648"),
        )
    })
}

fn handed(function: Option<OpenFile>, opaque: *mut c_void, path: &Path) -> Result<Option<Arc<HandedFolder>>> {
    function
        .map(|function| HandedFolder::new(Callback { function, opaque }, path))
        .transpose()
}

#[cold]
pub(super) fn unknown_flags(flags: u32) -> Error {
    Error::new(
        ErrorCode::InvalidArgument,
        format!("flags {flags:#x} are not known"),
    )
}

struct Listener {
    function: unsafe extern "C" fn(*mut c_void, c_int, *const c_char),
    opaque: *mut c_void,
}

// SAFETY: the header demands a callback that may be called from any thread that uses the disk.
unsafe impl Send for Listener {}
// SAFETY: as above.
unsafe impl Sync for Listener {}

impl Listener {
    fn hear(&self, notice: &Notice<'_>) {
        let words = CString::new(notice.message.replace('\0', "")).unwrap_or_default();
        // SAFETY: the caller gave this function for this purpose; the string lives through the call.
        unsafe { (self.function)(self.opaque, notice.code as c_int, words.as_ptr()) }
    }
}

/// So that the compiler proves what the header says: a disk may be used from any thread.
const _: fn() = || {
    fn any_thread<T: Send + Sync>() {}
    any_thread::<Disk>();
};
