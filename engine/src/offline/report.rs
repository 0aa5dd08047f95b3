//! What a store is, in plain numbers.
//!
//! Always true here: every number comes from a structure that passed its checksum, or from counting the slots that lead to it.

use crate::{
    format::{image::BlockRow, superblock::Superblock},
    map::census::STAMPS,
    recover::State,
    superblocks::{Copy, CopyState},
};

/// What is where a copy of the superblock belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SuperblockCopy {
    /// Whole.
    Whole(SuperblockReport),
    /// Ours, but its checksum fails.
    Damaged,
    /// Something else.
    Absent,
    /// Ours, by a later version of this program.
    TooNew,
    /// The device cannot read it.
    Unreadable,
}

/// One of the four copies of the superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopyReport {
    /// Where on the device it belongs.
    pub offset_bytes: u64,
    /// What is there.
    pub copy: SuperblockCopy,
}

impl CopyReport {
    pub(super) fn of(copy: &Copy) -> Self {
        let state = match &copy.state {
            CopyState::Whole(superblock) => SuperblockCopy::Whole(SuperblockReport::of(superblock)),
            CopyState::Damaged => SuperblockCopy::Damaged,
            CopyState::Foreign => SuperblockCopy::Absent,
            CopyState::TooNew { .. } => SuperblockCopy::TooNew,
            CopyState::Unreadable(_) => SuperblockCopy::Unreadable,
        };
        Self { offset_bytes: copy.offset, copy: state }
    }

    /// Whether it is there and passes its checksum.
    pub fn is_whole(&self) -> bool {
        matches!(self.copy, SuperblockCopy::Whole(_))
    }
}

/// What a superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SuperblockReport {
    /// Counts superblocks that were written.
    pub sequence: u64,
    /// Counts openings.
    pub epoch: u32,
    /// Whether the store was closed in order.
    pub clean: bool,
    /// Bytes of the store.
    pub store_bytes: u64,
    /// Logical sector size of the device when the store was made.
    pub sector_bytes: u32,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Blocks.
    pub block_count: u32,
    /// Distance of two tenants of one block, in virtual block numbers.
    pub vbn_stride: u32,
    /// Units of the table.
    pub table_units: u32,
    /// Where the log begins.
    pub log_offset_bytes: u64,
    /// Length of the log.
    pub log_bytes: u64,
    /// Where the two images begin.
    pub image_offsets_bytes: [u64; 2],
    /// Where block 0 begins.
    pub blocks_offset_bytes: u64,
    /// The image in force: number (0: none).
    pub image_number: u64,
    /// … and slot (0 is A, 1 is B).
    pub image_slot: u8,
    /// … and the log position behind which replay begins.
    pub image_replay_after: u64,
    /// The image before it: number.
    pub previous_image_number: u64,
    /// Everything up to this log position was flushed when the superblock was written.
    pub mark: u64,
}

impl SuperblockReport {
    pub(super) fn of(s: &Superblock) -> Self {
        Self {
            sequence: s.sequence,
            epoch: s.epoch.0,
            clean: s.clean,
            store_bytes: s.device_bytes,
            sector_bytes: s.sector_bytes,
            block_bytes: s.block_bytes,
            block_count: s.block_count,
            vbn_stride: s.vbn_stride,
            table_units: s.table_units,
            log_offset_bytes: s.log_offset,
            log_bytes: s.log_bytes,
            image_offsets_bytes: s.image_offsets,
            blocks_offset_bytes: s.blocks_offset,
            image_number: s.image.number,
            image_slot: s.image.slot,
            image_replay_after: s.image.replay_after.0,
            previous_image_number: s.previous_image.number,
            mark: s.mark.0,
        }
    }
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
    /// Log positions given out since: its age.
    pub entries_behind: u64,
}

/// What a block is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// It holds nothing.
    Free,
    /// Records may still be added.
    Open,
    /// It is full.
    Sealed,
}

/// One block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockReport {
    /// What it is used for, as an opening would find it.
    pub state: BlockState,
    /// Its tenant, or the last one (0: never used).
    pub vbn: u32,
    /// End of the last record in it; 0 where that is not known.
    pub filled_bytes: u64,
    /// Bytes of the records that slots lead to (rounded up to length classes), by age in ticks.
    pub bytes_by_age: [u64; STAMPS],
    /// Slots that lead to it.
    pub live_slots: u64,
}

impl BlockReport {
    pub(super) fn of(state: &State, physical: u32, row: &BlockRow) -> Self {
        let tally = state.census.tally(physical);
        let mut bytes_by_age = [0; STAMPS];
        for (stamp, bytes) in (0u64..).zip(tally.bytes) {
            bytes_by_age[(state.tick.wrapping_sub(stamp) & 7) as usize] += bytes;
        }
        Self {
            state: match (row.live, row.sealed) {
                (false, _) => BlockState::Free,
                (true, false) => BlockState::Open,
                (true, true) => BlockState::Sealed,
            },
            vbn: row.vbn.0,
            filled_bytes: u64::from(row.fill_bytes),
            bytes_by_age,
            live_slots: tally.slots.iter().sum(),
        }
    }

    /// Bytes of the records that slots lead to, rounded up to length classes.
    pub fn live_bytes(&self) -> u64 {
        self.bytes_by_age.iter().sum()
    }

    /// The age in ticks (0 to 7) of what was wanted last in it; `None` if it holds nothing.
    pub fn youngest_age_ticks(&self) -> Option<u8> {
        (0u8..).zip(self.bytes_by_age).find(|(_, bytes)| *bytes > 0).map(|(age, _)| age)
    }
}

/// Blocks by what they are used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockSums {
    /// Blocks that hold nothing.
    pub free: u32,
    /// Blocks to which records may still be added.
    pub open: u32,
    /// Full blocks.
    pub sealed: u32,
}

impl BlockSums {
    pub(super) fn of(blocks: &[BlockReport]) -> Self {
        let mut sums = Self::default();
        for block in blocks {
            match block.state {
                BlockState::Free => sums.free += 1,
                BlockState::Open => sums.open += 1,
                BlockState::Sealed => sums.sealed += 1,
            }
        }
        sums
    }
}

/// What decides how long things stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetentionReport {
    /// Bytes of the blocks that are not reserved.
    pub capacity_bytes: u64,
    /// What is wanted stays while less than this is accepted after it.
    pub window_bytes: u64,
    /// The age clock: ticks of a quarter of the window.
    pub tick: u64,
    /// Slots in use from which blocks are reclaimed for the table's sake.
    pub reclaim_slots: u64,
    /// Blocks below which room is made.
    pub spare_blocks_wanted: u64,
}

/// What an opening would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// Bytes that it reads.
    pub read_bytes: u64,
    /// Log entries that it goes through.
    pub log_entries: u64,
    /// Bytes of records that it verifies, because no flush is known to cover them.
    pub unflushed_bytes: u64,
    /// Log entries that it voids, because nothing durable stands behind them.
    pub void_entries: u64,
}

/// What a store is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoreReport {
    /// The store's identity.
    pub uuid: [u8; 16],
    /// The four superblocks, in the order in which they lie.
    pub copies: [CopyReport; 4],
    /// The one that this report goes by.
    pub superblock: SuperblockReport,
    /// Whether two copies say the same, without which the store cannot be opened.
    pub superblocks_agree: bool,
    /// Bytes of the device, which may be more than the store's.
    pub device_bytes: u64,
    /// Blocks by use.
    pub sums: BlockSums,
    /// Every block.
    pub blocks: Vec<BlockReport>,
    /// The image that an opening starts from, if there is one.
    pub image: Option<ImageReport>,
    /// Pages of the log, of 4 KiB.
    pub log_pages: u64,
    /// Pages of the log that an opening would replay.
    pub log_used_pages: u64,
    /// The last log position that counts.
    pub last_lsn: u64,
    /// Everything up to this log position is known to be flushed.
    pub durable_lsn: u64,
    /// Slots of the table.
    pub slots: u64,
    /// Slots in use.
    pub live_slots: u64,
    /// … by objects of one record under content keys.
    pub contents: u64,
    /// … by values under named keys.
    pub named: u64,
    /// … by parts of large objects.
    pub parts: u64,
    /// … by large objects.
    pub large_objects: u64,
    /// Bytes of the records that slots lead to (rounded up to length classes).
    pub live_bytes: u64,
    /// The same, by age in ticks.
    pub bytes_by_age: [u64; STAMPS],
    /// Slots by age in ticks.
    pub slots_by_age: [u64; STAMPS],
    /// Slots by the length class of their records: (longest record of the class, slots), empty ones left out.
    pub slots_by_record_bytes_max: Vec<(u64, u64)>,
    /// What decides how long things stay.
    pub retention: RetentionReport,
    /// What an opening would do.
    pub recovery: RecoveryReport,
    /// Damaged pages and entries of the log.
    pub damaged_entries: u64,
    /// Damaged units of the image.
    pub damaged_units: u64,
    /// Damaged block headers.
    pub damaged_heads: u64,
}

impl StoreReport {
    /// Superblocks that are not whole.
    pub fn damaged_superblocks(&self) -> u64 {
        self.copies.iter().filter(|copy| !copy.is_whole()).count() as u64
    }

    /// Whether something beside records is damaged: superblocks, log, image or block headers.
    pub fn is_damaged(&self) -> bool {
        self.damaged_superblocks() > 0
            || !self.superblocks_agree
            || self.damaged_entries > 0
            || self.damaged_units > 0
            || self.damaged_heads > 0
    }
}
