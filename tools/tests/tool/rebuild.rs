//! Rebuilding the index from the blocks alone.

use crate::store::*;
use blockstore_engine::{
    Engine, Key, KeySpace, OpenOptions,
    device::{DeviceOptions, open_file},
};
use blockstore_names::DigestFunction;
use bytes::Bytes;

/// Log and both images, as a range of the store.
fn index(made: &Made) -> std::ops::Range<usize> {
    let report = made.inspect();
    number(&report, "/log_offset_bytes") as usize..number(&report, "/blocks_offset_bytes") as usize
}

#[test]
fn without_log_and_images_every_value_comes_back() {
    for close in [true, false] {
        let made = make(close);
        made.zero(index(&made));
        let output = tool(&["inspect", "--json"], &made.path);
        assert_eq!((status(&output), number(&json(&output), "/live_slots")), (1, 0));
        let output = tool(&["rebuild", "--json"], &made.path);
        let report = json(&output);
        assert_eq!(status(&output), 0, "{}", stderr(&output));
        // One name was deleted; of the replaced one the last value counts.
        let counts = ["contents", "large_objects", "named", "deleted", "incomplete_objects", "blocks_left_out", "over_table"];
        assert_eq!(counts.map(|count| number(&report, &format!("/{count}"))), [35, 1, 3, 1, 0, 0, 0], "{report:#}");
        let verified = tool(&["verify", "--content", "--json"], &made.path);
        assert_eq!(
            (status(&verified), number(&made.inspect(), "/objects/total")),
            (0, made.contents.len() as u64),
            "{:#}",
            json(&verified)
        );
        made.serves_all_but(&[]);
        let key = action_key(2, "");
        run(async {
            let device = open_file(&made.path, DeviceOptions::default()).unwrap();
            let (engine, _) = Engine::open(device, OpenOptions::default()).await.unwrap();
            assert!(engine.get(&key, None).await.is_none(), "what was deleted last stays deleted");
            engine.close().await.unwrap();
        });
    }
}

#[test]
fn a_sound_index_is_not_thrown_away_without_force() {
    let made = make(true);
    let before = made.bytes();
    let output = tool(&["rebuild"], &made.path);
    assert_eq!(status(&output), 2);
    assert!(stderr(&output).contains("--force"), "{}", stderr(&output));
    assert!(made.bytes() == before);
    assert_eq!(status(&tool(&["rebuild", "--force"], &made.path)), 0);
    made.serves_all_but(&[]);
}

#[test]
fn a_block_whose_header_is_gone_is_told_by_its_first_record() {
    let made = make(true);
    let report = made.inspect();
    let (first, bytes) = (number(&report, "/blocks_offset_bytes") as usize, number(&report, "/block_bytes") as usize);
    let used: Vec<usize> = (0..)
        .zip(report["block_map"].as_array().unwrap())
        .filter(|(_, block)| number(block, "/live_slots") > 0)
        .map(|(at, _)| at)
        .collect();
    made.zero(index(&made));
    for block in &used {
        made.damage(first + block * bytes..first + block * bytes + 4);
    }
    let output = tool(&["rebuild", "--json"], &made.path);
    assert_eq!((status(&output), number(&json(&output), "/headers_restored")), (0, used.len() as u64), "{:#}", json(&output));
    assert_eq!(status(&tool(&["verify", "--content"], &made.path)), 0);
    made.serves_all_but(&[]);
}

#[test]
fn with_one_superblock_left_it_is_enough() {
    let made = make(false);
    made.zero(index(&made));
    let end = STORE_BYTES as usize;
    for at in [0, PAGE, end - PAGE] {
        made.damage(at + 60..at + 61);
    }
    assert_eq!(status(&tool(&["rebuild"], &made.path)), 0);
    assert_eq!(status(&tool(&["inspect"], &made.path)), 0);
    made.serves_all_but(&[]);
}

/// Records that are damaged, and objects that lack a part, are left out; the rest comes back.
#[test]
fn what_is_damaged_does_not_come_back() {
    let made = make(true);
    made.zero(index(&made));
    let small = made.find(&data(7, 507));
    made.damage(small..small + 1);
    let large = data(31, LARGE_BYTES);
    let at = made.find(&large[100..200]);
    made.damage(at..at + 1);
    let report = json(&tool(&["rebuild", "--json"], &made.path));
    assert_eq!(number(&report, "/incomplete_objects"), 1, "{report:#}");
    assert_eq!(status(&tool(&["verify", "--content"], &made.path)), 0);
    made.serves_all_but(&[blob(DigestFunction::Sha256, &data(7, 507)).1, blob(DigestFunction::Sha256, &large).1]);
}

/// A store that was filled several times over, so that records were carried and blocks used again: of every name the last value wins,
/// wherever its copy lies, and everything that was there is there.
#[test]
fn a_store_that_has_turned_over_comes_back_with_the_last_value_of_every_name() {
    let mut made = make(true);
    let name = |id: u32| Key { space: KeySpace::Named, function: 3, hash: blob(DigestFunction::Sha256, &id.to_le_bytes()).1.hash };
    let there = run(async {
        let device = open_file(&made.path, DeviceOptions::default()).unwrap();
        let (engine, _) = Engine::open(device, OpenOptions::default()).await.unwrap();
        let mut wanted: Vec<(Key, Bytes)> = Vec::new();
        for round in 0..300u32 {
            for id in 0..8 {
                let data = data(1000 + round * 8 + id, 60_000);
                engine.put(blob(DigestFunction::Sha256, &data).1, data).await.unwrap();
            }
            // A name in every block, so that each block that is emptied has one to carry; and later values of all of them.
            let key = name(round % 90);
            let value = data(100_000 + round, 700);
            engine.put(key, value.clone()).await.unwrap();
            wanted.retain(|(other, _)| *other != key);
            wanted.push((key, value));
            for (key, _) in &wanted {
                assert!(engine.get(key, None).await.is_some());
            }
        }
        assert!(engine.stats().carried_bytes > 0 && engine.stats().blocks_reclaimed > 20, "{:?}", engine.stats());
        engine.close().await.unwrap();
        wanted
    });
    let before = lines(&tool(&["ls", "--json"], &made.path));
    made.contents = there.into_iter().map(|(key, value)| ((key.space as u8, key.function, key.hash), value)).collect();
    made.zero(index(&made));
    let output = tool(&["rebuild", "--json"], &made.path);
    assert_eq!(status(&output), 0, "{}", stderr(&output));
    let report = json(&output);
    assert!(number(&report, "/records") > number(&report, "/contents") + number(&report, "/named"), "{report:#}");
    assert_eq!(status(&tool(&["verify", "--content"], &made.path)), 0);
    let after = lines(&tool(&["ls", "--json"], &made.path));
    let names = |listed: &[serde_json::Value]| {
        listed.iter().map(|line| line["name"].as_str().unwrap().to_string()).collect::<std::collections::BTreeSet<_>>()
    };
    let lost: Vec<_> = names(&before).difference(&names(&after)).cloned().collect();
    assert!(number(&report, "/left_out_with_blocks") > 0 || lost.is_empty(), "lost: {lost:?} {report:#}");
    made.serves_all_but(&[]);
}
