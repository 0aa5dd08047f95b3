//! `blockstore-load compare`: two results side by side.
//!
//! Always true here: what was not measured on both sides is not compared, and told; a ratio above one is worse, whatever the figure.

use crate::results::{PhaseResult, Results, tell};
use clap::Args;
use std::path::PathBuf;

/// The command line of `compare`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CompareOptions {
    /// What `goals --json` wrote before
    #[arg(value_name = "A.JSON")]
    before: PathBuf,
    /// What `goals --json` wrote after
    #[arg(value_name = "B.JSON")]
    after: PathBuf,
    /// Exit with status 1 if CPU per unit, time per unit or p99 of any phase is more than this times what it was
    #[arg(long, value_name = "FACTOR", value_parser = parse_factor)]
    worse_than: Option<f64>,
}

fn parse_factor(text: &str) -> Result<f64, String> {
    let factor = text.parse().ok().filter(|factor: &f64| factor.is_finite() && *factor >= 1.0);
    factor.ok_or_else(|| format!("{text:?} is no factor: a number of at least 1, such as 1.15"))
}

/// One figure of both sides: the best of all runs.
#[derive(Clone, Debug, PartialEq)]
struct Pair {
    phase: String,
    figure: &'static str,
    before: f64,
    after: f64,
    /// How many times worse `after` is.
    ratio: f64,
}

/// Prints both sides; whether none was worse than allowed.
pub(crate) fn compare(options: &CompareOptions) -> Result<bool, String> {
    let (before, after) = (Results::read(&options.before)?, Results::read(&options.after)?);
    let pairs = pairs(&before, &after);
    if pairs.is_empty() {
        return Err(format!("{} and {} have no phase in common", options.before.display(), options.after.display()));
    }
    let mut text = String::new();
    for (name, results) in [("A", &before), ("B", &after)] {
        text += &format!("{name}: {}; {}\n", results.date, results.machine.line());
    }
    text += &format!("{:<13}{:<16}{:>12}{:>12}{:>9}\n", "phase", "", "A", "B", "worse by");
    for pair in &pairs {
        let mark = if options.worse_than.is_some_and(|factor| pair.ratio > factor) { "  !" } else { "" };
        let Pair { phase, figure, before, after, ratio } = pair;
        text += &format!("{phase:<13}{figure:<16}{before:>12.3}{after:>12.3}{ratio:>9.3}{mark}\n");
    }
    for (name, here, there) in [("A", &before, &after), ("B", &after, &before)] {
        for phase in &here.phases {
            if !there.phases.iter().any(|other| other.phase == phase.phase) {
                text += &format!("{:<13}only in {name}\n", phase.phase);
            }
        }
    }
    tell(None, &text);
    Ok(options.worse_than.is_none_or(|factor| pairs.iter().all(|pair| pair.ratio <= factor)))
}

/// What can be compared, by phase in the order of `before`.
fn pairs(before: &Results, after: &Results) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for a in &before.phases {
        let Some(b) = after.phases.iter().find(|b| b.phase == a.phase && b.unit == a.unit) else { continue };
        let mut add = |figure, of: fn(&PhaseResult) -> Option<f64>, more_is_better: bool| {
            // What is zero was too little to measure.
            let (Some(before), Some(after)) = (of(a).filter(|x| *x > 0.0), of(b).filter(|x| *x > 0.0)) else { return };
            let ratio = if more_is_better { before / after } else { after / before };
            pairs.push(Pair { phase: a.phase.clone(), figure, before, after, ratio });
        };
        add("CPU per unit", |phase| phase.cpu_per_unit_min, false);
        add("units/s", |phase| phase.greatest(|run| run.units_per_s), true);
        add("p99 ms", |phase| phase.least(|run| run.p99_ms), false);
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        goals::phase::Phase,
        results::{
            RunResult,
            tests::{results, run},
            write_json,
        },
    };

    #[test]
    fn a_ratio_above_one_is_worse_whatever_the_figure() {
        let before = results(&[(Phase::AcPut, run(10.0, 100.0, 4.0)), (Phase::AcGet, run(1.0, 1.0, 1.0))]);
        let after = results(&[(Phase::BatchPut, run(1.0, 1.0, 1.0)), (Phase::AcPut, run(12.0, 200.0, 2.0))]);
        let found: Vec<_> = pairs(&before, &after).into_iter().map(|pair| (pair.phase, pair.figure, pair.ratio)).collect();
        let expected = [("CPU per unit", 1.2), ("units/s", 0.5), ("p99 ms", 0.5)];
        assert_eq!(found, expected.map(|(figure, ratio)| ("ac-put".to_owned(), figure, ratio)));
    }

    #[test]
    fn the_best_of_all_runs_counts() {
        let mut before = results(&[(Phase::AcPut, run(10.0, 100.0, 4.0))]);
        before.phases[0].add(run(8.0, 50.0, 2.0));
        let after = results(&[(Phase::AcPut, run(8.0, 100.0, 2.0))]);
        assert!(pairs(&before, &after).iter().all(|pair| pair.ratio == 1.0));
    }

    #[test]
    fn what_was_not_measured_is_not_compared() {
        let blind = results(&[(Phase::AcPut, RunResult { server: None, ..run(10.0, 100.0, 0.0) })]);
        let figures: Vec<_> = pairs(&blind, &blind).into_iter().map(|pair| pair.figure).collect();
        assert_eq!(figures, ["units/s"]);
    }

    #[test]
    fn the_verdict_follows_the_factor() {
        let dir = tempfile::TempDir::new().unwrap();
        let file = |name: &str, results: &Results| {
            let path = dir.path().join(name);
            write_json(results, &path).unwrap();
            path
        };
        let before = file("a", &results(&[(Phase::AcPut, run(10.0, 100.0, 4.0))]));
        let after = file("b", &results(&[(Phase::AcPut, run(11.0, 120.0, 4.0))]));
        let other = file("c", &results(&[(Phase::AcGet, run(11.0, 120.0, 4.0))]));
        let verdict = |after: &PathBuf, worse_than| compare(&CompareOptions { before: before.clone(), after: after.clone(), worse_than });
        assert_eq!(verdict(&after, Some(1.15)), Ok(true));
        assert_eq!(verdict(&after, Some(1.05)), Ok(false));
        assert_eq!(verdict(&after, None), Ok(true));
        assert!(verdict(&other, None).unwrap_err().contains("no phase in common"));
        assert!(verdict(&dir.path().join("d"), None).unwrap_err().starts_with("read "));
    }
}
