//! A block's header page: whose the block is.

use super::{
    crc::CrcMask,
    types::{Lsn, Vbn},
};
use crate::device::PAGE_BYTES;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

/// What a block was opened for. Says nothing about what may be in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Purpose {
    /// Small records, in the order of their acknowledgement.
    Small = 1,
    /// Paged records: larger objects, and parts of uploads.
    Paged = 2,
    /// Records carried out of reclaimed blocks.
    Carry = 3,
}

/// The first page of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockHead {
    pub(crate) vbn: Vbn,
    pub(crate) physical: u32,
    /// The last LSN published when the block was opened.
    pub(crate) lsn: Lsn,
}

const MAGIC: u32 = 0x6b6c_4221;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    crc: U32,
    magic: U32,
    uuid: [u8; 16],
    vbn: U32,
    physical: U32,
    lsn: U64,
}
const RAW_BYTES: usize = 40;
const _: () = assert!(size_of::<Raw>() == RAW_BYTES);

impl BlockHead {
    pub(crate) fn encode(&self, mask: &CrcMask, uuid: &[u8; 16], page: &mut [u8]) {
        let mut raw = Raw {
            crc: U32::ZERO,
            magic: MAGIC.into(),
            uuid: *uuid,
            vbn: self.vbn.0.into(),
            physical: self.physical.into(),
            lsn: self.lsn.0.into(),
        };
        raw.crc = (crc32fast::hash(&raw.as_bytes()[4..]) ^ mask.block(self.vbn)).into();
        page[..PAGE_BYTES].fill(0);
        page[..RAW_BYTES].copy_from_slice(raw.as_bytes());
    }
    /// `None` if the page is no block header of this store.
    pub(crate) fn decode(mask: &CrcMask, uuid: &[u8; 16], page: &[u8]) -> Option<Self> {
        let (raw, _) = Raw::ref_from_prefix(page).ok()?;
        let vbn = Vbn(raw.vbn.get());
        let crc = crc32fast::hash(page.get(4..RAW_BYTES)?) ^ mask.block(vbn);
        (raw.magic.get() == MAGIC && raw.uuid == *uuid && raw.crc.get() == crc).then(|| Self {
            vbn,
            physical: raw.physical.get(),
            lsn: Lsn(raw.lsn.get()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_head_reads_back_only_in_its_own_store() {
        let (mask, other) = (CrcMask::new(&[1; 16]), CrcMask::new(&[2; 16]));
        let head = BlockHead { vbn: Vbn(1030), physical: 6, lsn: Lsn(99) };
        let mut page = vec![1; PAGE_BYTES];
        head.encode(&mask, &[1; 16], &mut page);
        assert_eq!(BlockHead::decode(&mask, &[1; 16], &page), Some(head));
        assert_eq!(BlockHead::decode(&other, &[2; 16], &page), None);
        page[30] ^= 1;
        assert_eq!(BlockHead::decode(&mask, &[1; 16], &page), None);
    }
}
