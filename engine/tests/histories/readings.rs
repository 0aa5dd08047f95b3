//! What an operator reads off a running store, beside the counters that other histories look at.

use crate::{
    common::*,
    shared::stores::{full_store, small_store},
};
use std::time::Duration;

#[test]
fn the_oldest_block_ages_from_its_first_record_on_and_at_least_from_the_opening() {
    let device = small_store(31);
    run(async {
        let (engine, _) = open(&device, options()).await;
        tokio::time::sleep(Duration::from_secs(1000)).await;
        assert_eq!(engine.stats().oldest_block_ms, 0, "nothing is there that could be old");
        engine.put(content(1), bytes(1, 60_000)).await.expect("put");
        tokio::time::sleep(Duration::from_secs(100)).await;
        engine.put(content(2), bytes(2, 60_000)).await.expect("put");
        let stats = engine.stats();
        assert!((100_000..110_000).contains(&stats.oldest_block_ms), "{stats:?}");
        assert_eq!(stats.reclaimed_block_ms, 0, "{stats:?}");
        engine.close().await.expect("close");
    });
    run(async {
        let (engine, _) = open(&device, options()).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        engine.put(content(3), bytes(3, 60_000)).await.expect("put");
        let stats = engine.stats();
        assert!((20_000..30_000).contains(&stats.oldest_block_ms), "{stats:?}");
    });
}

#[test]
fn a_block_that_is_reclaimed_leaves_its_age() {
    let (device, _) = full_store(32);
    run(async {
        let (engine, _) = open(&device, options()).await;
        tokio::time::sleep(Duration::from_secs(500)).await;
        let mut id = 900_000;
        while engine.stats().blocks_reclaimed == 0 {
            engine.put(content(id), bytes(id, 60_000)).await.expect("put");
            id += 1;
        }
        let stats = engine.stats();
        assert!((500_000..600_000).contains(&stats.reclaimed_block_ms), "{stats:?}");
    });
}

#[test]
fn requests_count_as_queued_until_they_are_answered() {
    let device = small_store(33);
    run(async {
        let (engine, _) = open(&device, options()).await;
        let puts: Vec<_> = (0..20u64)
            .map(|id| {
                let engine = engine.clone();
                tokio::spawn(async move { engine.put(content(id), bytes(id, 3000)).await })
            })
            .collect();
        let mut most = 0;
        while puts.iter().any(|put| !put.is_finished()) {
            most = most.max(engine.stats().queued_requests);
            tokio::task::yield_now().await;
        }
        for put in puts {
            put.await.expect("no panic").expect("put");
        }
        assert!((1..=20).contains(&most), "{most}");
        // Marks of flushes are nobody's request.
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(engine.stats().queued_requests, 0);
    });
}

#[test]
fn every_flush_is_in_a_class_of_time() {
    let device = small_store(34);
    run(async {
        let (engine, _) = open(&device, options()).await;
        for id in 0..10 {
            engine.put(content(id), bytes(id, 3000)).await.expect("put");
            engine.flush().await.expect("flush");
        }
        let stats = engine.stats();
        assert!(stats.flushes >= 10, "{stats:?}");
        assert_eq!(stats.flush_classes.iter().sum::<u64>(), stats.flushes, "{stats:?}");
        assert!(engine.device_counters().flushes >= stats.flushes, "{:?}", engine.device_counters());
    });
}
