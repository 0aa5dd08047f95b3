//! A slot: 16 bytes that say where a key's record lies.
//!
//! ```text
//! word 0: vbn 32 | granule 27 | stamp 3 | kind 2        word 1: fingerprint 40 | size check 16 | length class 7 | 0
//! ```
//! A word 0 of zero is an empty slot: no tenant has vbn 0.

use crate::format::types::{LengthClass, Place, SizeCheck, SlotKind, Vbn};

const GRANULE_MASK: u64 = (1 << 27) - 1;

/// A slot's content.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Slot {
    pub(crate) word0: u64,
    pub(crate) word1: u64,
}

impl Slot {
    pub(crate) const EMPTY: Self = Self { word0: 0, word1: 0 };

    pub(crate) fn new(place: Place, stamp: u8, kind: SlotKind, fingerprint: u64, check: SizeCheck, class: LengthClass) -> Self {
        debug_assert!(u64::from(place.granule) <= GRANULE_MASK && fingerprint < 1 << 40);
        Self {
            word0: u64::from(place.vbn.0) << 32 | (u64::from(place.granule) & GRANULE_MASK) << 5 | u64::from(stamp & 7) << 2 | kind as u64,
            word1: fingerprint << 24 | u64::from(check.0) << 8 | u64::from(class.0) << 1,
        }
    }
    pub(crate) fn is_empty(self) -> bool {
        self.word0 == 0
    }
    pub(crate) fn place(self) -> Place {
        Place { vbn: self.vbn(), granule: (self.word0 >> 5 & GRANULE_MASK) as u32 }
    }
    pub(crate) fn vbn(self) -> Vbn {
        Vbn((self.word0 >> 32) as u32)
    }
    pub(crate) fn stamp(self) -> u8 {
        (self.word0 >> 2 & 7) as u8
    }
    pub(crate) fn kind(self) -> SlotKind {
        match self.word0 & 3 {
            0 => SlotKind::Content,
            1 => SlotKind::Named,
            2 => SlotKind::Part,
            _ => SlotKind::Manifest,
        }
    }
    pub(crate) fn fingerprint(self) -> u64 {
        self.word1 >> 24
    }
    pub(crate) fn check(self) -> SizeCheck {
        SizeCheck((self.word1 >> 8) as u16)
    }
    pub(crate) fn class(self) -> LengthClass {
        LengthClass((self.word1 >> 1 & 127) as u8)
    }
    /// The same slot with another stamp.
    pub(crate) fn stamped(self, stamp: u8) -> Self {
        Self { word0: self.word0 & !(7 << 2) | u64::from(stamp & 7) << 2, ..self }
    }
    /// The same slot at another place and with another stamp.
    pub(crate) fn at(self, place: Place, stamp: u8) -> Self {
        Self::new(place, stamp, self.kind(), self.fingerprint(), self.check(), self.class())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_keeps_the_extremes_of_every_field() {
        for (vbn, granule, stamp, kind, fingerprint, check, class) in
            [(u32::MAX, (1 << 27) - 1, 7, SlotKind::Manifest, (1 << 40) - 1, 65_520, 127), (1, 0, 0, SlotKind::Content, 0, 0, 0)]
        {
            let place = Place { vbn: Vbn(vbn), granule };
            let slot = Slot::new(place, stamp, kind, fingerprint, SizeCheck(check), LengthClass(class));
            assert_eq!((slot.place(), slot.stamp(), slot.kind()), (place, stamp, kind));
            assert_eq!((slot.fingerprint(), slot.check(), slot.class()), (fingerprint, SizeCheck(check), LengthClass(class)));
            assert!(!slot.is_empty());
            assert_eq!(slot.stamped(3), slot.at(place, 3));
        }
    }
}
