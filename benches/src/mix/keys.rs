//! Which blob is next: the newest are asked for most.
//!
//! Keys are numbered in the order in which they are first written. Reads choose one of the `keys` newest by its rank (0 is the newest)
//! from a Zipf distribution, whose exponent of 0 means evenly; writes make the next one, so that the set that is read moves on and
//! a store rotates, as it does under a build. The very newest, which may be on their way still, are not read.
//!
//! Always true here: size and bytes of a blob follow from seed and number alone; nothing is kept for a key.

use super::{Key, sizes::Sizes};
use blockstore_tests::blob::Random;
use rand::{TryRng, distr::Distribution};
use rand_distr::Zipf;
use std::{
    convert::Infallible,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// The keys that there are, and which of them are asked for.
#[derive(Debug)]
pub(super) struct Keys {
    seed: u64,
    sizes: Sizes,
    count: u64,
    unread: u64,
    ranks: Zipf<f64>,
    /// Keys below this one were written, or count as such.
    next: AtomicU64,
}

impl Keys {
    /// `count`, which is above zero, are read, but not so many that are newer. All of them count as written at first.
    pub(super) fn new(seed: u64, sizes: Sizes, count: u64, exponent: f64, unread: u64) -> Result<Self, String> {
        let ranks = Zipf::new(count as f64, exponent).map_err(|error| format!("--keys {count} --zipf {exponent}: {error}"))?;
        Ok(Self { seed, sizes, count, unread, ranks, next: AtomicU64::new(count + unread) })
    }

    /// How many keys there are, from 0 on.
    pub(super) fn written(&self) -> u64 {
        self.next.load(Relaxed)
    }

    /// The key of this number.
    pub(super) fn key(&self, number: u64) -> Key {
        let mut random = Random::new(Random::new(number).next() ^ self.seed);
        Key { number, size_bytes: self.sizes.pick(&mut random) }
    }

    /// One that is new from now on.
    pub(super) fn fresh(&self) -> Key {
        self.key(self.next.fetch_add(1, Relaxed))
    }

    /// One to read.
    pub(super) fn pick(&self, random: &mut Random) -> Key {
        let rank = (self.ranks.sample(&mut Source(random)) as u64).clamp(1, self.count);
        self.key(self.written() - self.unread - rank)
    }
}

/// Our random numbers for a distribution.
struct Source<'a>(&'a mut Random);

impl TryRng for Source<'_> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok((self.0.next() >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.0.next())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.0.next().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(count: u64, exponent: f64) -> Vec<usize> {
        let keys = Keys::new(1, Sizes::Small, count, exponent, 3).unwrap();
        let mut random = Random::new(2);
        let mut ranks = vec![0; count as usize];
        (0..100_000).for_each(|_| ranks[(count - 1 - keys.pick(&mut random).number) as usize] += 1);
        ranks
    }

    #[test]
    fn ranks_follow_the_exponent() {
        let even = ranks(10, 0.0);
        assert!(even.iter().all(|count| count.abs_diff(10_000) < 500), "{even:?}");
        // With exponent 1, rank r has 1/r of what the first one has: 1 / (1 + 1/2 + … + 1/10) of all.
        let skewed = ranks(10, 1.0);
        for (rank, count) in (1..).zip(&skewed) {
            let expected = 100_000.0 / 2.928_968 / f64::from(rank);
            assert!((*count as f64 / expected - 1.0).abs() < 0.05, "rank {rank}: {count}, expected {expected}");
        }
    }

    #[test]
    fn the_keys_that_are_read_move_on_with_writes() {
        let keys = Keys::new(1, Sizes::Small, 10, 0.0, 2).unwrap();
        let fresh: Vec<_> = (0..90).map(|_| keys.fresh().number).collect();
        assert_eq!(fresh, (12..102).collect::<Vec<_>>());
        let mut random = Random::new(2);
        let mut read: Vec<_> = (0..1000).map(|_| keys.pick(&mut random).number).collect();
        read.sort_unstable();
        read.dedup();
        assert_eq!(read, (90..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_key_has_one_size_in_every_run_of_its_seed() {
        let sizes = |seed| {
            let keys = Keys::new(seed, Sizes::Small, 1, 0.0, 0).unwrap();
            (0..100).map(|number| keys.key(number).size_bytes).collect::<Vec<_>>()
        };
        assert_eq!(sizes(1), sizes(1));
        assert_ne!(sizes(1), sizes(2));
        assert!(sizes(1).iter().any(|size_bytes| *size_bytes != sizes(1)[0]));
    }
}
