//! Clients that take their time, say too much, or are too many: what each of them may, and that nobody else notices.

use blockstore_tests::{
    blob::{Blob, digest_of},
    daemon::Daemon,
};
use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use crate::server::{Server, spec};

/// Whoever waits for so long waits in vain.
const STUCK: Duration = Duration::from_secs(120);

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(STUCK)).unwrap();
    stream
}

/// What the server says until it closes the connection.
fn rest(mut stream: &TcpStream) -> String {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // What was sent after the server closed resets the connection.
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => panic!("not closed: {error}"),
        _ => String::from_utf8_lossy(&answer).into_owned(),
    }
}

/// One answer without a body on a connection that stays.
fn answer(mut stream: &TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn head(mut stream: &TcpStream, method: &str, path: &str, more: &str) {
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: test\r\n{more}\r\n").unwrap();
}

#[track_caller]
fn assert_serves(daemon: &Daemon) {
    assert_eq!(daemon.http_status("/healthz"), Some(200));
}

#[tokio::test]
async fn a_head_that_does_not_end_is_given_up() {
    let server = Server::with("--http-head-ms-max 300 --http-idle-ms-max 3600000");
    let half = connect(server.daemon.http);
    (&half).write_all(b"GET /healthz HTTP/1.1\r\nHost: te").unwrap();
    assert!(rest(&half).starts_with("HTTP/1.1 408 "));
    // Nor does it help to send a byte now and then, or to have asked for something before.
    let slow = connect(server.daemon.http);
    head(&slow, "HEAD", "/healthz", "");
    assert!(answer(&slow).starts_with("HTTP/1.1 200 "));
    let mut dripping = slow.try_clone().unwrap();
    let drip = thread::spawn(move || {
        dripping.write_all(b"GET /healthz HTTP/1.1\r\nX: ").unwrap();
        while dripping.write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    assert!(rest(&slow).starts_with("HTTP/1.1 408 "));
    drip.join().unwrap();
    assert_serves(&server.daemon);
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let server = Server::start();
    let name = "n".repeat(1_000);
    let large = format!("X-Large: {}\r\n", "x".repeat(12 << 10));
    let stream = connect(server.daemon.http);
    head(&stream, "GET", &format!("/kv/{}", name.replace('n', "%6e")), &format!("{large}Connection: close\r\n"));
    assert!(rest(&stream).starts_with("HTTP/1.1 404 "));
    for larger in [format!("X-Large: {}\r\n", "x".repeat(64 << 10)), "X: y\r\n".repeat(10_000), "x".repeat(100_000)] {
        let mut stream = connect(server.daemon.http);
        let head = format!("GET /healthz HTTP/1.1\r\nHost: test\r\n{larger}\r\n");
        // It may not take all of it.
        let _ = stream.write_all(head.as_bytes());
        let answer = rest(&stream);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    // One whose client reads before it says more is told why.
    let mut stream = connect(server.daemon.http);
    write!(stream, "GET /healthz HTTP/1.1\r\nHost: test\r\nX: {}", "x".repeat((16 << 10) + 100)).unwrap();
    assert!(rest(&stream).starts_with("HTTP/1.1 431 "));
    assert_serves(&server.daemon);
}

#[tokio::test]
async fn a_connection_that_nobody_uses_is_closed() {
    let server = Server::with("--http-idle-ms-max 300 --http-head-ms-max 3600000");
    let unused = connect(server.daemon.http);
    assert_eq!(rest(&unused), "");
    let used = connect(server.daemon.http);
    for _ in 0..3 {
        head(&used, "HEAD", "/healthz", "");
        assert!(answer(&used).starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(rest(&used), "");
    // HTTP/2 is told so: its last frame is GOAWAY.
    let mut http2 = connect(server.daemon.http);
    http2.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut frames = Vec::new();
    let _ = http2.read_to_end(&mut frames);
    let mut kinds = Vec::new();
    let mut left = &frames[..];
    while let [a, b, c, kind, rest @ ..] = left {
        kinds.push(*kind);
        left = rest.get(5 + usize::from(*a) * 65_536 + usize::from(*b) * 256 + usize::from(*c)..).unwrap_or_default();
    }
    assert!(kinds.contains(&7), "{kinds:?}");
}

#[tokio::test]
async fn a_body_that_stands_still_is_given_up_and_a_slow_one_is_not() {
    let server = Server::with("--http-stall-ms-max 2500 --http-idle-ms-max 100 --http-head-ms-max 3600000");
    let paths = |seed| [format!("/cas/{}", Blob::new(seed, 30_000).digest().hash), format!("/ac/{}", digest_of(b"a").hash), "/kv/x".into()];
    let stalled: Vec<_> = paths(1)
        .into_iter()
        .flat_map(|path| [30_000, 29_999, 1].map(|sent| (path.clone(), sent - 1)))
        .map(|(path, sent)| {
            let mut stream = connect(server.daemon.http);
            head(&stream, "PUT", &path, "Content-Length: 30000\r\n");
            stream.write_all(&Blob::new(1, 30_000).bytes()[..sent]).unwrap();
            stream
        })
        .collect();
    // As long as three stalls take, but with progress in each.
    let slow: Vec<_> = paths(2)
        .into_iter()
        .map(|path| {
            let stream = connect(server.daemon.http);
            head(&stream, "PUT", &path, "Content-Length: 30000\r\nConnection: close\r\n");
            stream
        })
        .collect();
    for piece in Blob::new(2, 30_000).bytes().chunks(1_200) {
        thread::sleep(Duration::from_millis(300));
        slow.iter().for_each(|mut stream| stream.write_all(piece).unwrap());
    }
    for stream in &slow {
        let answer = rest(stream);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    for stream in &stalled {
        let answer = rest(stream);
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    }
    assert_eq!(server.http.get(&paths(1)[0]).await.status, 404);
    for path in paths(2) {
        server.http.get(&path).await.assert_is(200, &Blob::new(2, 30_000).bytes());
    }
}

#[tokio::test]
async fn a_client_that_does_not_take_its_answer_is_given_up() {
    let server = Server::with("");
    let blob = Blob::new(1, 100 << 20);
    let path = format!("/cas/{}", blob.digest().hash);
    assert_eq!(server.http.put(&path, blob.bytes()).await, 200);
    server.daemon.stop();
    let debug = ["env", "RUST_LOG=info,blockstore_server::front::http=debug"];
    let daemon = spec(&server.dir).args("--http-stall-ms-max 500").through(&debug).start();
    let stream = connect(daemon.http);
    head(&stream, "GET", &path, "");
    daemon.wait_for_line("client does not take its answer");
    let mut taken = Vec::new();
    let _ = (&stream).read_to_end(&mut taken);
    assert!(taken.starts_with(b"HTTP/1.1 200 ") && (taken.len() as u64) < blob.size_bytes, "{} bytes", taken.len());
    assert_serves(&daemon);
}

#[tokio::test]
async fn one_more_than_may_be_takes_the_place_of_the_longest_idle() {
    let server = Server::with("--http-connections-max 4");
    let idle: Vec<_> = (0..4)
        .map(|_| {
            let stream = connect(server.daemon.http);
            head(&stream, "HEAD", "/healthz", "");
            assert!(answer(&stream).starts_with("HTTP/1.1 200 "));
            stream
        })
        .collect();
    // Used once more, so that it is not the longest.
    head(&idle[0], "HEAD", "/healthz", "");
    answer(&idle[0]);
    let fifth = connect(server.daemon.http);
    head(&fifth, "HEAD", "/healthz", "");
    assert!(answer(&fifth).starts_with("HTTP/1.1 200 "));
    assert_eq!(rest(&idle[1]), "");
    for kept in [&idle[0], &idle[2], &idle[3]] {
        head(kept, "HEAD", "/healthz", "");
        assert!(answer(kept).starts_with("HTTP/1.1 200 "));
    }
}

#[tokio::test]
async fn nobody_is_cut_off_a_running_request_by_another() {
    let server = Server::with("--http-connections-max 3");
    let blobs: Vec<_> = (0..3).map(|seed| Blob::new(seed, 20_000)).collect();
    let mut running: Vec<_> = blobs
        .iter()
        .map(|blob| {
            let stream = connect(server.daemon.http);
            let more = "Expect: 100-continue\r\nContent-Length: 20000\r\n";
            head(&stream, "PUT", &format!("/cas/{}", blob.digest().hash), more);
            assert!(answer(&stream).starts_with("HTTP/1.1 100 "));
            stream
        })
        .collect();
    let refused = connect(server.daemon.http);
    let said = rest(&refused);
    assert!(said.starts_with("HTTP/1.1 503 ") && said.contains("retry-after: "), "{said}");
    for (mut stream, blob) in running.iter().zip(&blobs) {
        stream.write_all(&blob.bytes()).unwrap();
        assert!(answer(stream).starts_with("HTTP/1.1 200 "));
    }
    // Now one of them is idle, if it is still there.
    running.pop().unwrap().shutdown(Shutdown::Both).unwrap();
    assert_serves(&server.daemon);
}
