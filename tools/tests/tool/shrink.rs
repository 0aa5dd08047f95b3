//! Shrinking in place: what is kept and what is not, and killed at any moment.

use crate::store::*;
use blockstore_engine::{
    Engine, FormatOptions, Key, OpenOptions,
    device::{DeviceOptions, create_file, open_file},
};
use blockstore_names::DigestFunction;
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;

const SIZE: u64 = 96 << 20;
const SMALL: u64 = 48 << 20;
const OBJECT_BYTES: usize = 100_000;

/// A store of 96 MiB that is half full or nearly full, with objects put one after the other, some of which were asked for at the end.
fn filled(objects: u32, asked: &[u32]) -> (TempDir, std::path::PathBuf, Vec<(Key, bytes::Bytes)>) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("store.blockstore");
    let all = run(async {
        let device = create_file(&path, SIZE, DeviceOptions::default()).unwrap();
        Engine::format(device.clone(), &FormatOptions::default()).await.unwrap();
        let (engine, _) = Engine::open(device, OpenOptions::default()).await.unwrap();
        let mut all = Vec::new();
        for id in 0..objects {
            // Some of them in parts.
            let data = data(id, if id % 40 == 7 { 2 << 20 } else { OBJECT_BYTES });
            let key = blob(DigestFunction::Sha256, &data).1;
            engine.put(key, data.clone()).await.unwrap();
            all.push((key, data));
        }
        for id in asked {
            let (key, data) = &all[*id as usize];
            assert!(engine.get(key, Some(data.len() as u64)).await.is_some());
        }
        engine.close().await.unwrap();
        all
    });
    (dir, path, all)
}

/// Which of these a server finds, each byte for byte.
fn there(path: &Path, all: &[(Key, bytes::Bytes)]) -> Vec<bool> {
    run(async {
        let (engine, _) = Engine::open(open_file(path, DeviceOptions::default()).unwrap(), OpenOptions::default()).await.unwrap();
        let mut there = Vec::new();
        for (key, data) in all {
            let found = match engine.get(key, None).await {
                Some(object) => Some(collect(object).await),
                None => None,
            };
            assert!(found.as_ref().is_none_or(|found| found == data), "a wrong byte");
            there.push(found.is_some());
        }
        engine.close().await.unwrap();
        there
    })
}

#[test]
fn a_store_with_room_shrinks_and_keeps_everything() {
    for close in [true, false] {
        let made = make(close);
        assert_eq!(status(&tool(&["grow", "--size", "96MiB"], &made.path)), 0);
        let before = made.inspect();
        let output = tool(&["shrink", "--size", "48MiB", "--json"], &made.path);
        let report = json(&output);
        assert_eq!(status(&output), 0, "{}", stderr(&output));
        assert_eq!((number(&report, "/before_bytes"), number(&report, "/after_bytes")), (SIZE, SMALL));
        assert_eq!((number(&report, "/dropped_objects"), report["dropped_age_ticks_min"].is_null()), (0, true));
        assert_eq!(fs::metadata(&made.path).unwrap().len(), SMALL, "the file is as long as the store");
        let after = made.inspect();
        for same in ["/uuid", "/objects/total", "/live_slots", "/block_bytes", "/blocks_offset_bytes"] {
            assert_eq!(after.pointer(same), before.pointer(same), "{same}");
        }
        assert_eq!((after["verdict"].as_str(), number(&after, "/store_bytes")), (Some("sound"), SMALL));
        assert_eq!(status(&tool(&["verify", "--content"], &made.path)), 0);
        made.serves_all_but(&[]);
        // And back again.
        assert_eq!(status(&tool(&["grow", "--size", "96MiB"], &made.path)), 0);
        assert_eq!(status(&tool(&["verify", "--content"], &made.path)), 0);
        made.serves_all_but(&[]);
    }
}

#[test]
fn the_newest_are_kept_and_what_would_be_lost_is_told_first() {
    // More than the small store holds; the first ones were asked for last.
    let asked: Vec<u32> = (0..20).collect();
    let (_dir, path, all) = filled(300, &asked);
    let before = fs::read(&path).unwrap();
    let output = tool(&["shrink", "--size", "48MiB"], &path);
    assert_eq!((status(&output), stdout(&output).as_str()), (2, ""), "{}", stderr(&output));
    assert!(stderr(&output).contains("--drop-oldest"), "{}", stderr(&output));
    assert!(fs::read(&path).unwrap() == before, "a refusal changed the store");
    let told: u64 = stderr(&output).split(" objects (").next().unwrap().rsplit(' ').next().unwrap().parse().unwrap();

    let output = tool(&["shrink", "--size", "48MiB", "--drop-oldest", "--json"], &path);
    let report = json(&output);
    assert_eq!(status(&output), 0, "{}", stderr(&output));
    let dropped = number(&report, "/dropped_objects");
    assert!(dropped == told && dropped > 20, "{report:#} {told}");
    assert!(number(&report, "/dropped_record_bytes") >= dropped * OBJECT_BYTES as u64, "{report:#}");
    assert!(number(&report, "/dropped_age_ticks_min") <= number(&report, "/dropped_age_ticks_max"));
    let verified = tool(&["verify", "--content", "--json"], &path);
    assert_eq!(status(&verified), 0, "{:#}", json(&verified));
    let report = json(&tool(&["inspect", "--json"], &path));
    assert_eq!(number(&report, "/objects/total"), all.len() as u64 - dropped);
    // What was put in the small store's room stays when a server goes on: nothing need be reclaimed at once.
    let spare = number(&report, "/blocks/free");
    assert!(spare >= number(&report, "/retention/spare_blocks_wanted"), "{report:#}");

    let there = there(&path, &all);
    assert!(there[..20].iter().all(|there| *there), "what was asked for last is kept");
    let first = 20 + there[20..].iter().position(|there| *there).unwrap();
    assert_eq!(first as u64, 20 + dropped, "of the others the oldest are gone, and only those");
    assert!(there[first..].iter().all(|there| *there));
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let made = make(true);
    assert_eq!(status(&tool(&["grow", "--size", "96MiB"], &made.path)), 0);
    let before = made.bytes();
    for (size, told) in [("96MiB", "no fewer"), ("1GiB", "no fewer"), ("1MiB", "can shrink to"), ("30MiB", "can shrink to")] {
        let output = tool(&["shrink", "--size", size], &made.path);
        assert_eq!(status(&output), 2, "{size}: {}", stderr(&output));
        assert!(stderr(&output).contains(told), "{size}: {}", stderr(&output));
    }
    assert!(made.bytes() == before);
    assert_eq!(status(&tool(&["shrink"], &made.path)), 2, "--size must be said");

    // What a damaged record is cannot be told, so neither can what is kept.
    let at = made.find(&data(7, 507));
    made.damage(at - 60..at - 59);
    let before = made.bytes();
    let output = tool(&["shrink", "--size", "48MiB"], &made.path);
    assert_eq!(status(&output), 3, "{}", stderr(&output));
    assert!(stderr(&output).contains("repair the store"), "{}", stderr(&output));
    assert!(made.bytes() == before);
}

#[test]
fn a_shrink_that_is_killed_at_any_moment_loses_nothing_but_what_was_to_be_dropped() {
    let (_dir, path, all) = filled(260, &[]);
    let original = fs::read(&path).unwrap();
    let whole = json(&tool(&["shrink", "--size", "48MiB", "--drop-oldest", "--json"], &path));
    let dropped = number(&whole, "/dropped_objects") as usize;
    assert!(dropped > 0 && number(&whole, "/copied_records") > 20, "{whole:#}");
    let (mut unfinished, mut finished) = (0, 0);
    let mut wait = Duration::from_millis(2);
    for round in 0..24 {
        fs::write(&path, &original).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_blockstore-tool"))
            .args(["shrink", path.to_str().unwrap(), "--size", "48MiB", "--drop-oldest"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(wait);
        // SIGKILL.
        child.kill().unwrap();
        child.wait().unwrap();
        let report = json(&tool(&["inspect", "--json"], &path));
        assert_eq!(report["verdict"], "sound", "round {round}: {report:#}");
        let store_bytes = number(&report, "/store_bytes");
        assert!(store_bytes == SIZE || store_bytes == SMALL, "round {round}");
        // Later and later, until it was done.
        match store_bytes == SIZE {
            true => (unfinished, wait) = (unfinished + 1, wait * 5 / 4 + Duration::from_millis(1)),
            false => (finished, wait) = (finished + 1, wait * 3 / 4),
        }
        if round % 2 == 1 {
            let len = fs::metadata(&path).unwrap().len();
            let again = tool(&["shrink", "--size", "48MiB", "--drop-oldest"], &path);
            // Where store and file are as small as that already there is nothing to do, and that is told.
            let done = store_bytes == SMALL && len == SMALL;
            assert_eq!(status(&again), if done { 2 } else { 0 }, "{}", stderr(&again));
            let store_bytes = number(&json(&tool(&["inspect", "--json"], &path)), "/store_bytes");
            assert_eq!((store_bytes, fs::metadata(&path).unwrap().len()), (SMALL, SMALL));
            assert_eq!(status(&tool(&["verify", "--content"], &path)), 0, "round {round}");
        }
        let there = there(&path, &all);
        assert!(there[dropped..].iter().all(|there| *there), "round {round}: lost what was to be kept");
    }
    assert!(unfinished > 0 && finished > 0, "some were killed before they were done, {unfinished}, and some behind it, {finished}");
}
