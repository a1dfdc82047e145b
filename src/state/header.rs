//! The header of the state file: what it says, and its bytes in a slot.
//!
//! Calls nothing. Invariant: bytes that decode are bytes that were written as a whole: a slot torn at 512-byte pieces, and
//! one that is damaged, never pass for a header. The header proper is one piece, which a crash keeps or loses whole; the
//! pieces with marks behind it carry its generation, so that pieces of two generations do not pass for one slot.

use super::evidence::Evidence;
use super::map::PIECE;
use super::region::RegionSize;
use super::shadow::ShadowId;
use super::stamp::Stamp;
use super::tenure::Tenure;
use crate::bitmap::BitmapPolicy;
use crate::error::{Error, ErrorCode, Result};

const MAGIC: [u8; 8] = *b"QBMSTATE";
const VERSION: u32 = 1;
/// Pieces of a slot: the header proper, and what marks may need.
const SLOT_PIECES: usize = 8;
/// A slot, in bytes.
pub(super) const SLOT: usize = SLOT_PIECES * PIECE;
/// What begins every piece: magic, checksum, version, generation, numbers of piece and slot.
const HEAD: usize = 32;
const MARKS_PER_PIECE: usize = (PIECE - HEAD) / 8;
/// The most bitmaps that can be marked at a time.
pub(crate) const MAX_MARKS: usize = (SLOT_PIECES - 1) * MARKS_PER_PIECE;

/// More updates than there can be, so that one more always fits.
const MAX_GENERATION: u64 = 1 << 62;

/// Where the number of the tenure is, behind the evidence.
const TENURE: usize = PIECE - 16;
/// Where the id of the shadow is.
const SHADOW: usize = PIECE - 8;

const CLEAN: u32 = 1;
const LAZY: u32 = 2;
const FAILURE: u32 = 4;
const UNTOUCHED: u32 = 8;

/// A bitmap at one starting point, by a hash of its name and epoch.
///
/// FNV-1a over the name, a zero byte and the epoch (nothing where there is none). A clash marks one bitmap too many. A
/// bitmap that was removed, and one that was repaired, has another epoch or none, so that its old mark means nothing
/// from the moment on that the descriptor is replaced (M1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MarkId(u64);

impl MarkId {
    pub(crate) fn of(name: &str, epoch: Option<&str>) -> Self {
        Self::hash(name.bytes().chain([0]).chain(epoch.unwrap_or_default().bytes()))
    }

    /// The note that recovery has widened it since that starting point: with a zero byte and `widened` behind the epoch.
    pub(crate) fn widened(name: &str, epoch: &str) -> Self {
        let bytes = name.bytes().chain([0]).chain(epoch.bytes());
        Self::hash(bytes.chain(*b"\0widened"))
    }

    fn hash(bytes: impl Iterator<Item = u8>) -> Self {
        Self(bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        }))
    }
}

/// The bitmaps that are inconsistent, and notes of those that recovery has widened.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Marks(Vec<MarkId>);

impl Marks {
    pub(crate) fn contains(&self, id: MarkId) -> bool {
        self.0.binary_search(&id).is_ok()
    }

    /// Marks a bitmap; fails where the header has no room for another mark.
    pub(crate) fn insert(&mut self, id: MarkId) -> Result<()> {
        let Err(place) = self.0.binary_search(&id) else {
            return Ok(());
        };
        if self.0.len() == MAX_MARKS {
            return Err(Error::new(
                ErrorCode::NotSupported,
                format!(
                    "{MAX_MARKS} bitmaps are inconsistent, and the state file has room for no more; remove some"
                ),
            ));
        }
        self.0.insert(place, id);
        Ok(())
    }

    /// Notes that a bitmap was widened, where there is room. It only explains, so nothing fails for the lack of it.
    pub(crate) fn note(&mut self, id: MarkId) {
        let _ = self.insert(id);
    }

    /// Drops the marks of all bitmaps but those that `known` says exist.
    pub(crate) fn retain(&mut self, known: impl Fn(MarkId) -> bool) {
        self.0.retain(|id| known(*id));
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What the state file says beside the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Whether the disk was closed cleanly: the bitmap files are exact, and the map means nothing.
    pub clean: bool,
    /// The policy in force since the last begin: under the lazy one the files are behind the bits.
    pub policy: BitmapPolicy,
    /// Whether a bitmap file failed to take bits: the files are not exact, whatever the evidence says.
    pub failure_noted: bool,
    /// Whether the disk is unclean by one who leaves the image alone, so that the stamp counts though it is unclean.
    pub untouched: bool,
    pub region: RegionSize,
    /// Of the image at the last clean close, or as one found it who leaves it alone; `None` is "not known".
    pub stamp: Option<Stamp>,
    /// Of the time when the disk was marked unclean; `None` is none.
    pub evidence: Option<Evidence>,
    /// The shadow of the allocation bits that belongs to that time; `None` is none.
    pub shadow: Option<ShadowId>,
    /// The last one in which the content was changed; `None` is "not known".
    pub tenure: Option<Tenure>,
    pub marks: Marks,
}

/// What is in a slot.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// Nothing was ever written to it.
    Empty,
    /// A crash tore what was being written; what the other slot holds counts.
    Torn,
    Valid {
        generation: u64,
        header: Box<Header>,
    },
    /// No crash leaves this, so nothing can be relied on; why, in words.
    Damaged(String),
}

impl Header {
    /// A new state file's: clean, and nothing known.
    pub(crate) fn new(region: RegionSize) -> Self {
        Self {
            clean: true,
            policy: BitmapPolicy::WriteThrough,
            failure_noted: false,
            untouched: false,
            region,
            stamp: None,
            evidence: None,
            shadow: None,
            tenure: None,
            marks: Marks::default(),
        }
    }

    /// The bytes of the slot that belongs to `generation`, as many pieces as it takes.
    pub(super) fn encode(&self, generation: u64) -> Vec<u8> {
        let marks = &self.marks.0;
        let pieces = 1 + marks.len().div_ceil(MARKS_PER_PIECE);
        let mut bytes = vec![0; pieces * PIECE];
        let flag = |is: bool, bit| if is { bit } else { 0 };
        let flags = flag(self.clean, CLEAN)
            | flag(self.policy == BitmapPolicy::Lazy, LAZY)
            | flag(self.failure_noted, FAILURE)
            | flag(self.untouched, UNTOUCHED);
        put(&mut bytes, 32, &flags.to_le_bytes());
        put(&mut bytes, 36, &number(marks.len()).to_le_bytes());
        put(&mut bytes, 40, &self.region.bytes().to_le_bytes());
        Stamp::encode(self.stamp.as_ref(), &mut bytes[48..72]);
        Evidence::encode(self.evidence.as_ref(), &mut bytes[72..TENURE]);
        put(&mut bytes, TENURE, &Tenure::encode(self.tenure));
        put(&mut bytes, SHADOW, &ShadowId::encode(self.shadow));
        for (piece, marks) in bytes[PIECE..]
            .chunks_exact_mut(PIECE)
            .zip(marks.chunks(MARKS_PER_PIECE))
        {
            for (at, mark) in piece[HEAD..].chunks_exact_mut(8).zip(marks) {
                at.copy_from_slice(&mark.0.to_le_bytes());
            }
        }
        for (index, piece) in bytes.chunks_exact_mut(PIECE).enumerate() {
            seal(piece, generation, index);
        }
        bytes
    }

    /// What is in slot number `slot` (0 or 1), from its [`SLOT`] bytes.
    pub(super) fn decode(bytes: &[u8], slot: u64) -> Slot {
        match Self::try_decode(bytes, slot) {
            Ok(slot) => slot,
            Err(why) => Slot::Damaged(why),
        }
    }

    fn try_decode(bytes: &[u8], slot: u64) -> Result<Slot, String> {
        let Some((first, rest)) = bytes.split_at_checked(PIECE) else {
            return Err("it is too short".to_owned());
        };
        let generation = match unseal(first, 0)? {
            None => return Ok(Slot::Empty),
            Some(generation) if generation % 2 == slot => generation,
            Some(generation) => return Err(format!("its generation {generation} belongs to the other slot")),
        };
        let flags = u32::from_le_bytes(get(first, 32));
        if flags & !(CLEAN | LAZY | FAILURE | UNTOUCHED) != 0 {
            return Err(format!("its flags {flags:#x} are not known"));
        }
        let count = usize::try_from(u32::from_le_bytes(get(first, 36))).unwrap_or(usize::MAX);
        if count > MAX_MARKS {
            return Err(format!("it has {count} marks, more than fit"));
        }
        let region = u64::from_le_bytes(get(first, 40));
        let region =
            RegionSize::new(region).ok_or_else(|| format!("its region size {region} is not possible"))?;
        let stamp = Stamp::decode(&first[48..72])?;
        let evidence = Evidence::decode(&first[72..TENURE])?;
        let tenure = Tenure::decode(get(first, TENURE));
        let shadow = ShadowId::decode(get(first, SHADOW));

        let mut marks = Vec::with_capacity(count);
        for index in 0..count.div_ceil(MARKS_PER_PIECE) {
            let Some(piece) = rest.get(index * PIECE..(index + 1) * PIECE) else {
                return Err("it is too short".to_owned());
            };
            // The header proper is of another write than the marks, which is what a crash leaves of a torn one.
            if unseal(piece, index + 1)? != Some(generation) {
                return Ok(Slot::Torn);
            }
            let here = (count - marks.len()).min(MARKS_PER_PIECE);
            let words = piece[HEAD..].chunks_exact(8).take(here);
            marks.extend(words.map(|at| MarkId(u64::from_le_bytes(std::array::from_fn(|i| at[i])))));
        }
        if !marks.is_sorted_by(|a, b| a < b) {
            return Err("its marks are not in order".to_owned());
        }
        let header = Self {
            clean: flags & CLEAN != 0,
            policy: if flags & LAZY == 0 {
                BitmapPolicy::WriteThrough
            } else {
                BitmapPolicy::Lazy
            },
            failure_noted: flags & FAILURE != 0,
            untouched: flags & UNTOUCHED != 0,
            region,
            stamp,
            evidence,
            shadow,
            tenure,
            marks: Marks(marks),
        };
        Ok(Slot::Valid {
            generation,
            header: Box::new(header),
        })
    }
}

/// Puts the head on a piece, the checksum last.
fn seal(piece: &mut [u8], generation: u64, index: usize) {
    put(piece, 0, &MAGIC);
    put(piece, 12, &VERSION.to_le_bytes());
    put(piece, 16, &generation.to_le_bytes());
    put(piece, 24, &number(index).to_le_bytes());
    let sum = checksum(piece);
    put(piece, 8, &sum);
}

/// Of a piece without its checksum.
fn checksum(piece: &[u8]) -> [u8; 4] {
    crc32c::crc32c_append(crc32c::crc32c(&piece[..8]), &piece[12..]).to_le_bytes()
}

/// The generation of a piece; `None` where it is all zeros.
fn unseal(piece: &[u8], index: usize) -> Result<Option<u64>, String> {
    if piece.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    if get(piece, 0) != MAGIC {
        return Err("it does not begin with QBMSTATE".to_owned());
    }
    if get(piece, 8) != checksum(piece) {
        return Err(format!("the checksum of piece {index} is wrong"));
    }
    match u32::from_le_bytes(get(piece, 12)) {
        VERSION => {}
        version => {
            return Err(format!(
                "it has version {version}, and this library knows {VERSION}"
            ));
        }
    }
    let named = u32::from_le_bytes(get(piece, 24));
    if named != number(index) {
        return Err(format!("piece {index} says that it is piece {named}"));
    }
    match u64::from_le_bytes(get(piece, 16)) {
        generation if generation <= MAX_GENERATION => Ok(Some(generation)),
        generation => Err(format!("its generation {generation} is not possible")),
    }
}

/// The highest generation of any piece in a slot, also of one that no header counts on.
pub(super) fn highest_generation(slot: &[u8]) -> u64 {
    let pieces = slot.chunks_exact(PIECE).enumerate();
    let generations = pieces.filter_map(|(index, piece)| unseal(piece, index).ok().flatten());
    generations.max().unwrap_or(0)
}

#[allow(clippy::cast_possible_truncation, reason = "at most MAX_MARKS")]
const fn number(count: usize) -> u32 {
    count as u32
}

/// The `N` bytes at a place of the header; places are constants of this layer, within the bytes.
pub(super) fn get<const N: usize>(fields: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|i| fields[at + i])
}

pub(super) fn put(fields: &mut [u8], at: usize, value: &[u8]) {
    fields[at..at + value.len()].copy_from_slice(value);
}

/// Makes any bytes pass for a sealed slot, so that a fuzzer gets past the checksums.
#[cfg(any(test, fuzzing))]
pub(super) fn reseal(bytes: &mut [u8], slot: u64) {
    let generation = ((u64::from_le_bytes(get(bytes, 16)) % MAX_GENERATION) & !1) | slot;
    bytes[33..36].fill(0);
    bytes[32] &= 15;
    bytes[38..40].fill(0);
    bytes[37] &= 1;
    let region = 1_u64 << (bytes[40] % 64);
    put(bytes, 40, &region.to_le_bytes());
    for at in [48, 72] {
        bytes[at] &= 3;
        bytes[at + 1..at + 4].fill(0);
    }
    bytes[77..80].fill(0);
    for (index, piece) in bytes.chunks_exact_mut(PIECE).enumerate() {
        seal(piece, generation, index);
    }
}

#[cfg(test)]
mod tests;
