//! What happens beside a call: uploads that others finish, pages that are asked for later, stores that rotate.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use blockstore_proto::{bytestream::WriteRequest, reapi};
use blockstore_server::{
    front::reapi::Options,
    store::{
        ActionKey, BeginWrite, BlobRead, BlobStore, ByteRange, Capabilities, ChunkList, Chunking, Digest, Instance, OpenBlob, ResultRule,
        StoreError, WriteOutcome,
    },
};
use bytes::Bytes;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    byte_stream::{messages, read, read_name, write_name},
    server::{Server, data, digest},
    tree::hierarchy,
    zstd::{zstd, zstd_write_name},
};

/// So long an answer may take that does not depend on the client any more.
const STUCK: Duration = Duration::from_secs(120);

/// Sends these messages, lets somebody else store the blob, sends those, and then waits for the answer without an end of its own.
async fn interrupted(server: &Server, content: &[u8], before: Vec<WriteRequest>, behind: Vec<WriteRequest>) -> i64 {
    let (sender, receiver) = mpsc::channel(64);
    let mut client = server.bytes();
    let answer = tokio::spawn(async move { client.write(ReceiverStream::new(receiver)).await });
    for message in before {
        sender.send(message).await.unwrap();
    }
    // Who comes second waits ten seconds for the first to go on, and then does it alone.
    server.put(&[content]).await;
    for message in behind {
        // Once it is answered nobody takes the rest.
        if sender.send(message).await.is_err() {
            break;
        }
    }
    let answer = tokio::time::timeout(STUCK, answer).await.expect("an answer before the end of the stream");
    drop(sender);
    answer.unwrap().unwrap().into_inner().committed_size
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_answered_midway_once_another_one_has_stored_the_blob() {
    let server = Server::start().await;
    let [plain, compressed] = [1, 2].map(|seed| data(seed, 24 << 20));
    let name = write_name("u", &digest(&plain));
    let mut sent = messages(&name, &plain, 0, 20 << 20, 1 << 20, false);
    let behind = sent.split_off(1);
    let identity = interrupted(&server, &plain, sent, behind);

    let name = zstd_write_name("u", &digest(&compressed));
    let frame = zstd(&compressed);
    let mut sent = messages(&name, &frame, 0, 20 << 20, 1 << 20, false);
    let behind = sent.split_off(2);
    let zstd = interrupted(&server, &compressed, sent, behind);
    assert_eq!(tokio::join!(identity, zstd), (24 << 20, -1));
}

/// A batch costs as many writes as its bytes, not as its blobs.
#[tokio::test]
async fn the_blobs_of_a_batch_go_to_the_engine_together() {
    let server = Server::start().await;
    let blobs: Vec<_> = (0..500).map(|seed| data(seed, 1000)).collect();
    let before = server.engine.stats();
    server.put(&blobs.iter().map(Vec::as_slice).collect::<Vec<_>>()).await;
    let after = server.engine.stats();
    assert_eq!(after.puts - before.puts, 500);
    assert!(after.batches - before.batches < 20, "{} batches for 500 blobs", after.batches - before.batches);
}

/// Counts the blobs that are read in batches, which is how directories are read.
#[derive(Debug)]
struct Counting {
    inner: Arc<dyn BlobStore>,
    read: Arc<AtomicU64>,
}

#[async_trait]
impl BlobStore for Counting {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }
    async fn find_missing(&self, instance: &Instance, digests: &[Digest]) -> Result<Vec<bool>, StoreError> {
        self.inner.find_missing(instance, digests).await
    }
    async fn read(&self, instance: &Instance, digest: &Digest, range: ByteRange) -> Result<Option<BlobRead>, StoreError> {
        self.inner.read(instance, digest, range).await
    }
    async fn open(&self, instance: &Instance, digest: &Digest) -> Result<Option<OpenBlob>, StoreError> {
        self.inner.open(instance, digest).await
    }
    async fn write_any(&self, instance: &Instance, digests: &[Digest]) -> Result<BeginWrite, StoreError> {
        self.inner.write_any(instance, digests).await
    }
    async fn read_batch(&self, instance: &Instance, digests: &[Digest]) -> Vec<Result<Option<Bytes>, StoreError>> {
        self.read.fetch_add(digests.len() as u64, Ordering::Relaxed);
        self.inner.read_batch(instance, digests).await
    }
    async fn write_batch(&self, instance: &Instance, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<WriteOutcome, StoreError>> {
        self.inner.write_batch(instance, blobs).await
    }
    async fn get_action_result(&self, instance: &Instance, action: &ActionKey, rule: ResultRule) -> Result<Option<Bytes>, StoreError> {
        self.inner.get_action_result(instance, action, rule).await
    }
    async fn put_action_result(&self, instance: &Instance, action: &ActionKey, result: Bytes) -> Result<(), StoreError> {
        self.inner.put_action_result(instance, action, result).await
    }
    async fn get_entry(&self, instance: &Instance, name: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.inner.get_entry(instance, name).await
    }
    async fn put_entry(&self, instance: &Instance, name: &[u8], data: Bytes) -> Result<(), StoreError> {
        self.inner.put_entry(instance, name, data).await
    }
    async fn delete_entry(&self, instance: &Instance, name: &[u8]) -> Result<bool, StoreError> {
        self.inner.delete_entry(instance, name).await
    }
    async fn has_chunk_lists(&self, instance: &Instance, digests: &[Digest]) -> Result<Vec<bool>, StoreError> {
        self.inner.has_chunk_lists(instance, digests).await
    }
    async fn chunk_list(&self, instance: &Instance, digest: &Digest, chunking: Chunking) -> Result<Option<ChunkList>, StoreError> {
        self.inner.chunk_list(instance, digest, chunking).await
    }
    async fn put_chunk_list(&self, instance: &Instance, digest: &Digest, list: ChunkList) -> Result<WriteOutcome, StoreError> {
        self.inner.put_chunk_list(instance, digest, list).await
    }
}

#[tokio::test]
async fn a_page_that_is_asked_for_later_costs_no_walk_from_the_start() {
    let read = Arc::new(AtomicU64::new(0));
    let counted = read.clone();
    let server = Server::over(256 << 20, Options::default(), None, |inner| Arc::new(Counting { inner, read: counted })).await;
    let (root, directories) = hierarchy(&server, 300).await;
    let page = |token: String| {
        let request = reapi::GetTreeRequest { root_digest: Some(root.clone()), page_size: 50, page_token: token, ..Default::default() };
        let mut cas = server.cas();
        async move {
            // The rest of the stream is not wanted, however much of it the server has made already.
            let mut stream = cas.get_tree(request).await.unwrap().into_inner();
            stream.message().await.unwrap().unwrap()
        }
    };
    let (mut token, mut found) = (String::new(), 0);
    loop {
        let before = read.load(Ordering::Relaxed);
        let page = page(token.clone()).await;
        let rest = directories - found;
        found += page.directories.len();
        token = page.next_page_token;
        // The walk is kept when the server notices that nobody reads on, or has made everything.
        while !format!("{:?}", server.services).contains("Kept {") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // What comes before the page is not read again; one directory is missing.
        let read = read.load(Ordering::Relaxed) - before;
        assert!(read as usize <= rest + 1, "{read} directories were read for the last {rest}");
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(found, directories);
}

/// All that a result names stays as long as somebody asks for the result, while the store is filled again and again.
#[tokio::test(flavor = "multi_thread")]
async fn a_hit_extends_the_lifetime_of_all_that_it_names() {
    let server = Server::over(64 << 20, Options::default(), None, |store| store).await;
    let [file, stdout, stderr, in_tree, below_tree, in_root] = [1, 2, 3, 4, 5, 6].map(|seed| data(seed, 20_000));
    let node = |content: &[u8]| reapi::FileNode { name: "f".into(), digest: Some(digest(content)), ..Default::default() };
    let child = reapi::Directory { files: vec![node(&below_tree)], ..Default::default() };
    let below = reapi::DirectoryNode { name: "d".into(), digest: Some(digest(&child.encode_to_vec())) };
    let tree = reapi::Tree {
        root: Some(reapi::Directory { files: vec![node(&in_tree)], directories: vec![below], ..Default::default() }),
        children: vec![child],
    };
    let tree = tree.encode_to_vec();
    let root = reapi::Directory { files: vec![node(&in_root)], ..Default::default() }.encode_to_vec();
    let named: Vec<&[u8]> = vec![&file, &stdout, &stderr, &in_tree, &below_tree, &in_root, &tree, &root];
    server.put(&named).await;
    let directory = |tree_digest, root_directory_digest| reapi::OutputDirectory {
        path: "d".into(),
        tree_digest,
        root_directory_digest,
        ..Default::default()
    };
    let result = reapi::ActionResult {
        output_files: vec![reapi::OutputFile { path: "f".into(), digest: Some(digest(&file)), ..Default::default() }],
        output_directories: vec![directory(Some(digest(&tree)), None), directory(None, Some(digest(&root)))],
        stdout_digest: Some(digest(&stdout)),
        stderr_digest: Some(digest(&stderr)),
        ..Default::default()
    };
    let action = Some(digest(b"an action"));
    let request =
        reapi::UpdateActionResultRequest { action_digest: action.clone(), action_result: Some(result.clone()), ..Default::default() };
    server.actions().update_action_result(request).await.unwrap();

    let capacity = server.engine.stats().capacity_bytes;
    let mut put_bytes = 0;
    let mut seed = 100;
    let mut first = Vec::new();
    while put_bytes < 3 * capacity {
        let blobs: Vec<_> = (0..32).map(|n| data(seed + n, 60_000)).collect();
        seed += 32;
        let digests = server.put(&blobs.iter().map(Vec::as_slice).collect::<Vec<_>>()).await;
        if first.len() < 160 {
            first.extend(digests);
        }
        put_bytes += 32 * 60_000;
        let request = reapi::GetActionResultRequest { action_digest: action.clone(), ..Default::default() };
        assert_eq!(server.actions().get_action_result(request).await.unwrap().into_inner(), result);
    }
    for content in named {
        assert!(read(&server, &read_name(&digest(content)), 0, 0).await.unwrap() == content);
    }
    // What nobody named and was stored right behind it is gone: the store did rotate.
    let request = reapi::FindMissingBlobsRequest { blob_digests: first, ..Default::default() };
    let missing = server.cas().find_missing_blobs(request).await.unwrap().into_inner().missing_blob_digests;
    assert!(missing.len() > 80, "{} of 160 are gone", missing.len());
}
