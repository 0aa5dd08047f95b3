//! What happened, by kind of operation: counts, and latencies in classes of 1 %.
//!
//! Always true here: a record has one size however much it counts; adding two of them loses nothing.

use crate::process::Usage;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::{fmt::Write as _, time::Duration};

/// Latencies are told apart up to this, in microseconds; what took longer counts as this.
const LATENCY_US_MAX: u64 = 600_000_000;
/// Decimal digits of a latency that are kept.
const DIGITS: u8 = 2;

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Put,
    Get,
    Find,
    AcPut,
    AcGet,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Put, Self::Get, Self::Find, Self::AcPut, Self::AcGet];

    fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Find => "find",
            Self::AcPut => "ac-put",
            Self::AcGet => "ac-get",
        }
    }
}

/// What one operation came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Came {
    /// Payload bytes.
    pub(super) bytes: u64,
    /// What was asked for and was not there: blobs or results.
    pub(super) misses: u64,
}

#[derive(Clone, Debug)]
struct Tally {
    latencies_us: Histogram<u64>,
    operations: u64,
    bytes: u64,
    misses: u64,
    errors: u64,
}

/// Operations of all kinds.
#[derive(Clone, Debug)]
pub(super) struct Record {
    tallies: [Tally; Kind::ALL.len()],
    first_error: Option<String>,
}

impl Record {
    pub(super) fn new() -> Self {
        let latencies_us = Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS).expect("the bounds are constants that are allowed");
        let tally = Tally { latencies_us, operations: 0, bytes: 0, misses: 0, errors: 0 };
        Self { tallies: Kind::ALL.map(|_| tally.clone()), first_error: None }
    }

    /// Counts an operation.
    pub(super) fn add(&mut self, kind: Kind, result: Result<Came, String>, latency: Duration) {
        let tally = &mut self.tallies[kind as usize];
        match result {
            Ok(came) => {
                tally.operations += 1;
                tally.bytes += came.bytes;
                tally.misses += came.misses;
                tally.latencies_us.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
            }
            Err(error) => {
                tally.errors += 1;
                self.first_error.get_or_insert_with(|| format!("{}: {error}", kind.name()));
            }
        }
    }

    /// Adds all of `other`.
    pub(super) fn merge(&mut self, other: &Self) {
        for (tally, other) in self.tallies.iter_mut().zip(&other.tallies) {
            tally.operations += other.operations;
            tally.bytes += other.bytes;
            tally.misses += other.misses;
            tally.errors += other.errors;
            tally.latencies_us.add(&other.latencies_us).expect("all records have the same classes");
        }
        if self.first_error.is_none() {
            self.first_error.clone_from(&other.first_error);
        }
    }

    /// Forgets everything and keeps its memory.
    pub(super) fn clear(&mut self) {
        for tally in &mut self.tallies {
            tally.latencies_us.reset();
            (tally.operations, tally.bytes, tally.misses, tally.errors) = (0, 0, 0, 0);
        }
        self.first_error = None;
    }

    /// Operations that failed.
    pub(super) fn errors(&self) -> u64 {
        self.tallies.iter().map(|tally| tally.errors).sum()
    }

    /// What failed first.
    pub(super) fn first_error(&self) -> Option<&str> {
        self.first_error.as_deref()
    }
}

/// A part of a run, told.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Part {
    /// Since the load began.
    pub(super) start_s: f64,
    pub(super) end_s: f64,
    /// Kinds of which there were any.
    pub(super) kinds: Vec<KindPart>,
    pub(super) server: Option<ServerPart>,
}

/// Operations of one kind in a part of a run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct KindPart {
    pub(super) kind: &'static str,
    pub(super) operations: u64,
    pub(super) operations_per_s: f64,
    pub(super) bytes: u64,
    pub(super) bytes_per_s: f64,
    pub(super) misses: u64,
    pub(super) errors: u64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) p999_ms: f64,
    pub(super) max_ms: f64,
}

/// What the server used in a part of a run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ServerPart {
    pub(super) cpu_s: f64,
    /// At the end of the part.
    pub(super) memory_bytes: u64,
    pub(super) device_read_bytes: Option<u64>,
    pub(super) device_written_bytes: Option<u64>,
    pub(super) switches_voluntary: u64,
    pub(super) switches_involuntary: u64,
    pub(super) minor_faults: u64,
}

impl Part {
    /// What `record` says about the time from `start` to `end`; the server's use in it and its memory after it.
    pub(super) fn new(record: &Record, start: Duration, end: Duration, server: Option<(Usage, u64)>) -> Self {
        let wall_s = end.saturating_sub(start).as_secs_f64().max(1e-9);
        let ms = |tally: &Tally, share| tally.latencies_us.value_at_quantile(share) as f64 / 1000.0;
        let told = |kind: Kind| {
            let tally = &record.tallies[kind as usize];
            (tally.operations + tally.errors > 0).then(|| KindPart {
                kind: kind.name(),
                operations: tally.operations,
                operations_per_s: tally.operations as f64 / wall_s,
                bytes: tally.bytes,
                bytes_per_s: tally.bytes as f64 / wall_s,
                misses: tally.misses,
                errors: tally.errors,
                p50_ms: ms(tally, 0.5),
                p99_ms: ms(tally, 0.99),
                p999_ms: ms(tally, 0.999),
                max_ms: tally.latencies_us.max() as f64 / 1000.0,
            })
        };
        Self {
            start_s: start.as_secs_f64(),
            end_s: end.as_secs_f64(),
            kinds: Kind::ALL.into_iter().filter_map(told).collect(),
            server: server.map(|(used, memory_bytes)| ServerPart {
                cpu_s: used.cpu.as_secs_f64(),
                memory_bytes,
                device_read_bytes: used.device.map(|device| device.read),
                device_written_bytes: used.device.map(|device| device.written),
                switches_voluntary: used.switches_voluntary,
                switches_involuntary: used.switches_involuntary,
                minor_faults: used.minor_faults,
            }),
        }
    }

    /// One line for people. Bytes are in MB (10^6), latencies p50/p99/p99.9 in milliseconds.
    pub(super) fn line(&self) -> String {
        let mut line = format!("{:>9.1} s", self.end_s);
        for kind in &self.kinds {
            _ = write!(
                line,
                " | {} {:.0}/s {:.1} MB/s {:.2}/{:.2}/{:.2} ms",
                kind.kind,
                kind.operations_per_s,
                kind.bytes_per_s / 1e6,
                kind.p50_ms,
                kind.p99_ms,
                kind.p999_ms
            );
            if kind.misses > 0 {
                _ = write!(line, " {} misses", kind.misses);
            }
            if kind.errors > 0 {
                _ = write!(line, " {} ERRORS", kind.errors);
            }
        }
        if let Some(server) = &self.server {
            let wall_s = (self.end_s - self.start_s).max(1e-9);
            _ = write!(line, " | server {:.2} cores, {:.0} MB", server.cpu_s / wall_s, server.memory_bytes as f64 / 1e6);
            if let Some((read, written)) = server.device_read_bytes.zip(server.device_written_bytes) {
                _ = write!(line, ", reads {:.1} writes {:.1} MB/s", read as f64 / 1e6 / wall_s, written as f64 / 1e6 / wall_s);
            }
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_add_up() {
        let mut all = Record::new();
        let mut one = Record::new();
        for (n, misses) in [(1, 0), (2, 1), (3, 0)] {
            one.add(Kind::Get, Ok(Came { bytes: 10, misses }), Duration::from_millis(n * 100));
        }
        all.merge(&one);
        one.clear();
        one.add(Kind::Get, Ok(Came { bytes: 5, misses: 0 }), Duration::from_secs(1_000_000));
        one.add(Kind::AcPut, Err("no".into()), Duration::ZERO);
        all.merge(&one);
        let part = Part::new(&all, Duration::from_secs(1), Duration::from_secs(3), None);
        let [get, action] = &part.kinds[..] else { panic!("{part:?}") };
        assert_eq!((get.kind, get.operations, get.bytes, get.misses, get.errors), ("get", 4, 35, 1, 0));
        assert_eq!((get.operations_per_s, get.bytes_per_s), (2.0, 17.5));
        assert!((200.0..203.0).contains(&get.p50_ms), "{}", get.p50_ms);
        assert!((600_000.0..606_000.0).contains(&get.max_ms), "{}", get.max_ms);
        assert_eq!((action.kind, action.operations, action.errors), ("ac-put", 0, 1));
        assert_eq!((all.errors(), all.first_error()), (1, Some("ac-put: no")));
    }
}
