//! Bodies of requests: read piece by piece, gathered in bounded memory, or thrown away.
//!
//! Always true here: a client that stands still for [`STALL_MAX`] is given up; what is gathered beyond a mebibyte counts against one
//! budget, which is taken at once, so that two that gather never wait for each other.

use std::{future::poll_fn, pin::Pin, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body::Body as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::answer::{Answer, text};

/// A body must not stand still for longer.
const STALL_MAX: Duration = Duration::from_secs(60);
/// A body that is gathered has to be complete after that.
const GATHER_MAX: Duration = Duration::from_secs(300);
/// What is gathered without counting against the budget.
const UNBUDGETED_BYTES_MAX: usize = 1 << 20;
/// Bytes that are gathered at the same time, beyond that.
const GATHERED_BYTES_MAX: u32 = 256 << 20;
/// What of an unwanted body is read, so that the client looks at the answer.
const DISCARDED_BYTES_MAX: u64 = 16 << 20;

/// Bounds what is gathered at the same time.
#[derive(Debug)]
pub(super) struct Memory(Arc<Semaphore>);

impl Default for Memory {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(GATHERED_BYTES_MAX as usize)))
    }
}

impl Memory {
    async fn take(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(GATHERED_BYTES_MAX);
        self.0.clone().acquire_many_owned(bytes).await.ok()
    }
}

/// Why a body did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The client went away.
    Cut,
    /// It stood still, or was too slow.
    Stalled,
    /// There is more than can be gathered.
    TooLarge {
        /// What can be, in bytes.
        limit_bytes: u64,
    },
}

impl Broken {
    pub(super) fn answer(self) -> Answer {
        match self {
            Self::Cut => text(StatusCode::BAD_REQUEST, "body ends before its length"),
            Self::Stalled => text(StatusCode::REQUEST_TIMEOUT, "body did not arrive in time"),
            Self::TooLarge { limit_bytes } => {
                text(StatusCode::PAYLOAD_TOO_LARGE, &format!("body is larger than {limit_bytes} bytes, or has no Content-Length and is"))
            }
        }
    }
}

/// A body that was gathered. It counts against the budget until it is dropped.
pub(super) struct Gathered {
    pub(super) data: Bytes,
    _permit: Option<OwnedSemaphorePermit>,
}

/// The body of a request.
pub(super) struct Incoming {
    body: Body,
    declared_bytes: Option<u64>,
    /// The client sends nothing before it is told to, which the first look at its body does.
    waits: bool,
}

impl Incoming {
    pub(super) fn new(headers: &HeaderMap, body: Body) -> Self {
        let waits = headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        Self { declared_bytes: body.size_hint().exact(), waits, body }
    }

    /// The length that the client declared; `None` if it sends chunks until it is done.
    pub(super) fn declared_bytes(&self) -> Option<u64> {
        self.declared_bytes
    }

    /// The next bytes, which are not empty; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        self.waits = false;
        loop {
            let frame = poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx));
            match timeout(STALL_MAX, frame).await {
                Err(_) => return Err(Broken::Stalled),
                Ok(None) => return Ok(None),
                Ok(Some(Err(_))) => return Err(Broken::Cut),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Ok(Some(data)),
                    // Trailers mean nothing to us.
                    _ => {}
                },
            }
        }
    }

    /// All of it in memory.
    pub(super) async fn gather(&mut self, limit_bytes: u64, memory: &Memory) -> Result<Gathered, Broken> {
        if self.declared_bytes.is_some_and(|bytes| bytes > limit_bytes) {
            return Err(Broken::TooLarge { limit_bytes });
        }
        timeout(GATHER_MAX, self.gather_now(limit_bytes, memory)).await.unwrap_or(Err(Broken::Stalled))
    }

    async fn gather_now(&mut self, limit_bytes: u64, memory: &Memory) -> Result<Gathered, Broken> {
        let declared = self.declared_bytes.and_then(|bytes| usize::try_from(bytes).ok());
        let mut all = Vec::new();
        let mut permit = None;
        while let Some(piece) = self.next().await? {
            if declared == Some(piece.len()) {
                return Ok(Gathered { data: piece, _permit: None });
            }
            let len = all.len() + piece.len();
            if len as u64 > limit_bytes {
                return Err(Broken::TooLarge { limit_bytes });
            }
            if len > UNBUDGETED_BYTES_MAX && permit.is_none() {
                permit = memory.take(self.declared_bytes.unwrap_or(limit_bytes)).await;
            }
            if all.capacity() < len {
                // A length is believed once a mebibyte has arrived.
                let wanted = declared.unwrap_or(len);
                all.reserve(if permit.is_some() { wanted } else { wanted.min(UNBUDGETED_BYTES_MAX) }.max(len) - all.len());
            }
            all.extend_from_slice(&piece);
        }
        Ok(Gathered { data: all.into(), _permit: permit })
    }

    /// Reads what is bearable of a body that is not wanted.
    pub(super) async fn discard(mut self) {
        if self.waits || self.declared_bytes.is_some_and(|bytes| bytes > DISCARDED_BYTES_MAX) {
            return;
        }
        let mut read_bytes = 0;
        while read_bytes <= DISCARDED_BYTES_MAX
            && let Ok(Some(piece)) = self.next().await
        {
            read_bytes += piece.len() as u64;
        }
    }

    /// Reads all of a body that need not have been sent, unless the client waits to be told to.
    pub(super) async fn drain(mut self) {
        while !self.waits
            && let Ok(Some(_)) = self.next().await
        {}
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use http::HeaderValue;
    use http_body_util::StreamBody;

    use super::*;

    /// A body of these pieces without a length, and then of nothing for ever.
    fn stalled(pieces: Vec<Bytes>) -> Body {
        use futures::StreamExt;
        let pieces = stream::iter(pieces).chain(stream::pending());
        Body::new(StreamBody::new(pieces.map(|piece| Ok::<_, std::io::Error>(http_body::Frame::data(piece)))))
    }

    fn chunked(pieces: usize, piece_bytes: usize) -> Body {
        let piece = Bytes::from(vec![7; piece_bytes]);
        let pieces = (0..pieces).map(move |_| Ok::<_, std::io::Error>(http_body::Frame::data(piece.clone())));
        Body::new(StreamBody::new(stream::iter(pieces)))
    }

    fn incoming(body: Body) -> Incoming {
        Incoming::new(&HeaderMap::new(), body)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stands_still_is_given_up() {
        let mut body = incoming(stalled(vec![Bytes::from_static(b"first")]));
        assert_eq!(body.next().await, Ok(Some(Bytes::from_static(b"first"))));
        assert_eq!(body.next().await, Err(Broken::Stalled));
        // Also where the body is not wanted: these end.
        incoming(stalled(vec![])).discard().await;
        incoming(stalled(vec![])).drain().await;
    }

    #[tokio::test]
    async fn what_is_gathered_is_bounded_one_by_one_and_together() {
        let memory = Memory::default();
        let limit_bytes = 3 << 20;
        let gathered = incoming(chunked(3, 1 << 20)).gather(limit_bytes, &memory).await.ok().unwrap();
        assert_eq!(gathered.data.len(), 3 << 20);
        assert_eq!(memory.0.available_permits(), (GATHERED_BYTES_MAX - (3 << 20)) as usize);
        drop(gathered);
        assert_eq!(memory.0.available_permits(), GATHERED_BYTES_MAX as usize);
        let small = incoming(chunked(16, 1 << 16)).gather(limit_bytes, &memory).await.ok().unwrap();
        assert_eq!((small.data.len(), memory.0.available_permits()), (1 << 20, GATHERED_BYTES_MAX as usize));
        let over = incoming(chunked(4, 1 << 20)).gather(limit_bytes, &memory).await.err();
        assert_eq!(over, Some(Broken::TooLarge { limit_bytes }));
        let declared = incoming(Body::from(vec![0; (3 << 20) + 1])).gather(limit_bytes, &memory).await.err();
        assert_eq!(declared, Some(Broken::TooLarge { limit_bytes }));
    }

    #[tokio::test]
    async fn a_client_that_waits_to_be_told_is_not_told_for_nothing() {
        let headers: HeaderMap = [(header::EXPECT, HeaderValue::from_static("100-Continue"))].into_iter().collect();
        // Whoever looks at such a body asks for it; this one would never end.
        let never = || Body::new(StreamBody::new(stream::pending::<Result<http_body::Frame<Bytes>, std::io::Error>>()));
        Incoming::new(&headers, never()).discard().await;
        Incoming::new(&headers, never()).drain().await;
    }
}
