//! `blockstore-tool format`: a new, empty store in a file or on a device.

use crate::{
    output::{Failure, Lines, Verdict, bytes, json},
    store::{FILE_NAME, Target},
};
use blockstore_engine::{
    Engine, FormatOptions,
    device::{DeviceOptions, create_file, first_and_last_mib_are_zero, open_any},
    offline::{OfflineStore, Trust},
};
use bytesize::ByteSize;
use serde_json::json;
use std::fs;

/// Make a new, empty store: a file of --size in a directory or under a name, or a whole device
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Size of a new file, e.g. 10GiB
    #[arg(long)]
    size: Option<ByteSize>,
    /// Size of a block: a power of two from 1 MiB to 1 GiB (default: a 128th of the store)
    #[arg(long, value_name = "SIZE")]
    block_size: Option<ByteSize>,
    /// How many objects the index must hold (default: one per 8 KiB of the store)
    #[arg(long)]
    objects: Option<u64>,
    /// Overwrite what a file or device holds
    #[arg(long)]
    force: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<Verdict, Failure> {
    let store = &arguments.target.store;
    let path = if store.is_dir() { store.join(FILE_NAME) } else { store.clone() };
    let options = FormatOptions { block_bytes: arguments.block_size.map(|size| size.as_u64()), objects: arguments.objects };
    let created = !path.exists();
    let device = match (created, arguments.size) {
        (true, Some(size)) => create_file(&path, size.as_u64(), DeviceOptions::default())?,
        (true, None) => {
            return Err(Failure::usage(format!("{} does not exist: give --size to create it, e.g. --size 10GiB", path.display())));
        }
        (false, Some(_)) => return Err(Failure::usage(format!("{} exists: leave --size out, or name another file", path.display()))),
        (false, None) => {
            let device = open_any(&path, DeviceOptions::default())?;
            let blank = first_and_last_mib_are_zero(&*device)
                .await
                .map_err(|error| Failure::cannot_open(format!("cannot read {}: {error}", path.display())))?;
            if !blank && !arguments.force {
                return Err(Failure::usage(format!("{} is not blank: check that it is the right one, then add --force", path.display())));
            }
            device
        }
    };
    if let Err(error) = Engine::format(device.clone(), &options).await {
        drop(device);
        if created {
            let _ = fs::remove_file(&path);
        }
        return Err(Failure::usage(format!("{}: {error}", path.display())));
    }
    let report = OfflineStore::read(device, Trust::Two).await?.report();
    let s = &report.superblock;
    match arguments.target.json {
        true => json(&json!({
            "uuid": hex::encode(report.uuid), "store_bytes": s.store_bytes, "block_bytes": s.block_bytes, "block_count": s.block_count,
            "slots": report.slots, "capacity_bytes": report.retention.capacity_bytes,
        }))?,
        false => {
            let mut out = Lines::new();
            out.line("store", hex::encode(report.uuid))?;
            out.line("size", bytes(s.store_bytes))?;
            out.line("blocks", format!("{} of {}", s.block_count, bytes(s.block_bytes)))?;
            out.line("capacity", bytes(report.retention.capacity_bytes))?;
            out.line("index", format!("{} slots", report.slots))?;
        }
    }
    Ok(Verdict::Sound)
}
