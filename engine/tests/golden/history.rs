//! What happened to the golden stores: everything that leaves a trace of its own on the device.

use crate::{common::*, image::save};
use blockstore_engine::{
    Engine, FormatOptions, Key,
    device::{SimDevice, SimOptions},
};
use bytes::Bytes;
use std::{collections::BTreeMap, path::Path, sync::Arc};

/// Whether a key is named, and its number.
pub(crate) type Name = (bool, u64);
/// What is at each key that ever was: number and size of the data, or nothing.
pub(crate) type Listing = BTreeMap<Name, Option<(u64, u64)>>;

pub(crate) fn key((is_named, id): Name) -> Key {
    if is_named { named(id) } else { content(id) }
}

/// Data that packs well: what is a page or a chunk too early or too late is seen, since 97 divides neither.
pub(crate) fn data((id, size_bytes): (u64, u64)) -> Bytes {
    let period = bytes(id, 97);
    period.iter().copied().cycle().take(size_bytes as usize).collect()
}

struct Store {
    engine: Engine,
    device: SimDevice,
    put: Listing,
}

impl Store {
    async fn open(device: SimDevice, put: Listing) -> (Self, u64) {
        let (engine, report) = open(&device, options()).await;
        (Self { engine, device, put }, report.voided_entries)
    }
    async fn put(&mut self, name: Name, version: (u64, u64)) {
        self.engine.put(key(name), data(version)).await.expect("put");
        self.put.insert(name, Some(version));
    }
    async fn contents(&mut self, ids: std::ops::Range<u64>, size_bytes: impl Fn(u64) -> u64) {
        for id in ids {
            self.put((false, id), (id, size_bytes(id))).await;
        }
    }
    async fn delete(&mut self, id: u64) {
        assert!(self.engine.delete(&named(id)).await.expect("delete"));
        self.put.insert((true, id), None);
    }
    /// What of all that was put is there now; a name that is there has its last value.
    async fn listing(&self) -> Listing {
        let mut out = Listing::new();
        for (name, version) in &self.put {
            let found = get(&self.engine, &key(*name), None).await;
            assert!(found.is_none() || found == version.map(data), "{name:?}");
            out.insert(*name, version.filter(|_| found.is_some()));
        }
        out
    }
}

/// The smallest device that can hold a store.
async fn smallest() -> SimDevice {
    let options = FormatOptions { block_bytes: Some(MIB), objects: Some(3000) };
    for kib in (32 << 10..).step_by(64) {
        let device = SimDevice::new(SimOptions::new(kib << 10, 1));
        if Engine::format_seeded(Arc::new(device.clone()), &options, *b"a golden identityand a hash seed").await.is_ok() {
            return device;
        }
    }
    unreachable!("some size is large enough")
}

pub(crate) async fn write(folder: &Path) {
    // Epoch 1: sizes around every bound, names replaced and deleted, the first image.
    let (mut store, _) = Store::open(smallest().await, Listing::new()).await;
    let sizes = [1, 7, 100, 4095, 4096, 4097, 65_535, 65_536, 65_537, 200_000, 262_144, 262_145, 700_000, 1 << 20];
    store.contents(0..sizes.len() as u64, |id| sizes[id as usize]).await;
    for id in 0..6 {
        store.put((true, id), (100 + id, 50 + 1000 * id)).await;
    }
    store.put((true, 2), (110, 70_000)).await;
    store.delete(4).await;
    store.engine.checkpoint().await.expect("checkpoint");
    // A power cut that leaves entries without their records, which the next opening voids.
    store.contents(20..60, |id| 300 * id).await;
    store.engine.flush().await.expect("flush");
    store.contents(60..90, |id| 500 * id).await;
    let (device, put) = (store.device.clone(), store.put.clone());
    drop(store);
    let mut cut = None;
    for seed in 0..1000 {
        if Store::open(device.crash(seed), put.clone()).await.1 > 0 {
            cut = Some(device.crash(seed));
            break;
        }
    }
    // Epoch 2: blocks are filled, retired and used again; what is read stays.
    let (mut store, voided) = Store::open(cut.expect("a power cut that leaves something to void"), put).await;
    assert!(voided > 0);
    let mut id = 200;
    while store.engine.stats().blocks_reclaimed < 6 || store.engine.stats().carried_bytes == 0 {
        store.contents(id..id + 8, |id| if id % 4 == 0 { 900_000 } else { 9000 * (id % 8) }).await;
        id += 8;
        for kept in (0..14).chain([30, 40]).chain((200..id).step_by(5)) {
            get(&store.engine, &content(kept), None).await;
        }
        assert!(id < 5000, "records are moved at some time: {:?}", store.engine.stats());
    }
    store.engine.checkpoint().await.expect("checkpoint");
    for id in 0..4 {
        store.put((true, id), (120 + id, 50 + 1000 * id)).await;
    }
    store.engine.flush().await.expect("flush");
    store.put((true, 1), (130, 120)).await;
    store.delete(3).await;
    store.engine.flush().await.expect("flush");
    store.contents(10_000..10_020, |id| 1 + id % 100 * 300).await;
    let unclean = store.device.snapshot_completed(1);
    store.engine.close().await.expect("close");
    for (name, device, about) in [
        ("unclean", unclean, "the process was killed: part of the log is not in an image"),
        ("clean", store.device.clone(), "closed in order"),
    ] {
        // What is there is what an opening finds: a reclaim that a kill interrupts has not happened.
        let listing = Store::open(device.snapshot_completed(1), store.put.clone()).await.0.listing().await;
        save(&folder.join(name), &device, about, &listing);
    }
}
