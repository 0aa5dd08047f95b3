//! The figures that engines of this shape are known to miss: entries lost at a high load of the table, what is touched and dropped all the
//! same, and how much is written and used for each byte that is accepted.

use crate::{
    common::*,
    disk::{MOVE, PUT, log_units, superblock},
    shared::stores::{full_store, small_store},
};
use blockstore_engine::{Engine, Key, device::SimDevice};
use std::time::Duration;

/// Sizes with which the table is full before the blocks are.
fn small(id: u64) -> usize {
    1900 + (id % 50) as usize
}

async fn put_all(engine: &Engine, ids: std::ops::Range<u64>, size: impl Fn(u64) -> usize, batch: usize) {
    for ids in ids.collect::<Vec<_>>().chunks(batch) {
        let items = ids.iter().map(|id| (content(*id), bytes(*id, size(*id)))).collect();
        for (id, result) in ids.iter().zip(engine.put_batch(items).await) {
            result.unwrap_or_else(|e| panic!("put {id}: {e}"));
        }
    }
}

async fn present(engine: &Engine, ids: impl Iterator<Item = u64>, size: impl Fn(u64) -> usize) -> Vec<u64> {
    let ids: Vec<u64> = ids.collect();
    let keys: Vec<(Key, Option<u64>)> = ids.iter().map(|id| (content(*id), Some(size(*id) as u64))).collect();
    ids.into_iter().zip(engine.lookup(&keys).await).filter_map(|(id, there)| there.then_some(id)).collect()
}

// The best known engine of this shape lost 0.6 to 12 % of what was durable, by the load of its table.
#[test]
fn whatever_the_load_of_the_table_no_insert_and_nothing_durable_is_lost() {
    for percent in [25, 50, 75, 80, 85] {
        let device = sim(40, percent);
        run(format(&device, Some(9_000)));
        let (kept, slots) = run(async {
            let (engine, _) = open(&device, options()).await;
            let slots = engine.stats().table_slots;
            let n = slots * percent / 100;
            put_all(&engine, 0..n, small, 100).await;
            // What reclaim drops for a full table is gone by now; below that nothing is.
            tokio::time::sleep(Duration::from_secs(5)).await;
            let kept = present(&engine, 0..n, small).await;
            let dropped = engine.stats().dropped_records;
            assert!(percent >= 80 || dropped == 0, "{percent} %: {dropped} dropped");
            assert_eq!(kept.len() as u64 + dropped, n, "{percent} %: an insert is gone that nothing dropped");
            engine.flush().await.expect("flush");
            // These may be lost with the power, and nothing else.
            put_all(&engine, 1_000_000..1_000_050, small, 50).await;
            (present(&engine, kept.into_iter(), small).await, slots)
        });
        if percent <= 75 {
            assert_eq!(kept.len() as u64, slots * percent / 100);
        } else {
            assert!(kept.len() as u64 > slots * 60 / 100, "{} of {slots}", kept.len());
        }
        for seed in 0..6 {
            let left = if seed % 2 == 0 { device.crash(seed) } else { device.snapshot_completed(seed) };
            run(async {
                let (engine, _) = open(&left, options()).await;
                let after = present(&engine, kept.iter().copied(), small).await;
                assert_eq!(after.len(), kept.len(), "{percent} % load: lost entries that were durable");
                for id in kept.iter().step_by(97) {
                    assert!(get(&engine, &content(*id), None).await == Some(bytes(*id, small(*id))), "{percent} %: {id}");
                }
            });
        }
    }
}

#[test]
fn promise_4_a_share_of_the_store_that_was_touched_is_there_when_w_was_accepted_after_it() {
    let device = small_store(21);
    run(async {
        let (engine, _) = open(&device, options()).await;
        let capacity = engine.stats().capacity_bytes;
        let size = |_| 9_000;
        let each = 9_500;
        // Three times over, so that blocks are being reclaimed all the time.
        let n = 3 * capacity / each;
        put_all(&engine, 0..n, size, 40).await;
        // A fifth of the capacity, put within the last window.
        let share: Vec<u64> = (n - capacity / 9 * 2 / each..n - capacity / 45 / each).collect();
        let mut next = 1_000_000;
        for _ in 0..12 {
            let until = engine.stats().accepted_bytes + capacity / 4 - 200_000;
            assert_eq!(present(&engine, share.iter().copied(), size).await.len(), share.len());
            while engine.stats().accepted_bytes < until {
                put_all(&engine, next..next + 10, size, 10).await;
                next += 10;
            }
        }
        assert_eq!(present(&engine, share.iter().copied(), size).await.len(), share.len());
        for id in &share {
            assert!(get(&engine, &content(*id), None).await == Some(bytes(*id, 9_000)), "{id}");
        }
        assert!(engine.stats().blocks_reclaimed > 60, "{:?}", engine.stats());
    });
}

// Forty uploads as large as a block, begun and broken off, wiped the best known engine of this shape.
#[test]
fn forty_aborted_uploads_leave_the_free_space_as_it_was() {
    let (device, _) = full_store(22);
    run(async {
        let (engine, _) = open(&device, options()).await;
        let live = engine.stats().live_bytes;
        let mut spare = 0;
        for id in 0..45u64 {
            if id == 5 {
                // The block that uploads fill is begun.
                tokio::time::sleep(Duration::from_secs(5)).await;
                spare = engine.stats().spare_blocks;
            }
            let blockstore_engine::Begin::Upload(mut upload) = engine.begin_upload(content(500_000 + id), MIB).await.expect("begin") else {
                panic!("new")
            };
            upload.write(&bytes(id, MIB as usize - 1)).await.expect("write");
            drop(upload);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        let after = engine.stats();
        assert_eq!((after.spare_blocks, after.live_bytes, after.dropped_records), (spare, live, 0), "{after:?}");
    });
}

/// Bytes written to the device for each byte of 1 KiB blobs put in batches of `batch`, while a store fills.
fn written_per_accepted(batch: usize) -> f64 {
    let device = sim(288, 1);
    run(async {
        format(&device, Some(270_000)).await;
        let (engine, _) = open(&device, options()).await;
        let formatted = device.handle().counters().bytes_written;
        let n = engine.stats().capacity_bytes * 85 / 100 / 1150;
        for first in (0..n).step_by(batch) {
            put_all(&engine, first..(first + batch as u64).min(n), |_| 1024, batch).await;
            // A client that sends 500 batches a second.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // More than its share of an image, which is written for every third of the ring.
        engine.checkpoint().await.expect("image");
        let stats = engine.stats();
        assert_eq!((stats.puts, stats.dropped_records), (n, 0), "{stats:?}");
        assert!(stats.images > 0, "{stats:?}");
        (device.handle().counters().bytes_written - formatted) as f64 / (n * 1024) as f64
    })
}

#[test]
fn filling_with_blobs_of_1_kib_writes_at_most_1_20_bytes_for_each_in_batches_of_512_and_1_25_in_batches_of_128() {
    let (large, small) = (written_per_accepted(512), written_per_accepted(128));
    println!("{large:.3} in batches of 512, {small:.3} of 128");
    assert!(large <= 1.20 && small <= 1.25, "{large:.3} {small:.3}");
    assert!(large > 1.06, "a record has a head: {large:.3}");
}

/// Bytes of blocks between the first and the last of the records that the log has in it, block by block.
fn placed_bytes(device: &SimDevice) -> u64 {
    let mut spans = std::collections::BTreeMap::new();
    for unit in log_units(device).iter().filter(|u| u.tag == PUT || u.tag == MOVE) {
        let span = spans.entry(unit.vbn).or_insert((u64::MAX, 0));
        *span = (span.0.min(unit.offset_bytes), span.1.max(unit.offset_bytes + unit.extent_bytes));
    }
    spans.values().map(|(start, end)| end - start).sum()
}

#[test]
fn one_at_a_time_blobs_of_300_bytes_take_at_most_one_and_a_half_times_their_bytes() {
    let device = small_store(23);
    let n = 5000u64;
    run(async {
        let (engine, _) = open(&device, options()).await;
        for id in 0..n {
            engine.put(content(id), bytes(id, 300)).await.expect("put");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(engine.stats().flushes > 5, "{:?}", engine.stats());
        engine.flush().await.expect("flush");
    });
    let units = log_units(&device).iter().filter(|u| u.tag == PUT).count() as u64;
    assert_eq!(units, n, "the ring still has every put");
    let ratio = placed_bytes(&device) as f64 / (n * 300) as f64;
    println!("{ratio:.3} bytes of blocks a byte, in {} blocks", superblock(&device, 0).block_count);
    assert!((1.2..=1.5).contains(&ratio), "{ratio:.3}");
}
