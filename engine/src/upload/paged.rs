//! Paged records: gathered in memory, written at a place of their own, and only then logged.

use super::{Reserved, TURN_WAIT_MAX};
use crate::{
    cache::Piece,
    core::Core,
    device::{AlignedBuf, PAGE_BYTES},
    error::PutError,
    format::{
        crc::ChunkCrcs,
        log::Location,
        record::{RecordHead, RecordKey, RecordKind, RecordShape},
        types::{Lsn, Place, SizeCheck, SlotKind},
    },
    read::PIECE_BYTES,
    sequencer::{Change, Control, Request},
    space::Taken,
    value::Codec,
};
use bytes::Bytes;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Bytes of paged records that uploads gather and write at once, all together.
pub(super) const GATHERED_BYTES_MAX: usize = 128 << 20;

/// The block that paged records go to.
pub(super) struct PagedTail {
    block: Taken,
    fill: u64,
}

/// A place for a paged record.
struct Allocation {
    place: Place,
    physical: u32,
    lsn: Lsn,
}

impl Core {
    /// Seals the block that paged records go to, unless somebody is about to get another.
    pub(crate) async fn seal_paged_tail(&self) -> Result<(), PutError> {
        match self.uploads.paged.try_lock() {
            Ok(mut tail) => self.seal(&mut tail).await,
            Err(_) => Ok(()),
        }
    }

    async fn seal(&self, tail: &mut Option<PagedTail>) -> Result<(), PutError> {
        let Some(PagedTail { block: Taken { vbn, physical, .. }, fill }) = tail.take() else { return Ok(()) };
        self.uploads.left_bytes.store(0, Ordering::Relaxed);
        let fill_bytes = u32::try_from(fill).unwrap_or(u32::MAX);
        let (reply, _) = oneshot::channel();
        let seal = Request { changes: vec![Change::BlockSeal { physical, vbn, fill_bytes }], reply, permit: None };
        self.control.send(Control::Changes(seal)).await.map_err(|_| PutError::Unavailable("store is closed".into()))
    }

    async fn allocate(&self, extent_bytes: u64) -> Result<Allocation, PutError> {
        // A queue, first come first served: the lock is held while a block is awaited, so that nobody overtakes.
        let mut tail = self.uploads.paged.lock().await;
        // A block that goes on where an earlier run left it may be too full already.
        while tail.as_ref().is_none_or(|t| t.fill + extent_bytes > self.layout.block_bytes) {
            self.seal(&mut tail).await?;
            let block = self.take_block(false).await?;
            *tail = Some(PagedTail { block, fill: u64::from(block.fill_bytes).next_multiple_of(PAGE_BYTES as u64) });
        }
        let Some(tail) = tail.as_mut() else { return Err(PutError::Unavailable("no block".into())) };
        let offset = u32::try_from(tail.fill).map_err(|_| PutError::Unavailable("block is larger than an offset".into()))?;
        tail.fill += extent_bytes;
        self.space.pending(tail.block.physical, 1);
        Ok(Allocation { place: Place::new(tail.block.vbn, offset), physical: tail.block.physical, lsn: self.published() })
    }
}

/// A paged record that is being gathered: room for the head, then the payload.
pub(super) struct Paged {
    buf: AlignedBuf,
    payload_offset: usize,
    pub(super) payload_bytes: usize,
    logical_bytes: u64,
    codec: Codec,
    filled: usize,
    crcs: ChunkCrcs,
    permit: OwnedSemaphorePermit,
}

impl Paged {
    /// Waits while the records that are being gathered take all the memory that they may.
    pub(super) async fn new(core: &Core, kind: RecordKind, payload_bytes: usize) -> Result<Self, PutError> {
        // A part may be short enough to be packed by its length; here it is paged all the same.
        let shape = RecordShape::of(kind, payload_bytes);
        let bytes = u32::try_from(shape.extent_bytes.min(GATHERED_BYTES_MAX)).unwrap_or(u32::MAX);
        let permit = match tokio::time::timeout(TURN_WAIT_MAX, core.uploads.gathered.clone().acquire_many_owned(bytes)).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(PutError::Unavailable("store is closed".into())),
            Err(_) => {
                return Err(PutError::NoRoom(format!("other uploads held all buffers for {} s", TURN_WAIT_MAX.as_secs())));
            }
        };
        Ok(Self {
            buf: AlignedBuf::take(shape.extent_bytes),
            payload_offset: shape.payload_offset,
            payload_bytes,
            logical_bytes: payload_bytes as u64,
            codec: Codec::Plain,
            filled: 0,
            crcs: ChunkCrcs::default(),
            permit,
        })
    }
    /// The payload stands for so many other bytes.
    pub(super) fn encoded(self, codec: Codec, logical_bytes: u64) -> Self {
        Self { codec, logical_bytes, ..self }
    }
    /// Payload bytes that are still missing.
    pub(super) fn room(&self) -> usize {
        self.payload_bytes - self.filled
    }
    pub(super) fn push(&mut self, data: &[u8]) {
        let at = self.payload_offset + self.filled;
        self.buf[at..at + data.len()].copy_from_slice(data);
        self.crcs.update(data);
        self.filled += data.len();
    }
}

/// Writes a paged record and logs it. Runs to its end once started.
pub(super) async fn write_paged(
    core: Arc<Core>,
    paged: Paged,
    key: RecordKey,
    kind: RecordKind,
    accept: Accept,
) -> Result<(Place, Location), PutError> {
    let hash = core.hash(&key);
    let mut slots = Reserved::none(&core);
    slots.add(&hash).await?;
    let Paged { mut buf, payload_bytes, logical_bytes, codec, crcs, permit: _permit, .. } = paged;
    let shape = RecordShape::of(kind, payload_bytes);
    let allocation = core.allocate(shape.extent_bytes.next_multiple_of(PAGE_BYTES) as u64).await?;
    let head = RecordHead {
        kind,
        key,
        codec,
        logical_bytes,
        stored_bytes: payload_bytes as u32,
        epoch: core.epoch,
        lsn: allocation.lsn,
        crcs: crcs.finish(),
    };
    let (head_part, _) = buf.split_at_mut(shape.payload_offset);
    head_part.fill(0);
    head.encode(&core.mask, allocation.place, head_part);
    buf[shape.payload_offset + payload_bytes..].fill(0);
    let offset = core.device_offset(allocation.place).ok_or_else(|| PutError::Unavailable("place outside the device".into()))?;
    let buf = core.write(offset, buf, "record").await?;
    let kind = kind.slot().unwrap_or(SlotKind::Content);
    let location =
        Location { hash, kind, check: SizeCheck::of(logical_bytes), place: allocation.place, extent_bytes: shape.extent_bytes as u32 };
    let accept_bytes = match accept {
        Accept::Now => u64::from(location.extent_bytes),
        Accept::IfOverReserve(unaccepted) => {
            let before = core.uploads.unaccepted_bytes.fetch_add(u64::from(location.extent_bytes), Ordering::Relaxed);
            if before + u64::from(location.extent_bytes) > core.layout.upload_reserve_blocks() * core.layout.block_bytes {
                core.uploads.unaccepted_bytes.fetch_sub(u64::from(location.extent_bytes), Ordering::Relaxed);
                u64::from(location.extent_bytes)
            } else {
                unaccepted.fetch_add(u64::from(location.extent_bytes), Ordering::Relaxed);
                0
            }
        }
    };
    let outcomes = core.submit(vec![Change::Written { location, accept_bytes }], 1, slots).await?;
    if outcomes.iter().any(|o| !o.applied) {
        return Err(PutError::NoRoom("no slot of the table could be made for the record".into()));
    }
    debug_assert_eq!(core.layout.physical(allocation.place.vbn), Some(allocation.physical));
    if payload_bytes <= PIECE_BYTES {
        let data = Bytes::from_owner(buf).slice(shape.payload_offset..shape.payload_offset + payload_bytes);
        core.cache.put(allocation.place, 0, Piece { head: head.into(), data });
    }
    Ok((allocation.place, location))
}

/// When the bytes of a record count as accepted.
pub(super) enum Accept {
    Now,
    /// When the object is published, as long as the reserve lasts; the bytes are added here then.
    IfOverReserve(Arc<AtomicU64>),
}
