//! Checksums that know where they belong.
//!
//! A stored CRC is the CRC-32 of the bytes XORed with a mask made of (store uuid, vbn, offset). The mask detects a record that
//! was read from the wrong place as surely as a seed would, and lets the CRC of the bytes be computed once, in the pass that
//! hashes them, before anybody knows where they will lie.

use super::types::{Epoch, Lsn, Place, Vbn};
use crate::canary::{self, Canary};
use crc32fast::Hasher;
use smallvec::SmallVec;

/// Bytes of stored payload that one CRC covers.
pub(crate) const CHUNK_BYTES: usize = 64 << 10;

/// The CRCs of a payload's chunks. Those of small payloads, which are most, take no memory of their own.
pub(crate) type Crcs = SmallVec<[u32; 4]>;

/// Makes the masks of one store.
#[derive(Clone, Debug)]
pub(crate) struct CrcMask {
    store: Hasher,
}

impl CrcMask {
    pub(crate) fn new(uuid: &[u8; 16]) -> Self {
        let mut store = Hasher::new();
        store.update(uuid);
        Self { store }
    }
    fn of(&self, domain: u8, a: u64, b: u64) -> u32 {
        let mut bytes = [0u8; 17];
        let (d, rest) = bytes.split_at_mut(1);
        let (x, y) = rest.split_at_mut(8);
        d.fill(domain);
        x.copy_from_slice(&a.to_le_bytes());
        y.copy_from_slice(&b.to_le_bytes());
        let mut hasher = self.store.clone();
        hasher.update(&bytes);
        hasher.finalize()
    }
    /// For the header of the record at `place`.
    pub(crate) fn record(&self, place: Place) -> u32 {
        let place = if canary::leaves_out(Canary::VbnInMask) { Place { vbn: Vbn::NONE, ..place } } else { place };
        self.of(1, u64::from(place.vbn.0), place.offset_bytes())
    }
    /// For chunk `index` of the record at `place`.
    pub(crate) fn chunk(&self, place: Place, index: u32) -> u32 {
        let place = if canary::leaves_out(Canary::VbnInMask) { Place { vbn: Vbn::NONE, ..place } } else { place };
        self.of(2, place.as_u64(), u64::from(index))
    }
    /// For the log unit at `lsn`.
    pub(crate) fn log_unit(&self, epoch: Epoch, lsn: Lsn) -> u32 {
        self.of(3, u64::from(epoch.0), lsn.0)
    }
    /// For the head of log page `page`.
    pub(crate) fn log_page(&self, page: u64) -> u32 {
        self.of(4, page, 0)
    }
    /// For a block's header page.
    pub(crate) fn block(&self, vbn: Vbn) -> u32 {
        self.of(5, u64::from(vbn.0), 0)
    }
    /// For unit `index` of image `number`.
    pub(crate) fn image_unit(&self, number: u64, index: u32) -> u32 {
        self.of(6, number, u64::from(index))
    }
    /// For the block table of image `number`.
    pub(crate) fn block_table(&self, number: u64) -> u32 {
        self.of(7, number, 0)
    }
}

/// Running CRCs of a payload, one per [`CHUNK_BYTES`].
#[derive(Clone, Debug, Default)]
pub(crate) struct ChunkCrcs {
    done: Crcs,
    open: Hasher,
    open_bytes: usize,
}

impl ChunkCrcs {
    /// The CRCs of a payload that is there as a whole.
    pub(crate) fn of(payload: &[u8]) -> Crcs {
        payload.chunks(CHUNK_BYTES).map(crc32fast::hash).collect()
    }
    /// Appends to the payload.
    pub(crate) fn update(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let (now, rest) = data.split_at(data.len().min(CHUNK_BYTES - self.open_bytes));
            self.open.update(now);
            self.open_bytes += now.len();
            if self.open_bytes == CHUNK_BYTES {
                self.done.push(std::mem::take(&mut self.open).finalize());
                self.open_bytes = 0;
            }
            data = rest;
        }
    }
    /// The CRCs of all that was appended.
    pub(crate) fn finish(mut self) -> Crcs {
        if self.open_bytes > 0 {
            self.done.push(self.open.finalize());
        }
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_crcs_equal_those_of_the_whole() {
        let data: Vec<u8> = (0..200_000u32).map(|i| (i * 7) as u8).collect();
        for step in [1usize, 1000, CHUNK_BYTES - 1, CHUNK_BYTES, 200_000] {
            let mut running = ChunkCrcs::default();
            data.chunks(step).for_each(|c| running.update(c));
            assert_eq!(running.finish(), ChunkCrcs::of(&data), "in steps of {step}");
        }
    }

    #[test]
    fn masks_differ_by_store_place_and_purpose() {
        let (a, b) = (CrcMask::new(&[1; 16]), CrcMask::new(&[2; 16]));
        let p = Place::new(Vbn(7), 4096);
        let masks = [
            a.record(p),
            b.record(p),
            a.record(Place::new(Vbn(8), 4096)),
            a.record(Place::new(Vbn(7), 8192)),
            a.chunk(p, 0),
            a.chunk(p, 1),
            a.log_unit(Epoch(7), Lsn(4096)),
            a.log_unit(Epoch(8), Lsn(4096)),
        ];
        let mut unique = masks.to_vec();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), masks.len());
    }
}
