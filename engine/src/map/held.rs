//! Slots that reclaim emptied, and that a crash would fill again.
//!
//! Always true here: what reclaim drops is not logged one by one, only the retirement of its block; until a flush covers that, an opening
//! finds the block alive and all that was in it. So its slots are given to nobody before: the table would be fuller after a crash than
//! it may be, and what was put into them would find no place.

use super::table::Table;
use crate::format::types::Lsn;
use parking_lot::Mutex;

/// The held slots, by the entry that retired their block.
#[derive(Debug, Default)]
pub(crate) struct HeldSlots {
    retired: Mutex<Vec<(Lsn, Vec<u32>)>>,
}

impl HeldSlots {
    /// The block whose slots, one for each of `units`, are held was retired by the entry at `lsn`.
    pub(crate) fn retired(&self, lsn: Lsn, units: Vec<u32>) {
        self.retired.lock().push((lsn, units));
    }
    /// Everything up to `lsn` is durable: gives back what was held till then.
    pub(crate) fn durable(&self, lsn: Lsn, table: &Table) {
        // Collected first: a unit's lock is never taken under another.
        let due: Vec<_> = self.retired.lock().extract_if(.., |(at, _)| *at <= lsn).collect();
        for unit in due.into_iter().flat_map(|(_, units)| units) {
            table.release_held(unit);
        }
    }
    /// Whether a flush would give some back.
    pub(crate) fn wait_for_flush(&self) -> bool {
        !self.retired.lock().is_empty()
    }
}
