//! Many small objects: what a start after kill -9 reads, and that it finds them.
//!
//! `BLOCKSTORE_TEST_OBJECTS` sets how many (default 50000), `BLOCKSTORE_TEST_OBJECT_BYTES` how large, from and to (default 40-140).
//! Prints the time from the start of the process to the first answer, and what single questions take then; nothing here depends on it.

use blockstore_tests::{
    blob::{Blob, Random},
    client::{Client, Found, assert_all_present},
    daemon::Spec,
};
use std::{env, time::Instant};
use tempfile::TempDir;
use tonic::Code;

const BATCH: usize = 1_000;
const ASK: usize = 20_000;
/// Bytes of the store for each object beside its own: its header, and room so that nothing is reclaimed.
const STORE_BYTES_PER_OBJECT: u64 = 500;
/// What the daemon may take in memory beside cache and index, in bytes.
const BESIDE_BYTES_MAX: u64 = 256 << 20;
const CACHE_BYTES: u64 = 64 << 20;
/// Single questions that are timed.
const QUESTIONS: usize = 2_000;
/// What the log may take for an object that the table has room for, and the table in memory or as an image, in bytes.
const LOG_BYTES_PER_OBJECT: u64 = 80;
const IMAGE_BYTES_PER_OBJECT: u64 = 24;
/// Slots in use, of all, when blocks are reclaimed because the table fills up.
const LOAD_MAX: f64 = 0.80;
const INDEX_BYTES_PER_OBJECT_MAX: f64 = 24.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_after_a_kill_reads_little_and_finds_all() {
    let objects: u64 = env::var("BLOCKSTORE_TEST_OBJECTS").map_or(50_000, |text| text.parse().expect("a number"));
    let sizes = env::var("BLOCKSTORE_TEST_OBJECT_BYTES").unwrap_or_else(|_| "40-140".into());
    let (from, to) = sizes.split_once('-').expect("two sizes");
    let [from, to] = [from, to].map(|size| size.parse::<u64>().expect("a size in bytes"));
    let store_bytes = (objects * ((from + to) / 2 + STORE_BYTES_PER_OBJECT)).max(64 << 20);
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let spec = Spec::new(env!("CARGO_BIN_EXE_blockstored"))
        .dir(dir.path(), &store_bytes.to_string())
        .arg("--cache-size")
        .arg(CACHE_BYTES.to_string())
        .arg("--objects")
        .arg((objects * 5 / 4).to_string());
    let daemon = spec.start();
    let client = Client::connect(daemon.grpc).await;
    let blobs: Vec<_> = (0..objects).map(|seed| Blob::new(seed, from + seed % (to - from))).collect();
    let mut digests = Vec::with_capacity(blobs.len());
    for some in blobs.chunks(BATCH) {
        let codes = client.put_batch(some).await.unwrap();
        assert!(codes.iter().all(|&code| code == Code::Ok), "{codes:?}");
        digests.extend(some.iter().map(|blob| blob.digest()));
    }
    daemon.kill();

    let started = Instant::now();
    let daemon = spec.start();
    let client = Client::connect(daemon.grpc).await;
    assert_eq!(client.check(blobs[0]).await.unwrap(), Found::Exact);
    println!("{objects} objects of {sizes} bytes: first answer {:.0} ms after the start", started.elapsed().as_secs_f64() * 1e3);
    println!("{objects} objects: {} MiB of memory when it is open", daemon.memory_bytes_max() >> 20);

    assert_eq!(daemon.opened("clean"), "false");
    let found: u64 = daemon.opened("objects").parse().unwrap();
    assert!(found >= objects, "{found} of {objects} objects were found");
    let read_bytes: u64 = daemon.opened("read_bytes").parse().unwrap();
    // At the load where blocks are reclaimed for the table's sake.
    let number = |field| daemon.opened(field).parse::<u64>().unwrap();
    let index_bytes_per_object = number("table_bytes") as f64 / (number("table_slots") as f64 * LOAD_MAX);
    println!("{objects} objects: {index_bytes_per_object:.1} bytes of index for each");
    assert!(index_bytes_per_object <= INDEX_BYTES_PER_OBJECT_MAX, "{index_bytes_per_object} bytes of index for each object");
    let block_headers_bytes = store_bytes.div_ceil(1 << 20) * 4096;
    let slots = objects * 5 / 4 * 100 / 80;
    let bound = slots * (LOG_BYTES_PER_OBJECT + IMAGE_BYTES_PER_OBJECT) + block_headers_bytes + (64 << 20);
    println!("{objects} objects: {read_bytes} bytes read at open, {bound} allowed");
    assert!(read_bytes <= bound, "{read_bytes} bytes were read at open");

    for some in digests.chunks(ASK) {
        assert_all_present(&client, some, "after a kill").await;
    }
    let mut random = Random::new(5);
    let mut sample: Vec<_> = (0..BATCH).map(|_| blobs[usize::try_from(random.below(objects)).unwrap()]).collect();
    sample.sort_unstable();
    sample.dedup();
    let found = client.check_batch(&sample).await.unwrap();
    assert!(found.iter().all(|&found| found == Found::Exact), "{found:?}");
    // One question at a time, each about any of all objects.
    let [mut finds, mut gets] = [Vec::new(), Vec::new()];
    for _ in 0..QUESTIONS {
        let blob = blobs[usize::try_from(random.below(objects)).unwrap()];
        let began = Instant::now();
        assert_all_present(&client, &[blob.digest()], "after a kill").await;
        finds.push(began.elapsed());
        let began = Instant::now();
        assert_eq!(client.check_batch(&[blob]).await.unwrap(), [Found::Exact]);
        gets.push(began.elapsed());
    }
    for (what, times) in [("find", &mut finds), ("get", &mut gets)] {
        times.sort_unstable();
        println!("{objects} objects: {what} p50 {:?}, p99 {:?}", times[QUESTIONS / 2], times[QUESTIONS * 99 / 100]);
    }
    let memory_bytes = daemon.memory_bytes_max();
    println!("{objects} objects: {} MiB of memory in the end", memory_bytes >> 20);
    let memory_bytes_max = CACHE_BYTES + slots * INDEX_BYTES_PER_OBJECT_MAX as u64 + BESIDE_BYTES_MAX;
    assert!(memory_bytes <= memory_bytes_max, "{memory_bytes} bytes of memory, {memory_bytes_max} allowed");
    daemon.stop();
}
