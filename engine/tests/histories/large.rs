//! Large objects: their parts are kept or dropped as a whole, and what is aborted costs nobody anything.

use crate::{
    common::*,
    ledger::{Fate, Ledger},
    shared::{
        large::*,
        stores::{full_store, small_store},
    },
};
use blockstore_engine::{Begin, PutError};

// Each ended on a part of less than 64 KiB, which is laid out like a small record but has no LSN when it is written: replay held it
// to one, voided it, and the object was gone after a kill.
#[test]
fn large_objects_of_any_length_survive_a_kill() {
    for (seed, tail) in [1usize, 100, 4096, 60_000, 65_535, 65_536, 65_537, 200_000, 262_143, 262_144].into_iter().enumerate() {
        killed_behind_large_objects(seed as u64, tail);
    }
}

// Forty uploads as large as a block were begun and broken off: each took the place of what others had put.
#[test]
fn forty_aborted_uploads_evict_nothing() {
    let (device, ledger) = full_store(1);
    run(async {
        let (engine, _) = open(&device, options()).await;
        let before = engine.stats();
        for id in 0..40u64 {
            let Begin::Upload(mut upload) = engine.begin_upload(content(500_000 + id), MIB).await.expect("begin") else { panic!("new") };
            upload.write(&bytes(id, MIB as usize - 1)).await.expect("write");
            drop(upload);
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        let after = engine.stats();
        assert_eq!(after.retention_breaches, 0);
        assert_eq!(after.accepted_bytes, before.accepted_bytes, "nothing of them counts");
        assert_eq!(after.live_slots, before.live_slots);
        assert_eq!((after.uploads_aborted, after.dropped_records), (40, before.dropped_records));
        ledger.assert_kept(&engine, Fate::Durable, "forty aborted uploads").await;
    });
}

// Reclaim met the parts of an upload that was still running, found no manifest that wants them, and dropped them.
#[test]
fn the_parts_of_a_running_upload_are_wanted_however_long_it_takes() {
    let (device, _) = full_store(2);
    run(async {
        let (engine, _) = open(&device, options()).await;
        let data = bytes(7, 1_500_000);
        let Begin::Upload(mut slow) = engine.begin_upload(content(600_000), 1_500_000).await.expect("begin") else { panic!("new") };
        for (step, chunk) in (0u64..).zip(data.chunks(300_000)) {
            slow.write(chunk).await.expect("write");
            for id in 0..250 {
                engine.put(content(700_000 + step * 250 + id), bytes(id, 50_000)).await.expect("put");
            }
        }
        assert!(engine.stats().blocks_reclaimed > 40, "{:?}", engine.stats());
        slow.finish().await.expect("finish");
        assert!(get(&engine, &content(600_000), Some(1_500_000)).await == Some(data));
    });
}

// It waited for a minute, and what it had been sent meanwhile kept the connection from the upload that it waited for.
#[test]
fn an_upload_that_finds_no_room_is_refused_within_seconds_and_holds_nothing() {
    let device = small_store(4);
    run(async {
        let (engine, _) = open(&device, options()).await;
        let size = engine.stats().capacity_bytes / 3;
        let Begin::Upload(first) = engine.begin_upload(content(1), size).await.expect("begin") else { panic!("new") };
        let start = tokio::time::Instant::now();
        let refused = engine.begin_upload(content(2), size).await.err();
        assert!(matches!(refused, Some(PutError::NoRoom(_))), "{refused:?}");
        assert!(start.elapsed() < std::time::Duration::from_secs(15), "{:?} of simulated time", start.elapsed());
        assert_eq!(engine.stats().upload_held_bytes, size);
        drop(first);
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        engine.put(content(2), bytes(2, size as usize)).await.expect("there is room now");
    });
}

// A block was emptied that held one part of an object: the object stayed "present", and broke off in the middle when it was read.
#[test]
fn a_large_object_is_there_as_a_whole_or_not_at_all() {
    let device = small_store(3);
    let ledger = Ledger::default();
    run(async {
        let (engine, _) = open(&device, options()).await;
        for id in 0..150 {
            ledger.put(&engine, id, 300_000 + (id as usize % 7) * 150_000).await.expect("put");
            if id % 3 == 0 {
                engine.lookup(&[(content(id / 2), Some(300_000 + (id / 2 % 7) * 150_000))]).await;
            }
            if id % 10 == 9 {
                ledger.flush(&engine).await.expect("flush");
            }
        }
        assert!(engine.stats().dropped_records > 20 && engine.stats().blocks_reclaimed > 20, "{:?}", engine.stats());
        let split = ledger.faults(&engine, Fate::Durable).await.into_iter().filter(|f| f.contains("lookup says")).collect::<Vec<_>>();
        assert!(split.is_empty(), "{split:?}");
    });
    for seed in 0..6 {
        run(async {
            let (engine, _) = open(&device.crash(seed), options()).await;
            let faults = ledger.faults(&engine, Fate::Durable).await;
            assert!(!faults.iter().any(|f| f.contains("wrong")), "{faults:?}");
        });
    }
}
