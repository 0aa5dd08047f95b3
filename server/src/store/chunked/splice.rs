//! Making a blob of chunks: nothing is stored but the list (and of a small blob all of it), and that only once the blob is known to be right.

use std::collections::HashSet;

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};

use super::{
    super::{BeginWrite, BlobRead, BlobStore, ByteRange, ChunkList, Digest, Hasher, Instance, StoreError, WriteOutcome},
    ChunkedBlobs, read, same,
};

impl ChunkedBlobs {
    /// Makes a blob of chunks; see [`BlobStore::put_chunk_list`].
    pub(super) async fn splice(&self, instance: &Instance, digest: &Digest, list: ChunkList) -> Result<WriteOutcome, StoreError> {
        let (size_bytes, limit_bytes) = (digest.size_bytes, self.capabilities.blob_bytes_max);
        if size_bytes > limit_bytes {
            // As an upload of it would be. So nobody has hashed more here than could be sent.
            return Err(StoreError::TooLarge { size_bytes, limit_bytes });
        }
        if list.function() != digest.function {
            return Err(StoreError::Internal(format!("chunks of {digest} are of {}", list.function())));
        }
        let _turn = self.turns.take(digest).await;
        if !self.find_missing(instance, std::slice::from_ref(digest)).await?.contains(&true) {
            return Ok(WriteOutcome::AlreadyPresent);
        }
        let mismatch = || StoreError::SizeMismatch { declared_bytes: size_bytes, sent_bytes: list.size_bytes() };
        // No blob is so large: no need to look at any chunk.
        if list.size_bytes() > i64::MAX as u64 {
            return Err(mismatch());
        }
        let _work = self.work().await?;
        // One that is missing is told before a sum that is wrong.
        self.gather(instance, &list).await?;
        if list.size_bytes() != size_bytes {
            return Err(mismatch());
        }
        same(digest, self.hash(instance, &list, digest).await?)?;
        if size_bytes <= self.whole_bytes_max {
            match self.copy(instance, digest, list.clone()).await {
                Err(StoreError::Lost { offset_bytes }) => return Err(lost_chunk(&list, offset_bytes)),
                copied => copied?,
            }
        }
        self.inner.put_chunk_list(instance, digest, list.clone()).await?;
        // All of them are there and retained at a time when the list is, too.
        self.gather(instance, &list).await?;
        Ok(WriteOutcome::Stored)
    }

    /// Sees to it that every chunk is there whole.
    async fn gather(&self, instance: &Instance, list: &ChunkList) -> Result<(), StoreError> {
        let mut copied = HashSet::new();
        while let Some(chunk) = self.absent_chunk(instance, list).await? {
            // It may be there as a list itself. Clients take it for a blob as any other, so it becomes one. That costs what its upload
            // would have.
            let missing = || StoreError::ChunkMissing { chunk: Box::new(chunk) };
            // Where there is no room for all of them one makes another go.
            if !copied.insert(chunk) {
                return Err(missing());
            }
            let found = self.list_of(instance, &chunk).await?.ok_or_else(missing)?;
            match self.copy(instance, &chunk, found).await {
                Err(StoreError::Lost { .. }) => return Err(missing()),
                copied => copied?,
            }
        }
        Ok(())
    }

    /// Stores as a whole what is there as a list.
    async fn copy(&self, instance: &Instance, digest: &Digest, list: ChunkList) -> Result<(), StoreError> {
        let mut upload = match self.inner.write(instance, digest).await? {
            BeginWrite::AlreadyPresent => return Ok(()),
            BeginWrite::Upload(upload) => upload,
        };
        let mut pieces = self.pieces(instance, list)?;
        while let Some(piece) = pieces.next().await.transpose()? {
            upload.write(piece).await?;
        }
        upload.finish().await.map(drop)
    }

    /// The digest of what the chunks are together.
    async fn hash(&self, instance: &Instance, list: &ChunkList, declared: &Digest) -> Result<Digest, StoreError> {
        let mut hasher = Hasher::new(declared.function, declared.size_bytes);
        let mut pieces = self.pieces(instance, list.clone())?;
        while let Some(piece) = pieces.next().await {
            match piece {
                Ok(piece) => hasher.update(&piece),
                Err(StoreError::Lost { offset_bytes }) => return Err(lost_chunk(list, offset_bytes)),
                Err(error) => return Err(error),
            }
            tokio::task::yield_now().await;
        }
        Ok(hasher.finish())
    }

    fn pieces(&self, instance: &Instance, list: ChunkList) -> Result<BoxStream<'static, Result<Bytes, StoreError>>, StoreError> {
        read::chunks(&self.inner, instance, list, ByteRange::ALL).map(BlobRead::into_stream)
    }
}

/// The chunk that could not be read.
fn lost_chunk(list: &ChunkList, offset_bytes: u64) -> StoreError {
    let mut end_bytes = 0u64;
    let chunk = list.iter().find(|chunk| {
        end_bytes = end_bytes.saturating_add(chunk.size_bytes);
        end_bytes > offset_bytes
    });
    chunk.map_or(StoreError::Lost { offset_bytes }, |chunk| StoreError::ChunkMissing { chunk: Box::new(chunk) })
}
