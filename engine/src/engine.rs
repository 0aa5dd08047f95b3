//! The facade: a store that is open.

use crate::{
    cache::RecordCache,
    checkpoint,
    clock::AgeClock,
    core::{Core, Poison, QUEUED_BYTES_MAX},
    device::{AlignedBuf, Device, DeviceCounters, PAGE_BYTES},
    error::{OpenError, PutError},
    format::{
        crc::Crcs,
        layout::Layout,
        record::{PACKED_BYTES_MAX, RecordKey, RecordKind},
        superblock::{ImageInForce, Superblock},
        types::{Epoch, KeyHash, Lsn, SlotKind},
    },
    key::{Key, KeySpace},
    map::held::HeldSlots,
    read::{self, Checksummed, Object},
    recover::{Recovered, State, recover},
    rotation,
    sequencer::{Change, PackedRecord, Sequencer},
    space::{Ages, Space},
    stats::{Counters, Stats, count},
    superblocks::{self, Superblocks},
    upload::{self, BeginContent, Lead, Reserved, TOUCHED_MAX, Upload, Uploads},
    value::{Codec, Value},
};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    task::JoinSet,
};

/// Requests that may wait for the sequencer.
const QUEUED_REQUESTS_MAX: usize = 4096;
/// Largest value of a named key.
const NAMED_BYTES_MAX: u64 = 8 << 20;
/// Objects of a batch that go to the sequencer as one request.
const BATCH_OBJECTS_MAX: usize = 512;
/// Bytes of a batch that go to the sequencer as one request.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// What a new store is to be like.
#[derive(Clone, Debug, Default)]
pub struct FormatOptions {
    /// Size of a block in bytes: a power of two from 1 MiB to 1 GiB. `None`: a 128th of the device, within these bounds.
    pub block_bytes: Option<u64>,
    /// How many objects the table must hold before blocks are reclaimed for its sake. `None`: one per 8 KiB of the device.
    pub objects: Option<u64>,
}

/// When a put is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When the kernel has completed its writes; a flush follows within [`OpenOptions::flush_ms_max`].
    Interval,
    /// When a flush that covers it has succeeded.
    Group,
}

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// When a put is acknowledged.
    pub durability: Durability,
    /// No acknowledged byte is older than this when the flush that covers it starts.
    pub flush_ms_max: u64,
    /// Budget of the cache of verified records in bytes; 0 is no cache.
    pub cache_bytes: u64,
    /// Whether objects may be stored encoded. A store that ever was opened so is refused by programs that know no codecs; what is
    /// encoded is read whatever this says.
    pub encode: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { durability: Durability::Interval, flush_ms_max: 1000, cache_bytes: 256 << 20, encode: false }
    }
}

/// What opening found and did.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct OpenReport {
    /// The last run ended with a clean shutdown.
    pub clean: bool,
    /// Slots in use: objects, and parts of large ones.
    pub objects: u64,
    /// Bytes read from the device.
    pub read_bytes: u64,
    /// Log entries that nothing durable stood behind.
    pub voided_entries: u64,
    /// Damaged log pages and entries that were skipped.
    pub damaged_entries: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// What a put did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// The object is stored.
    Stored,
    /// The content was there already, and is now wanted again.
    AlreadyPresent,
}

/// How an upload begins.
pub enum Begin {
    /// The content is there; nothing need be sent.
    AlreadyPresent,
    /// Send the bytes.
    Upload(Box<Upload>),
}

/// A store that is open. Clones share it. When the last clone is dropped without [`Engine::close`], the store is left as a crash
/// would leave it.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    core: Arc<Core>,
    tasks: Arc<Mutex<JoinSet<()>>>,
}

impl Engine {
    /// Writes a new, empty store over the whole device. Does not look at what the device held.
    pub async fn format(device: Arc<dyn Device>, options: &FormatOptions) -> Result<(), OpenError> {
        let mut seed = [0u8; 32];
        getrandom::fill(&mut seed).map_err(|e| OpenError::Unusable(format!("no random numbers for the store's identity: {e}")))?;
        Self::format_seeded(device, options, seed).await
    }

    /// As [`Engine::format`], with the store's identity (16 bytes) and hash seed (16 bytes) given: for tests that repeat.
    pub async fn format_seeded(device: Arc<dyn Device>, options: &FormatOptions, seed: [u8; 32]) -> Result<(), OpenError> {
        let geometry = device.geometry();
        let layout = Layout::plan(geometry.len_bytes, options).map_err(OpenError::Geometry)?;
        let [uuid, hash_seed] = [&seed[..16], &seed[16..]].map(|half| {
            let mut out = [0u8; 16];
            out.copy_from_slice(half);
            out
        });
        let superblock = Superblock {
            incompatible: 0,
            uuid,
            device_index: 0,
            device_count: 1,
            epoch: Epoch(0),
            sequence: 1,
            device_bytes: layout.device_bytes,
            sector_bytes: geometry.logical_sector_bytes,
            block_bytes: layout.block_bytes,
            block_count: layout.block_count,
            vbn_stride: layout.vbn_stride,
            hash_seed,
            log_offset: layout.log_offset,
            log_bytes: layout.log_pages * PAGE_BYTES as u64,
            image_offsets: layout.image_offsets,
            table_units: layout.table_units,
            blocks_offset: layout.blocks_offset,
            image: ImageInForce::default(),
            previous_image: ImageInForce::default(),
            mark: Lsn(0),
            clean: true,
        };
        let io = |action: &str| {
            let action = action.to_string();
            move |source| OpenError::Io { action, source }
        };
        // The uuid is new, so nothing that the device held can pass a checksum; superblocks of an older store must not agree, though.
        for offset in Layout::superblock_offsets(layout.device_bytes) {
            device.write(offset, AlignedBuf::zeroed(PAGE_BYTES)).await.1.map_err(io("clear superblocks"))?;
        }
        device.flush().await.map_err(io("flush cleared superblocks"))?;
        superblocks::write_all(&*device, &superblock, superblocks::IN_ORDER).await.map_err(io("write superblocks"))
    }

    /// Opens the store on a device, after whatever the last run left behind: what that one has still under way on the same device is
    /// waited for. Must be called within a tokio runtime, in which the store's tasks run.
    pub async fn open(device: Arc<dyn Device>, options: OpenOptions) -> Result<(Self, OpenReport), OpenError> {
        let Recovered { state, end, durable, log_tail, report } = recover(&device, options.encode).await?;
        let State { superblock, layout, mask, hasher, census, table, rows, tick, unflushed_bytes, damaged_units, damaged_heads, .. } =
            state;
        let (puts, puts_receiver) = mpsc::channel(QUEUED_REQUESTS_MAX);
        let (control, control_receiver) = mpsc::channel(QUEUED_REQUESTS_MAX);
        let (touched, touched_receiver) = mpsc::channel(TOUCHED_MAX);
        let space = Space::new(layout.clone());
        space.load(&rows);
        let clock = AgeClock::new(layout.capacity_bytes());
        clock.set_tick(tick);
        let core = Arc::new(Core {
            cache: RecordCache::new(options.cache_bytes),
            device: device.clone(),
            options,
            uuid: superblock.uuid,
            epoch: superblock.epoch,
            superblocks: Superblocks::new(device, superblock),
            images: tokio::sync::Mutex::new(false),
            layout,
            mask,
            hasher,
            census,
            table,
            held: HeldSlots::default(),
            slot_waiters: AtomicU64::new(0),
            space,
            clock,
            counters: Counters::default(),
            uploads: Uploads::new(touched),
            poison: Poison::default(),
            puts,
            control,
            queued: Arc::new(Semaphore::new(QUEUED_BYTES_MAX)),
            sequenced: AtomicU64::new(0),
            durable: watch::Sender::new(durable),
            published: AtomicU64::new(end.next.prev().0),
            changed: AtomicU64::new(end.next.prev().0),
            log_tail: AtomicU64::new(log_tail),
            log_head: AtomicU64::new(end.page),
            unflushed_bytes: AtomicU64::new(unflushed_bytes),
            log_changed: Notify::new(),
        });
        count(&core.counters.voided_entries, report.voided_entries);
        count(&core.counters.damaged_log, report.damaged_entries);
        count(&core.counters.damaged_image_units, damaged_units);
        count(&core.counters.damaged_block_heads, damaged_heads);
        let sequencer = Sequencer::new(core.clone(), puts_receiver, control_receiver, end).with_unflushed(unflushed_bytes);
        let mut tasks = JoinSet::new();
        tasks.spawn(sequencer.run());
        tasks.spawn(checkpoint::run(core.clone()));
        tasks.spawn(rotation::open_blocks(core.clone()));
        tasks.spawn(rotation::reclaim_blocks(core.clone()));
        tasks.spawn(rotation::touch_parts(core.clone(), touched_receiver));
        Ok((Self { shared: Arc::new(Shared { core, tasks: Arc::new(Mutex::new(tasks)) }) }, report))
    }

    fn core(&self) -> &Arc<Core> {
        &self.shared.core
    }

    /// Whether each key (with its expected size, where that is known) is present; touches those that are. Reads nothing from the
    /// device, unless a flush failed and what it should have covered must be verified.
    pub async fn lookup(&self, keys: &[(Key, Option<u64>)]) -> Vec<bool> {
        let core = self.core();
        let hashes: Vec<KeyHash> = keys.iter().map(|(key, _)| core.hash(&RecordKey::Object(*key))).collect();
        // All cache lines are asked for before the first is looked at.
        std::hint::black_box(hashes.iter().fold(0, |sum, hash| sum ^ core.table.prefetch(hash)));
        let mut out = Vec::with_capacity(keys.len());
        for ((key, size_bytes), hash) in keys.iter().zip(&hashes) {
            let found = core.present(hash, read::slot_kind(key), *size_bytes);
            let present = match found {
                Some(_) if core.poison.reason().is_some() => read::find_object(core, key, *size_bytes).await.is_some(),
                found => found.is_some(),
            };
            out.push(present);
        }
        let hits = out.iter().filter(|present| **present).count() as u64;
        count(&core.counters.hits, hits);
        count(&core.counters.misses, out.len() as u64 - hits);
        out
    }

    /// Finds an object and reads its first record. `None` is a miss, also where that record turned out to be damaged (and was dropped).
    pub async fn get(&self, key: &Key, size_bytes: Option<u64>) -> Option<Object> {
        read::find_object(self.core(), key, size_bytes).await
    }

    /// The bytes of an object that is in the cache as a whole and is not encoded, without waiting for anything. `None` is no miss: ask
    /// [`Engine::get`] then.
    pub fn get_cached(&self, key: &Key, size_bytes: Option<u64>) -> Option<Checksummed> {
        read::cached_whole(self.core(), key, size_bytes)
    }

    /// Puts a whole object from memory: content of any size, or a named value of at most [`Engine::named_bytes_max`].
    pub async fn put(&self, key: Key, data: Bytes) -> Result<PutOutcome, PutError> {
        let core = self.core();
        let size_bytes = data.len() as u64;
        if key.space == KeySpace::Named {
            return self.put_named(vec![(key, data)]).await.pop().unwrap_or_else(|| Err(PutError::Unavailable("store is closed".into())));
        }
        if size_bytes <= core.whole_bytes_max() && size_bytes <= PACKED_BYTES_MAX as u64 {
            return self.put_batch(vec![(key, data)]).await.pop().unwrap_or_else(|| Err(PutError::Unavailable("store is closed".into())));
        }
        match self.begin_upload(key, size_bytes).await? {
            Begin::AlreadyPresent => Ok(PutOutcome::AlreadyPresent),
            Begin::Upload(mut upload) => {
                upload.write(&data).await?;
                upload.finish().await
            }
        }
    }

    /// Puts many whole objects. They share batches with each other; results are in their order.
    pub async fn put_batch(&self, items: Vec<(Key, Bytes)>) -> Vec<Result<PutOutcome, PutError>> {
        self.put_values(items.into_iter().map(|(key, data)| (key, Value::plain(data))).collect()).await
    }

    /// The same for objects of which some are encoded: content of at most [`Engine::record_bytes_max`].
    pub async fn put_values(&self, items: Vec<(Key, Value)>) -> Vec<Result<PutOutcome, PutError>> {
        let core = self.core();
        let mut results: Vec<Option<Result<PutOutcome, PutError>>> = vec![None; items.len()];
        let mut pending: Vec<(usize, Key, Value, Option<Lead>)> = Vec::with_capacity(items.len().min(BATCH_OBJECTS_MAX));
        let mut pending_bytes = 0;
        let mut later = Vec::new();
        for (index, (key, value)) in items.into_iter().enumerate() {
            if let Err(e) = self.check_value(&key, &value) {
                results[index] = Some(Err(e));
                continue;
            }
            if key.space == KeySpace::Named {
                pending_bytes += value.payload.len();
                pending.push((index, key, value, None));
            } else if value.payload.len() > PACKED_BYTES_MAX {
                // Larger ones are written on their own.
                later.push((index, key, value));
                continue;
            } else {
                // Whoever leads keys of its own must not wait for other leaders: two batches could wait for each other. Nor for itself:
                // the second of equals finds the first afterwards.
                let begun = match upload::try_begin_content(core, &key, value.size_bytes) {
                    Some(begun) => begun,
                    None => {
                        later.push((index, key, value));
                        continue;
                    }
                };
                match begun {
                    BeginContent::Present => {
                        count(&core.counters.puts_present, 1);
                        results[index] = Some(Ok(PutOutcome::AlreadyPresent));
                    }
                    BeginContent::Lead(lead) => {
                        pending_bytes += value.payload.len();
                        pending.push((index, key, value, Some(lead)));
                    }
                }
            }
            if pending.len() >= BATCH_OBJECTS_MAX || pending_bytes >= BATCH_BYTES_MAX {
                self.put_pending(std::mem::take(&mut pending), &mut results).await;
                pending_bytes = 0;
            }
        }
        self.put_pending(pending, &mut results).await;
        for (index, key, value) in later {
            results[index] = Some(self.put_alone(key, value).await);
        }
        results.into_iter().map(|r| r.unwrap_or_else(|| Err(PutError::Unavailable("store is closed".into())))).collect()
    }

    async fn put_pending(&self, pending: Vec<(usize, Key, Value, Option<Lead>)>, results: &mut [Option<Result<PutOutcome, PutError>>]) {
        if pending.is_empty() {
            return;
        }
        let indexes: Vec<usize> = pending.iter().map(|p| p.0).collect();
        let items = pending.into_iter().map(|(_, key, value, lead)| (key, value, lead)).collect();
        match upload::put_many(self.core(), items).await {
            Ok(stored) => indexes.iter().zip(stored).for_each(|(i, r)| results[*i] = Some(r.map(|()| PutOutcome::Stored))),
            Err(e) => indexes.iter().for_each(|i| results[*i] = Some(Err(e.clone()))),
        }
    }

    async fn put_alone(&self, key: Key, value: Value) -> Result<PutOutcome, PutError> {
        if value.codec != Codec::Plain {
            let core = self.core();
            core.poison.check()?;
            return match upload::begin_content(core, &key, value.size_bytes).await {
                BeginContent::Present => {
                    count(&core.counters.puts_present, 1);
                    Ok(PutOutcome::AlreadyPresent)
                }
                BeginContent::Lead(lead) => upload::put_encoded(core, key, value, lead).await,
            };
        }
        match self.begin_upload(key, value.size_bytes).await? {
            Begin::AlreadyPresent => Ok(PutOutcome::AlreadyPresent),
            Begin::Upload(mut upload) => {
                upload.write(&value.payload).await?;
                upload.finish().await
            }
        }
    }

    async fn put_named(&self, items: Vec<(Key, Bytes)>) -> Vec<Result<PutOutcome, PutError>> {
        self.put_batch(items).await
    }

    fn check_value(&self, key: &Key, value: &Value) -> Result<(), PutError> {
        let limit_bytes = match (key.space, value.codec) {
            (KeySpace::Named, Codec::Plain) => self.named_bytes_max(),
            (KeySpace::Named, _) => return Err(PutError::Unavailable("values of named keys are never encoded".into())),
            (KeySpace::Content, Codec::Plain) => return Ok(()),
            (KeySpace::Content, _) => {
                self.core().check_encode()?;
                self.record_bytes_max()
            }
        };
        let size_bytes = value.size_bytes.max(value.payload.len() as u64);
        if size_bytes > limit_bytes { Err(PutError::TooLarge { size_bytes, limit_bytes }) } else { Ok(()) }
    }

    /// Starts an upload of content of a known size. Waits for another upload of the same content, if there is one.
    pub async fn begin_upload(&self, key: Key, size_bytes: u64) -> Result<Begin, PutError> {
        let core = self.core();
        core.poison.check()?;
        match upload::begin_content(core, &key, size_bytes).await {
            BeginContent::Present => {
                count(&core.counters.puts_present, 1);
                Ok(Begin::AlreadyPresent)
            }
            BeginContent::Lead(lead) => Ok(Begin::Upload(Box::new(Upload::begin(core, key, size_bytes, lead).await?))),
        }
    }

    /// Removes a named key; true if it was there.
    pub async fn delete(&self, key: &Key) -> Result<bool, PutError> {
        let core = self.core();
        let record_key = RecordKey::Object(*key);
        let hash = core.hash(&record_key);
        loop {
            let Some(found) = core.table.find(&hash, SlotKind::Named, None).first() else { return Ok(false) };
            let record = PackedRecord {
                key: record_key,
                hash,
                kind: RecordKind::Tombstone,
                codec: Codec::Plain,
                logical_bytes: 0,
                payload: Bytes::new(),
                crcs: Crcs::new(),
                accept_bytes: 0,
            };
            let outcomes = core.submit(vec![Change::Tombstone { record, from: found.place }], 1, Reserved::none(core)).await?;
            if outcomes.iter().all(|o| o.applied) {
                return Ok(true);
            }
        }
    }

    /// Largest content that this store accepts, in bytes.
    pub fn object_bytes_max(&self) -> u64 {
        self.core().object_bytes_max()
    }
    /// Largest content that is one record; what is larger is stored in parts.
    pub fn record_bytes_max(&self) -> u64 {
        self.core().whole_bytes_max()
    }
    /// Largest value of a named key, in bytes.
    pub fn named_bytes_max(&self) -> u64 {
        NAMED_BYTES_MAX.min(self.core().layout.block_bytes / 4)
    }
    /// Bytes of the device that the store was formatted with.
    pub fn device_bytes(&self) -> u64 {
        self.core().layout.device_bytes
    }
    /// Bytes that the index takes in memory.
    pub fn index_bytes(&self) -> u64 {
        self.core().table.allocated_bytes()
    }
    /// Why writing is off, if it is.
    pub fn poisoned(&self) -> Option<String> {
        self.core().poison.reason()
    }
    /// Makes everything acknowledged so far durable.
    pub async fn flush(&self) -> Result<(), PutError> {
        checkpoint::flush(self.core()).await.map(drop)
    }
    /// Writes an image now, so that the next opening replays little. Once begun it goes on to its end, whoever waits for it.
    pub async fn checkpoint(&self) -> Result<(), PutError> {
        let core = self.core().clone();
        upload::joined(tokio::spawn(async move { checkpoint::write_image(&core).await.map(drop) })).await
    }

    /// Writes an image, marks the store clean and ends its tasks. Whatever is still under way ends with `Unavailable`. Once begun it
    /// goes on to its end, whoever waits for it; a store that was closed may be closed again.
    pub async fn close(&self) -> Result<(), PutError> {
        let (core, tasks) = (self.core().clone(), Arc::downgrade(&self.shared.tasks));
        upload::joined(tokio::spawn(async move {
            let result = checkpoint::close(&core).await;
            if let Some(tasks) = tasks.upgrade() {
                tasks.lock().abort_all();
            }
            core.poison.close();
            result
        }))
        .await
    }

    /// What the device has done since it was opened.
    pub fn device_counters(&self) -> DeviceCounters {
        self.core().device.counters()
    }

    /// A reading of the store's counters and gauges.
    pub fn stats(&self) -> Stats {
        let core = self.core();
        let Ages { oldest, reclaimed } = core.space.ages();
        let millis = |age: Option<Duration>| age.map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        let waiting = core.puts.max_capacity() - core.puts.capacity() + core.control.max_capacity() - core.control.capacity();
        Stats {
            capacity_bytes: core.layout.capacity_bytes(),
            live_slots: core.table.live(),
            table_slots: core.table.slots(),
            table_bytes: core.table.allocated_bytes(),
            relocations: core.table.relocations(),
            live_bytes: core.census.total().bytes.iter().sum(),
            spare_blocks: core.space.spare_blocks(),
            oldest_block_ms: millis(oldest),
            reclaimed_block_ms: millis(reclaimed),
            log_used_pages: (core.log_head.load(Ordering::Relaxed) + 1).saturating_sub(core.log_tail.load(Ordering::Relaxed)),
            log_pages: core.layout.log_pages,
            unflushed_bytes: core.unflushed_bytes.load(Ordering::Relaxed),
            upload_held_bytes: core.uploads.declared_bytes(),
            cache_bytes: core.cache.bytes(),
            reserved_slots: core.table.reserved(),
            held_slots: core.table.held(),
            flights: core.uploads.flights.running() as u64,
            queued_requests: waiting as u64 + core.sequenced.load(Ordering::Relaxed),
            queued_bytes: (QUEUED_BYTES_MAX - core.queued.available_permits()) as u64,
            gathered_bytes: core.uploads.gathered_bytes(),
            pending_places: core.space.pending_places(),
            uploads_running: core.uploads.running(),
            upload_unaccepted_bytes: core.uploads.unaccepted_bytes(),
            upload_left_bytes: core.uploads.left_bytes(),
            ..core.counters.read()
        }
    }
}
