//! What stands behind a disk's bitmaps: the state file, and what recovery made of it.

use std::io::{self, Write};

use qbm::{BitmapPolicy, Info};
use serde_json::{Value, json};

use crate::output::short_size;

pub fn print_human(info: &Info, out: &mut impl Write) -> io::Result<()> {
    let Some(state) = &info.state else {
        return writeln!(
            out,
            "state file: none (a power cut can cost bitmaps bits; the next open for writing makes one, unless told not to)"
        );
    };
    match &state.found {
        None => writeln!(out, "state file: {} (missing or damaged)", state.file)?,
        Some(found) if found.closed => writeln!(
            out,
            "state file: {} ({}; regions of {})",
            state.file,
            if found.in_use {
                "in use, and not written to since it was opened"
            } else {
                "closed"
            },
            short_size(found.region_bytes)
        )?,
        Some(found) => writeln!(
            out,
            "state file: {} ({}; {} active regions of {}; bitmaps {})",
            state.file,
            if found.in_use {
                "in use"
            } else {
                "in use, or not closed"
            },
            found.active_regions,
            short_size(found.region_bytes),
            policy(found.policy)
        )?,
    }
    let Some(recovery) = &info.recovery else {
        return Ok(());
    };
    let why = recovery
        .reason
        .as_deref()
        .unwrap_or("nothing was lost, the bitmaps are exact");
    writeln!(
        out,
        "recovery: due at the next open for writing, and shown here as done: {why}"
    )?;
    for added in &recovery.added {
        writeln!(
            out,
            "    {} more dirty in {:?}",
            short_size(added.bytes),
            added.bitmap
        )?;
    }
    Ok(())
}

/// `null` where there is no state file.
pub fn to_json(info: &Info) -> Value {
    let Some(state) = &info.state else {
        return Value::Null;
    };
    let found = state.found.as_ref();
    json!({
        "file": state.file,
        "usable": found.is_some(),
        "closed": found.map(|it| it.closed),
        "in-use": found.map(|it| it.in_use),
        "policy": found.map(|it| policy(it.policy)),
        "region-size": found.map(|it| it.region_bytes),
        "active-regions": found.map(|it| it.active_regions),
        "recovery": info.recovery.as_ref().map(|recovery| json!({
            "exact": recovery.reason.is_none(),
            "reason": recovery.reason,
            "added": recovery
                .added
                .iter()
                .map(|it| json!({ "bitmap": it.bitmap, "bytes": it.bytes }))
                .collect::<Vec<_>>(),
        })),
    })
}

fn policy(policy: BitmapPolicy) -> &'static str {
    match policy {
        BitmapPolicy::WriteThrough => "write-through",
        BitmapPolicy::Lazy => "lazy",
    }
}
