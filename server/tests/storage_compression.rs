//! Blobs stored compressed by the real process: across restarts with and without the setting, under rot, over both protocols, and in
//! bounded memory.

use blockstore_proto::{
    bytestream::{ReadRequest, byte_stream_client::ByteStreamClient},
    reapi::Digest,
};
use blockstore_server::store::{DigestFunction, Hasher};
use blockstore_tests::{
    blob::digest_of,
    client::{Client, upload_name},
    daemon::{Daemon, Spec},
    disk::forget_cached,
};
use bytes::Bytes;
use futures::StreamExt;
use std::{
    collections::HashSet,
    fs::{self, OpenOptions},
    io::{Read, Write},
    os::unix::fs::FileExt,
    path::Path,
};
use tempfile::TempDir;
use tonic::{Code, Status};

const STORE: &str = "256MiB";

/// Bytes that compress to about a third.
fn text(seed: u64, len: usize) -> Vec<u8> {
    (seed * 10_000_000..).flat_map(|n| format!("{n} is a line of a log, {}\n", n * n % 1009).into_bytes()).take(len).collect()
}

/// With a cache that holds no piece of a large blob: what rots on the disk shows.
fn start(dir: &Path, arguments: &str) -> Daemon {
    Spec::new(env!("CARGO_BIN_EXE_blockstored")).dir(dir, STORE).args("--cache-size 4KiB").args(arguments).start()
}

async fn streams(daemon: &Daemon) -> ByteStreamClient<tonic::transport::Channel> {
    ByteStreamClient::connect(format!("http://{}", daemon.grpc)).await.unwrap()
}

/// All bytes that come before the end or an error.
async fn read(daemon: &Daemon, kind: &str, digest: &Digest) -> (Vec<u8>, Option<Status>) {
    let resource_name = format!("{kind}/{}/{}", digest.hash, digest.size_bytes);
    let mut all = Vec::new();
    let mut stream = match streams(daemon).await.read(ReadRequest { resource_name, ..Default::default() }).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return (all, Some(status)),
    };
    loop {
        match stream.message().await {
            Ok(Some(message)) => all.extend_from_slice(&message.data),
            Ok(None) => return (all, None),
            Err(status) => return (all, Some(status)),
        }
    }
}

/// What a GET or HEAD over HTTP answers: its head and its body.
fn http(daemon: &Daemon, method: &str, path: &str, header: &str) -> (String, Vec<u8>) {
    let mut stream = std::net::TcpStream::connect(daemon.http).unwrap();
    // In version 1.0 a body without a length ends with the connection.
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: test\r\n{header}\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a head");
    (String::from_utf8_lossy(&answer[..end]).to_lowercase(), answer.split_off(end + 4))
}

#[tokio::test]
async fn both_forms_are_read_whatever_the_setting_is_now() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut blobs: Vec<Vec<u8>> = Vec::new();
    let mut compressed = HashSet::new();
    let settings =
        ["", "--storage-compression zstd", "--storage-compression off", "--storage-compression zstd --storage-compression-level 19"];
    for (turn, setting) in (0..).zip(settings) {
        let daemon = start(dir.path(), setting);
        let client = Client::connect(daemon.grpc).await;
        for (seed, len) in (turn * 10..).zip([300, 5000, 200_000, 3_000_000]) {
            let blob = Bytes::from(text(seed, len));
            // What is there in one form is there.
            for _ in 0..2 {
                client.write(&digest_of(&blob), vec![blob.clone()], true).await.unwrap();
                client.put_batch_as(vec![(digest_of(&blob), blob.clone())]).await.unwrap();
            }
            if setting.starts_with("--storage-compression zstd") {
                compressed.insert(digest_of(&blob).hash);
            }
            blobs.push(blob.to_vec());
        }
        for blob in &blobs {
            let digest = digest_of(blob);
            let near = [-1, 1].map(|more| Digest { size_bytes: digest.size_bytes + more, ..digest.clone() });
            assert_eq!(client.missing([std::slice::from_ref(&digest), &near].concat()).await.unwrap(), near, "{setting}");
            let (plain, error) = read(&daemon, "blobs", &digest).await;
            assert!(error.is_none() && plain == *blob, "{setting}: {error:?}");
            let (frames, error) = read(&daemon, "compressed-blobs/zstd", &digest).await;
            assert!(error.is_none() && zstd::bulk::decompress(&frames, blob.len()).unwrap() == *blob, "{setting}: {error:?}");
            // HTTP knows no size: it finds the blob by its hash alone.
            let path = format!("/cas/{}", digest.hash);
            let (head, body) = http(&daemon, "HEAD", &path, "");
            assert!(head.contains(&format!("content-length: {}", blob.len())) && body.is_empty(), "{head}");
            let (_, body) = http(&daemon, "GET", &path, "");
            assert!(body == *blob, "{setting}");
            let (head, body) = http(&daemon, "GET", &path, "Accept-Encoding: zstd\r\n");
            assert!(head.contains("content-encoding: zstd"), "{head}");
            assert!(zstd::bulk::decompress(&body, blob.len()).unwrap() == *blob, "{setting}");
            if compressed.contains(&digest.hash) {
                assert!(body == frames, "{setting}: what is stored as frames is answered with these");
            }
            let (head, body) = http(&daemon, "GET", &path, "Range: bytes=100-199\r\n");
            assert!(head.contains(&format!("bytes 100-199/{}", blob.len())) && body == blob[100..200], "{head}");
        }
        match turn % 2 {
            0 => drop(daemon.stop()),
            _ => daemon.kill(),
        }
    }
}

/// Overwrites bytes of the store's file, wherever these are.
fn spoil(file: &Path, bytes: &[u8]) {
    let store = fs::read(file).unwrap();
    let places: Vec<_> = store.windows(bytes.len()).enumerate().filter(|(_, window)| *window == bytes).map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "the bytes are in the file");
    let file_handle = OpenOptions::new().write(true).open(file).unwrap();
    for at in places {
        file_handle.write_all_at(&[0xff; 8], at as u64).unwrap();
    }
    forget_cached(file);
}

/// Rot in the middle of a blob of many pieces: a reader of either form gets right bytes, and then an error.
#[tokio::test]
async fn rot_behind_the_first_bytes_is_data_loss_in_both_forms() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = dir.path().join("store.blockstore");
    for (turn, setting) in (0..).zip(["", "--storage-compression zstd"]) {
        let daemon = start(dir.path(), setting);
        let client = Client::connect(daemon.grpc).await;
        for (turn, kind) in (10 * turn..).zip(["blobs", "compressed-blobs/zstd"]) {
            let blob = text(turn, 12_000_000);
            let digest = digest_of(&blob);
            client.write(&digest, vec![blob.clone().into()], true).await.unwrap();
            let (stored, _) = if setting.is_empty() { (blob.clone(), None) } else { read(&daemon, "compressed-blobs/zstd", &digest).await };
            let at = stored.len() * 3 / 4;
            spoil(&file, &stored[at..at + 64]);
            let (right, error) = read(&daemon, kind, &digest).await;
            let error = error.expect("an error at the end");
            assert_eq!(error.code(), Code::DataLoss, "{setting} {kind}: {error}");
            assert!(!right.is_empty(), "{setting} {kind}: the beginning is there");
            match kind {
                "blobs" => assert!(blob.starts_with(&right), "{setting}"),
                _ => {
                    let mut decoder = zstd::stream::read::Decoder::new(right.as_slice()).unwrap();
                    let mut some = Vec::new();
                    // It ends in the middle of a frame, or between two.
                    let _ = decoder.read_to_end(&mut some);
                    assert!(!some.is_empty() && blob.starts_with(&some), "{setting}");
                }
            }
            // From then on it is missing, and can be stored again.
            let (_, error) = read(&daemon, kind, &digest).await;
            assert_eq!(error.unwrap().code(), Code::NotFound);
            assert_eq!(client.missing(vec![digest.clone()]).await.unwrap().len(), 1);
            client.write(&digest, vec![blob.clone().into()], true).await.unwrap();
            assert!(read(&daemon, "blobs", &digest).await.0 == blob);
        }
        daemon.stop();
    }
}

/// The bytes of a large blob in pieces, which were never all in memory.
fn large(pieces: u64) -> impl Iterator<Item = Bytes> + Send {
    let line = text(7, 1 << 20);
    (0..pieces).map(move |index| {
        let mut piece = line.clone();
        for (unit, bytes) in piece.chunks_mut(4096).enumerate() {
            bytes[..16].copy_from_slice(format!("{:016x}", index << 20 | unit as u64).as_bytes());
        }
        piece.into()
    })
}

/// `BLOCKSTORE_TEST_LARGE_BLOB_MIB` sets its size in MiB (default 256).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_blob_is_compressed_and_read_in_bounded_memory() {
    const MEMORY_BYTES_MAX: u64 = 150 << 20;
    let pieces: u64 = std::env::var("BLOCKSTORE_TEST_LARGE_BLOB_MIB").map_or(256, |text| text.parse().expect("a number of MiB"));
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let daemon = Spec::new(env!("CARGO_BIN_EXE_blockstored"))
        .dir(dir.path(), &format!("{}MiB", 2 * pieces))
        .args("--cache-size 16MiB --storage-compression zstd")
        .start();
    let mut hasher = Hasher::new(DigestFunction::Sha256, pieces << 20);
    large(pieces).for_each(|piece| hasher.update(&piece));
    let digest = Digest { hash: hasher.finish().hash_hex(), size_bytes: (pieces << 20) as i64 };
    let small = Digest { size_bytes: 1 << 20, ..digest_of(&large(1).next().unwrap()) };
    let client = Client::connect(daemon.grpc).await;
    client.write(&small, large(1).collect(), true).await.unwrap();

    let mut offset = 0;
    let name = upload_name(&digest);
    let requests = large(pieces).map(move |data| {
        let write_offset = offset;
        offset += data.len() as i64;
        let finish_write = offset == (pieces << 20) as i64;
        blockstore_proto::bytestream::WriteRequest { resource_name: name.clone(), write_offset, finish_write, data }
    });
    assert_eq!(client.send(futures::stream::iter(requests)).await.unwrap(), digest.size_bytes);
    let mut hasher = Hasher::new(DigestFunction::Sha256, pieces << 20);
    let resource_name = format!("blobs/{}/{}", digest.hash, digest.size_bytes);
    let mut stream = streams(&daemon).await.read(ReadRequest { resource_name, ..Default::default() }).await.unwrap().into_inner();
    while let Some(message) = stream.next().await {
        hasher.update(&message.unwrap().data);
    }
    assert_eq!(hasher.finish().hash_hex(), digest.hash);
    let memory_bytes = daemon.memory_bytes_max();
    println!("blob of {pieces} MiB, compressed at rest: VmHWM {} MiB", memory_bytes >> 20);
    assert!(memory_bytes <= MEMORY_BYTES_MAX, "VmHWM of {} MiB", memory_bytes >> 20);
    let log = daemon.stop();
    let counted = log.iter().find(|line| line.contains("compressed_stored_bytes=")).expect("what was stored is told at the end");
    let field = |name: &str| -> u64 {
        let value = counted.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        value.expect("a field").parse().expect("a number")
    };
    assert_eq!((field("compressed"), field("compressed_blob_bytes"), field("plain")), (2, (pieces + 1) << 20, 0), "{counted}");
    assert!(field("compressed_stored_bytes") < pieces << 19, "{counted}");
}
