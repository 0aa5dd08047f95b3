//! How many uploads run at the same time, over all protocols.
//!
//! Always true here: never more than was set; who comes when all turns are taken learns it at once and holds nothing, so that no
//! upload waits for another one's client.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Uploads at the same time where nothing else is set: each may hold a few MiB.
pub const UPLOADS_MAX: usize = 4096;

/// The turns that uploads take. Clones share them.
#[derive(Clone, Debug)]
pub struct Uploads {
    room: Arc<Semaphore>,
    max: usize,
    refused: Arc<AtomicU64>,
}

/// An upload's turn; free again when it is dropped.
#[derive(Debug)]
pub struct Turn {
    _permit: OwnedSemaphorePermit,
}

impl Default for Uploads {
    fn default() -> Self {
        Self::new(UPLOADS_MAX)
    }
}

impl Uploads {
    /// That many turns.
    pub fn new(max: usize) -> Self {
        let max = max.min(Semaphore::MAX_PERMITS);
        Self { room: Arc::new(Semaphore::new(max)), max, refused: Arc::default() }
    }

    /// A turn, if one is free.
    pub fn begin(&self) -> Option<Turn> {
        match self.room.clone().try_acquire_owned() {
            Ok(permit) => Some(Turn { _permit: permit }),
            Err(_) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    /// How many turns there are.
    pub fn max(&self) -> usize {
        self.max
    }

    /// How many uploads run now.
    pub fn running(&self) -> usize {
        self.max - self.room.available_permits()
    }

    /// How often there was no turn. It only grows.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}
