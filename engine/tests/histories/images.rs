//! Images: when one counts, what its damage costs, and from which log a damaged unit may be rebuilt.

use crate::{
    common::*,
    disk::*,
    ledger::{Fate, Ledger},
    shared::{images::*, stores::small_store},
};
use blockstore_engine::{Engine, device::SimDevice};
use std::{sync::Arc, time::Duration};

// The superblock pointed to an image whose last units were not yet durable.
#[test]
fn an_image_counts_only_once_all_of_it_is_durable_wherever_a_power_cut_comes() {
    let (device, ledger) = with_images(1, 2);
    for at in 0..two_more_images(&device, None).handle().operations() {
        cut_off_in_an_image(&device, &ledger, at, at);
    }
}

#[test]
fn a_damaged_image_unit_is_rebuilt_from_the_image_before_it_and_the_log() {
    let (device, ledger) = with_images(2, 3);
    let layout = superblock(&device, 0);
    assert_eq!((layout.image_number, layout.previous_number), (3, 2));
    (0..layout.table_units).for_each(|unit| a_rotten_unit(&device, &ledger, unit, 5000));
    let rotten = device.snapshot_completed(0);
    rotten.handle().make_unreadable(layout.image_unit(layout.image_slot, 0).start..layout.image_unit(layout.image_slot, 2).end);
    run(async {
        let (engine, _) = open(&rotten, options()).await;
        ledger.assert_kept(&engine, Fate::Durable, "three units unreadable").await;
    });
}

// A unit was copied while its slots moved from one bucket to the other: those that moved behind the copier's back were in no image,
// or in two places of one. And a unit that said to cover what was published while it was copied lost just that.
#[test]
fn puts_beside_an_image_are_in_it_or_behind_it_and_in_one_place() {
    (0..3).for_each(puts_beside_an_image);
}

// The log behind an image's start repeats what the units copied later have: one bit of it rotted, and a version older than the image's
// was put in its place.
#[test]
fn an_entry_that_the_image_covers_is_not_applied_and_its_rot_costs_nothing() {
    (0..3).for_each(rotten_entries_that_the_image_covers);
}

// The image was in force, its last page of the log was full of what came before, and the power failed before anything came behind
// it. The next run wrote on, and its first page said that the page before had no entries; when a unit of that image rotted, replay
// from the image before it took this for a hole, and dropped everything the run had made durable.
#[test]
fn a_run_that_began_right_behind_an_image_is_found_also_from_the_image_before_it() {
    let (device, ledger) = (small_store(3), Ledger::default());
    run(async {
        let (engine, _) = open(&device, options()).await;
        ledger.put_many(&engine, 0..100, 100).await.expect("put");
        engine.checkpoint().await.expect("image");
        ledger.put_many(&engine, 100..205, 100).await.expect("put");
        ledger.flush(&engine).await.expect("flush");
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Nothing comes between these two, nor behind them, not even a mark.
        engine.checkpoint().await.expect("image");
        engine.checkpoint().await.expect("image");
        ledger.all_durable();
    });
    for seed in 0..10 {
        let (device, ledger) = (device.crash(seed), ledger.copy());
        run(async {
            let (engine, _) = open(&device, options()).await;
            ledger.put_many(&engine, 1000..1004, 100).await.expect("put");
            ledger.flush(&engine).await.expect("flush");
        });
        let layout = superblock(&device, 0);
        device.handle().rot(layout.image_unit(layout.image_slot, 0).start + 100, 1);
        run(async {
            let (engine, _) = open(&device.crash(seed), options()).await;
            ledger.assert_kept(&engine, Fate::Durable, &format!("seed {seed}")).await;
        });
    }
}

#[test]
fn one_rotten_block_table_costs_nothing_and_two_cost_no_blob() {
    let (device, ledger) = with_images(4, 2);
    let layout = superblock(&device, 0);
    for copies in [vec![0], vec![1], vec![0, 1]] {
        let rotten = device.snapshot_completed(0);
        for copy in &copies {
            rotten.handle().rot(layout.block_table(layout.image_slot, *copy).start + 40, 2);
        }
        run(async {
            let (engine, _) = open(&rotten, options()).await;
            ledger.assert_kept(&engine, Fate::Durable, &format!("tables {copies:?} rotten")).await;
            assert_eq!(engine.stats().damaged_image_units, u64::from(copies.len() == 2));
            ledger.put_many(&engine, 50_000..50_400, 3000).await.expect("put");
            let story = format!("tables {copies:?} rotten, and writing goes on {:?}", engine.stats());
            ledger.assert_kept(&engine, Fate::Acknowledged, &story).await;
        });
    }
}

/// Puts until the ring is this full, in pages, while the image that would free it does not get on.
async fn fill_ring(gate: &Gate, engine: &Engine, ledger: &Ledger, pages: u64) {
    let layout = superblock_of(gate);
    gate.hold_writes(layout.image(0));
    gate.hold_writes(layout.image(1));
    let mut id = 200_000;
    while engine.stats().log_used_pages < pages {
        ledger.put_many(engine, id..id + 500, 8).await.expect("put");
        for named in 0..20 {
            ledger.put_named(engine, named, 60).await.expect("put");
        }
        id += 500;
    }
    ledger.flush(engine).await.expect("flush");
}

fn superblock_of(gate: &Gate) -> Super {
    superblock(gate.device(), 0)
}

// Images 1 and 2 were in place, image 3 had begun: with that the log before image 2 was free, and the ring had gone over it. Then
// the process died. The open took the log from image 1 on for what recovery needs, found the ring overfull, and poisoned the store;
// and a rotten unit of image 2 was replaced by that of image 1, to which no log led any more: old values of named keys came back.
fn beyond_the_image_before(seed: u64) -> (SimDevice, Ledger) {
    let (device, ledger) = (sim(48, seed), Ledger::default());
    run(async {
        format(&device, Some(150_000)).await;
        let gate = Gate::new(&device);
        let (engine, _) = Engine::open(Arc::new(gate.clone()), options()).await.expect("open");
        // Image 3 begins when a third of the ring is used: well behind image 2, which is well behind image 1.
        for (round, objects) in [(0, 600), (1, 14_000)] {
            for named in 0..20 {
                ledger.put_named(&engine, named, 60).await.expect("put");
            }
            ledger.put_many(&engine, round * 50_000..round * 50_000 + objects, 8).await.expect("put");
            engine.checkpoint().await.expect("image");
        }
        let pages = engine.stats().log_pages;
        fill_ring(&gate, &engine, &ledger, pages * 9 / 10).await;
        ledger.assert_kept(&engine, Fate::Durable, &format!("before {:?}", engine.stats())).await;
    });
    (device, ledger)
}

#[test]
fn a_store_that_dies_in_an_image_opens_with_the_log_of_the_image_in_force() {
    let (device, ledger) = beyond_the_image_before(5);
    for seed in 0..3 {
        let device = device.crash(seed);
        run(async {
            let (engine, _) = open(&device, options()).await;
            ledger.assert_kept(&engine, Fate::Durable, "died in an image").await;
            for id in 0..20 {
                ledger.put_named(&engine, id, 10).await.expect("the ring has room");
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(engine.poisoned(), None);
            assert!(engine.stats().images > 0);
        });
    }
}

#[test]
fn a_rotten_unit_is_not_taken_from_an_image_that_the_log_no_longer_covers() {
    let (device, ledger) = beyond_the_image_before(6);
    let layout = superblock(&device, 0);
    let device = device.crash(1);
    device.handle().rot(layout.image_unit(layout.image_slot, 3).start + 70, 1);
    run(async {
        let (engine, _) = open(&device, options()).await;
        let faults = ledger.faults(&engine, Fate::Durable).await;
        let older: Vec<_> = faults.iter().filter(|f| f.starts_with("named") && !f.contains("None")).collect();
        assert!(older.is_empty(), "{older:?}");
        // The unit is one of 46; what was put behind the image is there.
        assert!(faults.len() < 2500, "{} lost", faults.len());
        assert!(!faults.iter().any(|f| f.starts_with("content 200")), "what came behind the image was dropped: {:?}", faults.first());
    });
}
