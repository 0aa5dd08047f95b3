//! `blockstore-load goals`: one kind of work after the other, and what each unit of it costs the server.
//!
//! Always true here: all phases run in turn before any runs again, so that noise of the machine hits all alike; the minimum decides,
//! because whatever else runs can only add.

mod bench;
pub(crate) mod phase;
mod streams;

use crate::{
    bar,
    machine::{self, Machine},
    options::{ClientOptions, parse_seconds},
    process::ServerProcess,
    results::{KIND, PhaseResult, Results, RunResult, tell, write_json},
};
use bench::Bench;
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use phase::Phase;
use std::time::Duration;

/// The command line of `goals`.
#[derive(Clone, Debug, Args)]
pub(crate) struct GoalsOptions {
    #[command(flatten)]
    pub(crate) client: ClientOptions,
    /// How long each phase runs each time, unless it has sent all it may before
    #[arg(long, default_value = "2", value_parser = parse_seconds)]
    pub(crate) seconds: Duration,
    /// How often all phases run
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) runs: u16,
    /// Phases to run, in the order given; all by default whose protocol has an address
    #[arg(long, value_name = "PHASE", value_delimiter = ',', value_enum)]
    only: Vec<Phase>,
    /// Most that the phase of an upload sends in one run
    #[arg(long, default_value = "4GiB")]
    upload_bytes_max: ByteSize,
}

impl GoalsOptions {
    /// The phases to run: those that were asked for and whose protocol has an address.
    fn phases(&self) -> Result<Vec<Phase>, String> {
        let addresses = &self.client.addresses;
        let has_address = |phase: &Phase| if phase.is_http() { addresses.http.is_some() } else { addresses.remote.is_some() };
        let asked = if self.only.is_empty() { Phase::value_variants() } else { &self.only };
        let phases: Vec<_> = asked.iter().copied().filter(has_address).collect();
        if phases.is_empty() {
            return Err("--only names no phase of a protocol whose address is given: http-* need --http, all others --remote".into());
        }
        Ok(phases)
    }

    /// Most that the phase of an upload sends, in bytes.
    pub(crate) fn upload_bytes_max(&self) -> u64 {
        self.upload_bytes_max.as_u64()
    }
}

/// Runs the phases that were asked for; how many operations failed.
pub(crate) async fn goals(options: GoalsOptions) -> Result<u64, String> {
    let phases = options.phases()?;
    let json = options.client.json.as_deref();
    let process = options.client.server_pid.map(ServerProcess::new).transpose()?;
    let mut results = Results {
        kind: KIND.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        date: machine::now(),
        machine: Machine::here(),
        flags: std::env::args().skip(1).collect(),
        seed: options.client.seed(),
        phases: phases.iter().copied().map(PhaseResult::new).collect(),
        server_memory_bytes_max: None,
    };
    tell(json, &header(&options, &results));
    let mut bench = Bench::connect(&options, results.seed, process.as_ref()).await?;
    let bar = bar::steps(u64::from(options.runs) * phases.len() as u64);
    for run in 1..=options.runs {
        bench.begin_run();
        for (phase, result) in phases.iter().zip(&mut results.phases) {
            bar.set_message(format!("run {run}: {}", result.phase));
            let outcome = bench.run(*phase).await.map_err(|error| format!("{}: {error}", result.phase))?;
            if let Some(error) = &outcome.first_error {
                bar.suspend(|| eprintln!("blockstore-load: {}: {error}", result.phase));
            }
            let memory_bytes_max = process.as_ref().map(ServerProcess::memory_bytes_max).transpose()?;
            result.add(RunResult::new(phase.unit(), &outcome, memory_bytes_max));
            results.server_memory_bytes_max = memory_bytes_max;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    tell(json, &results.table());
    if let Some(path) = json {
        write_json(&results, path)?;
    }
    Ok(results.errors())
}

fn header(options: &GoalsOptions, results: &Results) -> String {
    let client = &options.client;
    let mut ways = Vec::new();
    if client.addresses.remote.is_some() {
        ways.push(format!(
            "gRPC: {} calls in flight on {} connections, messages of {} up, frames of {} down",
            client.in_flight,
            client.connections,
            ByteSize(client.message_bytes() as u64),
            ByteSize(client.frame_bytes().into())
        ));
    }
    if client.addresses.http.is_some() {
        ways.push(format!("HTTP: {} connections", client.in_flight));
    }
    let runs = format!("{} runs of {} s a phase, CPU of the server per unit", options.runs, options.seconds.as_secs_f64());
    format!("{}; {}\n{}\n{runs}\n", results.date, results.machine.line(), ways.join("; "))
}

#[cfg(test)]
mod tests {
    use crate::options::{Command, Options};
    use clap::Parser;

    fn phases(arguments: &str) -> Result<String, String> {
        match Options::parse_from(arguments.split_whitespace()).command {
            Command::Goals(options) => Ok(options.phases()?.iter().map(|phase| phase.name()).collect::<Vec<_>>().join(" ")),
            command => panic!("{command:?}"),
        }
    }

    #[test]
    fn phases_without_an_address_are_left_out() {
        assert_eq!(phases("load goals --http a:1").unwrap(), "http-put-64k http-get-64k http-put-1m http-get-1m");
        assert_eq!(phases("load goals --remote a:1").unwrap().split(' ').count(), 12);
        assert_eq!(phases("load goals --remote a:1 --http a:2").unwrap().split(' ').count(), 16);
        assert_eq!(phases("load goals --remote a:1 --only ac-get,http-get-1m,ac-put").unwrap(), "ac-get ac-put");
        assert!(phases("load goals --remote a:1 --only http-get-1m").unwrap_err().contains("need --http"));
    }
}
