//! Stores to run the tool on, and running it.

use blockstore_engine::{
    Engine, FormatOptions, Key, KeySpace, OpenOptions,
    device::{DeviceOptions, create_file, open_file},
};
use blockstore_names::{ActionKey, Digest, DigestFunction, Hasher, Instance, keys, value};
use blockstore_proto::reapi;
use bytes::Bytes;
use prost::Message;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

pub(crate) const STORE_BYTES: u64 = 40 << 20;
pub(crate) const PAGE: usize = 4096;
pub(crate) const LARGE_BYTES: usize = 3 << 20;

/// What a store must give back: every key that is in it.
pub(crate) type Contents = BTreeMap<(u8, u8, [u8; 32]), Bytes>;

pub(crate) struct Made {
    pub(crate) dir: TempDir,
    pub(crate) path: PathBuf,
    pub(crate) contents: Contents,
}

/// Bytes that appear nowhere else in a store.
pub(crate) fn data(id: u32, len: usize) -> Bytes {
    let mut state = u64::from(id) << 32 | 0x9e37_79b9;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect::<Vec<_>>().into()
}

pub(crate) fn blob(function: DigestFunction, data: &[u8]) -> (Digest, Key) {
    let digest = Hasher::digest(function, data);
    (digest, keys::content_key(&digest))
}

pub(crate) fn ordered(key: &Key) -> (u8, u8, [u8; 32]) {
    (key.space as u8, key.function, key.hash)
}

fn unordered((space, function, hash): (u8, u8, [u8; 32])) -> Key {
    Key { space: if space == 0 { KeySpace::Content } else { KeySpace::Named }, function, hash }
}

pub(crate) fn action(id: u32) -> Digest {
    Hasher::digest(DigestFunction::Sha256, format!("action {id}").as_bytes())
}

pub(crate) fn action_key(id: u32, instance: &str) -> Key {
    keys::action_key(&Instance::new(instance), &ActionKey { digest: action(id), size_known: true })
}

/// An action result with one output.
pub(crate) fn result(output: &[u8]) -> Bytes {
    let digest = Hasher::digest(DigestFunction::Sha256, output);
    let digest = reapi::Digest { hash: digest.hash_hex(), size_bytes: output.len() as i64 };
    let file = reapi::OutputFile { path: "out/a.o".into(), digest: Some(digest), is_executable: true, ..Default::default() };
    let result = reapi::ActionResult { output_files: vec![file], exit_code: 7, ..Default::default() };
    value::action_value(9, &result.encode_to_vec())
}

pub(crate) fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let out = runtime.block_on(work);
    drop(runtime);
    out
}

/// A store with something of everything: blobs of several sizes and functions, one of parts, names that were replaced and deleted, kinds
/// that no program knows. Closed, or left as a crash leaves it, with an image and some log behind it.
pub(crate) fn make(close: bool) -> Made {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("store.blockstore");
    let mut contents = Contents::new();
    run(async {
        let device = create_file(&path, STORE_BYTES, DeviceOptions::default()).unwrap();
        Engine::format(device.clone(), &FormatOptions { block_bytes: None, objects: Some(3000) }).await.unwrap();
        let (engine, _) = Engine::open(device, OpenOptions::default()).await.unwrap();
        let mut put = Vec::new();
        for id in 0..20 {
            put.push((blob(DigestFunction::Sha256, &data(id, 500 + id as usize)).1, data(id, 500 + id as usize)));
        }
        for (id, function) in (100..).zip(DigestFunction::ALL) {
            put.push((blob(function, &data(id, 3000)).1, data(id, 3000)));
        }
        put.push((blob(DigestFunction::Blake3, &data(30, 200_000)).1, data(30, 200_000)));
        put.push((blob(DigestFunction::Sha256, &data(31, LARGE_BYTES)).1, data(31, LARGE_BYTES)));
        put.push((action_key(1, "main"), result(b"the first value")));
        put.push((action_key(2, ""), result(b"deleted later")));
        put.push((keys::entry_key(&Instance::new(""), b"a/name"), data(40, 70_000)));
        put.push((Key { space: KeySpace::Named, function: 77, hash: [7; 32] }, data(41, 99)));
        put.push((Key { space: KeySpace::Content, function: 200, hash: [8; 32] }, data(42, 88)));
        for (key, data) in put {
            engine.put(key, data.clone()).await.unwrap();
            contents.insert(ordered(&key), data);
        }
        engine.checkpoint().await.unwrap();
        // This much is in the log alone where the store is not closed.
        engine.put(action_key(1, "main"), result(b"the last value")).await.unwrap();
        contents.insert(ordered(&action_key(1, "main")), result(b"the last value"));
        assert!(engine.delete(&action_key(2, "")).await.unwrap());
        contents.remove(&ordered(&action_key(2, "")));
        for id in 20..25 {
            let (_, key) = blob(DigestFunction::Sha256, &data(id, 900));
            engine.put(key, data(id, 900)).await.unwrap();
            contents.insert(ordered(&key), data(id, 900));
        }
        match close {
            true => engine.close().await.unwrap(),
            false => engine.flush().await.unwrap(),
        }
    });
    Made { dir, path, contents }
}

impl Made {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }

    /// Inverts the bytes of a range.
    pub(crate) fn damage(&self, range: std::ops::Range<usize>) {
        let mut bytes = self.bytes();
        bytes[range].iter_mut().for_each(|byte| *byte = !*byte);
        fs::write(&self.path, bytes).unwrap();
    }

    pub(crate) fn zero(&self, range: std::ops::Range<usize>) {
        let mut bytes = self.bytes();
        bytes[range].fill(0);
        fs::write(&self.path, bytes).unwrap();
    }

    /// Where some bytes lie in the store.
    pub(crate) fn find(&self, wanted: &[u8]) -> usize {
        self.bytes().windows(wanted.len()).position(|window| window == wanted).expect("the bytes are in the store")
    }

    pub(crate) fn inspect(&self) -> Value {
        json(&tool(&["inspect", "--json"], &self.path))
    }

    /// Opens the store as a server does: all of `contents` but these keys must be there, and nothing else.
    pub(crate) fn serves_all_but(&self, lost: &[Key]) {
        serves(&self.path, &self.contents, lost);
    }
}

/// Opens a store as a server does, and compares.
pub(crate) fn serves(path: &Path, contents: &Contents, lost: &[Key]) {
    run(async {
        let device = open_file(path, DeviceOptions::default()).unwrap();
        let (engine, _) = Engine::open(device, OpenOptions::default()).await.unwrap();
        for (key, expected) in contents {
            let key = unordered(*key);
            let found = match engine.get(&key, None).await {
                Some(object) => Some(collect(object).await),
                None => None,
            };
            match lost.contains(&key) {
                true => assert!(found.is_none(), "{key:?} is there"),
                false => assert!(found.as_ref() == Some(expected), "{key:?}: {:?} bytes", found.map(|f| f.len())),
            }
        }
        engine.close().await.unwrap();
    });
}

pub(crate) async fn collect(object: blockstore_engine::Object) -> Bytes {
    let mut reader = object.reader(0, None).unwrap();
    let mut all = Vec::new();
    while let Some(piece) = reader.next().await {
        all.extend_from_slice(&piece.unwrap().into_bytes());
    }
    all.into()
}

/// Runs the tool: the command and its options, then the store.
pub(crate) fn tool(arguments: &[&str], store: &Path) -> Output {
    let (command, rest) = arguments.split_first().unwrap();
    Command::new(env!("CARGO_BIN_EXE_blockstore-tool")).arg(command).arg(store).args(rest).output().unwrap()
}

pub(crate) fn status(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("the tool was killed: {}", stderr(output)))
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {} {}", stdout(output), stderr(output)))
}

pub(crate) fn lines(output: &Output) -> Vec<Value> {
    stdout(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A number in a JSON document, by its path.
pub(crate) fn number(document: &Value, path: &str) -> u64 {
    document.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} in {document:#}"))
}
