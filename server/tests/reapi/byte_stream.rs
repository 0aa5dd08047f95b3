//! ByteStream: reads, writes and what survives a cut.

use std::time::Duration;

use blockstore_proto::{
    bytestream::{QueryWriteStatusRequest, ReadRequest, WriteRequest},
    reapi,
};
use blockstore_server::store::{DigestFunction, Hasher};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::server::{Server, data, digest};

pub(crate) fn read_name(digest: &reapi::Digest) -> String {
    format!("blobs/{}/{}", digest.hash, digest.size_bytes)
}

pub(crate) fn write_name(uuid: &str, digest: &reapi::Digest) -> String {
    format!("uploads/{uuid}/{}", read_name(digest))
}

/// A stream's messages, the name on the first only.
pub(crate) fn messages(name: &str, content: &[u8], from: usize, to: usize, message_bytes: usize, finish: bool) -> Vec<WriteRequest> {
    let mut messages = Vec::new();
    let mut offset = from;
    loop {
        let end = (offset + message_bytes).min(to);
        messages.push(WriteRequest {
            resource_name: if messages.is_empty() { name.into() } else { String::new() },
            write_offset: offset as i64,
            finish_write: finish && end == to,
            data: Bytes::copy_from_slice(&content[offset..end]),
        });
        offset = end;
        if offset == to {
            return messages;
        }
    }
}

pub(crate) async fn write(server: &Server, messages: Vec<WriteRequest>) -> Result<i64, Status> {
    let response = server.bytes().write(tokio_stream::iter(messages)).await?;
    Ok(response.into_inner().committed_size)
}

pub(crate) async fn upload(server: &Server, content: &[u8], message_bytes: usize) -> Result<i64, Status> {
    let name = write_name("u", &digest(content));
    write(server, messages(&name, content, 0, content.len(), message_bytes, true)).await
}

pub(crate) async fn read(server: &Server, name: &str, offset: i64, limit: i64) -> Result<Vec<u8>, Status> {
    let request = ReadRequest { resource_name: name.into(), read_offset: offset, read_limit: limit };
    let mut stream = server.bytes().read(request).await?.into_inner();
    let mut all = Vec::new();
    while let Some(message) = stream.message().await? {
        assert!(!message.data.is_empty() && message.data.len() <= 1 << 20);
        all.extend_from_slice(&message.data);
    }
    Ok(all)
}

pub(crate) async fn status(server: &Server, name: &str) -> (i64, bool) {
    let request = QueryWriteStatusRequest { resource_name: name.into() };
    let response = server.bytes().query_write_status(request).await.unwrap().into_inner();
    (response.committed_size, response.complete)
}

#[tokio::test]
async fn what_is_written_is_read_whatever_its_size() {
    let server = Server::start().await;
    for (seed, len) in [1, 100, 65_536, 1 << 20, (1 << 20) + 1, 5_000_000, 20 << 20].into_iter().enumerate() {
        let content = data(seed as u64, len);
        let message_bytes = if seed % 2 == 0 { 64 << 10 } else { 2 << 20 };
        assert_eq!(upload(&server, &content, message_bytes).await.unwrap(), len as i64);
        assert!(read(&server, &read_name(&digest(&content)), 0, 0).await.unwrap() == content, "{len} bytes");
    }
}

#[tokio::test]
async fn ranges() {
    let server = Server::start().await;
    for (seed, len) in [(1, 1000), (2, 3_000_000)] {
        let content = data(seed, len);
        upload(&server, &content, 1 << 20).await.unwrap();
        let name = read_name(&digest(&content));
        let end = len as i64;
        for (offset, limit, expected) in [
            (0, 10, &content[..10]),
            (990, 0, &content[990..]),
            (end - 5, 100, &content[len - 5..]),
            (end, 0, &[]),
            (500, 400, &content[500..900]),
        ] {
            assert!(read(&server, &name, offset, limit).await.unwrap() == expected, "{len} {offset} {limit}");
        }
        for (offset, limit, code) in [(-1, 0, Code::OutOfRange), (end + 1, 0, Code::OutOfRange), (0, -1, Code::InvalidArgument)] {
            assert_eq!(read(&server, &name, offset, limit).await.unwrap_err().code(), code);
        }
    }
}

#[tokio::test]
async fn a_read_that_finds_nothing_says_so() {
    let server = Server::start().await;
    let stored = server.put(&[b"stored"]).await;
    let wrong_size = reapi::Digest { size_bytes: 7, ..stored[0].clone() };
    for name in [read_name(&digest(b"absent")), read_name(&wrong_size)] {
        assert_eq!(read(&server, &name, 0, 0).await.unwrap_err().code(), Code::NotFound);
    }
    for name in ["", "x", "blobs/zz/1", "blobs//1", &format!("compressed-blobs/brotli/{}/6", stored[0].hash)] {
        assert_eq!(read(&server, name, 0, 0).await.unwrap_err().code(), Code::InvalidArgument, "{name}");
    }
    assert_eq!(read(&server, &format!("/{}", read_name(&stored[0])), 0, 0).await.unwrap(), b"stored");
}

#[tokio::test]
async fn the_empty_blob_is_always_there() {
    let server = Server::start().await;
    let empty = digest(b"");
    assert_eq!(read(&server, &read_name(&empty), 0, 0).await.unwrap(), b"");
    assert_eq!(upload(&server, b"", 1).await.unwrap(), 0);
    assert_eq!(status(&server, &write_name("u", &empty)).await, (0, true));
    // No bytes under another hash are a lie.
    let lie = reapi::Digest { size_bytes: 0, ..digest(b"x") };
    let result = write(&server, messages(&write_name("u", &lie), b"", 0, 0, 1, true)).await;
    assert_eq!(result.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(read(&server, &read_name(&lie), 0, 0).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn wrong_bytes_are_refused_and_not_stored() {
    let server = Server::start().await;
    for len in [1000, 3_000_000] {
        let content = data(9, len);
        let mut wrong = content.clone();
        wrong[len / 2] ^= 1;
        let digest = digest(&content);
        let name = write_name("u", &digest);
        let attempts = [
            messages(&name, &wrong, 0, len, 1 << 20, true),
            messages(&name, &content, 0, len - 1, 1 << 20, true),
            messages(&name, &[&content[..], b"x"].concat(), 0, len + 1, 4 << 20, true),
        ];
        for attempt in attempts {
            let status = write(&server, attempt).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        }
        assert_eq!(status(&server, &name).await, (0, false));
        assert_eq!(read(&server, &read_name(&digest), 0, 0).await.unwrap_err().code(), Code::NotFound);
        // The right bytes are welcome afterwards.
        assert_eq!(upload(&server, &content, 1 << 20).await.unwrap(), len as i64);
    }
}

#[tokio::test]
async fn wrong_streams_are_errors_of_the_client() {
    let server = Server::start().await;
    let content = data(3, 1000);
    let name = write_name("u", &digest(&content));
    let two = |change: fn(&mut WriteRequest)| {
        let mut two = messages(&name, &content, 0, 1000, 500, true);
        change(&mut two[1]);
        two
    };
    let attempts = [
        vec![],
        vec![WriteRequest::default()],
        messages("blobs/not/an/upload", &content, 0, 1000, 1000, true),
        two(|m| m.write_offset = 499),
        two(|m| m.write_offset = -1),
        two(|m| m.resource_name = "another".into()),
        messages(&name, &content, 600, 1000, 500, true),
    ];
    for (number, attempt) in attempts.into_iter().enumerate() {
        let status = write(&server, attempt).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "attempt {number}: {status}");
    }
    // The name may be repeated.
    let repeated =
        messages(&name, &content, 0, 1000, 300, true).into_iter().map(|m| WriteRequest { resource_name: name.clone(), ..m }).collect();
    // The wrong streams above have left 500 bytes; a stream from the start begins anew.
    assert_eq!(write(&server, repeated).await.unwrap(), 1000);
}

#[tokio::test]
async fn a_blob_that_is_there_is_answered_at_once() {
    let server = Server::start().await;
    for len in [1000, 3_000_000] {
        let content = data(4, len);
        upload(&server, &content, 1 << 20).await.unwrap();
        let name = write_name("other", &digest(&content));
        // Whatever the client sends now, and wherever it starts, does not matter.
        let (sender, receiver) = mpsc::channel(1);
        let message =
            WriteRequest { resource_name: name.clone(), write_offset: 500, data: b"junk".as_slice().into(), ..Default::default() };
        sender.send(message).await.unwrap();
        let response = server.bytes().write(ReceiverStream::new(receiver)).await.unwrap();
        assert_eq!(response.into_inner().committed_size, len as i64);
        drop(sender);
        assert_eq!(status(&server, &name).await, (len as i64, true));
    }
}

#[tokio::test]
async fn half_a_stream_is_kept_and_the_next_goes_on() {
    let server = Server::start().await;
    for (uuid, len, half) in [("small", 1000, 400), ("large", 5_000_000, 3_000_000)] {
        let content = data(5, len);
        let name = write_name(uuid, &digest(&content));
        let committed = write(&server, messages(&name, &content, 0, half, 100_000, false)).await.unwrap();
        assert_eq!(committed, half as i64);
        assert_eq!(status(&server, &name).await, (half as i64, false));
        assert_eq!(status(&server, &write_name("unknown", &digest(&content))).await, (0, false));
        // Going on elsewhere is refused and costs nothing.
        let elsewhere = messages(&name, &content, half - 1, len, 1 << 20, true);
        assert_eq!(write(&server, elsewhere).await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(status(&server, &name).await, (half as i64, false));
        let rest = messages(&name, &content, half, len, 100_000, true);
        assert_eq!(write(&server, rest).await.unwrap(), len as i64);
        assert!(read(&server, &read_name(&digest(&content)), 0, 0).await.unwrap() == content);
    }
}

/// Waits until the server has noticed that a stream is gone.
async fn until_kept(server: &Server, name: &str) -> i64 {
    for _ in 0..200 {
        let (committed, _) = status(server, name).await;
        if committed > 0 {
            return committed;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nothing was kept");
}

#[tokio::test]
async fn a_reset_stream_is_kept_and_the_next_goes_on() {
    let server = Server::start().await;
    let content = data(6, 6_000_000);
    let name = write_name("reset", &digest(&content));
    let (sender, receiver) = mpsc::channel(100);
    for message in messages(&name, &content, 0, 2_500_000, 250_000, false) {
        sender.send(message).await.unwrap();
    }
    let mut client = server.bytes();
    let call = tokio::spawn(async move { client.write(ReceiverStream::new(receiver)).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    call.abort();
    let committed = until_kept(&server, &name).await;
    assert!(committed <= 2_500_000 && committed % 250_000 == 0);
    let from = usize::try_from(committed).unwrap();
    let rest = messages(&name, &content, from, content.len(), 1 << 20, true);
    assert_eq!(write(&server, rest).await.unwrap(), content.len() as i64);
    assert!(read(&server, &read_name(&digest(&content)), 0, 0).await.unwrap() == content);
}

#[tokio::test]
async fn a_client_may_start_anew() {
    let server = Server::start().await;
    let content = data(7, 3_000_000);
    let name = write_name("again", &digest(&content));
    write(&server, messages(&name, &content, 0, 2_000_000, 1 << 20, false)).await.unwrap();
    let all = messages(&name, &content, 0, content.len(), 1 << 20, true);
    assert_eq!(write(&server, all).await.unwrap(), content.len() as i64);
}

/// A suspended upload must not make somebody else wait who has the whole blob.
#[tokio::test]
async fn another_client_does_not_wait_for_a_suspended_upload() {
    let server = Server::start().await;
    let content = data(8, 3_000_000);
    let name = write_name("gone", &digest(&content));
    write(&server, messages(&name, &content, 0, 2_000_000, 1 << 20, false)).await.unwrap();
    let uploaded = tokio::time::timeout(Duration::from_secs(5), upload(&server, &content, 1 << 20)).await;
    assert_eq!(uploaded.unwrap().unwrap(), content.len() as i64);
    // Who comes back finds the blob there.
    assert_eq!(status(&server, &name).await, (content.len() as i64, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_uploads_of_one_blob_all_succeed() {
    let server = Server::start().await;
    for len in [50_000, 4_000_000] {
        let content = data(10, len);
        let uploads = (0..8).map(|n| {
            let name = write_name(&n.to_string(), &digest(&content));
            write(&server, messages(&name, &content, 0, len, 100_000, true))
        });
        for committed in futures::future::join_all(uploads).await {
            assert_eq!(committed.unwrap(), len as i64);
        }
        assert!(read(&server, &read_name(&digest(&content)), 0, 0).await.unwrap() == content);
    }
}

#[tokio::test]
async fn a_named_function_and_metadata_behind_the_size() {
    let server = Server::start().await;
    let content = data(11, 100);
    let blake3 = Hasher::digest(DigestFunction::Blake3, &content);
    let name = format!("a/b/uploads/u/blobs/blake3/{}/100/file.txt", blake3.hash_hex());
    assert_eq!(write(&server, messages(&name, &content, 0, 100, 100, true)).await.unwrap(), 100);
    assert_eq!(read(&server, &format!("a/b/blobs/{blake3}"), 0, 0).await.unwrap(), content);
    let sha256 = digest(&content);
    let name = format!("/uploads/u/blobs/sha256/{}/100", sha256.hash);
    assert_eq!(write(&server, messages(&name, &content, 0, 100, 100, true)).await.unwrap(), 100);
}

/// What some client sends, and names that have no meaning or two.
#[tokio::test]
async fn names_as_clients_build_them() {
    let server = Server::start().await;
    for (number, (before, behind)) in
        [("", ""), ("/", ""), ("main/", ""), ("a/b/c/", ""), ("", "/some/file.txt"), ("/", "/x")].into_iter().enumerate()
    {
        for segment in ["", "sha256/"] {
            let content = data((number * 2 + segment.len()) as u64, 100);
            let digest = digest(&content);
            let name = format!("{before}uploads/u/blobs/{segment}{}/100{behind}", digest.hash);
            assert_eq!(write(&server, messages(&name, &content, 0, 100, 100, true)).await.unwrap(), 100, "{name}");
            let name = format!("{before}blobs/{segment}{}/100", digest.hash);
            assert_eq!(read(&server, &name, 0, 0).await.unwrap(), content, "{name}");
        }
    }
    let content = data(99, 100);
    let hash = digest(&content).hash;
    server.put(&[&content]).await;
    for name in [
        format!("//blobs/{hash}/100"),
        format!("a//blobs/{hash}/100"),
        format!("blobs//{hash}/100"),
        format!("blobs/{hash}//100"),
        format!("blobs/{hash}/100/"),
        format!("blobs/{hash}/100/metadata"),
        format!("blobs/{hash}/0100x"),
        format!("blobs/murmur3/{hash}/100"),
        format!("blobs/sha1/{hash}/100"),
        format!("actions/blobs/{hash}/100"),
        format!("a/actionResults/blobs/{hash}/100"),
        format!("operations/x/blobs/{hash}/100"),
        format!("capabilities/blobs/{hash}/100"),
        format!("uploads/u/blobs/{hash}/100"),
        format!("compressed-blobs/{hash}/100"),
        format!("compressed-blobs/identity/{hash}/100"),
        format!("compressed-blobs/deflate/{hash}/100"),
    ] {
        assert_eq!(read(&server, &name, 0, 0).await.unwrap_err().code(), Code::InvalidArgument, "{name}");
        let name = format!("uploads/u/{name}");
        let query = QueryWriteStatusRequest { resource_name: name.clone() };
        // Behind the size of a write, anything goes.
        let tolerated = name.contains(&format!("u/blobs/{hash}/100/m"));
        assert_eq!(server.bytes().query_write_status(query).await.is_ok(), tolerated, "{name}");
    }
}

#[tokio::test]
async fn a_blob_beyond_the_device_is_refused() {
    let server = Server::start().await;
    let huge = reapi::Digest { size_bytes: 1 << 40, ..digest(b"x") };
    let message = WriteRequest { resource_name: write_name("u", &huge), data: b"x".as_slice().into(), ..Default::default() };
    assert_eq!(write(&server, vec![message]).await.unwrap_err().code(), Code::InvalidArgument);
}
