//! What the figures of a device say for the settings of a server on it.
//!
//! Always true here: a setting is named only where something was measured that speaks for it, and with what was measured.

use super::{Found, Way, measure::Measured, measure::Work};
use bytesize::ByteSize;

/// A setting of `blockstored`.
pub(super) struct Advice {
    pub(super) setting: &'static str,
    pub(super) value: String,
    pub(super) why: String,
}

/// Bytes behind which the engine flushes, at the latest.
const FLUSH_BYTES: u64 = 128 << 20;
/// A flush that is no longer than this can be waited for by every acknowledgement.
const GROUP_US_MAX: u64 = 5_000;
/// The default of --flush-ms-max, and its most.
const FLUSH_MS: u64 = 1_000;
const FLUSH_MS_MOST: u64 = 60_000;
/// The deepest random reads, where the backends differ.
const DEPTH: usize = 64;

pub(super) fn of(found: &Found) -> Vec<Advice> {
    let row = |io: Option<&str>, direct: Option<bool>, wanted: fn(Work) -> bool| {
        let fits = |(way, m): &&(Way, Measured)| {
            io.is_none_or(|io| io == way.io) && direct.is_none_or(|direct| direct == way.direct) && wanted(m.work)
        };
        found.rows.iter().filter(fits).map(|(_, m)| m).max_by_key(|m| m.bytes_per_s())
    };
    let deep = |work| matches!(work, Work::RandomRead { depth: DEPTH });
    let mut advice = Vec::new();
    // What a server uses by default: past the page cache on devices, through it on files.
    let direct = found.block_device;
    let io = |value: &str, why| Advice { setting: "--io", value: value.into(), why };
    match (row(Some("io-uring"), Some(direct), deep), row(Some("sync"), Some(direct), deep)) {
        (Some(ring), Some(sync)) => {
            let (ring, sync) = (ring.requests_per_s(), sync.requests_per_s());
            let value = if ring.saturating_mul(10) >= sync.saturating_mul(9) { "auto" } else { "sync" };
            advice.push(io(value, format!("{ring} random reads a second with io_uring, {sync} with threads, {DEPTH} in flight")));
        }
        (None, Some(_)) => advice.push(io("sync", "io_uring is refused here; without this setting that is logged at each start".into())),
        _ => {}
    }
    let written = |direct| row(None, Some(direct), |work| work == Work::SequentialWrite).map(Measured::bytes_per_s);
    if let (Some(past), Some(through)) = (written(true), written(false)) {
        // The page cache serves reads that direct I/O must go to the device for: it must cost much to be left.
        let value = if past > through.saturating_mul(2) && !found.block_device { "on" } else { "auto" };
        let why = format!("{}/s are written and flushed past the page cache, {}/s through it", ByteSize(past), ByteSize(through));
        advice.push(Advice { setting: "--direct", value: value.into(), why });
    }
    let flush = found.rows.iter().filter(|(way, m)| way.direct == direct && m.work == Work::Flush).map(|(_, m)| m).min_by_key(|m| m.us(99));
    if let Some(flush) = flush {
        let (p50, p99) = (flush.us(50), flush.us(99));
        let value = if p99 <= GROUP_US_MAX { "group" } else { "interval" };
        let why = format!("a flush takes {p50} µs, and {p99} µs at the 99th percentile; group has each acknowledgement wait for one");
        advice.push(Advice { setting: "--durability", value: value.into(), why });
    }
    if let Some(speed) = written(direct) {
        let ms = FLUSH_BYTES.saturating_mul(1000) / speed.max(1);
        let value = (ms * 2).clamp(FLUSH_MS, FLUSH_MS_MOST);
        let why = format!("a flush of {} takes about {ms} ms; puts wait while one takes longer than this", ByteSize(FLUSH_BYTES));
        advice.push(Advice { setting: "--flush-ms-max", value: value.to_string(), why });
    }
    advice
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn found(block_device: bool, rows: &[(&'static str, bool, Work, u64)]) -> Found {
        let rows = rows
            .iter()
            .map(|(io, direct, work, requests)| (Way { io, direct: *direct }, Measured::steady(*work, *requests, Duration::from_secs(1))));
        Found { block_device, rows: rows.collect(), refused: Vec::new() }
    }

    fn value(found: &Found, setting: &str) -> Option<String> {
        of(found).into_iter().find(|advice| advice.setting == setting).map(|advice| advice.value)
    }

    #[test]
    fn settings_follow_from_figures() {
        let deep = Work::RandomRead { depth: 64 };
        let both = |ring, sync| found(true, &[("io-uring", true, deep, ring), ("sync", true, deep, sync)]);
        assert_eq!(value(&both(100, 50), "--io").unwrap(), "auto");
        assert_eq!(value(&both(50, 100), "--io").unwrap(), "sync");
        assert_eq!(value(&found(true, &[("sync", true, deep, 100)]), "--io").unwrap(), "sync");
        let flushes = |n| found(true, &[("sync", true, Work::Flush, n)]);
        assert_eq!(value(&flushes(1000), "--durability").unwrap(), "group");
        assert_eq!(value(&flushes(20), "--durability").unwrap(), "interval");
        // In mebibytes a second: 128 MiB take a quarter of a second, and six seconds.
        let writes =
            |past, through| found(false, &[("sync", true, Work::SequentialWrite, past), ("sync", false, Work::SequentialWrite, through)]);
        assert_eq!(value(&writes(512, 512), "--flush-ms-max").unwrap(), "1000");
        assert_eq!(value(&writes(20, 20), "--flush-ms-max").unwrap(), "12800");
        assert_eq!(value(&writes(512, 512), "--direct").unwrap(), "auto");
        assert_eq!(value(&writes(512, 200), "--direct").unwrap(), "on");
        // What was not measured is not spoken of.
        assert!(of(&found(true, &[])).is_empty());
    }
}
