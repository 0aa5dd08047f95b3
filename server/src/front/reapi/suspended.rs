//! Uploads whose stream was cut: kept for the client to go on.
//!
//! Always true here: their number, the size of their blobs together (the room that the store holds for them, however little was
//! sent) and the time each waits are bounded; an upload is either
//! here or with one stream, never both. Locks: one, held for no I/O and no await; what is thrown out is dropped outside it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::resource::UploadName;
use crate::store::{BlobUpload, Digest, Instance};

/// Bounds of what is kept.
#[derive(Clone, Copy, Debug)]
pub struct SuspendedLimits {
    /// Uploads kept at most; the one that waits longest goes first.
    pub uploads_max: usize,
    /// Bytes of their blobs together. The store cannot give this room to others, so it has to be a part of what uploads may hold.
    pub bytes_max: u64,
    /// Bytes of memory that they hold together. It has to be a part of what uploads may hold, or those that run would wait for it.
    pub memory_bytes_max: u64,
    /// How long one is kept.
    pub idle_max: Duration,
}

impl Default for SuspendedLimits {
    fn default() -> Self {
        Self { uploads_max: 256, bytes_max: 8 << 30, memory_bytes_max: 32 << 20, idle_max: Duration::from_secs(600) }
    }
}

/// What became of cut uploads. They only grow.
#[derive(Debug, Default)]
struct Counters {
    suspended: AtomicU64,
    resumed: AtomicU64,
    evicted: AtomicU64,
    expired: AtomicU64,
}

/// A reading of the counters, and what is kept now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SuspendedReading {
    /// Uploads kept after a cut, so far.
    pub suspended: u64,
    /// Taken up again.
    pub resumed: u64,
    /// Thrown out because of a bound on number or bytes.
    pub evicted: u64,
    /// Thrown out because nobody came back in time.
    pub expired: u64,
    /// Uploads that wait for their clients.
    pub kept: u64,
    /// Bytes of their blobs.
    pub kept_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    instance: Instance,
    uuid: String,
    digest: Digest,
}

impl From<&UploadName> for Key {
    fn from(name: &UploadName) -> Self {
        let (instance, digest) = (name.blob.instance.clone(), name.blob.digest);
        Self { instance, uuid: name.uuid.clone(), digest }
    }
}

struct Entry {
    upload: Box<dyn BlobUpload>,
    since: Instant,
}

#[derive(Default)]
struct Kept {
    uploads: HashMap<Key, Entry>,
    bytes: u64,
    memory_bytes: u64,
}

impl Kept {
    fn remove(&mut self, key: &Key) -> Option<Box<dyn BlobUpload>> {
        let upload = self.uploads.remove(key)?.upload;
        self.bytes = self.bytes.saturating_sub(key.digest.size_bytes);
        self.memory_bytes = self.memory_bytes.saturating_sub(upload.memory_bytes());
        Some(upload)
    }

    fn remove_oldest(&mut self) -> Option<Box<dyn BlobUpload>> {
        let (key, _) = self.uploads.iter().min_by_key(|(_, entry)| entry.since)?;
        let key = key.clone();
        self.remove(&key)
    }

    fn remove_idle(&mut self, idle_max: Duration) -> Vec<Box<dyn BlobUpload>> {
        let idle: Vec<_> = self.uploads.iter().filter(|(_, entry)| entry.since.elapsed() >= idle_max).map(|(key, _)| key.clone()).collect();
        idle.iter().filter_map(|key| self.remove(key)).collect()
    }
}

/// The uploads that wait for their clients.
pub(super) struct Suspended {
    limits: SuspendedLimits,
    kept: Mutex<Kept>,
    counters: Counters,
}

impl Suspended {
    pub(super) fn new(limits: SuspendedLimits) -> Self {
        Self { limits, kept: Mutex::default(), counters: Counters::default() }
    }

    pub(super) fn reading(&self) -> SuspendedReading {
        let (kept, kept_bytes) = {
            let kept = self.kept.lock();
            (kept.uploads.len() as u64, kept.bytes)
        };
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SuspendedReading {
            suspended: read(&self.counters.suspended),
            resumed: read(&self.counters.resumed),
            evicted: read(&self.counters.evicted),
            expired: read(&self.counters.expired),
            kept,
            kept_bytes,
        }
    }

    /// Keeps an upload, unless it has taken nothing or more than may be kept.
    pub(super) fn keep(&self, name: &UploadName, upload: Box<dyn BlobUpload>) {
        let (bytes, memory_bytes) = (name.blob.digest.size_bytes, upload.memory_bytes());
        if upload.written_bytes() == 0 || self.limits.uploads_max == 0 {
            return;
        }
        if bytes > self.limits.bytes_max || memory_bytes > self.limits.memory_bytes_max {
            self.counters.evicted.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut dropped = Vec::new();
        {
            let mut kept = self.kept.lock();
            let key = Key::from(name);
            // Another stream of the same name was cut as well: the later one counts.
            dropped.extend(kept.remove(&key));
            while kept.uploads.len() >= self.limits.uploads_max
                || kept.bytes.saturating_add(bytes) > self.limits.bytes_max
                || kept.memory_bytes + memory_bytes > self.limits.memory_bytes_max
            {
                let Some(oldest) = kept.remove_oldest() else {
                    break;
                };
                dropped.push(oldest);
            }
            kept.bytes = kept.bytes.saturating_add(bytes);
            kept.memory_bytes += memory_bytes;
            kept.uploads.insert(key, Entry { upload, since: Instant::now() });
        }
        self.counters.suspended.fetch_add(1, Ordering::Relaxed);
        self.counters.evicted.fetch_add(dropped.len() as u64, Ordering::Relaxed);
    }

    /// Hands an upload to the stream that goes on with it.
    pub(super) fn take(&self, name: &UploadName) -> Option<Box<dyn BlobUpload>> {
        let upload = self.kept.lock().remove(&Key::from(name))?;
        self.counters.resumed.fetch_add(1, Ordering::Relaxed);
        Some(upload)
    }

    /// Throws out whatever is kept of a blob: a client that sends all of it must not wait for one that may never come back.
    pub(super) fn forget(&self, digest: &Digest) {
        let mut kept = self.kept.lock();
        let same: Vec<_> = kept.uploads.keys().filter(|key| key.digest == *digest).cloned().collect();
        let dropped: Vec<_> = same.iter().filter_map(|key| kept.remove(key)).collect();
        drop(kept);
        self.counters.evicted.fetch_add(dropped.len() as u64, Ordering::Relaxed);
    }

    /// Bytes that an upload has taken, if it is here.
    pub(super) fn written_bytes(&self, name: &UploadName) -> Option<u64> {
        let kept = self.kept.lock();
        kept.uploads.get(&Key::from(name)).map(|entry| entry.upload.written_bytes())
    }

    fn expire(&self) {
        let idle = self.kept.lock().remove_idle(self.limits.idle_max);
        self.counters.expired.fetch_add(idle.len() as u64, Ordering::Relaxed);
    }

    /// Starts the task that throws out what waits too long; it ends when the registry is dropped.
    pub(super) fn expire_in_background(self: &Arc<Self>) {
        let registry: Weak<Self> = Arc::downgrade(self);
        let pause = (self.limits.idle_max / 4).max(Duration::from_millis(10));
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(pause).await;
                let Some(registry) = registry.upgrade() else {
                    return;
                };
                registry.expire();
            }
        });
    }
}

impl std::fmt::Debug for Suspended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kept = self.kept.lock();
        f.debug_struct("Suspended")
            .field("uploads", &kept.uploads.len())
            .field("bytes", &kept.bytes)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use bytes::Bytes;

    use super::*;
    use crate::{
        front::reapi::resource::parse_write,
        store::{DigestFunction, StoreError, WriteOutcome},
    };

    /// Holds ten times in memory what it has taken.
    struct Written(u64);

    #[async_trait]
    impl BlobUpload for Written {
        fn written_bytes(&self) -> u64 {
            self.0
        }
        fn memory_bytes(&self) -> u64 {
            self.0 * 10
        }
        async fn write(&mut self, _data: Bytes) -> Result<(), StoreError> {
            Ok(())
        }
        async fn finish(self: Box<Self>) -> Result<WriteOutcome, StoreError> {
            Ok(WriteOutcome::Stored)
        }
    }

    fn name(instance: &str, uuid: &str) -> UploadName {
        name_of_size(instance, uuid, 100)
    }

    fn name_of_size(instance: &str, uuid: &str, size_bytes: u64) -> UploadName {
        let name = format!("{instance}/uploads/{uuid}/blobs/{}/{size_bytes}", "a".repeat(64));
        parse_write(&name, |_| DigestFunction::ALL.as_slice().into()).unwrap()
    }

    fn registry(uploads_max: usize, bytes_max: u64) -> Suspended {
        Suspended::new(SuspendedLimits { uploads_max, bytes_max, memory_bytes_max: 500, idle_max: Duration::from_secs(60) })
    }

    #[tokio::test(start_paused = true)]
    async fn kept_by_instance_and_id_until_taken_once() {
        let registry = registry(8, 1000);
        registry.keep(&name("a", "1"), Box::new(Written(5)));
        registry.keep(&name("b", "1"), Box::new(Written(6)));
        assert_eq!(registry.written_bytes(&name("a", "1")), Some(5));
        assert_eq!(registry.written_bytes(&name("a", "2")), None);
        assert_eq!(registry.take(&name("b", "1")).unwrap().written_bytes(), 6);
        assert!(registry.take(&name("b", "1")).is_none());
        assert_eq!(registry.kept.lock().bytes, 100);
        // Nothing was sent: nothing is worth keeping.
        registry.keep(&name("c", "1"), Box::new(Written(0)));
        assert_eq!(registry.written_bytes(&name("c", "1")), None);
    }

    #[tokio::test(start_paused = true)]
    async fn bounds_hold_and_the_oldest_goes_first() {
        let registry = registry(2, 1000);
        for uuid in ["1", "2", "3"] {
            registry.keep(&name("a", uuid), Box::new(Written(10)));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(registry.written_bytes(&name("a", "1")), None);
        // The room that is held counts, not what was sent so far.
        let large = name_of_size("a", "4", 950);
        registry.keep(&large, Box::new(Written(10)));
        assert_eq!(registry.kept.lock().uploads.len(), 1);
        registry.keep(&name_of_size("a", "5", 1001), Box::new(Written(10)));
        assert_eq!(registry.written_bytes(&large), Some(10));
        assert_eq!(registry.counters.evicted.load(Ordering::Relaxed), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn they_leave_memory_to_those_that_run() {
        let registry = registry(8, 1000);
        for uuid in ["1", "2", "3"] {
            registry.keep(&name("a", uuid), Box::new(Written(20)));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let there = ["1", "2", "3"].map(|uuid| registry.written_bytes(&name("a", uuid)).is_some());
        assert_eq!(there, [false, true, true]);
        // What would need all of it and more takes it from nobody.
        registry.keep(&name("a", "4"), Box::new(Written(51)));
        let held = |registry: &Suspended| {
            let kept = registry.kept.lock();
            (kept.uploads.len(), kept.memory_bytes)
        };
        assert_eq!(held(&registry), (2, 400));
        drop(registry.take(&name("a", "3")));
        registry.forget(&name("a", "2").blob.digest);
        assert_eq!(held(&registry), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn idle_ones_expire() {
        let registry = Arc::new(registry(8, 1000));
        registry.expire_in_background();
        registry.keep(&name("a", "1"), Box::new(Written(5)));
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(registry.written_bytes(&name("a", "1")).is_some());
        tokio::time::sleep(Duration::from_secs(46)).await;
        assert_eq!(registry.written_bytes(&name("a", "1")), None);
        assert_eq!(registry.kept.lock().bytes, 0);
        assert_eq!(registry.counters.expired.load(Ordering::Relaxed), 1);
    }
}
