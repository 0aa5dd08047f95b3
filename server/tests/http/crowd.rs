//! A crowd: ten thousand clients that keep their connections, and among them such that never finish what they began. Others are served
//! meanwhile, and memory stays within its bound.

use blockstore_tests::{blob::Blob, daemon::Spec, limits::raise_open_files};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};
use tempfile::TempDir;

use crate::server::Http;

const CACHE: &str = "64MiB";
const CACHE_BYTES: u64 = 64 << 20;
/// What the process may have beside its cache.
const BESIDE_BYTES_MAX: u64 = 256 << 20;

/// Connections that are kept.
const KEPT: u64 = 10_000;
/// Heads that never end.
const HEADS: u64 = 800;
/// Uploads that stand still, of either size.
const STALLED: u64 = 400;
const STALLED_BYTES: [u64; 2] = [1 << 20, 5 << 20];
/// Uploads that end in their middle.
const ABORTED: u64 = 400;

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    stream
}

/// Sends as much as the server takes without being waited for.
fn pour(mut stream: &TcpStream, data: &[u8]) {
    stream.set_nonblocking(true).unwrap();
    let mut left = data;
    while let Ok(taken @ 1..) = stream.write(left) {
        left = &left[taken..];
    }
    stream.set_nonblocking(false).unwrap();
}

fn ask(mut stream: &TcpStream, path: &str) {
    write!(stream, "HEAD {path} HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
}

fn assert_answered(mut stream: &TcpStream) {
    let mut answer = [0; 1024];
    let len = stream.read(&mut answer).unwrap();
    assert!(answer[..len].starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer[..len]));
}

/// Whoever is no part of the crowd.
async fn assert_served(http: &Http, round: u64) {
    for (seed, size) in [(1, 500), (2, 60_000), (3, 1 << 20), (4, 3_000_000)] {
        let blob = Blob::new(round * 10 + seed, size);
        let path = format!("/cas/{}", blob.digest().hash);
        assert_eq!(http.put(&path, blob.bytes()).await, 200, "round {round}: {size} bytes");
        http.get(&path).await.assert_is(200, &blob.bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_connections_and_clients_that_never_finish_cost_little_and_hold_up_nobody() {
    let files = raise_open_files();
    let others = HEADS + STALLED * 2 + 200;
    // Three quarters of the files may be connections.
    let kept = KEPT.min((files / 4 * 3).saturating_sub(others));
    println!("{files} open files are allowed: {kept} connections are kept");
    assert!(kept >= 100, "too few open files are allowed for this test: raise ulimit -Hn");

    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // Large enough that running uploads do not hold half of it.
    let daemon = Spec::new(env!("CARGO_BIN_EXE_blockstored")).dir(dir.path(), "2GiB").args("--cache-size").arg(CACHE).start();
    let http = Http::new(&daemon, false);
    assert_served(&http, 0).await;
    let present = format!("/cas/{}", Blob::new(1, 500).digest().hash);
    println!("{} MiB before", daemon.memory_bytes_max() >> 20);

    let mut crowd = Vec::new();
    for some in 0..kept.div_ceil(500) {
        let streams: Vec<_> = (some * 500..kept.min((some + 1) * 500)).map(|_| connect(daemon.http)).collect();
        streams.iter().for_each(|stream| ask(stream, &present));
        streams.iter().for_each(assert_answered);
        crowd.extend(streams);
    }
    println!("{} MiB with {kept} connections", daemon.memory_bytes_max() >> 20);
    assert_served(&http, 1).await;

    let heads: Vec<_> = (0..HEADS)
        .map(|_| {
            let stream = connect(daemon.http);
            pour(&stream, format!("GET /healthz HTTP/1.1\r\nX-Slow: {}", "x".repeat(8_000)).as_bytes());
            stream
        })
        .collect();
    println!("{} MiB with {HEADS} heads that do not end", daemon.memory_bytes_max() >> 20);
    assert_served(&http, 2).await;

    let mut stalled = Vec::new();
    for size in STALLED_BYTES {
        for seed in 0..STALLED {
            let blob = Blob::new(100 + seed, size);
            let bytes = blob.bytes();
            let mut stream = connect(daemon.http);
            write!(stream, "PUT /cas/{} HTTP/1.1\r\nHost: test\r\nContent-Length: {size}\r\n\r\n", blob.digest().hash).unwrap();
            pour(&stream, &bytes[..bytes.len() - 1]);
            stalled.push((stream, bytes));
        }
        println!("{} MiB with {STALLED} stalled uploads of {} KiB", daemon.memory_bytes_max() >> 20, size >> 10);
        assert_served(&http, 3 + size).await;
    }
    drop(stalled);

    for seed in 0..ABORTED {
        let blob = Blob::new(10_000 + seed, 2 << 20);
        let mut stream = connect(daemon.http);
        write!(stream, "PUT /cas/{} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n", blob.digest().hash, 2 << 20).unwrap();
        pour(&stream, &blob.bytes()[..1 << 20]);
    }
    println!("{} MiB with {ABORTED} uploads that were aborted", daemon.memory_bytes_max() >> 20);
    assert_served(&http, 4).await;

    // Who kept its connection still has it.
    for stream in crowd.iter().step_by(50) {
        ask(stream, &present);
        assert_answered(stream);
    }
    drop(heads);
    let memory_bytes = daemon.memory_bytes_max();
    println!("{} MiB in all, of which {} are the cache", memory_bytes >> 20, CACHE_BYTES >> 20);
    assert!(memory_bytes <= CACHE_BYTES + BESIDE_BYTES_MAX, "{} MiB", memory_bytes >> 20);
    drop(crowd);
    daemon.stop();
}
