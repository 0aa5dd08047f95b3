//! Cutting a blob that is there whole, and remembering how.

use bytes::Bytes;
use futures::StreamExt;

use super::{
    super::{ByteRange, ChunkList, ChunkListBuilder, Chunking, Digest, Instance, StoreError, chunking::Cutter, hashing::digest_in_turns},
    ChunkedBlobs,
};

/// Bytes of chunks that are stored together, unless a single one is larger.
const BATCH_BYTES_MAX: usize = 2 << 20;

/// Chunks on their way into the store.
struct Batch<'a> {
    blobs: &'a ChunkedBlobs,
    instance: &'a Instance,
    chunks: Vec<(Digest, Bytes)>,
    bytes: usize,
}

impl Batch<'_> {
    async fn add(&mut self, digest: Digest, data: Bytes) -> Result<(), StoreError> {
        self.bytes += data.len();
        self.chunks.push((digest, data));
        if self.bytes < BATCH_BYTES_MAX {
            return Ok(());
        }
        self.flush().await
    }

    /// Stores those that are not there.
    async fn flush(&mut self) -> Result<(), StoreError> {
        self.bytes = 0;
        let chunks = std::mem::take(&mut self.chunks);
        let digests: Vec<_> = chunks.iter().map(|(digest, _)| *digest).collect();
        let missing = self.blobs.inner.find_missing(self.instance, &digests).await?;
        let missing: Vec<_> = chunks.into_iter().zip(missing).filter(|(_, missing)| *missing).map(|(chunk, _)| chunk).collect();
        if missing.is_empty() {
            return Ok(());
        }
        self.blobs.inner.write_batch(self.instance, missing).await.into_iter().try_for_each(|stored| stored.map(drop))
    }
}

impl ChunkedBlobs {
    /// The chunks of a blob; see [`BlobStore::chunk_list`](super::BlobStore::chunk_list).
    pub(super) async fn split(&self, instance: &Instance, digest: &Digest, chunking: Chunking) -> Result<Option<ChunkList>, StoreError> {
        // Whoever asks for the chunks wants the blob, too, however it is there.
        let whole = !self.inner.find_missing(instance, std::slice::from_ref(digest)).await?.contains(&true);
        let known = || async {
            let list = self.complete_list(instance, digest).await?;
            Ok::<_, StoreError>(list.filter(|list| list.size_bytes() == digest.size_bytes && (whole || self.is_blob(list))))
        };
        if let Some(list) = known().await? {
            return Ok(Some(list));
        }
        if !whole {
            return Ok(None);
        }
        if digest.size_bytes < chunking.split_bytes_min() {
            // Nothing to remember: it is its own chunk. The empty blob has none.
            let mut list = ChunkListBuilder::new(digest.function, chunking.number());
            if digest.size_bytes > 0 {
                list.push(digest)?;
            }
            return list.finish().map(Some);
        }
        let _turn = self.turns.take(digest).await;
        if let Some(list) = known().await? {
            return Ok(Some(list));
        }
        let _work = self.work().await?;
        let list = match self.cut(instance, digest, chunking).await {
            // Nothing of it was promised yet.
            Ok(None) | Err(StoreError::Lost { .. }) => return Ok(None),
            Ok(Some(list)) => list,
            Err(error) => return Err(error),
        };
        self.inner.put_chunk_list(instance, digest, list.clone()).await?;
        Ok(Some(list))
    }

    /// Cuts the blob and stores the chunks.
    async fn cut(&self, instance: &Instance, digest: &Digest, chunking: Chunking) -> Result<Option<ChunkList>, StoreError> {
        let Some(read) = self.inner.read(instance, digest, ByteRange::ALL).await? else {
            return Ok(None);
        };
        let mut pieces = read.into_stream();
        let mut cutter = Cutter::new(chunking);
        let mut list = ChunkListBuilder::new(digest.function, chunking.number());
        let mut batch = Batch { blobs: self, instance, chunks: Vec::new(), bytes: 0 };
        let mut more = true;
        while more {
            match pieces.next().await.transpose()? {
                Some(piece) => cutter.push(&piece),
                None => {
                    cutter.end();
                    more = false;
                }
            }
            while let Some(chunk) = cutter.next() {
                let name = digest_in_turns(digest.function, &chunk).await;
                list.push(&name)?;
                batch.add(name, chunk).await?;
            }
        }
        batch.flush().await?;
        let list = list.finish()?;
        if list.size_bytes() != digest.size_bytes {
            return Err(StoreError::Internal(format!("chunks of {digest} have {} bytes", list.size_bytes())));
        }
        Ok(Some(list))
    }
}
