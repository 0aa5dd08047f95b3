//! An image of the table: the block table twice, then the units of the table in memory.
//!
//! Bucket 0 of a unit is never used for slots: on the device it is the unit's head, so that a unit is exactly 64 KiB.

use super::{
    crc::CrcMask,
    types::{Lsn, Vbn},
};
use crate::{
    canary::{self, Canary},
    device::PAGE_BYTES,
};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

/// Bytes of a table unit, in memory and on the device.
pub(crate) const UNIT_BYTES: usize = 64 << 10;
/// Bytes of a bucket, and of a unit's head.
pub(crate) const BUCKET_BYTES: usize = 64;
/// Buckets of a unit that hold slots.
pub(crate) const BUCKETS_PER_UNIT: u32 = (UNIT_BYTES / BUCKET_BYTES) as u32 - 1;
/// Slots of a bucket.
pub(crate) const SLOTS_PER_BUCKET: u32 = 4;
/// Slots of a unit.
pub(crate) const SLOTS_PER_UNIT: u32 = BUCKETS_PER_UNIT * SLOTS_PER_BUCKET;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawUnitHead {
    crc: U32,
    index: U32,
    number: U64,
    lsn: U64,
    padding: [u8; 40],
}
const _: () = assert!(size_of::<RawUnitHead>() == BUCKET_BYTES);

/// Writes the head of unit `index` of image `number` over the first bucket of `unit`; `lsn` is the highest one published in it.
pub(crate) fn seal_unit(mask: &CrcMask, number: u64, index: u32, lsn: Lsn, unit: &mut [u8]) {
    let raw = RawUnitHead { crc: U32::ZERO, index: index.into(), number: number.into(), lsn: lsn.0.into(), padding: [0; 40] };
    let unit = &mut unit[..UNIT_BYTES];
    unit[..BUCKET_BYTES].copy_from_slice(raw.as_bytes());
    let crc = crc32fast::hash(&unit[4..]) ^ mask.image_unit(number, index);
    unit[..4].copy_from_slice(&crc.to_le_bytes());
}

/// The LSN that unit `index` of image `number` covers, if the bytes are that unit.
pub(crate) fn check_unit(mask: &CrcMask, number: u64, index: u32, unit: &[u8]) -> Option<Lsn> {
    let unit = unit.get(..UNIT_BYTES)?;
    let (raw, _) = RawUnitHead::ref_from_prefix(unit).ok()?;
    let crc = crc32fast::hash(&unit[4..]) ^ mask.image_unit(number, index);
    let crc_passes = raw.crc.get() == crc || canary::leaves_out(Canary::ImageCrc);
    (crc_passes && raw.index.get() == index && raw.number.get() == number).then(|| Lsn(raw.lsn.get()))
}

/// What the image knows of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockRow {
    /// The tenant; for a block that is nobody's, the last one it had (or 0).
    pub(crate) vbn: Vbn,
    /// Whether the tenant is still there.
    pub(crate) live: bool,
    /// Whether nothing is added any more.
    pub(crate) sealed: bool,
    /// End of the last record that was published in it.
    pub(crate) fill_bytes: u32,
}

impl BlockRow {
    /// A block whose tenant has just come.
    pub(crate) fn opened(vbn: Vbn) -> Self {
        Self { vbn, live: true, sealed: false, fill_bytes: PAGE_BYTES as u32 }
    }
}

/// The block table and what goes with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockTable {
    /// All block entries up to this LSN are in it.
    pub(crate) lsn: Lsn,
    /// The age clock.
    pub(crate) tick: u64,
    pub(crate) rows: Vec<BlockRow>,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawTableHead {
    crc: U32,
    rows: U32,
    number: U64,
    lsn: U64,
    tick: U64,
}
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRow {
    vbn: U32,
    fill: U32,
    live: u8,
    sealed: u8,
    padding: [u8; 6],
}
const TABLE_HEAD_BYTES: usize = 32;
const ROW_BYTES: usize = 16;
const _: () = assert!(size_of::<RawTableHead>() == TABLE_HEAD_BYTES);
const _: () = assert!(size_of::<RawRow>() == ROW_BYTES);

impl BlockTable {
    /// Bytes of one copy for `rows` blocks: whole pages.
    pub(crate) fn copy_bytes(rows: u32) -> u64 {
        (TABLE_HEAD_BYTES as u64 + ROW_BYTES as u64 * u64::from(rows)).next_multiple_of(PAGE_BYTES as u64)
    }
    pub(crate) fn encode(&self, mask: &CrcMask, number: u64, out: &mut [u8]) {
        out.fill(0);
        let head = RawTableHead {
            crc: U32::ZERO,
            rows: (self.rows.len() as u32).into(),
            number: number.into(),
            lsn: self.lsn.0.into(),
            tick: self.tick.into(),
        };
        out[..TABLE_HEAD_BYTES].copy_from_slice(head.as_bytes());
        for (slot, row) in out[TABLE_HEAD_BYTES..].chunks_exact_mut(ROW_BYTES).zip(&self.rows) {
            let raw = RawRow {
                vbn: row.vbn.0.into(),
                fill: row.fill_bytes.into(),
                live: u8::from(row.live),
                sealed: u8::from(row.sealed),
                padding: [0; 6],
            };
            slot.copy_from_slice(raw.as_bytes());
        }
        let crc = crc32fast::hash(&out[4..]) ^ mask.block_table(number);
        out[..4].copy_from_slice(&crc.to_le_bytes());
    }
    /// Reads one copy; `None` if it is not that of image `number` with `rows` blocks.
    pub(crate) fn decode(mask: &CrcMask, number: u64, rows: u32, bytes: &[u8]) -> Option<Self> {
        let (head, body) = RawTableHead::ref_from_prefix(bytes).ok()?;
        let crc = crc32fast::hash(bytes.get(4..)?) ^ mask.block_table(number);
        if head.crc.get() != crc || head.number.get() != number || head.rows.get() != rows {
            return None;
        }
        let rows = body
            .chunks_exact(ROW_BYTES)
            .take(rows as usize)
            .filter_map(|b| RawRow::ref_from_bytes(b).ok())
            .map(|r| BlockRow { vbn: Vbn(r.vbn.get()), live: r.live == 1, sealed: r.sealed == 1, fill_bytes: r.fill.get() })
            .collect();
        Some(Self { lsn: Lsn(head.lsn.get()), tick: head.tick.get(), rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_known_only_at_its_own_index_and_number() {
        let mask = CrcMask::new(&[1; 16]);
        let mut unit = vec![3; UNIT_BYTES];
        seal_unit(&mask, 4, 5, Lsn(6), &mut unit);
        assert_eq!(check_unit(&mask, 4, 5, &unit), Some(Lsn(6)));
        assert_eq!(check_unit(&mask, 4, 6, &unit), None);
        assert_eq!(check_unit(&mask, 5, 5, &unit), None);
        unit[60_000] ^= 1;
        assert_eq!(check_unit(&mask, 4, 5, &unit), None);
    }

    #[test]
    fn a_block_table_reads_back() {
        let mask = CrcMask::new(&[1; 16]);
        let rows: Vec<_> = (0..300).map(|i| BlockRow { vbn: Vbn(i), live: i % 2 == 0, sealed: i % 3 == 0, fill_bytes: i * 8 }).collect();
        let table = BlockTable { lsn: Lsn(9), tick: 3, rows };
        let mut bytes = vec![1; BlockTable::copy_bytes(300) as usize];
        table.encode(&mask, 7, &mut bytes);
        assert_eq!(BlockTable::decode(&mask, 7, 300, &bytes), Some(table));
        assert_eq!(BlockTable::decode(&mask, 8, 300, &bytes), None);
        assert_eq!(BlockTable::decode(&mask, 7, 299, &bytes), None);
        bytes[100] ^= 1;
        assert_eq!(BlockTable::decode(&mask, 7, 300, &bytes), None);
    }
}
