//! Bodies over HTTP, counted as they pass.
//!
//! Always true here: an answer whose body was not handed on to its end counts as cancelled, unless none of it was wanted (HEAD).

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::{Details, End, Record};
use crate::metrics::{
    Metrics,
    labels::{Kind, Protocol},
};

/// The answer to a request, whose record ends with its body. `bodiless` if the client gets none, whatever there is.
pub fn answered<B: Body>(mut record: Record, response: Response<B>, bodiless: bool) -> Response<Recorded<B>> {
    let status = response.status().as_u16();
    response.map(|body| {
        let ended = bodiless || body.is_end_stream();
        if ended {
            record.ended_with(End::Status(status));
        }
        Recorded { record, status, body }
    })
}

pin_project! {
    /// The body of an answer. The request ends with it.
    #[derive(Debug)]
    pub struct Recorded<B> {
        record: Record,
        status: u16,
        #[pin]
        body: B,
    }
}

impl<B: Body> Body for Recorded<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.body.as_mut().poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.record.sent(data.remaining());
                }
                // Whoever knows the length asks no further.
                if this.body.is_end_stream() {
                    this.record.ended_with(End::Status(*this.status));
                }
            }
            // The connection is cut, so that the client cannot take what it has for all.
            Some(Err(_)) => this.record.ended_with(End::Status(500)),
            None => this.record.ended_with(End::Status(*this.status)),
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

pin_project! {
    /// The body of a request, whose bytes are counted as they arrive.
    #[derive(Debug)]
    pub struct Metered<B> {
        metrics: Arc<Metrics>,
        kind: Kind,
        details: Option<Arc<Details>>,
        #[pin]
        body: B,
    }
}

impl<B> Metered<B> {
    /// The body of that request.
    pub fn new(record: &Record, body: B) -> Self {
        Self { metrics: record.observer.metrics().clone(), kind: record.subject.kind(), details: record.details().cloned(), body }
    }
}

impl<B: Body> Body for Metered<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let bytes = data.remaining();
            this.metrics.received_bytes(Protocol::Http, *this.kind, bytes);
            if let Some(details) = this.details {
                details.add_received_bytes(bytes);
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
