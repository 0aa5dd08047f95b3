//! A store under test together with its model: applies operations to both and compares.

#[path = "ends.rs"]
mod ends;

use super::{
    ledger::Ledger,
    ops::{Config, Op, Stop},
};
use crate::common::*;
use blockstore_engine::{
    Begin, Durability, Engine, Key, OpenOptions, PutError, PutOutcome,
    device::{ReadFault, SimDevice},
};
use bytes::Bytes;
use std::{collections::BTreeSet, future::Future, sync::Arc, time::Duration};
use tokio::task::JoinHandle;

/// Content keys that operations name; fresh blobs have higher numbers.
const IDS: u64 = 40;
const NAMES: u64 = 8;
/// Longest that an operation may take on the simulated clock.
const STALL: Duration = Duration::from_secs(300);

/// Key of content `id`, whose size follows from it.
fn size_of(id: u64) -> usize {
    let mut rng = Rng(id.wrapping_mul(77));
    let below = |rng: &mut Rng, n| usize::try_from(rng.below(n)).unwrap_or(0);
    match id % 10 {
        0..3 => 1 + below(&mut rng, 300),
        3..5 => 1 + below(&mut rng, 5000),
        5 | 6 => 4000 + below(&mut rng, 61_600),
        7 => 65_530 + below(&mut rng, 20),
        8 => 66_000 + below(&mut rng, 200_000),
        _ => 262_140 + below(&mut rng, 1_500_000),
    }
}

/// What an operation of a mix came to.
enum Answer {
    Put(u64, Result<PutOutcome, PutError>),
    Batch(Vec<(u64, Result<PutOutcome, PutError>)>),
    Named(u64, Option<u64>, Result<(), PutError>),
    Deleted(u64, Result<bool, PutError>),
    Read(u64, Option<Bytes>),
    ReadName(u64, Option<Bytes>),
    Nothing,
}

pub(crate) struct World {
    config: Config,
    device: SimDevice,
    engine: Option<Engine>,
    pub(crate) ledger: Ledger,
    rng: Rng,
    fresh: u64,
    versions: u64,
    accepted_before: u64,
    opens: u64,
    step: usize,
    poisoned: bool,
    limits: Limits,
    /// The number of the image in force when an image rotted.
    rotten_image: Option<u64>,
}

/// What a clean store never exceeds.
#[derive(Default)]
struct Limits {
    breaches: u64,
}

fn version_bytes(id: u64, version: u64, length: u32) -> Bytes {
    let mut out = Vec::with_capacity(length as usize + 16);
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&bytes(version << 8 | id, length as usize));
    out.into()
}

/// The version that a value of the name says it is; every byte of it must agree.
fn version_of(id: u64, data: &Bytes) -> u64 {
    let version = data.get(..8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes).expect("a value says its version");
    assert!(*data == version_bytes(id, version, data.len() as u32 - 8), "name {id} has bytes that were never put");
    version
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(STALL, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} came to no end"),
    }
}

async fn yields(n: u16) {
    for _ in 0..n {
        tokio::task::yield_now().await;
    }
}

/// Runs a history from an empty store to a last verification.
pub(crate) fn play(config: &Config, ops: &[Op]) {
    run(async {
        let device = sim(config.mib, config.seed);
        format(&device, config.objects).await;
        let mut world = World {
            config: config.clone(),
            device,
            engine: None,
            ledger: Ledger::default(),
            rng: Rng(config.seed ^ 0x5eed),
            fresh: IDS,
            versions: 0,
            accepted_before: 0,
            opens: 0,
            step: 0,
            poisoned: false,
            limits: Limits::default(),
            rotten_image: None,
        };
        world.open().await;
        for (step, op) in ops.iter().enumerate() {
            world.step = step;
            within(&format!("step {step} ({op:?})"), world.apply(op)).await;
            world.settle();
        }
        world.step = ops.len();
        within("the end", world.end()).await;
    });
}

impl World {
    fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("the store is open")
    }
    fn group(&self) -> bool {
        self.config.group ^ (self.config.alternate && self.opens.is_multiple_of(2))
    }
    fn what(&self, of: &str) -> String {
        format!("step {}: {of}", self.step)
    }

    async fn open_on(&self, device: &SimDevice) -> Engine {
        let durability = if self.group() { Durability::Group } else { Durability::Interval };
        let options = OpenOptions { durability, flush_ms_max: 1000, cache_bytes: self.config.cache_bytes, encode: false };
        match Engine::open(Arc::new(device.clone()), options).await {
            Ok((engine, _)) => engine,
            Err(e) => panic!("{}: {e}", self.what("open")),
        }
    }
    async fn open(&mut self) {
        self.opens += 1;
        let engine = self.open_on(&self.device).await;
        self.ledger.capacity_bytes = engine.stats().capacity_bytes;
        self.engine = Some(engine);
        self.poisoned = false;
        self.ledger.poisoned = false;
        self.limits.breaches = 0;
    }

    /// Takes the counters over into the model, and checks what must always hold.
    fn settle(&mut self) {
        let stats = self.engine().stats();
        let pressed = stats.live_slots * 100 >= stats.table_slots * 75 || stats.reclaims_for_table > 0;
        self.ledger.table_pressure |= pressed;
        self.ledger.settle(self.accepted_before + stats.accepted_bytes, IDS);
        assert!(stats.live_slots * 100 <= stats.table_slots * 97, "{}: {stats:?}", self.what("more slots than the table allows"));
        let breaches = stats.retention_breaches - self.limits.breaches;
        assert!(
            breaches == 0 || self.ledger.table_pressure || self.ledger.exceeded || self.ledger.restamped,
            "{}: {breaches} within the bound: {stats:?}",
            self.what("retention breaches")
        );
        self.limits.breaches = stats.retention_breaches;
    }

    fn fine<T>(&self, what: &str, result: Result<T, PutError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(e) if self.poisoned => {
                assert!(matches!(e, PutError::Unavailable(_)), "{}: {e}", self.what(what));
                None
            }
            Err(e) => panic!("{}: {e}: {:?}", self.what(what), self.engine().stats()),
        }
    }

    // ---- operations

    fn content_of(&self, id: u8) -> (u64, Key, Bytes) {
        let id = u64::from(id) % IDS;
        (id, content(id), bytes(id, size_of(id)))
    }
    fn fresh_blob(&mut self, length: usize) -> (u64, Key, Bytes) {
        self.fresh += 1;
        (self.fresh, content(self.fresh), bytes(self.fresh, length))
    }

    async fn apply(&mut self, op: &Op) {
        let engine = self.engine().clone();
        let at = self.ledger.accepted_bytes;
        match op {
            Op::Put { .. }
            | Op::Stream { .. }
            | Op::PutBatch { .. }
            | Op::Abort { .. }
            | Op::PutNamed { .. }
            | Op::Delete { .. }
            | Op::Get { .. }
            | Op::GetNamed { .. }
            | Op::Find => {
                let task = self.start(op);
                let answer = task.await.expect("no panic");
                self.fold(answer, at, true);
            }
            Op::Range { id, from_permille, permille } => self.range(*id, *from_permille, *permille).await,
            Op::Fill { mib, kib } => {
                let length = usize::from(*kib).max(1) << 10;
                for _ in 0..((usize::from(*mib) << 20) / length).clamp(1, 400) {
                    let (id, key, data) = self.fresh_blob(length - 7);
                    self.ledger.attempted(id, data.len() as u64);
                    let at = self.ledger.accepted_bytes;
                    let result = engine.put(key, data).await;
                    self.fold(Answer::Put(id, result), at, true);
                    self.settle();
                }
            }
            Op::FillTiny { hundreds } => {
                for _ in 0..*hundreds {
                    let blobs: Vec<_> = (0..100).map(|n| self.fresh_blob(20 + n)).collect();
                    let ids: Vec<u64> = blobs.iter().map(|b| b.0).collect();
                    blobs.iter().for_each(|(id, _, data)| self.ledger.attempted(*id, data.len() as u64));
                    let at = self.ledger.accepted_bytes;
                    let results = engine.put_batch(blobs.into_iter().map(|(_, key, data)| (key, data)).collect()).await;
                    self.fold(Answer::Batch(ids.into_iter().zip(results).collect()), at, true);
                    self.settle();
                }
            }
            Op::Checkpoint => {
                if self.fine("checkpoint", engine.checkpoint().await).is_some() {
                    self.ledger.flushed();
                    self.ledger.imaged();
                }
            }
            Op::Flush => {
                if self.fine("flush", engine.flush().await).is_some() {
                    self.ledger.flushed();
                }
            }
            Op::Wait { ms } => {
                tokio::time::sleep(Duration::from_millis(u64::from(*ms))).await;
                if *ms >= 2000 && !self.poisoned {
                    self.ledger.flushed();
                }
            }
            Op::Aborts { n, kib } => {
                for _ in 0..*n {
                    let (_, key, data) = self.fresh_blob((usize::from(*kib) << 10) + 300_000);
                    let begun = engine.begin_upload(key, data.len() as u64).await;
                    if let Some(Begin::Upload(mut upload)) = self.fine("begin upload", begun) {
                        let result = upload.write(&data[..data.len() - 1]).await;
                        self.fine("write upload", result);
                    }
                }
            }
            Op::Mix { ops, cancel, cut } => self.mix(ops, *cancel, *cut).await,
            Op::Reopen { stop, midway, twice } => {
                let seed = self.stop(*stop).await;
                self.restart(*stop, seed, *midway, *twice).await;
            }
            Op::Rot { stop, region, bits } => self.rot(*stop, *region, *bits).await,
            Op::ReadFault { nth, kind } => {
                let fault = match kind {
                    0 => ReadFault::Fail,
                    1 => ReadFault::FlipBit,
                    _ => ReadFault::Misdirect { from_bytes: self.rng.below(self.config.mib * MIB / 4096) * 4096 },
                };
                self.device.handle().on_read(u64::from(*nth), fault);
                self.ledger.reads_may_fail = true;
            }
            Op::Poison { flush, id } => self.poison(*flush, *id).await,
        }
    }

    /// Starts a simple operation; the model knows of it, and not of its answer.
    fn start(&mut self, op: &Op) -> JoinHandle<Answer> {
        let engine = self.engine().clone();
        match op {
            Op::Put { id } => {
                let (id, key, data) = self.content_of(*id);
                self.ledger.attempted(id, data.len() as u64);
                tokio::spawn(async move { Answer::Put(id, engine.put(key, data).await) })
            }
            Op::Stream { id } => {
                let (id, key, data) = self.content_of(*id);
                self.ledger.attempted(id, data.len() as u64);
                tokio::spawn(async move { Answer::Put(id, put_stream(&engine, key, &data, 70_000).await) })
            }
            Op::PutBatch { first, n } => {
                let blobs: Vec<_> = (0..*n).map(|i| self.content_of(first.wrapping_add(i))).collect();
                let ids: Vec<u64> = blobs.iter().map(|b| b.0).collect();
                blobs.iter().for_each(|(id, _, data)| self.ledger.attempted(*id, data.len() as u64));
                let items = blobs.into_iter().map(|(_, key, data)| (key, data)).collect();
                tokio::spawn(async move { Answer::Batch(ids.into_iter().zip(engine.put_batch(items).await).collect()) })
            }
            Op::Abort { id, percent } => {
                let (id, key, data) = self.content_of(*id);
                self.ledger.attempted(id, data.len() as u64);
                let end = data.len() * usize::from(*percent) / 100;
                tokio::spawn(async move {
                    if let Ok(Begin::Upload(mut upload)) = engine.begin_upload(key, data.len() as u64).await {
                        let _ = upload.write(&data[..end]).await;
                    }
                    Answer::Nothing
                })
            }
            Op::PutNamed { id, bytes } => {
                let id = u64::from(*id) % NAMES;
                self.versions += 1;
                let version = self.versions;
                self.ledger.writing(id, Some(version), u64::from(*bytes));
                let data = version_bytes(id, version, *bytes);
                tokio::spawn(async move { Answer::Named(id, Some(version), engine.put(named(id), data).await.map(drop)) })
            }
            Op::Delete { id } => {
                let id = u64::from(*id) % NAMES;
                self.ledger.writing(id, None, 0);
                tokio::spawn(async move { Answer::Deleted(id, engine.delete(&named(id)).await) })
            }
            Op::Get { id } => {
                let (id, key, data) = self.content_of(*id);
                tokio::spawn(async move { Answer::Read(id, get(&engine, &key, Some(data.len() as u64)).await) })
            }
            Op::GetNamed { id } => {
                let id = u64::from(*id) % NAMES;
                tokio::spawn(async move { Answer::ReadName(id, get(&engine, &named(id), None).await) })
            }
            Op::Find => {
                self.find("find");
                tokio::spawn(async { Answer::Nothing })
            }
            Op::Fill { mib, kib } => {
                let length = usize::from(*kib).max(1) << 10;
                let n = ((usize::from(*mib) << 20) / length).clamp(1, 60);
                let blobs: Vec<_> = (0..n).map(|_| self.fresh_blob(length - 7)).collect();
                let ids: Vec<u64> = blobs.iter().map(|b| b.0).collect();
                blobs.iter().for_each(|(id, _, data)| self.ledger.attempted(*id, data.len() as u64));
                let items = blobs.into_iter().map(|(_, key, data)| (key, data)).collect();
                tokio::spawn(async move { Answer::Batch(ids.into_iter().zip(engine.put_batch(items).await).collect()) })
            }
            Op::Checkpoint => tokio::spawn(async move {
                let _ = engine.checkpoint().await;
                Answer::Nothing
            }),
            _ => tokio::spawn(async move {
                let _ = engine.flush().await;
                Answer::Nothing
            }),
        }
    }

    /// Brings an answer into the model. `alone`: nothing else was under way.
    fn fold(&mut self, answer: Answer, at: u64, alone: bool) {
        let group = self.group();
        match answer {
            Answer::Put(id, result) => {
                if let Some(outcome) = self.fine("put", result) {
                    self.ledger.settle(self.accepted_before + self.engine().stats().accepted_bytes, IDS);
                    assert!(outcome == PutOutcome::AlreadyPresent || !alone || !self.ledger.must(id), "{}", self.what("stored twice"));
                    self.ledger.stored(id, outcome, group, at);
                }
            }
            Answer::Batch(results) => results.into_iter().for_each(|(id, r)| self.fold(Answer::Put(id, r), at, false)),
            Answer::Named(id, version, result) => {
                if self.fine("put named", result).is_some() {
                    self.ledger.written(id, version, group, at);
                }
            }
            Answer::Deleted(id, result) => match self.fine("delete", result) {
                Some(true) => self.ledger.written(id, None, group, at),
                // It was absent already.
                Some(false) if alone => self.ledger.observed(id, None, at, group, "delete"),
                _ => {}
            },
            Answer::Read(id, data) => {
                let present = data.is_some();
                if let Some(data) = data {
                    assert!(data == bytes(id, size_of(id)), "{}", self.what("wrong bytes"));
                }
                let accepted = self.accepted_before + self.engine().stats().accepted_bytes;
                self.ledger.settle(accepted, IDS);
                if alone || present || self.ledger.must(id) {
                    self.ledger.found(id, present, at, group && !self.poisoned, &self.what("get"));
                }
                if present {
                    self.ledger.read(id);
                }
            }
            Answer::ReadName(id, data) => {
                let value = data.map(|d| version_of(id, &d));
                if alone {
                    self.ledger.observed(id, value, at, group && !self.poisoned, &self.what("get named"));
                } else {
                    let id_known = self.ledger.may_read(id, value);
                    assert!(id_known, "{}: {value:?}: {:?}", self.what("get named beside others"), self.ledger.names.get(&id));
                }
            }
            Answer::Nothing => {}
        }
    }

    async fn range(&mut self, id: u8, from_permille: u16, permille: u16) {
        let (id, key, data) = self.content_of(id);
        let from = data.len() * usize::from(from_permille) / 1000;
        let length = data.len() * usize::from(permille) / 1000;
        let Some(object) = self.engine().get(&key, None).await else {
            return self.ledger.found(id, false, 0, false, &self.what("range"));
        };
        assert_eq!(object.size_bytes(), data.len() as u64);
        let mut reader = object.reader(from as u64, Some(length as u64)).expect("within the object");
        let mut out = Vec::new();
        while let Some(piece) = reader.next().await {
            match piece {
                Ok(piece) => out.extend_from_slice(&piece.into_bytes()),
                Err(_) => return self.ledger.found(id, false, 0, false, &self.what("range cut short")),
            }
        }
        assert!(out == data[from..(from + length).min(data.len())], "{}", self.what("wrong bytes of a range"));
    }

    /// Looks everything up, without anything between. Gives what is there.
    fn find(&mut self, what: &str) -> (BTreeSet<u64>, BTreeSet<u64>) {
        let at = self.ledger.accepted_bytes;
        let ids: Vec<(u64, u64)> = self.ledger.blobs.iter().map(|(id, b)| (*id, b.bytes)).collect();
        let keys: Vec<_> = ids.iter().map(|(id, bytes)| (content(*id), Some(*bytes))).collect();
        let names: Vec<_> = (0..NAMES).map(|id| (named(id), None)).collect();
        let engine = self.engine().clone();
        if self.poisoned {
            return Default::default();
        }
        let look = |keys: &[(Key, Option<u64>)]| now_or_never(engine.lookup(keys)).expect("a lookup waits for nothing while writing works");
        let found: BTreeSet<u64> = ids.iter().zip(look(&keys)).filter_map(|((id, _), there)| there.then_some(*id)).collect();
        let named: BTreeSet<u64> = (0..NAMES).zip(look(&names)).filter_map(|(id, there)| there.then_some(id)).collect();
        let (group, what) = (self.group(), self.what(what));
        for (id, _) in ids {
            self.ledger.found(id, found.contains(&id), at, group, &what);
        }
        (found, named)
    }

    /// Reads back what a lookup says is there, and every name.
    async fn verify(&mut self, what: &str) {
        let (found, _) = self.find(what);
        let engine = self.engine().clone();
        let group = self.group() && !self.poisoned;
        let known = self.ledger.blobs.range(..=IDS).map(|(id, _)| *id);
        let mut fresh: Vec<u64> = found.range(IDS + 1..).copied().collect();
        while fresh.len() > 12 {
            let gone = self.rng.below(fresh.len() as u64) as usize;
            fresh.swap_remove(gone);
        }
        for id in known.chain(fresh).collect::<Vec<_>>() {
            let at = self.ledger.accepted_bytes;
            let length = self.ledger.blobs.get(&id).map_or(0, |b| b.bytes);
            let data = get(&engine, &content(id), Some(length)).await;
            if let Some(data) = &data {
                assert!(*data == bytes(id, length as usize), "{}: {id}", self.what("wrong bytes"));
                self.ledger.read(id);
            }
            let must = found.contains(&id) && self.ledger.must(id);
            assert!(data.is_some() || !must, "{}: content {id} was looked up and cannot be read", self.what(what));
            self.ledger.found(id, data.is_some(), at, group, &self.what(what));
        }
        for id in 0..NAMES {
            let at = self.ledger.accepted_bytes;
            let value = get(&engine, &named(id), None).await.map(|d| version_of(id, &d));
            self.ledger.observed(id, value, at, group, &self.what(what));
        }
    }

    // ---- many at once

    async fn mix(&mut self, ops: &[Op], cancel: u16, cut: Option<(u16, Stop)>) {
        let at = self.ledger.accepted_bytes;
        let mut names = BTreeSet::new();
        let mut tasks = Vec::new();
        for (index, op) in ops.iter().enumerate() {
            // Of two writes of one name at once nobody knows which was last.
            if let Op::PutNamed { id, .. } | Op::Delete { id } = op
                && !names.insert(u64::from(*id) % NAMES)
            {
                continue;
            }
            if matches!(op, Op::Range { .. } | Op::Find) {
                continue;
            }
            tasks.push((cancel >> (index % 16) & 1 == 1, self.start(op)));
        }
        if let Some((turns, stop)) = cut {
            yields(turns).await;
            // What was answered by now was answered before the end.
            let seed = self.rng.next();
            let device = self.cut(stop, seed);
            for (_, task) in &tasks {
                if !task.is_finished() {
                    task.abort();
                }
            }
            let mut answers = Vec::new();
            for (_, task) in tasks {
                answers.extend(task.await.ok());
            }
            self.fold_all(answers, at);
            self.settle();
            self.end_run(stop, device);
            return self.restart(stop, seed, None, false).await;
        }
        if cancel != 0 {
            let turns = self.rng.below(40) as u16;
            yields(turns).await;
            tasks.iter().filter(|(cancelled, _)| *cancelled).for_each(|(_, task)| task.abort());
        }
        let mut answers = Vec::new();
        for (_, task) in tasks {
            match task.await {
                Ok(answer) => answers.push(answer),
                Err(e) => assert!(e.is_cancelled(), "{}", self.what("panic")),
            }
        }
        self.fold_all(answers, at);
    }
    /// Brings the answers of a mix into the model: first the reads, which may have come before or after each write.
    fn fold_all(&mut self, answers: Vec<Answer>, at: u64) {
        let (reads, writes): (Vec<_>, Vec<_>) = answers.into_iter().partition(|a| matches!(a, Answer::Read(..) | Answer::ReadName(..)));
        reads.into_iter().chain(writes).for_each(|answer| self.fold(answer, at, false));
    }
}

/// The value of a future that waits for nothing.
fn now_or_never<T>(future: impl Future<Output = T>) -> Option<T> {
    match std::pin::pin!(future).poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}
