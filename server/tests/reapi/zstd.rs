//! Compressed blobs: streams and batches, from clients that compress as they like or lie about it.

use ::zstd::bulk;
use blockstore_proto::{
    bytestream::{ReadRequest, WriteRequest},
    reapi,
};
use blockstore_server::front::reapi::{Options, ToolRules};
use futures::future::join_all;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, metadata::MetadataValue};

use crate::{
    byte_stream::{messages, read, read_name, status, upload, write, write_name},
    server::{Server, data, digest, update},
};

const METADATA: &str = "build.bazel.remote.execution.v2.requestmetadata-bin";

pub(crate) fn zstd_read_name(digest: &reapi::Digest) -> String {
    format!("compressed-blobs/zstd/{}/{}", digest.hash, digest.size_bytes)
}

pub(crate) fn zstd_write_name(uuid: &str, digest: &reapi::Digest) -> String {
    format!("uploads/{uuid}/{}", zstd_read_name(digest))
}

/// Bytes that compress to about a third, unlike those of [`data`].
pub(crate) fn text(seed: u64, len: usize) -> Vec<u8> {
    (seed * 1_000_000..).flat_map(|n| format!("{n} is a line of a log, {}\n", n * n % 1009).into_bytes()).take(len).collect()
}

pub(crate) fn zstd(data: &[u8]) -> Vec<u8> {
    bulk::compress(data, 3).unwrap()
}

pub(crate) fn unzstd(frame: &[u8], len: usize) -> Vec<u8> {
    bulk::decompress(frame, len).unwrap()
}

/// All of a compressed upload in messages of that size.
pub(crate) fn all(name: &str, frame: &[u8], message_bytes: usize) -> Vec<WriteRequest> {
    messages(name, frame, 0, frame.len(), message_bytes, true)
}

async fn write_by(server: &Server, tool: &str, version: &str, messages: Vec<WriteRequest>) -> Result<i64, Status> {
    let details = reapi::ToolDetails { tool_name: tool.into(), tool_version: version.into() };
    let metadata = reapi::RequestMetadata { tool_details: Some(details), ..Default::default() };
    let mut request = Request::new(tokio_stream::iter(messages));
    request.metadata_mut().insert_bin(METADATA, MetadataValue::from_bytes(&metadata.encode_to_vec()));
    Ok(server.bytes().write(request).await?.into_inner().committed_size)
}

#[tokio::test]
async fn what_is_written_in_one_form_is_read_in_both() {
    let server = Server::start().await;
    for (seed, len) in [1, 100, 70_000, 1 << 20, (1 << 20) + 1, 5_000_000].into_iter().enumerate() {
        for content in [text(seed as u64, len), data(seed as u64, len), vec![b'a' + seed as u8; len]] {
            let digest = digest(&content);
            let frame = zstd(&content);
            let message_bytes = if seed % 2 == 0 { 16 << 10 } else { 2 << 20 };
            let committed = write(&server, all(&zstd_write_name("u", &digest), &frame, message_bytes)).await.unwrap();
            assert_eq!(committed, frame.len() as i64);
            assert!(read(&server, &read_name(&digest), 0, 0).await.unwrap() == content, "{len} bytes");
            let frame = read(&server, &zstd_read_name(&digest), 0, 0).await.unwrap();
            assert!(unzstd(&frame, len) == content, "{len} bytes");
        }
    }
}

#[tokio::test]
async fn compressed_reads_have_offsets_and_no_limits() {
    let server = Server::start().await;
    for (seed, len) in [(1, 1000), (2, 3_000_000)] {
        let content = text(seed, len);
        upload(&server, &content, 1 << 20).await.unwrap();
        let name = zstd_read_name(&digest(&content));
        for offset in [0, 1, len / 2, len - 1, len] {
            let frame = read(&server, &name, offset as i64, 0).await.unwrap();
            assert!(unzstd(&frame, len) == content[offset..], "{len} bytes from {offset}");
        }
        assert!(read(&server, &name, 0, 0).await.unwrap().len() < len * 2 / 3);
        for (offset, limit, code) in [
            (0, 1, Code::InvalidArgument),
            (0, -1, Code::InvalidArgument),
            (-1, 0, Code::OutOfRange),
            (len as i64 + 1, 0, Code::OutOfRange),
        ] {
            assert_eq!(read(&server, &name, offset, limit).await.unwrap_err().code(), code, "{offset} {limit}");
        }
    }
    let stored = digest(&text(1, 1000));
    for absent in [digest(b"absent"), reapi::Digest { size_bytes: 999, ..stored }] {
        assert_eq!(read(&server, &zstd_read_name(&absent), 0, 0).await.unwrap_err().code(), Code::NotFound);
    }
    // Nothing is a frame, too: not every decoder takes no bytes for one.
    let nothing = read(&server, &zstd_read_name(&digest(b"")), 0, 0).await.unwrap();
    assert!(!nothing.is_empty() && unzstd(&nothing, 1).is_empty());
}

/// Readers that went away leave nothing behind that the next one would see.
#[tokio::test]
async fn a_compressed_read_may_be_dropped_in_the_middle() {
    let server = Server::start().await;
    let content = data(3, 40 << 20);
    upload(&server, &content, 2 << 20).await.unwrap();
    for _ in 0..3 {
        let request = ReadRequest { resource_name: zstd_read_name(&digest(&content)), ..Default::default() };
        let mut stream = server.bytes().read(request).await.unwrap().into_inner();
        assert!(stream.message().await.unwrap().is_some());
    }
    let frame = read(&server, &zstd_read_name(&digest(&content)), 0, 0).await.unwrap();
    assert!(unzstd(&frame, content.len()) == content);
}

#[tokio::test]
async fn the_size_that_is_committed_is_what_the_client_expects() {
    let server = Server::start().await;
    for (seed, (tool, version, blob_size)) in [
        ("bazel", "7.7.1", false),
        ("buck2", "", false),
        ("", "", false),
        ("siso", "1", true),
        ("reclient", "2", true),
        ("re-client", "", true),
    ]
    .into_iter()
    .enumerate()
    {
        let content = text(seed as u64, 50_000);
        let frame = zstd(&content);
        let name = zstd_write_name("u", &digest(&content));
        let committed = write_by(&server, tool, version, all(&name, &frame, 5000)).await.unwrap();
        assert_eq!(committed, if blob_size { 50_000 } else { frame.len() as i64 }, "{tool}");
        // Also once it is there.
        assert_eq!(write_by(&server, tool, version, all(&name, &frame, 5000)).await.unwrap(), -1, "{tool}");
    }
    let tools = ToolRules { committed_is_blob_size: vec!["bazel/7".into()], drained: vec![] };
    let server = Server::with(Options { tools, ..Options::default() }).await;
    let content = text(1, 50_000);
    let name = zstd_write_name("u", &digest(&content));
    assert_eq!(write_by(&server, "bazel", "7.7.1", all(&name, &zstd(&content), 5000)).await.unwrap(), 50_000);
    assert_eq!(write_by(&server, "bazel", "5.0.0", all(&name, &zstd(&content), 5000)).await.unwrap(), -1);
}

#[tokio::test]
async fn a_blob_that_is_there_is_answered_at_once_or_after_everything_was_sent() {
    let server = Server::start().await;
    for len in [1000, 3_000_000] {
        let content = text(4, len);
        upload(&server, &content, 1 << 20).await.unwrap();
        let name = zstd_write_name("other", &digest(&content));
        let (sender, receiver) = mpsc::channel(1);
        let message = WriteRequest { resource_name: name.clone(), data: b"junk".as_slice().into(), ..Default::default() };
        sender.send(message).await.unwrap();
        let response = server.bytes().write(ReceiverStream::new(receiver)).await.unwrap();
        assert_eq!(response.into_inner().committed_size, -1);
        drop(sender);
        assert_eq!(status(&server, &name).await, (len as i64, true));

        let frame = zstd(&content);
        for message_bytes in [frame.len(), 100] {
            let committed = write_by(&server, "bazel", "5.0.0", all(&name, &frame, message_bytes)).await.unwrap();
            assert_eq!(committed, frame.len() as i64);
        }
        // It may close its side without an end; what it may send is bounded.
        let half = messages(&name, &frame, 0, frame.len() / 2, 100, false);
        assert_eq!(write_by(&server, "bazel", "5.0.0", half).await.unwrap(), frame.len() as i64 / 2);
        let endless = vec![0; 2 * len + (9 << 20)];
        let status = write_by(&server, "bazel", "5.0.0", all(&name, &endless, 1 << 20)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    }
    assert_eq!(write(&server, all(&zstd_write_name("u", &digest(b"")), &zstd(b""), 100)).await.unwrap(), -1);
}

#[tokio::test]
async fn wrong_bytes_are_refused_and_not_stored() {
    let server = Server::start().await;
    for len in [1000, 3_000_000] {
        let content = text(5, len);
        let digest = digest(&content);
        let name = zstd_write_name("u", &digest);
        let mut other = content.clone();
        other[len / 2] ^= 1;
        let frame = zstd(&content);
        for (what, sent) in [
            ("another blob", zstd(&other)),
            ("a byte too few", zstd(&content[1..])),
            ("a byte too many", zstd(&[&content[..], b"x"].concat())),
            ("a bomb", zstd(&vec![0; 200 << 20])),
            ("half a frame", frame[..frame.len() / 2].to_vec()),
            ("junk behind the frame", [&frame[..], b"junk"].concat()),
            ("no frame", content.clone()),
            ("nothing", vec![]),
        ] {
            let status = write(&server, all(&name, &sent, 100_000)).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status}");
        }
        assert_eq!(status(&server, &name).await, (0, false));
        assert_eq!(read(&server, &read_name(&digest), 0, 0).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(write(&server, all(&name, &frame, 100_000)).await.unwrap(), frame.len() as i64);
    }
    // The hash of something else, and no bytes.
    let lie = reapi::Digest { size_bytes: 0, ..digest(b"x") };
    for sent in [zstd(b""), zstd(b"x"), vec![]] {
        let status = write(&server, all(&zstd_write_name("u", &lie), &sent, 100)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn half_a_stream_is_kept_and_a_new_frame_goes_on() {
    let server = Server::start().await;
    for (uuid, len, half) in [("small", 100_000, 40_000), ("large", 5_000_000, 3_000_000)] {
        for plain in [false, true] {
            let content = text(6 + u64::from(plain), len);
            let digest = digest(&content);
            let name = zstd_write_name(uuid, &digest);
            // Two frames, of which the second is not complete: of that one, what was decompressed counts.
            let first = zstd(&content[..half]);
            let second = zstd(&content[half..]);
            let sent = [&first[..], &second[..second.len() / 2]].concat();
            let committed = write(&server, messages(&name, &sent, 0, sent.len(), 10_000, false)).await.unwrap();
            let from = usize::try_from(committed).unwrap();
            assert!((half..len).contains(&from), "{from}");
            assert_eq!(status(&server, &name).await, (committed, false));

            // Elsewhere, or in the middle of the frame, it does not go on.
            let rest = zstd(&content[from..]);
            let message = |offset: usize, data: &[u8], finish_write| WriteRequest {
                resource_name: name.clone(),
                write_offset: offset as i64,
                finish_write,
                data: data.to_vec().into(),
            };
            let elsewhere = write(&server, vec![message(from - 1, &rest, true)]).await.unwrap_err();
            assert_eq!(elsewhere.code(), Code::InvalidArgument);
            assert_eq!(status(&server, &name).await, (committed, false));

            let done = if plain {
                let name = write_name(uuid, &digest);
                write(&server, messages(&name, &content, from, len, 100_000, true)).await.unwrap()
            } else {
                // The first offset counts bytes of the blob, the second adds what was sent.
                let (one, two) = rest.split_at(rest.len() / 2);
                write(&server, vec![message(from, one, false), message(from + one.len(), two, true)]).await.unwrap()
            };
            assert_eq!(done, if plain { len as i64 } else { (from + rest.len()) as i64 });
            assert!(read(&server, &read_name(&digest), 0, 0).await.unwrap() == content);
        }
    }
}

#[tokio::test]
async fn a_client_may_start_anew() {
    let server = Server::start().await;
    let content = text(8, 3_000_000);
    let name = zstd_write_name("again", &digest(&content));
    let frame = zstd(&content);
    write(&server, messages(&name, &frame, 0, frame.len() / 2, 100_000, false)).await.unwrap();
    assert_eq!(write(&server, all(&name, &frame, 100_000)).await.unwrap(), frame.len() as i64);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_uploads_of_one_blob_in_both_forms_all_succeed() {
    let server = Server::start().await;
    for len in [50_000, 4_000_000] {
        let content = text(9, len);
        let frame = zstd(&content);
        let digest = digest(&content);
        let uploads = (0..8).map(|n| {
            let uuid = n.to_string();
            let messages = match n % 2 {
                0 => all(&zstd_write_name(&uuid, &digest), &frame, 10_000),
                _ => messages(&write_name(&uuid, &digest), &content, 0, len, 100_000, true),
            };
            write(&server, messages)
        });
        for (n, committed) in join_all(uploads).await.into_iter().enumerate() {
            let committed = committed.unwrap();
            let expected = if n % 2 == 0 { [frame.len() as i64, -1] } else { [len as i64; 2] };
            assert!(expected.contains(&committed), "{committed} of {expected:?}");
        }
        assert!(read(&server, &read_name(&digest), 0, 0).await.unwrap() == content);
    }
}

pub(crate) fn compressed(content: &[u8], frame: Vec<u8>, compressor: i32) -> reapi::batch_update_blobs_request::Request {
    reapi::batch_update_blobs_request::Request { compressor, data: frame.into(), ..update(digest(content), b"") }
}

pub(crate) async fn put(server: &Server, requests: Vec<reapi::batch_update_blobs_request::Request>) -> Vec<i32> {
    let request = reapi::BatchUpdateBlobsRequest { requests, ..Default::default() };
    let response = server.cas().batch_update_blobs(request).await.unwrap().into_inner();
    response.responses.into_iter().map(|r| r.status.unwrap().code).collect()
}

#[tokio::test]
async fn each_blob_of_a_batch_may_be_compressed() {
    let server = Server::start().await;
    let [one, two, three] = [text(1, 100_000), data(2, 3000), text(3, 200)];
    let codes = put(
        &server,
        vec![
            compressed(&one, zstd(&one), 1),
            update(digest(&two), &two),
            compressed(&three, zstd(&three), 1),
            compressed(b"", zstd(b""), 1),
            compressed(b"", vec![], 1),
            // Frames may follow each other here as well.
            compressed(b"onetwo", [zstd(b"one"), zstd(b"two")].concat(), 1),
        ],
    )
    .await;
    assert_eq!(codes, [0; 6]);
    for content in [&one, &two, &three, &b"onetwo".to_vec()] {
        assert!(read(&server, &read_name(&digest(content)), 0, 0).await.unwrap() == *content);
    }
}

#[tokio::test]
async fn a_blob_of_a_batch_that_is_not_what_it_says_hurts_no_other() {
    let server = Server::start().await;
    let good = text(1, 10_000);
    let [wrong, short, long, bomb, junk, cut, deflate, unknown] = [2, 3, 4, 5, 6, 7, 8, 9].map(|seed| text(seed, 5000));
    let frame = zstd(&cut);
    let codes = put(
        &server,
        vec![
            compressed(&wrong, zstd(&good[..5000]), 1),
            compressed(&short, zstd(&short[1..]), 1),
            compressed(&long, zstd(&[&long[..], b"x"].concat()), 1),
            compressed(&bomb, zstd(&vec![0; 200 << 20]), 1),
            compressed(&junk, junk.clone(), 1),
            compressed(&cut, frame[..frame.len() - 1].to_vec(), 1),
            // Neither is announced.
            compressed(&deflate, deflate.clone(), 2),
            compressed(&unknown, unknown.clone(), 77),
            compressed(&good, zstd(&good), 1),
        ],
    )
    .await;
    assert_eq!(codes, [3, 3, 3, 3, 3, 3, 3, 3, 0]);
    for content in [&wrong, &short, &long, &bomb, &junk, &cut, &deflate, &unknown] {
        assert_eq!(read(&server, &read_name(&digest(content)), 0, 0).await.unwrap_err().code(), Code::NotFound);
    }
    assert!(read(&server, &read_name(&digest(&good)), 0, 0).await.unwrap() == good);
}

/// However little is sent, a batch does not decompress to more than it could hold uncompressed.
#[tokio::test]
async fn what_a_batch_decompresses_to_is_bounded() {
    let server = Server::start().await;
    let blobs: Vec<_> = (0..5).map(|n| vec![n; 20 << 20]).collect();
    let codes = put(&server, blobs.iter().map(|blob| compressed(blob, zstd(blob), 1)).collect()).await;
    assert_eq!(codes, [0, 0, 0, 3, 3]);
    let huge = reapi::Digest { size_bytes: i64::MAX, ..digest(b"x") };
    let request = reapi::batch_update_blobs_request::Request { compressor: 1, data: zstd(b"x").into(), ..update(huge, b"") };
    assert_eq!(put(&server, vec![request]).await, [3]);
}

#[tokio::test]
async fn a_batch_is_read_compressed_where_that_saves_and_is_accepted() {
    let server = Server::start().await;
    let blobs = [text(1, 100_000), data(2, 100_000), text(3, 50), vec![], text(4, 1_000_000)];
    let digests = server.put(&blobs.iter().map(Vec::as_slice).collect::<Vec<_>>()).await;
    let asked = [&digests[..], &[digest(b"absent")]].concat();
    for (acceptable_compressors, zstd_expected) in
        [(vec![], false), (vec![0], false), (vec![2, 3], false), (vec![1], true), (vec![0, 3, 1], true)]
    {
        let request = reapi::BatchReadBlobsRequest { digests: asked.clone(), acceptable_compressors, ..Default::default() };
        let responses = server.cas().batch_read_blobs(request).await.unwrap().into_inner().responses;
        let compressors: Vec<_> = responses.iter().map(|r| r.compressor).collect();
        assert_eq!(compressors, if zstd_expected { [1, 0, 0, 0, 1, 0] } else { [0; 6] });
        for ((response, blob), asked) in responses.iter().zip(&blobs).zip(&asked) {
            assert_eq!((response.digest.as_ref(), response.status.as_ref().unwrap().code), (Some(asked), 0));
            let content = match response.compressor {
                1 => unzstd(&response.data, blob.len()),
                _ => response.data.to_vec(),
            };
            assert!(content == *blob);
        }
        assert_eq!(responses[5].status.as_ref().unwrap().code, 5);
    }
}
