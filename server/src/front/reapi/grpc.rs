//! gRPC over HTTP bodies: messages in, messages out, one copy fewer than a general codec.
//!
//! Always true here: memory for a message is only taken as its bytes arrive, and large messages together stay within the
//! budget; every answer ends with a `grpc-status`; a wrong frame is an error of the call, never a panic.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::Router;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::stream::BoxStream;
use http::{HeaderMap, HeaderValue, header};
use http_body::{Body, Frame};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use super::pieces::Pieces;
use crate::{
    auth::Rights,
    front::observe::Details,
    log::access::Resource,
    metrics::{
        Metrics,
        labels::{BlobOutcome, Method, Protocol},
    },
};

/// A compression flag and a length.
const PREFIX_BYTES: usize = 5;
/// Messages up to this size do not count against the budget.
const UNBUDGETED_BYTES_MAX: usize = 64 << 10;
/// What is set aside for a message before its bytes arrive, at most.
const RESERVED_BYTES_MAX: usize = 1 << 20;
/// A message that is kept in pieces has so many, or as many as fit into it if they are that long.
const PIECES_MAX: usize = 8;
const PIECE_BYTES_MIN: usize = 8 << 10;
/// A message that takes from the budget must not stand still for longer, nor a stream that does.
pub(super) const STALL_MAX: Duration = Duration::from_secs(60);

/// Bounds the bytes of requests that are in memory and not yet with the store.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    room: Arc<Semaphore>,
    bytes_max: u32,
    metrics: Arc<Metrics>,
}

impl Budget {
    pub(super) fn new(bytes_max: u32, metrics: Arc<Metrics>) -> Self {
        Self { room: Arc::new(Semaphore::new(bytes_max as usize)), bytes_max, metrics }
    }

    /// Waits for room. What it gives back counts until it is dropped.
    pub(super) async fn take(&self, bytes: usize) -> Result<Option<OwnedSemaphorePermit>, Status> {
        if bytes <= UNBUDGETED_BYTES_MAX {
            return Ok(None);
        }
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.bytes_max);
        if let Ok(permit) = self.room.clone().try_acquire_many_owned(bytes) {
            return Ok(Some(permit));
        }
        self.metrics.budget_waited(Protocol::Grpc);
        let permit = self.room.clone().acquire_many_owned(bytes).await;
        permit.map(Some).map_err(|_| Status::unavailable("server is shutting down"))
    }
}

/// A message that was received. It counts against the budget until it is dropped.
pub(super) struct Received<M> {
    pub(super) message: M,
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// Counts the messages and bytes of a call.
#[derive(Clone)]
struct Meter {
    metrics: Arc<Metrics>,
    method: Method,
    details: Option<Arc<Details>>,
}

/// The messages of a request.
pub(super) struct Messages {
    body: axum::body::Body,
    meter: Meter,
    /// What arrived and was not used.
    arrived: Pieces,
    message_bytes_max: usize,
    budget: Budget,
}

impl Meter {
    fn received(&self, bytes: usize) {
        self.metrics.received_bytes(Protocol::Grpc, self.method.kind(), bytes);
        if let Some(details) = &self.details {
            details.add_received_bytes(bytes);
        }
    }
}

impl Messages {
    fn new(body: axum::body::Body, meter: Meter, message_bytes_max: usize, budget: Budget) -> Self {
        Self { body, meter, arrived: Pieces::default(), message_bytes_max, budget }
    }

    /// The next message, or `None` where the client has closed its side. Cancelled in the middle, the rest is of no use.
    pub(super) async fn next(&mut self) -> Result<Option<Received<Bytes>>, Status> {
        let Some((len, permit)) = self.begin().await? else { return Ok(None) };
        let message = self.in_time(permit.is_some(), async |messages| messages.gather(len, Vec::new()).await).await?;
        Ok(Some(Received { message, permit }))
    }

    /// The same, in the pieces in which it arrives.
    pub(super) async fn next_in_pieces(&mut self) -> Result<Option<Received<Pieces>>, Status> {
        let Some((len, permit)) = self.begin().await? else { return Ok(None) };
        let message = self.in_time(permit.is_some(), async |messages| messages.gather_pieces(len).await).await?;
        Ok(Some(Received { message, permit }))
    }

    /// The next message's length, and its share of the budget.
    async fn begin(&mut self) -> Result<Option<(usize, Option<OwnedSemaphorePermit>)>, Status> {
        if !self.fill(PREFIX_BYTES).await? {
            return match self.arrived.remaining() {
                0 => Ok(None),
                _ => Err(cut()),
            };
        }
        let compressed = self.arrived.get_u8() != 0;
        let len = usize::try_from(self.arrived.get_u32()).unwrap_or(usize::MAX);
        if compressed {
            return Err(Status::unimplemented("compressed gRPC messages are not supported"));
        }
        if len > self.message_bytes_max {
            return Err(Status::resource_exhausted(format!(
                "message of {len} bytes is larger than the {} that this method accepts",
                self.message_bytes_max
            )));
        }
        Ok(Some((len, self.budget.take(len).await?)))
    }

    /// Counts a message that has arrived. One that takes from the budget must do so in time.
    async fn in_time<M>(&mut self, budgeted: bool, gather: impl AsyncFnOnce(&mut Self) -> Result<M, Status>) -> Result<M, Status> {
        let message = match budgeted {
            true => tokio::time::timeout(STALL_MAX, gather(self)).await,
            false => Ok(gather(self).await),
        };
        let message = message.map_err(|_| Status::deadline_exceeded("message did not arrive in time"))??;
        self.meter.metrics.message_received(self.meter.method);
        Ok(message)
    }

    /// The only message of a request.
    pub(super) async fn only(&mut self) -> Result<Received<Bytes>, Status> {
        self.next().await?.ok_or_else(|| Status::invalid_argument("request has no message"))
    }

    /// Reads until that many bytes are there; false if the body ends before.
    async fn fill(&mut self, bytes: usize) -> Result<bool, Status> {
        while self.arrived.remaining() < bytes {
            match self.frame().await? {
                Some(piece) => self.arrived.push(piece),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The next data of the body.
    async fn frame(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            let frame = poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await;
            match frame.transpose().map_err(|_| cut())? {
                None => return Ok(None),
                Some(frame) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => {
                        self.meter.received(data.len());
                        return Ok(Some(data));
                    }
                    // Trailers of a request mean nothing to us.
                    Err(_) => {}
                },
            }
        }
    }

    /// The next piece of a message, of at most that many bytes.
    async fn piece(&mut self, bytes_max: usize) -> Result<Bytes, Status> {
        if !self.fill(1).await? {
            return Err(cut());
        }
        Ok(self.arrived.take_piece(bytes_max))
    }

    /// A message of that length of which a part is here. It is copied together as it arrives, unless one piece has it whole.
    async fn gather(&mut self, len: usize, mut all: Vec<u8>) -> Result<Bytes, Status> {
        if all.is_empty() && len > 0 {
            self.fill(1).await?;
            if self.arrived.first_bytes() >= len {
                return Ok(self.arrived.take_piece(len));
            }
            all.reserve_exact(len.min(RESERVED_BYTES_MAX));
        }
        while all.len() < len {
            let piece = self.piece(len - all.len()).await?;
            if all.capacity() < all.len() + piece.len() {
                // Over a mebibyte have arrived: the length was meant.
                all.reserve_exact(len - all.len());
            }
            all.extend_from_slice(&piece);
        }
        Ok(all.into())
    }

    /// A message of that length in pieces. Of one that comes in crumbs, which keep larger buffers alive, they are copied together.
    async fn gather_pieces(&mut self, len: usize) -> Result<Pieces, Status> {
        let pieces_max = PIECES_MAX.max(len / PIECE_BYTES_MIN);
        let mut message = Pieces::default();
        while message.remaining() < len {
            message.push(self.piece(len - message.remaining()).await?);
            if message.count() > pieces_max {
                let mut all = Vec::with_capacity(len.min(RESERVED_BYTES_MAX).max(message.remaining()));
                Vec::from(message).iter().for_each(|piece: &Bytes| all.extend_from_slice(piece));
                return self.gather(len, all).await.map(Pieces::from);
            }
        }
        Ok(message)
    }
}

/// The client went away, or its side ended in the middle of a message.
fn cut() -> Status {
    Status::cancelled("request was cut off")
}

/// A message on its way out: up to two pieces, so that the payload need not be copied behind its head.
pub(super) struct Outgoing {
    head: Bytes,
    payload: Bytes,
}

impl Outgoing {
    /// A message with its prefix in one piece.
    pub(super) fn message(message: &impl Message) -> Self {
        let len = message.encoded_len();
        let mut head = BytesMut::with_capacity(PREFIX_BYTES + len);
        put_prefix(&mut head, len);
        message.encode_raw(&mut head);
        Self { head: head.freeze(), payload: Bytes::new() }
    }

    /// A message of that length, which `write` encodes.
    pub(super) fn written(len: usize, write: impl FnOnce(&mut BytesMut)) -> Self {
        let mut head = BytesMut::with_capacity(PREFIX_BYTES + len);
        put_prefix(&mut head, len);
        write(&mut head);
        debug_assert_eq!(head.len(), PREFIX_BYTES + len);
        Self { head: head.freeze(), payload: Bytes::new() }
    }

    /// The message without its prefix.
    #[cfg(test)]
    pub(super) fn into_message(self) -> Bytes {
        let mut message = [self.head, self.payload].concat();
        Bytes::from(message.split_off(PREFIX_BYTES))
    }

    /// A message that is encoded already.
    pub(super) fn encoded(message: Bytes) -> Self {
        let mut head = BytesMut::with_capacity(PREFIX_BYTES);
        put_prefix(&mut head, message.len());
        Self { head: head.freeze(), payload: message }
    }

    /// A message with a single `bytes` field, whose payload stays where it is.
    pub(super) fn bytes_field(field: u32, payload: Bytes) -> Self {
        let len = prost::encoding::key_len(field) + prost::length_delimiter_len(payload.len()) + payload.len();
        let mut head = BytesMut::with_capacity(PREFIX_BYTES + len - payload.len());
        put_prefix(&mut head, len);
        prost::encoding::encode_key(field, prost::encoding::WireType::LengthDelimited, &mut head);
        prost::encoding::encode_varint(payload.len() as u64, &mut head);
        Self { head: head.freeze(), payload }
    }
}

fn put_prefix(buf: &mut BytesMut, len: usize) {
    // Every caller bounds its messages far below 4 GiB.
    let len = u32::try_from(len).expect("an answer is bounded");
    buf.put_u8(0);
    buf.put_u32(len);
}

/// The body of an answer: messages, then the status as trailers.
pub(super) struct Answer {
    /// Ready to be sent, in order.
    ready: [Bytes; 2],
    source: Option<BoxStream<'static, Result<Outgoing, Status>>>,
    ended: bool,
    /// Counts messages, once the answer is on its way.
    meter: Option<(Arc<Metrics>, Method)>,
}

impl Answer {
    /// One message and OK.
    pub(super) fn one(message: Outgoing) -> Self {
        Self { ready: [message.head, message.payload], source: None, ended: false, meter: None }
    }

    /// Messages until the stream ends, OK or with its error.
    pub(super) fn stream(source: BoxStream<'static, Result<Outgoing, Status>>) -> Self {
        Self { ready: Default::default(), source: Some(source), ended: false, meter: None }
    }

    /// Has messages counted, also the one that is there.
    fn metered(mut self, metrics: Arc<Metrics>, method: Method) -> Self {
        if self.source.is_none() {
            metrics.message_sent(method);
        }
        self.meter = Some((metrics, method));
        self
    }

    fn end(&mut self, status: &Status) -> Frame<Bytes> {
        self.ended = true;
        self.source = None;
        let mut trailers = HeaderMap::with_capacity(3);
        if status.add_header(&mut trailers).is_err() {
            trailers.insert("grpc-status", HeaderValue::from_static("13"));
        }
        Frame::trailers(trailers)
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        loop {
            if let Some(ready) = this.ready.iter_mut().find(|ready| !ready.is_empty()) {
                return Poll::Ready(Some(Ok(Frame::data(std::mem::take(ready)))));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            let next = match &mut this.source {
                Some(source) => ready!(source.as_mut().poll_next(cx)),
                None => None,
            };
            match next {
                Some(Ok(message)) => {
                    if let Some((metrics, method)) = &this.meter {
                        metrics.message_sent(*method);
                    }
                    this.ready = [message.head, message.payload];
                }
                Some(Err(status)) => return Poll::Ready(Some(Ok(this.end(&status)))),
                None => return Poll::Ready(Some(Ok(this.end(&Status::ok(""))))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.ready.iter().all(Bytes::is_empty)
    }
}

/// A call: its headers and its messages.
pub(super) struct Call {
    pub(super) headers: HeaderMap,
    extensions: http::Extensions,
    pub(super) messages: Messages,
}

impl Call {
    /// What the caller may do. Who gets this far may do what was called.
    pub(super) fn rights(&self) -> Rights {
        // Nobody says so where everybody may do everything.
        self.extensions.get().copied().unwrap_or(Rights::ALL)
    }

    /// Says what the call is about, for the logs.
    pub(super) fn about(&self, resource: Resource) {
        if let Some(details) = &self.messages.meter.details {
            details.set_resource(|| resource);
        }
    }

    /// Counts blobs of a call that has many.
    pub(super) fn blobs(&self, outcome: BlobOutcome, blobs: usize) {
        self.messages.meter.metrics.blobs(self.messages.meter.method, outcome, blobs);
    }
}

/// Adds a method to a router. `path` is `/package.Service/Method`.
pub(super) fn method<S, F, Fut>(router: Router, state: &Arc<S>, budget: &Budget, path: &str, message_bytes_max: usize, handler: F) -> Router
where
    S: Send + Sync + 'static,
    F: Fn(Arc<S>, Call) -> Fut + Copy + Send + Sync + 'static,
    Fut: Future<Output = Result<Answer, Status>> + Send + 'static,
{
    let (state, budget, method) = (state.clone(), budget.clone(), Method::of(path));
    router.route_service(
        path,
        tower::service_fn(move |request: http::Request<axum::body::Body>| {
            let (head, body) = request.into_parts();
            let metrics = budget.metrics.clone();
            let meter = Meter { metrics: metrics.clone(), method, details: head.extensions.get::<Arc<Details>>().cloned() };
            let messages = Messages::new(body, meter, message_bytes_max, budget.clone());
            let answer = handler(state.clone(), Call { headers: head.headers, extensions: head.extensions, messages });
            async move {
                Ok::<_, Infallible>(match answer.await {
                    Ok(answer) => {
                        let mut response = http::Response::new(tonic::body::Body::new(answer.metered(metrics, method)));
                        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                        response
                    }
                    Err(status) => status.into_http(),
                })
            }
        }),
    )
}

/// Decodes a message.
pub(super) fn decode<M: Message + Default>(bytes: Bytes) -> Result<M, Status> {
    M::decode(bytes).map_err(|error| Status::invalid_argument(format!("malformed message: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_for_room_is_counted() {
        let metrics = Arc::new(Metrics::default());
        let budget = Budget::new(100_000, metrics.clone());
        let waited = |n: u32| {
            let line = format!("blockstore_budget_waits_total{{protocol=\"grpc\"}} {n}\n");
            metrics.page(0).unwrap().contains(&line)
        };
        let held = budget.take(70_000).await.unwrap();
        assert!(held.is_some() && waited(0));
        // What is small does not count.
        assert!(budget.take(UNBUDGETED_BYTES_MAX).await.unwrap().is_none() && waited(0));
        let mut second = std::pin::pin!(budget.take(70_000));
        assert!(futures::poll!(second.as_mut()).is_pending());
        assert!(waited(1));
        drop(held);
        assert!(second.await.unwrap().is_some() && waited(1));
    }
}
