//! Several changes of bitmaps, on one or several disks, at one point between writes.

use std::ffi::{c_char, c_int};
use std::mem::take;
use std::ptr::null_mut;

use super::bitmap_arguments::{add_options, handle, merge_source, no_flags, outcome_from};
use super::bitmap_bits::{content, qbm_bits};
use super::bitmaps::qbm_bitmap_options;
use super::boundary::{call, null, on_disks, text};
use super::qbm_disk;
use super::structs::{self, Plain};
use crate::error::{Error, ErrorCode, Result};
use crate::{BitmapAction, Disk, MergeSource, bitmap_transaction};

/// What an action of qbm_bitmap_transaction() does.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub enum qbm_action {
    /// As qbm_bitmap_add(): options.
    QBM_ACTION_ADD = 1,
    /// As qbm_bitmap_remove().
    QBM_ACTION_REMOVE = 2,
    /// As qbm_bitmap_clear().
    QBM_ACTION_CLEAR = 3,
    /// As qbm_bitmap_enable().
    QBM_ACTION_ENABLE = 4,
    /// As qbm_bitmap_disable().
    QBM_ACTION_DISABLE = 5,
    /// As qbm_bitmap_rename(): other is the new name.
    QBM_ACTION_RENAME = 6,
    /// As qbm_bitmap_set_persistent(): value.
    QBM_ACTION_SET_PERSISTENT = 7,
    /// As qbm_bitmap_set(): offset, len.
    QBM_ACTION_SET = 8,
    /// As qbm_bitmap_reset(): offset, len.
    QBM_ACTION_RESET = 9,
    /// As qbm_bitmap_merge(): other is the source, of other_disk if that is not NULL.
    QBM_ACTION_MERGE = 10,
    /// As qbm_bitmap_freeze().
    QBM_ACTION_FREEZE = 11,
    /// As qbm_bitmap_thaw(): value is the outcome.
    QBM_ACTION_THAW = 12,
    /// As qbm_bitmap_repair().
    QBM_ACTION_REPAIR = 13,
    /// As qbm_bitmap_deserialize(): bits.
    QBM_ACTION_DESERIALIZE = 14,
}

const KINDS: [qbm_action; 14] = [
    qbm_action::QBM_ACTION_ADD,
    qbm_action::QBM_ACTION_REMOVE,
    qbm_action::QBM_ACTION_CLEAR,
    qbm_action::QBM_ACTION_ENABLE,
    qbm_action::QBM_ACTION_DISABLE,
    qbm_action::QBM_ACTION_RENAME,
    qbm_action::QBM_ACTION_SET_PERSISTENT,
    qbm_action::QBM_ACTION_SET,
    qbm_action::QBM_ACTION_RESET,
    qbm_action::QBM_ACTION_MERGE,
    qbm_action::QBM_ACTION_FREEZE,
    qbm_action::QBM_ACTION_THAW,
    qbm_action::QBM_ACTION_REPAIR,
    qbm_action::QBM_ACTION_DESERIALIZE,
];

/// One action of qbm_bitmap_transaction(). Set disk, name, kind and what the
/// kind uses, and all else to zero.
#[allow(non_camel_case_types, reason = "the name in C")]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct qbm_bitmap_action {
    /// The disk that it is about.
    pub disk: *mut qbm_disk,
    /// The bitmap that it is about.
    pub name: *const c_char,
    /// One of enum qbm_action.
    pub kind: u32,
    /// What QBM_ACTION_SET_PERSISTENT and _THAW use.
    pub value: c_int,
    /// What QBM_ACTION_SET and _RESET use.
    pub offset: u64,
    /// What QBM_ACTION_SET and _RESET use.
    pub len: u64,
    /// What QBM_ACTION_RENAME and _MERGE use.
    pub other: *const c_char,
    /// What QBM_ACTION_MERGE uses.
    pub other_disk: *mut qbm_disk,
    /// What QBM_ACTION_ADD uses.
    pub options: *const qbm_bitmap_options,
    /// What QBM_ACTION_DESERIALIZE uses.
    pub bits: *const qbm_bits,
}

// SAFETY: `repr(C)`, and integers and pointers only.
unsafe impl Plain for qbm_bitmap_action {}

/// section: Bitmaps: transactions
/// ---
/// Applies all of count actions, on one disk or several, or none: in their
/// order, at one point between the writes to all of the disks.
///
/// Each action does what the function of its name does, to what the actions
/// before it have made. action_size: sizeof(struct qbm_bitmap_action). Several
/// merges into one bitmap are several actions.
///
/// A transaction on one disk is atomic in a crash. With several disks a crash
/// leaves each of them old or new, but maybe not all the same; bits that one
/// disk merges from another are durable there before any of the disks loses
/// bits. Two transactions on the same disks, in whatever order, do not wait for
/// each other for ever.
///
/// Returns 0; all is durable then. Otherwise what the function of the action
/// that failed returns, with the action named in the message, and nothing is
/// changed. (If the system fails at one disk when another is changed already,
/// that one is changed back; if even that fails, it has failed, and must be
/// reopened. One that has merged bits from a disk of which nobody knows whether
/// it has lost them is not changed back, and has failed too.) -EINVAL: a kind
/// that is not known, a field that the kind does not use. -ENOTSUP: disks that
/// merge from each other in a circle, where one also loses bits.
///
/// # Safety
///
/// `actions` points to `count` elements of `action_size` bytes, whose pointers are as for the functions of their
/// kinds.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qbm_bitmap_transaction(
    actions: *const qbm_bitmap_action,
    count: usize,
    action_size: usize,
    flags: u32,
) -> c_int {
    call(|| {
        no_flags(flags)?;
        if count != 0 && actions.is_null() {
            return Err(null("actions"));
        }
        let mut parsed = Vec::new();
        let mut disks = Vec::new();
        for index in 0..count {
            // SAFETY: the caller's promise: so many elements of that size.
            let action = unsafe { element(actions, index, action_size) };
            // SAFETY: the caller's promise on what the action points to.
            let (disk, action) = action
                .and_then(|action| unsafe { parse(action) })
                .map_err(|error| error.context(format_args!("action {index}")))?;
            disks.push(disk);
            if let BitmapAction::Merge { sources, .. } = &action {
                disks.extend(sources.iter().filter_map(|source| match source {
                    MergeSource::Other { disk, .. } => Some(*disk),
                    _ => None,
                }));
            }
            parsed.push((disk, action));
        }
        on_disks(&disks, || bitmap_transaction(&parsed))
    })
}

/// # Safety
///
/// `actions` points to more than `index` elements of `size` bytes.
unsafe fn element(actions: *const qbm_bitmap_action, index: usize, size: usize) -> Result<qbm_bitmap_action> {
    structs::check_size(size, "action_size")?;
    // SAFETY: the caller's promise is ours.
    unsafe { structs::read_sized(actions.byte_add(index * size), size, "actions") }
}

/// # Safety
///
/// What the action points to is as the functions of its kind want it, and outlives `'a`.
unsafe fn parse<'a>(action: qbm_bitmap_action) -> Result<(&'a Disk, BitmapAction<'a>)> {
    use qbm_action as Kind;
    // What is used is taken; what is left must be zero.
    let mut left = action;
    let Some(kind) = KINDS.into_iter().find(|kind| *kind as u32 == action.kind) else {
        return Err(Error::new(
            ErrorCode::InvalidArgument,
            format!("kind {} is not one of QBM_ACTION_...", action.kind),
        ));
    };
    // SAFETY: the caller's promises: a handle, and a string.
    let (disk, name) = unsafe { (handle(action.disk, "disk")?, text(action.name, "name")?) };
    let parsed = match kind {
        Kind::QBM_ACTION_ADD => BitmapAction::Add {
            name,
            // SAFETY: the caller's promise: NULL or a struct.
            options: unsafe { add_options(std::mem::replace(&mut left.options, null_mut())) }?,
        },
        Kind::QBM_ACTION_REMOVE => BitmapAction::Remove { name },
        Kind::QBM_ACTION_CLEAR => BitmapAction::Clear { name },
        Kind::QBM_ACTION_ENABLE => BitmapAction::Enable { name },
        Kind::QBM_ACTION_DISABLE => BitmapAction::Disable { name },
        Kind::QBM_ACTION_RENAME => BitmapAction::Rename {
            name,
            // SAFETY: the caller's promise: a string.
            to: unsafe { text(std::mem::replace(&mut left.other, null_mut()), "other") }?,
        },
        Kind::QBM_ACTION_SET_PERSISTENT => BitmapAction::SetPersistent {
            name,
            persistent: take(&mut left.value) != 0,
        },
        Kind::QBM_ACTION_SET => BitmapAction::Set {
            name,
            offset: take(&mut left.offset),
            len: take(&mut left.len),
        },
        Kind::QBM_ACTION_RESET => BitmapAction::Reset {
            name,
            offset: take(&mut left.offset),
            len: take(&mut left.len),
        },
        Kind::QBM_ACTION_MERGE => {
            let from = std::mem::replace(&mut left.other_disk, null_mut());
            let source = std::mem::replace(&mut left.other, null_mut());
            BitmapAction::Merge {
                target: name,
                // SAFETY: the caller's promises: NULL or a handle, and a string.
                sources: vec![unsafe { merge_source(from, source, "other") }?],
            }
        }
        Kind::QBM_ACTION_FREEZE => BitmapAction::Freeze { name },
        Kind::QBM_ACTION_THAW => BitmapAction::Thaw {
            name,
            outcome: outcome_from(take(&mut left.value))?,
        },
        Kind::QBM_ACTION_REPAIR => BitmapAction::Repair { name },
        Kind::QBM_ACTION_DESERIALIZE => BitmapAction::Replace {
            name,
            // SAFETY: the caller's promise: NULL or from `qbm_bits_new`.
            content: unsafe { content(std::mem::replace(&mut left.bits, null_mut())) }?,
        },
    };
    check_nothing_left(&left)?;
    Ok((disk, parsed))
}

fn check_nothing_left(left: &qbm_bitmap_action) -> Result<()> {
    let fields = [
        ("value", left.value != 0),
        ("offset", left.offset != 0),
        ("len", left.len != 0),
        ("other", !left.other.is_null()),
        ("other_disk", !left.other_disk.is_null()),
        ("options", !left.options.is_null()),
        ("bits", !left.bits.is_null()),
    ];
    match fields.into_iter().find(|(_, set)| *set) {
        None => Ok(()),
        Some((field, _)) => Err(Error::new(
            ErrorCode::InvalidArgument,
            format!("{field} is set, which kind {} does not use", left.kind),
        )),
    }
}
