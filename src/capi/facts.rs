//! Facts about a disk.

use std::ffi::{c_char, c_int};
use std::mem::offset_of;
use std::os::unix::ffi::OsStrExt;

use super::boundary::{on_disk, on_either};
use super::life::unknown_flags;
use super::structs::{self, Extensible, Plain};
use super::{Kind, qbm_disk};
use crate::error::{Error, ErrorCode, Result};
use crate::{BackupView, BitmapPolicy, Info, StatusFlags, StatusHints};

/// In qbm_info.flags: open for writing.
pub const QBM_INFO_WRITABLE: u32 = 1;
/// In qbm_info.flags: the image is accessed around the page cache.
pub const QBM_INFO_DIRECT: u32 = 2;
/// In qbm_info.flags: a flush has failed; the disk must be reopened.
pub const QBM_INFO_FAILED: u32 = 4;
/// In qbm_info.flags: the image is a block device and cannot be resized.
pub const QBM_INFO_BLOCK_DEVICE: u32 = 8;
/// In qbm_info.flags: the disk was opened with QBM_BITMAP_POLICY_LAZY.
pub const QBM_INFO_LAZY_BITMAPS: u32 = 16;
/// In qbm_info.flags: a state file stands behind the bitmaps, so that a power
/// cut costs them no bit. Not where it is missing, or damaged, and none could be
/// made.
pub const QBM_INFO_PROTECTED: u32 = 32;
/// In qbm_info.flags: the disk had not been closed, or its state file is missing
/// or damaged, and it was recovered when it was opened: by a read-only open in
/// memory, so that the next one does the same again.
pub const QBM_INFO_RECOVERED: u32 = 64;
/// In qbm_info.flags: a view of a disk as it was at one moment. All else that
/// is told, but for the length, is the disk's of now.
pub const QBM_INFO_VIEW: u32 = 256;

/// In qbm_extent.flags: stored somewhere, and to be read to be known.
pub const QBM_BLOCK_DATA: u32 = 1;
/// In qbm_extent.flags: reads as zeros.
pub const QBM_BLOCK_ZERO: u32 = 2;
/// In qbm_extent.flags: the disk's own, not a backing image's.
pub const QBM_BLOCK_ALLOCATED: u32 = 4;
/// In qbm_extent.flags: qbm_extent.offset says where the bytes are.
pub const QBM_BLOCK_OFFSET_VALID: u32 = 8;

/// Of qbm_block_status(): which image has the bytes is all that is asked. None
/// is looked into for holes, and what one has is called data.
pub const QBM_STATUS_ALLOCATION_ONLY: u32 = 1;
/// Of qbm_block_status(): no image below a depth is asked. The depth is put in
/// beside it, shifted by QBM_STATUS_DEPTH_SHIFT; 0 is the disk's own image.
pub const QBM_STATUS_STOP_AT_DEPTH: u32 = 2;
/// Of qbm_block_status(): where in its flags the depth begins.
pub const QBM_STATUS_DEPTH_SHIFT: u32 = 16;

const _: () = {
    assert!(QBM_BLOCK_DATA == StatusFlags::DATA.bits());
    assert!(QBM_BLOCK_ZERO == StatusFlags::ZERO.bits());
    assert!(QBM_BLOCK_ALLOCATED == StatusFlags::ALLOCATED.bits());
    assert!(QBM_BLOCK_OFFSET_VALID == StatusFlags::OFFSET_VALID.bits());
};

/// Facts from qbm_get_info(). Sizes are in bytes; 0 is "unknown" or "no limit".
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_info {
    /// sizeof(struct qbm_info).
    pub struct_size: usize,
    /// The disk's length.
    pub length: u64,
    /// What the image takes on the host.
    pub allocated: u64,
    /// The longest discard that the image does in one go.
    pub max_discard: u64,
    /// The longest write of zeros that the image does in one go.
    pub max_write_zeroes: u64,
    /// QBM_INFO_...
    pub flags: u32,
    /// How many layers qbm_chain_info() knows.
    pub layers: u32,
    /// Buffers at multiples of this are used as they are, not copied.
    pub memory_alignment: u32,
    /// Offsets and lengths at multiples of this are used as they are.
    pub request_alignment: u32,
    /// The smallest unit that the device addresses.
    pub logical_block: u32,
    /// The smallest unit that the device writes without reading first.
    pub physical_block: u32,
    /// The transfer size that the image likes best.
    pub optimal_transfer: u32,
    /// Discards at multiples of this give space back.
    pub discard_alignment: u32,
    /// How many regions of the intent map a power cut would have counted as
    /// changed, if it came now.
    pub active_regions: u64,
    /// The bytes that recovery made dirty when the disk was opened, because
    /// they may have changed unseen: the most of any bitmap. Of a read-only
    /// open too, which makes them dirty in memory. How many in each bitmap:
    /// qbm_bitmap_facts.recovered_bytes.
    pub recovered_bytes: u64,
    /// The unit in which the disk takes from its backing; 0: it has no
    /// allocation bitmap, and all of it is in its own image.
    pub granularity: u64,
}

/// A layer, from qbm_chain_info().
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_layer {
    /// sizeof(struct qbm_layer).
    pub struct_size: usize,
    /// The layer's file as it was opened; the caller frees it with qbm_free().
    pub file: *mut c_char,
    /// "raw", "qbm", "qcow2" or "vmdk"; a static string.
    pub format: *const c_char,
    /// Its length in bytes.
    pub length: u64,
    /// -1; or, of what an image that is a QBM disk itself is made of, the
    /// number of that image's layer. Such layers come behind all others.
    pub part_of: i64,
}

/// A run of bytes with one answer, from qbm_block_status().
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_extent {
    /// sizeof(struct qbm_extent).
    pub struct_size: usize,
    /// How many bytes the answer holds for; at least 1.
    pub length: u64,
    /// Where in the layer's file they begin, with QBM_BLOCK_OFFSET_VALID.
    pub offset: u64,
    /// QBM_BLOCK_...
    pub flags: u32,
    /// How many images lie above the one that has them: 0 is the disk's own.
    pub depth: u32,
    /// The layer that has them, as qbm_chain_info() counts.
    pub layer: u32,
    /// Zero.
    pub reserved: u32,
}

// SAFETY: `repr(C)`, `struct_size` first, and integers and pointers after it.
unsafe impl Plain for qbm_info {}
// SAFETY: as above.
unsafe impl Extensible for qbm_info {}
// SAFETY: as above.
unsafe impl Plain for qbm_layer {}
// SAFETY: as above.
unsafe impl Extensible for qbm_layer {}
// SAFETY: as above.
unsafe impl Plain for qbm_extent {}
// SAFETY: as above.
unsafe impl Extensible for qbm_extent {}

/// section: Facts
/// ---
/// The disk's length in bytes; 0 for NULL, and for a view whose disk was
/// closed. Any thread.
///
/// # Safety
///
/// `disk` is NULL or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_length(disk: *const qbm_disk) -> u64 {
    // SAFETY: the caller's promise: NULL or a handle.
    unsafe { disk.as_ref() }.map_or(0, |handle| match &handle.kind {
        Kind::Disk(open) => open.disk.length(),
        Kind::View(view) => view.look(|view| Ok(view.length())).unwrap_or(0),
    })
}

/// Facts about the disk as they are now.
///
/// *info: its struct_size is set by the caller; as many fields as that covers
/// are filled in. Returns 0, -EINVAL, or what the system said. Any thread.
///
/// # Safety
///
/// `disk` is a handle; `info` points to `info->struct_size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_get_info(disk: *mut qbm_disk, info: *mut qbm_info) -> c_int {
    let fill = |value: qbm_info| {
        // SAFETY: the caller's promise: a struct as long as its first field says.
        unsafe { structs::write(info, &value, "info") }.map(drop)
    };
    let of_view = |view: &BackupView<'_>| {
        let mut value = convert(&view.disk().info()?);
        value.flags = value.flags & !QBM_INFO_WRITABLE | QBM_INFO_VIEW;
        value.length = view.length();
        // qbm_chain_info() knows none of a view.
        value.layers = 0;
        fill(value)
    };
    // SAFETY: the caller's promise: a handle.
    unsafe { on_either(disk, |disk| fill(convert(&disk.info()?)), of_view) }
}

/// Layer number layer of the disk: 0 is its own image, then the backing
/// images from the nearest on, then what those of them are made of that are
/// QBM disks themselves (see part_of); qbm_info.layers in all.
///
/// *info: as for qbm_get_info(); without room for file, there is none to free.
/// Returns 0. -EINVAL (QBM_ERROR_OUT_OF_RANGE):
/// there is no such layer. -ENOMEM. Any thread.
///
/// # Safety
///
/// `disk` is a handle; `info` points to `info->struct_size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_chain_info(disk: *mut qbm_disk, layer: u32, info: *mut qbm_layer) -> c_int {
    let fill = |disk: &crate::Disk| {
        let facts = disk.layer(layer)?;
        let value = qbm_layer {
            struct_size: size_of::<qbm_layer>(),
            file: duplicate(facts.path.as_os_str().as_bytes())?,
            format: match facts.format {
                crate::descriptor::Format::Raw => c"raw",
                crate::descriptor::Format::Qbm => c"qbm",
                crate::descriptor::Format::Qcow2 => c"qcow2",
                crate::descriptor::Format::Vmdk => c"vmdk",
            }
            .as_ptr(),
            length: facts.length,
            part_of: facts.part_of.map_or(-1, i64::from),
        };
        // SAFETY: the caller's promise: a struct as long as its first field says.
        let written = unsafe { structs::write(info, &value, "info") };
        let room = offset_of!(qbm_layer, file) + size_of::<*mut c_char>();
        if !written.as_ref().is_ok_and(|bytes| *bytes >= room) {
            // SAFETY: from malloc, and the caller was given no pointer that it could free.
            unsafe { libc::free(value.file.cast()) };
        }
        written.map(drop)
    };
    // SAFETY: the caller's promise: a handle.
    unsafe { on_disk(disk, fill) }
}

/// What the first bytes of a range are, and how far that goes, at most to the
/// range's end. Walk a disk by asking again behind what was answered.
///
/// flags: QBM_STATUS_ALLOCATION_ONLY, QBM_STATUS_STOP_AT_DEPTH | depth <<
/// QBM_STATUS_DEPTH_SHIFT. With the latter, what no image down to that depth
/// has is neither data nor zeros, and its depth and layer are one more.
/// *extent: as for qbm_get_info(). A hint: other threads' writes may change it
/// at once; of a view only data or zeros are told, with depth and layer 0,
/// whatever the flags. Returns 0. -EINVAL: a range of no bytes, or one that
/// does not lie within the disk; a flag that is not known. Any thread.
///
/// # Safety
///
/// `disk` is a handle; `extent` points to `extent->struct_size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_block_status(
    disk: *mut qbm_disk,
    offset: u64,
    len: u64,
    flags: u32,
    extent: *mut qbm_extent,
) -> c_int {
    let fill = |value: qbm_extent| {
        // SAFETY: the caller's promise: a struct as long as its first field says.
        unsafe { structs::write(extent, &value, "extent") }.map(drop)
    };
    let of_disk = |disk: &crate::Disk| {
        let status = disk.block_status_with(offset, len, hints(flags)?)?;
        fill(qbm_extent {
            struct_size: size_of::<qbm_extent>(),
            length: status.length,
            offset: status.offset,
            flags: status.flags.bits(),
            depth: status.depth,
            layer: status.layer,
            reserved: 0,
        })
    };
    let of_view = |view: &BackupView<'_>| {
        hints(flags)?;
        let status = view.block_status(offset, len)?;
        fill(qbm_extent {
            struct_size: size_of::<qbm_extent>(),
            length: status.len,
            offset: 0,
            flags: if status.data {
                QBM_BLOCK_DATA
            } else {
                QBM_BLOCK_ZERO
            },
            depth: 0,
            layer: 0,
            reserved: 0,
        })
    };
    // SAFETY: the caller's promise: a handle.
    unsafe { on_either(disk, of_disk, of_view) }
}

fn convert(facts: &Info) -> qbm_info {
    let flag = |set: bool, bit: u32| if set { bit } else { 0 };
    let limits = facts.limits;
    qbm_info {
        struct_size: size_of::<qbm_info>(),
        length: facts.length,
        allocated: facts.allocated,
        max_discard: limits.max_discard,
        max_write_zeroes: limits.max_write_zeroes,
        flags: flag(facts.writable, QBM_INFO_WRITABLE)
            | flag(facts.direct, QBM_INFO_DIRECT)
            | flag(facts.failed, QBM_INFO_FAILED)
            | flag(limits.block_device, QBM_INFO_BLOCK_DEVICE)
            | flag(facts.bitmap_policy == BitmapPolicy::Lazy, QBM_INFO_LAZY_BITMAPS)
            | flag(facts.protected, QBM_INFO_PROTECTED)
            | flag(facts.recovery.is_some(), QBM_INFO_RECOVERED),
        layers: facts.layers,
        memory_alignment: limits.memory_alignment,
        request_alignment: limits.request_alignment,
        logical_block: limits.logical_block,
        physical_block: limits.physical_block,
        optimal_transfer: limits.optimal_transfer,
        discard_alignment: limits.discard_alignment,
        active_regions: facts.active_regions,
        recovered_bytes: facts.recovery.as_ref().map_or(0, |recovery| {
            recovery.added.iter().map(|it| it.bytes).max().unwrap_or(0)
        }),
        granularity: facts
            .overlay
            .as_ref()
            .map_or(0, |overlay| overlay.granularity.bytes()),
    }
}

fn hints(flags: u32) -> Result<StatusHints> {
    let depth = flags >> QBM_STATUS_DEPTH_SHIFT;
    let stops = flags & QBM_STATUS_STOP_AT_DEPTH != 0;
    let known = QBM_STATUS_ALLOCATION_ONLY | QBM_STATUS_STOP_AT_DEPTH | depth << QBM_STATUS_DEPTH_SHIFT;
    if flags & !known != 0 || (depth != 0 && !stops) {
        return Err(unknown_flags(flags));
    }
    Ok(StatusHints {
        allocation_only: flags & QBM_STATUS_ALLOCATION_ONLY != 0,
        deepest: stops.then_some(depth),
    })
}

/// A copy of a string for C to free.
fn duplicate(bytes: &[u8]) -> Result<*mut c_char> {
    // SAFETY: malloc takes any size.
    let copy = unsafe { libc::malloc(bytes.len() + 1) }.cast::<u8>();
    if copy.is_null() {
        return Err(Error::new(ErrorCode::NoMemory, "no memory for a file's name"));
    }
    // SAFETY: there is room for the bytes and a NUL.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), copy, bytes.len());
        copy.add(bytes.len()).write(0);
    }
    Ok(copy.cast())
}
