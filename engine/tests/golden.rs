//! Devices that earlier builds wrote, one set for each version of the format: whatever is changed, they open, hold every byte, and go on.
//!
//! `golden/v1/` and so on hold each device as its pages that are not zeros (number and bytes, gzip), and beside it a list of what must
//! be found in it and what must not. When `FORMAT_VERSION` rises, `GOLDEN_WRITE=1 cargo test -p blockstore-engine --test golden` writes
//! the new version's images; those of older versions are never written again.

mod common;

#[path = "golden/history.rs"]
mod history;
#[path = "golden/image.rs"]
mod image;

use blockstore_engine::{Engine, OpenError, device::SimDevice, fuzzing::FORMAT_VERSION};
use common::*;
use history::{Listing, data, key};
use image::{images, load, root};
use std::sync::Arc;

/// Pages of the superblock's copies 0 and 1; copies 2 and 3 are the last two of the device.
const PAGE: u64 = 4096;

async fn assert_holds(what: &str, engine: &Engine, listing: &Listing) {
    for (name, version) in listing {
        let found = get(engine, &key(*name), None).await;
        assert!(found == version.map(data), "{what}: {name:?} is not what the list says");
        assert_eq!(engine.lookup(&[(key(*name), version.map(|(_, size)| size))]).await, [version.is_some()], "{what}: {name:?}");
    }
}

/// Writes images of the current version, where asked to; they must be there otherwise.
#[test]
fn the_current_version_has_its_images() {
    let folder = root().join(format!("v{FORMAT_VERSION}"));
    if std::env::var_os("GOLDEN_WRITE").is_some() {
        run(history::write(&folder));
    }
    for name in ["clean", "unclean"] {
        let there = folder.join(format!("{name}.gz")).exists() && folder.join(format!("{name}.txt")).exists();
        assert!(there, "{}/{name}: version {FORMAT_VERSION} has no golden image", folder.display());
    }
}

#[test]
fn every_golden_image_opens_holds_every_byte_and_goes_on() {
    for path in images() {
        run(async {
            let what = path.display().to_string();
            let (device, listing) = load(&path).await;
            let (engine, report) = open(&device, options()).await;
            assert_eq!(report.clean, path.ends_with("clean"), "{what}");
            assert_eq!(report.damaged_entries, 0, "{what}");
            assert!(listing.values().any(Option::is_none) && listing.len() > 40, "{what}: the list says what is there and what is not");
            assert_holds(&what, &engine, &listing).await;
            // Today's program goes on where that one stopped.
            let mut listing = listing;
            for (id, size) in [(900, 10), (901, 3000), (902, 100_000), (903, 1_400_000)] {
                listing.insert((false, id), Some((id, size)));
            }
            listing.insert((true, 900), Some((904, 77)));
            for (name, version) in listing.iter().filter(|((_, id), _)| *id >= 900) {
                engine.put(key(*name), data(version.expect("new"))).await.expect("put");
            }
            let deleted = listing.iter_mut().find(|((named, _), version)| *named && version.is_some()).expect("a name");
            assert!(engine.delete(&key(*deleted.0)).await.expect("delete"));
            *deleted.1 = None;
            assert_holds(&what, &engine, &listing).await;
            engine.close().await.expect("close");
            drop(engine);
            let (engine, report) = open(&device, options()).await;
            assert!(report.clean, "{what}");
            assert_holds(&what, &engine, &listing).await;
        });
    }
}

/// Changes a field of every copy of the superblock and puts the checksums right.
fn set_in_superblocks(device: &SimDevice, device_bytes: u64, offset: usize, bytes: &[u8]) {
    for at in [0, PAGE, device_bytes - 2 * PAGE, device_bytes - PAGE] {
        let mut page = device.handle().peek(at..at + PAGE).expect("a superblock");
        page[offset..offset + bytes.len()].copy_from_slice(bytes);
        let crc = crc32fast::hash(&page[4..]);
        page[..4].copy_from_slice(&crc.to_le_bytes());
        device.handle().poke(at, &page);
    }
}

async fn refusal(device: &SimDevice) -> Option<String> {
    match Engine::open(Arc::new(device.clone()), options()).await {
        Ok(_) => None,
        Err(OpenError::Unusable(reason)) => Some(reason),
        Err(other) => panic!("refused for another reason: {other}"),
    }
}

#[test]
fn a_store_of_a_later_version_or_with_an_unknown_incompatible_feature_is_refused_unchanged_and_named() {
    run(async {
        for path in images() {
            for (offset, bytes, named) in [
                (4, (FORMAT_VERSION + 1).to_le_bytes().to_vec(), format!("format version {}", FORMAT_VERSION + 1)),
                (24, (1u64 << 40).to_le_bytes().to_vec(), "features 0x10000000000".to_string()),
            ] {
                let (device, _) = load(&path).await;
                let device_bytes = image::device_bytes(&path);
                set_in_superblocks(&device, device_bytes, offset, &bytes);
                let before = [0..2 * PAGE, device_bytes - 2 * PAGE..device_bytes].map(|range| device.handle().peek(range).expect("bytes"));
                let reason = refusal(&device).await.expect("refused");
                assert!(reason.contains(&named) && reason.contains("newer"), "{reason}");
                assert_eq!(device.counters_of_writes(), 0, "nothing is written to a store that is refused");
                let after = [0..2 * PAGE, device_bytes - 2 * PAGE..device_bytes].map(|range| device.handle().peek(range).expect("bytes"));
                assert!(before == after);
            }
        }
    });
}

/// Whoever does not know a compatible feature may write to the store, and says so by clearing its bit.
#[test]
fn an_unknown_compatible_feature_is_no_obstacle_and_its_bit_is_cleared() {
    run(async {
        for path in images() {
            let (device, listing) = load(&path).await;
            set_in_superblocks(&device, image::device_bytes(&path), 16, &(1u64 << 40).to_le_bytes());
            let (engine, _) = open(&device, options()).await;
            assert_holds("compatible feature", &engine, &listing).await;
            assert_eq!(device.handle().peek(16..24).expect("a superblock"), [0; 8]);
        }
    });
}

/// Writes of the device since it was loaded.
trait Writes {
    fn counters_of_writes(&self) -> u64;
}

impl Writes for SimDevice {
    fn counters_of_writes(&self) -> u64 {
        self.handle().counters().writes
    }
}
