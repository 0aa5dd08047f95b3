//! Operations of a store that stays open, each dropped at every await.

use crate::{Drop, POLLS_MAX, alone, common::*, polled, promptly, store::*};
use blockstore_engine::{Begin, Engine, OpenOptions};
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};

/// An operation, and what it makes of the keys that it changes.
struct Case {
    name: &'static str,
    operation: fn(Engine) -> BoxFuture<'static, ()>,
    changes: fn() -> Contents,
}

/// Drops the operation after each number of polls, and looks at what is left.
async fn dropped_at_every_await(case: &Case, options: &OpenOptions, when: Drop) {
    let Case { name, operation, changes } = case;
    for polls in 0..POLLS_MAX {
        let what = format!("{name}, {:?}, dropped after {polls} polls, {when:?}", options.durability);
        let store = Store::new(options, polls as u64).await;
        let before = held();
        let mut after = before.clone();
        after.extend(changes());
        let completed = promptly(&what, polled(operation(store.engine.clone()), polls, when)).await.is_some();
        store.rest(&what).await;
        let mut seen = store.contents(after.keys()).await;
        for (name, found) in &seen {
            let old = before.get(name).cloned().flatten();
            let right = if completed { *found == after[name] } else { [&old, &after[name]].contains(&found) };
            assert!(right, "{what}: {name:?} is neither what it was nor what it was to be");
        }
        store.assert_no_stray_slots(&what, &seen);
        // Once more, to the end.
        promptly(&what, operation(store.engine.clone())).await;
        store.rest(&what).await;
        store.assert_holds(&what, &after).await;
        seen = after;
        store.goes_on(&what, &mut seen).await;
        store.killed(&what, options, &seen).await;
        if completed {
            return;
        }
    }
    panic!("{name} completes within {POLLS_MAX} polls");
}

/// As [`dropped_at_every_await`], but the next operations come at once, while what was dropped is still under way in the device.
async fn dropped_and_begun_again_at_once(case: &Case, options: &OpenOptions) {
    let Case { name, operation, changes } = case;
    for polls in 0..POLLS_MAX {
        for seed in 0..4 {
            let what = format!("{name}, {:?}, dropped after {polls} polls, begun again at once, seed {seed}", options.durability);
            let store = Store::new(options, seed << 32 | polls as u64).await;
            let mut contents = held();
            contents.extend(changes());
            let completed = promptly(&what, polled(operation(store.engine.clone()), polls, Drop::AtOnce)).await.is_some();
            store.puts(&what, (false, 303), object(303), &mut contents).await;
            promptly(&what, operation(store.engine.clone())).await;
            store.rest(&what).await;
            store.assert_holds(&what, &contents).await;
            store.killed(&what, options, &contents).await;
            if completed {
                return;
            }
        }
    }
    panic!("{name} completes within {POLLS_MAX} polls");
}

fn every_case(case: fn() -> Case) {
    alone(async {
        for options in [options(), group()] {
            dropped_at_every_await(&case(), &options, Drop::AtOnce).await;
            dropped_at_every_await(&case(), &options, Drop::Woken).await;
            dropped_and_begun_again_at_once(&case(), &options).await;
        }
    });
}

/// The object `id`, put and nothing else.
fn one(id: u64) -> Contents {
    [((false, id), Some(object(id)))].into()
}

fn nothing() -> Contents {
    Contents::new()
}

#[test]
fn a_dropped_lookup_leaves_nothing_behind() {
    every_case(|| Case {
        name: "lookup",
        operation: |engine| {
            async move {
                let keys: Vec<_> = (0..6).map(|id| (content(id), None)).chain([(named(0), Some(500)), (named(9), None)]).collect();
                let found = engine.lookup(&keys).await;
                assert_eq!(found, [true, true, true, false, false, false, true, false]);
            }
            .boxed()
        },
        changes: nothing,
    });
}

#[test]
fn a_dropped_read_leaves_nothing_behind() {
    every_case(|| Case {
        name: "get",
        operation: |engine| {
            async move {
                for id in 0..4 {
                    assert_eq!(get(&engine, &content(id), None).await, (id < 3).then(|| object(id)));
                }
            }
            .boxed()
        },
        changes: nothing,
    });
}

#[test]
fn a_dropped_put_of_a_small_object_leaves_nothing_behind() {
    every_case(|| Case { name: "put small", operation: |engine| put(engine, 3), changes: || one(3) });
}

#[test]
fn a_dropped_put_of_a_paged_object_leaves_nothing_behind() {
    every_case(|| Case { name: "put paged", operation: |engine| put(engine, 4), changes: || one(4) });
}

#[test]
fn a_dropped_put_of_a_large_object_leaves_nothing_behind() {
    every_case(|| Case { name: "put large", operation: |engine| put(engine, 5), changes: || one(5) });
}

fn put(engine: Engine, id: u64) -> BoxFuture<'static, ()> {
    async move { engine.put(content(id), object(id)).await.map(drop).expect("put") }.boxed()
}

#[test]
fn a_dropped_put_of_a_name_leaves_the_old_value_or_the_new_one() {
    every_case(|| Case {
        name: "put named",
        operation: |engine| async move { engine.put(named(1), bytes(8, 70_000)).await.map(drop).expect("put") }.boxed(),
        changes: || [((true, 1), Some(bytes(8, 70_000)))].into(),
    });
}

/// New objects of every size, one of them twice, one that is there, and two names.
fn batch() -> Vec<((bool, u64), Bytes)> {
    let objects = [3, 0, 6, 4, 9, 5, 3].map(|id| ((false, id), object(id)));
    objects.into_iter().chain([((true, 1), bytes(9, 600)), ((true, 2), bytes(9, 800))]).collect()
}

#[test]
fn a_dropped_batch_leaves_of_each_object_all_or_nothing() {
    every_case(|| Case {
        name: "put batch",
        operation: |engine| {
            async move {
                let items = batch().into_iter().map(|(name, data)| (key(name), data)).collect();
                assert!(engine.put_batch(items).await.iter().all(Result::is_ok));
            }
            .boxed()
        },
        changes: || batch().into_iter().map(|(name, data)| (name, Some(data))).collect(),
    });
}

#[test]
fn a_dropped_deletion_leaves_the_old_value_or_none() {
    every_case(|| Case {
        name: "delete",
        operation: |engine| async move { engine.delete(&named(1)).await.map(drop).expect("delete") }.boxed(),
        changes: || [((true, 1), None)].into(),
    });
}

#[test]
fn a_dropped_upload_in_pieces_leaves_nothing_behind() {
    async fn upload(engine: Engine, id: u64, piece: usize) {
        let data = object(id);
        let Begin::Upload(mut upload) = engine.begin_upload(content(id), data.len() as u64).await.expect("begin") else { return };
        for piece in data.chunks(piece) {
            upload.write(piece).await.expect("write");
            tokio::task::yield_now().await;
        }
        upload.finish().await.expect("finish");
    }
    every_case(|| Case { name: "upload small", operation: |engine| upload(engine, 3, 1000).boxed(), changes: || one(3) });
    every_case(|| Case { name: "upload paged", operation: |engine| upload(engine, 4, 70_000).boxed(), changes: || one(4) });
    every_case(|| Case { name: "upload large", operation: |engine| upload(engine, 5, 100_000).boxed(), changes: || one(5) });
}

#[test]
fn a_dropped_flush_leaves_nothing_behind() {
    every_case(|| Case {
        name: "flush",
        operation: |engine| {
            async move {
                engine.put(content(3), object(3)).await.expect("put");
                engine.flush().await.expect("flush");
            }
            .boxed()
        },
        changes: || one(3),
    });
}

/// A dropped image must not write into the next one: its last write may land after that one's, and carries the same number.
#[test]
fn a_dropped_checkpoint_leaves_nothing_behind() {
    every_case(|| Case {
        name: "checkpoint",
        operation: |engine| {
            async move {
                engine.put(content(3), object(3)).await.expect("put");
                engine.checkpoint().await.expect("checkpoint");
            }
            .boxed()
        },
        changes: || one(3),
    });
}
