//! Uploads: bytes that are on the device before anybody can see them.
//!
//! Always true here: nothing of an upload is visible before it is finished; an upload that ends otherwise leaves no slot behind; a
//! place that was given out is settled or its write poisons the store, whatever becomes of the future that asked (the work runs in
//! tasks of its own). Large uploads together hold at most half of the capacity, unless there is only one.

mod flight;
mod paged;
mod parts;

use crate::{
    cache::Piece,
    core::Core,
    engine::PutOutcome,
    error::PutError,
    format::{
        crc::{ChunkCrcs, Crcs},
        record::{PACKED_BYTES_MAX, RecordHead, RecordKey, RecordKind},
        types::{KeyHash, SlotKind},
    },
    key::Key,
    map::table::Found,
    read::{Object, PIECE_BYTES, slot_kind},
    sequencer::{Change, Control, Outcome, PackedRecord, Request},
    space::Taken,
    stats::count,
    value::{Codec, Value},
};
use flight::Turn;
pub(crate) use flight::{Flights, Lead};
use paged::{Accept, GATHERED_BYTES_MAX, Paged, PagedTail, write_paged};
use parking_lot::Mutex;
use parts::Parts;
use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore, mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};

/// Objects up to this size are one record (less where blocks are small).
pub(crate) const WHOLE_BYTES_MAX: u64 = PIECE_BYTES as u64;
/// Granule of part sizes.
const PART_GRANULE_BYTES: u64 = 256 << 10;
/// Largest part: a part is gathered in memory before it is written.
const PART_BYTES_MAX: u64 = 8 << 20;
/// Longest wait for a block.
const BLOCK_WAIT_MAX: Duration = Duration::from_secs(60);
/// Longest wait for other uploads to end, or for the memory they gather their parts in. Short, since what a waiting upload was sent
/// already may fill the window of the connection that a running one needs.
const TURN_WAIT_MAX: Duration = Duration::from_secs(10);
/// Large objects whose parts are still to be touched.
pub(crate) const TOUCHED_MAX: usize = 4096;

/// What uploads share.
pub(crate) struct Uploads {
    pub(crate) flights: Flights,
    /// Manifests whose parts should be touched.
    pub(crate) touched: mpsc::Sender<Found>,
    running: Mutex<Running>,
    ended: Notify,
    next_id: AtomicU64,
    /// Bytes of parts that arrived and neither count as accepted nor were given up.
    unaccepted_bytes: AtomicU64,
    /// Bytes that aborted uploads left in the block that is still being filled: nobody can reclaim them yet.
    left_bytes: AtomicU64,
    paged: tokio::sync::Mutex<Option<PagedTail>>,
    gathered: Arc<Semaphore>,
}

#[derive(Default)]
struct Running {
    ids: HashSet<[u8; 16]>,
    declared_bytes: u64,
}

impl Uploads {
    pub(crate) fn new(touched: mpsc::Sender<Found>) -> Self {
        Self {
            flights: Flights::default(),
            touched,
            running: Mutex::default(),
            ended: Notify::new(),
            next_id: AtomicU64::new(0),
            unaccepted_bytes: AtomicU64::new(0),
            left_bytes: AtomicU64::new(0),
            paged: tokio::sync::Mutex::default(),
            gathered: Arc::new(Semaphore::new(GATHERED_BYTES_MAX)),
        }
    }
    pub(crate) fn is_running(&self, id: &[u8; 16]) -> bool {
        self.running.lock().ids.contains(id)
    }
    /// Bytes on the device that no published object accounts for, and that reclaim cannot have.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.unaccepted_bytes() + self.left_bytes()
    }
    pub(crate) fn unaccepted_bytes(&self) -> u64 {
        self.unaccepted_bytes.load(Ordering::Relaxed)
    }
    pub(crate) fn left_bytes(&self) -> u64 {
        self.left_bytes.load(Ordering::Relaxed)
    }
    pub(crate) fn declared_bytes(&self) -> u64 {
        self.running.lock().declared_bytes
    }
    pub(crate) fn running(&self) -> u64 {
        self.running.lock().ids.len() as u64
    }
    pub(crate) fn gathered_bytes(&self) -> u64 {
        (GATHERED_BYTES_MAX - self.gathered.available_permits()) as u64
    }
}

/// Slots kept for records that are on their way to the sequencer; given back when this is dropped.
pub(crate) struct Reserved<'a> {
    core: &'a Core,
    hashes: Vec<KeyHash>,
}

impl<'a> Reserved<'a> {
    pub(crate) fn none(core: &'a Core) -> Self {
        Self { core, hashes: Vec::new() }
    }
    /// Keeps one more, waiting for room in the table.
    async fn add(&mut self, hash: &KeyHash) -> Result<(), PutError> {
        self.core.reserve_slot(hash).await?;
        self.hashes.push(*hash);
        Ok(())
    }
    fn handed_over(mut self) {
        self.hashes.clear();
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.hashes.iter().for_each(|hash| self.core.table.release(hash));
    }
}

impl Core {
    /// Largest object that is one record.
    pub(crate) fn whole_bytes_max(&self) -> u64 {
        WHOLE_BYTES_MAX.min(self.layout.block_bytes / 4)
    }
    /// Largest object.
    pub(crate) fn object_bytes_max(&self) -> u64 {
        self.layout.capacity_bytes() / 4 * 3
    }
    /// Whether this opening may encode.
    pub(crate) fn check_encode(&self) -> Result<(), PutError> {
        match self.options.encode {
            true => Ok(()),
            false => Err(PutError::Unavailable("the store was not opened for encoded objects".into())),
        }
    }
    fn part_bytes(&self, size_bytes: u64) -> u64 {
        let wanted = (size_bytes / 4096).max(WHOLE_BYTES_MAX).next_multiple_of(PART_GRANULE_BYTES);
        wanted.min(PART_BYTES_MAX).min((self.layout.block_bytes / 4).max(PART_GRANULE_BYTES))
    }

    /// Hands changes to the sequencer as puts, which wait when space is short. The slots reserved for them are the sequencer's once
    /// they are handed over; nothing can be lost between the two, wherever the caller is dropped.
    pub(crate) async fn submit(&self, changes: Vec<Change>, queued_bytes: usize, slots: Reserved<'_>) -> Result<Vec<Outcome>, PutError> {
        let closed = || PutError::Unavailable("store is closed".into());
        let queued = u32::try_from(queued_bytes.clamp(1, crate::core::QUEUED_BYTES_MAX)).unwrap_or(u32::MAX);
        let permit = self.queued.clone().acquire_many_owned(queued).await.map_err(|_| closed())?;
        let room = self.puts.reserve().await.map_err(|_| closed())?;
        let (reply, receive) = oneshot::channel();
        slots.handed_over();
        room.send(Request { changes, reply, permit: Some(permit) });
        receive.await.map_err(|_| closed())?
    }
    /// Hands changes to the sequencer that are never held back.
    pub(crate) async fn submit_control(&self, changes: Vec<Change>) -> Result<Vec<Outcome>, PutError> {
        let closed = || PutError::Unavailable("store is closed".into());
        let (reply, receive) = oneshot::channel();
        self.control.send(Control::Changes(Request { changes, reply, permit: None })).await.map_err(|_| closed())?;
        receive.await.map_err(|_| closed())?
    }

    /// A block, waiting for one.
    pub(crate) async fn take_block(&self, carry: bool) -> Result<Taken, PutError> {
        let start = Instant::now();
        loop {
            let room = self.space.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if let Some(block) = self.space.take(carry) {
                count(&self.counters.slowed_us, start.elapsed().as_micros() as u64);
                return Ok(block);
            }
            self.poison.check()?;
            tokio::select! {
                () = room => {}
                () = self.poison.happened() => {}
                () = tokio::time::sleep_until(start + BLOCK_WAIT_MAX) => {
                    return Err(PutError::NoRoom(format!("no block came free in {} s", BLOCK_WAIT_MAX.as_secs())));
                }
            }
        }
    }
}

/// Puts a packed record and keeps it in the cache.
async fn put_packed(core: &Arc<Core>, key: RecordKey, kind: RecordKind, value: Value, accept_bytes: u64) -> Result<Outcome, PutError> {
    let hash = core.hash(&key);
    let mut slots = Reserved::none(core);
    slots.add(&hash).await?;
    let length = value.payload.len();
    let (record, crcs) = packed(key, hash, kind, &value, accept_bytes);
    let outcomes = core.submit(vec![Change::Packed(record)], length, slots).await?;
    let outcome = applied(outcomes.first())?;
    remember(core, &outcome, key, kind, value, crcs);
    Ok(outcome)
}

/// A record for the sequencer, and the CRCs of its payload.
fn packed(key: RecordKey, hash: KeyHash, kind: RecordKind, value: &Value, accept_bytes: u64) -> (PackedRecord, Crcs) {
    let crcs = ChunkCrcs::of(&value.payload);
    let (codec, logical_bytes, payload) = (value.codec, value.size_bytes, value.payload.clone());
    (PackedRecord { key, hash, kind, codec, logical_bytes, payload, crcs: crcs.clone(), accept_bytes }, crcs)
}

/// Puts encoded content that is one record, in the turn that the caller has.
pub(crate) async fn put_encoded(core: &Arc<Core>, key: Key, value: Value, lead: Lead) -> Result<PutOutcome, PutError> {
    let object = RecordKey::Object(key);
    if value.payload.len() <= PACKED_BYTES_MAX {
        put_packed(core, object, RecordKind::Content, value, 0).await?;
    } else {
        let mut paged = Paged::new(core, RecordKind::Content, value.payload.len()).await?.encoded(value.codec, value.size_bytes);
        paged.push(&value.payload);
        joined(tokio::spawn(write_paged(core.clone(), paged, object, RecordKind::Content, Accept::Now))).await?;
    }
    count(&core.counters.puts, 1);
    lead.published();
    Ok(PutOutcome::Stored)
}

fn applied(outcome: Option<&Outcome>) -> Result<Outcome, PutError> {
    match outcome {
        Some(o) if o.applied => Ok(*o),
        _ => Err(PutError::NoRoom("no slot of the table could be made for the record".into())),
    }
}

fn remember(core: &Core, outcome: &Outcome, key: RecordKey, kind: RecordKind, value: Value, crcs: Crcs) {
    let Value { payload: data, size_bytes: logical_bytes, codec, alone } = value;
    let head = RecordHead { kind, key, codec, logical_bytes, stored_bytes: data.len() as u32, epoch: core.epoch, lsn: outcome.lsn, crcs };
    let piece = Piece { head: Arc::new(head), data };
    match alone {
        true => core.cache.put_own(outcome.place, 0, piece),
        false => core.cache.put_copy(outcome.place, 0, piece),
    }
}

/// Whole objects that go to the sequencer together. `items` are content keys with the turn that the caller has, and named keys; each
/// with its payload.
pub(crate) async fn put_many(core: &Arc<Core>, items: Vec<(Key, Value, Option<Lead>)>) -> Result<Vec<Result<(), PutError>>, PutError> {
    let mut changes = Vec::with_capacity(items.len());
    let mut known = Vec::with_capacity(items.len());
    let mut slots = Reserved::none(core);
    slots.hashes.reserve_exact(items.len());
    let mut bytes = 0;
    for (key, value, lead) in items {
        let (record_key, kind) = (RecordKey::Object(key), object_kind(&key));
        let hash = lead.as_ref().map_or_else(|| core.hash(&record_key), |lead| *lead.hash());
        bytes += value.payload.len();
        slots.add(&hash).await?;
        let (record, crcs) = packed(record_key, hash, kind, &value, 0);
        changes.push(Change::Packed(record));
        known.push((record_key, kind, value, crcs, lead));
    }
    let outcomes = core.submit(changes, bytes, slots).await?;
    let mut results = Vec::with_capacity(known.len());
    for (outcome, (key, kind, value, crcs, lead)) in outcomes.iter().zip(known) {
        results.push(applied(Some(outcome)).map(|outcome| {
            remember(core, &outcome, key, kind, value, crcs);
            count(&core.counters.puts, 1);
        }));
        lead.into_iter().for_each(Lead::published);
    }
    Ok(results)
}

fn object_kind(key: &Key) -> RecordKind {
    match slot_kind(key) {
        SlotKind::Named => RecordKind::Named,
        _ => RecordKind::Content,
    }
}

/// How a put of a content key begins.
pub(crate) enum BeginContent {
    Present,
    Lead(Lead),
}

/// Waits for whoever puts the same content already; the first who finds it neither present nor on its way leads.
pub(crate) async fn begin_content(core: &Arc<Core>, key: &Key, size_bytes: u64) -> BeginContent {
    let hash = core.hash(&RecordKey::Object(*key));
    loop {
        if core.present(&hash, SlotKind::Content, Some(size_bytes)).is_some() {
            return BeginContent::Present;
        }
        match core.uploads.flights.turn(&hash) {
            Turn::Lead(lead) => {
                // Between the lookup and this turn the last leader may have finished.
                if core.present(&hash, SlotKind::Content, Some(size_bytes)).is_some() {
                    return BeginContent::Present;
                }
                return BeginContent::Lead(lead);
            }
            Turn::Follow(followed) => {
                count(&core.counters.puts_followed, 1);
                if let Some(lead) = core.uploads.flights.follow(followed).await {
                    count(&core.counters.puts_taken_over, 1);
                    return BeginContent::Lead(lead);
                }
            }
        }
    }
}

/// As [`begin_content`], without waiting: `None` if somebody else puts the content at this moment.
pub(crate) fn try_begin_content(core: &Core, key: &Key, size_bytes: u64) -> Option<BeginContent> {
    let hash = core.hash(&RecordKey::Object(*key));
    let present = || core.present(&hash, SlotKind::Content, Some(size_bytes)).is_some();
    if present() {
        return Some(BeginContent::Present);
    }
    match core.uploads.flights.turn(&hash) {
        Turn::Lead(_) if present() => Some(BeginContent::Present),
        Turn::Lead(lead) => Some(BeginContent::Lead(lead)),
        Turn::Follow(_) => None,
    }
}

/// An upload in progress. Dropping it aborts it; nothing of it is visible before [`Upload::finish`] has returned.
pub struct Upload {
    core: Arc<Core>,
    key: Key,
    size_bytes: u64,
    written_bytes: u64,
    lead: Lead,
    body: Body,
}

enum Body {
    Small(Vec<u8>),
    Whole(Box<Paged>),
    Parts(Box<Parts>),
}

impl Upload {
    pub(crate) async fn begin(core: &Arc<Core>, key: Key, size_bytes: u64, lead: Lead) -> Result<Self, PutError> {
        let body = if size_bytes <= PACKED_BYTES_MAX as u64 {
            Body::Small(Vec::with_capacity(usize::try_from(size_bytes).unwrap_or(0)))
        } else if size_bytes <= core.whole_bytes_max() {
            Body::Whole(Box::new(Paged::new(core, RecordKind::Content, usize::try_from(size_bytes).unwrap_or(0)).await?))
        } else {
            Body::Parts(Box::new(Parts::begin(core, key, size_bytes).await?))
        };
        Ok(Self { core: core.clone(), key, size_bytes, written_bytes: 0, lead, body })
    }
    /// Bytes appended so far.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }
    /// Size that was declared, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    /// Appends bytes, waiting while the device is behind. Cancel-safe only in that the upload must be dropped after a cancelled call.
    pub async fn write(&mut self, data: &[u8]) -> Result<(), PutError> {
        self.core.poison.check()?;
        let sent_bytes = self.written_bytes.saturating_add(data.len() as u64);
        if sent_bytes > self.size_bytes {
            return Err(PutError::SizeMismatch { declared_bytes: self.size_bytes, sent_bytes });
        }
        self.lead.progress();
        match &mut self.body {
            Body::Small(bytes) => bytes.extend_from_slice(data),
            Body::Whole(paged) => paged.push(data),
            Body::Parts(parts) => parts.write(data).await?,
        }
        self.written_bytes = sent_bytes;
        Ok(())
    }
    /// Bytes that each part but the last has, of an object in parts; `None` for one that is one record.
    pub fn part_bytes(&self) -> Option<u64> {
        match &self.body {
            Body::Parts(parts) => Some(parts.part_bytes()),
            _ => None,
        }
    }
    /// Appends the next part of an object in parts, encoded: what stands for its [`part_bytes`](Self::part_bytes), or for what is left.
    /// All parts come so or none. Cancel-safe as [`write`](Self::write) is.
    pub async fn write_encoded(&mut self, codec: Codec, payload: &[u8]) -> Result<(), PutError> {
        self.core.poison.check()?;
        self.core.check_encode()?;
        self.lead.progress();
        let Body::Parts(parts) = &mut self.body else {
            return Err(PutError::Unavailable("an object of one record is put whole, encoded or not".into()));
        };
        self.written_bytes += parts.write_encoded(codec, payload).await?;
        Ok(())
    }
    /// What was written, once that is all of it: for a caller whose bytes turned out to belong under another key. Nobody else can see
    /// it, and it goes with the upload, which has to live until it was read. `None` for an object of one record, at most 1 MiB, which is
    /// not on the device before it is finished.
    pub async fn read_back(&mut self) -> Result<Option<Object>, PutError> {
        if self.written_bytes != self.size_bytes {
            return Err(PutError::SizeMismatch { declared_bytes: self.size_bytes, sent_bytes: self.written_bytes });
        }
        self.lead.progress();
        let Body::Parts(parts) = &mut self.body else { return Ok(None) };
        let settled = parts.settle().await?;
        Ok(settled.map(|(manifest, place)| Object::of_parts(&self.core, self.key, self.size_bytes, manifest, place)))
    }
    /// Publishes the object. The caller has checked that the bytes are what the key says.
    pub async fn finish(self) -> Result<PutOutcome, PutError> {
        let Self { core, key, size_bytes, written_bytes, lead, body } = self;
        if written_bytes != size_bytes {
            return Err(PutError::SizeMismatch { declared_bytes: size_bytes, sent_bytes: written_bytes });
        }
        lead.progress();
        let object = RecordKey::Object(key);
        match body {
            Body::Small(bytes) => drop(put_packed(&core, object, RecordKind::Content, Value::owned(bytes), 0).await?),
            Body::Whole(paged) => {
                let task = tokio::spawn(write_paged(core.clone(), *paged, object, RecordKind::Content, Accept::Now));
                joined(task).await?;
            }
            // In a task: who drops this future must not have the parts taken away from a manifest that is on its way.
            Body::Parts(parts) => {
                joined(tokio::spawn(async move {
                    parts.finish(&lead).await?;
                    lead.published();
                    Ok(())
                }))
                .await?;
                count(&core.counters.puts, 1);
                return Ok(PutOutcome::Stored);
            }
        }
        count(&core.counters.puts, 1);
        lead.published();
        Ok(PutOutcome::Stored)
    }
}

pub(crate) async fn joined<T>(task: JoinHandle<Result<T, PutError>>) -> Result<T, PutError> {
    task.await.unwrap_or_else(|e| Err(PutError::Unavailable(format!("task ended: {e}"))))
}
