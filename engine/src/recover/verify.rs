//! Whether the records that the log's unflushed entries promise are really there.

use crate::{
    device::{AlignedBuf, Device, PAGE_BYTES},
    format::{
        crc::CrcMask,
        layout::Layout,
        log::Location,
        record::{Manifest, RecordHead, RecordKey, RecordKind},
        types::{Epoch, Lsn},
    },
    map::hasher::KeyHasher,
};

/// Whether such a record, of any length, is on the device before its entry has an LSN. It cannot be mistaken for one of a lost
/// run: a part's key names its upload, and content's key says its bytes.
fn written_before_its_entry(head: &RecordHead) -> bool {
    match head.kind {
        RecordKind::Part => true,
        RecordKind::Content => head.shape().paged,
        RecordKind::Named | RecordKind::Manifest | RecordKind::Tombstone => false,
    }
}

/// Reads and checks records of one store.
pub(crate) struct Verifier<'a> {
    pub(crate) device: &'a dyn Device,
    pub(crate) layout: &'a Layout,
    pub(crate) mask: &'a CrcMask,
    pub(crate) hasher: &'a KeyHasher,
}

/// A record that is there, whole.
pub(crate) struct Verified {
    pub(crate) key: RecordKey,
    /// Of a manifest record.
    pub(crate) manifest: Option<Manifest>,
    pub(crate) read_bytes: u64,
}

impl Verifier<'_> {
    /// The record that the entry at `lsn` put at `location`, if every byte of it is there. `exact` is the (epoch, LSN) that its head
    /// must carry, where that is known: it tells a record of a lost run, at the same place, from this one.
    pub(crate) async fn record(&self, location: &Location, exact: Option<(Epoch, Lsn)>) -> Option<Verified> {
        let physical = self.layout.physical(location.place.vbn)?;
        let in_block = location.place.offset_bytes();
        let extent = u64::from(location.extent_bytes);
        if in_block + extent > self.layout.block_bytes {
            return None;
        }
        let start = in_block / PAGE_BYTES as u64 * PAGE_BYTES as u64;
        let skip = (in_block - start) as usize;
        let buf = AlignedBuf::take(skip + location.extent_bytes as usize);
        let (buf, result) = self.device.read_stored(self.layout.block_offset(physical) + start, buf).await;
        result.ok()?;
        let bytes = buf.get(skip..skip + location.extent_bytes as usize)?;
        let head = RecordHead::decode(self.mask, location.place, bytes, self.layout.block_bytes).ok()?;
        let shape = head.shape();
        let payload = bytes.get(shape.payload_offset..shape.payload_offset + shape.payload_bytes)?;
        let right = self.hasher.hash(&head.key) == location.hash
            && head.kind.slot() == Some(location.kind)
            && exact.is_none_or(|at| written_before_its_entry(&head) || (head.epoch, head.lsn) == at)
            && head.verify(0, payload);
        let manifest = (head.kind == RecordKind::Manifest).then(|| Manifest::decode(payload, head.logical_bytes));
        match (right, manifest) {
            (false, _) | (true, Some(None)) => None,
            (true, manifest) => Some(Verified { key: head.key, manifest: manifest.flatten(), read_bytes: buf.len() as u64 }),
        }
    }
}
