//! Futures that are dropped while they wait for others, or for room.

use crate::{Drop, alone, common::*, polled, promptly, store::*};
use blockstore_engine::{Begin, Engine, PutOutcome, Upload, device::Latency};
use futures::FutureExt;
use std::time::Duration;

async fn begin(engine: &Engine, id: u64, size_bytes: u64) -> Box<Upload> {
    match engine.begin_upload(content(id), size_bytes).await.expect("begin") {
        Begin::Upload(upload) => upload,
        Begin::AlreadyPresent => panic!("object {id} is new"),
    }
}

#[test]
fn a_reader_goes_on_behind_a_dropped_next() {
    alone(async {
        for polls in 0..40 {
            let what = format!("next, dropped after {polls} polls");
            let store = Store::new(&options(), polls as u64).await;
            let mut reader = store.engine.get(&content(2), None).await.expect("held").reader(0, None).expect("from the start");
            let mut out = Vec::new();
            loop {
                // Every piece is asked for in vain once, and then to its end.
                let asked = promptly(&what, polled(reader.next(), polls, Drop::AtOnce)).await;
                let piece = match asked {
                    Some(piece) => piece,
                    None => promptly(&what, reader.next()).await,
                };
                let Some(piece) = piece else { break };
                out.extend_from_slice(&piece.expect("a piece").into_bytes());
            }
            assert!(out == object(2), "{what}");
            drop(reader);
            store.rest(&what).await;
        }
    });
}

/// A follower is dropped while it follows, and, where it may wait for so long, after it has taken the lead from one that stands still.
#[test]
fn who_stops_following_another_put_harms_neither() {
    alone(async {
        for (id, seconds) in [(5, 5), (3, 20)] {
            for polls in 0..12 {
                for leader_ends in [true, false] {
                    let what = format!("follow {id}, dropped after {polls} polls or {seconds} s, leader ends: {leader_ends}");
                    let store = Store::new(&options(), polls as u64).await;
                    let mut contents = held();
                    let data = object(id);
                    let mut leader = begin(&store.engine, id, data.len() as u64).await;
                    leader.write(&data[..1000]).await.expect("write");
                    assert_eq!(store.engine.stats().flights, 1);
                    let follower = polled(store.engine.put(content(id), data.clone()), polls, Drop::Woken);
                    let followed = tokio::time::timeout(Duration::from_secs(seconds), follower).await.ok().flatten();
                    // It may have been handed over and dropped before the answer.
                    store.engine.flush().await.expect("flush");
                    let there = store.engine.lookup(&[(content(id), None)]).await == [true];
                    assert!(there || followed.is_none(), "{what}");
                    if leader_ends {
                        leader.write(&data[1000..]).await.expect("write");
                        promptly(&what, leader.finish()).await.expect("finish");
                    } else {
                        drop(leader);
                    }
                    store.rest(&what).await;
                    contents.insert((false, id), (leader_ends || there).then_some(data.clone()));
                    store.assert_holds(&what, &contents).await;
                    // A flight that was left behind would have everybody wait for it.
                    store.puts(&what, (false, id), data, &mut contents).await;
                    store.goes_on(&what, &mut contents).await;
                    store.killed(&what, &options(), &contents).await;
                }
            }
        }
    });
}

#[test]
fn who_stops_waiting_for_other_uploads_holds_nothing() {
    alone(async {
        let size_bytes = 10 << 20;
        for when in [Drop::AtOnce, Drop::Woken] {
            for polls in 0..6 {
                let what = format!("wait for uploads, dropped after {polls} polls, {when:?}");
                let store = Store::new(&options(), polls as u64).await;
                let first = begin(&store.engine, 5, size_bytes).await;
                let engine = store.engine.clone();
                let second = tokio::spawn(async move { polled(engine.begin_upload(content(8), size_bytes), polls, when).await.is_some() });
                tokio::time::sleep(Duration::from_millis(10)).await;
                assert_eq!(store.engine.stats().uploads_running, 1, "{what}: together they are more than half of the capacity");
                drop(first);
                promptly(&what, second).await.expect("the task");
                let mut contents = held();
                store.rest(&what).await;
                store.goes_on(&what, &mut contents).await;
            }
        }
    });
}

#[test]
fn who_stops_waiting_for_memory_holds_none() {
    alone(async {
        let size_bytes = 256 << 10;
        for polls in 0..4 {
            let what = format!("wait for memory, dropped after {polls} polls");
            let store = Store::new(&options(), polls as u64).await;
            let mut uploads = Vec::new();
            while let Some(Ok(Begin::Upload(upload))) =
                polled(store.engine.begin_upload(content(1000 + uploads.len() as u64), size_bytes), 1, Drop::AtOnce).await
            {
                uploads.push(upload);
                // Who takes very many permits in one poll is made to wait for that alone.
                tokio::task::yield_now().await;
            }
            assert!(uploads.len() > 400, "{} uploads have all the memory", uploads.len());
            let waiting = polled(store.engine.begin_upload(content(5), size_bytes), polls, Drop::AtOnce);
            let waited = tokio::time::timeout(Duration::from_secs(1), waiting).await;
            assert!(waited.is_err() || waited.is_ok_and(|begun| begun.is_none()), "{what}");
            assert_eq!(store.engine.stats().flights, uploads.len() as u64, "{what}: who waited in vain leads nothing");
            drop(uploads);
            store.rest(&what).await;
            store.goes_on(&what, &mut held()).await;
        }
    });
}

#[test]
fn puts_dropped_while_a_flush_is_late_come_or_do_not_and_leave_nothing_behind() {
    alone(async {
        for (round, options) in [(0, options()), (1, group())] {
            for polls in 0..8 {
                let what = format!("late flush, {:?}, dropped after {polls} polls", options.durability);
                let store = Store::new(&options, round).await;
                store.device.handle().set_latency(Latency::Sleep { min: Duration::from_secs(2), max: Duration::from_secs(3) });
                for id in 10..40 {
                    let put = tokio::time::timeout(
                        Duration::from_millis(700),
                        polled(store.engine.put(content(id), object(id)), polls, Drop::Woken),
                    );
                    drop(put.await);
                }
                store.device.handle().set_latency(Latency::Yields { max: 3 });
                tokio::time::sleep(Duration::from_secs(60)).await;
                store.rest(&what).await;
                let names: Vec<Name> = held().into_keys().chain((10..40).map(|id| (false, id))).collect();
                let mut contents = store.contents(&names).await;
                for ((is_named, id), found) in &contents {
                    assert!(*is_named || found.as_ref().is_none_or(|data| *data == object(*id)), "{what}: {id}");
                }
                store.assert_no_stray_slots(&what, &contents);
                store.goes_on(&what, &mut contents).await;
                store.killed(&what, &options, &contents).await;
            }
        }
    });
}

/// A batch that held slots and waited for more was once refused after half a minute: reclaim looked at what was live alone, which was
/// less than what has it begin.
#[test]
fn puts_dropped_while_the_table_is_full_give_their_slots_back() {
    alone(async {
        let device = sim(40, 3);
        format(&device, Some(1)).await;
        let (engine, _) = open(&device, options()).await;
        let store = Store { engine, device };
        let items = |batch: u64| (0..512).map(move |n| (content(batch * 512 + n), bytes(batch, 40))).collect::<Vec<_>>();
        let mut dropped = 0;
        for batch in 0..60 {
            let mut put = Box::pin(store.engine.put_batch(items(batch)));
            if (&mut put).now_or_never().is_none() && store.engine.stats().queued_bytes == 0 {
                // It keeps slots for some of its objects, and waits for more.
                assert!(store.engine.stats().reserved_slots > 0);
                drop(put);
                assert_eq!((store.engine.stats().reserved_slots, store.engine.stats().flights), (0, 0));
                dropped += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
            assert!(promptly("batch", put).await.iter().all(Result::is_ok));
        }
        assert!(dropped > 0, "{:?}", store.engine.stats());
        store.rest("full table").await;
        for put in promptly("batch", store.engine.put_batch(items(1000))).await {
            assert_eq!(put.expect("put"), PutOutcome::Stored);
        }
        for (key, data) in items(1000) {
            assert_eq!(get(&store.engine, &key, None).await, Some(data));
        }
        store.rest("full table").await;
    });
}
