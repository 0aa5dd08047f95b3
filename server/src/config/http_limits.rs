//! Settings that bound connections of HTTP.

use clap::Args;

use super::parse_bytes;
use crate::front::http::Limits;

#[derive(Debug, Args)]
pub(super) struct HttpArguments {
    /// Connections over HTTP at the same time; one more takes the place of those that have been idle for the longest, and is refused
    /// (503) while a request runs on every other; never more than three quarters of the files that the process may open
    #[arg(long, value_name = "N", default_value_t = 12_288, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    http_connections_max: u32,

    /// Most milliseconds from the first byte of a request's head to its last
    #[arg(long, value_name = "MS", default_value_t = 30_000, value_parser = milliseconds())]
    http_head_ms_max: u64,

    /// Largest head of a request, from 4KiB to 1MiB
    #[arg(long, value_name = "BYTES", default_value = "16KiB", value_parser = head_bytes)]
    http_head_bytes_max: usize,

    /// Most milliseconds that a connection over HTTP may be idle
    #[arg(long, value_name = "MS", default_value_t = 300_000, value_parser = milliseconds())]
    http_idle_ms_max: u64,

    /// Most milliseconds without progress, while a body arrives over HTTP or an answer is sent; a kibibyte is progress
    #[arg(long, value_name = "MS", default_value_t = 60_000, value_parser = milliseconds())]
    http_stall_ms_max: u64,
}

fn milliseconds() -> clap::builder::RangedU64ValueParser<u64> {
    clap::value_parser!(u64).range(1..=86_400_000)
}

fn head_bytes(text: &str) -> Result<usize, String> {
    let bytes = parse_bytes(text)?;
    match usize::try_from(bytes) {
        Ok(bytes @ 0x1000..=0x10_0000) => Ok(bytes),
        _ => Err("must be from 4KiB to 1MiB".into()),
    }
}

impl HttpArguments {
    pub(super) fn limits(&self) -> Limits {
        Limits {
            connections_max: usize::try_from(self.http_connections_max).unwrap_or(usize::MAX),
            head_ms_max: self.http_head_ms_max,
            head_bytes_max: self.http_head_bytes_max,
            idle_ms_max: self.http_idle_ms_max,
            stall_ms_max: self.http_stall_ms_max,
        }
    }
}
