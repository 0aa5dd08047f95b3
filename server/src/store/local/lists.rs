//! Lists of chunks in the engine: one value under the blob's hash, the entries of long ones in a blob of their own.
//!
//! Always true here: long lists that are in memory, whoever holds them, have at most [`MEMORY_BYTES_MAX`] bytes together; a list whose
//! entries are gone or damaged is none.

use std::{sync::Arc, time::Duration};

use blockstore_engine::{Engine, Key};
use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use blockstore_names::keys::{chunk_list_key, content_key};

use super::collect;
use crate::store::{
    ChunkList, Digest, StoreError, WriteOutcome,
    chunk_list::{CHUNKS_MAX, INLINE_BYTES_MAX, Kept, entry_bytes},
    hashing::digest_in_turns,
};

/// Bytes of long lists that are in memory at the same time. The longest of any function fits.
const MEMORY_BYTES_MAX: u32 = 96 << 20;
/// How long one waits for others to be done with theirs, who may be streams to slow clients.
const MEMORY_WAIT_MAX: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(super) struct Lists {
    engine: Engine,
    memory: Arc<Semaphore>,
}

/// Entries that count as long as anybody has them.
struct Counted {
    entries: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.entries
    }
}

impl Lists {
    pub(super) fn new(engine: Engine) -> Self {
        Self { engine, memory: Arc::new(Semaphore::new(MEMORY_BYTES_MAX as usize)) }
    }

    pub(super) async fn have(&self, digests: &[Digest]) -> Vec<bool> {
        let keys: Vec<_> = digests.iter().map(|digest| (chunk_list_key(digest), None)).collect();
        self.engine.lookup(&keys).await
    }

    pub(super) async fn get(&self, digest: &Digest) -> Result<Option<ChunkList>, StoreError> {
        let Some(kept) = self.value(&chunk_list_key(digest), None).await?.and_then(|value| Kept::decode(digest.function, &value)) else {
            return Ok(None);
        };
        let entries = match &kept {
            Kept::Whole(_) => Bytes::new(),
            Kept::Elsewhere { entries, .. } => match self.long_entries(entries).await? {
                Some(entries) => entries,
                None => return Ok(None),
            },
        };
        Ok(kept.with_entries(digest.function, entries))
    }

    pub(super) async fn put(&self, digest: &Digest, list: ChunkList) -> Result<WriteOutcome, StoreError> {
        let value = match list.long_entries(usize::try_from(self.engine.named_bytes_max()).unwrap_or(usize::MAX)) {
            None => list.encode(None),
            Some(entries) => {
                let blob = digest_in_turns(digest.function, entries).await;
                self.engine.put(content_key(&blob), entries.clone()).await?;
                list.encode(Some(&blob))
            }
        };
        Ok(self.engine.put(chunk_list_key(digest), value).await?.into())
    }

    /// The entries that are a blob.
    async fn long_entries(&self, blob: &Digest) -> Result<Option<Bytes>, StoreError> {
        let entries_bytes_max = CHUNKS_MAX * entry_bytes(blob.function);
        let Some(size_bytes) = u32::try_from(blob.size_bytes).ok().filter(|bytes| *bytes as usize <= entries_bytes_max) else {
            return Ok(None);
        };
        if size_bytes as usize <= INLINE_BYTES_MAX {
            return self.value(&content_key(blob), Some(blob.size_bytes)).await;
        }
        let permit = timeout(MEMORY_WAIT_MAX, self.memory.clone().acquire_many_owned(size_bytes)).await;
        let Ok(Ok(permit)) = permit else {
            return Err(StoreError::NoRoom("too many long lists of chunks are in use".into()));
        };
        let entries = self.value(&content_key(blob), Some(blob.size_bytes)).await?;
        Ok(entries.map(|entries| Bytes::from_owner(Counted { entries, _permit: permit })))
    }

    /// What is in the engine, all of it; what is replaced or damaged while it is being read is not there.
    async fn value(&self, key: &Key, size_bytes: Option<u64>) -> Result<Option<Bytes>, StoreError> {
        let Some(object) = self.engine.get(key, size_bytes).await else {
            return Ok(None);
        };
        match collect(object).await {
            Ok(value) => Ok(Some(value)),
            Err(StoreError::Lost { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use blockstore_engine::{
        FormatOptions, OpenOptions,
        device::{DeviceOptions, create_file},
    };

    use super::*;
    use crate::store::{ChunkListBuilder, DigestFunction, Hasher};

    #[tokio::test]
    async fn long_lists_count_as_long_as_anybody_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let device = create_file(&dir.path().join("store"), 64 << 20, DeviceOptions::default()).unwrap();
        Engine::format(device.clone(), &FormatOptions::default()).await.unwrap();
        let (engine, _) = Engine::open(device, OpenOptions::default()).await.unwrap();
        let lists = Lists::new(engine);
        let function = DigestFunction::Sha1;
        for (blob, chunks) in [(b"short", 100), (b"long!", 10_000)] {
            let blob = Hasher::digest(function, blob);
            let mut list = ChunkListBuilder::new(function, 1);
            (0..chunks).for_each(|n| list.push(&blob.with_size(n)).unwrap());
            let list = list.finish().unwrap();
            lists.put(&blob, list.clone()).await.unwrap();
            let found = lists.get(&blob).await.unwrap().unwrap();
            assert_eq!(found, list);
            let counted = if chunks == 100 { 0 } else { list.memory_bytes() };
            let used = || MEMORY_BYTES_MAX as usize - lists.memory.available_permits();
            assert_eq!(used(), counted);
            let other = found.clone();
            drop(found);
            assert_eq!(used(), counted);
            drop(other);
            assert_eq!(used(), 0);
        }
        assert!(CHUNKS_MAX * entry_bytes(DigestFunction::Sha512) <= MEMORY_BYTES_MAX as usize);
    }
}
