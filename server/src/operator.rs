//! What an operator's pages are made from: the parts of the server that have figures, as far as they are there yet.
//!
//! Always true here: a page is made in every phase; what is not open yet is left out, or zero where clients expect a field. At most one
//! page of metrics is being made at a time, off the threads that serve requests.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use blockstore_engine::{Engine, Stats};
use serde::Serialize;
use tokio::{
    runtime::Handle,
    sync::{Mutex, watch},
    task::spawn_blocking,
};

use crate::{
    front::{gate::Gate, reapi::SuspendedReading},
    log::Logs,
    metrics::{Metrics, engine, families::Families},
    phase::Phase,
    store::completeness::CompleteActionResults,
};

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that it was built from; `unknown` where the build could not tell.
pub const COMMIT: &str = env!("BLOCKSTORE_COMMIT");

/// The parts that have figures.
pub struct Operator {
    metrics: Arc<Metrics>,
    phase: watch::Receiver<Phase>,
    gate: Gate,
    started: Instant,
    engine: OnceLock<Engine>,
    page: Mutex<()>,
}

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operator").field("phase", &*self.phase.borrow()).finish_non_exhaustive()
    }
}

/// `/status`. The fields in capitals are those of bazel-remote, with its meanings as far as this store has such a thing.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Bytes of the records that are there.
    #[serde(rename = "CurrSize")]
    pub curr_size: u64,
    /// The same: nothing is stored compressed.
    #[serde(rename = "UncompressedSize")]
    pub uncompressed_size: u64,
    /// Bytes that are on their way in.
    #[serde(rename = "ReservedSize")]
    pub reserved_size: u64,
    /// Bytes of the blocks that are not reserved.
    #[serde(rename = "MaxSize")]
    pub max_size: u64,
    /// Objects, and parts of large ones.
    #[serde(rename = "NumFiles")]
    pub num_files: u64,
    /// Seconds since 1970.
    #[serde(rename = "ServerTime")]
    pub server_time: u64,
    /// The commit that the program was built from.
    #[serde(rename = "GitCommit")]
    pub git_commit: &'static str,
    /// Tasks of the runtime.
    #[serde(rename = "NumGoroutines")]
    pub num_goroutines: usize,
    /// The version of the program.
    pub version: &'static str,
    /// `opening`, `serving` or `draining`.
    pub phase: &'static str,
    /// Seconds since the program was started.
    pub uptime_seconds: f64,
    /// Requests that run now.
    pub running_requests: usize,
    /// The engine, once it is open.
    pub engine: Option<EngineStatus>,
}

/// The engine's part of [`Status`].
#[derive(Clone, Debug, Serialize)]
pub struct EngineStatus {
    /// Whether it takes writes; false once a write or flush failed.
    pub writable: bool,
    /// Why it takes none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_writable_because: Option<String>,
    /// Slots of the index.
    pub table_slots: u64,
    /// Age of the oldest block that holds something, or the time since the start if it is from before.
    pub oldest_block_age_seconds: f64,
    /// Blocks that are free or about to be.
    pub spare_blocks: u64,
    /// Bytes acknowledged and not yet flushed.
    pub unflushed_bytes: u64,
    /// Lookups and reads that found their key.
    pub hits: u64,
    /// Lookups and reads that did not.
    pub misses: u64,
    /// Records dropped although they were wanted within the retention bound.
    pub retention_breaches: u64,
    /// Records that failed a checksum or could not be read.
    pub damaged_records: u64,
}

impl Operator {
    /// Pages over these counters, for a program that was started then.
    pub fn new(metrics: Arc<Metrics>, phase: watch::Receiver<Phase>, gate: Gate, started: Instant) -> Self {
        let (phase_shown, gate_shown) = (phase.clone(), gate.clone());
        metrics.add_source(move |families| {
            let commit = [("version", VERSION), ("revision", COMMIT)];
            families.info("blockstore_build_info", "Always 1: which program this is.", &commit);
            let now = *phase_shown.borrow();
            let phases = [Phase::Opening, Phase::Serving, Phase::Draining].map(|phase| (phase.name(), f64::from(u8::from(phase == now))));
            families.gauges("blockstore_phase", "1 for the phase that the server is in.", "phase", &phases);
            families.gauge("blockstore_running_requests", "Requests for the cache that run now.", gate_shown.running() as f64);
        });
        Self { metrics, phase, gate, started, engine: OnceLock::new(), page: Mutex::new(()) }
    }

    /// Has the figures of a store shown that is open now. Later ones of this process do not count.
    pub fn opened(&self, opened: Engine, results: Arc<CompleteActionResults>) {
        if self.engine.set(opened.clone()).is_err() {
            return;
        }
        self.metrics.add_source(move |families| {
            engine::read(&opened, families);
            let reasons = results.counters().read().map(|(reason, n)| (reason, n as f64));
            families.counters(
                "blockstore_incomplete_results_total",
                "Action results that were there and turned into misses.",
                "reason",
                &reasons,
            );
        });
    }

    /// Has it shown what logs could not take.
    pub fn watch_logs(&self, logs: Logs) {
        self.metrics.add_source(move |families| {
            let dropped = logs.dropped().map(|(log, lines)| (log, lines as f64));
            families.counters("blockstore_log_dropped_lines_total", "Lines of logs that found no room.", "log", &dropped);
        });
    }

    /// Has the figures of uploads shown whose stream was cut.
    pub fn watch_suspended(&self, read: impl Fn() -> SuspendedReading + Send + Sync + 'static) {
        self.metrics.add_source(move |families| suspended(&read(), families));
    }

    /// `/metrics`.
    ///
    /// # Errors
    /// A line that says why there is no page, which is a defect.
    pub async fn metrics(&self) -> Result<String, String> {
        let _turn = self.page.lock().await;
        let tasks = Handle::current().metrics().num_alive_tasks();
        let metrics = self.metrics.clone();
        let page = spawn_blocking(move || metrics.page(tasks)).await;
        page.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    /// `/status`.
    pub fn status(&self) -> Status {
        let engine = self.engine.get();
        let stats = engine.map(Engine::stats).unwrap_or_default();
        Status {
            curr_size: stats.live_bytes,
            uncompressed_size: stats.live_bytes,
            reserved_size: engine::reserved_bytes(&stats),
            max_size: stats.capacity_bytes,
            num_files: stats.live_slots,
            server_time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            git_commit: COMMIT,
            num_goroutines: Handle::current().metrics().num_alive_tasks(),
            version: VERSION,
            phase: self.phase.borrow().name(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            running_requests: self.gate.running(),
            engine: engine.map(|engine| engine_status(engine, &stats)),
        }
    }
}

fn engine_status(engine: &Engine, stats: &Stats) -> EngineStatus {
    let reason = engine.poisoned();
    EngineStatus {
        writable: reason.is_none(),
        not_writable_because: reason,
        table_slots: stats.table_slots,
        oldest_block_age_seconds: stats.oldest_block_ms as f64 / 1e3,
        spare_blocks: stats.spare_blocks,
        unflushed_bytes: stats.unflushed_bytes,
        hits: stats.hits,
        misses: stats.misses,
        retention_breaches: stats.retention_breaches,
        damaged_records: stats.damaged_records,
    }
}

fn suspended(reading: &SuspendedReading, families: &mut Families) {
    families.counters(
        "blockstore_suspended_uploads_total",
        "Uploads whose stream was cut, by what became of them.",
        "event",
        &[
            ("suspended", reading.suspended as f64),
            ("resumed", reading.resumed as f64),
            ("evicted", reading.evicted as f64),
            ("expired", reading.expired as f64),
        ],
    );
    families.gauge("blockstore_kept_uploads", "Uploads that wait for their clients to go on.", reading.kept as f64);
    families.gauge("blockstore_kept_upload_bytes", "Bytes of the blobs of these uploads.", reading.kept_bytes as f64);
}
