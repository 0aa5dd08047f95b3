//! Looking after a store that nobody has open: what it is, whether what its map leads to is whole, and what is in it; and, in the
//! modules whose names say so, putting it right.
//!
//! Always true here: nothing is written by what reads, also not where opening the store would; memory is bounded by the table, a
//! sixteenth of its slots, and what is being read; whatever lies on the device ends in a report or an error, never in a panic.

use crate::{
    device::{Device, PAGE_BYTES},
    error::OpenError,
    format::{
        layout::{CARRY_BLOCKS, LOAD_RECLAIM_PERCENT},
        superblock::Superblock,
        types::{LengthClass, SlotKind},
    },
    map::census::STAMPS,
    recover::{State, layout_on, load},
    superblocks::{self, Copy, CopyState},
};
use std::sync::Arc;

mod fresh;
mod grow;
mod object;
mod rebuild;
mod repair;
mod report;
mod shrink;
mod structures;
mod visit;
mod walk;

pub use grow::{GrowReport, grow, grown_bytes_min};
pub use object::OfflineObject;
pub use rebuild::{RebuildReport, rebuild};
pub use repair::{RepairReport, repair};
pub use report::{
    BlockReport, BlockState, BlockSums, CopyReport, ImageReport, RecoveryReport, RetentionReport, StoreReport, SuperblockCopy,
    SuperblockReport,
};
pub use shrink::{Shrink, ShrinkLoss, ShrinkReport, shrunk_bytes_min};
pub use structures::StructureReport;
pub use visit::{BadRecord, Check, Defect, Record, RecordKind, VisitOptions, Visited, Want};

/// How sure one must be of the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Two copies must say the same, as for an opening.
    Two,
    /// One copy will do where no two agree: for looking, and for putting it right.
    One,
}

/// A store that is looked at and not opened.
pub struct OfflineStore {
    device: Arc<dyn Device>,
    state: State,
    copies: [Copy; 4],
    /// The order in which the next superblock must be written.
    order: [usize; 4],
    agreed: bool,
}

/// What the four copies of the superblock are, of whatever is on the device.
///
/// # Errors
/// The device is too small to hold a store.
pub async fn superblocks(device: &dyn Device) -> Result<[CopyReport; 4], OpenError> {
    let copies = superblocks::read_copies(device).await?;
    Ok(copies.each_ref().map(CopyReport::of))
}

/// The superblock in force, the order in which the next one must be written, and whether two copies agree on it.
fn choose(copies: &[Copy; 4], trust: Trust) -> Result<(Superblock, [usize; 4], bool), OpenError> {
    let error = match superblocks::in_force(copies) {
        Ok((superblock, order)) => return Ok((superblock, order, true)),
        Err(error) => error,
    };
    let too_new = copies.iter().any(|copy| matches!(copy.state, CopyState::TooNew { .. }));
    match copies.iter().filter_map(Copy::whole).max_by_key(|copy| copy.sequence) {
        Some(only) if trust == Trust::One && !too_new => Ok((only.clone(), superblocks::order_after(copies, only), false)),
        _ => Err(error),
    }
}

impl OfflineStore {
    /// Reads superblocks, image and log of the store on a device, as opening it would, and changes nothing.
    ///
    /// # Errors
    /// Those of opening, but for what `trust` lets pass.
    pub async fn read(device: Arc<dyn Device>, trust: Trust) -> Result<Self, OpenError> {
        let copies = superblocks::read_copies(&*device).await?;
        let (superblock, order, agreed) = choose(&copies, trust)?;
        let layout = layout_on(&*device, &superblock)?;
        let state = load(&*device, superblock, layout).await?;
        Ok(Self { device, state, copies, order, agreed })
    }

    /// What it is.
    pub fn report(&self) -> StoreReport {
        let State { superblock, layout, table, census, accepted, replay, .. } = &self.state;
        let total = census.total();
        let by_age = |stamps: &[u64; STAMPS]| {
            let mut out = [0; STAMPS];
            stamps.iter().zip(0u8..).for_each(|(n, stamp)| out[usize::from(self.age(stamp))] += n);
            out
        };
        let blocks: Vec<BlockReport> =
            (0..).zip(&self.state.rows).map(|(physical, row)| BlockReport::of(&self.state, physical, row)).collect();
        let mut sizes = [0u64; 128];
        let mut kinds = [0u64; 4];
        table.for_each(|found| {
            if let Some(n) = sizes.get_mut(usize::from(found.class.0)) {
                *n += 1;
            }
            kinds[found.kind as usize] += 1;
        });
        let log_used_pages = (accepted.end.page + 1).saturating_sub(replay.replay_page);
        StoreReport {
            uuid: superblock.uuid,
            copies: self.copies.each_ref().map(CopyReport::of),
            superblock: SuperblockReport::of(superblock),
            superblocks_agree: self.agreed,
            device_bytes: self.device.geometry().len_bytes,
            sums: BlockSums::of(&blocks),
            blocks,
            image: (replay.number > 0).then_some(ImageReport {
                slot: replay.slot,
                number: replay.number,
                replay_after: replay.replay_after.0,
                entries_behind: accepted.end.next.prev().0.saturating_sub(replay.replay_after.0),
            }),
            log_pages: layout.log_pages,
            log_used_pages,
            last_lsn: accepted.end.next.prev().0,
            durable_lsn: accepted.mark.0,
            slots: table.slots(),
            live_slots: table.live(),
            contents: kinds[SlotKind::Content as usize],
            named: kinds[SlotKind::Named as usize],
            parts: kinds[SlotKind::Part as usize],
            large_objects: kinds[SlotKind::Manifest as usize],
            live_bytes: total.bytes.iter().sum(),
            bytes_by_age: by_age(&total.bytes),
            slots_by_age: by_age(&total.slots),
            slots_by_record_bytes_max: (0u8..)
                .zip(sizes)
                .filter(|(_, n)| *n > 0)
                .map(|(class, n)| (u64::from(LengthClass(class).bytes_max()), n))
                .collect(),
            retention: RetentionReport {
                capacity_bytes: layout.capacity_bytes(),
                window_bytes: layout.capacity_bytes() / 4,
                tick: self.state.tick,
                reclaim_slots: table.slots() * LOAD_RECLAIM_PERCENT / 100,
                spare_blocks_wanted: CARRY_BLOCKS + layout.ahead_blocks() + layout.upload_reserve_blocks(),
            },
            recovery: RecoveryReport {
                read_bytes: self.state.read_bytes,
                log_entries: accepted.entries.len() as u64,
                unflushed_bytes: self.state.unflushed_bytes,
                void_entries: self.state.voids.iter().map(|(first, last)| last.0 - first.0 + 1).sum(),
            },
            damaged_entries: accepted.damaged,
            damaged_units: self.state.damaged_units,
            damaged_heads: self.state.damaged_heads,
        }
    }

    /// How many ticks ago a stamp was given, up to 7.
    fn age(&self, stamp: u8) -> u8 {
        (self.state.tick.wrapping_sub(u64::from(stamp)) & 7) as u8
    }

    /// Blocks of the store.
    pub fn block_count(&self) -> u32 {
        self.state.layout.block_count
    }
}

const PAGE: u64 = PAGE_BYTES as u64;
