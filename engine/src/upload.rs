//! Uploads: bytes that are on the device before anybody can see them.
//!
//! Always true here: nothing of an upload is visible before it is finished; an upload that ends otherwise leaves no slot behind; a
//! place that was given out is settled or its write poisons the store, whatever becomes of the future that asked (the work runs in
//! tasks of its own). Large uploads together hold at most half of the capacity, unless there is only one.

mod flight;

use crate::{
    cache::Piece,
    core::Core,
    device::{AlignedBuf, PAGE_BYTES},
    engine::PutOutcome,
    error::PutError,
    format::{
        crc::ChunkCrcs,
        log::Location,
        record::{Manifest, PACKED_BYTES_MAX, RecordHead, RecordKey, RecordKind, RecordShape},
        types::{KeyHash, Lsn, Place, SizeCheck, SlotKind},
    },
    key::Key,
    map::table::Found,
    read::{PIECE_BYTES, slot_kind},
    sequencer::{Change, Control, Outcome, PackedRecord, Request},
    space::Taken,
    stats::count,
};
use bytes::Bytes;
use flight::Turn;
pub(crate) use flight::{Flights, Lead};
use parking_lot::Mutex;
use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};

/// Objects up to this size are one record (less where blocks are small).
pub(crate) const WHOLE_BYTES_MAX: u64 = PIECE_BYTES as u64;
/// Granule of part sizes.
const PART_GRANULE_BYTES: u64 = 256 << 10;
/// Largest part: a part is gathered in memory before it is written.
const PART_BYTES_MAX: u64 = 8 << 20;
/// Parts of one upload that are being written at once.
const PARTS_IN_FLIGHT_MAX: usize = 2;
/// Longest wait for other uploads to end, or for a block.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(60);
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
    paged: tokio::sync::Mutex<Option<PagedTail>>,
}

#[derive(Default)]
struct Running {
    ids: HashSet<[u8; 16]>,
    declared_bytes: u64,
}

struct PagedTail {
    block: Taken,
    fill: u64,
}

/// A place for a paged record.
struct Allocation {
    place: Place,
    physical: u32,
    lsn: Lsn,
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
            paged: tokio::sync::Mutex::default(),
        }
    }
    pub(crate) fn is_running(&self, id: &[u8; 16]) -> bool {
        self.running.lock().ids.contains(id)
    }
    pub(crate) fn unaccepted_bytes(&self) -> u64 {
        self.unaccepted_bytes.load(Ordering::Relaxed)
    }
    pub(crate) fn declared_bytes(&self) -> u64 {
        self.running.lock().declared_bytes
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
        self.space.capacity_bytes() / 4 * 3
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
                () = tokio::time::sleep_until(start + ROOM_WAIT_MAX) => {
                    return Err(PutError::NoRoom(format!("no block came free in {} s", ROOM_WAIT_MAX.as_secs())));
                }
            }
        }
    }

    async fn allocate(&self, extent_bytes: u64) -> Result<Allocation, PutError> {
        // A queue, first come first served: the lock is held while a block is awaited, so that nobody overtakes.
        let mut tail = self.uploads.paged.lock().await;
        // A block that goes on where an earlier run left it may be too full already.
        while tail.as_ref().is_none_or(|t| t.fill + extent_bytes > self.layout.block_bytes) {
            if let Some(full) = tail.take() {
                let Taken { vbn, physical, .. } = full.block;
                let fill_bytes = u32::try_from(full.fill).unwrap_or(u32::MAX);
                let (reply, _) = oneshot::channel();
                let seal = Request { changes: vec![Change::BlockSeal { physical, vbn, fill_bytes }], reply, permit: None };
                self.control.send(Control::Changes(seal)).await.map_err(|_| PutError::Unavailable("store is closed".into()))?;
            }
            let block = self.take_block(false).await?;
            *tail = Some(PagedTail { block, fill: u64::from(block.fill_bytes).next_multiple_of(PAGE_BYTES as u64) });
        }
        let Some(tail) = tail.as_mut() else { return Err(PutError::Unavailable("no block".into())) };
        let offset = u32::try_from(tail.fill).map_err(|_| PutError::Unavailable("block is larger than an offset".into()))?;
        tail.fill += extent_bytes;
        self.space.pending(tail.block.physical, 1);
        Ok(Allocation { place: Place::new(tail.block.vbn, offset), physical: tail.block.physical, lsn: self.published() })
    }
}

/// A paged record that is being gathered: room for the head, then the payload.
struct Paged {
    buf: AlignedBuf,
    payload_offset: usize,
    payload_bytes: usize,
    filled: usize,
    crcs: ChunkCrcs,
}

impl Paged {
    fn new(kind: RecordKind, payload_bytes: usize) -> Self {
        // A part may be short enough to be packed by its length; here it is paged all the same.
        let shape = RecordShape::of(kind, payload_bytes);
        Self {
            buf: AlignedBuf::take(shape.extent_bytes),
            payload_offset: shape.payload_offset,
            payload_bytes,
            filled: 0,
            crcs: ChunkCrcs::default(),
        }
    }
    fn room(&self) -> usize {
        self.payload_bytes - self.filled
    }
    fn push(&mut self, data: &[u8]) {
        let at = self.payload_offset + self.filled;
        self.buf[at..at + data.len()].copy_from_slice(data);
        self.crcs.update(data);
        self.filled += data.len();
    }
}

/// Writes a paged record and logs it. Runs to its end once started.
async fn write_paged(
    core: Arc<Core>,
    paged: Paged,
    key: RecordKey,
    kind: RecordKind,
    accept: Accept,
) -> Result<(Place, Location), PutError> {
    let hash = core.hash(&key);
    let mut slots = Reserved::none(&core);
    slots.add(&hash).await?;
    let Paged { mut buf, payload_bytes, crcs, .. } = paged;
    let shape = RecordShape::of(kind, payload_bytes);
    let allocation = core.allocate(shape.extent_bytes.next_multiple_of(PAGE_BYTES) as u64).await?;
    let head = RecordHead {
        kind,
        key,
        logical_bytes: payload_bytes as u64,
        stored_bytes: payload_bytes as u32,
        epoch: core.epoch,
        lsn: allocation.lsn,
        crcs: crcs.finish(),
    };
    let (head_part, _) = buf.split_at_mut(shape.payload_offset);
    head_part.fill(0);
    head.encode(&core.mask, allocation.place, head_part);
    buf[shape.payload_offset + payload_bytes..].fill(0);
    let offset = core.device_offset(allocation.place).ok_or_else(|| PutError::Unavailable("place outside the device".into()))?;
    let buf = core.write(offset, buf, "record").await?;
    let kind = kind.slot().unwrap_or(SlotKind::Content);
    let location = Location {
        hash,
        kind,
        check: SizeCheck::of(payload_bytes as u64),
        place: allocation.place,
        extent_bytes: shape.extent_bytes as u32,
    };
    let accept_bytes = match accept {
        Accept::Now => u64::from(location.extent_bytes),
        Accept::IfOverReserve(unaccepted) => {
            let before = core.uploads.unaccepted_bytes.fetch_add(u64::from(location.extent_bytes), Ordering::Relaxed);
            if before + u64::from(location.extent_bytes) > core.space.upload_reserve_bytes() {
                core.uploads.unaccepted_bytes.fetch_sub(u64::from(location.extent_bytes), Ordering::Relaxed);
                u64::from(location.extent_bytes)
            } else {
                unaccepted.fetch_add(u64::from(location.extent_bytes), Ordering::Relaxed);
                0
            }
        }
    };
    let outcomes = core.submit(vec![Change::Written { location, accept_bytes }], 1, slots).await?;
    if outcomes.iter().any(|o| !o.applied) {
        return Err(PutError::NoRoom("no slot of the table could be made for the record".into()));
    }
    debug_assert_eq!(core.layout.physical(allocation.place.vbn), Some(allocation.physical));
    if payload_bytes <= PIECE_BYTES {
        let data = Bytes::from_owner(buf).slice(shape.payload_offset..shape.payload_offset + payload_bytes);
        core.cache.put(allocation.place, 0, Piece { head: head.into(), data });
    }
    Ok((allocation.place, location))
}

/// When the bytes of a record count as accepted.
enum Accept {
    Now,
    /// When the object is published, as long as the reserve lasts; the bytes are added here then.
    IfOverReserve(Arc<AtomicU64>),
}

/// Puts a packed record and keeps it in the cache.
async fn put_packed(
    core: &Arc<Core>,
    key: RecordKey,
    kind: RecordKind,
    logical_bytes: u64,
    payload: Bytes,
    accept_bytes: u64,
) -> Result<Outcome, PutError> {
    let hash = core.hash(&key);
    let crcs = ChunkCrcs::of(&payload);
    let length = payload.len();
    let mut slots = Reserved::none(core);
    slots.add(&hash).await?;
    let record = PackedRecord { key, hash, kind, logical_bytes, payload: payload.clone(), crcs: crcs.clone(), accept_bytes };
    let outcome = one(core.submit(vec![Change::Packed(record)], length, slots).await?)?;
    remember(core, outcome, key, kind, logical_bytes, payload, crcs);
    Ok(outcome)
}

fn one(outcomes: Vec<Outcome>) -> Result<Outcome, PutError> {
    match outcomes.first() {
        Some(o) if o.applied => Ok(*o),
        _ => Err(PutError::NoRoom("no slot of the table could be made for the record".into())),
    }
}

fn remember(core: &Core, outcome: Outcome, key: RecordKey, kind: RecordKind, logical_bytes: u64, data: Bytes, crcs: Vec<u32>) {
    let head = RecordHead { kind, key, logical_bytes, stored_bytes: data.len() as u32, epoch: core.epoch, lsn: outcome.lsn, crcs };
    core.cache.put(outcome.place, 0, Piece { head: Arc::new(head), data });
}

/// Whole objects that go to the sequencer together. `items` are content keys that were begun, and named keys; each with its payload.
pub(crate) async fn put_many(core: &Arc<Core>, items: Vec<(Key, Bytes)>) -> Result<Vec<Result<(), PutError>>, PutError> {
    let mut changes = Vec::with_capacity(items.len());
    let mut known = Vec::with_capacity(items.len());
    let mut slots = Reserved::none(core);
    let mut bytes = 0;
    for (key, payload) in items {
        let (record_key, kind) = (RecordKey::Object(key), object_kind(&key));
        let hash = core.hash(&record_key);
        let crcs = ChunkCrcs::of(&payload);
        let logical_bytes = payload.len() as u64;
        bytes += payload.len();
        slots.add(&hash).await?;
        changes.push(Change::Packed(PackedRecord {
            key: record_key,
            hash,
            kind,
            logical_bytes,
            payload: payload.clone(),
            crcs: crcs.clone(),
            accept_bytes: 0,
        }));
        known.push((record_key, kind, logical_bytes, payload, crcs));
    }
    let outcomes = core.submit(changes, bytes, slots).await?;
    let mut results = Vec::with_capacity(known.len());
    for (outcome, (key, kind, logical_bytes, payload, crcs)) in outcomes.into_iter().zip(known) {
        results.push(one(vec![outcome]).map(|outcome| {
            remember(core, outcome, key, kind, logical_bytes, payload, crcs);
            count(&core.counters.puts, 1);
        }));
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
        match core.uploads.flights.turn(key) {
            Turn::Lead(lead) => {
                // Between the lookup and this turn the last leader may have finished.
                if core.present(&hash, SlotKind::Content, Some(size_bytes)).is_some() {
                    return BeginContent::Present;
                }
                return BeginContent::Lead(lead);
            }
            Turn::Follow(flight) => {
                count(&core.counters.puts_followed, 1);
                if let Some(lead) = core.uploads.flights.follow(key, flight).await {
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
    match core.uploads.flights.turn(key) {
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

struct Parts {
    core: Arc<Core>,
    object: Key,
    id: [u8; 16],
    size_bytes: u64,
    part_bytes: u64,
    open: Option<Paged>,
    started: u64,
    stored_bytes: Vec<u32>,
    in_flight: VecDeque<JoinHandle<Result<(Place, Location), PutError>>>,
    written: Vec<(Place, KeyHash)>,
    unaccepted: Arc<AtomicU64>,
    published: bool,
}

impl Upload {
    pub(crate) async fn begin(core: &Arc<Core>, key: Key, size_bytes: u64, lead: Lead) -> Result<Self, PutError> {
        let body = if size_bytes <= PACKED_BYTES_MAX as u64 {
            Body::Small(Vec::with_capacity(usize::try_from(size_bytes).unwrap_or(0)))
        } else if size_bytes <= core.whole_bytes_max() {
            Body::Whole(Box::new(Paged::new(RecordKind::Content, usize::try_from(size_bytes).unwrap_or(0))))
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
    /// Publishes the object. The caller has checked that the bytes are what the key says.
    pub async fn finish(self) -> Result<PutOutcome, PutError> {
        let Self { core, key, size_bytes, written_bytes, lead, body } = self;
        if written_bytes != size_bytes {
            return Err(PutError::SizeMismatch { declared_bytes: size_bytes, sent_bytes: written_bytes });
        }
        lead.progress();
        let object = RecordKey::Object(key);
        match body {
            Body::Small(bytes) => drop(put_packed(&core, object, RecordKind::Content, size_bytes, bytes.into(), 0).await?),
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

async fn joined<T>(task: JoinHandle<Result<T, PutError>>) -> Result<T, PutError> {
    task.await.unwrap_or_else(|e| Err(PutError::Unavailable(format!("write task ended: {e}"))))
}

impl Parts {
    /// Waits until the upload may hold its bytes.
    async fn begin(core: &Arc<Core>, object: Key, size_bytes: u64) -> Result<Self, PutError> {
        let limit_bytes = core.object_bytes_max();
        if size_bytes > limit_bytes {
            return Err(PutError::TooLarge { size_bytes, limit_bytes });
        }
        let number = core.uploads.next_id.fetch_add(1, Ordering::Relaxed);
        // Unique without chance: no other opening has this epoch, and no other upload of this one the number.
        let mut id = [0; 16];
        id[..4].copy_from_slice(&core.epoch.0.to_le_bytes());
        id[4..12].copy_from_slice(&number.to_le_bytes());
        let start = Instant::now();
        let half = core.space.capacity_bytes() / 2;
        loop {
            let ended = core.uploads.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            {
                let mut running = core.uploads.running.lock();
                if running.ids.is_empty() || running.declared_bytes + size_bytes <= half {
                    running.ids.insert(id);
                    running.declared_bytes += size_bytes;
                    break;
                }
            }
            if start.elapsed().is_zero() {
                count(&core.counters.uploads_waited, 1);
            }
            if tokio::time::timeout_at(start + ROOM_WAIT_MAX, ended).await.is_err() {
                return Err(PutError::NoRoom(format!(
                    "running uploads hold half of the capacity, and none ended in {} s",
                    ROOM_WAIT_MAX.as_secs()
                )));
            }
        }
        Ok(Self {
            core: core.clone(),
            object,
            id,
            size_bytes,
            part_bytes: core.part_bytes(size_bytes),
            open: None,
            started: 0,
            stored_bytes: Vec::new(),
            in_flight: VecDeque::new(),
            written: Vec::new(),
            unaccepted: Arc::default(),
            published: false,
        })
    }
    async fn write(&mut self, mut data: &[u8]) -> Result<(), PutError> {
        while !data.is_empty() {
            if self.open.is_none() {
                let left = self.size_bytes - self.started * self.part_bytes;
                let bytes = usize::try_from(left.min(self.part_bytes)).map_err(|_| PutError::Unavailable("part is too large".into()))?;
                self.open = Some(Paged::new(RecordKind::Part, bytes));
            }
            let Some(open) = self.open.as_mut() else { break };
            let (now, rest) = data.split_at(data.len().min(open.room()));
            open.push(now);
            data = rest;
            if open.room() == 0 {
                while self.in_flight.len() >= PARTS_IN_FLIGHT_MAX {
                    self.settle_one().await?;
                }
                self.start_part();
            }
        }
        Ok(())
    }
    fn start_part(&mut self) {
        let Some(paged) = self.open.take() else { return };
        let key = RecordKey::Part { upload_id: self.id, index: self.started, object: self.object };
        self.started += 1;
        self.stored_bytes.push(paged.payload_bytes as u32);
        let accept = Accept::IfOverReserve(self.unaccepted.clone());
        self.in_flight.push_back(tokio::spawn(write_paged(self.core.clone(), paged, key, RecordKind::Part, accept)));
    }
    /// Waits for the oldest part in flight. Its handle stays in the queue until it is done: a cancelled wait forgets nothing.
    async fn settle_one(&mut self) -> Result<(), PutError> {
        let Some(task) = self.in_flight.front_mut() else { return Ok(()) };
        let result = task.await.unwrap_or_else(|e| Err(PutError::Unavailable(format!("write task ended: {e}"))));
        self.in_flight.pop_front();
        let (place, location) = result?;
        self.written.push((place, location.hash));
        Ok(())
    }
    async fn finish(mut self: Box<Self>, lead: &Lead) -> Result<(), PutError> {
        while !self.in_flight.is_empty() {
            self.settle_one().await?;
            lead.progress();
        }
        let manifest = Manifest { upload_id: self.id, part_bytes: self.part_bytes, stored_bytes: std::mem::take(&mut self.stored_bytes) };
        let accept_bytes = self.unaccepted.load(Ordering::Relaxed);
        let payload = Bytes::from(manifest.encode());
        put_packed(&self.core, RecordKey::Object(self.object), RecordKind::Manifest, self.size_bytes, payload, accept_bytes).await?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let core = self.core.clone();
        let (id, size_bytes, unaccepted) = (self.id, self.size_bytes, self.unaccepted.clone());
        let in_flight = std::mem::take(&mut self.in_flight);
        let written = std::mem::take(&mut self.written);
        let published = self.published;
        let end = move |core: &Core| {
            core.uploads.unaccepted_bytes.fetch_sub(unaccepted.load(Ordering::Relaxed), Ordering::Relaxed);
            let mut running = core.uploads.running.lock();
            running.ids.remove(&id);
            running.declared_bytes -= size_bytes;
            drop(running);
            core.uploads.ended.notify_waiters();
            core.space.wake();
        };
        if published {
            return end(&core);
        }
        count(&core.counters.uploads_aborted, 1);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return end(&core) };
        runtime.spawn(async move {
            let mut gone = written;
            for task in in_flight {
                if let Ok(Ok((place, location))) = task.await {
                    gone.push((place, location.hash));
                }
            }
            for (place, hash) in gone {
                core.table.remove(core.table.address(&hash), place, None);
            }
            end(&core);
        });
    }
}
