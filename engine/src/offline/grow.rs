//! Making a store larger where it lies: more blocks behind those it has, and behind them a larger log and larger images.
//!
//! Always true here: nothing that the store as it is needs is written to before the superblocks at the new end are whole and flushed,
//! which name the new log and images; from then on the larger store is in force. So a grow that is cut off anywhere leaves the old
//! store or the new one. No record moves.

use super::{Defect, OfflineStore, Trust, VisitOptions, Visited, Want, fresh::Fresh, fresh::io_error};
use crate::{
    device::{Device, PAGE_BYTES},
    error::OpenError,
    format::{
        image::BlockRow,
        layout::Layout,
        types::{Lsn, Vbn},
    },
    map::{
        census::Census,
        table::{Placed, Table},
    },
};
use std::{ops::ControlFlow, sync::Arc};

/// What a grow did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GrowReport {
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
}

/// The least size in bytes to which the store on a device can grow, with a table for `objects` (`None`: one per 8 KiB).
///
/// # Errors
/// Those of opening, or a superblock is damaged: then its device must not be made larger.
pub async fn grown_bytes_min(device: &Arc<dyn Device>, objects: Option<u64>) -> Result<u64, OpenError> {
    let store = OfflineStore::read(device.clone(), Trust::Two).await?;
    // On a larger device the last two are found by what the first two say.
    if store.copies.iter().any(|copy| copy.whole().is_none()) {
        return Err(OpenError::Unusable("superblocks are damaged: repair the store before it grows".into()));
    }
    store.state.layout.grown_bytes_min(objects).map_err(OpenError::Geometry)
}

/// Makes the store on a device as large as the device. The device may be the store's already made larger, or another one that begins with
/// a copy of the store.
///
/// # Errors
/// The store cannot be opened, has damaged records (repair it first), or cannot grow so far; then it is unchanged.
pub async fn grow(device: &Arc<dyn Device>, objects: Option<u64>, mut progress: impl FnMut(u64)) -> Result<GrowReport, OpenError> {
    let store = Arc::new(OfflineStore::read(device.clone(), Trust::Two).await?);
    let state = &store.state;
    let layout = state.layout.grown(device.geometry().len_bytes, objects).map_err(OpenError::Geometry)?;
    let census = Arc::new(Census::new(layout.clone()));
    for (physical, row) in (0u32..).zip(&state.rows).filter(|(_, row)| row.live) {
        census.set_tenant(physical, row.vbn);
    }
    let table = Table::new(layout.table_units, census.clone()).map_err(io_error("reserve memory for the table"))?;
    let (mut bad, mut full) = (None, 0u64);
    let options = VisitOptions { want: Want::Heads, ..VisitOptions::default() };
    let _ = store
        .visit(0..store.block_count(), &options, |visited| {
            match visited {
                Visited::Record(record, _) => full += u64::from(table.put(&record.location, Lsn(0), record.stamp) == Placed::Full),
                Visited::Bad(record) => {
                    bad = Some(record);
                    return ControlFlow::Break(());
                }
                Visited::Read(bytes) => progress(bytes),
                Visited::BlockEnd(_) => {}
            }
            ControlFlow::Continue(())
        })
        .await;
    if let Some(bad) = bad {
        let why = if bad.defect == Defect::Unreadable { "cannot be read" } else { "is damaged" };
        return Err(OpenError::Unusable(format!("the record at byte {} {why}: repair the store before it grows", bad.offset_bytes)));
    }
    if full > 0 {
        return Err(OpenError::Geometry(format!("a table for so few objects has no room for {full} of those that the store holds")));
    }
    table.recount();

    let mut rows: Vec<BlockRow> = state.rows.clone();
    rows.resize(layout.block_count as usize, BlockRow { vbn: Vbn::NONE, ..BlockRow::default() });
    let (after, page) = store.beyond();
    let mut superblock = state.superblock.clone();
    superblock.epoch.0 += 1;
    superblock.device_bytes = layout.device_bytes;
    superblock.block_count = layout.block_count;
    superblock.table_units = layout.table_units;
    superblock.log_offset = layout.log_offset;
    superblock.log_bytes = layout.log_pages * PAGE_BYTES as u64;
    superblock.image_offsets = layout.image_offsets;
    let report = GrowReport {
        before_bytes: state.layout.device_bytes,
        after_bytes: layout.device_bytes,
        blocks_before: state.layout.block_count,
        blocks_after: layout.block_count,
        slots_before: state.table.slots(),
        slots_after: table.slots(),
        live_slots: table.live(),
    };
    // Behind the old store first: the first two are the old store's until those are whole.
    let order = [2, 3, 0, 1];
    let fresh = Fresh {
        device: &**device,
        superblock,
        layout: &layout,
        mask: &state.mask,
        table: &table,
        rows,
        tick: state.tick,
        after: after.max(Lsn(0)),
        page: page + layout.log_pages,
        order,
    };
    fresh.put_in_force().await?;
    Ok(report)
}

impl Layout {
    /// Bytes of log and both images behind the blocks of a store that grew.
    fn tail_bytes(log_pages: u64, blocks: u32, units: u32) -> u64 {
        (log_pages * super::PAGE + 2 * Self::image_bytes(blocks, units)).next_multiple_of(64 << 10)
    }

    /// The least size to which it can grow: one block more.
    fn grown_bytes_min(&self, objects: Option<u64>) -> Result<u64, String> {
        let mut bytes = self.device_bytes + self.block_bytes;
        for _ in 0..64 {
            match self.grown(bytes, objects) {
                Ok(_) => return Ok(bytes),
                Err(why) if bytes > self.device_bytes.saturating_mul(4) => return Err(why),
                Err(_) => bytes += self.block_bytes.max(self.device_bytes / 16),
            }
        }
        Err("the store cannot grow".into())
    }

    /// The same store on a larger device: its blocks stay where they are, log and images lie behind all blocks.
    pub(crate) fn grown(&self, device_bytes: u64, objects: Option<u64>) -> Result<Self, String> {
        let page = super::PAGE;
        let device_bytes = device_bytes / page * page;
        if device_bytes <= self.device_bytes {
            return Err(format!("the store has {} bytes: a device or file of {device_bytes} bytes is no larger", self.device_bytes));
        }
        let (units, log_pages) = Self::sizes(device_bytes, objects.unwrap_or_else(|| Self::objects_by_size(device_bytes)))?;
        let units = if objects.is_some() { units } else { units.max(self.table_units) };
        let too_small = || {
            format!(
                "{device_bytes} bytes are too few to grow to from {}: log and images need room behind the store as it is; give more, or fewer --objects",
                self.device_bytes
            )
        };
        let mut count = self.vbn_stride;
        loop {
            let tail = Self::tail_bytes(log_pages, count, units);
            let tail_offset = device_bytes.saturating_sub(2 * page + tail) / (64 << 10) * (64 << 10);
            // What is in force now, its last superblocks included, is not to be touched.
            if tail_offset < self.device_bytes {
                return Err(too_small());
            }
            let room = (tail_offset - self.blocks_offset) / self.block_bytes;
            if room > u64::from(self.vbn_stride) {
                return Err(format!(
                    "a store of {} blocks can grow to {} blocks of {} bytes; for more, make a new one and use export and import",
                    self.block_count, self.vbn_stride, self.block_bytes
                ));
            }
            if room >= u64::from(count) {
                if count <= self.block_count {
                    return Err(too_small());
                }
                let image_bytes = Self::image_bytes(count, units);
                let image_a = tail_offset + log_pages * page;
                return Ok(Self {
                    device_bytes,
                    block_count: count,
                    log_offset: tail_offset,
                    log_pages,
                    image_offsets: [image_a, image_a + image_bytes],
                    table_units: units,
                    ..self.clone()
                });
            }
            count = u32::try_from(room).map_err(|_| too_small())?.min(count - 1);
        }
    }
}
