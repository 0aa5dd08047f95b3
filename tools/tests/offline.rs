//! The real tool on small stores: what it says, that it finds what is damaged, and that it changes nothing.

use blockstore_engine::{
    Engine, FormatOptions, Key, KeySpace, OpenOptions,
    device::{DeviceOptions, create_file, open_file},
};
use bytes::Bytes;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

const STORE_BYTES: u64 = 40 << 20;
const SMALL: u8 = 20;

fn key(id: u8) -> Key {
    Key { space: KeySpace::Content, function: 1, hash: [id; 32] }
}

/// Bytes that appear nowhere else in a store.
fn data(id: u8, len: usize) -> Bytes {
    (0..len).map(|at| id ^ (at as u8).wrapping_mul(31) ^ (at >> 8) as u8).collect::<Vec<_>>().into()
}

/// A store with small objects and one of several parts; closed, or left as a crash leaves it.
fn make(dir: &TempDir, close: bool) -> PathBuf {
    let path = dir.path().join("store.blockstore");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let device = create_file(&path, STORE_BYTES, DeviceOptions::default()).unwrap();
        Engine::format(device.clone(), &FormatOptions::default()).await.unwrap();
        let (engine, _) = Engine::open(device, OpenOptions::default()).await.unwrap();
        for id in 1..=SMALL {
            engine.put(key(id), data(id, 500 + usize::from(id))).await.unwrap();
        }
        engine.put(key(200), data(200, 3 << 20)).await.unwrap();
        match close {
            true => engine.close().await.unwrap(),
            false => engine.flush().await.unwrap(),
        }
    });
    drop(runtime);
    path
}

fn tool(command: &str, store: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_blockstore-tool")).arg(command).arg(store).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The only line on stderr of a command that could not do its work.
fn refusal(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!((output.status.code(), stdout(output).as_str(), text.lines().count()), (Some(2), "", 1), "{text}");
    text
}

#[test]
fn a_whole_store_verifies_and_stays_as_it_is() {
    for close in [true, false] {
        let dir = TempDir::new().unwrap();
        let path = make(&dir, close);
        let before = fs::read(&path).unwrap();
        let verified = tool("verify", &path);
        assert_eq!(verified.status.code(), Some(0), "{}", stdout(&verified));
        assert!(stdout(&verified).contains("0 are damaged"), "{}", stdout(&verified));
        // A directory stands for the store in it.
        let inspected = tool("inspect", dir.path());
        let text = stdout(&inspected);
        assert_eq!(inspected.status.code(), Some(0), "{text}");
        let has = |line: &[&str]| text.lines().any(|l| l.split_whitespace().collect::<Vec<_>>().join(" ").starts_with(&line.join(" ")));
        assert!(has(&["closed in order", if close { "yes" } else { "no" }]), "{text}");
        assert!(has(&["image", if close { "number" } else { "none yet" }]), "{text}");
        assert!(has(&["damage none"]) && has(&["opened 1 times"]), "{text}");
        assert!(fs::read(&path).unwrap() == before, "the tool changed the store");
    }
}

#[test]
fn one_flipped_byte_is_one_bad_record_and_nothing_is_changed() {
    let dir = TempDir::new().unwrap();
    let path = make(&dir, true);
    let count = |output: &Output| stdout(output).lines().last().map(|line| line.split(' ').next().unwrap().parse::<u64>().unwrap());
    let whole = count(&tool("verify", &path)).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let wanted = data(7, 507);
    let at = bytes.windows(wanted.len()).position(|window| window == wanted).unwrap();
    bytes[at + 100] ^= 1;
    fs::write(&path, &bytes).unwrap();

    let output = tool("verify", &path);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("record at byte ")).count(), 1, "{text}");
    assert!(text.contains("has damaged bytes") && text.contains(" 1 are damaged"), "{text}");
    assert_eq!(count(&output), Some(whole - 1));
    assert!(fs::read(&path).unwrap() == bytes, "verify changed the store");
}

#[test]
fn a_damaged_superblock_is_told() {
    let dir = TempDir::new().unwrap();
    let path = make(&dir, true);
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let output = tool("inspect", &path);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("damaged, whole"), "{}", stdout(&output));
    assert_eq!(tool("verify", &path).status.code(), Some(1));
}

#[test]
fn what_is_no_store_is_refused_in_one_line() {
    let dir = TempDir::new().unwrap();
    for command in ["inspect", "verify"] {
        let missing = refusal(&tool(command, &dir.path().join("nothing")));
        assert!(missing.contains("does not exist"), "{missing}");
        let foreign = dir.path().join("foreign");
        fs::write(&foreign, vec![b'x'; 1 << 20]).unwrap();
        let foreign = refusal(&tool(command, &foreign));
        assert!(foreign.contains("not a blockstore"), "{foreign}");
        let empty = dir.path().join("empty");
        fs::write(&empty, b"").unwrap();
        refusal(&tool(command, &empty));
    }
}

#[test]
fn a_store_in_use_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = make(&dir, true);
    let _held = open_file(&path, DeviceOptions::default()).unwrap();
    let held = refusal(&tool("verify", &path));
    assert!(held.contains("is held by another process"), "{held}");
}
