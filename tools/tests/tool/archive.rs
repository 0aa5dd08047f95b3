//! Export and import.

use crate::store::*;
use blockstore_names::DigestFunction;
use std::{fs, path::PathBuf, process::Command};

fn exported(made: &Made) -> PathBuf {
    let archive = made.dir.path().join("archive.tar");
    let output = tool(&["export", "--json", archive.to_str().unwrap()], &made.path);
    assert_eq!(status(&output), 0, "{}", stderr(&output));
    let report = json(&output);
    assert_eq!((number(&report, "/contents"), number(&report, "/named")), (36, 3), "{report:#}");
    archive
}

/// A new, empty store.
fn empty(made: &Made) -> PathBuf {
    let path = made.dir.path().join("other.blockstore");
    assert_eq!(status(&tool(&["format", "--size", "64MiB"], &path)), 0);
    path
}

#[test]
fn what_is_exported_and_imported_is_what_was_there() {
    for close in [true, false] {
        let made = make(close);
        let before = made.bytes();
        let archive = exported(&made);
        assert!(made.bytes() == before, "export changed the store");
        let other = empty(&made);
        let output = tool(&["import", "--json", archive.to_str().unwrap()], &other);
        let report = json(&output);
        assert_eq!((status(&output), number(&report, "/contents"), number(&report, "/named")), (0, 36, 3), "{report:#}");
        let names = |path: &PathBuf| {
            let mut all: Vec<_> = lines(&tool(&["ls", "--json"], path))
                .iter()
                .map(|line| (line["name"].clone().to_string(), number(line, "/size_bytes")))
                .collect();
            all.sort();
            all
        };
        assert_eq!(names(&other), names(&made.path));
        assert_eq!(status(&tool(&["verify", "--content"], &other)), 0);
        serves(&other, &made.contents, &[]);
        // Blobs that are there are not put again.
        let again = json(&tool(&["import", "--json", archive.to_str().unwrap()], &other));
        assert_eq!((number(&again, "/present"), number(&again, "/contents")), (36, 0), "{again:#}");
    }
}

#[test]
fn it_is_a_tar_archive_and_goes_through_a_pipe() {
    let made = make(true);
    let archive = exported(&made);
    let listed = Command::new("tar").arg("tf").arg(&archive).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let names: Vec<_> = listed.lines().collect();
    assert_eq!((names.len(), names[0], names[names.len() - 1]), (39 + 2, "blockstore-export.json", "end.json"));
    let piped = tool(&["export", "-"], &made.path);
    assert!(piped.stdout == fs::read(&archive).unwrap());
    // An archive that is there is not overwritten.
    assert_eq!(status(&tool(&["export", archive.to_str().unwrap()], &made.path)), 2);
}

#[test]
fn a_damaged_or_cut_archive_is_damage_and_nothing_wrong_is_stored() {
    let made = make(true);
    let archive = exported(&made);
    let good = fs::read(&archive).unwrap();
    let wanted = data(7, 507);
    let at = good.windows(wanted.len()).position(|window| window == wanted).unwrap();
    let mut bad = good.clone();
    bad[at] ^= 1;
    let large = data(31, LARGE_BYTES);
    let at = bad.windows(64).position(|window| window == &large[2 << 20..(2 << 20) + 64]).unwrap();
    bad[at] ^= 1;
    fs::write(&archive, &bad).unwrap();
    let other = empty(&made);
    let output = tool(&["import", "--json", archive.to_str().unwrap()], &other);
    let report = json(&output);
    assert_eq!((status(&output), number(&report, "/damaged"), number(&report, "/contents")), (1, 2, 34), "{report:#}");
    serves(&other, &made.contents, &[blob(DigestFunction::Sha256, &wanted).1, blob(DigestFunction::Sha256, &large).1]);

    for len in [good.len() - 4096, good.len() / 2, 700] {
        fs::write(&archive, &good[..len]).unwrap();
        let output = tool(&["import", archive.to_str().unwrap()], &other);
        assert_eq!(status(&output), 1, "{len}: {}", stderr(&output));
    }
    fs::write(&archive, b"no archive at all, but long enough to be looked at".repeat(100)).unwrap();
    assert!([1, 2].contains(&status(&tool(&["import", archive.to_str().unwrap()], &other))));
}

#[test]
fn a_damaged_record_is_left_out_and_told() {
    let made = make(true);
    let at = made.find(&data(7, 507));
    made.damage(at..at + 1);
    let archive = made.dir.path().join("archive.tar");
    let output = tool(&["export", "--json", archive.to_str().unwrap()], &made.path);
    let report = json(&output);
    assert_eq!((status(&output), number(&report, "/bad_records"), number(&report, "/contents")), (1, 1, 35), "{report:#}");
    let other = empty(&made);
    assert_eq!(status(&tool(&["import", archive.to_str().unwrap()], &other)), 0);
    serves(&other, &made.contents, &[blob(DigestFunction::Sha256, &data(7, 507)).1]);
}
