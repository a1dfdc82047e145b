//! Which flag forbids what, in words. The rules are those of QEMU's dirty bitmaps.
//!
//! Invariant: every operation asks here before it changes anything.

use super::Bitmap;
use crate::error::{Error, ErrorCode, Result};

impl Bitmap {
    /// Fails where the bitmap is in a state in which it cannot be `done`: "cleared", "renamed".
    pub(super) fn check_free(&self, done: &str) -> Result<()> {
        self.check_thawed(done)?;
        self.check_consistent(done)
    }

    /// Fails where a backup uses the bitmap.
    pub(super) fn check_thawed(&self, done: &str) -> Result<()> {
        if self.frozen.is_none() {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::BitmapBusy,
            format!(
                "bitmap {:?} is frozen (a backup uses it): it cannot be {done} until it is thawed",
                self.name
            ),
        ))
    }

    /// Why nobody thaws it but the backup that it is frozen for: under that, bits would be lost which it has not copied (D1).
    pub(super) fn is_lent(&self) -> Error {
        Error::new(
            ErrorCode::BitmapBusy,
            format!(
                "bitmap {:?} is in use by a backup, whose end thaws it: end that",
                self.name
            ),
        )
    }

    /// Fails where the bits cannot be trusted.
    pub(super) fn check_consistent(&self, done: &str) -> Result<()> {
        if !self.is_inconsistent() {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::BitmapInconsistent,
            format!(
                "bitmap {:?} is inconsistent (changes may be missing in it): it cannot be {done}, only removed or \
                 repaired",
                self.name
            ),
        ))
    }

    /// Fails where the bitmap is in a file that must not be written to.
    pub(super) fn check_changeable(&self, writable: bool, done: &str) -> Result<()> {
        if writable || self.kept.is_none() {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::ReadOnly,
            format!(
                "bitmap {:?} is persistent and the disk is open read-only: it cannot be {done}",
                self.name
            ),
        ))
    }
}

/// What was asked for needs another state.
pub(super) fn wrong_state(bitmap: &Bitmap, words: &str) -> Error {
    Error::new(
        ErrorCode::BitmapState,
        format!("bitmap {:?} {words}", bitmap.name),
    )
}
