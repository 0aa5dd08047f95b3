//! Bounds on what clients ask for, each set in a file and met at its very bound by the real process.

use blockstore_proto::reapi::{
    ActionResult, BatchUpdateBlobsRequest, Digest, Directory, DirectoryNode, FindMissingBlobsRequest, GetTreeRequest, OutputDirectory,
    SymlinkNode, Tree, batch_update_blobs_request::Request, content_addressable_storage_client::ContentAddressableStorageClient,
};
use blockstore_tests::{
    blob::{Blob, digest_of},
    client::{Client, Found, OpenUpload, action_digest, upload_name},
    daemon::{Daemon, Spec},
};
use bytes::Bytes;
use prost::Message;
use std::{fs, time::Duration};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::{Code, transport::Channel};

const MIB: usize = 1 << 20;

/// A daemon with these settings in its file.
fn daemon(settings: &str) -> (Daemon, TempDir) {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = dir.path().join("blockstored.toml");
    fs::write(&file, format!("dir = {:?}\nsize = \"256MiB\"\n{settings}", dir.path().join("store"))).unwrap();
    let spec = Spec::new(env!("CARGO_BIN_EXE_blockstored")).arg("--config").arg(file);
    (spec.start(), dir)
}

async fn cas(daemon: &Daemon) -> ContentAddressableStorageClient<Channel> {
    let channel = Channel::from_shared(format!("http://{}", daemon.grpc)).unwrap().connect().await.unwrap();
    ContentAddressableStorageClient::new(channel).max_encoding_message_size(usize::MAX)
}

fn sent(blob: Blob) -> Request {
    Request { digest: Some(blob.digest()), data: blob.bytes(), compressor: 0 }
}

#[tokio::test]
async fn a_message_of_the_bound_is_taken_and_one_byte_more_is_not() {
    let (daemon, _dir) = daemon("grpc.message_bytes_max = \"5MiB\"");
    let mut cas = cas(&daemon).await;
    let mut request = BatchUpdateBlobsRequest { requests: vec![sent(Blob::new(1, 3 << 20))], ..Default::default() };
    for (more, accepted) in [(0, true), (1, false)] {
        // Padding in a field that is as long as it has to be.
        request.instance_name.clear();
        request.requests.truncate(1);
        let blob = Blob::new(2, 1_900_000);
        request.requests.push(sent(blob));
        let rest = 5 * MIB + more - request.encoded_len();
        let filler = Blob::new(3, rest as u64);
        request.requests.push(sent(filler));
        let over = request.encoded_len() - 5 * MIB - more;
        let filler = Blob::new(3, (rest - over) as u64);
        request.requests[2] = sent(filler);
        assert_eq!(request.encoded_len(), 5 * MIB + more);
        let answer = cas.batch_update_blobs(request.clone()).await;
        match accepted {
            true => assert!(answer.unwrap().into_inner().responses.iter().all(|r| r.status.as_ref().unwrap().code == 0)),
            false => assert_eq!(answer.unwrap_err().code(), Code::ResourceExhausted),
        }
    }
    // It bounds the others as well: a stream's messages, that could have 16 MiB otherwise.
    let client = Client::connect(daemon.grpc).await;
    let blob = Blob::new(4, 6 << 20);
    let refused = client.write(&blob.digest(), vec![blob.bytes()], true).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    client.put(blob).await.unwrap();
    daemon.stop();
}

#[tokio::test]
async fn what_a_batch_decompresses_to_is_bounded_as_set() {
    let (daemon, _dir) = daemon("[grpc]\ndecompressed_bytes_max = \"4MiB\"");
    let client = Client::connect(daemon.grpc).await;
    let zeros = |bytes: usize| {
        let blob = vec![7; bytes];
        Request { digest: Some(digest_of(&blob)), data: zstd::bulk::compress(&blob, 1).unwrap().into(), compressor: 1 }
    };
    let batch = |requests| BatchUpdateBlobsRequest { requests, ..Default::default() };
    let codes = client.put_batch_of(batch(vec![zeros(3 * MIB), zeros(MIB)])).await.unwrap();
    assert_eq!(codes, [Code::Ok; 2]);
    let codes = client.put_batch_of(batch(vec![zeros(3 * MIB), zeros(MIB + 1)])).await.unwrap();
    assert_eq!(codes, [Code::Ok, Code::InvalidArgument]);
    daemon.stop();
}

#[tokio::test]
async fn as_many_uploads_run_as_are_set_over_both_protocols() {
    let (daemon, _dir) = daemon("uploads_max = 2");
    let client = Client::connect(daemon.grpc).await;
    let blobs = [1, 2].map(|seed| Blob::new(seed, 3_000_000));
    let begin = |blob: Blob| {
        let name = upload_name(&blob.digest());
        (OpenUpload::start(&client, &name, blob.bytes().slice(..1000)), blob)
    };
    let held = [begin(blobs[0]), begin(blobs[1])];
    while !metrics(&daemon).contains("\nblockstore_engine_running_uploads 2\n") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let refused = client.put(Blob::new(3, 10_000)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let path = format!("/cas/{}", digest_of(b"over http").hash);
    assert_eq!(http_put(&daemon, &path, b"over http"), 503);
    // What is there needs no turn.
    let there = Blob::new(9, 100);
    assert_eq!(client.put_batch(&[there]).await.unwrap(), [Code::Ok]);
    client.put(there).await.unwrap();
    for (upload, blob) in held {
        assert_eq!(upload.finish(1000, blob.bytes().slice(1000..)).await.unwrap(), 3_000_000);
    }
    assert_eq!(http_put(&daemon, &path, b"over http"), 200);
    client.put(Blob::new(4, 3_000_000)).await.unwrap();
    daemon.stop();
}

/// What the server counts.
fn metrics(daemon: &Daemon) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(daemon.http).unwrap();
    write!(stream, "GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The status of a PUT over HTTP.
fn http_put(daemon: &Daemon, path: &str, body: &[u8]) -> u16 {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(daemon.http).unwrap();
    write!(stream, "PUT {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer["HTTP/1.1 ".len()..][..3].parse().unwrap()
}

/// A chain of that many directories below a root.
fn chain(levels: usize, seed: &str) -> (Digest, Vec<(Digest, Bytes)>) {
    let leaf = Directory { symlinks: vec![SymlinkNode { name: seed.into(), ..Default::default() }], ..Default::default() };
    let mut blobs = vec![leaf.encode_to_vec()];
    for _ in 0..levels {
        let child = digest_of(blobs.last().unwrap());
        let node = DirectoryNode { name: "d".into(), digest: Some(child) };
        blobs.push(Directory { directories: vec![node], ..Default::default() }.encode_to_vec());
    }
    let blobs: Vec<_> = blobs.into_iter().map(|blob| (digest_of(&blob), Bytes::from(blob))).collect();
    (blobs.last().unwrap().0.clone(), blobs)
}

#[tokio::test]
async fn directories_go_down_as_many_levels_as_are_set() {
    let (daemon, _dir) = daemon("directory_depth_max = 7");
    let client = Client::connect(daemon.grpc).await;
    let mut cas = cas(&daemon).await;
    for (levels, within) in [(7, true), (8, false)] {
        let (root, blobs) = chain(levels, "a");
        client.put_batch_as(blobs).await.unwrap();
        let request = GetTreeRequest { root_digest: Some(root.clone()), ..Default::default() };
        let found = match cas.get_tree(request).await {
            Ok(mut stream) => Ok(stream.get_mut().message().await.unwrap().unwrap().directories.len()),
            Err(status) => Err(status.code()),
        };
        assert_eq!(found, if within { Ok(8) } else { Err(Code::ResourceExhausted) });
        let directory = OutputDirectory { path: "d".into(), root_directory_digest: Some(root), ..Default::default() };
        let result = ActionResult { output_directories: vec![directory], ..Default::default() };
        let action = action_digest(levels as u64);
        client.put_action(action.clone(), result).await.unwrap();
        assert_eq!(client.action(action).await.unwrap().is_some(), within, "{levels} levels");
    }
    daemon.stop();
}

#[tokio::test]
async fn trees_of_an_action_result_are_as_large_as_is_set() {
    let (daemon, _dir) = daemon("tree_bytes_max = \"64KiB\"");
    let client = Client::connect(daemon.grpc).await;
    for (bytes, within) in [(64 << 10, true), ((64 << 10) + 1, false)] {
        // A field that nobody knows is as long as it has to be; its key takes two bytes and its length three.
        let mut tree = Tree { root: Some(Directory::default()), children: vec![] }.encode_to_vec();
        let filler = bytes - tree.len() - 5;
        prost::encoding::encode_key(100, prost::encoding::WireType::LengthDelimited, &mut tree);
        prost::encoding::encode_varint(filler as u64, &mut tree);
        tree.resize(bytes, 0);
        let digest = digest_of(&tree);
        client.put_batch_as(vec![(digest.clone(), tree.into())]).await.unwrap();
        let directory = OutputDirectory { path: "d".into(), tree_digest: Some(digest), ..Default::default() };
        let result = ActionResult { output_directories: vec![directory], ..Default::default() };
        let action = action_digest(bytes as u64);
        client.put_action(action.clone(), result).await.unwrap();
        assert_eq!(client.action(action).await.unwrap().is_some(), within, "{bytes} bytes");
    }
    daemon.stop();
}

/// Large messages that are not complete hold their share, and others wait; small ones do not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_of_messages_in_memory_are_bounded_as_set() {
    for (megabytes, waits) in [(8, true), (9, false)] {
        let (daemon, _dir) = daemon(&format!("[grpc]\nmessage_bytes_max = \"4MiB\"\nrequest_bytes_max = \"{megabytes}MiB\""));
        // The sizes of the two messages that stand still are less than 8 MiB by a few bytes.
        let held: Vec<_> = (0..2).map(|_| half_a_message(&daemon, 4 * MIB - 10)).collect();
        let mut cas = cas(&daemon).await;
        let asked: Vec<_> = (0..2000).map(|n: u32| digest_of(&n.to_le_bytes())).collect();
        let large = FindMissingBlobsRequest { blob_digests: asked.clone(), ..Default::default() };
        assert!((100_000..MIB).contains(&large.encoded_len()));
        let call = || {
            let (mut cas, large) = (cas.clone(), large.clone());
            tokio::spawn(async move { cas.find_missing_blobs(large).await })
        };
        let waiting = match waits {
            true => Some(waiting(call).await),
            false => {
                call().await.unwrap().unwrap();
                None
            }
        };
        let small = FindMissingBlobsRequest { blob_digests: asked[..10].to_vec(), ..Default::default() };
        assert_eq!(cas.find_missing_blobs(small).await.unwrap().into_inner().missing_blob_digests.len(), 10);
        drop(held);
        if let Some(waiting) = waiting {
            assert_eq!(waiting.await.unwrap().unwrap().into_inner().missing_blob_digests.len(), 2000);
        }
        daemon.stop();
    }
}

/// Calls until one has to wait. Those before it ran because what takes its turn had not begun.
async fn waiting<T>(call: impl Fn() -> JoinHandle<T>) -> JoinHandle<T> {
    for _ in 0..100 {
        let mut call = call();
        if tokio::time::timeout(Duration::from_millis(500), &mut call).await.is_err() {
            return call;
        }
    }
    panic!("nothing ever waits");
}

/// A connection that has sent the head of a call and half of its message of that length. The server has it when this returns.
fn half_a_message(daemon: &Daemon, bytes: usize) -> std::net::TcpStream {
    use std::io::{Read, Write};
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    };
    // Header fields as literals that enter no table (RFC 7541, 6.2.2).
    let field = |name: &str, value: &str| {
        let lengths = [name, value].map(|text| u8::try_from(text.len()).unwrap());
        assert!(lengths.iter().all(|length| *length < 127));
        [&[0, lengths[0]], name.as_bytes(), &[lengths[1]], value.as_bytes()].concat()
    };
    let head = [
        field(":method", "POST"),
        field(":scheme", "http"),
        field(":path", "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs"),
        field(":authority", "test"),
        field("content-type", "application/grpc"),
        field("te", "trailers"),
    ]
    .concat();
    let mut message = vec![0];
    message.extend(u32::try_from(bytes).unwrap().to_be_bytes());
    message.resize(16_000, 0);
    let mut stream = std::net::TcpStream::connect(daemon.grpc).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    let ping = frame(6, 0, 0, b"is there");
    stream.write_all(&[frame(4, 0, 0, &[]), frame(1, 4, 1, &head), frame(0, 0, 1, &message), ping].concat()).unwrap();
    // The answer to the ping says that all before it was read.
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).unwrap();
        assert!(!matches!(head[3], 1 | 3 | 7), "answered too early: frame {}", head[3]);
        if head[3] == 6 {
            return stream;
        }
    }
}

/// What the server announces is what a connection may have.
#[tokio::test]
async fn calls_on_a_connection_are_as_many_as_is_set() {
    let (daemon, _dir) = daemon("grpc.streams_max = 8");
    let client = Client::connect(daemon.grpc).await;
    let blobs: Vec<_> = (0..9).map(|seed| Blob::new(seed, 3_000_000)).collect();
    let begin = |blob: &Blob| OpenUpload::start(&client, &upload_name(&blob.digest()), blob.bytes().slice(..1000));
    let mut held: Vec<_> = blobs[..8].iter().map(begin).collect();
    // The ninth call of this client waits for one of them to end; another connection does not.
    let ninth = waiting(|| {
        let (client, blob) = (client.clone(), blobs[8]);
        tokio::spawn(async move { client.missing(vec![blob.digest()]).await })
    })
    .await;
    assert_eq!(Client::connect(daemon.grpc).await.missing(vec![blobs[8].digest()]).await.unwrap().len(), 1);
    held.pop().unwrap().end().await.unwrap();
    assert_eq!(ninth.await.unwrap().unwrap().len(), 1);
    for (upload, blob) in held.into_iter().zip(&blobs) {
        assert_eq!(upload.finish(1000, blob.bytes().slice(1000..)).await.unwrap(), 3_000_000);
        assert_eq!(client.check(*blob).await.unwrap(), Found::Exact);
    }
    daemon.stop();
}
