//! Random operations against a plain model: a set of dirty granules, and the list of what may be done with it.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Write { at: u64, len: u64 },
    Zero { at: u64, len: u64 },
    Set { bitmap: usize, at: u64, len: u64 },
    Reset { bitmap: usize, at: u64, len: u64 },
    Clear(usize),
    Enable(usize),
    Disable(usize),
    Merge { target: usize, source: usize },
    Freeze(usize),
    Thaw { bitmap: usize, outcome: Thaw },
    Keep { bitmap: usize, persistent: bool },
    Resize(u64),
    Reopen,
    Kill,
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const GRANULARITIES: [u64; 4] = [512, 4096, 64 * KIB, 2 * MIB];

/// What one bitmap should be. Bits are in granules.
#[derive(Clone, Default)]
struct Model {
    granularity: u64,
    bits: BTreeSet<u64>,
    recording: bool,
    persistent: bool,
    start: u64,
    frozen: Option<(BTreeSet<u64>, u64)>,
}

impl Model {
    fn touched(&self, at: u64, end: u64) -> std::ops::Range<u64> {
        if at < end {
            at / self.granularity..end.div_ceil(self.granularity)
        } else {
            0..0
        }
    }

    fn write(&mut self, at: u64, end: u64) {
        let touched = self.touched(at, end);
        if self.recording {
            match &mut self.frozen {
                Some((successor, _)) => successor.extend(touched),
                None => self.bits.extend(touched),
            }
        }
    }

    fn resize(&mut self, old: u64, new: u64) {
        let granules = new.div_ceil(self.granularity);
        let back = self.touched(old, new.min(self.start));
        self.bits.retain(|granule| *granule < granules);
        if self.recording {
            self.bits.extend(back);
        }
        if let Some((successor, start)) = self.frozen.clone() {
            let back = self.touched(old, new.min(start));
            let mut successor = successor;
            successor.retain(|granule| *granule < granules);
            if self.recording {
                successor.extend(back);
            }
            self.frozen = Some((successor, start));
        }
    }
}

/// Lengths at and beside the ends of granules, words of bits and groups of words.
fn lengths() -> impl Strategy<Value = u64> {
    let ends = prop_oneof![
        Just(0u64),
        Just(512),
        Just(4096),
        Just(512 * 64),
        Just(64 * KIB),
        Just(512 * 4096),
        Just(64 * KIB * 64),
        Just(512 * 4096 * 8),
    ];
    (ends, -1i64..=1).prop_map(|(end, by)| end.saturating_add_signed(by).max(1))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = || (0..20 * MIB, prop_oneof![0..3u64, 0..MIB]);
    let bitmap = || 0..NAMES.len();
    let step = prop_oneof![
        6 => place().prop_map(|(at, len)| Step::Write { at, len }),
        1 => place().prop_map(|(at, len)| Step::Zero { at, len }),
        1 => (bitmap(), place()).prop_map(|(bitmap, (at, len))| Step::Set { bitmap, at, len }),
        1 => (bitmap(), place()).prop_map(|(bitmap, (at, len))| Step::Reset { bitmap, at, len }),
        1 => bitmap().prop_map(Step::Clear),
        1 => bitmap().prop_map(Step::Enable),
        1 => bitmap().prop_map(Step::Disable),
        1 => (bitmap(), bitmap()).prop_map(|(target, source)| Step::Merge { target, source }),
        2 => bitmap().prop_map(Step::Freeze),
        2 => (bitmap(), prop_oneof![Just(Thaw::Commit), Just(Thaw::Rollback)])
            .prop_map(|(bitmap, outcome)| Step::Thaw { bitmap, outcome }),
        1 => (bitmap(), any::<bool>()).prop_map(|(bitmap, persistent)| Step::Keep { bitmap, persistent }),
        1 => lengths().prop_map(Step::Resize),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
    ];
    proptest::collection::vec(step, 1..40)
}

struct World {
    sim: SimDisk,
    disk: Option<Disk>,
    policy: BitmapPolicy,
    models: Vec<Model>,
    length: u64,
}

impl World {
    fn new(length: u64, policy: BitmapPolicy) -> Self {
        let (sim, disk) = disk_of(length);
        drop(disk);
        let mut world = Self {
            sim,
            disk: None,
            policy,
            models: Vec::new(),
            length,
        };
        world.open();
        for (name, granularity) in NAMES.into_iter().zip(GRANULARITIES) {
            world.disk().bitmap_add(name, of(granularity)).unwrap();
            world.models.push(Model {
                granularity,
                recording: true,
                persistent: true,
                start: length,
                ..Model::default()
            });
        }
        world
    }

    fn open(&mut self) {
        self.disk = None;
        self.disk = Some(options(&self.sim).bitmap_policy(self.policy).open(NAME).unwrap());
    }

    fn disk(&self) -> &Disk {
        self.disk.as_ref().unwrap()
    }

    /// Opens again what outlives the handle: frozen bitmaps thaw by a rollback, transient ones are gone, and the test
    /// adds them anew.
    fn reopened(&mut self) {
        self.open();
        for (name, model) in NAMES.into_iter().zip(&mut self.models) {
            if let Some((successor, _)) = model.frozen.take() {
                model.bits.extend(successor);
            }
            if !model.persistent {
                model.bits.clear();
                model.recording = true;
                model.start = self.length;
                let options = AddBitmap {
                    persistent: false,
                    ..of(model.granularity)
                };
                self.disk.as_ref().unwrap().bitmap_add(name, options).unwrap();
            }
        }
    }

    /// Does a step to a bitmap, which must be refused exactly if it is frozen.
    fn on_free(
        &mut self,
        bitmap: usize,
        act: impl FnOnce(&Disk, &str) -> Result<()>,
        change: impl FnOnce(&mut Model, u64),
    ) {
        let result = act(self.disk(), NAMES[bitmap]);
        let length = self.length;
        let model = &mut self.models[bitmap];
        if model.frozen.is_some() {
            assert_eq!(result.unwrap_err().code(), ErrorCode::BitmapBusy);
        } else {
            result.unwrap();
            change(model, length);
        }
    }

    fn clip(&self, at: u64, len: u64) -> (u64, u64) {
        let at = at % self.length;
        (at, len.min(self.length - at))
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write { at, len } | Step::Zero { at, len } => {
                let (at, len) = self.clip(at, len);
                if matches!(step, Step::Write { .. }) {
                    write(self.disk(), at, usize::try_from(len).unwrap()).unwrap();
                } else {
                    self.disk().write_zeroes(at, len, WriteFlags::empty()).unwrap();
                }
                self.models.iter_mut().for_each(|model| model.write(at, at + len));
            }
            Step::Set { bitmap, at, len } => {
                let (at, len) = self.clip(at, len);
                self.on_free(
                    bitmap,
                    |disk, name| disk.bitmap_set(name, at, len),
                    |model, _| {
                        let touched = model.touched(at, at + len);
                        model.bits.extend(touched);
                    },
                );
            }
            Step::Reset { bitmap, at, len } => {
                let (at, len) = self.clip(at, len);
                self.on_free(
                    bitmap,
                    |disk, name| disk.bitmap_reset(name, at, len),
                    |model, length| {
                        let granularity = model.granularity;
                        let before = model.bits.len();
                        model.bits.retain(|granule| {
                            let start = granule * granularity;
                            let end = (start + granularity).min(length);
                            !(at <= start && end <= at + len)
                        });
                        if model.bits.len() != before {
                            model.start = length;
                        }
                    },
                );
            }
            Step::Clear(bitmap) => self.on_free(bitmap, Disk::bitmap_clear, |model, length| {
                model.bits.clear();
                model.start = length;
            }),
            Step::Enable(bitmap) => self.on_free(bitmap, Disk::bitmap_enable, |model, length| {
                if !model.recording {
                    model.start = length;
                }
                model.recording = true;
            }),
            Step::Disable(bitmap) => {
                self.on_free(bitmap, Disk::bitmap_disable, |model, _| model.recording = false);
            }
            Step::Merge { target, source } => self.merge(target, source),
            Step::Freeze(bitmap) => self.on_free(bitmap, Disk::bitmap_freeze, |model, length| {
                model.frozen = Some((BTreeSet::new(), length));
            }),
            Step::Thaw { bitmap, outcome } => {
                let result = self.disk().bitmap_thaw(NAMES[bitmap], outcome);
                let model = &mut self.models[bitmap];
                let Some((successor, start)) = model.frozen.take() else {
                    return assert_eq!(result.unwrap_err().code(), ErrorCode::BitmapState);
                };
                result.unwrap();
                if outcome == Thaw::Commit {
                    model.bits = successor;
                    model.start = start;
                } else {
                    model.bits.extend(successor);
                }
            }
            Step::Keep { bitmap, persistent } => self.on_free(
                bitmap,
                |disk, name| disk.bitmap_set_persistent(name, persistent),
                |model, _| model.persistent = persistent,
            ),
            Step::Resize(length) => {
                self.disk().truncate(length, TruncateFlags::SHRINK).unwrap();
                let old = std::mem::replace(&mut self.length, length);
                self.models.iter_mut().for_each(|model| model.resize(old, length));
            }
            Step::Reopen => {
                self.disk.take().unwrap().close().unwrap();
                self.reopened();
            }
            Step::Kill if self.policy == BitmapPolicy::WriteThrough => {
                self.sim = self.sim.kill();
                self.reopened();
            }
            // What the lazy policy has not written by then is for recovery to find.
            Step::Kill => {}
        }
    }

    fn merge(&mut self, target: usize, source: usize) {
        let sources = [MergeSource::Bitmap(NAMES[source])];
        let result = self.disk().bitmap_merge(NAMES[target], &sources);
        if self.models[target].frozen.is_some() || self.models[source].frozen.is_some() {
            return assert_eq!(result.unwrap_err().code(), ErrorCode::BitmapBusy);
        }
        result.unwrap();
        let from = self.models[source].clone();
        let into = &mut self.models[target];
        for granule in from.bits {
            let start = granule * from.granularity;
            let touched = into.touched(start, (start + from.granularity).min(self.length));
            into.bits.extend(touched);
        }
    }

    fn check(&self) {
        for (name, model) in NAMES.into_iter().zip(&self.models) {
            let mut found = BTreeSet::new();
            let mut at = 0;
            while let Some(range) = self.disk().bitmap_next_dirty(name, at, u64::MAX).unwrap() {
                found.extend(model.touched(range.start(), range.end()));
                at = range.end();
            }
            assert_eq!(found, model.bits, "bitmap {name}");
            assert_eq!(self.disk().bitmap_count(name).unwrap(), found.len() as u64);
            let info = self.disk().bitmap_info(name).unwrap();
            assert_eq!(
                (info.recording, info.busy, info.persistent),
                (model.recording, model.frozen.is_some(), model.persistent)
            );
            assert_eq!(info.start_length, Some(model.start));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn bitmaps_do_what_the_model_does(
        length in lengths(),
        lazy in any::<bool>(),
        steps in steps(),
    ) {
        let policy = if lazy { BitmapPolicy::Lazy } else { BitmapPolicy::WriteThrough };
        let mut world = World::new(length, policy);
        for step in steps {
            world.step(step);
            world.check();
        }
    }
}
