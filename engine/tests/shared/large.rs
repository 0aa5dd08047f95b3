//! Large objects that are killed as soon as they are acknowledged.
#![allow(dead_code, unreachable_pub, missing_docs)] // the canaries use a part of it

use crate::{
    common::*,
    ledger::{Fate, Ledger},
    shared::stores::small_store,
};

/// Objects of one to three whole parts and one of `tail` bytes, the last acknowledged right before the kill.
pub fn killed_behind_large_objects(seed: u64, tail: usize) {
    let (device, ledger) = (small_store(seed), Ledger::default());
    run(async {
        let (engine, _) = open(&device, options()).await;
        for parts in 1..4 {
            ledger.put(&engine, parts, parts as usize * 262_144 + tail).await.expect("put");
        }
    });
    run(async {
        let (engine, report) = open(&device.snapshot_completed(0), options()).await;
        ledger.assert_kept(&engine, Fate::Acknowledged, &format!("tail {tail}")).await;
        assert_eq!(report.voided_entries, 0, "tail {tail}");
    });
}
