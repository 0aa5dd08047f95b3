//! Checking every structure beside records, each copy of it for itself.
//!
//! Always true here: what opening would make good from another copy is still counted as damage.

use super::OfflineStore;
use crate::{
    device::AlignedBuf,
    format::{
        block::BlockHead,
        image::{BlockTable, UNIT_BYTES, check_unit},
    },
};
use futures::{StreamExt, stream};

/// Units that one read carries.
const UNITS_PER_READ: u32 = 16;
/// Reads in flight at once.
const READS_MAX: usize = 8;

/// How many structures were checked, and how many of them are damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StructureReport {
    /// Copies of the superblock.
    pub superblocks: u64,
    /// … that are damaged or missing.
    pub superblocks_damaged: u64,
    /// Pages of the log that an opening reads as its own.
    pub log_pages: u64,
    /// Pages and entries among them that are damaged.
    pub log_damaged: u64,
    /// Copies of the block table in the image in force.
    pub block_tables: u64,
    /// … that are damaged.
    pub block_tables_damaged: u64,
    /// Units of the image in force.
    pub image_units: u64,
    /// … that are damaged.
    pub image_units_damaged: u64,
    /// Headers of blocks in use.
    pub block_heads: u64,
    /// … that are damaged.
    pub block_heads_damaged: u64,
}

impl StructureReport {
    /// Damaged structures of every kind.
    pub fn damaged(&self) -> u64 {
        self.superblocks_damaged + self.log_damaged + self.block_tables_damaged + self.image_units_damaged + self.block_heads_damaged
    }
}

impl OfflineStore {
    /// Checks superblocks, log, image and block headers. `read` hears of every read how many bytes it had.
    pub async fn check_structures(&self, mut read: impl FnMut(u64)) -> StructureReport {
        let report = self.report();
        let mut out = StructureReport {
            superblocks: 4,
            superblocks_damaged: report.damaged_superblocks(),
            log_pages: report.log_used_pages,
            log_damaged: report.damaged_entries,
            ..StructureReport::default()
        };
        let (layout, mask, image) = (&self.state.layout, &self.state.mask, self.state.superblock.image);
        if image.number > 0 {
            let bytes = BlockTable::copy_bytes(layout.block_count) as usize;
            for copy in 0..2 {
                let (buf, result) = self.device.read(layout.block_table_offset(image.slot, copy), AlignedBuf::take(bytes)).await;
                let whole = result.is_ok() && BlockTable::decode(mask, image.number, layout.block_count, &buf[..bytes]).is_some();
                out.block_tables += 1;
                out.block_tables_damaged += u64::from(!whole);
                read(bytes as u64);
            }
            let units = layout.table_units;
            let runs = (0..units).step_by(UNITS_PER_READ as usize).map(|first| (first, UNITS_PER_READ.min(units - first)));
            let mut reads = stream::iter(runs.map(|(first, n)| async move {
                let buf = AlignedBuf::take(n as usize * UNIT_BYTES);
                (first, self.device.read(layout.image_unit_offset(image.slot, first), buf).await)
            }))
            .buffered(READS_MAX);
            while let Some((first, (buf, result))) = reads.next().await {
                for (unit, bytes) in (first..).zip(buf.chunks_exact(UNIT_BYTES)) {
                    let whole = result.is_ok() && check_unit(mask, image.number, unit, bytes).is_some();
                    out.image_units += 1;
                    out.image_units_damaged += u64::from(!whole);
                }
                read(buf.len() as u64);
            }
        }
        for (physical, row) in (0u32..).zip(&self.state.rows).filter(|(_, row)| row.live) {
            let (page, result) = self.device.read(layout.block_offset(physical), AlignedBuf::take(super::PAGE as usize)).await;
            let head = result.ok().and_then(|()| BlockHead::decode(mask, &self.state.superblock.uuid, &page));
            out.block_heads += 1;
            out.block_heads_damaged += u64::from(head.is_none_or(|head| (head.vbn, head.physical) != (row.vbn, physical)));
            read(super::PAGE);
        }
        out
    }
}
