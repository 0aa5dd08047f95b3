//! The gate in front of every service: counts running requests, and turns new ones away once the server drains.
//!
//! Always true here: a request counts from its arrival until its response's last byte was handed on or dropped; health and
//! reflection neither count nor are turned away, so that a drain is visible and does not wait for who watches it.

use crate::phase::Phase;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::sync::watch;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use tonic::Status;
use tower::{Layer, Service};

/// Services that are answered in every phase.
const ALWAYS: [&str; 2] = ["/grpc.health.", "/grpc.reflection."];

/// Makes the services that it wraps pass through one gate.
#[derive(Clone, Debug)]
pub struct Gate {
    phase: watch::Receiver<Phase>,
    running: TaskTracker,
}

impl Gate {
    /// A gate that is open until `phase` says [`Phase::Draining`].
    pub fn new(phase: watch::Receiver<Phase>) -> Self {
        Self { phase, running: TaskTracker::new() }
    }

    /// Waits until no request runs. Meant for when the gate is shut: while it is open, new ones may keep this waiting.
    pub async fn drained(&self) {
        self.running.close();
        self.running.wait().await;
    }

    /// Lets a request in, which runs until the token is dropped; `None` once the server drains.
    pub fn enter(&self) -> Option<TaskTrackerToken> {
        // The token comes before the look at the phase: a request is turned away, or the drain waits for it.
        let token = self.running.token();
        (*self.phase.borrow() != Phase::Draining).then_some(token)
    }

    /// How many requests run now.
    pub fn running(&self) -> usize {
        self.running.len()
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;
    fn layer(&self, inner: S) -> Gated<S> {
        Gated { inner, gate: self.clone() }
    }
}

/// A service behind the gate.
#[derive(Clone, Debug)]
pub struct Gated<S> {
    inner: S,
    gate: Gate,
}

impl<S, Q, B> Service<Request<Q>> for Gated<S>
where
    S: Service<Request<Q>, Response = Response<B>>,
    B: Default,
{
    type Response = Response<Counted<B>>;
    type Error = S::Error;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let path = request.uri().path();
        if ALWAYS.iter().any(|prefix| path.starts_with(prefix)) {
            return Answer { token: None, future: Some(self.inner.call(request)) };
        }
        let token = self.gate.enter();
        let future = token.is_some().then(|| self.inner.call(request));
        Answer { token, future }
    }
}

pin_project! {
    /// What a request comes to: the service's answer, or UNAVAILABLE at once where there is no future.
    #[derive(Debug)]
    pub struct Answer<F> {
        token: Option<TaskTrackerToken>,
        #[pin]
        future: Option<F>,
    }
}

impl<F, B, E> Future for Answer<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Default,
{
    type Output = Result<Response<Counted<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = self.project();
        let Some(future) = answer.future.as_pin_mut() else {
            let refusal = Status::unavailable("server is shutting down").into_http::<B>();
            return Poll::Ready(Ok(refusal.map(|body| Counted { token: None, body })));
        };
        let response = ready!(future.poll(cx))?;
        let token = answer.token.take();
        Poll::Ready(Ok(response.map(|body| Counted { token, body })))
    }
}

pin_project! {
    /// A response body that counts as a running request until it is dropped.
    #[derive(Debug)]
    pub struct Counted<B> {
        token: Option<TaskTrackerToken>,
        #[pin]
        body: B,
    }
}

impl<B> Counted<B> {
    /// A body that counts as long as it holds a token.
    pub fn new(token: Option<TaskTrackerToken>, body: B) -> Self {
        Self { token, body }
    }
}

impl<B: Default> Default for Counted<B> {
    fn default() -> Self {
        Self { token: None, body: B::default() }
    }
}

impl<B: Body> Body for Counted<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
