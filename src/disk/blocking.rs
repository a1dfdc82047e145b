//! The blocking executor: carries a plan out on the calling thread, one system call a segment.

use std::io;

use super::plan::{Change, ChangePlan, ReadPlan};
use crate::error::{Error, Result};
use crate::storage::Scatter;

#[inline(always)]
pub(super) fn read(plan: &ReadPlan<'_>, into: Scatter<'_>) -> Result<()> {
    plan.file.storage.read(into, plan.range.start()).map_err(|e| {
        let action = format!("read {} from", plan.range);
        plan.file.failed(&action, &e)
    })
}

#[inline(always)]
pub(super) fn change(plan: &ChangePlan<'_, '_>) -> Result<()> {
    if let Some(marks) = &plan.marks {
        marks.record()?;
    }
    let done = match plan.change {
        Change::Write(from) => plan.file.storage.write(from, plan.range.start()),
        Change::Zero(how) => plan.file.storage.write_zeroes(plan.range, how),
        Change::Discard => plan.file.storage.discard(plan.range),
    };
    done.map_err(|e| failed(plan, &e))
}

#[cold]
fn failed(plan: &ChangePlan<'_, '_>, error: &io::Error) -> Error {
    let action = match plan.change {
        Change::Write(_) => format!("write {} to", plan.range),
        Change::Zero(_) => format!("zero {} of", plan.range),
        Change::Discard => format!("discard {} of", plan.range),
    };
    plan.file.failed(&action, error)
}
