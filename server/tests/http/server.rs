//! A daemon for a test, and an HTTP client to it.

use blockstore_tests::daemon::{Daemon, Spec};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Version};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use std::{convert::Infallible, net::SocketAddr};
use tempfile::TempDir;

pub(crate) type Body = BoxBody<Bytes, Infallible>;

/// A running daemon over a store of its own.
pub(crate) struct Server {
    pub(crate) daemon: Daemon,
    pub(crate) http: Http,
    pub(crate) dir: TempDir,
}

pub(crate) const STORE: &str = "256MiB";

/// How to start the daemon over the store in this directory.
pub(crate) fn spec(dir: &TempDir) -> Spec {
    Spec::new(env!("CARGO_BIN_EXE_blockstored")).dir(dir.path(), STORE)
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::with("")
    }

    /// With more arguments.
    pub(crate) fn with(arguments: &str) -> Self {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let daemon = spec(&dir).args(arguments).start();
        let http = Http::new(&daemon, false);
        Self { daemon, http, dir }
    }
}

/// An answer, all of it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
    /// `None` if the connection was cut before the end.
    pub(crate) body: Option<Bytes>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    #[track_caller]
    pub(crate) fn assert_is(&self, status: u16, body: &[u8]) {
        assert_eq!(self.status, status, "{self:?}");
        assert!(
            self.body.as_deref() == Some(body),
            "{status}: {} bytes instead of {}",
            self.body.as_ref().map_or(0, Bytes::len),
            body.len()
        );
    }
}

/// A client.
#[derive(Clone)]
pub(crate) struct Http {
    client: Client<HttpConnector, Body>,
    base: String,
}

impl Http {
    pub(crate) fn new(daemon: &Daemon, http2: bool) -> Self {
        Self::at(daemon.http, http2)
    }

    pub(crate) fn at(address: SocketAddr, http2: bool) -> Self {
        let client = Client::builder(TokioExecutor::new()).http2_only(http2).build_http();
        Self { client, base: format!("http://{address}") }
    }

    pub(crate) async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Body) -> Answer {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, body) = self.client.request(request.body(body).unwrap()).await.unwrap().into_parts();
        let body = body.collect().await.ok().map(|body| body.to_bytes());
        Answer { status: head.status, version: head.version, headers: head.headers, body }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], whole("")).await
    }

    pub(crate) async fn get_with(&self, path: &str, name: &str, value: &str) -> Answer {
        self.send("GET", path, &[(name, value)], whole("")).await
    }

    pub(crate) async fn head(&self, path: &str) -> Answer {
        self.send("HEAD", path, &[], whole("")).await
    }

    pub(crate) async fn put(&self, path: &str, body: impl Into<Bytes>) -> StatusCode {
        self.send("PUT", path, &[], whole(body)).await.status
    }
}

/// A body that is sent with its length.
pub(crate) fn whole(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).boxed()
}

/// A body that is sent in chunks of unknown length together.
pub(crate) fn chunked(pieces: Vec<Bytes>) -> Body {
    let frames = pieces.into_iter().map(|piece| Ok::<_, Infallible>(http_body::Frame::data(piece)));
    BodyExt::boxed(http_body_util::StreamBody::new(futures::stream::iter(frames)))
}
