//! Structs from callers whose header is older or newer than the library.

use std::ffi::c_void;
use std::ptr::{null, null_mut};

use crate::ErrorCode;
use crate::capi::structs::{self, Extensible, Plain};

#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
struct Known {
    struct_size: usize,
    a: u64,
    b: u32,
    c: u32,
    pointer: *const c_void,
}

unsafe impl Plain for Known {}
unsafe impl Extensible for Known {}

const SIZE: usize = size_of::<Known>();
/// The largest that is taken for a size at all.
const MOST: usize = 4096;

/// A caller's memory: `size` in front, `fill` everywhere else, as far as the caller says and no further.
fn memory(size: usize, fill: u8) -> Vec<u64> {
    let mut bytes = vec![u64::from_ne_bytes([fill; 8]); size.div_ceil(8).max(1)];
    bytes[0] = size as u64;
    bytes
}

fn read(memory: &[u64]) -> crate::Result<Known> {
    unsafe { structs::read(memory.as_ptr().cast::<Known>(), "options") }
}

#[test]
fn null_is_all_defaults() {
    let value: Known = unsafe { structs::read(null(), "options") }.unwrap();
    assert_eq!((value.a, value.b, value.c, value.pointer), (0, 0, 0, null()));
}

#[test]
fn a_shorter_struct_gets_zeros_for_the_rest() {
    for size in size_of::<usize>()..=SIZE {
        let value = read(&memory(size, 0xff)).unwrap();
        let bytes: [u8; SIZE] = unsafe { std::mem::transmute(value) };
        assert!(bytes[8..size].iter().all(|byte| *byte == 0xff), "size {size}");
        assert!(bytes[size..].iter().all(|byte| *byte == 0), "size {size}");
    }
}

#[test]
fn a_longer_struct_is_taken_if_its_tail_is_zero() {
    for size in [SIZE + 1, SIZE + 8, SIZE + 100, MOST] {
        let mut memory = memory(size, 0);
        memory[1] = 7;
        assert_eq!(read(&memory).unwrap().a, 7);
        for at in [SIZE, size - 1] {
            let byte = unsafe { memory.as_mut_ptr().cast::<u8>().add(at) };
            unsafe { byte.write(1) };
            let error = read(&memory).unwrap_err();
            assert_eq!(
                (error.code(), error.errno()),
                (ErrorCode::StructTooLarge, libc::E2BIG)
            );
            unsafe { byte.write(0) };
        }
    }
}

#[test]
fn memory_that_was_never_set_is_no_struct() {
    for size in [0, 1, size_of::<usize>() - 1, MOST + 1, usize::MAX / 2, usize::MAX] {
        let mut memory = memory(SIZE, 0);
        memory[0] = size as u64;
        let error = read(&memory).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
        assert!(error.message().contains(&size.to_string()), "{}", error.message());
        let to = memory.as_mut_ptr().cast::<Known>();
        let value = unsafe { structs::read(null(), "options") }.unwrap();
        assert_eq!(
            unsafe { structs::write(to, &value, "info") }.unwrap_err().code(),
            ErrorCode::InvalidArgument
        );
    }
    let value: Known = unsafe { structs::read(null(), "options") }.unwrap();
    assert!(unsafe { structs::write(null_mut(), &value, "info") }.is_err());
}

#[test]
fn an_answer_fills_what_there_is_and_nothing_behind_it() {
    const GUARD: u8 = 0xaa;
    let value = Known {
        struct_size: SIZE,
        a: u64::MAX,
        b: u32::MAX,
        c: u32::MAX,
        pointer: usize::MAX as *const c_void,
    };
    for size in size_of::<usize>()..=SIZE + 20 {
        let mut memory = memory(SIZE + 28, GUARD);
        memory[0] = size as u64;
        let to = memory.as_mut_ptr().cast::<Known>();
        assert_eq!(
            unsafe { structs::write(to, &value, "info") }.unwrap(),
            size.min(SIZE)
        );
        let bytes: Vec<u8> = memory.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(memory[0], size as u64, "the caller's size stays the caller's");
        assert!(bytes[8..size.min(SIZE)].iter().all(|byte| *byte == 0xff));
        assert!(bytes[size.min(SIZE)..size].iter().all(|byte| *byte == 0));
        assert!(bytes[size..].iter().all(|byte| *byte == GUARD), "size {size}");
    }
}
