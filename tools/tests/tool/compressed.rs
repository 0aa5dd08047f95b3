//! Stores whose blobs are compressed at rest, as the real server writes them: every command hands on, checks and exports the bytes that
//! the frames stand for.

use crate::{server::spec, store::*};
use blockstore_engine::Codec;
use blockstore_names::{DigestFunction, Hasher};
use blockstore_proto::reapi;
use blockstore_tests::{blob::digest_of, client::Client};
use bytes::Bytes;
use prost::Message;
use serde_json::json;
use std::{fs, io::Read, path::PathBuf};
use tempfile::TempDir;

struct Compressed {
    _dir: TempDir,
    path: PathBuf,
    blobs: Vec<Bytes>,
    command: Bytes,
}

fn text(seed: u32, bytes: usize) -> Bytes {
    let lines = (0..).flat_map(|line| format!("{seed}: line {line} of what a compiler said\n").into_bytes());
    lines.take(bytes).collect::<Vec<_>>().into()
}

/// Blobs that shrink, of one record and of several parts, one that does not, and a Command.
fn compressed() -> Compressed {
    let dir = TempDir::new().unwrap();
    let daemon = spec(dir.path()).args("--storage-compression zstd").start();
    let command = reapi::Command { arguments: vec!["cc".into(), "-c".repeat(20_000)], ..Default::default() };
    let command: Bytes = command.encode_to_vec().into();
    let blobs = vec![text(1, 3000), text(2, 100_000), text(3, 900_000), text(4, 5 << 20), data(5, 50_000), command.clone()];
    run(async {
        let client = Client::connect(daemon.grpc).await;
        for blob in &blobs {
            let pieces: Vec<Bytes> = blob.chunks(1 << 20).map(Bytes::copy_from_slice).collect();
            client.write(&digest_of(blob), pieces, true).await.unwrap();
        }
    });
    daemon.stop();
    let path = dir.path().join("store.blockstore");
    // The frames are what is stored: none of the text is in the file as it is.
    let stored = fs::read(&path).unwrap();
    let needle = b"line 700 of what a compiler said";
    assert!(!stored.windows(needle.len()).any(|window| window == needle), "blobs are compressed: {:?}", Codec::Zstd);
    Compressed { _dir: dir, path, blobs, command }
}

fn hash(bytes: &[u8]) -> String {
    Hasher::digest(DigestFunction::Sha256, bytes).hash_hex()
}

#[test]
fn what_is_stored_as_frames_is_its_bytes_to_every_command() {
    let made = compressed();
    let verified = tool(&["verify", "--content", "--json"], &made.path);
    let report = json(&verified);
    assert_eq!((status(&verified), number(&report, "/hashed_records")), (0, made.blobs.len() as u64), "{report:#}");
    assert_eq!((number(&report, "/bad_records"), number(&report, "/unknown_function_records")), (0, 0), "{report:#}");

    for blob in &made.blobs {
        let output = tool(&["get", &format!("{}/{}", hash(blob), blob.len())], &made.path);
        assert!(status(&output) == 0 && output.stdout == *blob, "{} bytes: {}", blob.len(), stderr(&output));
    }
    let output = tool(&["cat-action", &hash(&made.command), "--as", "command", "--json"], &made.path);
    assert_eq!((status(&output), json(&output).pointer("/arguments/0")), (0, Some(&json!("cc"))), "{}", stderr(&output));

    let archive = made._dir.path().join("archive.tar");
    let output = tool(&["export", archive.to_str().unwrap(), "--json"], &made.path);
    assert_eq!((status(&output), number(&json(&output), "/contents")), (0, made.blobs.len() as u64), "{}", stderr(&output));
    assert_eq!(number(&json(&output), "/bytes"), made.blobs.iter().map(|blob| blob.len() as u64).sum::<u64>());
    let mut entries = tar::Archive::new(fs::File::open(&archive).unwrap());
    let mut found = 0;
    for entry in entries.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let Some(key) = name.strip_prefix("content/1/").map(str::to_string) else { continue };
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        assert_eq!(key, hash(&bytes), "the archive has the bytes of the hash");
        found += 1;
    }
    assert_eq!(found, made.blobs.len());

    let other = made._dir.path().join("other.blockstore");
    assert_eq!(status(&tool(&["format", "--size", "64MiB"], &other)), 0);
    let output = tool(&["import", archive.to_str().unwrap(), "--json"], &other);
    assert_eq!((status(&output), number(&json(&output), "/contents")), (0, made.blobs.len() as u64), "{}", stderr(&output));
    let contents = made.blobs.iter().map(|blob| (ordered(&crate::store::blob(DigestFunction::Sha256, blob).1), blob.clone())).collect();
    serves(&other, &contents, &[]);
}

/// Grown and shrunk, frames stay frames, and a server answers with what they stand for.
#[test]
fn frames_are_moved_as_they_are() {
    let made = compressed();
    assert_eq!(status(&tool(&["grow", "--size", "96MiB"], &made.path)), 0);
    let output = tool(&["shrink", "--size", "48MiB"], &made.path);
    assert_eq!(status(&output), 0, "{}", stderr(&output));
    assert_eq!(number(&json(&tool(&["verify", "--content", "--json"], &made.path)), "/hashed_records"), made.blobs.len() as u64);
    let daemon = spec(made.path.parent().unwrap()).start();
    run(async {
        let client = Client::connect(daemon.grpc).await;
        let missing = client.missing(made.blobs.iter().map(|blob| digest_of(blob)).collect()).await.unwrap();
        assert!(missing.is_empty(), "{missing:?}");
    });
    daemon.stop();
}

/// A frame whose checksums are right and that stands for other bytes, or for none, is damage by content.
#[test]
fn a_frame_that_makes_no_sense_is_damage_of_its_content() {
    use blockstore_engine::{Engine, OpenOptions, Value, device::open_file};
    let made = compressed();
    let wrong =
        [(b"another text".as_slice(), zstd::encode_all(&b"other bytes!"[..], 1).unwrap()), (b"no frame at all", b"nonsense".to_vec())];
    run(async {
        let options = OpenOptions { encode: true, ..OpenOptions::default() };
        let (engine, _) = Engine::open(open_file(&made.path, Default::default()).unwrap(), options).await.unwrap();
        for (said, frame) in &wrong {
            let value = Value::encoded(Codec::Zstd, frame.clone().into(), said.len() as u64);
            assert!(engine.put_values(vec![(blob(DigestFunction::Sha256, said).1, value)]).await.iter().all(Result::is_ok));
        }
        engine.close().await.unwrap();
    });
    assert_eq!(status(&tool(&["verify"], &made.path)), 0, "checksums are right");
    let output = tool(&["verify", "--content", "--json"], &made.path);
    let report = json(&output);
    assert_eq!((status(&output), number(&report, "/bad_records")), (1, 2), "{report:#}");
    assert!(report["bad"].as_array().unwrap().iter().all(|bad| bad["defect"] == "content"), "{report:#}");
    let output = tool(&["get", &hash(b"no frame at all")], &made.path);
    assert_eq!((status(&output), output.stdout.len()), (1, 0));
    let output = tool(&["export", made._dir.path().join("archive.tar").to_str().unwrap(), "--json"], &made.path);
    assert_eq!((status(&output), number(&json(&output), "/bad_records") >= 1), (1, true), "{}", stderr(&output));
}
