//! The one task that orders changes of the map: it places small records, writes the log, publishes and acknowledges.
//!
//! Always true here: one batch is in flight at a time, so everything before a batch is complete when the batch is published; a
//! batch is published as one, in LSN order, when it may be acknowledged: completed, or flushed in group mode. A page of log or
//! records is added to only until a flush that covers it is issued. A failed write or flush poisons writing for good.

mod batch;

use crate::{
    canary::{self, Canary},
    core::Core,
    device::PAGE_BYTES,
    error::PutError,
    format::{
        crc::Crcs,
        image::BlockRow,
        log::{Location, UNITS_PER_PAGE},
        record::{RecordKey, RecordKind},
        types::{Epoch, KeyHash, Lsn, Place, SlotKind, Vbn},
    },
    log_writer::{LogEnd, LogWriter},
    space::Taken,
    stats::count,
    value::Codec,
};
use batch::BATCH_CHANGES_MAX;
use bytes::Bytes;
use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time::Instant,
};

/// A flush is due at this many unflushed bytes.
const FLUSH_BYTES: u64 = 128 << 20;
/// Pages of the log that only marks may take.
const MARK_PAGES: u64 = 2;
/// Units of the log that a change takes at most: a Move, or a Put and the seals of blocks that an earlier run left nearly full.
const CHANGE_UNITS_MAX: u64 = 16;
/// Puts wait for the flush at this many: recovery verifies no more than that.
const UNFLUSHED_BYTES_MAX: u64 = 240 << 20;

/// A record that the sequencer places among others.
#[derive(Debug)]
pub(crate) struct PackedRecord {
    pub(crate) key: RecordKey,
    pub(crate) hash: KeyHash,
    pub(crate) kind: RecordKind,
    pub(crate) codec: Codec,
    pub(crate) logical_bytes: u64,
    pub(crate) payload: Bytes,
    pub(crate) crcs: Crcs,
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
    /// The record, whose head carries `carries`, was copied.
    Move { to: Location, from: Place, carries: (Epoch, Lsn) },
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
            // Those of a batch count until it is written.
            core.sequenced.store((self.queue.len() + self.urgent.len()) as u64, Ordering::Relaxed);
            self.start_flush_if_due();
            let held = self.held();
            self.account_held(held);
            let puts_ready = held == Held::No && !self.queue.is_empty();
            let urgent_ready = !self.urgent.is_empty() && self.log_units(true) >= CHANGE_UNITS_MAX;
            if puts_ready || urgent_ready || (self.mark_due.is_some() && self.log_room() > 0) {
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
                () = &mut log_room, if held == Held::Ring || !self.urgent.is_empty() || self.mark_due.is_some() => {}
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
        self.core.sequenced.store(0, Ordering::Relaxed);
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
        // Issued here, not when the task first runs: by then another batch may have written to the new pages.
        let issued = self.core.device.flush();
        let core = self.core.clone();
        tokio::spawn(async move { send.send(core.flushed(issued).await) });
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
        if !canary::leaves_out(Canary::LogPageClosed) {
            self.log.close_page();
        }
        if let Some(tail) = self.tail.as_mut().filter(|_| !canary::leaves_out(Canary::RecordPageClosed)) {
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
        let before = *self.core.durable.borrow();
        if covers > before {
            self.core.durable.send_replace(covers);
            // A mark that covers nothing but the mark before it says nothing.
            if Lsn(self.core.changed.load(Ordering::Acquire)) > before {
                self.mark_due = Some(covers);
            }
        }
        self.core.held.durable(covers, &self.core.table);
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
    /// Pages that may be written before recovery would miss the one overwritten.
    fn log_room(&self) -> u64 {
        self.core.layout.log_pages.saturating_sub(self.log_used())
    }
    /// Units that a batch may append: puts leave the last sixteenth of the ring to those who make room, and these the last pages to
    /// marks.
    fn log_units(&self, urgent: bool) -> u64 {
        let kept = if urgent { MARK_PAGES } else { (self.core.layout.log_pages / 16).max(MARK_PAGES) };
        // An entry of two units may leave the last of a page empty.
        self.log_room().saturating_sub(kept) * (UNITS_PER_PAGE as u64 - 1)
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
}

/// The result of the flush in flight; never, where there is none.
async fn flush_result(flushing: &mut Option<Flushing>) -> Result<(), PutError> {
    match flushing {
        Some(f) => (&mut f.done).await.unwrap_or_else(|_| Err(PutError::Unavailable("store is closed".into()))),
        None => std::future::pending().await,
    }
}
