//! Growing in place, killed at any moment.
//!
//! `BLOCKSTORE_TOOL_GROW_MIB=1024 cargo test --release -p blockstore-tool --test tool killed_while_it_grows -- --nocapture` is the long form: a store
//! of 1 GiB, six tenths full, grows to 2 GiB and is killed at 20 random moments. It needs 3 GiB under `TMPDIR`.

use crate::store::*;
use blockstore_engine::{
    Engine, FormatOptions, OpenOptions,
    device::{DeviceOptions, create_file},
};
use blockstore_names::DigestFunction;
use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

#[test]
fn a_store_grows_and_keeps_everything() {
    for close in [true, false] {
        let made = make(close);
        let before = made.inspect();
        let output = tool(&["grow", "--size", "96MiB", "--json"], &made.path);
        let report = json(&output);
        assert_eq!(status(&output), 0, "{}", stderr(&output));
        assert_eq!((number(&report, "/before_bytes"), number(&report, "/after_bytes")), (STORE_BYTES, 96 << 20));
        assert!(number(&report, "/blocks_after") > number(&report, "/blocks_before") + 40, "{report:#}");
        assert!(number(&report, "/slots_after") > number(&report, "/slots_before"), "{report:#}");
        let after = made.inspect();
        for same in ["/uuid", "/objects/total", "/live_slots", "/block_bytes", "/blocks_offset_bytes"] {
            assert_eq!(after.pointer(same), before.pointer(same), "{same}");
        }
        assert_eq!((after["verdict"].as_str(), number(&after, "/store_bytes")), (Some("sound"), 96 << 20));
        assert_eq!(status(&tool(&["verify", "--content"], &made.path)), 0);
        made.serves_all_but(&[]);
        // And once more.
        assert_eq!(status(&tool(&["grow", "--size", "128MiB"], &made.path)), 0);
        assert_eq!(status(&tool(&["verify", "--content"], &made.path)), 0);
        made.serves_all_but(&[]);
    }
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let made = make(true);
    let before = made.bytes();
    for (size, told) in [("40MiB", "can grow to"), ("1MiB", "can grow to"), ("41MiB", "can grow to")] {
        let output = tool(&["grow", "--size", size], &made.path);
        assert_eq!(status(&output), 2, "{size}: {}", stderr(&output));
        assert!(stderr(&output).contains(told), "{size}: {}", stderr(&output));
    }
    assert!(made.bytes() == before);
    let output = tool(&["grow"], &made.path);
    assert_eq!(status(&output), 2);
    assert!(stderr(&output).contains("is no larger"), "{}", stderr(&output));

    // A damaged record is not carried along in silence.
    let at = made.find(&data(7, 507));
    made.damage(at - 60..at - 59);
    let before = made.inspect();
    let output = tool(&["grow", "--size", "96MiB"], &made.path);
    assert_eq!(status(&output), 3, "{}", stderr(&output));
    assert!(stderr(&output).contains("repair the store"), "{}", stderr(&output));
    // The file is larger, the store is what it was, and opens.
    assert_eq!(number(&made.inspect(), "/store_bytes"), number(&before, "/store_bytes"));
    made.serves_all_but(&[blockstore_names::keys::content_key(&blob(DigestFunction::Sha256, &data(7, 507)).0)]);
}

#[test]
fn a_grow_that_is_killed_at_any_moment_loses_nothing_and_can_be_finished() {
    let made = make(false);
    let original = made.bytes();
    let mut unfinished = 0;
    for round in 0..20u64 {
        fs::write(&made.path, &original).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_blockstore-tool"))
            .args(["grow", made.path.to_str().unwrap(), "--size", "96MiB"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(round * round * 400));
        // SIGKILL.
        child.kill().unwrap();
        child.wait().unwrap();
        let output = tool(&["inspect", "--json"], &made.path);
        let report = json(&output);
        assert_eq!(number(&report, "/objects/total"), made.contents.len() as u64, "round {round}");
        let bytes = number(&report, "/store_bytes");
        assert!(bytes == STORE_BYTES || bytes == 96 << 20);
        unfinished += u64::from(bytes == STORE_BYTES);
        match round % 2 {
            // A server opens it as it is.
            0 => made.serves_all_but(&[]),
            _ => {
                let again = tool(&["grow", "--size", "96MiB"], &made.path);
                assert_eq!(status(&again), if bytes == STORE_BYTES { 0 } else { 2 }, "round {round}: {}", stderr(&again));
                assert_eq!(number(&made.inspect(), "/store_bytes"), 96 << 20);
                assert_eq!(status(&tool(&["verify", "--content"], &made.path)), 0, "round {round}");
                made.serves_all_but(&[]);
            }
        }
    }
    assert!(unfinished > 0, "some were killed before they were done");
}

/// A store of `mib`, six tenths full of blobs of all sizes and of names.
fn large(mib: u64) -> Made {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("store.blockstore");
    let mut contents = Contents::new();
    run(async {
        let device = create_file(&path, mib << 20, DeviceOptions::default()).unwrap();
        Engine::format(device.clone(), &FormatOptions::default()).await.unwrap();
        let (engine, _) = Engine::open(device, OpenOptions::default()).await.unwrap();
        let (mut id, mut bytes) = (0, 0);
        while bytes < (mib << 20) * 6 / 10 {
            let len = [300, 3000, 30_000, 300_000, 3_000_000][id as usize % 5];
            let data = data(id, len);
            let key = if id % 10 == 1 { action_key(id, "main") } else { blob(DigestFunction::Sha256, &data).1 };
            engine.put(key, data.clone()).await.unwrap();
            contents.insert(ordered(&key), data);
            (id, bytes) = (id + 1, bytes + len as u64);
        }
        // As a kill leaves it: the log counts.
        engine.flush().await.unwrap();
    });
    Made { dir, path, contents }
}

/// The real process, killed at moments that are spread over all of its work.
#[test]
fn a_store_that_is_killed_while_it_grows_loses_nothing() {
    let mib: u64 = std::env::var("BLOCKSTORE_TOOL_GROW_MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(64);
    let rounds = if mib > 64 { 20 } else { 6 };
    let made = large(mib);
    let original = made.dir.path().join("original");
    fs::copy(&made.path, &original).unwrap();
    let size = format!("{}MiB", 2 * mib);
    // What the copy left to be written would be waited for by the first flush, and every moment would lie before the change.
    let restore = || {
        fs::copy(&original, &made.path).unwrap();
        fs::File::open(&made.path).unwrap().sync_all().unwrap();
    };
    restore();
    let begin = Instant::now();
    assert_eq!(status(&tool(&["grow", "--size", &size], &made.path)), 0);
    let whole = begin.elapsed();
    let (mut unfinished, mut random) = (0, 0x9e37_79b9_7f4a_7c15u64);
    for round in 0..rounds {
        restore();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let mut child = Command::new(env!("CARGO_BIN_EXE_blockstore-tool"))
            .args(["grow", made.path.to_str().unwrap(), "--size", &size])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // A little longer than the first one took, so that some are killed behind the change, too.
        let wait = whole * (random % 1250) as u32 / 1000;
        std::thread::sleep(wait);
        child.kill().unwrap();
        child.wait().unwrap();
        let report = made.inspect();
        let bytes = number(&report, "/store_bytes");
        assert!(bytes == mib << 20 || bytes == (2 * mib) << 20, "round {round}: {bytes}");
        assert_eq!((report["verdict"].as_str(), number(&report, "/objects/total")), (Some("sound"), made.contents.len() as u64));
        unfinished += u64::from(bytes == mib << 20);
        assert_eq!(status(&tool(&["verify", "--content"], &made.path)), 0, "round {round}");
        made.serves_all_but(&[]);
        println!("killed after {wait:?} of {whole:?}: {} MiB, {} objects are there", bytes >> 20, made.contents.len());
    }
    println!("{unfinished} of {rounds} were killed before the larger store was in force");
}
