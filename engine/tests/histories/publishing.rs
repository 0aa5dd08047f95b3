//! Publishing and acknowledging: nobody is told of what a crash could still take back.

use crate::{
    common::*,
    disk::Gate,
    shared::{publishing::*, stores::small_store},
};
use blockstore_engine::Engine;
use std::{sync::Arc, time::Duration};

// A second client put the same blob, found it, and was told "present" while the flush that covers it was under way; the power failed,
// and the blob was gone that a group store had acknowledged.
#[test]
fn in_group_mode_a_put_that_finds_its_blob_waits_for_the_flush_that_covers_it() {
    let device = small_store(1);
    run(async {
        let gate = Gate::new(&device);
        let (engine, _) = Engine::open(Arc::new(gate.clone()), group()).await.expect("open");
        engine.put(content(0), bytes(0, 10)).await.expect("put");
        gate.hold_flushes();
        let put = |key, data| {
            let engine = engine.clone();
            tokio::spawn(async move { engine.put(key, data).await })
        };
        let waiting = [put(content(1), bytes(1, 1000)), put(content(1), bytes(1, 1000)), put(named(1), bytes(2, 50))];
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(engine.lookup(&[(content(1), Some(1000)), (named(1), None)]).await, [false, false]);
        assert!(waiting.iter().all(|t| !t.is_finished()));
        gate.open();
        for task in waiting {
            task.await.expect("task").expect("put");
        }
        for seed in 0..20 {
            let (engine, _) = open(&device.crash(seed), group()).await;
            assert_eq!(engine.lookup(&[(content(1), Some(1000)), (named(1), None)]).await, [true, true]);
        }
    });
}

// A batch was answered when its own write was complete, though the one before it was not: a kill left a hole in the log, at which
// replay ends.
#[test]
fn a_kill_at_any_moment_loses_no_acknowledged_put_of_many_clients() {
    (0..12).for_each(|seed| killed_among_many_clients(seed, 60 + seed * 17));
}
