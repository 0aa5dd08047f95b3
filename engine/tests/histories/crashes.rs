//! A crash at every operation of a run of everything, and at every operation of the recovery after it.

use crate::{
    common::*,
    ledger::{Fate, Ledger},
    shared::stores::{full_store, small_store},
};
use blockstore_engine::{
    Begin, Engine, OpenOptions,
    device::{CrashModel, SimDevice},
};

/// Puts of every kind by three clients at once, flushes and an image, over ids from `base` on.
async fn everything(engine: &Engine, ledger: &Ledger, base: u64, rounds: u64) {
    let small = async {
        for round in 0..rounds {
            let _ = ledger.put_many(engine, base + round * 10..base + round * 10 + 7, 60 + round as usize * 300).await;
            let _ = ledger.put(engine, base + round * 10 + 8, 5000).await;
            if round % 3 == 1 {
                let _ = ledger.flush(engine).await;
            }
        }
    };
    let replaced = async {
        for round in 0..rounds * 2 {
            let _ = ledger.put_named(engine, base + round % 3, 100).await;
            if round % 5 == 4 {
                let _ = ledger.delete(engine, base + round % 3).await;
            }
        }
    };
    let large = async {
        for round in 0..rounds.min(3) {
            let _ = ledger.put(engine, base + 5000 + round, 100_000 + round as usize * 350_000).await;
            if let Ok(Begin::Upload(mut aborted)) = engine.begin_upload(content(base + 6000 + round), 600_000).await {
                let _ = aborted.write(&[1; 300_000]).await;
            }
        }
        let _ = engine.checkpoint().await;
        let _ = ledger.put(engine, base + 5500, 700_001).await;
        let _ = ledger.flush(engine).await;
    };
    tokio::join!(small, replaced, large);
}

/// Runs everything on a copy of `device` until the device halts at its operation `halt_at`.
fn run_until(device: &SimDevice, known: &Ledger, options: &OpenOptions, halt_at: Option<u64>, rounds: u64) -> (SimDevice, Ledger) {
    let (device, ledger) = (device.snapshot_completed(halt_at.unwrap_or(0)), known.copy());
    if let Some(at) = halt_at {
        device.handle().halt_at(at);
    }
    run(async {
        let handle = device.handle();
        tokio::select! {
            () = handle.halted() => {}
            () = async {
                let (engine, _) = open(&device, options.clone()).await;
                everything(&engine, &ledger, 100_000, rounds).await;
            } => {}
        }
    });
    if options.durability == blockstore_engine::Durability::Group {
        ledger.all_durable();
    }
    (device, ledger)
}

fn check(device: &SimDevice, ledger: &Ledger, options: &OpenOptions, at_least: Fate, story: &str) {
    run(async {
        let (engine, _) = open(device, options.clone()).await;
        ledger.assert_kept(&engine, at_least, story).await;
        engine.put(content(999_999), bytes(999_999, 3000)).await.expect("a store that was opened accepts puts");
        assert_eq!(get(&engine, &content(999_999), None).await, Some(bytes(999_999, 3000)), "{story}");
    });
}

fn crash_everywhere(device: &SimDevice, known: &Ledger, options: &OpenOptions, rounds: u64, step: u64) {
    let (whole, _) = run_until(device, known, options, None, rounds);
    let operations = whole.handle().operations();
    assert!(operations > 100, "{operations}");
    for at in (0..operations).step_by(step as usize) {
        let (device, ledger) = run_until(device, known, options, Some(at), rounds);
        for seed in 0..2 {
            let story = format!("power cut {seed} at operation {at} of {operations}");
            check(&device.crash(at * 10 + seed), &ledger, options, Fate::Durable, &story);
        }
        let story = format!("killed at operation {at} of {operations}");
        check(&device.snapshot_completed(at), &ledger, options, Fate::Acknowledged, &story);
    }
}

#[test]
fn whatever_operation_a_crash_interrupts_no_durable_blob_is_lost_and_no_byte_is_wrong() {
    crash_everywhere(&small_store(1), &Ledger::default(), &options(), 6, 1);
}

#[test]
fn in_group_mode_whatever_operation_a_crash_interrupts_no_acknowledged_blob_is_lost() {
    crash_everywhere(&small_store(2), &Ledger::default(), &group(), 5, 1);
}

#[test]
fn beside_reclaim_whatever_operation_a_crash_interrupts_no_durable_blob_is_lost() {
    let (device, ledger) = full_store(3);
    let (whole, after) = run_until(&device, &ledger, &options(), None, 12);
    run(async {
        let (engine, _) = open(&whole, options()).await;
        after.assert_kept(&engine, Fate::Durable, "nothing went wrong").await;
    });
    assert!(crate::disk::count_of(&whole, crate::disk::RETIRE) > 1, "blocks are reclaimed in the run");
    crash_everywhere(&device, &ledger, &options(), 12, 3);
}

#[test]
fn recovering_twice_gives_what_recovering_once_gives_wherever_the_first_recovery_was_cut_off() {
    let device = small_store(4);
    let known = Ledger::default();
    let (whole, _) = run_until(&device, &known, &options(), None, 6);
    let operations = whole.handle().operations();
    for at in (operations / 4..operations).step_by(operations as usize / 12) {
        let (device, ledger) = run_until(&device, &known, &options(), Some(at), 6);
        let left = device.crash(at);
        let (once, view) = run(async {
            let once = left.snapshot_completed(0);
            let (engine, _) = open(&once, options()).await;
            let view = ledger.view(&engine).await;
            (once.handle().operations(), view)
        });
        // Reads of the view come behind the recovery's own operations, so this is a little too many.
        for cut in 0..once {
            let again = left.snapshot_completed(0);
            again.handle().halt_at(cut);
            run(async {
                tokio::select! {
                    () = again.handle().halted() => {}
                    _ = open(&again, options()) => {}
                }
            });
            let model = CrashModel { garbage: cut % 2 == 0, unreadable: cut % 3 == 0 };
            let after = again.crash_with(cut, model);
            run(async {
                let (engine, _) = open(&after, options()).await;
                assert_eq!(ledger.view(&engine).await, view, "crash at {at}, recovery cut off at {cut}");
            });
            if cut > 0 && again.handle().operations() < cut {
                break;
            }
        }
    }
}
