//! Stores in temporary files, on a runtime that can be ended as a kill ends a process.

// Each bench uses a part of it.
#![allow(dead_code)]

use blockstore_engine::{
    Engine, FormatOptions, Key, KeySpace, OpenOptions, OpenReport,
    device::{DeviceOptions, create_file, open_file},
};
use bytes::Bytes;
use std::{cell::Cell, path::PathBuf};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Objects that are put together.
const BATCH: u64 = 500;

/// What a store of a bench is.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) store_bytes: u64,
    pub(crate) device: DeviceOptions,
    pub(crate) format: FormatOptions,
    pub(crate) open: OpenOptions,
}

impl Plan {
    /// A store of this size with everything else by default.
    pub(crate) fn of(store_bytes: u64) -> Self {
        Self { store_bytes, device: DeviceOptions::default(), format: FormatOptions::default(), open: OpenOptions::default() }
    }
}

/// A store in a temporary file.
pub(crate) struct Store {
    pub(crate) runtime: Runtime,
    pub(crate) engine: Engine,
    plan: Plan,
    path: PathBuf,
    next: Cell<u64>,
    _dir: TempDir,
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads")
}

impl Store {
    pub(crate) fn new(plan: Plan) -> Self {
        let runtime = runtime();
        let dir = TempDir::new().expect("a directory");
        let path = dir.path().join("store");
        let engine = runtime.block_on(async {
            let device = create_file(&path, plan.store_bytes, plan.device).expect("a file");
            Engine::format(device.clone(), &plan.format).await.expect("a new store");
            Engine::open(device, plan.open.clone()).await.expect("the new store").0
        });
        Self { runtime, engine, plan, path, next: Cell::new(1 << 32), _dir: dir }
    }

    /// A key that was never used.
    pub(crate) fn fresh(&self) -> Key {
        self.next.set(self.next.get() + 1);
        key(self.next.get())
    }

    /// Puts objects with these bytes under the keys of these numbers.
    pub(crate) fn fill(&self, numbers: std::ops::Range<u64>, data: &Bytes) {
        self.runtime.block_on(async {
            let mut from = numbers.start;
            while from < numbers.end {
                let to = numbers.end.min(from + BATCH);
                let batch = (from..to).map(|number| (key(number), data.clone())).collect();
                self.engine.put_batch(batch).await.into_iter().for_each(|put| _ = put.expect("room"));
                from = to;
            }
        });
    }

    /// Ends every task where it is, as the end of the process would, and opens the store again.
    pub(crate) fn kill_and_open(self) -> (Self, OpenReport) {
        let Self { runtime, engine, plan, path, next, _dir } = self;
        drop(runtime);
        drop(engine);
        let runtime = self::runtime();
        let (engine, report) = runtime.block_on(async {
            let device = open_file(&path, plan.device).expect("the file");
            Engine::open(device, plan.open.clone()).await.expect("the store")
        });
        (Self { runtime, engine, plan, path, next, _dir }, report)
    }
}

/// The key of a number.
pub(crate) fn key(number: u64) -> Key {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&number.to_le_bytes());
    hash[8..16].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    Key { space: KeySpace::Content, function: 1, hash }
}

/// Bytes that do not compress, as long as asked for.
pub(crate) fn noise(len: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(len.div_ceil(8)).flatten().take(len).collect::<Vec<_>>().into()
}
