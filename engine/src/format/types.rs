//! The numbers that address something, one type each.

use std::fmt;

/// Granule of record offsets within a block, in bytes.
pub(crate) const RECORD_ALIGN_BYTES: u32 = 8;

/// Virtual block number: generation × stride + physical index. Never reused; 0 is nobody's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Vbn(pub(crate) u32);

impl Vbn {
    pub(crate) const NONE: Self = Self(0);
}

/// Position in the key-location map's log, counted in 32-byte units from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Lsn(pub(crate) u64);

impl Lsn {
    /// The position `units` further on.
    pub(crate) fn plus(self, units: u64) -> Self {
        Self(self.0.saturating_add(units))
    }
    /// The position before; that of 0 is 0.
    pub(crate) fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// One per opening of the store; only ever grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Epoch(pub(crate) u32);

/// Where a record lies: its block's tenant, and the offset of its header in granules of [`RECORD_ALIGN_BYTES`].
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) vbn: Vbn,
    pub(crate) granule: u32,
}

impl Place {
    pub(crate) fn new(vbn: Vbn, offset_bytes: u32) -> Self {
        debug_assert_eq!(offset_bytes % RECORD_ALIGN_BYTES, 0);
        Self { vbn, granule: offset_bytes / RECORD_ALIGN_BYTES }
    }
    /// Offset of the record's header in its block.
    pub(crate) fn offset_bytes(self) -> u64 {
        u64::from(self.granule) * u64::from(RECORD_ALIGN_BYTES)
    }
    /// A number that no other place, ever, has.
    pub(crate) fn as_u64(self) -> u64 {
        u64::from(self.vbn.0) << 32 | u64::from(self.granule)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.vbn.0, self.offset_bytes())
    }
}

/// What a slot of the table, and a log entry, is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum SlotKind {
    /// A whole object under a content key.
    Content = 0,
    /// A whole object under a named key.
    Named = 1,
    /// A part of a large object, under (upload id, index).
    Part = 2,
    /// The list of a large object's parts, under its content key.
    Manifest = 3,
}

impl SlotKind {
    pub(crate) fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Content,
            1 => Self::Named,
            2 => Self::Part,
            3 => Self::Manifest,
            _ => return None,
        })
    }
    /// Whether a record of this kind and one of `other` stand for the same key when their key hashes are equal.
    pub(crate) fn same_space(self, other: Self) -> bool {
        let content = |k| matches!(k, Self::Content | Self::Manifest);
        self == other || (content(self) && content(other))
    }
}

/// 96 bits of the keyed hash of a key: enough to find its unit, its buckets and its fingerprint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct KeyHash(pub(crate) [u8; 12]);

impl KeyHash {
    fn low(self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
    /// The table unit among `units`.
    pub(crate) fn unit(self, units: u32) -> u32 {
        let high = (self.low() >> 32) * u64::from(units);
        // The product of two 32-bit numbers, shifted by 32, is below `units`.
        (high >> 32) as u32
    }
    /// The first bucket among `buckets`.
    pub(crate) fn bucket(self, buckets: u32) -> u32 {
        let bits = self.low() & 0xff_ffff;
        ((bits * u64::from(buckets)) >> 24) as u32
    }
    /// 40 bits that neither choose the unit nor the bucket.
    pub(crate) fn fingerprint(self) -> u64 {
        let [.., i, j, k, l] = self.0;
        // Byte 3 of the low word is the only one of it that is not used above.
        (self.low() >> 24 & 0xff) | u64::from(u32::from_le_bytes([i, j, k, l])) << 8
    }
}

/// 16 bits that tell sizes apart: sizes that differ by less than 65,521 never share them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SizeCheck(pub(crate) u16);

impl SizeCheck {
    pub(crate) fn of(size_bytes: u64) -> Self {
        // The remainder by the largest prime below 2^16 mixes all bits of the size.
        Self((size_bytes % 65_521) as u16)
    }
}

/// Length of a record as the table keeps it: 7 bits, rounded up by at most an eighth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LengthClass(pub(crate) u8);

impl LengthClass {
    /// The smallest class that holds `extent_bytes`.
    pub(crate) fn of(extent_bytes: u32) -> Self {
        let granules = u64::from(extent_bytes.div_ceil(64).max(1));
        if granules <= 8 {
            return Self((granules - 1) as u8);
        }
        // granules - 1 = 1xxx… : its top four bits make the class.
        let top = granules - 1;
        let shift = 60 - top.leading_zeros();
        let mantissa = (top >> shift) & 7;
        Self((shift * 8 + mantissa as u32 + 8).min(127) as u8)
    }
    /// The longest record of this class in bytes.
    pub(crate) fn bytes_max(self) -> u32 {
        let class = u32::from(self.0);
        if class < 8 {
            return (class + 1) * 64;
        }
        let (shift, mantissa) = ((class - 8) / 8, (class - 8) % 8);
        ((8 + mantissa + 1) << shift) * 64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_class_holds_its_length_and_wastes_at_most_an_eighth() {
        for n in (1..2_000_000u32).step_by(37).chain([1, 64, 65, 512, 513, 1 << 20, (1 << 20) + 4096, 8 << 20]) {
            let max = LengthClass::of(n).bytes_max();
            assert!(max >= n, "{n} in a class of {max}");
            assert!(max <= n.next_multiple_of(64) + n / 8 + 64, "{n} in a class of {max}");
        }
    }

    #[test]
    fn a_key_hash_gives_each_bit_to_one_use() {
        let mut seen = [0u64; 3];
        for bit in 0..96 {
            let mut raw = [0u8; 12];
            raw[bit / 8] |= 1 << (bit % 8);
            let h = KeyHash(raw);
            seen[0] |= h.fingerprint();
            let uses = [h.fingerprint() != 0, h.bucket(1 << 24) != 0, h.unit(u32::MAX) != 0 || (bit == 32)];
            assert!(uses.iter().filter(|u| **u).count() <= 1, "bit {bit}: {uses:?}");
        }
        assert_eq!(seen[0], (1 << 40) - 1);
    }
}
