//! Logs: in JSON every line parses whatever clients send, files are opened again, and requests are named with what clients say of them.

use crate::{
    page::Page,
    server::{Http, Server, spec, whole},
};
use blockstore_proto::reapi::{
    Digest, FindMissingBlobsRequest, GetActionResultRequest, RequestMetadata, ToolDetails, action_cache_client::ActionCacheClient,
    content_addressable_storage_client::ContentAddressableStorageClient,
};
use blockstore_tests::{
    blob::Blob,
    client::{Client, action_digest},
    daemon::{Daemon, Signal},
};
use prost::Message;
use serde_json::Value;
use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tonic::{Request, metadata::MetadataValue, transport::Channel};

const METADATA: &str = "build.bazel.remote.execution.v2.requestmetadata-bin";
const SECRET: &str = "c2VjcmV0LXRoYXQtbm9ib2R5LW1heS1zZWU";

async fn channel(addr: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap()
}

fn with_metadata<T>(message: T, metadata: &[u8]) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert_bin(METADATA, MetadataValue::from_bytes(metadata));
    request.metadata_mut().insert("authorization", format!("Bearer {SECRET}").parse().unwrap());
    request
}

fn metadata(text: &str) -> RequestMetadata {
    RequestMetadata {
        tool_details: Some(ToolDetails { tool_name: format!("tool{text}"), tool_version: format!("version{text}") }),
        action_id: format!("action{text}"),
        tool_invocation_id: format!("invocation{text}"),
        correlated_invocations_id: format!("correlated{text}"),
        action_mnemonic: format!("Mnemonic{text}"),
        target_id: format!("//target{text}"),
        configuration_id: format!("configuration{text}"),
    }
}

async fn get_action(addr: SocketAddr, seed: u64, metadata: &[u8]) {
    let request = GetActionResultRequest { action_digest: Some(action_digest(seed)), ..GetActionResultRequest::default() };
    ActionCacheClient::new(channel(addr).await).get_action_result(with_metadata(request, metadata)).await.unwrap_err();
}

/// Sends these bytes, and reads what comes until the connection ends.
fn raw(addr: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).unwrap();
    // Some of it deserves no answer and no end.
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

/// Whatever may be hard to write down.
async fn hostile(daemon: &Daemon) {
    for text in ["\n{\"level\":\"ERROR\"}\n", "\u{0}\u{7}\u{1b}[31m", "\"\\\r\n\t", "\u{2028}\u{feff}é\u{10ffff}", &"long ".repeat(800)] {
        get_action(daemon.grpc, 1, &metadata(text).encode_to_vec()).await;
    }
    // No message, and text that is no UTF-8.
    get_action(daemon.grpc, 1, &[0xff; 100]).await;
    get_action(daemon.grpc, 1, &[0x22, 4, 0xff, 0xfe, b'\n', 0x80]).await;
    let cas = ContentAddressableStorageClient::new(channel(daemon.grpc).await);
    for hash in ["\n\u{0}\"", "x"] {
        let digest = Digest { hash: hash.into(), size_bytes: -1 };
        let request = FindMissingBlobsRequest { blob_digests: vec![digest], instance_name: "\n\"}".into(), ..Default::default() };
        cas.clone().find_missing_blobs(with_metadata(request, b"\n")).await.unwrap_err();
    }
    for path in [&b"/\xff\xfe\n"[..], b"/\xff\xfe\"\\", b"/%00%0a%22/cas/x", b"/kv/\"\\{}\x80", b"/kv/%ff%0a", b"*"] {
        raw(daemon.http, &[b"GET ", path, b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"].concat());
    }
    raw(daemon.http, b"\x00\x01\n{\"not\": \"ours\"}\r\n\r\n");
    raw(daemon.grpc, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff");
    let http = Http::new(daemon, false);
    let secret = format!("Basic {SECRET}");
    http.send("GET", "/kv/x?%22%0a'", &[("authorization", secret.as_str()), ("cookie", SECRET)], whole("")).await;
    http.send("PUT", "/kv/x", &[("authorization", secret.as_str())], whole("x")).await;
}

#[tokio::test]
async fn json_lines_parse_whatever_clients_send_and_have_no_secrets() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // Slow, so that these warnings are there as well, and every line of every library.
    let spec = spec(&dir).args("--log-format json --access-log --slow-request-ms 1").through(&["env", "RUST_LOG=trace"]);
    let daemon = spec.start();
    hostile(&daemon).await;
    let lines = daemon.stop();
    let mut access = 0;
    for line in &lines {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(value["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
        access += usize::from(value.get("protocol").is_some());
        assert!(!line.contains(SECRET), "{line}");
    }
    // Nine calls and two requests; what is no HTTP at all does not get so far.
    assert!(access >= 11, "{access}");
    let longest = lines.iter().filter(|line| line.contains("\"protocol\"")).map(String::len).max();
    assert!(longest < Some(6000), "{longest:?}");
    assert!(lines.iter().any(|line| line.contains("ready in ")) && lines.iter().any(|line| line.contains("store is closed")));
    let named: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(named.iter().any(|line| line["action_id"] == "action\n{\"level\":\"ERROR\"}\n"), "{named:#?}");
}

#[tokio::test]
async fn text_lines_are_one_a_request_and_have_no_secrets() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("access.log");
    let daemon = spec(&dir).arg("--access-log-file").arg(&path).args("--log-level trace").start();
    hostile(&daemon).await;
    let blob = Blob::new(1, 1000);
    Client::connect(daemon.grpc).await.put(blob).await.unwrap();
    let log = daemon.stop();
    assert!(!log.iter().any(|line| line.contains(SECRET)), "{log:#?}");
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines.len() >= 12, "{text}");
    for line in &lines {
        assert!(line.contains("Z access protocol=") && line.contains(" status=") && line.contains(" peer=127.0.0.1:"), "{line}");
        assert!(!line.contains(SECRET) && !line.chars().any(char::is_control), "{line}");
    }
    let digest = blob.digest();
    let written = format!("protocol=grpc method=Write kind=cas resource={}/{} status=OK received_bytes=", digest.hash, digest.size_bytes);
    assert_eq!(lines.iter().filter(|line| line.contains(&written)).count(), 1, "{text}");
}

fn wait_for(path: &Path, what: &str) -> String {
    let since = Instant::now();
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        if text.contains(what) {
            return text;
        }
        assert!(since.elapsed() < Duration::from_secs(180), "{what} never came: {text}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn requests_are_named_with_what_clients_say_of_them_and_files_are_opened_again() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (log, access) = (dir.path().join("log"), dir.path().join("access"));
    let spec = spec(&dir).arg("--log-file").arg(&log).arg("--access-log-file").arg(&access).args("--log-format json");
    let server = {
        let daemon = spec.start();
        let http = Http::new(&daemon, false);
        Server { daemon, http, dir }
    };
    assert!(server.daemon.log().iter().any(|line| line.starts_with("ready in ")), "for people, whatever the log is");
    wait_for(&log, "store is open");
    get_action(server.daemon.grpc, 7, &metadata("-1").encode_to_vec()).await;
    let text = wait_for(&access, "action-1");
    let line: Value = serde_json::from_str(text.lines().find(|line| line.contains("action-1")).unwrap()).unwrap();
    let digest = action_digest(7);
    for (field, value) in [
        ("protocol", "grpc"),
        ("method", "GetActionResult"),
        ("kind", "ac"),
        ("resource", &format!("{}/{}", digest.hash, digest.size_bytes)),
        ("status", "NotFound"),
        ("tool", "tool-1"),
        ("tool_version", "version-1"),
        ("action_id", "action-1"),
        ("tool_invocation_id", "invocation-1"),
        ("correlated_invocations_id", "correlated-1"),
        ("target", "//target-1"),
        ("mnemonic", "Mnemonic-1"),
        ("configuration", "configuration-1"),
    ] {
        assert_eq!(line[field], value, "{line}");
    }
    assert!(line["received_bytes"].as_u64().unwrap() > 60 && line["duration_ms"].as_f64().unwrap() > 0.0, "{line}");
    assert!(line["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");

    let (log_1, access_1) = (server.dir.path().join("log.1"), server.dir.path().join("access.1"));
    fs::rename(&log, &log_1).unwrap();
    fs::rename(&access, &access_1).unwrap();
    server.daemon.signal(Signal::HUP);
    wait_for(&log, "opened again");
    get_action(server.daemon.grpc, 8, &metadata("-2").encode_to_vec()).await;
    wait_for(&access, "action-2");
    assert!(!fs::read_to_string(&access_1).unwrap().contains("action-2"));
    let page = Page::of(&server).await;
    assert_eq!(page.sum("blockstore_log_dropped_lines_total", &[]), 0.0);
    let Server { daemon, .. } = server;
    daemon.stop();
    let ended = fs::read_to_string(&log).unwrap();
    assert!(ended.contains("store is closed"), "{ended}");
}

#[test]
fn a_log_that_cannot_be_opened_is_a_mistake_that_names_its_setting() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for setting in ["--log-file", "--access-log-file"] {
        let line = spec(&dir).arg(setting).arg(dir.path().join("not/there")).refusal();
        assert!(line.contains(setting) && line.contains("not/there"), "{line}");
    }
}

#[tokio::test]
async fn rust_log_wins_over_the_level() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let quiet = spec(&dir).args("--log-level error").start().stop();
    assert!(!quiet.iter().any(|line| line.contains("INFO")), "{quiet:#?}");
    let asked = spec(&dir).args("--log-level error").through(&["env", "RUST_LOG=info"]).start().stop();
    assert!(asked.iter().any(|line| line.contains("INFO") && line.contains("store is open")), "{asked:#?}");
    let wrong = spec(&dir).through(&["env", "RUST_LOG=[[["]).start().stop();
    assert!(wrong.iter().any(|line| line.contains("WARN") && line.contains("RUST_LOG is not understood")), "{wrong:#?}");
}
