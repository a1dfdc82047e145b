//! Where bytes live: a regular file, a block device, or, in tests, a simulated disk that loses power.
//!
//! Two traits, just wide enough for a stand-in: [`Storage`] is one open file, [`Folder`] the place where the files of
//! a disk have their names. Knows nothing of descriptors, bitmaps or disks. Invariant: a transfer is whole or an
//! error, and every change that a caller must order is its own call here, so that a stand-in sees the order.

mod buffers;
mod file;
#[cfg(test)]
pub(crate) mod hooked;
mod host_folder;
mod new_file;
mod offload;
mod shortcut;
#[cfg(feature = "simulated")]
pub mod simulated;
mod sys;
mod version;

use std::ffi::OsString;
use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

pub use buffers::{Gather, Scatter, read_slice, write_slice};
pub use file::FileStorage;
pub use host_folder::HostFolder;
pub(crate) use new_file::NewFile;
pub(crate) use offload::{Writeback, copy_range, start_writeback};
pub(crate) use shortcut::Shortcut;
pub(crate) use version::VersionHash;

use crate::units::ByteRange;

/// One open file. Any offset and length works; alignment is the storage's work.
pub trait Storage: Send + Sync + Debug {
    /// Fills `into` from `offset` on. Past the end of the file is [`io::ErrorKind::UnexpectedEof`].
    fn read(&self, into: Scatter<'_>, offset: u64) -> io::Result<()>;

    /// Writes all of `from` at `offset`; a regular file grows where it must.
    fn write(&self, from: Gather<'_>, offset: u64) -> io::Result<()>;

    /// Makes `range` read as zeros. What lies beyond the file's length is left out: no file grows by this.
    ///
    /// Fails with `EOPNOTSUPP` where only writing zeros would do it and `how` forbids that.
    fn write_zeroes(&self, range: ByteRange, how: Zeroing) -> io::Result<()>;

    /// Gives the space of `range` back; it reads as zeros afterwards, up to the file's length, which stays.
    ///
    /// Where the space, or some of it, cannot be given back, zeros are written.
    fn discard(&self, range: ByteRange) -> io::Result<()>;

    /// Lets `range` have its blocks in common with the same range of `source`, without a copy; what is written to either
    /// later is seen in that one alone.
    ///
    /// Fails where the file system cannot, or the range is not of whole blocks; then nothing has changed.
    fn share(&self, _source: &dyn Storage, _range: ByteRange) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Makes what was written, and the length, durable. With [`SyncMode::All`] the times, mode and owner too.
    fn sync(&self, mode: SyncMode) -> io::Result<()>;

    /// The same file once more, for syncs that run while this one's do: of bytes that could not be written, each of the two is
    /// told, but for what the other was told before this call. Not of what a device has lost that could not flush its own cache:
    /// that is told to one sync alone.
    ///
    /// `None` where that cannot be, or nothing vouches for it.
    fn sync_apart(&self) -> Option<Arc<dyn Storage>> {
        None
    }

    /// The length in bytes; of a block device, its size.
    fn length(&self) -> io::Result<u64>;

    /// Cuts or grows a regular file; new bytes read as zeros.
    fn set_length(&self, length: u64) -> io::Result<()>;

    /// Reserves space for `range`, and grows a regular file to its end; what is there stays as it is.
    ///
    /// Fails with `EOPNOTSUPP` where the file system cannot, and on a block device.
    fn allocate(&self, range: ByteRange) -> io::Result<()>;

    /// Whether the bytes at `range`'s start are data or a hole, and how far that goes within `range`.
    ///
    /// A storage that cannot tell says data. Beyond the file's length there is a hole. Only a hint where others write
    /// or cut the file meanwhile.
    fn extent(&self, range: ByteRange) -> io::Result<Extent>;

    /// What the file takes on the host, in bytes; a block device takes its whole size.
    fn allocated_bytes(&self) -> io::Result<u64>;

    /// What the storage can do, and what it likes.
    fn limits(&self) -> Limits;

    /// Which file this is, whatever its name; `None` where nothing tells.
    fn identity(&self) -> Option<FileIdentity>;

    /// What tells whether anybody has changed the content since, of a storage that is more than one file; `None` of any other,
    /// whose own time of change does.
    fn version(&self) -> io::Result<Option<Version>> {
        Ok(None)
    }

    /// The host's open file behind this, for locks and for questions about its file system; `None` where there is
    /// none. Bytes never go through it: they would pass by what the storage promises.
    fn host_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// The same file where its bytes are the storage's at the same offsets, so that blocks of it may be shared.
    fn blocks(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// The same file where [`Storage::read`] and [`Storage::write`] do no more than move the bytes by a positional
    /// system call: whoever makes that call himself and sees it move all of them is done.
    fn plain_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Where the files of a disk have their names. Relative names are relative to the descriptor's folder.
pub trait Folder: Send + Sync + Debug {
    /// Opens a file that exists.
    fn open(&self, role: Role, name: &Path, access: Access) -> io::Result<Arc<dyn Storage>>;

    /// Makes an empty file that must not exist yet, open for reading and writing.
    fn create(&self, role: Role, name: &Path) -> io::Result<Arc<dyn Storage>>;

    /// The same, of a file that only its owner may open. For one that is to get the attributes of another file: before it
    /// has them, nobody opens it whom they keep out.
    fn create_private(&self, role: Role, name: &Path) -> io::Result<Arc<dyn Storage>> {
        self.create(role, name)
    }

    /// Gives the file `to` the mode, owner and extended attributes of `from`, as far as this process may.
    fn copy_attributes(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives the file `from` the name `to`, atomically, in place of a file that has that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Takes the name of a regular file away. One that leads to anything else, as to a block device, stays, and is an error.
    fn remove(&self, name: &Path) -> io::Result<()>;

    /// The names in the folder, in no order. Fails with [`io::ErrorKind::Unsupported`] where nothing can list them.
    fn names(&self) -> io::Result<Vec<OsString>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Makes the names in the folder durable: what was created, renamed and removed.
    fn sync(&self) -> io::Result<()>;

    /// Makes the name of the folder itself durable, in the one above it. Fails with [`io::ErrorKind::Unsupported`] where
    /// nothing can.
    fn sync_name(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Fails with `EROFS` where names cannot be changed or made durable here, and says why; changes nothing.
    fn check_writable(&self) -> io::Result<()>;
}

/// What a file is to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
#[non_exhaustive]
pub enum Role {
    /// The JSON descriptor.
    Descriptor = 1,
    /// The folder that the descriptor lies in.
    Folder = 2,
    /// The data image.
    Image = 3,
    /// A bitmap's file.
    Bitmap = 4,
    /// The state file.
    State = 5,
    /// A backing image, or a part of one.
    Backing = 6,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Access {
    /// For writing too, not only for reading.
    pub write: bool,
    /// Around the page cache (`O_DIRECT`).
    pub direct: bool,
}

/// What tells of changes to a storage that is more than one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The number that its last user has given it, or is about to give it.
    Tenure {
        /// The same number: nobody else has changed anything.
        now: u64,
        /// What, with that number, makes the next one; 0 where none is about to come.
        next: u32,
    },
    /// A hash of the names and times of its files. It changes with each write.
    Files(u64),
}

/// What [`Storage::write_zeroes`] may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Zeroing {
    /// The space may be given back.
    pub may_unmap: bool,
    /// Fail rather than write zeros byte by byte.
    pub no_fallback: bool,
}

/// What [`Storage::sync`] makes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// Content and length (`fdatasync`).
    Data,
    /// Content, length, times, mode and owner (`fsync`).
    All,
}

/// A run of bytes of one kind, as [`Storage::extent`] finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Data, or a hole, which reads as zeros.
    pub data: bool,
    /// How many bytes; at least one where the range had any.
    pub len: u64,
}

/// What a storage can do, and what it likes. Bytes throughout; zero is "unknown" or "no limit".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Buffers at multiples of this are used as they are; others are copied. At least 1.
    pub memory_alignment: u32,
    /// Offsets and lengths at multiples of this are used as they are. At least 1.
    pub request_alignment: u32,
    /// The smallest unit that the device addresses.
    pub logical_block: u32,
    /// The smallest unit that the device writes without reading first.
    pub physical_block: u32,
    /// The transfer size that the device likes best.
    pub optimal_transfer: u32,
    /// Discards at multiples of this give space back.
    pub discard_alignment: u32,
    /// The longest discard in one call.
    pub max_discard: u64,
    /// The longest write of zeros in one call.
    pub max_write_zeroes: u64,
    /// Whether this is a block device; it cannot be resized.
    pub block_device: bool,
}

impl Default for Limits {
    /// Nothing known, nothing asked for.
    fn default() -> Self {
        Self {
            memory_alignment: 1,
            request_alignment: 1,
            logical_block: 0,
            physical_block: 0,
            optimal_transfer: 0,
            discard_alignment: 0,
            max_discard: 0,
            max_write_zeroes: 0,
            block_device: false,
        }
    }
}

/// Device and inode: two names of one file have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// The device that the file lies on; of a block device, the device itself.
    pub device: u64,
    /// The inode; zero for a block device.
    pub inode: u64,
}
