//! Present means retained: what clients keep asking for stays while the store is filled over and over.

use blockstore_tests::{
    blob::{Blob, Random},
    client::{Client, Found, assert_all_present},
    daemon::Spec,
};
use tempfile::TempDir;
use tonic::Code;

const STORE_BYTES: u64 = 128 << 20;
/// What log, images, reserved blocks and the records' headers surely leave of it.
const CAPACITY_BYTES: u64 = STORE_BYTES / 4 * 3;
const KEPT_BYTES: u64 = CAPACITY_BYTES / 10;
/// Three times the whole store.
const FILLS: u64 = 4;
const ASKED_PER_FILL: u64 = 5;
const BATCH: usize = 128;

/// Blobs of that many bytes altogether, numbered from `seed` on.
fn blobs(seed: u64, total_bytes: u64) -> Vec<Blob> {
    let mut random = Random::new(seed);
    let mut blobs = Vec::new();
    let mut sum = 0;
    while sum < total_bytes {
        let blob = Blob::new(seed + blobs.len() as u64, random.small_size_bytes());
        sum += blob.size_bytes;
        blobs.push(blob);
    }
    blobs
}

async fn put_all(client: &Client, blobs: &[Blob]) {
    for some in blobs.chunks(BATCH) {
        let codes = client.put_batch(some).await.unwrap();
        assert!(codes.iter().all(|&code| code == Code::Ok), "a put failed: {codes:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_for_five_times_per_fill_is_retained_and_puts_never_fail() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let size = STORE_BYTES.to_string();
    let spec = Spec::new(env!("CARGO_BIN_EXE_blockstored")).dir(dir.path(), &size);
    let daemon = spec.start();
    let client = Client::connect(daemon.grpc).await;

    let kept = blobs(1 << 40, KEPT_BYTES);
    let digests: Vec<_> = kept.iter().map(|blob| blob.digest()).collect();
    put_all(&client, &kept).await;
    let moved =
        ["blockstore_engine_reclaimed_blocks_total", "blockstore_engine_carried_bytes_total", "blockstore_engine_dropped_records_total"];
    assert_eq!(moved.map(|name| daemon.metric(name)), [0.0; 3]);
    let first = blobs(2 << 40, CAPACITY_BYTES / ASKED_PER_FILL);
    for turn in 0..FILLS * ASKED_PER_FILL {
        let filling = blobs((2 + turn) << 40, CAPACITY_BYTES / ASKED_PER_FILL);
        put_all(&client, &filling).await;
        assert_all_present(&client, &digests, &format!("after {turn} fifths of a fill")).await;
    }
    // Present is more than a word: every byte is there. And the store was indeed filled: the first of what nobody asked for is gone.
    for some in kept.chunks(BATCH) {
        let found = client.check_batch(some).await.unwrap();
        assert!(found.iter().all(|&found| found == Found::Exact), "{found:?}");
    }
    let first: Vec<_> = first.iter().map(|blob| blob.digest()).collect();
    let missing = client.missing(first.clone()).await.unwrap();
    assert!(missing.len() * 10 > first.len() * 9, "{} of {} are gone", missing.len(), first.len());
    // And the page says so. How much is carried is the policy's: blocks of which everything is wanted stay where they are.
    let [reclaimed_blocks, carried_bytes, dropped] = moved.map(|name| daemon.metric(name));
    println!("{reclaimed_blocks} blocks were reclaimed, {carried_bytes} bytes carried, {dropped} records dropped");
    assert!(reclaimed_blocks > 0.0 && dropped >= missing.len() as f64, "{reclaimed_blocks} blocks, {dropped} records");
    daemon.stop();
}
