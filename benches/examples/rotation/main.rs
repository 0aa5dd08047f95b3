//! `blockstore-rotation`: what our rotation keeps and writes under CI traffic, beside exact LRU, FIFO and S3-FIFO.
//!
//! Always true here: all policies see the same trace and the same device; what an object takes on the device is the same for all;
//! a run counts from where a cache without end would hold more than the device.

mod count;
mod ours;
mod reference;
mod report;
mod sizes;
mod trace;

use clap::Parser;
use count::Counts;
use ours::{Ours, Setup};
use reference::{Fifo, Lru, Policy, S3Fifo};
use report::Report;
use std::{
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use trace::{PROJECT_TARGETS, Parameters, Trace};

const MIB: u64 = 1 << 20;

/// Compares the engine's rotation with exact LRU, FIFO and S3-FIFO on traces of CI traffic.
#[derive(Clone, Debug, Parser)]
#[command(version)]
struct Options {
    /// Sizes of the device, in percent of what all objects of the trace take on it
    #[arg(long, value_delimiter = ',', default_value = "10,25,50", value_parser = clap::value_parser!(u64).range(1..100))]
    capacity_percent: Vec<u64>,
    /// Seeds, each of which makes another trace
    #[arg(long, value_delimiter = ',', default_value = "1,2,3")]
    seeds: Vec<u64>,
    /// Days of the trace
    #[arg(long, default_value_t = 28, value_parser = clap::value_parser!(u32).range(2..=365))]
    days: u32,
    /// Targets of the code base, each with an action result and three outputs on average
    #[arg(long, default_value_t = 4800, value_parser = clap::value_parser!(u32).range(i64::from(PROJECT_TARGETS) * 10..=1_000_000))]
    targets: u32,
    /// Branches opened a day; each is built four times on average
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    branches: u32,
    /// What scans store a day and nobody asks for again, in percent of the code base's outputs
    #[arg(long, default_value_t = 10)]
    scan_percent: u32,
    /// Seconds that a day of the trace takes on the store's clock, which decides how often it flushes and writes images
    #[arg(long, default_value_t = 3600)]
    day_s: u32,
    /// Runs at the same time, each with a device in memory
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// One JSON object a run and policy instead of a table
    #[arg(long)]
    json: bool,
}

/// All policies on one trace and one device.
#[derive(Clone, Debug)]
struct Run {
    seed: u64,
    percent: u64,
    device_bytes: u64,
    ours: Ours,
    /// What a cache without end would miss.
    endless: Counts,
    lru: Counts,
    fifo: Counts,
    s3_fifo: Counts,
    /// Exact LRU that has no more bytes than our capacity, for records alone.
    lru_within: Counts,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match simulate(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            eprintln!("blockstore-rotation: {line}");
            ExitCode::FAILURE
        }
    }
}

fn simulate(options: &Options) -> Result<(), String> {
    let report = Report::new(options.json);
    let traces: Vec<(u64, Trace)> = options.seeds.iter().map(|seed| (*seed, Trace::new(parameters(options, *seed)))).collect();
    traces.iter().for_each(|(seed, trace)| report.trace(*seed, trace));
    let jobs: Vec<(&(u64, Trace), u64)> =
        options.capacity_percent.iter().flat_map(|percent| traces.iter().map(|trace| (trace, *percent))).collect();
    let next = AtomicUsize::new(0);
    let runs = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..options.threads {
            scope.spawn(|| {
                while let Some(((seed, trace), percent)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = run(options, *seed, trace, *percent);
                    runs.lock().expect("no run panicked").push(result);
                }
            });
        }
    });
    let mut runs = runs.into_inner().expect("no run panicked").into_iter().collect::<Result<Vec<Run>, String>>()?;
    runs.sort_by_key(|run| (run.percent, run.seed));
    report.runs(&runs);
    Ok(())
}

fn parameters(options: &Options, seed: u64) -> Parameters {
    let Options { days, targets, branches, scan_percent, .. } = *options;
    Parameters { seed, days, targets, branches, scan_percent }
}

/// As a store of that size chooses it.
fn block_bytes(device_bytes: u64) -> u64 {
    (1 << (device_bytes / 128).max(1).ilog2()).clamp(MIB, 1024 * MIB)
}

/// The first step at whose beginning all that was asked for takes more than the device has.
fn first_step(trace: &Trace, device_bytes: u64, block_bytes: u64) -> Option<usize> {
    let again = trace.again();
    let mut held_bytes = 0;
    trace.steps.iter().position(|step| {
        let full = held_bytes > device_bytes;
        for at in step.clone().filter(|at| !again[*at]) {
            held_bytes += sizes::device_bytes(trace.objects[trace.accesses[at].object as usize].size_bytes, block_bytes);
        }
        full
    })
}

fn run(options: &Options, seed: u64, trace: &Trace, percent: u64) -> Result<Run, String> {
    // Of what the objects take with the smallest blocks; those of larger ones differ by a page now and then.
    let all_bytes: u64 = trace.objects.iter().map(|object| sizes::device_bytes(object.size_bytes, MIB)).sum();
    let device_bytes = all_bytes * percent / 100 / MIB * MIB;
    let block_bytes = block_bytes(device_bytes);
    let first_step = first_step(trace, device_bytes, block_bytes).ok_or("the device holds the whole trace: give it less")?;
    let time_s = f64::from(options.days) * f64::from(options.day_s);
    let step_pause = Duration::from_secs_f64(time_s / trace.steps.len() as f64);
    let ours = ours::run(trace, Setup { device_bytes, block_bytes, first_step, step_pause })
        .map_err(|line| format!("seed {seed}, {percent} %: {line}"))?;
    let first_access = trace.steps[first_step].start;
    let whole = |size_bytes| sizes::device_bytes(size_bytes, block_bytes);
    let records = |size_bytes| sizes::record_bytes(size_bytes, block_bytes);
    let objects = trace.objects.len();
    Ok(Run {
        seed,
        percent,
        device_bytes,
        endless: counted(trace, first_access, &mut Lru::new(u64::MAX, objects), whole),
        lru: counted(trace, first_access, &mut Lru::new(device_bytes, objects), whole),
        fifo: counted(trace, first_access, &mut Fifo::new(device_bytes, objects), whole),
        s3_fifo: counted(trace, first_access, &mut S3Fifo::new(device_bytes, objects), whole),
        lru_within: counted(trace, first_access, &mut Lru::new(ours.capacity_bytes, objects), records),
        ours,
    })
}

fn counted(trace: &Trace, first_access: usize, policy: &mut dyn Policy, bytes: impl Fn(u64) -> u64) -> Counts {
    let mut counts = Counts::default();
    for (at, (access, again)) in trace.accesses.iter().zip(trace.again()).enumerate() {
        if at == first_access {
            counts = Counts::default();
        }
        let size_bytes = trace.objects[access.object as usize].size_bytes;
        counts.add(policy.access(access.object, bytes(size_bytes)), size_bytes, again);
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_counts_the_same_questions_for_all_and_every_byte_that_the_engine_stored() {
        let options = Options::parse_from(["rotation", "--days", "5", "--targets", "600", "--branches", "6"]);
        let trace = Trace::new(parameters(&options, 1));
        let run = run(&options, 1, &trace, 50).unwrap();
        assert!(run.endless.lost == 0 && run.endless.misses < run.lru.misses, "{run:?}");
        assert_eq!(run.ours.counts.accesses, run.lru.accesses);
        assert!(run.ours.counts.misses >= run.endless.misses, "{run:?}");
        // How well the policy does is for the table to say; here, that what was put is found at all.
        assert!(run.ours.counts.misses < run.ours.counts.accesses / 4, "{run:?}");
        assert!(run.ours.written_bytes > run.ours.stored_bytes && run.ours.stored_bytes == run.ours.counts.missed_bytes);
        assert!(run.lru_within.misses >= run.lru.misses);
    }
}
