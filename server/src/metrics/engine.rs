//! The figures of the engine and its device.

use blockstore_engine::{
    Engine, FLUSH_US_BOUNDS, Stats,
    device::{DeviceCounters, PAGE_BYTES, buffer_pool_stats},
};

use super::families::Families;

/// Reads an engine's figures.
pub fn read(engine: &Engine, families: &mut Families) {
    let writable = if engine.poisoned().is_some() { 0.0 } else { 1.0 };
    families.gauge("blockstore_engine_writable", "1, or 0 once a failed write or flush turned writing off.", writable);
    stats(&engine.stats(), families);
    device(&engine.device_counters(), families);
    let pool = buffer_pool_stats();
    let states = [("kept", pool.retained_bytes as f64), ("lent", pool.lent_bytes as f64)];
    families.gauges("blockstore_io_buffers_bytes", "Memory of buffers for I/O: kept for the next, or held by somebody.", "state", &states);
}

/// A family: name, help and what it shows.
type Figure = (&'static str, &'static str, fn(&Stats) -> u64);

const COUNTERS: [Figure; 21] = [
    ("blockstore_engine_puts_total", "Objects stored; one of many parts counts once.", |s| s.puts),
    ("blockstore_engine_puts_present_total", "Puts that found their content there.", |s| s.puts_present),
    ("blockstore_engine_puts_followed_total", "Puts that waited for another put of the same content.", |s| s.puts_followed),
    ("blockstore_engine_puts_taken_over_total", "Puts that took over from one that stood still.", |s| s.puts_taken_over),
    ("blockstore_engine_accepted_bytes_total", "Bytes of records accepted from clients.", |s| s.accepted_bytes),
    ("blockstore_engine_written_bytes_total", "Bytes written to the device: records, log and images.", |s| s.written_bytes),
    ("blockstore_engine_hits_total", "Lookups and reads that found their key.", |s| s.hits),
    ("blockstore_engine_misses_total", "Lookups and reads that did not.", |s| s.misses),
    ("blockstore_engine_cache_hits_total", "Reads answered from the cache of verified records.", |s| s.cache_hits),
    ("blockstore_engine_record_reads_total", "Records read from the device.", |s| s.record_reads),
    ("blockstore_engine_batches_total", "Batches written to the log.", |s| s.batches),
    ("blockstore_engine_images_total", "Images of the index that were completed.", |s| s.images),
    ("blockstore_engine_reclaimed_blocks_total", "Blocks reclaimed.", |s| s.blocks_reclaimed),
    ("blockstore_engine_reclaims_for_table_total", "Reclaims that began because the index was full, not the blocks.", |s| {
        s.reclaims_for_table
    }),
    ("blockstore_engine_carried_bytes_total", "Bytes of records carried forward out of reclaimed blocks.", |s| s.carried_bytes),
    ("blockstore_engine_dropped_records_total", "Records dropped by reclaim.", |s| s.dropped_records),
    ("blockstore_engine_retention_breaches_total", "Records dropped although they were wanted within the retention bound.", |s| {
        s.retention_breaches
    }),
    ("blockstore_engine_relocated_slots_total", "Slots of the index that moved to their second bucket.", |s| s.relocations),
    ("blockstore_engine_voided_entries_total", "Entries of the log that nothing durable stood behind at the start.", |s| s.voided_entries),
    ("blockstore_engine_aborted_uploads_total", "Uploads that ended without being published.", |s| s.uploads_aborted),
    ("blockstore_engine_delayed_uploads_total", "Uploads that waited for others to end.", |s| s.uploads_waited),
];

const GAUGES: [Figure; 22] = [
    ("blockstore_engine_capacity_bytes", "Bytes of the blocks that are not reserved.", |s| s.capacity_bytes),
    ("blockstore_engine_live_bytes", "Bytes of the records that are there.", |s| s.live_bytes),
    ("blockstore_engine_objects", "Slots of the index in use: objects, and parts of large ones.", |s| s.live_slots),
    ("blockstore_engine_table_slots", "Slots of the index.", |s| s.table_slots),
    ("blockstore_engine_table_bytes", "Memory of the index.", |s| s.table_bytes),
    ("blockstore_engine_reserved_slots", "Slots of the index that are kept for records on their way.", |s| s.reserved_slots),
    ("blockstore_engine_held_slots", "Slots of the index that become free with the next flush.", |s| s.held_slots),
    ("blockstore_engine_spare_blocks", "Blocks that are free or about to be.", |s| s.spare_blocks),
    ("blockstore_engine_log_used_bytes", "Bytes of the log that a start would read.", |s| s.log_used_pages * PAGE_BYTES as u64),
    ("blockstore_engine_log_bytes", "Bytes of the log.", |s| s.log_pages * PAGE_BYTES as u64),
    ("blockstore_engine_unflushed_bytes", "Bytes acknowledged and not yet flushed.", |s| s.unflushed_bytes),
    ("blockstore_engine_cache_bytes", "Bytes in the cache of verified records.", |s| s.cache_bytes),
    ("blockstore_engine_queued_requests", "Requests that wait for the log or are being written to it.", |s| s.queued_requests),
    ("blockstore_engine_queued_bytes", "Bytes of payloads on their way to the log.", |s| s.queued_bytes),
    ("blockstore_engine_gathered_bytes", "Bytes of large records that are being gathered and written.", |s| s.gathered_bytes),
    ("blockstore_engine_running_puts", "Keys of content that somebody is putting.", |s| s.flights),
    ("blockstore_engine_pending_places", "Places in blocks that were given out and are not yet logged.", |s| s.pending_places),
    ("blockstore_engine_running_uploads", "Uploads in parts that have not ended.", |s| s.uploads_running),
    ("blockstore_engine_upload_held_bytes", "Bytes that running uploads may still write.", |s| s.upload_held_bytes),
    ("blockstore_engine_upload_unaccepted_bytes", "Bytes on the device of uploads in parts that have not ended.", |s| {
        s.upload_unaccepted_bytes
    }),
    ("blockstore_engine_upload_left_bytes", "Bytes that aborted uploads left in the block that is being filled.", |s| s.upload_left_bytes),
    ("blockstore_engine_reserved_bytes", "Bytes on their way: held by uploads, gathered and queued.", reserved_bytes),
];

/// Bytes that are kept for what is on its way in.
pub fn reserved_bytes(stats: &Stats) -> u64 {
    stats.upload_held_bytes.saturating_add(stats.gathered_bytes).saturating_add(stats.queued_bytes)
}

fn stats(stats: &Stats, families: &mut Families) {
    for (name, help, value) in COUNTERS {
        families.counter(name, help, value(stats) as f64);
    }
    for (name, help, value) in GAUGES {
        families.gauge(name, help, value(stats) as f64);
    }
    families.counters(
        "blockstore_engine_damaged_total",
        "What failed a checksum or could not be read, and was skipped or dropped.",
        "what",
        &[
            ("log_entry", stats.damaged_log as f64),
            ("image_unit", stats.damaged_image_units as f64),
            ("block_head", stats.damaged_block_heads as f64),
            ("record", stats.damaged_records as f64),
        ],
    );
    families.counter(
        "blockstore_engine_slowed_seconds_total",
        "Time in which puts were held back: log, index or blocks full, or a flush overdue.",
        stats.slowed_us as f64 / 1e6,
    );
    families.gauge(
        "blockstore_engine_oldest_block_age_seconds",
        "Age of the oldest block that holds something; for one from before the start, the time since.",
        stats.oldest_block_ms as f64 / 1e3,
    );
    families.gauge(
        "blockstore_engine_reclaimed_block_age_seconds",
        "How old, in the same sense, the block was that was reclaimed last: how long things stay.",
        stats.reclaimed_block_ms as f64 / 1e3,
    );
    families.counter("blockstore_engine_flushes_total", "Flushes that were issued.", stats.flushes as f64);
    families.histogram(
        "blockstore_engine_flush_duration_seconds",
        "Time of flushes of the device.",
        FLUSH_US_BOUNDS.map(|us| us as f64 / 1e6),
        &stats.flush_classes,
        stats.flush_us as f64 / 1e6,
    );
}

fn device(counters: &DeviceCounters, families: &mut Families) {
    let operations = [("read", counters.reads as f64), ("write", counters.writes as f64), ("flush", counters.flushes as f64)];
    families.counters("blockstore_device_operations_total", "Operations of the device that were answered.", "operation", &operations);
    let bytes = [("read", counters.bytes_read as f64), ("write", counters.bytes_written as f64)];
    families.counters("blockstore_device_bytes_total", "Bytes that the device read and wrote.", "operation", &bytes);
    families.counter("blockstore_device_errors_total", "Operations that were answered with an error.", counters.failed as f64);
    families.counter("blockstore_device_slow_operations_total", "Operations that took longer than 10 s.", counters.slow as f64);
    families.gauge(
        "blockstore_device_running_operations",
        "Operations that the device was given and has not answered.",
        counters.in_flight as f64,
    );
}
