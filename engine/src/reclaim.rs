//! Emptying a sealed block: what is still wanted is copied out, the rest is dropped, and the block is nobody's.
//!
//! Always true here: every chunk is verified before it is copied; the Moves' outcome is known before the block's retirement is
//! logged; a record that is dropped leaves the table in the step that finds it unwanted; a large object is kept or dropped as a whole,
//! by its manifest, and a dropped one loses its manifest first. A copy is never added to a page that was written before.

use crate::{
    canary::{self, Canary},
    core::Core,
    device::{AlignedBuf, PAGE_BYTES},
    error::PutError,
    format::{
        layout::LOAD_RECLAIM_PERCENT,
        log::Location,
        record::{Manifest, RecordHead, RecordKey},
        types::{KeyHash, Place, SizeCheck, SlotKind, Vbn},
    },
    map::{
        census::{STAMPS, Tally},
        table::Found,
    },
    policy::{Candidate, Choice, FewestWanted, Pressure, ReclaimPolicy, breaches},
    read::{drop_damaged, head_only, manifest_at, read_record},
    sequencer::{Change, Control},
    space::Taken,
    stats::count,
};
use futures::{StreamExt, stream};
use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

/// Bytes of records that one copy gathers, about.
const COPY_BYTES: usize = 1 << 20;
/// Records read at once.
const READS_MAX: usize = 16;
/// How often the table is searched for slots that moved during the search.
const SEARCHES_MAX: usize = 16;

/// The reclaiming of one store.
pub(crate) struct Reclaim {
    core: Arc<Core>,
    policy: Box<dyn ReclaimPolicy>,
    /// The unit of every slot that was emptied, by the block that it led to.
    emptied: HashMap<u32, Vec<u32>>,
    tail: Option<(Taken, usize)>,
}

/// Whether a large object's parts are kept, found out once a reclaim.
type Verdicts = HashMap<[u8; 16], Option<u8>>;

struct Copy {
    found: Found,
    head: RecordHead,
    hash: KeyHash,
    payload: Vec<u8>,
}

impl Reclaim {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core, policy: Box::new(FewestWanted), emptied: HashMap::new(), tail: None }
    }

    /// Reclaims one block if one is needed. False if none is, or none can be.
    pub(crate) async fn step(&mut self) -> Result<bool, PutError> {
        let core = self.core.clone();
        let short = core.space.short(core.uploads.held_bytes());
        // Somebody waits for a slot, and no flush that is still to come gives one back.
        let stuck = core.slot_waiters.load(Ordering::Relaxed) > 0 && !core.held.wait_for_flush();
        // What is reserved is as good as live: who waits for slots may hold most of the free ones.
        let loaded = (core.table.live() + core.table.reserved()) * 100 >= core.table.slots() * LOAD_RECLAIM_PERCENT;
        let for_table = loaded || stuck;
        if !short && !for_table {
            return Ok(false);
        }
        let by_age = |tally: Tally| {
            let mut out = Tally::default();
            for stamp in 0..STAMPS {
                let age = usize::from(core.clock.age(stamp as u8));
                out.bytes[age] += tally.bytes[stamp];
                out.slots[age] += tally.slots[stamp];
            }
            out
        };
        let candidates: Vec<_> = core
            .space
            .candidates()
            .into_iter()
            .map(|(physical, _)| Candidate { physical, by_age: by_age(core.census.tally(physical)) })
            .collect();
        let pressure = Pressure {
            total: by_age(core.census.total()),
            capacity_bytes: core.layout.capacity_bytes(),
            block_bytes: core.layout.block_bytes,
            slots_max: core.slots_reclaim(),
            for_table: for_table && !short,
        };
        let Some(choice) = self.policy.choose(&candidates, &pressure) else {
            if stuck {
                self.seal_open_blocks().await?;
            }
            return Ok(false);
        };
        if pressure.for_table {
            count(&core.counters.reclaims_for_table, 1);
        }
        self.empty(choice).await
    }

    /// Seals the blocks that are being filled: the table can be full of what is in them alone. Their seals wake whoever reclaims.
    async fn seal_open_blocks(&mut self) -> Result<(), PutError> {
        let core = self.core.clone();
        let closed = || PutError::Unavailable("store is closed".into());
        core.control.send(Control::SealTail).await.map_err(|_| closed())?;
        core.seal_paged_tail().await?;
        let carried = self.tail.take().map(|(block, fill)| Taken { fill_bytes: fill as u32, ..block });
        let seals = core.space.take_partly_filled().into_iter().chain(carried);
        let seals: Vec<_> = seals.map(|Taken { vbn, physical, fill_bytes }| Change::BlockSeal { physical, vbn, fill_bytes }).collect();
        if !seals.is_empty() {
            core.submit_control(seals).await?;
        }
        Ok(())
    }

    async fn empty(&mut self, choice: Choice) -> Result<bool, PutError> {
        let core = self.core.clone();
        let Some((physical, vbn)) = core.space.candidates().into_iter().find(|(p, _)| *p == choice.physical) else { return Ok(true) };
        if !core.space.start_reclaim(physical) {
            return Ok(true);
        }
        tracing::debug!(physical, vbn = vbn.0, age_max = choice.age_max, "reclaiming block");
        let result = self.empty_block(physical, vbn, choice).await;
        if !matches!(result, Ok(true)) {
            core.space.cancel_reclaim(physical);
        }
        result
    }

    /// Carries or drops every record of the block and retires it. False if records stay in it.
    async fn empty_block(&mut self, physical: u32, vbn: Vbn, choice: Choice) -> Result<bool, PutError> {
        let core = self.core.clone();
        let mut verdicts = Verdicts::new();
        for _ in 0..SEARCHES_MAX {
            if core.census.slots(physical) == 0 {
                break;
            }
            let mut found = core.table.of_block(vbn);
            found.sort_unstable_by_key(|f| f.place.granule);
            let mut wanted = Vec::new();
            for f in found {
                if self.keep(&f, choice, &mut verdicts).await? {
                    wanted.push(f);
                }
            }
            self.carry(wanted).await?;
            if canary::leaves_out(Canary::MoveOutcomes) {
                return self.retire(physical, vbn).await.map(|()| true);
            }
        }
        if core.census.slots(physical) > 0 {
            // Never seen; the block is tried again later, and nothing was lost.
            tracing::warn!(physical, vbn = vbn.0, "block could not be emptied");
            return Ok(false);
        }
        self.retire(physical, vbn).await?;
        Ok(true)
    }

    async fn retire(&mut self, physical: u32, vbn: Vbn) -> Result<(), PutError> {
        let outcomes = self.core.submit_control(vec![Change::BlockRetire { physical, vbn }]).await?;
        if let (Some(units), Some(retired)) = (self.emptied.remove(&physical), outcomes.first()) {
            self.core.held.retired(retired.lsn, units);
            // A flush may have covered it already.
            self.core.held.durable(*self.core.durable.borrow(), &self.core.table);
        }
        count(&self.core.counters.blocks_reclaimed, 1);
        // Slots came free, too.
        self.core.space.room.notify_waiters();
        self.core.space.wake();
        Ok(())
    }

    /// Whether the record is carried forward. One that is not is out of the table when this returns.
    async fn keep(&mut self, found: &Found, choice: Choice, verdicts: &mut Verdicts) -> Result<bool, PutError> {
        let core = self.core.clone();
        let young = |stamp: u8| choice.age_max.is_some_and(|max| core.clock.age(stamp) <= max);
        if found.kind == SlotKind::Part {
            return self.keep_part(found, &young, verdicts).await;
        }
        if young(found.stamp) {
            return Ok(true);
        }
        let manifest = match found.kind {
            SlotKind::Manifest => manifest_at(&core, found.place, found.class).await,
            _ => None,
        };
        if !core.table.remove_untouched(found.address, found.place, found.stamp) {
            // Touched, replaced or moved in this moment: the next search finds it as it is now.
            return Ok(false);
        }
        self.hold(found);
        self.dropped(found.stamp);
        if let Some((RecordKey::Object(object), manifest)) = manifest {
            self.drop_parts(&object, &manifest);
        }
        Ok(false)
    }

    /// The slot, which was emptied, comes back in a crash until the retirement of its block is durable.
    fn hold(&mut self, found: &Found) {
        if let Some(physical) = self.core.layout.physical(found.place.vbn) {
            self.emptied.entry(physical).or_default().push(self.core.table.hold(found.address));
        }
    }

    fn dropped(&self, stamp: u8) {
        count(&self.core.counters.dropped_records, 1);
        if breaches(self.core.clock.age(stamp)) {
            count(&self.core.counters.retention_breaches, 1);
        }
    }

    fn drop_parts(&mut self, object: &crate::key::Key, manifest: &Manifest) {
        let core = self.core.clone();
        for index in 0..manifest.stored_bytes.len() as u64 {
            let hash = core.hash(&RecordKey::Part { upload_id: manifest.upload_id, index, object: *object });
            for part in core.table.find(&hash, SlotKind::Part, None).iter() {
                if core.table.remove(part.address, part.place, None) {
                    self.hold(&part);
                }
            }
        }
    }

    async fn keep_part(&mut self, found: &Found, young: &impl Fn(u8) -> bool, verdicts: &mut Verdicts) -> Result<bool, PutError> {
        let core = self.core.clone();
        let Some(RecordHead { key: RecordKey::Part { upload_id, object, .. }, .. }) = head_only(&core, found.place).await else {
            // Without its head nobody can tell whose it is; the object is found broken when it is read.
            count(&core.counters.damaged_records, 1);
            core.table.remove(found.address, found.place, None);
            return Ok(false);
        };
        let verdict = match verdicts.get(&upload_id) {
            Some(verdict) => *verdict,
            None => {
                let verdict = self.judge(&upload_id, &object, young).await?;
                verdicts.insert(upload_id, verdict);
                verdict
            }
        };
        match verdict {
            Some(stamp) => {
                // The part is as old as its object, wherever it goes.
                core.table.touch(found.address, found.place, stamp);
                Ok(true)
            }
            None => {
                if core.table.remove(found.address, found.place, None) {
                    self.hold(found);
                }
                Ok(false)
            }
        }
    }

    /// The stamp of the object to which the upload's parts belong, if it is kept. One that is not loses its manifest here.
    async fn judge(&mut self, upload_id: &[u8; 16], object: &crate::key::Key, young: &impl Fn(u8) -> bool) -> Result<Option<u8>, PutError> {
        let core = self.core.clone();
        if core.uploads.is_running(upload_id) {
            return Ok(Some(core.clock.stamp()));
        }
        let hash = core.hash(&RecordKey::Object(*object));
        for found in core.table.find(&hash, SlotKind::Content, None).iter().filter(|f| f.kind == SlotKind::Manifest) {
            let Some((key, manifest)) = manifest_at(&core, found.place, found.class).await else { continue };
            if manifest.upload_id != *upload_id || key != RecordKey::Object(*object) {
                continue;
            }
            if young(found.stamp) || !core.table.remove_untouched(found.address, found.place, found.stamp) {
                return Ok(Some(found.stamp));
            }
            self.dropped(found.stamp);
            // The manifest's own block is not being retired: without this entry, ahead of the retirement of any block with its parts, a
            // crash would bring it back without them.
            core.submit_control(vec![Change::Delete { hash, kind: SlotKind::Manifest, from: found.place }]).await?;
            self.drop_parts(object, &manifest);
            return Ok(None);
        }
        Ok(None)
    }

    /// Copies records out of the block and points their slots to the copies.
    async fn carry(&mut self, wanted: Vec<Found>) -> Result<(), PutError> {
        let core = self.core.clone();
        let reader = &core;
        let mut copies =
            stream::iter(wanted.into_iter().map(|found| async move { (found, read_whole(reader, &found).await) })).buffered(READS_MAX);
        let mut batch: Vec<Copy> = Vec::new();
        let mut bytes = 0;
        while let Some((found, copy)) = copies.next().await {
            match copy {
                Ok(copy) => {
                    bytes += copy.head.shape().extent_bytes;
                    batch.push(copy);
                }
                Err(hash) => self.lost(&found, hash),
            }
            if bytes >= COPY_BYTES {
                self.write(std::mem::take(&mut batch)).await?;
                bytes = 0;
            }
        }
        self.write(batch).await
    }

    /// The record cannot be copied: it is dropped, and with a part its object.
    fn lost(&self, found: &Found, hash: Option<KeyHash>) {
        match hash {
            Some(hash) => drop_damaged(&self.core, hash, found.kind, found.place),
            None => {
                if self.core.table.remove(found.address, found.place, None) {
                    count(&self.core.counters.damaged_records, 1);
                }
            }
        }
    }

    async fn write(&mut self, batch: Vec<Copy>) -> Result<(), PutError> {
        let core = self.core.clone();
        let mut batch = batch.into_iter().peekable();
        while batch.peek().is_some() {
            let (block, start) = self.block_for(batch.peek().map_or(0, |c| c.head.shape().extent_bytes)).await?;
            let mut at = start;
            let mut placed = Vec::new();
            while let Some(copy) = batch.next_if(|c| align(at, c) + c.head.shape().extent_bytes <= core.layout.block_bytes as usize) {
                let offset = align(at, &copy);
                at = offset + copy.head.shape().extent_bytes;
                placed.push((offset, copy));
            }
            let end = at.next_multiple_of(PAGE_BYTES);
            let mut buf = AlignedBuf::take(end - start);
            buf.fill(0);
            let mut moves = Vec::with_capacity(placed.len());
            for (offset, copy) in placed {
                let place = Place::new(block.vbn, offset as u32);
                let shape = copy.head.shape();
                let out = &mut buf[offset - start..][..shape.extent_bytes];
                copy.head.encode(&core.mask, place, out);
                out[shape.payload_offset..shape.payload_offset + shape.payload_bytes].copy_from_slice(&copy.payload);
                let check = SizeCheck::of(copy.head.logical_bytes);
                let to = Location { hash: copy.hash, kind: copy.found.kind, check, place, extent_bytes: shape.extent_bytes as u32 };
                moves.push(Change::Move { to, from: copy.found.place, carries: (copy.head.epoch, copy.head.lsn) });
            }
            core.space.pending(block.physical, moves.len() as u32);
            self.tail = Some((block, end));
            count(&core.counters.carried_bytes, (end - start) as u64);
            core.write(core.layout.block_offset(block.physical) + start as u64, buf, "carried records").await?;
            if canary::leaves_out(Canary::MoveOutcomes) {
                drop(tokio::spawn(submit_later(core.clone(), moves)));
            } else {
                core.submit_control(moves).await?;
            }
        }
        Ok(())
    }

    /// The carry block and its end, with room for at least `bytes`.
    async fn block_for(&mut self, bytes: usize) -> Result<(Taken, usize), PutError> {
        if let Some((block, fill)) = self.tail {
            if fill + bytes <= self.core.layout.block_bytes as usize {
                return Ok((block, fill));
            }
            self.tail = None;
            let seal = Change::BlockSeal { physical: block.physical, vbn: block.vbn, fill_bytes: fill as u32 };
            self.core.submit_control(vec![seal]).await?;
        }
        let block = self.core.take_block(true).await?;
        let fill = (block.fill_bytes as usize).next_multiple_of(PAGE_BYTES);
        self.tail = Some((block, fill));
        if fill + bytes > self.core.layout.block_bytes as usize {
            return Box::pin(self.block_for(bytes)).await;
        }
        Ok((block, fill))
    }
}

/// What nobody waits for comes at any time.
async fn submit_later(core: Arc<Core>, moves: Vec<Change>) {
    canary::others_go_on().await;
    let _ = core.submit_control(moves).await;
}

fn align(at: usize, copy: &Copy) -> usize {
    if copy.head.shape().paged { at.next_multiple_of(PAGE_BYTES) } else { at }
}

/// The whole record, every chunk verified. The hash, as far as the head could be read, on failure.
async fn read_whole(core: &Core, found: &Found) -> Result<Copy, Option<KeyHash>> {
    let (buf, skip) = read_record(core, found.place, u64::from(found.class.bytes_max())).await.ok_or(None)?;
    let bytes = buf.get(skip..).ok_or(None)?;
    let head = RecordHead::decode(&core.mask, found.place, bytes, core.layout.block_bytes).map_err(|_| None)?;
    let hash = core.hash(&head.key);
    let shape = head.shape();
    let payload = bytes.get(shape.payload_offset..shape.payload_offset + shape.payload_bytes).ok_or(Some(hash))?;
    if !head.verify(0, payload) {
        return Err(Some(hash));
    }
    Ok(Copy { found: *found, hash, payload: payload.to_vec(), head })
}
