//! A document to canonical text, in one pass, refusing what two readers could understand differently.
//!
//! Memory: one buffer of about the document's size, and eight bytes for each key of the objects that are open.

use std::fmt::{self, Write as _};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::words;
use crate::error::{Error, ErrorCode, Result};

/// How deep lists and objects may be nested. Below `serde_json`'s own limit, so that the refusal is in our words.
const MAX_DEPTH: usize = 100;

/// The longest path that an error prints; of a longer one, the end.
const MAX_PATH: usize = 256;

/// The canonical text of the one JSON value in `document`.
///
/// Integers of 64 bits stay exact. Any other number becomes the nearest double and is written as the shortest text
/// that reads as that double; one that is too large for a double is refused. Nothing else is lost but white space
/// and the choice of escapes.
pub fn canonical(document: &str) -> Result<String> {
    let mut writer = Writer::default();
    if writer.out.try_reserve(document.len()).is_err() {
        return Err(Error::new(
            ErrorCode::NoMemory,
            format!("no memory for a descriptor of {} bytes", document.len()),
        ));
    }
    let mut parser = serde_json::Deserializer::from_str(document);
    let seed = ValueSeed {
        writer: &mut writer,
        depth: 0,
    };
    let parsed = seed.deserialize(&mut parser).and_then(|()| parser.end());
    if let Err(error) = parsed {
        let words = match writer.refusal {
            Some(refusal) => refusal.to_string(),
            None => format!("not readable as JSON: {error}"),
        };
        return Err(Error::new(ErrorCode::DescriptorInvalid, words));
    }
    String::from_utf8(writer.out).map_err(|error| Error::new(ErrorCode::DescriptorInvalid, error.to_string()))
}

/// Why a well-formed document is refused, and where.
struct Refusal {
    /// Empty where the path says nothing.
    path: String,
    reason: &'static str,
}

impl Refusal {
    /// Adds the step that leads here from one level further out.
    fn come_from(&mut self, step: &str) {
        if self.path.is_empty() {
            return;
        }
        if self.path.len() + step.len() <= MAX_PATH {
            self.path.insert_str(0, step);
        } else if !self.path.starts_with('…') {
            self.path.insert(0, '…');
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.trim_start_matches('.') {
            "" => f.write_str(self.reason),
            path => write!(f, "{path}: {}", self.reason),
        }
    }
}

#[derive(Default)]
struct Writer {
    out: Vec<u8>,
    /// Where in `out` the keys of the open objects are, outermost object first.
    keys: Vec<Key>,
    refusal: Option<Refusal>,
}

/// A key, with its quotes, as start and length in the output.
#[derive(Clone, Copy)]
struct Key {
    start: u32,
    len: u32,
}

impl Writer {
    fn write<E: serde::de::Error>(&mut self, value: impl fmt::Display) -> Result<(), E> {
        let mut text = String::new();
        write!(text, "{value}").map_err(E::custom)?;
        self.out.extend_from_slice(text.as_bytes());
        Ok(())
    }

    fn write_string<E: serde::de::Error>(&mut self, string: &str) -> Result<(), E> {
        serde_json::to_writer(&mut self.out, string).map_err(E::custom)
    }

    fn key(&self, key: Key) -> &[u8] {
        &self.out[key.start as usize..][..key.len as usize]
    }

    /// Checks the keys from number `first` on, those of the object that ends here, and forgets them.
    fn end_object<E: serde::de::Error>(&mut self, first: usize) -> Result<(), E> {
        let out = &self.out;
        let text = |key: &Key| &out[key.start as usize..][..key.len as usize];
        self.keys[first..].sort_unstable_by(|a, b| text(a).cmp(text(b)));
        let mut neighbours = self.keys[first..].iter().zip(self.keys[first..].iter().skip(1));
        if let Some((twice, _)) = neighbours.find(|(a, b)| text(a) == text(b)) {
            let path = words::step(&String::from_utf8_lossy(text(twice)));
            return Err(self.refuse(path, "the key is there twice"));
        }
        self.keys.truncate(first);
        Ok(())
    }

    fn refuse<E: serde::de::Error>(&mut self, path: String, reason: &'static str) -> E {
        self.refusal = Some(Refusal { path, reason });
        E::custom(reason)
    }
}

/// Writes one value.
struct ValueSeed<'w> {
    writer: &'w mut Writer,
    depth: usize,
}

impl ValueSeed<'_> {
    fn enter<E: serde::de::Error>(&mut self) -> Result<(), E> {
        if self.depth >= MAX_DEPTH {
            return Err(self
                .writer
                .refuse(String::new(), "lists and objects are nested more than 100 deep"));
        }
        Ok(())
    }

    fn inner(&mut self) -> ValueSeed<'_> {
        ValueSeed {
            writer: self.writer,
            depth: self.depth + 1,
        }
    }
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.writer.write("null")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.writer.write(value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.writer.write(value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.writer.write(value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        if value == 0.0 && value.is_sign_negative() {
            return self.writer.write("-0");
        }
        // The shorter of two exact forms: `1e15` must not grow to sixteen digits, or a document could outgrow its
        // limit by being saved.
        let (plain, power) = (format!("{value:?}"), format!("{value:e}"));
        self.writer
            .write(if power.len() < plain.len() { power } else { plain })
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        self.writer.write_string(value)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        self.enter()?;
        self.writer.out.push(b'[');
        let mut index = 0_usize;
        loop {
            // An element that is not there leaves its comma behind, which is then the bracket's place.
            if index > 0 {
                self.writer.out.push(b',');
            }
            match list.next_element_seed(self.inner()) {
                Ok(Some(())) => index += 1,
                Ok(None) => break,
                Err(error) => {
                    if let Some(refusal) = &mut self.writer.refusal {
                        refusal.come_from(&format!("[{index}]"));
                    }
                    return Err(error);
                }
            }
        }
        if index > 0 {
            self.writer.out.pop();
        }
        self.writer.out.push(b']');
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut object: A) -> Result<(), A::Error> {
        self.enter()?;
        self.writer.out.push(b'{');
        let first = self.writer.keys.len();
        while let Some(key) = object.next_key_seed(KeySeed {
            writer: self.writer,
            first,
        })? {
            self.writer.out.push(b':');
            if let Err(error) = object.next_value_seed(self.inner()) {
                let step = words::step(&String::from_utf8_lossy(self.writer.key(key)));
                if let Some(refusal) = &mut self.writer.refusal {
                    refusal.come_from(&step);
                }
                return Err(error);
            }
        }
        self.writer.out.push(b'}');
        self.writer.end_object(first)
    }
}

/// Writes one key, with the comma in front, and remembers where it is.
struct KeySeed<'w> {
    writer: &'w mut Writer,
    first: usize,
}

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed<'_> {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Key, E> {
        if self.writer.keys.len() > self.first {
            self.writer.out.push(b',');
        }
        let start = self.writer.out.len();
        self.writer.write_string(value)?;
        let key = Key {
            start: u32::try_from(start).map_err(E::custom)?,
            len: u32::try_from(self.writer.out.len() - start).map_err(E::custom)?,
        };
        self.writer.keys.push(key);
        Ok(key)
    }
}
