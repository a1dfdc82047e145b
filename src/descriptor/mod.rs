//! The descriptor: the small JSON file that names a disk's parts. Its content as types, its child names, its saving.
//!
//! May call `storage` (the traits), `units` and `error`. Invariant: a [`Descriptor`] in memory is always one that
//! [`Descriptor::parse`] accepts, whoever made or changed it, and every key that this library does not know comes out
//! of [`Descriptor::to_json`] as it went in, at its place. (One exception: a number that is no integer of 64 bits is
//! a double; it is refused where a double cannot hold it, and otherwise written as the shortest number that reads as
//! the same double.)

mod entries;
#[cfg(test)]
mod fake;
mod json;
pub mod names;
mod node;
mod read;
pub mod save;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub use entries::{BackingEntry, BitmapEntry, BitmapKind, Checksum, Format, ImageEntry, StateEntry};

use self::json::text;
use self::node::Node;
use crate::error::{Error, ErrorCode, Result};
use crate::storage::{Storage, read_slice};

/// The most bitmaps that one disk has.
pub const MAX_BITMAPS: usize = 65_535;

/// The longest name of a bitmap, in bytes.
pub const MAX_NAME_BYTES: usize = 1023;

/// A descriptor: all of its JSON, and what its known keys say.
#[derive(Clone, Debug, PartialEq)]
pub struct Descriptor {
    /// The whole document as canonical text, with an empty object for `QBM.bitmaps`.
    frame: String,
    bitmaps: Vec<Bitmap>,
    image: ImageEntry,
    state: Option<StateEntry>,
}

/// One member of `QBM.bitmaps`.
#[derive(Clone, Debug, PartialEq)]
struct Bitmap {
    name: String,
    entry: BitmapEntry,
    /// The canonical text of its object, unknown keys included.
    text: String,
}

impl Descriptor {
    /// The longest descriptor, in bytes (32 MiB).
    pub const MAX_BYTES: u64 = 32 << 20;

    /// A descriptor without bitmaps; `creator` says which program made it.
    ///
    /// Fails where the image's file name is one that [`Descriptor::parse`] would refuse.
    pub fn new(creator: &str, image: ImageEntry) -> Result<Self> {
        let mut object = "{}".to_owned();
        image.write_to(&mut object);
        read::image(&Node::document(&object)).map_err(as_argument)?;
        let creator = text::quote(creator);
        Ok(Self {
            frame: format!(
                r#"{{"QBM":{{"version":1,"creator":{creator},"image":{object},"bitmaps":{{}}}}}}"#
            ),
            bitmaps: Vec::new(),
            image,
            state: None,
        })
    }

    /// Reads a descriptor from its bytes.
    ///
    /// The error names the JSON path, the value and the reason; the caller puts the file's name in front. It is
    /// [`ErrorCode::NotSupported`] for a version, feature, format, checksum or file name scheme that this library
    /// does not know, [`ErrorCode::DescriptorInvalid`] for anything else. Memory: below 6 times
    /// the length of `bytes`, and a constant, whatever the bytes are; the worst known takes 4 times.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        Self::parse_any(bytes, None)
    }

    /// As [`Descriptor::parse`], but a backing that has no format, or an empty one, is taken to be a `format`.
    ///
    /// For the command that sets it: a descriptor without it is refused by everything else, as a backing is never
    /// probed.
    pub fn parse_assuming(bytes: &[u8], format: Format) -> Result<Self> {
        let mut descriptor = Self::parse_any(bytes, Some(format))?;
        for Bitmap { entry, text, .. } in &mut descriptor.bitmaps {
            if entry.kind.is_allocation() {
                entry.write_to(text, Some(&entry.kind));
            }
        }
        Ok(descriptor)
    }

    /// Reads the descriptor that `storage` holds. The caller puts the file's name in front of the error.
    ///
    /// The length is checked before anything is allocated or read.
    pub fn read(storage: &dyn Storage) -> Result<Self> {
        Self::read_assuming(storage, None)
    }

    /// As [`Descriptor::read`], with what [`Descriptor::parse_assuming`] takes a backing without a format to be.
    pub fn read_assuming(storage: &dyn Storage, format: Option<Format>) -> Result<Self> {
        let failed = |error: &std::io::Error| Error::io("read", "the descriptor", error);
        let length = storage.length().map_err(|error| failed(&error))?;
        check_length(length)?;
        let mut bytes = Vec::new();
        let wanted = usize::try_from(length).unwrap_or(usize::MAX);
        if bytes.try_reserve_exact(wanted).is_err() {
            return Err(Error::new(
                ErrorCode::NoMemory,
                format!("no memory for a descriptor of {length} bytes"),
            ));
        }
        bytes.resize(wanted, 0);
        read_slice(storage, &mut bytes, 0).map_err(|error| failed(&error))?;
        match format {
            None => Self::parse(&bytes),
            Some(format) => Self::parse_assuming(&bytes, format),
        }
    }

    fn parse_any(bytes: &[u8], assumed: Option<Format>) -> Result<Self> {
        check_length(bytes.len() as u64)?;
        let document = std::str::from_utf8(bytes)
            .map_err(|error| invalid(format!("not UTF-8 from byte {} on", error.valid_up_to())))?;
        if document.starts_with('\u{feff}') {
            return Err(invalid(
                "a byte order mark at the start; a descriptor is UTF-8 without one",
            ));
        }
        let mut frame = json::canonical(document)?;
        let content = read::content(&frame, assumed)?;
        if let Some(range) = bitmaps_range(&frame) {
            frame.replace_range(range, "{}");
        }
        frame.shrink_to_fit();
        let bitmap = |(name, entry, text)| Bitmap { name, entry, text };
        Ok(Self {
            frame,
            bitmaps: content.bitmaps.into_iter().map(bitmap).collect(),
            image: content.image,
            state: content.state,
        })
    }

    /// The descriptor as a file's content: UTF-8 JSON over several lines, with a newline at its end.
    ///
    /// All on one line instead where the indentation alone would take it over [`Descriptor::MAX_BYTES`].
    pub fn to_json(&self) -> Vec<u8> {
        let text = self.text();
        let limit = usize::try_from(Self::MAX_BYTES - 1).unwrap_or(usize::MAX);
        let mut text = text::pretty(&text, limit).unwrap_or(text);
        text.push('\n');
        text.into_bytes()
    }

    /// The whole document as canonical text.
    fn text(&self) -> String {
        let range = bitmaps_range(&self.frame).unwrap_or_default();
        let (before, behind) = (&self.frame[..range.start], &self.frame[range.end..]);
        let mut text = String::with_capacity(
            self.frame.len()
                + self
                    .bitmaps
                    .iter()
                    .map(|bitmap| bitmap.text.len() + bitmap.name.len() + 4)
                    .sum::<usize>(),
        );
        text.push_str(before);
        text.push('{');
        for (index, bitmap) in self.bitmaps.iter().enumerate() {
            if index > 0 {
                text.push(',');
            }
            text.push_str(&text::quote(&bitmap.name));
            text.push(':');
            text.push_str(&bitmap.text);
        }
        text.push('}');
        text.push_str(behind);
        text
    }

    /// The data image.
    pub fn image(&self) -> &ImageEntry {
        &self.image
    }

    /// Replaces the data image's entry; the unknown keys of its object stay.
    pub fn set_image(&mut self, image: ImageEntry) -> Result<()> {
        let mut object = self.part("image");
        image.write_to(&mut object);
        read::image(&Node::document(&object)).map_err(as_argument)?;
        self.set_part("image", Some(&object));
        self.image = image;
        Ok(())
    }

    /// The state file.
    pub fn state(&self) -> Option<&StateEntry> {
        self.state.as_ref()
    }

    /// Replaces the state file's entry, whose object's unknown keys stay; or takes the whole object away.
    pub fn set_state(&mut self, state: Option<StateEntry>) -> Result<()> {
        if let Some(state) = &state {
            let mut object = self.part("state");
            state.write_to(&mut object);
            read::state(&Node::document(&object)).map_err(as_argument)?;
            self.set_part("state", Some(&object));
        } else {
            self.set_part("state", None);
        }
        self.state = state;
        Ok(())
    }

    /// The bitmaps, in the order of the file.
    pub fn bitmaps(&self) -> impl ExactSizeIterator<Item = (&str, &BitmapEntry)> {
        self.bitmaps
            .iter()
            .map(|bitmap| (bitmap.name.as_str(), &bitmap.entry))
    }

    /// The bitmap `name`.
    pub fn bitmap(&self, name: &str) -> Option<&BitmapEntry> {
        self.index_of(name).map(|index| &self.bitmaps[index].entry)
    }

    /// The allocation bitmap, which makes the disk an overlay.
    pub fn allocation(&self) -> Option<(&str, &BitmapEntry)> {
        self.bitmaps().find(|(_, entry)| entry.kind.is_allocation())
    }

    /// Why `name` cannot be a bitmap's, in words.
    pub fn refusal_of_bitmap_name(name: &str) -> Option<String> {
        read::refusal_of_name(name)
    }

    /// Adds a bitmap, behind the others.
    pub fn insert_bitmap(&mut self, name: &str, entry: BitmapEntry) -> Result<()> {
        self.check_new_name(name)?;
        if self.bitmaps.len() >= MAX_BITMAPS {
            return Err(Error::new(
                ErrorCode::NotSupported,
                format!("a disk has {MAX_BITMAPS} bitmaps at most"),
            ));
        }
        self.check_allocation(name, &entry)?;
        let text = bitmap_text("{}".to_owned(), &entry, None)?;
        let name = name.to_owned();
        self.bitmaps.push(Bitmap { name, entry, text });
        Ok(())
    }

    /// Replaces a bitmap's entry; its place and the unknown keys of its object stay.
    pub fn update_bitmap(&mut self, name: &str, entry: BitmapEntry) -> Result<()> {
        let index = self.need(name)?;
        self.check_allocation(name, &entry)?;
        let bitmap = &mut self.bitmaps[index];
        bitmap.text = bitmap_text(bitmap.text.clone(), &entry, Some(&bitmap.entry.kind))?;
        bitmap.entry = entry;
        Ok(())
    }

    /// Gives a bitmap another name; its place and all that its object holds stay.
    pub fn rename_bitmap(&mut self, name: &str, new_name: &str) -> Result<()> {
        let index = self.need(name)?;
        if name != new_name {
            self.check_new_name(new_name)?;
            new_name.clone_into(&mut self.bitmaps[index].name);
        }
        Ok(())
    }

    /// Takes a bitmap's entry out.
    pub fn remove_bitmap(&mut self, name: &str) -> Result<BitmapEntry> {
        let index = self.need(name)?;
        Ok(self.bitmaps.remove(index).entry)
    }

    fn index_of(&self, name: &str) -> Option<usize> {
        self.bitmaps.iter().position(|bitmap| bitmap.name == name)
    }

    fn need(&self, name: &str) -> Result<usize> {
        self.index_of(name)
            .ok_or_else(|| Error::new(ErrorCode::BitmapNotFound, format!("no bitmap {}", shown(name))))
    }

    fn check_new_name(&self, name: &str) -> Result<()> {
        if let Some(reason) = read::refusal_of_name(name) {
            let words = format!("bitmap {}: {reason}", shown(name));
            return Err(Error::new(ErrorCode::InvalidArgument, words));
        }
        if self.index_of(name).is_some() {
            let words = format!("there is a bitmap {} already", shown(name));
            return Err(Error::new(ErrorCode::BitmapExists, words));
        }
        Ok(())
    }

    /// Refuses an allocation bitmap beside another one.
    fn check_allocation(&self, name: &str, entry: &BitmapEntry) -> Result<()> {
        match self.allocation() {
            Some((other, _)) if entry.kind.is_allocation() && other != name => {
                let words = format!("the disk has an allocation bitmap already, {}", shown(other));
                Err(Error::new(ErrorCode::BitmapExists, words))
            }
            _ => Ok(()),
        }
    }

    /// The text of a member of the `QBM` object, or of a new empty object.
    fn part(&self, key: &str) -> String {
        let qbm = text::member(&self.frame, "QBM");
        let part = qbm.and_then(|qbm| text::member(qbm.value, key));
        part.map_or_else(|| "{}".to_owned(), |part| part.value.to_owned())
    }

    fn set_part(&mut self, key: &str, value: Option<&str>) {
        text::edit(&mut self.frame, "QBM", |qbm| text::set_or_remove(qbm, key, value));
    }
}

/// The text of a bitmap's object with `entry` written into it.
fn bitmap_text(mut object: String, entry: &BitmapEntry, before: Option<&BitmapKind>) -> Result<String> {
    entry.write_to(&mut object, before);
    read::bitmap(&Node::document(&object), None).map_err(as_argument)?;
    Ok(object)
}

/// Where the value of `QBM.bitmaps` is.
fn bitmaps_range(document: &str) -> Option<Range<usize>> {
    let qbm = text::member(document, "QBM")?;
    let bitmaps = text::member(qbm.value, "bitmaps")?.value_range();
    let start = qbm.value_range().start;
    Some(start + bitmaps.start..start + bitmaps.end)
}

fn check_length(length: u64) -> Result<()> {
    match length {
        0 => Err(invalid("the file is empty")),
        1..=Descriptor::MAX_BYTES => Ok(()),
        _ => Err(invalid(format!(
            "{length} bytes are more than the limit of {} (32 MiB)",
            Descriptor::MAX_BYTES
        ))),
    }
}

fn invalid(words: impl Into<String>) -> Error {
    Error::new(ErrorCode::DescriptorInvalid, words)
}

/// A refusal of what the caller passed, in the words for what a file holds.
fn as_argument(error: Error) -> Error {
    match error.code() {
        ErrorCode::DescriptorInvalid => Error::new(ErrorCode::InvalidArgument, error.message()),
        _ => error,
    }
}

/// A name as messages quote it.
fn shown(name: &str) -> String {
    json::words::shown(&text::quote(name))
}
