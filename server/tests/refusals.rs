//! Starts that must be refused, with one line that says why, and with nothing changed.

use blockstore_tests::{
    blob::{Blob, digest_of},
    client::{Client, Found},
    daemon::Spec,
    disk::{LoopDevice, make_ext4, sparse_file},
};
use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

const FILE: &str = "store.blockstore";
const DEVICE_BYTES: u64 = 64 << 20;

fn spec() -> Spec {
    Spec::new(env!("CARGO_BIN_EXE_blockstored"))
}

fn temp_dir() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn in_dir(dir: &Path) -> Spec {
    spec().dir(dir, "64MiB")
}

/// A loop device over a file of zeros, and the file.
fn loop_device(dir: &Path) -> Option<(LoopDevice, PathBuf)> {
    let file = dir.join("device");
    sparse_file(&file, DEVICE_BYTES);
    Some((LoopDevice::attach(&file)?, file))
}

#[track_caller]
fn assert_says(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "{line:?} names {part:?}");
    }
}

#[test]
fn a_port_in_use_is_named_with_its_flag_and_nothing_is_created() {
    let dir = temp_dir();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let line = in_dir(dir.path()).grpc(addr).refusal();
    assert_says(&line, &["--grpc", &addr.to_string(), "port is in use"]);
    let line = in_dir(dir.path()).http(addr).refusal();
    assert_says(&line, &["--http", &addr.to_string(), "port is in use"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_directory_that_is_not_writable_is_named() {
    let dir = temp_dir();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let mut spec = in_dir(dir.path());
    if fs::File::create(dir.path().join("probe")).is_ok() {
        // This is root, whom permissions bind only without this capability.
        fs::remove_file(dir.path().join("probe")).unwrap();
        spec = spec.through(&["setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override"]);
    }
    let line = spec.refusal();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert_says(&line, &["--dir", dir.path().to_str().unwrap(), "writable"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_size_that_is_too_small_or_too_large_is_refused_and_leaves_nothing() {
    let dir = temp_dir();
    for size in ["1B", "4KiB", "256KiB", "4EiB"] {
        let line = spec().dir(dir.path(), size).refusal();
        assert_says(&line, &["--size"]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{size}: {line}");
    }
    let line = spec().arg("--dir").arg(dir.path()).refusal();
    assert_says(&line, &["--size"]);
}

#[test]
fn a_file_that_is_no_blockstore_is_refused_and_unchanged() {
    let dir = temp_dir();
    let path = dir.path().join(FILE);
    let text = "not a store\n".repeat(1 << 20);
    for content in [text.into_bytes(), vec![0; 32 << 20], Vec::new()] {
        fs::write(&path, &content).unwrap();
        let line = in_dir(dir.path()).refusal();
        assert_says(&line, &[path.to_str().unwrap()]);
        if !content.is_empty() {
            assert_says(&line, &["not a blockstore"]);
        }
        assert!(fs::read(&path).unwrap() == content, "the file was changed");
    }
    fs::remove_file(&path).unwrap();
    sparse_file(&path, DEVICE_BYTES);
    if make_ext4(&path).is_some() {
        let before = digest_of(&fs::read(&path).unwrap());
        assert_says(&in_dir(dir.path()).refusal(), &["not a blockstore"]);
        assert_eq!(digest_of(&fs::read(&path).unwrap()), before);
    }
}

#[tokio::test]
async fn a_second_process_on_a_store_is_refused_and_the_first_serves_on() {
    let dir = temp_dir();
    let first = in_dir(dir.path()).start();
    let client = Client::connect(first.grpc).await;
    let blob = Blob::new(1, 70_000);
    client.put(blob).await.unwrap();
    assert_says(&in_dir(dir.path()).args("--io sync --direct on").refusal(), &["held by another process"]);
    assert_eq!(client.check(blob).await.unwrap(), Found::Exact);
    client.put(Blob::new(2, 70_000)).await.unwrap();
    first.stop();
    assert_eq!(in_dir(dir.path()).start().opened("clean"), "true");
}

#[test]
fn a_device_that_is_not_there_or_none_is_refused() {
    let dir = temp_dir();
    let gone = dir.path().join("gone");
    assert_says(&spec().device(&gone).refusal(), &["--device", gone.to_str().unwrap()]);
    let file = dir.path().join("file");
    sparse_file(&file, DEVICE_BYTES);
    let line = spec().device(&file).args("--format").refusal();
    assert_says(&line, &["--device", file.to_str().unwrap(), "not a block device"]);
    assert!(fs::read(&file).unwrap().iter().all(|&byte| byte == 0));
}

#[test]
fn a_second_device_is_refused() {
    let line = spec().device("/dev/a".as_ref()).device("/dev/b".as_ref()).refusal();
    assert_says(&line, &["--device", "/dev/b", "one device is supported now"]);
}

#[test]
fn a_device_that_holds_an_ext4_is_refused_and_unchanged_byte_for_byte() {
    let dir = temp_dir();
    let Some((device, file)) = loop_device(dir.path()) else {
        return;
    };
    if make_ext4(device.path()).is_none() {
        return;
    }
    let before = digest_of(&fs::read(&file).unwrap());
    let name = device.path().to_str().unwrap();
    assert_says(&spec().device(device.path()).refusal(), &[name, "not a blockstore"]);
    let line = spec().device(device.path()).args("--format").refusal();
    assert_says(&line, &["--format", name, "not blank", "--force"]);
    assert_eq!(digest_of(&fs::read(&file).unwrap()), before, "the device was changed");

    spec().device(device.path()).args("--format --force").start().stop();
    assert_ne!(digest_of(&fs::read(&file).unwrap()), before);
}

#[test]
fn a_byte_in_the_first_or_last_mib_keeps_a_device_from_being_formatted() {
    let dir = temp_dir();
    for offset in [0, (1 << 20) - 1, DEVICE_BYTES - (1 << 20), DEVICE_BYTES - 1] {
        let path = dir.path().join(format!("device-{offset}"));
        let file = sparse_file(&path, DEVICE_BYTES);
        std::os::unix::fs::FileExt::write_all_at(&file, &[1], offset).unwrap();
        file.sync_all().unwrap();
        let Some(device) = LoopDevice::attach(&path) else {
            return;
        };
        assert_says(&spec().device(device.path()).args("--format").refusal(), &["not blank"]);
    }
}

#[tokio::test]
async fn a_blank_device_is_formatted_when_told_so_and_only_once() {
    let dir = temp_dir();
    let Some((device, _file)) = loop_device(dir.path()) else {
        return;
    };
    assert_says(&spec().device(device.path()).refusal(), &["not a blockstore", "--format"]);

    let daemon = spec().device(device.path()).args("--format").start();
    let client = Client::connect(daemon.grpc).await;
    let blob = Blob::new(1, 70_000);
    client.put(blob).await.unwrap();
    assert_says(&spec().device(device.path()).refusal(), &["held by another process"]);
    daemon.stop();

    assert_says(&spec().device(device.path()).args("--format").refusal(), &["not blank"]);
    let daemon = spec().device(device.path()).start();
    let client = Client::connect(daemon.grpc).await;
    assert_eq!(client.check(blob).await.unwrap(), Found::Exact);
    daemon.stop();
}

#[test]
fn mistakes_on_the_command_line_are_one_line_and_name_the_setting() {
    for (arguments, named) in [
        ("", "--dir"),
        ("--dir d --size lots", "--size"),
        ("--dir d --size 1GiB --io quick", "--io"),
        ("--device /dev/a --size 1GiB", "--size"),
        ("--device /dev/a --force", "--force"),
    ] {
        assert_says(&spec().args(arguments).refusal(), &[named]);
    }
}
