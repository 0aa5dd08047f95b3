//! The gate with a guard, for both protocols.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicUsize, Ordering},
};

use axum::body::Body as Bytes;
use blockstore_proto::rpc;
use http::{StatusCode, header};
use prost::Message;
use tokio::sync::watch;

use super::*;
use crate::{
    auth::{
        Rights,
        tests::{Guarded, basic},
    },
    front::http::{Front, Limits},
};

fn gate(guarded: &Guarded, phase: Phase) -> Gate {
    // Whoever looks at the phase does not mind that nobody is left to change it.
    Gate::new(watch::channel(phase).1).guarded(Some(guarded.guard.clone()))
}

fn request(method: &str, path: &str, headers: HeaderMap) -> Request<Bytes> {
    let mut request = Request::builder().method(method).uri(path).body(Bytes::empty()).unwrap();
    *request.headers_mut() = headers;
    request
}

/// Calls through the gate, in the order of the calls; for each its status, and the rights with which it got further, if it did.
async fn calls(gate: &Gate, calls: &[(&str, HeaderMap)]) -> Vec<(Status, Option<Rights>)> {
    let called = Arc::new(AtomicUsize::new(0));
    let seen = called.clone();
    let service = tower::service_fn(move |request: Request<Bytes>| {
        seen.fetch_add(1, Ordering::Relaxed);
        let mut response = Response::new(Bytes::empty());
        if let Some(rights) = request.extensions().get::<Rights>() {
            response.extensions_mut().insert(*rights);
        }
        async move { Ok::<_, Infallible>(response) }
    });
    let mut service = gate.layer(service);
    let mut all = Vec::new();
    for (path, headers) in calls {
        let before = called.load(Ordering::Relaxed);
        let answer = service.call(request("POST", path, headers.clone())).await.unwrap();
        let status = Status::from_header_map(answer.headers()).unwrap_or_else(|| Status::ok(""));
        let rights = answer.extensions().get().copied();
        assert_eq!(called.load(Ordering::Relaxed) - before, usize::from(status.code() == Code::Ok), "{path}: {status:?}");
        all.push((status, rights));
    }
    all
}

const WRITE: &str = "/google.bytestream.ByteStream/Write";
const READ: &str = "/google.bytestream.ByteStream/Read";
const HEALTH: &str = "/grpc.health.v1.Health/Check";

#[tokio::test]
async fn calls_get_further_with_the_rights_of_their_callers_or_not_at_all() {
    let guarded = Guarded::new(Rights::READ);
    let gate = gate(&guarded, Phase::Serving);
    let (alice, wrong, nobody) = (basic("alice", "alice-password"), basic("alice", "x"), HeaderMap::new());
    let asked = [
        // Not remembered, then remembered.
        (WRITE, alice.clone(), Code::Ok, Some(Rights::ALL)),
        (WRITE, alice, Code::Ok, Some(Rights::ALL)),
        (READ, wrong.clone(), Code::Unauthenticated, None),
        (READ, wrong.clone(), Code::Unauthenticated, None),
        (READ, nobody.clone(), Code::Ok, Some(Rights::READ)),
        (WRITE, nobody.clone(), Code::Unauthenticated, None),
        ("/google.bytestream.ByteStream/read", nobody.clone(), Code::Unauthenticated, None),
        ("/grpc.health.v1.Health/Other", nobody.clone(), Code::Unauthenticated, None),
        (HEALTH, nobody, Code::Ok, None),
        (HEALTH, wrong, Code::Ok, None),
    ];
    let answers = calls(&gate, &asked.clone().map(|(path, headers, ..)| (path, headers))).await;
    for ((path, _, code, rights), (status, seen)) in asked.into_iter().zip(answers) {
        assert_eq!((status.code(), seen), (code, rights), "{path}");
    }
    assert_eq!(gate.running(), 0);
}

#[tokio::test]
async fn a_drain_comes_before_credentials_where_it_turns_away() {
    let guarded = Guarded::new(Rights::NONE);
    let gate = gate(&guarded, Phase::Draining);
    let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let asked = [READ, reflection, HEALTH].map(|path| (path, HeaderMap::new()));
    let codes: Vec<_> = calls(&gate, &asked).await.into_iter().map(|(status, _)| status.code()).collect();
    assert_eq!(codes, [Code::Unavailable, Code::Unauthenticated, Code::Ok]);
}

#[tokio::test(start_paused = true)]
async fn who_is_not_looked_at_is_told_to_come_back() {
    let guarded = Guarded::new(Rights::NONE);
    let gate = gate(&guarded, Phase::Serving);
    let turns = guarded.take_turns();
    let alice = basic("alice", "alice-password");
    let (status, _) = calls(&gate, &[(READ, alice.clone())]).await.remove(0);
    let detail = rpc::Status::decode(status.details()).unwrap();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(detail.details[0].type_url.ends_with("/google.rpc.RetryInfo"), "{detail:?}");

    let front = Front::new(watch::channel(Phase::Serving).1, gate, Limits::default());
    let answer = front.observed(request("GET", "/status", alice.clone()), None).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers().contains_key(header::RETRY_AFTER) && !answer.headers().contains_key(header::WWW_AUTHENTICATE));
    drop(turns);
    assert_eq!(front.observed(request("GET", "/status", alice), None).await.status(), StatusCode::OK);
}

#[test]
fn every_refusal_has_its_code() {
    for (why, code) in [
        (Why::Missing, Code::Unauthenticated),
        (Why::Wrong, Code::Unauthenticated),
        (Why::Forbidden, Code::PermissionDenied),
        (Why::Busy, Code::Unavailable),
    ] {
        assert_eq!(refused(&Refusal { why, user: None }).code(), code, "{why:?}");
    }
}
