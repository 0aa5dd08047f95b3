//! Calls over HTTP/1.1: connections that are kept alive, and what must come back.
//!
//! Always true here: a connection has one request at a time and goes back to the idle ones only after all of the answer was read;
//! nothing that was sent is sent again; there are never more connections than calls in flight.

use crate::{data::Series, options::ClientOptions};
use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Either, Empty, Full, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{net::TcpStream, time::timeout};

/// An answer of other than a blob is cut off after so many bytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;
const CONNECT_MAX: Duration = Duration::from_secs(10);

type Pieces = Pin<Box<dyn futures::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>;
type Body = Either<Full<Bytes>, Either<StreamBody<Pieces>, Empty<Bytes>>>;

/// A server, and the connections that are idle.
#[derive(Clone, Debug)]
pub(crate) struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    address: String,
    /// What comes before `/cas` and `/ac`.
    prefix: String,
    verify: bool,
    idle: Mutex<Vec<SendRequest<Body>>>,
}

/// What is asked for under a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Blob,
    Action,
}

impl Pool {
    /// Opens a connection for each call that may be in flight.
    pub(crate) async fn connect(address: &str, options: &ClientOptions) -> Result<Self, String> {
        let prefix = if options.instance.is_empty() { String::new() } else { format!("/{}", options.instance) };
        let pool = Self(Arc::new(Inner { address: address.to_owned(), prefix, verify: !options.no_verify, idle: Mutex::new(Vec::new()) }));
        for _ in 0..options.in_flight {
            let connection = pool.open().await?;
            pool.give_back(connection);
        }
        Ok(pool)
    }

    async fn open(&self) -> Result<SendRequest<Body>, String> {
        let address = &self.0.address;
        let failed = |error: String| format!("cannot connect to {address}: {error}");
        let stream = timeout(CONNECT_MAX, TcpStream::connect(address)).await;
        let stream = stream.map_err(|_| failed("no answer".into()))?.map_err(|error| failed(error.to_string()))?;
        stream.set_nodelay(true).map_err(|error| failed(error.to_string()))?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| failed(error.to_string()))?;
        // It ends with its sender; a failure shows in the request that it meets.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn give_back(&self, connection: SendRequest<Body>) {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }

    /// An idle connection that is still open, or a new one.
    async fn connection(&self) -> Result<SendRequest<Body>, String> {
        loop {
            let idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match idle {
                None => return self.open().await,
                Some(mut connection) => {
                    if connection.ready().await.is_ok() {
                        return Ok(connection);
                    }
                }
            }
        }
    }

    /// Sends a request; the connection is to be given back once the answer has been read.
    async fn send(
        &self,
        method: Method,
        entry: Entry,
        hash: &str,
        body: Body,
        len: Option<usize>,
    ) -> Result<(SendRequest<Body>, Response<Incoming>), String> {
        let place = if entry == Entry::Blob { "cas" } else { "ac" };
        let uri: Uri = format!("{}/{place}/{hash}", self.0.prefix).parse().map_err(|error| format!("--instance: {error}"))?;
        let mut request = Request::builder().method(method).uri(uri).header(header::HOST, &self.0.address);
        if let Some(len) = len {
            request = request.header(header::CONTENT_LENGTH, len);
        }
        let request = request.body(body).map_err(|error| format!("--http {}: {error}", self.0.address))?;
        let mut connection = self.connection().await?;
        let answer = connection.send_request(request).await.map_err(|error| format!("request failed: {error}"))?;
        Ok((connection, answer))
    }

    /// The rest of an answer that is no blob.
    async fn rest(&self, connection: SendRequest<Body>, answer: Response<Incoming>) -> Result<Bytes, String> {
        let body = http_body_util::Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let bytes = body.map_err(|error| format!("answer broke off: {error}"))?.to_bytes();
        self.give_back(connection);
        Ok(bytes)
    }

    async fn stored(&self, connection: SendRequest<Body>, answer: Response<Incoming>) -> Result<(), String> {
        let status = answer.status();
        let text = self.rest(connection, answer).await?;
        if status.is_success() { Ok(()) } else { Err(refused(status, &text)) }
    }

    /// Uploads a blob.
    pub(crate) async fn write(&self, series: &Series, blob: u64) -> Result<(), String> {
        let size_bytes = series.size_bytes();
        let pieces = series.clone().pieces(blob).map(|(_, piece)| Ok(Frame::data(piece)));
        let body: Body = match size_bytes {
            0 => Either::Right(Either::Right(Empty::new())),
            _ => Either::Right(Either::Left(StreamBody::new(Box::pin(stream::iter(pieces)) as Pieces))),
        };
        let (connection, answer) = self.send(Method::PUT, Entry::Blob, &series.digest(blob).hash, body, Some(size_bytes)).await?;
        self.stored(connection, answer).await
    }

    /// Reads a blob; whether it was there.
    pub(crate) async fn read(&self, series: &Series, blob: u64, hash: &str) -> Result<bool, String> {
        let (connection, answer) = self.send(Method::GET, Entry::Blob, hash, nothing(), None).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => {
                self.rest(connection, answer).await?;
                return Ok(false);
            }
            status => return Err(refused(status, &self.rest(connection, answer).await?)),
        }
        let mut body = answer.into_body();
        let mut read_bytes = 0;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|error| format!("answer broke off: {error}"))?.into_data() else { continue };
            if self.0.verify && !series.is_part(blob, read_bytes, &data) {
                return Err(format!("wrong bytes from {read_bytes} on"));
            }
            read_bytes += data.len();
        }
        if read_bytes != series.size_bytes() {
            return Err(format!("{read_bytes} bytes were read of {}", series.size_bytes()));
        }
        self.give_back(connection);
        Ok(true)
    }

    /// Whether a blob is there.
    pub(crate) async fn has(&self, hash: &str) -> Result<bool, String> {
        let (connection, answer) = self.send(Method::HEAD, Entry::Blob, hash, nothing(), None).await?;
        let status = answer.status();
        let text = self.rest(connection, answer).await?;
        match status {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            status => Err(refused(status, &text)),
        }
    }

    /// Stores an encoded action result.
    pub(crate) async fn update_action(&self, hash: &str, result: Bytes) -> Result<(), String> {
        let len = result.len();
        let (connection, answer) = self.send(Method::PUT, Entry::Action, hash, Either::Left(Full::new(result)), Some(len)).await?;
        self.stored(connection, answer).await
    }

    /// The encoded result of an action, if there is one.
    pub(crate) async fn action(&self, hash: &str) -> Result<Option<Bytes>, String> {
        let (connection, answer) = self.send(Method::GET, Entry::Action, hash, nothing(), None).await?;
        let status = answer.status();
        let bytes = self.rest(connection, answer).await?;
        match status {
            StatusCode::OK => Ok(Some(bytes)),
            StatusCode::NOT_FOUND => Ok(None),
            status => Err(refused(status, &bytes)),
        }
    }
}

fn nothing() -> Body {
    Either::Right(Either::Right(Empty::new()))
}

fn refused(status: StatusCode, text: &[u8]) -> String {
    format!("{status}: {}", String::from_utf8_lossy(&text[..text.len().min(200)]).trim())
}
