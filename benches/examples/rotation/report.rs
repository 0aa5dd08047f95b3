//! How results are told: a table in Markdown, or JSON by line.

use crate::{Run, count::Counts, trace::Trace};
use bytesize::ByteSize;

/// Writes results to stdout.
#[derive(Debug)]
pub(crate) struct Report {
    json: bool,
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// What a trace is like.
    pub(crate) fn trace(&self, seed: u64, trace: &Trace) {
        if self.json {
            return;
        }
        let bytes: u64 = trace.objects.iter().map(|object| object.size_bytes).sum();
        println!(
            "seed {seed}: {} objects of {}, asked for {} times in {} steps",
            trace.objects.len(),
            ByteSize(bytes),
            trace.accesses.len(),
            trace.steps.len()
        );
    }

    /// All runs, by capacity.
    pub(crate) fn runs(&self, runs: &[Run]) {
        if self.json {
            return runs.iter().for_each(line);
        }
        println!("\nmeans of the seeds (least–most)\n");
        println!(
            "| device | policy | objects missed, % | bytes missed, % | misses ÷ LRU | of what was there before, % | written ÷ stored | carried | images | breaches |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|");
        for runs in runs.chunk_by(|a, b| a.percent == b.percent) {
            let device = format!("{} %, {} MiB", runs[0].percent, mean(runs.iter().map(|run| (run.device_bytes >> 20) as f64)).round());
            for (name, counts) in policies() {
                let over = |value: &dyn Fn(&Counts) -> f64, digits| spread(runs.iter().map(|run| value(counts(run))), digits);
                let ratio = spread(runs.iter().map(|run| counts(run).miss_ratio() / run.lru.miss_ratio()), 3);
                let percent = |ratio: f64| ratio * 100.0;
                print!(
                    "| {device} | {name} | {} | {} | {ratio} | {} |",
                    over(&|c| percent(c.miss_ratio()), 2),
                    over(&|c| percent(c.byte_miss_ratio()), 2),
                    over(&|c| percent(c.lost_ratio()), 2)
                );
                if name == "ours" {
                    let per_stored =
                        |bytes: fn(&Run) -> u64| spread(runs.iter().map(|run| bytes(run) as f64 / run.ours.stored_bytes.max(1) as f64), 3);
                    let [written, carried, images] = [
                        per_stored(|run| run.ours.written_bytes),
                        per_stored(|run| run.ours.carried_bytes),
                        per_stored(|run| run.ours.image_bytes),
                    ];
                    let breaches = spread(runs.iter().map(|run| run.ours.retention_breaches as f64), 0);
                    println!(" {written} | {carried} | {images} | {breaches} |");
                } else {
                    println!(" | | | |");
                }
            }
        }
    }
}

type Of = fn(&Run) -> &Counts;

fn policies() -> [(&'static str, Of); 6] {
    [
        ("endless", |run| &run.endless),
        ("LRU", |run| &run.lru),
        ("FIFO", |run| &run.fifo),
        ("S3-FIFO", |run| &run.s3_fifo),
        ("ours", |run| &run.ours.counts),
        ("LRU in our capacity", |run| &run.lru_within),
    ]
}

fn line(run: &Run) {
    for (name, counts) in policies() {
        let counts = counts(run);
        print!(
            "{{\"seed\":{},\"capacity_percent\":{},\"device_bytes\":{},\"policy\":\"{name}\",\"accesses\":{},\"misses\":{},\"lost\":{},\
             \"bytes\":{},\"missed_bytes\":{}",
            run.seed, run.percent, run.device_bytes, counts.accesses, counts.misses, counts.lost, counts.bytes, counts.missed_bytes
        );
        if name == "ours" {
            let ours = &run.ours;
            print!(
                ",\"stored_bytes\":{},\"written_bytes\":{},\"carried_bytes\":{},\"image_bytes\":{},\"retention_breaches\":{},\"slowed_us\":{},\
                 \"capacity_bytes\":{}",
                ours.stored_bytes,
                ours.written_bytes,
                ours.carried_bytes,
                ours.image_bytes,
                ours.retention_breaches,
                ours.slowed_us,
                ours.capacity_bytes
            );
        }
        println!("}}");
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0.0), |(sum, n), value| (sum + value, n + 1.0));
    sum / n
}

/// The mean, and where there are several, the least and the most.
fn spread(values: impl Iterator<Item = f64> + Clone, digits: usize) -> String {
    let (least, most) = values.clone().fold((f64::MAX, f64::MIN), |(least, most), value| (least.min(value), most.max(value)));
    let mean = mean(values);
    match least == most {
        true => format!("{mean:.digits$}"),
        false => format!("{mean:.digits$} ({least:.digits$}–{most:.digits$})"),
    }
}
