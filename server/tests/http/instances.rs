//! What instances have in common, over both protocols.

use blockstore_proto::bytestream::{ReadRequest, WriteRequest, byte_stream_client::ByteStreamClient};
use blockstore_proto::reapi::{
    ActionResult, BatchReadBlobsRequest, BatchUpdateBlobsRequest, Digest, Directory, DirectoryNode, FileNode, FindMissingBlobsRequest,
    GetActionResultRequest, GetTreeRequest, OutputDirectory, OutputFile, SpliceBlobRequest, UpdateActionResultRequest,
    action_cache_client::ActionCacheClient, batch_update_blobs_request::Request,
    content_addressable_storage_client::ContentAddressableStorageClient,
};
use blockstore_tests::{
    blob::{Blob, digest_of},
    client::action_digest,
};
use bytes::Bytes;
use prost::Message;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

use crate::server::{Http, Server, spec};

/// One instance over gRPC.
struct Grpc {
    instance: String,
    channel: Channel,
}

impl Grpc {
    async fn to(server: &Server, instance: &str) -> Self {
        let channel = Endpoint::from_shared(format!("http://{}", server.daemon.grpc)).unwrap().connect().await.unwrap();
        Self { instance: instance.into(), channel }
    }

    fn cas(&self) -> ContentAddressableStorageClient<Channel> {
        ContentAddressableStorageClient::new(self.channel.clone())
    }

    async fn is_there(&self, digest: &Digest) -> bool {
        let request =
            FindMissingBlobsRequest { instance_name: self.instance.clone(), blob_digests: vec![digest.clone()], ..Default::default() };
        self.cas().find_missing_blobs(request).await.unwrap().into_inner().missing_blob_digests.is_empty()
    }

    async fn batch_reads(&self, digest: &Digest) -> bool {
        let request = BatchReadBlobsRequest { instance_name: self.instance.clone(), digests: vec![digest.clone()], ..Default::default() };
        let answer = self.cas().batch_read_blobs(request).await.unwrap().into_inner();
        answer.responses[0].status.as_ref().unwrap().code == 0
    }

    async fn batch_writes(&self, bytes: &[u8]) {
        let one = Request { digest: Some(digest_of(bytes)), data: Bytes::copy_from_slice(bytes), ..Default::default() };
        let request = BatchUpdateBlobsRequest { instance_name: self.instance.clone(), requests: vec![one], ..Default::default() };
        let answer = self.cas().batch_update_blobs(request).await.unwrap().into_inner();
        assert_eq!(answer.responses[0].status.as_ref().unwrap().code, 0);
    }

    fn name(&self, kind: &str) -> String {
        if self.instance.is_empty() { kind.into() } else { format!("{}/{kind}", self.instance) }
    }

    async fn reads(&self, digest: &Digest) -> bool {
        let resource_name = self.name(&format!("blobs/{}/{}", digest.hash, digest.size_bytes));
        let request = ReadRequest { resource_name, ..Default::default() };
        match ByteStreamClient::new(self.channel.clone()).read(request).await {
            Ok(_) => true,
            Err(status) => {
                assert_eq!(status.code(), Code::NotFound, "{status:?}");
                false
            }
        }
    }

    /// How many bytes of a stream were sent before it was answered, and with what.
    async fn writes(&self, bytes: &Bytes) -> i64 {
        let digest = digest_of(bytes);
        let name = self.name(&format!("uploads/u/blobs/{}/{}", digest.hash, digest.size_bytes));
        let requests = bytes.chunks(100_000).enumerate().map(move |(n, data)| WriteRequest {
            resource_name: if n == 0 { name.clone() } else { String::new() },
            write_offset: n as i64 * 100_000,
            finish_write: (n + 1) * 100_000 >= bytes.len(),
            data: Bytes::copy_from_slice(data),
        });
        let requests = futures::stream::iter(requests.collect::<Vec<_>>());
        ByteStreamClient::new(self.channel.clone()).write(requests).await.unwrap().into_inner().committed_size
    }

    /// Makes a blob of what came as its parts.
    async fn splice(&self, parts: &[Bytes]) -> Digest {
        let digest = digest_of(&parts.concat());
        let request = SpliceBlobRequest {
            instance_name: self.instance.clone(),
            blob_digest: Some(digest.clone()),
            chunk_digests: parts.iter().map(|part| digest_of(part)).collect(),
            ..Default::default()
        };
        self.cas().splice_blob(request).await.unwrap();
        digest
    }

    async fn put_result(&self, number: u64, result: &ActionResult) {
        let request = UpdateActionResultRequest {
            instance_name: self.instance.clone(),
            action_digest: Some(action_digest(number)),
            action_result: Some(result.clone()),
            ..Default::default()
        };
        ActionCacheClient::new(self.channel.clone()).update_action_result(request).await.unwrap();
    }

    async fn result(&self, number: u64, inline: &[&str]) -> Option<ActionResult> {
        let request = GetActionResultRequest {
            instance_name: self.instance.clone(),
            action_digest: Some(action_digest(number)),
            inline_output_files: inline.iter().map(|path| path.to_string()).collect(),
            ..Default::default()
        };
        match ActionCacheClient::new(self.channel.clone()).get_action_result(request).await {
            Ok(answer) => Some(answer.into_inner()),
            Err(status) => {
                assert_eq!(status.code(), Code::NotFound, "{status:?}");
                None
            }
        }
    }

    /// How many directories of a tree there are; `None` if its root is not there.
    async fn tree(&self, root: &Digest) -> Option<usize> {
        let request = GetTreeRequest { instance_name: self.instance.clone(), root_digest: Some(root.clone()), ..Default::default() };
        let mut directories = 0;
        let mut answer = self.cas().get_tree(request).await.ok()?.into_inner();
        while let Ok(Some(page)) = answer.message().await {
            directories += page.directories.len();
        }
        (directories > 0).then_some(directories)
    }
}

fn cas(instance: &str, digest: &Digest) -> String {
    if instance.is_empty() { format!("/cas/{}", digest.hash) } else { format!("/{instance}/cas/{}", digest.hash) }
}

/// Whether it is there, which all ways to ask have to agree on.
async fn is_there(http: &Http, grpc: &Grpc, digest: &Digest) -> bool {
    let there = grpc.is_there(digest).await;
    assert_eq!(grpc.batch_reads(digest).await, there, "BatchReadBlobs");
    assert_eq!(grpc.reads(digest).await, there, "Read");
    let status = if there { 200 } else { 404 };
    assert_eq!(http.get(&cas(&grpc.instance, digest)).await.status, status, "GET");
    assert_eq!(http.head(&cas(&grpc.instance, digest)).await.status, status, "HEAD");
    there
}

#[tokio::test]
async fn blobs_of_one_instance_are_missing_in_another_if_they_are_to_be_separate() {
    for (arguments, shared) in [("", true), ("--cas-instances separate", false)] {
        let server = Server::with(arguments);
        let (a, b, none) = (Grpc::to(&server, "a").await, Grpc::to(&server, "b/c").await, Grpc::to(&server, "").await);
        // Each size on each way in; large ones are streamed to the engine.
        for (seed, size) in [(1, 900), (2, 1 << 20), (3, 3_000_000)] {
            let [batched, streamed, put] = [1, 2, 3].map(|way| Blob::new(seed * 10 + way, size).bytes());
            if size < 1 << 20 {
                a.batch_writes(&batched).await;
                assert!(is_there(&server.http, &a, &digest_of(&batched)).await);
                assert_eq!(is_there(&server.http, &b, &digest_of(&batched)).await, shared);
            }
            assert_eq!(a.writes(&streamed).await, size as i64);
            assert_eq!(server.http.put(&cas("a", &digest_of(&put)), put.clone()).await, 200);
            for bytes in [&streamed, &put] {
                let digest = digest_of(bytes);
                assert!(is_there(&server.http, &a, &digest).await);
                assert_eq!(is_there(&server.http, &b, &digest).await, shared, "{size}");
                assert_eq!(is_there(&server.http, &none, &digest).await, shared, "{size}");
            }
            // What another has need not be right here: it is uploaded as if it were nowhere.
            let wrong = Blob::new(99, size).bytes();
            assert_eq!(server.http.put(&cas("b/c", &digest_of(&put)), wrong).await, 400);
            assert_eq!(server.http.put(&cas("b/c", &digest_of(&put)), put.clone()).await, 200);
            assert_eq!(b.writes(&streamed).await, size as i64);
            assert!(is_there(&server.http, &b, &digest_of(&put)).await && is_there(&server.http, &b, &digest_of(&streamed)).await);
            assert_eq!(is_there(&server.http, &none, &digest_of(&put)).await, shared);
        }
        // One that came in parts is there for whom it was put together, whoever has the parts.
        let parts = [70, 71].map(|seed| Blob::new(seed, 1_500_000).bytes());
        for part in &parts {
            a.writes(part).await;
        }
        let whole = a.splice(&parts).await;
        assert!(is_there(&server.http, &a, &whole).await);
        assert_eq!(is_there(&server.http, &b, &whole).await, shared);
        for part in &parts {
            b.writes(part).await;
        }
        assert_eq!(is_there(&server.http, &b, &whole).await, shared);
        assert_eq!(b.splice(&parts).await, whole);
        assert!(is_there(&server.http, &b, &whole).await);
        // The empty blob is everywhere.
        assert!(is_there(&server.http, &b, &digest_of(b"")).await);
    }
}

#[tokio::test]
async fn what_an_action_result_names_has_to_be_in_its_own_instance() {
    let server = Server::with("--cas-instances separate --ac-instances shared");
    let (a, b) = (Grpc::to(&server, "a").await, Grpc::to(&server, "b").await);
    let output = Blob::new(1, 2_000).bytes();
    let leaf = Directory {
        files: vec![FileNode { name: "f".into(), digest: Some(digest_of(&output)), ..Default::default() }],
        ..Default::default()
    };
    let leaf = leaf.encode_to_vec();
    let root = Directory { directories: vec![DirectoryNode { name: "d".into(), digest: Some(digest_of(&leaf)) }], ..Default::default() };
    let root = root.encode_to_vec();
    let file = OutputFile { path: "out".into(), digest: Some(digest_of(&output)), ..Default::default() };
    let directory = OutputDirectory { path: "dir".into(), root_directory_digest: Some(digest_of(&root)), ..Default::default() };
    let result = ActionResult { output_files: vec![file], output_directories: vec![directory], ..Default::default() };
    a.put_result(1, &result).await;

    // The result is one for all, and complete where all of it is.
    let path = |instance: &str| format!("/{instance}/ac/{}", action_digest(1).hash);
    for (have, bytes) in [&output[..], &leaf, &root].into_iter().enumerate() {
        assert_eq!(a.result(1, &[]).await, None, "{have} of 3");
        assert_eq!(server.http.get(&path("a")).await.status, 404, "{have} of 3");
        a.batch_writes(bytes).await;
    }
    assert_eq!(a.result(1, &[]).await, Some(result.clone()));
    server.http.get(&path("a")).await.assert_is(200, &result.encode_to_vec());
    assert_eq!(a.result(1, &["out"]).await.unwrap().output_files[0].contents, output);
    assert_eq!(a.tree(&digest_of(&root)).await, Some(2));
    assert_eq!(b.result(1, &[]).await, None);
    assert_eq!(b.tree(&digest_of(&root)).await, None);
    assert_eq!(server.http.get(&path("b")).await.status, 404);
    b.batch_writes(&root).await;
    assert_eq!(b.tree(&digest_of(&root)).await, Some(1), "its leaf is another's");
    b.batch_writes(&leaf).await;
    assert_eq!(b.result(1, &[]).await, None);
    b.batch_writes(&output).await;
    assert_eq!(b.result(1, &["out"]).await.unwrap().output_files[0].contents, output);
}

#[tokio::test]
async fn action_results_are_apart_by_instance_unless_they_are_to_be_shared() {
    for (arguments, shared) in [("", false), ("--ac-instances separate", false), ("--ac-instances shared", true)] {
        let server = Server::with(arguments);
        let (a, none) = (Grpc::to(&server, "a").await, Grpc::to(&server, "").await);
        let result = ActionResult { exit_code: 3, ..Default::default() };
        a.put_result(1, &result).await;
        let path = format!("/ac/{}", action_digest(1).hash);
        assert_eq!(none.result(1, &[]).await.is_some(), shared, "{arguments}");
        assert_eq!(server.http.get(&path).await.status, if shared { 200 } else { 404 }, "{arguments}");
        assert_eq!(server.http.get(&format!("/x/y{path}")).await.status, if shared { 200 } else { 404 }, "{arguments}");
        assert_eq!(server.http.get(&format!("/a{path}")).await.status, 200);
        // What clients name themselves is apart in any case.
        assert_eq!(server.http.put("/a/kv/x", "a").await, 200);
        assert_eq!(server.http.get("/kv/x").await.status, 404, "{arguments}");
    }
}

#[tokio::test]
async fn without_the_check_an_incomplete_result_is_a_hit_and_a_malformed_one_is_none() {
    let server = Server::with("--ac-completeness-check off");
    let grpc = Grpc::to(&server, "").await;
    let file = OutputFile { path: "out".into(), digest: Some(digest_of(b"nowhere")), ..Default::default() };
    let result = ActionResult { output_files: vec![file], ..Default::default() };
    grpc.put_result(1, &result).await;
    assert_eq!(grpc.result(1, &[]).await, Some(result.clone()));
    let path = |number| format!("/ac/{}", action_digest(number).hash);
    server.http.get(&path(1)).await.assert_is(200, &result.encode_to_vec());
    assert_eq!(server.http.put(&path(2), "opaque").await, 200);
    assert_eq!(grpc.result(2, &[]).await, None);
    server.http.get(&path(2)).await.assert_is(200, b"opaque");
}

#[tokio::test]
async fn what_was_stored_without_an_instance_stays_when_instances_become_separate() {
    let Server { daemon, dir, http } = Server::start();
    let (kept, other) = (Blob::new(1, 3_000_000).bytes(), Blob::new(2, 900).bytes());
    for bytes in [&kept, &other] {
        assert_eq!(http.put(&cas("a", &digest_of(bytes)), bytes.clone()).await, 200);
    }
    daemon.stop();
    let daemon = spec(&dir).args("--cas-instances separate").start();
    let http = Http::new(&daemon, false);
    for bytes in [&kept, &other] {
        http.get(&cas("", &digest_of(bytes))).await.assert_is(200, bytes);
        assert_eq!(http.get(&cas("a", &digest_of(bytes))).await.status, 404);
    }
}
