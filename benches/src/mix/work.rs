//! What workers do: one operation after the other, each recorded, until told to stop.
//!
//! Always true here: an operation that was begun is waited for and counted; a miss is no error, and outside of a trace what is
//! missing is written again, as a build would.

use super::{
    Key,
    keys::Keys,
    record::{Came, Kind, Record},
    server::Server,
    trace::Trace,
};
use blockstore_tests::blob::Random;
use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

/// Blobs in one question for missing ones.
const FIND_KEYS: usize = 100;

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Put(Key),
    Get(Key),
    Find(Vec<Key>),
    AcPut(Key),
    AcGet(Key),
}

/// Shares of operations in percent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shares {
    /// Of all operations: those that write something new.
    pub(super) writes: u64,
    /// Of writes and of reads: those of action results.
    pub(super) actions: u64,
    /// Of reads: questions for missing blobs.
    pub(super) finds: u64,
}

/// Where operations come from.
#[derive(Debug)]
pub(super) enum Source {
    /// All keys once, in order.
    Fill(Keys, AtomicU64),
    /// For as long as it lasts.
    Mix(Keys, Shares),
    Trace(Trace),
}

/// What workers share.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) server: Server,
    pub(super) source: Source,
    pub(super) stop: AtomicBool,
    /// One for each worker.
    pub(super) records: Vec<Mutex<Record>>,
}

impl Work {
    /// The record of a worker.
    pub(super) fn record(&self, worker: usize) -> MutexGuard<'_, Record> {
        self.records[worker].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works until it is told to stop or nothing is left to do. An error ends it that is not the server's.
    pub(super) async fn run(&self, worker: usize, seed: u64) -> Result<(), String> {
        let mut random = Random::new(Random::new(seed).next() ^ worker as u64);
        while !self.stop.load(Relaxed) {
            let step = match &self.source {
                Source::Fill(keys, next) => match next.fetch_add(1, Relaxed) {
                    number if number < keys.written() => Step::Put(keys.key(number)),
                    _ => return Ok(()),
                },
                Source::Mix(keys, shares) => shares.step(keys, &mut random),
                Source::Trace(trace) => match trace.next().await {
                    None => return Ok(()),
                    Some(step) => step?,
                },
            };
            self.perform(worker, step).await;
        }
        Ok(())
    }

    async fn perform(&self, worker: usize, step: Step) {
        // A trace says by itself what was written after a miss.
        let builds = !matches!(self.source, Source::Trace(_));
        match step {
            Step::Put(key) => _ = self.put(worker, key).await,
            Step::Find(keys) => _ = self.find(worker, &keys).await,
            Step::Get(key) => {
                let found = async { self.server.get(key).await.map(|found| came(if found { key.size_bytes } else { 0 }, !found)) };
                if self.timed(worker, Kind::Get, found).await.is_some_and(|came| came.misses > 0) && builds {
                    self.put(worker, key).await;
                }
            }
            Step::AcGet(key) => {
                let found = async { self.server.action_get(key).await.map(|bytes| came(bytes.unwrap_or(0), bytes.is_none())) };
                if self.timed(worker, Kind::AcGet, found).await.is_some_and(|came| came.misses > 0) && builds {
                    self.build(worker, key).await;
                }
            }
            Step::AcPut(key) if builds => self.build(worker, key).await,
            Step::AcPut(key) => _ = self.action_put(worker, key).await,
        }
    }

    /// What a build does once it has run an action: it asks what is missing, uploads it, and stores the result.
    async fn build(&self, worker: usize, key: Key) {
        let Some(found) = self.find(worker, &[key]).await else { return };
        if found.misses == 0 || self.put(worker, key).await.is_some() {
            self.action_put(worker, key).await;
        }
    }

    async fn put(&self, worker: usize, key: Key) -> Option<Came> {
        self.timed(worker, Kind::Put, async { self.server.put(key).await.map(|()| came(key.size_bytes, false)) }).await
    }

    async fn find(&self, worker: usize, keys: &[Key]) -> Option<Came> {
        self.timed(worker, Kind::Find, async { self.server.find(keys).await.map(|misses| Came { bytes: 0, misses }) }).await
    }

    async fn action_put(&self, worker: usize, key: Key) -> Option<Came> {
        self.timed(worker, Kind::AcPut, async { self.server.action_put(key).await.map(|bytes| came(bytes, false)) }).await
    }

    /// Records an operation; what it came to unless it failed.
    async fn timed(&self, worker: usize, kind: Kind, operation: impl Future<Output = Result<Came, String>>) -> Option<Came> {
        let begun = Instant::now();
        let result = operation.await;
        let came = result.as_ref().ok().copied();
        self.record(worker).add(kind, result, begun.elapsed());
        came
    }
}

fn came(bytes: u64, missed: bool) -> Came {
    Came { bytes, misses: missed.into() }
}

impl Shares {
    fn step(self, keys: &Keys, random: &mut Random) -> Step {
        let write = random.below(100) < self.writes;
        let kind = random.below(100);
        match (write, kind) {
            (true, kind) if kind < self.actions => Step::AcPut(keys.fresh()),
            (true, _) => Step::Put(keys.fresh()),
            (false, kind) if kind < self.actions => Step::AcGet(keys.pick(random)),
            (false, kind) if kind < self.actions + self.finds => Step::Find((0..FIND_KEYS).map(|_| keys.pick(random)).collect()),
            (false, _) => Step::Get(keys.pick(random)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mix::sizes::Sizes;

    #[test]
    fn shares_are_kept() {
        let keys = Keys::new(1, Sizes::Small, 100, 0.0, 0).unwrap();
        let mut random = Random::new(3);
        let mut counts = [0; 5];
        for _ in 0..100_000 {
            let step = Shares { writes: 20, actions: 25, finds: 10 }.step(&keys, &mut random);
            let kind = match step {
                Step::Put(_) => 0,
                Step::Get(_) => 1,
                Step::Find(asked) => {
                    assert_eq!(asked.len(), FIND_KEYS);
                    2
                }
                Step::AcPut(_) => 3,
                Step::AcGet(_) => 4,
            };
            counts[kind] += 1;
        }
        let percent = counts.map(|count: u32| (f64::from(count) / 1000.0).round() as u32);
        for (found, expected) in percent.iter().zip([15, 52, 8, 5, 20]) {
            assert!(found.abs_diff(expected) <= 1, "{percent:?}");
        }
        assert_eq!(keys.fresh().number, u64::from(100 + counts[0] + counts[3]));
    }
}
