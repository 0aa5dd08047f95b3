//! Many small objects: what a start after kill -9 reads, and that it finds them.
//!
//! `BLOCKSTORE_TEST_OBJECTS` sets how many (default 50000): 1000000 is the figure in the README. Prints the time from the start of
//! the process to the first answer; nothing here depends on it.

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
/// Bytes of the store for each object: room for blobs of 100 bytes with their headers, several times over.
const STORE_BYTES_PER_OBJECT: u64 = 1_024;
/// What the log may take for an object that the table has room for, and the table in memory or as an image, in bytes.
const LOG_BYTES_PER_OBJECT: u64 = 80;
const IMAGE_BYTES_PER_OBJECT: u64 = 24;
/// Slots in use, of all, when blocks are reclaimed because the table fills up.
const LOAD_MAX: f64 = 0.80;
const INDEX_BYTES_PER_OBJECT_MAX: f64 = 24.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_after_a_kill_reads_little_and_finds_all() {
    let objects: u64 = env::var("BLOCKSTORE_TEST_OBJECTS").map_or(50_000, |text| text.parse().expect("a number"));
    let store_bytes = (objects * STORE_BYTES_PER_OBJECT).max(64 << 20);
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let spec = Spec::new(env!("CARGO_BIN_EXE_blockstored"))
        .dir(dir.path(), &store_bytes.to_string())
        .arg("--objects")
        .arg((objects * 5 / 4).to_string());
    let daemon = spec.start();
    let client = Client::connect(daemon.grpc).await;
    let blobs: Vec<_> = (0..objects).map(|seed| Blob::new(seed, 40 + seed % 100)).collect();
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
    println!("{objects} objects: first answer {:.0} ms after the start", started.elapsed().as_secs_f64() * 1e3);

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
    daemon.stop();
}
