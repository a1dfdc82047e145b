//! Backups of a disk in a folder, and the way back.
//!
//! A full backup is a raw image with a descriptor; an incremental one is a QBM overlay whose allocation bitmap is what
//! was dirty and whose backing is the backup before it. The record of a backup stands in its descriptor, under the key
//! `backup`, so that one rename makes it visible, whole.
//!
//! May call `disk`, `bitmap`, `descriptor`, `format` (to restore as a qcow2), `state` (for its locks) and `storage`. Invariant: at every moment, crashes
//! included, each backup that the folder shows reads as the disk did at its point in time.

mod bits;
mod content;
mod copy;
mod digest;
mod folder;
mod keep;
mod lock;
mod pace;
mod plan;
mod point;
mod prune;
mod restore;
mod run;
mod sweep;
#[cfg(test)]
mod tests;
mod verify;

pub use folder::BackupFolder;
pub use keep::Keep;
pub use point::{BackupKind, BackupPoint};
pub use prune::{MergedPoint, Pruned};
pub use restore::{Restore, RestoreFormat, Restored};
pub use run::{Backup, Finished};
pub use verify::Verified;
