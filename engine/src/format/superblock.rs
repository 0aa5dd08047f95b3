//! The superblock: what the store is, where its parts lie, and which image is in force. Four copies, one page each.

use super::types::{Epoch, Lsn};
use crate::device::PAGE_BYTES;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

const MAGIC: [u8; 8] = *b"BLKSTORE";
/// Version of everything that `FORMAT.md` describes.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// Feature: records and manifests may have a codec.
pub(crate) const FEATURE_ENCODED: u64 = 1;
/// Features that a program must know in order to open a store at all.
const INCOMPATIBLE_KNOWN: u64 = FEATURE_ENCODED;

/// The image that recovery starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct ImageInForce {
    /// 0 is A, 1 is B.
    pub(crate) slot: u8,
    /// Counts images from 1; 0 means that there is none and the table starts empty.
    pub(crate) number: u64,
    /// Replay starts behind this LSN: the publish mark read before the first unit was copied.
    pub(crate) replay_after: Lsn,
    /// The log page that holds the first entry behind it (or will).
    pub(crate) replay_page: u64,
}

/// What a superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// Features that are in use. Once there, one stays.
    pub(crate) incompatible: u64,
    pub(crate) uuid: [u8; 16],
    pub(crate) device_index: u16,
    pub(crate) device_count: u16,
    pub(crate) epoch: Epoch,
    pub(crate) sequence: u64,
    pub(crate) device_bytes: u64,
    pub(crate) sector_bytes: u32,
    pub(crate) block_bytes: u64,
    pub(crate) block_count: u32,
    pub(crate) vbn_stride: u32,
    pub(crate) hash_seed: [u8; 16],
    pub(crate) log_offset: u64,
    pub(crate) log_bytes: u64,
    pub(crate) image_offsets: [u64; 2],
    pub(crate) table_units: u32,
    pub(crate) blocks_offset: u64,
    pub(crate) image: ImageInForce,
    /// The image before it, from which a damaged unit may be taken while the log still reaches back to it.
    pub(crate) previous_image: ImageInForce,
    /// Everything up to this LSN was flushed.
    pub(crate) mark: Lsn,
    /// Written by a clean shutdown, cleared by the next opening.
    pub(crate) clean: bool,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    crc: U32,
    version: U32,
    magic: [u8; 8],
    compatible: U64,
    incompatible: U64,
    uuid: [u8; 16],
    device_index: U16,
    device_count: U16,
    epoch: U32,
    sequence: U64,
    device_bytes: U64,
    sector_bytes: U32,
    block_count: U32,
    block_bytes: U64,
    vbn_stride: U32,
    table_units: U32,
    hash_seed: [u8; 16],
    log_offset: U64,
    log_bytes: U64,
    image_a_offset: U64,
    image_b_offset: U64,
    blocks_offset: U64,
    image_number: U64,
    image_replay_after: U64,
    image_replay_page: U64,
    mark: U64,
    previous_number: U64,
    previous_replay_after: U64,
    previous_replay_page: U64,
    image_slot: u8,
    previous_slot: u8,
    clean: u8,
    padding: [u8; 5],
}
const RAW_BYTES: usize = 216;
const _: () = assert!(size_of::<Raw>() == RAW_BYTES);

/// Why a page is not a superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SuperblockFault {
    /// Nothing of ours.
    Foreign,
    /// Ours by its first bytes, but its checksum fails.
    Damaged,
    /// Written by a version that this program does not understand.
    TooNew { version: u32, incompatible: u64 },
}

impl Superblock {
    /// The page that holds it, CRC included.
    pub(crate) fn encode(&self, page: &mut [u8]) {
        let [image_a_offset, image_b_offset] = self.image_offsets.map(U64::new);
        let raw = Raw {
            crc: U32::ZERO,
            version: FORMAT_VERSION.into(),
            magic: MAGIC,
            compatible: U64::ZERO,
            incompatible: self.incompatible.into(),
            uuid: self.uuid,
            device_index: self.device_index.into(),
            device_count: self.device_count.into(),
            epoch: self.epoch.0.into(),
            sequence: self.sequence.into(),
            device_bytes: self.device_bytes.into(),
            sector_bytes: self.sector_bytes.into(),
            block_count: self.block_count.into(),
            block_bytes: self.block_bytes.into(),
            vbn_stride: self.vbn_stride.into(),
            table_units: self.table_units.into(),
            hash_seed: self.hash_seed,
            log_offset: self.log_offset.into(),
            log_bytes: self.log_bytes.into(),
            image_a_offset,
            image_b_offset,
            blocks_offset: self.blocks_offset.into(),
            image_number: self.image.number.into(),
            image_replay_after: self.image.replay_after.0.into(),
            image_replay_page: self.image.replay_page.into(),
            mark: self.mark.0.into(),
            previous_number: self.previous_image.number.into(),
            previous_replay_after: self.previous_image.replay_after.0.into(),
            previous_replay_page: self.previous_image.replay_page.into(),
            image_slot: self.image.slot,
            previous_slot: self.previous_image.slot,
            clean: u8::from(self.clean),
            padding: [0; 5],
        };
        let page = &mut page[..PAGE_BYTES];
        page.fill(0);
        page[..RAW_BYTES].copy_from_slice(raw.as_bytes());
        let crc = crc32fast::hash(&page[4..]);
        page[..4].copy_from_slice(&crc.to_le_bytes());
    }

    pub(crate) fn decode(page: &[u8]) -> Result<Self, SuperblockFault> {
        let page = page.get(..PAGE_BYTES).ok_or(SuperblockFault::Foreign)?;
        let (raw, _) = Raw::ref_from_prefix(page).map_err(|_| SuperblockFault::Foreign)?;
        if raw.magic != MAGIC {
            return Err(SuperblockFault::Foreign);
        }
        if raw.crc.get() != crc32fast::hash(&page[4..]) {
            return Err(SuperblockFault::Damaged);
        }
        let incompatible = raw.incompatible.get();
        if raw.version.get() != FORMAT_VERSION || incompatible & !INCOMPATIBLE_KNOWN != 0 {
            return Err(SuperblockFault::TooNew { version: raw.version.get(), incompatible });
        }
        Ok(Self {
            incompatible,
            uuid: raw.uuid,
            device_index: raw.device_index.get(),
            device_count: raw.device_count.get(),
            epoch: Epoch(raw.epoch.get()),
            sequence: raw.sequence.get(),
            device_bytes: raw.device_bytes.get(),
            sector_bytes: raw.sector_bytes.get(),
            block_bytes: raw.block_bytes.get(),
            block_count: raw.block_count.get(),
            vbn_stride: raw.vbn_stride.get(),
            hash_seed: raw.hash_seed,
            log_offset: raw.log_offset.get(),
            log_bytes: raw.log_bytes.get(),
            image_offsets: [raw.image_a_offset.get(), raw.image_b_offset.get()],
            table_units: raw.table_units.get(),
            blocks_offset: raw.blocks_offset.get(),
            image: ImageInForce {
                slot: raw.image_slot & 1,
                number: raw.image_number.get(),
                replay_after: Lsn(raw.image_replay_after.get()),
                replay_page: raw.image_replay_page.get(),
            },
            previous_image: ImageInForce {
                slot: raw.previous_slot & 1,
                number: raw.previous_number.get(),
                replay_after: Lsn(raw.previous_replay_after.get()),
                replay_page: raw.previous_replay_page.get(),
            },
            mark: Lsn(raw.mark.get()),
            clean: raw.clean == 1,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example() -> Superblock {
        Superblock {
            incompatible: FEATURE_ENCODED,
            uuid: [1; 16],
            device_index: 0,
            device_count: 1,
            epoch: Epoch(5),
            sequence: 6,
            device_bytes: 7,
            sector_bytes: 512,
            block_bytes: 8,
            block_count: 9,
            vbn_stride: 10,
            hash_seed: [2; 16],
            log_offset: 11,
            log_bytes: 12,
            image_offsets: [13, 14],
            table_units: 15,
            blocks_offset: 16,
            image: ImageInForce { slot: 1, number: 17, replay_after: Lsn(18), replay_page: 19 },
            previous_image: ImageInForce { slot: 0, number: 16, replay_after: Lsn(8), replay_page: 9 },
            mark: Lsn(20),
            clean: true,
        }
    }

    #[test]
    fn a_superblock_reads_back_and_no_flipped_bit_passes() {
        let mut page = vec![0; PAGE_BYTES];
        example().encode(&mut page);
        assert_eq!(Superblock::decode(&page), Ok(example()));
        for bit in (0..PAGE_BYTES * 8).step_by(3) {
            page[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::decode(&page).is_err(), "bit {bit}");
            page[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn an_unknown_incompatible_feature_is_refused() {
        let mut page = vec![0; PAGE_BYTES];
        example().encode(&mut page);
        page[24] = 2;
        let crc = crc32fast::hash(&page[4..]);
        page[..4].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Superblock::decode(&page), Err(SuperblockFault::TooNew { version: 1, incompatible: 2 }));
    }
}
