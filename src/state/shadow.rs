//! The shadow of an overlay's allocation bits: the granules that its image has, before a flush says so durably (A3).
//!
//! It lies in the state file behind the map, and nothing ever syncs it: its bits outlive the process (F1), and mean nothing
//! after a power cut (F2), when the granules that they stand for may be gone.
//!
//! May call `bitmap` and `storage`. Invariant (A1): a bit of the shadow is believed only where the image's page cache has
//! lived since the shadow was begun, by the user whom the header tells of; and it has no bit then but of granules that
//! are in the image as a whole and have never left it. Hence it is emptied before allocation bits go, and spoilt where a sync of
//! the image fails.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::evidence::{Evidence, NoEvidence};
use super::file::{Found, LENGTH, StateFile};
use super::header::{get, put};
use super::map::PIECE;
use crate::bitmap::{BitmapFile, Bits};
use crate::error::{Error, Result};
use crate::mutation::{self, Fault};
use crate::storage::{Storage, read_slice, write_slice};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard, PoisonError};
use crate::units::{Granularity, GranuleRange};

const MAGIC: [u8; 8] = *b"QBMSHADE";
const VERSION: u32 = 1;
/// Where its head is in the state file.
const HEAD: u64 = LENGTH as u64;
/// Where its bits are: the first behind the head's page.
const BITS: u64 = HEAD + 4096;
/// Where the evidence is in the head; it ends where that of a header does.
const EVIDENCE: usize = 72;

/// What ties a shadow to the header that was in force when it was begun. Random, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShadowId(u64);

impl ShadowId {
    fn new() -> Option<Self> {
        let mut id = [0; 8];
        getrandom::fill(&mut id).ok()?;
        Some(Self(u64::from_ne_bytes(id) | 1))
    }

    pub(super) fn encode(id: Option<Self>) -> [u8; 8] {
        id.map_or(0, |id| id.0).to_le_bytes()
    }

    pub(super) fn decode(bytes: [u8; 8]) -> Option<Self> {
        Some(u64::from_le_bytes(bytes)).filter(|id| *id != 0).map(Self)
    }
}

/// How far a shadow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    /// With the last user's, where that was believed and all that it held is in the bitmap.
    No(Option<ShadowId>),
    /// With what the header is to say of it; nothing where it could not be begun.
    As(Option<ShadowId>),
}

/// The shadow of a disk that is open for writing.
pub(crate) struct Shadow {
    state: Arc<StateFile>,
    bits: BitmapFile,
    granularity: Granularity,
    /// That the page caches of the state file and of the image have not been lost.
    evidence: Evidence,
    begun: Mutex<Begun>,
    /// Whether it takes bits.
    on: AtomicBool,
}

impl Shadow {
    /// Of allocation bits of `granularity`. It takes the place of the last user's where recovery has `adopted` that
    /// one. Nothing is written yet.
    pub(crate) fn new(
        state: Arc<StateFile>,
        granularity: Granularity,
        evidence: Evidence,
        adopted: Option<ShadowId>,
    ) -> Self {
        let bits = state.bits_behind(BITS);
        Self {
            state,
            bits,
            granularity,
            evidence,
            begun: Mutex::new(Begun::No(adopted)),
            on: AtomicBool::new(false),
        }
    }

    /// Begins it, without a bit; once until its end. What the last user's held must be in the bitmap. Returns what the
    /// header is to say of it: nothing where it could not be begun.
    pub(crate) fn begin(&self) -> Option<ShadowId> {
        let mut begun = self.begun();
        match *begun {
            Begun::As(id) => id,
            Begun::No(adopted) => {
                let id = self.start(adopted);
                self.on.store(id.is_some(), Ordering::Release);
                *begun = Begun::As(id);
                id
            }
        }
    }

    /// Writes its head. One that was `adopted` is in force until the header tells of this one: its head stays until it is
    /// overwritten, all at once, by one that says whose place it takes. Whoever is killed in between leaves a shadow without a
    /// bit. Had he left none, something might be missing (D2).
    fn start(&self, adopted: Option<ShadowId>) -> Option<ShadowId> {
        let id = ShadowId::new()?;
        let adopted = adopted.filter(|_| !mutation::on(Fault::ShadowCutFirst));
        cut(self.state.storage(), if adopted.is_some() { BITS } else { HEAD }).ok()?;
        let mut head = [0; PIECE];
        put(&mut head, 0, &MAGIC);
        put(&mut head, 12, &VERSION.to_le_bytes());
        put(&mut head, 16, &ShadowId::encode(Some(id)));
        put(&mut head, 24, &self.granularity.bytes().to_le_bytes());
        put(&mut head, 32, &ShadowId::encode(adopted));
        Evidence::encode(Some(&self.evidence), &mut head[EVIDENCE..PIECE - 8]);
        let sum = checksum(&head);
        put(&mut head, 8, &sum);
        write_slice(self.state.storage(), &head, HEAD).ok()?;
        Some(id)
    }

    /// Whether it takes bits, or will from its beginning on.
    pub(crate) fn serves(&self) -> bool {
        matches!(*self.begun(), Begun::No(_)) || self.on.load(Ordering::Acquire)
    }

    fn begun(&self) -> MutexGuard<'_, Begun> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the bits of `granules`, which are in the image, in the shadow and then in `bits`; false where the shadow did
    /// not take them all.
    ///
    /// In this order, as whoever finds a bit set answers for what he writes to its granule.
    pub(crate) fn record(&self, bits: &Bits, granules: GranuleRange) -> bool {
        if !self.on.load(Ordering::Acquire) {
            return false;
        }
        if mutation::on(Fault::BitBeforeShadow) {
            bits.set(granules);
        }
        self.bits.record(bits, None, granules).is_ok()
    }

    /// Takes all bits out, before allocation bits go. What they stand for must be durable, or stand elsewhere by then.
    pub(crate) fn empty(&self) -> Result<()> {
        if !self.on.load(Ordering::Acquire) || mutation::on(Fault::ShadowKept) {
            return Ok(());
        }
        cut(self.state.storage(), BITS).map_err(|e| Error::io("shorten", self.state.path(), &e))
    }

    /// Nobody is to believe it: the image may have lost what it stands for.
    pub(crate) fn spoil(&self) {
        self.on.store(false, Ordering::Release);
        if let Begun::No(adopted) = &mut *self.begun() {
            *adopted = None;
        }
        if !spoil(self.state.storage()) {
            // Where this fails too, so has every other way to tell anybody.
            let _ = self.state.update(|header| {
                header.shadow = None;
                Ok(())
            });
        }
    }

    /// Gives its space back, when the header says that nobody needs it. It may begin again, as another one.
    pub(crate) fn end(&self) {
        let mut begun = self.begun();
        *begun = Begun::No(None);
        if self.on.swap(false, Ordering::AcqRel) {
            // What stays is looked at by nobody, and cut at the next beginning.
            let _ = cut(self.state.storage(), HEAD);
        }
    }
}

impl std::fmt::Debug for Shadow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shadow")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Found {
    /// The bits that the last user left in the shadow and perhaps nowhere else, of `granules` granules: none where the disk was
    /// closed, or where `now` does not vouch for the image's page cache.
    pub(crate) fn shadow(
        &self,
        state: &Arc<dyn Storage>,
        path: &Path,
        now: &Result<Evidence, NoEvidence>,
        granularity: Granularity,
        granules: u64,
    ) -> Result<Option<Bits>> {
        let (false, Some(id)) = (self.header().clean, self.header().shadow) else {
            return Ok(None);
        };
        let failed = |action: &str, e: io::Error| Error::io(action, path, &e);
        // One without a bit ends behind its head, and vouches as any other: all was written to granules that the bitmap has.
        if state.length().map_err(|e| failed("measure", e))? < HEAD + PIECE as u64 {
            return Ok(None);
        }
        let mut head = [0; PIECE];
        read_slice(&**state, &mut head, HEAD).map_err(|e| failed("read", e))?;
        let intact = get(&head, 0) == MAGIC
            && get(&head, 8) == checksum(&head)
            && u32::from_le_bytes(get(&head, 12)) == VERSION;
        // The header may tell of the one before it still: it has no bit then.
        let numbers = [16, 32].map(|at| ShadowId::decode(get(&head, at)));
        let ours = numbers.contains(&Some(id)) && u64::from_le_bytes(get(&head, 24)) == granularity.bytes();
        if !intact || !ours {
            return Ok(None);
        }
        let then = Evidence::decode(&head[EVIDENCE..PIECE - 8]).unwrap_or_default();
        let believed = matches!((then, now), (Some(then), Ok(now)) if then.difference(now).is_none());
        if !believed && !mutation::on(Fault::ShadowWithoutEvidence) {
            return Ok(None);
        }
        let bits = BitmapFile::behind(Arc::clone(state), path.to_owned(), BITS);
        bits.load_what_is_there(granules).map(Some)
    }
}

/// Makes what is in a state file's shadow, if it has one, nothing that anybody believes; false where that cannot be done.
pub(crate) fn spoil(state: &dyn Storage) -> bool {
    if mutation::on(Fault::ShadowOutlivesFailure) {
        return true;
    }
    match state.length() {
        Ok(length) if length <= HEAD => true,
        // The page cache is enough: the shadow is nothing without it.
        _ => write_slice(state, &[0; PIECE], HEAD).is_ok() || state.set_length(HEAD).is_ok(),
    }
}

fn cut(state: &dyn Storage, length: u64) -> io::Result<()> {
    if state.length()? > length {
        state.set_length(length)?;
    }
    Ok(())
}

/// Of a head without its checksum.
fn checksum(head: &[u8; PIECE]) -> [u8; 4] {
    crc32c::crc32c_append(crc32c::crc32c(&head[..8]), &head[12..]).to_le_bytes()
}
