//! Compressed bodies in both directions: what is asked for is sent, what is sent is what it says, and nothing takes more than it may.

use blockstore_tests::{
    blob::{Blob, digest_of},
    client::{Client, Found},
};
use bytes::Bytes;
use zstd::stream::{raw::CParameter, write::Encoder};

use crate::server::{Answer, Http, Server, chunked, whole};

/// Bytes that compress well, of any length.
fn soft(seed: u64, len: usize) -> Vec<u8> {
    (0..len / 8).flat_map(|n| (seed + n as u64 / 500).to_le_bytes()).chain([7; 7]).take(len).collect()
}

fn path(bytes: &[u8]) -> String {
    format!("/cas/{}", digest_of(bytes).hash)
}

fn frame(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

/// A frame of zeros that were never all in memory.
fn bomb(bytes: u64, window_log: u32) -> Bytes {
    let mut encoder = Encoder::new(Vec::new(), 1).unwrap();
    encoder.set_parameter(CParameter::WindowLog(window_log)).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), bytes), &mut encoder).unwrap();
    encoder.finish().unwrap().into()
}

async fn get(server: &Server, path: &str, headers: &[(&str, &str)]) -> Answer {
    server.http.send("GET", path, headers, whole("")).await
}

async fn put(server: &Server, path: &str, size: &str, body: impl Into<Bytes>) -> u16 {
    let headers = [("content-encoding", "zstd"), ("x-digest-sizebytes", size)];
    server.http.send("PUT", path, &headers, whole(body)).await.status.as_u16()
}

#[track_caller]
fn assert_encoded(answer: &Answer, bytes: &[u8]) {
    let body = answer.body.as_deref().expect("all of the answer");
    assert_eq!((answer.status.as_u16(), answer.header("content-encoding")), (200, Some("zstd")));
    assert_eq!(answer.header("vary"), Some("accept-encoding"));
    assert!(zstd::decode_all(body).unwrap() == bytes, "other bytes");
    assert!(body.len() < bytes.len().max(20), "{} bytes became {}", bytes.len(), body.len());
    if let Some(length) = answer.header("content-length") {
        assert_eq!(length, body.len().to_string());
    }
}

#[track_caller]
fn assert_plain(answer: &Answer, bytes: &[u8]) {
    answer.assert_is(200, bytes);
    assert_eq!((answer.header("content-encoding"), answer.header("vary")), (None, Some("accept-encoding")));
    assert_eq!(answer.header("content-length"), Some(bytes.len().to_string().as_str()));
}

#[tokio::test]
async fn a_client_that_takes_zstd_gets_it_and_no_other_does() {
    let server = Server::start();
    for size in [300, 60_000, 65_536, 65_537, 1 << 20, (1 << 20) + 1, 7_000_000] {
        let bytes = soft(size as u64, size);
        let name = path(&bytes);
        assert_eq!(server.http.put(&name, bytes.clone()).await, 200);
        for accepted in ["zstd", "gzip, deflate, zstd", "zstd;q=0.1", "*;q=0, zstd", "identity;q=0, *"] {
            assert_encoded(&get(&server, &name, &[("accept-encoding", accepted)]).await, &bytes);
        }
        for accepted in ["gzip", "identity", "*", "zstd;q=0", "zstd;q=0.5, identity", ""] {
            assert_plain(&get(&server, &name, &[("accept-encoding", accepted)]).await, &bytes);
        }
        assert_plain(&server.http.get(&name).await, &bytes);
        for accepted in ["identity;q=0", "*;q=0", "gzip, *;q=0"] {
            let answer = get(&server, &name, &[("accept-encoding", accepted)]).await;
            assert_eq!((answer.status.as_u16(), answer.header("vary")), (406, Some("accept-encoding")), "{accepted}");
        }
        // HEAD is about the blob as it is.
        let head = server.http.send("HEAD", &name, &[("accept-encoding", "zstd")], whole("")).await;
        assert_eq!((head.header("content-length"), head.header("content-encoding")), (Some(size.to_string().as_str()), None));
        let http2 = Http::new(&server.daemon, true);
        assert_encoded(&http2.get_with(&name, "accept-encoding", "zstd").await, &bytes);
    }
    assert_eq!(get(&server, &path(b"missing"), &[("accept-encoding", "zstd")]).await.status, 404);
}

#[tokio::test]
async fn what_does_not_get_smaller_goes_as_it_is_unless_that_is_excluded() {
    let server = Server::start();
    for size in [0, 10, 60_000, 2_000_000] {
        let bytes = Blob::new(1, size).bytes();
        let name = path(&bytes);
        assert_eq!(server.http.put(&name, bytes.clone()).await, 200);
        assert_plain(&get(&server, &name, &[("accept-encoding", "zstd")]).await, &bytes);
        let answer = get(&server, &name, &[("accept-encoding", "zstd, identity;q=0")]).await;
        assert_eq!(answer.header("content-encoding"), Some("zstd"), "{size}");
        assert!(zstd::decode_all(answer.body.as_deref().unwrap()).unwrap() == bytes, "{size}");
    }
}

#[tokio::test]
async fn an_encoded_answer_has_a_tag_of_its_own_and_no_ranges() {
    let server = Server::start();
    let bytes = soft(1, 3_000_000);
    let name = path(&bytes);
    assert_eq!(server.http.put(&name, bytes.clone()).await, 200);
    let zstd = ("accept-encoding", "zstd");
    let encoded = get(&server, &name, &[zstd]).await.header("etag").unwrap().to_owned();
    let plain = server.http.get(&name).await.header("etag").unwrap().to_owned();
    assert_ne!(encoded, plain);
    assert!([&encoded, &plain].iter().all(|tag| tag.starts_with('"')), "strong");

    for tag in [&encoded, &plain] {
        let known = get(&server, &name, &[zstd, ("if-none-match", tag)]).await;
        known.assert_is(304, b"");
        assert_eq!((known.header("etag"), known.header("vary")), (Some(tag.as_str()), Some("accept-encoding")));
    }
    // Who does not take zstd does not have it.
    assert_plain(&get(&server, &name, &[("if-none-match", &encoded)]).await, &bytes);
    assert_eq!(get(&server, &name, &[("if-none-match", &plain)]).await.status, 304);
    let only = ("accept-encoding", "zstd, identity;q=0");
    assert_encoded(&get(&server, &name, &[only, ("if-none-match", &plain)]).await, &bytes);
    assert_eq!(get(&server, &name, &[only, ("if-none-match", &encoded)]).await.status, 304);

    // A range is one of the blob as it is.
    let part = get(&server, &name, &[zstd, ("range", "bytes=5-14")]).await;
    part.assert_is(206, &bytes[5..15]);
    assert_eq!((part.header("content-encoding"), part.header("etag")), (None, Some(plain.as_str())));
    assert_eq!(part.header("content-range"), Some("bytes 5-14/3000000"));
    let part = get(&server, &name, &[zstd, ("range", "bytes=5-14"), ("if-range", &encoded)]).await;
    assert_plain(&part, &bytes);
    get(&server, &name, &[zstd, ("range", "bytes=5-14"), ("if-range", &plain)]).await.assert_is(206, &bytes[5..15]);
    assert_encoded(&get(&server, &name, &[only, ("range", "bytes=5-14")]).await, &bytes);
}

#[tokio::test]
async fn a_compressed_upload_is_stored_as_what_it_decompresses_to() {
    let server = Server::start();
    let grpc = Client::connect(server.daemon.grpc).await;
    for size in [1, 300, 1 << 20, (1 << 20) + 1, 9_000_000] {
        let blob = Blob::new(size, size);
        let bytes = blob.bytes();
        let name = path(&bytes);
        assert_eq!(put(&server, &name, &size.to_string(), frame(&bytes)).await, 200, "{size}");
        server.http.get(&name).await.assert_is(200, &bytes);
        assert_eq!(grpc.check(blob).await.unwrap(), Found::Exact);
        // Again, and also in several frames and in chunks.
        assert_eq!(put(&server, &name, &size.to_string(), frame(&bytes)).await, 200, "{size}");
        let other = soft(size, usize::try_from(size).unwrap() + 5);
        let (one, two) = other.split_at(other.len() / 3);
        let frames = [frame(one), frame(two)].concat();
        let pieces = frames.chunks(1_000).map(Bytes::copy_from_slice).collect();
        let headers = [("content-encoding", "ZSTD"), ("x-digest-sizebytes", &*other.len().to_string())];
        assert_eq!(server.http.send("PUT", &path(&other), &headers, chunked(pieces)).await.status, 200);
        server.http.get(&path(&other)).await.assert_is(200, &other);
    }
    // The empty blob, in one frame and in none.
    assert_eq!(put(&server, &path(b""), "0", frame(b"")).await, 200);
    assert_eq!(put(&server, &path(b""), "0", "").await, 200);
    let blake3 = blockstore_server::store::Hasher::digest(blockstore_server::store::DigestFunction::Blake3, b"blake3").hash_hex();
    assert_eq!(put(&server, &format!("/cas/{blake3}"), "6", frame(b"blake3")).await, 200);
    server.http.get(&format!("/cas/{blake3}")).await.assert_is(200, b"blake3");
}

#[tokio::test]
async fn results_and_entries_come_compressed_as_well() {
    let server = Server::start();
    let action = path(b"action").replace("/cas/", "/ac/");
    for name in [action.as_str(), "/kv/a"] {
        // In a store of this size, half a mebibyte is the most.
        for size in [0, 9, 400_000] {
            let bytes = soft(1, size);
            assert_eq!(put(&server, name, &size.to_string(), frame(&bytes)).await, 200, "{name} {size}");
            server.http.get(name).await.assert_is(200, &bytes);
            let headers = [("content-encoding", "zstd"), ("x-digest-sizebytes", &*size.to_string())];
            assert_eq!(server.http.send("PUT", name, &headers, chunked(vec![frame(&bytes).into()])).await.status, 200);
            // What comes as zstd goes out as it was.
            let answer = server.http.get_with(name, "accept-encoding", "zstd").await;
            answer.assert_is(200, &bytes);
            assert_eq!(answer.header("content-encoding"), None);
        }
        let kept = soft(1, 400_000);
        for (size, body) in wrong(b"other bytes") {
            assert_eq!(put(&server, name, &size, body.clone()).await, 400, "{name}: {size} for {} bytes", body.len());
        }
        assert_eq!(put(&server, name, &(100 << 20).to_string(), frame(b"x")).await, 413, "{name}");
        server.http.get(name).await.assert_is(200, &kept);
    }
}

/// Sizes and bodies that do not belong together, or are nothing.
fn wrong(bytes: &[u8]) -> Vec<(String, Bytes)> {
    let (len, good) = (bytes.len(), frame(bytes));
    let mut broken = good.clone();
    let last = broken.len() - 1;
    broken[0] ^= 1;
    vec![
        ((len - 1).to_string(), good.clone().into()),
        ((len + 1).to_string(), good.clone().into()),
        ("0".into(), good.clone().into()),
        (len.to_string(), good[..last].to_vec().into()),
        (len.to_string(), broken.into()),
        (len.to_string(), Bytes::copy_from_slice(bytes)),
        (len.to_string(), [&good[..], b"more"].concat().into()),
        (len.to_string(), Bytes::new()),
        (len.to_string(), bomb(100 << 20, 19)),
        (len.to_string(), bomb(100 << 20, 27)),
        (String::new(), good.clone().into()),
        ("many".into(), good.clone().into()),
        (format!("-{len}"), good.clone().into()),
        (format!("{len}.0"), good.into()),
    ]
}

#[tokio::test]
async fn wrong_frames_are_refused_and_nothing_is_stored() {
    let server = Server::start();
    for size in [500, 100_000, 2_500_000] {
        let bytes = soft(3, size);
        let name = path(&bytes);
        for (said, body) in wrong(&bytes) {
            assert_eq!(put(&server, &name, &said, body.clone()).await, 400, "{size}: {said} for {} bytes", body.len());
        }
        // Right frames of wrong bytes.
        assert_eq!(put(&server, &name, &size.to_string(), frame(&soft(4, size))).await, 400);
        for coding in ["gzip", "br", "zstd, gzip", ""] {
            let headers = [("content-encoding", coding), ("x-digest-sizebytes", "500")];
            let answer = server.http.send("PUT", &name, &headers, whole(frame(&bytes))).await;
            assert_eq!((answer.status.as_u16(), answer.header("accept-encoding")), (415, Some("zstd, identity")), "{coding}");
        }
        let answer = server.http.send("PUT", &name, &[("content-encoding", "zstd")], whole(frame(&bytes))).await;
        assert_eq!(answer.status, 400, "without a size");
        assert_eq!(server.http.get(&name).await.status, 404);
        assert_eq!(put(&server, &name, &size.to_string(), frame(&bytes)).await, 200);
        // Nor are they right where the blob is there already.
        assert_eq!(put(&server, &name, &size.to_string(), frame(&soft(4, size))).await, 400);
        assert_eq!(put(&server, &name, &size.to_string(), frame(&bytes)[..20].to_vec()).await, 400);
        server.http.get(&name).await.assert_is(200, &bytes);
    }
    assert_eq!(put(&server, &path(b"x"), &(1u64 << 40).to_string(), frame(b"x")).await, 413);
}

#[tokio::test]
async fn a_size_beside_a_plain_body_is_one() {
    let server = Server::start();
    let bytes = Blob::new(1, 3_000_000).bytes();
    let name = path(&bytes);
    let send = async |size: &str, body| server.http.send("PUT", &name, &[("x-digest-sizebytes", size)], body).await.status.as_u16();
    assert_eq!(send("2999999", whole(bytes.clone())).await, 400);
    assert_eq!(send("many", whole(bytes.clone())).await, 400);
    assert_eq!(send("2999999", chunked(vec![bytes.clone()])).await, 400);
    assert_eq!(send("3000001", chunked(vec![bytes.clone()])).await, 400);
    assert_eq!(server.http.get(&name).await.status, 404);
    assert_eq!(send("3000000", chunked(vec![bytes.clone()])).await, 200);
    assert_eq!(send("3000000", whole(bytes.clone())).await, 200);
    server.http.get(&name).await.assert_is(200, &bytes);
    // With it, a body in chunks need not be gathered, and may be larger than what can be.
    let large = vec![5; 70 << 20];
    let piece = Bytes::from(vec![5; 1 << 20]);
    let headers = [("x-digest-sizebytes", &*large.len().to_string())];
    assert_eq!(server.http.send("PUT", &path(&large), &headers, chunked(vec![piece; 70])).await.status, 200);
    server.http.get(&path(&large)).await.assert_is(200, &large);
}

#[tokio::test]
async fn bombs_take_no_memory() {
    let server = Server::with("--cache-size 16MiB");
    let (before_bytes, good) = (server.daemon.memory_bytes_max(), soft(1, 2_000_000));
    let action = path(b"action").replace("/cas/", "/ac/");
    for window_log in [19, 23, 27] {
        let bomb = bomb(512 << 20, window_log);
        let attempts = (0..24).map(|n| {
            let (name, size) = [(path(&good), "2000000"), (action.clone(), "400000"), ("/kv/x".to_owned(), "400000")][n % 3].clone();
            let (bomb, server) = (bomb.clone(), &server);
            async move { put(server, &name, size, bomb).await }
        });
        let statuses = futures::future::join_all(attempts).await;
        assert_eq!(statuses, vec![400; 24], "window of 2^{window_log}");
    }
    let grown_bytes = server.daemon.memory_bytes_max() - before_bytes;
    println!("{} MiB more memory than before", grown_bytes >> 20);
    assert!(grown_bytes < 160 << 20, "{} MiB", grown_bytes >> 20);
}
