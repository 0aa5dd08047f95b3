//! Taking out of a store what is proven bad, and writing everything else anew where a copy of it is damaged.
//!
//! Always true here: a record goes only if its checksums failed in bytes that the device could read, or if it lists parts that are not
//! there; one that the device cannot read stays, unless that is asked for. A store without damage is not written to.

use super::{
    BadRecord, Defect, OfflineStore, PAGE, Trust, VisitOptions, Visited,
    fresh::{Fresh, io_error, point_to_end},
};
use crate::{
    device::{AlignedBuf, Device, PAGE_BYTES},
    error::OpenError,
    format::{block::BlockHead, types::Lsn},
};
use std::{ops::ControlFlow, sync::Arc};

/// What a repair found and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepairReport {
    /// Records that are whole.
    pub good: u64,
    /// Records that were dropped, because they are proven bad.
    pub dropped: u64,
    /// Records that were kept although the device could not read them.
    pub unreadable_kept: u64,
    /// Copies of the superblock that were damaged or missing.
    pub superblocks: u64,
    /// Damaged pages and entries of the log, which is now empty. What they said is lost where the image does not have it.
    pub log: u64,
    /// Damaged copies of the block table, and units, of the image, which is written anew. What a unit said is lost where no other image
    /// had it: a rebuild brings back what the blocks hold.
    pub image: u64,
    /// Block headers that were written anew.
    pub block_heads: u64,
    /// Whether anything was written.
    pub written: bool,
}

impl RepairReport {
    /// Whether anything was damaged.
    pub fn is_damaged(&self) -> bool {
        self.dropped + self.unreadable_kept + self.superblocks + self.log + self.image + self.block_heads > 0
    }
}

/// Repairs the store on a device; with `dry_run` it only says what it would do. `progress` hears the bytes read, `dropping` of every
/// record that goes.
///
/// # Errors
/// No superblock is whole, or the device fails.
pub async fn repair(
    device: &Arc<dyn Device>,
    drop_unreadable: bool,
    dry_run: bool,
    mut progress: impl FnMut(u64),
    mut dropping: impl FnMut(&BadRecord),
) -> Result<RepairReport, OpenError> {
    let store = Arc::new(OfflineStore::read(device.clone(), Trust::One).await?);
    let structures = store.check_structures(&mut progress).await;
    let mut report = RepairReport {
        superblocks: structures.superblocks_damaged,
        log: structures.log_damaged,
        image: structures.image_units_damaged + structures.block_tables_damaged,
        block_heads: structures.block_heads_damaged,
        ..RepairReport::default()
    };
    // A second pass finds the large objects that the first one took parts from.
    loop {
        let mut bad: Vec<BadRecord> = Vec::new();
        let (mut good, mut kept) = (0, 0);
        let _ = store
            .visit(0..store.block_count(), &VisitOptions::default(), |visited| {
                match visited {
                    Visited::Record(..) => good += 1,
                    Visited::Bad(record) if record.defect == Defect::Unreadable && !drop_unreadable => kept += 1,
                    Visited::Bad(record) => bad.push(record),
                    Visited::Read(bytes) => progress(bytes),
                    Visited::BlockEnd(_) => {}
                }
                ControlFlow::Continue(())
            })
            .await;
        (report.good, report.unreadable_kept) = (good, kept);
        let table = &store.state.table;
        let mut dropped = 0;
        for record in &bad {
            if table.remove(record.slot.address, record.slot.place, None) {
                dropping(record);
                dropped += 1;
            }
        }
        report.dropped += dropped;
        // Each pass but the last drops something: it ends.
        if dropped == 0 {
            break;
        }
    }
    let disagree = !store.report().superblocks_agree;
    let anything = report.dropped + report.superblocks + report.log + report.image + report.block_heads > 0 || disagree;
    if dry_run || !anything {
        return Ok(report);
    }

    let state = &store.state;
    point_to_end(&**device, &state.superblock).await?;
    for (physical, row) in (0u32..).zip(&state.rows).filter(|(_, row)| row.live) {
        let offset = state.layout.block_offset(physical);
        let (page, result) = device.read(offset, AlignedBuf::take(PAGE as usize)).await;
        let head = result.ok().and_then(|()| BlockHead::decode(&state.mask, &state.superblock.uuid, &page));
        if head.is_none_or(|head| (head.vbn, head.physical) != (row.vbn, physical)) {
            let mut page = AlignedBuf::zeroed(PAGE_BYTES);
            BlockHead { vbn: row.vbn, physical, lsn: Lsn(0) }.encode(&state.mask, &state.superblock.uuid, &mut page);
            device.write(offset, page).await.1.map_err(io_error("write block header"))?;
        }
    }
    let (after, page) = store.beyond();
    let mut superblock = state.superblock.clone();
    superblock.sequence =
        store.copies.iter().filter_map(|copy| copy.whole()).map(|copy| copy.sequence).max().unwrap_or(superblock.sequence);
    superblock.epoch.0 += 1;
    let fresh = Fresh {
        device: &**device,
        superblock,
        layout: &state.layout,
        mask: &state.mask,
        table: &state.table,
        rows: state.rows.clone(),
        tick: state.tick,
        after,
        page,
        order: store.order,
    };
    fresh.put_in_force().await?;
    report.written = true;
    Ok(report)
}
