//! `blockstore-tool man` and `completions`: what packagers install beside the program, made from the definition of its arguments.

use crate::{
    Cli,
    output::{Failure, Verdict},
};
use clap::CommandFactory;
use clap_complete::Shell;
use std::{io, path::PathBuf};

/// Write manual pages, one for the program and one for each command, into a directory
#[derive(Debug, clap::Args)]
pub(crate) struct Man {
    /// Where to; it must be there
    directory: PathBuf,
}

/// Write completions for a shell to stdout
#[derive(Debug, clap::Args)]
pub(crate) struct Completions {
    shell: Shell,
}

pub(crate) fn man(arguments: Man) -> Result<Verdict, Failure> {
    clap_mangen::generate_to(Cli::command(), &arguments.directory)
        .map_err(|error| Failure::usage(format!("cannot write manual pages to {}: {error}", arguments.directory.display())))?;
    Ok(Verdict::Sound)
}

pub(crate) fn completions(arguments: Completions) -> Result<Verdict, Failure> {
    let mut out = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "blockstore-tool", &mut out);
    io::Write::write_all(&mut io::stdout().lock(), &out)?;
    Ok(Verdict::Sound)
}
