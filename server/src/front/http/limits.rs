//! What a connection may take: time, bytes, and its place among the others.

use std::time::Duration;

/// Bounds of connections. Times are in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at the same time. One more takes the place of those that have been idle for the longest.
    pub connections_max: usize,
    /// From the first byte of a request's head to its last.
    pub head_ms_max: u64,
    /// Size of a head in bytes, and a little more.
    pub head_bytes_max: usize,
    /// From the end of one request to the beginning of the next.
    pub idle_ms_max: u64,
    /// Without progress, while a body arrives or an answer is sent.
    pub stall_ms_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections_max: 12_288, head_ms_max: 30_000, head_bytes_max: 16 << 10, idle_ms_max: 300_000, stall_ms_max: 60_000 }
    }
}

impl Limits {
    pub(super) fn head_max(&self) -> Duration {
        Duration::from_millis(self.head_ms_max)
    }

    pub(super) fn idle_max(&self) -> Duration {
        Duration::from_millis(self.idle_ms_max)
    }

    pub(super) fn stall_max(&self) -> Duration {
        Duration::from_millis(self.stall_ms_max)
    }
}
