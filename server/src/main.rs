//! `blockstored`: see [`blockstore_server::daemon`].

use std::process::ExitCode;

fn main() -> ExitCode {
    blockstore_server::daemon::run(std::env::args_os())
}
