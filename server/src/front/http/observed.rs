//! Every request over HTTP is counted, and logged where that is configured, whatever it is and however it ends.

use std::net::SocketAddr;

use axum::body::Body;
use bytes::Bytes;
use http::{Method, Request, Response, Version, header};
use http_body::Body as _;

use super::Front;
use crate::{
    front::{
        gate::Counted,
        observe::http_body::{Metered, Recorded, answered},
    },
    log::access::Resource,
    metrics::labels::{Handler, Verb},
};

impl Front {
    /// Answers one request of this client, if it is known which.
    pub async fn observed<B>(&self, request: Request<B>, peer: Option<SocketAddr>) -> Response<Recorded<Counted<Body>>>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<axum::BoxError>,
    {
        let path = request.uri().path();
        let what = (Verb::of(request.method()), handler(path));
        let record = self.observer.request(what.0, what.1, peer, request.headers());
        if let Some(details) = record.details() {
            details.set_resource(|| Resource::name(path.as_bytes()));
        }
        let (bodiless, version) = (request.method() == Method::HEAD, request.version());
        let request = request.map(|body| Body::new(Metered::new(&record, body)));
        let answer = self.answer(request, what, record.details()).await;
        let answer = if bodiless && version == Version::HTTP_2 { without_body(answer) } else { answer };
        answered(record, answer, bodiless)
    }
}

/// An answer to HEAD. Over HTTP/1.1 the library leaves the body out; over HTTP/2 it would send it, which ends the stream with an error.
fn without_body(mut answer: Response<Counted<Body>>) -> Response<Counted<Body>> {
    if let Some(bytes) = answer.body().size_hint().exact() {
        answer.headers_mut().entry(header::CONTENT_LENGTH).or_insert_with(|| bytes.into());
    }
    answer.map(Counted::emptied)
}

/// Which part of the front-end a path is for, whether it is well-formed or not: the first segment that has a meaning counts.
fn handler(path: &str) -> Handler {
    match path {
        "/healthz" => return Handler::Healthz,
        "/readyz" => return Handler::Readyz,
        "/status" => return Handler::Status,
        "/metrics" => return Handler::Metrics,
        _ => {}
    }
    let known = path.split('/').skip(1).find_map(|segment| match segment {
        "cas" => Some(Handler::Cas),
        "ac" => Some(Handler::Ac),
        "kv" => Some(Handler::Kv),
        _ => None,
    });
    known.unwrap_or(Handler::Other)
}

#[cfg(test)]
mod tests {
    use super::{super::path::Target, *};

    #[test]
    fn well_formed_paths_belong_where_they_are_answered() {
        let hash = "a".repeat(64);
        for path in [
            format!("/cas/{hash}"),
            format!("/a/b/ac/{hash}"),
            format!("/kv/cas/{hash}"),
            "/kv".into(),
            "/a/kv/x//y".into(),
            "/status".into(),
            "/metrics".into(),
            "/healthz".into(),
            "/readyz".into(),
        ] {
            let expected = match Target::parse(&path).unwrap() {
                Target::Alive => Handler::Healthz,
                Target::Ready => Handler::Readyz,
                Target::Status => Handler::Status,
                Target::Metrics => Handler::Metrics,
                Target::Blob { .. } => Handler::Cas,
                Target::Action { .. } => Handler::Ac,
                Target::Entry { .. } => Handler::Kv,
            };
            assert_eq!(handler(&path), expected, "{path}");
        }
        for path in ["", "*", "/", "/nothing", "/status/x", "cas"] {
            assert_eq!(handler(path), Handler::Other, "{path}");
        }
    }
}
