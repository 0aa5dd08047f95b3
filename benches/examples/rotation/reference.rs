//! The policies to compare with, over objects of different sizes: each evicts one object after the other until the new one fits.
//!
//! Always true here: the bytes held never exceed the capacity; an object that is larger than that is never held.

use std::collections::{BTreeMap, VecDeque};

/// A cache that knows objects by number.
pub(crate) trait Policy {
    /// Asks for an object and stores it if it is not there, in `bytes`. Whether it was there.
    fn access(&mut self, object: u32, bytes: u64) -> bool;
}

/// Exact LRU.
#[derive(Debug, Default)]
pub(crate) struct Lru {
    capacity_bytes: u64,
    held_bytes: u64,
    now: u64,
    /// By the time of the last access.
    order: BTreeMap<u64, u32>,
    /// Bytes and time of the last access of what is held.
    held: Vec<Option<(u64, u64)>>,
}

impl Lru {
    pub(crate) fn new(capacity_bytes: u64, objects: usize) -> Self {
        Self { capacity_bytes, held: vec![None; objects], ..Self::default() }
    }
}

impl Policy for Lru {
    fn access(&mut self, object: u32, bytes: u64) -> bool {
        self.now += 1;
        let hit = match &mut self.held[object as usize] {
            Some((_, time)) => {
                self.order.remove(time);
                *time = self.now;
                true
            }
            None if bytes > self.capacity_bytes => return false,
            none => {
                *none = Some((bytes, self.now));
                self.held_bytes += bytes;
                false
            }
        };
        self.order.insert(self.now, object);
        while self.held_bytes > self.capacity_bytes
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.held_bytes -= self.held[oldest as usize].take().map_or(0, |(bytes, _)| bytes);
        }
        hit
    }
}

/// First in, first out.
#[derive(Debug, Default)]
pub(crate) struct Fifo {
    capacity_bytes: u64,
    held_bytes: u64,
    order: VecDeque<(u32, u64)>,
    held: Vec<bool>,
}

impl Fifo {
    pub(crate) fn new(capacity_bytes: u64, objects: usize) -> Self {
        Self { capacity_bytes, held: vec![false; objects], ..Self::default() }
    }
}

impl Policy for Fifo {
    fn access(&mut self, object: u32, bytes: u64) -> bool {
        if self.held[object as usize] {
            return true;
        }
        if bytes > self.capacity_bytes {
            return false;
        }
        while self.held_bytes + bytes > self.capacity_bytes
            && let Some((oldest, bytes)) = self.order.pop_front()
        {
            self.held[oldest as usize] = false;
            self.held_bytes -= bytes;
        }
        self.held[object as usize] = true;
        self.held_bytes += bytes;
        self.order.push_back((object, bytes));
        false
    }
}

/// Highest count of accesses that S3-FIFO keeps: two bits.
const FREQUENCY_MAX: u8 = 3;

/// S3-FIFO (Yang and others, SOSP 2023): a small queue of a tenth of the bytes, a main queue, and a ghost queue of names that is as
/// long as the main queue may be.
#[derive(Debug, Default)]
pub(crate) struct S3Fifo {
    capacity_bytes: u64,
    small_bytes_max: u64,
    small: Queue,
    main: Queue,
    /// Bytes of the ghosts that have not come back, and their names; those that have are still in the queue, without bytes.
    ghost: Queue,
    /// Evictions from the small queue so far: the number of the next ghost.
    ghosts: u64,
    /// Where each object is, and how often it was asked for since it came.
    state: Vec<(Place, u8)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Nowhere,
    Small,
    Main,
    /// With its number.
    Ghost(u64),
}

#[derive(Debug, Default)]
struct Queue {
    bytes: u64,
    order: VecDeque<(u32, u64)>,
}

impl Queue {
    fn push(&mut self, object: u32, bytes: u64) {
        self.bytes += bytes;
        self.order.push_back((object, bytes));
    }
    fn pop(&mut self) -> Option<(u32, u64)> {
        let (object, bytes) = self.order.pop_front()?;
        self.bytes -= bytes;
        Some((object, bytes))
    }
}

impl S3Fifo {
    pub(crate) fn new(capacity_bytes: u64, objects: usize) -> Self {
        Self { capacity_bytes, small_bytes_max: capacity_bytes / 10, state: vec![Default::default(); objects], ..Self::default() }
    }
    fn evict(&mut self) {
        if self.small.bytes >= self.small_bytes_max || self.main.order.is_empty() { self.evict_small() } else { self.evict_main() }
    }
    fn evict_small(&mut self) {
        while let Some((object, bytes)) = self.small.pop() {
            let (place, frequency) = &mut self.state[object as usize];
            if *frequency > 1 {
                *place = Place::Main;
                self.main.push(object, bytes);
                if self.main.bytes > self.capacity_bytes - self.small_bytes_max {
                    self.evict_main();
                }
            } else {
                *place = Place::Ghost(self.ghosts);
                self.ghosts += 1;
                self.ghost.push(object, bytes);
                self.trim_ghosts();
                return;
            }
        }
    }
    fn evict_main(&mut self) {
        while let Some((object, bytes)) = self.main.pop() {
            let (place, frequency) = &mut self.state[object as usize];
            if *frequency == 0 {
                *place = Place::Nowhere;
                return;
            }
            *frequency -= 1;
            self.main.push(object, bytes);
        }
    }
    fn trim_ghosts(&mut self) {
        while self.ghost.bytes > self.capacity_bytes - self.small_bytes_max
            && let Some((object, bytes)) = self.ghost.order.pop_front()
        {
            let number = self.ghosts - self.ghost.order.len() as u64 - 1;
            let (place, _) = &mut self.state[object as usize];
            if *place == Place::Ghost(number) {
                *place = Place::Nowhere;
                self.ghost.bytes -= bytes;
            }
        }
    }
}

impl Policy for S3Fifo {
    fn access(&mut self, object: u32, bytes: u64) -> bool {
        let (place, frequency) = &mut self.state[object as usize];
        if matches!(place, Place::Small | Place::Main) {
            *frequency = (*frequency + 1).min(FREQUENCY_MAX);
            return true;
        }
        if bytes > self.capacity_bytes {
            return false;
        }
        // Taken out of the ghosts before the evictions that make room for it add to them.
        let known = matches!(place, Place::Ghost(_));
        *place = Place::Nowhere;
        self.ghost.bytes -= if known { bytes } else { 0 };
        while self.small.bytes + self.main.bytes + bytes > self.capacity_bytes {
            self.evict();
        }
        let place = if known { Place::Main } else { Place::Small };
        self.state[object as usize] = (place, 0);
        if known {
            self.main.push(object, bytes)
        } else {
            self.small.push(object, bytes)
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn misses(policy: &mut dyn Policy, objects: &[u32]) -> String {
        objects.iter().map(|object| if policy.access(*object, 10) { '.' } else { 'x' }).collect()
    }

    #[test]
    fn lru_evicts_what_was_asked_for_longest_ago() {
        let mut lru = Lru::new(30, 10);
        assert_eq!(misses(&mut lru, &[1, 2, 3, 1, 4, 2, 1, 3]), "xxx.xx.x");
        // One of another size: the two oldest make room for it, and one that fits nowhere changes nothing.
        assert!(!lru.access(5, 15) && !lru.access(6, 31));
        assert_eq!(misses(&mut lru, &[5, 3, 2, 1]), "..xx");
    }

    #[test]
    fn fifo_evicts_what_came_first_however_often_it_was_asked_for() {
        let mut fifo = Fifo::new(30, 10);
        assert_eq!(misses(&mut fifo, &[1, 2, 3, 1, 4, 2, 1, 3]), "xxx.x.x.");
        assert!(!fifo.access(5, 31));
        assert_eq!(misses(&mut fifo, &[3, 4, 1, 2]), "...x");
    }

    #[test]
    fn s3_fifo_keeps_what_was_asked_for_again_from_what_is_asked_for_once() {
        // 100 bytes: ten objects, one of them in the small queue once the main queue is full.
        let mut cache = S3Fifo::new(100, 200);
        assert_eq!(misses(&mut cache, &[1, 2, 1, 2, 1, 2]), "xx....");
        let scan: Vec<u32> = (100..140).collect();
        assert!(misses(&mut cache, &scan).bytes().all(|b| b == b'x'));
        // LRU and FIFO would have lost them.
        assert_eq!(misses(&mut cache, &[1, 2]), "..");
    }

    #[test]
    fn s3_fifo_takes_a_ghost_into_the_main_queue() {
        let mut cache = S3Fifo::new(100, 200);
        let first: Vec<u32> = (0..10).collect();
        // Two more push out 0 and 1, each asked for once; both come back as ghosts, into the main queue, and push out 2 and 3.
        assert_eq!(misses(&mut cache, &first), "xxxxxxxxxx");
        assert_eq!(misses(&mut cache, &[10, 11, 0, 1]), "xxxx");
        let scan: Vec<u32> = (100..130).collect();
        misses(&mut cache, &scan);
        assert_eq!(misses(&mut cache, &[0, 1, 2, 3]), "..xx");
    }

    #[test]
    fn s3_fifo_forgets_ghosts_that_are_longer_ago_than_the_main_queue_is_long() {
        let mut cache = S3Fifo::new(100, 200);
        let scan: Vec<u32> = (100..130).collect();
        assert_eq!(misses(&mut cache, &[1]), "x");
        misses(&mut cache, &scan);
        // A ghost no more: it goes into the small queue again and is pushed out by ten others.
        assert_eq!(misses(&mut cache, &[1]), "x");
        let scan: Vec<u32> = (130..140).collect();
        misses(&mut cache, &scan);
        assert_eq!(misses(&mut cache, &[1]), "x");
    }

    #[test]
    fn no_policy_holds_more_than_its_capacity() {
        let mut random = blockstore_tests::blob::Random::new(1);
        let (mut lru, mut fifo, mut s3) = (Lru::new(1000, 100), Fifo::new(1000, 100), S3Fifo::new(1000, 100));
        for _ in 0..20_000 {
            let object = random.below(100) as u32;
            let bytes = 1 + u64::from(object) * 7;
            lru.access(object, bytes);
            fifo.access(object, bytes);
            s3.access(object, bytes);
            let held = |queue: &Queue| queue.order.iter().map(|(_, bytes)| bytes).sum::<u64>();
            assert!(lru.held_bytes <= 1000 && fifo.held_bytes <= 1000 && held(&s3.small) + held(&s3.main) <= 1000);
            let ghosts = s3.state.iter().zip(0u64..).filter(|((place, _), _)| matches!(place, Place::Ghost(_)));
            assert_eq!(ghosts.map(|(_, object)| 1 + object * 7).sum::<u64>(), s3.ghost.bytes);
            assert!(s3.ghost.bytes <= 900);
        }
    }
}
