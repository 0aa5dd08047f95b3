//! Making a store smaller where it lies: what is kept is copied out of the blocks behind its new end, and superblocks say so.
//!
//! Always true here: while blocks are emptied the store as it is stays in force, with all that is kept; it is put in force anew each time
//! that blocks of it become free. Only when nothing of it lies behind the new end, and none of its log counts, are the superblocks there
//! written, and then those in front, which make it the smaller one. So a shrink that is cut off anywhere leaves the old store or the
//! smaller one, and nothing is lost but what was to be dropped.

use super::{
    OfflineStore, Trust,
    fresh::{Fresh, io_error, point_to_end},
};
use crate::{
    device::{Device, PAGE_BYTES},
    error::OpenError,
    format::{
        image::{BlockRow, SLOTS_PER_UNIT},
        layout::{LOAD_RECLAIM_PERCENT, Layout},
        superblock::Superblock,
        types::Lsn,
    },
    map::{
        census::Census,
        table::{Placed, Table},
    },
    superblocks,
};
use copy::Copier;
use holdings::{Choice, Holdings, Room};
use std::sync::Arc;

mod copy;
mod holdings;
mod layout;

pub use holdings::ShrinkLoss;

/// What a shrink did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShrinkReport {
    /// Bytes of the store before …
    pub before_bytes: u64,
    /// … and now.
    pub after_bytes: u64,
    /// Blocks before …
    pub blocks_before: u32,
    /// … and now.
    pub blocks_after: u32,
    /// Slots of the table before …
    pub slots_before: u64,
    /// … and now.
    pub slots_after: u64,
    /// Slots in use.
    pub live_slots: u64,
    /// Records that were copied to other blocks.
    pub copied_records: u64,
    /// Their bytes.
    pub copied_bytes: u64,
    /// What was dropped.
    pub dropped: ShrinkLoss,
}

impl ShrinkReport {
    /// Of a store that is as small as it was asked to be.
    pub fn unchanged(store_bytes: u64, blocks: u32, slots: u64, live_slots: u64) -> Self {
        Self {
            before_bytes: store_bytes,
            after_bytes: store_bytes,
            blocks_before: blocks,
            blocks_after: blocks,
            slots_before: slots,
            slots_after: slots,
            live_slots,
            ..Self::default()
        }
    }
}

/// A store of which it is known what would be left of it in fewer bytes.
pub struct Shrink {
    store: Arc<OfflineStore>,
    layout: Layout,
    /// The slot in which the image in force must lie at the end.
    slot: u8,
    holdings: Holdings,
    choice: Choice,
}

/// The least size in bytes to which the store on a device can shrink, with a table for `objects` (`None`: as dense as now).
///
/// # Errors
/// Those of opening, or it cannot shrink at all.
pub async fn shrunk_bytes_min(device: &Arc<dyn Device>, objects: Option<u64>) -> Result<u64, OpenError> {
    let store = OfflineStore::read(device.clone(), Trust::Two).await?;
    store.state.layout.shrunk_bytes_min(objects).map_err(OpenError::Geometry)
}

impl Shrink {
    /// Finds out what would be left of the store on a device in `device_bytes`, with a table for `objects`. Changes nothing. `progress` hears
    /// the bytes read.
    ///
    /// # Errors
    /// The store cannot be opened, is damaged (what a rebuild could bring back would be overwritten), or cannot be so small.
    pub async fn plan(
        device: &Arc<dyn Device>,
        device_bytes: u64,
        objects: Option<u64>,
        progress: impl FnMut(u64),
    ) -> Result<Self, OpenError> {
        let store = Arc::new(OfflineStore::read(device.clone(), Trust::Two).await?);
        if store.report().is_damaged() {
            let why = "superblocks, log, image or block headers are damaged: repair or rebuild the store before it shrinks";
            return Err(OpenError::Unusable(why.into()));
        }
        let now = &store.state.layout;
        let layout = now.shrunk(device_bytes, objects).map_err(OpenError::Geometry)?;
        let slot = now.slot_beside(&layout).ok_or_else(|| {
            let (from, to) = (now.device_bytes, layout.device_bytes);
            OpenError::Geometry(format!("{to} bytes are so close to {from} that the new index would lie over the old one: ask for fewer"))
        })?;
        let holdings = Holdings::read(&store, progress).await?;
        let slots = u64::from(layout.table_units) * u64::from(SLOTS_PER_UNIT);
        let choice = holdings.choose(&Room {
            blocks: layout.block_count,
            used_blocks_max: layout.capacity_bytes() / layout.block_bytes,
            block_bytes: layout.block_bytes,
            slots_max: slots * LOAD_RECLAIM_PERCENT / 100,
        });
        Ok(Self { store, layout, slot, holdings, choice })
    }

    /// What would be dropped.
    pub fn loss(&self) -> ShrinkLoss {
        self.holdings.loss(&self.choice)
    }

    /// Makes it so. `progress` hears the bytes that were copied.
    ///
    /// # Errors
    /// A record that must be copied is damaged, or the device fails. The store is what it was then, without what was to be dropped.
    pub async fn carry_out(self, mut progress: impl FnMut(u64)) -> Result<ShrinkReport, OpenError> {
        let dropped = self.loss();
        let Self { store, layout, slot, mut holdings, choice } = self;
        let state = &store.state;
        let (after, page) = store.beyond();
        point_to_end(&*store.device, &state.superblock).await?;
        let mut superblock = state.superblock.clone();
        superblock.epoch.0 += 1;
        let mut order = store.order;
        let (mut copied_records, mut copied_bytes) = (0, 0);
        let mut rows = state.rows.clone();
        let mut copying = Some(Copier::new(&store, &mut holdings, &choice, layout.block_count));
        // The first time for what is dropped, and so that nothing of the old log counts.
        loop {
            if let Some(copier) = &copying {
                rows.clone_from(&copier.rows);
            }
            let fresh = Fresh {
                device: &*store.device,
                superblock,
                layout: &state.layout,
                mask: &state.mask,
                table: &state.table,
                rows: rows.clone(),
                tick: state.tick,
                after,
                page,
                order,
            };
            superblock = fresh.put_in_force().await?;
            order = superblocks::IN_ORDER;
            if let Some(copier) = &mut copying {
                if copier.round(&mut progress).await? {
                    continue;
                }
                (copied_records, copied_bytes) = (copier.copied_records, copier.copied_bytes);
                copying = None;
            }
            if superblock.image.slot == slot {
                break;
            }
        }
        let table = smaller_table(&holdings, &choice, &layout, &rows)?;
        rows.truncate(layout.block_count as usize);
        let report = ShrinkReport {
            before_bytes: state.layout.device_bytes,
            after_bytes: layout.device_bytes,
            blocks_before: state.layout.block_count,
            blocks_after: layout.block_count,
            slots_before: state.table.slots(),
            slots_after: table.slots(),
            live_slots: table.live(),
            copied_records,
            copied_bytes,
            dropped,
        };
        let superblock = Superblock {
            device_bytes: layout.device_bytes,
            block_count: layout.block_count,
            table_units: layout.table_units,
            log_offset: layout.log_offset,
            log_bytes: layout.log_pages * PAGE_BYTES as u64,
            image_offsets: layout.image_offsets,
            ..superblock
        };
        let fresh = Fresh {
            device: &*store.device,
            superblock,
            layout: &layout,
            mask: &state.mask,
            table: &table,
            rows,
            tick: state.tick,
            after,
            page: page + layout.log_pages,
            // At the new end first: those in front are the old store's until these are whole.
            order: [2, 3, 0, 1],
        };
        let superblock = fresh.put_in_force().await?;
        point_to_end(&*store.device, &superblock).await?;
        Ok(report)
    }
}

/// A table of the smaller store, with all that is kept.
fn smaller_table(holdings: &Holdings, choice: &Choice, layout: &Layout, rows: &[BlockRow]) -> Result<Table, OpenError> {
    let census = Arc::new(Census::new(layout.clone()));
    for (physical, row) in (0..layout.block_count).zip(rows).filter(|(_, row)| row.live) {
        census.set_tenant(physical, row.vbn);
    }
    let table = Table::new(layout.table_units, census).map_err(io_error("reserve memory for the table"))?;
    let mut full = 0u64;
    for held in holdings.records.iter().filter(|held| choice.keeps(held)) {
        full += u64::from(table.put(&held.location, Lsn(0), held.stamp) == Placed::Full);
    }
    if full > 0 {
        return Err(OpenError::Geometry(format!("the index has no room for {full} of the records that are kept: give more --objects")));
    }
    table.recount();
    Ok(table)
}
