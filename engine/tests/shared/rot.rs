//! Rot, and bytes that were right once or elsewhere.
#![allow(dead_code, unreachable_pub, missing_docs)] // the canaries use a part of it

use crate::{
    common::*,
    disk::*,
    ledger::{Fate, Ledger, version_bytes},
    shared::stores::small_store,
};
use blockstore_engine::{Engine, PutError, device::SimDevice};

/// A store with a bit of everything, flushed.
pub async fn filled(engine: &Engine, ledger: &Ledger, base: u64) -> Result<(), PutError> {
    ledger.put_many(engine, base..base + 60, 500).await?;
    ledger.put(engine, base + 100, 40_000).await?;
    ledger.put(engine, base + 101, 150_000).await?;
    ledger.put(engine, base + 102, 900_000).await?;
    for id in base..base + 10 {
        ledger.put_named(engine, id, 200).await?;
        ledger.put_named(engine, id, 200).await?;
    }
    ledger.flush(engine).await
}

pub fn fresh(seed: u64) -> (SimDevice, Ledger) {
    let (device, ledger) = (small_store(seed), Ledger::default());
    run(async {
        let (engine, _) = open(&device, options()).await;
        filled(&engine, &ledger, 0).await.expect("put");
    });
    (device, ledger)
}

/// Some hundred bits rot in the log, or in the blocks: no byte that is read is wrong.
pub fn rotten_all_over(device: &SimDevice, ledger: &Ledger, seed: u64) {
    let layout = superblock(device, 0);
    let rotten = device.snapshot_completed(seed);
    let range = if seed.is_multiple_of(3) { layout.log() } else { layout.block(0).start..layout.block(4).end };
    rotten.handle().rot_some(range, 400);
    run(async {
        let (engine, _) = open(&rotten, options()).await;
        let faults = ledger.faults(&engine, Fate::Durable).await;
        assert!(!faults.iter().any(|f| f.contains("wrong bytes")), "{faults:?}");
        // After the first byte: the bytes, or a stream that ends with an error.
        if let Some(object) = engine.get(&content(102), None).await {
            let (mut reader, mut at, data) = (object.reader(0, None).expect("0"), 0, bytes(102, 900_000));
            while let Some(Ok(piece)) = reader.next().await {
                let piece = piece.into_bytes();
                assert!(piece[..] == data[at..at + piece.len()]);
                at += piece.len();
            }
        }
    });
}

/// As [`rotten_all_over`], of a store of its own.
pub fn rot_somewhere(seed: u64) {
    let (device, ledger) = fresh(1);
    rotten_all_over(&device, &ledger, seed);
}

/// Two versions of fifteen names lie at the same offsets of two blocks, and the bytes of the first come to lie where the second's
/// are, as after a write that went astray or was lost on a block used again: each name reads as its second version, or is missing.
pub fn an_earlier_version_at_the_very_offset(seed: u64) {
    let (device, ledger) = (small_store(seed), Ledger::default());
    // With its head each takes sixteen pages: fifteen fill a block.
    let size = 16 * PAGE as usize - 72;
    run(async {
        let (engine, _) = open(&device, options()).await;
        for _ in 0..2 {
            for id in 0..15 {
                ledger.put_named(&engine, id, size).await.expect("put");
            }
        }
        ledger.flush(&engine).await.expect("flush");
    });
    let (layout, puts) = (superblock(&device, 0), log_units(&device).into_iter().filter(|u| u.tag == PUT).collect::<Vec<_>>());
    let start = |n: usize| layout.block(u64::from(puts[n].vbn % layout.vbn_stride)).start + puts[n].offset_bytes;
    let mut swapped = 0;
    for n in 0..15 {
        assert_eq!((puts[n].hash, puts[n].offset_bytes), (puts[n + 15].hash, puts[n + 15].offset_bytes));
        assert_ne!(puts[n].vbn, puts[n + 15].vbn);
        let earlier = device.handle().peek(start(n)..start(n) + 16 * PAGE).expect("peek");
        device.handle().poke(start(n + 15), &earlier);
        swapped += 1;
    }
    assert_eq!(swapped, 15);
    run(async {
        let (engine, _) = open(&device.snapshot_completed(seed), options()).await;
        for id in 0..15 {
            let got = get(&engine, &named(id), None).await;
            assert!(got.is_none() || got == Some(version_bytes(id, 1, size)), "name {id} reads as an earlier version");
        }
    });
}
