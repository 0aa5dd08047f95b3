//! Writing the log: what is rewritten, when it is flushed, and that its last pages are kept for those who make room.

use crate::{
    common::*,
    disk::*,
    shared::{log::*, stores::small_store},
};
use std::time::Duration;

// A drive that emulates small sectors may make a whole page unreadable when a write to it is interrupted. A page that a flush has
// covered holds what was promised to survive.
#[test]
fn no_page_that_a_flush_covered_is_ever_written_again() {
    [false, true].into_iter().for_each(pages_are_closed_by_a_flush);
}

// The bound of an interval store: what is acknowledged is at most a second old when the flush that covers it starts.
#[test]
fn every_acknowledged_byte_meets_a_flush_within_a_second_and_marks_alone_cause_none() {
    let device = small_store(2);
    run(async {
        let (gate, engine) = gated(&device, options()).await;
        let mut acknowledged = Vec::new();
        for id in 0..300u64 {
            engine.put(content(id), bytes(id, 100)).await.expect("put");
            acknowledged.push(tokio::time::Instant::now());
            tokio::time::sleep(Duration::from_millis(17 * (id % 7))).await;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        let flushes: Vec<_> = gate.events().into_iter().filter(|(e, _)| *e == Event::Flush).map(|(_, t)| t).collect();
        for at in acknowledged {
            assert!(flushes.iter().any(|f| *f >= at && *f <= at + Duration::from_secs(1)));
        }
        let before = engine.stats().flushes;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(engine.stats().flushes <= before + 1, "an hour without a put: at most the image's flush");
        assert_eq!(engine.stats().unflushed_bytes, 0);
    });
}

#[test]
fn while_a_flush_takes_longer_than_the_interval_new_acknowledgements_wait() {
    let device = small_store(3);
    run(async {
        let (gate, engine) = gated(&device, options()).await;
        engine.put(content(1), bytes(1, 100)).await.expect("put");
        gate.hold_flushes();
        tokio::time::sleep(Duration::from_millis(900)).await;
        engine.put(content(2), bytes(2, 100)).await.expect("the flush is not late yet");
        tokio::time::sleep(Duration::from_secs(2)).await;
        let late = engine.put(content(3), bytes(3, 100));
        tokio::pin!(late);
        assert!(tokio::time::timeout(Duration::from_secs(60), &mut late).await.is_err(), "acknowledged beside a late flush");
        gate.open();
        late.await.expect("put");
    });
}

// Puts filled the ring to the last page, so the image that would have freed it had no room for its own entries: nobody could go on.
// Thousands wait here at once, while the image does not get on.
#[test]
fn however_many_puts_wait_the_last_sixteenth_of_the_ring_stays_for_those_who_free_it() {
    let device = sim(48, 4);
    run(async {
        format(&device, Some(150_000)).await;
        let (gate, engine) = gated(&device, options()).await;
        let layout = superblock(&device, 0);
        gate.hold_writes(layout.image(0));
        gate.hold_writes(layout.image(1));
        let tasks: Vec<_> = (0..200u64)
            .map(|task| {
                let engine = engine.clone();
                tokio::spawn(async move {
                    for round in 0..2u64 {
                        let id = |n| (task * 2 + round) * 512 + n;
                        let items = (0..512).map(|n| (named(id(n) % 4000), bytes(id(n), 1))).collect();
                        for result in engine.put_batch(items).await {
                            result.expect("a full ring makes puts wait, and fail never");
                        }
                    }
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(engine.poisoned(), None);
        let stats = engine.stats();
        assert!(stats.log_used_pages * 16 <= stats.log_pages * 15 + 16, "{} of {}", stats.log_used_pages, stats.log_pages);
        assert!(tasks.iter().any(|t| !t.is_finished()), "the ring was full");
        gate.open();
        for task in tasks {
            task.await.expect("task");
        }
        assert_eq!(engine.poisoned(), None);
        assert!(engine.stats().images > 0);
    });
}
