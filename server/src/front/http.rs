//! The HTTP front-end: the cache protocol of Bazel, ccache, Gradle and others under `…/cas/`, `…/ac/` and `…/kv/`, and the operator's
//! pages: whether the server is alive (`/healthz`) and serves (`/readyz`), what it holds (`/status`) and what it counts (`/metrics`).
//!
//! Always true here: the pages are there in every phase and wait for no store; no other path reaches the store before it is open or after
//! the server began to drain; what the gate does not admit learns nothing else; a request, however wrong, gets a status and no panic, and is
//! counted.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use axum::body::Body;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use tokio::sync::watch;

use crate::{
    front::{
        gate::{Counted, Gate},
        observe::{Details, Observer},
        uploads::Uploads,
    },
    instances::InstanceRules,
    metrics::{
        Metrics,
        labels::{Handler, Verb},
    },
    operator::Operator,
    phase::Phase,
    store::{BlobStore, DigestFunction, ResultRule},
};

mod action;
mod answer;
mod cas;
mod conditions;
mod connection;
mod download;
mod encoding;
mod entry;
mod json;
mod limits;
mod memory;
mod metrics;
mod observed;
mod path;
mod status;
mod upload;

pub use connection::serve;
pub use limits::Limits;

use answer::{Answer, refused, text, text_later};
use memory::Memory;
use path::Target;
use upload::Incoming;

/// How the front-end behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What is taken for an action result.
    pub result_rule: ResultRule,
    /// Function of actions whose hash has as many digits as it makes, in place of the one that the instance has; others are told by
    /// their length.
    pub action_function: Option<DigestFunction>,
    /// Who may store action results and entries, and which function is meant where the length leaves that open.
    pub instances: Arc<InstanceRules>,
}

impl Default for Options {
    fn default() -> Self {
        Self { result_rule: ResultRule::Lenient, action_function: None, instances: Arc::default() }
    }
}

/// The front-end. Answers before it has a store, though not much.
#[derive(Debug)]
pub struct Front {
    phase: watch::Receiver<Phase>,
    gate: Gate,
    observer: Observer,
    operator: Arc<Operator>,
    limits: Limits,
    cache: OnceLock<Cache>,
}

/// What requests for the cache share.
#[derive(Debug)]
struct Cache {
    store: Arc<dyn BlobStore>,
    options: Options,
    memory: Memory,
    uploads: Uploads,
}

/// A request for the cache.
struct Call {
    asked: Asked,
    version: Version,
    incoming: Incoming,
}

/// What a request wants, its body apart.
struct Asked {
    method: Method,
    headers: HeaderMap,
}

impl Front {
    /// A front-end that lets in and turns away its requests at `gate`. It counts them for itself, unless it is told where.
    pub fn new(phase: watch::Receiver<Phase>, gate: Gate, limits: Limits) -> Self {
        let metrics = Arc::new(Metrics::default());
        let observer = Observer::new(metrics.clone(), None, None);
        let operator = Arc::new(Operator::new(metrics, phase.clone(), gate.clone(), Instant::now()));
        Self { phase, gate, observer, operator, limits, cache: OnceLock::new() }
    }

    /// Has requests counted and logged by `observer`, and the operator's pages made by `operator`.
    pub fn with_operator(self, observer: Observer, operator: Arc<Operator>) -> Self {
        Self { observer, operator, ..self }
    }

    /// Gives it the store, once, and the turns that its uploads share with others.
    pub fn open(&self, store: Arc<dyn BlobStore>, options: Options, uploads: Uploads) {
        let cache = Cache { store, options, memory: Memory::new(self.observer.metrics().clone()), uploads };
        if self.cache.set(cache).is_err() {
            tracing::error!("HTTP front-end was given a second store, which is not used");
        }
    }

    async fn answer(&self, request: Request<Body>, what: (Verb, Handler), details: Option<&Arc<Details>>) -> Response<Counted<Body>> {
        let answer = |answer: Answer| answer.map(|body| Counted::new(None, body));
        let (head, body) = request.into_parts();
        let version = head.version;
        let admitted = self.gate.admit(what.0, what.1, &head.headers, details).await;
        let incoming = Incoming::new(&head.headers, body, self.limits.stall_max());
        if let Err(refusal) = admitted {
            return answer(refused(answer::not_admitted(&refusal), incoming, version).await);
        }
        let target = match Target::parse(head.uri.path()) {
            Ok(target) => target,
            Err(error) => return answer(refused(text(StatusCode::BAD_REQUEST, &error.to_string()), incoming, version).await),
        };
        let call = Call { asked: Asked { method: head.method, headers: head.headers }, version, incoming };
        if !target.methods().split(", ").any(|allowed| allowed == call.asked.method.as_str()) {
            return answer(refused(answer::not_allowed(target.methods()), call.incoming, version).await);
        }
        if let Some(page) = self.page(&target).await {
            return answer(page);
        }
        let (Some(token), Some(cache)) = (self.gate.enter(), self.cache.get()) else {
            let why = if *self.phase.borrow() == Phase::Draining { "draining" } else { "opening" };
            return answer(refused(text_later(StatusCode::SERVICE_UNAVAILABLE, why), call.incoming, version).await);
        };
        let response = match target {
            Target::Blob { instance, hash } => cas::call(cache, &instance, &hash, call).await,
            Target::Action { instance, hash } => action::call(cache, &instance, &hash, call).await,
            Target::Entry { instance, name } => entry::call(cache, &instance, &name, head.uri.path(), call).await,
            Target::Alive | Target::Ready | Target::Status | Target::Metrics => text(StatusCode::NOT_FOUND, "no such path"),
        };
        response.map(|body| Counted::new(Some(token), body))
    }

    /// The operator's page, if it is one.
    async fn page(&self, target: &Target) -> Option<Answer> {
        match target {
            Target::Alive => Some(text(StatusCode::OK, "alive")),
            Target::Ready => Some(match *self.phase.borrow() {
                Phase::Opening => text_later(StatusCode::SERVICE_UNAVAILABLE, "opening"),
                Phase::Serving => text(StatusCode::OK, "ready"),
                Phase::Draining => text_later(StatusCode::SERVICE_UNAVAILABLE, "draining"),
            }),
            Target::Status => Some(status::page(&self.operator)),
            Target::Metrics => Some(metrics::page(&self.operator).await),
            Target::Blob { .. } | Target::Action { .. } | Target::Entry { .. } => None,
        }
    }
}
