//! What `goals` found: as JSON, and as a table.
//!
//! Always true here: what is written can be read again; a figure that nobody measured is absent, not zero.

use crate::{
    goals::phase::{Phase, Unit},
    machine::Machine,
    measure::Outcome,
};
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use std::{fmt::Write as _, fs, io::Write as _, path::Path};

/// What tells these results from others in JSON.
pub(crate) const KIND: &str = "goals";

/// All that `goals` found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    /// [`KIND`].
    pub(crate) kind: String,
    /// Version of this tool.
    pub(crate) version: String,
    /// When it began, in UTC.
    pub(crate) date: String,
    pub(crate) machine: Machine,
    /// The command line.
    pub(crate) flags: Vec<String>,
    /// The seed of the data, which the command line may leave open.
    pub(crate) seed: u64,
    pub(crate) phases: Vec<PhaseResult>,
    /// The most memory that the server has had at a time, in bytes.
    pub(crate) server_memory_bytes_max: Option<u64>,
}

/// One phase, over all runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PhaseResult {
    pub(crate) phase: String,
    /// What `cpu_per_unit` and `goal` are told in.
    pub(crate) unit: String,
    pub(crate) goal: f64,
    pub(crate) cpu_per_unit_min: Option<f64>,
    pub(crate) cpu_per_unit_median: Option<f64>,
    /// Whether the minimum is at most the goal and nothing failed.
    pub(crate) goal_met: Option<bool>,
    pub(crate) runs: Vec<RunResult>,
}

/// One phase in one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunResult {
    pub(crate) operations: u64,
    pub(crate) units: u64,
    /// Payload, in whichever direction.
    pub(crate) bytes: u64,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
    pub(crate) wall_s: f64,
    pub(crate) units_per_s: f64,
    pub(crate) bytes_per_s: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) server: Option<ServerUse>,
}

/// What the server's process used in one run of one phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ServerUse {
    pub(crate) cpu_s: f64,
    /// Absent where nothing was done.
    pub(crate) cpu_per_unit: Option<f64>,
    /// The most that it ever had until then.
    pub(crate) memory_bytes_max: u64,
    pub(crate) device_read_bytes: Option<u64>,
    pub(crate) device_written_bytes: Option<u64>,
    pub(crate) switches_voluntary: u64,
    pub(crate) switches_involuntary: u64,
    pub(crate) minor_faults: u64,
}

impl RunResult {
    /// What `outcome` says, of a server whose memory was never above this.
    pub(crate) fn new(unit: Unit, outcome: &Outcome, memory_bytes_max: Option<u64>) -> Self {
        let wall_s = outcome.wall.as_secs_f64();
        let work = unit.work(outcome.units, outcome.bytes);
        let per_s = |count: u64| if wall_s > 0.0 { count as f64 / wall_s } else { 0.0 };
        let [p50_ms, p99_ms, p999_ms] = [0.5, 0.99, 0.999].map(|share| f64::from(outcome.latency_us(share)) / 1000.0);
        let server = outcome.server.zip(memory_bytes_max).map(|(usage, memory_bytes_max)| ServerUse {
            cpu_s: usage.cpu.as_secs_f64(),
            cpu_per_unit: (work > 0.0).then(|| usage.cpu.as_secs_f64() / work),
            memory_bytes_max,
            device_read_bytes: usage.device.map(|device| device.read),
            device_written_bytes: usage.device.map(|device| device.written),
            switches_voluntary: usage.switches_voluntary,
            switches_involuntary: usage.switches_involuntary,
            minor_faults: usage.minor_faults,
        });
        Self {
            operations: outcome.operations,
            units: outcome.units,
            bytes: outcome.bytes,
            errors: outcome.errors,
            first_error: outcome.first_error.clone(),
            wall_s,
            units_per_s: per_s(outcome.units),
            bytes_per_s: per_s(outcome.bytes),
            p50_ms,
            p99_ms,
            p999_ms,
            server,
        }
    }
}

impl PhaseResult {
    /// A phase that has not run yet.
    pub(crate) fn new(phase: Phase) -> Self {
        Self {
            phase: phase.name(),
            unit: phase.unit().name().to_owned(),
            goal: phase.goal(),
            cpu_per_unit_min: None,
            cpu_per_unit_median: None,
            goal_met: None,
            runs: Vec::new(),
        }
    }

    /// Adds a run.
    pub(crate) fn add(&mut self, run: RunResult) {
        self.runs.push(run);
        let mut costs: Vec<f64> = self.runs.iter().filter_map(|run| run.server.as_ref()?.cpu_per_unit).collect();
        costs.sort_by(f64::total_cmp);
        self.cpu_per_unit_min = costs.first().copied();
        self.cpu_per_unit_median = median(&costs);
        self.goal_met = self.cpu_per_unit_min.map(|least| least <= self.goal && self.errors() == 0);
    }

    /// Operations that failed, in all runs.
    pub(crate) fn errors(&self) -> u64 {
        self.runs.iter().map(|run| run.errors).sum()
    }

    /// The least of a figure of all runs.
    pub(crate) fn least(&self, figure: impl Fn(&RunResult) -> f64) -> Option<f64> {
        self.runs.iter().map(figure).min_by(f64::total_cmp)
    }

    /// The greatest of a figure of all runs.
    pub(crate) fn greatest(&self, figure: impl Fn(&RunResult) -> f64) -> Option<f64> {
        self.runs.iter().map(figure).max_by(f64::total_cmp)
    }

    fn line(&self) -> String {
        let told = |cost: Option<f64>| cost.map_or("-".into(), |cost| format!("{cost:.3}"));
        let met = match self.goal_met {
            None => "-",
            Some(true) => "met",
            Some(false) => "not met",
        };
        let ms = |figure: fn(&RunResult) -> f64| self.least(figure).unwrap_or(0.0);
        let bytes_per_s = ByteSize(self.greatest(|run| run.bytes_per_s).unwrap_or(0.0) as u64);
        format!(
            "{:<13}{:<10}{:>9}{:>9}{:>7}  {met:<8}{:>12.0}{:>12}{:>9.2}{:>9.2}{:>9.2}{:>8}",
            self.phase,
            self.unit,
            told(self.cpu_per_unit_min),
            told(self.cpu_per_unit_median),
            self.goal,
            self.greatest(|run| run.units_per_s).unwrap_or(0.0),
            format!("{bytes_per_s}/s"),
            ms(|run| run.p50_ms),
            ms(|run| run.p99_ms),
            ms(|run| run.p999_ms),
            self.errors()
        )
    }
}

/// The middle of sorted figures.
pub(crate) fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    Some(if sorted.len() % 2 == 1 { upper } else { f64::midpoint(sorted[middle - 1], upper) })
}

impl Results {
    /// For people: CPU of the server per unit, the goal, and the best throughput and least latencies of all runs.
    pub(crate) fn table(&self) -> String {
        let mut table = format!(
            "{:<13}{:<10}{:>9}{:>9}{:>7}  {:<8}{:>12}{:>12}{:>9}{:>9}{:>9}{:>8}\n",
            "phase", "unit", "minimum", "median", "goal", "", "units/s", "bytes/s", "p50 ms", "p99 ms", "p99.9 ms", "errors"
        );
        for phase in &self.phases {
            table += &phase.line();
            table.push('\n');
        }
        if let Some(memory_bytes) = self.server_memory_bytes_max {
            _ = writeln!(table, "memory of the server: at most {}", ByteSize(memory_bytes));
        }
        table
    }

    /// Operations that failed.
    pub(crate) fn errors(&self) -> u64 {
        self.phases.iter().map(PhaseResult::errors).sum()
    }

    /// Reads what [`write_json`] wrote.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|error| format!("read {}: {error}", path.display()))?;
        let wrong = |error: &dyn std::fmt::Display| format!("{} is not what `goals --json` writes: {error}", path.display());
        let results: Self = serde_json::from_str(&text).map_err(|error| wrong(&error))?;
        if results.kind == KIND { Ok(results) } else { Err(wrong(&format!("its kind is {:?}", results.kind))) }
    }
}

/// Writes results to a file; `-` is stdout.
pub(crate) fn write_json(results: &impl Serialize, path: &Path) -> Result<(), String> {
    let mut text = serde_json::to_string_pretty(results).map_err(|error| format!("write {}: {error}", path.display()))?;
    text.push('\n');
    let written = if path == Path::new("-") { std::io::stdout().write_all(text.as_bytes()) } else { fs::write(path, text) };
    written.map_err(|error| format!("write {}: {error}", path.display()))
}

/// Tells people something: on stdout, unless JSON goes there. A reader that went away is no failure.
pub(crate) fn tell(json: Option<&Path>, text: &str) {
    _ = if json == Some(Path::new("-")) {
        std::io::stderr().write_all(text.as_bytes())
    } else {
        std::io::stdout().write_all(text.as_bytes())
    };
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A run at this cost of CPU per unit, these units per second and this p99 in milliseconds.
    pub(crate) fn run(cost: f64, units_per_s: f64, p99_ms: f64) -> RunResult {
        let server = ServerUse {
            cpu_s: 1.0,
            cpu_per_unit: Some(cost),
            memory_bytes_max: 1 << 20,
            device_read_bytes: None,
            device_written_bytes: Some(7),
            switches_voluntary: 1,
            switches_involuntary: 2,
            minor_faults: 3,
        };
        let mut run = RunResult::new(Unit::Call, &Outcome::default(), None);
        (run.units_per_s, run.p99_ms, run.server) = (units_per_s, p99_ms, Some(server));
        run
    }

    /// Results of one run a phase.
    pub(crate) fn results(phases: &[(Phase, RunResult)]) -> Results {
        let phases = phases.iter().map(|(phase, run)| {
            let mut result = PhaseResult::new(*phase);
            result.add(run.clone());
            result
        });
        Results {
            kind: KIND.into(),
            version: "1".into(),
            date: "now".into(),
            machine: Machine { cpu: "abacus".into(), cores: 2, kernel: "6".into(), sha256_gigabytes_per_s: 1.5 },
            flags: vec!["goals".into()],
            seed: 1,
            phases: phases.collect(),
            server_memory_bytes_max: None,
        }
    }

    #[test]
    fn a_goal_is_met_by_the_minimum_and_without_errors() {
        let mut phase = PhaseResult::new(Phase::AcGet);
        phase.add(run(40.0, 1.0, 1.0));
        assert_eq!(phase.goal_met, Some(false));
        phase.add(run(28.0, 1.0, 1.0));
        assert_eq!((phase.goal_met, phase.cpu_per_unit_min, phase.cpu_per_unit_median), (Some(true), Some(28.0), Some(34.0)));
        phase.add(run(30.0, 1.0, 1.0));
        assert_eq!(phase.cpu_per_unit_median, Some(30.0));
        phase.add(RunResult { errors: 1, ..run(20.0, 1.0, 1.0) });
        assert_eq!(phase.goal_met, Some(false));
    }

    #[test]
    fn without_a_process_there_is_no_cost_and_no_verdict() {
        let mut phase = PhaseResult::new(Phase::BatchPut);
        phase.add(RunResult { server: None, ..run(1.0, 1.0, 1.0) });
        assert_eq!((phase.goal_met, phase.cpu_per_unit_min), (None, None));
    }

    #[test]
    fn results_are_read_as_they_were_written() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("a.json");
        let written = results(&[(Phase::AcPut, run(1.5, 2.0, 3.0))]);
        write_json(&written, &path).unwrap();
        assert_eq!(Results::read(&path).unwrap(), written);
        write_json(&Results { kind: "run".into(), ..written }, &path).unwrap();
        assert!(Results::read(&path).unwrap_err().contains("its kind is \"run\""));
    }
}
