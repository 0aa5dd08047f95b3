//! Measuring a device: what is measured, and that nothing is written but where that is allowed.

use crate::store::*;
use std::fs;
use tempfile::TempDir;

fn works(report: &serde_json::Value) -> Vec<(String, u64)> {
    let rows = report["measured"].as_array().unwrap();
    rows.iter().map(|row| (row["work"].as_str().unwrap().to_string(), number(row, "/depth"))).collect()
}

#[test]
fn a_directory_is_measured_with_a_file_that_is_gone() {
    let made = make(true);
    let before = made.bytes();
    let output = tool(&["bench", "--seconds", "1", "--scratch-size", "16MiB", "--json"], made.dir.path());
    let report = json(&output);
    assert_eq!(status(&output), 0, "{}", stderr(&output));
    assert_eq!((number(&report, "/measured_bytes"), report["written"].as_bool()), (16 << 20, Some(true)));
    for work in
        [("sequential_read", 8), ("sequential_write", 8), ("random_read", 1), ("random_read", 64), ("random_write", 64), ("flush", 1)]
    {
        assert!(works(&report).contains(&(work.0.to_string(), work.1)), "{work:?} in {report:#}");
    }
    for row in report["measured"].as_array().unwrap() {
        assert!(number(row, "/requests") >= number(row, "/depth") && number(row, "/bytes_per_s") > 0, "{row:#}");
        assert!(number(row, "/us_p50") <= number(row, "/us_p99"), "{row:#}");
    }
    let settings: Vec<_> = report["set"].as_array().unwrap().iter().map(|set| set["setting"].as_str().unwrap()).collect();
    assert!(settings.contains(&"--durability") && settings.contains(&"--flush-ms-max"), "{settings:?}");
    assert_eq!(fs::read_dir(made.dir.path()).unwrap().count(), 1, "the file that was written is gone");
    assert!(made.bytes() == before, "the store beside it was not touched");
    let text = stdout(&tool(&["bench", "--seconds", "1", "--scratch-size", "16MiB"], made.dir.path()));
    assert!(text.contains("sequential_read") && text.contains("set --durability"), "{text}");
}

#[test]
fn a_store_is_only_read_and_another_file_is_written_when_that_is_said() {
    let made = make(true);
    let before = made.bytes();
    let output = tool(&["bench", "--seconds", "1", "--json"], &made.path);
    assert_eq!((status(&output), json(&output)["written"].as_bool()), (0, Some(false)), "{}", stderr(&output));
    assert!(works(&json(&output)).iter().all(|(work, _)| work.ends_with("_read")));
    let output = tool(&["bench", "--seconds", "1", "--overwrite"], &made.path);
    assert_eq!(status(&output), 2);
    assert!(stderr(&output).contains("holds a store"), "{}", stderr(&output));
    assert!(made.bytes() == before);

    let dir = TempDir::new().unwrap();
    let path = dir.path().join("blank");
    fs::write(&path, vec![0; 17 << 20]).unwrap();
    let output = tool(&["bench", "--seconds", "1", "--overwrite", "--json"], &path);
    assert_eq!((status(&output), json(&output)["written"].as_bool()), (0, Some(true)), "{}", stderr(&output));
    assert!(fs::read(&path).unwrap().iter().any(|byte| *byte != 0));
    fs::write(&path, vec![0; 1 << 20]).unwrap();
    assert_eq!(status(&tool(&["bench"], &path)), 2, "too small to say anything");
    assert_eq!(status(&tool(&["bench", "--overwrite"], dir.path())), 2);
    assert_eq!(status(&tool(&["bench"], &dir.path().join("nothing"))), 3);
}
