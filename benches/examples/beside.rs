//! `blockstore-beside`: how long lookups and reads take on an idle store, and beside writers at full speed in the same store.
//!
//! The asker has a thread of its own and asks for one thing after another; the writers are tasks of a runtime with `--threads`, as in
//! a server. So what is measured is what the engine makes an asker wait for: locks, cache lines, the device. It is not the queue for
//! the processor in front of a busy server, but it includes being put off it, where there are fewer processors than threads; how often
//! that happens by itself is what the row `nothing` shows, which times an empty call.
//!
//! The floor: a lookup is two cache lines, 15 ns in cache and 35 to 45 ns out of it; a read from the cache of records is a lookup and a
//! reference count; one from the page cache is a system call and a copy.

use blockstore_engine::{
    Begin, Engine, FormatOptions, Key, KeySpace, OpenOptions, Stats,
    device::{DeviceOptions, create_file},
};
use bytes::Bytes;
use bytesize::ByteSize;
use clap::Parser;
use std::{
    hint::black_box,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

/// Measures lookups and reads on an idle store and beside writers.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Folder for the store, which is removed at the end; a new temporary one by default
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Size of the store
    #[arg(long, default_value = "2GiB")]
    size: ByteSize,
    /// Objects that are asked for
    #[arg(long, default_value_t = 300_000)]
    objects: u64,
    /// Writers at work at once
    #[arg(long, default_value_t = 8)]
    writers: u64,
    /// Threads that the writers' tasks share
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// How long each row runs
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Idle and beside writers in turn, so many times; each figure is the median
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

const OBJECT_BYTES: usize = 1024;
const BATCH: u64 = 200;
const SMALL_BYTES: usize = 2300;
/// What of the objects stays in the cache of records.
const HOT: u64 = 2_000;
const CACHE_BYTES: u64 = 16 << 20;

fn key(id: u64) -> Key {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&id.to_le_bytes());
    hash[8..16].copy_from_slice(&id.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    Key { space: KeySpace::Content, function: 1, hash }
}

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    Nothing,
    Find,
    Find1000,
    GetHot,
    GetAny,
}

impl Row {
    const ALL: [Self; 5] = [Self::Nothing, Self::Find, Self::Find1000, Self::GetHot, Self::GetAny];
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Find => "find, one key",
            Self::Find1000 => "find, 1,000 keys",
            Self::GetHot => "get, in the cache of records",
            Self::GetAny => "get, any of all objects",
        }
    }
}

/// Percentiles of the calls of one run, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    p50: u64,
    p99: u64,
    p999: u64,
    calls: usize,
}

impl Times {
    fn of(mut nanos: Vec<u64>) -> Self {
        nanos.sort_unstable();
        let at = |part: f64| nanos.get((nanos.len() as f64 * part) as usize).copied().unwrap_or(0);
        Self { p50: at(0.5), p99: at(0.99), p999: at(0.999), calls: nanos.len() }
    }
    /// Of each figure the median of several runs.
    fn median(runs: &[Self]) -> Self {
        let middle = |figure: fn(&Self) -> u64| {
            let mut all: Vec<u64> = runs.iter().map(figure).collect();
            all.sort_unstable();
            all[all.len() / 2]
        };
        Self { p50: middle(|t| t.p50), p99: middle(|t| t.p99), p999: middle(|t| t.p999), calls: runs.iter().map(|t| t.calls).sum() }
    }
}

struct Bench {
    options: Options,
    runtime: Runtime,
    engine: Engine,
    next: Arc<AtomicU64>,
    _dir: TempDir,
}

impl Bench {
    fn new(options: Options) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(options.threads).enable_all().build().expect("threads");
        let dir = match &options.dir {
            Some(dir) => TempDir::new_in(dir),
            None => TempDir::new(),
        }
        .expect("a directory");
        let size = options.size.as_u64();
        let engine = runtime.block_on(async {
            let device = create_file(&dir.path().join("store"), size, DeviceOptions::default()).expect("a file");
            let format = FormatOptions { objects: Some(size / 1200), ..FormatOptions::default() };
            Engine::format(device.clone(), &format).await.expect("a new store");
            let open = OpenOptions { cache_bytes: CACHE_BYTES, ..OpenOptions::default() };
            let engine = Engine::open(device, open).await.expect("the new store").0;
            for first in (0..options.objects).step_by(500) {
                let items = (first..(first + 500).min(options.objects)).map(|id| (key(id), vec![id as u8; OBJECT_BYTES].into())).collect();
                engine.put_batch(items).await.into_iter().for_each(|put| _ = put.expect("room"));
            }
            engine.flush().await.expect("a flush");
            engine
        });
        Self { options, runtime, engine, next: Arc::new(AtomicU64::new(1 << 40)), _dir: dir }
    }

    /// Starts writers: batches of small blobs, and every eighth one blobs of a mebibyte.
    fn write(&self, stop: &Arc<AtomicBool>) {
        let (small, large): (Bytes, Bytes) = (vec![7; SMALL_BYTES].into(), vec![9; 1 << 20].into());
        for writer in 0..self.options.writers {
            let (engine, next, stop) = (self.engine.clone(), self.next.clone(), stop.clone());
            let (small, large) = (small.clone(), large.clone());
            self.runtime.spawn(async move {
                while !stop.load(Relaxed) {
                    if writer % 8 == 7 {
                        if let Begin::Upload(mut upload) =
                            engine.begin_upload(key(next.fetch_add(1, Relaxed)), large.len() as u64).await.expect("room")
                        {
                            upload.write(&large).await.expect("room");
                            upload.finish().await.expect("room");
                        }
                    } else {
                        let first = next.fetch_add(BATCH, Relaxed);
                        let items = (first..first + BATCH).map(|id| (key(id), small.clone())).collect();
                        engine.put_batch(items).await.into_iter().for_each(|put| _ = put.expect("room"));
                    }
                }
            });
        }
    }

    /// Calls one after the other for the time of a row. All objects are asked for once before, so that writers push none out.
    fn ask(&self, row: Row) -> Times {
        let here = Builder::new_current_thread().build().expect("a runtime");
        let objects = self.options.objects;
        here.block_on(async {
            for first in (0..objects).step_by(1000) {
                let keys: Vec<_> = (first..(first + 1000).min(objects)).map(|id| (key(id), Some(OBJECT_BYTES as u64))).collect();
                assert!(self.engine.lookup(&keys).await.iter().all(|there| *there), "what is asked for is retained");
            }
            if row == Row::GetHot {
                for id in 0..HOT {
                    self.engine.get(&key(id), None).await.expect("there");
                }
            }
            let end = Instant::now() + Duration::from_secs(self.options.seconds);
            let mut nanos = Vec::with_capacity(4_000_000);
            let mut random = 88_172_645_463_325_252u64;
            let mut below = |n: u64| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % n
            };
            while Instant::now() < end && nanos.len() < nanos.capacity() {
                let many: Vec<_> = match row {
                    Row::Find1000 => (0..1000).map(|_| (key(below(objects)), Some(OBJECT_BYTES as u64))).collect(),
                    Row::GetHot => vec![(key(below(HOT)), None)],
                    _ => vec![(key(below(objects)), Some(OBJECT_BYTES as u64))],
                };
                let start = Instant::now();
                match row {
                    Row::Nothing => {}
                    Row::Find | Row::Find1000 => drop(black_box(self.engine.lookup(&many).await)),
                    Row::GetHot | Row::GetAny => drop(black_box(self.engine.get(&many[0].0, many[0].1).await.expect("there"))),
                }
                nanos.push(start.elapsed().as_nanos() as u64);
            }
            Times::of(nanos)
        })
    }

    fn stats(&self) -> Stats {
        self.engine.stats()
    }
}

fn micros(nanos: u64) -> String {
    format!("{:.2}", nanos as f64 / 1e3)
}

fn main() {
    let bench = Bench::new(Options::parse());
    println!("| microseconds | idle: p50 | p99 | p99.9 | beside writers: p50 | p99 | p99.9 | p99 ÷ idle |");
    println!("|---|---|---|---|---|---|---|---|");
    let (mut written, mut seconds) = (0, 0.0);
    for row in Row::ALL {
        let (mut idle, mut busy) = (Vec::new(), Vec::new());
        for _ in 0..bench.options.rounds {
            idle.push(bench.ask(row));
            let stop = Arc::new(AtomicBool::new(false));
            let (before, start) = (bench.stats().accepted_bytes, Instant::now());
            bench.write(&stop);
            busy.push(bench.ask(row));
            stop.store(true, Relaxed);
            written += bench.stats().accepted_bytes - before;
            seconds += start.elapsed().as_secs_f64();
            // The next idle run begins when they have ended and what they wrote is on the device.
            bench.runtime.block_on(async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                bench.engine.flush().await.expect("a flush");
            });
        }
        let (idle, busy) = (Times::median(&idle), Times::median(&busy));
        println!(
            "| {} | {} | {} | {} | {} | {} | {} | {:.1} |",
            row.name(),
            micros(idle.p50),
            micros(idle.p99),
            micros(idle.p999),
            micros(busy.p50),
            micros(busy.p99),
            micros(busy.p999),
            busy.p99 as f64 / idle.p99.max(1) as f64
        );
    }
    println!("\nWriters: {:.0} MB/s, {} blocks reclaimed", written as f64 / seconds / 1e6, bench.stats().blocks_reclaimed);
}
