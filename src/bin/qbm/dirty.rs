//! What the dirty bitmaps of a disk say, for the verbs that print it.
//!
//! Invariant: bytes are counted up to the disk's end, however far its last granule reaches.

use std::path::Path;

use qbm::{BitmapInfo, ByteRange, Disk, Error, ErrorCode};
use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::output::{long_size, short_size};

/// So many names are told to somebody who gave a wrong one.
const NAMES_TOLD: usize = 5;

/// Facts about one bitmap.
pub struct Facts {
    info: BitmapInfo,
    /// How many bytes are dirty; unknown where the bitmap is inconsistent.
    dirty: Option<u64>,
}

impl Facts {
    /// Of all bitmaps of `disk`.
    pub fn of(disk: &Disk) -> Outcome<Vec<Self>> {
        let mut facts = Vec::new();
        for info in disk.bitmap_list()? {
            let dirty = if info.inconsistent {
                None
            } else {
                Some(bytes(disk, &info)?)
            };
            facts.push(Self { info, dirty });
        }
        Ok(facts)
    }

    /// Whether it can no longer be trusted.
    pub fn is_inconsistent(&self) -> bool {
        self.info.inconsistent
    }

    /// As one line for people.
    pub fn line(&self) -> String {
        let Self { info, dirty } = self;
        let dirty = match dirty {
            None => "what is dirty is unknown".to_owned(),
            Some(0) => "nothing dirty".to_owned(),
            Some(bytes) => format!("{} dirty", long_size(*bytes)),
        };
        // The name quoted, with escapes: it is whatever somebody wrote into the descriptor.
        format!(
            "{:?}: {}, granularity {}, {}; {dirty}",
            info.name,
            info.kind.word(),
            short_size(info.granularity.bytes()),
            flags(info)
        )
    }

    /// With the keys of QEMU's query-block, in which `count` is bytes, and with those that only QBM has.
    pub fn to_json(&self) -> Value {
        let Self { info, dirty } = self;
        json!({
            "name": info.name,
            "type": info.kind.word(),
            "granularity": info.granularity.bytes(),
            "count": dirty,
            "recording": info.recording,
            "busy": info.busy,
            "persistent": info.persistent,
            "inconsistent": info.inconsistent,
            "file": info.file,
            "epoch": info.epoch,
            "start-length": info.start_length,
        })
    }
}

fn flags(info: &BitmapInfo) -> String {
    let mut words = vec![if info.recording {
        "recording"
    } else {
        "not recording"
    }];
    for (is, word) in [
        (info.busy, "busy"),
        (!info.persistent, "transient"),
        (info.inconsistent, "inconsistent"),
    ] {
        if is {
            words.push(word);
        }
    }
    words.join(", ")
}

fn bytes(disk: &Disk, info: &BitmapInfo) -> qbm::Result<u64> {
    let (granularity, length) = (info.granularity, disk.length());
    let whole = disk.bitmap_count(&info.name)? * granularity.bytes();
    if length > 0 && disk.bitmap_get(&info.name, length - 1)? {
        let beyond = granularity.granules_in(length) * granularity.bytes() - length;
        return Ok(whole - beyond);
    }
    Ok(whole)
}

/// The dirty runs of one bitmap, in order, none touching the next.
pub struct Runs<'d> {
    disk: &'d Disk,
    name: &'d str,
    within: ByteRange,
}

impl<'d> Runs<'d> {
    /// Those in `within` of the bitmap `name`; fails where there is none, or none that can be read.
    pub fn new(disk: &'d Disk, name: &'d str, within: ByteRange, path: &Path) -> Outcome<Self> {
        disk.bitmap_count(name)
            .map_err(|error| explain(error.context(path.display()), disk))?;
        Ok(Self { disk, name, within })
    }
}

impl Iterator for Runs<'_> {
    type Item = qbm::Result<ByteRange>;

    fn next(&mut self) -> Option<Self::Item> {
        let Self { disk, name, within } = self;
        if within.is_empty() {
            return None;
        }
        let run = disk
            .bitmap_next_dirty(name, within.start(), within.len())
            .transpose();
        let end = within.end();
        *within = match &run {
            Some(Ok(run)) => ByteRange::between(run.end(), end),
            _ => ByteRange::between(end, end),
        };
        run
    }
}

/// Names the bitmaps that there are to somebody who has named one that is not.
pub fn explain(error: Error, disk: &Disk) -> Failure {
    if error.code() != ErrorCode::BitmapNotFound {
        return error.into();
    }
    match disk.bitmap_list() {
        Ok(list) => Failure::Hint(error, inventory(&list)),
        Err(_) => error.into(),
    }
}

fn inventory(list: &[BitmapInfo]) -> String {
    if list.is_empty() {
        return "the disk has no bitmaps; \"qbm bitmap --add\" makes one".to_owned();
    }
    let told: Vec<String> = list
        .iter()
        .take(NAMES_TOLD)
        .map(|info| format!("{:?}", info.name))
        .collect();
    let more = match list.len() - told.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("the disk has {}{more}", told.join(", "))
}
