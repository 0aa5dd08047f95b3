//! Blobs that are made of other blobs: a decorator that serves what is stored as a list of chunks as if it were stored whole.
//!
//! Always true here: a list is stored only after the bytes of its chunks, one behind the other, were hashed and found to be the blob; a
//! blob that is a list is present only if every chunk is, which is looked up each time it is asked for, and then list and chunks count as
//! used. A chunk is a blob that is stored whole, so that no list leads to another. Memory: of a blob that is read a few chunks ahead, each
//! in pieces of about 1 MiB; of one that is cut a window of the algorithm and a batch of chunks.
//!
//! What comes whole stays whole until somebody asks for its chunks. Then they are stored beside it, and whichever is not wanted any more
//! goes with the time; what comes in chunks is never stored again as a whole, unless it is so small that a list is hardly smaller: then
//! the list only tells those who ask for one. So a blob that is there whole costs nothing more here, nor does a small one that is not: only
//! what is large and was not found is looked up as a list.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{
    ActionKey, BatchBlob, BeginWrite, BlobRead, BlobStore, ByteRange, Capabilities, ChunkList, Chunking, Digest, Hasher, Instance,
    OpenBlob, ResultRule, StoreError, WriteOutcome, compression,
};

mod read;
mod splice;
mod split;
mod turns;

use turns::Turns;

/// Chunks that are looked up together.
const LOOKUP_CHUNKS_MAX: usize = 16 << 10;
/// Lists of one request that are looked at, at the same time.
const LOOKUP_LISTS_MAX: usize = 16;
/// What has no more bytes than this is there whole or not at all. Clients cut their files into larger pieces.
const WHOLE_BYTES_MAX: u64 = 64 << 10;
/// Blobs that are cut or put together at the same time: each keeps a processor busy, and some MiB of memory.
const WORK_MAX: usize = 4;

/// A store whose blobs may come and go in chunks (Remote Execution API, `SplitBlob`, `SpliceBlob` and their successors).
#[derive(Debug)]
pub struct ChunkedBlobs {
    inner: Arc<dyn BlobStore>,
    capabilities: Capabilities,
    /// Of blobs that are being cut or put together.
    turns: Turns,
    work: Semaphore,
    /// See [`WHOLE_BYTES_MAX`].
    whole_bytes_max: u64,
}

impl ChunkedBlobs {
    /// Wraps a store that keeps lists of chunks.
    pub fn new(inner: Arc<dyn BlobStore>) -> Self {
        Self::whole_up_to(inner, WHOLE_BYTES_MAX)
    }

    fn whole_up_to(inner: Arc<dyn BlobStore>, whole_bytes_max: u64) -> Self {
        let capabilities = Capabilities { chunked_blobs: true, ..inner.capabilities().clone() };
        Self { inner, capabilities, turns: Turns::default(), work: Semaphore::new(WORK_MAX), whole_bytes_max }
    }

    /// The list under a hash, whatever size the digest says, if every chunk is there.
    async fn complete_list(&self, instance: &Instance, digest: &Digest) -> Result<Option<ChunkList>, StoreError> {
        let Some(list) = self.inner.chunk_list(instance, digest, Chunking::default()).await? else {
            return Ok(None);
        };
        Ok(self.absent_chunk(instance, &list).await?.is_none().then_some(list))
    }

    /// The list of a blob, if it is there as one.
    async fn list_of(&self, instance: &Instance, digest: &Digest) -> Result<Option<ChunkList>, StoreError> {
        let list = self.complete_list(instance, digest).await?;
        Ok(list.filter(|list| list.size_bytes() == digest.size_bytes && self.is_blob(list)))
    }

    /// Whether a blob of such a list may be there as nothing but the list.
    fn is_blob(&self, list: &ChunkList) -> bool {
        list.size_bytes() > self.whole_bytes_max
    }

    /// The first chunk that is not there whole. All that are there count as used.
    async fn absent_chunk(&self, instance: &Instance, list: &ChunkList) -> Result<Option<Digest>, StoreError> {
        let mut absent = None;
        let mut group = Vec::with_capacity(list.len().min(LOOKUP_CHUNKS_MAX));
        let mut chunks = list.iter();
        loop {
            group.clear();
            group.extend(chunks.by_ref().take(LOOKUP_CHUNKS_MAX));
            if group.is_empty() {
                return Ok(absent);
            }
            let missing = self.inner.find_missing(instance, &group).await?;
            let first = group.iter().zip(missing).find(|(_, missing)| *missing);
            absent = absent.or(first.map(|(chunk, _)| *chunk));
        }
    }

    /// Which of these blobs, none of which is there whole, are there as lists.
    async fn listed(&self, instance: &Instance, digests: &[Digest]) -> Result<HashMap<Digest, bool>, StoreError> {
        let kept = self.inner.has_chunk_lists(instance, digests).await?;
        // Each is looked at once, as often as it may have been asked for.
        let listed: HashSet<_> = digests.iter().zip(kept).filter(|(_, kept)| *kept).map(|(digest, _)| *digest).collect();
        stream::iter(listed)
            .map(|digest| async move {
                let list = self.list_of(instance, &digest).await?;
                Ok::<_, StoreError>((digest, list.is_some()))
            })
            .buffer_unordered(LOOKUP_LISTS_MAX)
            .try_collect()
            .await
    }

    /// A blob that is not there whole, in memory.
    async fn read_listed(&self, instance: &Instance, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        let Some(list) = self.list_of(instance, digest).await? else {
            return Ok(None);
        };
        let len_bytes = usize::try_from(digest.size_bytes).unwrap_or(usize::MAX);
        read::chunks(&self.inner, instance, list, ByteRange::ALL)?.collect(len_bytes).await.map(Some)
    }

    /// A turn at work that is bounded.
    async fn work(&self) -> Result<SemaphorePermit<'_>, StoreError> {
        self.work.acquire().await.map_err(|_| StoreError::Unavailable("store is closing".into()))
    }

    /// Whether the bytes are the blob of that name.
    fn verify(digest: &Digest, data: &[u8]) -> Result<(), StoreError> {
        let sent_bytes = data.len() as u64;
        if sent_bytes != digest.size_bytes {
            return Err(StoreError::SizeMismatch { declared_bytes: digest.size_bytes, sent_bytes });
        }
        same(digest, Hasher::digest(digest.function, data))
    }
}

/// Whether the digest that was computed is the one that was declared.
fn same(declared: &Digest, computed: Digest) -> Result<(), StoreError> {
    if computed == *declared {
        return Ok(());
    }
    Err(StoreError::HashMismatch { declared: Box::new(*declared), computed: Box::new(computed) })
}

#[async_trait]
impl BlobStore for ChunkedBlobs {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn find_missing(&self, instance: &Instance, digests: &[Digest]) -> Result<Vec<bool>, StoreError> {
        let mut missing = self.inner.find_missing(instance, digests).await?;
        let may_be_listed = |digest: &Digest| digest.size_bytes > self.whole_bytes_max;
        let absent = digests.iter().zip(&missing).filter(|(digest, missing)| **missing && may_be_listed(digest));
        let absent: Vec<_> = absent.map(|(digest, _)| *digest).collect();
        if absent.is_empty() {
            return Ok(missing);
        }
        let listed = self.listed(instance, &absent).await?;
        if !listed.is_empty() {
            for (missing, digest) in missing.iter_mut().zip(digests) {
                *missing &= listed.get(digest) != Some(&true);
            }
        }
        Ok(missing)
    }

    async fn read(&self, instance: &Instance, digest: &Digest, range: ByteRange) -> Result<Option<BlobRead>, StoreError> {
        if let Some(read) = self.inner.read(instance, digest, range).await? {
            return Ok(Some(read));
        }
        match self.list_of(instance, digest).await? {
            Some(list) => read::chunks(&self.inner, instance, list, range).map(Some),
            None => Ok(None),
        }
    }

    async fn read_zstd(&self, instance: &Instance, digest: &Digest, offset_bytes: u64) -> Result<Option<BlobRead>, StoreError> {
        if let Some(read) = self.inner.read_zstd(instance, digest, offset_bytes).await? {
            return Ok(Some(read));
        }
        let Some(list) = self.list_of(instance, digest).await? else {
            return Ok(None);
        };
        let range = ByteRange { offset_bytes, limit_bytes: None };
        let len_bytes = range.len_bytes(digest.size_bytes)?;
        compression::compressed(read::chunks(&self.inner, instance, list, range)?, len_bytes).map(Some)
    }

    async fn read_batch_zstd(&self, instance: &Instance, digests: &[Digest]) -> Vec<Result<Option<BatchBlob>, StoreError>> {
        let mut found = self.inner.read_batch_zstd(instance, digests).await;
        let absent: Vec<_> = found.iter().zip(digests).filter(|(found, _)| matches!(found, Ok(None))).map(|(_, digest)| *digest).collect();
        if absent.is_empty() {
            return found;
        }
        let listed = self.read_batch(instance, &absent).await;
        let listed = listed.into_iter().map(|blob| blob.map(|blob| blob.map(BatchBlob::Plain))).collect();
        let places = found.iter_mut().filter(|found| matches!(found, Ok(None)));
        for (place, listed) in places.zip(compression::compress_batch(listed).await) {
            *place = listed;
        }
        found
    }

    async fn open(&self, instance: &Instance, digest: &Digest) -> Result<Option<OpenBlob>, StoreError> {
        if let Some(open) = self.inner.open(instance, digest).await? {
            return Ok(Some(open));
        }
        let Some(list) = self.complete_list(instance, digest).await?.filter(|list| self.is_blob(list)) else {
            return Ok(None);
        };
        let digest = digest.with_size(list.size_bytes());
        let read = read::chunks(&self.inner, instance, list, ByteRange::ALL)?;
        Ok(Some(OpenBlob { digest, read, is_zstd: false }))
    }

    async fn write_any(&self, instance: &Instance, digests: &[Digest]) -> Result<BeginWrite, StoreError> {
        if self.listed(instance, digests).await?.into_values().any(|complete| complete) {
            return Ok(BeginWrite::AlreadyPresent);
        }
        self.inner.write_any(instance, digests).await
    }

    async fn read_batch(&self, instance: &Instance, digests: &[Digest]) -> Vec<Result<Option<Bytes>, StoreError>> {
        let mut found = self.inner.read_batch(instance, digests).await;
        let absent: Vec<_> = found.iter().zip(digests).filter(|(found, _)| matches!(found, Ok(None))).map(|(_, digest)| *digest).collect();
        if absent.is_empty() {
            return found;
        }
        let kept = match self.inner.has_chunk_lists(instance, &absent).await {
            Ok(kept) => kept.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error); absent.len()],
        };
        let places = found.iter_mut().filter(|found| matches!(found, Ok(None)));
        for ((place, digest), kept) in places.zip(&absent).zip(kept) {
            match kept {
                Ok(true) => *place = self.read_listed(instance, digest).await,
                Ok(false) => {}
                Err(error) => *place = Err(error),
            }
        }
        found
    }

    async fn write_batch(&self, instance: &Instance, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<WriteOutcome, StoreError>> {
        let digests: Vec<_> = blobs.iter().map(|(digest, _)| *digest).collect();
        let listed = match self.listed(instance, &digests).await {
            Ok(listed) if listed.is_empty() => return self.inner.write_batch(instance, blobs).await,
            Ok(listed) => listed,
            Err(error) => return blobs.iter().map(|_| Err(error.clone())).collect(),
        };
        let is_there = |digest: &Digest| listed.get(digest) == Some(&true);
        let checks: Vec<_> = blobs
            .iter()
            .map(|(digest, data)| is_there(digest).then(|| Self::verify(digest, data).map(|()| WriteOutcome::AlreadyPresent)))
            .collect();
        let others: Vec<_> = blobs.into_iter().filter(|(digest, _)| !is_there(digest)).collect();
        let mut stored = self.inner.write_batch(instance, others).await.into_iter();
        let unanswered = || Err(StoreError::Internal("blob of a batch has no answer".into()));
        checks.into_iter().map(|check| check.unwrap_or_else(|| stored.next().unwrap_or_else(unanswered))).collect()
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
        self.split(instance, digest, chunking).await
    }

    async fn put_chunk_list(&self, instance: &Instance, digest: &Digest, list: ChunkList) -> Result<WriteOutcome, StoreError> {
        self.splice(instance, digest, list).await
    }
}

#[cfg(test)]
mod tests;
