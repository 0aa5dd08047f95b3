//! The one task that orders changes of the map: it places small records, writes the log, publishes and acknowledges.
//!
//! Always true here: one batch is in flight at a time, so everything before a batch is complete when the batch is published; a
//! batch is published as one, in LSN order, when it may be acknowledged: completed, or flushed in group mode. A page of log or
//! records is added to only until a flush that covers it is issued. A failed write or flush poisons writing for good.

use crate::{
    core::Core,
    device::{AlignedBuf, PAGE_BYTES},
    engine::Durability,
    error::PutError,
    format::{
        image::BlockRow,
        log::{Entry, Location},
        record::{RecordHead, RecordKey, RecordKind, RecordShape},
        types::{KeyHash, Lsn, Place, SizeCheck, SlotKind, Vbn},
    },
    log_writer::{DirtyPages, LogEnd, LogWriter},
    map::table::Placed,
    space::Taken,
    stats::count,
};
use bytes::Bytes;
use futures::future::{join, join_all};
use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time::Instant,
};

/// Bytes of records in one batch, about.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Changes in one batch, about.
const BATCH_CHANGES_MAX: usize = 8192;
/// A flush is due at this many unflushed bytes.
const FLUSH_BYTES: u64 = 128 << 20;
/// Puts wait for the flush at this many: recovery verifies no more than that.
const UNFLUSHED_BYTES_MAX: u64 = 240 << 20;

/// A record that the sequencer places among others.
#[derive(Debug)]
pub(crate) struct PackedRecord {
    pub(crate) key: RecordKey,
    pub(crate) hash: KeyHash,
    pub(crate) kind: RecordKind,
    pub(crate) logical_bytes: u64,
    pub(crate) payload: Bytes,
    pub(crate) crcs: Vec<u32>,
    /// Bytes that count as accepted with it besides its own.
    pub(crate) accept_bytes: u64,
}

/// A change of the map.
#[derive(Debug)]
pub(crate) enum Change {
    /// Place this record and log it. A slot was reserved for it.
    Packed(PackedRecord),
    /// Place this tombstone; the slot that says `from` is emptied.
    Tombstone { record: PackedRecord, from: Place },
    /// The record was written at its place already; log it. A slot was reserved for it.
    Written { location: Location, accept_bytes: u64 },
    /// The record was copied.
    Move { to: Location, from: Place },
    /// The slot that says `from` is emptied.
    Delete { hash: KeyHash, kind: SlotKind, from: Place },
    /// The header of the block's next tenant was written.
    BlockOpen { physical: u32, vbn: Vbn },
    /// The block takes no more.
    BlockSeal { physical: u32, vbn: Vbn, fill_bytes: u32 },
    /// The block was emptied.
    BlockRetire { physical: u32, vbn: Vbn },
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) lsn: Lsn,
    /// False if a condition did not hold, or no slot could be made.
    pub(crate) applied: bool,
    pub(crate) place: Place,
}

pub(crate) type Reply = oneshot::Sender<Result<Vec<Outcome>, PutError>>;

/// Changes that are answered together.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) changes: Vec<Change>,
    pub(crate) reply: Reply,
    /// Held until the answer, to bound what is queued.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

/// The state that an image starts from.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) published: Lsn,
    pub(crate) replay_page: u64,
    pub(crate) rows: Vec<BlockRow>,
}

/// What is never held back for want of space.
#[derive(Debug)]
pub(crate) enum Control {
    Changes(Request),
    /// Answered when a flush that was issued after this arrived has succeeded, with the LSN that it covers.
    Flush(oneshot::Sender<Result<Lsn, PutError>>),
    Snapshot(oneshot::Sender<Snapshot>),
    /// The block that small records go to takes no more.
    SealTail,
    /// Writes and flushes what is queued, and ends.
    Close(oneshot::Sender<Result<Lsn, PutError>>),
}

struct Queued {
    changes: std::vec::IntoIter<Change>,
    held_back: Option<Change>,
    outcomes: Vec<Outcome>,
    reply: Reply,
    _permit: Option<OwnedSemaphorePermit>,
}

impl From<Request> for Queued {
    fn from(r: Request) -> Self {
        let outcomes = Vec::with_capacity(r.changes.len());
        Self { changes: r.changes.into_iter(), held_back: None, outcomes, reply: r.reply, _permit: r.permit }
    }
}

/// The block that small records go to.
struct Tail {
    block: Taken,
    fill: usize,
    /// The page that `fill` is in, as it is on the device.
    page: Vec<u8>,
}

/// Records that lie back to back in one block, from a page on.
struct Segment {
    offset: u64,
    first_byte: usize,
    front: Vec<u8>,
    records: Vec<(usize, Place, RecordHead, Bytes)>,
    end: usize,
}

struct Logged {
    request: usize,
    lsn: Lsn,
    effect: Effect,
}

enum Effect {
    Put { location: Location, accept_bytes: u64 },
    Move { to: Location, from: Place },
    Delete { hash: KeyHash, from: Place, record: Option<Place> },
    Open { physical: u32, vbn: Vbn },
    Seal { physical: u32 },
    Retire { physical: u32, vbn: Vbn },
}

struct Flushing {
    done: oneshot::Receiver<Result<(), PutError>>,
    covers: Lsn,
    bytes: u64,
    since: Instant,
    waiters: Vec<oneshot::Sender<Result<Lsn, PutError>>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    No,
    Block,
    Flush,
    Ring,
}

/// The task's state.
pub(crate) struct Sequencer {
    core: Arc<Core>,
    puts: mpsc::Receiver<Request>,
    control: mpsc::Receiver<Control>,
    urgent: VecDeque<Queued>,
    queue: VecDeque<Queued>,
    log: LogWriter,
    tail: Option<Tail>,
    want_block: bool,
    flushing: Option<Flushing>,
    flush_waiters: Vec<oneshot::Sender<Result<Lsn, PutError>>>,
    /// Bytes acknowledged since the last flush was issued, and the time of the first.
    fresh_bytes: u64,
    fresh_since: Option<Instant>,
    mark_due: Option<Lsn>,
    held_since: Option<Instant>,
    closing: Option<oneshot::Sender<Result<Lsn, PutError>>>,
}

impl Sequencer {
    pub(crate) fn new(core: Arc<Core>, puts: mpsc::Receiver<Request>, control: mpsc::Receiver<Control>, end: LogEnd) -> Self {
        let log = LogWriter::new(core.mask.clone(), core.epoch, end);
        Self {
            core,
            puts,
            control,
            urgent: VecDeque::new(),
            queue: VecDeque::new(),
            log,
            tail: None,
            want_block: false,
            flushing: None,
            flush_waiters: Vec::new(),
            fresh_bytes: 0,
            fresh_since: None,
            mark_due: None,
            held_since: None,
            closing: None,
        }
    }

    /// What recovery accepted above the mark is unflushed from the start.
    pub(crate) fn with_unflushed(mut self, bytes: u64) -> Self {
        if bytes > 0 {
            self.fresh_bytes = bytes;
            self.fresh_since = Some(Instant::now());
        }
        self
    }

    /// Runs until it is closed or every sender is gone.
    pub(crate) async fn run(mut self) {
        let core = self.core.clone();
        loop {
            let room = core.space.room.notified();
            let log_room = core.log_changed.notified();
            tokio::pin!(room, log_room);
            room.as_mut().enable();
            log_room.as_mut().enable();
            if core.poison.reason().is_some() {
                return self.refuse_all().await;
            }
            self.collect_flush();
            while let Ok(control) = self.control.try_recv() {
                self.accept(control);
            }
            while self.queue.len() < BATCH_CHANGES_MAX
                && let Ok(request) = self.puts.try_recv()
            {
                self.queue.push_back(request.into());
            }
            self.start_flush_if_due();
            let held = self.held();
            self.account_held(held);
            let puts_ready = held == Held::No && !self.queue.is_empty();
            if puts_ready || !self.urgent.is_empty() || self.mark_due.is_some() {
                if puts_ready {
                    self.slow_down().await;
                }
                if let Err(e) = self.batch(puts_ready).await {
                    debug_assert!(core.poison.reason().is_some(), "{e}");
                }
                continue;
            }
            if self.closing.is_some() && self.queue.is_empty() && self.flushing.is_none() {
                if self.fresh_bytes > 0 {
                    self.start_flush();
                } else if let Some(reply) = self.closing.take() {
                    // What is published behind it is at most the mark that says so.
                    let _ = reply.send(Ok(*core.durable.borrow()));
                    return;
                }
            }
            let deadline = self.deadline();
            tokio::select! {
                biased;
                result = flush_result(&mut self.flushing) => self.flush_done(result),
                control = self.control.recv() => match control {
                    Some(control) => self.accept(control),
                    None => return,
                },
                Some(request) = self.puts.recv(), if self.queue.is_empty() => self.queue.push_back(request.into()),
                () = core.poison.happened() => {}
                () = &mut room, if held == Held::Block => {}
                () = &mut log_room, if held == Held::Ring => {}
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
            }
        }
    }

    fn accept(&mut self, control: Control) {
        match control {
            Control::Changes(request) => self.urgent.push_back(request.into()),
            Control::Flush(reply) => self.flush_waiters.push(reply),
            Control::Snapshot(reply) => {
                let rows = self.core.space.rows();
                let _ = reply.send(Snapshot { published: self.core.published(), replay_page: self.log.next_page(), rows });
            }
            Control::SealTail => {
                if let Some(Tail { block: Taken { vbn, physical, .. }, fill, .. }) = self.tail.take() {
                    let (reply, _) = oneshot::channel();
                    let changes = vec![Change::BlockSeal { physical, vbn, fill_bytes: fill as u32 }];
                    self.urgent.push_back(Request { changes, reply, permit: None }.into());
                }
            }
            Control::Close(reply) => self.closing = Some(reply),
        }
    }

    async fn refuse_all(&mut self) {
        let error = self.core.poison.check().err().unwrap_or_else(|| PutError::Unavailable("store is closed".into()));
        let refuse = |q: Queued| drop(q.reply.send(Err(error.clone())));
        self.urgent.drain(..).chain(self.queue.drain(..)).for_each(refuse);
        let flushing = self.flushing.take().map(|f| f.waiters).unwrap_or_default();
        for reply in self.flush_waiters.drain(..).chain(flushing).chain(self.closing.take()) {
            let _ = reply.send(Err(error.clone()));
        }
        let mut puts_open = true;
        loop {
            tokio::select! {
                request = self.puts.recv(), if puts_open => match request {
                    Some(r) => drop(r.reply.send(Err(error.clone()))),
                    None => puts_open = false,
                },
                control = self.control.recv() => match control {
                    Some(Control::Changes(r)) => drop(r.reply.send(Err(error.clone()))),
                    Some(Control::Flush(reply) | Control::Close(reply)) => drop(reply.send(Err(error.clone()))),
                    Some(Control::Snapshot(reply)) => drop(reply),
                    Some(Control::SealTail) => {}
                    None => return,
                },
            }
        }
    }

    // ---- flushing

    fn start_flush_if_due(&mut self) {
        if self.flushing.is_some() {
            return;
        }
        let due = self.fresh_since.is_some_and(|t| t + self.flush_after() <= Instant::now());
        if due || self.fresh_bytes >= FLUSH_BYTES || !self.flush_waiters.is_empty() || self.core.space.wants_flush() {
            self.start_flush();
        }
    }
    /// Nothing acknowledged is older than the configured bound when its flush starts; the rest is for the batch in flight.
    fn flush_after(&self) -> Duration {
        Duration::from_millis(self.core.options.flush_ms_max) * 8 / 10
    }
    fn deadline(&self) -> Option<Instant> {
        let due = self.fresh_since.filter(|_| self.flushing.is_none()).map(|t| t + self.flush_after());
        let overdue =
            self.flushing.as_ref().map(|f| f.since + Duration::from_millis(self.core.options.flush_ms_max)).filter(|t| *t > Instant::now());
        due.or(overdue)
    }
    /// Issues a flush of everything that is complete; from here on every entry and record starts a new page.
    fn start_flush(&mut self) {
        self.close_pages();
        let (send, done) = oneshot::channel();
        let core = self.core.clone();
        tokio::spawn(async move { send.send(core.flush_device().await) });
        self.flushing = Some(Flushing {
            done,
            covers: self.core.published(),
            bytes: std::mem::take(&mut self.fresh_bytes),
            since: Instant::now(),
            waiters: std::mem::take(&mut self.flush_waiters),
        });
        self.fresh_since = None;
    }
    fn close_pages(&mut self) {
        self.log.close_page();
        if let Some(tail) = &mut self.tail {
            tail.fill = tail.fill.next_multiple_of(PAGE_BYTES);
            tail.page.clear();
        }
    }
    fn collect_flush(&mut self) {
        if let Some(Ok(result)) = self.flushing.as_mut().map(|f| f.done.try_recv()) {
            self.flush_done(result);
        }
    }
    fn flush_done(&mut self, result: Result<(), PutError>) {
        let Some(flushing) = self.flushing.take() else { return };
        if result.is_ok() {
            self.core.unflushed_bytes.fetch_sub(flushing.bytes, Ordering::Relaxed);
            self.made_durable(flushing.covers);
        }
        for reply in flushing.waiters {
            let _ = reply.send(result.clone().map(|()| flushing.covers));
        }
    }
    fn made_durable(&mut self, covers: Lsn) {
        if covers > *self.core.durable.borrow() {
            self.core.durable.send_replace(covers);
            self.mark_due = Some(covers);
        }
        self.core.space.durable(covers);
    }

    // ---- holding back

    fn held(&mut self) -> Held {
        if self.want_block {
            match self.core.space.take(false) {
                Some(block) => self.start_block(block),
                None => return Held::Block,
            }
        }
        let late = self.flushing.as_ref().is_some_and(|f| f.since.elapsed() >= Duration::from_millis(self.core.options.flush_ms_max));
        let in_flight = self.flushing.as_ref().map_or(0, |f| f.bytes);
        if late || in_flight + self.fresh_bytes >= UNFLUSHED_BYTES_MAX {
            return Held::Flush;
        }
        if self.log_used() * 16 >= self.core.layout.log_pages * 15 { Held::Ring } else { Held::No }
    }
    fn account_held(&mut self, held: Held) {
        match (held, self.held_since) {
            (Held::No, Some(since)) => {
                count(&self.core.counters.slowed_us, since.elapsed().as_micros() as u64);
                self.held_since = None;
            }
            (Held::No, None) | (_, Some(_)) => {}
            (_, None) if !self.queue.is_empty() => self.held_since = Some(Instant::now()),
            (_, None) => {}
        }
    }
    fn log_used(&self) -> u64 {
        (self.log.end().page + 1).saturating_sub(self.core.log_tail.load(Ordering::Acquire))
    }
    /// From two thirds of the ring on, puts are slowed in proportion.
    async fn slow_down(&self) {
        let (used, pages) = (self.log_used(), self.core.layout.log_pages);
        let over = (used * 3).saturating_sub(pages * 2);
        if over > 0 {
            let delay = Duration::from_millis(50).mul_f64(over as f64 / pages as f64);
            count(&self.core.counters.slowed_us, delay.as_micros() as u64);
            tokio::time::sleep(delay).await;
        }
    }
    fn start_block(&mut self, block: Taken) {
        self.want_block = false;
        let fill = (block.fill_bytes as usize).next_multiple_of(PAGE_BYTES);
        self.tail = Some(Tail { block, fill, page: Vec::new() });
    }

    // ---- batches

    async fn batch(&mut self, with_puts: bool) -> Result<(), PutError> {
        let mut requests: Vec<Queued> = Vec::new();
        let mut logged = Vec::new();
        let mut segments: Vec<Segment> = Vec::new();
        let mut record_bytes = 0;
        let mark = self.mark_due.take();
        if let Some(lsn) = mark {
            self.log.append(&Entry::Durable { lsn });
        }
        'fill: while record_bytes < BATCH_BYTES_MAX && logged.len() < BATCH_CHANGES_MAX {
            let Some(mut request) = self.urgent.pop_front().or_else(|| with_puts.then(|| self.queue.pop_front()).flatten()) else { break };
            let index = requests.len();
            while let Some(change) = request.held_back.take().or_else(|| request.changes.next()) {
                match self.log_change(change, index, &mut logged, &mut segments) {
                    Ok(bytes) => record_bytes += bytes,
                    Err(change) => {
                        request.held_back = Some(*change);
                        requests.push(request);
                        break 'fill;
                    }
                }
            }
            requests.push(request);
        }
        let end = self.log.end().next.prev();
        let result = self.write_batch(segments, !logged.is_empty()).await;
        match result {
            Ok(()) => {
                let bytes = self.publish(&logged, &mut requests, end);
                if self.core.options.durability == Durability::Interval && bytes > 0 {
                    self.core.unflushed_bytes.fetch_add(bytes, Ordering::Relaxed);
                    self.fresh_bytes += bytes;
                    self.fresh_since.get_or_insert_with(Instant::now);
                } else if self.core.options.durability == Durability::Group && !logged.is_empty() {
                    self.made_durable(end);
                }
                count(&self.core.counters.batches, 1);
            }
            Err(ref e) => {
                for request in requests.drain(..) {
                    let _ = request.reply.send(Err(e.clone()));
                }
                return result;
            }
        }
        if let Some(request) = requests.pop_if(|r| r.held_back.is_some()) {
            self.queue.push_front(request);
        }
        for request in requests {
            let _ = request.reply.send(Ok(request.outcomes));
        }
        self.core.log_changed.notify_waiters();
        Ok(())
    }

    /// Appends a change to the log and says how many bytes of records it adds. Gives it back where no block is ready for it.
    fn log_change(
        &mut self,
        change: Change,
        request: usize,
        logged: &mut Vec<Logged>,
        segments: &mut Vec<Segment>,
    ) -> Result<usize, Box<Change>> {
        let (effect, entry, bytes) = match change {
            Change::Packed(record) => {
                let accept_bytes = record.accept_bytes;
                let (location, lsn) = match self.place(record, request, logged, segments, None) {
                    Ok(placed) => placed,
                    Err(record) => return Err(Box::new(Change::Packed(*record))),
                };
                let bytes = location.extent_bytes as usize;
                logged.push(Logged {
                    request,
                    lsn,
                    effect: Effect::Put { location, accept_bytes: accept_bytes + u64::from(location.extent_bytes) },
                });
                return Ok(bytes);
            }
            Change::Tombstone { record, from } => {
                let hash = record.hash;
                let (location, lsn) = match self.place(record, request, logged, segments, Some(from)) {
                    Ok(placed) => placed,
                    Err(record) => return Err(Box::new(Change::Tombstone { record: *record, from })),
                };
                let effect = Effect::Delete { hash, from, record: Some(location.place) };
                logged.push(Logged { request, lsn, effect });
                return Ok(location.extent_bytes as usize);
            }
            Change::Written { location, accept_bytes } => {
                (Effect::Put { location, accept_bytes }, Entry::Put(location), location.extent_bytes as usize)
            }
            Change::Move { to, from } => (Effect::Move { to, from }, Entry::Move { to, from }, to.extent_bytes as usize),
            Change::Delete { hash, kind, from } => (Effect::Delete { hash, from, record: None }, Entry::Delete { hash, kind, from }, 0),
            Change::BlockOpen { physical, vbn } => (Effect::Open { physical, vbn }, Entry::BlockOpen { vbn }, 0),
            Change::BlockSeal { physical, vbn, fill_bytes } => (Effect::Seal { physical }, Entry::BlockSeal { vbn, fill_bytes }, 0),
            Change::BlockRetire { physical, vbn } => (Effect::Retire { physical, vbn }, Entry::BlockRetire { vbn }, 0),
        };
        let lsn = self.log.append(&entry);
        logged.push(Logged { request, lsn, effect });
        // Records written elsewhere do not lengthen this batch's write.
        Ok(bytes.min(1024))
    }

    /// Gives a record its place and its log entry.
    fn place(
        &mut self,
        record: PackedRecord,
        request: usize,
        logged: &mut Vec<Logged>,
        segments: &mut Vec<Segment>,
        tombstone_of: Option<Place>,
    ) -> Result<(Location, Lsn), Box<PackedRecord>> {
        let shape = RecordShape::of(record.kind, record.payload.len());
        let block_bytes = self.core.layout.block_bytes as usize;
        assert!(shape.extent_bytes + PAGE_BYTES <= block_bytes, "the caller bounds packed records");
        let align = |fill: usize| if shape.paged { fill.next_multiple_of(PAGE_BYTES) } else { fill };
        // A block that goes on where an earlier run left it may be too full already.
        while self.tail.as_ref().is_none_or(|t| align(t.fill) + shape.extent_bytes > block_bytes) {
            if let Some(full) = self.tail.take() {
                let Taken { vbn, physical, .. } = full.block;
                let fill_bytes = full.fill as u32;
                let lsn = self.log.append(&Entry::BlockSeal { vbn, fill_bytes });
                logged.push(Logged { request, lsn, effect: Effect::Seal { physical } });
            }
            match self.core.space.take(false) {
                Some(block) => self.start_block(block),
                None => {
                    self.want_block = true;
                    return Err(Box::new(record));
                }
            }
        }
        let tail = self.tail.as_mut().expect("the loop ends with one");
        let at = align(tail.fill);
        let place = Place::new(tail.block.vbn, at as u32);
        let kind = record.kind.slot().unwrap_or(SlotKind::Named);
        let location = Location {
            hash: record.hash,
            kind,
            check: SizeCheck::of(record.logical_bytes),
            place,
            extent_bytes: shape.extent_bytes as u32,
        };
        let lsn = self.log.append(&match tombstone_of {
            None => Entry::Put(location),
            Some(from) => Entry::Delete { hash: record.hash, kind, from },
        });
        let head = RecordHead {
            kind: record.kind,
            key: record.key,
            logical_bytes: record.logical_bytes,
            stored_bytes: record.payload.len() as u32,
            epoch: self.core.epoch,
            lsn,
            crcs: record.crcs,
        };
        let offset = self.core.layout.block_offset(tail.block.physical);
        let first_byte = tail.fill / PAGE_BYTES * PAGE_BYTES;
        if segments.last().is_none_or(|s| s.offset != offset) {
            segments.push(Segment { offset, first_byte, front: tail.page.clone(), records: Vec::new(), end: tail.fill });
        }
        tail.fill = at + shape.extent_bytes;
        self.core.space.pending(tail.block.physical, 1);
        let segment = segments.last_mut().expect("pushed above");
        segment.end = tail.fill;
        segment.records.push((at, place, head, record.payload));
        Ok((location, lsn))
    }

    /// Writes records and log pages at once, and flushes them in group mode.
    async fn write_batch(&mut self, segments: Vec<Segment>, flush: bool) -> Result<(), PutError> {
        let core = self.core.clone();
        let mut writes = Vec::new();
        for segment in segments {
            let mut buf = AlignedBuf::take(segment.end.next_multiple_of(PAGE_BYTES) - segment.first_byte);
            let front = segment.front.len();
            buf[..front].copy_from_slice(&segment.front);
            let mut filled = front;
            for (at, place, head, payload) in &segment.records {
                let at = at - segment.first_byte;
                let shape = head.shape();
                let record = at + shape.extent_bytes;
                buf[filled..record].fill_slack(at - filled, &shape);
                head.encode(&core.mask, *place, &mut buf[at..at + shape.head_bytes]);
                buf[at + shape.payload_offset..at + shape.payload_offset + payload.len()].copy_from_slice(payload);
                filled = record;
            }
            buf[filled..].fill(0);
            if let Some(tail) = self.tail.as_mut().filter(|t| core.layout.block_offset(t.block.physical) == segment.offset) {
                let open = tail.fill % PAGE_BYTES;
                let start = filled - open;
                tail.page = buf[start..filled].to_vec();
            }
            writes.push(core.write(segment.offset + segment.first_byte as u64, buf, "records"));
        }
        let mut log_writes = Vec::new();
        if let Some(DirtyPages { first_page, bytes }) = self.log.take_dirty() {
            let pages = (bytes.len() / PAGE_BYTES) as u64;
            if first_page + pages > core.log_tail.load(Ordering::Acquire) + core.layout.log_pages {
                return Err(core.poison.set(format!("log page {} would overwrite one that recovery needs", first_page + pages - 1)));
            }
            let before_wrap = (core.layout.log_pages - first_page % core.layout.log_pages).min(pages) as usize * PAGE_BYTES;
            let (front, back) = bytes.split_at(before_wrap);
            for (page, run) in [(first_page, front), (first_page + (before_wrap / PAGE_BYTES) as u64, back)] {
                if !run.is_empty() {
                    let mut buf = AlignedBuf::take(run.len());
                    buf[..run.len()].copy_from_slice(run);
                    log_writes.push(core.write(core.layout.log_page_offset(page), buf, "log"));
                }
            }
            core.log_head.store(self.log.end().page, Ordering::Release);
        }
        let (records, log) = join(join_all(writes), join_all(log_writes)).await;
        for result in records.into_iter().chain(log) {
            result?;
        }
        if flush && core.options.durability == Durability::Group {
            core.flush_device().await?;
            self.close_pages();
        }
        Ok(())
    }

    /// Makes the batch visible, in LSN order. Says how many bytes became unflushed.
    fn publish(&mut self, logged: &[Logged], requests: &mut [Queued], end: Lsn) -> u64 {
        let core = self.core.clone();
        let mut bytes = 0;
        for Logged { request, lsn, effect } in logged {
            let lsn = *lsn;
            let stamp = core.clock.stamp();
            // Marks and seals cost a flush nothing: they count only with what comes with them.
            let (applied, place) = match effect {
                Effect::Put { location, accept_bytes } => {
                    let placed = core.table.put(location, lsn, stamp);
                    core.table.release(&location.hash);
                    self.settle(location);
                    count(&core.counters.accepted_bytes, *accept_bytes);
                    if core.clock.accept(*accept_bytes) {
                        core.space.wake();
                    }
                    bytes += u64::from(location.extent_bytes) + 32;
                    (placed != Placed::Full, location.place)
                }
                Effect::Move { to, from } => {
                    let applied = core.table.relocate(&to.hash, *from, to.place, lsn);
                    self.settle(to);
                    bytes += u64::from(to.extent_bytes) + 64;
                    (applied, to.place)
                }
                Effect::Delete { hash, from, record } => {
                    let applied = core.table.remove(core.table.address(hash), *from, Some(lsn));
                    if let Some(physical) = record.and_then(|p| core.layout.physical(p.vbn)) {
                        core.space.settled(physical, 1, 0);
                    }
                    bytes += 96;
                    (applied, *from)
                }
                Effect::Open { physical, vbn } => {
                    core.census.set_tenant(*physical, *vbn);
                    core.space.opened(*physical, *vbn, lsn);
                    bytes += 32;
                    (true, Place::default())
                }
                Effect::Seal { physical } => {
                    core.space.sealed(*physical);
                    bytes += 32;
                    (true, Place::default())
                }
                Effect::Retire { physical, vbn } => {
                    debug_assert!(core.census.is_live(*vbn));
                    core.census.set_tenant(*physical, Vbn::NONE);
                    core.space.retired(*physical, lsn);
                    bytes += 32;
                    (true, Place::default())
                }
            };
            if let Some(request) = requests.get_mut(*request)
                && !matches!(effect, Effect::Seal { .. })
            {
                request.outcomes.push(Outcome { lsn, applied, place });
            }
        }
        core.published.store(end.0, Ordering::Release);
        if let Some(last) = logged.last() {
            core.changed.store(last.lsn.0, Ordering::Release);
        }
        bytes
    }

    fn settle(&self, location: &Location) {
        if let Some(physical) = self.core.layout.physical(location.place.vbn) {
            let end = location.place.offset_bytes() + u64::from(location.extent_bytes);
            self.core.space.settled(physical, 1, u32::try_from(end).unwrap_or(u32::MAX));
        }
    }
}

/// The result of the flush in flight; never, where there is none.
async fn flush_result(flushing: &mut Option<Flushing>) -> Result<(), PutError> {
    match flushing {
        Some(f) => (&mut f.done).await.unwrap_or_else(|_| Err(PutError::Unavailable("store is closed".into()))),
        None => std::future::pending().await,
    }
}

/// Zeros what a record does not fill itself.
trait FillSlack {
    fn fill_slack(&mut self, gap: usize, shape: &RecordShape);
}

impl FillSlack for [u8] {
    fn fill_slack(&mut self, gap: usize, shape: &RecordShape) {
        self[..gap].fill(0);
        let record = &mut self[gap..];
        record[shape.head_bytes..shape.payload_offset].fill(0);
        record[shape.payload_offset + shape.payload_bytes..].fill(0);
    }
}
