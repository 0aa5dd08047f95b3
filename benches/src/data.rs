//! What is sent: small blobs as a build cache sees them, and large ones whose hashes cost nothing.
//!
//! Always true here: blobs of different seeds or numbers differ; each can be compared with what comes back without having been
//! kept, or is small enough to be kept.

use blockstore_proto::reapi::Digest;
use blockstore_tests::blob::{Random, digest_of};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use std::sync::{LazyLock, Mutex, PoisonError};

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

/// Noise that blobs are made of: [`NOISE_BYTES`] of it.
pub(crate) fn noise() -> Bytes {
    NOISE.clone()
}

/// Hashes of the beginning of endless repeated noise, up to a point just before that many bytes.
///
/// The first MiB is kept in steps of [`STEP_BYTES`], the rest up to [`STEPS_MAX`] MiB in steps of one: half a megabyte of states at most.
struct Beginnings {
    fine: Vec<Sha256>,
    coarse: Mutex<Vec<Sha256>>,
}

/// Distance in bytes of the hashes that are kept of the first MiB.
const STEP_BYTES: usize = 4 << 10;
/// Hashes that are kept of whole MiB.
const STEPS_MAX: usize = 4096;

static BEGINNINGS: LazyLock<Beginnings> = LazyLock::new(|| {
    let mut hashed = Sha256::new();
    let mut fine = vec![hashed.clone()];
    for step in NOISE.chunks(STEP_BYTES) {
        hashed.update(step);
        fine.push(hashed.clone());
    }
    Beginnings { fine, coarse: Mutex::new(vec![Sha256::new()]) }
});

impl Beginnings {
    fn hash(&self, len: usize) -> Sha256 {
        if len < NOISE_BYTES {
            let step = len / STEP_BYTES;
            return self.fine[step].clone().chain_update(&NOISE[step * STEP_BYTES..len]);
        }
        let whole = len / NOISE_BYTES;
        let kept = whole.min(STEPS_MAX - 1);
        let mut coarse = self.coarse.lock().unwrap_or_else(PoisonError::into_inner);
        while coarse.len() <= kept {
            let next = coarse[coarse.len() - 1].clone().chain_update(&NOISE[..]);
            coarse.push(next);
        }
        let mut hashed = coarse[kept].clone();
        drop(coarse);
        (kept..whole).for_each(|_| hashed.update(&NOISE[..]));
        hashed.chain_update(&NOISE[..len % NOISE_BYTES])
    }
}

/// Blobs of one size: the same noise with another mark at the end, so that the hash of all but the end is computed once. Those of
/// fewer than 8 B are not all different.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    seed: u64,
    size_bytes: usize,
    /// Where the mark begins.
    marked: usize,
    message_bytes: usize,
    hashed: Sha256,
}

impl Series {
    /// A series of blobs of this size, cut into messages of this size. The last message holds the whole mark.
    pub(crate) fn new(seed: u64, size_bytes: usize, message_bytes: usize) -> Self {
        let marked = size_bytes.saturating_sub(MARK_BYTES);
        Self { seed, size_bytes, marked, message_bytes, hashed: BEGINNINGS.hash(marked) }
    }

    /// Size of each blob in bytes.
    pub(crate) fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// What blob `number` ends with: the first bytes of it tell seeds and numbers apart if there is room for no more.
    fn mark(&self, number: u64) -> Vec<u8> {
        let mixed = Random::new(Random::new(self.seed).next() ^ number).next();
        let mut mark = [mixed.to_le_bytes(), number.to_le_bytes()].concat();
        mark.truncate(self.size_bytes - self.marked);
        mark
    }

    /// The name of blob `number`.
    pub(crate) fn digest(&self, number: u64) -> Digest {
        let hash = self.hashed.clone().chain_update(self.mark(number)).finalize();
        Digest { hash: hex::encode(hash), size_bytes: self.size_bytes as i64 }
    }

    /// The whole of blob `number`, which is to fit in memory.
    pub(crate) fn whole(&self, number: u64) -> Bytes {
        let mut whole = Vec::with_capacity(self.size_bytes);
        while whole.len() < self.marked {
            let len = (self.marked - whole.len()).min(NOISE_BYTES);
            whole.extend_from_slice(&NOISE[..len]);
        }
        whole.extend_from_slice(&self.mark(number));
        whole.into()
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
            if len < rest && at + len > self.marked {
                len = self.marked - at;
            }
            let mark = self.mark(number);
            let piece = match len == rest {
                // Where the noise begins anew within the mark, the mark is a piece of its own.
                _ if len == 0 => {
                    len = rest;
                    Bytes::from(mark)
                }
                false => NOISE.slice(within..within + len),
                true => {
                    let mut piece = NOISE[within..within + len - mark.len()].to_vec();
                    piece.extend_from_slice(&mark);
                    piece.into()
                }
            };
            at += len;
            Some((at - len, piece))
        })
    }

    /// Whether `data` is what blob `number` has at offset `at`.
    pub(crate) fn is_part(&self, number: u64, mut at: usize, mut data: &[u8]) -> bool {
        let marked = self.marked;
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
        for (size_bytes, message_bytes) in [
            (1, 1 << 20),
            (9, 1000),
            (16, 1000),
            (5000, 1 << 20),
            (65_536, 1 << 20),
            (65_536, 1000),
            (1 << 20, 1 << 20),
            ((2 << 20) + 5, 1 << 20),
            (3 << 20, 65_529),
        ] {
            let series = Series::new(7, size_bytes, message_bytes);
            let mut whole = Vec::new();
            for (at, piece) in series.clone().pieces(3) {
                assert_eq!(at, whole.len());
                assert!(series.is_part(3, at, &piece));
                whole.extend_from_slice(&piece);
            }
            assert_eq!(series.digest(3), digest_of(&whole));
            assert_eq!(series.whole(3), whole);
            assert!(series.is_part(3, 0, &whole) && !series.is_part(4, 0, &whole));
            whole[size_bytes / 2] ^= 1;
            assert!(!series.is_part(3, 0, &whole));
        }
    }
}
