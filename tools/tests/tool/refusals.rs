//! What is no store, or is held: one line on stderr, nothing on stdout, and the exit status that the documents say.

use crate::store::*;
use blockstore_engine::device::{DeviceOptions, open_file};
use std::fs;
use tempfile::TempDir;

const ALL: [&[&str]; 11] = [
    &["inspect"],
    &["inspect", "--json"],
    &["verify"],
    &["ls"],
    &["get", "named:1:0000000000000000000000000000000000000000000000000000000000000000"],
    &["cat-action", "0000000000000000000000000000000000000000000000000000000000000000"],
    &["rebuild"],
    &["repair"],
    &["grow"],
    &["shrink", "--size", "40MiB"],
    &["export", "/nonexistent/archive"],
];

fn refused(arguments: &[&str], store: &std::path::Path, code: i32) -> String {
    let output = tool(arguments, store);
    let text = stderr(&output);
    assert_eq!((status(&output), stdout(&output).as_str(), text.lines().count()), (code, "", 1), "{arguments:?}: {text}");
    text
}

#[test]
fn what_is_no_store_cannot_be_opened() {
    let dir = TempDir::new().unwrap();
    let foreign = dir.path().join("foreign");
    fs::write(&foreign, vec![b'x'; 1 << 20]).unwrap();
    let empty = dir.path().join("empty");
    fs::write(&empty, b"").unwrap();
    for arguments in ALL {
        assert!(refused(arguments, &dir.path().join("nothing"), 3).contains("does not exist"), "{arguments:?}");
        assert!(refused(arguments, &foreign, 3).contains("not a blockstore"), "{arguments:?}");
        assert!(refused(arguments, &empty, 3).contains("at least 4096 are needed"), "{arguments:?}");
    }
    assert!(fs::read(&foreign).unwrap() == vec![b'x'; 1 << 20]);
}

#[test]
fn a_store_that_is_held_is_refused_by_every_command() {
    let made = make(true);
    let held = open_file(&made.path, DeviceOptions::default()).unwrap();
    for arguments in ALL.into_iter().chain([&["import", "/nonexistent"][..], &["format", "--force"], &["grow", "--size", "80MiB"]]) {
        assert!(refused(arguments, &made.path, 4).contains("is held by another process"), "{arguments:?}");
    }
    drop(held);
    assert_eq!(status(&tool(&["inspect"], &made.path)), 0);
}

#[test]
fn wrong_usage_is_two() {
    let made = make(true);
    for arguments in [&["inspect", "--no-such-option"][..], &["verify", "--from-block"], &["ls", "--by", "colour"], &["import"], &["get"]] {
        assert_eq!(status(&tool(arguments, &made.path)), 2, "{arguments:?}");
    }
    assert!(refused(&["import", "/nonexistent"], &made.path, 2).contains("cannot open /nonexistent"));
    assert!(refused(&["export", "/nonexistent/archive"], &made.path, 2).contains("cannot create"));
}
