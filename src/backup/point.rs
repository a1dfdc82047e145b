//! One backup as its descriptor tells of it: the record under the key `backup`.
//!
//! Invariant: a record that is read has every field, of the right type, and names what the descriptor leads to, so that
//! whoever reads the disk reads what the record has the checksums of; what does not is an error that names the key.

use serde_json::{Map, Value, json};

use crate::descriptor::{BitmapKind, Descriptor, Format};
use crate::error::{Error, ErrorCode, Result};
use crate::units::{Granularity, MAX_LENGTH};

/// The key beside `QBM` that holds the record.
const KEY: &str = "backup";

/// What has the name of a descriptor that is removed, before that is taken away anew: no backup, and no damaged one.
pub(super) const REMOVED: &[u8] = b"{\"backup\": \"removed\"}\n";

/// What a backup stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupKind {
    /// The whole disk.
    Full,
    /// What has changed since another backup.
    Incremental,
}

impl BackupKind {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Incremental => "incremental",
        }
    }
}

/// One backup in a folder: the disk at one point in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupPoint {
    /// Its name in the folder, which is when it was begun, and its sequence: `20261123T141339Z-7`.
    pub name: String,
    /// Its place in the order in which the folder's backups were made.
    pub sequence: u64,
    /// When it was begun, as RFC 3339 writes it.
    pub time: String,
    /// The backup that it was made upon; `None` of a full one.
    pub parent: Option<String>,
    /// The descriptor of the disk that was backed up.
    pub source: String,
    /// The disk's length in bytes.
    pub length: u64,
    /// The bitmap that said what had changed.
    pub bitmap: String,
    /// In which unit.
    pub granularity: Granularity,
    /// The bitmap's epoch when the backup was begun; `None` where nothing can be said of that point any more.
    pub based_on: Option<String>,
    /// The bitmap's epoch from this backup on.
    pub starts: String,
    /// How many bytes are stored; zeros are not.
    pub stored: u64,
    /// Why it is a full one, or larger than it had to be; empty where there is nothing to tell.
    pub reason: String,
    /// The checksum of the data file's content: `sha256-tree:` and 64 hexadecimal digits.
    pub data_checksum: String,
    /// The SHA-256 of the allocation bitmap's file; `None` of a full backup.
    pub bitmap_checksum: Option<String>,
    /// Where the parent's bitmap went on, a random id: what tells it from another backup of its name. `None` where the record
    /// is of a version that did not tell.
    pub(super) parent_starts: Option<String>,
    /// The data file's name.
    pub(super) data_file: String,
    /// The allocation bitmap's.
    pub(super) bitmap_file: Option<String>,
}

impl BackupPoint {
    /// What it stores.
    pub fn kind(&self) -> BackupKind {
        match self.parent {
            None => BackupKind::Full,
            Some(_) => BackupKind::Incremental,
        }
    }

    /// The name of its descriptor in the folder.
    pub fn descriptor(&self) -> String {
        format!("{}.qbm", self.name)
    }

    /// The name of that while it is written.
    pub(super) fn temporary(&self) -> String {
        format!("{}.new", self.name)
    }

    /// All files that it has in the folder, without those of its parents.
    pub(super) fn files(&self) -> impl Iterator<Item = String> {
        [self.descriptor(), self.data_file.clone()]
            .into_iter()
            .chain(self.bitmap_file.clone())
    }

    /// Puts the record into a descriptor's text.
    pub(super) fn write_to(&self, descriptor: &[u8]) -> Result<Vec<u8>> {
        let mut document = object(descriptor)?;
        document.insert(
            KEY.to_owned(),
            json!({
                "version": 1,
                "sequence": self.sequence,
                "time": self.time,
                "kind": self.kind().word(),
                "parent": self.parent,
                "parent-starts": self.parent_starts,
                "source": self.source,
                "length": self.length,
                "bitmap": self.bitmap,
                "granularity": self.granularity.bytes(),
                "based-on": self.based_on,
                "starts": self.starts,
                "stored": self.stored,
                "reason": self.reason,
                "data-checksum": self.data_checksum,
                "bitmap-checksum": self.bitmap_checksum,
                "data-file": self.data_file,
                "bitmap-file": self.bitmap_file,
            }),
        );
        let mut text = format!("{:#}", Value::Object(document)).into_bytes();
        text.push(b'\n');
        Ok(text)
    }

    /// The record in a descriptor's text. The caller puts the file's name in front of the error.
    pub(super) fn read(name: &str, descriptor: &[u8]) -> Result<Self> {
        let document = object(descriptor)?;
        let Some(record) = document.get(KEY).and_then(Value::as_object) else {
            return Err(invalid(format!("{KEY}: there is no record of a backup")));
        };
        let fields = Fields(record);
        match fields.number("version")? {
            1 => {}
            other => {
                return Err(Error::new(
                    ErrorCode::NotSupported,
                    format!("{KEY}.version: {other} is not known; 1 is"),
                ));
            }
        }
        let granularity = fields.number("granularity")?;
        let point = Self {
            name: name.to_owned(),
            sequence: fields.number("sequence")?,
            time: fields.text("time")?,
            parent: fields.optional("parent")?,
            parent_starts: fields.added_later("parent-starts")?,
            source: fields.text("source")?,
            length: fields.length("length")?,
            bitmap: fields.text("bitmap")?,
            granularity: Granularity::new(granularity)
                .ok_or_else(|| invalid(format!("{KEY}.granularity: {granularity} is none")))?,
            based_on: fields.optional("based-on")?,
            starts: fields.text("starts")?,
            stored: fields.length("stored")?,
            reason: fields.text("reason")?,
            data_checksum: fields.text("data-checksum")?,
            bitmap_checksum: fields.optional("bitmap-checksum")?,
            data_file: fields.file("data-file")?,
            bitmap_file: fields
                .optional("bitmap-file")?
                .map(|file| plain_name("bitmap-file", file))
                .transpose()?,
        };
        let kind = fields.text("kind")?;
        if kind != point.kind().word() {
            return Err(invalid(format!(
                "{KEY}.kind: {kind:?}, where it is {}, as {KEY}.parent says",
                point.kind().word()
            )));
        }
        point.check_half("bitmap-file", point.bitmap_file.as_deref())?;
        point.check_half("bitmap-checksum", point.bitmap_checksum.as_deref())?;
        point.check_leads(&Descriptor::parse(descriptor)?)?;
        Ok(point)
    }

    /// Fails where an incremental backup lacks what makes it one, or a full one has it.
    fn check_half(&self, key: &str, value: Option<&str>) -> Result<()> {
        if value.is_some() == self.parent.is_some() {
            return Ok(());
        }
        let kind = self.kind().word();
        Err(invalid(match value {
            Some(value) => format!("{KEY}.{key}: {value:?}, where the backup is {kind}"),
            None => format!("{KEY}.{key}: null, where the backup is {kind}"),
        }))
    }

    /// Fails where the disk that `descriptor` describes is of other files than the record: no checksum covers what leads
    /// to them.
    fn check_leads(&self, descriptor: &Descriptor) -> Result<()> {
        let image = descriptor.image();
        agree("QBM.image.file", &image.file, "data-file", Some(&self.data_file))?;
        of_format("QBM.image.format", image.format, Format::Raw)?;
        let Some((name, entry)) = descriptor.allocation() else {
            return match &self.bitmap_file {
                None => Ok(()),
                Some(file) => Err(invalid(format!(
                    "{KEY}.bitmap-file: {file:?}, where QBM.bitmaps has no allocation bitmap"
                ))),
            };
        };
        let at = |key: &str| format!("QBM.bitmaps.{name}.{key}");
        agree(
            &at("file"),
            &entry.file,
            "bitmap-file",
            self.bitmap_file.as_deref(),
        )?;
        if entry.granularity != self.granularity {
            return Err(invalid(format!(
                "{}: {}, where {KEY}.granularity is {}",
                at("granularity-bytes"),
                entry.granularity.bytes(),
                self.granularity.bytes()
            )));
        }
        let BitmapKind::Allocation {
            backing: Some(backing),
        } = &entry.kind
        else {
            return Err(invalid(format!("{}: it is missing", at("backing"))));
        };
        let parent = self.parent.as_ref().map(|parent| format!("{parent}.qbm"));
        agree(&at("backing.file"), &backing.file, "parent", parent.as_deref())?;
        of_format(&at("backing.format"), backing.format, Format::Qbm)
    }
}

fn of_format(path: &str, found: Format, expected: Format) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(invalid(format!("{path}: {found}, where a backup has {expected}")))
}

/// Fails where the descriptor says something else at `path` than the record's `key` means.
fn agree(path: &str, found: &str, key: &str, expected: Option<&str>) -> Result<()> {
    if Some(found) == expected {
        return Ok(());
    }
    Err(invalid(match expected {
        Some(expected) => format!("{path}: {found:?}, where {KEY}.{key} means {expected:?}"),
        None => format!("{path}: {found:?}, where {KEY}.{key} is null"),
    }))
}

/// The members of a record.
struct Fields<'r>(&'r Map<String, Value>);

impl Fields<'_> {
    fn get(&self, key: &str) -> Result<&Value> {
        self.0
            .get(key)
            .ok_or_else(|| invalid(format!("{KEY}.{key}: it is missing")))
    }

    fn text(&self, key: &str) -> Result<String> {
        self.optional(key)?
            .ok_or_else(|| invalid(format!("{KEY}.{key}: null is no string")))
    }

    fn optional(&self, key: &str) -> Result<Option<String>> {
        match self.get(key)? {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text.clone())),
            other => Err(invalid(format!("{KEY}.{key}: {other} is no string"))),
        }
    }

    /// The same of a key that older records do not have.
    fn added_later(&self, key: &str) -> Result<Option<String>> {
        if self.0.contains_key(key) {
            self.optional(key)
        } else {
            Ok(None)
        }
    }

    fn number(&self, key: &str) -> Result<u64> {
        let value = self.get(key)?;
        value
            .as_u64()
            .ok_or_else(|| invalid(format!("{KEY}.{key}: {value} is no number of the kind")))
    }

    /// In bytes.
    fn length(&self, key: &str) -> Result<u64> {
        match self.number(key)? {
            length if length > MAX_LENGTH => Err(invalid(format!(
                "{KEY}.{key}: {length} is more than a disk can have, 2^63 - 1"
            ))),
            length => Ok(length),
        }
    }

    fn file(&self, key: &str) -> Result<String> {
        plain_name(key, self.text(key)?)
    }
}

/// A file beside the descriptor: what a prune removes must not lie elsewhere.
fn plain_name(key: &str, file: String) -> Result<String> {
    if file.is_empty() || file.contains('/') || file.starts_with('.') {
        return Err(invalid(format!("{KEY}.{key}: {file:?} is no file of the folder")));
    }
    Ok(file)
}

fn object(descriptor: &[u8]) -> Result<Map<String, Value>> {
    match serde_json::from_slice(descriptor) {
        Ok(Value::Object(document)) => Ok(document),
        Ok(_) => Err(invalid("it is no JSON object".to_owned())),
        Err(error) => Err(invalid(format!("not JSON: {error}"))),
    }
}

fn invalid(words: String) -> Error {
    Error::new(ErrorCode::DescriptorInvalid, words)
}
