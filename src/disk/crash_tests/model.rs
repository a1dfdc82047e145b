//! What a guest and a backup were told, and when: the content of every sector through time, what was durable since when,
//! and the content at each bitmap's starting point.
//!
//! Time is the number of calls that the simulated disk has seen.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::life::bytes;

/// The bytes that a crash keeps or loses together.
pub(super) const SECTOR: usize = 512;
/// No disk gets longer than this, so that a bitmap of the smallest granularity fits a word.
pub(super) const MAX: usize = 32 << 10;

/// One value of a sector.
#[derive(Clone)]
struct Version {
    begun: u64,
    /// When the call that wrote it had succeeded; never where it failed.
    ended: u64,
    /// It was durable by then.
    durable: bool,
    bytes: Arc<[u8]>,
}

/// What a bitmap is, as far as it outlives a crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// None of one that is inconsistent.
    pub(super) bits: u64,
    pub(super) inconsistent: bool,
    pub(super) granularity: u64,
    pub(super) recording: bool,
    pub(super) epoch: String,
}

/// What the disk says of itself, as far as it outlives a crash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    pub(super) length: u64,
    pub(super) bitmaps: BTreeMap<String, Seen>,
}

/// One step: what the disk said before and behind it.
#[derive(Clone)]
struct Moment {
    begun: u64,
    ended: u64,
    before: Arc<View>,
    after: Arc<View>,
}

#[derive(Clone)]
pub(super) struct Model {
    /// As the guest sees it, zeros behind the disk's end.
    pub(super) content: Vec<u8>,
    sectors: Vec<Vec<Version>>,
    flushes: Vec<(u64, u64)>,
    moments: Vec<Moment>,
    /// The content at the starting points of bitmaps, by the points' ids.
    points: HashMap<String, Arc<[u8]>>,
    /// The contents at which a step failed: starting points that may or may not have come to be.
    doubtful: Vec<Arc<[u8]>>,
    /// Whether anything failed: then less is known.
    pub(super) failed: bool,
    /// Whether a sync of the image did: then its page cache vouches for nothing.
    pub(super) image_failed: bool,
}

impl Model {
    /// Of a disk with this content, all of it durable.
    pub(super) fn new(mut content: Vec<u8>, view: View) -> Self {
        content.resize(MAX, 0);
        let first = |bytes: &[u8]| {
            vec![Version {
                begun: 0,
                ended: 0,
                durable: true,
                bytes: bytes.into(),
            }]
        };
        let view = Arc::new(view);
        let moment = Moment {
            begun: 0,
            ended: 0,
            before: Arc::clone(&view),
            after: view,
        };
        Self {
            sectors: content.chunks(SECTOR).map(first).collect(),
            content,
            flushes: Vec::new(),
            moments: vec![moment],
            points: HashMap::new(),
            doubtful: Vec::new(),
            failed: false,
            image_failed: false,
        }
    }

    /// A call put `bytes` at `at`; maybe, where it never ended.
    pub(super) fn wrote(&mut self, begun: u64, ended: u64, at: usize, bytes: &[u8], durable: bool) {
        let before = (ended == u64::MAX).then(|| self.content.clone());
        self.content[at..at + bytes.len()].copy_from_slice(bytes);
        if bytes.is_empty() {
            return;
        }
        for sector in at / SECTOR..(at + bytes.len()).div_ceil(SECTOR) {
            self.sectors[sector].push(Version {
                begun,
                ended,
                durable,
                bytes: self.content[sector * SECTOR..][..SECTOR].into(),
            });
        }
        if let Some(before) = before {
            self.content = before;
        }
    }

    /// This was found when calls from `begun` on had failed, or their process had died; it need not stay.
    pub(super) fn found(&mut self, begun: u64, content: &[u8]) {
        self.wrote(begun, u64::MAX, 0, content, false);
        self.content.copy_from_slice(content);
    }

    /// A call made what came before it durable.
    pub(super) fn flushed(&mut self, begun: u64, ended: u64) {
        self.flushes.push((begun, ended));
    }

    /// A step is over, and the disk says this.
    pub(super) fn stepped(&mut self, begun: u64, ended: u64, after: View) {
        let before = self.view();
        let after = if after == *before {
            Arc::clone(&before)
        } else {
            Arc::new(after)
        };
        self.moments.push(Moment {
            begun,
            ended,
            before,
            after,
        });
    }

    /// What the disk said last.
    pub(super) fn view(&self) -> Arc<View> {
        match self.moments.last() {
            Some(moment) => Arc::clone(&moment.after),
            None => Arc::default(),
        }
    }

    /// A bitmap may have its starting point now.
    pub(super) fn starts(&mut self, epoch: &str) {
        if !self.points.contains_key(epoch) {
            self.points
                .insert(epoch.to_owned(), self.content.as_slice().into());
        }
    }

    /// A step has failed: whatever it would have started may have been started, or not.
    pub(super) fn step_failed(&mut self) {
        self.failed = true;
        self.doubtful.push(self.content.as_slice().into());
    }

    /// What may be found by whoever comes after `events` calls.
    pub(super) fn at(&self, events: u64, killed: bool) -> Moments<'_> {
        let covered_to = self
            .flushes
            .iter()
            .filter(|(_, ended)| *ended <= events)
            .map(|(begun, _)| *begun)
            .max();
        let allowed = |versions: &Vec<Version>| {
            let issued = versions
                .iter()
                .take_while(|it| it.begun < events || it.begun == 0)
                .count();
            let covered = |it: &Version| {
                let durable = it.durable && it.ended <= events;
                let flushed = covered_to.is_some_and(|to| it.ended <= to);
                durable || flushed || (killed && it.ended <= events)
            };
            let first = versions[..issued].iter().rposition(covered).unwrap_or(0);
            (first, issued)
        };
        let passed = self.moments.partition_point(|it| it.begun < events).max(1);
        let moment = &self.moments[passed - 1];
        let before = if events >= moment.ended {
            &moment.after
        } else {
            &moment.before
        };
        Moments {
            model: self,
            allowed: self.sectors.iter().map(allowed).collect(),
            before,
            after: &moment.after,
            killed,
        }
    }
}

/// What may be found at one moment.
pub(super) struct Moments<'m> {
    model: &'m Model,
    /// Of every sector: from which to which of its versions.
    allowed: Vec<(usize, usize)>,
    pub(super) before: &'m Arc<View>,
    pub(super) after: &'m Arc<View>,
    pub(super) killed: bool,
}

impl Moments<'_> {
    /// The first sector of `found` that is nothing that it may be (A1, A2).
    pub(super) fn unexplained(&self, found: &[u8]) -> Option<usize> {
        found.chunks(SECTOR).enumerate().position(|(sector, bytes)| {
            let (first, end) = self.allowed[sector];
            let versions = &self.model.sectors[sector][first..end];
            !versions.iter().any(|it| &it.bytes[..bytes.len()] == bytes)
        })
    }

    /// What a sector may be, in the bytes that it begins with.
    pub(super) fn explain(&self, sector: usize) -> String {
        let (first, end) = self.allowed[sector];
        let versions = &self.model.sectors[sector];
        let shown = |it: &Version| {
            format!(
                "{}..{}: {:?} {:?}",
                it.begun,
                it.ended,
                &it.bytes[..4],
                &it.bytes[508..]
            )
        };
        let all: Vec<_> = versions.iter().map(shown).collect();
        format!("{first}..{end} of {all:?}")
    }

    /// The granules of `found` that differ from what they were at the starting point `epoch`; an error where nobody knows
    /// of that point.
    pub(super) fn changed(&self, found: &[u8], epoch: &str, granularity: u64) -> Result<Vec<u64>, String> {
        let differs = |then: &[u8]| differing(found, then, bytes(granularity));
        match self.model.points.get(epoch) {
            Some(then) => Ok(vec![differs(then)]),
            None if self.model.doubtful.is_empty() => {
                Err(format!("nobody knows of the starting point {epoch}"))
            }
            None => Ok(self.model.doubtful.iter().map(|then| differs(then)).collect()),
        }
    }

    /// Whether the process before this one, if it died, left the disk with this length or was just giving it another.
    pub(super) fn was_found_at(&self, length: u64) -> bool {
        let first = self.model.moments.first();
        first.is_some_and(|it| [it.before.length, it.after.length].contains(&length))
    }

    /// Whether anything has failed in this life.
    pub(super) fn anything_failed(&self) -> bool {
        self.model.failed
    }

    /// The life after this crash, in which `content` and `view` were found by an open that was done at `opened`: what may
    /// have been there may come back until it is flushed; and until then the rest, too.
    pub(super) fn next_life(&self, mut content: Vec<u8>, view: View, opened: u64) -> Model {
        content.resize(MAX, 0);
        let mut next = Model::new(content.clone(), view);
        next.moments.insert(
            0,
            Moment {
                begun: 0,
                ended: u64::MAX,
                before: Arc::clone(self.before),
                after: Arc::clone(self.after),
            },
        );
        for moment in &mut next.moments[1..] {
            (moment.begun, moment.ended) = (opened - 1, opened);
        }
        next.points.clone_from(&self.model.points);
        next.doubtful.clone_from(&self.model.doubtful);
        for seen in next
            .view()
            .bitmaps
            .values()
            .filter(|it| !it.epoch.is_empty() && !it.inconsistent)
        {
            // A step that failed may have begun it all the same; the bits were held against that already.
            let then = self.model.doubtful.iter().find(|then| {
                let changed = differing(&content, then, bytes(seen.granularity));
                changed & !seen.bits == 0
            });
            if let (Some(then), false) = (then, next.points.contains_key(&seen.epoch)) {
                next.points.insert(seen.epoch.clone(), Arc::clone(then));
            }
        }
        next.failed = self.model.failed;
        let old = self.model.sectors.iter().zip(&self.allowed);
        for (sector, (versions, (first, end))) in next.sectors.iter_mut().zip(old) {
            let found = sector.remove(0);
            let before = versions[*first..*end].iter().enumerate();
            sector.extend(before.map(|(at, it)| Version {
                begun: 0,
                ended: if at == 0 { 0 } else { u64::MAX },
                durable: at == 0,
                bytes: Arc::clone(&it.bytes),
            }));
            sector.push(Version {
                durable: false,
                ..found
            });
        }
        next
    }
}

/// The granules of `size` bytes of `now` that are not what they were.
pub(super) fn differing(now: &[u8], then: &[u8], size: usize) -> u64 {
    let granules = now.chunks(size).zip(then.chunks(size)).enumerate();
    granules
        .filter(|(_, (now, then))| *now != &then[..now.len()])
        .fold(0, |bits, (granule, _)| bits | 1 << granule)
}
