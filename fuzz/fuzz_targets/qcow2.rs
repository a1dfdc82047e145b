//! Any bytes as a qcow2: refused in words, or read to the last bit of its bitmaps.
#![no_main]

use std::io::{Seek as _, Write as _};
use std::os::fd::OwnedFd;

use qbm::storage::{Access, FileStorage};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    file.rewind().expect("rewound");
    let storage = FileStorage::from_fd(OwnedFd::from(file), Access::default()).expect("a regular file");
    qbm::fuzz_qcow2(&storage);
});
