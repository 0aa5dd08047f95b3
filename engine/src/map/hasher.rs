//! The keyed hash of keys: whoever does not know the store's seed cannot aim at a bucket.
//!
//! SipHash-1-3 with 128 bits of output, of which 96 are used. Every lookup begins with it and the input always has 34 bytes, so that it
//! is written out for them: a third of what a general implementation takes.

use crate::format::{record::RecordKey, types::KeyHash};

/// Length of the input in bytes.
const INPUT_BYTES: usize = 34;

/// Hashes keys under one store's seed.
#[derive(Clone, Debug)]
pub(crate) struct KeyHasher {
    /// The four words before the first of the input.
    start: [u64; 4],
}

impl KeyHasher {
    pub(crate) fn new(seed: &[u8; 16]) -> Self {
        let (low, high) = halves(seed);
        let start =
            [low ^ 0x736f_6d65_7073_6575, high ^ 0x646f_7261_6e64_6f6d ^ 0xee, low ^ 0x6c79_6765_6e65_7261, high ^ 0x7465_6462_7974_6573];
        Self { start }
    }

    pub(crate) fn hash(&self, key: &RecordKey) -> KeyHash {
        let input: [u8; INPUT_BYTES] = key.hashed_bytes();
        let (words, rest) = input.as_chunks::<8>();
        let mut state = self.start;
        for word in words {
            take(&mut state, u64::from_le_bytes(*word));
        }
        // The last word: what is left over, and the length in the highest byte.
        let last = rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        take(&mut state, (INPUT_BYTES as u64) << 56 | last);
        state[2] ^= 0xee;
        let h1 = finish(&mut state);
        state[1] ^= 0xdd;
        let h2 = finish(&mut state);
        let mut out = [0u8; 12];
        let (low, high) = out.split_at_mut(8);
        low.copy_from_slice(&h1.to_le_bytes());
        high.copy_from_slice(&h2.to_le_bytes()[..4]);
        KeyHash(out)
    }
}

fn halves(seed: &[u8; 16]) -> (u64, u64) {
    let wide = u128::from_le_bytes(*seed);
    (wide as u64, (wide >> 64) as u64)
}

fn take(state: &mut [u64; 4], word: u64) {
    state[3] ^= word;
    round(state);
    state[0] ^= word;
}

fn finish(state: &mut [u64; 4]) -> u64 {
    (0..3).for_each(|_| round(state));
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

fn round([a, b, c, d]: &mut [u64; 4]) {
    *a = a.wrapping_add(*b);
    *c = c.wrapping_add(*d);
    *b = b.rotate_left(13) ^ *a;
    *d = d.rotate_left(16) ^ *c;
    *a = a.rotate_left(32).wrapping_add(*d);
    *c = c.wrapping_add(*b);
    *b = b.rotate_left(17) ^ *c;
    *d = d.rotate_left(21) ^ *a;
    *c = c.rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Key, KeySpace};
    use siphasher::sip128::{Hasher128, SipHasher13};
    use std::hash::Hasher;

    #[test]
    fn it_is_the_siphash_that_everybody_has() {
        for n in 0..200u8 {
            let seed: [u8; 16] = std::array::from_fn(|i| n.wrapping_mul(31).wrapping_add((i as u8).wrapping_mul(17)));
            let hash = std::array::from_fn(|i| n.wrapping_mul(7).wrapping_add((i as u8).wrapping_mul(29)));
            let space = if n % 2 == 0 { KeySpace::Content } else { KeySpace::Named };
            let key = RecordKey::Object(Key { space, function: n, hash });
            let mut expected = SipHasher13::new_with_key(&seed);
            expected.write(&key.hashed_bytes());
            let expected = expected.finish128().as_bytes();
            assert_eq!(KeyHasher::new(&seed).hash(&key).0[..], expected[..12]);
        }
    }
}
