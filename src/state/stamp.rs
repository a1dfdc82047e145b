//! The stamp of the image: what tells that somebody wrote to it behind the bitmaps' back.
//!
//! May call `storage`. Invariant: two stamps match only where nothing that the file system keeps says that the image has
//! changed. A match is no proof: whoever sets the time back, or writes to a block device, leaves none.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::header::{get, put};
use super::sys;
use super::tenure::Tenure;
use crate::error::{Error, Result};
use crate::storage::{Storage, Version};

/// A moment as the file system keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Moment {
    seconds: i64,
    nanoseconds: u32,
}

/// The size of an image, and what else tells that it was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    size: u64,
    trace: Trace,
}

/// What a change of an image leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trace {
    /// Nothing: a block device keeps no time.
    None,
    /// The time of the last change of a file.
    Modified(Moment),
    /// Of an image that is more than one file: most are disks themselves.
    Disk(Version),
}

/// The longest that [`Stamp::take`] waits for the clock, where the file system keeps fractions of seconds.
const PATIENCE: Duration = Duration::from_millis(100);
/// And where it seems to keep whole seconds, or two.
const LONG_PATIENCE: Duration = Duration::from_millis(2100);
const NAP: Duration = Duration::from_millis(1);

impl Stamp {
    /// The stamp of the image as it is now, for comparison with one that was kept.
    pub(crate) fn of(image: &dyn Storage, path: &Path) -> Result<Self> {
        Self::look(image).map_err(|e| Error::io("take the size and the time of", path, &e))
    }

    /// The stamp to be kept, at a clean close: the image is synced first, its times included, and the call returns only
    /// when the clock that stamps files has moved on.
    ///
    /// Not `fdatasync`, because a time that a power cut takes back would look like a foreign write. The wait (a tick of
    /// the kernel, 1 to 10 ms) because a foreign write within the tick of our own last one would get the same time.
    ///
    /// `sync` makes the image durable so: where that fails, it is the disk that has failed (A2).
    pub(crate) fn take(image: &dyn Storage, path: &Path, sync: impl FnOnce() -> Result<()>) -> Result<Self> {
        sync()?;
        let stamp = Self::of(image, path)?;
        let clock = |e| Error::io("ask the clock that stamps", path, &e);
        match stamp.trace {
            Trace::Modified(modified) => outwait(modified).map_err(clock)?,
            // None of its files can have a later time than now.
            Trace::Disk(Version::Files(_)) => outwait(Moment::now().map_err(clock)?).map_err(clock)?,
            // What its own files have is in its own stamp.
            Trace::Disk(Version::Tenure { .. }) | Trace::None => {}
        }
        Ok(stamp)
    }

    /// How long the image was.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The same stamp of an image that is several files of that `version`.
    pub(crate) fn of_files(self, version: Version) -> Self {
        Self {
            trace: Trace::Disk(version),
            ..self
        }
    }

    /// The same stamp with the time of its files from before one was changed by its own opener.
    pub(crate) fn as_found(self, before: &Self) -> Self {
        match (self.trace, before.trace) {
            (Trace::Modified(_), Trace::Modified(_))
            | (Trace::Disk(Version::Files(_)), Trace::Disk(Version::Files(_))) => Self {
                trace: before.trace,
                ..self
            },
            _ => self,
        }
    }

    fn look(image: &dyn Storage) -> io::Result<Self> {
        let size = image.length()?;
        if let Some(version) = image.version()? {
            let trace = Trace::Disk(version);
            return Ok(Self { size, trace });
        }
        let trace = match image.host_file() {
            Some(fd) if !image.limits().block_device => {
                let metadata = std::fs::File::from(fd.try_clone_to_owned()?).metadata()?;
                Trace::Modified(Moment {
                    seconds: metadata.mtime(),
                    nanoseconds: u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
                })
            }
            _ => Trace::None,
        };
        Ok(Self { size, trace })
    }

    /// The same for an image that is still in use by its stamp's taker, or was when he was killed: only of one that is a disk
    /// itself does that say that somebody else has changed it.
    pub(crate) fn other_user(&self, now: &Self) -> Option<String> {
        let Trace::Disk(Version::Tenure { now: then, next }) = self.trace else {
            return None;
        };
        let Trace::Disk(Version::Tenure { now, .. }) = now.trace else {
            return Some(OTHER_FILES.to_owned());
        };
        let ours = now == then || (next != 0 && Tenure::following(then, next).number() == now);
        (!ours).then(|| OTHER_TENURE.to_owned())
    }

    /// The same stamp of an image that is a disk itself, and that is about to begin another tenure; and that one. What was
    /// `noted` of it before stays: it may have begun that though it said that it failed.
    pub(crate) fn announcing(self, noted: Option<&Self>) -> Result<(Self, Option<Tenure>)> {
        let Trace::Disk(Version::Tenure { now, .. }) = self.trace else {
            return Ok((self, None));
        };
        let next = match noted.map(|it| it.trace) {
            Some(Trace::Disk(Version::Tenure { now: then, next })) if then == now && next != 0 => next,
            _ => Tenure::announced()?,
        };
        let trace = Trace::Disk(Version::Tenure { now, next });
        Ok((Self { trace, ..self }, Some(Tenure::following(now, next))))
    }

    /// What is left in an image whose header an opener changes, to tell it from a foreign write: a number that only an image
    /// with this time has. Zero where the file keeps none. Its low half is clear.
    ///
    /// D1: nobody who may change the image leaves it there, so while it is there, the content is that of this stamp.
    pub(crate) fn mark(&self) -> u64 {
        let modified = match self.trace {
            Trace::Modified(modified) => modified,
            Trace::Disk(version) => return version.mark(),
            Trace::None => return 0,
        };
        let seconds = modified.seconds.to_le_bytes();
        let bytes = seconds.into_iter().chain(modified.nanoseconds.to_le_bytes());
        // FNV-1a, whose upper half is the better one.
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        (hash & !u64::from(u32::MAX)) | 1 << 32
    }

    /// What tells that `now` is not the image that this stamp was taken of, in words; `None` where nothing does.
    pub(crate) fn difference(&self, now: &Self) -> Option<String> {
        if self.size != now.size {
            return Some(format!(
                "it had {} bytes when it was closed, and has {} now",
                self.size, now.size
            ));
        }
        if self.trace == now.trace {
            return None;
        }
        let words = match (self.trace, now.trace) {
            (Trace::Modified(then), Trace::Modified(now)) => {
                let back = if now < then {
                    ", which is earlier: it or the state file was replaced, or its time set back"
                } else {
                    ""
                };
                return Some(format!(
                    "it was last changed {then} when it was closed, and {now} now{back}"
                ));
            }
            (Trace::Disk(Version::Tenure { .. }), Trace::Disk(Version::Tenure { .. })) => OTHER_TENURE,
            (Trace::Disk(Version::Files(_)), Trace::Disk(Version::Files(_))) => {
                "it is more than one file, and one of them was changed since"
            }
            (Trace::Disk(_), Trace::Disk(_)) => OTHER_FILES,
            (Trace::Disk(Version::Files(_)), _) => {
                "it was more than one file when it was closed, and is one now"
            }
            (_, Trace::Disk(Version::Files(_))) => {
                "it was one file when it was closed, and is more than one now"
            }
            (Trace::Disk(_), _) => "it was a disk itself when it was closed, and is none now",
            (_, Trace::Disk(_)) => "it was no disk itself when it was closed, and is one now",
            (Trace::Modified(_), Trace::None) => "it was a regular file when it was closed, and is none now",
            (Trace::None, _) => "it was no regular file when it was closed, and is one now",
        };
        Some(words.to_owned())
    }

    /// Into the 24 bytes of the header.
    pub(super) fn encode(stamp: Option<&Self>, fields: &mut [u8]) {
        let Some(stamp) = stamp else {
            return;
        };
        let (kind, nanoseconds, last) = match stamp.trace {
            Trace::None => (1, 0, [0; 8]),
            Trace::Modified(modified) => (2, modified.nanoseconds, modified.seconds.to_le_bytes()),
            Trace::Disk(Version::Tenure { now, next }) => (3, next, now.to_le_bytes()),
            Trace::Disk(Version::Files(hash)) => (4, 0, hash.to_le_bytes()),
        };
        put(fields, 0, &[kind]);
        put(fields, 4, &nanoseconds.to_le_bytes());
        put(fields, 8, &stamp.size.to_le_bytes());
        put(fields, 16, &last);
    }

    /// From the 24 bytes of the header.
    pub(super) fn decode(fields: &[u8]) -> Result<Option<Self>, String> {
        let size = u64::from_le_bytes(get(fields, 8));
        let last = get(fields, 16);
        let trace = match u32::from_le_bytes(get(fields, 0)) {
            0 => return Ok(None),
            1 => Trace::None,
            2 => Trace::Modified(Moment {
                seconds: i64::from_le_bytes(last),
                nanoseconds: u32::from_le_bytes(get(fields, 4)),
            }),
            3 => Trace::Disk(Version::Tenure {
                now: u64::from_le_bytes(last),
                next: u32::from_le_bytes(get(fields, 4)),
            }),
            4 => Trace::Disk(Version::Files(u64::from_le_bytes(last))),
            kind => return Err(format!("its stamp of the image is of the unknown kind {kind}")),
        };
        Ok(Some(Self { size, trace }))
    }
}

const OTHER_FILES: &str = "it is a disk itself, and its files were changed since, or its state file";
const OTHER_TENURE: &str = "it is a disk itself, and was changed by another user since";

impl Moment {
    fn now() -> io::Result<Self> {
        let (seconds, nanoseconds) = sys::coarse_clock()?;
        Ok(Self {
            seconds,
            nanoseconds: u32::try_from(nanoseconds).unwrap_or(0),
        })
    }
}

/// In UTC: `at 2026-11-23T14:13:39.503923445Z`.
impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Ok(seconds) = u64::try_from(self.seconds) else {
            return f.write_str("before 1970");
        };
        let second = crate::time::Moment::at(seconds).rfc3339();
        write!(f, "at {}.{:09}Z", second.trim_end_matches('Z'), self.nanoseconds)
    }
}

/// Waits until a write would get another time than `modified`.
fn outwait(modified: Moment) -> io::Result<()> {
    outwait_by(modified, Moment::now, std::thread::sleep)
}

/// The same by this clock, and with these naps.
///
/// A time in the future is left alone: a write would change it to the present.
fn outwait_by(
    modified: Moment,
    mut clock: impl FnMut() -> io::Result<Moment>,
    mut nap: impl FnMut(Duration),
) -> io::Result<()> {
    // Zero nanoseconds look like a file system that keeps whole seconds; the wait is long where it does, and a chance
    // in a million where it does not.
    let (unit, patience) = match modified.nanoseconds {
        0 => (2, LONG_PATIENCE),
        _ => (0, PATIENCE),
    };
    let mut waited = Duration::ZERO;
    while waited < patience {
        let now = clock()?;
        let same = match unit {
            0 => now == modified,
            unit => (modified.seconds..modified.seconds.saturating_add(unit)).contains(&now.seconds),
        };
        // A finer clock than the coarse one may have stamped the file: it is behind by a tick then.
        let behind = now < modified && modified.seconds - now.seconds <= 1;
        if !same && !behind {
            return Ok(());
        }
        nap(NAP);
        waited += NAP;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs::{File, FileTimes, OpenOptions};
    use std::io::Write;
    use std::time::SystemTime;

    use super::{Duration, Moment, Path, Storage, Trace, Version, io, outwait_by};
    use crate::state::Stamp;
    use crate::storage::simulated::SimDisk;
    use crate::storage::{Access, FileStorage, Folder, Role};

    /// Stamps of every kind, for the tests of the header.
    pub(in crate::state) fn some(size: u64, modified: Option<(i64, u32)>) -> Stamp {
        Stamp {
            size,
            trace: modified.map_or(Trace::None, |(seconds, nanoseconds)| {
                Trace::Modified(Moment { seconds, nanoseconds })
            }),
        }
    }

    /// Of an image that is a disk itself, of either kind.
    pub(in crate::state) fn of_disk(size: u64, number: u64, tenure: bool) -> Stamp {
        let version = if tenure {
            Version::Tenure { now: number, next: 7 }
        } else {
            Version::Files(number)
        };
        Stamp {
            size,
            trace: Trace::Disk(version),
        }
    }

    fn room() -> (tempfile::TempDir, std::path::PathBuf, FileStorage) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.img");
        std::fs::write(&path, b"content").unwrap();
        let storage = FileStorage::open(
            &path,
            Access {
                write: true,
                direct: false,
            },
        )
        .unwrap();
        (dir, path, storage)
    }

    /// However soon after the stamp somebody writes, and be it the same bytes, the stamp no longer matches.
    #[test]
    fn a_write_right_after_the_stamp_is_seen() {
        let (_dir, path, storage) = room();
        for _ in 0..50 {
            let mut foreign = OpenOptions::new().write(true).open(&path).unwrap();
            crate::storage::write_slice(&storage, b"x", 0).unwrap();
            let kept = Stamp::take(&storage, &path, || Ok(())).unwrap();
            // A kernel whose file systems have a finer clock would tell the two writes apart anyway; not all do.
            let now = Moment::now().unwrap();
            assert!(
                matches!(kept.trace, Trace::Modified(then) if then < now),
                "{kept:?}, {now}"
            );
            assert_eq!(kept.difference(&Stamp::of(&storage, &path).unwrap()), None);
            foreign.write_all(b"x").unwrap();
            let now = Stamp::of(&storage, &path).unwrap();
            assert!(
                kept.difference(&now)
                    .unwrap()
                    .starts_with("it was last changed at ")
            );
        }
    }

    #[test]
    fn sizes_are_told_apart_even_where_the_time_is_set_back() {
        let (_dir, path, storage) = room();
        let kept = Stamp::take(&storage, &path, || Ok(())).unwrap();
        let time = std::fs::metadata(&path).unwrap().modified().unwrap();
        storage.set_length(3).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_times(FileTimes::new().set_modified(time)).unwrap();
        let said = kept.difference(&Stamp::of(&storage, &path).unwrap());
        assert_eq!(said.unwrap(), "it had 7 bytes when it was closed, and has 3 now");
    }

    /// A time that goes back is no write that somebody forgot, but another file.
    #[test]
    fn times_are_told_as_people_read_them() {
        let of = |seconds, nanoseconds| some(7, Some((seconds, nanoseconds)));
        let (then, later) = (of(951_782_399, 503_923_445), of(951_782_400, 0));
        assert_eq!(
            then.difference(&later).unwrap(),
            "it was last changed at 2000-02-28T23:59:59.503923445Z when it was closed, and at \
             2000-02-29T00:00:00.000000000Z now"
        );
        assert_eq!(
            later.difference(&then).unwrap(),
            "it was last changed at 2000-02-29T00:00:00.000000000Z when it was closed, and at \
             2000-02-28T23:59:59.503923445Z now, which is earlier: it or the state file was replaced, or its time set back"
        );
        assert_eq!(
            of(-1, 5).difference(&of(0, 5)).unwrap(),
            "it was last changed before 1970 when it was closed, and at 1970-01-01T00:00:00.000000005Z now"
        );
    }

    /// A clock that was set back must not hold up a close.
    #[test]
    fn a_time_in_the_future_is_not_waited_for() {
        let (_dir, path, storage) = room();
        let future = SystemTime::now() + Duration::from_secs(3600);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_times(FileTimes::new().set_modified(future)).unwrap();
        // It returns: an hour before that moment comes.
        Stamp::take(&storage, &path, || Ok(())).unwrap();
    }

    /// How many naps a wait takes by a clock that tells the time after so many.
    fn naps(modified: Moment, mut clock: impl FnMut(u32) -> (i64, u32)) -> u32 {
        let taken = std::cell::Cell::new(0);
        let now = || {
            let (seconds, nanoseconds) = clock(taken.get());
            Ok(Moment { seconds, nanoseconds })
        };
        outwait_by(modified, now, |_| taken.set(taken.get() + 1)).unwrap();
        taken.get()
    }

    #[test]
    fn the_wait_is_as_long_as_a_write_could_get_the_same_time() {
        const TICK: u32 = 4_000_000;
        let at = |seconds, nanoseconds| Moment { seconds, nanoseconds };
        // It moves every third millisecond.
        let ticking = |taken: u32| (5, TICK + taken / 3 * TICK);
        assert_eq!(naps(at(5, TICK), ticking), 3);
        assert_eq!(naps(at(4, 999_999_999), ticking), 0);
        assert_eq!(naps(at(5, TICK - 1), ticking), 0);
        // A finer clock has stamped the file, in the tick that is still to come.
        assert_eq!(naps(at(5, TICK + 1), ticking), 3);
        assert_eq!(naps(at(5, 3 * TICK), ticking), 9);
        let next_second = |taken: u32| {
            if taken < 2 {
                (5, 999_000_000)
            } else {
                (6, 3_000_000)
            }
        };
        assert_eq!(naps(at(6, 1000), next_second), 2);
        // A file system that keeps whole seconds, or every other one.
        let running = |taken: u32| (5 + i64::from(taken / 1000), taken % 1000 * 1_000_000);
        assert_eq!(naps(at(5, 0), running), 2000);
        assert_eq!(naps(at(3, 0), running), 0);
        // A clock that stands still, or was set back, holds up no close for ever.
        assert_eq!(naps(at(5, TICK), |_| (5, TICK)), 100);
        assert_eq!(naps(at(5, 0), |_| (5, TICK)), 2100);
        assert_eq!(naps(at(3605, TICK), ticking), 0);
    }

    #[test]
    fn a_clock_that_cannot_be_asked_is_an_error() {
        let modified = Moment {
            seconds: 5,
            nanoseconds: 1,
        };
        let clock = || Err(io::Error::from_raw_os_error(libc::EINVAL));
        let error = outwait_by(modified, clock, |_| {}).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }

    /// What has no file of the host has a size only, as a block device has.
    #[test]
    fn without_a_time_the_size_decides() {
        let disk = SimDisk::new();
        let image = disk.create(Role::Image, Path::new("a.img")).unwrap();
        image.set_length(100).unwrap();
        let kept = Stamp::take(&*image, Path::new("a.img"), || Ok(())).unwrap();
        assert_eq!(kept, some(100, None));
        assert!(kept.difference(&some(100, Some((5, 6)))).is_some());
        assert!(some(100, Some((5, 6))).difference(&kept).is_some());
    }
}
