//! The HTTP front-end: the cache protocol of Bazel, ccache, Gradle and others under `…/cas/`, `…/ac/` and `…/kv/`, and what says whether
//! the server is alive (`/healthz`) and whether it serves (`/readyz`).
//!
//! Always true here: the two say so in every phase and wait for nothing; no other path reaches the store before it is open or after the
//! server began to drain; a request, however wrong, gets a status and no panic.

use std::{
    convert::Infallible,
    future::Future,
    pin::pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::body::Body;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::task::TaskTracker;

use crate::{
    front::{
        gate::{Counted, Gate},
        reapi::http2,
        uploads::Uploads,
    },
    instances::InstanceRules,
    phase::Phase,
    store::{BlobStore, DigestFunction, ResultRule},
};

mod action;
mod answer;
mod cas;
mod conditions;
mod download;
mod entry;
mod path;
mod upload;

use answer::{Answer, refused, text, text_later};
use path::Target;
use upload::{Incoming, Memory};

/// Longest wait for the head of a request, also of the next one on an idle connection.
const HEAD_WAIT_MAX: Duration = Duration::from_secs(300);
/// Pause after a connection could not be accepted, which is when there are too many.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
    /// A front-end that counts and turns away its requests at `gate`.
    pub fn new(phase: watch::Receiver<Phase>, gate: Gate) -> Self {
        Self { phase, gate, cache: OnceLock::new() }
    }

    /// Gives it the store, once, and the turns that its uploads share with others.
    pub fn open(&self, store: Arc<dyn BlobStore>, options: Options, uploads: Uploads) {
        let cache = Cache { store, options, memory: Memory::default(), uploads };
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
                let incoming = Incoming::new(&head.headers, body);
                return answer(refused(text(StatusCode::BAD_REQUEST, &error.to_string()), incoming, head.version).await);
            }
        };
        let version = head.version;
        let incoming = Incoming::new(&head.headers, body);
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

/// Serves connections, HTTP/1.1 or HTTP/2 as each of them begins, until `goodbye`; then waits until they have sent what they have to.
pub async fn serve(listener: TcpListener, front: Arc<Front>, goodbye: watch::Receiver<bool>) {
    let connections = TaskTracker::new();
    let mut end = pin!(said(goodbye.clone()));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut end => break,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(connection(stream, front.clone(), said(goodbye.clone())));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn said(mut goodbye: watch::Receiver<bool>) {
    // A sender that is gone says so as well.
    let _ = goodbye.wait_for(|said| *said).await;
}

async fn connection(stream: TcpStream, front: Arc<Front>, goodbye: impl Future<Output = ()>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let front = front.clone();
        async move { Ok::<_, Infallible>(front.answer(request.map(Body::new)).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_WAIT_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(http2::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(http2::CONNECTION_WINDOW_BYTES)
        .max_frame_size(http2::FRAME_BYTES_MAX)
        .max_concurrent_streams(http2::STREAMS_MAX)
        .max_pending_accept_reset_streams(http2::RESET_STREAMS_MAX)
        .keep_alive_interval(http2::KEEPALIVE_INTERVAL)
        .keep_alive_timeout(http2::KEEPALIVE_TIMEOUT);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = goodbye => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "HTTP connection ended");
    }
}
