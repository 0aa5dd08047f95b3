//! kill -9 of the real process under load: what was acknowledged is there after the restart.
//!
//! The record of what was acknowledged is kept here, by the one who got the answers. A blob goes into it after its answer
//! arrived; of an action result the last version that was acknowledged and the last that was sent are known, and what is
//! found must lie between them.

use blockstore_proto::reapi::{ActionResult, OutputFile};
use blockstore_tests::{
    blob::{Blob, Random},
    client::{Client, Found, action_digest},
    daemon::Spec,
};
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::Code;

const ROUNDS: u64 = 20;
/// What runs in each round: backends, durabilities and the page cache in turn.
const VARIANTS: [&str; 5] = [
    "--io io-uring",
    "--io sync",
    "--io io-uring --direct on",
    "--io sync --direct on --durability group",
    "--io io-uring --durability group",
];
/// Most acknowledgements that a round waits for before it kills.
const ACKNOWLEDGED_MAX: u64 = 300;
/// Uploads over 1 MiB in a round, so that all rounds together stay far below what the store retains.
const LARGE_PER_ROUND: u64 = 8;
/// Blobs in a batch.
const BATCH: u64 = 40;
/// Action keys that are written again and again.
const ACTIONS: u64 = 16;

/// What one action's result may be.
#[derive(Clone, Copy, Debug, Default)]
struct Versions {
    acknowledged: u64,
    sent: u64,
}

#[derive(Debug, Default)]
struct Record {
    acknowledgements: u64,
    blobs: Vec<Blob>,
    actions: BTreeMap<u64, Versions>,
}

type Shared = Arc<Mutex<Record>>;

fn acknowledge(record: &Shared, blobs: impl IntoIterator<Item = Blob>) {
    let mut record = record.lock().unwrap();
    record.acknowledgements += 1;
    record.blobs.extend(blobs);
}

/// The result of an action in one of its versions; its output is a blob that the version determines.
fn result_of(action: u64, version: u64) -> (Blob, ActionResult) {
    let output = Blob::new(action << 32 | version, 700);
    let result = ActionResult {
        output_files: vec![OutputFile { path: "out".into(), digest: Some(output.digest()), ..OutputFile::default() }],
        stdout_raw: Bytes::from(version.to_string()),
        ..ActionResult::default()
    };
    (output, result)
}

/// Whether the load can go on: a refusal would be a bug, a lost connection is the kill.
fn goes_on<T>(answer: Result<T, tonic::Status>) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer),
        Err(status) => {
            let code = status.code();
            assert!(
                matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal)
                    && std::error::Error::source(&status).is_some(),
                "the server refused: {status:?}"
            );
            None
        }
    }
}

async fn put_small(client: Client, record: Shared, mut random: Random) {
    loop {
        let blob = Blob::new(random.next(), random.small_size_bytes());
        let Some(()) = goes_on(client.put(blob).await) else {
            return;
        };
        acknowledge(&record, [blob]);
    }
}

async fn put_batches(client: Client, record: Shared, mut random: Random) {
    loop {
        let blobs: Vec<_> = (0..BATCH).map(|_| Blob::new(random.next(), random.small_size_bytes())).collect();
        let Some(codes) = goes_on(client.put_batch(&blobs).await) else {
            return;
        };
        assert!(codes.iter().all(|&code| code == Code::Ok), "{codes:?}");
        acknowledge(&record, blobs);
    }
}

async fn put_large(client: Client, record: Shared, mut random: Random) {
    for _ in 0..LARGE_PER_ROUND {
        let blob = Blob::new(random.next(), (1 << 20) + random.below(4 << 20));
        let Some(()) = goes_on(client.put(blob).await) else {
            return;
        };
        acknowledge(&record, [blob]);
    }
}

async fn put_actions(client: Client, record: Shared, mut random: Random) {
    loop {
        let action = random.below(ACTIONS);
        let version = record.lock().unwrap().actions.entry(action).or_default().sent + 1;
        let (output, result) = result_of(action, version);
        let Some(()) = goes_on(client.put(output).await) else {
            return;
        };
        acknowledge(&record, [output]);
        record.lock().unwrap().actions.entry(action).or_default().sent = version;
        let Some(()) = goes_on(client.put_action(action_digest(action), result).await) else {
            return;
        };
        record.lock().unwrap().actions.entry(action).or_default().acknowledged = version;
        acknowledge(&record, []);
    }
}

/// Finds everything in the record, byte for byte.
async fn check(client: &Client, record: &Shared, when: &str) {
    let (blobs, actions) = {
        let record = record.lock().unwrap();
        (record.blobs.clone(), record.actions.clone())
    };
    let (small, large): (Vec<_>, Vec<_>) = blobs.iter().copied().partition(|blob| blob.size_bytes <= 100_000);
    let mut lost = Vec::new();
    for some in small.chunks(100) {
        let found = client.check_batch(some).await.unwrap();
        lost.extend(some.iter().zip(found).filter(|(_, found)| *found != Found::Exact).map(|(blob, found)| (*blob, found)));
    }
    for blob in large {
        let found = client.check(blob).await.unwrap();
        lost.extend((found != Found::Exact).then_some((blob, found)));
    }
    // Where in the record they stand tells a lost round from lost single ones.
    let lost: Vec<_> = lost.into_iter().map(|lost| (blobs.iter().position(|blob| *blob == lost.0).unwrap(), lost)).collect();
    assert!(lost.is_empty(), "{when}: {} of {} acknowledged blobs are lost: {lost:?}", lost.len(), blobs.len());
    for (action, versions) in actions {
        let found = client.action(action_digest(action)).await.unwrap();
        let version = found.as_ref().map_or(0, |result| std::str::from_utf8(&result.stdout_raw).unwrap().parse().unwrap());
        assert!(
            (versions.acknowledged..=versions.sent).contains(&version),
            "{when}: action {action} is at version {version}, not in {versions:?}"
        );
        if let Some(found) = found {
            assert_eq!(found, result_of(action, version).1, "{when}: action {action}");
        }
        // What was seen after a restart is not taken back by the next kill.
        let seen = Versions { acknowledged: version, sent: versions.sent };
        record.lock().unwrap().actions.insert(action, seen);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_loses_no_acknowledged_blob_or_action_result() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let spec = Spec::new(env!("CARGO_BIN_EXE_blockstored")).dir(dir.path(), "4GiB");
    let record = Shared::default();
    let mut random = Random::new(20);
    let mut killed = "";
    for (round, variant) in (0..ROUNDS).zip(VARIANTS.iter().cycle()) {
        let daemon = spec.clone().args(variant).start();
        println!("round {round}: {}", daemon.log().iter().find(|line| line.contains("store is open")).unwrap());
        let client = Client::connect(daemon.grpc).await;
        check(&client, &record, &format!("after a kill in round {round}, with {killed}")).await;
        killed = variant;
        let before = record.lock().unwrap().acknowledgements;

        let mut load = JoinSet::new();
        let mut worker = || Random::new(random.next());
        for _ in 0..2 {
            load.spawn(put_small(client.clone(), record.clone(), worker()));
            load.spawn(put_small(Client::connect(daemon.grpc).await, record.clone(), worker()));
        }
        load.spawn(put_batches(client.clone(), record.clone(), worker()));
        load.spawn(put_large(client.clone(), record.clone(), worker()));
        load.spawn(put_large(Client::connect(daemon.grpc).await, record.clone(), worker()));
        load.spawn(put_actions(client.clone(), record.clone(), worker()));

        // The kill comes at a random number of acknowledgements, whenever that is, with all workers in the middle of something.
        let kill_at = before + 1 + random.below(ACKNOWLEDGED_MAX);
        while record.lock().unwrap().acknowledgements < kill_at {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        daemon.kill();
        while let Some(worker) = load.join_next().await {
            worker.unwrap();
        }
    }

    let daemon = spec.start();
    assert_eq!(daemon.opened("clean"), "false");
    let client = Client::connect(daemon.grpc).await;
    check(&client, &record, "at the end").await;
    let record = record.lock().unwrap();
    println!(
        "{ROUNDS} kills, {} acknowledgements, {} blobs of {} MB, {} actions",
        record.acknowledgements,
        record.blobs.len(),
        record.blobs.iter().map(|blob| blob.size_bytes).sum::<u64>() / 1_000_000,
        record.actions.len()
    );
    daemon.stop();
}
