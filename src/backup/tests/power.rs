//! Power cuts while somebody changes a folder of backups after others, who were killed or met a sync that failed.
//!
//! All that a folder shows after a cut reads as the disk did. The simulated disk is as harsh as POSIX permits: each name is
//! durable or not by itself, and no sync makes a name durable that one before it has failed on.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::mutation::{self, Fault as Wrong};
use crate::storage::simulated::{CallKind, Event, Fault, Keep as Cut, SimDisk};
use crate::{Granularity, OpenOptions};

const LEN: u64 = 20 * KIB + 700;
const NAME: &str = "disk.qbm";

/// A disk and the folder of its backups, on simulated disks of their own.
struct World {
    /// For what the guest overwrites meanwhile, which no cut touches.
    scratch: TempDir,
    vm: SimDisk,
    backups: SimDisk,
    /// What the disk had at each backup, by its sequence.
    contents: BTreeMap<u64, Vec<u8>>,
}

impl World {
    /// With so many backups, each of which stands on the one before, or all full.
    fn new(backups: u8, full: bool) -> Self {
        let mut world = Self::with(SimDisk::new());
        for _ in 0..backups {
            world.back_up(full).unwrap();
        }
        world
    }

    /// With that for the folder of the backups.
    fn with(backups: SimDisk) -> Self {
        let world = Self {
            scratch: tempfile::tempdir().unwrap(),
            vm: SimDisk::new(),
            backups,
            contents: BTreeMap::new(),
        };
        CreateOptions::new()
            .size(LEN)
            .folder(world.vm.folder())
            .create(NAME)
            .unwrap();
        world
    }

    fn folder(&self) -> BackupFolder {
        self.folder_on(&self.backups)
    }

    fn folder_on(&self, sim: &SimDisk) -> BackupFolder {
        BackupFolder::within(self.scratch.path(), sim.folder(), Some(sim.folder())).unwrap()
    }

    /// Writes something, and backs it up.
    fn back_up(&mut self, full: bool) -> Result<BackupPoint> {
        let mut folder = self.folder();
        let number = folder.points().last().map_or(1, |point| point.sequence + 1);
        let disk = OpenOptions::new().folder(self.vm.folder()).open(NAME).unwrap();
        let bytes = vec![u8::try_from(number).unwrap(); 3000];
        disk.write(&bytes, 2500 * number, WriteFlags::empty()).unwrap();
        self.contents.insert(number, content(&disk).unwrap());
        let backup = Backup::new("nightly")
            .granularity(Granularity::new(1024).unwrap())
            .full(full);
        let finished = backup.run(&disk, &mut folder, &mut proceed())?;
        assert_eq!(finished.not_thawed, None);
        disk.close().unwrap();
        Ok(finished.point)
    }

    /// A backup whose name a failed sync leaves in the page cache.
    fn back_up_unsynced(&mut self, full: bool) {
        // The first is that of the files' names.
        self.backups
            .fail(Fault::new(libc::EIO).on(CallKind::SyncFolder).nth(2));
        let error = self.back_up(full).unwrap_err();
        assert!(
            error.message().contains("may not be in the folder for good"),
            "{error}"
        );
        self.backups.heal();
    }

    /// What is wrong with a folder, in which the backups `there` must be.
    fn look(&self, sim: &SimDisk, there: &[u64]) -> Result<(), String> {
        let folder = self.folder_on(sim);
        if let Some((name, error)) = folder.damaged().first() {
            return Err(format!("{name} is damaged: {error}"));
        }
        if folder.points().is_empty() {
            return Err("there is no backup".to_owned());
        }
        for point in folder.points() {
            let disk = folder
                .open_point(point)
                .map_err(|e| format!("{}: {e}", point.name))?;
            if content(&disk).map_err(|e| e.to_string())? != self.contents[&point.sequence] {
                return Err(format!("{} shows something else", point.name));
            }
        }
        let sound = folder.verify(&mut proceed()).map_err(|e| e.to_string())?;
        if let Some(unsound) = sound.iter().find(|it| it.error.is_some()) {
            return Err(format!("{unsound:?}"));
        }
        let lacks = |number: &&u64| folder.points().iter().all(|point| point.sequence != **number);
        match there.iter().find(lacks) {
            Some(number) => Err(format!("there is no backup number {number}")),
            None => Ok(()),
        }
    }

    /// The same after a power cut at any moment since event `from` of `sim`.
    fn look_after_cuts(&self, sim: &SimDisk, from: u64, there: &[u64]) -> Result<(), String> {
        for point in sim.crash_points().filter(|point| point.events() >= from) {
            for cut in [
                Cut::Nothing,
                Cut::All,
                Cut::Random(1),
                Cut::Random(2),
                Cut::Random(3),
            ] {
                self.look(&point.power_cut_keeping(cut), there)
                    .map_err(|why| format!("{cut:?} after event {}: {why}", point.events()))?;
            }
        }
        Ok(())
    }
}

fn proceed() -> impl FnMut(u64, u64) -> ControlFlow<()> {
    |_, _| ControlFlow::Continue(())
}

fn content(disk: &Disk) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(disk.length()).unwrap()];
    disk.read(&mut bytes, 0)?;
    Ok(bytes)
}

fn now(sim: &SimDisk) -> u64 {
    sim.events().len() as u64
}

/// A prune removes a backup, having merged one that stood on it if there is such a one; it is killed at any moment, and who
/// comes next sweeps.
fn swept_after_a_kill(full: bool) -> Result<(), String> {
    let world = World::new(3, full);
    let begun = now(&world.backups);
    world
        .folder()
        .prune(&Keep::new().last(2), &mut proceed())
        .unwrap();
    let mut swept = 0;
    for event in world.backups.events() {
        if event.number < begun || !event.call.changes() {
            continue;
        }
        let killed = world.backups.after(event.number).kill();
        let files = killed.names().len();
        drop(world.folder_on(&killed).lock().unwrap());
        swept += usize::from(killed.names().len() < files);
        world
            .look_after_cuts(&killed, 0, &[2, 3])
            .map_err(|why| format!("killed after {event}, then {why}"))?;
    }
    assert!(swept > 1, "{swept}");
    Ok(())
}

#[test]
fn a_sweep_removes_nothing_that_a_power_cut_makes_needed_again() {
    for full in [false, true] {
        assert_eq!(swept_after_a_kill(full), Ok(()));
    }
}

#[test]
fn a_sweep_without_a_sync_is_found() {
    let wrong = mutation::with(Wrong::SweptUnsynced, || swept_after_a_kill(true));
    assert!(wrong.is_err_and(|why| why.contains("-data.img")));
}

/// Where the sync fails, nothing goes, and the next one does it.
#[test]
fn nothing_is_swept_where_the_names_cannot_be_made_durable() {
    let world = World::new(3, true);
    let kept = Keep::new().last(1);
    let broken = Fault::new(libc::EIO)
        .on(CallKind::Remove)
        .matching(|call| call.names().any(|it| it.to_string_lossy().ends_with("-data.img")));
    world.backups.fail(broken.from_then_on());
    world.folder().prune(&kept, &mut proceed()).unwrap_err();
    world.backups.heal();
    let names = world.backups.names();
    world.backups.fail(Fault::new(libc::EIO).on(CallKind::SyncFolder));
    let error = world.folder().lock().err().unwrap();
    assert!(error.message().starts_with("cannot sync the folder"), "{error}");
    assert_eq!(world.backups.names(), names);
    drop(world.folder().lock().unwrap());
    assert_eq!(world.backups.names().len(), names.len() - 2);
}

/// The sync that fails is that of the merge's rename. A later one succeeds, and vouches for nothing of it.
fn swept_after_a_failed_sync() -> Result<(), String> {
    let world = World::new(3, false);
    world
        .backups
        .fail(Fault::new(libc::EIO).on(CallKind::SyncFolder).nth(2));
    let error = world
        .folder()
        .prune(&Keep::new().last(1), &mut proceed())
        .unwrap_err();
    assert!(
        error.message().contains("may not be in the folder for good"),
        "{error}"
    );
    let from = now(&world.backups);
    drop(world.folder().lock().unwrap());
    world.look_after_cuts(&world.backups, from, &[3])
}

#[test]
fn a_sweep_does_not_rely_on_a_merge_whose_sync_failed() {
    assert_eq!(swept_after_a_failed_sync(), Ok(()));
    let wrong = mutation::with(Wrong::NamesUnrenewed, swept_after_a_failed_sync);
    assert!(
        wrong.as_ref().is_err_and(|why| why.contains("No such file")),
        "{wrong:?}"
    );
}

/// Two backups, of which the last step of the second has failed, and a third one.
fn stood_on_after_a_failed_sync(full: bool) -> Result<(), String> {
    let mut world = World::new(1, false);
    world.back_up_unsynced(full);
    let from = now(&world.backups);
    let third = world.back_up(false).unwrap();
    let second = world.folder().points()[1].name.clone();
    assert_eq!(third.parent, Some(second));
    world.look_after_cuts(&world.backups, from, &[1])?;
    let to = now(&world.backups);
    world.look_after_cuts(&world.backups, to, &[1, 2, 3])
}

#[test]
fn a_backup_does_not_stand_on_one_whose_sync_failed() {
    for full in [false, true] {
        assert_eq!(stood_on_after_a_failed_sync(full), Ok(()));
        let wrong = mutation::with(Wrong::NamesUnrenewed, || stood_on_after_a_failed_sync(full));
        assert!(wrong.is_err_and(|why| why.contains("needs the backup")));
    }
}

/// The last step of a full backup has failed, after which another one comes or not; then the first one goes.
fn pruned_after_a_failed_sync(comes_next: bool) -> Result<(), String> {
    let mut world = World::new(1, false);
    world.back_up_unsynced(true);
    let mut keep = Keep::new().last(1);
    if comes_next {
        // It is not the newest any more, and was made sure of then.
        world.back_up(true).unwrap();
        keep = keep.last(2);
    }
    let from = now(&world.backups);
    let told = world.folder().prune(&keep, &mut proceed()).unwrap();
    assert_eq!(told.removed.len(), 1);
    world.look_after_cuts(&world.backups, from, if comes_next { &[2] } else { &[] })?;
    world.look_after_cuts(&world.backups, now(&world.backups), &[2])
}

#[test]
fn a_prune_does_not_rely_on_a_backup_whose_sync_failed() {
    for comes_next in [false, true] {
        assert_eq!(pruned_after_a_failed_sync(comes_next), Ok(()));
        let wrong = mutation::with(Wrong::NamesUnrenewed, || pruned_after_a_failed_sync(comes_next));
        assert!(
            wrong
                .as_ref()
                .is_err_and(|why| why.contains("there is no backup")),
            "{wrong:?}"
        );
    }
}

/// Backups that stand on each other go together.
fn a_chain_is_pruned() -> Result<(), String> {
    let mut world = World::new(3, false);
    world.back_up(true).unwrap();
    let from = now(&world.backups);
    let pruned = world
        .folder()
        .prune(&Keep::new().last(1), &mut proceed())
        .unwrap();
    assert_eq!((pruned.removed.len(), pruned.merged.len()), (3, 0));
    world.look_after_cuts(&world.backups, from, &[4])
}

#[test]
fn no_power_cut_brings_a_backup_back_without_what_it_stands_on() {
    assert_eq!(a_chain_is_pruned(), Ok(()));
    let wrong = mutation::with(Wrong::RemovedAtOnce, a_chain_is_pruned);
    assert!(
        wrong.as_ref().is_err_and(|why| why.contains("needs the backup")),
        "{wrong:?}"
    );
}

/// A prune whose sync behind the removal of the first backup fails, and the events of whoever sweeps then.
fn with_an_unsynced_removal(full: bool) -> (World, u64) {
    let world = World::new(3, full);
    let removed = |sim: &SimDisk| sim.events().iter().any(|event| removes(event, ".qbm"));
    for nth in 1.. {
        let failing = world.backups.kill();
        failing.fail(Fault::new(libc::EIO).on(CallKind::SyncFolder).nth(nth));
        let pruned = world
            .folder_on(&failing)
            .prune(&Keep::new().last(2), &mut proceed());
        failing.heal();
        if pruned.is_err() && removed(&failing) {
            let from = now(&failing);
            return (
                World {
                    backups: failing,
                    ..world
                },
                from,
            );
        }
    }
    unreachable!("every prune syncs behind a removal")
}

fn removes(event: &Event, end: &str) -> bool {
    let is_such = |name: &Path| name.to_string_lossy().ends_with(end);
    event.call.kind() == CallKind::Remove && event.call.names().any(is_such)
}

/// Who comes next is killed at any moment, and somebody else sweeps then.
fn swept_after_an_unsynced_removal(full: bool) -> Result<(), String> {
    let (world, from) = with_an_unsynced_removal(full);
    drop(world.folder().lock().unwrap());
    world.look_after_cuts(&world.backups, from, &[2, 3])?;
    for event in world.backups.events().iter().skip(usize::try_from(from).unwrap()) {
        if !event.call.changes() {
            continue;
        }
        let killed = world.backups.after(event.number).kill();
        let folder = world.folder_on(&killed);
        let shown: Vec<u64> = folder.points().iter().map(|point| point.sequence).collect();
        assert_eq!(
            (shown, folder.damaged().len()),
            (vec![2, 3], 0),
            "killed after {event}"
        );
        drop(world.folder_on(&killed).lock().unwrap());
        world
            .look_after_cuts(&killed, 0, &[2, 3])
            .map_err(|why| format!("killed after {event}, then {why}"))?;
        let left = killed.names().len();
        // Of a full backup two files, of an incremental one three; and the lock.
        assert_eq!(
            left,
            if full { 5 } else { 6 },
            "killed after {event}: {:?}",
            killed.names()
        );
    }
    Ok(())
}

#[test]
fn no_power_cut_brings_a_removed_backup_back_without_its_files() {
    for full in [false, true] {
        assert_eq!(swept_after_an_unsynced_removal(full), Ok(()));
        let wrong = mutation::with(Wrong::RemovalsUnrenewed, || swept_after_an_unsynced_removal(full));
        assert!(
            wrong.as_ref().is_err_and(|why| why.contains("No such file")),
            "{wrong:?}"
        );
    }
}

/// What nobody can have removed costs nothing more; and a full file system keeps nobody from making room.
#[test]
fn a_sweep_makes_room_where_there_is_none() {
    let (mut world, _) = with_an_unsynced_removal(true);
    let is_new = |name: &Path| name.to_string_lossy().ends_with(".new");
    let full = Fault::new(libc::ENOSPC)
        .on(CallKind::Create)
        .matching(move |call| call.names().any(is_new));
    world.backups.fail(full.from_then_on());
    let files = world.backups.names().len();
    drop(world.folder().lock().unwrap());
    assert_eq!(world.backups.names().len(), files - 1);
    world.backups.heal();

    let killed = {
        let from = now(&world.backups);
        world.back_up(true).unwrap();
        let events = world.backups.events();
        let published = events
            .iter()
            .find(|it| it.number > from && it.call.kind() == CallKind::Rename);
        world.backups.after(published.unwrap().number - 1).kill()
    };
    let files = killed.names().len();
    drop(world.folder_on(&killed).lock().unwrap());
    assert_eq!(killed.names().len(), files - 2);
    let makes = |event: &&Arc<Event>| event.call.kind() == CallKind::Create && event.failure.is_none();
    assert_eq!(killed.events().iter().find(makes), None);
}

/// The first backup in a folder that somebody has made just now, and whose name nobody has synced.
fn backed_up_to_a_new_folder() -> Result<(), String> {
    let mut world = World::with(SimDisk::just_made());
    world.back_up(false).unwrap();
    world.look_after_cuts(&world.backups, now(&world.backups), &[1])
}

#[test]
fn no_power_cut_takes_the_folder_of_a_backup() {
    assert_eq!(backed_up_to_a_new_folder(), Ok(()));
    let wrong = mutation::with(Wrong::FolderUnnamed, backed_up_to_a_new_folder);
    assert!(
        wrong
            .as_ref()
            .is_err_and(|why| why.contains("there is no backup")),
        "{wrong:?}"
    );
}
