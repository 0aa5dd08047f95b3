//! HTTP requests with paths, headers and bodies that are right, nearly right or neither.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
};

use axum::body::Body;
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Method, Request, StatusCode, header};

use super::{known::Known, source::Source, world::World};

/// Requests of one input at most.
const REQUESTS_MAX: usize = 16;
const METHODS: [&str; 10] = ["PUT", "GET", "HEAD", "DELETE", "PROPFIND", "MKCOL", "POST", "OPTIONS", "PATCH", "FOO"];
const HEADERS: [&str; 12] = [
    "content-length",
    "content-type",
    "content-encoding",
    "x-digest-sizebytes",
    "range",
    "if-none-match",
    "if-match",
    "accept",
    "accept-encoding",
    "depth",
    "if-range",
    "expect",
];
const VALUES: [&str; 20] = [
    "zstd",
    "application/json",
    "bytes=0-",
    "bytes=5-3",
    "bytes=-10",
    "bytes=0-1,5-9",
    "bytes=18446744073709551615-",
    "*",
    "\"x\"",
    "W/\"x\"",
    "gzip;q=0, zstd;q=1.000",
    "identity;q=0",
    "1",
    "0",
    "-1",
    "infinity",
    "",
    "application/json;q=0.1, */*",
    "99999999999999999999",
    "100-continue",
];

pub(super) fn check(input: &[u8]) {
    World::play(async |world| {
        let mut source = Source::new(input);
        for _ in 0..REQUESTS_MAX {
            if source.is_empty() {
                return;
            }
            request(world, &mut source).await;
        }
    });
}

async fn request(world: &World, source: &mut Source<'_>) {
    let known = Known::all();
    let method: Method = source.one_of(&METHODS).parse().expect("a method");
    let path = path(known, source);
    let mut request = Request::builder().method(&method).uri(&path);
    for _ in 0..source.below(4) {
        let name = *source.one_of(&HEADERS);
        let value = match source.below(6) {
            4 => (source.number() as i64).to_string(),
            5 => format!("\"{}\"", known.digest(source).hash_hex()),
            _ => (*source.one_of(&VALUES)).to_owned(),
        };
        request = request.header(name, value);
    }
    let data = known.data(source);
    let end = source.rarely(16).then(|| Err(io::Error::from(io::ErrorKind::ConnectionReset)));
    let body = Body::from_stream(stream::iter([Ok(data)].into_iter().chain(end)).boxed());
    // What is no path at all does not get as far as the front-end.
    let Ok(request) = request.body(body) else { return };
    let response = World::ends(&path, world.http.answer(request)).await;
    let status = response.status();
    assert!(status != StatusCode::INTERNAL_SERVER_ERROR, "{method} {path}: {status}");
    let declared = response.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let mut body = pin!(response.into_body());
    let sent = World::ends(&path, collect(body.as_mut())).await;
    if let (Some(declared), true) = (declared, method != Method::HEAD && status != StatusCode::NOT_MODIFIED) {
        assert_eq!(sent.len(), declared, "{method} {path}: {status}");
    }
}

async fn collect<B>(mut body: Pin<&mut B>) -> Vec<u8>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let mut all = Vec::new();
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        if let Ok(data) = frame.expect("an answer does not break").into_data() {
            all.extend_from_slice(&data);
        }
    }
    all
}

fn path(known: &Known, source: &mut Source<'_>) -> String {
    let instance = match source.below(3) {
        0 => String::new(),
        _ => format!("/{}", known.instance(source)),
    };
    let kind = source.one_of(&["cas", "ac", "kv", "CAS", "healthz", "readyz", "status", "metrics", ""]);
    let name = match source.below(6) {
        4 => known.word(source),
        5 => known.hash(source),
        _ => known.digest(source).hash_hex(),
    };
    format!("{instance}/{kind}/{name}")
}

/// Every method on every kind of path.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let each = |kind: u8, headers: u8| {
        (0..METHODS.len() as u8).flat_map(move |method| {
            let mut input = vec![method, 0, kind, 0, 0, 0, headers];
            input.extend((0..u8::from(headers > 0) * 3).flat_map(|n| [n * 3, n, n * 5]));
            input.extend([0, 0, 0]);
            input
        })
    };
    vec![Vec::new(), each(0, 0).collect(), each(1, 0).collect(), each(2, 0).collect(), each(0, 3).collect(), each(1, 2).collect()]
}
