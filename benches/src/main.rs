//! `blockstore-load`: work for any build-cache server, and what each unit of it costs that server.
//!
//! Always true here: what is stored is known before it is sent and compared when it comes back; an error is counted, never
//! retried, and makes the exit status non-zero; whatever runs ends by time or by count.

mod bar;
mod compare;
mod connect;
mod data;
mod goals;
mod grpc;
mod http;
mod machine;
mod measure;
mod mix;
mod options;
mod process;
mod results;
mod wire;

use clap::Parser;
use options::{Command, Options};
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(Options::parse().command) {
        Ok(code) => code,
        Err(line) => {
            eprintln!("blockstore-load: {line}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode, String> {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| format!("cannot start threads: {error}"));
    let errors = match command {
        Command::Goals(options) => runtime()?.block_on(goals::goals(options))?,
        Command::Run(options) => runtime()?.block_on(mix::mix(options))?,
        Command::Compare(options) => {
            return Ok(if compare::compare(&options)? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    };
    if errors > 0 {
        return Err(format!("{errors} operations failed"));
    }
    Ok(ExitCode::SUCCESS)
}
