//! Blobs: exact both ways, under whichever function their name is of.

use blockstore_proto::reapi::Digest as Name;
use blockstore_server::store::{Digest, DigestFunction, Hasher};
use blockstore_tests::{
    blob::{Blob, digest_of},
    client::{Client, Found},
};
use bytes::Bytes;
use http::Version;

use crate::server::{Answer, Http, Server, chunked, spec, whole};

const SIZES: [u64; 8] = [1, 100, 65_536, 65_537, 1 << 20, (1 << 20) + 1, 5_000_000, 20_000_000];

/// Those that a path can be of.
const FUNCTIONS: [DigestFunction; 6] = [
    DigestFunction::Sha256,
    DigestFunction::Sha1,
    DigestFunction::Md5,
    DigestFunction::Sha384,
    DigestFunction::Sha512,
    DigestFunction::Blake3,
];

fn digest(function: DigestFunction, bytes: &[u8]) -> Digest {
    Hasher::digest(function, bytes)
}

fn path(function: DigestFunction, bytes: &[u8]) -> String {
    format!("/cas/{}", digest(function, bytes).hash_hex())
}

fn sha256(bytes: &[u8]) -> String {
    path(DigestFunction::Sha256, bytes)
}

#[track_caller]
fn assert_found(answer: &Answer, bytes: &[u8]) {
    answer.assert_is(200, bytes);
    assert_eq!(answer.header("content-length"), Some(bytes.len().to_string().as_str()));
    assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
}

#[tokio::test]
async fn what_was_put_is_got_on_both_protocols_and_under_every_instance() {
    let server = Server::start();
    let grpc = Client::connect(server.daemon.grpc).await;
    for size in SIZES {
        let blob = Blob::new(size, size);
        let (bytes, name) = (blob.bytes(), sha256(&blob.bytes()));
        assert_eq!(server.http.get(&name).await.status, 404);
        assert_eq!(server.http.head(&name).await.status, 404);
        assert_eq!(server.http.put(&name, bytes.clone()).await, 200);
        assert_found(&server.http.get(&name).await, &bytes);
        assert_found(&server.http.get(&format!("/a/b{name}")).await, &bytes);
        let head = server.http.head(&name).await;
        assert_eq!((head.status.as_u16(), head.header("content-length")), (200, Some(size.to_string().as_str())));
        assert_eq!(grpc.check(blob).await.unwrap(), Found::Exact);
        assert_eq!(server.http.put(&name, bytes).await, 200, "again");
    }
    let blob = Blob::new(7, 3_000_000);
    grpc.put(blob).await.unwrap();
    assert_found(&server.http.get(&sha256(&blob.bytes())).await, &blob.bytes());
}

#[tokio::test]
async fn a_client_that_begins_with_http2_gets_it() {
    let server = Server::start();
    let http2 = Http::new(&server.daemon, true);
    let blob = Blob::new(1, 9_000_000).bytes();
    let name = sha256(&blob);
    for body in [whole(blob.clone()), chunked(vec![blob.clone()])] {
        assert_eq!(http2.send("PUT", &name, &[], body).await.status, 200);
    }
    let answer = http2.get(&name).await;
    assert_eq!(answer.version, Version::HTTP_2);
    assert_found(&answer, &blob);
    assert_found(&server.http.get(&name).await, &blob);
}

#[tokio::test]
async fn the_function_is_told_by_the_length_and_of_64_digits_by_the_bytes() {
    let server = Server::start();
    let grpc = Client::connect(server.daemon.grpc).await;
    // In turn, so that the guess from the last one is wrong as often as it can be; large ones are on the device before it shows.
    for size in [700, 1 << 20, 3_000_000, 12_345_678] {
        for (seed, function) in (0..2).flat_map(|round| FUNCTIONS.map(|function| (round * 10 + u64::from(function.number()), function))) {
            let bytes = Blob::new(seed, size).bytes();
            let name = path(function, &bytes);
            assert_eq!(server.http.get(&name).await.status, 404);
            assert_eq!(server.http.put(&name, bytes.clone()).await, 200, "{function} of {size}");
            assert_found(&server.http.get(&name).await, &bytes);
            assert_eq!(server.http.put(&name, bytes.clone()).await, 200, "{function} of {size} again");
            // Under no other name: gRPC's names say the function, and an unset one of 64 digits is SHA-256.
            let hash = digest(function, &bytes).hash_hex();
            let asked = Name { hash, size_bytes: i64::try_from(size).unwrap() };
            let missing = grpc.missing(vec![asked]).await.unwrap();
            assert_eq!(missing.len(), usize::from(function == DigestFunction::Blake3), "{function}");
        }
    }
    let Server { daemon, dir, .. } = server;
    daemon.stop();
    let daemon = spec(&dir).start();
    let bytes = Blob::new(9, 12_345_678).bytes();
    assert_found(&Http::new(&daemon, false).get(&path(DigestFunction::Blake3, &bytes)).await, &bytes);
}

#[tokio::test]
async fn wrong_bytes_are_refused_and_nothing_is_stored() {
    let server = Server::start();
    for size in [1, 5_000, 2_500_000] {
        for function in FUNCTIONS {
            let [good, bad] = [1, 2].map(|seed| Blob::new(seed, size).bytes());
            let name = path(function, &good);
            for body in [whole(bad.clone()), chunked(vec![bad.clone()]), whole(""), whole([&good[..], b"x"].concat())] {
                let answer = server.http.send("PUT", &name, &[], body).await;
                assert_eq!(answer.status, 400, "{function}: {answer:?}");
            }
            assert_eq!(server.http.get(&name).await.status, 404, "{function}");
            // Its refusal stands in nobody's way.
            assert_eq!(server.http.put(&name, good.clone()).await, 200, "{function}");
            // That the blob is there makes no wrong bytes right.
            for body in [whole(bad.clone()), chunked(vec![bad.clone()]), whole(""), whole([&good[..], b"x"].concat())] {
                assert_eq!(server.http.send("PUT", &name, &[], body).await.status, 400, "{function} of {size}, present");
            }
            server.http.get(&name).await.assert_is(200, &good);
        }
    }
}

#[tokio::test]
async fn the_empty_blob_is_always_there() {
    let server = Server::start();
    for function in FUNCTIONS {
        let name = path(function, b"");
        assert_found(&server.http.get(&name).await, b"");
        let head = server.http.head(&name).await;
        assert_eq!((head.status.as_u16(), head.header("content-length")), (200, Some("0")));
        assert_eq!(server.http.put(&name, "").await, 200);
        assert_eq!(server.http.send("PUT", &name, &[], chunked(vec![])).await.status, 200);
        assert_eq!(server.http.put(&name, "x").await, 400);
        assert_eq!(server.http.get_with(&name, "range", "bytes=0-").await.status, 416);
    }
}

#[tokio::test]
async fn a_range_is_exact_and_says_what_it_is() {
    let server = Server::start();
    for size in [10u64, 100_000, 3_000_000] {
        let bytes = Blob::new(size, size).bytes();
        let name = sha256(&bytes);
        assert_eq!(server.http.put(&name, bytes.clone()).await, 200);
        let middle = size / 2;
        for (range, start, end) in [
            (format!("bytes={middle}-"), middle, size),
            (format!("bytes=1-{middle}"), 1, middle + 1),
            ("bytes=0-0".to_owned(), 0, 1),
            ("bytes=-3".to_owned(), size - 3, size),
            (format!("bytes=0-{}", size + 5), 0, size),
        ] {
            let answer = server.http.get_with(&name, "range", &range).await;
            let expected = bytes.slice(usize::try_from(start).unwrap()..usize::try_from(end).unwrap());
            answer.assert_is(206, &expected);
            assert_eq!(answer.header("content-range"), Some(format!("bytes {start}-{}/{size}", end - 1).as_str()));
            assert_eq!(answer.header("content-length"), Some((end - start).to_string().as_str()));
        }
        let answer = server.http.get_with(&name, "range", &format!("bytes={size}-")).await;
        assert_eq!((answer.status.as_u16(), answer.header("content-range")), (416, Some(format!("bytes */{size}").as_str())));
        assert_found(&server.http.get_with(&name, "range", "bytes=0-1,3-4").await, &bytes);
        let head = server.http.send("HEAD", &name, &[("range", "bytes=0-0")], whole("")).await;
        assert_eq!((head.status.as_u16(), head.header("content-length")), (200, Some(size.to_string().as_str())));
    }
}

#[tokio::test]
async fn who_has_it_already_is_told_so() {
    let server = Server::start();
    let bytes = Blob::new(1, 2_000_000).bytes();
    let name = sha256(&bytes);
    assert_eq!(server.http.get_with(&name, "if-none-match", "*").await.status, 404);
    assert_eq!(server.http.put(&name, bytes.clone()).await, 200);
    let tag = format!("\"{}\"", digest_of(&bytes).hash);
    assert_eq!(server.http.get(&name).await.header("etag"), Some(tag.as_str()));
    let known = server.http.get_with(&name, "if-none-match", &tag).await;
    known.assert_is(304, b"");
    assert_eq!(known.header("etag"), Some(tag.as_str()));
    assert_found(&server.http.get_with(&name, "if-none-match", "\"other\"").await, &bytes);
}

#[tokio::test]
async fn a_body_in_chunks_is_taken_up_to_a_bound() {
    let server = Server::start();
    for size in [1, 70_000, 5_000_000] {
        let blob = Blob::new(size, size);
        let bytes = blob.bytes();
        let pieces = bytes.chunks(33_333).map(Bytes::copy_from_slice).collect();
        let name = sha256(&bytes);
        assert_eq!(server.http.send("PUT", &name, &[], chunked(pieces)).await.status, 200);
        assert_found(&server.http.get(&name).await, &bytes);
    }
    let piece = Bytes::from(vec![7; 1 << 20]);
    let name = sha256(b"x");
    let answer = server.http.send("PUT", &name, &[], chunked(vec![piece; 65])).await;
    assert_eq!(answer.status, 413, "{answer:?}");
}

#[tokio::test]
async fn what_cannot_be_decoded_is_refused() {
    let server = Server::start();
    let name = sha256(b"x");
    for (encoding, status) in [("gzip", 415), ("zstd", 400), ("br", 415), ("Identity", 200)] {
        let answer = server.http.send("PUT", &name, &[("content-encoding", encoding)], whole("x")).await;
        assert_eq!(answer.status, status, "{encoding}");
    }
}
