//! What stands behind a disk's bitmaps: the state file, and what recovery made of it.

use std::io::{self, Write};

use qbm::{BitmapPolicy, Info, Recovery};
use serde_json::{Value, json};

use crate::output::{counted, short_size, shown};

pub fn print_human(info: &Info, out: &mut impl Write) -> io::Result<()> {
    let Some(state) = &info.state else {
        return writeln!(
            out,
            "state file: none (a power cut can cost bitmaps bits; the next open for writing makes one, unless told not to)"
        );
    };
    match &state.found {
        None => {
            let what = if state.missing { "missing" } else { "damaged" };
            writeln!(out, "state file: {} ({what})", shown(&state.file))?;
        }
        Some(found) if found.closed => writeln!(
            out,
            "state file: {} ({}; regions of {})",
            shown(&state.file),
            if found.in_use {
                "in use, and not written to since it was opened"
            } else {
                "closed"
            },
            short_size(found.region_bytes)
        )?,
        Some(found) => writeln!(
            out,
            "state file: {} ({}; {} of {}; bitmaps {})",
            shown(&state.file),
            if found.in_use { "in use" } else { "not closed" },
            counted(found.active_regions, "active region"),
            short_size(found.region_bytes),
            policy(found.policy)
        )?,
    }
    let Some(recovery) = &info.recovery else {
        return Ok(());
    };
    let due = if is_in_use(info) {
        "if its user were killed now, as shown here"
    } else {
        "recovery: due at the next open for writing, and shown here as done"
    };
    let why = recovery
        .reason
        .as_deref()
        .unwrap_or("nothing was lost, the bitmaps are exact");
    writeln!(out, "{due}: {}", shown(why))?;
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

/// What recovery has done is then what would come of a kill, and nothing that is due.
fn is_in_use(info: &Info) -> bool {
    let found = info.state.as_ref().and_then(|it| it.found.as_ref());
    found.is_some_and(|it| it.in_use)
}

/// `null` where there is no state file.
pub fn to_json(info: &Info) -> Value {
    let Some(state) = &info.state else {
        return Value::Null;
    };
    let found = state.found.as_ref();
    let recovery = info.recovery.as_ref().map(done);
    let recovery = recovery.as_ref();
    json!({
        "file": state.file,
        "usable": found.is_some(),
        "closed": found.map(|it| it.closed),
        "in-use": found.map(|it| it.in_use),
        "policy": found.map(|it| policy(it.policy)),
        "region-size": found.map(|it| it.region_bytes),
        "active-regions": found.map(|it| it.active_regions),
        "recovery": recovery.filter(|_| !is_in_use(info)),
        "if-killed": recovery.filter(|_| is_in_use(info)),
    })
}

fn done(recovery: &Recovery) -> Value {
    json!({
        "exact": recovery.reason.is_none(),
        "reason": recovery.reason,
        "added": recovery
            .added
            .iter()
            .map(|it| json!({ "bitmap": it.bitmap, "bytes": it.bytes }))
            .collect::<Vec<_>>(),
    })
}

fn policy(policy: BitmapPolicy) -> &'static str {
    match policy {
        BitmapPolicy::WriteThrough => "write-through",
        BitmapPolicy::Lazy => "lazy",
    }
}
