//! Who has each block, and how many bytes and slots of it were last wanted in which tick.
//!
//! Always true here: the counters of a tenant are the sums over the slots that lead to it; the table changes both in one step,
//! under the lock of the slot's unit.

use crate::format::{
    layout::Layout,
    types::{LengthClass, Vbn},
};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Number of stamps: ticks are told apart modulo this.
pub(crate) const STAMPS: usize = 8;

#[derive(Debug, Default)]
struct Counts {
    tenant: AtomicU32,
    bytes: [AtomicU64; STAMPS],
    slots: [AtomicU32; STAMPS],
}

/// Bytes and slots by stamp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) bytes: [u64; STAMPS],
    pub(crate) slots: [u64; STAMPS],
}

/// All blocks' tenants and counters.
#[derive(Debug)]
pub(crate) struct Census {
    layout: Layout,
    blocks: Vec<Counts>,
}

impl Census {
    pub(crate) fn new(layout: Layout) -> Self {
        let blocks = (0..layout.block_count).map(|_| Counts::default()).collect();
        Self { layout, blocks }
    }
    fn counts(&self, vbn: Vbn) -> Option<&Counts> {
        self.layout.physical(vbn).and_then(|p| self.blocks.get(p as usize))
    }
    /// Whether `vbn` is the tenant that its block has now.
    pub(crate) fn is_live(&self, vbn: Vbn) -> bool {
        self.counts(vbn).is_some_and(|c| c.tenant.load(Relaxed) == vbn.0)
    }
    /// Gives block `physical` to `vbn`, or to nobody.
    pub(crate) fn set_tenant(&self, physical: u32, vbn: Vbn) {
        if let Some(c) = self.blocks.get(physical as usize) {
            c.tenant.store(vbn.0, Relaxed);
        }
    }
    pub(crate) fn add(&self, vbn: Vbn, stamp: u8, class: LengthClass) {
        if let Some(c) = self.counts(vbn) {
            c.bytes[usize::from(stamp & 7)].fetch_add(u64::from(class.bytes_max()), Relaxed);
            c.slots[usize::from(stamp & 7)].fetch_add(1, Relaxed);
        }
    }
    pub(crate) fn subtract(&self, vbn: Vbn, stamp: u8, class: LengthClass) {
        if let Some(c) = self.counts(vbn) {
            c.bytes[usize::from(stamp & 7)].fetch_sub(u64::from(class.bytes_max()), Relaxed);
            c.slots[usize::from(stamp & 7)].fetch_sub(1, Relaxed);
        }
    }
    /// What the slots that lead to block `physical` add up to.
    pub(crate) fn tally(&self, physical: u32) -> Tally {
        let mut tally = Tally::default();
        if let Some(c) = self.blocks.get(physical as usize) {
            for (sum, n) in tally.bytes.iter_mut().zip(&c.bytes) {
                *sum = n.load(Relaxed);
            }
            for (sum, n) in tally.slots.iter_mut().zip(&c.slots) {
                *sum = u64::from(n.load(Relaxed));
            }
        }
        tally
    }
    /// The sum over all blocks.
    pub(crate) fn total(&self) -> Tally {
        let mut total = Tally::default();
        for physical in 0..self.layout.block_count {
            let tally = self.tally(physical);
            for i in 0..STAMPS {
                total.bytes[i] += tally.bytes[i];
                total.slots[i] += tally.slots[i];
            }
        }
        total
    }
    /// Slots that lead to block `physical`.
    pub(crate) fn slots(&self, physical: u32) -> u64 {
        self.tally(physical).slots.iter().sum()
    }
    /// Empty sums over all blocks, to be filled apart from the counters and added to them at once.
    pub(crate) fn tallies(&self) -> Tallies<'_> {
        Tallies { census: self, of: vec![Tally::default(); self.blocks.len()] }
    }
    pub(crate) fn add_all(&self, tallies: &Tallies<'_>) {
        for (counts, tally) in self.blocks.iter().zip(&tallies.of) {
            for (n, sum) in counts.bytes.iter().zip(tally.bytes) {
                n.fetch_add(sum, Relaxed);
            }
            for (n, sum) in counts.slots.iter().zip(tally.slots) {
                n.fetch_add(u32::try_from(sum).unwrap_or(u32::MAX), Relaxed);
            }
        }
    }
    /// Forgets all counters, for a recount.
    pub(crate) fn clear_counts(&self) {
        for c in &self.blocks {
            c.bytes.iter().for_each(|n| n.store(0, Relaxed));
            c.slots.iter().for_each(|n| n.store(0, Relaxed));
        }
    }
}

/// Sums over slots, by the block that they lead to.
pub(crate) struct Tallies<'a> {
    census: &'a Census,
    of: Vec<Tally>,
}

impl Tallies<'_> {
    /// Counts a slot if `vbn` is the tenant that its block has now, and says whether it is.
    pub(crate) fn add(&mut self, vbn: Vbn, stamp: u8, class: LengthClass) -> bool {
        let Some(physical) = self.census.layout.physical(vbn).map(|p| p as usize) else { return false };
        let live = self.census.blocks.get(physical).is_some_and(|c| c.tenant.load(Relaxed) == vbn.0);
        let Some(tally) = self.of.get_mut(physical).filter(|_| live) else { return false };
        tally.bytes[usize::from(stamp & 7)] += u64::from(class.bytes_max());
        tally.slots[usize::from(stamp & 7)] += 1;
        true
    }
}
