//! Stores to begin a history with.
#![allow(dead_code, unreachable_pub, missing_docs)] // the canaries use a part of it

use crate::{common::*, ledger::Ledger};
use blockstore_engine::device::SimDevice;

/// A small device on which a store was made, and its ledger.
pub fn small_store(seed: u64) -> SimDevice {
    let device = sim(40, seed);
    run(format(&device, Some(20_000)));
    device
}

/// A store so full that everything goes on beside reclaim, and what of it is within the retention bound.
pub fn full_store(seed: u64) -> (SimDevice, Ledger) {
    let device = small_store(seed);
    let ledger = Ledger::default();
    run(async {
        let (engine, _) = open(&device, options()).await;
        // What may be dropped, small and large, and between it what is touched again and must be carried.
        for round in 0..36u64 {
            for id in 0..12 {
                engine.put(content(round * 100 + id), bytes(round * 100 + id, 60_000)).await.expect("put");
            }
            ledger.put(&engine, round * 100 + 50, 2000).await.expect("put");
            ledger.put_named(&engine, round, 500).await.expect("put");
            if round % 6 == 0 {
                ledger.put(&engine, round * 100 + 60, 600_000).await.expect("put");
            }
            let known = ledger.0.lock().content.clone();
            for (id, (size, _)) in known {
                assert!(engine.lookup(&[(content(id), Some(size as u64))]).await[0], "{id}");
            }
            for id in 0..=round {
                assert!(engine.lookup(&[(named(id), None)]).await[0], "named {id}");
            }
        }
        ledger.flush(&engine).await.expect("flush");
        // Else the next open would have forgotten the touches.
        engine.checkpoint().await.expect("image");
        assert!(engine.stats().spare_blocks <= 7, "{:?}", engine.stats());
    });
    (device, ledger)
}
