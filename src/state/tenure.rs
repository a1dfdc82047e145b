//! The number of a stay in which a disk's content was changed.
//!
//! Calls nothing. Invariant (D1): whoever changes the content of a disk, or drops what was acknowledged to an earlier user,
//! has first given the disk another number, durably. So a disk that is another one's image, and has the number that the
//! other has noted, was changed by nobody else.

use crate::error::{Error, ErrorCode, Result};

/// Random, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tenure(u64);

impl Tenure {
    /// A new one.
    pub(crate) fn new() -> Result<Self> {
        let mut number = [0; 8];
        getrandom::fill(&mut number)
            .map_err(|e| Error::new(ErrorCode::Io, format!("the system has no random bytes: {e}")))?;
        Ok(Self(u64::from_ne_bytes(number) | 1))
    }

    /// What makes the next one, for whoever is to note it before it comes.
    pub(crate) fn announced() -> Result<u32> {
        // Its upper half is never all that is random.
        Ok(u32::try_from(Self::new()?.0 >> 32).unwrap_or(1).max(1))
    }

    /// The one that `next` makes of `now`.
    pub(crate) fn following(now: u64, next: u32) -> Self {
        let bytes = now.to_le_bytes().into_iter().chain(next.to_le_bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self(hash | 1)
    }

    /// As a plain number.
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    pub(super) fn encode(tenure: Option<Self>) -> [u8; 8] {
        tenure.map_or(0, Self::number).to_le_bytes()
    }

    pub(super) fn decode(bytes: [u8; 8]) -> Option<Self> {
        Some(u64::from_le_bytes(bytes)).filter(|it| *it != 0).map(Self)
    }
}
