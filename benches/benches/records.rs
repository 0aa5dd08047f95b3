//! Records: what a put and a get cost by size, on every way to the device, and from the cache.
//!
//! The floor of a put is a CRC pass, the copy into the batch (or, above 64 KiB, into the record's own buffer), the write of its bytes by the
//! kernel, 32 bytes of log, and two hand-overs to the task that orders puts. That of a get is the read of its pages and a CRC pass; of one
//! from the cache, a lookup of the index, which costs 15 to 45 ns, and one of the cache.

mod support;

use blockstore_engine::{
    OpenOptions,
    device::{DeviceOptions, Direct, IoBackend},
};
use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::{hint::black_box, time::Duration};
use support::{Plan, Store, key, noise};

const SIZES: [(&str, usize); 4] = [("300 B", 300), ("2.3 KB", 2300), ("64 KiB", 64 << 10), ("1 MiB", 1 << 20)];
const BACKENDS: [(&str, DeviceOptions); 4] = [
    ("io_uring", DeviceOptions { io: IoBackend::IoUring, direct: Direct::Off }),
    ("io_uring, direct", DeviceOptions { io: IoBackend::IoUring, direct: Direct::On }),
    ("sync", DeviceOptions { io: IoBackend::Sync, direct: Direct::Off }),
    ("sync, direct", DeviceOptions { io: IoBackend::Sync, direct: Direct::On }),
];
const STORE_BYTES: u64 = 1 << 30;
/// Bytes of objects that are read.
const FILLED_BYTES: usize = 128 << 20;
/// Objects that are put together.
const BATCH: u64 = 200;

async fn read(store: &Store, number: u64, len: usize) {
    let object = store.engine.get(&key(number), Some(len as u64)).await.expect("it is there");
    let mut read_bytes = 0;
    match object.whole() {
        Some(whole) => read_bytes = whole.into_bytes().len(),
        None => {
            let mut reader = object.reader(0, None).expect("it starts at 0");
            while let Some(piece) = reader.next().await {
                read_bytes += piece.expect("it is whole").into_bytes().len();
            }
        }
    }
    assert_eq!(black_box(read_bytes), len);
}

fn backends(c: &mut Criterion) {
    for (backend, device) in BACKENDS {
        let open = OpenOptions { cache_bytes: 0, ..OpenOptions::default() };
        let mut group = c.benchmark_group(format!("record, {backend}"));
        for (name, len) in SIZES {
            let store = Store::new(Plan { device, open: open.clone(), ..Plan::of(STORE_BYTES) });
            let data = noise(len);
            group.throughput(Throughput::Bytes(len as u64));
            group.bench_function(format!("put of {name}"), |b| {
                b.iter_batched(
                    || (store.fresh(), data.clone()),
                    |(key, data)| store.runtime.block_on(store.engine.put(key, data)).expect("room"),
                    BatchSize::SmallInput,
                );
            });
            let objects = (FILLED_BYTES / len) as u64;
            store.fill(0..objects, &data);
            let mut number = 0;
            group.bench_function(format!("get of {name}"), |b| {
                b.iter(|| {
                    number = (number + 7919) % objects;
                    store.runtime.block_on(read(&store, number, len));
                });
            });
        }
        group.finish();
    }
}

fn together(c: &mut Criterion) {
    let store = Store::new(Plan::of(STORE_BYTES));
    let data = noise(2300);
    let mut group = c.benchmark_group("batch");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("put of 200 x 2.3 KB", |b| {
        let batch = || (0..BATCH).map(|_| (store.fresh(), data.clone())).collect::<Vec<(_, Bytes)>>();
        b.iter_batched(batch, |batch| store.runtime.block_on(store.engine.put_batch(batch)), BatchSize::LargeInput);
    });
    group.finish();
}

fn cached(c: &mut Criterion) {
    let mut group = c.benchmark_group("cache");
    for (name, len) in SIZES {
        let store = Store::new(Plan::of(STORE_BYTES));
        let objects = ((64 << 20) / len).min(20_000) as u64;
        store.fill(0..objects, &noise(len));
        (0..objects).for_each(|number| store.runtime.block_on(read(&store, number, len)));
        let mut number = 0;
        group.bench_function(format!("hit of {name}"), |b| {
            b.iter(|| {
                number = (number + 7919) % objects;
                store.runtime.block_on(read(&store, number, len));
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = backends, together, cached
}
criterion_main!(benches);
