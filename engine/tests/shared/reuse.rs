//! Blocks that are emptied and used again.
#![allow(dead_code, unreachable_pub, missing_docs)] // the canaries use a part of it

use crate::{
    common::*,
    disk::*,
    ledger::{Fate, Ledger},
    shared::{
        log::gated,
        stores::{full_store, small_store},
    },
};
use blockstore_engine::Engine;
use std::{collections::HashSet, sync::Arc, time::Duration};

/// Puts blobs that nobody wants until `blocks` more blocks were reclaimed, touching what the ledger knows.
pub async fn rotate(engine: &Engine, ledger: &Ledger, from: u64, blocks: u64) {
    let until = engine.stats().blocks_reclaimed + blocks;
    let mut id = from;
    while engine.stats().blocks_reclaimed < until {
        assert!(id < from + 3000, "{:?}", engine.stats());
        engine.put(content(id), bytes(id, 50_000)).await.expect("put");
        id += 1;
        if id.is_multiple_of(8) {
            touch(engine, ledger).await;
        }
    }
}

pub async fn touch(engine: &Engine, ledger: &Ledger) {
    let known = ledger.0.lock().clone();
    let keys: Vec<_> = known.content.iter().map(|(id, (size, _))| (content(*id), Some(*size as u64))).collect();
    engine.lookup(&keys).await;
    engine.lookup(&known.named.keys().map(|id| (named(*id), None)).collect::<Vec<_>>()).await;
}

/// Reclaim is held up with what it read until all of it was replaced; then it logs its Moves.
pub fn moves_behind_newer_puts() {
    let (device, ledger) = full_store(20);
    run(async {
        let gate = Gate::new(&device);
        let (engine, _) = Engine::open(Arc::new(gate.clone()), options()).await.expect("open");
        gate.hold_reads();
        for id in 0..60 {
            engine.put(content(700_000 + id), bytes(id, 50_000)).await.expect("put");
        }
        assert_eq!(engine.stats().blocks_reclaimed, 0);
        let names: Vec<u64> = ledger.0.lock().named.keys().copied().collect();
        for id in names {
            ledger.put_named(&engine, id, 500).await.expect("put");
        }
        ledger.flush(&engine).await.expect("flush");
        let before = count_of(&device, MOVE);
        gate.open();
        tokio::time::sleep(Duration::from_secs(5)).await;
        ledger.assert_kept(&engine, Fate::Acknowledged, "live").await;
        ledger.flush(&engine).await.expect("flush");
        assert!(engine.stats().blocks_reclaimed > 0);
        let puts: HashSet<_> = log_units(&device).into_iter().filter(|u| u.tag == PUT).map(|u| u.hash).collect();
        let moved_behind = log_units(&device).into_iter().filter(|u| u.tag == MOVE && puts.contains(&u.hash)).count();
        assert!(before == 0 && moved_behind > 0, "{before} {moved_behind}");
    });
    for (seed, crash) in ["kill", "power cut", "power cut"].into_iter().enumerate() {
        let device = if seed == 0 { device.snapshot_completed(0) } else { device.crash(seed as u64) };
        run(async {
            let (engine, _) = open(&device, options()).await;
            ledger.assert_kept(&engine, Fate::Durable, crash).await;
        });
    }
}

/// Flushes are held up while puts rotate the store, until nobody can go on; then the power goes. Nothing has been written to a block
/// between its retirement and a flush, so every original is still there.
pub fn nothing_is_used_again_before_a_flush(seed: u64) {
    let (device, ledger) = full_store(seed);
    let stuck = run(async {
        let (gate, engine) = gated(&device, options()).await;
        // Blocks are opened ahead, and reclaim gets going.
        rotate(&engine, &ledger, 700_000, 4).await;
        let before = engine.stats();
        gate.hold_flushes();
        let puts = async {
            for id in 710_000..710_300 {
                engine.put(content(id), bytes(id, 50_000)).await.expect("put");
                if id % 8 == 0 {
                    touch(&engine, &ledger).await;
                }
            }
        };
        let stuck = tokio::time::timeout(Duration::from_secs(5), puts).await.is_err();
        let after = engine.stats();
        let reclaimed = after.blocks_reclaimed - before.blocks_reclaimed;
        assert!(reclaimed > 1 && after.carried_bytes > before.carried_bytes, "{reclaimed} {after:?}");
        stuck
    });
    for cut in 0..6 {
        run(async {
            let (engine, _) = open(&device.crash(seed * 10 + cut), options()).await;
            ledger.assert_kept(&engine, Fate::Durable, &format!("power cut {cut}, flushes held up")).await;
        });
    }
    assert!(stuck, "without a flush the store runs out of blocks");
}

/// The power goes behind the first puts into new blocks. What the next run finds of them it makes durable, with an image; then both block
/// tables of that image rot, and the blocks' own headers have to say whose they are.
pub fn a_block_has_its_header_before_anything_else(seed: u64) {
    let (device, ledger) = (small_store(seed), Ledger::default());
    run(async {
        let (engine, _) = open(&device, options()).await;
        ledger.put_many(&engine, 0..10, 3000).await.expect("put");
        ledger.put(&engine, 20, 100_000).await.expect("put");
    });
    let device = device.crash(seed);
    let view = run(async {
        let (engine, _) = open(&device, options()).await;
        let view = ledger.view(&engine).await;
        engine.checkpoint().await.expect("image");
        view
    });
    let layout = superblock(&device, 0);
    (0..2).for_each(|copy| device.handle().rot(layout.block_table(layout.image_slot, copy).start + 40, 1));
    run(async {
        let (engine, _) = open(&device.snapshot_completed(0), options()).await;
        assert_eq!(engine.stats().damaged_image_units, 1, "both tables are rotten");
        assert!(ledger.view(&engine).await == view, "seed {seed}: a block without its header was lost with the block table");
    });
}

/// Somebody looks at every turn whether what is wanted is present, while it is carried from block to block.
pub fn what_is_carried_is_present_at_every_moment(seed: u64) {
    let (device, ledger) = full_store(seed);
    run(async {
        let (engine, _) = open(&device, options()).await;
        let known = ledger.0.lock().clone();
        let mut keys: Vec<_> = known.content.iter().map(|(id, (size, _))| (content(*id), Some(*size as u64))).collect();
        keys.extend(known.named.keys().map(|id| (named(*id), None)));
        let watch = async {
            loop {
                let present = engine.lookup(&keys).await;
                let missing = present.iter().filter(|present| !**present).count();
                assert_eq!(missing, 0, "of {} wanted objects, {} blocks emptied", keys.len(), engine.stats().blocks_reclaimed);
                tokio::task::yield_now().await;
            }
        };
        let puts = async {
            for id in 700_000..700_250 {
                engine.put(content(id), bytes(id, 50_000)).await.expect("put");
            }
        };
        tokio::select! {
            () = watch => {}
            () = puts => {}
        }
        let stats = engine.stats();
        assert!(stats.blocks_reclaimed > 8 && stats.carried_bytes > 20_000, "{stats:?}");
        ledger.assert_kept(&engine, Fate::Durable, "live").await;
    });
}
