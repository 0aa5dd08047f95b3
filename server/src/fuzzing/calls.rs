//! gRPC calls of every method, with messages that are right, nearly right or no messages.

use std::{io, sync::LazyLock};

use axum::body::Body;
use bytes::{BufMut, Bytes};
use futures::{StreamExt, stream};
use http::Request;
use http_body::Body as _;
use std::{future::poll_fn, pin::pin};
use tonic::Code;
use tower::ServiceExt;

use super::{
    known::Known,
    message::{Method, Schema},
    source::Source,
    world::World,
};
use crate::front::reapi::ANSWER_BYTES_MAX;

/// Calls of one input at most.
const CALLS_MAX: usize = 12;
const PREFIX_BYTES: usize = 5;
/// What an answer of several messages may have together: trees and blobs are small here.
const ALL_BYTES_MAX: usize = 64 << 20;

static SCHEMA: LazyLock<Schema> = LazyLock::new(Schema::new);

pub(super) fn check(input: &[u8]) {
    World::play(async |world| {
        let mut source = Source::new(input);
        for _ in 0..CALLS_MAX {
            if source.is_empty() {
                return;
            }
            call(world, &mut source).await;
        }
    });
}

async fn call(world: &World, source: &mut Source<'_>) {
    let method = source.one_of(&SCHEMA.methods);
    let body = body(Known::all(), source, method);
    let mut request = Request::post(&method.path).header("content-type", "application/grpc").header("te", "trailers");
    if source.rarely(4) {
        let metadata = Bytes::copy_from_slice(source.bytes());
        let value = if source.rarely(2) { String::from_utf8_lossy(&metadata).into_owned() } else { "CgdiYXplbC81".to_owned() };
        if let Ok(value) = http::HeaderValue::from_str(&value) {
            request = request.header("build.bazel.remote.execution.v2.requestmetadata-bin", value);
        }
    }
    let request = request.body(body).expect("a request");
    let response = World::ends(&method.path, world.grpc.clone().oneshot(request)).await.expect("an answer");
    let (head, answer) = response.into_parts();
    let mut answer = pin!(answer);
    let (mut trailers, mut unread, mut all) = (None, Vec::new(), 0);
    while let Some(frame) = World::ends(&method.path, poll_fn(|cx| answer.as_mut().poll_frame(cx))).await {
        match frame.expect("an answer does not break").into_data() {
            Ok(data) => {
                all += data.len();
                unread.extend_from_slice(&data);
                take_messages(&mut unread);
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
        assert!(all <= ALL_BYTES_MAX, "{}: an answer without end", method.path);
    }
    assert!(unread.is_empty(), "{}: half a message", method.path);
    let trailers = trailers.unwrap_or_default();
    let status = head.headers.get("grpc-status").or(trailers.get("grpc-status"));
    let code = Code::from_bytes(status.unwrap_or_else(|| panic!("{}: no status", method.path)).as_bytes());
    let why = head.headers.get("grpc-message").or(trailers.get("grpc-message"));
    assert!(!matches!(code, Code::Unknown | Code::Internal), "{}: {code:?} {why:?}", method.path);
}

/// Takes off what is whole.
fn take_messages(unread: &mut Vec<u8>) {
    while let Some((prefix, rest)) = unread.split_at_checked(PREFIX_BYTES) {
        let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        assert!(prefix[0] == 0 && len as u64 <= ANSWER_BYTES_MAX, "a message of {len} bytes");
        if rest.len() < len {
            return;
        }
        unread.drain(..PREFIX_BYTES + len);
    }
}

/// The path and the body of one call.
pub(super) fn make(input: &[u8]) -> (String, Bytes) {
    let source = &mut Source::new(input);
    let method = source.one_of(&SCHEMA.methods);
    (method.path.clone(), messages(Known::all(), source, method))
}

fn messages(known: &Known, source: &mut Source<'_>, method: &Method) -> Bytes {
    let messages = match method.many {
        true => 1 + source.below(6),
        false => 1,
    };
    let mut bytes = Vec::new();
    for _ in 0..messages {
        let message = match source.below(8) {
            7 => Bytes::copy_from_slice(source.bytes()),
            _ => SCHEMA.build(known, source, &method.request),
        };
        let len = if source.rarely(32) { source.number() as u32 } else { message.len() as u32 };
        bytes.put_u8(u8::from(source.rarely(64)));
        bytes.put_u32(len);
        bytes.put_slice(&message);
    }
    if source.rarely(16) {
        bytes.truncate(bytes.len() * source.below(256) / 256);
    }
    bytes.into()
}

fn body(known: &Known, source: &mut Source<'_>, method: &Method) -> Body {
    let bytes = messages(known, source, method);
    let piece_bytes = if source.rarely(4) { 1 + source.below(256) } else { 1 << 20 };
    let end = source.rarely(16).then(|| Err(io::Error::from(io::ErrorKind::ConnectionReset)));
    let pieces: Vec<_> = (0..bytes.len()).step_by(piece_bytes).map(|at| Ok(bytes.slice(at..bytes.len().min(at + piece_bytes)))).collect();
    Body::from_stream(stream::iter(pieces.into_iter().chain(end)).boxed())
}

/// Every method with the first of all choices, and with others.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let each = |fill: u8| {
        (0..SCHEMA.methods.len() as u8).map(move |method| {
            let mut input = vec![method];
            input.extend((0..60u8).map(|n| n.wrapping_mul(fill)));
            input
        })
    };
    vec![Vec::new(), each(0).flatten().collect(), each(1).flatten().collect(), each(7).flatten().collect()]
}
