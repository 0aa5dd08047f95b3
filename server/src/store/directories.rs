//! Walking a hierarchy of `Directory` blobs from its root.
//!
//! Always true here: each directory is visited once, in breadth-first order, which depends on the content alone; memory is
//! bounded by the constants below, and the levels below the root by what the caller says; several directories are read together.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use blockstore_proto::reapi;
use bytes::Bytes;
use prost::Message;

use super::{BlobStore, Digest, Instance, StoreError};

/// Directories that a walk visits at most.
pub const DIRECTORIES_MAX: usize = 1 << 20;
/// Levels below a root, where nothing else is set: more than a path on any system can name.
pub const DEPTH_MAX: u32 = 2048;
/// Size of one `Directory` message at most, in bytes.
pub const DIRECTORY_BYTES_MAX: u64 = 16 << 20;
/// Directories that are read together.
const READ_DIRECTORIES_MAX: usize = 64;
/// Their size together, in bytes, unless a single one is larger.
const READ_BYTES_MAX: u64 = 2 << 20;

/// A walk cannot go on.
#[derive(Debug)]
pub enum WalkError {
    /// The store failed.
    Store(StoreError),
    /// This blob is not a `Directory` whose children have digests.
    Malformed(Digest),
    /// The hierarchy exceeds [`DIRECTORIES_MAX`] or [`DIRECTORY_BYTES_MAX`].
    TooLarge,
    /// It has more levels than that.
    TooDeep(u32),
}

/// A directory that was asked for.
#[derive(Debug)]
pub struct Visit {
    /// Its digest.
    pub digest: Digest,
    /// `None` if it is missing.
    pub directory: Option<Visited>,
}

/// A directory that was found.
#[derive(Debug)]
pub struct Visited {
    /// The message as stored.
    pub bytes: Bytes,
    /// Digests of its files.
    pub files: Vec<Digest>,
}

/// A walk from a root down. It can be kept between two calls of `next`, and goes on where it was.
#[derive(Debug)]
pub struct DirectoryWalk {
    store: Arc<dyn BlobStore>,
    instance: Instance,
    depth_max: u32,
    seen: HashSet<Digest>,
    /// With the level of each; the root's is 0.
    queue: VecDeque<(Digest, u32)>,
    read: VecDeque<(Digest, u32, Option<Bytes>)>,
}

impl DirectoryWalk {
    /// A walk that starts at `root` and goes down that many levels at most.
    pub fn new(store: Arc<dyn BlobStore>, instance: Instance, root: Digest, depth_max: u32) -> Self {
        let (seen, queue) = (HashSet::from([root]), VecDeque::from([(root, 0)]));
        Self { store, instance, depth_max, seen, queue, read: VecDeque::new() }
    }

    /// Whether every directory was visited.
    pub fn is_done(&self) -> bool {
        self.queue.is_empty() && self.read.is_empty()
    }

    /// Directories that it has come across: what it costs to keep.
    pub fn seen(&self) -> usize {
        self.seen.len()
    }

    /// The next directory, or `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// See [`WalkError`]; the walk is of no use then.
    pub async fn next(&mut self) -> Result<Option<Visit>, WalkError> {
        if self.read.is_empty() && !self.queue.is_empty() {
            self.fill().await?;
        }
        let Some((digest, level, bytes)) = self.read.pop_front() else {
            return Ok(None);
        };
        let Some(bytes) = bytes else {
            return Ok(Some(Visit { digest, directory: None }));
        };
        let files = self.descend(digest, level, &bytes)?;
        Ok(Some(Visit { digest, directory: Some(Visited { bytes, files }) }))
    }

    /// Reads the directories at the head of the queue.
    async fn fill(&mut self) -> Result<(), WalkError> {
        let mut bytes = 0;
        let mut group = Vec::new();
        for (digest, _) in self.queue.iter().take(READ_DIRECTORIES_MAX) {
            if digest.size_bytes > DIRECTORY_BYTES_MAX {
                return Err(WalkError::TooLarge);
            }
            bytes += digest.size_bytes;
            if bytes > READ_BYTES_MAX && !group.is_empty() {
                break;
            }
            group.push(*digest);
        }
        let found = self.store.read_batch(&self.instance, &group).await;
        for ((digest, level), result) in self.queue.drain(..group.len()).zip(found) {
            let bytes = match result {
                Ok(bytes) => bytes,
                Err(StoreError::Lost { .. }) => None,
                Err(error) => return Err(WalkError::Store(error)),
            };
            self.read.push_back((digest, level, bytes));
        }
        Ok(())
    }

    /// Queues the children that were not seen, and tells the files.
    fn descend(&mut self, digest: Digest, level: u32, bytes: &Bytes) -> Result<Vec<Digest>, WalkError> {
        let malformed = || WalkError::Malformed(digest);
        let directory = reapi::Directory::decode(bytes.clone()).map_err(|_| WalkError::Malformed(digest))?;
        let parse = |child: Option<reapi::Digest>| {
            child.and_then(|d| Digest::parse(digest.function, d.hash.as_bytes(), d.size_bytes).ok()).ok_or_else(malformed)
        };
        for child in directory.directories {
            let child = parse(child.digest)?;
            if self.seen.insert(child) {
                if level >= self.depth_max {
                    return Err(WalkError::TooDeep(self.depth_max));
                }
                self.queue.push_back((child, level + 1));
            }
        }
        if self.seen.len() > DIRECTORIES_MAX {
            return Err(WalkError::TooLarge);
        }
        directory.files.into_iter().map(|file| parse(file.digest)).collect()
    }
}
