//! An inconsistent bitmap, through the functions of C: it may be looked at from outside, removed and repaired.

use std::ffi::{CStr, c_char, c_int};
use std::ptr::{null, null_mut};

use crate::capi::bitmap_bits::{
    qbm_bitmap_count, qbm_bitmap_deserialize, qbm_bitmap_get, qbm_bitmap_next_dirty, qbm_bitmap_next_zero,
    qbm_bitmap_serialize, qbm_bitmap_serialized_length, qbm_bits, qbm_bits_free, qbm_bits_new,
};
use crate::capi::bitmap_changes::{
    qbm_bitmap_freeze, qbm_bitmap_merge, qbm_bitmap_repair, qbm_bitmap_reset, qbm_bitmap_set,
};
use crate::capi::bitmap_facts::{QBM_BITMAP_INCONSISTENT, qbm_bitmap_facts, qbm_bitmap_info};
use crate::capi::bitmap_transaction::{qbm_action, qbm_bitmap_action, qbm_bitmap_transaction};
use crate::capi::bitmaps::{
    qbm_bitmap_add, qbm_bitmap_clear, qbm_bitmap_disable, qbm_bitmap_enable, qbm_bitmap_remove,
    qbm_bitmap_rename, qbm_bitmap_set_persistent,
};
use crate::capi::errors::{qbm_error_code, qbm_error_message, qbm_free};
use crate::capi::qbm_disk;
use crate::capi::view::opened;
use crate::storage::simulated::SimDisk;
use crate::{CreateOptions, ErrorCode, OpenOptions};

const LENGTH: u64 = 4 << 20;
const B: *const c_char = c"b".as_ptr();
const OTHER: *const c_char = c"other".as_ptr();

fn disk() -> qbm_disk {
    let sim = SimDisk::new();
    let create = CreateOptions::new().size(LENGTH).folder(sim.folder());
    create.create("disk.qbm").unwrap();
    let disk = OpenOptions::new().folder(sim.folder()).open("disk.qbm").unwrap();
    for name in ["b", "other"] {
        disk.bitmap_add(name, crate::AddBitmap::default()).unwrap();
    }
    qbm_disk::of(disk)
}

fn flags(disk: *mut qbm_disk) -> u32 {
    let mut facts: qbm_bitmap_facts = unsafe { std::mem::zeroed() };
    facts.struct_size = size_of::<qbm_bitmap_facts>();
    assert_eq!(unsafe { qbm_bitmap_info(disk, B, &raw mut facts) }, 0);
    unsafe { qbm_free(facts.memory) };
    facts.flags
}

type Call = fn(*mut qbm_disk, *const qbm_bits) -> c_int;

const REFUSED: [Call; 19] = [
    |disk, _| unsafe { qbm_bitmap_clear(disk, B, 0) },
    |disk, _| unsafe { qbm_bitmap_enable(disk, B, 0) },
    |disk, _| unsafe { qbm_bitmap_disable(disk, B, 0) },
    |disk, _| unsafe { qbm_bitmap_rename(disk, B, c"c".as_ptr(), 0) },
    |disk, _| unsafe { qbm_bitmap_set_persistent(disk, B, 0, 0) },
    |disk, _| unsafe { qbm_bitmap_set(disk, B, 0, 1, 0) },
    |disk, _| unsafe { qbm_bitmap_reset(disk, B, 0, LENGTH, 0) },
    |disk, _| unsafe { qbm_bitmap_merge(disk, B, null_mut(), OTHER, 0) },
    |disk, _| unsafe { qbm_bitmap_merge(disk, OTHER, disk, B, 0) },
    |disk, _| unsafe { qbm_bitmap_freeze(disk, B, 0) },
    |disk, bits| unsafe { qbm_bitmap_deserialize(disk, B, bits, 0) },
    |disk, _| {
        let mut action: qbm_bitmap_action = unsafe { std::mem::zeroed() };
        (action.disk, action.name, action.kind) = (disk, B, qbm_action::QBM_ACTION_CLEAR as u32);
        unsafe { qbm_bitmap_transaction(&raw const action, 1, size_of::<qbm_bitmap_action>(), 0) }
    },
    |disk, _| unsafe { qbm_bitmap_get(disk, B, 0, &mut 0) },
    |disk, _| unsafe { qbm_bitmap_count(disk, B, &mut 0) },
    |disk, _| unsafe { qbm_bitmap_next_dirty(disk, B, 0, 1, &mut 0, &mut 0) },
    |disk, _| unsafe { qbm_bitmap_next_zero(disk, B, 0, 1, &mut 0) },
    |disk, _| unsafe { qbm_bitmap_serialized_length(disk, B, &mut 0) },
    |disk, _| unsafe { qbm_bitmap_serialize(disk, B, 0, [0u8; 8].as_mut_ptr().cast(), 8) },
    |disk, _| unsafe { qbm_bits_new(disk, B, &mut null_mut()) },
];

#[test]
fn an_inconsistent_bitmap_is_only_removed_or_repaired() {
    let mut handle = disk();
    let disk = &raw mut handle;
    let mut bits: *mut qbm_bits = null_mut();
    assert_eq!(unsafe { qbm_bits_new(disk, B, &raw mut bits) }, 0);
    opened(&handle).unwrap().disk.make_inconsistent("b");
    for (index, call) in REFUSED.into_iter().enumerate() {
        assert_eq!(call(disk, bits), -libc::EUCLEAN, "call {index}");
        assert_eq!(qbm_error_code(), ErrorCode::BitmapInconsistent as c_int);
        let words = unsafe { CStr::from_ptr(qbm_error_message()) };
        assert!(words.to_string_lossy().contains("bitmap \"b\" is inconsistent"));
    }
    unsafe { qbm_bits_free(bits) };
    assert_eq!(flags(disk) & QBM_BITMAP_INCONSISTENT, QBM_BITMAP_INCONSISTENT);

    assert_eq!(unsafe { qbm_bitmap_repair(disk, B, 0) }, 0);
    let mut count = 0;
    assert_eq!(unsafe { qbm_bitmap_count(disk, B, &raw mut count) }, 0);
    assert_eq!((flags(disk) & QBM_BITMAP_INCONSISTENT, count), (0, LENGTH >> 16));
    opened(&handle).unwrap().disk.make_inconsistent("b");
    assert_eq!(unsafe { qbm_bitmap_remove(disk, B, 0) }, 0);
    assert_eq!(unsafe { qbm_bitmap_add(disk, B, null()) }, 0);
}
