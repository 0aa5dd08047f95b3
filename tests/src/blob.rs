//! Blobs that are known by a number: what was stored can be checked later without having been kept.
//!
//! Always true here: the bytes depend on nothing but seed, size and position, and every 512 of them carry all three, so that no
//! part of a blob passes for another part or for a part of another blob.

use blockstore_proto::reapi::Digest;
use bytes::{Bytes, BytesMut};
use sha2::{Digest as _, Sha256};
use std::sync::LazyLock;

/// Blobs are made in pieces of this size, in bytes.
pub const PIECE_BYTES: u64 = 1 << 20;
const UNIT_BYTES: usize = 512;

static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = Random::new(0x6e6f_6973_6521);
    (0..PIECE_BYTES / 8).flat_map(|_| random.next().to_le_bytes()).collect()
});

/// A blob that can be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Blob {
    /// Tells blobs of one size apart.
    pub seed: u64,
    /// Size in bytes.
    pub size_bytes: u64,
}

impl Blob {
    /// The blob of this number and size.
    pub fn new(seed: u64, size_bytes: u64) -> Self {
        Self { seed, size_bytes }
    }

    /// Its pieces in order, each of [`PIECE_BYTES`] but the last.
    pub fn pieces(self) -> impl Iterator<Item = Bytes> + Send {
        (0..self.size_bytes.div_ceil(PIECE_BYTES)).map(move |index| self.piece(index))
    }

    fn piece(self, index: u64) -> Bytes {
        let start = index * PIECE_BYTES;
        let len = usize::try_from((self.size_bytes - start).min(PIECE_BYTES)).expect("a MiB");
        let mut piece = BytesMut::from(&NOISE[..len]);
        for (unit, bytes) in piece.chunks_mut(UNIT_BYTES).enumerate() {
            let mut mark = [0; 24];
            mark[..8].copy_from_slice(&self.seed.to_le_bytes());
            mark[8..16].copy_from_slice(&(start + (unit * UNIT_BYTES) as u64).to_le_bytes());
            mark[16..].copy_from_slice(&self.size_bytes.to_le_bytes());
            let len = bytes.len().min(mark.len());
            bytes[..len].copy_from_slice(&mark[..len]);
        }
        piece.freeze()
    }

    /// The whole of it.
    pub fn bytes(self) -> Bytes {
        if self.size_bytes <= PIECE_BYTES {
            return self.pieces().next().unwrap_or_default();
        }
        let mut all = BytesMut::new();
        self.pieces().for_each(|piece| all.extend_from_slice(&piece));
        all.freeze()
    }

    /// Its name in the cache, by SHA-256.
    pub fn digest(self) -> Digest {
        let mut hasher = Sha256::new();
        self.pieces().for_each(|piece| hasher.update(&piece));
        Digest { hash: hex::encode(hasher.finalize()), size_bytes: i64::try_from(self.size_bytes).expect("blobs of tests are small") }
    }
}

/// The name of some bytes in the cache, by SHA-256.
pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest { hash: hex::encode(Sha256::digest(bytes)), size_bytes: i64::try_from(bytes.len()).expect("blobs of tests are small") }
}

/// Numbers that look random and are the same in every run (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "never ends, so it is no iterator to adapt")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is above zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A size in bytes as a build cache sees them: a third under 100, two thirds under 1 KB, nearly all under 10 KB, some up to 100.
    pub fn small_size_bytes(&mut self) -> u64 {
        let bound = match self.below(100) {
            0..33 => 100,
            33..66 => 1_000,
            66..92 => 10_000,
            _ => 100_000,
        };
        1 + self.below(bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_add_up_to_the_whole() {
        for size_bytes in [0, 1, 24, 511, 513, PIECE_BYTES, PIECE_BYTES + 1] {
            let blob = Blob::new(7, size_bytes);
            let bytes = blob.bytes();
            assert_eq!(bytes.len() as u64, size_bytes);
            assert_eq!(digest_of(&bytes), blob.digest());
        }
        assert_ne!(Blob::new(1, 600).digest(), Blob::new(2, 600).digest());
    }
}
