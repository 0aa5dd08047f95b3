//! The command line.

use crate::rows::Row;
use clap::{Parser, ValueEnum};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Measures what work costs a server of the Remote Execution API (v2).
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub(crate) struct Options {
    /// Where the server answers gRPC, without TLS
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) remote: String,
    /// Instance name
    #[arg(long, default_value = "")]
    pub(crate) instance: String,
    /// Connections
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) connections: u16,
    /// Calls in flight on all connections together; fewer where blobs are large
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) in_flight: u16,
    /// How long each row runs, unless it has sent all it may before
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Process of the server: its CPU time and memory are read from /proc
    #[arg(long, value_name = "PID")]
    pub(crate) server_pid: Option<u32>,
    /// Rows to run, in the order given; all by default
    #[arg(long, value_delimiter = ',', value_enum)]
    rows: Vec<Row>,
    /// Makes the data; by default every run makes other data, because a server skips what it has
    #[arg(long)]
    seed: Option<u64>,
    /// Data in one message of an upload
    #[arg(long, default_value = "1MiB")]
    message_bytes: bytesize::ByteSize,
    /// Largest HTTP/2 frame that this client accepts (16KiB to 16MiB); common clients keep to 16KiB
    #[arg(long, default_value = "16KiB")]
    frame_bytes: bytesize::ByteSize,
    /// Most that the row of an upload sends
    #[arg(long, default_value = "4GiB")]
    upload_bytes_max: bytesize::ByteSize,
    /// Do not compare what is read: spares the client's CPU, not the server's
    #[arg(long)]
    pub(crate) no_verify: bool,
    /// One JSON object a row instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

impl Options {
    /// The rows to run.
    pub(crate) fn rows(&self) -> Vec<Row> {
        if self.rows.is_empty() { Row::value_variants().to_vec() } else { self.rows.clone() }
    }

    /// How long a row runs.
    pub(crate) fn duration(&self) -> Duration {
        Duration::try_from_secs_f64(self.seconds).unwrap_or(Duration::from_secs(2))
    }

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

    /// Most that the row of an upload sends, in bytes.
    pub(crate) fn upload_bytes_max(&self) -> u64 {
        self.upload_bytes_max.as_u64()
    }
}
