//! Every command on every kind of damage: which exit status, and what its JSON says of it. The table of tools/README.md says the same.

use crate::{server::serve, store::*};
use blockstore_names::DigestFunction;
use blockstore_proto::reapi;
use blockstore_tests::{
    blob::Blob,
    client::{Client, action_digest},
};
use serde_json::{Value, json};
use std::{fs, path::PathBuf, process::Output};
use tempfile::TempDir;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    Healthy,
    /// By the real server, ended with kill -9.
    Killed,
    Superblocks(usize),
    Log,
    Image,
    BlockHeader,
    Record,
}
use Damage::{BlockHeader, Healthy, Image, Killed, Log, Record, Superblocks};

const ALL: [Damage; 9] = [Healthy, Killed, Superblocks(1), Superblocks(2), Superblocks(3), Log, Image, BlockHeader, Record];

/// A store with one kind of damage.
struct Case {
    dir: TempDir,
    path: PathBuf,
    /// As it was damaged: each command begins with this.
    bytes: Vec<u8>,
    /// A blob that is whole, in every case.
    blob: String,
    action: Vec<String>,
    /// Of an export of something else.
    archive: PathBuf,
}

impl Case {
    fn new(damage: Damage, archive: PathBuf) -> Self {
        let (dir, path, blob, action) = match damage {
            Killed => killed(),
            // The log counts only where the store was not closed.
            _ => {
                let made = make(damage != Log);
                let blob = blob(DigestFunction::Sha256, &data(3, 503)).0.hash_hex();
                (made.dir, made.path, blob, vec![action(1).hash_hex(), "--instance".into(), "main".into()])
            }
        };
        let mut bytes = fs::read(&path).unwrap();
        let report = json(&tool(&["inspect", "--json"], &path));
        for range in places(damage, &report, &bytes) {
            bytes[range].iter_mut().for_each(|byte| *byte = !*byte);
        }
        fs::write(&path, &bytes).unwrap();
        Self { dir, path, bytes, blob, action, archive }
    }

    /// Runs a command on the store as it was damaged.
    fn run(&self, arguments: &[&str]) -> Output {
        fs::write(&self.path, &self.bytes).unwrap();
        tool(arguments, &self.path)
    }
}

/// Where a kind of damage is done.
fn places(damage: Damage, report: &Value, bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let at = |path: &str| number(report, path) as usize;
    let byte = |at: usize| at..at + 1;
    match damage {
        Healthy | Killed => Vec::new(),
        Superblocks(count) => {
            let end = at("/store_bytes");
            [0, PAGE, end - 2 * PAGE, end - PAGE].into_iter().take(count).map(|page| byte(page + 100)).collect()
        }
        // A unit in the middle of the last page: behind it the log goes on.
        Log => {
            let page = |page: &usize| bytes[page * PAGE + at("/log_offset_bytes")..][..PAGE].iter().any(|byte| *byte != 0);
            let last = (0..64).rev().find(page).unwrap();
            vec![byte(at("/log_offset_bytes") + (last - 1) * PAGE + 2 * 32 + 9)]
        }
        // Behind both copies of the block table, a page each: a unit.
        Image => {
            let slot = if report["image"]["slot"] == "A" { 0 } else { 1 };
            vec![byte(at(&format!("/image_offsets_bytes/{slot}")) + 2 * PAGE + 1000)]
        }
        BlockHeader => {
            let block = report["block_map"].as_array().unwrap().iter().position(|block| number(block, "/live_slots") > 0).unwrap();
            vec![byte(at("/blocks_offset_bytes") + block * at("/block_bytes") + 8)]
        }
        Record => {
            let wanted = data(7, 507);
            vec![byte(bytes.windows(wanted.len()).position(|window| window == wanted).unwrap() + 100)]
        }
    }
}

fn killed() -> (TempDir, PathBuf, String, Vec<String>) {
    let dir = TempDir::new().unwrap();
    let daemon = serve(dir.path());
    let blobs: Vec<Blob> = (0..30).map(|seed| Blob::new(seed, 4000)).collect();
    run(async {
        let client = Client::connect(daemon.grpc).await;
        client.put_batch(&blobs).await.unwrap();
        let large = Blob::new(100, 3 << 20);
        client.write(&large.digest(), large.pieces().collect(), true).await.unwrap();
        let file = reapi::OutputFile { path: "a.o".into(), digest: Some(blobs[0].digest()), ..Default::default() };
        let result = reapi::ActionResult { output_files: vec![file], exit_code: 7, ..Default::default() };
        client.put_action(action_digest(1), result).await.unwrap();
    });
    daemon.kill();
    let path = dir.path().join("store.blockstore");
    (dir, path, blobs[3].digest().hash, vec![action_digest(1).hash])
}

/// What a command must do: its exit status, and a place in its JSON with what is there.
type Expected = (i32, Option<(&'static str, Value)>);

fn expected(command: &str, damage: Damage) -> Expected {
    let says = |status, path, value: Value| (status, Some((path, value)));
    let superblocks = if let Superblocks(count) = damage { count as u64 } else { 0 };
    let whole = matches!(damage, Healthy | Killed);
    let of = |kind| u64::from(damage == kind);
    match command {
        // Records are not looked at.
        "inspect" => match damage {
            Healthy | Killed | Record => says(0, "/clean", json!(damage != Killed)),
            Superblocks(count) => says(1, "/damage/superblocks", json!(count)),
            Log => says(1, "/damage/log_entries", json!(1)),
            Image => says(1, "/damage/image_units", json!(1)),
            BlockHeader => says(1, "/damage/block_heads", json!(1)),
        },
        "verify" => match damage {
            Healthy | Killed => says(0, "/verdict", json!("sound")),
            Superblocks(count) => says(1, "/structures/superblocks_damaged", json!(count)),
            Log => says(1, "/structures/log_damaged", json!(1)),
            Image => says(1, "/structures/image_units_damaged", json!(1)),
            BlockHeader => says(1, "/structures/block_heads_damaged", json!(1)),
            Record => says(1, "/bad_records", json!(1)),
        },
        "ls" => (0, None),
        "get" => says(0, "/kind", json!("blob")),
        "get the damaged" => (if damage == Record { 1 } else { 0 }, None),
        "cat-action" => says(0, "/exit_code", json!(7)),
        "export" => says(of(Record) as i32, "/bad_records", json!(of(Record))),
        "import" => match damage {
            // No two superblocks agree: it cannot be opened.
            Superblocks(3) => (3, None),
            _ => says(0, "/damaged", json!(0)),
        },
        "repair --dry-run" => match damage {
            Log => says(1, "/log", json!(1)),
            Image => says(1, "/image", json!(1)),
            BlockHeader => says(1, "/block_heads", json!(1)),
            Record => says(1, "/dropped_records", json!(1)),
            _ => says(i32::from(!whole), "/superblocks", json!(superblocks)),
        },
        "repair" => says(0, "/written", json!(!whole)),
        // Only log, image and block headers are what it makes anew.
        "rebuild" => match damage {
            Log | Image | BlockHeader => says(0, "/incomplete_objects", json!(0)),
            _ => (2, None),
        },
        "rebuild --force" => says(0, "/headers_restored", json!(of(BlockHeader))),
        // With superblocks damaged a longer file could not be found to hold a store.
        "grow" => match damage {
            Superblocks(_) => (3, None),
            _ => says(0, "/after_bytes", json!(96 << 20)),
        },
        // What a rebuild could bring back would be overwritten.
        "shrink" => match damage {
            Healthy | Killed | Record => says(0, "/dropped_objects", json!(0)),
            _ => (3, None),
        },
        // It is not blank.
        "format" => (2, None),
        "format --force" => says(0, "/slots", json!(null)),
        "bench" => says(0, "/written", json!(false)),
        other => panic!("{other}"),
    }
}

fn check(case: &Case, damage: Damage, command: &str) {
    let scratch = case.dir.path().join("out");
    let scratch_name = scratch.to_str().unwrap();
    let _ = fs::remove_file(&scratch);
    let mut cat = vec!["cat-action"];
    cat.extend(case.action.iter().map(String::as_str));
    let damaged = blob(DigestFunction::Sha256, &data(7, 507)).0.hash_hex();
    let mut arguments = match command {
        "get" => vec!["get", &case.blob, "-o", scratch_name],
        "get the damaged" => vec!["get", if damage == Killed { &case.blob } else { &damaged }, "-o", scratch_name],
        "cat-action" => cat,
        "export" => vec!["export", scratch_name],
        "import" => vec!["import", case.archive.to_str().unwrap()],
        "repair --dry-run" => vec!["repair", "--dry-run"],
        "rebuild --force" => vec!["rebuild", "--force"],
        "format --force" => vec!["format", "--force"],
        "grow" => vec!["grow", "--size", "96MiB"],
        "shrink" => vec!["shrink", "--size", "39MiB"],
        "bench" => vec!["bench", "--seconds", "1"],
        command => vec![command],
    };
    arguments.push("--json");
    let output = case.run(&arguments);
    let (code, says) = expected(command, damage);
    assert_eq!(status(&output), code, "{damage:?}: {command}: {}", stderr(&output));
    match says {
        Some((path, value)) => {
            let document = json(&output);
            let found = document.pointer(path).unwrap_or_else(|| panic!("{damage:?}: {command}: no {path} in {document:#}"));
            assert!(found == &value || value.is_null(), "{damage:?}: {command}: {path} in {document:#}");
        }
        // A refusal is one line, and leaves stdout empty.
        None if code > 1 => {
            assert_eq!((stdout(&output).as_str(), stderr(&output).lines().count()), ("", 1), "{damage:?}: {command}: {}", stderr(&output));
        }
        None => {}
    }
    let reads = ["inspect", "verify", "ls", "get", "get the damaged", "cat-action", "export", "repair --dry-run", "bench"];
    if reads.contains(&command) || code >= 2 {
        assert!(fs::read(&case.path).unwrap() == case.bytes, "{damage:?}: {command} changed the store");
    }
    // What writes and says that all is well leaves a store that is.
    if ["repair", "rebuild --force", "format --force"].contains(&command) || command == "shrink" && code == 0 && damage != Record {
        let verified = tool(&["verify", "--content", "--json"], &case.path);
        assert_eq!(status(&verified), 0, "{damage:?}: behind {command}: {:#}", json(&verified));
    }
}

#[test]
fn every_command_on_every_kind_of_damage() {
    let small = TempDir::new().unwrap();
    let archive = small.path().join("archive.tar");
    assert_eq!(status(&tool(&["export", archive.to_str().unwrap()], &make(true).path)), 0);
    let commands = [
        "inspect",
        "verify",
        "ls",
        "get",
        "get the damaged",
        "cat-action",
        "export",
        "import",
        "repair --dry-run",
        "repair",
        "rebuild",
        "rebuild --force",
        "grow",
        "shrink",
        "format",
        "format --force",
        "bench",
    ];
    for damage in ALL {
        let case = Case::new(damage, archive.clone());
        commands.iter().for_each(|command| check(&case, damage, command));
    }
}
