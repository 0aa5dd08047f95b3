//! The engine itself under a trace, on a simulated device with a clock that follows the trace.

use crate::{
    count::Counts,
    sizes::CONTENT_BYTES_MAX,
    trace::{Kind, Object, Trace},
};
use blockstore_engine::{
    Durability, Engine, FormatOptions, Key, KeySpace, OpenOptions, Stats,
    device::{Latency, SimDevice, SimOptions},
};
use bytes::Bytes;
use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

/// All content; the engine does not hash it.
static CONTENT: LazyLock<Bytes> = LazyLock::new(|| (0..CONTENT_BYTES_MAX).map(|at| (at % 251) as u8).collect::<Vec<_>>().into());

/// What the engine did from the first step that counts to the end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ours {
    pub(crate) counts: Counts,
    /// Sizes of the objects that it stored, in bytes.
    pub(crate) stored_bytes: u64,
    pub(crate) written_bytes: u64,
    pub(crate) carried_bytes: u64,
    pub(crate) image_bytes: u64,
    pub(crate) retention_breaches: u64,
    pub(crate) capacity_bytes: u64,
    /// Time on the trace's clock in which puts were held back.
    pub(crate) slowed_us: u64,
}

/// A device and a clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) device_bytes: u64,
    pub(crate) block_bytes: u64,
    /// From here on it counts.
    pub(crate) first_step: usize,
    pub(crate) step_pause: Duration,
}

fn key(object: u32, kind: Kind) -> Key {
    let mut hash = [0xc1; 32];
    hash[..4].copy_from_slice(&object.to_le_bytes());
    Key { space: if kind == Kind::Action { KeySpace::Named } else { KeySpace::Content }, function: 1, hash }
}

/// Runs the trace on a new store.
pub(crate) fn run(trace: &Trace, setup: Setup) -> Result<Ours, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().map_err(|e| e.to_string())?;
    runtime.block_on(trace_through(trace, setup))
}

async fn trace_through(trace: &Trace, setup: Setup) -> Result<Ours, String> {
    let device = Arc::new(SimDevice::new(SimOptions { latency: Latency::None, ..SimOptions::new(setup.device_bytes, 1) }));
    let format = FormatOptions { block_bytes: Some(setup.block_bytes), objects: None };
    Engine::format_seeded(device.clone(), &format, [7; 32]).await.map_err(|e| e.to_string())?;
    let options = OpenOptions { durability: Durability::Interval, cache_bytes: 0, ..OpenOptions::default() };
    let (engine, _) = Engine::open(device, options).await.map_err(|e| e.to_string())?;
    let again = trace.again();
    let mut ours = Ours::default();
    let mut before = Stats::default();
    for (number, step) in trace.steps.iter().enumerate() {
        if number == setup.first_step {
            ours = Ours::default();
            before = engine.stats();
        }
        let accesses = &trace.accesses[step.clone()];
        let object = |index: u32| -> Object { trace.objects[index as usize] };
        let keys: Vec<(Key, Option<u64>)> = accesses
            .iter()
            .map(|access| {
                let Object { size_bytes, kind } = object(access.object);
                (key(access.object, kind), Some(size_bytes).filter(|_| kind != Kind::Action))
            })
            .collect();
        let present = engine.lookup(&keys).await;
        let mut missing = Vec::new();
        for (((access, key), present), again) in accesses.iter().zip(&keys).zip(present).zip(&again[step.clone()]) {
            let size_bytes = object(access.object).size_bytes;
            ours.counts.add(present, size_bytes, *again);
            if !present {
                missing.push((key.0, CONTENT.slice(..size_bytes as usize)));
                ours.stored_bytes += size_bytes;
            } else if access.read && engine.get(&key.0, key.1).await.is_none() {
                return Err(format!("object {} was reported present and could not be read", access.object));
            }
        }
        for result in engine.put_batch(missing).await {
            result.map_err(|e| format!("put in step {number}: {e}"))?;
        }
        tokio::time::sleep(setup.step_pause).await;
    }
    let after = engine.stats();
    Ok(Ours {
        written_bytes: after.written_bytes - before.written_bytes,
        carried_bytes: after.carried_bytes - before.carried_bytes,
        image_bytes: (after.images - before.images) * after.table_bytes,
        retention_breaches: after.retention_breaches - before.retention_breaches,
        slowed_us: after.slowed_us - before.slowed_us,
        capacity_bytes: after.capacity_bytes,
        ..ours
    })
}
