//! `blockstore-load`: work for any server of the Remote Execution API, and what each unit of it costs that server.
//!
//! Always true here: what a row stores is known before it is sent and compared when it comes back; an error is counted, never
//! retried, and makes the exit status non-zero; every phase ends by time or by count.

mod data;
mod options;
mod process;
mod report;
mod rows;
mod run;
mod wire;

use clap::Parser;
use options::Options;
use process::ServerProcess;
use report::Report;
use rows::Bench;
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("blockstore-load: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(load(options)) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(errors) => {
            eprintln!("blockstore-load: {errors} operations failed");
            ExitCode::FAILURE
        }
        Err(line) => {
            eprintln!("blockstore-load: {line}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the rows that were asked for; how many operations failed.
async fn load(options: Options) -> Result<u64, String> {
    let process = options.server_pid.map(ServerProcess::new).transpose()?;
    let report = Report::new(options.json);
    report.begin(&options);
    let rows = options.rows();
    let mut bench = Bench::connect(options).await?;
    let mut errors = 0;
    for row in rows {
        let outcome = bench.run(row, process.as_ref()).await.map_err(|error| format!("{}: {error}", row.name()))?;
        if let Some(error) = &outcome.first_error {
            eprintln!("blockstore-load: {}: {error}", row.name());
        }
        errors += outcome.errors;
        report.row(row, &outcome);
    }
    if let Some(process) = &process {
        report.end(process.memory_bytes_max()?);
    }
    Ok(errors)
}
