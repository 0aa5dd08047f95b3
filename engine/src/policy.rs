//! Which block is emptied next, and what of it is still wanted.

use crate::{
    clock::TICKS_PER_WINDOW,
    map::census::{STAMPS, Tally},
};

/// What a policy may look at: one sealed block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) physical: u32,
    /// By age in ticks, not by stamp.
    pub(crate) by_age: Tally,
}

/// The state of the store as a policy sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pressure {
    /// All blocks together, by age.
    pub(crate) total: Tally,
    pub(crate) capacity_bytes: u64,
    pub(crate) block_bytes: u64,
    pub(crate) slots_max: u64,
    /// The table, not the blocks, is short.
    pub(crate) for_table: bool,
}

/// A decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) physical: u32,
    /// Records up to this age are carried forward; `None`: none are.
    pub(crate) age_max: Option<u8>,
}

/// Decides what reclaim does. `candidates` are ordered from the oldest.
pub(crate) trait ReclaimPolicy: Send + Sync {
    fn choose(&self, candidates: &[Candidate], pressure: &Pressure) -> Option<Choice>;
}

/// Empties the block with the fewest bytes still wanted; wanted is what was touched within an age that keeps the sum of it under
/// three quarters of the capacity, and of the slots where the table is short.
#[derive(Debug)]
pub(crate) struct FewestWanted;

fn up_to(by_age: &[u64; STAMPS], age: u8) -> u64 {
    by_age.iter().take(usize::from(age) + 1).sum()
}

impl FewestWanted {
    fn age_max(pressure: &Pressure) -> u8 {
        // Only for the table's sake do slots count: where blocks are short, what is carried forward takes no more of them.
        let slots_fit = |age: u8| !pressure.for_table || up_to(&pressure.total.slots, age) <= pressure.slots_max / 4 * 3;
        let fits = |age: &u8| up_to(&pressure.total.bytes, *age) <= pressure.capacity_bytes / 4 * 3 && slots_fit(*age);
        (0..STAMPS as u8).rev().find(fits).unwrap_or(0)
    }
}

impl ReclaimPolicy for FewestWanted {
    fn choose(&self, candidates: &[Candidate], pressure: &Pressure) -> Option<Choice> {
        let mut age = Self::age_max(pressure);
        loop {
            // A reclaim must gain something: at least an eighth of a block, or of its slots where the table is short.
            let gain = |c: &Candidate| {
                let all: u64 = c.by_age.slots.iter().sum();
                if pressure.for_table {
                    all - up_to(&c.by_age.slots, age)
                } else {
                    pressure.block_bytes.saturating_sub(up_to(&c.by_age.bytes, age))
                }
            };
            let enough = |c: &Candidate| {
                let all: u64 = c.by_age.slots.iter().sum();
                let whole = if pressure.for_table { all.max(1) } else { pressure.block_bytes };
                gain(c) * 8 >= whole
            };
            // `max_by_key` takes the last of equals, so from the youngest to the oldest.
            if let Some(best) = candidates.iter().rev().filter(|c| enough(c)).max_by_key(|c| gain(c)) {
                return Some(Choice { physical: best.physical, age_max: Some(age) });
            }
            match age.checked_sub(1) {
                Some(younger) => age = younger,
                // Everything was touched within one tick: nothing says what is wanted least but the order of arrival.
                None => return candidates.first().map(|c| Choice { physical: c.physical, age_max: None }),
            }
        }
    }
}

/// Whether dropping a record of this age breaks the retention bound.
pub(crate) fn breaches(age: u8) -> bool {
    u64::from(age) < TICKS_PER_WINDOW
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(physical: u32, bytes: [u64; STAMPS]) -> Candidate {
        Candidate { physical, by_age: Tally { bytes, slots: bytes.map(|b| b / 10) } }
    }
    fn pressure(candidates: &[Candidate], for_table: bool) -> Pressure {
        let mut total = Tally::default();
        for c in candidates {
            for i in 0..STAMPS {
                total.bytes[i] += c.by_age.bytes[i];
                total.slots[i] += c.by_age.slots[i];
            }
        }
        Pressure { total, capacity_bytes: 4000, block_bytes: 1000, slots_max: 1000, for_table }
    }

    #[test]
    fn the_block_with_the_fewest_wanted_bytes_goes_first_and_of_equals_the_oldest() {
        let blocks = [
            candidate(0, [500, 0, 0, 0, 0, 0, 0, 400]),
            candidate(1, [100, 0, 0, 0, 0, 0, 0, 900]),
            candidate(2, [100, 0, 0, 0, 0, 0, 0, 0]),
            candidate(3, [0, 700, 0, 0, 0, 0, 0, 300]),
        ];
        let choice = FewestWanted.choose(&blocks, &pressure(&blocks, false)).unwrap();
        // All of it is 3,000 bytes, just three quarters of the capacity: everything is wanted.
        assert_eq!(choice, Choice { physical: 2, age_max: Some(7) });
        let more = [&blocks[..], &[candidate(4, [0, 0, 0, 0, 0, 0, 0, 1000])]].concat();
        let choice = FewestWanted.choose(&more, &pressure(&more, false)).unwrap();
        assert_eq!(choice, Choice { physical: 4, age_max: Some(6) });
    }

    #[test]
    fn where_everything_is_young_the_oldest_block_goes_as_a_whole() {
        let blocks = [candidate(0, [1000, 0, 0, 0, 0, 0, 0, 0]), candidate(1, [990, 0, 0, 0, 0, 0, 0, 0])];
        assert_eq!(FewestWanted.choose(&blocks, &pressure(&blocks, false)), Some(Choice { physical: 0, age_max: None }));
        assert_eq!(FewestWanted.choose(&[], &pressure(&[], false)), None);
    }

    #[test]
    fn where_the_table_is_short_the_block_that_frees_most_slots_goes() {
        let blocks = [candidate(0, [0, 0, 0, 0, 0, 0, 0, 200]), candidate(1, [0, 0, 0, 0, 0, 0, 0, 9000])];
        let choice = FewestWanted.choose(&blocks, &pressure(&blocks, true)).unwrap();
        assert_eq!(choice.physical, 1);
    }
}
