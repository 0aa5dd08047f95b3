//! One copy of what many put at once: the first leads, the others wait for it.
//!
//! Always true here: at most one flight a key is known; whoever follows one that makes no progress for [`STALL`] takes its place, and
//! the one that was overtaken may still finish, which stores the content twice and harms nothing.

use crate::key::Key;
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// How long a leader may stand still.
const STALL: Duration = Duration::from_secs(10);

/// The puts of content that are under way.
#[derive(Clone, Default)]
pub(crate) struct Flights {
    map: Arc<Mutex<HashMap<Key, Arc<Flight>>>>,
}

/// One put under way.
pub(crate) struct Flight {
    progress: Mutex<Instant>,
    ended: watch::Sender<bool>,
}

/// What a caller is to do.
pub(crate) enum Turn {
    Lead(Lead),
    Follow(Arc<Flight>),
}

/// The duty to end a flight: by publishing, or by being dropped.
pub(crate) struct Lead {
    flights: Flights,
    key: Key,
    flight: Arc<Flight>,
}

impl Flights {
    fn start(&self, key: &Key) -> Lead {
        let flight = Arc::new(Flight { progress: Mutex::new(Instant::now()), ended: watch::Sender::new(false) });
        Lead { flights: self.clone(), key: *key, flight }
    }
    /// How many keys somebody is putting.
    pub(crate) fn running(&self) -> usize {
        self.map.lock().len()
    }
    /// Joins the flight of `key`, or starts it.
    pub(crate) fn turn(&self, key: &Key) -> Turn {
        let mut map = self.map.lock();
        if let Some(flight) = map.get(key) {
            return Turn::Follow(flight.clone());
        }
        let lead = self.start(key);
        map.insert(*key, lead.flight.clone());
        drop(map);
        Turn::Lead(lead)
    }
    /// Waits for the flight to end. If it stands still, gives the lead to the caller.
    pub(crate) async fn follow(&self, key: &Key, flight: Arc<Flight>) -> Option<Lead> {
        let mut ended = flight.ended.subscribe();
        loop {
            let limit = *flight.progress.lock() + STALL;
            match tokio::time::timeout_at(limit, ended.wait_for(|e| *e)).await {
                Ok(_) => return None,
                Err(_) if *flight.progress.lock() + STALL > Instant::now() => {}
                Err(_) => {
                    let mut map = self.map.lock();
                    let still = map.get(key).is_some_and(|f| Arc::ptr_eq(f, &flight));
                    if !still {
                        return None;
                    }
                    let lead = self.start(key);
                    map.insert(*key, lead.flight.clone());
                    drop(map);
                    return Some(lead);
                }
            }
        }
    }
}

impl Lead {
    /// The put goes on.
    pub(crate) fn progress(&self) {
        *self.flight.progress.lock() = Instant::now();
    }
    /// The content is there for everybody.
    pub(crate) fn published(self) {}
}

impl Drop for Lead {
    fn drop(&mut self) {
        let mut map = self.flights.map.lock();
        if map.get(&self.key).is_some_and(|f| Arc::ptr_eq(f, &self.flight)) {
            map.remove(&self.key);
        }
        drop(map);
        self.flight.ended.send_replace(true);
    }
}
