//! Calls of gRPC, around whatever serves them.
//!
//! Always true here: a call's status is the one in its trailers, or in its head where it has no body; a call that ended without one is
//! Unknown, and one that was dropped before its end is Canceled.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::transport::server::TcpConnectInfo;
use tower::{Layer, Service};

use super::{End, Observer, Record};
use crate::metrics::labels::{Code, Method};

impl<S> Layer<S> for Observer {
    type Service = Observed<S>;
    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, observer: self.clone() }
    }
}

/// A service whose calls are observed.
#[derive(Clone, Debug)]
pub struct Observed<S> {
    inner: S,
    observer: Observer,
}

impl<S, Q, B> Service<Request<Q>> for Observed<S>
where
    S: Service<Request<Q>, Response = Response<B>>,
    B: Body,
{
    type Response = Response<Recorded<B>>;
    type Error = S::Error;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        let method = Method::of(request.uri().path());
        let peer = request.extensions().get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
        let record = self.observer.call(method, peer, request.headers());
        if let Some(details) = record.details() {
            request.extensions_mut().insert(details.clone());
        }
        Answer { record: Some(record), future: self.inner.call(request) }
    }
}

pin_project! {
    /// An answer that is awaited.
    #[derive(Debug)]
    pub struct Answer<F> {
        record: Option<Record>,
        #[pin]
        future: F,
    }
}

impl<F, B, E> Future for Answer<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<Recorded<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = self.project();
        let answered = ready!(answer.future.poll(cx));
        let mut record = answer.record.take();
        if let Some(record) = &mut record {
            match &answered {
                Ok(response) => end(record, response.headers()),
                Err(_) => record.ended_with(End::Code(Code::Internal)),
            }
        }
        Poll::Ready(answered.map(|response| response.map(|body| Recorded { record, body })))
    }
}

/// Takes the status, if it is there.
fn end(record: &mut Record, headers: &HeaderMap) {
    if let Some(status) = headers.get("grpc-status") {
        record.ended_with(End::Code(Code::of(status.as_bytes())));
    }
}

pin_project! {
    /// The body of an answer. The call ends with it.
    #[derive(Debug)]
    pub struct Recorded<B> {
        record: Option<Record>,
        #[pin]
        body: B,
    }
}

impl<B: Body> Body for Recorded<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(cx));
        if let Some(record) = this.record {
            match &frame {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        record.sent(data.remaining());
                    }
                    if let Some(trailers) = frame.trailers_ref() {
                        end(record, trailers);
                    }
                }
                Some(Err(_)) => record.ended_with(End::Code(Code::Internal)),
                None if record.end.is_none() => record.ended_with(End::Code(Code::Unknown)),
                None => {}
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
