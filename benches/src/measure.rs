//! Running one phase: so many operations at a time until the time is up or nothing is left to send.
//!
//! Always true here: an operation that was begun is waited for, so that the CPU counted and the work counted belong together.

use crate::process::{ServerProcess, Usage};
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{task::JoinSet, time::timeout};

/// A phase that does not end so long after its time is stuck.
const STUCK: Duration = Duration::from_secs(120);

/// What bounds a phase.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) duration: Duration,
    pub(crate) operations_max: u64,
    pub(crate) in_flight: usize,
}

/// What one operation did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    /// Blobs, digests or calls.
    pub(crate) units: u64,
    /// Payload bytes, in whichever direction.
    pub(crate) bytes: u64,
}

/// What a phase did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) operations: u64,
    pub(crate) units: u64,
    pub(crate) bytes: u64,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
    pub(crate) wall: Duration,
    /// What the server used, where its process is known.
    pub(crate) server: Option<Usage>,
    /// Of every operation that succeeded, in microseconds, sorted.
    latencies_us: Vec<u32>,
}

impl Outcome {
    /// The latency that this share of the operations (0 to 1) stayed below, in microseconds.
    pub(crate) fn latency_us(&self, share: f64) -> u32 {
        let index = (self.latencies_us.len() as f64 * share) as usize;
        self.latencies_us.get(index.min(self.latencies_us.len().saturating_sub(1))).copied().unwrap_or(0)
    }

    fn add(&mut self, result: Result<Done, String>, latency: Duration) {
        match result {
            Ok(done) => {
                self.operations += 1;
                self.units += done.units;
                self.bytes += done.bytes;
                self.latencies_us.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
            }
            Err(error) => {
                self.errors += 1;
                self.first_error.get_or_insert(error);
            }
        }
    }

    fn merge(&mut self, other: Self) {
        self.operations += other.operations;
        self.units += other.units;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.latencies_us.extend(other.latencies_us);
    }
}

/// Runs `operation` for the numbers from 0 on. A worker that meets an error ends, so that a broken server is not flooded.
pub(crate) async fn phase<F, Fut>(bounds: Bounds, process: Option<&ServerProcess>, operation: F) -> Result<Outcome, String>
where
    F: Fn(u64) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Done, String>> + Send,
{
    let operation = Arc::new(operation);
    let next = Arc::new(AtomicU64::new(0));
    let before = process.map(ServerProcess::usage).transpose()?;
    let start = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..bounds.in_flight {
        let (operation, next) = (operation.clone(), next.clone());
        workers.spawn(async move {
            let mut outcome = Outcome::default();
            // Once at least, however late it comes to its turn.
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= bounds.operations_max {
                    break;
                }
                let begun = Instant::now();
                let result = operation(number).await;
                outcome.add(result, begun.elapsed());
                if start.elapsed() >= bounds.duration || outcome.errors > 0 {
                    break;
                }
            }
            outcome
        });
    }
    let mut outcome = Outcome::default();
    let all = async {
        while let Some(worker) = workers.join_next().await {
            outcome.merge(worker.map_err(|error| format!("worker ended: {error}"))?);
        }
        Ok::<_, String>(())
    };
    timeout(bounds.duration + STUCK, all).await.map_err(|_| "server does not answer".to_owned())??;
    outcome.wall = start.elapsed();
    let after = process.map(ServerProcess::usage).transpose()?;
    outcome.server = before.zip(after).map(|(before, after)| after.since(&before));
    outcome.latencies_us.sort_unstable();
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(operations_max: u64) -> Bounds {
        Bounds { duration: Duration::from_secs(60), operations_max, in_flight: 3 }
    }

    #[tokio::test]
    async fn a_phase_ends_by_count_and_adds_up() {
        let outcome = phase(bounds(100), None, async |n| Ok(Done { units: 2, bytes: n })).await.unwrap();
        assert_eq!((outcome.operations, outcome.units, outcome.bytes, outcome.errors), (100, 200, 4950, 0));
    }

    #[tokio::test]
    async fn every_worker_does_something_in_the_shortest_phase() {
        let shortest = Bounds { duration: Duration::ZERO, ..bounds(100) };
        let outcome = phase(shortest, None, async |_| Ok(Done { units: 1, bytes: 1 })).await.unwrap();
        assert_eq!(outcome.operations, 3);
    }

    #[tokio::test]
    async fn errors_are_counted_and_end_their_worker() {
        let outcome = phase(bounds(100), None, async |_| Err("no".to_owned())).await.unwrap();
        assert_eq!((outcome.operations, outcome.errors, outcome.first_error.as_deref()), (0, 3, Some("no")));
    }
}
