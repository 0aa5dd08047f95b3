//! What the engine costs beneath any protocol: batches, lookups and reads on a file.

use blockstore_engine::{
    Begin, Engine, FormatOptions, Key, KeySpace, OpenOptions,
    device::{DeviceOptions, create_file},
};
use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::{
    cell::Cell,
    hint::black_box,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const STORE_BYTES: u64 = 1 << 30;
const BATCH: u64 = 200;
const LOOKUP: u64 = 1000;
const PRESENT: u64 = 20_000;
const SMALL_BYTES: usize = 2300;
const MIB: usize = 1 << 20;

/// A store in a temporary file, and keys that were never used.
struct Store {
    runtime: Runtime,
    engine: Engine,
    next: Cell<u64>,
    small: Bytes,
    large: Bytes,
    _dir: TempDir,
}

impl Store {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
        let dir = TempDir::new().expect("a directory");
        let engine = runtime.block_on(async {
            let device = create_file(&dir.path().join("store"), STORE_BYTES, DeviceOptions::default()).expect("a file");
            Engine::format(device.clone(), &FormatOptions::default()).await.expect("a new store");
            Engine::open(device, OpenOptions::default()).await.expect("the new store").0
        });
        let small = vec![7; SMALL_BYTES].into();
        let large = vec![9; MIB].into();
        Self { runtime, engine, next: Cell::new(1 << 32), small, large, _dir: dir }
    }

    fn fresh(&self) -> Key {
        self.next.set(self.next.get() + 1);
        key(self.next.get())
    }

    fn batch(&self) -> Vec<(Key, Bytes)> {
        (0..BATCH).map(|_| (self.fresh(), self.small.clone())).collect()
    }

    /// Objects 0 to [`PRESENT`], and one of a MiB under the key after them.
    fn fill(&self) {
        let items: Vec<_> = (0..PRESENT).map(|id| (key(id), self.small.clone())).collect();
        self.runtime.block_on(async {
            for batch in items.chunks(500) {
                self.engine.put_batch(batch.to_vec()).await.into_iter().for_each(|put| _ = put.expect("room"));
            }
            self.engine.put(key(PRESENT), self.large.clone()).await.expect("room");
        });
    }
}

fn key(id: u64) -> Key {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&id.to_le_bytes());
    hash[8..16].copy_from_slice(&id.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    Key { space: KeySpace::Content, function: 1, hash }
}

fn puts(c: &mut Criterion) {
    let store = Store::new();
    let mut group = c.benchmark_group("put");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("batch of 200, 2.3 KB", |b| {
        b.iter_batched(|| store.batch(), |batch| store.runtime.block_on(store.engine.put_batch(batch)), BatchSize::LargeInput);
    });
    group.throughput(Throughput::Bytes(MIB as u64));
    group.bench_function("upload of 1 MiB", |b| {
        b.iter_custom(|times| {
            store.runtime.block_on(async {
                let mut spent = Duration::ZERO;
                for _ in 0..times {
                    let key = store.fresh();
                    let start = Instant::now();
                    match store.engine.begin_upload(key, MIB as u64).await.expect("room") {
                        Begin::AlreadyPresent => unreachable!("the key is new"),
                        Begin::Upload(mut upload) => {
                            upload.write(&store.large).await.expect("room");
                            upload.finish().await.expect("room");
                        }
                    }
                    spent += start.elapsed();
                }
                spent
            })
        });
    });
    group.finish();
}

fn reads(c: &mut Criterion) {
    let store = Store::new();
    store.fill();
    let mut group = c.benchmark_group("read");
    group.throughput(Throughput::Elements(LOOKUP));
    for (name, from) in [("lookup of 1,000, hits", 0), ("lookup of 1,000, misses", 1 << 40)] {
        let keys: Vec<_> = (0..LOOKUP).map(|n| (key(from + n * 17 % PRESENT), Some(SMALL_BYTES as u64))).collect();
        group.bench_function(name, |b| b.iter(|| black_box(store.runtime.block_on(store.engine.lookup(&keys)))));
    }
    group.throughput(Throughput::Elements(1));
    group.bench_function("get of 2.3 KB", |b| {
        let mut id = 0;
        b.iter(|| {
            id = (id + 7919) % PRESENT;
            let object = store.runtime.block_on(store.engine.get(&key(id), Some(SMALL_BYTES as u64))).expect("it is there");
            black_box(object.whole().expect("it is small").into_bytes().len())
        });
    });
    group.throughput(Throughput::Bytes(MIB as u64));
    group.bench_function("read of 1 MiB", |b| {
        b.iter(|| {
            store.runtime.block_on(async {
                let object = store.engine.get(&key(PRESENT), None).await.expect("it is there");
                let mut reader = object.reader(0, None).expect("it starts at 0");
                let mut read_bytes = 0;
                while let Some(piece) = reader.next().await {
                    read_bytes += piece.expect("it is whole").into_bytes().len();
                }
                assert_eq!(black_box(read_bytes), MIB);
            });
        });
    });
    group.finish();
}

criterion_group! {
    name = engine;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = puts, reads
}
criterion_main!(engine);
