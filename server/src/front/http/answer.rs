//! Answers: the one place where a store's error gets its status, and where a body that nobody wants is dealt with.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::Bytes;
use futures::stream::BoxStream;
use http::{HeaderValue, Response, StatusCode, Version, header};
use http_body::{Frame, SizeHint};

use super::upload::Incoming;
use crate::{
    auth::{Refusal, Why},
    store::StoreError,
};

/// After how many seconds a client may try again what did not work now.
const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("5");

pub(super) type Answer = Response<Body>;

/// A status and no body.
pub(super) fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = status;
    answer
}

/// A status and a line that says why.
pub(super) fn text(status: StatusCode, line: &str) -> Answer {
    let mut answer = Response::new(Body::from(format!("{line}\n")));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

/// The same for what may work later.
pub(super) fn text_later(status: StatusCode, line: &str) -> Answer {
    let mut answer = text(status, line);
    answer.headers_mut().insert(header::RETRY_AFTER, RETRY_SECONDS);
    answer
}

/// Nothing is there.
pub(super) fn missing() -> Answer {
    text(StatusCode::NOT_FOUND, "not in the store")
}

/// The path is right and the method is none of these.
pub(super) fn not_allowed(methods: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "method is not allowed here");
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
    answer
}

/// The caller may not do this. A challenge tells clients that have credentials to send them.
pub(super) fn not_admitted(refusal: &Refusal) -> Answer {
    let line = refusal.why.to_string();
    match refusal.why {
        Why::Missing | Why::Wrong => {
            let mut answer = text(StatusCode::UNAUTHORIZED, &line);
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"blockstore\""));
            answer
        }
        Why::Forbidden => text(StatusCode::FORBIDDEN, &line),
        Why::Busy => text_later(StatusCode::SERVICE_UNAVAILABLE, &line),
    }
}

/// The status of a store's error.
pub(super) fn store_error(error: &StoreError) -> Answer {
    let line = error.to_string();
    match error {
        StoreError::Unavailable(_) => text_later(StatusCode::SERVICE_UNAVAILABLE, &line),
        StoreError::NoRoom(_) => text_later(StatusCode::INSUFFICIENT_STORAGE, &line),
        StoreError::TooLarge { .. } => text(StatusCode::PAYLOAD_TOO_LARGE, &line),
        StoreError::OutOfRange { .. } => text(StatusCode::RANGE_NOT_SATISFIABLE, &line),
        StoreError::SizeMismatch { .. }
        | StoreError::HashMismatch { .. }
        | StoreError::TooManyChunks { .. }
        | StoreError::UnsupportedFunction(_) => text(StatusCode::BAD_REQUEST, &line),
        StoreError::ChunkMissing { .. } => text(StatusCode::NOT_FOUND, &line),
        StoreError::Lost { .. } | StoreError::Internal(_) => text(StatusCode::INTERNAL_SERVER_ERROR, &line),
    }
}

/// An answer to a request whose body is of no use. A client that is sending may not look at the answer before it has sent everything, and
/// loses it if the connection is closed before; so what is bearable is read first.
pub(super) async fn refused(answer: Answer, incoming: Incoming, version: Version) -> Answer {
    if version != Version::HTTP_2 {
        incoming.discard().await;
    }
    answer
}

/// The body of an answer that comes in pieces, of exactly the size that was said.
pub(super) struct Pieces {
    first: Bytes,
    rest: BoxStream<'static, Result<Bytes, StoreError>>,
    left_bytes: u64,
}

impl Pieces {
    /// `first` and then `rest`, `len_bytes` together.
    pub(super) fn body(first: Bytes, rest: BoxStream<'static, Result<Bytes, StoreError>>, len_bytes: u64) -> Body {
        Body::new(Self { first, rest, left_bytes: len_bytes })
    }
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = StoreError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StoreError>>> {
        let this = &mut *self;
        let piece = match std::mem::take(&mut this.first) {
            first if !first.is_empty() => first,
            _ => match ready!(this.rest.as_mut().poll_next(cx)) {
                Some(Ok(piece)) => piece,
                // The connection is cut: the client must not take what it has for all.
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            },
        };
        this.left_bytes = this.left_bytes.saturating_sub(piece.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left_bytes == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_status() {
        for (why, status, challenged, later) in [
            (Why::Missing, 401, true, false),
            (Why::Wrong, 401, true, false),
            (Why::Forbidden, 403, false, false),
            (Why::Busy, 503, false, true),
        ] {
            let answer = not_admitted(&Refusal { why, user: None });
            assert_eq!(answer.status(), status, "{why:?}");
            assert_eq!(answer.headers().contains_key(header::WWW_AUTHENTICATE), challenged, "{why:?}");
            assert_eq!(answer.headers().contains_key(header::RETRY_AFTER), later, "{why:?}");
        }
    }
    use crate::store::{DigestFunction, Hasher};

    #[test]
    fn every_store_error_has_its_status() {
        let digest = Hasher::digest(DigestFunction::Sha256, b"x");
        let expected = [
            (StoreError::Lost { offset_bytes: 1 }, 500, false),
            (StoreError::OutOfRange { offset_bytes: 2, size_bytes: 1 }, 416, false),
            (StoreError::Unavailable("closing".into()), 503, true),
            (StoreError::TooLarge { size_bytes: 2, limit_bytes: 1 }, 413, false),
            (StoreError::NoRoom("uploads".into()), 507, true),
            (StoreError::SizeMismatch { declared_bytes: 1, sent_bytes: 2 }, 400, false),
            (StoreError::HashMismatch { declared: Box::new(digest), computed: Box::new(digest) }, 400, false),
            (StoreError::ChunkMissing { chunk: Box::new(digest) }, 404, false),
            (StoreError::TooManyChunks { limit: 1 }, 400, false),
            (StoreError::UnsupportedFunction(DigestFunction::Md5), 400, false),
            (StoreError::Internal("task".into()), 500, false),
        ];
        for (error, status, later) in expected {
            let answer = store_error(&error);
            assert_eq!(answer.status(), status, "{error}");
            assert_eq!(answer.headers().contains_key(header::RETRY_AFTER), later, "{error}");
        }
    }
}
