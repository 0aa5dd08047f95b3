//! A blob much larger than the memory that the server may use goes up and down.
//!
//! `BLOCKSTORE_TEST_LARGE_BLOB_MIB` sets its size in MiB (default 512; the store is twice as large): 4096 is the figure in the
//! README.

use blockstore_tests::{
    blob::Blob,
    client::{Client, Found},
    daemon::Spec,
};
use std::env;
use tempfile::TempDir;

const CACHE_MIB: u64 = 64;
const MEMORY_MIB_MAX: u64 = CACHE_MIB + 256;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_of_many_times_the_memory_goes_up_and_down() {
    let blob_mib: u64 = env::var("BLOCKSTORE_TEST_LARGE_BLOB_MIB").map_or(512, |text| text.parse().expect("a number of MiB"));
    assert!(blob_mib > MEMORY_MIB_MAX, "a smaller blob proves nothing");
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let spec = Spec::new(env!("CARGO_BIN_EXE_blockstored"))
        .dir(dir.path(), &format!("{}MiB", 2 * blob_mib))
        .arg("--cache-size")
        .arg(format!("{CACHE_MIB}MiB"));
    let daemon = spec.start();
    let client = Client::connect(daemon.grpc).await;
    let blob = Blob::new(4, blob_mib << 20);
    let digest = blob.digest();
    client.put_lazily(blob, &digest).await.unwrap();
    assert_eq!(client.check_named(blob, &digest).await.unwrap(), Found::Exact);
    let memory_bytes = daemon.memory_bytes_max();
    println!("blob of {blob_mib} MiB: VmHWM {} MiB, limit {MEMORY_MIB_MAX} MiB", memory_bytes >> 20);
    assert!(memory_bytes <= MEMORY_MIB_MAX << 20, "VmHWM of {} MiB", memory_bytes >> 20);

    daemon.kill();
    let daemon = spec.start();
    let client = Client::connect(daemon.grpc).await;
    assert_eq!(client.check_named(blob, &digest).await.unwrap(), Found::Exact);
    assert!(daemon.memory_bytes_max() <= MEMORY_MIB_MAX << 20);
    daemon.stop();
}
