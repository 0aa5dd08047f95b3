//! One at a time for each blob: who cuts or puts together what another is working on waits for it, and then finds it done.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::Digest;

type Places = Arc<Mutex<HashMap<Digest, Arc<AsyncMutex<()>>>>>;

/// Who is at work on which blob. Holds no more blobs than there are calls.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns(Places);

/// Ends when it is dropped, also while it still waits to begin.
#[derive(Debug)]
pub(super) struct Turn {
    places: Places,
    digest: Digest,
    place: Arc<AsyncMutex<()>>,
    held: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    /// Waits until nobody else is at work on the blob.
    pub(super) async fn take(&self, digest: &Digest) -> Turn {
        let place = self.0.lock().entry(*digest).or_default().clone();
        let mut turn = Turn { places: self.0.clone(), digest: *digest, place, held: None };
        turn.held = Some(turn.place.clone().lock_owned().await);
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.held = None;
        let mut places = self.places.lock();
        // The map's and this one: nobody else has it, or can get it before the lock is given back.
        if Arc::strong_count(&self.place) == 2 {
            places.remove(&self.digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{DigestFunction, Hasher};

    #[tokio::test]
    async fn one_at_a_time_and_nothing_is_left() {
        let turns = Turns::default();
        let [one, other] = [b"1", b"2"].map(|data| Hasher::digest(DigestFunction::Sha256, data));
        let held = turns.take(&one).await;
        let _other = turns.take(&other).await;
        let mut waiting = Box::pin(turns.take(&one));
        assert!(futures::poll!(&mut waiting).is_pending());
        let mut given_up = Box::pin(turns.take(&one));
        assert!(futures::poll!(&mut given_up).is_pending());
        drop(given_up);
        drop(held);
        let second = waiting.await;
        assert_eq!(turns.0.lock().len(), 2);
        drop(second);
        assert_eq!(turns.0.lock().keys().copied().collect::<Vec<_>>(), [other]);
    }
}
