//! Looking at a store that nobody has open: what it is, and whether what its map leads to is whole.
//!
//! Always true here: nothing is written, also not where opening the store would; memory is bounded by the table and one block's
//! slots.

use crate::{
    device::{AlignedBuf, Device, PAGE_BYTES},
    error::OpenError,
    format::{
        crc::CHUNK_BYTES,
        layout::Layout,
        record::{Manifest, RecordFault, RecordHead, RecordKey, RecordKind},
        superblock::{Superblock, SuperblockFault},
        types::{Place, SizeCheck, SlotKind},
    },
    map::table::Found,
    recover::{State, read_state},
};
use futures::{StreamExt, stream};
use std::sync::Arc;

/// Payload bytes that one read carries.
const PIECE_BYTES: usize = 1 << 20;
const PIECE_CHUNKS: usize = PIECE_BYTES / CHUNK_BYTES;
/// Reads that are in flight at once.
const READS_MAX: usize = 32;

/// One of the four superblocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SuperblockCopy {
    /// Whole, with its sequence number.
    Whole(u64),
    /// Ours, but its checksum fails.
    Damaged,
    /// Something else, or unreadable.
    Absent,
}

/// An image of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageReport {
    /// 0 is A, 1 is B.
    pub slot: u8,
    /// Counts images from 1.
    pub number: u64,
    /// The log is replayed behind this position.
    pub replay_after: u64,
}

/// Blocks by what they are used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockReport {
    /// Blocks that hold nothing.
    pub free: u32,
    /// Blocks to which records may still be added.
    pub open: u32,
    /// Full blocks.
    pub sealed: u32,
}

/// What a store is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoreReport {
    /// The store's identity.
    pub uuid: [u8; 16],
    /// The four superblocks, in the order in which they lie.
    pub superblocks: [SuperblockCopy; 4],
    /// How often it was opened.
    pub epoch: u32,
    /// Whether it was closed in order.
    pub clean: bool,
    /// Bytes of the device.
    pub device_bytes: u64,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Blocks.
    pub block_count: u32,
    /// Blocks by use, as an opening would find them.
    pub blocks: BlockReport,
    /// Pages of the log, of 4 KiB.
    pub log_pages: u64,
    /// Pages of the log that an opening would replay.
    pub log_used_pages: u64,
    /// Entries in them.
    pub log_entries: u64,
    /// The image that an opening starts from, if there is one.
    pub image: Option<ImageReport>,
    /// Slots of the table.
    pub slots: u64,
    /// Slots in use: objects, and parts of large ones.
    pub live_slots: u64,
    /// Bytes of the records that slots lead to (rounded up to length classes).
    pub live_bytes: u64,
    /// Log entries that an opening would void, because nothing durable stands behind them.
    pub void_entries: u64,
    /// Damaged pages and entries of the log.
    pub damaged_entries: u64,
    /// Damaged units of the image.
    pub damaged_units: u64,
    /// Damaged block headers.
    pub damaged_heads: u64,
}

impl StoreReport {
    /// Whether something beside records is damaged: superblocks, log, image or block headers.
    pub fn is_damaged(&self) -> bool {
        let superblocks = self.superblocks.iter().any(|copy| !matches!(copy, SuperblockCopy::Whole(_)));
        superblocks || self.damaged_entries > 0 || self.damaged_units > 0 || self.damaged_heads > 0
    }
}

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

/// How many records were checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Records that are whole.
    pub good: u64,
    /// Records that are not.
    pub bad: u64,
    /// Bytes of payload that were checked.
    pub payload_bytes: u64,
}

/// A store that is looked at and not opened.
pub struct OfflineStore {
    device: Arc<dyn Device>,
    state: State,
    superblocks: [SuperblockCopy; 4],
}

impl OfflineStore {
    /// Reads superblocks, image and log of the store on a device, as opening it would, and changes nothing.
    ///
    /// # Errors
    /// Those of opening.
    pub async fn read(device: Arc<dyn Device>) -> Result<Self, OpenError> {
        let state = read_state(&*device).await?;
        let mut superblocks = [SuperblockCopy::Absent; 4];
        for (copy, offset) in superblocks.iter_mut().zip(Layout::superblock_offsets(device.geometry().len_bytes)) {
            let (page, result) = device.read(offset, AlignedBuf::zeroed(PAGE_BYTES)).await;
            *copy = match result.map(|()| Superblock::decode(&page)) {
                Ok(Ok(superblock)) => SuperblockCopy::Whole(superblock.sequence),
                Ok(Err(SuperblockFault::Damaged)) => SuperblockCopy::Damaged,
                Ok(Err(_)) | Err(_) => SuperblockCopy::Absent,
            };
        }
        Ok(Self { device, state, superblocks })
    }

    /// What it is.
    pub fn report(&self) -> StoreReport {
        let State { superblock, layout, table, census, accepted, .. } = &self.state;
        let mut blocks = BlockReport::default();
        for row in &self.state.rows {
            match (row.live, row.sealed) {
                (false, _) => blocks.free += 1,
                (true, false) => blocks.open += 1,
                (true, true) => blocks.sealed += 1,
            }
        }
        let replay = self.state.replay;
        StoreReport {
            uuid: superblock.uuid,
            superblocks: self.superblocks,
            epoch: superblock.epoch.0,
            clean: superblock.clean,
            device_bytes: layout.device_bytes,
            block_bytes: layout.block_bytes,
            block_count: layout.block_count,
            blocks,
            log_pages: layout.log_pages,
            log_used_pages: (accepted.end.page + 1).saturating_sub(replay.replay_page),
            log_entries: accepted.entries.len() as u64,
            image: (replay.number > 0).then_some(ImageReport {
                slot: replay.slot,
                number: replay.number,
                replay_after: replay.replay_after.0,
            }),
            slots: table.slots(),
            live_slots: table.live(),
            live_bytes: census.total().bytes.iter().sum(),
            void_entries: self.state.voids.iter().map(|(first, last)| last.0 - first.0 + 1).sum(),
            damaged_entries: accepted.damaged,
            damaged_units: self.state.damaged_units,
            damaged_heads: self.state.damaged_heads,
        }
    }

    /// Reads every record that the map leads to, block by block, and tells `bad` of each that is not whole.
    pub async fn verify(&self, mut bad: impl FnMut(BadRecord)) -> VerifyReport {
        let mut report = VerifyReport::default();
        for (block, row) in (0u32..).zip(&self.state.rows).filter(|(_, row)| row.live) {
            let mut slots = self.state.table.of_block(row.vbn);
            slots.sort_unstable_by_key(|found| found.place);
            let mut checks =
                stream::iter(slots.iter().map(|found| async move { (found.place, self.check(found).await) })).buffered(READS_MAX);
            while let Some((place, checked)) = checks.next().await {
                match checked {
                    Ok(payload_bytes) => {
                        report.good += 1;
                        report.payload_bytes += payload_bytes;
                    }
                    Err(defect) => {
                        report.bad += 1;
                        let offset_bytes = self.state.layout.block_offset(block) + place.offset_bytes();
                        bad(BadRecord { block, offset_bytes, defect });
                    }
                }
            }
        }
        report
    }

    /// Bytes of the payload of a slot's record, if all of it is there.
    async fn check(&self, found: &Found) -> Result<u64, Defect> {
        let place = found.place;
        let head = self.head(place, u64::from(found.class.bytes_max())).await?;
        let hash = self.state.hasher.hash(&head.key);
        let check = match head.kind {
            RecordKind::Content | RecordKind::Manifest => Some(SizeCheck::of(head.logical_bytes)),
            _ => None,
        };
        let leads_here = |kind| self.state.table.find(&hash, kind, check).iter().any(|other| other.place == place);
        if head.kind.slot() != Some(found.kind) || !leads_here(found.kind) {
            return Err(Defect::OtherKey);
        }
        let shape = head.shape();
        let mut manifest = Vec::new();
        for first_chunk in (0..shape.chunks()).step_by(PIECE_CHUNKS) {
            let at = first_chunk * CHUNK_BYTES;
            let length = (shape.payload_bytes - at).min(PIECE_BYTES);
            let (buf, skip) = self.pages(place, place.offset_bytes() + (shape.payload_offset + at) as u64, length as u64).await?;
            let payload = buf.get(skip..skip + length).ok_or(Defect::Payload)?;
            if !head.verify(first_chunk, payload) {
                return Err(Defect::Payload);
            }
            if head.kind == RecordKind::Manifest {
                manifest.extend_from_slice(payload);
            }
        }
        if let (RecordKind::Manifest, RecordKey::Object(object)) = (head.kind, head.key) {
            let manifest = Manifest::decode(&manifest, head.logical_bytes).ok_or(Defect::Payload)?;
            let part = |index| self.state.hasher.hash(&RecordKey::Part { upload_id: manifest.upload_id, index, object });
            let is_there = |index| self.state.table.find(&part(index), SlotKind::Part, None).first().is_some();
            if !(0..manifest.stored_bytes.len() as u64).all(is_there) {
                return Err(Defect::MissingParts);
            }
        }
        Ok(shape.payload_bytes as u64)
    }

    async fn head(&self, place: Place, record_bytes_max: u64) -> Result<RecordHead, Defect> {
        let mut length = record_bytes_max.min(PAGE_BYTES as u64);
        loop {
            let (buf, skip) = self.pages(place, place.offset_bytes(), length).await?;
            let bytes = buf.get(skip..).ok_or(Defect::Head)?;
            match RecordHead::decode(&self.state.mask, place, bytes, self.state.layout.block_bytes) {
                Ok(head) => return Ok(head),
                Err(RecordFault::Short(more)) if more as u64 > length && more as u64 <= record_bytes_max => length = more as u64,
                Err(_) => return Err(Defect::Head),
            }
        }
    }

    /// `bytes` at `offset` of the place's block, and how many precede them in the buffer.
    async fn pages(&self, place: Place, offset: u64, bytes: u64) -> Result<(AlignedBuf, usize), Defect> {
        const PAGE: u64 = PAGE_BYTES as u64;
        let layout = &self.state.layout;
        let physical = layout.physical(place.vbn).ok_or(Defect::Head)?;
        let start = offset / PAGE * PAGE;
        let end = (offset + bytes).next_multiple_of(PAGE).min(layout.block_bytes);
        let length = end.checked_sub(start).and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0).ok_or(Defect::Head)?;
        let (buf, result) = self.device.read(layout.block_offset(physical) + start, AlignedBuf::take(length)).await;
        result.map_err(|_| Defect::Unreadable)?;
        Ok((buf, (offset - start) as usize))
    }
}

const _: () = assert!(PIECE_BYTES.is_multiple_of(CHUNK_BYTES));
