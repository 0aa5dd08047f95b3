//! The keyed hash of keys: whoever does not know the store's seed cannot aim at a bucket.

use crate::format::{record::RecordKey, types::KeyHash};
use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;

/// Hashes keys under one store's seed.
#[derive(Clone, Debug)]
pub(crate) struct KeyHasher(SipHasher13);

impl KeyHasher {
    pub(crate) fn new(seed: &[u8; 16]) -> Self {
        Self(SipHasher13::new_with_key(seed))
    }
    pub(crate) fn hash(&self, key: &RecordKey) -> KeyHash {
        let mut hasher = self.0;
        hasher.write(&key.hashed_bytes());
        let wide = hasher.finish128();
        let mut out = [0u8; 12];
        let (low, high) = out.split_at_mut(8);
        low.copy_from_slice(&wide.h1.to_le_bytes());
        high.copy_from_slice(&wide.h2.to_le_bytes()[..4]);
        KeyHash(out)
    }
}
