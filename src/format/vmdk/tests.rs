//! What extents take in memory, and what of it.

#![allow(clippy::unwrap_used, reason = "in a test, a failure may panic")]

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;

use super::*;
use crate::storage::{Access, Folder, HostFolder, Role};

/// A file of a few KiB on disk, which says that it is a sparse extent with a directory of so many bytes, all zeros.
fn extent(folder: &Path, name: &str, directory: u64) {
    let mut header = [0; 512];
    header[..4].copy_from_slice(sparse::MAGIC);
    let mut put = |at: usize, value: u64, len: usize| {
        header[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
    };
    put(4, 1, 4);
    // One grain of one sector in each table.
    put(12, directory / 4, 8);
    put(20, 1, 8);
    put(44, 1, 4);
    put(56, 1, 8);
    let mut file = File::create(folder.join(name)).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(SECTOR + directory).unwrap();
}

fn open(folder: &HostFolder, name: &str) -> (Arc<dyn Storage>, PathBuf) {
    let file = folder.open(Role::Image, Path::new(name), Access::default());
    (file.unwrap(), name.into())
}

/// The image of a descriptor of these extents.
fn opened(directories: &[u64]) -> Result<VmdkImage> {
    let dir = tempfile::tempdir().unwrap();
    let mut text = "# Disk DescriptorFile\nversion=1\n".to_owned();
    for (index, directory) in directories.iter().enumerate() {
        extent(dir.path(), &format!("{index}.vmdk"), *directory);
        writeln!(text, "RW {} SPARSE \"{index}.vmdk\"", directory / 4).unwrap();
    }
    std::fs::write(dir.path().join("all.vmdk"), text).unwrap();
    let folder = HostFolder::open(dir.path()).unwrap();
    let (file, path) = open(&folder, "all.vmdk");
    let image = Unopened::read(file, &path)?;
    let files = image.files().map(|name| open(&folder, name)).collect();
    image.open(files)
}

#[test]
fn directories_have_one_limit_together() {
    let image = opened(&[16 << 20, 4, 3 << 20]).unwrap();
    assert_eq!(image.length().unwrap(), ((19 << 20) / 4 + 1) * SECTOR);
    let mut last = [1; 512];
    crate::storage::read_slice(&image, &mut last, image.length().unwrap() - SECTOR).unwrap();
    assert_eq!(last, [0; 512]);

    let words = |bytes: u64| {
        format!(
            "its directory of {bytes} bytes, with those of the extents before it, is longer than the limit of 134217728 bytes \
             for an image"
        )
    };
    for (directories, name, bytes) in [
        (&[MAX_DIRECTORIES + 4][..], "0.vmdk", MAX_DIRECTORIES + 4),
        (&[MAX_DIRECTORIES - 4, 4, 4], "2.vmdk", 4),
    ] {
        let error = opened(directories).err().unwrap();
        assert_eq!(error.code(), ErrorCode::NotSupported);
        assert_eq!(error.message(), format!("{name}: {}", words(bytes)));
    }
}
