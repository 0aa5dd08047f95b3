//! Growing in place, killed at any moment.

use crate::store::*;
use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

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
    made.serves_all_but(&[blockstore_names::keys::content_key(&blob(blockstore_names::DigestFunction::Sha256, &data(7, 507)).0)]);
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
