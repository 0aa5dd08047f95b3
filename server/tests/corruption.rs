//! Rot on the disk under a running store, and under one that is opened: exact bytes or misses, never a wrong byte.

use blockstore_tests::{
    blob::{Blob, Random},
    client::{Client, Found},
    daemon::Spec,
    disk::{damage, forget_cached},
};
use std::path::Path;
use tempfile::TempDir;
use tonic::Code;

const SIZE: &str = "96MiB";
/// Together about 40 MiB: under half of the store, so that nothing has to be dropped for space.
const SMALL_BLOBS: u64 = 4_000;
const LARGE_BLOBS: u64 = 6;
/// Sectors of 512 bytes; one in a thousand of the store, one in a few dozen blobs.
const DAMAGED_SECTORS: u64 = 200;

fn blobs() -> Vec<Blob> {
    let mut random = Random::new(3);
    let mut blobs: Vec<_> = (0..SMALL_BLOBS).map(|seed| Blob::new(seed, random.small_size_bytes())).collect();
    blobs.extend((0..LARGE_BLOBS).map(|seed| Blob::new(seed, 3_000_000 + seed)));
    blobs
}

#[derive(Debug, Default)]
struct Tally {
    exact: usize,
    missing: usize,
    cut: usize,
}

/// Reads everything; [`Client::check`] panics at a wrong byte.
async fn read_all(client: &Client, blobs: &[Blob]) -> Tally {
    let mut tally = Tally::default();
    for &blob in blobs {
        match client.check(blob).await.unwrap() {
            Found::Exact => tally.exact += 1,
            Found::Missing => tally.missing += 1,
            Found::Cut => tally.cut += 1,
        }
    }
    tally
}

fn spec(dir: &Path, direct: &str) -> Spec {
    // A cache of records would hide the disk.
    Spec::new(env!("CARGO_BIN_EXE_blockstored")).dir(dir, SIZE).args("--cache-size 1MiB --direct").arg(direct)
}

async fn only_exact_bytes_or_misses(direct: &str, seed: u64) {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = dir.path().join("store.blockstore");
    let blobs = blobs();
    let mut random = Random::new(seed);

    let daemon = spec(dir.path(), direct).start();
    let client = Client::connect(daemon.grpc).await;
    for some in blobs.chunks(100) {
        let codes = client.put_batch(some).await.unwrap();
        assert!(codes.iter().all(|&code| code == Code::Ok), "{codes:?}");
    }
    assert_eq!(read_all(&client, &blobs).await.exact, blobs.len());

    assert_eq!(daemon.metric("blockstore_engine_damaged_total"), 0.0);
    // While it serves. Each sector costs the few blobs that lie on it, or, in a large one, the large one.
    damage(&file, &mut random, 0, DAMAGED_SECTORS);
    forget_cached(&file);
    let serving = read_all(&client, &blobs).await;
    println!("direct {direct}: damaged while serving: {serving:?}");
    assert!(serving.missing + serving.cut > 0, "the damage was not noticed: {serving:?}");
    assert!(serving.exact * 10 > blobs.len() * 8, "more is gone than was damaged: {serving:?}");
    let damaged = daemon.metric("blockstore_engine_damaged_total");
    assert!(damaged >= (serving.missing + serving.cut) as f64, "the page says {damaged}");
    // It still takes blobs, also those that were lost.
    for some in blobs.chunks(100) {
        let codes = client.put_batch(some).await.unwrap();
        assert!(codes.iter().all(|&code| code == Code::Ok), "{codes:?}");
    }
    let again = read_all(&client, &blobs).await;
    println!("direct {direct}: put again: {again:?}");
    assert_eq!(again.exact, blobs.len(), "{again:?}");

    // Across restarts, after a kill and after a clean stop.
    daemon.kill();
    damage(&file, &mut random, 0, DAMAGED_SECTORS);
    forget_cached(&file);
    let daemon = spec(dir.path(), direct).start();
    let killed = read_all(&Client::connect(daemon.grpc).await, &blobs).await;
    println!("direct {direct}: damaged after a kill: {killed:?}");
    assert!(killed.exact * 10 > blobs.len() * 7, "more is gone than was damaged: {killed:?}");
    daemon.stop();
    damage(&file, &mut random, 0, DAMAGED_SECTORS);
    forget_cached(&file);
    let daemon = spec(dir.path(), direct).start();
    let stopped = read_all(&Client::connect(daemon.grpc).await, &blobs).await;
    println!("direct {direct}: damaged after a clean stop: {stopped:?}");
    assert!(stopped.exact * 10 > blobs.len() * 6, "more is gone than was damaged: {stopped:?}");
    daemon.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corruption_costs_one_blob_and_never_a_wrong_byte_buffered() {
    only_exact_bytes_or_misses("off", 11).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corruption_costs_one_blob_and_never_a_wrong_byte_direct() {
    only_exact_bytes_or_misses("on", 12).await;
}
