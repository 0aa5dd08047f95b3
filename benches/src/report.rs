//! How results are told: a table for people, or JSON by line.

use crate::{options::Options, rows::Row, run::Outcome};
use bytesize::ByteSize;

/// Writes results to stdout as they come.
#[derive(Debug)]
pub(crate) struct Report {
    json: bool,
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// What comes before the rows.
    pub(crate) fn begin(&self, options: &Options) {
        if self.json {
            return;
        }
        println!(
            "{} connections, {} calls in flight, messages of {} up, frames of {} down",
            options.connections,
            options.in_flight,
            ByteSize(options.message_bytes() as u64),
            ByteSize(options.frame_bytes().into())
        );
        println!(
            "{:<14}{:>10}{:>12}{:>9}{:>17}{:>10}{:>10}{:>8}  unit",
            "row", "operations", "bytes", "wall s", "server CPU/unit", "p50 ms", "p99 ms", "errors"
        );
    }

    /// One row.
    pub(crate) fn row(&self, row: Row, outcome: &Outcome) {
        let unit = row.unit();
        let wall_s = outcome.wall.as_secs_f64();
        let work = if unit.per_gigabyte() { outcome.bytes as f64 / 1e9 } else { outcome.units as f64 / 1e6 };
        let cpu = outcome.cpu.filter(|_| work > 0.0).map(|cpu| cpu.as_secs_f64() / work);
        let [p50_ms, p99_ms] = [0.5, 0.99].map(|share| f64::from(outcome.latency_us(share)) / 1000.0);
        if self.json {
            println!(
                "{{\"row\":\"{}\",\"unit\":\"{}\",\"operations\":{},\"units\":{},\"bytes\":{},\"wall_s\":{wall_s:.3},\
                 \"server_cpu_per_unit\":{},\"p50_ms\":{p50_ms:.3},\"p99_ms\":{p99_ms:.3},\"errors\":{}}}",
                row.name(),
                unit.name(),
                outcome.operations,
                outcome.units,
                outcome.bytes,
                cpu.map_or("null".into(), |cpu| format!("{cpu:.4}")),
                outcome.errors
            );
            return;
        }
        println!(
            "{:<14}{:>10}{:>12}{wall_s:>9.2}{:>17}{p50_ms:>10.2}{p99_ms:>10.2}{:>8}  {}",
            row.name(),
            outcome.operations,
            ByteSize(outcome.bytes).to_string(),
            cpu.map_or("-".into(), |cpu| format!("{cpu:.2}")),
            outcome.errors,
            unit.name()
        );
    }

    /// What comes after the rows.
    pub(crate) fn end(&self, memory_bytes_max: u64) {
        match self.json {
            true => println!("{{\"server_memory_bytes_max\":{memory_bytes_max}}}"),
            false => println!("memory of the server: at most {}", ByteSize(memory_bytes_max)),
        }
    }
}
