//! Whether what is in a folder is what was put there.

use super::bits::bitmap_checksum;
use super::content::RawFile;
use super::copy::checksum;
use super::folder::BackupFolder;
use super::pace::Pace;
use super::point::BackupPoint;
use crate::disk::{Layer, Progress};
use crate::error::{Error, ErrorCode, Result};

/// What was found out about one backup, from [`BackupFolder::verify`].
#[derive(Debug)]
pub struct Verified {
    /// Its name.
    pub name: String,
    /// Why it cannot be restored as it was; `None` where it can.
    pub error: Option<Error>,
}

impl BackupFolder {
    /// Reads all that is stored of every backup, and compares it with the checksums of when it was made. A backup is
    /// sound only where all that it stands on is.
    ///
    /// Fails only where the caller ended it.
    pub fn verify(&self, progress: &mut Progress<'_>) -> Result<Vec<Verified>> {
        let mut pace = Pace::new(progress, None, all_of(self.points()));
        let mut verified: Vec<Verified> = Vec::new();
        let mut before = 0u64;
        for point in self.points() {
            let error = match self.verify_alone(point, &mut pace) {
                Err(error) if error.code() == ErrorCode::Canceled => return Err(error),
                Err(error) => Some(error),
                // Parents come first.
                Ok(()) => point
                    .parent
                    .as_ref()
                    .and_then(|parent| unsound(parent, &verified)),
            };
            verified.push(Verified {
                name: point.name.clone(),
                error,
            });
            before = before.saturating_add(point.length);
            pace.reached(before)?;
        }
        Ok(verified)
    }

    /// The same of one backup and all that it stands on; fails where something is wrong.
    pub(super) fn verify_chain(&self, point: &BackupPoint, progress: &mut Progress<'_>) -> Result<()> {
        let chain = self.chain(point)?;
        let mut pace = Pace::new(progress, None, all_of(chain.iter().copied()));
        let mut before = 0u64;
        for point in chain {
            self.verify_alone(point, &mut pace)?;
            before = before.saturating_add(point.length);
            pace.reached(before)?;
        }
        Ok(())
    }

    fn verify_alone(&self, point: &BackupPoint, pace: &mut Pace<'_, '_>) -> Result<()> {
        // Opened as a restore would, so that the descriptor is known to lead to these very files.
        let disk = self.open_point(point)?;
        let file = self.data_of(point, &disk.layer(0)?)?;
        drop(disk);
        check_data(point, &checksum(&file, pace)?)?;
        self.verify_bitmap(point)
    }

    /// The data file of `point`, which must be what its descriptor has led to: `layer`.
    pub(super) fn data_of(&self, point: &BackupPoint, layer: &Layer) -> Result<RawFile> {
        let expected = self.shown(&point.data_file);
        if layer.path != expected {
            return Err(damaged(format!(
                "its descriptor names {} as its data, and its record {}",
                layer.path.display(),
                expected.display()
            )));
        }
        RawFile::new(self.file(&point.data_file)?, expected)
    }

    /// Compares the file of its allocation bitmap with its checksum.
    pub(super) fn verify_bitmap(&self, point: &BackupPoint) -> Result<()> {
        match (&point.bitmap_file, &point.bitmap_checksum) {
            (Some(file), Some(sum)) => compare(file, &bitmap_checksum(self, file)?, sum),
            (None, None) => Ok(()),
            _ => Err(damaged("its record tells half of its bitmap".to_owned())),
        }
    }
}

/// Fails where the data of `point` has another checksum than `found`.
pub(super) fn check_data(point: &BackupPoint, found: &str) -> Result<()> {
    compare(&point.data_file, found, &point.data_checksum)
}

/// The bytes of all of them; what anybody may have written into records is no reason to overflow.
fn all_of<'p>(points: impl IntoIterator<Item = &'p BackupPoint>) -> u64 {
    let lengths = points.into_iter().map(|it| it.length);
    lengths.fold(0, u64::saturating_add)
}

fn unsound(parent: &str, verified: &[Verified]) -> Option<Error> {
    match verified.iter().find(|it| it.name == parent) {
        Some(Verified { error: None, .. }) => None,
        _ => Some(damaged(format!(
            "it stands on {parent}, with which something is wrong"
        ))),
    }
}

fn compare(file: &str, found: &str, expected: &str) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(damaged(format!(
        "{file} has the checksum {found}, not {expected} as when it was made"
    )))
}

pub(super) fn damaged(words: String) -> Error {
    Error::new(ErrorCode::FileInvalid, words)
}
