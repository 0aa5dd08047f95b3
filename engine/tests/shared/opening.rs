//! Openings that are cut off, and runs that begin where a dead one ended.
#![allow(dead_code, unreachable_pub, missing_docs)] // the canaries use a part of it

use crate::{
    common::*,
    disk::*,
    ledger::{Fate, Ledger},
    shared::{log::gated, stores::small_store},
};
use blockstore_engine::{
    Engine,
    device::{CrashModel, SimDevice},
};
use std::sync::Arc;

/// A store with some blobs in it, closed or left to itself.
pub fn with_blobs(seed: u64, close: bool) -> (SimDevice, Ledger) {
    let (device, ledger) = (small_store(seed), Ledger::default());
    run(async {
        let (engine, _) = open(&device, options()).await;
        ledger.put_many(&engine, 0..50, 700).await.expect("put");
        ledger.put(&engine, 60, 300_000).await.expect("put");
        ledger.flush(&engine).await.expect("flush");
        if close {
            engine.close().await.expect("close");
        }
    });
    (device, ledger)
}

/// Opens a copy that halts at its operation `cut`; gives what a power cut leaves then, and whether the open was cut off.
pub fn open_until(device: &SimDevice, cut: u64, seed: u64, model: CrashModel) -> (SimDevice, bool) {
    let device = device.snapshot_completed(0);
    device.handle().halt_at(cut);
    let done = run(async {
        tokio::select! {
            () = device.handle().halted() => false,
            _ = open(&device, options()) => true,
        }
    });
    (device.crash_with(seed, model), !done)
}

/// Whatever of an opening a power cut right behind it takes away, all four superblocks are those of the opening.
pub fn an_open_is_durable_when_it_ends() {
    let (device, ledger) = with_blobs(1, true);
    assert!(superblock(&device, 0).clean);
    let before = superblock(&device, 0).epoch;
    run(async {
        let (_engine, report) = open(&device, options()).await;
        assert!(report.clean);
        for seed in 0..20 {
            let after = device.crash(seed);
            for copy in 0..4 {
                let s = superblock(&after, copy);
                assert_eq!((s.epoch, s.clean), (before + 1, false), "copy {copy}");
            }
            let (engine, report) = open(&after, options()).await;
            assert!(!report.clean);
            ledger.assert_kept(&engine, Fate::Durable, "opened and cut off").await;
        }
    });
}

/// The operations of an opening right before and behind which a write or a flush was completed.
fn cuts_of_an_open(device: &SimDevice) -> Vec<u64> {
    let done = |cut| {
        let device = device.snapshot_completed(0);
        device.handle().halt_at(cut);
        let ended = run(async {
            tokio::select! {
                () = device.handle().halted() => false,
                _ = open(&device, options()) => true,
            }
        });
        let counters = device.handle().counters();
        (counters.writes + counters.flushes, ended)
    };
    let (mut cuts, mut before) = (Vec::new(), 0);
    for cut in 0.. {
        let (completed, ended) = done(cut);
        if completed != before {
            cuts.extend([cut - 1, cut]);
            before = completed;
        }
        if ended {
            cuts.dedup();
            return cuts;
        }
    }
    unreachable!("an opening ends")
}

/// Two openings, one after the other, are cut off by the power beside some of their writes and flushes; the third one must succeed.
pub fn two_openings_cut_off(seed: u64) {
    let (device, ledger) = with_blobs(seed, true);
    let cuts = cuts_of_an_open(&device);
    assert!(cuts.len() >= 7, "four superblocks and two flushes: {cuts:?}");
    for &first in &cuts {
        let (once, _) = open_until(&device, first, seed * 100 + first, CrashModel::default());
        for &second in &cuts {
            let (twice, _) = open_until(&once, second, seed * 1000 + second, CrashModel::default());
            run(async {
                match Engine::open(Arc::new(twice.clone()), options()).await {
                    Ok((engine, _)) => ledger.assert_kept(&engine, Fate::Durable, &format!("cut off at {first} and {second}")).await,
                    Err(error) => panic!("cut off at {first} and {second}: {error}"),
                }
            });
        }
    }
}

/// Run 1 replaces all names in some pages of log; the power cut takes one of these pages and leaves those behind it, and the records.
/// Run 2 goes on at that page with a batch of `puts` and is killed. If that makes the page just as full as the lost one was, the pages of
/// the dead run follow without a gap; the third run must not take them for run 2's.
pub fn a_page_as_full_as_the_lost_one(puts: u64, seed: u64) {
    let (device, ledger) = (small_store(seed), Ledger::default());
    run(async {
        let (engine, _) = open(&device, options()).await;
        ledger.put_many(&engine, 0..10, 50).await.expect("put");
        let all =
            |size| futures::future::join_all((0..400).map(move |id| (id, size)).map(|(id, size)| ledger.put_named(&engine, id, size)));
        assert!(all(50).await.iter().all(Result::is_ok));
        ledger.flush(&engine).await.expect("flush");
        assert!(all(50).await.iter().all(Result::is_ok));
    });
    let left = device.snapshot_completed(0);
    let units = log_units(&left);
    let flushed = units.iter().filter(|u| u.tag == PUT).nth(10 + 400 - 1).expect("the first versions").page;
    let lost = flushed + 2;
    let on = |page| units.iter().filter(|u| u.page == page).count();
    assert!(on(lost) == 127 && on(lost + 1) == 127, "{} and {} units", on(lost), on(lost + 1));
    let layout = superblock(&left, 0);
    left.handle().poke(layout.log_offset + lost % layout.log_pages * PAGE, &[0; PAGE as usize]);
    let (view, killed) = run(async {
        let (gate, engine) = gated(&left, options()).await;
        // With a flush the batch behind it would begin with a mark, on the next page.
        gate.hold_flushes();
        let view = ledger.view(&engine).await;
        let items = (0..puts).map(|id| (content(10_000 + id), bytes(id, 30))).collect();
        assert!(engine.put_batch(items).await.iter().all(Result::is_ok));
        (view, left.snapshot_completed(seed))
    });
    run(async {
        let (engine, _) = open(&killed, options()).await;
        assert!(ledger.view(&engine).await == view, "{puts} puts: what the dead run had not made durable came back");
        for id in 0..puts {
            assert_eq!(get(&engine, &content(10_000 + id), None).await, Some(bytes(id, 30)), "{puts} puts: {id}");
        }
    });
}
