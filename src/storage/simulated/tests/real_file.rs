//! What a real file would answer.

use std::io;
use std::path::Path;
use std::thread;

use super::{F, disk_with_file, errno, open, outcomes, range, set, sync, write};
use crate::storage::simulated::Keep;
use crate::storage::{Access, Role, Zeroing, read_slice, write_slice};

#[test]
fn lengths_offsets_and_ends_are_those_of_a_real_file() {
    let (disk, file) = disk_with_file();
    write(&*file, 0, &[7; 1000]);
    let read = |offset: u64, len: usize| read_slice(&*file, &mut vec![0; len], offset);
    let past_end = |result: io::Result<()>| result.unwrap_err().kind() == io::ErrorKind::UnexpectedEof;
    assert!(read(0, 1000).is_ok() && read(1000, 0).is_ok() && read(5000, 0).is_ok());
    assert!(past_end(read(0, 1001)) && past_end(read(1000, 1)) && past_end(read(1 << 40, 1)));
    assert_eq!(errno(read(1 << 63, 1)), Some(libc::EINVAL));
    assert_eq!(errno(read(u64::MAX, 9)), Some(libc::EINVAL));

    let max = u64::MAX / 2;
    write(&*file, 5000, b"");
    assert_eq!(
        file.length().unwrap(),
        1000,
        "an empty write does not grow the file"
    );
    assert_eq!(errno(write_slice(&*file, b"x", max)), Some(libc::EFBIG));
    assert_eq!(errno(write_slice(&*file, b"x", max + 1)), Some(libc::EINVAL));
    assert_eq!(errno(file.set_length(max + 1)), Some(libc::EINVAL));
    write(&*file, max - 1, b"x");
    assert_eq!(file.length().unwrap(), max);
    let mut last = [0; 3];
    read_slice(&*file, &mut last, max - 3).unwrap();
    assert_eq!(last, *b"\0\0x");
    file.set_length(max).unwrap();
    file.set_length(0).unwrap();
    file.allocate(range(10, 90)).unwrap();
    file.allocate(range(0, 10)).unwrap();
    assert_eq!(disk.read(F).unwrap(), [0; 100]);
}

#[test]
fn a_file_opened_for_reading_is_not_changed() {
    let (disk, _) = disk_with_file();
    let file = disk
        .folder()
        .open(Role::Backing, Path::new(F), Access::default())
        .unwrap();
    let refused = [
        write_slice(&*file, b"x", 0),
        file.write_zeroes(range(0, 1), Zeroing::default()),
        file.discard(range(0, 1)),
        file.set_length(1),
        file.allocate(range(0, 1)),
    ];
    assert_eq!(refused.map(errno), [Some(libc::EBADF); 5]);
    sync(&*file);
    assert_eq!(disk.read(F).unwrap(), b"");
}

#[test]
fn zeroes_and_discards_stay_within_the_length_and_may_be_lost() {
    let (disk, _) = disk_with_file();
    disk.put(F, &[9; 1100]);
    let file = open(&disk, F);
    file.discard(range(500, 1 << 40)).unwrap();
    let now = [vec![9; 500], vec![0; 600]].concat();
    assert_eq!(disk.read(F).unwrap(), now);
    assert_eq!(disk.now().states(), 8);
    assert!(outcomes(&disk.now()).contains(&Some(vec![9; 1100])));
    sync(&*file);
    assert_eq!(outcomes(&disk.now()), set(&[&now]));
}

#[test]
fn cut_bytes_do_not_come_back_by_growing() {
    let (disk, _) = disk_with_file();
    disk.put(F, &[9; 1100]);
    let file = open(&disk, F);
    file.set_length(100).unwrap();
    file.set_length(1100).unwrap();
    let now = [vec![9; 100], vec![0; 1000]].concat();
    assert_eq!(disk.read(F).unwrap(), now);
    sync(&*file);
    assert_eq!(outcomes(&disk.now()), set(&[&now]));
}

#[test]
fn extents_tell_holes_from_data() {
    let (_disk, file) = disk_with_file();
    file.set_length(1 << 40).unwrap();
    write(&*file, 4096, &[1; 1000]);
    write(&*file, (1 << 40) - 100, &[1; 100]);
    let extent = |start: u64, len: u64| {
        let it = file.extent(range(start, len)).unwrap();
        (it.data, it.len)
    };
    assert_eq!(extent(0, 1 << 40), (false, 4096));
    assert_eq!(extent(0, 100), (false, 100));
    assert_eq!(extent(4096, 1 << 30), (true, 1024));
    assert_eq!(extent(4200, 10), (true, 10));
    assert_eq!(extent(5120, 1 << 40), (false, (1 << 40) - 512 - 5120));
    assert_eq!(extent((1 << 40) - 50, 500), (true, 50));
    assert_eq!(extent(1 << 40, 500), (false, 500));
    assert_eq!(extent(4096, 0).1, 0);
    assert_eq!(file.allocated_bytes().unwrap(), 1024 + 512);

    file.write_zeroes(range(0, 1024), Zeroing::default()).unwrap();
    assert_eq!(extent(0, 4096), (true, 1024));
    let unmap = Zeroing {
        may_unmap: true,
        no_fallback: true,
    };
    file.write_zeroes(range(0, 1024), unmap).unwrap();
    assert_eq!(extent(0, 4096), (false, 4096));
}

#[test]
fn limits_are_what_the_test_set() {
    let (disk, file) = disk_with_file();
    let mut limits = file.limits();
    assert_eq!((limits.memory_alignment, limits.request_alignment), (1, 1));
    limits.request_alignment = 4096;
    disk.set_limits(limits);
    let after = disk.power_cut_keeping(Keep::Nothing);
    assert_eq!([file.limits(), open(&after, F).limits()], [limits; 2]);
    write(&*file, 1, b"any offset works all the same");
}

#[test]
fn threads_may_share_it() {
    let (disk, file) = disk_with_file();
    thread::scope(|scope| {
        for thread in 0..4u64 {
            let file = &file;
            scope.spawn(move || {
                for round in 0..50 {
                    write(&**file, (thread * 50 + round) * 512, &[1; 512]);
                    sync(&**file);
                }
            });
        }
    });
    assert_eq!(disk.read(F).unwrap(), vec![1; 200 * 512]);
    assert_eq!(disk.now().states(), 1);
}
