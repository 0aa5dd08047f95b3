//! `blockstore-tool`: offline maintenance of a store.
//!
//! Always true here: a store that is in use is refused; what goes wrong is told in one line; no command that is listed writes to
//! the store. Exit status: 0 all is well, 1 the store is damaged, 2 nothing can be said of it.

mod inspect;
mod store;
mod verify;

use clap::{Parser, Subcommand};
use std::{path::PathBuf, process::ExitCode};

/// Looks after a store that no server has open.
#[derive(Debug, Parser)]
#[command(name = "blockstore-tool", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Says what a store is: its geometry, its index and how full it is
    Inspect {
        /// The store's file or device, or the directory given to `blockstored --dir`
        store: PathBuf,
    },
    /// Reads every record that the index leads to and checks it; the exit status is 1 if anything is damaged
    Verify {
        /// The store's file or device, or the directory given to `blockstored --dir`
        store: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(&format!("cannot start threads: {error}")),
    };
    let sound = runtime.block_on(async {
        match &arguments.command {
            Command::Inspect { store } => inspect::run(store).await,
            Command::Verify { store } => verify::run(store).await,
        }
    });
    match sound {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(line) => refuse(&line),
    }
}

fn refuse(line: &str) -> ExitCode {
    eprintln!("blockstore-tool: {line}");
    ExitCode::from(2)
}
