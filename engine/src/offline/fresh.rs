//! Putting a new table in force: an image of it, an empty log behind it, and superblocks that say so.
//!
//! Always true here: the image goes where the one in force is not, and is flushed before a superblock names it: until the first pair of
//! superblocks is whole, the store is what it was. The log goes on at a page and a position that nothing on the device has reached, so
//! that what an earlier run left in the ring never counts.

use super::OfflineStore;
use crate::{
    device::{AlignedBuf, Device},
    error::OpenError,
    format::{
        crc::CrcMask,
        image::{BlockRow, BlockTable, UNIT_BYTES, seal_unit},
        layout::Layout,
        log::UNITS_PER_PAGE,
        superblock::{ImageInForce, Superblock},
        types::Lsn,
    },
    map::table::Table,
    superblocks,
};

/// Units that one write carries.
const UNITS_PER_WRITE: u32 = 16;

/// What is to be in force.
pub(super) struct Fresh<'a> {
    pub(super) device: &'a dyn Device,
    /// With the geometry of `layout`; what it says of images, mark and cleanness is replaced.
    pub(super) superblock: Superblock,
    pub(super) layout: &'a Layout,
    pub(super) mask: &'a CrcMask,
    pub(super) table: &'a Table,
    pub(super) rows: Vec<BlockRow>,
    pub(super) tick: u64,
    /// Everything up to this position is in the table.
    pub(super) after: Lsn,
    /// The log goes on on this page.
    pub(super) page: u64,
    pub(super) order: [usize; 4],
}

/// A position and a page behind everything that a log of `log_pages` pages can hold whose end is taken to be at `lsn` on `page`.
pub(super) fn beyond(lsn: Lsn, page: u64, log_pages: u64) -> (Lsn, u64) {
    let pages = log_pages + 1;
    (lsn.plus(pages.saturating_mul(UNITS_PER_PAGE as u64)), page.saturating_add(pages))
}

impl OfflineStore {
    /// Where the log may go on after this state.
    pub(super) fn beyond(&self) -> (Lsn, u64) {
        let end = self.state.accepted.end;
        beyond(end.next.max(self.state.accepted.mark), end.page, self.state.layout.log_pages)
    }
}

/// What was there before a store that is smaller than its device must not be found again: done before anything else is written.
pub(super) async fn point_to_end(device: &dyn Device, superblock: &Superblock) -> Result<(), OpenError> {
    superblocks::point_to_end(device, superblock).await.map_err(io_error("write where the store ends"))
}

pub(super) fn io_error(action: &str) -> impl FnOnce(std::io::Error) -> OpenError {
    let action = action.to_string();
    move |source| OpenError::Io { action, source }
}

impl Fresh<'_> {
    /// Gives the superblock that is in force then.
    pub(super) async fn put_in_force(self) -> Result<Superblock, OpenError> {
        let Self { device, mut superblock, layout, mask, table, rows, tick, after, page, order } = self;
        let before = superblock.image;
        let image = ImageInForce {
            slot: if before.number == 0 { 0 } else { 1 - before.slot },
            // The one after the last may have been begun.
            number: before.number + 2,
            replay_after: after,
            replay_page: page,
        };
        let mut first = 0;
        while first < layout.table_units {
            let n = UNITS_PER_WRITE.min(layout.table_units - first);
            let mut buf = AlignedBuf::take(n as usize * UNIT_BYTES);
            for (unit, bytes) in (first..first + n).zip(buf.chunks_exact_mut(UNIT_BYTES)) {
                table.copy_unit(unit, bytes);
                seal_unit(mask, image.number, unit, after, bytes);
            }
            device.write(layout.image_unit_offset(image.slot, first), buf).await.1.map_err(io_error("write image"))?;
            first += n;
        }
        let block_table = BlockTable { lsn: after, tick, rows };
        let copy_bytes = BlockTable::copy_bytes(layout.block_count) as usize;
        for copy in 0..2 {
            let mut buf = AlignedBuf::take(copy_bytes);
            block_table.encode(mask, image.number, &mut buf[..copy_bytes]);
            device.write(layout.block_table_offset(image.slot, copy), buf).await.1.map_err(io_error("write block table"))?;
        }
        device.flush().await.map_err(io_error("flush image"))?;
        superblock.sequence += 1;
        superblock.image = image;
        superblock.previous_image = ImageInForce::default();
        superblock.mark = after;
        superblock.clean = true;
        superblocks::write_all(device, &superblock, order).await.map_err(io_error("write superblocks"))?;
        Ok(superblock)
    }
}
