//! Where everything of a store lies that was made smaller.
//!
//! Always true here: blocks stay where they are, and those that are left are the first ones; log and images lie before the blocks where
//! they have room there, else behind them.

use super::super::PAGE;
use crate::format::layout::{BLOCKS_MIN, Layout};

impl Layout {
    /// The least size to which it can shrink.
    pub(super) fn shrunk_bytes_min(&self, objects: Option<u64>) -> Result<u64, String> {
        let mut bytes = self.blocks_offset + (u64::from(BLOCKS_MIN) * self.block_bytes + 2 * PAGE);
        while bytes < self.device_bytes {
            if self.shrunk(bytes, objects).is_ok() {
                return Ok(bytes);
            }
            bytes += self.block_bytes;
        }
        Err(format!("a store of {} blocks of {} bytes cannot shrink: the least is {BLOCKS_MIN} blocks", self.block_count, self.block_bytes))
    }

    /// The same store with fewer bytes. Its table has room for `objects`, or for as many a byte as before and never fewer than a new store
    /// of that size would.
    pub(crate) fn shrunk(&self, device_bytes: u64, objects: Option<u64>) -> Result<Self, String> {
        let device_bytes = device_bytes / PAGE * PAGE;
        if device_bytes.saturating_add(2 * PAGE) > self.device_bytes {
            return Err(format!("the store has {} bytes: {device_bytes} bytes are no fewer", self.device_bytes));
        }
        let (units, log_pages) = Self::sizes(device_bytes, objects.unwrap_or_else(|| Self::objects_by_size(device_bytes)))?;
        let as_dense = u128::from(self.table_units) * u128::from(device_bytes) / u128::from(self.device_bytes.max(1));
        let (units, log_pages) = match objects {
            Some(_) => (units, log_pages),
            None => {
                let units = units.max(u32::try_from(as_dense).unwrap_or(u32::MAX));
                (units, Self::log_pages(device_bytes, units))
            }
        };
        let too_small = || {
            format!(
                "{device_bytes} bytes are too few for {BLOCKS_MIN} blocks of {} bytes, log and images: give more; for a smaller store, make a \
                 new one with smaller blocks and use export and import",
                self.block_bytes
            )
        };
        let blocks_end = device_bytes.saturating_sub(2 * PAGE);
        let mut count = self.block_count;
        loop {
            if count < BLOCKS_MIN {
                return Err(too_small());
            }
            let image_bytes = Self::image_bytes(count, units);
            let index_bytes = log_pages * PAGE + 2 * image_bytes;
            let in_front = 2 * PAGE + index_bytes <= self.blocks_offset;
            let (log_offset, end) = match in_front {
                true => (2 * PAGE, blocks_end),
                false => {
                    let offset = blocks_end.saturating_sub(index_bytes.next_multiple_of(64 << 10)) / (64 << 10) * (64 << 10);
                    (offset, offset)
                }
            };
            let room = end.saturating_sub(self.blocks_offset) / self.block_bytes;
            if room >= u64::from(count) {
                let image_a = log_offset + log_pages * PAGE;
                return Ok(Self {
                    device_bytes,
                    block_count: count,
                    log_offset,
                    log_pages,
                    image_offsets: [image_a, image_a + image_bytes],
                    table_units: units,
                    ..self.clone()
                });
            }
            count = u32::try_from(room).unwrap_or(0).min(count - 1);
        }
    }

    /// The slot (0 or 1) in which the image in force may lie while the smaller store `to` is put in force: neither its image, which goes
    /// to the other slot, nor its last superblocks may touch that one. `None`: the sizes are too close to each other.
    pub(super) fn slot_beside(&self, to: &Self) -> Option<u8> {
        let image = |layout: &Self, slot: u8| {
            let start = layout.block_table_offset(slot, 0);
            start..start + Self::image_bytes(layout.block_count, layout.table_units)
        };
        let superblocks = to.device_bytes - 2 * PAGE..to.device_bytes;
        [1, 0].into_iter().find(|slot| {
            let now = image(self, *slot);
            [image(to, 1 - slot), superblocks.clone()].iter().all(|new| new.end <= now.start || now.end <= new.start)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::FormatOptions;

    const MIB: u64 = 1 << 20;

    fn plan(mib: u64, objects: Option<u64>) -> Layout {
        Layout::plan(mib * MIB, &FormatOptions { block_bytes: None, objects }).unwrap()
    }

    #[test]
    fn blocks_stay_where_they_are_and_the_index_keeps_its_density() {
        let large = plan(1024, None);
        let small = large.shrunk(512 * MIB, None).unwrap();
        assert_eq!((small.blocks_offset, small.block_bytes, small.vbn_stride), (large.blocks_offset, large.block_bytes, large.vbn_stride));
        assert!(small.block_count < large.block_count && small.image_offsets[1] < small.blocks_offset);
        assert!(small.table_units >= plan(512, None).table_units && small.table_units < large.table_units);
        let dense = plan(1024, Some(1_000_000));
        assert_eq!(dense.shrunk(512 * MIB, None).unwrap().table_units, dense.table_units / 2);
        // What no longer fits before the blocks lies behind them.
        let larger_index = large.shrunk(512 * MIB, Some(500_000)).unwrap();
        assert!(larger_index.log_offset > larger_index.block_offset(larger_index.block_count - 1));
    }

    #[test]
    fn what_is_too_small_or_no_smaller_is_refused() {
        let layout = plan(1024, None);
        assert!(layout.shrunk(1024 * MIB, None).unwrap_err().contains("no fewer"));
        assert!(layout.shrunk(100 * MIB, None).unwrap_err().contains("too few"));
        let least = layout.shrunk_bytes_min(None).unwrap();
        assert_eq!(layout.shrunk(least, None).unwrap().block_count, BLOCKS_MIN);
        assert!(layout.shrunk(least - layout.block_bytes, None).is_err());
    }

    #[test]
    fn nothing_new_touches_the_image_in_force() {
        let mut too_close = 0;
        for objects in [None, Some(400_000)] {
            let formatted = plan(300, objects);
            let grown = formatted.grown(1100 * MIB, None).unwrap();
            let far = [(&formatted, 260 * MIB), (&formatted, 299 * MIB), (&grown, 700 * MIB), (&grown, 400 * MIB)];
            // So close that old and new may lie over each other.
            let close = (0..64).map(|step| (&grown, grown.device_bytes - (2 + step * 16) * PAGE));
            for (from, bytes) in far.into_iter().chain(close) {
                let to = from.shrunk(bytes, None).unwrap();
                let Some(slot) = from.slot_beside(&to) else {
                    assert!(bytes > 1090 * MIB, "{bytes} of {objects:?}");
                    too_close += 1;
                    continue;
                };
                let image = |layout: &Layout, slot: u8| {
                    let start = layout.block_table_offset(slot, 0);
                    (start, start + Layout::image_bytes(layout.block_count, layout.table_units))
                };
                let now = image(from, slot);
                for new in [image(&to, 1 - slot), (to.device_bytes - 2 * PAGE, to.device_bytes)] {
                    assert!(new.1 <= now.0 || now.1 <= new.0, "{from:?} {to:?}");
                }
            }
        }
        assert!(too_close > 0, "no two sizes were too close to each other");
    }
}
