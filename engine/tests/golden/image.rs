//! A device in a file, and back.

use crate::history::Listing;
use blockstore_engine::device::{AlignedBuf, Device, Latency, PAGE_BYTES, SimDevice, SimOptions};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
};

/// The folder that has one of every version.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Every image there is, without its ending.
pub(crate) fn images() -> Vec<PathBuf> {
    let folders = fs::read_dir(root()).expect("the folder").map(|entry| entry.expect("an entry").path()).filter(|path| path.is_dir());
    let files = folders.flat_map(|folder| fs::read_dir(folder).expect("a folder")).map(|entry| entry.expect("an entry").path());
    let mut images: Vec<_> = files.filter(|file| file.extension().is_some_and(|e| e == "gz")).map(|file| file.with_extension("")).collect();
    images.sort();
    assert!(images.len() >= 2, "there are golden images");
    images
}

fn unpacked(path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    let packed = fs::File::open(path.with_extension("gz")).expect("an image");
    GzDecoder::new(packed).read_to_end(&mut out).expect("gzip");
    out
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"))
}

/// Size of the device in an image.
pub(crate) fn device_bytes(path: &Path) -> u64 {
    number(&unpacked(path))
}

/// The device as it was, as a new one without a history.
pub(crate) async fn load(path: &Path) -> (SimDevice, Listing) {
    let bytes = unpacked(path);
    let device = SimDevice::new(SimOptions { latency: Latency::None, ..SimOptions::new(number(&bytes), 1) });
    for page in bytes[8..].chunks_exact(8 + PAGE_BYTES) {
        let mut buf = AlignedBuf::take(PAGE_BYTES);
        buf.copy_from_slice(&page[8..]);
        device.write(number(page) * PAGE_BYTES as u64, buf).await.1.expect("write");
    }
    device.flush().await.expect("flush");
    let listing = fs::read_to_string(path.with_extension("txt")).expect("a list");
    (device.snapshot_completed(1), listing.lines().filter(|line| !line.starts_with('#')).map(parse).collect())
}

/// `content 7 = 7 3000` (a key, and number and size of the data under it) or `named 3 absent`.
fn parse(line: &str) -> ((bool, u64), Option<(u64, u64)>) {
    let words: Vec<_> = line.split_whitespace().collect();
    let number = |at: usize| words[at].parse::<u64>().unwrap_or_else(|_| panic!("a number in {line:?}"));
    let name = (words[0] == "named", number(1));
    (name, (words[2] == "=").then(|| (number(3), number(4))))
}

/// Writes a device, at rest, and what is in it.
pub(crate) fn save(path: &Path, device: &SimDevice, about: &str, listing: &Listing) {
    let device_bytes = device.geometry().len_bytes;
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    packed.write_all(&device_bytes.to_le_bytes()).expect("memory");
    for first in (0..device_bytes / PAGE_BYTES as u64).step_by(16) {
        let range = first * PAGE_BYTES as u64..((first + 16) * PAGE_BYTES as u64).min(device_bytes);
        let bytes = device.handle().peek(range).expect("readable");
        for (page, bytes) in (first..).zip(bytes.chunks(PAGE_BYTES)).filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0)) {
            packed.write_all(&page.to_le_bytes()).expect("memory");
            packed.write_all(bytes).expect("memory");
        }
    }
    let line = |((named, id), version): (&(bool, u64), &Option<(u64, u64)>)| {
        let space = if *named { "named" } else { "content" };
        match version {
            Some((data, size)) => format!("{space} {id} = {data} {size}\n"),
            None => format!("{space} {id} absent\n"),
        }
    };
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(path.with_extension("gz"), packed.finish().expect("memory")).expect("write");
    fs::write(path.with_extension("txt"), format!("# {about}\n{}", listing.iter().map(line).collect::<String>())).expect("write");
}
