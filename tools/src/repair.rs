//! `blockstore-tool repair`: takes out of a store what is proven bad.

use crate::{
    name,
    output::{Failure, Lines, Verdict, defect, defect_word, json},
    progress,
    store::{self, Target},
};
use blockstore_engine::offline;
use serde_json::json;

/// Damaged records that are listed; all are counted.
const LISTED_MAX: usize = 1000;

/// Drop records that are proven bad, and write superblocks, block headers and the index anew where a copy of them is damaged. Nothing is
/// written to a store without damage
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Say what would be done, and do nothing; the exit status is 1 if there is damage
    #[arg(long)]
    dry_run: bool,
    /// Also drop records that the device cannot read; without it they stay, since it may be able to later
    #[arg(long)]
    unreadable: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<Verdict, Failure> {
    let path = arguments.target.path();
    let device = match arguments.dry_run {
        true => store::device_to_read(&path, false)?,
        false => store::device_to_write(&path)?,
    };
    let bar = progress::bytes("repair", device.geometry().len_bytes);
    let mut dropped = Vec::new();
    let repaired = offline::repair(
        &device,
        arguments.unreadable,
        arguments.dry_run,
        |bytes| bar.inc(bytes),
        |bad| {
            if dropped.len() < LISTED_MAX {
                dropped.push(*bad);
            }
        },
    );
    let report = repaired.await.map_err(|error| Failure::cannot_open(format!("store {}: {error}", path.display())))?;
    bar.finish_and_clear();
    let key = |bad: &offline::BadRecord| bad.key.as_ref().map(|key| name::of(key, 0).trim_end_matches("/0").to_string());
    // What could not be put right is still there.
    let verdict = Verdict::of(report.unreadable_kept > 0 || arguments.dry_run && report.is_damaged());
    if arguments.target.json {
        json(&json!({
            "verdict": verdict.word(), "dry_run": arguments.dry_run, "written": report.written, "good_records": report.good,
            "dropped_records": report.dropped, "unreadable_records_kept": report.unreadable_kept, "superblocks": report.superblocks,
            "log": report.log, "image": report.image, "block_heads": report.block_heads,
            "dropped": dropped.iter().map(|bad| json!({
                "block": bad.block, "offset_bytes": bad.offset_bytes, "defect": defect_word(bad.defect), "key": key(bad),
            })).collect::<Vec<_>>(),
        }))?;
        return Ok(verdict);
    }
    let mut out = Lines::new();
    for bad in &dropped {
        let whose = key(bad).map_or(String::new(), |key| format!(": {key}"));
        out.plain(format!("record at byte {} (block {}) {}{whose}", bad.offset_bytes, bad.block, defect(bad.defect)))?;
    }
    let done = if arguments.dry_run { "would be" } else { "were" };
    for (n, what) in [
        (report.dropped, "damaged records TO dropped"),
        (report.superblocks, "superblocks TO written anew"),
        (report.block_heads, "block headers TO written anew"),
        (report.image, "parts of the index's image TO written anew; what they said is lost where no other image had it (see `rebuild`)"),
        (report.log, "log pages or entries were damaged; what they said is lost (see `rebuild`)"),
        (report.unreadable_kept, "records cannot be read and stay (see --unreadable)"),
    ] {
        if n > 0 {
            out.plain(format!("{n} {}", what.replace("TO", done)))?;
        }
    }
    let rest = if report.is_damaged() { "" } else { ": nothing was damaged, and nothing was written" };
    out.plain(format!("{} records are whole{rest}", report.good))?;
    Ok(verdict)
}
