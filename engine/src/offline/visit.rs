//! Reading the records that the map leads to, block by block, in large sequential runs with some of them in flight.
//!
//! Always true here: what a visitor is given passed its checksums and is what its slot promises; the rest is told as bad, with the
//! reason. Memory is bounded by a sixteenth of the table's slots (or a million) and the runs in flight.

use super::{OfflineStore, PAGE};
use crate::{
    device::AlignedBuf,
    format::{
        log::Location,
        record::{Manifest, RecordFault, RecordHead, RecordKey, RecordKind as Kind},
        types::{Place, SizeCheck, SlotKind},
    },
    key::Key,
    map::table::Found,
    recover::State,
    value::Codec,
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::{
    ops::{ControlFlow, Range},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep_until};

/// Bytes of a run, unless a single record is longer.
const RUN_BYTES: u64 = 1 << 20;
/// Bytes between two records that are read rather than left out, where payloads are wanted, and where only heads are.
const GAP_BYTES_MAX: u64 = 128 << 10;
const HEAD_GAP_BYTES_MAX: u64 = 16 << 10;
/// Runs that are being read and checked at once.
const RUNS_MAX: usize = 24;
/// Slots that are sorted at once, at least.
const SORTED_SLOTS_MIN: u64 = 1 << 20;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RecordKind {
    /// A whole object under a content key.
    Content,
    /// A value under a named key.
    Named,
    /// A part of a large object.
    Part,
    /// A large object: the list of its parts.
    LargeObject,
}

/// A record that a slot leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// What it is.
    pub kind: RecordKind,
    /// The key of the object (for a part: of the one that it is a part of).
    pub key: Key,
    /// Index of a part in its object.
    pub part: Option<u64>,
    /// Size of the object (of this part of it, for a part).
    pub size_bytes: u64,
    /// How its payload stands for the bytes; of a manifest nothing of its parts.
    pub codec: Codec,
    /// Bytes that the record takes on the device.
    pub record_bytes: u64,
    /// The block that it is in.
    pub block: u32,
    /// Where on the device it starts.
    pub offset_bytes: u64,
    /// How many ticks of the age clock ago it was wanted, up to 7.
    pub age_ticks: u8,
    /// The opening in which it was put …
    pub epoch: u32,
    /// … and the log position of that put (for large ones, about).
    pub lsn: u64,
    /// What its slot is made from.
    pub(super) location: Location,
    pub(super) stamp: u8,
    /// Of a part: the upload that it came with.
    pub(super) upload_id: Option<[u8; 16]>,
}

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Defect {
    /// The device cannot read it.
    Unreadable,
    /// Its header fails its checksum.
    Head,
    /// It is the record of another key than the one whose slot leads here.
    OtherKey,
    /// Its bytes fail their checksum.
    Payload,
    /// It is the list of a large object's parts, and some of them are missing.
    MissingParts,
    /// Its bytes pass their checksums, but not [`VisitOptions::check`].
    Content,
}

/// A record that is not what its slot promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BadRecord {
    /// The block that it is in.
    pub block: u32,
    /// Where on the device it starts.
    pub offset_bytes: u64,
    /// What is wrong.
    pub defect: Defect,
    /// Whose it is, where its head could be read.
    pub key: Option<Key>,
    pub(super) slot: Found,
}

/// What is read of each record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Want {
    /// Its head; payloads are empty.
    Heads,
    /// All of it.
    #[default]
    Payloads,
}

/// Says of a record, whose payload is given, whether it is what its key says. Called on several threads.
pub type Check = Arc<dyn Fn(&Record, &[u8]) -> bool + Send + Sync>;

/// How records are visited.
#[derive(Clone, Default)]
pub struct VisitOptions {
    /// What is read.
    pub want: Want,
    /// Called for each record that passed its checksums, where payloads are wanted.
    pub check: Option<Check>,
    /// Bytes that are read in a second, at most.
    pub rate_bytes_per_s: Option<u64>,
    /// Only what was wanted this many ticks ago.
    pub age_ticks: Option<u8>,
    /// Parts of large objects are left out.
    pub without_parts: bool,
}

/// What a visitor is told.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Visited {
    /// A record that is whole.
    Record(Record, Bytes),
    /// One that is not.
    Bad(BadRecord),
    /// So many bytes were read.
    Read(u64),
    /// Every record of this block was visited.
    BlockEnd(u32),
}

/// Records that lie close together in one block.
struct Run {
    physical: u32,
    /// Bytes of the block, whole pages.
    start: u64,
    end: u64,
    found: Vec<Found>,
    last_of_block: bool,
}

impl OfflineStore {
    /// Visits the records that slots lead to in these blocks, in the order in which they lie. `each` may break it off.
    pub async fn visit(
        self: &Arc<Self>,
        blocks: Range<u32>,
        options: &VisitOptions,
        mut each: impl FnMut(Visited) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let budget = SORTED_SLOTS_MIN.max(self.state.table.slots() / 16);
        let begin = Instant::now();
        let mut paced_bytes = 0u64;
        let mut first = blocks.start;
        let end = blocks.end.min(self.state.layout.block_count);
        while first < end {
            let mut slots = self.state.census.slots(first);
            let mut last = first + 1;
            while last < end && slots + self.state.census.slots(last) <= budget {
                slots += self.state.census.slots(last);
                last += 1;
            }
            let runs = self.runs(first..last, options);
            first = last;
            let paced = stream::iter(runs).then(|run| {
                let due = options.rate_bytes_per_s.map(|rate| {
                    let due = begin + Duration::from_secs_f64(paced_bytes as f64 / rate.max(1) as f64);
                    paced_bytes += run.end - run.start;
                    due
                });
                async move {
                    if let Some(due) = due {
                        sleep_until(due).await;
                    }
                    run
                }
            });
            let mut checked = Box::pin(
                paced
                    .map(|run| {
                        let (store, options) = (self.clone(), options.clone());
                        tokio::spawn(async move { store.check_run(run, &options).await })
                    })
                    .buffered(RUNS_MAX),
            );
            while let Some(told) = checked.next().await {
                // A task that panicked would be a bug of a visitor's check: it must not pass for a block without records.
                for visited in told.expect("a check of records does not panic") {
                    each(visited)?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn runs(&self, blocks: Range<u32>, options: &VisitOptions) -> Vec<Run> {
        let State { layout, table, .. } = &self.state;
        let mut found: Vec<(u32, Found)> = Vec::new();
        table.for_each(|slot| {
            let Some(physical) = layout.physical(slot.place.vbn).filter(|physical| blocks.contains(physical)) else { return };
            let wanted = options.age_ticks.is_none_or(|age| self.age(slot.stamp) == age)
                && !(options.without_parts && slot.kind == SlotKind::Part)
                && self.state.census.is_live(slot.place.vbn);
            if wanted {
                found.push((physical, slot));
            }
        });
        found.sort_unstable_by_key(|(physical, slot)| (*physical, slot.place.granule));
        let (gap_bytes_max, bytes_of): (u64, fn(&Found) -> u64) = match options.want {
            Want::Payloads => (GAP_BYTES_MAX, |slot| u64::from(slot.class.bytes_max())),
            Want::Heads => (HEAD_GAP_BYTES_MAX, |slot| u64::from(slot.class.bytes_max()).min(PAGE)),
        };
        let mut runs: Vec<Run> = Vec::new();
        let mut next = blocks.start;
        let ends: Vec<u64> = found
            .iter()
            .zip(found.iter().skip(1).map(Some).chain([None]))
            .map(|((physical, slot), next)| {
                let at = slot.place.offset_bytes();
                // Lengths are known to an eighth: it ends before the next one begins.
                let next = next
                    .filter(|(other, next)| other == physical && next.place > slot.place)
                    .map_or(u64::MAX, |(_, next)| next.place.offset_bytes());
                (at + bytes_of(slot)).min(next).next_multiple_of(PAGE).clamp(PAGE, layout.block_bytes)
            })
            .collect();
        for ((physical, slot), end) in found.into_iter().zip(ends) {
            // A place behind the block's end, which no slot should say, ends as a record that is not there.
            let start = (slot.place.offset_bytes() / PAGE * PAGE).min(end - PAGE);
            match runs.last_mut() {
                Some(run)
                    if run.physical == physical
                        && !run.found.is_empty()
                        && start <= run.end + gap_bytes_max
                        && end.saturating_sub(run.start) <= RUN_BYTES =>
                {
                    run.end = run.end.max(end);
                    run.found.push(slot);
                }
                _ => {
                    while next < physical {
                        end_block(&mut runs, next);
                        next += 1;
                    }
                    runs.push(Run { physical, start, end, found: vec![slot], last_of_block: false });
                }
            }
        }
        for physical in next..blocks.end {
            end_block(&mut runs, physical);
        }
        runs
    }

    async fn check_run(&self, run: Run, options: &VisitOptions) -> Vec<Visited> {
        let mut told = Vec::with_capacity(run.found.len() + 2);
        if !run.found.is_empty() {
            let whole = self.pages(run.physical, run.start, run.end).await;
            told.push(Visited::Read(run.end - run.start));
            for slot in &run.found {
                let skip = (slot.place.offset_bytes() - run.start) as usize;
                let skip = whole.as_ref().map(|bytes| bytes.slice(skip.min(bytes.len())..));
                told.push(match self.check_slot(slot, skip, options).await {
                    Ok((record, payload)) => Visited::Record(record, payload),
                    Err((defect, key)) => Visited::Bad(BadRecord {
                        block: run.physical,
                        offset_bytes: self.state.layout.block_offset(run.physical) + slot.place.offset_bytes(),
                        defect,
                        key,
                        slot: *slot,
                    }),
                });
            }
        }
        if run.last_of_block {
            told.push(Visited::BlockEnd(run.physical));
        }
        told
    }

    /// Checks the record of a slot. `bytes` begin with it, as far as they were read.
    async fn check_slot(
        &self,
        slot: &Found,
        bytes: Option<Bytes>,
        options: &VisitOptions,
    ) -> Result<(Record, Bytes), (Defect, Option<Key>)> {
        let bytes = match bytes {
            Some(bytes) => bytes,
            // The run could not be read as one: a neighbour may be what is unreadable.
            None => self.alone(slot).await.map_err(|defect| (defect, None))?,
        };
        let (head, payload) = match options.want {
            Want::Payloads => match self.verified(slot.place, &bytes) {
                Ok(verified) => verified,
                // Read for itself before it is judged: what bounded the run may itself be wrong.
                Err(_) => {
                    let bytes = self.alone(slot).await.map_err(|defect| (defect, None))?;
                    self.verified(slot.place, &bytes)?
                }
            },
            Want::Heads => (self.head(slot.place, &bytes).await.map_err(|defect| (defect, None))?, Bytes::new()),
        };
        let key = object_key(&head);
        let hash = self.state.hasher.hash(&head.key);
        let check = SizeCheck::of(head.logical_bytes);
        let own = head.kind.slot() == Some(slot.kind)
            && self.state.table.find(&hash, slot.kind, Some(check)).iter().any(|found| found.place == slot.place);
        if !own {
            return Err((Defect::OtherKey, Some(key)));
        }
        let record = self.record(&head, slot);
        if options.want == Want::Payloads {
            if head.kind == Kind::Manifest && !self.parts_are_there(&head, &payload) {
                return Err((Defect::MissingParts, Some(key)));
            }
            if options.check.as_ref().is_some_and(|check| !check(&record, &payload)) {
                return Err((Defect::Content, Some(key)));
            }
        }
        Ok((record, payload))
    }

    pub(super) fn record(&self, head: &RecordHead, slot: &Found) -> Record {
        let block = self.state.layout.physical(slot.place.vbn).unwrap_or_default();
        Record {
            kind: match head.kind {
                Kind::Content => RecordKind::Content,
                // No slot leads to a tombstone.
                Kind::Named | Kind::Tombstone => RecordKind::Named,
                Kind::Part => RecordKind::Part,
                Kind::Manifest => RecordKind::LargeObject,
            },
            key: object_key(head),
            part: match head.key {
                RecordKey::Part { index, .. } => Some(index),
                RecordKey::Object(_) => None,
            },
            size_bytes: head.logical_bytes,
            codec: head.codec,
            record_bytes: head.shape().extent_bytes as u64,
            block,
            offset_bytes: self.state.layout.block_offset(block) + slot.place.offset_bytes(),
            age_ticks: self.age(slot.stamp),
            epoch: head.epoch.0,
            lsn: head.lsn.0,
            location: Location {
                hash: self.state.hasher.hash(&head.key),
                kind: slot.kind,
                check: SizeCheck::of(head.logical_bytes),
                place: slot.place,
                extent_bytes: head.shape().extent_bytes as u32,
            },
            stamp: slot.stamp,
            upload_id: match head.key {
                RecordKey::Part { upload_id, .. } => Some(upload_id),
                RecordKey::Object(_) => None,
            },
        }
    }

    fn parts_are_there(&self, head: &RecordHead, payload: &[u8]) -> bool {
        let (RecordKey::Object(object), Some(manifest)) = (head.key, Manifest::decode(payload, head.logical_bytes)) else { return false };
        (0..manifest.stored_bytes.len() as u64).all(|index| {
            let part = self.state.hasher.hash(&RecordKey::Part { upload_id: manifest.upload_id, index, object });
            self.state.table.find(&part, SlotKind::Part, None).first().is_some()
        })
    }

    /// The record at `place`, which `bytes` begin with, if every byte of it passes its checksum.
    pub(super) fn verified(&self, place: Place, bytes: &Bytes) -> Result<(RecordHead, Bytes), (Defect, Option<Key>)> {
        let head = RecordHead::decode(&self.state.mask, place, bytes, self.state.layout.block_bytes).map_err(|_| (Defect::Head, None))?;
        let shape = head.shape();
        let range = shape.payload_offset..shape.payload_offset + shape.payload_bytes;
        match bytes.get(range.clone()).is_some_and(|payload| head.verify(0, payload)) {
            true => Ok((head, bytes.slice(range))),
            false => Err((Defect::Payload, Some(object_key(&head)))),
        }
    }

    /// The head at `place`, which `bytes` begin with, as far as they go.
    async fn head(&self, place: Place, bytes: &Bytes) -> Result<RecordHead, Defect> {
        let block_bytes = self.state.layout.block_bytes;
        let short = match RecordHead::decode(&self.state.mask, place, bytes, block_bytes) {
            Ok(head) => return Ok(head),
            Err(RecordFault::Short(more)) => more as u64,
            Err(RecordFault::Bad) => return Err(Defect::Head),
        };
        let bytes = self.at(place, short).await?;
        RecordHead::decode(&self.state.mask, place, &bytes, block_bytes).map_err(|_| Defect::Head)
    }

    /// The bytes of one slot's record, read for itself, and exactly as far as its head says where more cannot be read.
    pub(super) async fn alone(&self, slot: &Found) -> Result<Bytes, Defect> {
        if let Ok(bytes) = self.at(slot.place, u64::from(slot.class.bytes_max())).await {
            return Ok(bytes);
        }
        let first = self.at(slot.place, 64).await?;
        let head = self.head(slot.place, &first).await?;
        self.at(slot.place, head.shape().extent_bytes as u64).await
    }

    /// About `bytes` of the device from `place` on.
    pub(super) async fn at(&self, place: Place, bytes: u64) -> Result<Bytes, Defect> {
        let layout = &self.state.layout;
        let physical = layout.physical(place.vbn).ok_or(Defect::Head)?;
        let at = place.offset_bytes();
        let start = at / PAGE * PAGE;
        let end = at.saturating_add(bytes).next_multiple_of(PAGE).min(layout.block_bytes);
        if end <= at {
            return Err(Defect::Head);
        }
        let pages = self.pages(physical, start, end).await.ok_or(Defect::Unreadable)?;
        Ok(pages.slice((at - start) as usize..))
    }

    async fn pages(&self, physical: u32, start: u64, end: u64) -> Option<Bytes> {
        let buf = AlignedBuf::take(usize::try_from(end.checked_sub(start)?).ok()?);
        let (buf, result) = self.device.read(self.state.layout.block_offset(physical) + start, buf).await;
        result.ok().map(|()| Bytes::from_owner(buf))
    }
}

fn end_block(runs: &mut Vec<Run>, physical: u32) {
    match runs.last_mut().filter(|run| run.physical == physical) {
        Some(run) => run.last_of_block = true,
        None => runs.push(Run { physical, start: 0, end: 0, found: Vec::new(), last_of_block: true }),
    }
}

/// The key of the object that a record is, or is a part of.
pub(super) fn object_key(head: &RecordHead) -> Key {
    match head.key {
        RecordKey::Object(key) => key,
        RecordKey::Part { object, .. } => object,
    }
}
