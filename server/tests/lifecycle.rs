//! Starting and stopping the real process.

use blockstore_proto::{
    grpc::health::v1::health_check_response::ServingStatus,
    reapi::{ActionResult, Digest, OutputFile},
};
use blockstore_tests::{
    blob::{Blob, Random},
    client::{Client, Found, OpenUpload, action_digest, upload_name},
    daemon::{Daemon, Signal, Spec},
};
use std::{fs, path::Path, thread, time::Duration};
use tempfile::TempDir;
use tonic::Code;

const FILE: &str = "store.blockstore";

fn spec() -> Spec {
    Spec::new(env!("CARGO_BIN_EXE_blockstored"))
}

fn temp_dir() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn in_dir(dir: &Path) -> Spec {
    spec().dir(dir, "64MiB")
}

/// An upload of which the server has seen the first half, and the whole blob.
async fn half_an_upload(daemon: &Daemon) -> (Client, OpenUpload, Blob, Digest) {
    let client = Client::connect(daemon.grpc).await;
    let blob = Blob::new(1, 600_000);
    let digest = blob.digest();
    let upload = OpenUpload::start(&client, &upload_name(&digest), blob.bytes().slice(..300_000));
    (client, upload, blob, digest)
}

#[tokio::test]
async fn what_was_stored_is_there_after_a_clean_stop_and_a_new_start() {
    let dir = temp_dir();
    let spec = spec().dir(&dir.path().join("not/there/yet"), "64MiB");
    let daemon = spec.start();
    let client = Client::connect(daemon.grpc).await;
    let blobs = [Blob::new(1, 0), Blob::new(2, 1), Blob::new(3, 5_000), Blob::new(4, 3_000_000)];
    for blob in blobs {
        client.put(blob).await.unwrap();
    }
    let log = daemon.stop();
    assert!(log.iter().any(|line| line.contains("store is closed")), "{log:#?}");

    let daemon = spec.start();
    assert_eq!(daemon.opened("clean"), "true");
    let client = Client::connect(daemon.grpc).await;
    for blob in blobs {
        assert_eq!(client.check(blob).await.unwrap(), Found::Exact, "{blob:?}");
    }
    daemon.stop();
}

/// The store behind the front-ends checked for that, and the one that the daemon served did not: it answered results of builds
/// whose outputs had never been uploaded.
#[tokio::test]
async fn a_result_whose_output_is_missing_is_a_miss() {
    let dir = temp_dir();
    let daemon = in_dir(dir.path()).start();
    let client = Client::connect(daemon.grpc).await;
    let output = Blob::new(1, 5_000);
    let file = OutputFile { path: "out".into(), digest: Some(output.digest()), ..OutputFile::default() };
    let result = ActionResult { output_files: vec![file], ..ActionResult::default() };
    client.put_action(action_digest(1), result.clone()).await.unwrap();
    assert_eq!(client.action(action_digest(1)).await.unwrap(), None);
    client.put(output).await.unwrap();
    assert_eq!(client.action(action_digest(1)).await.unwrap(), Some(result));
    daemon.stop();
}

#[tokio::test]
async fn a_killed_process_leaves_a_store_that_opens_as_unclean() {
    let dir = temp_dir();
    in_dir(dir.path()).start().kill();
    let daemon = in_dir(dir.path()).start();
    assert_eq!(daemon.opened("clean"), "false");
    daemon.stop();
    let daemon = in_dir(dir.path()).start();
    assert_eq!(daemon.opened("clean"), "true");
}

#[test]
fn another_size_keeps_the_formatted_one_and_names_the_tool_that_changes_it() {
    let dir = temp_dir();
    in_dir(dir.path()).start().stop();
    let log = spec().dir(dir.path(), "96MiB").start().stop();
    let warnings: Vec<_> = log.iter().filter(|line| line.contains("blockstore-tool grow")).collect();
    assert_eq!(warnings.len(), 1, "{log:#?}");
    assert!(warnings[0].contains("--size 96"), "{warnings:?}");
    assert_eq!(fs::metadata(dir.path().join(FILE)).unwrap().len(), 64 << 20);

    let same = in_dir(dir.path()).start().stop();
    assert!(!same.iter().any(|line| line.contains("grow")), "{same:#?}");
    let unsaid = spec().arg("--dir").arg(dir.path()).start().stop();
    assert!(!unsaid.iter().any(|line| line.contains("grow")), "{unsaid:#?}");
}

#[tokio::test]
async fn a_drain_is_visible_and_waits_for_what_runs() {
    let dir = temp_dir();
    let daemon = in_dir(dir.path()).start();
    let (client, upload, blob, digest) = half_an_upload(&daemon).await;
    let before = Blob::new(2, 100);
    client.put(before).await.unwrap();
    assert_eq!(daemon.http_status("/healthz"), Some(200));
    assert_eq!(daemon.http_status("/readyz"), Some(200));
    assert_eq!(daemon.http_status("/nothing"), Some(400));
    assert_eq!(client.health().await.unwrap(), ServingStatus::Serving);

    daemon.signal(Signal::TERM);
    daemon.wait_for_line("draining");
    assert_eq!(daemon.http_status("/healthz"), Some(200));
    assert_eq!(daemon.http_status("/readyz"), Some(503));
    // Also for who connects only now, such as a load balancer's probe.
    let late = Client::connect(daemon.grpc).await;
    assert_eq!(late.health().await.unwrap(), ServingStatus::NotServing);
    let turned_away = late.missing(vec![before.digest()]).await.unwrap_err();
    assert_eq!(turned_away.code(), Code::Unavailable, "{turned_away}");

    let committed = upload.finish(300_000, blob.bytes().slice(300_000..)).await.unwrap();
    assert_eq!(committed, digest.size_bytes);
    let (status, log) = daemon.wait();
    assert!(status.success(), "{log:#?}");

    let daemon = in_dir(dir.path()).start();
    assert_eq!(daemon.opened("clean"), "true");
    let client = Client::connect(daemon.grpc).await;
    assert_eq!(client.check(blob).await.unwrap(), Found::Exact);
}

#[tokio::test]
async fn a_drain_ends_at_its_deadline() {
    let dir = temp_dir();
    let daemon = in_dir(dir.path()).args("--drain-ms-max 50").start();
    let (client, upload, blob, _) = half_an_upload(&daemon).await;
    let kept = Blob::new(2, 100);
    client.put(kept).await.unwrap();
    let log = daemon.stop();
    assert!(log.iter().any(|line| line.contains("still run")), "{log:#?}");
    upload.end().await.unwrap_err();

    let daemon = in_dir(dir.path()).start();
    assert_eq!(daemon.opened("clean"), "true");
    let client = Client::connect(daemon.grpc).await;
    assert_eq!(client.check(blob).await.unwrap(), Found::Missing);
    assert_eq!(client.check(kept).await.unwrap(), Found::Exact);
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let dir = temp_dir();
        let daemon = in_dir(dir.path()).args("--drain-ms-max 3600000").start();
        let (client, _upload, ..) = half_an_upload(&daemon).await;
        let acknowledged = Blob::new(2, 100);
        client.put(acknowledged).await.unwrap();
        daemon.signal(signal);
        daemon.wait_for_line("draining");
        daemon.signal(signal);
        let (status, log) = daemon.wait();
        assert_eq!(status.code(), Some(code), "{log:#?}");

        let daemon = in_dir(dir.path()).start();
        assert_eq!(daemon.opened("clean"), "false");
        let client = Client::connect(daemon.grpc).await;
        assert_eq!(client.check(acknowledged).await.unwrap(), Found::Exact);
    }
}

#[test]
fn killed_at_any_moment_of_its_first_start_it_starts_again() {
    let mut random = Random::new(1);
    for _ in 0..10 {
        let dir = temp_dir();
        let daemon = in_dir(dir.path()).spawn();
        thread::sleep(Duration::from_millis(random.below(60)));
        daemon.kill();
        in_dir(dir.path()).start().stop();
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [FILE]);
    }
}

#[test]
fn what_an_interrupted_creation_left_is_replaced() {
    let dir = temp_dir();
    fs::write(dir.path().join("store.blockstore.new"), vec![7; 1 << 20]).unwrap();
    in_dir(dir.path()).start().stop();
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [FILE]);
}
