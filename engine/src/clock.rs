//! The age clock: it counts accepted bytes, not seconds, so that "recently" means the same for a busy and an idle store.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Ticks that the retention bound W spans.
pub(crate) const TICKS_PER_WINDOW: u64 = 4;

/// Ticks of W/4 accepted bytes.
#[derive(Debug)]
pub(crate) struct AgeClock {
    tick: AtomicU64,
    accepted_bytes: AtomicU64,
    tick_bytes: u64,
}

/// Accepted bytes that make a tick.
pub(crate) fn tick_bytes(capacity_bytes: u64) -> u64 {
    (capacity_bytes / 4 / TICKS_PER_WINDOW).max(1)
}

impl AgeClock {
    /// A clock for a store of `capacity_bytes`, whose W is a quarter of it.
    pub(crate) fn new(capacity_bytes: u64) -> Self {
        Self { tick: AtomicU64::new(0), accepted_bytes: AtomicU64::new(0), tick_bytes: tick_bytes(capacity_bytes) }
    }
    /// Starts at a tick that an image remembered.
    pub(crate) fn set_tick(&self, tick: u64) {
        self.tick.store(tick, Relaxed);
    }
    pub(crate) fn tick(&self) -> u64 {
        self.tick.load(Relaxed)
    }
    /// What a slot that is touched now is stamped with.
    pub(crate) fn stamp(&self) -> u8 {
        (self.tick() & 7) as u8
    }
    /// How many ticks ago a stamp was given, up to 7.
    pub(crate) fn age(&self, stamp: u8) -> u8 {
        (self.tick().wrapping_sub(u64::from(stamp)) & 7) as u8
    }
    /// Counts accepted bytes; true if a tick is due.
    pub(crate) fn accept(&self, bytes: u64) -> bool {
        self.accepted_bytes.fetch_add(bytes, Relaxed) + bytes >= self.tick_bytes
    }
    /// Whether a tick is due.
    pub(crate) fn due(&self) -> bool {
        self.accepted_bytes.load(Relaxed) >= self.tick_bytes
    }
    /// The stamps (from, to) that a sweep must change before the next tick, lest the oldest look new.
    pub(crate) fn stamps_before_tick(&self) -> (u8, u8) {
        let next = self.tick() + 1;
        ((next & 7) as u8, ((next + 1) & 7) as u8)
    }
    /// Goes to the next tick, after the sweep.
    pub(crate) fn advance(&self) {
        self.accepted_bytes.fetch_sub(self.tick_bytes.min(self.accepted_bytes.load(Relaxed)), Relaxed);
        self.tick.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_ages_by_one_a_tick_and_stays_at_seven() {
        let clock = AgeClock::new(1600);
        assert!(!clock.accept(99));
        assert!(clock.accept(1));
        let mut stamp = clock.stamp();
        for tick in 1..30u8 {
            let (from, to) = clock.stamps_before_tick();
            if stamp == from {
                stamp = to;
            }
            clock.advance();
            assert_eq!(clock.age(stamp), tick.min(7), "tick {tick}");
        }
    }
}
