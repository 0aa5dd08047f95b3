//! `blockstore-load run`: a mixture of operations, or a recorded sequence of them, for some time.
//!
//! Always true here: the memory of this process does not depend on how many keys there are, nor on how long it runs but for one line
//! of figures an interval; blobs are made from their keys' numbers.

mod keys;
mod record;
mod server;
mod sizes;
mod trace;
mod work;

use crate::{
    bar,
    machine::{self, Machine},
    options::{ClientOptions, parse_seconds},
    process::{ServerProcess, Usage},
    results::{tell, write_json},
};
use clap::Args;
use keys::Keys;
use record::{Part, Record};
use serde::Serialize;
use server::Server;
use sizes::Sizes;
use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{
    task::{JoinError, JoinSet},
    time::timeout,
};
use trace::Trace;
use work::{Shares, Source, Work};

/// Operations that do not end so long after the time is up are stuck.
const STUCK: Duration = Duration::from_secs(120);
/// A run ends after so many errors: nothing is learned from more of them.
const ERRORS_MAX: u64 = 100;
/// How often it is looked whether something failed or everything is done.
const LOOK: Duration = Duration::from_millis(100);
/// How long a mixture runs if nothing else is said.
const DURATION: Duration = Duration::from_secs(60);

/// A blob and the action that makes it, by number; its bytes depend on its size, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    number: u64,
    size_bytes: u64,
}

/// The command line of `run`.
#[derive(Clone, Debug, Args)]
pub(crate) struct RunOptions {
    #[command(flatten)]
    client: ClientOptions,
    /// How long it runs; default 60, or to the end of --trace
    #[arg(long, value_parser = parse_seconds)]
    seconds: Option<Duration>,
    /// The same in minutes
    #[arg(long, value_parser = parse_minutes, conflicts_with = "seconds")]
    minutes: Option<Duration>,
    /// Sizes of blobs: small (as seen in a real cache, 2.3 KB on average), or sizes with weights, such as 64KiB:50,1MiB:50
    #[arg(long, default_value = "small")]
    sizes: Sizes,
    /// Reads choose among so many of the newest blobs; more of them than fit in the server's cache make reads cold
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=1 << 50))]
    keys: u64,
    /// Exponent of the Zipf distribution by which reads prefer newer blobs; 0: all are as likely
    #[arg(long, value_name = "EXPONENT", default_value = "0.9", value_parser = parse_exponent, allow_hyphen_values = true)]
    zipf: f64,
    /// Operations that write something new, in a hundred; what a read misses is written again besides
    #[arg(long, value_name = "PERCENT", default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=100))]
    writes: u64,
    /// Writes and reads that are of action results, in a hundred
    #[arg(long, value_name = "PERCENT", default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=100))]
    actions: u64,
    /// Reads that ask which of 100 blobs are missing, in a hundred
    #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=100))]
    finds: u64,
    /// Write all --keys once before the load begins
    #[arg(long)]
    fill: bool,
    /// Replay this file instead of a mixture: an operation a line (put, get, find, ac-put, ac-get), a size and the number of a key
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sizes", "keys", "zipf", "writes", "actions", "finds", "fill"])]
    trace: Option<PathBuf>,
    /// Tell what happened so often; at least ten times in a run of known length
    #[arg(long, default_value = "10s", value_parser = parse_interval)]
    every: Duration,
}

fn parse_minutes(text: &str) -> Result<Duration, String> {
    parse_seconds(text).ok().and_then(|minutes| minutes.checked_mul(60)).ok_or_else(|| format!("{text:?} is no number of minutes above 0"))
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    parse_seconds(text.strip_suffix('s').unwrap_or(text))
}

fn parse_exponent(text: &str) -> Result<f64, String> {
    let exponent = text.parse().ok().filter(|exponent| (0.0..=10.0).contains(exponent));
    exponent.ok_or_else(|| format!("{text:?} is no exponent from 0 to 10, such as 0.9"))
}

impl RunOptions {
    fn duration(&self) -> Option<Duration> {
        self.seconds.or(self.minutes).or_else(|| self.trace.is_none().then_some(DURATION))
    }

    fn shares(&self) -> Result<Shares, String> {
        if self.actions + self.finds > 100 {
            return Err(format!("--actions {} and --finds {} are more than 100 together", self.actions, self.finds));
        }
        Ok(Shares { writes: self.writes, actions: self.actions, finds: self.finds })
    }
}

/// All that was found, as JSON.
#[derive(Debug, Serialize)]
struct Soak {
    kind: &'static str,
    version: &'static str,
    date: String,
    machine: Machine,
    flags: Vec<String>,
    seed: u64,
    /// Writing all keys once, if that was asked for.
    fill: Option<Part>,
    intervals: Vec<Part>,
    /// The intervals that begin a run, up to a tenth of it.
    first_tenth: Option<Part>,
    /// Those that end it.
    last_tenth: Option<Part>,
    total: Option<Part>,
    server_memory_bytes_max: Option<u64>,
    first_error: Option<String>,
}

/// Runs the load; how many operations failed.
pub(crate) async fn mix(options: RunOptions) -> Result<u64, String> {
    let (client, json) = (&options.client, options.client.json.as_deref());
    let shares = options.shares()?;
    let process = client.server_pid.map(ServerProcess::new).transpose()?;
    let seed = client.seed();
    let keys = || Keys::new(seed, options.sizes.clone(), options.keys, options.zipf, 8 * u64::from(client.in_flight));
    let source = match &options.trace {
        Some(path) => Source::Trace(Trace::open(path)?),
        None => Source::Mix(keys()?, shares),
    };
    let mut soak = Soak {
        kind: "run",
        version: env!("CARGO_PKG_VERSION"),
        date: machine::now(),
        machine: Machine::here(),
        flags: std::env::args().skip(1).collect(),
        seed,
        fill: None,
        intervals: Vec::new(),
        first_tenth: None,
        last_tenth: None,
        total: None,
        server_memory_bytes_max: None,
        first_error: None,
    };
    tell(json, &format!("{}; {}; seed {seed}\nlatencies: p50/p99/p99.9\n", soak.date, soak.machine.line()));
    let mut load = Load { options: &options, process: process.as_ref(), seed, intervals: Vec::new(), tenths: [Tenth::new(), Tenth::new()] };
    let mut errors = 0;
    if options.fill {
        let (part, record) = load.run(Source::Fill(keys()?, AtomicU64::new(0)), None).await?;
        tell(json, &format!("fill {}\n", part.line()));
        errors += record.errors();
        soak.first_error = record.first_error().map(str::to_owned);
        soak.fill = Some(part);
        load.forget();
    }
    if errors < ERRORS_MAX {
        let (part, record) = load.run(source, options.duration()).await?;
        let [first, last] = &load.tenths;
        (soak.first_tenth, soak.last_tenth) = (first.part(), last.part());
        for (name, part) in [("first tenth", &soak.first_tenth), ("last tenth", &soak.last_tenth), ("all", &Some(part.clone()))] {
            if let Some(part) = part {
                tell(json, &format!("{name:<12}{}\n", part.line()));
            }
        }
        errors += record.errors();
        soak.first_error = soak.first_error.take().or_else(|| record.first_error().map(str::to_owned));
        soak.total = Some(part);
    }
    soak.intervals = load.intervals;
    soak.server_memory_bytes_max = process.as_ref().map(ServerProcess::memory_bytes_max).transpose()?;
    if let Some(error) = &soak.first_error {
        eprintln!("blockstore-load: {error}");
    }
    if let Some(path) = json {
        write_json(&soak, path)?;
    }
    Ok(errors)
}

/// How a worker ended.
fn end_of(ended: Result<Result<(), String>, JoinError>) -> Result<(), String> {
    ended.map_err(|error| format!("worker ended: {error}"))?
}

/// A tenth of a run.
#[derive(Debug)]
struct Tenth {
    record: Record,
    span: Option<(Duration, Duration)>,
    used: Option<(Usage, u64)>,
}

impl Tenth {
    fn new() -> Self {
        Self { record: Record::new(), span: None, used: None }
    }

    fn add(&mut self, record: &Record, start: Duration, end: Duration, used: Option<(Usage, u64)>) {
        self.record.merge(record);
        self.span = Some((self.span.map_or(start, |(start, _)| start), end));
        self.used = match (self.used, used) {
            (Some((before, _)), Some((used, memory_bytes))) => Some((before.and(&used), memory_bytes)),
            (_, used) => used,
        };
    }

    fn part(&self) -> Option<Part> {
        self.span.map(|(start, end)| Part::new(&self.record, start, end, self.used))
    }
}

/// A load that is under way.
#[derive(Debug)]
struct Load<'a> {
    options: &'a RunOptions,
    process: Option<&'a ServerProcess>,
    seed: u64,
    intervals: Vec<Part>,
    /// The first and the last.
    tenths: [Tenth; 2],
}

impl Load<'_> {
    fn forget(&mut self) {
        self.intervals.clear();
        self.tenths = [Tenth::new(), Tenth::new()];
    }

    fn usage(&self) -> Result<Option<Usage>, String> {
        self.process.map(ServerProcess::usage).transpose()
    }

    /// Works off a source until it ends or the time is up; tells each interval. All of it as one.
    async fn run(&mut self, source: Source, duration: Option<Duration>) -> Result<(Part, Record), String> {
        let client = &self.options.client;
        let json = client.json.as_deref();
        let workers_count = usize::from(client.in_flight);
        let server = Server::connect(client, self.seed).await?;
        let records = (0..workers_count).map(|_| Mutex::new(Record::new())).collect();
        let work = Arc::new(Work { server, source, stop: AtomicBool::new(false), records });
        let every = duration.map_or(self.options.every, |duration| self.options.every.min(duration / 10));
        let bar = bar::seconds(duration.unwrap_or_default().as_secs());
        let (mut all, mut interval) = (Record::new(), Record::new());
        let begun_usage = self.usage()?;
        let mut usage = begun_usage;
        let start = Instant::now();
        let mut workers = JoinSet::new();
        for worker in 0..workers_count {
            let (work, seed) = (work.clone(), self.seed);
            workers.spawn(async move { work.run(worker, seed).await });
        }
        let mut failed: Option<String> = None;
        let mut last = Duration::ZERO;
        while !workers.is_empty() {
            let next = [Some(last + every), duration].into_iter().flatten().min().unwrap_or(every);
            let wait = next.saturating_sub(start.elapsed()).min(LOOK);
            if let Ok(Some(ended)) = timeout(wait, workers.join_next()).await {
                failed = failed.or(end_of(ended).err());
            }
            let over = duration.is_some_and(|duration| start.elapsed() >= duration);
            let broken = all.errors() + (0..workers_count).map(|worker| work.record(worker).errors()).sum::<u64>() >= ERRORS_MAX;
            if over || broken || failed.is_some() {
                work.stop.store(true, Relaxed);
                let rest = async {
                    while let Some(ended) = workers.join_next().await {
                        failed = failed.take().or(end_of(ended).err());
                    }
                };
                timeout(STUCK, rest).await.map_err(|_| "server does not answer".to_owned())?;
            }
            let now = start.elapsed();
            bar.set_position(now.as_secs());
            if now < last + every && !workers.is_empty() {
                continue;
            }
            interval.clear();
            for worker in 0..workers_count {
                let mut record = work.record(worker);
                interval.merge(&record);
                record.clear();
            }
            all.merge(&interval);
            let used = self.used_since(&mut usage)?;
            let part = Part::new(&interval, last, now, used);
            bar.suspend(|| tell(json, &format!("{}\n", part.line())));
            let middle = (last + now) / 2;
            let progress = match (duration, &work.source) {
                (Some(duration), _) => Some(middle.as_secs_f64() / duration.as_secs_f64()),
                (None, Source::Trace(trace)) => Some(trace.progress()),
                (None, _) => None,
            };
            // However long one interval took, the first one is a beginning and the last one an end.
            let [first_tenth, last_tenth] = &mut self.tenths;
            if self.intervals.is_empty() || progress.is_some_and(|progress| progress <= 0.1) {
                first_tenth.add(&interval, last, now, used);
            }
            if workers.is_empty() || progress.is_some_and(|progress| progress >= 0.9) {
                last_tenth.add(&interval, last, now, used);
            }
            self.intervals.push(part);
            last = now;
        }
        bar.finish_and_clear();
        if let Some(error) = failed {
            return Err(error);
        }
        let mut usage = begun_usage;
        let used = self.used_since(&mut usage)?;
        Ok((Part::new(&all, Duration::ZERO, last, used), all))
    }

    /// What the server used since `before`, which becomes now, and its memory.
    fn used_since(&self, before: &mut Option<Usage>) -> Result<Option<(Usage, u64)>, String> {
        let now = self.usage()?;
        let memory_bytes = self.process.map(ServerProcess::memory_bytes).transpose()?;
        let used = now.zip(*before).zip(memory_bytes).map(|((now, before), memory_bytes)| (now.since(&before), memory_bytes));
        *before = now;
        Ok(used)
    }
}
