//! What a power cut may take, a sync keeps, and a failed sync loses: content, lengths and names.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;

use super::{F, disk_with_file, errno, held, open, outcomes, pieces, set, sync, write};
use crate::storage::simulated::{CallKind, Choice, Fault, Keep, SimDisk};
use crate::storage::{Access, Role, SyncMode};

// Durability (F2).

#[test]
fn an_unsynced_write_may_vanish_and_a_synced_one_never_does() {
    let (disk, file) = disk_with_file();
    write(&*file, 0, b"a");
    assert_eq!(outcomes(&disk.now()), set(&[b"", b"\0", b"a"]));
    sync(&*file);
    assert_eq!(outcomes(&disk.now()), set(&[b"a"]));
}

#[test]
fn length_and_content_are_kept_independently() {
    let (disk, file) = disk_with_file();
    disk.put(F, &[1; 100]);
    let file = {
        drop(file);
        open(&disk, F)
    };
    write(&*file, 100, &[2; 20]);
    let [old, new] = [vec![1; 100], [vec![1; 100], vec![2; 20]].concat()];
    let zeros = [vec![1; 100], vec![0; 20]].concat();
    assert_eq!(outcomes(&disk.now()), set(&[&old, &zeros, &new]));
}

#[test]
fn growing_after_a_power_cut_that_kept_the_old_length_shows_zeros() {
    let (disk, file) = disk_with_file();
    write(&*file, 0, b"secret");
    let cut = disk.power_cut(&mut |choice: Choice<'_>, count: usize| match choice {
        Choice::Length { .. } => 0,
        _ => count - 1,
    });
    let file = open(&cut, F);
    file.set_length(6).unwrap();
    assert_eq!(cut.read(F).unwrap(), [0; 6]);
}

#[test]
fn pieces_reach_the_disk_in_any_order() {
    let (disk, _) = disk_with_file();
    disk.put(F, &pieces(b"..."));
    let file = open(&disk, F);
    write(&*file, 0, &pieces(b"ab"));
    write(&*file, 1024, &pieces(b"c"));
    let mut all = BTreeSet::new();
    for a in [b'.', b'a'] {
        for b in [b'.', b'b'] {
            for c in [b'.', b'c'] {
                all.insert(Some(pieces(&[a, b, c])));
            }
        }
    }
    assert_eq!(outcomes(&disk.now()), all);
}

#[test]
fn a_piece_may_have_any_value_since_the_last_sync() {
    let (disk, file) = disk_with_file();
    write(&*file, 0, b"0");
    write(&*file, 0, b"1");
    sync(&*file);
    write(&*file, 0, b"2");
    write(&*file, 0, b"3");
    assert_eq!(outcomes(&disk.now()), set(&[b"1", b"2", b"3"]));
}

#[test]
fn a_sync_vouches_only_for_its_own_file() {
    let (disk, file) = disk_with_file();
    disk.put("g", b"");
    write(&*file, 0, b"a");
    sync(&*open(&disk, "g"));
    assert!(outcomes(&disk.now()).contains(&Some(vec![])));
}

#[test]
fn a_sync_covers_only_what_came_before_it_began() {
    let (disk, file) = disk_with_file();
    write(&*file, 0, b"a");
    let (at_gate, release) = held(&disk, CallKind::Sync);
    thread::scope(|scope| {
        scope.spawn(|| sync(&*file));
        at_gate.recv().unwrap();
        write(&*file, 0, b"b");
        release.send(()).unwrap();
    });
    assert_eq!(outcomes(&disk.now()), set(&[b"a", b"b"]));
}

#[test]
fn a_folder_sync_covers_only_what_came_before_it_began() {
    let (disk, _) = disk_with_file();
    let (at_gate, release) = held(&disk, CallKind::SyncFolder);
    thread::scope(|scope| {
        scope.spawn(|| disk.folder().sync().unwrap());
        at_gate.recv().unwrap();
        disk.folder().remove(Path::new(F)).unwrap();
        release.send(()).unwrap();
    });
    assert_eq!(outcomes(&disk.now()), [None, Some(vec![])].into());
}

#[test]
fn a_held_write_lets_others_overtake_it() {
    let (disk, file) = disk_with_file();
    let (at_gate, release) = held(&disk, CallKind::Write);
    thread::scope(|scope| {
        scope.spawn(|| write(&*file, 0, b"slow"));
        at_gate.recv().unwrap();
        assert_eq!(disk.read(F).unwrap(), b"");
        write(&*file, 0, b"fast");
        release.send(()).unwrap();
    });
    assert_eq!(disk.read(F).unwrap(), b"slow");
}

// Failed syncs (A2).

#[test]
fn what_a_failed_sync_dropped_is_not_made_durable_by_a_later_one() {
    let (disk, file) = disk_with_file();
    write(&*file, 0, b"a");
    disk.fail(Fault::new(libc::EIO).on(CallKind::Sync));
    assert_eq!(errno(file.sync(SyncMode::Data)), Some(libc::EIO));
    sync(&*file);
    assert_eq!(disk.read(F).unwrap(), b"a", "the page cache still shows it");
    assert_eq!(outcomes(&disk.now()), set(&[b"", b"\0", b"a"]));
    write(&*file, 0, b"b");
    sync(&*file);
    // The byte is written again, and so durable; the length was never set again.
    assert_eq!(outcomes(&disk.now()), set(&[b"", b"b"]));
}

#[test]
fn a_call_that_changes_nothing_does_not_heal_a_failed_sync() {
    let (disk, file) = disk_with_file();
    write(&*file, 0, b"a");
    disk.fail(Fault::new(libc::EIO).on(CallKind::Sync));
    assert!(file.sync(SyncMode::Data).is_err());
    file.set_length(1).unwrap();
    sync(&*file);
    // The length was set again; the byte was not written again.
    assert_eq!(outcomes(&disk.now()), set(&[b"\0", b"a"]));
}

#[test]
fn a_killed_process_does_not_heal_a_failed_sync() {
    let (disk, file) = disk_with_file();
    write(&*file, 0, b"a");
    disk.fail(Fault::new(libc::EIO).on(CallKind::Sync));
    assert!(file.sync(SyncMode::Data).is_err());
    let next = disk.kill();
    sync(&*open(&next, F));
    assert!(outcomes(&next.now()).contains(&Some(vec![])));
}

#[test]
fn a_failed_folder_sync_leaves_names_open_for_good() {
    let disk = SimDisk::new();
    let folder = disk.folder();
    folder.create(Role::Image, Path::new(F)).unwrap();
    disk.fail(Fault::new(libc::EIO).on(CallKind::SyncFolder));
    assert_eq!(errno(folder.sync()), Some(libc::EIO));
    folder.sync().unwrap();
    assert_eq!(outcomes(&disk.now()), [None, Some(vec![])].into());
}

// Names.

#[test]
fn a_folder_without_a_synced_name_may_be_missing_with_all_that_is_in_it() {
    let disk = SimDisk::just_made();
    sync(&*disk.folder().create(Role::Image, Path::new(F)).unwrap());
    disk.folder().sync().unwrap();
    let both: BTreeSet<_> = [None, Some(Vec::new())].into();
    assert_eq!(outcomes(&disk.now()), both);
    let failing = disk.kill();
    disk.folder().sync_name().unwrap();
    assert_eq!(outcomes(&disk.now()), set(&[b""]));
    failing.fail(Fault::new(libc::EIO));
    failing.folder().sync_name().unwrap_err();
    failing.folder().sync_name().unwrap();
    // As if somebody had made the folder again, for which nothing more is open.
    let after = failing.power_cut_keeping(Keep::Nothing);
    assert_eq!(outcomes(&failing.now()), both);
    assert_eq!((after.names().len(), after.now().states()), (0, 1));
}

#[test]
fn a_synced_file_without_a_synced_name_may_be_missing() {
    let disk = SimDisk::new();
    let file = disk.folder().create(Role::Image, Path::new(F)).unwrap();
    write(&*file, 0, b"a");
    sync(&*file);
    assert_eq!(outcomes(&disk.now()), [None, Some(b"a".to_vec())].into());
    disk.folder().sync().unwrap();
    assert_eq!(outcomes(&disk.now()), set(&[b"a"]));
}

#[test]
fn a_rename_may_be_lost_until_the_folder_is_synced() {
    let (disk, _) = disk_with_file();
    disk.put(F, b"old");
    disk.put("tmp", b"new");
    disk.folder().rename(Path::new("tmp"), Path::new(F)).unwrap();
    assert_eq!(disk.names(), [Path::new(F)]);
    assert_eq!(outcomes(&disk.now()), set(&[b"old", b"new"]));
    disk.folder().sync().unwrap();
    assert_eq!(outcomes(&disk.now()), set(&[b"new"]));
    assert_eq!(disk.power_cut_keeping(Keep::Nothing).names(), [Path::new(F)]);
}

#[test]
fn a_rename_before_the_content_is_synced_may_show_an_empty_file() {
    let disk = SimDisk::new();
    disk.put(F, b"old");
    let tmp = disk.folder().create(Role::Descriptor, Path::new("tmp")).unwrap();
    write(&*tmp, 0, b"new");
    disk.folder().rename(Path::new("tmp"), Path::new(F)).unwrap();
    disk.folder().sync().unwrap();
    assert_eq!(outcomes(&disk.now()), set(&[b"", b"\0\0\0", b"new"]));
}

#[test]
fn a_removed_name_may_come_back_with_what_was_durable() {
    let (disk, _) = disk_with_file();
    disk.put(F, b"kept");
    disk.folder().remove(Path::new(F)).unwrap();
    assert!(disk.read(F).is_err());
    assert_eq!(outcomes(&disk.now()), [None, Some(b"kept".to_vec())].into());
    disk.folder().sync().unwrap();
    assert_eq!(outcomes(&disk.now()), [None].into());
}

#[test]
fn names_answer_as_a_real_folder_does() {
    let (disk, file) = disk_with_file();
    let folder = disk.folder();
    let none = Path::new("none");
    let absent = folder.open(Role::Image, none, Access::default());
    assert_eq!(absent.unwrap_err().raw_os_error(), Some(libc::ENOENT));
    assert_eq!(errno(folder.remove(none)), Some(libc::ENOENT));
    assert_eq!(errno(folder.rename(none, Path::new(F))), Some(libc::ENOENT));
    assert_eq!(
        errno(folder.copy_attributes(none, Path::new(F))),
        Some(libc::ENOENT)
    );
    assert_eq!(
        errno(folder.copy_attributes(Path::new(F), none)),
        Some(libc::ENOENT)
    );
    let taken = folder.create(Role::Image, Path::new("./f"));
    assert_eq!(taken.unwrap_err().raw_os_error(), Some(libc::EEXIST));
    folder.rename(Path::new(F), Path::new(F)).unwrap();
    folder.check_writable().unwrap();

    // An open file outlives its name.
    folder.remove(Path::new(F)).unwrap();
    write(&*file, 0, b"still");
    assert_eq!(file.length().unwrap(), 5);
}

#[test]
fn identity_survives_renames_and_crashes_and_is_never_reused() {
    let (disk, file) = disk_with_file();
    let id = file.identity().unwrap();
    disk.folder().rename(Path::new(F), Path::new("g")).unwrap();
    disk.folder().sync().unwrap();
    let disk = disk.power_cut_keeping(Keep::Random(1)).kill();
    assert_eq!(open(&disk, "g").identity(), Some(id));
    disk.folder().remove(Path::new("g")).unwrap();
    let new = disk.folder().create(Role::Image, Path::new("g")).unwrap();
    assert_ne!(new.identity(), Some(id));
    assert_ne!(SimDisk::new().lock().state.device, id.device);
}
