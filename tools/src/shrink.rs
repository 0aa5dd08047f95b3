//! `blockstore-tool shrink`: a smaller store in place.
//!
//! Always true here: nothing is dropped that was not asked for; whenever it is ended, the store is what it was, without what was to be
//! dropped, or the smaller one; starting it again finishes it. A file is cut only behind the end of the store that is in it.

use crate::{
    output::{Failure, Lines, Verdict, bytes, json},
    progress,
    store::{self, Target},
};
use blockstore_engine::{
    OpenError,
    device::Device,
    offline::{self, OfflineStore, Shrink, ShrinkLoss, Trust},
};
use bytesize::ByteSize;
use serde_json::json;
use std::{
    fs::{self, File},
    path::Path,
    sync::Arc,
};

const PAGE_BYTES: u64 = 4096;

/// Make a store smaller in place. What was wanted last is kept; where not all of it has room, nothing is done without --drop-oldest
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// New size of the store, and of the file that it is in, e.g. 10GiB
    #[arg(long)]
    size: ByteSize,
    /// How many objects the index must hold (default: as many a byte as now)
    #[arg(long)]
    objects: Option<u64>,
    /// Drop what was wanted longest ago, as far as it has no room
    #[arg(long)]
    drop_oldest: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<Verdict, Failure> {
    let path = arguments.target.path();
    let told = |error: OpenError| match error {
        OpenError::Geometry(why) => Failure::usage(format!("{}: {why}", path.display())),
        error => Failure::cannot_open(format!("store {}: {error}", path.display())),
    };
    let device = store::device_to_write(&path)?;
    let size = arguments.size.as_u64() / PAGE_BYTES * PAGE_BYTES;
    let found = OfflineStore::read(device.clone(), Trust::Two).await.map_err(told)?.report();
    if found.superblock.store_bytes == size && device.geometry().len_bytes > size && is_file(&path) {
        // Ended between the smaller store and the shorter file.
        cut(&path, &device, size)?;
        let s = &found.superblock;
        let report = offline::ShrinkReport::unchanged(size, s.block_count, found.slots, found.live_slots);
        return print(&arguments, &report);
    }
    if found.superblock.store_bytes > size {
        let least = offline::shrunk_bytes_min(&device, arguments.objects).await.map_err(told)?;
        if size < least {
            let what = "a smaller one needs smaller blocks: make a new store and use export and import";
            return Err(Failure::usage(format!("--size {}: the store can shrink to {} or more; {what}", arguments.size, bytes(least))));
        }
    }
    let bar = progress::bytes("read", found.live_bytes);
    let shrink = Shrink::plan(&device, size, arguments.objects, |bytes| bar.inc(bytes)).await.map_err(told)?;
    bar.finish_and_clear();
    let loss = shrink.loss();
    if loss.objects > 0 && !arguments.drop_oldest {
        return Err(Failure::usage(format!(
            "--size {}: {} would be lost, and {} objects kept; nothing was done: add --drop-oldest to drop it, or give more",
            arguments.size,
            lost(&loss),
            loss.kept_objects
        )));
    }
    let bar = progress::bytes("copy", found.live_bytes);
    let report = shrink.carry_out(|bytes| bar.inc(bytes)).await.map_err(told)?;
    bar.finish_and_clear();
    if is_file(&path) {
        cut(&path, &device, report.after_bytes)?;
    }
    print(&arguments, &report)
}

fn is_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
}

/// Makes the file as long as the store in it, which `_held` keeps others from.
fn cut(path: &Path, _held: &Arc<dyn Device>, len_bytes: u64) -> Result<(), Failure> {
    let shortened = File::options().write(true).open(path).and_then(|file| file.set_len(len_bytes).and_then(|()| file.sync_all()));
    shortened.map_err(|error| {
        let done = "the store is smaller; the same command shortens the file";
        Failure::cannot_open(format!("cannot shorten {}: {error}: {done}", path.display()))
    })
}

/// What is, or would be, lost, for people.
fn lost(loss: &ShrinkLoss) -> String {
    let ages = match (loss.youngest_age_ticks, loss.oldest_age_ticks) {
        (youngest, oldest) if youngest == oldest => format!("{youngest}"),
        (youngest, oldest) => format!("{youngest} to {oldest}"),
    };
    let or_before = if loss.oldest_age_ticks == 7 { " or more" } else { "" };
    format!("{} objects ({}), last wanted {ages}{or_before} ticks ago,", loss.objects, bytes(loss.record_bytes))
}

fn print(arguments: &Arguments, report: &offline::ShrinkReport) -> Result<Verdict, Failure> {
    let dropped = &report.dropped;
    if arguments.target.json {
        let age = |ticks: u8| (dropped.objects > 0).then_some(ticks);
        json(&json!({
            "before_bytes": report.before_bytes, "after_bytes": report.after_bytes, "blocks_before": report.blocks_before,
            "blocks_after": report.blocks_after, "slots_before": report.slots_before, "slots_after": report.slots_after,
            "live_slots": report.live_slots, "copied_records": report.copied_records, "copied_bytes": report.copied_bytes,
            "dropped_objects": dropped.objects, "dropped_record_bytes": dropped.record_bytes,
            "dropped_age_ticks_min": age(dropped.youngest_age_ticks), "dropped_age_ticks_max": age(dropped.oldest_age_ticks),
        }))?;
        return Ok(Verdict::Sound);
    }
    let mut out = Lines::new();
    out.line("size", format!("{}, was {}", bytes(report.after_bytes), bytes(report.before_bytes)))?;
    out.line("blocks", format!("{}, were {}", report.blocks_after, report.blocks_before))?;
    out.line("index", format!("{} slots, were {}; {} in use", report.slots_after, report.slots_before, report.live_slots))?;
    out.line("copied", format!("{} records, {}", report.copied_records, bytes(report.copied_bytes)))?;
    match dropped.objects {
        0 => out.line("dropped", "nothing")?,
        _ => out.line("dropped", lost(dropped).trim_end_matches(','))?,
    }
    Ok(Verdict::Sound)
}
