//! Looking after a store that nobody has open, on the simulated device: what end-to-end tests of the tool cannot time or cut.

mod common;

use blockstore_engine::{
    OpenError,
    device::{AlignedBuf, Device, PAGE_BYTES, SimDevice},
    offline::{self, OfflineStore, Shrink, Trust, VisitOptions, Visited},
};
use common::*;
use std::{future::Future, ops::ControlFlow, sync::Arc, time::Duration};
use tokio::time::Instant;

const STORE_MIB: u64 = 40;

fn shared(device: &SimDevice) -> Arc<dyn Device> {
    Arc::new(device.clone())
}

async fn store(seed: u64) -> SimDevice {
    let device = sim(STORE_MIB, seed);
    format(&device, Some(3000)).await;
    let (engine, _) = open(&device, options()).await;
    for id in 0..40 {
        engine.put(content(id), bytes(id, 90_000)).await.expect("put");
        engine.put(named(id), bytes(id + 100, 300)).await.expect("put");
    }
    engine.close().await.expect("close");
    device
}

async fn assert_all_there(device: &SimDevice, when: &str) {
    let (engine, _) = open(device, options()).await;
    for id in 0..40 {
        assert!(get(&engine, &content(id), None).await == Some(bytes(id, 90_000)), "{when}: content {id}");
        assert!(get(&engine, &named(id), None).await == Some(bytes(id + 100, 300)), "{when}: name {id}");
    }
    engine.close().await.expect("close");
}

/// Ends work after so many steps of it, if it is not done by then. Says how many it took.
async fn cut(steps: u64, work: impl Future<Output = ()> + Send + 'static) -> u64 {
    let working = tokio::spawn(work);
    let mut step = 0;
    while step < steps && !working.is_finished() {
        tokio::task::yield_now().await;
        step += 1;
    }
    working.abort();
    let _ = working.await;
    step
}

/// Steps at which work of `total` steps is cut: all over it, and at each of the last ones, where superblocks are written.
fn cuts(total: u64) -> impl Iterator<Item = u64> {
    (0..6).map(move |n| total * n / 6).chain(total.saturating_sub(24)..=total)
}

#[test]
fn a_visit_reads_no_faster_than_it_may() {
    run(async {
        let device = store(1).await;
        let store = Arc::new(OfflineStore::read(shared(&device), Trust::Two).await.expect("a store"));
        let mut times = Vec::new();
        for rate_bytes_per_s in [None, Some(1 << 20)] {
            let options = VisitOptions { rate_bytes_per_s, ..VisitOptions::default() };
            let (start, mut read, mut last) = (Instant::now(), 0, 0);
            let _ = store
                .visit(0..store.block_count(), &options, |visited| {
                    if let Visited::Read(bytes) = visited {
                        read += bytes;
                        last = bytes;
                    }
                    ControlFlow::Continue(())
                })
                .await;
            // Each run is paid for behind it: only the last one is not.
            times.push((start.elapsed(), Duration::from_secs_f64((read - last) as f64 / f64::from(1 << 20))));
        }
        // The clock of this test is a virtual one.
        assert!(times[0].0 < times[0].1, "without a bound it is faster: {times:?}");
        assert!(times[1].0 >= times[1].1 && times[1].1 > Duration::from_secs(2), "{times:?}");
    });
}

/// What a rebuild changes before the superblocks is nothing that the store needs, and a rebuild of what a cut leaves finds everything.
#[test]
fn a_rebuild_that_the_power_cuts_off_anywhere_can_be_done_again() {
    run(async {
        let sound = store(2).await;
        let rebuild = |device: Arc<dyn Device>| async move {
            offline::rebuild(&device, |_| {}).await.expect("rebuilt");
        };
        let total = cut(u64::MAX, rebuild(shared(&sound.snapshot_completed(0)))).await;
        for (seed, steps) in (0..).zip(cuts(total)) {
            let device = sound.snapshot_completed(seed);
            cut(steps, rebuild(shared(&device))).await;
            let after = device.crash(seed);
            assert_all_there(&after.snapshot_completed(seed), "opened as it was left").await;
            rebuild(shared(&after)).await;
            assert_all_there(&after, "rebuilt").await;
        }
    });
}

#[test]
fn a_grow_that_the_power_cuts_off_anywhere_leaves_the_old_store_or_the_new_one() {
    run(async {
        let sound = store(3).await;
        let grow = |device: Arc<dyn Device>| async move {
            offline::grow(&device, Some(8000), |_| {}).await.expect("grown");
        };
        let total = cut(u64::MAX, grow(shared(&larger(&sound, 0).await))).await;
        let mut outcomes = [0, 0];
        for (seed, steps) in (0..).zip(cuts(total)) {
            let device = larger(&sound, seed).await;
            cut(steps, grow(shared(&device))).await;
            let after = device.crash(seed);
            assert_all_there(&after.snapshot_completed(seed), "opened as it was left").await;
            match offline::grow(&shared(&after), Some(8000), |_| {}).await {
                Ok(report) => outcomes[usize::from(report.blocks_after > report.blocks_before)] += 1,
                Err(error) => {
                    assert!(error.to_string().contains("is no larger"), "{error}");
                    outcomes[0] += 1;
                }
            }
            assert_all_there(&after, "grown").await;
            assert_eq!(OfflineStore::read(shared(&after), Trust::Two).await.expect("a store").report().superblock.store_bytes, 100 * MIB);
        }
        assert!(outcomes.iter().all(|n| *n > 0), "cut before and behind the superblocks: {outcomes:?}");
    });
}

/// A device of 100 MiB that begins with a copy of the store: as a grow leaves it that was cut off before it wrote anything.
async fn larger(from: &SimDevice, seed: u64) -> SimDevice {
    let to = sim(100, seed);
    for at in (0..STORE_MIB * MIB).step_by(MIB as usize) {
        let (buf, result) = from.read(at, AlignedBuf::take(MIB as usize)).await;
        result.expect("read");
        to.write(at, buf).await.1.expect("write");
    }
    to.flush().await.expect("flush");
    to
}

/// A store of 72 MiB whose first 50 blocks are in use, each with about half of what was put there: so a smaller one has room for everything,
/// but only when blocks before its end are emptied as well as those behind it, and none before its end is free to begin with.
async fn scattered(seed: u64) -> SimDevice {
    let device = sim(72, seed);
    // An index so large that the smaller store's lies over it.
    format(&device, Some(100_000)).await;
    let (engine, _) = open(&device, options()).await;
    engine.put(content(0), bytes(5, 3_000_000)).await.expect("put");
    for id in 0..220 {
        engine.put(named(id), bytes(id, 200_000)).await.expect("put");
        engine.put(content(id + 1), bytes(id, 500)).await.expect("put");
    }
    for id in (1..220).step_by(2) {
        assert!(engine.delete(&named(id)).await.expect("delete"));
    }
    engine.close().await.expect("close");
    device
}

async fn assert_scattered(device: &SimDevice, when: &str) {
    let (engine, _) = open(device, options()).await;
    assert!(get(&engine, &content(0), None).await == Some(bytes(5, 3_000_000)), "{when}: large");
    for id in 0..220 {
        assert!(get(&engine, &content(id + 1), None).await == Some(bytes(id, 500)), "{when}: content {id}");
        let value = (id % 2 == 0).then(|| bytes(id, 200_000));
        assert!(get(&engine, &named(id), None).await == value, "{when}: name {id}");
    }
    engine.close().await.expect("close");
}

const SMALLER_BYTES: u64 = 48 * MIB;

async fn shrink(device: Arc<dyn Device>) -> Result<offline::ShrinkReport, OpenError> {
    let plan = Shrink::plan(&device, SMALLER_BYTES, None, |_| {}).await?;
    assert_eq!(plan.loss().objects, 0, "everything has room");
    plan.carry_out(|_| {}).await
}

#[test]
fn a_shrink_that_the_power_cuts_off_anywhere_leaves_the_old_store_or_the_smaller_one() {
    run(async {
        let sound = scattered(5).await;
        let work = |device: Arc<dyn Device>| async move {
            shrink(device).await.expect("shrunk");
        };
        let report = shrink(shared(&sound.snapshot_completed(0))).await.expect("shrunk");
        assert!(report.copied_records > 60, "{report:?}");
        let total = cut(u64::MAX, work(shared(&sound.snapshot_completed(0)))).await;
        let mut outcomes = [0, 0, 0];
        for (seed, steps) in (0..).zip(cuts(total).chain((1..12).map(|n| total - total * n / 48))) {
            let device = sound.snapshot_completed(seed);
            cut(steps, work(shared(&device))).await;
            let after = device.crash(seed);
            assert_scattered(&after.snapshot_completed(seed), "opened as it was left").await;
            match shrink(shared(&after)).await {
                Ok(report) => outcomes[usize::from(report.copied_records == 0)] += 1,
                Err(error) => {
                    assert!(error.to_string().contains("are no fewer"), "{error}");
                    outcomes[2] += 1;
                }
            }
            assert_scattered(&after, "shrunk").await;
            assert_eq!(
                OfflineStore::read(shared(&after), Trust::Two).await.expect("a store").report().superblock.store_bytes,
                SMALLER_BYTES
            );
        }
        assert!(outcomes.iter().all(|n| *n > 0), "cut before the copies count, before the superblocks and behind them: {outcomes:?}");
    });
}

/// The last superblocks of a store that is smaller than its device are not at the device's end, and the copies of the larger store are: with
/// the first two lost together, as one power cut can, the smaller store must be found, and not the larger one that it was.
#[test]
fn behind_a_shrink_the_last_superblocks_are_found_without_the_first() {
    run(async {
        let device = scattered(6).await;
        shrink(shared(&device)).await.expect("shrunk");
        let lose_first = |device: SimDevice| async move {
            for page in 0..2 {
                device.write(page * PAGE_BYTES as u64, AlignedBuf::zeroed(PAGE_BYTES)).await.1.expect("write");
            }
            device.flush().await.expect("flush");
            device
        };
        let found = |device: SimDevice| async move {
            OfflineStore::read(shared(&device), Trust::Two)
                .await
                .map(|store| store.report().superblock.store_bytes)
                .map_err(|e| e.to_string())
        };
        let lost = lose_first(device.snapshot_completed(1)).await;
        assert_eq!(found(lost.clone()).await, Ok(SMALLER_BYTES));
        assert_scattered(&lost, "opened by the last two").await;

        // A shrink that ended right behind the first two: the copies of the larger store are still whole at the end of the device. The
        // opening takes them away before it writes anything else.
        let old = scattered(6).await;
        let unpointed = device.snapshot_completed(2);
        let end = 72 * MIB;
        for at in [end - 2 * PAGE_BYTES as u64, end - PAGE_BYTES as u64] {
            let (page, result) = old.read(at, AlignedBuf::take(PAGE_BYTES)).await;
            result.expect("read");
            unpointed.write(at, page).await.1.expect("write");
        }
        unpointed.flush().await.expect("flush");
        let (engine, _) = open(&unpointed, options()).await;
        engine.put(content(7777), bytes(1, 100)).await.expect("put");
        engine.close().await.expect("close");
        let lost = lose_first(unpointed.snapshot_completed(3)).await;
        assert_eq!(found(lost.clone()).await, Ok(SMALLER_BYTES));
        let (engine, _) = open(&lost, options()).await;
        assert!(get(&engine, &content(7777), None).await.is_some());
        engine.close().await.expect("close");
    });
}
