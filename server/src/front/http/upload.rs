//! Bodies of requests: read piece by piece, gathered in bounded memory, or thrown away.
//!
//! Always true here: a client that makes no progress is given up, one that does never is, however slow; what is gathered beyond
//! [`FREE_BYTES_MAX`] has its share of the memory that all bodies have together.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body::Body as _;
use tokio::time::{Instant, sleep};

use super::{
    answer::{Answer, text, text_later},
    memory::{FREE_BYTES_MAX, Memory, SMALL_BYTES_MAX, Share},
};

/// Bytes that count as progress. A byte now and then does not.
const PROGRESS_BYTES_MIN: usize = 1 << 10;
/// What of an unwanted body is read, so that the client looks at the answer.
const DISCARDED_BYTES_MAX: u64 = 16 << 20;

/// Why a body did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The client went away.
    Cut,
    /// It stood still.
    Stalled,
    /// It stood still for a short time, in which others needed its memory.
    GaveWay,
    /// There is no memory for it now.
    Crowded,
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
            Self::Stalled => text(StatusCode::REQUEST_TIMEOUT, "body stood still for too long"),
            Self::GaveWay => text_later(StatusCode::REQUEST_TIMEOUT, "body stood still while others waited for its memory"),
            Self::Crowded => text_later(StatusCode::SERVICE_UNAVAILABLE, "too many bodies arrive at the same time"),
            Self::TooLarge { limit_bytes } => text(
                StatusCode::PAYLOAD_TOO_LARGE,
                &format!("body is larger than the {limit_bytes} bytes that are taken under such a path"),
            ),
        }
    }
}

/// How a body gets on.
struct Pace {
    /// What it may stand still for.
    stall_max: Duration,
    /// How long it has been waited for since it last made progress. What the store needs does not count.
    waited: Duration,
    /// What has arrived since then.
    arrived_bytes: usize,
}

impl Pace {
    fn new(stall_max: Duration) -> Self {
        Self { stall_max, waited: Duration::ZERO, arrived_bytes: 0 }
    }

    /// Waits for something of the body.
    async fn wait<T>(&mut self, something: impl Future<Output = T>, share: Option<&Share>) -> Result<T, Broken> {
        let began = Instant::now();
        let standing = share.map(Share::standing);
        let cut = async {
            match &standing {
                Some(standing) => standing.cut().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            something = something => {
                self.waited += began.elapsed();
                Ok(something)
            }
            () = sleep(self.stall_max.saturating_sub(self.waited)) => Err(Broken::Stalled),
            () = cut => Err(Broken::GaveWay),
        }
    }

    fn arrived(&mut self, bytes: usize) {
        self.arrived_bytes += bytes;
        if self.arrived_bytes >= PROGRESS_BYTES_MIN {
            *self = Self::new(self.stall_max);
        }
    }
}

/// The body of a request.
pub(super) struct Incoming {
    body: Body,
    declared_bytes: Option<u64>,
    /// The client sends nothing before it is told to, which the first look at its body does.
    waits: bool,
    pace: Pace,
    /// Nothing more will come.
    broken: bool,
    /// Its shares of the memory, until it is dropped.
    shares: Vec<Share>,
}

impl Incoming {
    /// A body that may stand still for `stall_max` at most.
    pub(super) fn new(headers: &HeaderMap, body: Body, stall_max: Duration) -> Self {
        let waits = headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        Self { declared_bytes: body.size_hint().exact(), waits, body, pace: Pace::new(stall_max), broken: false, shares: Vec::new() }
    }

    /// The length that the client declared; `None` if it sends chunks until it is done.
    pub(super) fn declared_bytes(&self) -> Option<u64> {
        self.declared_bytes
    }

    /// Whether the client sends nothing before it is told to.
    pub(super) fn waits(&self) -> bool {
        self.waits
    }

    /// Takes memory for what is read before it is with the store; the body gives it back when it is dropped.
    pub(super) async fn reserve(&mut self, bytes: u64, memory: &Memory) -> Result<(), Broken> {
        if bytes <= FREE_BYTES_MAX {
            return Ok(());
        }
        let share = match bytes <= SMALL_BYTES_MAX {
            true => memory.small(bytes).await,
            false => memory.large(bytes).await,
        };
        self.shares.push(share.ok_or(Broken::Crowded)?);
        Ok(())
    }

    /// The next bytes, which are not empty; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        self.waits = false;
        let next = self.next_piece().await;
        self.broken |= next.is_err();
        next
    }

    async fn next_piece(&mut self) -> Result<Option<Bytes>, Broken> {
        let Self { body, pace, shares, .. } = self;
        loop {
            let mut frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx));
            let frame = match futures::poll!(&mut frame) {
                Poll::Ready(frame) => frame,
                // Of two shares the second is the larger one.
                Poll::Pending => pace.wait(frame, shares.last()).await?,
            };
            match frame {
                None => return Ok(None),
                Some(Err(_)) => return Err(Broken::Cut),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => {
                        pace.arrived(data.len());
                        return Ok(Some(data));
                    }
                    // Trailers mean nothing to us.
                    _ => {}
                },
            }
        }
    }

    /// All of it in memory, and `beside_bytes` reserved for what is made of it.
    pub(super) async fn gather(&mut self, limit_bytes: u64, beside_bytes: u64, memory: &Memory) -> Result<Bytes, Broken> {
        if self.declared_bytes.is_some_and(|bytes| bytes > limit_bytes) {
            return Err(Broken::TooLarge { limit_bytes });
        }
        // A length that was declared is believed as far as it counts against the memory, and for the rest once the bytes arrive.
        let unknown = if beside_bytes > 0 { limit_bytes } else { FREE_BYTES_MAX };
        let mut reserved_bytes = self.declared_bytes.unwrap_or(unknown).max(FREE_BYTES_MAX);
        self.reserve(reserved_bytes.saturating_add(beside_bytes), memory).await?;
        let declared = self.declared_bytes.and_then(|bytes| usize::try_from(bytes).ok());
        let mut all = Vec::new();
        while let Some(piece) = self.next().await? {
            if declared == Some(piece.len()) {
                return Ok(piece);
            }
            let len = all.len() + piece.len();
            if len as u64 > limit_bytes {
                return Err(Broken::TooLarge { limit_bytes });
            }
            while len as u64 > reserved_bytes {
                reserved_bytes = if reserved_bytes < SMALL_BYTES_MAX { SMALL_BYTES_MAX } else { limit_bytes };
                self.reserve(reserved_bytes, memory).await?;
            }
            if all.capacity() < len {
                match declared {
                    Some(declared) => all.reserve_exact(declared.min(len.saturating_mul(2).max(1 << 20)).max(len) - all.len()),
                    None => all.reserve(len - all.len()),
                }
            }
            all.extend_from_slice(&piece);
        }
        Ok(all.into())
    }

    /// Reads what is bearable of a body that is not wanted.
    pub(super) async fn discard(mut self) {
        if self.waits || self.broken || self.declared_bytes.is_some_and(|bytes| bytes > DISCARDED_BYTES_MAX) {
            return;
        }
        let mut read_bytes = 0;
        while read_bytes <= DISCARDED_BYTES_MAX
            && let Ok(Some(piece)) = self.next().await
        {
            read_bytes += piece.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, stream};
    use http::HeaderValue;
    use http_body_util::StreamBody;

    use super::*;

    const STALL_MAX: Duration = Duration::from_secs(60);

    /// A body of these pieces without a length, and then of nothing for ever.
    fn stalled(pieces: Vec<Bytes>) -> Body {
        let pieces = stream::iter(pieces).chain(stream::pending());
        Body::new(StreamBody::new(pieces.map(|piece| Ok::<_, std::io::Error>(http_body::Frame::data(piece)))))
    }

    fn chunked(pieces: usize, piece_bytes: usize) -> Body {
        slow(pieces, piece_bytes, Duration::ZERO)
    }

    /// A body with a pause before each of its pieces.
    fn slow(pieces: usize, piece_bytes: usize, pause: Duration) -> Body {
        let piece = Bytes::from(vec![7; piece_bytes]);
        let pieces = stream::iter(0..pieces).then(move |_| {
            let piece = piece.clone();
            async move {
                sleep(pause).await;
                Ok::<_, std::io::Error>(http_body::Frame::data(piece))
            }
        });
        Body::new(StreamBody::new(pieces.boxed()))
    }

    fn incoming(body: Body) -> Incoming {
        Incoming::new(&HeaderMap::new(), body, STALL_MAX)
    }

    async fn end(body: Body) -> Result<usize, Broken> {
        let mut body = incoming(body);
        let mut bytes = 0;
        while let Some(piece) = body.next().await? {
            bytes += piece.len();
        }
        Ok(bytes)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stands_still_is_given_up() {
        let mut body = incoming(stalled(vec![Bytes::from_static(b"first")]));
        assert_eq!(body.next().await, Ok(Some(Bytes::from_static(b"first"))));
        assert_eq!(body.next().await, Err(Broken::Stalled));
        // Also where the body is not wanted: this ends.
        incoming(stalled(vec![])).discard().await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_makes_progress_has_all_the_time_it_needs_and_a_byte_now_and_then_is_none() {
        let pause = STALL_MAX - Duration::from_secs(1);
        assert_eq!(end(slow(1_000, PROGRESS_BYTES_MIN, pause)).await, Ok(1_000 * PROGRESS_BYTES_MIN));
        let memory = Memory::new(Default::default());
        let gathered = incoming(slow(3_000, PROGRESS_BYTES_MIN, pause)).gather(4 << 20, 0, &memory).await;
        assert_eq!(gathered.map(|data| data.len()), Ok(3_000 * PROGRESS_BYTES_MIN));
        let began = Instant::now();
        assert_eq!(end(slow(100, 1, pause)).await, Err(Broken::Stalled));
        assert_eq!(began.elapsed(), STALL_MAX);
        // A small body that is complete in time is no less than any other.
        assert_eq!(end(slow(3, 1, STALL_MAX / 4)).await, Ok(3));
    }

    #[tokio::test]
    async fn what_is_gathered_is_bounded_one_by_one_and_together() {
        let memory = Memory::new(Default::default());
        let limit_bytes = 3 << 20;
        let mut large = incoming(chunked(3, 1 << 20));
        assert_eq!(large.gather(limit_bytes, 0, &memory).await.unwrap().len(), 3 << 20);
        assert_eq!(memory.taken_bytes(), (1 << 20, 3 << 20));
        drop(large);
        assert_eq!(memory.taken_bytes(), (0, 0));
        let mut small = incoming(chunked(16, 1 << 16));
        assert_eq!(small.gather(limit_bytes, 0, &memory).await.unwrap().len(), 1 << 20);
        assert_eq!(memory.taken_bytes(), (1 << 20, 0));
        let mut tiny = incoming(chunked(1, 1 << 14));
        assert_eq!(tiny.gather(limit_bytes, 0, &memory).await.unwrap().len(), 1 << 14);
        assert_eq!(memory.taken_bytes(), (1 << 20, 0));
        drop(small);
        let mut declared = incoming(Body::from(vec![0; 2 << 20]));
        assert_eq!(declared.gather(limit_bytes, 5 << 20, &memory).await.unwrap().len(), 2 << 20);
        assert_eq!(memory.taken_bytes(), (0, 7 << 20));
        drop(declared);
        for body in [chunked(4, 1 << 20), Body::from(vec![0; (3 << 20) + 1])] {
            assert_eq!(incoming(body).gather(limit_bytes, 0, &memory).await, Err(Broken::TooLarge { limit_bytes }));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_stands_still_does_not_keep_the_memory_from_others() {
        let memory = Memory::new(Default::default());
        let limit_bytes = 96 << 20;
        let mut first = incoming(stalled(vec![Bytes::from(vec![1; 2 << 20])]));
        let mut second = incoming(chunked(2, 1 << 20));
        let began = Instant::now();
        let first = async {
            let gathered = first.gather(limit_bytes, 0, &memory).await;
            drop(first);
            gathered
        };
        let second = async {
            sleep(Duration::from_secs(1)).await;
            second.gather(limit_bytes, 0, &memory).await
        };
        let (first, second) = tokio::join!(first, second);
        assert_eq!(first, Err(Broken::GaveWay));
        assert_eq!(second.map(|data| data.len()), Ok(2 << 20));
        assert!(began.elapsed() < STALL_MAX / 2);
    }

    #[tokio::test]
    async fn a_client_that_waits_to_be_told_is_not_told_for_nothing() {
        let headers: HeaderMap = [(header::EXPECT, HeaderValue::from_static("100-Continue"))].into_iter().collect();
        // Whoever looks at such a body asks for it; this one would never end.
        let never = Body::new(StreamBody::new(stream::pending::<Result<http_body::Frame<Bytes>, std::io::Error>>()));
        let incoming = Incoming::new(&headers, never, Duration::MAX);
        assert!(incoming.waits());
        incoming.discard().await;
    }
}
