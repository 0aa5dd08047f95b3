//! `blockstore-tool bench`: what a device can do for the engine, and what to set for it.
//!
//! Always true here: nothing is written but to a file of its own, which has no name any more before its first byte, so that it is gone with
//! this process however that ends; or, where --overwrite says so, to a device or file that holds no store. The I/O is the engine's own.

use crate::{
    output::{Failure, Lines, Verdict, bytes, json},
    progress,
};
use blockstore_engine::{
    device::{AlignedBuf, Device, DeviceOptions, Direct, IoBackend, open_any, open_read_only},
    offline,
};
use bytesize::ByteSize;
use measure::{Measured, Work};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

mod advice;
mod measure;

const MIB: u64 = 1 << 20;
/// Least size that is measured on.
const LEN_BYTES_MIN: u64 = 16 * MIB;
/// How requests are counted in flight, for random reads.
const DEPTHS: [usize; 3] = [1, 8, 64];

/// Measure what a device can do for a store, and say what to set for it. In a directory it writes to a file of its own, which goes with the
/// program; a device or file is only read
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A directory on the file system in question, a device, or a file (a store that no server holds, too)
    path: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// About how long to measure, in seconds
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Size of the file that is written in a directory
    #[arg(long, default_value = "256MiB")]
    scratch_size: ByteSize,
    /// Write to the device or file too, which destroys what it holds; refused where that is a store
    #[arg(long)]
    overwrite: bool,
}

/// What is measured on.
struct Place {
    path: PathBuf,
    writes: bool,
    /// A file without a name, for as long as it is open.
    _scratch: Option<File>,
}

/// A device opened in one way.
pub(crate) struct Way {
    pub(crate) io: &'static str,
    pub(crate) direct: bool,
}

/// What was found out.
pub(crate) struct Found {
    pub(crate) block_device: bool,
    pub(crate) rows: Vec<(Way, Measured)>,
    /// Ways in which it cannot be opened, and why.
    pub(crate) refused: Vec<(Way, String)>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<Verdict, Failure> {
    let place = prepare(&arguments).await?;
    let seconds = Duration::from_secs(arguments.seconds);
    let works = Work::all(place.writes, &DEPTHS);
    let ways = [("io-uring", true), ("io-uring", false), ("sync", true), ("sync", false)];
    let each = seconds / (works.len() * ways.len()) as u32;
    let bar = progress::steps("bench", (works.len() * ways.len()) as u64);
    let mut found = Found { block_device: false, rows: Vec::new(), refused: Vec::new() };
    let mut len_bytes = 0;
    for (io, direct) in ways {
        let device = match open(&place, io, direct) {
            Ok(device) => device,
            Err(error) => {
                found.refused.push((Way { io, direct }, error.to_string()));
                bar.inc(works.len() as u64);
                continue;
            }
        };
        found.block_device = device.geometry().block_device;
        len_bytes = if len_bytes == 0 { filled(&place, &device, seconds / 4).await? } else { len_bytes };
        if len_bytes < LEN_BYTES_MIN {
            return Err(Failure::usage(format!("{} bytes are too few to measure on: {} are needed", len_bytes, ByteSize(LEN_BYTES_MIN))));
        }
        for work in &works {
            let measured = measure::run(&device, *work, len_bytes, each).await;
            let measured =
                measured.map_err(|error| Failure::cannot_open(format!("{}: {}: {error}", arguments.path.display(), work.word())))?;
            found.rows.push((Way { io, direct }, measured));
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    if found.rows.is_empty() {
        let why = found.refused.first().map_or(String::new(), |(_, why)| why.clone());
        return Err(Failure::cannot_open(why));
    }
    print(&arguments, &place, len_bytes, &found)?;
    Ok(Verdict::Sound)
}

async fn prepare(arguments: &Arguments) -> Result<Place, Failure> {
    let Arguments { path, overwrite, scratch_size, .. } = arguments;
    if path.is_dir() {
        if *overwrite {
            return Err(Failure::usage("--overwrite: in a directory a file of its own is written, and nothing else: leave it out"));
        }
        let cannot = |error: io::Error| Failure::cannot_open(format!("cannot make a file in {}: {error}", path.display()));
        let name = path.join(format!("blockstore-bench.{}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&name).map_err(cannot)?;
        fs::remove_file(&name).map_err(cannot)?;
        file.set_len(scratch_size.as_u64().max(LEN_BYTES_MIN) / MIB * MIB).map_err(cannot)?;
        // What has no name is opened again through its descriptor.
        let path = Path::new("/proc/self/fd").join(file.as_raw_fd().to_string());
        return Ok(Place { path, writes: true, _scratch: Some(file) });
    }
    // Also tells whether a server holds it.
    let device = open_read_only(path, DeviceOptions::default())?;
    if *overwrite {
        let copies = offline::superblocks(&*device).await?;
        if copies.iter().any(|copy| !matches!(copy.copy, offline::SuperblockCopy::Absent)) {
            let instead = "measure in a directory, or read only (without --overwrite)";
            return Err(Failure::usage(format!("--overwrite: {} holds a store: {instead}", path.display())));
        }
    }
    Ok(Place { path: path.clone(), writes: *overwrite, _scratch: None })
}

fn open(place: &Place, io: &str, direct: bool) -> Result<Arc<dyn Device>, blockstore_engine::device::DeviceError> {
    let options = DeviceOptions {
        io: if io == "sync" { IoBackend::Sync } else { IoBackend::IoUring },
        direct: if direct { Direct::On } else { Direct::Off },
    };
    if place.writes { open_any(&place.path, options) } else { open_read_only(&place.path, options) }
}

/// How much of the device can be measured on: of a new file what was written to it in this time, since what was never written is read
/// without a device.
async fn filled(place: &Place, device: &Arc<dyn Device>, time: Duration) -> Result<u64, Failure> {
    let len_bytes = device.geometry().len_bytes / MIB * MIB;
    if place._scratch.is_none() {
        return Ok(len_bytes);
    }
    let until = Instant::now() + time;
    let mut at = 0;
    let cannot = |error| Failure::cannot_open(format!("cannot write the file that is measured on: {error} (see --scratch-size)"));
    while at < len_bytes && (at < LEN_BYTES_MIN || Instant::now() < until) {
        let mut buf = AlignedBuf::zeroed(MIB as usize);
        measure::fill(&mut buf, at);
        device.write(at, buf).await.1.map_err(cannot)?;
        at += MIB;
    }
    device.flush().await.map_err(cannot)?;
    Ok(at)
}

fn document(found: &Found) -> Vec<Value> {
    let row = |(way, m): &(Way, Measured)| {
        json!({
            "io": way.io, "direct": way.direct, "work": m.work.word(), "depth": m.work.depth(), "request_bytes": m.work.request_bytes(),
            "requests": m.requests, "elapsed_ms": m.elapsed.as_millis() as u64, "requests_per_s": m.requests_per_s(),
            "bytes_per_s": m.bytes_per_s(), "us_p50": m.us(50), "us_p99": m.us(99),
        })
    };
    found.rows.iter().map(row).collect()
}

fn print(arguments: &Arguments, place: &Place, len_bytes: u64, found: &Found) -> Result<(), Failure> {
    let advice = advice::of(found);
    if arguments.json {
        let refused: Vec<Value> =
            found.refused.iter().map(|(way, why)| json!({ "io": way.io, "direct": way.direct, "why": why })).collect();
        let set: Vec<Value> =
            advice.iter().map(|advice| json!({ "setting": advice.setting, "value": advice.value, "why": advice.why })).collect();
        return json(&json!({
            "path": arguments.path, "block_device": found.block_device,
            "measured_bytes": len_bytes, "written": place.writes, "measured": document(found), "refused": refused, "set": set,
        }));
    }
    let mut out = Lines::new();
    let what = if place.writes { "written and read" } else { "read only: see --overwrite, or name a directory, for writes and flushes" };
    out.line("measured on", format!("{}, {what}", bytes(len_bytes)))?;
    out.plain(format!(
        "{:<10}{:<10}{:<18}{:>6}{:>13}{:>14}{:>10}{:>10}",
        "io", "", "work", "depth", "requests/s", "a second", "p50 µs", "p99 µs"
    ))?;
    for (way, m) in &found.rows {
        let direct = if way.direct { "direct" } else { "buffered" };
        let speed = format!("{}/s", ByteSize(m.bytes_per_s()));
        let (work, depth) = (m.work.word(), m.work.depth());
        out.plain(format!(
            "{:<10}{direct:<10}{work:<18}{depth:>6}{:>13}{speed:>14}{:>10}{:>10}",
            way.io,
            m.requests_per_s(),
            m.us(50),
            m.us(99)
        ))?;
    }
    for (way, why) in &found.refused {
        out.plain(format!("{} {} is not possible: {why}", way.io, if way.direct { "direct" } else { "buffered" }))?;
    }
    for advice in &advice {
        out.plain(format!("set {} {}: {}", advice.setting, advice.value, advice.why))?;
    }
    Ok(())
}
