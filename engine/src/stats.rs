//! Counters of everything that is bounded, slow or wrong; read by whoever exports metrics.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds, in microseconds, of the classes in which flushes are counted by how long they took; one class more has what took
/// longer. From the write cache of a good device to one that stands still.
pub const FLUSH_US_BOUNDS: [u64; 16] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000];

/// Flushes by how long they took: see [`FLUSH_US_BOUNDS`].
pub type FlushClasses = [u64; FLUSH_US_BOUNDS.len() + 1];

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Live counters. Each only grows while the store is open.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
            flush_classes: [AtomicU64; FLUSH_US_BOUNDS.len() + 1],
        }

        /// A reading of the counters and gauges of a store.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
            /// Flushes that ended, by how long they took: each class on its own, not those below it as well.
            pub flush_classes: FlushClasses,
            /// Bytes of the blocks that are not reserved.
            pub capacity_bytes: u64,
            /// Slots of the table in use.
            pub live_slots: u64,
            /// Slots of the table.
            pub table_slots: u64,
            /// Bytes of memory of the table.
            pub table_bytes: u64,
            /// Slots that moved to their second bucket.
            pub relocations: u64,
            /// Bytes of records that slots lead to (rounded up to length classes).
            pub live_bytes: u64,
            /// Blocks that are free or about to be.
            pub spare_blocks: u64,
            /// Milliseconds since the oldest block that holds something was begun; for one that was there when the store was opened,
            /// since then, because no time is kept on the device. 0 where no block holds anything.
            pub oldest_block_ms: u64,
            /// How old in milliseconds, in the same sense, the block was that was reclaimed last; 0 before the first.
            pub reclaimed_block_ms: u64,
            /// Pages of the log in use.
            pub log_used_pages: u64,
            /// Pages of the log.
            pub log_pages: u64,
            /// Bytes acknowledged and not yet flushed.
            pub unflushed_bytes: u64,
            /// Bytes that running uploads may still write.
            pub upload_held_bytes: u64,
            /// Bytes in the cache of verified records.
            pub cache_bytes: u64,
            /// Slots of the table kept for records that are on their way.
            pub reserved_slots: u64,
            /// Slots that reclaim emptied and that are nobody's until a flush covers the retirement of their block.
            pub held_slots: u64,
            /// Content keys that somebody is putting.
            pub flights: u64,
            /// Bytes of payloads on their way to the log.
            pub queued_bytes: u64,
            /// Requests that wait for the log or are being written to it.
            pub queued_requests: u64,
            /// Bytes of paged records that are being gathered and written.
            pub gathered_bytes: u64,
            /// Places in blocks that were given out and whose records are not yet logged.
            pub pending_places: u64,
            /// Uploads in parts that have not ended.
            pub uploads_running: u64,
            /// Bytes of their parts on the device that do not count as accepted yet.
            pub upload_unaccepted_bytes: u64,
            /// Bytes that aborted uploads left in the block that is being filled.
            pub upload_left_bytes: u64,
        }

        impl Counters {
            pub(crate) fn read(&self) -> Stats {
                let mut flush_classes = FlushClasses::default();
                for (class, n) in flush_classes.iter_mut().zip(&self.flush_classes) {
                    *class = n.load(Relaxed);
                }
                Stats { $($name: self.$name.load(Relaxed),)* flush_classes, ..Stats::default() }
            }
        }
    };
}

counters! {
    /// Objects stored (an object of many parts counts once).
    puts,
    /// Puts that found their content there.
    puts_present,
    /// Bytes of records accepted from clients.
    accepted_bytes,
    /// Bytes written to the device: records, log and images.
    written_bytes,
    /// Lookups and reads that found their key.
    hits,
    /// Lookups and reads that did not.
    misses,
    /// Reads answered from the cache of verified records.
    cache_hits,
    /// Records read from the device.
    record_reads,
    /// Batches written.
    batches,
    /// Flushes issued.
    flushes,
    /// Time spent in flushes, in microseconds.
    flush_us,
    /// Images completed.
    images,
    /// Blocks reclaimed.
    blocks_reclaimed,
    /// Reclaims that began because the table, not the blocks, was full.
    reclaims_for_table,
    /// Bytes of records copied out of reclaimed blocks.
    carried_bytes,
    /// Records dropped by reclaim.
    dropped_records,
    /// Records dropped although they were reported present less than the retention bound ago.
    retention_breaches,
    /// Time in which puts were held back, in microseconds: log ring, table or blocks full, or a flush overdue.
    slowed_us,
    /// Log entries voided when the store was opened.
    voided_entries,
    /// Damaged log pages and entries that were skipped when the store was opened.
    damaged_log,
    /// Damaged image units that were rebuilt or lost.
    damaged_image_units,
    /// Damaged block headers.
    damaged_block_heads,
    /// Records that failed a checksum or could not be read, and were dropped.
    damaged_records,
    /// Uploads that ended without being published.
    uploads_aborted,
    /// Uploads that waited for others to end.
    uploads_waited,
    /// Puts that waited for another put of the same content.
    puts_followed,
    /// Puts that took over from one that made no progress.
    puts_taken_over,
}

impl Counters {
    /// Counts a flush that took so long.
    pub(crate) fn flushed(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        count(&self.flush_us, us);
        let class = FLUSH_US_BOUNDS.iter().position(|bound_us| us <= *bound_us).unwrap_or(FLUSH_US_BOUNDS.len());
        if let Some(class) = self.flush_classes.get(class) {
            count(class, 1);
        }
    }
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_counts_in_the_class_whose_bound_it_does_not_pass() {
        let counters = Counters::default();
        for us in [0, 100, 101, 10_000_000, 10_000_001, u64::MAX / 2] {
            counters.flushed(Duration::from_micros(us));
        }
        let mut expected = FlushClasses::default();
        (expected[0], expected[1], expected[15], expected[16]) = (2, 1, 1, 2);
        assert_eq!(counters.read().flush_classes, expected);
    }
}
