//! The engine of this machine as a store.
//!
//! Always true here: what goes to the engine under a content key has been hashed and has that digest; the empty blob never
//! goes there; what comes back passed the engine's checksums. Whether a blob is stored compressed shows nowhere but in what it takes.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use async_trait::async_trait;
use blockstore_engine::{Begin, Checksummed, Codec, Engine, Key, Object, Value};
use blockstore_names::{
    keys::{action_key, blob_key, entry_key},
    value::{ACTION_PREFIX_BYTES, SIZE_UNKNOWN, action_bytes, action_result, action_value},
};
use bytes::Bytes;
use futures::{StreamExt, stream};

use super::{
    ActionKey, BatchBlob, BeginWrite, BlobRead, BlobStore, ByteRange, Capabilities, ChunkList, Chunking, Digest, DigestFunction, Hasher,
    Instance, OpenBlob, ResultRule, StoreError, WriteOutcome,
    compression::{self, Frames, compress_batch},
    hashing::TURN_BYTES,
};

mod at_rest;
mod content;
mod lists;
mod upload;

pub use at_rest::Counters as AtRestCounters;
use at_rest::{AtRest, Compressed};
use content::collect;
use lists::Lists;
use upload::{LargeUpload, RefusedUpload, SmallUpload, Target};

/// Uploads up to this size are gathered in memory and put whole; larger ones are streamed to the engine.
pub const SMALL_UPLOAD_BYTES_MAX: u64 = 1 << 20;

/// Reads of one batch that are with the engine at the same time.
const READ_BATCH_CONCURRENCY: usize = 64;

/// What instances have in common. Entries under names of clients are always apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// Whether a blob that one instance stored is there for all. The empty blob is, anyway.
    pub blobs: bool,
    /// Whether an action result that one instance stored is one for all.
    pub action_results: bool,
}

impl Default for Sharing {
    fn default() -> Self {
        Self { blobs: true, action_results: false }
    }
}

/// The engine of this machine as a store, for all instances.
#[derive(Clone)]
pub struct LocalStore {
    engine: Engine,
    capabilities: Arc<Capabilities>,
    sharing: Sharing,
    last_match: LastMatch,
    at_rest: AtRest,
    lists: Lists,
}

/// The function of the last blob whose name left that open. The next one probably has the same.
#[derive(Clone, Debug, Default)]
struct LastMatch(Arc<AtomicU8>);

impl LastMatch {
    fn remember(&self, function: DigestFunction) {
        self.0.store(function.number(), Ordering::Relaxed);
    }

    /// Puts the probable one first.
    fn sort(&self, digests: &mut [Digest]) {
        let last = self.0.load(Ordering::Relaxed);
        digests.sort_by_key(|digest| digest.function.number() != last);
    }
}

impl LocalStore {
    /// A store on an open engine that offers these digest functions, in order of preference.
    pub fn new(engine: Engine, digest_functions: Vec<DigestFunction>) -> Self {
        let capabilities = Capabilities {
            digest_functions,
            blob_bytes_max: engine.object_bytes_max(),
            action_result_bytes_max: engine.named_bytes_max().saturating_sub(ACTION_PREFIX_BYTES as u64),
            entry_bytes_max: engine.named_bytes_max(),
            chunked_blobs: false,
        };
        Self {
            lists: Lists::new(engine.clone()),
            engine,
            capabilities: Arc::new(capabilities),
            sharing: Sharing::default(),
            last_match: LastMatch::default(),
            at_rest: AtRest::default(),
        }
    }

    /// The same store with instances that have this in common. What was stored under another setting is still there, where the keys are
    /// the same: blobs of the instance without a name always are.
    #[must_use]
    pub fn with_sharing(self, sharing: Sharing) -> Self {
        Self { sharing, ..self }
    }

    /// The only instance that has what this one stores, or `None` if all have it.
    fn owner<'a>(&self, instance: &'a Instance) -> Option<&'a Instance> {
        (!self.sharing.blobs).then_some(instance)
    }

    fn blob_key(&self, instance: &Instance, digest: &Digest) -> Key {
        blob_key(self.owner(instance), digest)
    }

    fn result_key(&self, instance: &Instance, action: &ActionKey) -> Key {
        match self.sharing.action_results {
            true => action_key(&Instance::new(""), action),
            false => action_key(instance, action),
        }
    }

    /// The same store, which from now on compresses blobs before it stores them; its engine was opened for that. What is stored already
    /// is read whatever it is.
    pub fn compressing(mut self, frames: Frames) -> Self {
        self.at_rest.frames = Some(frames);
        self
    }

    /// What was stored compressed.
    pub fn at_rest_counters(&self) -> &AtRestCounters {
        &self.at_rest.counters
    }

    fn check_function(&self, digest: &Digest) -> Result<(), StoreError> {
        if self.offers(digest) {
            return Ok(());
        }
        Err(StoreError::UnsupportedFunction(digest.function))
    }

    fn offers(&self, digest: &Digest) -> bool {
        self.capabilities.digest_functions.contains(&digest.function)
    }

    /// The size of an action that an earlier writer knew.
    async fn known_action_bytes(&self, key: &Key) -> Option<u64> {
        let object = self.engine.get(key, None).await?;
        let value = collect(object).await.ok()?;
        action_bytes(&value).filter(|bytes| *bytes != SIZE_UNKNOWN)
    }

    async fn get(&self, instance: &Instance, digest: &Digest) -> Option<Object> {
        self.engine.get(&self.blob_key(instance, digest), Some(digest.size_bytes)).await
    }

    /// Stores blobs that are what their keys say, compressed where that is wanted and worth it.
    async fn put_batch(&self, blobs: Vec<(Key, Bytes)>) -> Vec<Result<WriteOutcome, StoreError>> {
        if self.at_rest.frames.is_none() {
            let outcomes = self.engine.put_batch(blobs).await;
            return outcomes.into_iter().map(|outcome| outcome.map(WriteOutcome::from).map_err(StoreError::from)).collect();
        }
        // What is there already need not be compressed; what does not fit into a record is compressed part by part.
        let keys: Vec<_> = blobs.iter().map(|(key, data)| (*key, Some(data.len() as u64))).collect();
        let present = self.engine.lookup(&keys).await;
        let record_bytes_max = self.engine.record_bytes_max();
        let mut results: Vec<_> = present.iter().map(|_| Ok(WriteOutcome::AlreadyPresent)).collect();
        let (mut places, mut whole) = (Vec::new(), Vec::new());
        for (place, ((key, data), present)) in blobs.into_iter().zip(present).enumerate() {
            if present {
                continue;
            }
            if data.len() as u64 > record_bytes_max {
                if let Some(result) = results.get_mut(place) {
                    *result = self.put_large(key, data).await;
                }
            } else {
                places.push((place, data.len() as u64));
                whole.push((key, data));
            }
        }
        let values = match self.at_rest.values(whole).await {
            Ok(values) => values,
            Err(error) => {
                places.iter().filter_map(|(place, _)| results.get_mut(*place).map(|result| *result = Err(error.clone()))).for_each(drop);
                return results;
            }
        };
        let stored_bytes: Vec<_> = values.iter().map(|(_, value)| value.stored_bytes()).collect();
        let outcomes = self.engine.put_values(values).await;
        for (((place, blob_bytes), stored_bytes), outcome) in places.into_iter().zip(stored_bytes).zip(outcomes) {
            if let Ok(outcome) = &outcome {
                self.at_rest.note(blob_bytes, stored_bytes, (*outcome).into());
            }
            if let Some(result) = results.get_mut(place) {
                *result = outcome.map(WriteOutcome::from).map_err(StoreError::from);
            }
        }
        results
    }

    /// Stores a blob that came in pieces and is what its key says.
    async fn put_pieces(&self, key: Key, size_bytes: u64, pieces: Vec<Bytes>) -> Result<WriteOutcome, StoreError> {
        if self.at_rest.frames.is_some() {
            return self.put_gathered(key, pieces.concat()).await;
        }
        match self.engine.begin_upload(key, size_bytes).await? {
            Begin::AlreadyPresent => Ok(WriteOutcome::AlreadyPresent),
            Begin::Upload(mut upload) => {
                for piece in pieces {
                    upload.write(&piece).await?;
                }
                Ok(upload.finish().await?.into())
            }
        }
    }

    /// Stores a blob that has memory of its own.
    async fn put_gathered(&self, key: Key, data: Vec<u8>) -> Result<WriteOutcome, StoreError> {
        let outcome = match self.at_rest.frames {
            Some(_) => self.put_batch(vec![(key, data.into())]).await.pop(),
            None => {
                let outcome = self.engine.put_values(vec![(key, Value::owned(data))]).await.pop();
                outcome.map(|outcome| outcome.map(WriteOutcome::from).map_err(StoreError::from))
            }
        };
        outcome.unwrap_or_else(|| Err(StoreError::Internal("put has no outcome".into())))
    }

    /// Stores a blob that is larger than a record.
    async fn put_large(&self, key: Key, data: Bytes) -> Result<WriteOutcome, StoreError> {
        match self.engine.begin_upload(key, data.len() as u64).await? {
            Begin::AlreadyPresent => Ok(WriteOutcome::AlreadyPresent),
            Begin::Upload(upload) => {
                let mut upload = Compressed::new(*upload, self.at_rest.clone());
                upload.write(&data).await?;
                upload.complete().await?.finish().await
            }
        }
    }

    /// A whole blob as it is stored.
    async fn read_whole_zstd(&self, instance: &Instance, digest: &Digest) -> Result<Option<BatchBlob>, StoreError> {
        if is_empty_blob(digest) {
            return Ok(Some(BatchBlob::Plain(Bytes::new())));
        }
        let Some(object) = self.get(instance, digest).await else {
            return Ok(None);
        };
        if object.codec() == Codec::Plain {
            return collect(object).await.map(|data| Some(BatchBlob::Plain(data)));
        }
        let len_bytes = usize::try_from(object.size_bytes()).unwrap_or(usize::MAX);
        match content::frames(object, 0).await? {
            // Frames may be a little longer than the blob where a part did not shrink.
            Some(frames) => frames.collect(len_bytes.saturating_mul(2)).await.map(|frames| Some(BatchBlob::Zstd(frames))),
            None => Ok(None),
        }
    }

    /// A blob that is in the cache as a whole.
    fn read_cached(&self, instance: &Instance, digest: &Digest) -> Option<Bytes> {
        self.engine.get_cached(&self.blob_key(instance, digest), Some(digest.size_bytes)).map(Checksummed::into_bytes)
    }

    async fn read_whole(&self, instance: &Instance, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        if is_empty_blob(digest) {
            return Ok(Some(Bytes::new()));
        }
        match self.get(instance, digest).await {
            Some(object) => collect(object).await.map(Some),
            None => Ok(None),
        }
    }
}

impl fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalStore").field("capabilities", &self.capabilities).finish()
    }
}

fn is_empty_blob(digest: &Digest) -> bool {
    digest.size_bytes == 0 && Hasher::digest(digest.function, b"") == *digest
}

#[async_trait]
impl BlobStore for LocalStore {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn find_missing(&self, instance: &Instance, digests: &[Digest]) -> Result<Vec<bool>, StoreError> {
        let keys: Vec<_> = digests.iter().map(|digest| (self.blob_key(instance, digest), Some(digest.size_bytes))).collect();
        let mut missing = self.engine.lookup(&keys).await;
        for (missing, digest) in missing.iter_mut().zip(digests) {
            *missing = !*missing && !is_empty_blob(digest);
        }
        Ok(missing)
    }

    async fn read(&self, instance: &Instance, digest: &Digest, range: ByteRange) -> Result<Option<BlobRead>, StoreError> {
        if is_empty_blob(digest) {
            range.len_bytes(0)?;
            return Ok(Some(BlobRead::Whole(Bytes::new())));
        }
        match self.get(instance, digest).await {
            Some(object) => content::read(object, range).await,
            None => Ok(None),
        }
    }

    async fn read_zstd(&self, instance: &Instance, digest: &Digest, offset_bytes: u64) -> Result<Option<BlobRead>, StoreError> {
        if is_empty_blob(digest) {
            ByteRange { offset_bytes, limit_bytes: None }.len_bytes(0)?;
            return compression::compress_whole(b"").map(|frame| Some(BlobRead::Whole(frame)));
        }
        match self.get(instance, digest).await {
            Some(object) => content::frames(object, offset_bytes).await,
            None => Ok(None),
        }
    }

    async fn open(&self, instance: &Instance, digest: &Digest) -> Result<Option<OpenBlob>, StoreError> {
        let empty = Hasher::digest(digest.function, b"");
        if digest.hash() == empty.hash() {
            return Ok(Some(OpenBlob { digest: empty, read: BlobRead::Whole(Bytes::new()), is_zstd: false }));
        }
        let Some(object) = self.engine.get(&self.blob_key(instance, digest), None).await else {
            return Ok(None);
        };
        let digest = digest.with_size(object.size_bytes());
        let is_zstd = object.codec() != Codec::Plain;
        Ok(content::read(object, ByteRange::ALL).await?.map(|read| OpenBlob { digest, read, is_zstd }))
    }

    async fn write_any(&self, instance: &Instance, digests: &[Digest]) -> Result<BeginWrite, StoreError> {
        let mut offered: Vec<_> = digests.iter().copied().filter(|digest| self.offers(digest)).collect();
        let Some(&first) = offered.first() else {
            return Err(match digests.first() {
                Some(digest) => StoreError::UnsupportedFunction(digest.function),
                None => StoreError::Internal("blob to store has no name".into()),
            });
        };
        let size_bytes = first.size_bytes;
        offered.retain(|digest| digest.size_bytes == size_bytes);
        if size_bytes == 0 {
            return Ok(match offered.iter().any(is_empty_blob) {
                true => BeginWrite::AlreadyPresent,
                false => BeginWrite::Upload(Box::new(RefusedUpload::new(first))),
            });
        }
        let limit_bytes = self.capabilities.blob_bytes_max;
        if size_bytes > limit_bytes {
            return Err(StoreError::TooLarge { size_bytes, limit_bytes });
        }
        let small = size_bytes <= SMALL_UPLOAD_BYTES_MAX;
        if small || offered.len() > 1 {
            let keys: Vec<_> = offered.iter().map(|digest| (self.blob_key(instance, digest), Some(size_bytes))).collect();
            if self.engine.lookup(&keys).await.contains(&true) {
                return Ok(BeginWrite::AlreadyPresent);
            }
        }
        self.last_match.sort(&mut offered);
        let named = offered.into_iter().map(|digest| (digest, self.blob_key(instance, &digest))).collect();
        let target = Target { store: self.clone(), named };
        if small {
            return Ok(BeginWrite::Upload(Box::new(SmallUpload::new(target))));
        }
        Ok(match self.engine.begin_upload(*target.expected_key(), size_bytes).await? {
            Begin::AlreadyPresent => BeginWrite::AlreadyPresent,
            Begin::Upload(upload) => BeginWrite::Upload(Box::new(LargeUpload::start(*upload, target))),
        })
    }

    async fn read_batch(&self, instance: &Instance, digests: &[Digest]) -> Vec<Result<Option<Bytes>, StoreError>> {
        // Most are in the cache, and reading them is no work that would have to wait for anything.
        let mut results: Vec<_> = digests.iter().map(|digest| self.read_cached(instance, digest).map(|data| Ok(Some(data)))).collect();
        let others: Vec<_> = digests.iter().zip(&results).filter(|(_, result)| result.is_none()).map(|(digest, _)| *digest).collect();
        let mut others =
            stream::iter(others).map(|digest| async move { self.read_whole(instance, &digest).await }).buffered(READ_BATCH_CONCURRENCY);
        for result in results.iter_mut().filter(|result| result.is_none()) {
            *result = others.next().await;
        }
        let unanswered = || Err(StoreError::Internal("blob of a batch has no answer".into()));
        results.into_iter().map(|result| result.unwrap_or_else(unanswered)).collect()
    }

    async fn read_batch_zstd(&self, instance: &Instance, digests: &[Digest]) -> Vec<Result<Option<BatchBlob>, StoreError>> {
        let found: Vec<_> = stream::iter(digests.to_vec())
            .map(|digest| async move { self.read_whole_zstd(instance, &digest).await })
            .buffered(READ_BATCH_CONCURRENCY)
            .collect()
            .await;
        compress_batch(found).await
    }

    async fn write_batch(&self, instance: &Instance, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<WriteOutcome, StoreError>> {
        let mut results = Vec::with_capacity(blobs.len());
        // What goes to the engine, and where in the answers its outcome belongs.
        let mut items = Vec::with_capacity(blobs.len());
        let mut places = Vec::with_capacity(blobs.len());
        let mut turn_bytes = 0;
        for (place, (digest, data)) in blobs.into_iter().enumerate() {
            turn_bytes += data.len();
            if turn_bytes > TURN_BYTES {
                turn_bytes = 0;
                tokio::task::yield_now().await;
            }
            results.push(self.check_function(&digest).and_then(|()| verify(&digest, &data)).map(|()| WriteOutcome::AlreadyPresent));
            if digest.size_bytes > 0 && results.last().is_some_and(Result::is_ok) {
                items.push((self.blob_key(instance, &digest), data));
                places.push(place);
            }
        }
        if items.is_empty() {
            return results;
        }
        let outcomes = self.put_batch(items).await;
        for (place, outcome) in places.into_iter().zip(outcomes) {
            if let Some(result) = results.get_mut(place) {
                *result = outcome;
            }
        }
        results
    }

    async fn get_action_result(&self, instance: &Instance, action: &ActionKey, _rule: ResultRule) -> Result<Option<Bytes>, StoreError> {
        let Some(object) = self.engine.get(&self.result_key(instance, action), None).await else {
            return Ok(None);
        };
        // One that is replaced or damaged while it is being read was not there.
        match collect(object).await {
            Ok(value) => Ok(action_result(action, value)),
            Err(StoreError::Lost { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn put_action_result(&self, instance: &Instance, action: &ActionKey, result: Bytes) -> Result<(), StoreError> {
        self.check_function(&action.digest)?;
        let limit_bytes = self.capabilities.action_result_bytes_max;
        let size_bytes = result.len() as u64;
        if size_bytes > limit_bytes {
            return Err(StoreError::TooLarge { size_bytes, limit_bytes });
        }
        let key = self.result_key(instance, action);
        let action_bytes = match action.size_known {
            true => action.digest.size_bytes,
            // The hash tells the size, so that two who know it do not differ.
            false => self.known_action_bytes(&key).await.unwrap_or(SIZE_UNKNOWN),
        };
        self.engine.put(key, action_value(action_bytes, &result)).await?;
        Ok(())
    }

    async fn get_entry(&self, instance: &Instance, name: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let Some(object) = self.engine.get(&entry_key(instance, name), None).await else {
            return Ok(None);
        };
        match collect(object).await {
            Ok(data) => Ok(Some(data)),
            Err(StoreError::Lost { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn put_entry(&self, instance: &Instance, name: &[u8], data: Bytes) -> Result<(), StoreError> {
        let (size_bytes, limit_bytes) = (data.len() as u64, self.capabilities.entry_bytes_max);
        if size_bytes > limit_bytes {
            return Err(StoreError::TooLarge { size_bytes, limit_bytes });
        }
        self.engine.put(entry_key(instance, name), data).await?;
        Ok(())
    }

    async fn delete_entry(&self, instance: &Instance, name: &[u8]) -> Result<bool, StoreError> {
        Ok(self.engine.delete(&entry_key(instance, name)).await?)
    }

    async fn has_chunk_lists(&self, instance: &Instance, digests: &[Digest]) -> Result<Vec<bool>, StoreError> {
        Ok(self.lists.have(self.owner(instance), digests).await)
    }

    async fn chunk_list(&self, instance: &Instance, digest: &Digest, _chunking: Chunking) -> Result<Option<ChunkList>, StoreError> {
        self.lists.get(self.owner(instance), digest).await
    }

    async fn put_chunk_list(&self, instance: &Instance, digest: &Digest, list: ChunkList) -> Result<WriteOutcome, StoreError> {
        self.check_function(digest)?;
        self.lists.put(self.owner(instance), digest, list).await
    }
}

/// Whether the data are the blob that the digest names.
fn verify(digest: &Digest, data: &[u8]) -> Result<(), StoreError> {
    let sent_bytes = data.len() as u64;
    if sent_bytes != digest.size_bytes {
        return Err(StoreError::SizeMismatch { declared_bytes: digest.size_bytes, sent_bytes });
    }
    verify_hash(digest, Hasher::digest(digest.function, data))
}

fn verify_hash(declared: &Digest, computed: Digest) -> Result<(), StoreError> {
    if computed == *declared {
        return Ok(());
    }
    Err(StoreError::HashMismatch { declared: Box::new(*declared), computed: Box::new(computed) })
}

impl From<blockstore_engine::PutOutcome> for WriteOutcome {
    fn from(outcome: blockstore_engine::PutOutcome) -> Self {
        match outcome {
            blockstore_engine::PutOutcome::Stored => Self::Stored,
            blockstore_engine::PutOutcome::AlreadyPresent => Self::AlreadyPresent,
        }
    }
}
