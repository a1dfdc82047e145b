//! Facts about an open disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bitmaps::Shape;
use super::overlay::{self, Chain, number};
use super::{Disk, Recovery};
use crate::bitmap::BitmapPolicy;
use crate::descriptor::{BackingEntry, Format};
use crate::error::{Error, ErrorCode, Result};
use crate::storage::{Limits, Storage};
use crate::units::Granularity;

/// Facts about an open disk, from [`Disk::info`]. Sizes are in bytes.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "facts, each by itself")]
pub struct Info {
    /// The disk's length.
    pub length: u64,
    /// What the image takes on the host.
    pub allocated: u64,
    /// What transfers the image likes, and what it can do.
    pub limits: Limits,
    /// How the disk takes from its backing; `None` where all of it is in its own image.
    pub overlay: Option<OverlayInfo>,
    /// How many layers [`Disk::layer`] knows.
    pub layers: u32,
    /// Open for writing.
    pub writable: bool,
    /// The image is accessed around the page cache.
    pub direct: bool,
    /// A flush has failed: the disk must be reopened.
    pub failed: bool,
    /// Whether a state file stands behind the bitmaps: without one, a power cut can lose bits. One that the descriptor names,
    /// but that is missing or damaged, stands behind nothing.
    pub protected: bool,
    /// What the state file said when the disk was opened; `None` where the descriptor names none.
    pub state: Option<StateInfo>,
    /// How many regions of the disk a power cut would have counted as changed, if it came now, beyond what the bitmaps
    /// say; see [`CreateOptions::region_bytes`](super::CreateOptions::region_bytes). Of a disk that is open read-only: how
    /// many its last user left behind.
    pub active_regions: u64,
    /// What recovery did when the disk was opened; `None` where it had been closed cleanly, or never had a state file.
    pub recovery: Option<Recovery>,
    /// When the bits that writes set get into the bitmaps' files.
    pub bitmap_policy: BitmapPolicy,
}

/// A disk's state file, as it was when the disk was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StateInfo {
    /// The file as the descriptor names it.
    pub file: String,
    /// What it said; `None` where it was not there, damaged, or new.
    pub found: Option<StateFound>,
    /// There is no such file, and none was made.
    pub missing: bool,
}

/// What a state file said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StateFound {
    /// The disk had been closed, and not written to since.
    pub closed: bool,
    /// Somebody else had it open for writing. Only an open without locks can meet that, and only of a host's file.
    pub in_use: bool,
    /// How its last user saved bitmaps.
    pub policy: BitmapPolicy,
    /// How many bytes of the disk a region of the intent map has.
    pub region_bytes: u64,
    /// How many regions were active.
    pub active_regions: u64,
}

/// How a disk takes from its backing.
#[derive(Clone, Debug)]
pub struct OverlayInfo {
    /// The name of its allocation bitmap.
    pub bitmap: String,
    /// The unit in which it takes.
    pub granularity: Granularity,
    /// How many granules are in its own image.
    pub allocated: u64,
    /// The backing image as the descriptor names it; `None` where the rest reads as zeros.
    pub backing: Option<BackingEntry>,
}

/// One image of the chain, from [`Disk::layer`].
#[derive(Clone, Debug)]
pub struct Layer {
    /// Where it is, as it was opened.
    pub path: PathBuf,
    /// What it is.
    pub format: Format,
    /// The descriptor that names it; `None` of an image that has none.
    pub descriptor: Option<PathBuf>,
    /// Its length in bytes.
    pub length: u64,
    /// Of what an image that is a QBM disk itself is made of: the number of that image's layer. Such layers come behind all
    /// others, and are no part of the chain: their bytes are that image's.
    pub part_of: Option<u32>,
}

/// A layer, and the file itself where it is a raw image.
pub(super) type Listed = (Layer, Option<Arc<dyn Storage>>);

impl overlay::Layer {
    fn listed(&self) -> Listed {
        let layer = Layer {
            path: self.image.path.clone(),
            format: self.format,
            descriptor: self.descriptor.clone(),
            length: self.length,
            part_of: None,
        };
        let raw = (self.format == Format::Raw).then(|| Arc::clone(self.image.storage.shared()));
        (layer, raw)
    }
}

impl Chain {
    /// As [`Disk::list_layers`], of a chain that is an image: its nearest is number `first`.
    pub(super) fn list_layers(&self, first: u32, list: &mut Vec<Listed>) {
        let before = list.len();
        list.extend(self.layers.iter().map(overlay::Layer::listed));
        for (index, layer) in self.layers.iter().enumerate() {
            let at = first + number(list.len() - before);
            layer.image.list_parts(first + number(index), at, list);
        }
    }
}

impl Disk {
    /// Facts about the disk, as they are now.
    pub fn info(&self) -> Result<Info> {
        self.alive.check()?;
        let shape = self.gate.enter();
        let image = self.image();
        let allocated = image
            .storage
            .allocated_bytes()
            .map_err(|e| image.failed("measure", &e))?;
        Ok(Info {
            length: self.length(),
            allocated,
            limits: image.storage.limits(),
            overlay: shape.overlay.as_ref().map(|overlay| overlay.info()),
            layers: self.count_layers_in(&shape),
            writable: self.writable,
            direct: self.direct,
            failed: self.alive.has_failed(),
            protected: self.session.is_some() || self.state.as_ref().is_some_and(|it| it.found.is_some()),
            state: self.state.clone(),
            active_regions: match (&self.session, &self.state) {
                (Some(session), _) => session.intent().active(),
                (
                    None,
                    Some(StateInfo {
                        found: Some(found), ..
                    }),
                ) => found.active_regions,
                (None, _) => 0,
            },
            recovery: self.recovery.clone(),
            bitmap_policy: self.policy,
        })
    }

    /// Layer `index` of the disk: 0 is its own image, then the backing images from the nearest on.
    pub fn layer(&self, index: u32) -> Result<Layer> {
        self.alive.check()?;
        if index == 0 {
            return Ok(self.own_layer().0);
        }
        let mut list = Vec::new();
        self.list_layers(0, &mut list);
        let count = list.len();
        list.into_iter()
            .nth(index as usize)
            .map(|(layer, _)| layer)
            .ok_or_else(|| {
                Error::new(
                    ErrorCode::OutOfRange,
                    format!("there is no layer {index}: the disk has {count}"),
                )
            })
    }

    fn own_layer(&self) -> Listed {
        let format = self.structure().descriptor.image().format;
        let image = self.image();
        let layer = Layer {
            path: image.path.clone(),
            format,
            descriptor: self.described.then(|| self.path.clone()),
            length: self.length(),
            part_of: None,
        };
        let raw = (format == Format::Raw).then(|| Arc::clone(image.storage.shared()));
        (layer, raw)
    }

    /// Adds all layers to `list`, where the first has number `first`.
    pub(super) fn list_layers(&self, first: u32, list: &mut Vec<Listed>) {
        list.push(self.own_layer());
        let shape = self.gate.enter();
        let below = self.chain_below(&shape);
        if let Some(chain) = below {
            list.extend(chain.layers.iter().map(overlay::Layer::listed));
        }
        let next = |list: &Vec<Listed>, before: usize| first + number(list.len() - before);
        let before = list.len() - 1 - below.map_or(0, |chain| chain.layers.len());
        let at = next(list, before);
        self.image().list_parts(first, at, list);
        for (index, layer) in below.iter().flat_map(|chain| &chain.layers).enumerate() {
            let at = next(list, before);
            layer.image.list_parts(first + 1 + number(index), at, list);
        }
    }

    /// How many there are.
    pub(super) fn count_layers(&self) -> u32 {
        self.count_layers_in(&self.gate.enter())
    }

    fn count_layers_in(&self, shape: &Shape) -> u32 {
        let below = self.chain_below(shape).map_or(0, Chain::count_layers);
        1 + below + self.image().parts()
    }

    /// The file of layer `index`, if that is a raw image: its bytes are the disk's, at the same offsets.
    pub(crate) fn raw_layer(&self, index: u32) -> Option<Arc<dyn Storage>> {
        if index == 0 {
            return self.own_layer().1;
        }
        let mut list = Vec::new();
        self.list_layers(0, &mut list);
        list.into_iter().nth(index as usize)?.1
    }

    /// The images below: the overlay's, or those that the image itself names.
    fn chain_below<'s>(&'s self, shape: &'s Shape) -> Option<&'s Chain> {
        match &shape.overlay {
            Some(overlay) => Some(overlay.chain()),
            None => self.below.as_deref(),
        }
    }

    /// The descriptor's file, or the image's that has none, as it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this process opened it, not its parent.
    pub(crate) fn is_ours(&self) -> bool {
        self.alive.is_ours()
    }

    /// Makes the disk refuse all further use: the engine has met a bug of its own. True where it was usable before.
    pub(crate) fn break_down(&self) -> bool {
        let was_sound = self.alive.break_down();
        if was_sound {
            self.notify.send(
                super::NoticeCode::Failed,
                "the disk met an internal error and refuses further use; close and reopen it",
            );
        }
        was_sound
    }
}
