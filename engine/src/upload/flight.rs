//! One copy of what many put at once: the first leads, the others wait for it.
//!
//! Always true here: at most one flight a key is known; whoever follows one that makes no progress for [`STALL`] takes its place, and
//! the one that was overtaken may still finish, which stores the content twice and harms nothing. Keys go by their keyed hash: two of one
//! hash, should there ever be such, wait for each other and then find that each has to be put. Nearly nobody is followed, so what a
//! follower waits on is made by the first one.

use crate::format::types::KeyHash;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// How long a leader may stand still.
const STALL: Duration = Duration::from_secs(10);
/// Parts of the map, each with a lock of its own.
const SHARDS: usize = 16;

/// The puts of content that are under way.
#[derive(Clone, Default)]
pub(crate) struct Flights {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    shards: [Mutex<Shard>; SHARDS],
    last_id: AtomicU64,
}

type Shard = HashMap<KeyHash, Flight, BuildHasherDefault<AsItIs>>;

/// One put under way.
struct Flight {
    id: u64,
    progress: Instant,
    ended: Option<watch::Sender<bool>>,
}

/// A flight of somebody else.
pub(crate) struct Followed {
    hash: KeyHash,
    id: u64,
    ended: watch::Receiver<bool>,
}

/// What a caller is to do.
pub(crate) enum Turn {
    Lead(Lead),
    Follow(Followed),
}

/// The duty to end a flight: by publishing, or by being dropped.
pub(crate) struct Lead {
    flights: Flights,
    hash: KeyHash,
    id: u64,
}

impl Flights {
    fn shard(&self, hash: &KeyHash) -> &Mutex<Shard> {
        &self.shared.shards[usize::from(hash.0[11]) % SHARDS]
    }
    fn start(&self, shard: &mut Shard, hash: &KeyHash) -> Lead {
        let id = self.shared.last_id.fetch_add(1, Ordering::Relaxed);
        // The followers of one that is overtaken see that its place is taken.
        drop(shard.insert(*hash, Flight { id, progress: Instant::now(), ended: None }));
        Lead { flights: self.clone(), hash: *hash, id }
    }
    /// How many keys somebody is putting.
    pub(crate) fn running(&self) -> usize {
        self.shared.shards.iter().map(|shard| shard.lock().len()).sum()
    }
    /// Joins the flight of a key, or starts it.
    pub(crate) fn turn(&self, hash: &KeyHash) -> Turn {
        let mut shard = self.shard(hash).lock();
        if let Some(flight) = shard.get_mut(hash) {
            let ended = flight.ended.get_or_insert_with(|| watch::Sender::new(false)).subscribe();
            return Turn::Follow(Followed { hash: *hash, id: flight.id, ended });
        }
        Turn::Lead(self.start(&mut shard, hash))
    }
    /// Waits for the flight to end. If it stands still, gives the lead to the caller.
    pub(crate) async fn follow(&self, followed: Followed) -> Option<Lead> {
        let Followed { hash, id, mut ended } = followed;
        loop {
            let progress = self.shard(&hash).lock().get(&hash).filter(|flight| flight.id == id)?.progress;
            if tokio::time::timeout_at(progress + STALL, ended.wait_for(|ended| *ended)).await.is_ok() {
                return None;
            }
            let mut shard = self.shard(&hash).lock();
            let flight = shard.get(&hash).filter(|flight| flight.id == id)?;
            if flight.progress + STALL <= Instant::now() {
                return Some(self.start(&mut shard, &hash));
            }
        }
    }
}

impl Lead {
    /// The hash of the key.
    pub(crate) fn hash(&self) -> &KeyHash {
        &self.hash
    }
    /// The put goes on.
    pub(crate) fn progress(&self) {
        if let Some(flight) = self.flights.shard(&self.hash).lock().get_mut(&self.hash).filter(|flight| flight.id == self.id) {
            flight.progress = Instant::now();
        }
    }
    /// The content is there for everybody.
    pub(crate) fn published(self) {}
}

impl Drop for Lead {
    fn drop(&mut self) {
        let mut shard = self.flights.shard(&self.hash).lock();
        if shard.get(&self.hash).is_some_and(|flight| flight.id == self.id) {
            let ended = shard.remove(&self.hash).and_then(|flight| flight.ended);
            drop(shard);
            if let Some(ended) = ended {
                ended.send_replace(true);
            }
        }
    }
}

/// Takes a keyed hash for what it is: nobody who does not know the seed can make two fall together.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, bytes: &[u8]) {
        if let Some((low, _)) = bytes.split_first_chunk() {
            self.0 = u64::from_le_bytes(*low);
        }
    }
    fn write_usize(&mut self, _: usize) {}
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lead(turn: Turn) -> Lead {
        match turn {
            Turn::Lead(lead) => lead,
            Turn::Follow(_) => panic!("somebody leads already"),
        }
    }
    fn follow(turn: Turn) -> Followed {
        match turn {
            Turn::Lead(_) => panic!("nobody leads"),
            Turn::Follow(followed) => followed,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn followers_learn_that_the_leader_has_ended() {
        let flights = Flights::default();
        let hash = KeyHash([7; 12]);
        let leader = lead(flights.turn(&hash));
        let followers = [follow(flights.turn(&hash)), follow(flights.turn(&hash))];
        assert_eq!(flights.running(), 1);
        let waiting = followers.map(|followed| {
            let flights = flights.clone();
            tokio::spawn(async move { flights.follow(followed).await.is_none() })
        });
        tokio::time::sleep(STALL / 2).await;
        leader.progress();
        tokio::time::sleep(STALL * 3 / 4).await;
        assert!(waiting.iter().all(|task| !task.is_finished()), "who makes progress is waited for");
        leader.published();
        for task in waiting {
            assert!(task.await.unwrap(), "the leader ended, nobody takes its place");
        }
        assert_eq!(flights.running(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_stands_still_is_overtaken_once() {
        let flights = Flights::default();
        let hash = KeyHash([7; 12]);
        let slow = lead(flights.turn(&hash));
        let followers = [follow(flights.turn(&hash)), follow(flights.turn(&hash))];
        let tasks = followers.map(|followed| {
            let flights = flights.clone();
            tokio::spawn(async move { flights.follow(followed).await })
        });
        let mut leads = Vec::new();
        for task in tasks {
            leads.extend(task.await.unwrap());
        }
        assert_eq!((leads.len(), flights.running()), (1, 1));
        // The slow one's end is not that of the flight which took its place.
        drop(slow);
        assert_eq!(flights.running(), 1);
        leads.clear();
        assert_eq!(flights.running(), 0);
    }
}
