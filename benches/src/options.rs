//! The command line.

use crate::{compare::CompareOptions, goals::GoalsOptions, mix::RunOptions};
use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};
use std::{
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Puts load on a build cache and tells what it costs that server: any that speaks the Remote Execution API (v2) or the HTTP cache protocol.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs one kind of work after the other, several times, and tells what each unit of it cost beside its goal
    Goals(GoalsOptions),
    /// Puts a mixture of reads and writes, or a recorded sequence of them, on a server for some time
    Run(RunOptions),
    /// Shows two results of `goals` side by side
    Compare(CompareOptions),
}

/// Where the server answers; one address at least.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Addresses {
    /// Where the server answers gRPC, without TLS
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) remote: Option<String>,
    /// Where the server answers the HTTP cache protocol, without TLS
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) http: Option<String>,
}

/// How the server is talked to.
#[derive(Clone, Debug, Args)]
pub(crate) struct ClientOptions {
    #[command(flatten)]
    pub(crate) addresses: Addresses,
    /// Instance name; for HTTP what comes before /cas and /ac
    #[arg(long, default_value = "")]
    pub(crate) instance: String,
    /// Connections for gRPC; HTTP has one for each call in flight
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) connections: u16,
    /// Calls in flight on all connections together
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) in_flight: u16,
    /// Process of the server: what it uses is read from /proc
    #[arg(long, value_name = "PID")]
    pub(crate) server_pid: Option<u32>,
    /// Makes the data; by default every run makes other data, because a server skips what it has
    #[arg(long)]
    seed: Option<u64>,
    /// Data in one message of an upload
    #[arg(long, default_value = "1MiB")]
    message_bytes: ByteSize,
    /// Largest HTTP/2 frame that this client accepts (16KiB to 16MiB); common clients keep to 16KiB
    #[arg(long, default_value = "16KiB")]
    frame_bytes: ByteSize,
    /// Do not compare what is read: spares the client's CPU, not the server's
    #[arg(long)]
    pub(crate) no_verify: bool,
    /// Write all that was measured to this file as JSON; - is stdout, and tables go to stderr then
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

impl ClientOptions {
    /// The seed of this run. Two calls may differ where none was given.
    pub(crate) fn seed(&self) -> u64 {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        self.seed.unwrap_or_else(now)
    }

    /// Data in one message of an upload, in bytes: a MiB at most, because that is what blobs are made of.
    pub(crate) fn message_bytes(&self) -> usize {
        usize::try_from(self.message_bytes.as_u64()).unwrap_or(usize::MAX).clamp(1024, crate::data::NOISE_BYTES)
    }

    /// Largest frame that is accepted, in bytes, within what HTTP/2 allows.
    pub(crate) fn frame_bytes(&self) -> u32 {
        u32::try_from(self.frame_bytes.as_u64()).unwrap_or(u32::MAX).clamp(1 << 14, (1 << 24) - 1)
    }
}

/// A number of seconds: above zero, a month at most.
pub(crate) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no number of seconds above 0, such as 2 or 0.5");
    let seconds: f64 = text.parse().map_err(|_| wrong())?;
    if !(1e-3..=31.0 * 86_400.0).contains(&seconds) {
        return Err(wrong());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn refusal(arguments: &str) -> String {
        let words = ["blockstore-load"].into_iter().chain(arguments.split_whitespace());
        Options::try_parse_from(words).map(drop).unwrap_err().to_string()
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_would() {
        Options::command().debug_assert();
        for (arguments, expected) in [
            ("", "Usage: blockstore-load <COMMAND>"),
            ("goals", "<--remote <HOST:PORT>|--http <HOST:PORT>>"),
            ("goals --remote a:1 --only bs-put", "bs-put-64k"),
            ("goals --remote a:1 --runs 0", "0 is not in 1.."),
            ("goals --remote a:1 --seconds 0", "no number of seconds above 0"),
            ("run --remote a:1 --seconds 2 --minutes 1", "cannot be used with"),
            ("run --remote a:1 --writes 101", "101 is not in 0..=100"),
            ("run --remote a:1 --zipf -1", "exponent"),
            ("compare a.json", "<B.JSON>"),
            ("compare a.json b.json --worse-than 0.9", "at least 1"),
        ] {
            let refusal = refusal(arguments);
            assert!(refusal.contains(expected), "{arguments}: {refusal}");
        }
    }

    #[test]
    fn sizes_keep_within_what_the_protocol_allows() {
        let parse = |arguments: &str| match Options::parse_from(arguments.split_whitespace()).command {
            Command::Goals(goals) => goals.client,
            command => panic!("{command:?}"),
        };
        let client = parse("load goals --http a:1 --message-bytes 1 --frame-bytes 1GiB");
        assert_eq!((client.message_bytes(), client.frame_bytes()), (1024, (1 << 24) - 1));
        let client = parse("load goals --http a:1 --message-bytes 1GiB --frame-bytes 1");
        assert_eq!((client.message_bytes(), client.frame_bytes()), (1 << 20, 1 << 14));
    }
}
