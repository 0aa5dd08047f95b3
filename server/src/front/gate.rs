//! The gate in front of every service: counts running requests, turns new ones away once the server drains, and lets nobody in who may not do
//! what was asked for.
//!
//! Always true here: a request counts from its arrival until its response's last byte was handed on or dropped; health and
//! reflection neither count nor are turned away by a drain, so that it is visible and does not wait for who watches it. What every path
//! needs is in one place ([`needs`]), for both protocols; what is not known there needs the most. Of a request that is refused no byte of
//! the body was looked at. Without a guard nothing is looked at.

use crate::{
    auth::{Check, Guard, Pass, Refusal, Why},
    front::{observe::Details, reapi::retry_later},
    metrics::labels::{Handler, Method, Protocol, Verb},
    phase::Phase,
};
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::sync::watch;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use tonic::{Code, Status};
use tower::{Layer, Service};

mod needs;

/// Services that are answered in every phase.
const ALWAYS: [&str; 2] = ["/grpc.health.", "/grpc.reflection."];

/// Makes the services that it wraps pass through one gate.
#[derive(Clone, Debug)]
pub struct Gate {
    phase: watch::Receiver<Phase>,
    running: TaskTracker,
    guard: Option<Guard>,
}

impl Gate {
    /// A gate that is open until `phase` says [`Phase::Draining`].
    pub fn new(phase: watch::Receiver<Phase>) -> Self {
        Self { phase, running: TaskTracker::new(), guard: None }
    }

    /// Lets in only whom the guard does. Clones from before are not guarded.
    pub fn guarded(self, guard: Option<Guard>) -> Self {
        Self { guard, ..self }
    }

    /// Whether a request over HTTP may do what it asks for. Whether it comes at the right time is asked by [`enter`](Self::enter).
    ///
    /// # Errors
    /// It may not.
    pub async fn admit(&self, verb: Verb, handler: Handler, headers: &HeaderMap, details: Option<&Arc<Details>>) -> Result<(), Refusal> {
        let Some(guard) = &self.guard else { return Ok(()) };
        let Some(right) = needs::of_request(verb, handler) else { return Ok(()) };
        let checked = match guard.check(Protocol::Http, right, headers) {
            Check::Now(checked) => checked,
            Check::Later(checked) => checked.await,
        };
        note(details, &checked);
        checked.map(drop)
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

/// Tells the logs who it is.
fn note(details: Option<&Arc<Details>>, checked: &Result<Pass, Refusal>) {
    let (user, refused) = match checked {
        Ok(pass) => (&pass.user, false),
        Err(refusal) => (&refusal.user, true),
    };
    if let (Some(details), Some(user)) = (details, user) {
        details.set_user(user.clone(), refused);
    }
}

/// The status of a call that may not do what it asks for.
fn refused(refusal: &Refusal) -> Status {
    let why = refusal.why.to_string();
    match refusal.why {
        Why::Missing | Why::Wrong => Status::unauthenticated(why),
        Why::Forbidden => Status::permission_denied(why),
        Why::Busy => retry_later(Code::Unavailable, why),
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
    S: Service<Request<Q>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    Q: Send + 'static,
    B: Default + 'static,
{
    type Response = Response<Counted<B>>;
    type Error = S::Error;
    type Future = Answer<S::Future, B, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        let path = request.uri().path();
        let token = match ALWAYS.iter().any(|prefix| path.starts_with(prefix)) {
            true => None,
            false => match self.gate.enter() {
                Some(token) => Some(token),
                None => return Answer::refused(Status::unavailable("server is shutting down")),
            },
        };
        let guard = self.gate.guard.as_ref();
        let Some((guard, right)) = guard.and_then(|guard| Some((guard, needs::of_call(Method::of(path))?))) else {
            return Answer::called(token, self.inner.call(request));
        };
        let details = request.extensions().get::<Arc<Details>>().cloned();
        match guard.check(Protocol::Grpc, right, request.headers()) {
            Check::Now(checked) => {
                note(details.as_ref(), &checked);
                match checked {
                    Ok(pass) => {
                        request.extensions_mut().insert(pass.rights);
                        Answer::called(token, self.inner.call(request))
                    }
                    Err(refusal) => Answer::refused(refused(&refusal)),
                }
            }
            Check::Later(checked) => {
                // The one that is ready now is the one to be called.
                let next = self.inner.clone();
                let mut inner = std::mem::replace(&mut self.inner, next);
                let later = async move {
                    let checked = checked.await;
                    note(details.as_ref(), &checked);
                    match checked {
                        Ok(pass) => {
                            request.extensions_mut().insert(pass.rights);
                            inner.call(request).await
                        }
                        Err(refusal) => Ok(refused(&refusal).into_http()),
                    }
                };
                Answer { token, future: None, later: Some(Box::pin(later)), refusal: None }
            }
        }
    }
}

pin_project! {
    /// What a request comes to: the service's answer, now or once it is known who asks; or a refusal at once where there is neither.
    pub struct Answer<F, B, E> {
        token: Option<TaskTrackerToken>,
        #[pin]
        future: Option<F>,
        later: Option<BoxFuture<'static, Result<Response<B>, E>>>,
        refusal: Option<Status>,
    }
}

impl<F, B, E> Answer<F, B, E> {
    fn called(token: Option<TaskTrackerToken>, future: F) -> Self {
        Self { token, future: Some(future), later: None, refusal: None }
    }

    fn refused(status: Status) -> Self {
        Self { token: None, future: None, later: None, refusal: Some(status) }
    }
}

impl<F, B, E> Future for Answer<F, B, E>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Default,
{
    type Output = Result<Response<Counted<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = self.project();
        let response = match (answer.future.as_pin_mut(), answer.later) {
            (Some(future), _) => ready!(future.poll(cx))?,
            (None, Some(later)) => ready!(later.as_mut().poll(cx))?,
            (None, None) => answer.refusal.take().unwrap_or_else(|| Status::internal("call was answered already")).into_http(),
        };
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

impl<B: Default> Counted<B> {
    /// Counts as long, and has no body.
    pub fn emptied(self) -> Self {
        Self { body: B::default(), ..self }
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

#[cfg(test)]
mod tests;
