//! What the engine's tests on the simulated device share.
#![allow(dead_code, unreachable_pub, missing_docs)] // each test file uses a part of it

use blockstore_engine::{
    Begin, Durability, Engine, FormatOptions, Key, KeySpace, OpenOptions, OpenReport, PutError, PutOutcome,
    device::{Latency, SimDevice, SimOptions},
};
use bytes::Bytes;
use std::{future::Future, sync::Arc};

pub const MIB: u64 = 1 << 20;

/// A small random generator, so that a seed gives the same run everywhere.
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

/// Bytes that only `id` and `length` determine.
pub fn bytes(id: u64, length: usize) -> Bytes {
    let mut rng = Rng(id ^ (length as u64) << 32);
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        out.extend_from_slice(&rng.next().to_le_bytes());
    }
    out.truncate(length);
    out.into()
}

pub fn content(id: u64) -> Key {
    let mut hash = [0xc0; 32];
    hash[..8].copy_from_slice(&id.to_le_bytes());
    Key { space: KeySpace::Content, function: 1, hash }
}

pub fn named(id: u64) -> Key {
    let mut hash = [0xa0; 32];
    hash[..8].copy_from_slice(&id.to_le_bytes());
    Key { space: KeySpace::Named, function: 1, hash }
}

pub fn options() -> OpenOptions {
    OpenOptions { durability: Durability::Interval, flush_ms_max: 1000, cache_bytes: 0, encode: false }
}

pub fn group() -> OpenOptions {
    OpenOptions { durability: Durability::Group, ..options() }
}

/// Runs on one thread, with a clock that jumps as soon as everybody waits. What waits for ever ends with a panic after a day of that clock.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    const DAY: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(DAY, future).await.expect("the run came to no end within a simulated day") })
}

pub fn sim(mib: u64, seed: u64) -> SimDevice {
    SimDevice::new(SimOptions { latency: Latency::Yields { max: 3 }, ..SimOptions::new(mib * MIB, seed) })
}

pub async fn format(device: &SimDevice, objects: Option<u64>) {
    let options = FormatOptions { block_bytes: Some(MIB), objects };
    Engine::format_seeded(Arc::new(device.clone()), &options, [7; 32]).await.expect("format");
}

pub async fn open(device: &SimDevice, options: OpenOptions) -> (Engine, OpenReport) {
    Engine::open(Arc::new(device.clone()), options).await.expect("open")
}

/// The whole object, or `None` for a miss. A read that starts must end.
pub async fn get(engine: &Engine, key: &Key, size: Option<u64>) -> Option<Bytes> {
    let object = engine.get(key, size).await?;
    let size = object.size_bytes() as usize;
    let mut reader = object.reader(0, None).expect("offset 0");
    let mut out = Vec::with_capacity(size);
    while let Some(piece) = reader.next().await {
        out.extend_from_slice(&piece.ok()?.into_bytes());
    }
    assert_eq!(out.len(), size, "a read that ends without an error is whole");
    Some(out.into())
}

/// Puts in pieces, as a client's stream would.
pub async fn put_stream(engine: &Engine, key: Key, data: &[u8], piece: usize) -> Result<PutOutcome, PutError> {
    match engine.begin_upload(key, data.len() as u64).await? {
        Begin::AlreadyPresent => Ok(PutOutcome::AlreadyPresent),
        Begin::Upload(mut upload) => {
            for chunk in data.chunks(piece) {
                upload.write(chunk).await?;
            }
            upload.finish().await
        }
    }
}
