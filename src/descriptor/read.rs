//! From values to entries: every refusal that one descriptor alone can justify.
//!
//! What needs the files (their sizes, two names of one file, a chain's loops) is the engine's to refuse.

use super::entries::{BackingEntry, BitmapEntry, BitmapKind, Format, ImageEntry, StateEntry};
use super::node::Node;
use super::{MAX_BITMAPS, MAX_NAME_BYTES, names};
use crate::error::{Error, ErrorCode, Result};
use crate::units::{Granularity, MAX_LENGTH};

/// What a descriptor says in the keys that this library knows.
pub struct Content {
    pub image: ImageEntry,
    pub state: Option<StateEntry>,
    /// In the order of the file, each with the text of its object.
    pub bitmaps: Vec<(String, BitmapEntry, String)>,
}

/// Reads a document. `assumed` is the format of a backing that the descriptor names without one.
pub fn content(document: &str, assumed: Option<Format>) -> Result<Content> {
    let document = Node::document(document).object()?;
    let qbm = document.need("QBM")?.object()?;
    version(&qbm.need("version")?)?;
    if let Some(features) = qbm.find("features") {
        refuse_unknown_features(&features.object()?)?;
    }
    let image = image(&qbm.need("image")?.object()?)?;
    let bitmaps = bitmaps(&qbm.need("bitmaps")?.object()?, assumed)?;
    let state = match qbm.find("state") {
        Some(entry) => Some(state(&entry.object()?)?),
        None => None,
    };
    Ok(Content {
        image,
        state,
        bitmaps,
    })
}

fn version(node: &Node<'_>) -> Result<()> {
    match node.integer() {
        Ok(1) => Ok(()),
        Ok(2..) => Err(node.refuse(
            ErrorCode::NotSupported,
            "is a newer version than this library knows; it knows 1",
        )),
        _ => Err(node.invalid("is not a version; the version is 1")),
    }
}

fn refuse_unknown_features(features: &Node<'_>) -> Result<()> {
    let Some(incompatible) = features.find("incompatible") else {
        return Ok(());
    };
    // None is known yet, so the first one ends the open.
    match incompatible.elements()?.next() {
        None => Ok(()),
        Some(feature) => {
            feature.string()?;
            Err(feature.refuse(
                ErrorCode::NotSupported,
                "is a feature that this library does not know",
            ))
        }
    }
}

pub fn image(node: &Node<'_>) -> Result<ImageEntry> {
    let checksum = match node.find("checksum") {
        Some(sum) => Some(sum.string()?.parse().map_err(|error| blame(&sum, &error))?),
        None => None,
    };
    Ok(ImageEntry {
        file: file(node)?,
        format: format(&node.need("format")?)?,
        checksum,
    })
}

fn bitmaps(node: &Node<'_>, assumed: Option<Format>) -> Result<Vec<(String, BitmapEntry, String)>> {
    let count = node.named().count();
    if count > MAX_BITMAPS {
        return Err(node.about(format_args!(
            "{count} bitmaps are more than the limit of {MAX_BITMAPS}"
        )));
    }
    let mut bitmaps: Vec<(String, BitmapEntry, String)> = Vec::with_capacity(count);
    let mut allocation = None;
    for (key, node) in node.named() {
        let name = name(key, &node)?;
        let node = node.object()?;
        let entry = bitmap(&node, assumed)?;
        if entry.kind.is_allocation()
            && let Some(first) = allocation.replace(key)
        {
            let first = super::json::words::shown(first);
            return Err(node.about(format_args!(
                "a second allocation bitmap, after {first}; a disk has one at most"
            )));
        }
        bitmaps.push((name, entry, node.text().to_owned()));
    }
    Ok(bitmaps)
}

fn name(key: &str, node: &Node<'_>) -> Result<String> {
    let name = Node::document(key).string()?;
    match refusal_of_name(&name) {
        None => Ok(name),
        Some(reason) => Err(node.about(reason)),
    }
}

/// Why `name` cannot be a bitmap's, in words.
pub fn refusal_of_name(name: &str) -> Option<String> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Some(format!(
            "a name of {} bytes; a bitmap's has 1 to {MAX_NAME_BYTES}",
            name.len()
        ));
    }
    // A caller in C could not say such a name.
    name.contains('\0').then(|| "a name with a NUL in it".to_owned())
}

pub fn bitmap(node: &Node<'_>, assumed: Option<Format>) -> Result<BitmapEntry> {
    let file = file(node)?;
    let kind = node.need("type")?;
    let kind = match kind.string()?.as_str() {
        "dirty" => BitmapKind::Dirty,
        "allocation" => BitmapKind::Allocation {
            backing: match node.find("backing") {
                Some(entry) => Some(backing(&entry.object()?, assumed)?),
                None => None,
            },
        },
        _ => return Err(kind.invalid("is an unknown type; a bitmap is \"dirty\" or \"allocation\"")),
    };
    Ok(BitmapEntry {
        file,
        kind,
        granularity: granularity(&node.need("granularity-bytes")?)?,
        recording: node.find("recording").map(|value| value.boolean()).transpose()?,
        epoch: node.find("epoch").map(|value| filled(&value)).transpose()?,
        start_length: node
            .find("start-length")
            .map(|value| length(&value))
            .transpose()?,
    })
}

fn backing(node: &Node<'_>, assumed: Option<Format>) -> Result<BackingEntry> {
    const ADVICE: &str = "and a backing is never probed: set it with `qbm rebase -u -F FORMAT`";
    let file = file(node)?;
    let format = match (node.find("format"), assumed) {
        (None, Some(assumed)) => assumed,
        (None, None) => return Err(node.about(format_args!("\"format\" is missing, {ADVICE}"))),
        // "Probe it", to the driver that the format comes from.
        (Some(empty), assumed) if empty.text() == "\"\"" => match assumed {
            Some(assumed) => assumed,
            None => return Err(empty.invalid(format_args!("names no format, {ADVICE}"))),
        },
        (Some(word), _) => format(&word)?,
    };
    Ok(BackingEntry { file, format })
}

pub fn state(node: &Node<'_>) -> Result<StateEntry> {
    let region_bytes = match node.find("region-bytes") {
        Some(value) => match value.integer()? {
            bytes if !bytes.is_power_of_two() => return Err(value.invalid("is not a power of two")),
            bytes if !(Granularity::MIN.bytes()..=MAX_LENGTH).contains(&bytes) => {
                return Err(value.invalid("is not within 512 and 2^62"));
            }
            bytes => Some(bytes),
        },
        None => None,
    };
    Ok(StateEntry {
        file: file(node)?,
        region_bytes,
    })
}

fn granularity(node: &Node<'_>) -> Result<Granularity> {
    let bytes = node.integer()?;
    if !bytes.is_power_of_two() {
        return Err(node.invalid("is not a power of two"));
    }
    Granularity::new(bytes).ok_or_else(|| node.invalid("is not within 512 and 2147483648 (2 GiB)"))
}

fn length(node: &Node<'_>) -> Result<u64> {
    match node.integer()? {
        length if length > MAX_LENGTH => Err(node.invalid("is more than a disk can have, 2^63 - 1")),
        length => Ok(length),
    }
}

fn format(node: &Node<'_>) -> Result<Format> {
    node.string()?.parse().map_err(|error| blame(node, &error))
}

fn filled(node: &Node<'_>) -> Result<String> {
    match node.string()? {
        empty if empty.is_empty() => Err(node.invalid("is empty")),
        string => Ok(string),
    }
}

/// The member `file`, which must be a name that can be opened.
fn file(node: &Node<'_>) -> Result<String> {
    let node = node.need("file")?;
    let name = node.string()?;
    names::child_path(&name).map_err(|error| blame(&node, &error))?;
    Ok(name)
}

/// A refusal of a word turned into one of the value that it is in.
fn blame(node: &Node<'_>, error: &Error) -> Error {
    match error.code() {
        ErrorCode::NotSupported => node.refuse(ErrorCode::NotSupported, error.message()),
        _ => node.invalid(error.message()),
    }
}
