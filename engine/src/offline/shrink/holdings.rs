//! What a store holds, and which of it a smaller one can.
//!
//! Always true here: an object is kept or dropped with all of its parts; whatever is kept was wanted later than all that is dropped, or
//! in the same tick and put later. Memory is about 60 bytes a slot.

use super::super::{BadRecord, OfflineStore, Record, RecordKind, VisitOptions, Visited, Want};
use crate::{
    device::PAGE_BYTES,
    error::OpenError,
    format::{
        log::Location,
        record::{Manifest, PACKED_BYTES_MAX, RecordHead, RecordKey},
        types::{SizeCheck, SlotKind},
    },
};
use std::{
    cmp::Reverse,
    collections::HashMap,
    ops::{ControlFlow, Range},
    sync::Arc,
};

/// The object of a record that belongs to none: a part of an upload that never ended, or was replaced.
const NO_OBJECT: u32 = u32::MAX;

/// A record that a slot leads to.
pub(super) struct Held {
    pub(super) location: Location,
    pub(super) stamp: u8,
    object: u32,
}

struct Object {
    age_ticks: u8,
    at: (u32, u64),
}

/// Every record that a slot leads to, in the order in which they lie.
#[derive(Default)]
pub(super) struct Holdings {
    pub(super) records: Vec<Held>,
    objects: Vec<Object>,
    /// The records of each block.
    by_block: Vec<Range<usize>>,
}

/// What a store has room for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Blocks that there are, the first ones of the store.
    pub(super) blocks: u32,
    /// Blocks that may hold something.
    pub(super) used_blocks_max: u64,
    pub(super) block_bytes: u64,
    pub(super) slots_max: u64,
}

/// What would be, or was, dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShrinkLoss {
    /// Blobs, action results and other values.
    pub objects: u64,
    /// Bytes of their records.
    pub record_bytes: u64,
    /// How many ticks ago the one of them that was wanted last was wanted …
    pub youngest_age_ticks: u8,
    /// … and the one that was wanted longest ago (7: or before).
    pub oldest_age_ticks: u8,
    /// Objects that are kept.
    pub kept_objects: u64,
}

/// What of the holdings stays, and where.
pub(super) struct Choice {
    kept: Vec<bool>,
    /// Blocks whose records stay in their places.
    pub(super) stays: Vec<bool>,
}

impl Choice {
    pub(super) fn keeps(&self, held: &Held) -> bool {
        self.kept.get(held.object as usize).copied().unwrap_or(false)
    }
}

/// Whether a record of this length has its pages for itself.
pub(super) fn is_paged(extent_bytes: u32) -> bool {
    // Between the longest packed record and the shortest paged one.
    extent_bytes as usize > PACKED_BYTES_MAX + PAGE_BYTES
}

/// Where the next record of this length goes in a block that is filled up to `at`.
pub(super) fn aligned(at: u64, extent_bytes: u32) -> u64 {
    if is_paged(extent_bytes) { at.next_multiple_of(PAGE_BYTES as u64) } else { at }
}

impl Holdings {
    /// Reads the head of every record.
    ///
    /// # Errors
    /// The first one that is damaged: what it is cannot be told, so nothing can be said of what is kept.
    pub(super) async fn read(store: &Arc<OfflineStore>, mut progress: impl FnMut(u64)) -> Result<Self, OpenError> {
        let mut out = Self::default();
        let mut uploads: HashMap<[u8; 16], u32> = HashMap::new();
        let mut parts: Vec<(usize, [u8; 16])> = Vec::new();
        let mut large: Vec<(u32, Record)> = Vec::new();
        let mut bad: Option<BadRecord> = None;
        let mut start = 0;
        let options = VisitOptions { want: Want::Heads, ..VisitOptions::default() };
        let _ = store
            .visit(0..store.block_count(), &options, |visited| {
                match visited {
                    Visited::Record(record, _) => {
                        let object = match record.upload_id {
                            Some(upload) => {
                                parts.push((out.records.len(), upload));
                                NO_OBJECT
                            }
                            None => {
                                let object = out.objects.len() as u32;
                                out.objects.push(Object { age_ticks: record.age_ticks, at: (record.epoch, record.lsn) });
                                if record.kind == RecordKind::LargeObject {
                                    large.push((object, record));
                                }
                                object
                            }
                        };
                        out.records.push(Held { location: record.location, stamp: record.stamp, object });
                    }
                    Visited::Bad(record) => {
                        bad = Some(record);
                        return ControlFlow::Break(());
                    }
                    Visited::Read(bytes) => progress(bytes),
                    Visited::BlockEnd(_) => {
                        out.by_block.push(start..out.records.len());
                        start = out.records.len();
                    }
                }
                ControlFlow::Continue(())
            })
            .await;
        if let Some(bad) = bad {
            return Err(damaged_record(bad.offset_bytes));
        }
        for (object, record) in large {
            match upload_of(store, &record).await {
                Some(upload) => uploads.insert(upload, object),
                None => return Err(damaged_record(record.offset_bytes)),
            };
        }
        for (at, upload) in parts {
            if let (Some(held), Some(object)) = (out.records.get_mut(at), uploads.get(&upload)) {
                held.object = *object;
            }
        }
        Ok(out)
    }

    /// The records of a block.
    pub(super) fn of_block(&self, physical: u32) -> Range<usize> {
        self.by_block.get(physical as usize).cloned().unwrap_or_default()
    }

    /// The newest objects for which there is room.
    pub(super) fn choose(&self, room: &Room) -> Choice {
        let mut order: Vec<u32> = (0..self.objects.len() as u32).collect();
        order.sort_by_key(|at| self.objects.get(*at as usize).map(|object| (object.age_ticks, Reverse(object.at))));
        let fits = |n: usize| {
            let mut kept = vec![false; self.objects.len()];
            for at in order.iter().take(n) {
                if let Some(kept) = kept.get_mut(*at as usize) {
                    *kept = true;
                }
            }
            self.arrange(kept, room)
        };
        if let Some(all) = fits(order.len()) {
            return all;
        }
        // The most of which it is known that they fit, and the fewest of which it is known that they do not.
        let (mut least, mut most) = (0, order.len());
        let mut best = None;
        while most - least > 1 {
            let middle = least + (most - least) / 2;
            match fits(middle) {
                Some(choice) => (least, best) = (middle, Some(choice)),
                None => most = middle,
            }
        }
        best.unwrap_or_else(|| Choice { kept: vec![false; self.objects.len()], stays: vec![false; self.by_block.len()] })
    }

    /// Which blocks can stay as they are so that all that is kept has room: as many as possible, and of those that can the fullest.
    fn arrange(&self, kept: Vec<bool>, room: &Room) -> Option<Choice> {
        let mut choice = Choice { kept, stays: vec![false; self.by_block.len()] };
        let mut slots = 0;
        let mut below: Vec<(u64, u32)> = Vec::new();
        for (physical, range) in (0u32..).zip(&self.by_block) {
            let kept = self.records.get(range.clone()).unwrap_or_default().iter().filter(|held| choice.keeps(held));
            let (n, bytes) = kept.fold((0, 0), |(n, bytes), held| (n + 1, bytes + u64::from(held.location.extent_bytes)));
            slots += n;
            if physical < room.blocks && n > 0 {
                below.push((bytes, physical));
            }
        }
        if slots > room.slots_max {
            return None;
        }
        below.sort_unstable_by_key(|(bytes, physical)| (Reverse(*bytes), *physical));
        let set = |choice: &mut Choice, staying: usize| {
            for (rank, (_, physical)) in below.iter().enumerate() {
                if let Some(stays) = choice.stays.get_mut(*physical as usize) {
                    *stays = rank < staying;
                }
            }
        };
        let mut enough = |staying: usize| {
            set(&mut choice, staying);
            staying as u64 + self.blocks_to_copy(&choice, room) <= room.used_blocks_max
        };
        let (mut least, mut most) = (0, below.len() + 1);
        if !enough(0) {
            return None;
        }
        while most - least > 1 {
            let middle = least + (most - least) / 2;
            if enough(middle) { least = middle } else { most = middle }
        }
        set(&mut choice, least);
        Some(choice)
    }

    /// Blocks that the copies of all that does not stay take, and one for what is lost at the ends of writes.
    fn blocks_to_copy(&self, choice: &Choice, room: &Room) -> u64 {
        let usable = room.block_bytes - room.block_bytes / 128;
        let (mut blocks, mut at) = (0u64, u64::MAX);
        for (range, _) in self.by_block.iter().zip(&choice.stays).filter(|(_, stays)| !**stays) {
            for held in self.records.get(range.clone()).unwrap_or_default().iter().filter(|held| choice.keeps(held)) {
                let bytes = u64::from(held.location.extent_bytes);
                if at == u64::MAX || aligned(at, held.location.extent_bytes) + bytes > usable {
                    blocks += 1;
                    at = PAGE_BYTES as u64;
                }
                at = aligned(at, held.location.extent_bytes) + bytes;
            }
        }
        blocks + u64::from(blocks > 0)
    }

    /// What is not kept.
    pub(super) fn loss(&self, choice: &Choice) -> ShrinkLoss {
        let mut loss = ShrinkLoss { youngest_age_ticks: u8::MAX, ..ShrinkLoss::default() };
        for (object, kept) in self.objects.iter().zip(&choice.kept) {
            if *kept {
                loss.kept_objects += 1;
                continue;
            }
            loss.objects += 1;
            loss.youngest_age_ticks = loss.youngest_age_ticks.min(object.age_ticks);
            loss.oldest_age_ticks = loss.oldest_age_ticks.max(object.age_ticks);
        }
        let lost = self.records.iter().filter(|held| held.object != NO_OBJECT && !choice.keeps(held));
        loss.record_bytes = lost.map(|held| u64::from(held.location.extent_bytes)).sum();
        if loss.objects == 0 {
            loss.youngest_age_ticks = 0;
        }
        loss
    }
}

/// Why the store cannot shrink.
pub(super) fn damaged_record(offset_bytes: u64) -> OpenError {
    OpenError::Unusable(format!("the record at byte {offset_bytes} is damaged or cannot be read: repair the store before it shrinks"))
}

/// The upload whose parts a large object has.
async fn upload_of(store: &OfflineStore, record: &Record) -> Option<[u8; 16]> {
    let Location { hash, kind, place, .. } = record.location;
    let slots = store.state.table.find(&hash, kind, Some(SizeCheck::of(record.size_bytes)));
    let slot = slots.iter().find(|slot| slot.place == place && slot.kind == SlotKind::Manifest)?;
    let bytes = store.alone(&slot).await.ok()?;
    let (head, payload): (RecordHead, _) = store.verified(place, &bytes).ok()?;
    matches!(head.key, RecordKey::Object(_))
        .then(|| Manifest::decode(&payload, head.logical_bytes))
        .flatten()
        .map(|manifest| manifest.upload_id)
}
