//! Requests that no well-behaved client sends: each gets a status, none of them UNKNOWN, and the server goes on.

use blockstore_proto::{grpc::health::v1::health_client::HealthClient, reapi};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use prost::Message;
use tonic::Code;
use tower::{Service, ServiceExt};

use crate::server::{Server, digest};

/// Posts a body as it is; the status of the answer.
pub(crate) async fn post(server: &Server, path: &str, body: Vec<u8>) -> (Code, Bytes) {
    let request = http::Request::post(format!("http://{}{path}", server.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(tonic::body::Body::new(Full::new(Bytes::from(body))))
        .unwrap();
    let mut channel = server.channel.clone();
    let response = channel.ready().await.unwrap().call(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let headers = response.headers().clone();
    let body = response.into_body().collect().await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    let status = headers.get("grpc-status").or(trailers.get("grpc-status")).expect("a status");
    (Code::from_bytes(status.as_bytes()), body.to_bytes())
}

pub(crate) fn frame(message: &[u8]) -> Vec<u8> {
    let len = u32::try_from(message.len()).unwrap();
    [&[0][..], &len.to_be_bytes(), message].concat()
}

const FIND: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs";
const METHODS: [&str; 14] = [
    FIND,
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs",
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs",
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/GetTree",
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/SplitBlob",
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/GetChunkMapping",
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/SpliceBlob",
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/RegisterChunkMapping",
    "/build.bazel.remote.execution.v2.ActionCache/GetActionResult",
    "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult",
    "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities",
    "/google.bytestream.ByteStream/Read",
    "/google.bytestream.ByteStream/Write",
    "/google.bytestream.ByteStream/QueryWriteStatus",
];

#[tokio::test]
async fn wrong_bodies() {
    let server = Server::start().await;
    let huge = [0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3];
    for path in METHODS {
        for (what, body, codes) in [
            ("no message", vec![], vec![Code::InvalidArgument]),
            ("half a prefix", vec![0, 0], vec![Code::Cancelled]),
            ("half a message", frame(&[0x0a, 100])[..6].to_vec(), vec![Code::Cancelled]),
            ("a length beyond all bounds", huge.to_vec(), vec![Code::ResourceExhausted]),
            ("a compressed message", vec![1, 0, 0, 0, 0], vec![Code::Unimplemented]),
            ("junk", frame(&[0xff; 40]), vec![Code::InvalidArgument]),
            ("a string that is no UTF-8", frame(&[0x0a, 1, 0xff]), vec![Code::InvalidArgument]),
            ("an empty message", frame(&[]), vec![Code::Ok, Code::InvalidArgument]),
        ] {
            let (code, _) = post(&server, path, body).await;
            assert!(codes.contains(&code), "{path}, {what}: {code:?}");
        }
    }
}

#[tokio::test]
async fn a_message_in_many_frames_and_two_in_one() {
    let server = Server::start().await;
    let stored = server.put(&[b"there"]).await.remove(0);
    let request = reapi::FindMissingBlobsRequest { blob_digests: vec![stored, digest(b"not")], ..Default::default() };
    let mut body = frame(&request.encode_to_vec());
    let (code, answer) = post(&server, FIND, body.clone()).await;
    assert_eq!(code, Code::Ok);
    let response = reapi::FindMissingBlobsResponse::decode(answer.slice(5..)).unwrap();
    assert_eq!(response.missing_blob_digests, [digest(b"not")]);
    // What follows the only message of a unary call is ignored.
    body.extend(frame(b"more"));
    assert_eq!(post(&server, FIND, body).await.0, Code::Ok);
}

#[tokio::test]
async fn other_paths_are_unimplemented() {
    let server = Server::start().await;
    for path in ["/", "/google.bytestream.ByteStream/Other", "/build.bazel.remote.execution.v2.Execution/Execute"] {
        assert_eq!(post(&server, path, frame(&[])).await.0, Code::Unimplemented, "{path}");
    }
}

#[tokio::test]
async fn an_error_quotes_little_of_what_was_sent() {
    let server = Server::start().await;
    let result = reapi::ActionResult {
        output_files: vec![reapi::OutputFile { path: format!("/{}", "x".repeat(100_000)), ..Default::default() }],
        ..Default::default()
    };
    let request = reapi::UpdateActionResultRequest { action_digest: Some(digest(b"a")), action_result: Some(result), ..Default::default() };
    let status = server.actions().update_action_result(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().len() < 400);
}

#[tokio::test]
async fn reflection_lists_what_is_offered() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient, server_reflection_request::MessageRequest,
        server_reflection_response::MessageResponse,
    };
    let server = Server::start().await;
    let mut client = ServerReflectionClient::new(server.channel.clone());
    let list = MessageRequest::ListServices(String::new());
    let request = ServerReflectionRequest { message_request: Some(list), ..Default::default() };
    let mut stream = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap().into_inner();
    let response = stream.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = response else { panic!("{response:?}") };
    let names: Vec<_> = list.service.iter().map(|s| s.name.as_str()).collect();
    for name in blockstore_server::front::reapi::SERVICE_NAMES {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    assert!(!names.iter().any(|name| name.ends_with("Execution") || name.ends_with("Fetch")), "{names:?}");
}

#[tokio::test]
async fn health_follows_draining() {
    use blockstore_proto::grpc::health::v1::{HealthCheckRequest, health_check_response::ServingStatus};
    let server = Server::start().await;
    let mut health = HealthClient::new(server.channel.clone());
    for (serving, expected) in [(true, ServingStatus::Serving), (false, ServingStatus::NotServing)] {
        server.services.set_serving(serving).await;
        for service in ["", "google.bytestream.ByteStream"] {
            let request = HealthCheckRequest { service: service.into() };
            let response = health.check(request).await.unwrap().into_inner();
            assert_eq!(response.status(), expected);
        }
    }
}
