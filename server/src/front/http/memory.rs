//! What the bodies of requests may hold in memory, all of them together.
//!
//! Always true here: a body takes its whole share before it is read, and a second one only behind the first (first of the small room, then
//! of the large one), so that two that wait never wait for each other; a client that stands still gives its share to one that does not.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout},
};

use crate::metrics::{Metrics, labels::Protocol};

/// Bodies up to this size take no share: they are in the buffer that every connection has.
pub(super) const FREE_BYTES_MAX: u64 = 16 << 10;
/// Largest share of the small room: what a blob that is put whole takes, and a large one for the part that is being filled.
pub(super) const SMALL_BYTES_MAX: u64 = 1 << 20;
/// What the shares of the small room are together. Less than what the engine lets all uploads fill at the same time (128 MiB), so that
/// it never runs out because of clients of HTTP that stand still.
const SMALL_ROOM_BYTES: u32 = 16 << 20;
/// The same for larger shares: of bodies that are gathered whole, and of what decompresses with a large window.
const LARGE_ROOM_BYTES: u32 = 96 << 20;
/// How long a client may stand still while others wait for its share.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often who waits looks for such a client.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How long a body waits for its share.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Room for bodies.
#[derive(Debug)]
pub(super) struct Memory {
    small: Room,
    large: Room,
    metrics: Arc<Metrics>,
}

impl Memory {
    /// Room for bodies; who has to wait for it is counted.
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { small: Room::new(SMALL_ROOM_BYTES), large: Room::new(LARGE_ROOM_BYTES), metrics }
    }

    /// A share of that many bytes, at most [`SMALL_BYTES_MAX`]; `None` if none came free in time.
    pub(super) async fn small(&self, bytes: u64) -> Option<Share> {
        self.small.take(bytes.min(SMALL_BYTES_MAX), &self.metrics).await
    }

    /// A share of that many bytes, and not more than there are at all; `None` if none came free in time.
    pub(super) async fn large(&self, bytes: u64) -> Option<Share> {
        self.large.take(bytes, &self.metrics).await
    }

    #[cfg(test)]
    pub(super) fn taken_bytes(&self) -> (usize, usize) {
        let taken = |room: &Room| room.bytes as usize - room.free.available_permits();
        (taken(&self.small), taken(&self.large))
    }
}

#[derive(Debug)]
struct Room {
    bytes: u32,
    free: Arc<Semaphore>,
    epoch: Instant,
    holders: Arc<Mutex<Holders>>,
}

#[derive(Debug, Default)]
struct Holders {
    next: u64,
    holders: HashMap<u64, Arc<Holder>>,
}

/// Who has a share.
#[derive(Debug)]
struct Holder {
    bytes: u32,
    epoch: Instant,
    /// Milliseconds from `epoch` until it began to stand still, and one; 0 while it does not.
    standing_since: AtomicU64,
    is_cut: AtomicBool,
    cut: Notify,
}

impl Room {
    fn new(bytes: u32) -> Self {
        Self { bytes, free: Arc::new(Semaphore::new(bytes as usize)), epoch: Instant::now(), holders: Arc::default() }
    }

    async fn take(&self, bytes: u64, metrics: &Metrics) -> Option<Share> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.bytes);
        let permit = match self.free.clone().try_acquire_many_owned(bytes) {
            Ok(permit) => permit,
            Err(_) => {
                metrics.budget_waited(Protocol::Http);
                timeout(WAIT_MAX, self.wait(bytes)).await.ok()??
            }
        };
        let holder =
            Holder { bytes, epoch: self.epoch, standing_since: AtomicU64::new(0), is_cut: AtomicBool::new(false), cut: Notify::new() };
        let holder = Arc::new(holder);
        let mut holders = self.holders.lock();
        let number = holders.next;
        holders.next += 1;
        holders.holders.insert(number, holder.clone());
        drop(holders);
        Some(Share { holder, number, holders: self.holders.clone(), _permit: permit })
    }

    /// Waits in the order of arrival, and has those cut that stand still meanwhile.
    async fn wait(&self, bytes: u32) -> Option<OwnedSemaphorePermit> {
        let mut permit = std::pin::pin!(self.free.clone().acquire_many_owned(bytes));
        loop {
            tokio::select! {
                permit = &mut permit => return permit.ok(),
                () = sleep(LOOK_INTERVAL) => self.cut(bytes),
            }
        }
    }

    /// Cuts those that have stood still the longest, as many as it takes.
    fn cut(&self, bytes: u32) {
        let limit = elapsed_ms(self.epoch).saturating_sub(u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX));
        let mut standing: Vec<_> = {
            let holders = self.holders.lock();
            let standing = holders.holders.values().filter_map(|holder| {
                let since = holder.standing_since.load(Ordering::Relaxed);
                (since != 0 && since <= limit && !holder.is_cut.load(Ordering::Relaxed)).then(|| (since, holder.clone()))
            });
            standing.collect()
        };
        standing.sort_unstable_by_key(|(since, _)| *since);
        let mut freed_bytes = 0u32;
        for (_, holder) in standing {
            if freed_bytes >= bytes {
                break;
            }
            freed_bytes = freed_bytes.saturating_add(holder.bytes);
            holder.is_cut.store(true, Ordering::Relaxed);
            holder.cut.notify_one();
        }
    }
}

fn elapsed_ms(epoch: Instant) -> u64 {
    u64::try_from(epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// A share of the memory, until it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    holder: Arc<Holder>,
    number: u64,
    holders: Arc<Mutex<Holders>>,
    _permit: OwnedSemaphorePermit,
}

impl Share {
    /// Says that its client stands still, until what comes back is dropped.
    pub(super) fn standing(&self) -> Standing<'_> {
        self.holder.standing_since.store(elapsed_ms(self.holder.epoch) + 1, Ordering::Relaxed);
        Standing(self)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.holders.lock().holders.remove(&self.number);
    }
}

/// A client that stands still.
pub(super) struct Standing<'a>(&'a Share);

impl Standing<'_> {
    /// Waits until others need its share.
    pub(super) async fn cut(&self) {
        self.0.holder.cut.notified().await;
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        self.0.holder.standing_since.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_stands_still_gives_way_and_who_does_not_keeps_its_share() {
        let metrics = Arc::new(Metrics::default());
        let memory = Memory::new(metrics.clone());
        let half = u64::from(LARGE_ROOM_BYTES) / 2;
        let standing = memory.large(half).await.unwrap();
        let busy = memory.large(half).await.unwrap();
        let third = memory.large(half);
        let cut = async {
            let standing_still = standing.standing();
            standing_still.cut().await;
            drop(standing_still);
            drop(standing);
        };
        let began = Instant::now();
        let (third, ()) = tokio::join!(third, cut);
        assert!(third.is_some());
        assert!(metrics.page(0).unwrap().contains("blockstore_budget_waits_total{protocol=\"http\"} 1\n"));
        assert!((PATIENCE..PATIENCE * 2).contains(&began.elapsed()));
        // Nobody stands still now: who wants more gives up in time.
        let began = Instant::now();
        assert!(memory.large(half).await.is_none());
        assert_eq!(began.elapsed(), WAIT_MAX);
        drop((busy, third));
        assert_eq!(memory.taken_bytes(), (0, 0));
        assert!(memory.large.holders.lock().holders.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_are_cut_than_it_takes_and_the_longest_first() {
        let memory = Memory::new(Arc::default());
        let share = u64::from(SMALL_ROOM_BYTES) / 64;
        let mut shares = Vec::new();
        for _ in 0..64 {
            shares.push(memory.small(share).await.unwrap());
        }
        let standing: Vec<_> = shares
            .iter()
            .map(|share| {
                let standing = share.standing();
                share.holder.standing_since.fetch_add(share.number, Ordering::Relaxed);
                standing
            })
            .collect();
        sleep(PATIENCE * 2).await;
        memory.small.cut(u32::try_from(share).unwrap() * 3);
        let cut: Vec<_> = shares.iter().map(|share| share.holder.is_cut.load(Ordering::Relaxed)).collect();
        assert_eq!(cut.iter().filter(|cut| **cut).count(), 3);
        assert_eq!(cut[..3], [true; 3]);
        drop(standing);
    }
}
