//! What replay makes of a log.
#![allow(dead_code, unreachable_pub, missing_docs)] // the canaries use a part of it

use crate::{
    common::*,
    disk::*,
    ledger::{Fate, Ledger},
    shared::stores::small_store,
};
use blockstore_engine::device::SimDevice;

/// Durable blobs, named keys and a large object; no image.
pub fn durable(seed: u64) -> (SimDevice, Ledger) {
    let (device, ledger) = (small_store(seed), Ledger::default());
    run(async {
        let (engine, _) = open(&device, options()).await;
        for round in 0..4 {
            ledger.put_many(&engine, round * 100..round * 100 + 100, 100).await.expect("put");
            for id in 0..20 {
                ledger.put_named(&engine, id, 50).await.expect("put");
            }
            ledger.put(&engine, 1000 + round, 80_000).await.expect("put");
            ledger.flush(&engine).await.expect("flush");
        }
        ledger.put(&engine, 2000, 700_000).await.expect("put");
        ledger.delete(&engine, 3).await.expect("delete");
        ledger.flush(&engine).await.expect("flush");
        // The mark of the last flush comes with the next batch.
        ledger.put(&engine, 3000, 10).await.expect("put");
        ledger.flush(&engine).await.expect("flush");
        engine.put(content(3001), bytes(3001, 10)).await.expect("put");
        ledger.flush(&engine).await.expect("flush");
    });
    (device, ledger)
}

pub fn lost(device: &SimDevice, ledger: &Ledger) -> Vec<String> {
    run(async {
        let (engine, _) = open(device, options()).await;
        let faults = ledger.faults(&engine, Fate::Durable).await;
        assert!(!faults.iter().any(|f| f.contains("wrong bytes")), "{faults:?}");
        faults
    })
}

/// How many blobs it costs when byte `at` of a unit of the log rots.
pub fn lost_by_a_flip(device: &SimDevice, ledger: &Ledger, unit: &Unit, at: u64, mask: u8) -> usize {
    let rotten = device.snapshot_completed(0);
    rotten.handle().rot(unit.at_bytes + at, mask);
    // A large object that lacks a part is found broken by the first read of it.
    lost(&rotten, ledger).iter().filter(|f| !f.contains("lookup says")).count()
}

/// A bit of what the log says of the opening of a block rots: that costs nothing.
pub fn a_rotten_opening(seed: u64) {
    let (device, ledger) = durable(1);
    let opened: Vec<_> = log_units(&device).into_iter().filter(|u| u.tag == OPEN).collect();
    let unit = &opened[seed as usize % opened.len()];
    assert_eq!(lost_by_a_flip(&device, &ledger, unit, 20 + seed % 4, 1 << (seed % 8)), 0, "{unit:?}");
}

/// The store is left as it is, and opened.
pub fn nothing_is_lost(seed: u64) {
    let (device, ledger) = durable(seed);
    assert_eq!(lost(&device, &ledger), [""; 0]);
}

/// Names were replaced and not flushed; four power cuts, each after a put, every other time after two flushes. What the first recovery
/// served all others serve. Says how many entries were voided.
pub fn voids_outlast_what_comes(seed: u64) -> u64 {
    let (mut device, ledger) = (small_store(seed), Ledger::default());
    let mut voids = 0;
    run(async {
        let (engine, _) = open(&device, options()).await;
        for id in 0..50 {
            ledger.put_named(&engine, id, 300).await.expect("put");
        }
        ledger.flush(&engine).await.expect("flush");
        let names = (0..50).map(|id| ledger.put_named(&engine, id, 300));
        assert!(futures::future::join_all(names).await.iter().all(Result::is_ok));
    });
    let mut views = Vec::new();
    for round in 0..4 {
        device = device.crash(seed * 10 + round);
        device = run(async {
            let (engine, report) = open(&device, options()).await;
            voids += report.voided_entries;
            views.push(ledger.view(&engine).await);
            assert!(views[0] == views[views.len() - 1], "seed {seed}, recovery {round}: what was void came back");
            assert!(round == 0 || report.voided_entries <= 1, "voided again: {report:?}");
            engine.put(named(1000 + round), bytes(round, 300)).await.expect("put");
            if round % 2 == 0 {
                // The mark of the first covers what was voided, and is covered by the second.
                engine.flush().await.expect("flush");
                engine.put(named(2000 + round), bytes(round, 300)).await.expect("put");
                engine.flush().await.expect("flush");
            }
            device.clone()
        });
    }
    voids
}
