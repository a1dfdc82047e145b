//! The descriptor of a vmdk: lines of text that say which files have which part of the disk.

use super::{SECTOR, invalid, not_supported};
use crate::error::Result;
use crate::units::MAX_LENGTH;

/// The most extents: 8 TiB in files of 2 GiB.
const MAX_EXTENTS: usize = 4096;

/// What a descriptor says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) extents: Vec<ExtentLine>,
}

/// One part of the disk, after the one before it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ExtentLine {
    /// In bytes.
    pub(super) length: u64,
    pub(super) contents: Contents,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Contents {
    Flat {
        file: String,
        /// Where in the file, in bytes.
        offset: u64,
    },
    Sparse {
        file: String,
    },
    Zeros,
}

impl Described {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        // One inside of a sparse file is filled up with NULs.
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        let text = std::str::from_utf8(text).map_err(|_| invalid("it is no vmdk: its text is not UTF-8"))?;
        if !text.lines().any(|line| line.trim() == "# Disk DescriptorFile") {
            return Err(invalid("it is no vmdk: it has no line \"# Disk DescriptorFile\""));
        }
        let mut described = Self::default();
        for (number, line) in text.lines().enumerate() {
            described
                .line(line.trim())
                .map_err(|e| e.context(format_args!("line {}", number + 1)))?;
        }
        Ok(described)
    }

    fn line(&mut self, line: &str) -> Result<()> {
        if line.starts_with('#') || line.is_empty() {
            return Ok(());
        }
        if let Some((key, value)) = line.split_once('=')
            && !key.contains('"')
        {
            return key_value(key.trim(), value.trim().trim_matches('"'));
        }
        let extent = extent(line)?;
        if self.extents.len() == MAX_EXTENTS {
            return Err(not_supported(format!("it has more than {MAX_EXTENTS} extents")));
        }
        self.extents.push(extent);
        Ok(())
    }
}

fn key_value(key: &str, value: &str) -> Result<()> {
    match key {
        "version" if !matches!(value, "1" | "2" | "3" | "4") => {
            Err(not_supported(format!("it is of the unknown version {value:?}")))
        }
        "parentCID" if !value.eq_ignore_ascii_case("ffffffff") => Err(not_supported(
            "it is a snapshot that needs a parent, and such images cannot be read; \"qemu-img convert\" makes one that \
             needs none",
        )),
        "parentFileNameHint" => Err(not_supported(format!(
            "it is a snapshot of {value:?}, and such images cannot be read; \"qemu-img convert\" makes one that needs none"
        ))),
        key if key.starts_with("encryption") => Err(not_supported(
            "it is encrypted, and only plain images can be read",
        )),
        _ => Ok(()),
    }
}

/// `RW 4192256 SPARSE "disk-s001.vmdk"`, `RW 63 FLAT "disk-flat.vmdk" 0`, `RW 100 ZERO`.
fn extent(line: &str) -> Result<ExtentLine> {
    let wrong = || invalid(format!("{line:?} is neither a key with a value nor an extent"));
    let (access, rest) = line.split_once(' ').ok_or_else(wrong)?;
    if !matches!(access, "RW" | "RDONLY" | "NOACCESS") {
        return Err(wrong());
    }
    if access == "NOACCESS" {
        return Err(not_supported("an extent may not be accessed"));
    }
    let mut words = rest.trim_start().splitn(3, ' ');
    let sectors: u64 = words
        .next()
        .and_then(|word| word.parse().ok())
        .ok_or_else(wrong)?;
    let length = in_bytes(sectors).ok_or_else(wrong)?;
    let kind = words.next().ok_or_else(wrong)?;
    let rest = words.next().unwrap_or_default().trim();
    let contents = match kind {
        "ZERO" => Contents::Zeros,
        "FLAT" | "VMFS" => {
            let (file, rest) = quoted(rest).ok_or_else(wrong)?;
            // VMware leaves the offset out where it is none.
            let offset = match rest.split_whitespace().next() {
                None => 0,
                Some(word) => word.parse().ok().and_then(in_bytes).ok_or_else(wrong)?,
            };
            let file = file.to_owned();
            Contents::Flat { file, offset }
        }
        "SPARSE" => {
            let (file, _) = quoted(rest).ok_or_else(wrong)?;
            let file = file.to_owned();
            Contents::Sparse { file }
        }
        other => {
            return Err(not_supported(format!(
                "an extent is {other}; FLAT, VMFS, SPARSE and ZERO can be read"
            )));
        }
    };
    Ok(ExtentLine { length, contents })
}

fn quoted(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix('"')?.split_once('"')
}

fn in_bytes(sectors: u64) -> Option<u64> {
    sectors.checked_mul(SECTOR).filter(|bytes| *bytes <= MAX_LENGTH)
}
