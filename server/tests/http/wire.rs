//! What is said on the wire where no client would say it: bad paths and methods, heads without bodies, clients that go away.

use blockstore_tests::{
    blob::{Blob, digest_of},
    daemon::Signal,
};
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use crate::server::{Http, Server, whole};

/// Sends this and nothing more; what comes back until the server closes.
fn exchange(address: SocketAddr, text: &str, end: bool) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    if end {
        stream.shutdown(Shutdown::Write).unwrap();
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_bad_path_is_400_and_another_method_405() {
    let server = Server::start();
    let hex = digest_of(b"x").hash;
    for path in ["/", "/nothing", "/cas/", "/cas/abc", "/ac/xyz", "//cas/{}", "/cas/{}/", "/cas/{}0", "/CAS/{}"] {
        for method in ["GET", "HEAD", "PUT", "POST", "DELETE"] {
            let answer = server.http.send(method, &path.replace("{}", &hex), &[], whole("x")).await;
            assert_eq!(answer.status, 400, "{method} {path}");
        }
    }
    let upper = format!("/cas/{}", hex.to_uppercase());
    assert_eq!(server.http.get(&upper).await.status, 400);
    for (path, allowed) in [
        ("/cas/{}", "GET, HEAD, PUT"),
        ("/i/ac/{}", "GET, HEAD, PUT"),
        ("/kv/x", "GET, HEAD, PUT, DELETE, PROPFIND, MKCOL"),
        ("/healthz", "GET, HEAD"),
    ] {
        for method in ["POST", "PATCH", "OPTIONS"] {
            let answer = server.http.send(method, &path.replace("{}", &hex), &[], whole("x")).await;
            assert_eq!((answer.status.as_u16(), answer.header("allow")), (405, Some(allowed)), "{method} {path}");
        }
    }
    assert_eq!(server.http.send("DELETE", &format!("/cas/{hex}"), &[], whole("")).await.status, 405);
}

/// Seen with `curl -I --http2-prior-knowledge`: what was not found had a body of a line, and the stream ended with PROTOCOL_ERROR.
#[tokio::test]
async fn head_has_no_body_over_http2_either() {
    let server = Server::start();
    let http2 = Http::new(&server.daemon, true);
    let hex = digest_of(b"x").hash;
    assert_eq!(server.http.put(&format!("/cas/{hex}"), "x").await, 200);
    for path in ["/healthz", "/nothing", "/cas/{}", "/ac/{}", "/kv/", "/kv/x"].map(|path| path.replace("{}", &hex)) {
        let (got, head) = (http2.get(&path).await, http2.head(&path).await);
        assert_eq!((got.status, head.status, head.body.as_deref()), (head.status, got.status, Some(&b""[..])), "{path}");
        assert_eq!(head.header("content-length"), Some(got.body.unwrap().len().to_string().as_str()), "{path}");
    }
}

#[tokio::test]
async fn too_large_is_told_before_anything_is_sent() {
    let server = Server::start();
    let hex = digest_of(b"x").hash;
    for (path, bytes) in [(format!("/cas/{hex}"), 1u64 << 40), (format!("/ac/{hex}"), 100 << 20), ("/kv/x".to_owned(), 100 << 20)] {
        let head = format!("PUT {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {bytes}\r\n\r\n");
        let answer = exchange(server.daemon.http, &head, false);
        assert!(answer.starts_with("HTTP/1.1 413 "), "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_client_that_waits_is_told_whether_to_send() {
    let server = Server::start();
    let blob = Blob::new(1, 3_000).bytes();
    let path = format!("/cas/{}", digest_of(&blob).hash);
    let head = format!("PUT {path} HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 3000\r\nConnection: close\r\n\r\n");

    let mut stream = TcpStream::connect(server.daemon.http).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let mut told = [0; 25];
    stream.read_exact(&mut told).unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(&blob).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // Now it is there, and nothing need be sent.
    let answer = exchange(server.daemon.http, &head, false);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_body_that_ends_early_stores_nothing() {
    let server = Server::start();
    for size in [3_000, 3_000_000] {
        let blob = Blob::new(size, size);
        let path = format!("/cas/{}", blob.digest().hash);
        let mut stream = TcpStream::connect(server.daemon.http).unwrap();
        let head = format!("PUT {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {size}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&blob.bytes()[1..]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        // The server may close without a word: there may be nobody left to read it.
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert_eq!(server.http.get(&path).await.status, 404);
        assert_eq!(server.http.put(&path, blob.bytes()).await, 200);
    }
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending_and_keeps_its_connection() {
    let server = Server::start();
    let hex = digest_of(b"x").hash;
    // Two requests in one go: the second is answered only if the first one's body was taken off the connection.
    let body = "y".repeat(300_000);
    let refused = format!("PUT /cas/abc HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let next = format!("HEAD /cas/{hex} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    let answer = exchange(server.daemon.http, &format!("{refused}{next}"), false);
    let statuses: Vec<_> = answer.lines().filter(|line| line.starts_with("HTTP/1.1 ")).map(|line| &line[9..12]).collect();
    assert_eq!(statuses, ["400", "404"], "{answer}");
}

#[tokio::test]
async fn a_drain_turns_requests_away_and_waits_for_those_that_run() {
    let server = Server::start();
    let present = Blob::new(1, 2_000).bytes();
    let path = format!("/cas/{}", digest_of(&present).hash);
    assert_eq!(server.http.put(&path, present).await, 200);
    // Something that runs, so that the drain lasts.
    let sent = Blob::new(3, 700_000);
    let sent_path = format!("/cas/{}", sent.digest().hash);
    let mut running = TcpStream::connect(server.daemon.http).unwrap();
    running.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let head = format!("PUT {sent_path} HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 700000\r\n\r\n");
    running.write_all(head.as_bytes()).unwrap();
    let mut told = [0; 25];
    running.read_exact(&mut told).unwrap();

    server.daemon.signal(Signal::TERM);
    server.daemon.wait_for_line("draining");
    let turned_away = server.http.get(&path).await;
    assert_eq!(turned_away.status, 503);
    assert!(turned_away.header("retry-after").is_some());
    assert_eq!(server.http.get("/readyz").await.status, 503);
    assert_eq!(server.http.get("/healthz").await.status, 200);
    running.write_all(&sent.bytes()).unwrap();
    let mut answer = [0; 13];
    running.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 ");
    let (status, log) = server.daemon.wait();
    assert!(status.success(), "{log:#?}");
}

#[tokio::test]
async fn requests_that_come_together_are_answered_in_order() {
    let server = Server::start();
    let blob = Blob::new(1, 2_000).bytes();
    let path = format!("/cas/{}", digest_of(&blob).hash);
    let put = format!("PUT {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 2000\r\n\r\n");
    let get = |method: &str, path: &str, more: &str| format!("{method} {path} HTTP/1.1\r\nHost: test\r\n{more}\r\n");
    let mut stream = TcpStream::connect(server.daemon.http).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let last = get("GET", &path, "Connection: close\r\nRange: bytes=0-9\r\n");
    let all = [
        put.as_bytes(),
        &blob,
        get("HEAD", &path, "").as_bytes(),
        get("GET", &path, "").as_bytes(),
        get("GET", "/kv/none", "").as_bytes(),
        last.as_bytes(),
    ]
    .concat();
    stream.write_all(&all).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();

    // Each head says how much of a body follows; HEAD says it too, and has none.
    let mut left = &answer[..];
    for (status, said, body) in
        [(200, 0, &b""[..]), (200, 2_000, b""), (200, 2_000, &blob), (404, 17, b"not in the store\n"), (206, 10, &blob[..10])]
    {
        let end = left.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8(left[..end].to_vec()).unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert!(head.contains(&format!("\r\ncontent-length: {said}\r\n")), "{head}");
        assert!(left[end..].starts_with(body), "{head}");
        left = &left[end + body.len()..];
    }
    assert_eq!(left, b"");
}

#[tokio::test]
async fn chunks_are_taken_as_they_are_cut_and_refused_where_they_are_none() {
    let server = Server::start();
    let blob = Blob::new(1, 300).bytes();
    let path = format!("/cas/{}", digest_of(&blob).hash);
    let head = format!("PUT {path} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n");
    let chunk = |data: &[u8]| [format!("{:x};name=value\r\n", data.len()).as_bytes(), data, b"\r\n"].concat();
    let chunks = [chunk(&blob[..1]), chunk(&blob[1..299]), chunk(&blob[299..])].concat();
    let send = |body: &[u8], end: bool| {
        let mut stream = TcpStream::connect(server.daemon.http).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        if end {
            stream.shutdown(Shutdown::Write).unwrap();
        }
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    };
    for broken in [&b"zz\r\nx\r\n0\r\n\r\n"[..], &chunks[..50], &chunks, &chunk(&blob[..20])] {
        let answer = send(broken, true);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert_eq!(server.http.get(&path).await.status, 404);
    }
    let answer = send(&[&chunks[..], b"0\r\nTrailer: ignored\r\n\r\n"].concat(), false);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    server.http.get(&path).await.assert_is(200, &blob);
}

#[tokio::test]
async fn instances_and_names_have_bounds_and_may_be_percent_encoded() {
    let server = Server::start();
    let blob = Blob::new(1, 50).bytes();
    let hex = digest_of(&blob).hash;
    let longest = "i".repeat(1024);
    for kind in ["cas", "ac"] {
        let path = |instance: &str| format!("/{instance}/{kind}/{hex}");
        assert_eq!(server.http.put(&path(&longest), blob.clone()).await, 200);
        server.http.get(&path(&longest)).await.assert_is(200, &blob);
        // The same, written otherwise; and one byte too many.
        server.http.get(&path(&longest.replace('i', "%69"))).await.assert_is(200, &blob);
        assert_eq!(server.http.get(&path(&format!("{longest}i"))).await.status, 400);
        assert_eq!(server.http.get(&path("%ff")).await.status, 400, "no UTF-8");
        assert_eq!(server.http.get(&path("a//b")).await.status, 400, "an empty segment");
        for bad in [&hex[1..], &hex.to_uppercase(), &format!("{hex}%20"), &format!("%6{}", &hex[1..])] {
            assert_eq!(server.http.get(&format!("/{kind}/{bad}")).await.status, 400, "{kind}: {bad}");
        }
        // A query means nothing.
        server.http.get(&format!("{}?x=y", path(&longest))).await.assert_is(200, &blob);
    }
    let name = format!("/{longest}/kv/{}", "%00".repeat(1024));
    assert_eq!(server.http.put(&name, "longest").await, 200);
    server.http.get(&name).await.assert_is(200, b"longest");
    assert_eq!(server.http.put(&format!("{name}x"), "").await, 400);
}
