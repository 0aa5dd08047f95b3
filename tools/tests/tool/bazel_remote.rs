//! Taking over the directory of a bazel-remote. `tests/data/bazel-remote/` has one of each storage mode, as a bazel-remote (v2, built from
//! ead2079) wrote it when it was sent the blobs below, three action results, and, without validation, bytes of another kind.

use crate::store::*;
use blockstore_names::{ActionKey, DigestFunction, Hasher, Instance, keys};
use blockstore_proto::reapi;
use bytes::Bytes;
use prost::Message;
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

const LARGE_LINES: usize = 80_000;

fn text(lines: usize) -> Vec<u8> {
    (0..lines).flat_map(|line| format!("line {line} of an output of a build\n").into_bytes()).collect()
}

/// Bytes that do not compress.
fn noise(seed: u32, len: usize) -> Vec<u8> {
    let blocks = (0..).map(|index| Hasher::digest(DigestFunction::Sha256, format!("{seed} {index}").as_bytes()));
    blocks.flat_map(|digest| digest.hash().to_vec()).take(len).collect()
}

fn blobs(mode: &str) -> Vec<Vec<u8>> {
    let mut blobs = vec![b"hello, world".to_vec(), text(100), noise(1, 20_000), text(2000)];
    if mode == "zstd" {
        // Several chunks, and more than is put from memory.
        blobs.push(text(LARGE_LINES));
    }
    blobs
}

fn fixture(mode: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bazel-remote").join(mode)
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name()))?,
            false => fs::copy(entry.path(), to.join(entry.file_name())).map(drop)?,
        }
    }
    Ok(())
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(files(&path)),
            false => all.push(path),
        }
    }
    all
}

fn empty(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("store");
    assert_eq!(status(&tool(&["format", "--size", "64MiB"], &path)), 0);
    path
}

fn key_of_action(name: &str, instance: &str) -> blockstore_engine::Key {
    let digest = Hasher::digest(DigestFunction::Sha256, name.as_bytes());
    keys::action_key(&Instance::new(instance), &ActionKey { digest, size_known: false })
}

fn contents(mode: &str, instance: &str) -> Contents {
    let mut contents = Contents::new();
    let mut put =
        |key: blockstore_engine::Key, value: Vec<u8>| contents.insert((key.space as u8, key.function, key.hash), Bytes::from(value));
    let unknown_size = |result: &[u8]| [&[1][..], &[0xff; 8], result].concat();
    for (index, data) in blobs(mode).into_iter().enumerate() {
        if index < 3 {
            // A bazel-remote adds who sent a result.
            let name = format!("action {index}");
            let hash = Hasher::digest(DigestFunction::Sha256, name.as_bytes()).hash_hex();
            let file = files(&fixture(mode).join("ac.v2")).into_iter().find(|file| file.to_str().unwrap().contains(&hash)).unwrap();
            let bytes = fs::read(file).unwrap();
            let result = reapi::ActionResult::decode(&bytes[..]).unwrap();
            let output = result.output_files[0].digest.as_ref().unwrap();
            assert_eq!((&output.hash, result.exit_code), (&Hasher::digest(DigestFunction::Sha256, &data).hash_hex(), 3));
            put(key_of_action(&name, instance), unknown_size(&bytes));
        }
        put(blob(DigestFunction::Sha256, &data).1, data);
    }
    put(key_of_action("raw action", instance), unknown_size(b"bytes of another kind"));
    contents
}

#[test]
fn every_blob_and_action_result_of_each_storage_mode_is_taken_over() {
    for (mode, blob_count) in [("uncompressed", 4), ("zstd", 5)] {
        for instance in ["", "main"] {
            let dir = TempDir::new().unwrap();
            let store = empty(&dir);
            let directory = fixture(mode);
            let output = tool(&["import", "--json", "--from-bazel-remote", directory.to_str().unwrap(), "--instance", instance], &store);
            let report = json(&output);
            assert_eq!(status(&output), 0, "{mode}: {}", stderr(&output));
            assert_eq!(
                ["contents", "named", "damaged", "present"].map(|n| number(&report, &format!("/{n}"))),
                [blob_count, 4, 0, 0],
                "{mode}"
            );
            assert_eq!(status(&tool(&["verify", "--content"], &store)), 0);
            serves(&store, &contents(mode, instance), &[]);
        }
    }
}

#[test]
fn damaged_files_are_left_out_and_told_and_strange_ones_ignored() {
    for mode in ["uncompressed", "zstd"] {
        let dir = TempDir::new().unwrap();
        let store = empty(&dir);
        let directory = dir.path().join("remote");
        copy(&fixture(mode), &directory).unwrap();
        let mut lost = Vec::new();
        for (index, data) in blobs(mode).into_iter().enumerate() {
            let (digest, key) = blob(DigestFunction::Sha256, &data);
            let file =
                files(&directory.join("cas.v2")).into_iter().find(|file| file.to_str().unwrap().contains(&digest.hash_hex())).unwrap();
            let mut bytes = fs::read(&file).unwrap();
            match index {
                // A byte of what is stored; the end; a header that promises more, or (of a plain one) more than the hash says.
                1 => *bytes.last_mut().unwrap() ^= 1,
                2 => bytes.truncate(bytes.len() - 100),
                3 if mode == "zstd" => bytes[8] ^= 1,
                3 => bytes.push(b'x'),
                4 => {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 0xff;
                }
                _ => continue,
            }
            fs::write(file, bytes).unwrap();
            lost.push(key);
        }
        // What decompresses to far more than it says is not read to its end.
        if mode == "zstd" {
            let bomb = vec![0; 64 << 20];
            let frames = zstd::encode_all(&bomb[..], 3).unwrap();
            let mut file = [0x184D_2A50u32.to_le_bytes(), 37u32.to_le_bytes()].concat();
            file.extend([&1000u64.to_le_bytes()[..], &[1], &(1u32 << 20).to_le_bytes(), &2u64.to_le_bytes()].concat());
            file.extend([45u64, 45 + frames.len() as u64].map(u64::to_le_bytes).concat());
            file.extend(frames);
            fs::write(directory.join(format!("cas.v2/09/{}-1000-7", "09".repeat(32))), file).unwrap();
            lost.push(blob(DigestFunction::Sha256, &vec![0; 1000]).1);
        }
        fs::write(directory.join("cas.v2/09/.ds_store"), b"x").unwrap();
        fs::write(directory.join("cas.v2/strange"), b"x").unwrap();
        let output = tool(&["import", "--json", "--from-bazel-remote", directory.to_str().unwrap()], &store);
        let report = json(&output);
        assert_eq!((status(&output), number(&report, "/damaged")), (1, lost.len() as u64), "{mode}: {report:#} {}", stderr(&output));
        assert_eq!(status(&tool(&["verify", "--content"], &store)), 0);
        serves(&store, &contents(mode, ""), &lost);
    }
}

#[test]
fn another_directory_is_none() {
    let dir = TempDir::new().unwrap();
    let store = empty(&dir);
    let output = tool(&["import", "--from-bazel-remote", dir.path().to_str().unwrap()], &store);
    assert_eq!(status(&output), 2);
    assert!(stderr(&output).contains("is no bazel-remote directory of version 2"), "{}", stderr(&output));
    fs::create_dir(dir.path().join("cas")).unwrap();
    let output = tool(&["import", "--from-bazel-remote", dir.path().to_str().unwrap()], &store);
    assert!(stderr(&output).contains("start a current bazel-remote"), "{}", stderr(&output));
}
