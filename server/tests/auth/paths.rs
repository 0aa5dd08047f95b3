//! Every path and every call: who may ask for it. The paths are enumerated from the labels of the metrics and the calls from the descriptors,
//! so that none can be added and forgotten here.

use crate::{
    server::{Http, Server, whole},
    users::{AS_ALICE, AS_BOB, AS_CAROL, AS_MALLORY, client, counted, get, page_when, put, start},
};
use blockstore_proto::{FILE_DESCRIPTOR_SET, reapi::ActionResult};
use blockstore_server::metrics::labels::{Handler, Label, Method, Verb};
use blockstore_tests::{
    blob::Blob,
    client::{Client, Found, action_digest},
};
use http::HeaderMap;
use prost::Message;
use prost_types::FileDescriptorSet;
use std::collections::{BTreeMap, BTreeSet};
use tonic::Code;
use tonic_reflection::pb::{
    v1::{self, server_reflection_client::ServerReflectionClient, server_reflection_request::MessageRequest},
    v1alpha,
};

const CHALLENGE: &str = "Basic realm=\"blockstore\"";
const HEALTH: &str = "grpc.health.v1.Health";
/// Neither of them is a user's: another password, no such user, another scheme, no base64, nothing.
const WRONG: [&str; 6] = ["Basic YWxpY2U6YnVpbGQtaXQ=", AS_MALLORY, "Bearer YWxpY2U6d29uZGVybGFuZA==", "Basic ?", "Basic", ""];

/// A path that the handler answers, and whether everybody may ask for it.
fn path_of(handler: Handler) -> (String, bool) {
    let hash = "a".repeat(64);
    match handler {
        Handler::Cas => (format!("/i/cas/{hash}"), false),
        Handler::Ac => (format!("/ac/{hash}"), false),
        Handler::Kv => ("/kv/name".into(), false),
        Handler::Status => ("/status".into(), false),
        Handler::Metrics => ("/metrics".into(), false),
        Handler::Healthz => ("/healthz".into(), true),
        Handler::Readyz => ("/readyz".into(), true),
        Handler::Other => ("/nothing".into(), false),
    }
}

/// Every path with every method, and whether everybody may ask for it.
fn requests() -> Vec<(String, &'static str, bool)> {
    let methods = Verb::ALL.iter().map(|verb| if *verb == Verb::Other { "POST" } else { verb.text() });
    let methods: Vec<_> = methods.chain(["OPTIONS", "BREW"]).collect();
    let paths = Handler::ALL.iter().map(|handler| path_of(*handler));
    let odd = [
        "/",
        "//",
        "//healthz",
        "/healthz/",
        "/HEALTHZ",
        "/healthz/../status",
        "/status/",
        "/status?healthz",
        "/%68ealthz",
        "/kv",
        "/cas/x",
    ];
    let paths: Vec<_> = paths.chain(odd.map(|path| (path.to_owned(), false))).collect();
    paths.iter().flat_map(|(path, open)| methods.iter().map(|method| (path.clone(), *method, *open))).collect()
}

/// Every call of every interface that is known, offered or not, and whether it is one of the health checks.
fn calls() -> Vec<(String, bool)> {
    let sets = [FILE_DESCRIPTOR_SET, v1::FILE_DESCRIPTOR_SET, v1alpha::FILE_DESCRIPTOR_SET];
    let files = sets.into_iter().flat_map(|set| FileDescriptorSet::decode(set).unwrap().file);
    let calls = files.flat_map(|file| {
        let package = file.package().to_owned();
        file.service.into_iter().flat_map(move |service| {
            let service_name = format!("{package}.{}", service.name());
            service.method.into_iter().map(move |method| (format!("/{service_name}/{}", method.name()), service_name == HEALTH))
        })
    });
    let calls: BTreeMap<_, _> = calls.collect();
    calls.into_iter().collect()
}

/// Sends a message without fields; what the head of the answer says that the call came to, if that was all.
async fn call(http2: &Http, path: &str, authorization: Option<&str>) -> Option<Code> {
    let mut headers = vec![("content-type", "application/grpc"), ("te", "trailers")];
    headers.extend(authorization.map(|value| ("authorization", value)));
    let answer = http2.send("POST", path, &headers, whole(&b"\0\0\0\0\0"[..])).await;
    assert_eq!(answer.status, 200, "{path}");
    code(&answer.headers)
}

fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|status| Code::from_bytes(status.as_bytes()))
}

#[tokio::test]
async fn over_http_nothing_but_health_is_open() {
    let server = start("");
    let http2 = Http::new(&server.daemon, true);
    for (path, method, open) in requests() {
        for http in [&server.http, &http2] {
            let answer = http.send(method, &path, &[], whole(if method == "HEAD" { "" } else { "body" })).await;
            let told = (answer.status.as_u16(), answer.header("www-authenticate"));
            match open {
                true => assert!(matches!(told, (200 | 405, None)), "{method} {path}: {told:?}"),
                false => assert_eq!(told, (401, Some(CHALLENGE)), "{method} {path}"),
            }
            let body = answer.body.as_ref().unwrap_or_else(|| panic!("{method} {path}: cut off: {answer:?}"));
            assert_eq!(body.is_empty(), method == "HEAD", "{method} {path}");
        }
        for wrong in WRONG.into_iter().filter(|_| !open) {
            let answer = server.http.send(method, &path, &[("authorization", wrong)], whole("body")).await;
            assert_eq!((answer.status.as_u16(), answer.header("www-authenticate")), (401, Some(CHALLENGE)), "{method} {path} {wrong:?}");
        }
        for user in [AS_ALICE, AS_CAROL, &AS_BOB.replace("Basic", "bASIC")] {
            let answer = server.http.send(method, &path, &[("authorization", user)], whole("body")).await;
            assert!(!matches!(answer.status.as_u16(), 401 | 403 | 500..), "{method} {path} {user}: {answer:?}");
        }
    }
    // What probes send means nothing.
    for wrong in WRONG {
        for path in ["/healthz", "/readyz"] {
            assert_eq!(get(&server, path, wrong).await.status, 200, "{path} {wrong:?}");
        }
    }
    let twice = [("authorization", AS_ALICE), ("authorization", AS_ALICE)];
    assert_eq!(server.http.send("GET", "/status", &twice, whole("")).await.status, 401);
}

#[tokio::test]
async fn over_grpc_nothing_but_health_is_open() {
    let server = start("");
    let http2 = Http::at(server.daemon.grpc, true);
    let calls = calls();
    let offered = Method::ALL.iter().filter(|method| **method != Method::Other);
    for path in offered.map(|method| format!("/{}/{}", method.service(), method.text())) {
        assert!(calls.iter().any(|(call, _)| *call == path), "{path} is not in {calls:?}");
    }
    let odd =
        ["/", "/x", "/grpc.health.v1.Health/Other", "/grpc.health.v1.Health/Check/", "//grpc.health.v1.Health/Check", "/grpc.reflection."];
    for path in calls.iter().filter(|(_, open)| !open).map(|(path, _)| path.as_str()).chain(odd) {
        assert_eq!(call(&http2, path, None).await, Some(Code::Unauthenticated), "{path}");
        for wrong in WRONG {
            assert_eq!(call(&http2, path, Some(wrong)).await, Some(Code::Unauthenticated), "{path} {wrong:?}");
        }
        let code = call(&http2, path, Some(AS_ALICE)).await;
        assert!(!matches!(code, Some(Code::Unauthenticated | Code::PermissionDenied | Code::Internal)), "{path}: {code:?}");
    }
    let open: Vec<_> = calls.iter().filter(|(_, open)| *open).map(|(path, _)| path.as_str()).collect();
    assert_eq!(open, ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"]);
    for client in [Client::connect(server.daemon.grpc).await, client(&server, AS_MALLORY).await] {
        assert_eq!(client.health().await.unwrap() as i32, 1);
        assert_eq!(client.watched_health().await.unwrap() as i32, 1);
    }
}

#[tokio::test]
async fn every_service_that_is_offered_is_among_those_calls() {
    let server = start("");
    let known: BTreeSet<_> = calls().into_iter().map(|(path, _)| path.split('/').nth(1).unwrap().to_owned()).collect();
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", server.daemon.grpc)).unwrap().connect().await.unwrap();
    let list = v1::ServerReflectionRequest { host: String::new(), message_request: Some(MessageRequest::ListServices(String::new())) };
    let mut request = tonic::Request::new(tokio_stream::iter([list]));
    request.metadata_mut().insert("authorization", AS_ALICE.parse().unwrap());
    let mut answers = ServerReflectionClient::new(channel).server_reflection_info(request).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let v1::server_reflection_response::MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let offered: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    assert!(offered.len() >= 5 && offered.iter().all(|name| known.contains(name)), "{offered:?} of {known:?}");
}

#[tokio::test]
async fn a_user_does_on_both_protocols_what_anybody_could_without_users() {
    let server = start("");
    let (alice, carol) = (client(&server, AS_ALICE).await, client(&server, AS_CAROL).await);
    let blob = Blob::new(1, 300_000);
    alice.put(blob).await.unwrap();
    assert_eq!(carol.check(blob).await.unwrap(), Found::Exact);
    assert!(get(&server, &format!("/cas/{}", blob.digest().hash), AS_BOB).await.body.unwrap() == blob.bytes());
    assert_eq!(put(&server, "/kv/x", AS_CAROL, "kept").await, 200);
    get(&server, "/kv/x", AS_BOB).await.assert_is(200, b"kept");
    carol.put_action(action_digest(1), ActionResult::default()).await.unwrap();
    assert!(alice.action(action_digest(1)).await.unwrap().is_some());
    assert!(update_enabled(&alice).await && update_enabled(&carol).await);
    assert_eq!(get(&server, "/status", AS_ALICE).await.status, 200);
}

async fn update_enabled(client: &Client) -> bool {
    let capabilities = client.capabilities().await.unwrap().cache_capabilities.unwrap();
    capabilities.action_cache_update_capabilities.unwrap().update_enabled
}

/// The calls that only read.
const READS: [&str; 11] = [
    "/build.bazel.remote.execution.v2.ActionCache/GetActionResult",
    "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities",
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs",
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs",
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/GetChunkMapping",
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/GetTree",
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/SplitBlob",
    "/google.bytestream.ByteStream/QueryWriteStatus",
    "/google.bytestream.ByteStream/Read",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

#[tokio::test]
async fn whom_nobody_knows_may_read_where_that_is_configured() {
    let server = start("--anonymous read");
    let (alice, nobody) = (client(&server, AS_ALICE).await, Client::connect(server.daemon.grpc).await);
    let http2 = Http::at(server.daemon.grpc, true);
    let mut reads = Vec::new();
    for (path, _) in calls().into_iter().filter(|(_, open)| !open) {
        if call(&http2, &path, None).await != Some(Code::Unauthenticated) {
            reads.push(path.clone());
        }
        for wrong in WRONG {
            assert_eq!(call(&http2, &path, Some(wrong)).await, Some(Code::Unauthenticated), "{path} {wrong:?}");
        }
    }
    assert_eq!(reads, READS);
    for (path, method, open) in requests() {
        let may = open || ["GET", "HEAD", "PROPFIND"].contains(&method);
        let answer = server.http.send(method, &path, &[], whole("")).await;
        assert_eq!((answer.status == 401, answer.header("www-authenticate").is_some()), (!may, !may), "{method} {path}: {answer:?}");
        let answer = server.http.send(method, &path, &[("authorization", AS_MALLORY)], whole("")).await;
        assert_eq!(answer.status == 401, !open, "{method} {path}: {answer:?}");
    }

    let blob = Blob::new(1, 300_000);
    let path = format!("/cas/{}", blob.digest().hash);
    assert_eq!(nobody.put(blob).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(server.http.put(&path, blob.bytes()).await, 401);
    assert_eq!(nobody.missing(vec![blob.digest()]).await.unwrap(), [blob.digest()]);
    alice.put(blob).await.unwrap();
    assert_eq!(nobody.check(blob).await.unwrap(), Found::Exact);
    assert!(server.http.get(&path).await.body.unwrap() == blob.bytes());
    assert_eq!(nobody.put_action(action_digest(1), ActionResult::default()).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(nobody.action(action_digest(1)).await.unwrap(), None);
    assert!(update_enabled(&alice).await && !update_enabled(&nobody).await);
}

#[tokio::test]
async fn an_instance_without_updates_has_none_for_users_either() {
    let server = start("--ac-updates off");
    let alice = client(&server, AS_ALICE).await;
    assert!(!update_enabled(&alice).await);
    assert_eq!(alice.put_action(action_digest(1), ActionResult::default()).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(put(&server, "/kv/x", AS_ALICE, "x").await, 403);
}

#[tokio::test]
async fn without_users_credentials_mean_nothing() {
    let server = Server::start();
    let client = client(&server, AS_MALLORY).await;
    client.put(Blob::new(1, 1000)).await.unwrap();
    assert!(update_enabled(&client).await);
    assert_eq!(get(&server, "/status", "nonsense").await.status, 200);
    let page = page_when(&server, |_| true).await;
    assert_eq!((page.sum("blockstore_auth_total", &[]), page.sum("blockstore_auth_comparisons_total", &[])), (0.0, 0.0));
}

#[tokio::test]
async fn a_password_is_compared_once_however_many_bring_it() {
    let server = start("");
    let calls = (0..200).map(|n| {
        let http = server.http.clone();
        async move { http.get_with(&format!("/kv/{n}"), "authorization", AS_BOB).await.status.as_u16() }
    });
    assert!(futures::future::join_all(calls).await.into_iter().all(|status| status == 404));
    let bob = client(&server, AS_BOB).await;
    for _ in 0..20 {
        bob.missing(vec![]).await.unwrap();
    }
    for _ in 0..20 {
        assert_eq!(get(&server, "/kv/x", AS_MALLORY).await.status, 401);
        assert_eq!(server.http.get("/kv/x").await.status, 401);
    }
    let page = page_when(&server, |page| counted(page, "grpc", "granted") == 20.0).await;
    // Bob, mallory, and alice who asks for the page.
    assert_eq!(page.sum("blockstore_auth_comparisons_total", &[]), 3.0);
    assert_eq!((counted(&page, "http", "wrong"), counted(&page, "http", "missing")), (20.0, 20.0));
    assert!(counted(&page, "http", "granted") > 200.0);
}
