//! Hashing beside other work.
//!
//! Always true here: however many bytes there are, other tasks of the thread get their turn after each half of a MiB.

use super::{Digest, DigestFunction, Hasher};

/// Bytes that are hashed before other tasks get their turn: about a third of a millisecond.
pub(super) const TURN_BYTES: usize = 512 << 10;

/// The digest of many bytes that are all there.
pub(super) async fn digest_in_turns(function: DigestFunction, data: &[u8]) -> Digest {
    let mut hasher = Hasher::new(function, data.len() as u64);
    for stride in data.chunks(TURN_BYTES) {
        hasher.update(stride);
        if stride.len() == TURN_BYTES {
            tokio::task::yield_now().await;
        }
    }
    hasher.finish()
}
