//! The HTTP front-end: the cache protocol of Bazel, ccache, Gradle and others under `…/cas/`, `…/ac/` and `…/kv/`, and what says whether
//! the server is alive (`/healthz`) and whether it serves (`/readyz`).
//!
//! Always true here: the two say so in every phase and wait for nothing; no other path reaches the store before it is open or after the
//! server began to drain; a request, however wrong, gets a status and no panic.

use std::sync::{Arc, OnceLock};

use axum::body::Body;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use tokio::sync::watch;

use crate::{
    front::gate::{Counted, Gate},
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
mod path;
mod upload;

pub use connection::serve;
pub use limits::Limits;

use answer::{Answer, refused, text, text_later};
use memory::Memory;
use path::Target;
use upload::Incoming;

/// How the front-end behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// What is taken for an action result.
    pub result_rule: ResultRule,
    /// Function of actions whose hash has as many digits as it makes; others are told by their length.
    pub action_function: DigestFunction,
}

impl Default for Options {
    fn default() -> Self {
        Self { result_rule: ResultRule::Lenient, action_function: DigestFunction::Sha256 }
    }
}

/// The front-end. Answers before it has a store, though not much.
#[derive(Debug)]
pub struct Front {
    phase: watch::Receiver<Phase>,
    gate: Gate,
    limits: Limits,
    cache: OnceLock<Cache>,
}

/// What requests for the cache share.
#[derive(Debug)]
struct Cache {
    store: Arc<dyn BlobStore>,
    options: Options,
    memory: Memory,
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
    /// A front-end that counts and turns away its requests at `gate`.
    pub fn new(phase: watch::Receiver<Phase>, gate: Gate, limits: Limits) -> Self {
        Self { phase, gate, limits, cache: OnceLock::new() }
    }

    /// Gives it the store, once.
    pub fn open(&self, store: Arc<dyn BlobStore>, options: Options) {
        let cache = Cache { store, options, memory: Memory::default() };
        if self.cache.set(cache).is_err() {
            tracing::error!("HTTP front-end was given a second store, which is not used");
        }
    }

    /// Answers one request.
    pub async fn answer(&self, request: Request<Body>) -> Response<Counted<Body>> {
        let answer = |answer: Answer| answer.map(|body| Counted::new(None, body));
        let (head, body) = request.into_parts();
        let target = match Target::parse(head.uri.path()) {
            Ok(target) => target,
            Err(error) => {
                let incoming = Incoming::new(&head.headers, body, self.limits.stall_max());
                return answer(refused(text(StatusCode::BAD_REQUEST, &error.to_string()), incoming, head.version).await);
            }
        };
        let version = head.version;
        let incoming = Incoming::new(&head.headers, body, self.limits.stall_max());
        let call = Call { asked: Asked { method: head.method, headers: head.headers }, version, incoming };
        if !target.methods().split(", ").any(|allowed| allowed == call.asked.method.as_str()) {
            return answer(refused(answer::not_allowed(target.methods()), call.incoming, version).await);
        }
        if let Some(probe) = self.probe(&target) {
            return answer(probe);
        }
        let (Some(token), Some(cache)) = (self.gate.enter(), self.cache.get()) else {
            let why = if *self.phase.borrow() == Phase::Draining { "draining" } else { "opening" };
            return answer(refused(text_later(StatusCode::SERVICE_UNAVAILABLE, why), call.incoming, version).await);
        };
        let response = match target {
            Target::Blob { instance, hash } => cas::call(cache, &instance, &hash, call).await,
            Target::Action { instance, hash } => action::call(cache, &instance, &hash, call).await,
            Target::Entry { instance, name } => entry::call(cache, &instance, &name, head.uri.path(), call).await,
            Target::Alive | Target::Ready => text(StatusCode::NOT_FOUND, "no such path"),
        };
        response.map(|body| Counted::new(Some(token), body))
    }

    /// The answer to a probe, if it is one.
    fn probe(&self, target: &Target) -> Option<Answer> {
        match target {
            Target::Alive => Some(text(StatusCode::OK, "alive")),
            Target::Ready => Some(match *self.phase.borrow() {
                Phase::Opening => text_later(StatusCode::SERVICE_UNAVAILABLE, "opening"),
                Phase::Serving => text(StatusCode::OK, "ready"),
                Phase::Draining => text_later(StatusCode::SERVICE_UNAVAILABLE, "draining"),
            }),
            _ => None,
        }
    }
}
