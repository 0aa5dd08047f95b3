//! `blockstore-beside-foyer`: what a put and a get cost in our engine and in foyer's hybrid cache, in one process, on files of one
//! directory, with the same objects and the same memory.
//!
//! What is comparable and what is not:
//! - A put counts as done for both when the kernel has the bytes; neither is waited for until the device has them. Ours acknowledges
//!   only then, and is told here to flush at most once a minute. foyer acknowledges before it writes, never flushes, and drops what
//!   exceeds its queue; so it is waited for after every quarter of the queue, and what it dropped nevertheless is told as lost.
//! - Both check a checksum of what they read from the disk.
//! - foyer keeps every object that is put in memory as well; ours keeps what was read. Both have `--memory` for that, and both write
//!   each object when it is put. foyer's disk entries are multiples of 4 KiB.
//! - Both have two worker threads, and the objects of both are made before the clock starts.
//!
//! Always true here: what is read is compared by its length, its first and its last bytes; an object that is not there counts as lost.

mod engines;
mod work;

use bytesize::ByteSize;
use clap::Parser;
use engines::{Failure, Foyer, Ours, Place};
use std::{path::PathBuf, time::Duration};
use work::{Objects, Row, rows};

/// Measures our engine beside foyer's hybrid cache.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Folder for the files of both, which are removed at the end; a new temporary one by default
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Size of the file of each
    #[arg(long, default_value = "2GiB")]
    size: ByteSize,
    /// What is put, in bytes of payload; it is to fit in the file even in pieces of 4 KiB
    #[arg(long, default_value = "384MiB")]
    data: ByteSize,
    /// Memory of each for objects
    #[arg(long, default_value = "64MiB")]
    memory: ByteSize,
    /// Puts or gets at the same time
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    in_flight: u16,
    /// How long each row of gets runs
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Exponent of the skewed rows
    #[arg(long, default_value_t = 0.9)]
    zipf: f64,
    /// Go past the page cache, both
    #[arg(long)]
    direct: bool,
    /// How often everything runs; each figure is the least
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
}

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!(
        "{} of objects in a file of {}, memory {}, {} at a time, {}",
        options.data,
        options.size,
        options.memory,
        options.in_flight,
        if options.direct { "past the page cache" } else { "through the page cache" }
    );
    for objects in [Objects::small(), Objects::of(64 << 10), Objects::of(1 << 20)] {
        let mut best: [Vec<Row>; 2] = [Vec::new(), Vec::new()];
        for _ in 0..options.runs {
            let dir = match &options.dir {
                Some(dir) => tempfile::TempDir::new_in(dir),
                None => tempfile::TempDir::new(),
            }?;
            let place = Place {
                dir: dir.path().to_owned(),
                size_bytes: options.size.as_u64(),
                memory_bytes: options.memory.as_u64(),
                direct: options.direct,
            };
            let load = work::Load {
                objects,
                count: objects.count(options.data.as_u64()),
                hot: objects.count(options.memory.as_u64() / 4).max(8),
                in_flight: options.in_flight.into(),
                duration: Duration::from_secs(options.seconds),
                zipf: options.zipf,
            };
            // One after the other, so that what one leaves in the kernel's queues is not the other's: each ends with its files gone.
            let ours = runtime.block_on(async { rows(Ours::open(&place).await?, &load).await })?;
            let foyer = runtime.block_on(async { rows(Foyer::open(&place).await?, &load).await })?;
            for (best, run) in best.iter_mut().zip([ours, foyer]) {
                work::keep_least(best, run);
            }
        }
        work::print(&objects, &best);
    }
    Ok(())
}
