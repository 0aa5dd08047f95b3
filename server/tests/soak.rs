//! Clients that mean harm, all at once, against the real process: it stays up and within its memory, and honest ones are served.
//!
//! Runs for [`SECONDS`]. The long form: `SOAK_SECONDS=3600 cargo test --release -p blockstore-server --test soak -- --nocapture`.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use blockstore_proto::{
    bytestream::{ReadRequest, WriteRequest, byte_stream_client::ByteStreamClient},
    grpc::health::v1::health_check_response::ServingStatus,
};
use blockstore_server::fuzzing;
use blockstore_tests::{
    blob::{Blob, Random},
    client::{Client, Found, upload_name},
    daemon::Spec,
};
use bytes::Bytes;
use futures::{StreamExt, future::join_all, stream};
use http_body_util::Full;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use tonic::transport::{Channel, Endpoint};
use tower::{Service, ServiceExt};

/// How long the normal run lasts.
const SECONDS: u64 = 15;
const CACHE_BYTES: u64 = 32 << 20;
/// What the process may have beside its cache.
const MEMORY_BYTES_MAX: u64 = 256 << 20;
/// Streams that are opened and abandoned, in every run.
const ABANDONED_STREAMS: u64 = 10_000;
/// An honest call that takes so long is not being served. Nothing here depends on how fast it is below that.
const STUCK: Duration = Duration::from_secs(60);
const LARGE: Blob = Blob { seed: 77, size_bytes: 48 << 20 };

struct Soak {
    /// Resource name of [`LARGE`].
    large: String,
    grpc: SocketAddr,
    http: SocketAddr,
    until: Instant,
    served: AtomicU64,
    attacks: AtomicU64,
}

impl Soak {
    fn goes_on(&self) -> bool {
        Instant::now() < self.until
    }
    fn attacked(&self) {
        self.attacks.fetch_add(1, Ordering::Relaxed);
    }
    async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.grpc)).unwrap().connect().await.unwrap()
    }
}

/// Puts, finds and reads blobs of its own; every answer is right, and comes.
async fn honest(soak: Arc<Soak>, number: u64) -> Vec<Blob> {
    let client = Client::connect(soak.grpc).await;
    let mut random = Random::new(number);
    let mut stored = Vec::new();
    while soak.goes_on() {
        let size_bytes = if random.below(20) == 0 { 3_000_000 } else { random.small_size_bytes() };
        let blob = Blob::new(number << 32 | stored.len() as u64, size_bytes);
        let served = async {
            client.put(blob).await.unwrap();
            assert!(client.missing(vec![blob.digest()]).await.unwrap().is_empty());
            assert_eq!(client.check(blob).await.unwrap(), Found::Exact);
        };
        timeout(STUCK, served).await.expect("an honest client is served");
        stored.push(blob);
        soak.served.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(5)).await;
    }
    stored
}

/// Bytes that are no protocol, or begin as one.
async fn noise(soak: Arc<Soak>, address: SocketAddr, seed: u64) {
    const BEGINNINGS: [&[u8]; 5] = [
        b"",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        b"PUT /cas/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 HTTP/1.1\r\nHost: x\r\n",
        b"GET /cas/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    ];
    let mut random = Random::new(seed);
    while soak.goes_on() {
        let Ok(mut connection) = TcpStream::connect(address).await else { continue };
        let mut bytes = BEGINNINGS[random.below(5) as usize].to_vec();
        bytes.extend((0..random.below(3000)).map(|_| random.next() as u8));
        // Whoever answers and closes while this is being written is right.
        let _ = connection.write_all(&bytes).await;
        let mut answer = [0; 512];
        let _ = timeout(Duration::from_millis(20), connection.read(&mut answer)).await;
        soak.attacked();
    }
}

/// Messages that are nearly right.
async fn nearly_right(soak: Arc<Soak>, seed: u64) {
    let mut random = Random::new(seed);
    let mut channel = soak.channel().await;
    while soak.goes_on() {
        let input: Vec<_> = (0..20 + random.below(300)).map(|_| random.next() as u8).collect();
        let (path, body) = fuzzing::call(&input);
        let request = http::Request::post(format!("http://{}{path}", soak.grpc)).header("content-type", "application/grpc");
        let request = request.body(tonic::body::Body::new(Full::new(body))).unwrap();
        let ready = channel.ready().await.expect("a connection");
        // Some wait for the answer, and some go away.
        let _ = timeout(Duration::from_millis(random.below(200)), ready.call(request)).await;
        soak.attacked();
    }
}

/// Uploads that begin, some of them huge by what they say, and are dropped.
async fn abandoned(soak: Arc<Soak>, seed: u64, streams: u64) {
    let mut client = ByteStreamClient::new(soak.channel().await);
    let mut random = Random::new(seed);
    for number in 0..streams {
        let mut digest = Blob::new(seed << 32 | number, 1).digest();
        digest.size_bytes = [1, 5000, 3 << 20, 1 << 40, i64::MAX][random.below(5) as usize];
        let first =
            WriteRequest { resource_name: upload_name(&digest), data: vec![7; random.below(3000) as usize].into(), ..Default::default() };
        let call = async {
            match random.below(3) {
                0 => drop(client.write(stream::iter([first]).chain(stream::pending())).await),
                1 => drop(client.write(stream::iter([first])).await),
                _ => drop(client.read(ReadRequest { resource_name: soak.large.clone(), ..Default::default() }).await),
            }
        };
        let _ = timeout(Duration::from_millis(2), call).await;
        soak.attacked();
    }
}

/// Readers that do not read what they asked for, and writers that stop: on connections that stay.
async fn stalled(soak: Arc<Soak>, seed: u64) {
    let mut client = ByteStreamClient::new(soak.channel().await);
    let (mut readers, mut writers) = (Vec::new(), Vec::new());
    for number in 0..40 {
        readers.push(client.read(ReadRequest { resource_name: soak.large.clone(), ..Default::default() }).await.unwrap());
        let blob = Blob::new(seed << 32 | number, 4 << 20);
        let first = WriteRequest { resource_name: upload_name(&blob.digest()), data: blob.bytes().slice(..500_000), ..Default::default() };
        let mut client = client.clone();
        writers.push(tokio::spawn(async move { client.write(stream::iter([first]).chain(stream::pending())).await }));
        soak.attacked();
    }
    while soak.goes_on() {
        sleep(Duration::from_millis(100)).await;
    }
    writers.iter().for_each(|writer| writer.abort());
}

/// Frames that decompress to much more than their blob has.
async fn bombs(soak: Arc<Soak>, seed: u64) {
    let client = Client::connect(soak.grpc).await;
    let mut frame = zstd::Encoder::new(Vec::new(), 1).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), 256 << 20), &mut frame).unwrap();
    let bomb = Bytes::from(frame.finish().unwrap());
    let mut number = 0;
    while soak.goes_on() {
        let digest = Blob::new(seed << 32 | number, 1_500_000).digest();
        let name = upload_name(&digest).replace("/blobs/", "/compressed-blobs/zstd/");
        assert!(client.write_as(&name, vec![bomb.clone()], true).await.is_err());
        number += 1;
        soak.attacked();
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_clients_neither_stop_the_server_nor_the_others() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(SECONDS, |seconds| seconds.parse().expect("a number of seconds"));
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let spec = Spec::new(env!("CARGO_BIN_EXE_blockstored")).dir(dir.path(), "2GiB").args(&format!("--cache-size {CACHE_BYTES}"));
    let daemon = spec.start();
    let client = Client::connect(daemon.grpc).await;
    client.put(LARGE).await.unwrap();

    let until = Instant::now() + Duration::from_secs(seconds);
    let (served, attacks) = (AtomicU64::new(0), AtomicU64::new(0));
    let large = format!("blobs/{}/{}", LARGE.digest().hash, LARGE.size_bytes);
    let soak = Arc::new(Soak { large, grpc: daemon.grpc, http: daemon.http, until, served, attacks });
    let honest = join_all((1..=2).map(|number| tokio::spawn(honest(soak.clone(), number))));
    let attackers = vec![
        tokio::spawn(noise(soak.clone(), soak.grpc, 11)),
        tokio::spawn(noise(soak.clone(), soak.http, 12)),
        tokio::spawn(nearly_right(soak.clone(), 13)),
        tokio::spawn(nearly_right(soak.clone(), 14)),
        tokio::spawn(abandoned(soak.clone(), 15, ABANDONED_STREAMS / 2)),
        tokio::spawn(abandoned(soak.clone(), 16, ABANDONED_STREAMS / 2)),
        tokio::spawn(stalled(soak.clone(), 17)),
        tokio::spawn(bombs(soak.clone(), 18)),
    ];
    for attacker in attackers {
        attacker.await.unwrap();
    }
    let stored: Vec<Blob> = honest.await.into_iter().flat_map(|stored| stored.unwrap()).collect();

    let client = Client::connect(daemon.grpc).await;
    assert_eq!(client.health().await.unwrap(), ServingStatus::Serving);
    for &blob in stored.iter().chain([&LARGE]) {
        assert_eq!(client.check(blob).await.unwrap(), Found::Exact, "{blob:?}");
    }
    let memory_bytes = daemon.memory_bytes_max();
    println!(
        "{} attacks, {} honest blobs put and read back, VmHWM {} MiB with a cache of {}",
        soak.attacks.load(Ordering::Relaxed),
        soak.served.load(Ordering::Relaxed),
        memory_bytes >> 20,
        CACHE_BYTES >> 20
    );
    assert!(!stored.is_empty());
    assert!(memory_bytes <= CACHE_BYTES + MEMORY_BYTES_MAX, "{} MiB", memory_bytes >> 20);
    assert!(!daemon.log().iter().any(|line| line.contains("panicked")), "a panic: {:#?}", daemon.log());
    daemon.stop();
}
