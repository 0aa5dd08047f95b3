//! Where everything lies on a device of a given size.

use super::{
    image::{BlockTable, SLOTS_PER_UNIT, UNIT_BYTES},
    superblock::Superblock,
    types::Vbn,
};
use crate::{device::PAGE_BYTES, engine::FormatOptions};

const MIB: u64 = 1 << 20;
const PAGE: u64 = PAGE_BYTES as u64;
/// Fewest blocks of a store.
pub(crate) const BLOCKS_MIN: u32 = 32;
/// Spare blocks that only reclaim may take, for its copies.
pub(crate) const CARRY_BLOCKS: u64 = 2;
/// Sizes of a block.
pub(crate) const BLOCK_BYTES_MIN: u64 = MIB;
pub(crate) const BLOCK_BYTES_MAX: u64 = 1 << 30;
/// Mean size of an object that a table is made for when nothing is said.
const OBJECT_BYTES_MEAN: u64 = 8 << 10;
/// Load of the table, in percent of its slots, from which blocks are reclaimed as if space were short.
pub(crate) const LOAD_RECLAIM_PERCENT: u64 = 80;
/// Load above which puts wait for reclaim.
pub(crate) const LOAD_MAX_PERCENT: u64 = 85;

/// Sizes and places, as the superblock states them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) device_bytes: u64,
    pub(crate) block_bytes: u64,
    pub(crate) block_count: u32,
    pub(crate) vbn_stride: u32,
    pub(crate) log_offset: u64,
    pub(crate) log_pages: u64,
    pub(crate) image_offsets: [u64; 2],
    pub(crate) table_units: u32,
    pub(crate) blocks_offset: u64,
}

impl Layout {
    /// The layout for a new store.
    pub(crate) fn plan(device_bytes: u64, options: &FormatOptions) -> Result<Self, String> {
        let device_bytes = device_bytes / PAGE * PAGE;
        let block_bytes = match options.block_bytes {
            Some(b) if b.is_power_of_two() && (BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&b) => b,
            Some(b) => return Err(format!("block size of {b} bytes: must be a power of two from 1 MiB to 1 GiB")),
            None => (1u64 << (device_bytes / 128).max(1).ilog2()).clamp(BLOCK_BYTES_MIN, BLOCK_BYTES_MAX),
        };
        let objects = options.objects.unwrap_or_else(|| Self::objects_by_size(device_bytes)).max(1);
        let (units, log_pages) = Self::sizes(device_bytes, objects)?;
        let log_bytes = log_pages * PAGE;
        let log_offset = 2 * PAGE;
        let too_small = || {
            format!(
                "{} bytes are too small for a store of {BLOCKS_MIN} blocks of {block_bytes} bytes with a table for {objects} objects: \
                 give more space, smaller blocks or fewer objects",
                device_bytes
            )
        };
        // The block count decides the size of the block table and the other way round: start from the most there can be.
        let mut count = u32::try_from(device_bytes / block_bytes).map_err(|_| too_small())?;
        loop {
            if count < BLOCKS_MIN {
                return Err(too_small());
            }
            let image_bytes = Self::image_bytes(count, units);
            let image_a = log_offset + log_bytes;
            let image_b = image_a + image_bytes;
            let blocks_offset = (image_b + image_bytes).next_multiple_of(64 << 10);
            let room = device_bytes.saturating_sub(blocks_offset + 2 * PAGE) / block_bytes;
            if room >= u64::from(count) {
                let vbn_stride = count.saturating_mul(4).checked_next_power_of_two().ok_or_else(too_small)?;
                return Ok(Self {
                    device_bytes,
                    block_bytes,
                    block_count: count,
                    vbn_stride,
                    log_offset,
                    log_pages,
                    image_offsets: [image_a, image_b],
                    table_units: units,
                    blocks_offset,
                });
            }
            count = u32::try_from(room).unwrap_or(0).min(count - 1);
        }
    }

    /// How many objects a table is made for when nothing is said.
    pub(crate) fn objects_by_size(device_bytes: u64) -> u64 {
        device_bytes / OBJECT_BYTES_MEAN
    }

    /// Units of a table for `objects`, and pages of a log for a device of this size.
    pub(crate) fn sizes(device_bytes: u64, objects: u64) -> Result<(u32, u64), String> {
        let units = objects
            .max(1)
            .checked_mul(100)
            .map(|n| n.div_ceil(LOAD_RECLAIM_PERCENT).div_ceil(u64::from(SLOTS_PER_UNIT)))
            .and_then(|n| u32::try_from(n).ok())
            .ok_or_else(|| format!("table for {objects} objects: too many"))?;
        Ok((units, Self::log_pages(device_bytes, units)))
    }

    /// Pages of a log for a device of this size with a table of so many units.
    pub(crate) fn log_pages(device_bytes: u64, units: u32) -> u64 {
        let slots = u64::from(units) * u64::from(SLOTS_PER_UNIT);
        let log_bytes = if device_bytes < 256 * MIB { device_bytes / 16 } else { (64 * slots).max(16 * MIB) };
        log_bytes / PAGE
    }

    pub(crate) fn image_bytes(blocks: u32, units: u32) -> u64 {
        2 * BlockTable::copy_bytes(blocks) + u64::from(units) * UNIT_BYTES as u64
    }

    /// The layout that a superblock states, if it is one that can be.
    pub(crate) fn of(s: &Superblock) -> Result<Self, String> {
        let layout = Self {
            device_bytes: s.device_bytes,
            block_bytes: s.block_bytes,
            block_count: s.block_count,
            vbn_stride: s.vbn_stride,
            log_offset: s.log_offset,
            log_pages: s.log_bytes / PAGE,
            image_offsets: s.image_offsets,
            table_units: s.table_units,
            blocks_offset: s.blocks_offset,
        };
        let image_bytes = Self::image_bytes(s.block_count, s.table_units);
        let blocks_end = u64::from(s.block_count).checked_mul(s.block_bytes).and_then(|n| n.checked_add(s.blocks_offset));
        // Log and images lie before the blocks, or, in a store that grew, behind them.
        let blocks_bytes = u64::from(s.block_count).saturating_mul(s.block_bytes);
        let mut spans = [
            (s.log_offset, s.log_bytes),
            (s.image_offsets[0], image_bytes),
            (s.image_offsets[1], image_bytes),
            (s.blocks_offset, blocks_bytes),
        ];
        spans.sort_unstable();
        let mut end = 2 * PAGE;
        for (offset, bytes) in spans {
            if offset < end || offset % PAGE != 0 || bytes < PAGE {
                return Err(format!("superblock: region of {bytes} bytes at {offset} overlaps what comes before it"));
            }
            end = offset.saturating_add(bytes);
        }
        let fits = blocks_end.is_some() && end.saturating_add(2 * PAGE) <= s.device_bytes;
        let pages = s.blocks_offset.is_multiple_of(PAGE) && s.device_bytes.is_multiple_of(PAGE);
        let block_ok = s.block_bytes.is_power_of_two() && (BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&s.block_bytes);
        if !fits
            || !pages
            || !block_ok
            || s.block_count < BLOCKS_MIN
            || !s.vbn_stride.is_power_of_two()
            || s.vbn_stride < s.block_count
            || s.table_units == 0
        {
            return Err("superblock: the blocks do not fit the device".to_string());
        }
        Ok(layout)
    }

    /// The physical index of a tenant's block, if there is such a block.
    pub(crate) fn physical(&self, vbn: Vbn) -> Option<u32> {
        let index = vbn.0 & (self.vbn_stride - 1);
        (vbn.0 >= self.vbn_stride && index < self.block_count).then_some(index)
    }
    /// The tenant after `vbn` of block `physical` (`Vbn::NONE`: the first). `None` when its numbers are used up.
    pub(crate) fn next_vbn(&self, physical: u32, vbn: Vbn) -> Option<Vbn> {
        let generation = vbn.0 / self.vbn_stride + 1;
        generation.checked_mul(self.vbn_stride)?.checked_add(physical).map(Vbn)
    }
    /// Blocks that running uploads may take before their bytes count as accepted.
    pub(crate) fn upload_reserve_blocks(&self) -> u64 {
        (u64::from(self.block_count) / 16).max(2)
    }
    /// Blocks that are kept open ahead of need.
    pub(crate) fn ahead_blocks(&self) -> u64 {
        (u64::from(self.block_count) / 32).clamp(2, 8)
    }
    /// Bytes of the blocks that are not reserved.
    pub(crate) fn capacity_bytes(&self) -> u64 {
        let blocks = u64::from(self.block_count);
        let reserved = CARRY_BLOCKS + self.upload_reserve_blocks() + self.ahead_blocks();
        (blocks - reserved.min(blocks / 2)) * self.block_bytes
    }
    /// Byte offset of a block on the device.
    pub(crate) fn block_offset(&self, physical: u32) -> u64 {
        self.blocks_offset + u64::from(physical) * self.block_bytes
    }
    /// Byte offset of a log page on the device.
    pub(crate) fn log_page_offset(&self, page: u64) -> u64 {
        self.log_offset + page % self.log_pages * PAGE
    }
    /// Byte offset of copy `copy` of image `slot`'s block table.
    pub(crate) fn block_table_offset(&self, slot: u8, copy: u8) -> u64 {
        self.image_offsets[usize::from(slot & 1)] + u64::from(copy & 1) * BlockTable::copy_bytes(self.block_count)
    }
    /// Byte offset of table unit `unit` of image `slot`.
    pub(crate) fn image_unit_offset(&self, slot: u8, unit: u32) -> u64 {
        self.block_table_offset(slot, 0) + 2 * BlockTable::copy_bytes(self.block_count) + u64::from(unit) * UNIT_BYTES as u64
    }
    /// Byte offsets of the four superblocks.
    pub(crate) fn superblock_offsets(device_bytes: u64) -> [u64; 4] {
        let end = device_bytes / PAGE * PAGE;
        [0, PAGE, end - 2 * PAGE, end - PAGE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(bytes: u64, objects: Option<u64>) -> Result<Layout, String> {
        Layout::plan(bytes, &FormatOptions { block_bytes: None, objects })
    }

    #[test]
    fn default_layouts_use_at_least_nine_tenths_of_the_device_for_blocks() {
        for mib in [40u64, 64, 100, 255, 256, 512, 10 << 10, 1 << 20] {
            let l = plan(mib * MIB, None).unwrap();
            let blocks = u64::from(l.block_count) * l.block_bytes;
            let least = if mib < 512 { 8 } else { 9 };
            assert!(blocks * 10 >= mib * MIB * least, "{mib} MiB: {l:?}");
            assert!(l.block_count >= BLOCKS_MIN);
        }
    }

    #[test]
    fn a_store_of_fewer_than_32_blocks_is_refused() {
        assert!(plan(32 * MIB, None).unwrap_err().contains("too small"));
        assert!(Layout::plan(10 << 30, &FormatOptions { block_bytes: Some(3 << 20), objects: None }).unwrap_err().contains("power of two"));
    }

    #[test]
    fn the_index_takes_at_most_24_bytes_an_object_where_reclaim_starts() {
        for objects in [100_000u64, 1_000_000, 10_000_000] {
            let l = plan(objects * 8192 * 2, Some(objects)).unwrap();
            let at_load = u64::from(l.table_units) * u64::from(SLOTS_PER_UNIT) * LOAD_RECLAIM_PERCENT / 100;
            let bytes = u64::from(l.table_units) * UNIT_BYTES as u64;
            assert!(at_load >= objects && bytes <= 24 * objects, "{bytes} bytes for {objects}");
        }
    }

    #[test]
    fn tenants_of_a_block_are_numbered_by_generation() {
        let l = plan(64 * MIB, None).unwrap();
        let first = l.next_vbn(5, Vbn::NONE).unwrap();
        let second = l.next_vbn(5, first).unwrap();
        assert!(second > first);
        assert_eq!((l.physical(first), l.physical(second)), (Some(5), Some(5)));
        assert_eq!(l.physical(Vbn(5)), None);
        assert_eq!(l.next_vbn(5, Vbn(u32::MAX)), None);
    }
}
