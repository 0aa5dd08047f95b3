//! Over the real engine on a file, where its counters and the bare store can be looked at.

use std::collections::HashSet;

use blockstore_engine::{
    Engine, FormatOptions, OpenOptions,
    device::{DeviceOptions, create_file},
};
use tempfile::TempDir;

use super::*;
use crate::store::{ChunkListBuilder, DigestFunction, chunk_list::INLINE_BYTES_MAX, local::LocalStore};

const FUNCTION: DigestFunction = DigestFunction::Sha256;

struct Store {
    engine: Engine,
    bare: Arc<dyn BlobStore>,
    chunked: Arc<ChunkedBlobs>,
    at: Instance,
    _dir: TempDir,
}

impl Store {
    async fn new() -> Self {
        Self::whole_up_to(0).await
    }

    async fn whole_up_to(whole_bytes_max: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let device = create_file(&dir.path().join("store"), 256 << 20, DeviceOptions::default()).unwrap();
        Engine::format(device.clone(), &FormatOptions::default()).await.unwrap();
        let (engine, _) = Engine::open(device, OpenOptions::default()).await.unwrap();
        let bare: Arc<dyn BlobStore> = Arc::new(LocalStore::new(engine.clone(), DigestFunction::ALL.to_vec()));
        let chunked = Arc::new(ChunkedBlobs::whole_up_to(bare.clone(), whole_bytes_max));
        Self { engine, bare, chunked, at: Instance::new(""), _dir: dir }
    }

    async fn put(&self, data: &[u8]) -> Digest {
        let digest = Hasher::digest(FUNCTION, data);
        let stored = self.chunked.write_batch(&self.at, vec![(digest, Bytes::copy_from_slice(data))]).await;
        assert!(stored.iter().all(Result::is_ok), "{stored:?}");
        digest
    }

    async fn is_there(&self, digest: &Digest) -> bool {
        let missing = self.chunked.find_missing(&self.at, &[*digest]).await.unwrap();
        let (read, open) = (self.get(digest).await.is_some(), self.chunked.open(&self.at, digest).await.unwrap().is_some());
        assert_eq!([read, open], [!missing[0]; 2], "all ways to ask agree");
        !missing[0]
    }

    async fn get(&self, digest: &Digest) -> Option<Bytes> {
        let read = self.chunked.read(&self.at, digest, ByteRange::ALL).await.unwrap()?;
        Some(read.collect(digest.size_bytes as usize).await.unwrap())
    }
}

fn list(chunks: &[Digest]) -> ChunkList {
    let mut builder = ChunkListBuilder::new(FUNCTION, 0);
    chunks.iter().for_each(|chunk| builder.push(chunk).unwrap());
    builder.finish().unwrap()
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut data = vec![0; len];
    hasher.finalize_xof().fill(&mut data);
    data
}

#[tokio::test]
async fn a_small_blob_of_chunks_is_there_whole_and_one_that_is_not_is_no_list() {
    let store = Store::whole_up_to(8).await;
    let chunks = [store.put(b"abcd").await, store.put(b"efgh").await, store.put(b"i").await];
    for (chunks, data, whole) in [(&chunks[..2], &b"abcdefgh"[..], true), (&chunks[..], b"abcdefghi", false)] {
        let blob = Hasher::digest(FUNCTION, data);
        let outcome = store.chunked.put_chunk_list(&store.at, &blob, list(chunks)).await;
        assert_eq!(outcome.unwrap(), WriteOutcome::Stored);
        assert!(store.is_there(&blob).await);
        assert_eq!(store.get(&blob).await.unwrap(), data);
        assert_eq!(store.bare.find_missing(&store.at, &[blob]).await.unwrap(), [!whole]);
        // What it was made of is known all the same.
        let known = store.chunked.chunk_list(&store.at, &blob, Chunking::default()).await.unwrap();
        assert_eq!(known, Some(list(chunks)));
    }
    // As an earlier build kept it.
    let blob = Hasher::digest(FUNCTION, b"efghi");
    store.bare.put_chunk_list(&store.at, &blob, list(&chunks[1..])).await.unwrap();
    assert!(!store.is_there(&blob).await);
    assert_eq!(store.chunked.chunk_list(&store.at, &blob, Chunking::default()).await.unwrap(), None);
}

#[tokio::test]
async fn splicing_stores_no_second_copy() {
    let store = Store::new().await;
    let data = noise(1, 8_000_000);
    let mut chunks = Vec::new();
    for chunk in data.chunks(700_000) {
        chunks.push(store.put(chunk).await);
    }
    let blob = Hasher::digest(FUNCTION, &data);
    let before = store.engine.stats();
    assert_eq!(store.chunked.put_chunk_list(&store.at, &blob, list(&chunks)).await.unwrap(), WriteOutcome::Stored);
    assert!(store.get(&blob).await.unwrap() == data);
    assert!(store.is_there(&blob).await);
    let after = store.engine.stats();
    assert_eq!(after.puts - before.puts, 1);
    assert!(after.accepted_bytes - before.accepted_bytes < 4096, "{} bytes", after.accepted_bytes - before.accepted_bytes);
    // Not even if it is written again, and then it is not stored whole either.
    assert!(matches!(store.chunked.write(&store.at, &blob).await.unwrap(), BeginWrite::AlreadyPresent));
    assert_eq!(store.put(&data).await, blob);
    assert_eq!(store.engine.stats().puts, after.puts);
    assert_eq!(store.bare.find_missing(&store.at, &[blob]).await.unwrap(), [true]);
}

#[tokio::test]
async fn a_list_is_a_blob_only_while_every_chunk_is_there() {
    let store = Store::new().await;
    let parts = [noise(1, 1000), noise(2, 2000), noise(3, 3000)];
    let data = parts.concat();
    let (blob, chunks) = (Hasher::digest(FUNCTION, &data), parts.each_ref().map(|part| Hasher::digest(FUNCTION, part)));
    // The bare store takes it as it is.
    store.bare.put_chunk_list(&store.at, &blob, list(&chunks)).await.unwrap();
    for part in &parts {
        assert!(!store.is_there(&blob).await);
        assert_eq!(store.chunked.chunk_list(&store.at, &blob, Chunking::default()).await.unwrap(), None);
        assert!(matches!(store.chunked.write(&store.at, &blob).await.unwrap(), BeginWrite::Upload(_)));
        store.put(part).await;
    }
    assert!(store.is_there(&blob).await);
    assert!(store.get(&blob).await.unwrap() == data);
    assert_eq!(store.chunked.chunk_list(&store.at, &blob, Chunking::default()).await.unwrap(), Some(list(&chunks)));
    // Under another size it is another blob, or none.
    let other = blob.with_size(6001);
    assert_eq!(store.chunked.find_missing(&store.at, &[other]).await.unwrap(), [true]);
    assert!(store.chunked.read(&store.at, &other, ByteRange::ALL).await.unwrap().is_none());
    assert_eq!(store.chunked.open(&store.at, &other).await.unwrap().unwrap().digest, blob);
}

#[tokio::test]
async fn a_chunk_that_is_lost_midway_ends_the_read_where_it_began() {
    let store = Store::new().await;
    let parts = [noise(1, 1000), noise(2, 2000), noise(3, 3000)];
    let chunks = [store.put(&parts[0]).await, Hasher::digest(FUNCTION, &parts[1]), store.put(&parts[2]).await];
    let range = ByteRange { offset_bytes: 100, limit_bytes: None };
    let mut pieces = read::chunks(&store.bare, &store.at, list(&chunks), range).unwrap().into_stream();
    assert!(pieces.next().await.unwrap().unwrap() == parts[0][100..]);
    assert!(matches!(pieces.next().await, Some(Err(StoreError::Lost { offset_bytes: 1000 }))));
    assert!(pieces.next().await.is_none());
    // And nothing is made of it.
    let blob = Hasher::digest(FUNCTION, &parts.concat());
    let refused = store.chunked.put_chunk_list(&store.at, &blob, list(&chunks)).await;
    assert!(matches!(refused, Err(StoreError::ChunkMissing { chunk }) if *chunk == chunks[1]));
    assert!(!store.chunked.has_chunk_lists(&store.at, &[blob]).await.unwrap()[0]);
}

#[tokio::test]
async fn what_is_not_the_blob_is_refused_and_nothing_is_kept() {
    let store = Store::new().await;
    let (one, two) = (store.put(b"one").await, store.put(b"two").await);
    let blob = Hasher::digest(FUNCTION, b"onetwo");
    for (chunks, wrong_size) in [(vec![two, one], false), (vec![one], true), (vec![one, two, two], true), (vec![], true)] {
        let refused = store.chunked.put_chunk_list(&store.at, &blob, list(&chunks)).await.unwrap_err();
        match wrong_size {
            true => assert!(matches!(refused, StoreError::SizeMismatch { declared_bytes: 6, .. }), "{refused}"),
            false => assert!(matches!(refused, StoreError::HashMismatch { .. }), "{refused}"),
        }
        assert!(!store.chunked.has_chunk_lists(&store.at, &[blob]).await.unwrap()[0]);
    }
    let limit_bytes = store.chunked.capabilities().blob_bytes_max;
    let refused = store.chunked.put_chunk_list(&store.at, &blob.with_size(limit_bytes + 1), list(&[one])).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { .. })));
    assert_eq!(store.chunked.put_chunk_list(&store.at, &blob, list(&[one, two])).await.unwrap(), WriteOutcome::Stored);
    // What it has it keeps.
    let again = store.chunked.put_chunk_list(&store.at, &blob, list(&[blob])).await.unwrap();
    assert_eq!(again, WriteOutcome::AlreadyPresent);
    assert_eq!(store.chunked.chunk_list(&store.at, &blob, Chunking::default()).await.unwrap(), Some(list(&[one, two])));
}

#[tokio::test]
async fn a_chunk_may_itself_have_come_in_chunks() {
    let store = Store::new().await;
    let (one, two) = (store.put(b"one").await, store.put(b"two").await);
    let (inner, outer) = (Hasher::digest(FUNCTION, b"onetwo"), Hasher::digest(FUNCTION, b"onetwoone"));
    store.chunked.put_chunk_list(&store.at, &inner, list(&[one, two])).await.unwrap();
    store.chunked.put_chunk_list(&store.at, &outer, list(&[inner, one])).await.unwrap();
    assert_eq!(store.get(&outer).await.unwrap(), &b"onetwoone"[..]);
    // It lies there whole now, so that lists never lead to lists.
    assert_eq!(store.bare.find_missing(&store.at, &[inner, outer]).await.unwrap(), [false, true]);
    // The other way round it never ends, so it does not begin.
    let cycle = Hasher::digest(FUNCTION, b"cycle");
    store.bare.put_chunk_list(&store.at, &cycle, list(&[cycle])).await.unwrap();
    assert!(!store.is_there(&cycle).await);
    assert!(matches!(store.chunked.put_chunk_list(&store.at, &cycle, list(&[cycle])).await, Err(StoreError::ChunkMissing { .. })));
}

#[tokio::test]
async fn long_lists_are_kept_beside_and_found() {
    let store = Store::new().await;
    let chunks: Vec<_> = (0..10u8).map(|n| noise(n.into(), 10)).collect();
    let mut names = Vec::new();
    for chunk in &chunks {
        names.push(store.put(chunk).await);
    }
    for count in [INLINE_BYTES_MAX / 40 - 1, INLINE_BYTES_MAX / 40 + 1, 40_000] {
        let order: Vec<_> = (0..count).map(|n| (n * n / 7) % 10).collect();
        let data: Vec<u8> = order.iter().flat_map(|n| chunks[*n].clone()).collect();
        let blob = Hasher::digest(FUNCTION, &data);
        let list = list(&order.iter().map(|n| names[*n]).collect::<Vec<_>>());
        let before = store.engine.stats().puts;
        store.chunked.put_chunk_list(&store.at, &blob, list.clone()).await.unwrap();
        assert_eq!(store.engine.stats().puts - before, if count * 40 <= INLINE_BYTES_MAX { 1 } else { 2 });
        assert_eq!(store.chunked.chunk_list(&store.at, &blob, Chunking::default()).await.unwrap(), Some(list));
        assert!(store.get(&blob).await.unwrap() == data);
        let range = ByteRange { offset_bytes: data.len() as u64 - 15, limit_bytes: Some(10) };
        let part = store.chunked.read(&store.at, &blob, range).await.unwrap().unwrap().collect(10).await.unwrap();
        assert!(part == data[data.len() - 15..data.len() - 5]);
    }
}

#[tokio::test]
async fn a_blob_is_cut_once_however_many_ask() {
    let store = Store::new().await;
    let data = noise(1, 12_000_000);
    let blob = Hasher::digest(FUNCTION, &data);
    let BeginWrite::Upload(mut upload) = store.chunked.write(&store.at, &blob).await.unwrap() else { panic!("it is not there") };
    for piece in data.chunks(1 << 20) {
        upload.write(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    upload.finish().await.unwrap();
    let before = store.engine.stats();
    let asks = (0..8).map(|n| {
        let (chunked, at) = (store.chunked.clone(), store.at.clone());
        let chunking = if n % 2 == 0 { Chunking::FastCdc2020 } else { Chunking::RepMaxCdc };
        tokio::spawn(async move { chunked.chunk_list(&at, &blob, chunking).await.unwrap().unwrap() })
    });
    let lists: Vec<_> = futures::future::join_all(asks).await.into_iter().map(Result::unwrap).collect();
    let list = &lists[0];
    assert!(lists.iter().all(|other| other == list));
    let after = store.engine.stats();
    let distinct: HashSet<_> = list.iter().collect();
    assert_eq!(after.puts - before.puts, distinct.len() as u64 + 1);
    let stored: u64 = distinct.iter().map(|chunk| chunk.size_bytes).sum();
    assert!(after.accepted_bytes - before.accepted_bytes < stored + 500_000);
    // They are the blob.
    let mut at_bytes = 0;
    for chunk in list.iter() {
        let end_bytes = at_bytes + chunk.size_bytes as usize;
        assert!(store.get(&chunk).await.unwrap() == data[at_bytes..end_bytes]);
        at_bytes = end_bytes;
    }
    assert_eq!(at_bytes, data.len());
}

#[tokio::test]
async fn a_list_that_lost_a_chunk_is_made_anew_of_the_whole() {
    let store = Store::new().await;
    let data = noise(1, 3_000_000);
    let blob = store.put(&data).await;
    let gone = Hasher::digest(FUNCTION, b"gone");
    store.bare.put_chunk_list(&store.at, &blob, list(&[gone])).await.unwrap();
    let made = store.chunked.chunk_list(&store.at, &blob, Chunking::RepMaxCdc).await.unwrap().unwrap();
    assert_eq!((made.chunking(), made.size_bytes()), (2, 3_000_000));
    assert_eq!(store.bare.chunk_list(&store.at, &blob, Chunking::default()).await.unwrap(), Some(made));
}

#[tokio::test]
async fn only_what_is_missing_is_looked_up_as_a_list() {
    let store = Store::new().await;
    let there = store.put(b"there").await;
    let absent = Hasher::digest(FUNCTION, b"absent");
    let looked_up = |before: &blockstore_engine::Stats| {
        let after = store.engine.stats();
        (after.hits - before.hits) + (after.misses - before.misses)
    };
    let before = store.engine.stats();
    store.chunked.find_missing(&store.at, &[there; 100]).await.unwrap();
    assert_eq!(looked_up(&before), 100);
    let before = store.engine.stats();
    store.chunked.find_missing(&store.at, &[[there; 100], [absent; 100]].concat()).await.unwrap();
    assert_eq!(looked_up(&before), 300);
}
