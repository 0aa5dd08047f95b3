//! A store with something in it, and what must be true of it whenever it is at rest.

use crate::{common::*, promptly};
use blockstore_engine::{
    Engine, Key, OpenOptions, PutError, PutOutcome, Stats,
    device::{AlignedBuf, Device, PAGE_BYTES, SimDevice, buffer_pool_stats},
};
use bytes::Bytes;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// Sizes that go each their own way: packed, paged, in parts.
pub(crate) const SMALL: usize = 3_000;
pub(crate) const PAGED: usize = 200_000;
pub(crate) const LARGE: usize = 1_300_000;
/// Size of a part where blocks have 1 MiB.
const PART: usize = 256 << 10;

/// What is at a key, by the order of the key's bytes.
pub(crate) type Contents = BTreeMap<(bool, u64), Option<Bytes>>;

/// A key of the tests: named or content, and a number.
pub(crate) type Name = (bool, u64);

pub(crate) fn key((is_named, id): Name) -> Key {
    if is_named { named(id) } else { content(id) }
}

/// The object of a content key, which decides its size.
pub(crate) fn object(id: u64) -> Bytes {
    bytes(id, [SMALL, PAGED, LARGE][(id % 3) as usize])
}

/// What every store of these tests holds from the start: objects 0, 1 and 2, and the names 0 and 1.
pub(crate) fn held() -> Contents {
    let objects = (0..3).map(|id| ((false, id), Some(object(id))));
    objects.chain((0..2).map(|id| ((true, id), Some(bytes(id, 500))))).collect()
}

/// A store that is open, and its device.
pub(crate) struct Store {
    pub(crate) engine: Engine,
    pub(crate) device: SimDevice,
}

impl Store {
    /// A store that holds [`held`], at rest.
    pub(crate) async fn new(options: &OpenOptions, seed: u64) -> Self {
        let device = sim(40, seed);
        format(&device, None).await;
        let (engine, _) = open(&device, options.clone()).await;
        let store = Self { engine, device };
        for (name, data) in held() {
            store.engine.put(key(name), data.expect("held")).await.expect("put");
        }
        store.rest("new").await;
        store
    }

    /// Waits until nothing is under way, which must be soon, and looks at every gauge.
    pub(crate) async fn rest(&self, what: &str) -> Stats {
        let mut looks = 0;
        loop {
            let stats = self.engine.stats();
            let in_flight = self.device.counters().in_flight;
            let lent = buffer_pool_stats().lent_bytes;
            if busy(&stats) == 0 && in_flight == 0 && lent == 0 {
                return stats;
            }
            looks += 1;
            assert!(looks < 3000, "{what}: something is left: {in_flight} in flight, {lent} bytes lent, {stats:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
            // A write that nobody waits for completes while other operations go on.
            drop(self.device.read(0, AlignedBuf::take(PAGE_BYTES)).await);
        }
    }

    /// What is at these keys now. A read that starts ends with all its bytes.
    pub(crate) async fn contents(&self, names: impl IntoIterator<Item = &Name>) -> Contents {
        let mut out = Contents::new();
        for name in names {
            let found = promptly("get", get(&self.engine, &key(*name), None)).await;
            assert_eq!(self.engine.lookup(&[(key(*name), None)]).await, [found.is_some()], "a lookup says what a read finds");
            out.insert(*name, found);
        }
        out
    }

    /// Exactly this is at these keys.
    pub(crate) async fn assert_holds(&self, what: &str, contents: &Contents) {
        let found = self.contents(contents.keys()).await;
        let wrong: Vec<_> = contents.iter().filter(|(name, data)| found[name] != **data).map(|(name, _)| name).collect();
        assert!(wrong.is_empty(), "{what}: not what was put last: {wrong:?}");
    }

    /// Slots in use are those of the objects that can be seen, and no others.
    pub(crate) fn assert_no_stray_slots(&self, what: &str, contents: &Contents) {
        let slots = |data: &Bytes| if data.len() <= PART { 1 } else { 1 + data.len().div_ceil(PART) };
        let expected: usize = contents.values().flatten().map(slots).sum();
        assert_eq!(self.engine.stats().live_slots, expected as u64, "{what}: slots without an object");
    }

    /// The store takes and gives objects of every kind, as many as make it go on to new blocks; adds them to `contents`.
    pub(crate) async fn goes_on(&self, what: &str, contents: &mut Contents) {
        for id in 100..103 {
            self.puts(what, (false, id), object(id), contents).await;
        }
        self.puts(what, (true, 100), bytes(7, 50), contents).await;
        let stats = self.rest(what).await;
        assert_eq!(stats.upload_left_bytes, 0, "{what}: the block that an aborted upload wrote to is full, and can be reclaimed");
        self.assert_holds(what, contents).await;
        self.assert_no_stray_slots(what, contents);
    }

    pub(crate) async fn puts(&self, what: &str, name: Name, data: Bytes, contents: &mut Contents) {
        let put: Result<PutOutcome, PutError> = promptly(what, self.engine.put(key(name), data.clone())).await;
        put.unwrap_or_else(|e| panic!("{what}: put {name:?}: {e}"));
        contents.insert(name, Some(data));
    }

    /// The process is killed here: what was acknowledged is there when it is opened again. (Parts without a manifest may be there too;
    /// nobody can see them, and reclaim drops them.)
    pub(crate) async fn killed(self, what: &str, options: &OpenOptions, contents: &Contents) {
        let device = self.device.snapshot_completed(2);
        drop(self);
        let (engine, report) = Engine::open(Arc::new(device.clone()), options.clone()).await.expect("open");
        assert_eq!(report.damaged_entries, 0, "{what}: the log is whole");
        let store = Self { engine, device };
        store.assert_holds(&format!("{what}: after the process was killed"), contents).await;
    }
}

/// The sum of all gauges that are zero at rest.
fn busy(stats: &Stats) -> u64 {
    stats.reserved_slots
        + stats.flights
        + stats.queued_bytes
        + stats.gathered_bytes
        + stats.pending_places
        + stats.uploads_running
        + stats.upload_held_bytes
        + stats.upload_unaccepted_bytes
}
