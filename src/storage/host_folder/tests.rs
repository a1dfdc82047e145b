//! Names, attributes and rights in a real folder.

use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;
use crate::skip::skipped;
use crate::storage::{read_slice, write_slice};

const WRITE: Access = Access {
    write: true,
    direct: false,
};

fn folder() -> (TempDir, HostFolder) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let folder = HostFolder::open(dir.path()).expect("an open");
    (dir, folder)
}

#[test]
fn files_are_made_renamed_and_removed() {
    let (dir, folder) = folder();
    let (old, new) = (Path::new("old"), Path::new("new"));
    let file = folder.create(Role::State, old).expect("a new file");
    write_slice(&*file, b"abc", 0).expect("a write");
    let again = folder.create(Role::State, old).expect_err("a taken name");
    assert_eq!(again.raw_os_error(), Some(libc::EEXIST));
    fs::write(dir.path().join("new"), b"in the way").expect("a file");
    folder.rename(old, new).expect("a rename");
    folder.sync().expect("a sync");
    let mut back = [0; 3];
    let file = folder.open(Role::State, new, Access::default()).expect("an open");
    read_slice(&*file, &mut back, 0).expect("a read");
    assert_eq!(&back, b"abc");
    write_slice(&*file, b"x", 0).expect_err("read-only");
    folder.remove(new).expect("a removal");
    assert_eq!(
        folder
            .open(Role::State, new, WRITE)
            .expect_err("gone")
            .raw_os_error(),
        Some(libc::ENOENT)
    );
}

/// A descriptor that is named without one lies in it.
#[test]
fn a_folder_without_a_name_is_called_a_dot() {
    let folder = HostFolder::open(Path::new("")).expect("the working folder");
    assert_eq!(
        folder.read_only("it is read-only").to_string(),
        "names in the folder . cannot be changed: it is read-only"
    );
}

#[test]
fn a_name_that_is_a_link_is_not_created_through() {
    let (dir, folder) = folder();
    symlink(dir.path().join("elsewhere"), dir.path().join("link")).expect("a link");
    folder
        .create(Role::Bitmap, Path::new("link"))
        .expect_err("a taken name");
    assert!(!dir.path().join("elsewhere").exists());
}

#[test]
fn names_follow_the_folder_and_absolute_ones_stand() {
    let (dir, folder) = folder();
    fs::create_dir(dir.path().join("sub")).expect("a folder");
    let sub = HostFolder::open(&dir.path().join("sub")).expect("an open");
    fs::rename(dir.path().join("sub"), dir.path().join("moved")).expect("a rename");
    sub.create(Role::Image, Path::new("image"))
        .expect("a file in the moved folder");
    assert!(dir.path().join("moved/image").exists());
    let absolute = dir.path().join("moved/image");
    folder
        .open(Role::Image, &absolute, WRITE)
        .expect("an absolute name");
    folder
        .open(Role::Image, Path::new("moved/image"), WRITE)
        .expect("a name with a folder in it");
}

#[test]
fn other_kinds_are_refused() {
    let (_dir, folder) = folder();
    let error = folder
        .open(Role::Image, Path::new("."), WRITE)
        .expect_err("a folder");
    assert!(error.to_string().contains("a directory"), "{error}");
    HostFolder::open(Path::new("/dev/null")).expect_err("no folder");
    let file = File::open("/dev/null").expect("an open");
    HostFolder::from_fd(file.into(), "x".into()).expect_err("no folder");
    folder
        .open(Role::Image, Path::new("a\0b"), WRITE)
        .expect_err("no name");
}

#[test]
fn other_kinds_are_not_removed() {
    let (dir, folder) = folder();
    symlink("/dev/null", dir.path().join("device")).expect("a link");
    symlink("file", dir.path().join("link")).expect("a link");
    fs::create_dir(dir.path().join("folder")).expect("a folder");
    fs::write(dir.path().join("file"), "").expect("a file");
    for name in ["device", "folder"] {
        let error = folder.remove(Path::new(name)).expect_err(name);
        assert!(error.to_string().contains("no regular file"), "{name}: {error}");
        dir.path().join(name).symlink_metadata().expect(name);
    }
    for name in ["link", "file"] {
        folder.remove(Path::new(name)).expect(name);
        dir.path().join(name).symlink_metadata().expect_err(name);
    }
    let error = folder.remove(Path::new("link")).expect_err("no name");
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[test]
fn attributes_go_along() {
    let (dir, folder) = folder();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::write(&from, b"abc").expect("a file");
    fs::write(&to, b"").expect("a file");
    fs::set_permissions(&from, Permissions::from_mode(0o604)).expect("a mode");
    let source = File::open(&from).expect("an open");
    let kept = sys::set_xattr(source.as_fd(), c"user.test", b"value");
    let owned = fchown(&source, Some(12), Some(34));
    folder
        .copy_attributes(Path::new("from"), Path::new("to"))
        .expect("the attributes");
    let target = File::open(&to).expect("an open");
    let metadata = target.metadata().expect("metadata");
    assert_eq!(metadata.mode() & 0o7777, 0o604);
    match owned {
        Ok(()) => assert_eq!((metadata.uid(), metadata.gid()), (12, 34)),
        Err(error) => skipped(format_args!("the owner: {error}")),
    }
    match kept {
        Ok(()) => assert_eq!(
            sys::xattr(target.as_fd(), c"user.test").expect("the attribute"),
            b"value"
        ),
        Err(error) => skipped(format_args!("the attributes: {error}")),
    }
    assert_eq!(metadata.len(), 0, "not the content");
}

/// A list of rights that the new file has from its folder would let in whom the old file keeps out.
#[test]
fn inherited_rights_do_not_stay() {
    let (dir, folder) = folder();
    fs::write(dir.path().join("from"), b"").expect("a file");
    fs::set_permissions(dir.path().join("from"), Permissions::from_mode(0o640)).expect("a mode");
    // user::rw-, user:77:rw-, group::r--, mask::rw-, other::---, as the kernel keeps it.
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, rights, id) in [
        (1u16, 6u16, u32::MAX),
        (2, 6, 77),
        (4, 4, u32::MAX),
        (16, 6, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        list.extend(tag.to_le_bytes());
        list.extend(rights.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    if let Err(error) = sys::set_xattr(folder.as_fd(), c"system.posix_acl_default", &list) {
        skipped(error);
        return;
    }
    folder.create(Role::Descriptor, Path::new("to")).expect("a file");
    let to = File::open(dir.path().join("to")).expect("an open");
    sys::xattr(to.as_fd(), ACCESS_LIST).expect("the folder's list");
    folder
        .copy_attributes(Path::new("from"), Path::new("to"))
        .expect("the attributes");
    let left = sys::xattr(to.as_fd(), ACCESS_LIST).expect_err("no list");
    assert_eq!(left.raw_os_error(), Some(libc::ENODATA));
    assert_eq!(to.metadata().expect("metadata").mode() & 0o777, 0o640);
}

#[test]
fn a_writable_folder_says_so_and_is_not_touched() {
    let (dir, folder) = folder();
    let before = dir.path().metadata().expect("metadata");
    folder.check_writable().expect("writable");
    let after = dir.path().metadata().expect("metadata");
    assert_eq!(
        (before.ctime(), before.ctime_nsec()),
        (after.ctime(), after.ctime_nsec())
    );
}

/// The one above it is found from the folder itself, whatever its path was.
#[test]
fn the_name_of_a_folder_is_synced() {
    let (dir, folder) = folder();
    folder.sync_name().expect("a sync");
    fs::create_dir(dir.path().join("sub")).expect("a folder");
    symlink("sub", dir.path().join("link")).expect("a link");
    let linked = HostFolder::open(&dir.path().join("link")).expect("an open");
    linked.sync_name().expect("a sync");
}

#[test]
fn a_folder_that_can_only_be_searched_cannot_be_synced() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let flags = O_PATH | O_DIRECTORY;
    let name = terminated(dir.path()).expect("a name");
    let fd = sys::open_at(sys::working_folder(), &name, flags, 0).expect("an open");
    let folder = HostFolder::from_fd(fd, dir.path().to_owned()).expect("a folder");
    fs::write(dir.path().join("file"), b"abc").expect("a file");
    folder
        .open(Role::Image, Path::new("file"), WRITE)
        .expect("its files open");
    for outcome in [folder.check_writable(), folder.sync()] {
        let error = outcome.expect_err("no sync");
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert!(error.to_string().contains("searched"), "{error}");
    }
}
