//! Opening: epochs, superblocks, and what an open may cost.

use crate::{
    common::*,
    disk::*,
    ledger::{Fate, Ledger},
    shared::{opening::*, stores::small_store},
};
use blockstore_engine::{Engine, KeySpace, OpenError, device::CrashModel};
use std::{collections::HashSet, sync::Arc};

// A run that dies between two opens must never share its epoch with the next one, or the second would take the first one's dead
// entries for its own.
#[test]
fn each_open_makes_a_higher_epoch_durable_and_clears_the_clean_flag_before_it_ends() {
    an_open_is_durable_when_it_ends();
}

// Superblocks 0 and 1 were of sequence 7, 2 and 3 of 6, since the power had failed in between. The next open began with 0: if it wrote
// 2, too, before 0 and 1 were durable, a second power cut could leave four superblocks no two of which agree.
#[test]
fn a_store_opens_behind_two_openings_that_were_cut_off_anywhere() {
    (0..4).for_each(two_openings_cut_off);
}

// Only the epoch tells that the pages behind are the dead run's: page number, LSN and number of units before them all fit.
#[test]
fn pages_of_a_dead_run_do_not_count_behind_a_page_just_as_full_as_the_lost_one() {
    (115..=127).for_each(|puts| a_page_as_full_as_the_lost_one(puts, puts));
}

// Superblocks 0 and 1 were written with sequence 7, the power failed, and 2 and 3 of sequence 6 are in force. If the next open
// wrote 7 again, with other content, two generations would carry the same number.
#[test]
fn an_open_that_is_cut_off_anywhere_never_lends_its_sequence_to_the_next() {
    let (device, ledger) = with_blobs(2, true);
    for cut in 0.. {
        // Every sector is old, new or unreadable, so that the sequences that are found there can be believed.
        let (after, cut_off) = open_until(&device, cut, cut, CrashModel { garbage: false, unreadable: true });
        let seen =
            (0..4).filter_map(|copy| after.handle().peek(superblock_offsets(&after)[copy]..superblock_offsets(&after)[copy] + 256).ok());
        let highest = seen.map(|page| u64::from_le_bytes(page[56..64].try_into().expect("8 bytes"))).filter(|n| *n < 1 << 32).max();
        run(async {
            let (engine, _) = open(&after, options()).await;
            assert!(Some(superblock(&after, 0).sequence) > highest, "cut {cut}");
            ledger.assert_kept(&engine, Fate::Durable, "cut off in the open").await;
        });
        if !cut_off {
            break;
        }
    }
}

#[test]
fn two_rotten_superblocks_cost_nothing_and_three_are_refused_unchanged() {
    let (device, ledger) = with_blobs(3, true);
    let offsets = superblock_offsets(&device);
    for (a, b) in [(0, 1), (0, 2), (1, 3), (2, 3), (1, 2)] {
        let rotten = device.snapshot_completed(0);
        rotten.handle().rot(offsets[a] + 60, 4);
        rotten.handle().make_unreadable(offsets[b]..offsets[b] + 512);
        run(async {
            let (engine, _) = open(&rotten, options()).await;
            ledger.assert_kept(&engine, Fate::Durable, "two copies rotten").await;
        });
        assert_eq!(superblock(&rotten, a), superblock(&rotten, b), "an open mends them");
    }
    let rotten = device.snapshot_completed(0);
    offsets[..3].iter().for_each(|at| rotten.handle().rot(at + 100, 1));
    let before = rotten.handle().peek(0..64 << 10).expect("peek");
    run(async {
        let refused = Engine::open(Arc::new(rotten.clone()), options()).await;
        assert!(matches!(refused, Err(OpenError::Unusable(_))));
    });
    assert_eq!(rotten.handle().peek(0..64 << 10).expect("peek"), before);
}

#[test]
fn an_open_that_has_nothing_to_void_writes_only_its_superblocks() {
    for close in [true, false] {
        let (device, _) = with_blobs(4, close);
        let device = device.snapshot_completed(0);
        run(async {
            let (_engine, _) = open(&device, options()).await;
            let counters = device.handle().counters();
            assert_eq!((counters.writes, counters.flushes), (4, 2), "closed: {close}");
        });
    }
}

// The first run's page 3 is lost in a power cut and its pages 4 to 9 survive. The second run writes page 3 and dies: without
// epochs the third would read that and go on with the dead pages 4 to 9, and a client would see what it had seen gone.
#[test]
fn what_one_recovery_served_the_next_one_serves_too() {
    let mut lost_something = 0;
    for seed in 0..40 {
        let (device, ledger) = (small_store(seed), Ledger::default());
        run(async {
            let (engine, _) = open(&device, options()).await;
            for id in 0..100 {
                ledger.put_named(&engine, id, 50).await.expect("put");
            }
            ledger.flush(&engine).await.expect("flush");
            // Many pages of log in a few batches, none of them flushed.
            let again = (0..100).map(|id| ledger.put_named(&engine, id, 60));
            for result in futures::future::join_all(again).await {
                result.expect("put");
            }
            ledger.put_many(&engine, 1000..1500, 40).await.expect("put");
        });
        let first = device.crash(seed);
        let (view, second) = run(async {
            let (engine, report) = open(&first, options()).await;
            ledger.assert_kept(&engine, Fate::Durable, "first crash").await;
            lost_something += usize::from(report.voided_entries > 0 || report.objects < 600);
            let view = ledger.view(&engine).await;
            engine.put(content(77), bytes(77, 30)).await.expect("put");
            (view, first.snapshot_completed(seed))
        });
        let third = run(async {
            let (engine, _) = open(&second, options()).await;
            assert_eq!(ledger.view(&engine).await, view, "seed {seed}");
            engine.put(content(78), bytes(78, 30)).await.expect("put");
            second.crash(seed)
        });
        run(async {
            let (engine, _) = open(&third, options()).await;
            assert_eq!(ledger.view(&engine).await, view, "seed {seed}, a power cut after that");
        });
    }
    assert!(lost_something > 10, "only {lost_something} crashes lost anything");
}

// If each open sealed the head block of the run before, or opened blocks of its own, a store that is killed in a loop would rotate
// everything out without a put.
#[test]
fn a_crash_loop_costs_no_capacity_and_rotates_nothing() {
    for puts in [false, true] {
        let (mut device, ledger) = with_blobs(5, false);
        let mut spare = HashSet::new();
        for round in 0..100u64 {
            device = run(async {
                let (engine, _) = open(&device, options()).await;
                if puts {
                    ledger.put(&engine, 1000 + round, 500).await.expect("put");
                }
                spare.insert(engine.stats().spare_blocks);
                assert_eq!(engine.stats().blocks_reclaimed, 0);
                if round % 2 == 0 { device.snapshot_completed(round) } else { device.crash(round) }
            });
        }
        assert!(spare.len() <= 2, "spare blocks: {spare:?}");
        run(async {
            let (engine, _) = open(&device, options()).await;
            ledger.assert_kept(&engine, Fate::Durable, "a hundred crashes").await;
        });
    }
}

#[test]
fn spaces_of_keys_do_not_meet_after_a_restart() {
    let (device, _) = with_blobs(6, true);
    run(async {
        let (engine, _) = open(&device, options()).await;
        let other = blockstore_engine::Key { space: KeySpace::Named, ..content(1) };
        assert!(get(&engine, &other, None).await.is_none());
    });
}
