//! `/metrics`, `/status`, `/healthz` and `/readyz`: when they answer, whom and what.

use crate::{
    page::Page,
    server::{Server, spec, whole},
};
use blockstore_tests::{
    blob::Blob,
    client::{Client, OpenUpload, upload_name},
    daemon::Signal,
};
use serde_json::Value;
use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tempfile::TempDir;

const PAGES: [&str; 4] = ["/healthz", "/readyz", "/status", "/metrics"];

async fn status(server: &Server) -> Value {
    let answer = server.http.get("/status").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    serde_json::from_slice(&answer.body.unwrap()).unwrap()
}

#[tokio::test]
async fn the_pages_answer_get_and_head_and_nothing_else() {
    let server = Server::start();
    for path in PAGES {
        let got = server.http.get(path).await;
        assert_eq!(got.status, 200, "{path}");
        let head = server.http.head(path).await;
        assert_eq!((head.status.as_u16(), head.body.as_deref()), (200, Some(&b""[..])), "{path}");
        assert_eq!(head.header("content-type"), got.header("content-type"), "{path}");
        for method in ["POST", "PUT", "DELETE", "PROPFIND", "BREW"] {
            let refused = server.http.send(method, path, &[], whole("x")).await;
            assert_eq!((refused.status.as_u16(), refused.header("allow")), (405, Some("GET, HEAD")), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn status_has_the_fields_of_the_field_and_our_own() {
    let server = Server::start();
    let before = status(&server).await;
    let client = Client::connect(server.daemon.grpc).await;
    for seed in 0..5 {
        client.put(Blob::new(seed, 100_000)).await.unwrap();
    }
    let after = status(&server).await;
    let number = |of: &Value, field: &str| of[field].as_u64().unwrap_or_else(|| panic!("{field} in {of}"));
    assert_eq!((number(&before, "CurrSize"), number(&before, "NumFiles")), (0, 0));
    assert_eq!(number(&after, "NumFiles"), 5);
    let size = number(&after, "CurrSize");
    assert!((500_000..700_000).contains(&size), "{after}");
    assert_eq!(number(&after, "UncompressedSize"), size);
    assert_eq!(number(&after, "ReservedSize"), 0);
    assert!((100 << 20..256 << 20).contains(&number(&after, "MaxSize")), "{after}");
    assert!(number(&after, "NumGoroutines") > 3, "{after}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(now - number(&after, "ServerTime") < 600, "{after}");
    assert!(!after["GitCommit"].as_str().unwrap().is_empty());
    assert_eq!(after["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(after["phase"], "serving");
    assert!(after["uptime_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(after["engine"]["writable"], true);
    assert_eq!(after["engine"]["damaged_records"], 0);
}

#[tokio::test]
async fn the_pages_are_there_while_the_server_drains() {
    let server = Server::start();
    let client = Client::connect(server.daemon.grpc).await;
    let blob = Blob::new(1, 600_000);
    let upload = OpenUpload::start(&client, &upload_name(&blob.digest()), blob.bytes().slice(..300_000));
    Page::when(&server, |page| page.sum("blockstore_running_requests", &[]) == 1.0).await;
    server.daemon.signal(Signal::TERM);
    server.daemon.wait_for_line("draining");
    let drains = status(&server).await;
    assert_eq!((&drains["phase"], &drains["running_requests"]), (&"draining".into(), &1.into()));
    let page = Page::of(&server).await;
    let phase = |name| page.sum("blockstore_phase", &[("phase", name)]);
    assert_eq!([phase("opening"), phase("serving"), phase("draining")], [0.0, 0.0, 1.0]);
    assert_eq!(server.http.get("/readyz").await.status, 503);
    assert_eq!(server.http.get("/healthz").await.status, 200);
    let turned_away = client.missing(vec![blob.digest()]).await.unwrap_err();
    assert_eq!(turned_away.code(), tonic::Code::Unavailable);
    let unavailable = [("grpc_method", "FindMissingBlobs"), ("grpc_code", "Unavailable")];
    Page::when(&server, |page| page.sum("grpc_server_handled_total", &unavailable) == 1.0).await;
    upload.finish(300_000, blob.bytes().slice(300_000..)).await.unwrap();
    let (ended, log) = server.daemon.wait();
    assert!(ended.success(), "{log:#?}");
}

/// A plain GET, if somebody answers: its status and body.
fn get(addr: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(addr).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?, body.to_owned()))
}

#[test]
fn the_pages_are_there_while_the_store_opens() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // Whoever has the store's lock keeps the server waiting for it.
    spec(&dir).start().stop();
    let store = fs::OpenOptions::new().read(true).write(true).open(dir.path().join("store.blockstore")).unwrap();
    store.lock().unwrap();
    let http = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let daemon = spec(&dir).http(http).spawn();
    let alive = loop {
        match get(http, "/healthz") {
            Some(alive) => break alive,
            None => thread::sleep(Duration::from_millis(10)),
        }
    };
    assert_eq!(alive.0, 200);
    assert_eq!(get(http, "/readyz").unwrap().0, 503);
    let (code, body) = get(http, "/status").unwrap();
    let opening: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((code, &opening["phase"], &opening["engine"]), (200, &"opening".into(), &Value::Null));
    assert_eq!((&opening["CurrSize"], &opening["MaxSize"]), (&0.into(), &0.into()));
    let (code, body) = get(http, "/metrics").unwrap();
    // The page's type and order do not depend on what is there.
    let page = Page::parse(&body);
    assert_eq!((code, page.sum("blockstore_phase", &[("phase", "opening")])), (200, 1.0));
    assert!(!page.0.keys().any(|name| name.starts_with("blockstore_engine") || name.starts_with("blockstore_device")), "{page:#?}");
    assert_eq!(get(http, &format!("/cas/{}", "a".repeat(64))).unwrap().0, 503);
    drop(store);
    daemon.wait_for_line("ready in ");
    assert!(Page::parse(&get(http, "/metrics").unwrap().1).0.contains_key("blockstore_engine_live_bytes"));
    daemon.stop();
}
