//! Stores of which something is damaged: every command says so, `repair` puts right what can be, and a server then serves all the rest.

use crate::store::*;
use blockstore_engine::Key;
use blockstore_names::DigestFunction;
use serde_json::Value;

/// The ranges of the superblock copies.
fn superblocks(count: usize) -> Vec<std::ops::Range<usize>> {
    let end = STORE_BYTES as usize;
    [0..PAGE, PAGE..2 * PAGE, end - 2 * PAGE..end - PAGE, end - PAGE..end]
        .into_iter()
        .take(count)
        .map(|r| r.start + 100..r.start + 104)
        .collect()
}

fn damage_of(report: &Value) -> [u64; 4] {
    ["superblocks", "log_entries", "image_units", "block_heads"].map(|kind| number(report, &format!("/damage/{kind}")))
}

/// `repair` finds so much and writes; then nothing is damaged any more, and a server serves all but `lost`.
fn repaired(made: &Made, found: &str, n: u64, lost: &[Key]) {
    let before = made.bytes();
    let dry = tool(&["repair", "--dry-run", "--json"], &made.path);
    assert_eq!((status(&dry), number(&json(&dry), found)), (1, n), "{:#}", json(&dry));
    assert!(made.bytes() == before, "a dry run changed the store");
    let output = tool(&["repair", "--json"], &made.path);
    let report = json(&output);
    assert_eq!((status(&output), number(&report, found), report["written"].as_bool()), (0, n, Some(true)), "{report:#}");
    let verified = tool(&["verify", "--content", "--json"], &made.path);
    assert_eq!(status(&verified), 0, "{:#}", json(&verified));
    assert_eq!(damage_of(&made.inspect()), [0; 4]);
    // There is nothing left to do.
    let before = made.bytes();
    let again = json(&tool(&["repair", "--json"], &made.path));
    assert_eq!(again["written"].as_bool(), Some(false), "{again:#}");
    assert!(made.bytes() == before, "a repair of a sound store wrote to it");
    made.serves_all_but(lost);
}

#[test]
fn one_two_and_three_damaged_superblocks_are_put_right_from_the_others() {
    for close in [true, false] {
        for count in 1..=3u64 {
            let made = make(close);
            superblocks(count as usize).into_iter().for_each(|range| made.damage(range));
            let output = tool(&["inspect", "--json"], &made.path);
            let report = json(&output);
            assert_eq!((status(&output), damage_of(&report)), (1, [count, 0, 0, 0]), "{report:#}");
            assert_eq!((report["verdict"].as_str(), report["superblocks_agree"].as_bool()), (Some("damaged"), Some(count < 3)));
            assert_eq!(report["superblocks"].as_array().unwrap().iter().filter(|copy| copy["state"] == "damaged").count() as u64, count);
            let verified = tool(&["verify", "--json"], &made.path);
            assert_eq!((status(&verified), number(&json(&verified), "/structures/superblocks_damaged")), (1, count));
            assert_eq!(number(&json(&verified), "/bad_records"), 0);
            assert_eq!(lines(&tool(&["ls", "--json"], &made.path)).len(), made.contents.len());
            repaired(&made, "/superblocks", count, &[]);
        }
    }
}

#[test]
fn without_any_superblock_nothing_can_be_said() {
    let made = make(true);
    superblocks(4).into_iter().for_each(|range| made.damage(range));
    for arguments in
        [&["inspect"][..], &["verify"], &["ls"], &["repair"], &["rebuild"], &["get", "named:1:00"], &["export", "/nonexistent/x"]]
    {
        if arguments[0] == "get" {
            continue;
        }
        let output = tool(arguments, &made.path);
        assert_eq!(
            (status(&output), stdout(&output).as_str(), stderr(&output).lines().count()),
            (3, "", 1),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert!(stderr(&output).contains("no two superblocks agree"), "{}", stderr(&output));
    }
}

#[test]
fn a_superblock_that_alone_is_whole_but_of_a_later_version_is_refused() {
    let made = make(true);
    let mut bytes = made.bytes();
    let end = bytes.len();
    for at in [0, PAGE, end - 2 * PAGE, end - PAGE] {
        bytes[at + 4] = 2;
        let crc = crc32(&bytes[at + 4..at + PAGE]);
        bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    }
    std::fs::write(&made.path, &bytes).unwrap();
    for command in ["inspect", "repair", "rebuild"] {
        let output = tool(&[command], &made.path);
        assert_eq!(status(&output), 3);
        assert!(stderr(&output).contains("format version 2"), "{}", stderr(&output));
    }
    assert!(made.bytes() == bytes);
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[test]
fn a_damaged_log_costs_what_the_image_does_not_have() {
    // Closed in order the image has everything: the log is not read.
    let made = make(true);
    let report = made.inspect();
    let log = number(&report, "/log_offset_bytes") as usize;
    made.damage(log..log + 8 * PAGE);
    assert_eq!(status(&tool(&["inspect"], &made.path)), 0);
    made.serves_all_but(&[]);

    let made = make(false);
    let report = made.inspect();
    let pages = number(&report, "/log/used_pages") as usize;
    // The last entries of the log, below the mark: of the names and blobs that came last.
    let mut lost = None;
    for page in (0..64).rev() {
        let bytes = made.bytes();
        let at = log + page * PAGE;
        if bytes[at..at + PAGE].iter().all(|byte| *byte == 0) {
            continue;
        }
        // Only a unit in the middle: behind it the log goes on.
        made.damage(at + 32 * 2 + 9..at + 32 * 2 + 10);
        let output = tool(&["inspect", "--json"], &made.path);
        if status(&output) == 1 {
            lost = Some(number(&json(&output), "/damage/log_entries"));
            break;
        }
        std::fs::write(&made.path, bytes).unwrap();
    }
    let damaged = lost.expect("some page of the log counts");
    assert!(pages > 0 && damaged > 0);
    let verified = json(&tool(&["verify", "--json"], &made.path));
    assert_eq!(number(&verified, "/structures/log_damaged"), damaged);
    let output = tool(&["repair", "--json"], &made.path);
    assert_eq!((status(&output), number(&json(&output), "/log")), (0, damaged), "{}", stderr(&output));
    assert_eq!(status(&tool(&["verify", "--content"], &made.path)), 0);
    // What the log alone knew is in the blocks still.
    assert_eq!(status(&tool(&["rebuild", "--force"], &made.path)), 0);
    made.serves_all_but(&[]);
}

#[test]
fn a_damaged_unit_and_block_table_of_the_image_are_found_and_written_anew() {
    let made = make(true);
    let report = made.inspect();
    let image = number(&report, if report["image"]["slot"] == "A" { "/image_offsets_bytes/0" } else { "/image_offsets_bytes/1" }) as usize;
    made.damage(image + 64..image + 65);
    let output = tool(&["verify", "--json"], &made.path);
    assert_eq!((status(&output), number(&json(&output), "/structures/block_tables_damaged")), (1, 1));
    repaired(&made, "/image", 1, &[]);

    // Behind both copies of the block table, a page each: a unit. The image before has what it lacks.
    let made = make(true);
    made.damage(image + 2 * PAGE + 1000..image + 2 * PAGE + 1001);
    let output = tool(&["inspect", "--json"], &made.path);
    assert_eq!((status(&output), damage_of(&json(&output))), (1, [0, 0, 1, 0]), "{:#}", json(&output));
    repaired(&made, "/image", 1, &[]);
}

#[test]
fn a_damaged_block_header_is_written_anew_and_costs_nothing() {
    let made = make(true);
    let report = made.inspect();
    let map = report["block_map"].as_array().unwrap();
    let block = map.iter().position(|block| number(block, "/live_slots") > 0).unwrap();
    let at = number(&report, "/blocks_offset_bytes") as usize + block * number(&report, "/block_bytes") as usize;
    made.damage(at + 8..at + 12);
    let output = tool(&["inspect", "--json"], &made.path);
    assert_eq!((status(&output), damage_of(&json(&output))), (1, [0, 0, 0, 1]));
    assert_eq!(number(&json(&tool(&["verify", "--json"], &made.path)), "/structures/block_heads_damaged"), 1);
    repaired(&made, "/block_heads", 1, &[]);
}

#[test]
fn a_damaged_record_is_one_bad_record_and_repair_drops_that_one() {
    for close in [true, false] {
        let made = make(close);
        let wanted = data(7, 507);
        let at = made.find(&wanted);
        made.damage(at + 100..at + 101);
        let before = made.bytes();
        let (digest, key) = blob(DigestFunction::Sha256, &wanted);
        let output = tool(&["verify", "--json"], &made.path);
        let report = json(&output);
        assert_eq!((status(&output), number(&report, "/bad_records")), (1, 1), "{report:#}");
        let bad = &report["bad"][0];
        assert_eq!((bad["defect"].as_str(), bad["key"].as_str()), (Some("payload"), Some(&*format!("sha256/{}", digest.hash_hex()))));
        assert!((number(bad, "/offset_bytes") as usize) < at);
        let text = stdout(&tool(&["verify"], &made.path));
        assert!(text.contains("has damaged bytes") && text.contains("1 are damaged"), "{text}");
        let got = tool(&["get", &digest.hash_hex()], &made.path);
        assert_eq!((status(&got), got.stdout.len()), (1, 0));
        assert!(made.bytes() == before);
        repaired(&made, "/dropped_records", 1, &[key]);
    }
}

#[test]
fn a_damaged_head_of_a_record_is_told_without_a_key() {
    let made = make(true);
    let at = made.find(&data(7, 507));
    // The head is right before the payload: 64 bytes and a checksum.
    made.damage(at - 60..at - 59);
    let report = json(&tool(&["verify", "--json"], &made.path));
    assert_eq!((number(&report, "/bad_records"), report["bad"][0]["defect"].as_str()), (1, Some("head")), "{report:#}");
    assert!(report["bad"][0]["key"].is_null());
    let listed = tool(&["ls", "--json"], &made.path);
    assert_eq!((status(&listed), lines(&listed).len()), (1, made.contents.len() - 1));
    repaired(&made, "/dropped_records", 1, &[blob(DigestFunction::Sha256, &data(7, 507)).1]);
}

#[test]
fn a_damaged_part_costs_its_object_and_no_other() {
    let made = make(true);
    let large = data(31, LARGE_BYTES);
    let (digest, key) = blob(DigestFunction::Sha256, &large);
    let at = made.find(&large[LARGE_BYTES / 2..LARGE_BYTES / 2 + 64]);
    made.damage(at..at + 1);
    let report = json(&tool(&["verify", "--json", "--content"], &made.path));
    assert_eq!(number(&report, "/bad_records"), 1, "{report:#}");
    assert_eq!(status(&tool(&["get", &digest.hash_hex()], &made.path)), 1);
    // The part, and then the object that lacks it.
    repaired(&made, "/dropped_records", 2, &[key]);
}

/// Bytes that pass every checksum and are not what the key says: only hashing finds them.
#[test]
fn content_that_is_not_what_its_key_says_is_found_by_its_hash() {
    use blockstore_engine::{Engine, OpenOptions, device::open_file};
    let made = make(true);
    let wrong =
        [(blob(DigestFunction::Sha1, b"something").1, data(50, 9)), (blob(DigestFunction::Sha256, b"large").1, data(51, LARGE_BYTES))];
    run(async {
        let (engine, _) = Engine::open(open_file(&made.path, Default::default()).unwrap(), OpenOptions::default()).await.unwrap();
        for (key, data) in wrong {
            engine.put(key, data).await.unwrap();
        }
        engine.close().await.unwrap();
    });
    assert_eq!(status(&tool(&["verify"], &made.path)), 0);
    let output = tool(&["verify", "--content", "--json"], &made.path);
    let report = json(&output);
    assert_eq!((status(&output), number(&report, "/bad_records")), (1, 2), "{report:#}");
    assert!(report["bad"].as_array().unwrap().iter().all(|bad| bad["defect"] == "content"), "{report:#}");
}
