//! One batch: its changes get places and log entries, are written, and become visible together.

use super::{CHANGE_UNITS_MAX, Change, Outcome, Queued, Sequencer};
use crate::format::types::KeyHash;
use crate::{
    canary::{self, Canary},
    device::{AlignedBuf, PAGE_BYTES},
    engine::Durability,
    error::PutError,
    format::{
        log::{Entry, Location},
        record::{RecordHead, RecordShape},
        types::{Lsn, Place, SizeCheck, SlotKind, Vbn},
    },
    log_writer::DirtyPages,
    map::table::Placed,
    sequencer::PackedRecord,
    space::Taken,
    stats::count,
};
use bytes::Bytes;
use futures::future::{join, join_all};
use std::sync::atomic::Ordering;
use tokio::time::Instant;

/// Bytes of records in one batch, about: what a pooled buffer holds.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Changes in one batch, about.
pub(super) const BATCH_CHANGES_MAX: usize = 8192;

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

impl Sequencer {
    /// Places, writes and publishes what is queued, as far as one batch goes.
    pub(super) async fn batch(&mut self, with_puts: bool) -> Result<(), PutError> {
        let mut requests: Vec<Queued> = Vec::new();
        let mut logged = Vec::new();
        let mut segments: Vec<Segment> = Vec::new();
        let mut record_bytes = 0;
        let units = [false, true].map(|urgent| self.log_units(urgent));
        let start = self.log.end().next;
        if self.log_room() > 0
            && let Some(lsn) = self.mark_due.take()
        {
            self.log.append(&Entry::Durable { lsn });
        }
        let mut held_back_urgent = false;
        'fill: while record_bytes < BATCH_BYTES_MAX && logged.len() < BATCH_CHANGES_MAX {
            held_back_urgent = !self.urgent.is_empty();
            let [for_puts, for_urgent] = units;
            let limit = if held_back_urgent { for_urgent } else { for_puts };
            let Some(mut request) = self.urgent.pop_front().or_else(|| with_puts.then(|| self.queue.pop_front()).flatten()) else { break };
            let index = requests.len();
            while let Some(change) = request.held_back.take().or_else(|| request.changes.next()) {
                if self.log.end().next.0 - start.0 + CHANGE_UNITS_MAX > limit {
                    request.held_back = Some(change);
                    requests.push(request);
                    break 'fill;
                }
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
            let queue = if held_back_urgent { &mut self.urgent } else { &mut self.queue };
            queue.push_front(request);
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
            Change::Move { to, from, carries } => {
                (Effect::Move { to, from }, Entry::Move { to, from, carries: Some(carries) }, to.extent_bytes as usize)
            }
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
            codec: record.codec,
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
                    if !flush && canary::leaves_out(Canary::AckOrder) {
                        let core = core.clone();
                        tokio::spawn(async move { core.write(core.layout.log_page_offset(page), buf, "log").await });
                        continue;
                    }
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
            if !canary::leaves_out(Canary::FlushBeforeAck) {
                core.flushed(core.device.flush()).await?;
            }
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
                    let applied = core.table.relocate(&to.hash, *from, to.place, lsn)
                        || canary::leaves_out(Canary::MoveConditionLive) && core.table.put(to, lsn, stamp) != Placed::Full;
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
