//! Facts about bitmaps, with their strings in one block of memory that C frees.

use std::ffi::{c_char, c_int, c_void};
use std::mem::offset_of;

use super::bitmap_arguments::reading;
use super::boundary::{check_out, on_disk, put};
use super::qbm_disk;
use super::structs::{self, Extensible, Plain, check_size};
use crate::descriptor::BitmapKind;
use crate::error::{Error, ErrorCode, Result};
use crate::{BitmapInfo, Disk};

/// In qbm_bitmap_facts.flags: writes set its bits.
pub const QBM_BITMAP_RECORDING: u32 = 1;
/// In qbm_bitmap_facts.flags: it is frozen for a backup.
pub const QBM_BITMAP_BUSY: u32 = 2;
/// In qbm_bitmap_facts.flags: it has a file and outlives the open disk.
pub const QBM_BITMAP_PERSISTENT: u32 = 4;
/// In qbm_bitmap_facts.flags: it can no longer be trusted.
pub const QBM_BITMAP_INCONSISTENT: u32 = 8;
/// In qbm_bitmap_facts.flags: qbm_bitmap_facts.count is known.
pub const QBM_BITMAP_COUNT_VALID: u32 = 16;
/// In qbm_bitmap_facts.flags: qbm_bitmap_facts.start_length is known.
pub const QBM_BITMAP_START_LENGTH_VALID: u32 = 32;

/// What a bitmap's bits mean.
#[allow(non_camel_case_types, reason = "the name in C")]
#[allow(dead_code, reason = "read by C only")]
#[derive(Clone, Copy)]
#[repr(C)]
pub enum qbm_bitmap_kind {
    /// Written since the bitmap's starting point.
    QBM_BITMAP_KIND_DIRTY = 1,
    /// The disk's own, not the backing image's. No disk opens with one yet.
    QBM_BITMAP_KIND_ALLOCATION = 2,
}

/// Facts about a bitmap, from qbm_bitmap_info() and qbm_bitmap_list(). All of
/// its strings are in one block of memory.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_bitmap_facts {
    /// sizeof(struct qbm_bitmap_facts).
    pub struct_size: usize,
    /// What the caller frees with qbm_free() when done with the strings. NULL
    /// in a list, which is freed as a whole.
    pub memory: *mut c_void,
    /// Its name.
    pub name: *const c_char,
    /// Its file as the descriptor names it; NULL of a transient one.
    pub file: *const c_char,
    /// The random id of its starting point, another after each: it tells
    /// whether the bitmap still starts where the last backup ended. NULL where
    /// the descriptor has none.
    pub epoch: *const c_char,
    /// Of a frozen one: the id that it will have after QBM_THAW_COMMIT. Else
    /// NULL.
    pub next_epoch: *const c_char,
    /// The bytes that one bit stands for.
    pub granularity: u64,
    /// How many granules are dirty, with QBM_BITMAP_COUNT_VALID. A list does
    /// not load bits to count them.
    pub count: u64,
    /// The disk's length in bytes at the starting point, with
    /// QBM_BITMAP_START_LENGTH_VALID.
    pub start_length: u64,
    /// QBM_BITMAP_RECORDING, ...
    pub flags: u32,
    /// One of enum qbm_bitmap_kind.
    pub kind: u32,
    /// The bytes that recovery made dirty in it when the disk was opened,
    /// because they may have changed unseen; 0 once it has another starting
    /// point.
    pub recovered_bytes: u64,
}

// SAFETY: `repr(C)`, and integers and pointers only.
unsafe impl Plain for qbm_bitmap_facts {}
// SAFETY: `struct_size` first.
unsafe impl Extensible for qbm_bitmap_facts {}

/// section: Bitmaps: facts
/// ---
/// Facts about one bitmap, with its count.
///
/// *facts: its struct_size is set by the caller; as many fields as that covers
/// are filled in; without room for memory there are no strings, and nothing is
/// to be freed. Returns 0. -EINVAL, -ENOENT, -ENOMEM; then nothing is to be
/// freed. Any thread.
///
/// # Safety
///
/// `disk` is a handle; `name` is a string; `facts` points to `facts->struct_size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_info(
    disk: *mut qbm_disk,
    name: *const c_char,
    facts: *mut qbm_bitmap_facts,
) -> c_int {
    let fill = |disk: &Disk, name: &str| {
        check_out(facts, "facts")?;
        let known = disk.bitmap_info(name)?;
        let mut strings = Block::new(strings_of(&known))?;
        let mut value = convert(&known, &mut strings);
        value.memory = strings.start;
        // SAFETY: the caller's promise: a struct as long as its first field says.
        let written = unsafe { structs::write(facts, &value, "facts") };
        // The pointers into the block come behind the one to it.
        let room = offset_of!(qbm_bitmap_facts, memory) + size_of::<*mut c_void>();
        if !written.as_ref().is_ok_and(|bytes| *bytes >= room) {
            strings.free();
        }
        written.map(drop)
    };
    // SAFETY: the caller's promises: a handle, and a string.
    unsafe { reading(disk, name, fill) }
}

/// Facts about all bitmaps as they are at one moment: those of the descriptor
/// in its order, then what was added since.
///
/// facts_size: sizeof(struct qbm_bitmap_facts). *list: an array of *count
/// elements of that size, which the caller frees with qbm_free(), strings and
/// all; NULL where there are none. Returns 0. -EINVAL, -ENOMEM, and of a view
/// -ENOTSUP; then *list is NULL and *count 0. Any thread.
///
/// # Safety
///
/// `disk` is a handle; `list` and `count` are writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_list(
    disk: *mut qbm_disk,
    facts_size: usize,
    list: *mut *mut qbm_bitmap_facts,
    count: *mut usize,
) -> c_int {
    // Whatever comes: the caller may free what is in the list.
    // SAFETY: the caller's promise: places for the answer.
    let cleared = unsafe { put(list, std::ptr::null_mut(), "list").and(put(count, 0, "count")) };
    let fill = |disk: &Disk| {
        cleared?;
        check_size(facts_size, "facts_size")?;
        let facts = disk.bitmap_list()?;
        if facts.is_empty() {
            return Ok(());
        }
        let strings = facts.iter().map(strings_of).sum();
        let all = Block::list(&facts, facts_size, strings, convert)?;
        // SAFETY: the caller's promise: places for the answer.
        unsafe {
            put(list, all.cast(), "list")?;
            put(count, facts.len(), "count")
        }
    };
    // SAFETY: the caller's promise: a handle.
    unsafe { on_disk(disk, fill) }
}

fn convert(facts: &BitmapInfo, strings: &mut Block) -> qbm_bitmap_facts {
    let flag = |set: bool, bit: u32| if set { bit } else { 0 };
    qbm_bitmap_facts {
        struct_size: size_of::<qbm_bitmap_facts>(),
        memory: std::ptr::null_mut(),
        name: strings.put(Some(&facts.name)),
        file: strings.put(facts.file.as_deref()),
        epoch: strings.put(facts.epoch.as_deref()),
        next_epoch: strings.put(facts.next_epoch.as_deref()),
        granularity: facts.granularity.bytes(),
        count: facts.count.unwrap_or(0),
        start_length: facts.start_length.unwrap_or(0),
        flags: flag(facts.recording, QBM_BITMAP_RECORDING)
            | flag(facts.busy, QBM_BITMAP_BUSY)
            | flag(facts.persistent, QBM_BITMAP_PERSISTENT)
            | flag(facts.inconsistent, QBM_BITMAP_INCONSISTENT)
            | flag(facts.count.is_some(), QBM_BITMAP_COUNT_VALID)
            | flag(facts.start_length.is_some(), QBM_BITMAP_START_LENGTH_VALID),
        kind: match facts.kind {
            BitmapKind::Dirty => qbm_bitmap_kind::QBM_BITMAP_KIND_DIRTY,
            BitmapKind::Allocation { .. } => qbm_bitmap_kind::QBM_BITMAP_KIND_ALLOCATION,
        } as u32,
        recovered_bytes: facts.recovered_bytes,
    }
}

/// Stands for a NUL, which another program's `epoch` may have: it would end the string, and two could read alike.
const NUL: char = '\u{fffd}';

/// The bytes that the strings of `facts` take as C has them.
fn strings_of(facts: &BitmapInfo) -> usize {
    let others = [&facts.file, &facts.epoch, &facts.next_epoch];
    let others = others.into_iter().flatten().map(|text| room_for(text));
    room_for(&facts.name) + others.sum::<usize>()
}

/// The bytes that `text` takes in a [`Block`].
pub(super) fn room_for(text: &str) -> usize {
    text.chars()
        .map(|c| if c == '\0' { NUL.len_utf8() } else { c.len_utf8() })
        .sum::<usize>()
        + 1
}

/// Memory from malloc, to be filled from its start and freed by C.
pub(super) struct Block {
    pub(super) start: *mut c_void,
    used: usize,
    size: usize,
}

impl Block {
    pub(super) fn new(size: usize) -> Result<Self> {
        // SAFETY: malloc takes any size.
        let start = unsafe { libc::malloc(size) };
        if start.is_null() {
            return Err(Error::new(
                ErrorCode::NoMemory,
                "no memory for the strings of an answer",
            ));
        }
        Ok(Self { start, used: 0, size })
    }

    /// An array of structs of `size` bytes that `items` are converted to, and behind it their strings, which take so many bytes.
    pub(super) fn list<I, T: Extensible>(
        items: &[I],
        size: usize,
        strings: usize,
        convert: impl Fn(&I, &mut Self) -> T,
    ) -> Result<*mut c_void> {
        let elements = items.len() * size;
        let mut block = Self::new(strings + elements)?;
        block.used = elements;
        for (index, item) in items.iter().enumerate() {
            let value = convert(item, &mut block);
            // SAFETY: element `index` lies within the block, whose first `elements` bytes are for them alone.
            let written = unsafe {
                let element = block.start.cast::<T>().byte_add(index * size);
                element.cast::<usize>().write_unaligned(size);
                structs::write(element, &value, "list")
            };
            if let Err(error) = written {
                block.free();
                return Err(error);
            }
        }
        Ok(block.start)
    }

    /// A copy of `text`, behind what is there; NULL of none.
    pub(super) fn put(&mut self, text: Option<&str>) -> *const c_char {
        let Some(text) = text else {
            return std::ptr::null();
        };
        let text = text.replace('\0', NUL.encode_utf8(&mut [0; 4]));
        assert!(
            text.len() < self.size - self.used,
            "`strings_of` counted the bytes"
        );
        // SAFETY: there is room for the bytes and a NUL.
        unsafe {
            let copy = self.start.cast::<u8>().add(self.used);
            std::ptr::copy_nonoverlapping(text.as_ptr(), copy, text.len());
            copy.add(text.len()).write(0);
            self.used += text.len() + 1;
            copy.cast()
        }
    }

    pub(super) fn free(self) {
        // SAFETY: from malloc, and C was given no pointer to it.
        unsafe { libc::free(self.start) };
    }
}
