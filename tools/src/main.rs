//! `blockstore-tool`: looks after a store, mostly while no server runs.
//!
//! Always true here: no command writes to a store unless its name says so, and those that do refuse one that is held; what goes wrong
//! is told in one line on stderr. Exit status: 0 sound or done, 1 damage found, 2 wrong usage, 3 the store cannot be opened, 4 it
//! is held by a server.

mod actions;
mod bazel_remote;
mod bench;
mod decode;
mod export;
mod format;
mod generate;
mod get;
mod grow;
mod import;
mod inspect;
mod ls;
mod name;
mod output;
mod progress;
mod rebuild;
mod repair;
mod served;
mod shrink;
mod store;
mod verify;

use clap::{Parser, Subcommand};
use output::{Failure, Verdict};
use std::process::ExitCode;

/// Looks after a store, mostly while no server runs.
///
/// STORE is the directory given to `blockstored --dir`, a store's file, or a device. Exit status: 0 sound or done, 1 damage found, 2
/// wrong usage, 3 the store cannot be opened, 4 it is held by a server.
#[derive(Debug, Parser)]
#[command(name = "blockstore-tool", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Inspect(inspect::Arguments),
    Verify(verify::Arguments),
    Ls(ls::Arguments),
    Get(get::Arguments),
    CatAction(actions::Arguments),
    Rebuild(rebuild::Arguments),
    Repair(repair::Arguments),
    Format(format::Arguments),
    Grow(grow::Arguments),
    Shrink(shrink::Arguments),
    Export(export::Arguments),
    Import(import::Arguments),
    Bench(bench::Arguments),
    Man(generate::Man),
    Completions(generate::Completions),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::cannot_open(format!("cannot start threads: {error}")).told(),
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Inspect(arguments) => inspect::run(arguments).await,
            Command::Verify(arguments) => verify::run(arguments).await,
            Command::Ls(arguments) => ls::run(arguments).await,
            Command::Get(arguments) => get::run(arguments).await,
            Command::CatAction(arguments) => actions::run(arguments).await,
            Command::Rebuild(arguments) => rebuild::run(arguments).await,
            Command::Repair(arguments) => repair::run(arguments).await,
            Command::Format(arguments) => format::run(arguments).await,
            Command::Grow(arguments) => grow::run(arguments).await,
            Command::Shrink(arguments) => shrink::run(arguments).await,
            Command::Export(arguments) => export::run(arguments).await,
            Command::Import(arguments) => import::run(arguments).await,
            Command::Bench(arguments) => bench::run(arguments).await,
            Command::Man(arguments) => generate::man(arguments),
            Command::Completions(arguments) => generate::completions(arguments),
        }
    });
    match result {
        Ok(Verdict::Sound) => ExitCode::SUCCESS,
        Ok(Verdict::Damaged) => ExitCode::from(1),
        Err(failure) => failure.told(),
    }
}
