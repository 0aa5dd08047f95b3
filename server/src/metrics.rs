//! What the server counts, and the page on which it shows it: `/metrics` in the text format of Prometheus. `server/METRICS.md` lists it.
//!
//! Always true here: a series is one of a set that is known in advance ([`labels`]); recording takes no lock and no memory. A request
//! costs four counters and one histogram, a frame of its body one counter: each a relaxed atomic addition, the histogram five and a
//! search among its two dozen bounds (not measured). The first request of a kind costs more: its series are
//! made then. Figures that are kept elsewhere (the engine's, the process's) are read when the page is asked for, one page at a time.

use std::{fmt, sync::OnceLock, time::Duration};

use parking_lot::RwLock;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, TEXT_FORMAT, TextEncoder};

pub mod engine;
pub mod families;
pub mod labels;
mod process;

use families::Families;
use labels::{
    AuthOutcome, BlobOutcome, Code, Handler, Kind, Label, Method, Outcome, Protocol, Reload, STATUS_CANCELLED, Status, Verb, http_outcome,
};

/// The type of the page.
pub const CONTENT_TYPE: &str = TEXT_FORMAT;

/// Upper bounds of the classes of latency in seconds, where none were configured: what is in memory takes 50 to 200 µs, what is read
/// from a good device some milliseconds, and a stream as long as it has bytes.
pub const LATENCY_SECONDS_DEFAULT: [f64; 21] = [
    0.00005, 0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];

/// Reads figures that are kept elsewhere.
type Source = Box<dyn Fn(&mut Families) + Send + Sync>;

/// All that is counted, and what is to be read besides.
pub struct Metrics {
    registry: Registry,
    calls: Box<[CallCells]>,
    requests: Box<[RequestCells]>,
    received: Box<[IntCounter]>,
    sent: Box<[IntCounter]>,
    blobs: Box<[IntCounter]>,
    budget_waits: IntCounterVec,
    slow: Box<[IntCounter]>,
    auth: Box<[IntCounter]>,
    auth_comparisons: IntCounter,
    auth_reloads: Box<[IntCounter]>,
    vectors: Vectors,
    sources: RwLock<Vec<Source>>,
}

/// Where the series of what was not yet seen come from.
struct Vectors {
    outcomes: IntCounterVec,
    handled: IntCounterVec,
    requests: IntCounterVec,
    seconds: HistogramVec,
}

impl Vectors {
    fn new(make: &Maker<'_>, latency_seconds: &[f64]) -> Self {
        Self {
            outcomes: make.counters(
                "blockstore_requests_total",
                "Requests that ended, by what they were about and what they came to.",
                &["protocol", "method", "kind", "outcome"],
            ),
            handled: make.counters(
                "grpc_server_handled_total",
                "gRPC calls that ended, by their status; Canceled has those whose client went away.",
                &["grpc_type", "grpc_service", "grpc_method", "grpc_code"],
            ),
            requests: make.counters(
                "http_requests_total",
                "HTTP requests that ended, by their status; 499 has those whose client went away.",
                &["handler", "method", "code"],
            ),
            seconds: make.histograms(
                "http_request_duration_seconds",
                "Time from the head of an HTTP request until its answer's last byte was handed on, or its client went away.",
                &["handler", "method"],
                latency_seconds,
            ),
        }
    }
}

/// What is counted of a gRPC method.
struct CallCells {
    started: IntCounter,
    received: IntCounter,
    sent: IntCounter,
    seconds: Histogram,
    codes: Box<[OnceLock<IntCounter>]>,
    outcomes: Box<[OnceLock<IntCounter>]>,
}

/// What is counted of an HTTP verb on one part of the front-end.
struct RequestCells {
    seconds: OnceLock<Histogram>,
    statuses: Box<[OnceLock<IntCounter>]>,
    outcomes: Box<[OnceLock<IntCounter>]>,
}

impl RequestCells {
    fn new() -> Self {
        Self { seconds: OnceLock::new(), statuses: cells::<Status>(), outcomes: cells::<Outcome>() }
    }
}

fn cells<L: Label>() -> Box<[OnceLock<IntCounter>]> {
    L::ALL.iter().map(|_| OnceLock::new()).collect()
}

/// Makes families in a registry. Their names and labels are constants of this file, each family is made once and a test makes them all.
struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        let vector = IntCounterVec::new(Opts::new(name, help), labels).expect("names of metrics are well-formed");
        self.0.register(Box::new(vector.clone())).expect("names of metrics are unique");
        vector
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str], bounds: &[f64]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(bounds.to_vec());
        let vector = HistogramVec::new(options, labels).expect("bounds ascend, as the settings are checked");
        self.0.register(Box::new(vector.clone())).expect("names of metrics are unique");
        vector
    }

    /// A counter for each value of one label, there from the start.
    fn by<L: Label>(&self, name: &str, help: &str, label: &str) -> Box<[IntCounter]> {
        let vector = self.counters(name, help, &[label]);
        L::ALL.iter().map(|value| vector.with_label_values(&[value.text()])).collect()
    }

    /// The same for two labels, the first one's place before the second's.
    fn by_both<A: Label, B: Label>(&self, name: &str, help: &str, labels: [&str; 2]) -> Box<[IntCounter]> {
        let vector = self.counters(name, help, &labels);
        let both = A::ALL.iter().flat_map(|a| B::ALL.iter().map(move |b| [a.text(), b.text()]));
        both.map(|values| vector.with_label_values(&values)).collect()
    }
}

/// Methods whose requests and answers have many blobs.
const BATCH_METHODS: [Method; 3] = [Method::FindMissingBlobs, Method::BatchReadBlobs, Method::BatchUpdateBlobs];
/// Codes that are there from the start, so that the first failure is seen as an increase.
const CODES_FROM_START: [Code; 5] = [Code::Ok, Code::Canceled, Code::Internal, Code::ResourceExhausted, Code::Unavailable];
/// The same for statuses over HTTP, of what is asked for in every build.
const STATUSES_FROM_START: [u16; 5] = [200, 404, STATUS_CANCELLED, 500, 503];

impl Default for Metrics {
    fn default() -> Self {
        Self::new(&LATENCY_SECONDS_DEFAULT)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Counts from zero. The bounds of the classes of latency are in seconds and ascend.
    pub fn new(latency_seconds: &[f64]) -> Self {
        let registry = Registry::new();
        let make = Maker(&registry);
        let vectors = Vectors::new(&make, latency_seconds);
        let calls = calls(&make, latency_seconds);
        let blobs = make.counters(
            "blockstore_batch_blobs_total",
            "Blobs of requests that have many, each by what became of it.",
            &["method", "outcome"],
        );
        let blobs = BATCH_METHODS.iter().flat_map(|method| {
            let blobs = &blobs;
            BlobOutcome::ALL.iter().map(move |outcome| blobs.with_label_values(&[method.text(), outcome.text()]))
        });
        let bytes = ["protocol", "kind"];
        let metrics = Self {
            calls,
            requests: (0..Verb::ALL.len() * Handler::ALL.len()).map(|_| RequestCells::new()).collect(),
            blobs: blobs.collect(),
            received: make.by_both::<Protocol, Kind>("blockstore_received_bytes_total", "Bytes of the bodies of requests.", bytes),
            sent: make.by_both::<Protocol, Kind>("blockstore_sent_bytes_total", "Bytes of the bodies of answers.", bytes),
            budget_waits: make.counters(
                "blockstore_budget_waits_total",
                "Requests that waited for room in memory for what they send.",
                &["protocol"],
            ),
            slow: make.by::<Protocol>(
                "blockstore_slow_requests_total",
                "Requests that took longer than --slow-request-ms allows for their size.",
                "protocol",
            ),
            auth: make.by_both::<Protocol, AuthOutcome>(
                "blockstore_auth_total",
                "Requests whose credentials were looked at, by what they came to; none without --htpasswd-file.",
                ["protocol", "outcome"],
            ),
            auth_comparisons: make
                .counters("blockstore_auth_comparisons_total", "Passwords that were compared with a hash, which is slow on purpose.", &[])
                .with_label_values(&[] as &[&str]),
            auth_reloads: make.by::<Reload>("blockstore_auth_reloads_total", "Times that --htpasswd-file was read again.", "outcome"),
            vectors,
            sources: RwLock::default(),
            registry,
        };
        metrics.budget_waits.with_label_values(&[Protocol::Grpc.text()]);
        for method in Method::ALL {
            for code in CODES_FROM_START {
                let _ = (metrics.code(*method, code), metrics.call_outcome(*method, method.outcome(code)));
            }
        }
        for handler in [Handler::Cas, Handler::Ac, Handler::Kv] {
            for verb in [Verb::Get, Verb::Head, Verb::Put] {
                for status in STATUSES_FROM_START {
                    let outcome = http_outcome(verb, handler, status);
                    let _ = (metrics.status(verb, handler, Status::of(status)), metrics.request_outcome(verb, handler, outcome));
                }
                let _ = metrics.request_seconds(verb, handler);
            }
        }
        metrics
    }

    /// Has figures read that are kept elsewhere, from now on.
    pub fn add_source(&self, source: impl Fn(&mut Families) + Send + Sync + 'static) {
        self.sources.write().push(Box::new(source));
    }

    /// The page, which also says how many tasks the runtime has. Reads files under `/proc`, so that it may take some milliseconds.
    ///
    /// # Errors
    /// A family that has no legal text, which no source makes.
    pub fn page(&self, tasks: usize) -> Result<String, prometheus::Error> {
        let mut families = Families::default();
        families.gauge("blockstore_runtime_tasks", "Tasks of the runtime that have not ended.", tasks as f64);
        process::read(&mut families);
        for source in self.sources.read().iter() {
            source(&mut families);
        }
        let mut all = self.registry.gather();
        all.extend(families.into_inner());
        all.sort_by(|a, b| a.name().cmp(b.name()));
        TextEncoder::new().encode_to_string(&all)
    }

    /// A gRPC call arrived.
    pub fn call_started(&self, method: Method) {
        self.calls.get(method.place()).inspect(|cells| cells.started.inc());
    }

    /// It ended.
    pub fn call_ended(&self, method: Method, code: Code, took: Duration) {
        self.code(method, code).inspect(|counter| counter.inc());
        self.call_outcome(method, method.outcome(code)).inspect(|counter| counter.inc());
        self.calls.get(method.place()).inspect(|cells| cells.seconds.observe(took.as_secs_f64()));
    }

    /// A message of a call was received.
    pub fn message_received(&self, method: Method) {
        self.calls.get(method.place()).inspect(|cells| cells.received.inc());
    }

    /// A message of a call is on its way out.
    pub fn message_sent(&self, method: Method) {
        self.calls.get(method.place()).inspect(|cells| cells.sent.inc());
    }

    /// A request over HTTP ended.
    pub fn request_ended(&self, verb: Verb, handler: Handler, status: u16, took: Duration) {
        self.status(verb, handler, Status::of(status)).inspect(|counter| counter.inc());
        self.request_outcome(verb, handler, http_outcome(verb, handler, status)).inspect(|counter| counter.inc());
        self.request_seconds(verb, handler).inspect(|histogram| histogram.observe(took.as_secs_f64()));
    }

    /// Bytes of a request's body arrived.
    pub fn received_bytes(&self, protocol: Protocol, kind: Kind, bytes: usize) {
        self.received.get(both(protocol, kind)).inspect(|counter| counter.inc_by(bytes as u64));
    }

    /// Bytes of an answer's body were handed on.
    pub fn sent_bytes(&self, protocol: Protocol, kind: Kind, bytes: usize) {
        self.sent.get(both(protocol, kind)).inspect(|counter| counter.inc_by(bytes as u64));
    }

    /// So many blobs of a request that has many came to this. Other methods than those of batches have no such counters.
    pub fn blobs(&self, method: Method, outcome: BlobOutcome, blobs: usize) {
        if let Some(place) = BATCH_METHODS.iter().position(|batch| *batch == method) {
            let place = place * BlobOutcome::ALL.len() + outcome.place();
            self.blobs.get(place).inspect(|counter| counter.inc_by(blobs as u64));
        }
    }

    /// A request waits for room in memory.
    pub fn budget_waited(&self, protocol: Protocol) {
        // Rare, so that looking for the series costs nothing that counts.
        self.budget_waits.with_label_values(&[protocol.text()]).inc();
    }

    /// A request was slow.
    pub fn slow(&self, protocol: Protocol) {
        self.slow.get(protocol.place()).inspect(|counter| counter.inc());
    }

    /// The credentials of a request were looked at.
    pub fn auth(&self, protocol: Protocol, outcome: AuthOutcome) {
        self.auth.get(both(protocol, outcome)).inspect(|counter| counter.inc());
    }

    /// A password is compared with a hash.
    pub fn auth_compared(&self) {
        self.auth_comparisons.inc();
    }

    /// The file of users was read again.
    pub fn auth_reloaded(&self, outcome: Reload) {
        self.auth_reloads.get(outcome.place()).inspect(|counter| counter.inc());
    }

    fn code(&self, method: Method, code: Code) -> Option<&IntCounter> {
        let cell = self.calls.get(method.place())?.codes.get(code.place())?;
        Some(cell.get_or_init(|| {
            let values = [method.call_type().text(), method.service(), method.text(), code.text()];
            self.vectors.handled.with_label_values(&values)
        }))
    }

    fn call_outcome(&self, method: Method, outcome: Outcome) -> Option<&IntCounter> {
        let cell = self.calls.get(method.place())?.outcomes.get(outcome.place())?;
        Some(cell.get_or_init(|| {
            let values = [Protocol::Grpc.text(), method.text(), method.kind().text(), outcome.text()];
            self.vectors.outcomes.with_label_values(&values)
        }))
    }

    fn request_cells(&self, verb: Verb, handler: Handler) -> Option<&RequestCells> {
        self.requests.get(both(verb, handler))
    }

    fn status(&self, verb: Verb, handler: Handler, status: Status) -> Option<&IntCounter> {
        let cell = self.request_cells(verb, handler)?.statuses.get(status.place())?;
        Some(cell.get_or_init(|| self.vectors.requests.with_label_values(&[handler.text(), verb.text(), status.text()])))
    }

    fn request_outcome(&self, verb: Verb, handler: Handler, outcome: Outcome) -> Option<&IntCounter> {
        let cell = self.request_cells(verb, handler)?.outcomes.get(outcome.place())?;
        Some(cell.get_or_init(|| {
            let values = [Protocol::Http.text(), verb.text(), handler.kind().text(), outcome.text()];
            self.vectors.outcomes.with_label_values(&values)
        }))
    }

    fn request_seconds(&self, verb: Verb, handler: Handler) -> Option<&Histogram> {
        let cell = &self.request_cells(verb, handler)?.seconds;
        Some(cell.get_or_init(|| self.vectors.seconds.with_label_values(&[handler.text(), verb.text()])))
    }
}

/// The place of a pair of values.
fn both<A: Label, B: Label>(a: A, b: B) -> usize {
    a.place() * B::ALL.len() + b.place()
}

fn calls(make: &Maker<'_>, latency_seconds: &[f64]) -> Box<[CallCells]> {
    let labels = ["grpc_type", "grpc_service", "grpc_method"];
    let started = make.counters("grpc_server_started_total", "gRPC calls that arrived.", &labels);
    let received = make.counters("grpc_server_msg_received_total", "gRPC messages that were received.", &labels);
    let sent = make.counters("grpc_server_msg_sent_total", "gRPC messages that were sent.", &labels);
    let seconds = make.histograms(
        "grpc_server_handling_seconds",
        "Time from a gRPC call's arrival until its last byte was handed on, or its client went away.",
        &labels,
        latency_seconds,
    );
    let cells = Method::ALL.iter().map(|method| {
        let values = [method.call_type().text(), method.service(), method.text()];
        CallCells {
            started: started.with_label_values(&values),
            received: received.with_label_values(&values),
            sent: sent.with_label_values(&values),
            seconds: seconds.with_label_values(&values),
            codes: cells::<Code>(),
            outcomes: cells::<Outcome>(),
        }
    });
    cells.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_series_is_bounded_by_the_labels() {
        let metrics = Metrics::default();
        for method in Method::ALL {
            for code in Code::ALL {
                metrics.call_ended(*method, *code, Duration::from_millis(1));
            }
        }
        for verb in Verb::ALL {
            for handler in Handler::ALL {
                for status in 0..=999 {
                    metrics.request_ended(*verb, *handler, status, Duration::from_millis(1));
                }
            }
        }
        let series = metrics.page(0).unwrap().lines().filter(|line| !line.starts_with('#')).count();
        let bound = Method::ALL.len() * (Code::ALL.len() + Outcome::ALL.len())
            + Verb::ALL.len() * Handler::ALL.len() * (Status::ALL.len() + Outcome::ALL.len())
            + (Method::ALL.len() + Verb::ALL.len() * Handler::ALL.len()) * (LATENCY_SECONDS_DEFAULT.len() + 3)
            + 150;
        assert!(series <= bound, "{series} of {bound}");
    }

    #[test]
    fn what_is_recorded_is_on_the_page() {
        let metrics = Metrics::new(&[0.001, 0.1]);
        metrics.call_started(Method::Read);
        metrics.call_ended(Method::Read, Code::NotFound, Duration::from_millis(50));
        metrics.request_ended(Verb::Put, Handler::Ac, 507, Duration::from_secs(1));
        metrics.blobs(Method::FindMissingBlobs, BlobOutcome::Miss, 7);
        metrics.received_bytes(Protocol::Http, Kind::Kv, 11);
        metrics.add_source(|families| families.gauge("blockstore_test", "A figure.", 2.5));
        let page = metrics.page(0).unwrap();
        let read = "grpc_type=\"server_stream\"";
        let read = format!("grpc_method=\"Read\",grpc_service=\"google.bytestream.ByteStream\",{read}");
        for line in [
            format!("grpc_server_handling_seconds_bucket{{{read},le=\"0.1\"}} 1"),
            format!("grpc_server_handling_seconds_bucket{{{read},le=\"0.001\"}} 0"),
            "blockstore_requests_total{kind=\"cas\",method=\"Read\",outcome=\"miss\",protocol=\"grpc\"} 1".into(),
            "blockstore_requests_total{kind=\"ac\",method=\"PUT\",outcome=\"server_error\",protocol=\"http\"} 1".into(),
            "http_requests_total{code=\"507\",handler=\"ac\",method=\"PUT\"} 1".into(),
            "blockstore_batch_blobs_total{method=\"FindMissingBlobs\",outcome=\"miss\"} 7".into(),
            "blockstore_received_bytes_total{kind=\"kv\",protocol=\"http\"} 11".into(),
            "# HELP blockstore_test A figure.".into(),
            "# TYPE blockstore_test gauge".into(),
            "blockstore_test 2.5".into(),
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is not in:\n{page}");
        }
    }
}
