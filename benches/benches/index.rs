//! The index: lookups and inserts in a large one, what a start after a kill takes, and what it costs that the store is full.
//!
//! `BLOCKSTORE_BENCH_OBJECTS` objects (1000000; 10000000 takes 4 GB of disk and minutes) of 100 bytes. The floor of a lookup is 15 ns where
//! its lines are in the processor's cache and 35 to 45 ns where they are not. That of a start is reading the image of the table (20 bytes
//! an object) into fresh memory, about 2 GB/s, and 32 bytes of log for each entry behind it; it says what it took itself. Into a full store
//! a put costs what it always does, and its part of reclaim: a scan of the table for each block.

mod support;

use blockstore_engine::FormatOptions;
use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::{env, hint::black_box, time::Duration};
use support::{Plan, Store, key, noise};

const OBJECT_BYTES: usize = 100;
const LOOKUP: u64 = 1000;
const BATCH: u64 = 500;

fn objects() -> u64 {
    env::var("BLOCKSTORE_BENCH_OBJECTS").map_or(1_000_000, |text| text.parse().expect("BLOCKSTORE_BENCH_OBJECTS is a number"))
}

fn large(objects: u64) -> Plan {
    let format = FormatOptions { objects: Some(objects * 5 / 4), ..FormatOptions::default() };
    Plan { format, ..Plan::of(objects * 400 + (256 << 20)) }
}

fn index(c: &mut Criterion) {
    let objects = objects();
    let mut group = c.benchmark_group(format!("index of {objects}"));
    let mut store = Store::new(large(objects));
    let data = noise(OBJECT_BYTES);
    store.fill(0..objects, &data);
    group.throughput(Throughput::Elements(LOOKUP));
    for (name, from) in [("hits", 0), ("misses", 1 << 40)] {
        let mut turn = 0u64;
        group.bench_function(format!("lookup of 1,000, {name}"), |b| {
            b.iter_batched(
                || {
                    turn += 1;
                    // Others each time, all over the table.
                    let number = |n: u64| from + (turn * LOOKUP + n).wrapping_mul(0x9e37_79b9_7f4a_7c15) % objects;
                    (0..LOOKUP).map(|n| (key(number(n)), Some(OBJECT_BYTES as u64))).collect::<Vec<_>>()
                },
                |keys| black_box(store.runtime.block_on(store.engine.lookup(&keys))),
                BatchSize::LargeInput,
            );
        });
    }
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("insert of 500 with their records and log", |b| {
        let batch = || (0..BATCH).map(|_| (store.fresh(), data.clone())).collect::<Vec<(_, Bytes)>>();
        b.iter_batched(batch, |batch| store.runtime.block_on(store.engine.put_batch(batch)), BatchSize::LargeInput);
    });
    group.throughput(Throughput::Elements(objects));
    group.sample_size(10);
    let mut slot = Some(store);
    group.bench_function("open after a kill", |b| {
        b.iter_custom(|times| {
            let mut spent = Duration::ZERO;
            for _ in 0..times {
                let (opened, report) = slot.take().expect("it is put back").kill_and_open();
                spent += report.elapsed;
                slot = Some(opened);
            }
            spent
        });
    });
    store = slot.expect("it is put back");
    group.finish();
    drop(store);
}

fn full(c: &mut Criterion) {
    let store = Store::new(Plan::of(256 << 20));
    let mut group = c.benchmark_group("full store of 256 MiB");
    for (name, len) in [("2.3 KB", 2300), ("64 KiB", 64 << 10)] {
        let data = noise(len);
        // Twice around.
        for _ in 0..(512 << 20) / len as u64 / BATCH {
            let batch = (0..BATCH).map(|_| (store.fresh(), data.clone())).collect();
            store.runtime.block_on(store.engine.put_batch(batch)).into_iter().for_each(|put| _ = put.expect("room"));
        }
        group.throughput(Throughput::Bytes((len as u64) * 100));
        group.bench_function(format!("put of 100 x {name}, with reclaim"), |b| {
            let batch = || (0..100).map(|_| (store.fresh(), data.clone())).collect::<Vec<(_, Bytes)>>();
            b.iter_batched(batch, |batch| store.runtime.block_on(store.engine.put_batch(batch)), BatchSize::LargeInput);
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    targets = index, full
}
criterion_main!(benches);
