//! Action results that are complete: a decorator that answers a hit only if everything it names is present.
//!
//! Always true here: a hit's blobs were all present, and counted as used, after the result itself was read. Whatever cannot
//! be checked (no well-formed `ActionResult`, a tree that is malformed or beyond the bounds) is a miss, unless the caller's rule is to
//! take bytes of any kind. Memory
//! is bounded whatever a result names: trees are scanned as they are read, digests are looked up in groups.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use blockstore_proto::reapi;
use bytes::Bytes;
use futures::StreamExt;

use super::{
    ActionKey, BatchBlob, BeginWrite, BlobRead, BlobStore, ByteRange, Capabilities, ChunkList, Chunking, Digest, DigestFunction, Instance,
    OpenBlob, ResultRule, StoreError, WriteOutcome, action_result,
    directories::{self, DirectoryWalk},
};

mod tree;

use tree::TreeScanner;

/// Digests that are gathered before they are looked up together.
const LOOKUP_DIGESTS_MAX: usize = 16 << 10;

/// Bounds of the trees that an action result names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all its `Tree` messages.
    pub tree_bytes_max: u64,
    /// Levels below a root directory.
    pub depth_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { tree_bytes_max: 256 << 20, depth_max: directories::DEPTH_MAX }
    }
}

/// How many results were turned into misses, by reason. They only grow.
#[derive(Debug, Default)]
pub struct Counters {
    /// Something it names is missing.
    pub incomplete: AtomicU64,
    /// It, or a tree it names, is malformed.
    pub malformed: AtomicU64,
    /// Its trees exceed the [`Limits`] or the bounds of a [`DirectoryWalk`].
    pub oversized: AtomicU64,
}

impl Counters {
    /// A reading, by the names of the reasons.
    pub fn read(&self) -> [(&'static str, u64); 3] {
        [("incomplete", &self.incomplete), ("malformed", &self.malformed), ("oversized", &self.oversized)]
            .map(|(reason, counter)| (reason, counter.load(Ordering::Relaxed)))
    }
}

/// A store whose action results are complete.
///
/// The rule is that of `ActionCache.GetActionResult` in the Remote Execution API: output files, output directories with all
/// they hold, stdout and stderr have to be in the CAS.
#[derive(Debug)]
pub struct CompleteActionResults {
    inner: Arc<dyn BlobStore>,
    limits: Limits,
    checks: bool,
    counters: Counters,
}

/// Why a result is a miss.
#[derive(Debug)]
enum Incomplete {
    Missing,
    Malformed,
    Oversized,
    Store(StoreError),
}

impl From<StoreError> for Incomplete {
    fn from(error: StoreError) -> Self {
        match error {
            // A tree that rotted or was rotated away while it was being read.
            StoreError::Lost { .. } => Self::Missing,
            error => Self::Store(error),
        }
    }
}

impl CompleteActionResults {
    /// Wraps a store.
    pub fn new(inner: Arc<dyn BlobStore>) -> Self {
        Self::with(inner, Limits::default())
    }

    /// Wraps a store, with bounds of one's own.
    pub fn with(inner: Arc<dyn BlobStore>, limits: Limits) -> Self {
        Self { inner, limits, checks: true, counters: Counters::default() }
    }

    /// Whether it looks for what a result names. Otherwise only what is no well-formed result is a miss.
    #[must_use]
    pub fn with_checks(self, checks: bool) -> Self {
        Self { checks, ..self }
    }

    /// How many results were turned into misses.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    async fn check(&self, instance: &Instance, function: DigestFunction, result: reapi::ActionResult) -> Result<(), Incomplete> {
        let mut named = Named { store: &*self.inner, instance, digests: Vec::new() };
        let parse =
            |digest: &reapi::Digest| Digest::parse(function, digest.hash.as_bytes(), digest.size_bytes).map_err(|_| Incomplete::Malformed);

        for file in &result.output_files {
            named.add(parse(file.digest.as_ref().ok_or(Incomplete::Malformed)?)?).await?;
        }
        for digest in [&result.stdout_digest, &result.stderr_digest].into_iter().flatten() {
            named.add(parse(digest)?).await?;
        }
        let mut tree_bytes = 0u64;
        for directory in &result.output_directories {
            let tree = directory.tree_digest.as_ref().map(parse).transpose()?;
            let root = directory.root_directory_digest.as_ref().map(parse).transpose()?;
            match (tree, root) {
                (Some(tree), root) => {
                    tree_bytes = tree_bytes.saturating_add(tree.size_bytes);
                    if tree_bytes > self.limits.tree_bytes_max {
                        return Err(Incomplete::Oversized);
                    }
                    // The tree names every directory below the root, so that it need not be walked level by level.
                    if let Some(root) = root {
                        named.add(root).await?;
                    }
                    self.scan_tree(&mut named, &tree, root.is_some()).await?;
                }
                (None, Some(root)) => self.walk(&mut named, root).await?,
                (None, None) => return Err(Incomplete::Malformed),
            }
        }
        named.flush().await
    }

    async fn scan_tree(&self, named: &mut Named<'_>, tree: &Digest, directories: bool) -> Result<(), Incomplete> {
        let read = self.inner.read(named.instance, tree, ByteRange::ALL).await?;
        let mut pieces = read.ok_or(Incomplete::Missing)?.into_stream();
        let mut scanner = TreeScanner::new(tree.function, directories);
        while let Some(piece) = pieces.next().await.transpose()? {
            scanner.feed(&piece, &mut named.digests).map_err(|tree::Malformed| Incomplete::Malformed)?;
            if named.digests.len() >= LOOKUP_DIGESTS_MAX {
                named.flush().await?;
            }
        }
        scanner.finish().map_err(|tree::Malformed| Incomplete::Malformed)
    }

    async fn walk(&self, named: &mut Named<'_>, root: Digest) -> Result<(), Incomplete> {
        let mut walk = DirectoryWalk::new(self.inner.clone(), named.instance.clone(), root, self.limits.depth_max);
        while let Some(visit) = walk.next().await.map_err(|error| match error {
            directories::WalkError::Store(error) => error.into(),
            directories::WalkError::Malformed(_) => Incomplete::Malformed,
            directories::WalkError::TooLarge | directories::WalkError::TooDeep(_) => Incomplete::Oversized,
        })? {
            let directory = visit.directory.ok_or(Incomplete::Missing)?;
            for digest in directory.files {
                named.add(digest).await?;
            }
        }
        Ok(())
    }
}

/// Digests that a result names, looked up in groups.
struct Named<'a> {
    store: &'a dyn BlobStore,
    instance: &'a Instance,
    digests: Vec<Digest>,
}

impl Named<'_> {
    async fn add(&mut self, digest: Digest) -> Result<(), Incomplete> {
        self.digests.push(digest);
        if self.digests.len() >= LOOKUP_DIGESTS_MAX {
            return self.flush().await;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Incomplete> {
        if self.digests.is_empty() {
            return Ok(());
        }
        let missing = self.store.find_missing(self.instance, &self.digests).await?;
        self.digests.clear();
        if missing.contains(&true) {
            return Err(Incomplete::Missing);
        }
        Ok(())
    }
}

#[async_trait]
impl BlobStore for CompleteActionResults {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    async fn find_missing(&self, instance: &Instance, digests: &[Digest]) -> Result<Vec<bool>, StoreError> {
        self.inner.find_missing(instance, digests).await
    }

    async fn read(&self, instance: &Instance, digest: &Digest, range: ByteRange) -> Result<Option<BlobRead>, StoreError> {
        self.inner.read(instance, digest, range).await
    }

    async fn read_zstd(&self, instance: &Instance, digest: &Digest, offset_bytes: u64) -> Result<Option<BlobRead>, StoreError> {
        self.inner.read_zstd(instance, digest, offset_bytes).await
    }

    async fn read_batch_zstd(&self, instance: &Instance, digests: &[Digest]) -> Vec<Result<Option<BatchBlob>, StoreError>> {
        self.inner.read_batch_zstd(instance, digests).await
    }

    async fn open(&self, instance: &Instance, digest: &Digest) -> Result<Option<OpenBlob>, StoreError> {
        self.inner.open(instance, digest).await
    }

    async fn write(&self, instance: &Instance, digest: &Digest) -> Result<BeginWrite, StoreError> {
        self.inner.write(instance, digest).await
    }

    async fn write_any(&self, instance: &Instance, digests: &[Digest]) -> Result<BeginWrite, StoreError> {
        self.inner.write_any(instance, digests).await
    }

    async fn read_batch(&self, instance: &Instance, digests: &[Digest]) -> Vec<Result<Option<Bytes>, StoreError>> {
        self.inner.read_batch(instance, digests).await
    }

    async fn write_batch(&self, instance: &Instance, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<WriteOutcome, StoreError>> {
        self.inner.write_batch(instance, blobs).await
    }

    async fn get_action_result(&self, instance: &Instance, action: &ActionKey, rule: ResultRule) -> Result<Option<Bytes>, StoreError> {
        let Some(result) = self.inner.get_action_result(instance, action, rule).await? else {
            return Ok(None);
        };
        if rule == ResultRule::Opaque {
            return Ok(Some(result));
        }
        let function = action.digest.function;
        let checked = match action_result::parse(result.clone(), function) {
            Ok(_) if !self.checks => Ok(()),
            Ok(parsed) => self.check(instance, function, parsed).await,
            Err(_) if rule == ResultRule::Lenient => return Ok(Some(result)),
            Err(_) => Err(Incomplete::Malformed),
        };
        let reason = match checked {
            Ok(()) => return Ok(Some(result)),
            Err(Incomplete::Store(error)) => return Err(error),
            Err(Incomplete::Missing) => &self.counters.incomplete,
            Err(Incomplete::Malformed) => &self.counters.malformed,
            Err(Incomplete::Oversized) => &self.counters.oversized,
        };
        reason.fetch_add(1, Ordering::Relaxed);
        Ok(None)
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
