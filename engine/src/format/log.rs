//! The log of the key-location map: pages of 32-byte units, in a ring.
//!
//! Unit 0 of a page is its head; the others hold entries of one or two units. Each unit's CRC is masked with epoch and LSN, so
//! that what an earlier turn of the ring, or a run that was lost, left behind is never taken for an entry.

use super::{
    crc::CrcMask,
    types::{Epoch, KeyHash, Lsn, Place, SizeCheck, SlotKind, Vbn},
};
use crate::{
    canary::{self, Canary},
    device::PAGE_BYTES,
};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

/// Bytes of a unit.
pub(crate) const UNIT_BYTES: usize = 32;
/// Units of a page that hold entries.
pub(crate) const UNITS_PER_PAGE: usize = PAGE_BYTES / UNIT_BYTES - 1;

/// What a record's slot is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) hash: KeyHash,
    pub(crate) kind: SlotKind,
    pub(crate) check: SizeCheck,
    pub(crate) place: Place,
    /// The record's whole length on the device.
    pub(crate) extent_bytes: u32,
}

/// A change of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// The key is at this place now, wherever it was.
    Put(Location),
    /// The record was copied; takes effect only where the slot still says `from`. Its head, which a copy keeps, carries `carries`; an
    /// entry of an early build does not say.
    Move { to: Location, from: Place, carries: Option<(Epoch, Lsn)> },
    /// The key is gone; takes effect only where the slot still says this place.
    Delete { hash: KeyHash, kind: SlotKind, from: Place },
    /// A block has a new tenant.
    BlockOpen { vbn: Vbn },
    /// Nothing is added to the block any more.
    BlockSeal { vbn: Vbn, fill_bytes: u32 },
    /// The block is nobody's; what pointed into it is dead.
    BlockRetire { vbn: Vbn },
    /// The entries from `first` to `last` never happened.
    Void { first: Lsn, last: Lsn },
    /// Everything up to and with `lsn` was flushed.
    Durable { lsn: Lsn },
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
struct RawUnit {
    crc: U32,
    tag: u8,
    kind: u8,
    check: U16,
    hash: [u8; 12],
    vbn: U32,
    granule: U32,
    extent: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
struct RawPageHead {
    crc: U32,
    epoch: U32,
    first: U64,
    page: U64,
    units_before: U16,
    padding: [u8; 6],
}
const _: () = assert!(size_of::<RawUnit>() == UNIT_BYTES);
const _: () = assert!(size_of::<RawPageHead>() == UNIT_BYTES);

const TAG_OFFSET: usize = std::mem::offset_of!(RawUnit, tag);
const TAG_PUT: u8 = 1;
const TAG_MOVE: u8 = 2;
const TAG_MOVE_FROM: u8 = 3;
const TAG_DELETE: u8 = 4;
const TAG_BLOCK_OPEN: u8 = 5;
const TAG_BLOCK_SEAL: u8 = 6;
const TAG_BLOCK_RETIRE: u8 = 7;
const TAG_VOID: u8 = 8;
const TAG_DURABLE: u8 = 9;

impl RawUnit {
    fn new(tag: u8) -> Self {
        Self { crc: U32::ZERO, tag, kind: 0, check: U16::ZERO, hash: [0; 12], vbn: U32::ZERO, granule: U32::ZERO, extent: U32::ZERO }
    }
    fn location(tag: u8, l: &Location) -> Self {
        Self { kind: l.kind as u8, check: l.check.0.into(), hash: l.hash.0, extent: l.extent_bytes.into(), ..Self::new(tag) }.at(l.place)
    }
    fn at(mut self, place: Place) -> Self {
        self.vbn = place.vbn.0.into();
        self.granule = place.granule.into();
        self
    }
    fn carrying(mut self, carries: Option<(Epoch, Lsn)>) -> Self {
        if let Some((epoch, lsn)) = carries {
            self.hash[..8].copy_from_slice(&lsn.0.to_le_bytes());
            self.hash[8..].copy_from_slice(&epoch.0.to_le_bytes());
        }
        self
    }
    fn read_carried(&self) -> Option<(Epoch, Lsn)> {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = self.hash;
        // Epochs begin at 1.
        let epoch = Some(u32::from_le_bytes([i, j, k, l])).filter(|epoch| *epoch > 0)?;
        Some((Epoch(epoch), Lsn(u64::from_le_bytes([a, b, c, d, e, f, g, h]))))
    }
    fn two_lsns(tag: u8, first: Lsn, last: Lsn) -> Self {
        let mut unit = Self::new(tag);
        unit.hash[..8].copy_from_slice(&first.0.to_le_bytes());
        let last = last.0.to_le_bytes();
        unit.hash[8..].copy_from_slice(&last[..4]);
        unit.vbn = U32::from_bytes([last[4], last[5], last[6], last[7]]);
        unit
    }
    fn read_two_lsns(&self) -> (Lsn, Lsn) {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = self.hash;
        let [m, n, o, p] = self.vbn.to_bytes();
        (Lsn(u64::from_le_bytes([a, b, c, d, e, f, g, h])), Lsn(u64::from_le_bytes([i, j, k, l, m, n, o, p])))
    }
    fn place(&self) -> Place {
        Place { vbn: Vbn(self.vbn.get()), granule: self.granule.get() }
    }
    fn read_location(&self) -> Option<Location> {
        Some(Location {
            hash: KeyHash(self.hash),
            kind: SlotKind::from_bits(self.kind)?,
            check: SizeCheck(self.check.get()),
            place: self.place(),
            extent_bytes: self.extent.get(),
        })
    }
    fn write(mut self, mask: &CrcMask, epoch: Epoch, lsn: Lsn, out: &mut [u8]) {
        self.crc = U32::ZERO;
        self.crc = (crc32fast::hash(&self.as_bytes()[4..]) ^ mask.log_unit(epoch, lsn)).into();
        out.copy_from_slice(self.as_bytes());
    }
    fn read<'a>(mask: &CrcMask, epoch: Epoch, lsn: Lsn, bytes: &'a [u8]) -> Option<&'a Self> {
        let (unit, _) = Self::ref_from_prefix(bytes).ok()?;
        let crc = crc32fast::hash(bytes.get(4..UNIT_BYTES)?) ^ mask.log_unit(epoch, lsn);
        (unit.crc.get() == crc || canary::leaves_out(Canary::LogUnitCrc)).then_some(unit)
    }
}

impl Entry {
    /// How many units it takes.
    pub(crate) fn units(&self) -> usize {
        if matches!(self, Self::Move { .. }) { 2 } else { 1 }
    }

    /// Writes the entry, whose first unit is at `lsn`, to the front of `out`.
    pub(crate) fn encode(&self, mask: &CrcMask, epoch: Epoch, lsn: Lsn, out: &mut [u8]) {
        let (first, rest) = out.split_at_mut(UNIT_BYTES);
        let unit = match self {
            Self::Put(l) => RawUnit::location(TAG_PUT, l),
            Self::Move { to, from, carries } => {
                let second = RawUnit::new(TAG_MOVE_FROM).at(*from).carrying(*carries);
                second.write(mask, epoch, lsn.plus(1), &mut rest[..UNIT_BYTES]);
                RawUnit::location(TAG_MOVE, to)
            }
            Self::Delete { hash, kind, from } => RawUnit { kind: *kind as u8, hash: hash.0, ..RawUnit::new(TAG_DELETE) }.at(*from),
            Self::BlockOpen { vbn } => RawUnit { vbn: vbn.0.into(), ..RawUnit::new(TAG_BLOCK_OPEN) },
            Self::BlockSeal { vbn, fill_bytes } => {
                RawUnit { vbn: vbn.0.into(), extent: (*fill_bytes).into(), ..RawUnit::new(TAG_BLOCK_SEAL) }
            }
            Self::BlockRetire { vbn } => RawUnit { vbn: vbn.0.into(), ..RawUnit::new(TAG_BLOCK_RETIRE) },
            Self::Void { first, last } => RawUnit::two_lsns(TAG_VOID, *first, *last),
            Self::Durable { lsn } => RawUnit::two_lsns(TAG_DURABLE, *lsn, *lsn),
        };
        unit.write(mask, epoch, lsn, first);
    }

    /// Whether the unit at the front of `bytes` can be [`Self::Durable`], by its unchecked tag.
    pub(crate) fn may_be_durable(bytes: &[u8]) -> bool {
        bytes.get(TAG_OFFSET) == Some(&TAG_DURABLE)
    }

    /// Reads the entry whose first unit, at `lsn`, is at the front of `bytes`.
    pub(crate) fn decode(mask: &CrcMask, epoch: Epoch, lsn: Lsn, bytes: &[u8]) -> Option<Self> {
        let unit = RawUnit::read(mask, epoch, lsn, bytes)?;
        let vbn = Vbn(unit.vbn.get());
        Some(match unit.tag {
            TAG_PUT => Self::Put(unit.read_location()?),
            TAG_MOVE => {
                let from = RawUnit::read(mask, epoch, lsn.plus(1), bytes.get(UNIT_BYTES..)?)?;
                if from.tag != TAG_MOVE_FROM {
                    return None;
                }
                Self::Move { to: unit.read_location()?, from: from.place(), carries: from.read_carried() }
            }
            TAG_DELETE => Self::Delete { hash: KeyHash(unit.hash), kind: SlotKind::from_bits(unit.kind)?, from: unit.place() },
            TAG_BLOCK_OPEN => Self::BlockOpen { vbn },
            TAG_BLOCK_SEAL => Self::BlockSeal { vbn, fill_bytes: unit.extent.get() },
            TAG_BLOCK_RETIRE => Self::BlockRetire { vbn },
            TAG_VOID => {
                let (first, last) = unit.read_two_lsns();
                Self::Void { first, last }
            }
            TAG_DURABLE => Self::Durable { lsn: unit.read_two_lsns().0 },
            _ => return None,
        })
    }
}

/// Unit 0 of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageHead {
    pub(crate) epoch: Epoch,
    /// LSN of the page's first entry.
    pub(crate) first: Lsn,
    /// Number of the page since the store was formatted; its place in the ring is the remainder by the ring's pages.
    pub(crate) page: u64,
    /// Units used in the page before it: fewer found there means that a write of it was lost.
    pub(crate) units_before: u16,
}

impl PageHead {
    pub(crate) fn encode(&self, mask: &CrcMask, page: &mut [u8]) {
        let mut raw = RawPageHead {
            crc: U32::ZERO,
            epoch: self.epoch.0.into(),
            first: self.first.0.into(),
            page: self.page.into(),
            units_before: self.units_before.into(),
            padding: [0; 6],
        };
        raw.crc = (crc32fast::hash(&raw.as_bytes()[4..]) ^ mask.log_page(self.page)).into();
        page[..UNIT_BYTES].copy_from_slice(raw.as_bytes());
    }
    /// Reads the head of a page that should be number `page`.
    pub(crate) fn decode(mask: &CrcMask, page: u64, bytes: &[u8]) -> Option<Self> {
        let (raw, _) = RawPageHead::ref_from_prefix(bytes).ok()?;
        let crc = crc32fast::hash(bytes.get(4..UNIT_BYTES)?) ^ mask.log_page(page);
        (raw.crc.get() == crc && raw.page.get() == page).then(|| Self {
            epoch: Epoch(raw.epoch.get()),
            first: Lsn(raw.first.get()),
            page,
            units_before: raw.units_before.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        let at = |vbn, offset| Place::new(Vbn(vbn), offset);
        let location = |kind| Location { hash: KeyHash([7; 12]), kind, check: SizeCheck(513), place: at(9, 4096), extent_bytes: 1000 };
        vec![
            Entry::Put(location(SlotKind::Content)),
            Entry::Put(location(SlotKind::Manifest)),
            Entry::Move { to: location(SlotKind::Part), from: at(4, 64), carries: None },
            Entry::Move { to: location(SlotKind::Named), from: at(4, 64), carries: Some((Epoch(2), Lsn(1 << 50))) },
            Entry::Delete { hash: KeyHash([1; 12]), kind: SlotKind::Named, from: at(3, 8) },
            Entry::BlockOpen { vbn: Vbn(77) },
            Entry::BlockSeal { vbn: Vbn(77), fill_bytes: 1 << 20 },
            Entry::BlockRetire { vbn: Vbn(77) },
            Entry::Void { first: Lsn(5 << 40), last: Lsn(6 << 40) },
            Entry::Durable { lsn: Lsn(u64::MAX - 1) },
        ]
    }

    #[test]
    fn entries_read_back_only_at_their_own_lsn_epoch_and_store() {
        let mask = CrcMask::new(&[1; 16]);
        for entry in entries() {
            let mut bytes = vec![0; entry.units() * UNIT_BYTES];
            entry.encode(&mask, Epoch(3), Lsn(40), &mut bytes);
            assert_eq!(Entry::decode(&mask, Epoch(3), Lsn(40), &bytes), Some(entry));
            assert_eq!(Entry::decode(&mask, Epoch(4), Lsn(40), &bytes), None);
            assert_eq!(Entry::decode(&mask, Epoch(3), Lsn(41), &bytes), None);
            assert_eq!(Entry::decode(&CrcMask::new(&[2; 16]), Epoch(3), Lsn(40), &bytes), None);
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Entry::decode(&mask, Epoch(3), Lsn(40), &bytes), None, "bit {bit} of {entry:?}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    #[test]
    fn a_page_head_reads_back_only_at_its_own_page() {
        let mask = CrcMask::new(&[1; 16]);
        let head = PageHead { epoch: Epoch(3), first: Lsn(9), page: 12, units_before: 127 };
        let mut page = vec![0; PAGE_BYTES];
        head.encode(&mask, &mut page);
        assert_eq!(PageHead::decode(&mask, 12, &page), Some(head));
        assert_eq!(PageHead::decode(&mask, 12 + 4096, &page), None);
    }
}
