//! The state file at an open: what it says about the last user of the disk, and what has to be done about it.
//!
//! May call `state`. Invariant (D1): where the bitmap files may lack bits, these are in memory before the disk can be
//! asked, and in the files, durably, before the state file says anything new.

mod added;
mod before;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(super) use self::added::NewState;
pub(super) use self::before::Before;
use super::bitmaps::recover::{self, Suspects};
use super::bitmaps::{Bitmap, Loading};
use super::open::{Held, OpenOptions, Place};
use super::overlay::Overlay;
use super::session::{RETIRE_INTERVAL, Recovery, Session};
use super::{Child, Disk, NoticeCode, StateFound};
use crate::bitmap::{BitmapFile, Bits};
use crate::descriptor::Descriptor;
use crate::error::{Error, Result};
use crate::mutation::{self, Fault};
use crate::state::{
    Evidence, Found, Lock, NoEvidence, RegionSet, ShadowId, Stamp, StateFile, Tenure, Verdict, spoil_shadow,
};
use crate::storage::{Storage, SyncMode};
use crate::units::ByteRange;

/// What the descriptor's state file turned out to be.
pub(super) enum StateAtOpen {
    /// The descriptor names none.
    None,
    /// The one that it names is not there.
    Missing(String),
    There {
        storage: Arc<dyn Storage>,
        path: PathBuf,
    },
}

/// A disk that is being opened, as far as the state file matters.
pub(super) struct Recovering<'o> {
    pub(super) options: &'o OpenOptions,
    pub(super) place: &'o Place,
    /// The file that has the descriptor's name.
    pub(super) named: Option<&'o dyn Storage>,
    pub(super) image: &'o Child,
    pub(super) before: Option<Before>,
    pub(super) overlay: Option<&'o Overlay>,
    pub(super) length: u64,
    pub(super) loading: &'o Loading,
}

/// What comes of it.
#[derive(Default)]
pub(super) struct Recovered {
    pub(super) session: Option<Session>,
    pub(super) recovery: Option<Recovery>,
    /// What the state file said, where there was one that did.
    pub(super) found: Option<StateFound>,
    pub(super) content: Content,
}

/// What was found of a disk's content, for whoever has it as his image.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    /// The last one in which it was changed.
    pub(super) tenure: Option<Tenure>,
    /// Why it is not what that one has left, if it is not, in words.
    pub(super) foreign: Option<String>,
    /// All that was acknowledged to a process that was killed is there, as far as the disk's own bits tell.
    pub(super) kept: bool,
}

impl Recovering<'_> {
    /// Looks at the state file, brings `bitmaps` up to it, and, on a disk that is open for writing, goes on with it. That of a
    /// state file which is made is added to `locks`.
    pub(super) fn run(
        &self,
        state: StateAtOpen,
        descriptor: &mut Descriptor,
        bitmaps: &mut [Bitmap],
        locks: &mut Held,
    ) -> Result<Recovered> {
        // An epoch that is none is refused before anything is made or written.
        if let Some(epoch) = &self.options.cache_epoch {
            Evidence::of_epoch(epoch)?;
        }
        let recovered = self.look(state, descriptor, bitmaps, locks)?;
        let widened = recovered.recovery.as_ref().is_some_and(|it| !it.added.is_empty());
        if let (true, Some(session)) = (widened, &recovered.session) {
            // Behind the bits: whoever is killed between the two has a backup that does not say why it is larger.
            session.mark(&recover::marks_of(bitmaps), &recover::notes_of(bitmaps))?;
        }
        Ok(recovered)
    }

    fn look(
        &self,
        state: StateAtOpen,
        descriptor: &mut Descriptor,
        bitmaps: &mut [Bitmap],
        locks: &mut Held,
    ) -> Result<Recovered> {
        match state {
            StateAtOpen::None => {
                self.load(bitmaps)?;
                if !self.options.read_only && !self.options.no_state && !bitmaps.is_empty() {
                    // From now on the state file vouches for them. A process that was killed without one may have left them
                    // in the page cache alone.
                    self.make_image_durable(None, None)?;
                    self.make_durable(bitmaps, Suspects::All, || ())?;
                }
                let mut recovered = self.add(descriptor, bitmaps, locks)?;
                if recovered.session.is_none()
                    && !self.options.read_only
                    && self.options.image_format.is_none()
                {
                    // Nobody tells whether the last user was killed. What is flushed from here on goes to the files that the
                    // descriptor names, and it may have its name in the page cache alone (A2).
                    self.sync_names()?;
                }
                // Bits that no state file vouches for may have gone with the process that set them.
                recovered.content.kept = self.overlay.is_none();
                // It has nothing to say of its own, but hides nothing of what is below it.
                recovered.content.foreign = self.image.disk().and_then(Disk::foreign).map(str::to_owned);
                Ok(recovered)
            }
            StateAtOpen::Missing(why) => {
                let recovery = self.distrust_all(bitmaps, why)?;
                let mut recovered = self.add(descriptor, bitmaps, locks)?;
                recovered.recovery = Some(recovery);
                Ok(recovered)
            }
            StateAtOpen::There { storage, path } => match StateFile::inspect(&*storage, &path)? {
                Ok(found) => self.go_on(found, storage, path, bitmaps),
                Err(unusable) => {
                    let recovery = self.distrust_all(bitmaps, unusable.to_string())?;
                    let session = if self.options.read_only {
                        None
                    } else {
                        let evidence = self.evidence(&*storage, bitmaps)?.ok();
                        let file = StateFile::create(storage, path, self.new_header(descriptor))?;
                        Some(self.session(file, RegionSet::new(), evidence, None)?)
                    };
                    Ok(Recovered {
                        session,
                        recovery: Some(recovery),
                        found: None,
                        content: Content::default(),
                    })
                }
            },
        }
    }

    /// The last user's state is known.
    fn go_on(
        &self,
        found: Found,
        storage: Arc<dyn Storage>,
        path: PathBuf,
        bitmaps: &mut [Bitmap],
    ) -> Result<Recovered> {
        recover::apply_marks(bitmaps, &found.header().marks);
        let said = said(&found, self.options.no_lock && Lock::is_written(&*storage));
        let now = self.evidence(&*storage, bitmaps)?;
        let mut recovery = None;
        // Whoever used an image that is a disk itself without this one is found out whatever became of this one.
        let mut foreign = self.other_user_of_image(&found)?;
        let mut changed_by_open = false;
        let header = found.header();
        if let (true, None, Some(then)) = (header.clean || header.untouched, &foreign, &header.stamp) {
            let now = Stamp::of(&*self.image.storage, &self.image.path)?;
            let (found, marked) = match &self.before {
                Some(before) => before.found(then, now),
                None => (now, false),
            };
            // Of the mark nothing is left when somebody writes.
            changed_by_open = marked || found != now;
            foreign = then.difference(&found);
        }
        match found.verdict(&now, self.length) {
            Verdict::Clean => {}
            Verdict::Exact => recovery = Some(Recovery::exact()),
            Verdict::Widen { ranges, mut why } => {
                if found.damaged_pieces() > 0 {
                    why.push_str(", and a part of the state file's map is damaged");
                }
                let how = if said.in_use {
                    "the disk is in use"
                } else {
                    "the disk was not closed"
                };
                recovery = Some(self.widen(bitmaps, Suspects::Recording, &ranges, (how, why))?);
            }
        }
        let shadowed = self.take_shadow(&found, (&storage, &path), foreign.is_some())?;
        let content = Content {
            tenure: found.header().tenure,
            foreign: foreign.clone(),
            kept: self.overlay.is_none() || found.header().clean || shadowed.is_some(),
        };
        let mut recorded = self.take_foreign_writes(bitmaps)?;
        let distrusted = match &foreign {
            Some(_) if !self.options.trust_image && !recorded => recover::distrust(bitmaps),
            Some(_) => {
                recorded |= self.take_foreign_growth(&found, bitmaps)?;
                Vec::new()
            }
            None => Vec::new(),
        };
        self.load(bitmaps)?;
        let mut session = None;
        if !self.options.read_only {
            // D1: what others have written is in the files before the stamp that tells of it is replaced.
            if (recovery.is_some() || recorded) && !mutation::on(Fault::EvidenceFirst) {
                self.make_image_durable(Some(&*storage), shadowed.as_ref())?;
                self.make_durable(bitmaps, Suspects::Recording, || {
                    // Where nothing at all can be told, neither can it be to the caller, who is about to hear of this.
                    let _ = StateFile::note_failure_in(&storage, path.clone(), found.clone());
                })?;
            } else if found.is_new() {
                // The name of a descriptor that is not durable may go, and with it the state file that is relied on from here.
                self.sync_names()?;
            }
            // Of what was not believed nobody is to think that it was adopted.
            let believed = shadowed.is_some() || mutation::on(Fault::ShadowGoesOn);
            let shadow = found.header().shadow.filter(|_| believed);
            let (file, active) = StateFile::adopt(storage, path, found)?;
            let adopted = self.session(file, active, now.ok(), shadow)?;
            // Others may have made the disk longer than the map reaches. What was active is in the bitmap files by now.
            adopted.intent().cover(self.length, || Ok(()))?;
            if mutation::on(Fault::EvidenceFirst) {
                adopted.begin(self.image, true, None)?;
                self.make_image_durable(None, None)?;
                self.make_durable(bitmaps, Suspects::Recording, || ())?;
            }
            if !distrusted.is_empty() && !mutation::on(Fault::StampFirst) {
                // Durable before the stamp that tells of it is replaced.
                adopted.mark(&recover::marks_of(bitmaps), &recover::notes_of(bitmaps))?;
            }
            if foreign.is_some() || changed_by_open {
                adopted.renew_stamp();
            }
            // Whoever opens this disk as his image has just been told.
            if (foreign.is_some() || !content.kept) && !self.place.is_image() {
                adopted.note_other_content();
            }
            session = Some(adopted);
        }
        if let Some(why) = foreign {
            self.tell_of_foreign_writes(&why, &distrusted);
        }
        Ok(Recovered {
            session,
            recovery,
            found: Some(said),
            content,
        })
    }

    /// Nothing is known of the last user: every bitmap may lack any bit.
    fn distrust_all(&self, bitmaps: &mut [Bitmap], why: String) -> Result<Recovery> {
        let whole = [ByteRange::between(0, self.length)];
        let how = "it is not known how the disk was last used";
        let recovery = self.widen(bitmaps, Suspects::All, &whole, (how, why))?;
        if !self.options.read_only {
            self.make_image_durable(None, None)?;
            // Where that fails, the next opener knows as little.
            self.make_durable(bitmaps, Suspects::All, || ())?;
        }
        Ok(recovery)
    }

    /// Shows what a killed process has written to an overlay and not flushed, where it is sure to be there (A3).
    fn take_shadow(
        &self,
        found: &Found,
        (state, path): (&Arc<dyn Storage>, &Path),
        foreign: bool,
    ) -> Result<Option<Bits>> {
        let Some(overlay) = self.overlay else {
            return Ok(None);
        };
        // An image that is a disk itself may have dropped what the bits stand for, and nobody is told a second time.
        let dropped = !self.image.kept_all() || (foreign && self.image.nested.is_some());
        if dropped && !mutation::on(Fault::ShadowOfOthers) {
            if !self.options.read_only {
                spoil_shadow(&**state);
            }
            return Ok(None);
        }
        let (granularity, granules) = overlay.granules();
        let now = self.evidence_of_image(&**state)?;
        let shadowed = found.shadow(state, path, &now, granularity, granules)?;
        if let Some(bits) = &shadowed {
            overlay.add_found(bits);
        }
        Ok(shadowed)
    }

    /// Whether somebody else has used an image that is a disk itself; why that is so, in words.
    fn other_user_of_image(&self, found: &Found) -> Result<Option<String>> {
        let Some(inner) = self.image.disk() else {
            return Ok(None);
        };
        if let Some(why) = inner.foreign() {
            return Ok(Some(why.to_owned()));
        }
        match &found.header().stamp {
            Some(then) => Ok(then.other_user(&Stamp::of(&*self.image.storage, &self.image.path)?)),
            None => Ok(None),
        }
    }

    /// Makes the image durable, which a process that was killed may have left in the page cache alone, and behind it the bits
    /// that stood in the shadow of its allocation bits (A1). And its length with it: bits behind the end are about to go,
    /// and a power cut must not bring back what they stood for (D1).
    fn make_image_durable(&self, state: Option<&dyn Storage>, shadowed: Option<&Bits>) -> Result<()> {
        let adopt = |bits: Option<&Bits>| match (self.overlay, bits) {
            (Some(overlay), Some(bits)) => overlay.make_found_durable(bits),
            _ => Ok(()),
        };
        // Where there is a shadow, more than a length would be missing: that is another fault.
        if shadowed.is_none() && mutation::on(Fault::FoundLengthUnsynced) {
            return Ok(());
        }
        let late = if mutation::on(Fault::ShadowBeforeImage) {
            adopt(shadowed)?;
            None
        } else {
            shadowed
        };
        if let Err(error) = self.image.storage.sync(SyncMode::Data) {
            if let Some(lost) = &self.options.lost {
                lost.store(true, Ordering::Release);
            }
            // The next opener's sync may succeed, as this failure was told of; and would prove nothing.
            if let Some(state) = state {
                spoil_shadow(state);
            }
            return Err(self.image.failed("flush", &error));
        }
        adopt(late)
    }

    /// Makes durable what else the disk goes on to rely on, as a process that was killed may have left it in the page cache
    /// alone (D1): the bits of `suspects`, and the descriptor under its name. The old one, if it came back, would have
    /// bitmap files that know nothing of what is written from here on.
    ///
    /// `unsure` where a sync has failed: the next opener's may succeed, as this failure was told of, and the bits may be gone
    /// for all that. No evidence tells of it.
    fn make_durable(&self, bitmaps: &[Bitmap], suspects: Suspects, unsure: impl FnOnce()) -> Result<()> {
        if !mutation::on(Fault::NotRewritten) {
            recover::write_again(bitmaps, suspects)?;
            if let Err(error) = recover::sync(bitmaps) {
                if !mutation::on(Fault::RecoveryForgotten) {
                    unsure();
                }
                return Err(error);
            }
        }
        self.sync_names()
    }

    /// Makes the descriptor durable under its name, which a process that was killed may have left in the page cache alone.
    fn sync_names(&self) -> Result<()> {
        if mutation::on(Fault::FoundNamesUnsynced) {
            return Ok(());
        }
        match self.place.folder.sync() {
            // Who gave the descriptor its name may have had the folder.
            Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => self.sync_named(),
            synced => synced.map_err(|e| Error::io("sync the folder", self.place.folder_name(), &e)),
        }
    }

    /// The same without the folder: ext4, XFS and Btrfs make a file's new name durable when all of the file is synced, and not its
    /// data alone.
    fn sync_named(&self) -> Result<()> {
        let Some(file) = self.named.filter(|_| !mutation::on(Fault::FoundFileUnsynced)) else {
            return Ok(());
        };
        match file.sync(SyncMode::All) {
            // A file system that has no syncs has no writers.
            Err(e) if e.raw_os_error() != Some(libc::EINVAL) => {
                Err(Error::io("sync", self.place.shown.join(&self.place.name), &e))
            }
            _ => Ok(()),
        }
    }

    fn widen(
        &self,
        bitmaps: &mut [Bitmap],
        suspects: Suspects,
        ranges: &[ByteRange],
        (how, why): (&str, String),
    ) -> Result<Recovery> {
        let added = recover::widen(bitmaps, suspects, ranges, self.loading, self.length)?;
        for it in &added {
            self.options.notify.send(
                NoticeCode::BitmapWidened,
                &format!(
                    "{how} ({why}): {} bytes more count as changed in bitmap {:?}",
                    it.bytes, it.bitmap
                ),
            );
        }
        Ok(Recovery {
            reason: Some(why),
            added,
        })
    }

    /// Adds what somebody else has recorded of his writes, if the opener has brought it; says whether he has.
    fn take_foreign_writes(&self, bitmaps: &[Bitmap]) -> Result<bool> {
        let Some(writes) = &self.options.foreign_writes else {
            return Ok(false);
        };
        recover::add(bitmaps, writes, self.loading, self.length)?;
        Ok(true)
    }

    /// Makes dirty what somebody else has put behind the disk's end, where it had been longer before; says whether he has.
    fn take_foreign_growth(&self, found: &Found, bitmaps: &[Bitmap]) -> Result<bool> {
        match found.header().stamp.as_ref().map(Stamp::size) {
            Some(then) if then < self.length => recover::regrown(bitmaps, self.loading, then, self.length),
            _ => Ok(false),
        }
    }

    fn tell_of_foreign_writes(&self, why: &str, distrusted: &[String]) {
        for bitmap in distrusted {
            self.options.notify.send(
                NoticeCode::BitmapInconsistent,
                &format!(
                    "{} was written to behind the bitmaps' back ({why}): bitmap {bitmap:?} is inconsistent, and can only \
                     be removed or repaired",
                    self.image.path.display()
                ),
            );
        }
    }

    fn load(&self, bitmaps: &[Bitmap]) -> Result<()> {
        if !self.options.read_only {
            self.loading.recording(bitmaps, self.length)?;
        }
        Ok(())
    }

    /// What vouches for the image's page cache, and for that of the state file.
    fn evidence_of_image(&self, state: &dyn Storage) -> Result<Result<Evidence, NoEvidence>> {
        match &self.options.cache_epoch {
            Some(epoch) => Evidence::of_epoch(epoch).map(Ok),
            None => Ok(self.image.evidence(state)),
        }
    }

    /// What vouches for the page cache; the outer failure is an epoch that is none.
    fn evidence(&self, state: &dyn Storage, bitmaps: &[Bitmap]) -> Result<Result<Evidence, NoEvidence>> {
        if let Some(epoch) = &self.options.cache_epoch {
            return Evidence::of_epoch(epoch).map(Ok);
        }
        let files = bitmaps.iter().filter_map(Bitmap::file);
        Ok(Evidence::gather(state, files.map(BitmapFile::storage)))
    }

    fn session(
        &self,
        file: StateFile,
        active: RegionSet,
        evidence: Option<Evidence>,
        adopted: Option<ShadowId>,
    ) -> Result<Session> {
        let of_image = self.evidence_of_image(file.storage())?;
        let session = Session::new(
            file,
            active,
            self.length,
            self.options.retire_interval.unwrap_or(RETIRE_INTERVAL),
            self.options.bitmap_policy,
            evidence,
        )?
        .untouched(self.options.image_untouched);
        // Where what a killed process wrote is gone, nothing could be shown for a bit.
        if let (Some(overlay), Ok(evidence), true) = (self.overlay, of_image, self.image.outlives_kill()) {
            session.keep_shadow(overlay.granules().0, evidence, adopted);
        }
        Ok(session)
    }
}

impl Recovery {
    fn exact() -> Self {
        Self {
            reason: None,
            added: Vec::new(),
        }
    }
}

fn said(found: &Found, in_use: bool) -> StateFound {
    let header = found.header();
    StateFound {
        closed: header.clean,
        in_use,
        policy: header.policy,
        region_bytes: header.region.bytes(),
        // After a clean close the map says nothing.
        active_regions: if header.clean { 0 } else { found.active().len() },
    }
}
