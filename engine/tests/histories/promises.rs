//! The eight promises, a test each, and the proof that these tests would notice a device that breaks its own.

use crate::{
    common::*,
    disk::*,
    ledger::{Fate, Ledger},
    shared::{
        publishing::*,
        rot::*,
        stores::{full_store, small_store},
    },
};
use blockstore_engine::{
    Begin, Engine, PutError,
    device::{FlushFault, ReadFault, WriteFault},
};
use std::{collections::VecDeque, time::Duration};

#[test]
fn promise_1_a_read_returns_exactly_the_bytes_that_were_put_or_a_miss_whatever_rots() {
    let (device, ledger) = fresh(1);
    (0..60).for_each(|seed| rotten_all_over(&device, &ledger, seed));
}

#[test]
fn promise_1_an_earlier_version_at_the_very_offset_of_another_block_reads_as_a_miss() {
    (0..3).for_each(an_earlier_version_at_the_very_offset);
}

#[test]
fn promise_1_stale_and_foreign_data_read_as_a_miss() {
    let (device, ledger) = fresh(2);
    let other = small_store(3);
    run(async {
        let (engine, _) = open(&other, options()).await;
        filled(&engine, &ledger.copy(), 0).await.expect("put");
    });
    let layout = superblock(&device, 0);
    // Another block of the same store, and the same block of a store with the same keys.
    let (a, b) = (layout.block(0), layout.block(1));
    for (from, to) in [(&device, b.start), (&other, a.start)] {
        let mixed = device.snapshot_completed(0);
        let stale = from.handle().peek(if to == b.start { a.clone() } else { b.clone() }).expect("peek");
        mixed.handle().poke(to, &stale);
        run(async {
            let (engine, _) = open(&mixed, options()).await;
            let faults = ledger.faults(&engine, Fate::Durable).await;
            assert!(!faults.is_empty() && !faults.iter().any(|f| f.contains("wrong bytes")), "{faults:?}");
        });
    }
}

#[test]
fn promise_2_a_killed_process_loses_no_acknowledged_blob() {
    for seed in 0..25 {
        let (device, ledger) = (small_store(seed), Ledger::default());
        device.handle().halt_at(40 + seed * 7);
        run(async {
            tokio::select! {
                () = device.handle().halted() => {}
                () = async {
                    let (engine, _) = open(&device, options()).await;
                    let _ = tokio::join!(filled(&engine, &ledger, 0), filled(&engine, &ledger, 1000), filled(&engine, &ledger, 2000));
                } => {}
            }
        });
        run(async {
            let (engine, _) = open(&device.snapshot_completed(seed), options()).await;
            ledger.assert_kept(&engine, Fate::Acknowledged, &format!("kill {seed}")).await;
        });
    }
}

#[test]
fn promise_3_a_power_cut_loses_only_what_was_acknowledged_within_the_last_second_or_nothing_in_group_mode() {
    (0..20).for_each(|seed| cut_off_by_power(seed, seed % 2 == 0));
}

#[test]
fn promise_4_what_was_reported_present_stays_present_while_less_than_w_is_accepted() {
    let device = small_store(5);
    run(async {
        let (engine, _) = open(&device, options()).await;
        let w = engine.stats().capacity_bytes / 4;
        let mut reported = VecDeque::new();
        let mut checked = 0;
        for id in 0..3000u64 {
            engine.put(content(id), bytes(id, 20_000 + (id as usize % 7) * 5000)).await.expect("put");
            let now = engine.stats().accepted_bytes;
            reported.push_back((id, now));
            // Each once, when its window is all but over: so what is reported or accepted in a window stays within half.
            while let Some((old, at)) = reported.front().copied().filter(|(_, at)| now - at > w - 200_000) {
                let size = 20_000 + (old % 7) * 5000;
                assert!(engine.lookup(&[(content(old), Some(size))]).await[0], "{old}, put {} of {w} bytes ago", now - at);
                reported.pop_front();
                checked += 1;
            }
        }
        let stats = engine.stats();
        assert!(checked > 2000 && stats.blocks_reclaimed > 50, "{checked} {stats:?}");
        assert_eq!(stats.retention_breaches, 0);
    });
}

// A flush failed, and the process died. The next one found in the page cache what the disk lacked, took it over, and a power cut after
// its own flush, which had succeeded, showed that it was never there.
#[test]
fn promise_3_what_a_failed_flush_lost_is_not_taken_over_by_the_next_run() {
    let (mut found, mut missing) = (0, 0);
    for seed in 0..40 {
        let device = small_store(seed);
        let ids = 0..60u64;
        run(async {
            let (engine, _) = open(&device, options()).await;
            engine.put(content(999), bytes(999, 3000)).await.expect("put");
            engine.flush().await.expect("flush");
            tokio::time::sleep(Duration::from_secs(5)).await;
            device.handle().on_flush(0, FlushFault::Fail);
            for id in ids.clone() {
                // Blocks that are opened ahead ask for a flush, too.
                let _ = engine.put(content(id), bytes(id, 3000 + 3000 * (id as usize % 9))).await;
            }
            assert!(matches!(engine.flush().await, Err(PutError::Unavailable(_))));
        });
        let device = device.snapshot_completed(seed);
        let kept = run(async {
            let (engine, _) = open(&device, options()).await;
            let present = engine.lookup(&ids.clone().map(|id| (content(id), None)).collect::<Vec<_>>()).await;
            engine.flush().await.expect("flush");
            ids.clone().zip(present).filter(|(_, p)| *p).map(|(id, _)| id).collect::<Vec<_>>()
        });
        run(async {
            let (engine, _) = open(&device.crash(seed), options()).await;
            for id in &kept {
                assert!(get(&engine, &content(*id), None).await.is_some(), "{id} of seed {seed} was found, flushed, and is gone");
            }
        });
        found += kept.len();
        missing += ids.count() - kept.len();
    }
    assert!(found > 10 && missing > 10, "{found} found, {missing} missing");
}

/// A set of a tenth of the capacity that is asked for whenever half of W has been accepted since.
struct Asked {
    blobs: Vec<(u64, u64)>,
    w_bytes: u64,
    asked_at: std::cell::Cell<u64>,
    times: std::cell::Cell<u64>,
}

impl Asked {
    async fn put(engine: &Engine) -> Self {
        let stats = engine.stats();
        let size = 20_000;
        let blobs: Vec<_> = (0..stats.capacity_bytes / 10 / size).map(|n| (700_000 + n, size)).collect();
        for (id, size) in &blobs {
            engine.put(content(*id), bytes(*id, *size as usize)).await.expect("put");
        }
        let asked_at = engine.stats().accepted_bytes.into();
        Self { blobs, w_bytes: stats.capacity_bytes / 4, asked_at, times: 0.into() }
    }
    /// Asks if it is time, and finds all of it.
    async fn ask(&self, engine: &Engine) {
        let now = engine.stats().accepted_bytes;
        if now - self.asked_at.get() < self.w_bytes / 2 {
            return;
        }
        self.asked_at.set(now);
        self.times.set(self.times.get() + 1);
        let keys: Vec<_> = self.blobs.iter().map(|(id, size)| (content(*id), Some(*size))).collect();
        let found = engine.lookup(&keys).await;
        let lost = found.iter().filter(|f| !**f).count();
        assert_eq!(lost, 0, "of {} after {now} accepted bytes: {:?}", keys.len(), engine.stats());
    }
}

#[test]
fn promise_4_holds_beside_uploads_that_write_the_store_twice_over() {
    for (seed, fraction) in [(12, 8), (13, 5), (14, 3)] {
        let device = small_store(seed);
        run(async {
            let (engine, _) = open(&device, options()).await;
            let asked = Asked::put(&engine).await;
            let each = engine.stats().capacity_bytes / fraction;
            let uploads = (0..2 * fraction).map(|n| {
                let (engine, asked) = (&engine, &asked);
                async move {
                    let data = bytes(n, 64 << 10);
                    let Begin::Upload(mut upload) = engine.begin_upload(content(800_000 + n), each).await.expect("begin") else {
                        panic!("new")
                    };
                    while upload.written_bytes() < each {
                        let left = (each - upload.written_bytes()).min(data.len() as u64);
                        upload.write(&data[..left as usize]).await.expect("write");
                        asked.ask(engine).await;
                        tokio::task::yield_now().await;
                    }
                    upload.finish().await.expect("finish");
                    asked.ask(engine).await;
                }
            });
            futures::future::join_all(uploads).await;
            let stats = engine.stats();
            assert_eq!(stats.retention_breaches, 0, "a {fraction}th each: {stats:?}");
            assert!(asked.times.get() >= 14, "{}", asked.times.get());
        });
    }
}

#[test]
fn promise_4_holds_beside_an_upload_of_nearly_half_the_store_that_takes_its_time() {
    let device = small_store(13);
    run(async {
        let (engine, _) = open(&device, options()).await;
        let asked = Asked::put(&engine).await;
        let capacity = engine.stats().capacity_bytes;
        let large = capacity / 100 * 45;
        let data = bytes(5, 256 << 10);
        let Begin::Upload(mut upload) = engine.begin_upload(content(800_000), large).await.expect("begin") else { panic!("new") };
        let mut id = 0;
        while upload.written_bytes() < large {
            let left = (large - upload.written_bytes()).min(data.len() as u64);
            upload.write(&data[..left as usize]).await.expect("write");
            // Six times as much from others: nearly three times the capacity before it ends.
            for _ in 0..48 {
                id += 1;
                engine.put(content(id), bytes(id, 32_000)).await.expect("put");
                asked.ask(&engine).await;
            }
        }
        upload.finish().await.expect("finish");
        let stats = engine.stats();
        assert_eq!(stats.retention_breaches, 0, "{stats:?}");
        assert!(stats.accepted_bytes > 3 * capacity && asked.times.get() > 20, "{stats:?}");
        let object = engine.get(&content(800_000), Some(large)).await.expect("the upload");
        let mut reader = object.reader(0, None).expect("0");
        let mut read = 0;
        while let Some(piece) = reader.next().await {
            for chunk in piece.expect("whole").into_bytes().chunks(1) {
                debug_assert_eq!(chunk[0], data[read % data.len()]);
                read += 1;
            }
        }
        assert_eq!(read as u64, large);
    });
}

// One flipped bit cost the best known engine of this shape 85 % of a store.
#[test]
fn promise_5_corruption_costs_one_blob() {
    let (device, ledger) = fresh(6);
    let layout = superblock(&device, 0);
    let puts: Vec<_> = log_units(&device).into_iter().filter(|u| u.tag == PUT).collect();
    for (n, unit) in puts.iter().enumerate() {
        let rotten = device.snapshot_completed(0);
        let start = layout.block(u64::from(unit.vbn % layout.vbn_stride)).start + unit.offset_bytes;
        if n % 2 == 0 {
            rotten.handle().rot(start + (n as u64 * 97) % 100, 8);
        } else {
            rotten.handle().rot(start + 64 + unit.extent_bytes / 3, 1);
        }
        run(async {
            let (engine, _) = open(&rotten, options()).await;
            let lost = ledger.faults(&engine, Fate::Durable).await.into_iter().filter(|f| !f.contains("lookup says")).collect::<Vec<_>>();
            assert!(lost.len() <= 1, "{unit:?}: {lost:?}");
            assert_eq!(engine.poisoned(), None);
            // A damaged blob can be put again.
            ledger.put_many(&engine, 0..60, 500).await.expect("put");
            ledger.put(&engine, 101, 150_000).await.expect("put");
            let lost = ledger.faults(&engine, Fate::Durable).await;
            assert!(lost.iter().all(|f| f.contains("named") || f.contains("content 102") || f.contains("content 100")), "{lost:?}");
        });
    }
    for physical in 0..4 {
        let rotten = device.snapshot_completed(0);
        rotten.handle().rot(layout.block(physical).start + 20, 1);
        run(async {
            let (engine, _) = open(&rotten, options()).await;
            ledger.assert_kept(&engine, Fate::Durable, "a block's header rotted").await;
        });
    }
}

// Sectors that an interrupted write made unreadable lay behind a durable record. Its length is known roughly, so the read went too
// far, failed, and the record was dropped.
#[test]
fn promise_5_a_neighbour_that_cannot_be_read_costs_only_itself() {
    let (device, ledger) = fresh(7);
    let layout = superblock(&device, 0);
    for unit in log_units(&device).iter().filter(|u| u.tag == PUT) {
        let end =
            layout.block(u64::from(unit.vbn % layout.vbn_stride)).start + (unit.offset_bytes + unit.extent_bytes).next_multiple_of(PAGE);
        let bad = device.snapshot_completed(0);
        bad.handle().make_unreadable(end..end + PAGE);
        run(async {
            let (engine, _) = open(&bad, options()).await;
            let lost = ledger.faults(&engine, Fate::Durable).await;
            let on_it = log_units(&device)
                .iter()
                .filter(|u| {
                    let start = layout.block(u64::from(u.vbn % layout.vbn_stride)).start + u.offset_bytes;
                    u.tag == PUT && start < end + PAGE && start + u.extent_bytes > end
                })
                .count();
            assert!(lost.iter().filter(|f| f.ends_with("lost")).count() <= on_it, "{unit:?}: {on_it} on the page, {lost:?}");
        });
    }
}

#[test]
fn promise_6_an_upload_evicts_nothing_before_it_commits() {
    let (device, ledger) = full_store(8);
    run(async {
        let (engine, _) = open(&device, options()).await;
        let before = engine.stats();
        let Begin::Upload(mut upload) = engine.begin_upload(content(500_000), 2 * MIB).await.expect("begin") else { panic!("new") };
        upload.write(&bytes(1, 1_900_000)).await.expect("write");
        tokio::time::sleep(Duration::from_secs(10)).await;
        let during = engine.stats();
        assert_eq!((during.dropped_records, during.accepted_bytes), (before.dropped_records, before.accepted_bytes));
        ledger.assert_kept(&engine, Fate::Durable, "an upload").await;
    });
}

#[test]
fn promise_7_a_failed_write_or_flush_poisons_writing_and_reads_go_on() {
    for seed in 0..24 {
        let (device, ledger) = fresh(9);
        run(async {
            let (engine, _) = open(&device, if seed % 4 < 2 { options() } else { group() }).await;
            engine.put(content(9000), bytes(9000, 10)).await.expect("put");
            if seed % 2 == 0 {
                device.handle().on_write(seed / 4, WriteFault::Fail);
            } else {
                device.handle().on_flush(0, FlushFault::Fail);
            }
            let mut failed = 0;
            for id in 9001..9020 {
                if let Err(e) = engine.put(content(id), bytes(id, 5000)).await {
                    assert!(matches!(e, PutError::Unavailable(_)), "{e:?}");
                    failed += 1;
                } else {
                    ledger.tried(id, 5000);
                    assert_eq!(failed, 0, "put {id} succeeded after one had failed");
                }
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            assert!(failed > 0 && engine.poisoned().is_some());
            let flushes = device.handle().counters();
            for _ in 0..3 {
                assert!(matches!(engine.flush().await, Err(PutError::Unavailable(_))));
            }
            assert!(matches!(engine.begin_upload(content(1), 5).await, Err(PutError::Unavailable(_))));
            assert!(engine.close().await.is_err());
            tokio::time::sleep(Duration::from_secs(60)).await;
            let later = device.handle().counters();
            assert_eq!((later.flushes, later.writes, later.failed), (flushes.flushes, flushes.writes, flushes.failed), "never retried");
            ledger.assert_kept(&engine, Fate::Durable, "poisoned").await;
        });
        run(async {
            let (engine, _) = open(&device.crash(seed), options()).await;
            ledger.assert_kept(&engine, Fate::Durable, "opened again").await;
            engine.put(content(9999), bytes(9999, 10)).await.expect("a restart accepts puts again");
        });
    }
}

#[test]
fn promise_7_an_error_of_a_read_is_damage_of_that_record_and_no_poison() {
    let (device, ledger) = fresh(10);
    run(async {
        let (engine, _) = open(&device, options()).await;
        device.handle().on_read(0, ReadFault::Fail);
        device.handle().on_read(1, ReadFault::Fail);
        assert!(get(&engine, &content(7), Some(500)).await.is_none());
        assert_eq!(engine.poisoned(), None);
        let faults = ledger.faults(&engine, Fate::Durable).await;
        assert!(faults.len() == 1 && faults[0].starts_with("content 7 "), "{faults:?}");
        ledger.put(&engine, 7, 500).await.expect("put");
        ledger.assert_kept(&engine, Fate::Durable, "put again").await;
    });
}

#[test]
fn promise_8_an_open_reads_at_most_table_log_block_headers_and_what_was_not_flushed() {
    let (device, _) = full_store(11);
    let layout = superblock(&device, 0);
    let fixed = layout.log_pages * PAGE + layout.image(0).end - layout.image(0).start + layout.block_count * PAGE + 8 * PAGE;
    for (device, unflushed) in [(device.snapshot_completed(0), 0), (fresh(12).0, 2 * MIB)] {
        run(async {
            let (_, report) = open(&device, options()).await;
            assert!(report.read_bytes <= fixed + unflushed, "{} of {fixed}", report.read_bytes);
        });
    }
}

// The canary: a barrier that is skipped must be noticed by the same checks that pass everywhere else.
#[test]
fn a_flush_that_lies_is_noticed() {
    let mut noticed = 0;
    for seed in 0..10 {
        let (device, ledger) = (small_store(seed), Ledger::default());
        (0..100).for_each(|nth| device.handle().on_flush(nth, FlushFault::Lie));
        run(async {
            let (engine, _) = open(&device, options()).await;
            filled(&engine, &ledger, 0).await.expect("put");
            engine.checkpoint().await.expect("image");
        });
        let left = device.crash(seed);
        noticed += usize::from(run(async {
            match Engine::open(std::sync::Arc::new(left.clone()), options()).await {
                Ok((engine, _)) => !ledger.faults(&engine, Fate::Durable).await.is_empty(),
                Err(_) => true,
            }
        }));
    }
    assert!(noticed >= 8, "{noticed} of 10");
}
