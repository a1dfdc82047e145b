//! What a check found.

use std::path::Path;

use super::Repair;
use crate::error::Error;

/// How bad a finding is. The numbers are part of the C ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Severity {
    /// Something is not as it must be: bytes, bits or files are missing, or cannot be trusted.
    Corruption = 1,
    /// A file that nobody needs takes space.
    Leak = 2,
    /// Worth knowing, and no fault: the next open sees to it, or nothing needs to.
    Note = 3,
    /// Something could not be looked at, or a repair could not be done.
    Error = 4,
}

/// What was found. The words of [`FindingKind::word`] are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FindingKind {
    /// The descriptor is none.
    DescriptorInvalid,
    /// A file that the descriptor names is not there.
    FileMissing,
    /// A file is not what the descriptor says: too short, of the wrong kind, used twice.
    FileInvalid,
    /// The images below cannot be opened.
    ChainBroken,
    /// The state file is not there.
    StateMissing,
    /// The state file, or a part of it, cannot be relied on.
    StateDamaged,
    /// There are dirty bitmaps, and no state file.
    Unprotected,
    /// The disk was not closed.
    NotClosed,
    /// Somebody has the disk open for writing.
    InUse,
    /// Others wrote to the image since the disk was closed.
    ForeignWrites,
    /// A bitmap may lack changes.
    BitmapInconsistent,
    /// A bitmap's file has bits behind the disk's end.
    TailBits,
    /// No descriptor names the file.
    Leftover,
    /// The image does not hash to what the descriptor says.
    ChecksumWrong,
    /// The descriptor has no checksum to compare with.
    ChecksumMissing,
    /// Something could not be looked at.
    NotChecked,
    /// What was to be repaired could not be.
    RepairFailed,
}

impl FindingKind {
    /// How bad it is where nothing else is known.
    const fn severity(self) -> Severity {
        match self {
            Self::DescriptorInvalid
            | Self::FileMissing
            | Self::FileInvalid
            | Self::ChainBroken
            | Self::StateMissing
            | Self::StateDamaged
            | Self::ForeignWrites
            | Self::BitmapInconsistent
            | Self::ChecksumWrong => Severity::Corruption,
            Self::Leftover => Severity::Leak,
            Self::Unprotected | Self::NotClosed | Self::InUse | Self::TailBits | Self::ChecksumMissing => {
                Severity::Note
            }
            Self::NotChecked | Self::RepairFailed => Severity::Error,
        }
    }

    /// What repairs it where nothing else is known.
    const fn repair(self) -> Option<Repair> {
        match self {
            Self::Leftover => Some(Repair::Leaks),
            Self::StateMissing | Self::StateDamaged | Self::NotClosed | Self::TailBits => Some(Repair::All),
            Self::ForeignWrites | Self::BitmapInconsistent => Some(Repair::Dirty),
            _ => None,
        }
    }

    /// One word for programs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::DescriptorInvalid => "descriptor-invalid",
            Self::FileMissing => "file-missing",
            Self::FileInvalid => "file-invalid",
            Self::ChainBroken => "chain-broken",
            Self::StateMissing => "state-missing",
            Self::StateDamaged => "state-damaged",
            Self::Unprotected => "unprotected",
            Self::NotClosed => "not-closed",
            Self::InUse => "in-use",
            Self::ForeignWrites => "foreign-writes",
            Self::BitmapInconsistent => "bitmap-inconsistent",
            Self::TailBits => "tail-bits",
            Self::Leftover => "leftover",
            Self::ChecksumWrong => "checksum-wrong",
            Self::ChecksumMissing => "checksum-missing",
            Self::NotChecked => "not-checked",
            Self::RepairFailed => "repair-failed",
        }
    }
}

/// One thing that a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub kind: FindingKind,
    /// How bad it is.
    pub severity: Severity,
    /// The bitmap, or the file as the descriptor names it, that it is about; empty where it is about all of the disk.
    pub subject: String,
    /// The same in words, with what to do; without that, where it is repaired.
    pub message: String,
    /// The check has repaired it.
    pub fixed: bool,
    /// What repairs it, if anything does: of two repairs the one that asks for no knowledge.
    pub repair: Option<Repair>,
    /// What it is, without what to do.
    fact: String,
}

impl Finding {
    /// Says what to do.
    pub(super) fn advise(&mut self, what: &str) {
        self.message.push_str("; ");
        self.message.push_str(what);
    }

    /// The same of what another repair sees to, or none, than what does for the kind.
    pub(super) fn mended_by(&mut self, repair: Option<Repair>) {
        self.repair = repair;
    }

    /// It is repaired: there is nothing to do about it any more.
    pub(super) fn set_fixed(&mut self) {
        self.fixed = true;
        self.message.clone_from(&self.fact);
    }
}

/// What a check found, and what it repaired; from [`CheckOptions::check`](super::CheckOptions::check).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CheckReport {
    /// In the order in which it was found.
    pub findings: Vec<Finding>,
    /// Why nothing could be repaired, if nothing could.
    pub(super) locked_out: Option<String>,
}

impl CheckReport {
    /// How many findings of `severity` are there still.
    pub fn remaining(&self, severity: Severity) -> u64 {
        self.count(severity, false)
    }

    /// How many were repaired.
    pub fn fixed(&self, severity: Severity) -> u64 {
        self.count(severity, true)
    }

    fn count(&self, severity: Severity, fixed: bool) -> u64 {
        let counted = |it: &&Finding| it.severity == severity && it.fixed == fixed;
        self.findings.iter().filter(counted).count() as u64
    }

    pub(super) fn has(&self, kind: FindingKind) -> bool {
        self.findings.iter().any(|it| it.kind == kind && !it.fixed)
    }

    /// What is found of `subject` is repaired, if it is of one of these kinds.
    pub(super) fn fix(&mut self, kinds: &[FindingKind], subject: &str) {
        let found = |it: &&mut Finding| kinds.contains(&it.kind) && it.subject == subject;
        self.findings
            .iter_mut()
            .filter(found)
            .for_each(Finding::set_fixed);
    }

    pub(super) fn add(&mut self, kind: FindingKind, subject: &str, message: String) -> &mut Finding {
        self.add_as(kind, kind.severity(), subject, message)
    }

    pub(super) fn add_as(
        &mut self,
        kind: FindingKind,
        severity: Severity,
        subject: &str,
        message: String,
    ) -> &mut Finding {
        let finding = Finding {
            kind,
            severity,
            subject: subject.to_owned(),
            fact: message.clone(),
            message,
            fixed: false,
            // Of a note there is nothing to be repaired.
            repair: kind.repair().filter(|_| severity == kind.severity()),
        };
        self.findings.push(finding);
        let last = self.findings.len() - 1;
        &mut self.findings[last]
    }

    /// Adds what was found of the image `path`, which is a disk itself.
    pub(super) fn add_all_of(&mut self, path: &Path, found: Self) {
        self.locked_out = self.locked_out.take().or(found.locked_out);
        let path = path.display();
        self.findings.extend(found.findings.into_iter().map(|it| Finding {
            subject: match it.subject.as_str() {
                "" => path.to_string(),
                subject => format!("{path}: {subject}"),
            },
            message: format!("{path}: {}", it.message),
            fact: format!("{path}: {}", it.fact),
            ..it
        }));
    }

    /// Tells why nothing was repaired, where that is so and anything is not as it must be.
    pub(super) fn tell_of_lockout(&mut self) {
        let Some(why) = self.locked_out.clone() else {
            return;
        };
        let is_fault = |it: &Finding| it.severity != Severity::Note || it.repair.is_some();
        if self.findings.iter().any(is_fault) {
            let words = format!("nothing was repaired: {why}");
            self.add(FindingKind::RepairFailed, "", words);
        }
    }

    /// What failed when a part was looked at.
    pub(super) fn add_error(&mut self, error: &Error) {
        self.add(FindingKind::NotChecked, "", error.message().to_owned());
    }

    /// The same after a repair: what `after` does not find any more is repaired, what it finds besides is added.
    pub(super) fn repaired(mut self, after: Self) -> Self {
        let same = |one: &Finding, other: &Finding| one.kind == other.kind && one.subject == other.subject;
        for finding in &mut self.findings {
            // A look does not find again what it did not try: to read the image, or to repair.
            let compared = !matches!(
                finding.kind,
                FindingKind::ChecksumWrong | FindingKind::ChecksumMissing | FindingKind::RepairFailed
            );
            if compared && !after.findings.iter().any(|it| same(it, finding)) {
                finding.set_fixed();
            }
        }
        for finding in after.findings {
            if !self.findings.iter().any(|it| same(it, &finding)) {
                self.findings.push(finding);
            }
        }
        self
    }
}
