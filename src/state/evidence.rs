//! Evidence that the page cache cannot have been lost since the files were last written to.
//!
//! May call `storage`. Invariant (D1): two pieces of evidence agree only where the kernel that held the unsynced bytes
//! still runs and the file systems never stopped being mounted; whatever cannot be found out is no evidence.
//!
//! What tells one mount of a file system from the next, and is the same in every mount namespace:
//!
//! - ext4, xfs, btrfs: the inode number of the file system's folder under `/sys/fs`. The kernel makes the folder with
//!   the superblock and removes it with it, and gives numbers of 64 bits that do not come twice between two boots. All
//!   sysfs mounts show the same one. (A mount id is reused, and the unique mount id differs between namespaces.)
//! - tmpfs: the id that `statfs` gives, which is drawn at random for each superblock.
//! - A block device, which has a page cache of its own: the inode number of the device's folder in sysfs, which comes
//!   and goes with the device, and its sequence number, which is another one when it gets another medium: a loop device
//!   stays when its file is detached. (Kernels before 5.15 have none.)
//!
//! Any other file system has none: NFS and FUSE servers can lose their cache under a living mount.

use std::fmt::Write as _;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::header::{get, put};
use super::sys;
use crate::error::{Error, ErrorCode, Result};
use crate::storage::Storage;

const EXT4: u32 = 0xef53;
const XFS: u32 = 0x5846_5342;
const BTRFS: u32 = 0x9123_683e;
const TMPFS: u32 = 0x0102_1994;
const SYSFS: u32 = 0x6265_6572;
const PROC: u32 = 0x9fa0;

/// The most file systems (of btrfs, subvolumes) that the header has room for.
const MAX_WITNESSES: usize = 15;
/// The longest epoch that the header has room for.
const MAX_EPOCH: usize = 256;

/// One mounted file system; of btrfs, a subvolume of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Witness {
    magic: u32,
    /// What tells this mount from the next; see the head of the module.
    superblock: u64,
    /// The id that `statfs` gives: it tells a subvolume from its snapshot. Of a block device the sequence number.
    id: u64,
}

/// Which file the state file is. A copy that was taken while the disk was in use (a reflink, a snapshot) is torn as after
/// a power cut, and must not count as the original.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Original {
    inode: u64,
    born: (i64, u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    PageCache {
        boot: [u8; 16],
        original: Original,
        /// Sorted, none twice; at least the state file's.
        witnesses: Vec<Witness>,
    },
    Epoch(String),
}

/// What the kernel, or a supervisor, says about the life of the page cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Evidence(Kind);

/// Why there is no evidence, in words. Not an error: recovery is then as after a power cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NoEvidence(String);

#[cfg(any(test, fuzzing))]
impl NoEvidence {
    pub(super) fn because(why: &str) -> Self {
        Self(why.to_owned())
    }
}

impl std::fmt::Display for NoEvidence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where the kernel tells.
#[derive(Clone, Debug)]
struct Sources {
    boot_id: PathBuf,
    sys: PathBuf,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            boot_id: "/proc/sys/kernel/random/boot_id".into(),
            sys: "/sys".into(),
        }
    }
}

impl Evidence {
    /// What the kernel says now of the file systems that the state file and the others lie on.
    pub(crate) fn gather<'s>(
        state: &dyn Storage,
        others: impl IntoIterator<Item = &'s dyn Storage>,
    ) -> Result<Self, NoEvidence> {
        Self::gather_from(&Sources::default(), state, others)
    }

    /// A supervisor's word instead: it passes the same string for as long as no cache was lost, whatever the file system.
    pub(crate) fn of_epoch(epoch: &str) -> Result<Self> {
        if epoch.is_empty() || epoch.len() > MAX_EPOCH {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                format!(
                    "the cache epoch has {} bytes; it must have 1 to {MAX_EPOCH}",
                    epoch.len()
                ),
            ));
        }
        Ok(Self(Kind::Epoch(epoch.to_owned())))
    }

    fn gather_from<'s>(
        sources: &Sources,
        state: &dyn Storage,
        others: impl IntoIterator<Item = &'s dyn Storage>,
    ) -> Result<Self, NoEvidence> {
        let boot = boot_id(&sources.boot_id)?;
        let (mut witnesses, original) = {
            let fd = host_file(state)?;
            (vec![witness(sources, fd)?], original(fd)?)
        };
        for other in others {
            let witness = witness(sources, host_file(other)?)?;
            if !witnesses.contains(&witness) {
                witnesses.push(witness);
            }
        }
        if witnesses.len() > MAX_WITNESSES {
            return Err(NoEvidence(format!(
                "the files lie on {} file systems, and the state file has room for {MAX_WITNESSES}",
                witnesses.len()
            )));
        }
        witnesses.sort_unstable();
        Ok(Self(Kind::PageCache {
            boot,
            original,
            witnesses,
        }))
    }

    /// What tells that the page cache may have been lost between this kept evidence and `now`, in words; `None` where it
    /// cannot have been.
    pub(crate) fn difference(&self, now: &Self) -> Option<String> {
        let why = match (&self.0, &now.0) {
            (Kind::Epoch(then), Kind::Epoch(now)) if then == now => return None,
            (Kind::Epoch(then), Kind::Epoch(now)) => {
                return Some(format!("the cache epoch was {then:?} and is {now:?}"));
            }
            (Kind::Epoch(_), Kind::PageCache { .. }) => {
                "its last user gave a cache epoch, and this one gives none"
            }
            (Kind::PageCache { .. }, Kind::Epoch(_)) => {
                "its last user gave no cache epoch, and this one gives one"
            }
            (
                Kind::PageCache {
                    boot: boot_then,
                    original: original_then,
                    witnesses: then,
                },
                Kind::PageCache {
                    boot,
                    original,
                    witnesses,
                },
            ) => {
                if boot != boot_then {
                    "the machine was started again"
                } else if original != original_then {
                    "the state file is a copy of the one that was used"
                } else if witnesses.iter().all(|witness| then.contains(witness)) {
                    return None;
                } else {
                    "a file system was mounted again, or the files were moved to another one"
                }
            }
        };
        Some(why.to_owned())
    }

    /// Into 424 bytes of zeros.
    pub(super) fn encode(evidence: Option<&Self>, fields: &mut [u8]) {
        match evidence.map(|it| &it.0) {
            None => {}
            Some(Kind::PageCache {
                boot,
                original,
                witnesses,
            }) => {
                put(fields, 0, &[1]);
                put(fields, 4, &small(witnesses.len()).to_le_bytes());
                put(fields, 8, boot);
                put(fields, 24, &original.inode.to_le_bytes());
                put(fields, 32, &original.born.0.to_le_bytes());
                put(fields, 40, &original.born.1.to_le_bytes());
                for (index, witness) in witnesses.iter().enumerate() {
                    let at = 48 + 24 * index;
                    put(fields, at, &witness.magic.to_le_bytes());
                    put(fields, at + 8, &witness.superblock.to_le_bytes());
                    put(fields, at + 16, &witness.id.to_le_bytes());
                }
            }
            Some(Kind::Epoch(epoch)) => {
                put(fields, 0, &[2]);
                put(fields, 4, &small(epoch.len()).to_le_bytes());
                put(fields, 8, epoch.as_bytes());
            }
        }
    }

    /// From the 424 bytes of [`encode`](Self::encode).
    pub(super) fn decode(fields: &[u8]) -> Result<Option<Self>, String> {
        let count = usize::try_from(u32::from_le_bytes(get(fields, 4))).unwrap_or(usize::MAX);
        match u32::from_le_bytes(get(fields, 0)) {
            0 => Ok(None),
            1 if (1..=MAX_WITNESSES).contains(&count) => Ok(Some(Self(Kind::PageCache {
                boot: get(fields, 8),
                original: Original {
                    inode: u64::from_le_bytes(get(fields, 24)),
                    born: (
                        i64::from_le_bytes(get(fields, 32)),
                        u32::from_le_bytes(get(fields, 40)),
                    ),
                },
                witnesses: (0..count)
                    .map(|index| 48 + 24 * index)
                    .map(|at| Witness {
                        magic: u32::from_le_bytes(get(fields, at)),
                        superblock: u64::from_le_bytes(get(fields, at + 8)),
                        id: u64::from_le_bytes(get(fields, at + 16)),
                    })
                    .collect(),
            }))),
            2 if (1..=MAX_EPOCH).contains(&count) => {
                let bytes = fields.get(8..8 + count).unwrap_or_default();
                let epoch = std::str::from_utf8(bytes).map_err(|_| "its cache epoch is not UTF-8")?;
                Ok(Some(Self(Kind::Epoch(epoch.to_owned()))))
            }
            1 | 2 => Err(format!("its evidence has the impossible count {count}")),
            kind => Err(format!("its evidence is of the unknown kind {kind}")),
        }
    }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "bounded by MAX_WITNESSES and MAX_EPOCH"
)]
const fn small(count: usize) -> u32 {
    count as u32
}

fn host_file(storage: &dyn Storage) -> Result<BorrowedFd<'_>, NoEvidence> {
    storage
        .host_file()
        .ok_or_else(|| NoEvidence("a file of the disk is no file of this host".to_owned()))
}

fn not_told(what: &Path, error: &io::Error) -> NoEvidence {
    NoEvidence(Error::io("read", what, error).message().to_owned())
}

/// A random UUID that the kernel draws at each boot. It must be procfs's own: a file that was mounted over it, as in some
/// containers, may say the same after the next boot.
fn boot_id(path: &Path) -> Result<[u8; 16], NoEvidence> {
    let text = io::read_to_string(opened_on(path, PROC)?).map_err(|e| not_told(path, &e))?;
    id_in(&text).ok_or_else(|| NoEvidence(format!("{} holds no boot id", path.display())))
}

fn id_in(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.trim_end().chars().filter(|it| *it != '-').collect();
    let id = u128::from_str_radix(&digits, 16).ok()?;
    (id != 0 && digits.len() == 32).then(|| id.to_be_bytes())
}

/// What must be one of the kernel's own file systems: something mounted over it tells something else.
fn opened_on(path: &Path, magic: u32) -> Result<std::fs::File, NoEvidence> {
    use std::os::fd::AsFd;
    let file = std::fs::File::open(path).map_err(|e| not_told(path, &e))?;
    let lies_on = sys::file_system(file.as_fd()).map_err(|e| not_told(path, &e))?;
    if lies_on.magic != magic {
        return Err(NoEvidence(format!("{} is not the kernel's own", path.display())));
    }
    Ok(file)
}

fn original(fd: BorrowedFd<'_>) -> Result<Original, NoEvidence> {
    let owned = fd.try_clone_to_owned().map(std::fs::File::from);
    let inode = owned.and_then(|file| file.metadata()).map(|it| it.ino());
    let inode = inode.map_err(|e| not_told(Path::new("the state file's inode"), &e))?;
    match sys::birth_time(fd) {
        // A file system that keeps no time of birth still tells files apart by their numbers while they exist.
        Ok(born) => Ok(Original {
            inode,
            born: born.unwrap_or_default(),
        }),
        Err(e) => Err(not_told(Path::new("the state file's time of birth"), &e)),
    }
}

fn witness(sources: &Sources, fd: BorrowedFd<'_>) -> Result<Witness, NoEvidence> {
    let metadata = fd.try_clone_to_owned().map(std::fs::File::from);
    let metadata = metadata.and_then(|file| file.metadata());
    let metadata = metadata.map_err(|e| not_told(Path::new("the kind of a file"), &e))?;
    if metadata.file_type().is_block_device() {
        let link = link_of_device(sources, metadata.rdev());
        return Ok(Witness {
            magic: SYSFS,
            superblock: folder(&link)?,
            id: sequence_of_device(&link),
        });
    }
    let found = sys::file_system(fd).map_err(|e| not_told(Path::new("the kind of the file system"), &e))?;
    let superblock = match found.magic {
        EXT4 => folder_of_device(sources, "ext4", fd)?,
        XFS => folder_of_device(sources, "xfs", fd)?,
        BTRFS => folder_of_btrfs(sources, fd)?,
        // Kernels before 5.13 give 0.
        TMPFS if found.id != 0 => 0,
        TMPFS => {
            return Err(NoEvidence(
                "this kernel does not tell one tmpfs from another".to_owned(),
            ));
        }
        magic => {
            return Err(NoEvidence(format!(
                "the file system is of a kind (magic number {magic:#x}) that does not tell whether it was mounted again"
            )));
        }
    };
    Ok(Witness {
        magic: found.magic,
        superblock,
        id: found.id,
    })
}

/// Of a file system on one block device: it is named like the device.
fn folder_of_device(sources: &Sources, kind: &str, fd: BorrowedFd<'_>) -> Result<u64, NoEvidence> {
    let device = fd
        .try_clone_to_owned()
        .and_then(|fd| std::fs::File::from(fd).metadata())
        .map(|metadata| metadata.dev())
        .map_err(|e| not_told(Path::new("the device of a file"), &e))?;
    let link = link_of_device(sources, device);
    let target = std::fs::read_link(&link).map_err(|e| not_told(&link, &e))?;
    let name = target
        .file_name()
        .ok_or_else(|| NoEvidence(format!("{} names no device", link.display())))?;
    folder(&sources.sys.join("fs").join(kind).join(name))
}

fn link_of_device(sources: &Sources, device: u64) -> PathBuf {
    let (major, minor) = (libc::major(device), libc::minor(device));
    sources.sys.join(format!("dev/block/{major}:{minor}"))
}

/// 0 where the kernel gives none.
fn sequence_of_device(link: &Path) -> u64 {
    // A partition's folder is in its device's.
    let files = [link.join("diskseq"), link.join("../diskseq")];
    let said = files.iter().find_map(|it| std::fs::read_to_string(it).ok());
    said.and_then(|it| it.trim().parse().ok()).unwrap_or(0)
}

fn folder_of_btrfs(sources: &Sources, fd: BorrowedFd<'_>) -> Result<u64, NoEvidence> {
    let uuid = sys::btrfs_uuid(fd).map_err(|e| not_told(Path::new("the UUID of a btrfs"), &e))?;
    let mut name = String::with_capacity(36);
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            name.push('-');
        }
        // Writing to a string cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    folder(&sources.sys.join("fs/btrfs").join(name))
}

/// The inode number of a folder of sysfs.
fn folder(path: &Path) -> Result<u64, NoEvidence> {
    opened_on(path, SYSFS)?
        .metadata()
        .map(|it| it.ino())
        .map_err(|e| not_told(path, &e))
}

#[cfg(test)]
pub(super) mod tests;
