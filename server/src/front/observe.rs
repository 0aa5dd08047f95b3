//! What of every request is counted and logged, for both protocols.
//!
//! Always true here: a request that began is counted and logged once, when its answer's last byte was handed on or when the client went
//! away before that, whatever dropped it; recording never fails and never waits. Metrics alone cost a request no memory. With the access
//! log or the warnings of slow requests, which are on by default, it costs two small allocations: [`Details`], and what hands them
//! through a gRPC router or keeps the path over HTTP. A line is only made for a request that is logged.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue};

use crate::{
    front::reapi::{METADATA, request_metadata},
    log::access::{AccessLog, Entry, Metadata, Resource},
    metrics::{
        Metrics,
        labels::{Code, Handler, Kind, Label, Method, Protocol, STATUS_CANCELLED, Verb},
    },
};

pub mod grpc;
pub mod http_body;

/// Each of these bytes earns a request the time of another `slow_after`: a stream may take as long as it has bytes.
const SLOW_ALLOWANCE_BYTES: u64 = 1 << 20;
/// Warnings of slow requests in a second. The others of that second are only counted.
const SLOW_WARNINGS_MAX: u64 = 10;

/// Counts requests, and logs those that are to be logged. Clones share it.
#[derive(Clone, Debug)]
pub struct Observer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    metrics: Arc<Metrics>,
    access: Option<AccessLog>,
    slow_after: Option<Duration>,
    warnings: Warnings,
}

impl Observer {
    /// Counts in `metrics`; logs to `access`; a request is slow if it takes longer than `slow_after` for each mebibyte that it moves,
    /// and for the first even if that is not full.
    pub fn new(metrics: Arc<Metrics>, access: Option<AccessLog>, slow_after: Option<Duration>) -> Self {
        Self(Arc::new(Shared { metrics, access, slow_after, warnings: Warnings::new() }))
    }

    /// Where it counts.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    fn details(&self, peer: Option<SocketAddr>, headers: &HeaderMap) -> Option<Arc<Details>> {
        let wanted = self.0.access.is_some() || self.0.slow_after.is_some();
        wanted.then(|| Arc::new(Details::new(peer, headers.get(METADATA).cloned())))
    }

    /// A gRPC call arrived.
    fn call(&self, method: Method, peer: Option<SocketAddr>, headers: &HeaderMap) -> Record {
        self.0.metrics.call_started(method);
        Record::new(self.clone(), Subject::Call(method), self.details(peer, headers))
    }

    /// The head of a request over HTTP arrived.
    pub fn request(&self, verb: Verb, handler: Handler, peer: Option<SocketAddr>, headers: &HeaderMap) -> Record {
        Record::new(self.clone(), Subject::Request(verb, handler), self.details(peer, headers))
    }
}

/// What a request is, as far as its labels say.
#[derive(Clone, Copy, Debug)]
enum Subject {
    Call(Method),
    Request(Verb, Handler),
}

impl Subject {
    fn protocol(self) -> Protocol {
        match self {
            Self::Call(_) => Protocol::Grpc,
            Self::Request(..) => Protocol::Http,
        }
    }

    fn method(self) -> &'static str {
        match self {
            Self::Call(method) => method.text(),
            Self::Request(verb, _) => verb.text(),
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Call(method) => method.kind(),
            Self::Request(_, handler) => handler.kind(),
        }
    }

    /// Whether it may last as long as the client likes.
    fn watches(self) -> bool {
        matches!(self, Self::Call(method) if method.watches())
    }
}

/// What a request came to.
#[derive(Clone, Copy, Debug)]
enum End {
    Code(Code),
    Status(u16),
}

/// What only a log wants to know of a request.
pub struct Details {
    peer: Option<SocketAddr>,
    metadata: Option<HeaderValue>,
    received_bytes: AtomicU64,
    resource: OnceLock<Resource>,
    user: OnceLock<Named>,
}

/// Who sent a request: a user who exists.
#[derive(Clone, Debug)]
struct Named {
    user: Arc<str>,
    /// It was only claimed, or is not enough.
    refused: bool,
}

impl Details {
    fn new(peer: Option<SocketAddr>, metadata: Option<HeaderValue>) -> Self {
        Self { peer, metadata, received_bytes: AtomicU64::new(0), resource: OnceLock::new(), user: OnceLock::new() }
    }

    /// Says what the request is about; the first one to say so wins.
    pub fn set_resource(&self, resource: impl FnOnce() -> Resource) {
        let _ = self.resource.get_or_init(resource);
    }

    /// Says which user sent the request, or claimed to be who did; the first one to say so wins.
    pub fn set_user(&self, user: Arc<str>, refused: bool) {
        let _ = self.user.set(Named { user, refused });
    }

    /// Bytes of the request's body arrived.
    pub fn add_received_bytes(&self, bytes: usize) {
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl fmt::Debug for Details {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without what the client sent.
        f.debug_struct("Details").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// A request on its way. Counted and logged when it is dropped.
#[derive(Debug)]
pub struct Record {
    observer: Observer,
    subject: Subject,
    started: Instant,
    sent_bytes: u64,
    end: Option<End>,
    details: Option<Arc<Details>>,
}

impl Record {
    fn new(observer: Observer, subject: Subject, details: Option<Arc<Details>>) -> Self {
        Self { observer, subject, started: Instant::now(), sent_bytes: 0, end: None, details }
    }

    /// Where to put what a log wants to know; nowhere, if none does.
    pub fn details(&self) -> Option<&Arc<Details>> {
        self.details.as_ref()
    }

    /// Bytes of the answer's body are handed on.
    fn sent(&mut self, bytes: usize) {
        self.sent_bytes = self.sent_bytes.saturating_add(bytes as u64);
        self.observer.0.metrics.sent_bytes(self.subject.protocol(), self.subject.kind(), bytes);
    }

    fn ended_with(&mut self, end: End) {
        self.end = Some(end);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        let metrics = &self.observer.0.metrics;
        let status = match (self.subject, self.end) {
            (Subject::Call(method), end) => {
                let code = if let Some(End::Code(code)) = end { code } else { Code::Canceled };
                metrics.call_ended(method, code, took);
                code.text()
            }
            (Subject::Request(verb, handler), end) => {
                let status = if let Some(End::Status(status)) = end { status } else { STATUS_CANCELLED };
                metrics.request_ended(verb, handler, status, took);
                crate::metrics::labels::Status::of(status).text()
            }
        };
        if let Some(details) = self.details.take() {
            self.log(&details, status, took);
        }
    }
}

impl Record {
    fn log(&self, details: &Details, status: &str, took: Duration) {
        let shared = &self.observer.0;
        let received_bytes = details.received_bytes.load(Ordering::Relaxed);
        let moved_bytes = received_bytes.saturating_add(self.sent_bytes);
        let slow = shared.slow_after.is_some_and(|slow_after| !self.subject.watches() && is_slow(took, slow_after, moved_bytes));
        let warn = slow && {
            shared.metrics.slow(self.subject.protocol());
            shared.warnings.admit()
        };
        if shared.access.is_none() && !warn {
            return;
        }
        let entry = Entry {
            protocol: self.subject.protocol().text(),
            method: self.subject.method(),
            kind: self.subject.kind().text(),
            resource: details.resource.get(),
            status,
            received_bytes,
            sent_bytes: self.sent_bytes,
            took,
            peer: details.peer,
            user: details.user.get().filter(|named| !named.refused).map(|named| &*named.user),
            refused_user: details.user.get().filter(|named| named.refused).map(|named| &*named.user),
            metadata: details.metadata.as_ref().and_then(request_metadata).map(Metadata::from).unwrap_or_default(),
        };
        if warn {
            tracing::warn!(request = %entry.text(), "slow request");
        }
        if let Some(access) = &shared.access {
            access.write(&entry);
        }
    }
}

/// Whether a request that moved so many bytes took too long.
fn is_slow(took: Duration, slow_after: Duration, moved_bytes: u64) -> bool {
    let allowed = u32::try_from(moved_bytes / SLOW_ALLOWANCE_BYTES).unwrap_or(u32::MAX).saturating_add(1);
    took > slow_after.saturating_mul(allowed)
}

/// Bounds warnings to [`SLOW_WARNINGS_MAX`] a second.
#[derive(Debug)]
struct Warnings {
    since: Instant,
    /// The second, times 256, and how many warnings it had.
    state: AtomicU64,
}

impl Warnings {
    fn new() -> Self {
        Self { since: Instant::now(), state: AtomicU64::new(0) }
    }

    fn admit(&self) -> bool {
        self.admit_at(self.since.elapsed().as_secs())
    }

    fn admit_at(&self, second: u64) -> bool {
        let next = |state: u64| match state >> 8 == second {
            true if state & 0xff >= SLOW_WARNINGS_MAX => None,
            true => Some(state + 1),
            false => Some(second << 8 | 1),
        };
        self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_may_take_as_long_as_it_has_bytes() {
        let second = Duration::from_secs(1);
        for (took_ms, moved_bytes, slow) in [
            (1000, 0, false),
            (1001, 0, true),
            (1001, (1 << 20) - 1, true),
            (1500, 1 << 20, false),
            (2001, 1 << 20, true),
            (99_000, 100 << 20, false),
        ] {
            assert_eq!(is_slow(Duration::from_millis(took_ms), second, moved_bytes), slow, "{took_ms} ms for {moved_bytes}");
        }
    }

    #[test]
    fn warnings_are_bounded_by_the_second() {
        let warnings = Warnings::new();
        let admitted = |second| (0..100).filter(|_| warnings.admit_at(second)).count() as u64;
        assert_eq!([admitted(0), admitted(0), admitted(1), admitted(7), admitted(7)], [10, 0, 10, 10, 0]);
    }
}
