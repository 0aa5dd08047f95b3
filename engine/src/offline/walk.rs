//! Finding records in a block without a map: one after the other, as they lie.
//!
//! Always true here: only a record whose head and payload pass their checksums at this very place is found, so that nothing of an
//! earlier tenant, of another store, or inside of somebody's bytes is taken for one. What fails is stepped over, granule by granule.

use super::PAGE;
use crate::{
    device::{AlignedBuf, Device, PAGE_BYTES},
    format::{
        crc::CrcMask,
        layout::Layout,
        record::{RecordFault, RecordHead},
        types::{Place, RECORD_ALIGN_BYTES, Vbn},
    },
};
use futures::future::join_all;

/// Bytes that are read ahead, and how many of them one read carries.
const WINDOW_BYTES: u64 = 4 << 20;
const READ_BYTES: u64 = 1 << 20;
const HEADER_BYTES: u64 = 64;
const STEP: u64 = RECORD_ALIGN_BYTES as u64;

/// The blocks of one store, read for themselves.
pub(super) struct Walker<'a> {
    pub(super) device: &'a dyn Device,
    pub(super) layout: &'a Layout,
    pub(super) mask: &'a CrcMask,
}

/// What was found in a block.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Walked {
    pub(super) records: u64,
    /// End of the last one.
    pub(super) end_bytes: u64,
    /// Pages that the device could not read.
    pub(super) unreadable_pages: u64,
}

struct Window<'a> {
    walker: &'a Walker<'a>,
    physical: u32,
    start: u64,
    bytes: Vec<u8>,
    unreadable_pages: u64,
}

impl Window<'_> {
    /// Bytes `at..at + len` of the block; fewer at its end.
    async fn get(&mut self, at: u64, len: u64) -> &[u8] {
        let end = (at + len).min(self.walker.layout.block_bytes);
        if at < self.start || end > self.start + self.bytes.len() as u64 {
            self.fill(at / PAGE * PAGE, end).await;
        }
        let from = (at - self.start) as usize;
        self.bytes.get(from..from + (end - at) as usize).unwrap_or_default()
    }

    async fn fill(&mut self, start: u64, end: u64) {
        let Walker { device, layout, .. } = self.walker;
        let end = end.max(start + WINDOW_BYTES).next_multiple_of(PAGE).min(layout.block_bytes);
        let offset = layout.block_offset(self.physical);
        let pieces: Vec<(u64, u64)> = (start..end).step_by(READ_BYTES as usize).map(|at| (at, READ_BYTES.min(end - at))).collect();
        let reads = pieces.iter().map(|(at, len)| device.read(offset + at, AlignedBuf::take(*len as usize)));
        let mut bytes = Vec::with_capacity((end - start) as usize);
        for ((at, len), (buf, result)) in pieces.iter().zip(join_all(reads).await) {
            match result {
                Ok(()) => bytes.extend_from_slice(buf.get(..*len as usize).unwrap_or_default()),
                // Page by page, so that one bad sector costs one page.
                Err(_) => {
                    for page in (*at..at + len).step_by(PAGE_BYTES) {
                        let (buf, result) = device.read(offset + page, AlignedBuf::zeroed(PAGE_BYTES)).await;
                        match result {
                            Ok(()) => bytes.extend_from_slice(&buf),
                            Err(_) => {
                                self.unreadable_pages += 1;
                                bytes.resize(bytes.len() + PAGE_BYTES, 0);
                            }
                        }
                    }
                }
            }
        }
        (self.start, self.bytes) = (start, bytes);
    }
}

impl Walker<'_> {
    /// Tells `each` of every record that is whole in the block of tenant `vbn`, with its payload.
    pub(super) async fn block(&self, physical: u32, vbn: Vbn, mut each: impl FnMut(Place, &RecordHead, &[u8])) -> Walked {
        let block_bytes = self.layout.block_bytes;
        let mut window = Window { walker: self, physical, start: 0, bytes: Vec::new(), unreadable_pages: 0 };
        let mut walked = Walked::default();
        let mut at = PAGE;
        while at + HEADER_BYTES <= block_bytes {
            let place = Place::new(vbn, at as u32);
            match self.record_at(&mut window, place).await {
                Some(head) => {
                    let shape = head.shape();
                    let record = window.get(at, shape.extent_bytes as u64).await;
                    let payload = record.get(shape.payload_offset..shape.payload_offset + shape.payload_bytes).unwrap_or_default();
                    if payload.len() == shape.payload_bytes && head.verify(0, payload) {
                        each(place, &head, payload);
                        walked.records += 1;
                        at += shape.extent_bytes as u64;
                        walked.end_bytes = at;
                    } else {
                        at += STEP;
                    }
                }
                None => at += STEP,
            }
        }
        walked.unreadable_pages = window.unreadable_pages;
        walked
    }

    async fn record_at(&self, window: &mut Window<'_>, place: Place) -> Option<RecordHead> {
        let at = place.offset_bytes();
        let bytes = window.get(at, HEADER_BYTES).await;
        // The kind of a record is never 0: most of what is empty is told by one byte.
        if bytes.get(4).is_none_or(|kind| *kind == 0) {
            return None;
        }
        match RecordHead::decode(self.mask, place, bytes, self.layout.block_bytes) {
            Ok(head) => Some(head),
            Err(RecordFault::Bad) => None,
            Err(RecordFault::Short(more)) => {
                let bytes = window.get(at, more as u64).await;
                RecordHead::decode(self.mask, place, bytes, self.layout.block_bytes).ok()
            }
        }
    }

    /// The tenant of a block whose header is damaged, by its first record: the latest of `generations` under which that one is whole.
    pub(super) async fn tenant(&self, physical: u32, generations: u32) -> Option<Vbn> {
        let mut window = Window { walker: self, physical, start: 0, bytes: Vec::new(), unreadable_pages: 0 };
        for generation in (1..=generations).rev() {
            let Some(vbn) = generation.checked_mul(self.layout.vbn_stride).and_then(|base| base.checked_add(physical)) else { continue };
            let place = Place::new(Vbn(vbn), PAGE as u32);
            let Some(head) = self.record_at(&mut window, place).await else { continue };
            let shape = head.shape();
            let record = window.get(PAGE, shape.extent_bytes as u64).await;
            let payload = record.get(shape.payload_offset..shape.payload_offset + shape.payload_bytes);
            if payload.is_some_and(|payload| head.verify(0, payload)) {
                return Some(Vbn(vbn));
            }
        }
        None
    }
}
