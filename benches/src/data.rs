//! What is sent: small blobs as a build cache sees them, and large ones whose hashes cost nothing.
//!
//! Always true here: blobs of different seeds or numbers differ; each can be compared with what comes back without having been
//! kept, or is small enough to be kept.

use blockstore_proto::reapi::Digest;
use blockstore_tests::blob::{Random, digest_of};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use std::sync::LazyLock;

/// Large blobs repeat so many bytes of noise.
pub(crate) const NOISE_BYTES: usize = 1 << 20;
/// At their end they say which one they are.
const MARK_BYTES: usize = 16;

static NOISE: LazyLock<Bytes> = LazyLock::new(|| {
    let mut random = Random::new(0x6e6f_6973_6521);
    (0..NOISE_BYTES / 8).flat_map(|_| random.next().to_le_bytes()).collect::<Vec<_>>().into()
});

/// A blob that is kept.
#[derive(Clone, Debug)]
pub(crate) struct SmallBlob {
    pub(crate) digest: Digest,
    pub(crate) data: Bytes,
}

/// Bounds of sizes in bytes, and how many in a hundred lie within them: 33 % under 100 B, 66 % under 1 KB, 86 % under 10 KB. The
/// rest is just above that, for a mean of 2.3 KB: larger blobs do not travel in batches. 8 B at least tell blobs apart.
const SIZES: [(u64, f64, f64); 4] = [(33, 8.0, 100.0), (33, 100.0, 1e3), (20, 1e3, 1e4), (14, 1e4, 10_240.0)];

/// A size in bytes from the histogram; evenly by its logarithm between two bounds.
pub(crate) fn size_bytes(random: &mut Random) -> usize {
    let mut percent = random.below(100);
    for (share, from, to) in SIZES {
        if percent < share {
            let position = random.below(1 << 20) as f64 / f64::from(1 << 20);
            return (from * (to / from).powf(position)) as usize;
        }
        percent -= share;
    }
    NOISE_BYTES
}

/// The next blob of the histogram.
pub(crate) fn small_blob(random: &mut Random) -> SmallBlob {
    let size = size_bytes(random);
    let mut data = Vec::with_capacity(size);
    data.extend_from_slice(&random.next().to_le_bytes());
    let start = random.below((NOISE_BYTES - size) as u64) as usize;
    data.extend_from_slice(&NOISE[start..start + size - data.len()]);
    SmallBlob { digest: digest_of(&data), data: data.into() }
}

/// A digest of no blob.
pub(crate) fn missing_digest(random: &mut Random) -> Digest {
    let absent = random.next().to_le_bytes();
    Digest { size_bytes: size_bytes(random) as i64, ..digest_of(&absent) }
}

/// Large blobs of one size: the same noise with another mark at the end, so that the hash of all but the end is computed once.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    seed: u64,
    size_bytes: usize,
    message_bytes: usize,
    hashed: Sha256,
}

impl Series {
    /// A series of blobs of this size, cut into messages of this size. The last message holds the whole mark.
    pub(crate) fn new(seed: u64, size_bytes: usize, message_bytes: usize) -> Self {
        let mut hashed = Sha256::new();
        let mut rest = size_bytes - MARK_BYTES;
        while rest > 0 {
            let piece = rest.min(NOISE_BYTES);
            hashed.update(&NOISE[..piece]);
            rest -= piece;
        }
        Self { seed, size_bytes, message_bytes, hashed }
    }

    /// Size of each blob in bytes.
    pub(crate) fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    fn mark(&self, number: u64) -> [u8; MARK_BYTES] {
        let mut mark = [0; MARK_BYTES];
        mark[..8].copy_from_slice(&self.seed.to_le_bytes());
        mark[8..].copy_from_slice(&number.to_le_bytes());
        mark
    }

    /// The name of blob `number`.
    pub(crate) fn digest(&self, number: u64) -> Digest {
        let hash = self.hashed.clone().chain_update(self.mark(number)).finalize();
        Digest { hash: hex::encode(hash), size_bytes: self.size_bytes as i64 }
    }

    /// Blob `number` in order: the offset of each piece, and the piece.
    pub(crate) fn pieces(self, number: u64) -> impl Iterator<Item = (usize, Bytes)> + Send + 'static {
        let mut at = 0;
        std::iter::from_fn(move || {
            let rest = self.size_bytes - at;
            if rest == 0 {
                return None;
            }
            let within = at % NOISE_BYTES;
            let mut len = self.message_bytes.min(rest).min(NOISE_BYTES - within);
            // The mark is not cut.
            let marked = self.size_bytes - MARK_BYTES;
            if len < rest && at + len > marked {
                len = marked - at;
            }
            let piece = match len == rest {
                // Where the noise begins anew within the mark, the mark is a piece of its own.
                _ if len == 0 => {
                    len = rest;
                    Bytes::copy_from_slice(&self.mark(number))
                }
                false => NOISE.slice(within..within + len),
                true => {
                    let mut piece = NOISE[within..within + len].to_vec();
                    piece[len - MARK_BYTES..].copy_from_slice(&self.mark(number));
                    piece.into()
                }
            };
            at += len;
            Some((at - len, piece))
        })
    }

    /// Whether `data` is what blob `number` has at offset `at`.
    pub(crate) fn is_part(&self, number: u64, mut at: usize, mut data: &[u8]) -> bool {
        let marked = self.size_bytes - MARK_BYTES;
        if at + data.len() > self.size_bytes {
            return false;
        }
        while !data.is_empty() {
            let expected_len;
            let equal = if at >= marked {
                expected_len = data.len();
                data == &self.mark(number)[at - marked..][..expected_len]
            } else {
                let within = at % NOISE_BYTES;
                expected_len = data.len().min(NOISE_BYTES - within).min(marked - at);
                data[..expected_len] == NOISE[within..within + expected_len]
            };
            if !equal {
                return false;
            }
            at += expected_len;
            data = &data[expected_len..];
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_histogram() {
        let mut random = Random::new(1);
        let sizes: Vec<_> = (0..100_000).map(|_| size_bytes(&mut random)).collect();
        let percent = |bound| sizes.iter().filter(|size| **size < bound).count() / 1000;
        for (bound, expected) in [(100, 33), (1000, 66), (10_000, 86)] {
            assert!(percent(bound).abs_diff(expected) <= 1, "{} % below {bound}", percent(bound));
        }
        let mean = sizes.iter().sum::<usize>() / sizes.len();
        assert!((2200..2500).contains(&mean), "{mean} bytes on average");
    }

    #[test]
    fn a_large_blob_is_its_pieces_and_has_its_digest() {
        for (size_bytes, message_bytes) in [(65_536, 1 << 20), (65_536, 1000), ((2 << 20) + 5, 1 << 20), (3 << 20, 65_529)] {
            let series = Series::new(7, size_bytes, message_bytes);
            let mut whole = Vec::new();
            for (at, piece) in series.clone().pieces(3) {
                assert_eq!(at, whole.len());
                assert!(series.is_part(3, at, &piece));
                whole.extend_from_slice(&piece);
            }
            assert_eq!(series.digest(3), digest_of(&whole));
            assert!(series.is_part(3, 0, &whole) && !series.is_part(4, 0, &whole));
            whole[size_bytes / 2] ^= 1;
            assert!(!series.is_part(3, 0, &whole));
        }
    }
}
