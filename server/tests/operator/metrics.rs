//! What is counted: each family under requests that are known, bounded whatever clients send, and as `server/METRICS.md` says.

use crate::{
    page::{Labels, Page},
    server::{Http, Server, whole},
};
use blockstore_proto::reapi::{ActionResult, OutputFile};
use blockstore_tests::{
    blob::Blob,
    client::{Client, Found, OpenUpload, action_digest, upload_name},
};
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    thread,
    time::Duration,
};
use tonic::Code;

const CAS: &str = "build.bazel.remote.execution.v2.ContentAddressableStorage";

fn handled(page: &Page, method: &str, code: &str) -> f64 {
    page.sum("grpc_server_handled_total", &[("grpc_method", method), ("grpc_code", code)])
}

fn requests(page: &Page, protocol: &str, method: &str, kind: &str, outcome: &str) -> f64 {
    page.sum("blockstore_requests_total", &[("protocol", protocol), ("method", method), ("kind", kind), ("outcome", outcome)])
}

#[tokio::test]
async fn calls_are_counted_by_what_they_came_to() {
    let server = Server::start();
    let client = Client::connect(server.daemon.grpc).await;
    let (there, large, missing) = (Blob::new(1, 50_000), Blob::new(2, 3_000_000), Blob::new(3, 70));
    client.put(there).await.unwrap();
    client.put(large).await.unwrap();
    assert_eq!(client.check(large).await.unwrap(), Found::Exact);
    assert_eq!(client.check(missing).await.unwrap(), Found::Missing);
    assert_eq!(client.missing(vec![there.digest(), missing.digest(), large.digest()]).await.unwrap(), [missing.digest()]);
    let small = [Blob::new(4, 10), Blob::new(5, 20)];
    let wrong = (Blob::new(6, 30).digest(), Bytes::from_static(b"other bytes"));
    let items = small.iter().map(|blob| (blob.digest(), blob.bytes())).chain([wrong]).collect();
    assert_eq!(client.put_batch_as(items).await.unwrap(), [Code::Ok, Code::Ok, Code::InvalidArgument]);
    client.check_batch(&[small[0], small[1], missing]).await.unwrap();
    assert_eq!(client.action(action_digest(1)).await.unwrap(), None);
    client.put_action(action_digest(1), ActionResult::default()).await.unwrap();
    assert!(client.action(action_digest(1)).await.unwrap().is_some());
    let file = OutputFile { path: "out".into(), digest: Some(missing.digest()), ..OutputFile::default() };
    let incomplete = ActionResult { output_files: vec![file], ..ActionResult::default() };
    client.put_action(action_digest(2), incomplete).await.unwrap();
    assert_eq!(client.action(action_digest(2)).await.unwrap(), None);

    // Every call has ended once the last one has.
    let page = Page::when(&server, |page| page.sum("blockstore_requests_total", &[("protocol", "grpc")]) == 12.0).await;
    assert_eq!(page.sum("grpc_server_started_total", &[]), 12.0);
    assert_eq!(page.sum("grpc_server_handled_total", &[]), 12.0);
    assert_eq!(page.sum("grpc_server_handling_seconds_count", &[]), 12.0);
    assert!(page.sum("grpc_server_handling_seconds_sum", &[]) > 0.0);
    for (method, code, n) in [
        ("Write", "OK", 2.0),
        ("Read", "OK", 1.0),
        ("Read", "NotFound", 1.0),
        ("FindMissingBlobs", "OK", 1.0),
        ("BatchUpdateBlobs", "OK", 1.0),
        ("BatchReadBlobs", "OK", 1.0),
        ("GetActionResult", "OK", 1.0),
        ("GetActionResult", "NotFound", 2.0),
        ("UpdateActionResult", "OK", 2.0),
    ] {
        assert_eq!(handled(&page, method, code), n, "{method} {code}");
    }
    for (method, kind, outcome, n) in [
        ("Write", "cas", "ok", 2.0),
        ("Read", "cas", "hit", 1.0),
        ("Read", "cas", "miss", 1.0),
        ("FindMissingBlobs", "cas", "ok", 1.0),
        ("GetActionResult", "ac", "hit", 1.0),
        ("GetActionResult", "ac", "miss", 2.0),
        ("UpdateActionResult", "ac", "ok", 2.0),
    ] {
        assert_eq!(requests(&page, "grpc", method, kind, outcome), n, "{method} {outcome}");
    }
    let blobs = |method, outcome| page.sum("blockstore_batch_blobs_total", &[("method", method), ("outcome", outcome)]);
    assert_eq!([blobs("FindMissingBlobs", "hit"), blobs("FindMissingBlobs", "miss")], [2.0, 1.0]);
    assert_eq!([blobs("BatchUpdateBlobs", "stored"), blobs("BatchUpdateBlobs", "error")], [2.0, 1.0]);
    assert_eq!([blobs("BatchReadBlobs", "hit"), blobs("BatchReadBlobs", "miss"), blobs("BatchReadBlobs", "error")], [2.0, 1.0, 0.0]);
    let find = [("grpc_type", "unary"), ("grpc_service", CAS), ("grpc_method", "FindMissingBlobs")];
    assert_eq!(page.sum("grpc_server_msg_received_total", &find), 1.0);
    assert_eq!(page.sum("grpc_server_msg_sent_total", &find), 1.0);
    assert_eq!(page.sum("grpc_server_msg_sent_total", &[("grpc_method", "Write"), ("grpc_type", "client_stream")]), 2.0);
    assert!(page.sum("grpc_server_msg_sent_total", &[("grpc_method", "Read"), ("grpc_type", "server_stream")]) >= 3.0);
    assert!(page.sum("grpc_server_msg_received_total", &[("grpc_method", "Write")]) >= 4.0);
    let bytes = |name, kind| page.sum(name, &[("protocol", "grpc"), ("kind", kind)]);
    assert!((3_050_000.0..3_060_000.0).contains(&bytes("blockstore_received_bytes_total", "cas")));
    assert!((3_000_000.0..3_010_000.0).contains(&bytes("blockstore_sent_bytes_total", "cas")));
    assert!((100.0..2000.0).contains(&bytes("blockstore_received_bytes_total", "ac")));
    assert_eq!(page.sum("blockstore_incomplete_results_total", &[("reason", "incomplete")]), 1.0);

    assert_eq!(page.sum("blockstore_engine_puts_total", &[]), 6.0);
    // Rounded up, record by record.
    assert!((3_050_000.0..4_500_000.0).contains(&page.sum("blockstore_engine_live_bytes", &[])));
    assert!(page.sum("blockstore_engine_objects", &[]) >= 6.0);
    assert!(page.sum("blockstore_engine_accepted_bytes_total", &[]) > 3_050_000.0);
    assert!(page.sum("blockstore_engine_written_bytes_total", &[]) > 3_050_000.0);
    assert!(page.sum("blockstore_engine_capacity_bytes", &[]) > 1e8);
    assert!(page.sum("blockstore_engine_hits_total", &[]) >= 5.0 && page.sum("blockstore_engine_misses_total", &[]) >= 4.0);
    assert!(page.sum("blockstore_device_operations_total", &[("operation", "write")]) >= 3.0);
    assert_eq!(page.sum("blockstore_engine_writable", &[]), 1.0);
    assert_eq!(page.sum("blockstore_engine_damaged_total", &[]), 0.0);
    let flushed = Page::when(&server, |page| page.sum("blockstore_engine_flush_duration_seconds_count", &[]) > 0.0).await;
    assert!(flushed.sum("blockstore_engine_oldest_block_age_seconds", &[]) > 0.0);
    let once = Page::when(&server, |page| page.sum("blockstore_engine_unflushed_bytes", &[]) == 0.0).await;
    assert_eq!(once.sum("blockstore_engine_queued_requests", &[]), 0.0);
    assert!(once.sum("process_cpu_seconds_total", &[]) > 0.0 && once.sum("process_open_fds", &[]) > 5.0);
    assert!(once.sum("process_resident_memory_bytes", &[]) > 1e7 && once.sum("process_start_time_seconds", &[]) > 1.7e9);
    assert_eq!(once.sum("blockstore_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    assert_eq!(once.sum("blockstore_phase", &[("phase", "serving")]), 1.0);
}

#[tokio::test]
async fn requests_over_http_are_counted_by_what_they_came_to() {
    let server = Server::start();
    let blob = Blob::new(1, 40_000);
    let (hash, nothing) = (blob.digest().hash, "f".repeat(64));
    let cas = |hash: &str| format!("/some/instance/cas/{hash}");
    assert_eq!(server.http.get(&cas(&hash)).await.status, 404);
    assert_eq!(server.http.put(&cas(&hash), blob.bytes()).await, 200);
    assert_eq!(server.http.get(&cas(&hash)).await.status, 200);
    assert_eq!(server.http.get_with(&cas(&hash), "range", "bytes=0-99").await.status, 206);
    assert_eq!(server.http.head(&cas(&hash)).await.status, 200);
    assert_eq!(server.http.put(&cas(&nothing), "x").await, 400);
    assert_eq!(server.http.get(&format!("/ac/{nothing}")).await.status, 404);
    assert_eq!(server.http.put("/kv/a", "value").await, 200);
    assert_eq!(server.http.get("/kv/a").await.status, 200);
    assert_eq!(server.http.send("DELETE", "/kv/a", &[], whole("")).await.status, 204);
    assert_eq!(server.http.send("PROPFIND", "/kv/a/", &[], whole("")).await.status, 207);
    assert_eq!(server.http.send("POST", &cas(&hash), &[], whole("")).await.status, 405);
    assert_eq!(server.http.get("/nothing").await.status, 400);

    let page = Page::when(&server, |page| page.sum("http_requests_total", &[("handler", "other")]) == 1.0).await;
    for (handler, method, code, n) in [
        ("cas", "GET", "404", 1.0),
        ("cas", "PUT", "200", 1.0),
        ("cas", "GET", "200", 1.0),
        ("cas", "GET", "206", 1.0),
        ("cas", "HEAD", "200", 1.0),
        ("cas", "PUT", "400", 1.0),
        ("ac", "GET", "404", 1.0),
        ("kv", "PUT", "200", 1.0),
        ("kv", "DELETE", "204", 1.0),
        ("kv", "PROPFIND", "207", 1.0),
        ("cas", "other", "405", 1.0),
        ("other", "GET", "400", 1.0),
        ("cas", "GET", "499", 0.0),
    ] {
        let labels = [("handler", handler), ("method", method), ("code", code)];
        assert_eq!(page.sum("http_requests_total", &labels), n, "{labels:?}");
    }
    for (method, kind, outcome, n) in [
        ("GET", "cas", "hit", 2.0),
        ("GET", "cas", "miss", 1.0),
        ("HEAD", "cas", "hit", 1.0),
        ("PUT", "cas", "ok", 1.0),
        ("PUT", "cas", "client_error", 1.0),
        ("GET", "ac", "miss", 1.0),
        ("PROPFIND", "kv", "hit", 1.0),
        ("DELETE", "kv", "ok", 1.0),
        ("other", "cas", "client_error", 1.0),
    ] {
        assert_eq!(requests(&page, "http", method, kind, outcome), n, "{method} {kind} {outcome}");
    }
    assert_eq!(page.sum("http_request_duration_seconds_count", &[("handler", "cas"), ("method", "GET")]), 3.0);
    let bytes = |name, kind| page.sum(name, &[("protocol", "http"), ("kind", kind)]);
    assert_eq!(bytes("blockstore_received_bytes_total", "cas"), 40_001.0);
    assert_eq!(bytes("blockstore_received_bytes_total", "kv"), 5.0);
    // Two answers with bytes, and some lines that say why not.
    assert!((40_100.0..40_500.0).contains(&bytes("blockstore_sent_bytes_total", "cas")), "{}", bytes("blockstore_sent_bytes_total", "cas"));
}

#[tokio::test]
async fn what_a_client_breaks_off_is_counted_as_cancelled() {
    let server = Server::start();
    let client = Client::connect(server.daemon.grpc).await;
    let blob = Blob::new(1, 600_000);
    let upload = OpenUpload::start(&client, &upload_name(&blob.digest()), blob.bytes().slice(..300_000));
    Page::when(&server, |page| page.sum("grpc_server_msg_received_total", &[("grpc_method", "Write")]) == 1.0).await;
    upload.abort();
    let page = Page::when(&server, |page| handled(page, "Write", "Canceled") == 1.0).await;
    assert_eq!(requests(&page, "grpc", "Write", "cas", "cancelled"), 1.0);
    let page = Page::when(&server, |page| page.sum("blockstore_kept_uploads", &[]) == 1.0).await;
    assert_eq!(page.sum("blockstore_kept_upload_bytes", &[]), 600_000.0);
    assert_eq!(page.sum("blockstore_suspended_uploads_total", &[("event", "suspended")]), 1.0);

    // More than sockets keep on the way.
    let large = Blob::new(2, 60_000_000);
    client.put(large).await.unwrap();
    let mut stream = TcpStream::connect(server.daemon.http).unwrap();
    write!(stream, "GET /cas/{} HTTP/1.1\r\nHost: test\r\n\r\n", large.digest().hash).unwrap();
    stream.read_exact(&mut [0; 1000]).unwrap();
    drop(stream);
    let cut = [("handler", "cas"), ("method", "GET"), ("code", "499")];
    let page = Page::when(&server, |page| page.sum("http_requests_total", &cut) == 1.0).await;
    assert_eq!(requests(&page, "http", "GET", "cas", "cancelled"), 1.0);
    assert_eq!(page.sum("http_request_duration_seconds_count", &[("handler", "cas"), ("method", "GET")]), 1.0);
}

/// A path, method and headers that were never there before.
async fn strange(server: &Server, h2: &Http, n: u32) {
    let name = format!("strange-{n}");
    server.http.get(&format!("/{name}/x/{n}")).await;
    server.http.get(&format!("/{name}/cas/{n:064x}")).await;
    server.http.get(&format!("/{name}/ac/{n:064x}")).await;
    server.http.get(&format!("/kv/{name}")).await;
    server.http.send(&format!("M{n}"), &format!("/{name}/kv/x"), &[], whole("")).await;
    let headers = [("content-type", "application/grpc"), ("te", "trailers"), ("x-tool", name.as_str())];
    h2.send("POST", &format!("/{name}.Service/Method{n}"), &headers, whole("")).await;
    h2.send("POST", &format!("/{CAS}/Method{n}"), &headers, whole("")).await;
}

#[tokio::test]
async fn no_client_can_make_new_series() {
    let server = Server::start();
    let h2 = Http::at(server.daemon.grpc, true);
    strange(&server, &h2, 0).await;
    // This page is counted, too, though only on the next.
    Page::of(&server).await;
    let calls = |page: &Page| page.sum("grpc_server_started_total", &[("grpc_method", "other")]);
    let before = Page::when(&server, |page| calls(page) == 2.0 && handled(page, "other", "Unimplemented") == 2.0).await.series();
    for n in 1..=150 {
        strange(&server, &h2, n).await;
    }
    let after = Page::when(&server, |page| handled(page, "other", "Unimplemented") == 302.0).await;
    assert_eq!(after.sum("http_requests_total", &[("handler", "other")]), 151.0);
    let new: Vec<_> = after.series().difference(&before).cloned().collect();
    assert!(new.is_empty(), "{new:#?}");
    let text = format!("{after:?}");
    assert!(!text.contains("strange") && !text.contains("Method1"), "{text}");
}

#[tokio::test]
async fn classes_of_latency_are_a_setting() {
    let server = Server::with("--metrics-latency-buckets 0.5,1,90");
    server.http.get("/kv/x").await;
    let page = Page::of(&server).await;
    for name in ["grpc_server_handling_seconds", "http_request_duration_seconds"] {
        let samples = &page.0[name].samples;
        let bounds: std::collections::BTreeSet<_> = samples.iter().filter_map(|(_, labels, _)| labels.get("le").cloned()).collect();
        assert_eq!(bounds.into_iter().collect::<Vec<_>>(), ["+Inf", "0.5", "1", "90"], "{name}");
    }
    let usual = Page::of(&Server::start()).await;
    let least = usual.0["grpc_server_handling_seconds"].samples.iter().filter_map(|(_, labels, _)| labels.get("le")?.parse::<f64>().ok());
    assert_eq!(least.reduce(f64::min), Some(0.000_05));
}

#[tokio::test]
async fn slow_requests_are_counted_and_named() {
    let server = Server::with("--slow-request-ms 1");
    let client = Client::connect(server.daemon.grpc).await;
    let blob = Blob::new(1, 600_000);
    let upload = OpenUpload::start(&client, &upload_name(&blob.digest()), blob.bytes().slice(..300_000));
    thread::sleep(Duration::from_millis(50));
    upload.finish(300_000, blob.bytes().slice(300_000..)).await.unwrap();
    Page::when(&server, |page| page.sum("blockstore_slow_requests_total", &[("protocol", "grpc")]) >= 1.0).await;
    server.daemon.wait_for_line("slow request");
    let log = server.daemon.log();
    let line = log.iter().find(|line| line.contains("slow request") && line.contains("method=Write")).unwrap();
    let digest = blob.digest();
    assert!(line.contains("WARN") && line.contains(&format!("{}/{}", digest.hash, digest.size_bytes)), "{line}");

    let never = Server::with("--slow-request-ms 0");
    let client = Client::connect(never.daemon.grpc).await;
    let upload = OpenUpload::start(&client, &upload_name(&digest), blob.bytes().slice(..300_000));
    thread::sleep(Duration::from_millis(50));
    upload.finish(300_000, blob.bytes().slice(300_000..)).await.unwrap();
    let page = Page::when(&never, |page| handled(page, "Write", "OK") == 1.0).await;
    assert_eq!(page.sum("blockstore_slow_requests_total", &[]), 0.0);
    assert!(!never.daemon.stop().iter().any(|line| line.contains("slow request")));
}

/// What the document says of a family: its type, labels and help.
type Row = (String, String, String);

fn documented() -> BTreeMap<String, Row> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("METRICS.md")).unwrap();
    let mut rows = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, help] = cells[..] else { panic!("four cells: {line}") };
        let row = (kind.to_owned(), labels.to_owned(), help.to_owned());
        assert!(rows.insert(name.trim_matches('`').to_owned(), row).is_none(), "twice: {line}");
    }
    rows
}

#[tokio::test]
async fn the_document_lists_what_is_served() {
    let server = Server::start();
    let page = Page::of(&server).await;
    let served: BTreeMap<String, Row> = page
        .0
        .iter()
        .map(|(name, family)| {
            let labels = |labels: &Labels| labels.keys().filter(|label| *label != "le").cloned().collect::<Vec<_>>().join(", ");
            let of_first = labels(&family.samples[0].1);
            assert!(family.samples.iter().all(|(_, of, _)| labels(of) == of_first), "{name}: every series has the same labels");
            (name.clone(), (family.kind.clone(), of_first, family.help.clone()))
        })
        .collect();
    let documented = documented();
    let missing: Vec<_> = served.keys().filter(|name| !documented.contains_key(*name)).collect();
    let gone: Vec<_> = documented.keys().filter(|name| !served.contains_key(*name)).collect();
    assert!(missing.is_empty() && gone.is_empty(), "not documented: {missing:?}; not served: {gone:?}");
    for (name, row) in &served {
        assert_eq!(Some(row), documented.get(name), "{name}");
    }
}
