//! `blockstore-tool grow`: a larger store in place.
//!
//! Always true here: whenever it is ended, the store is what it was or the larger one; starting it again finishes it.

use crate::{
    output::{Failure, Lines, Verdict, bytes, json},
    progress,
    store::{self, Target},
};
use blockstore_engine::{device::extend_file, offline};
use bytesize::ByteSize;
use serde_json::json;
use std::fs;

/// Make a store larger in place, without moving a record: a file to --size, or the store on a device that is larger now
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// New size of the file, e.g. 20GiB (of a device: its own)
    #[arg(long)]
    size: Option<ByteSize>,
    /// How many objects the index must hold (default: one per 8 KiB of the store, and never fewer than now)
    #[arg(long)]
    objects: Option<u64>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<Verdict, Failure> {
    let path = arguments.target.path();
    let told = |error: blockstore_engine::OpenError| match error {
        blockstore_engine::OpenError::Geometry(why) => Failure::usage(format!("{}: {why}", path.display())),
        error => Failure::cannot_open(format!("store {}: {error}", path.display())),
    };
    if let Some(size) = arguments.size {
        // Before the file is touched: it must be a store, free, and so large a one possible.
        let device = store::device_to_write(&path)?;
        let least = offline::grown_bytes_min(&device, arguments.objects).await.map_err(told)?;
        if size.as_u64() < least {
            return Err(Failure::usage(format!("--size {size}: the store can grow to {} or more", bytes(least))));
        }
        drop(device);
        let is_file = fs::metadata(&path).is_ok_and(|metadata| metadata.is_file());
        if !is_file {
            return Err(Failure::usage("--size: the store is on a device: make that larger, and leave --size out".to_string()));
        }
        extend_file(&path, size.as_u64())?;
    }
    let device = store::device_to_write(&path)?;
    let bar = progress::bytes("grow", device.geometry().len_bytes);
    let report = offline::grow(&device, arguments.objects, |bytes| bar.inc(bytes)).await.map_err(told)?;
    bar.finish_and_clear();
    match arguments.target.json {
        true => json(&json!({
            "before_bytes": report.before_bytes, "after_bytes": report.after_bytes, "blocks_before": report.blocks_before,
            "blocks_after": report.blocks_after, "slots_before": report.slots_before, "slots_after": report.slots_after,
            "live_slots": report.live_slots,
        }))?,
        false => {
            let mut out = Lines::new();
            out.line("size", format!("{}, was {}", bytes(report.after_bytes), bytes(report.before_bytes)))?;
            out.line("blocks", format!("{}, were {}", report.blocks_after, report.blocks_before))?;
            out.line("index", format!("{} slots, were {}; {} in use", report.slots_after, report.slots_before, report.live_slots))?;
        }
    }
    Ok(Verdict::Sound)
}
