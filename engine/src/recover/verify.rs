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

/// Bytes of a run, unless a single record is longer.
const RUN_BYTES: u64 = 1 << 20;
/// Bytes between two records that are read rather than left out.
const GAP_BYTES_MAX: u64 = 16 << 10;

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

/// What an entry that no flush is known to cover says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) lsn: Lsn,
    pub(crate) location: Location,
    /// The (epoch, LSN) that the record's head must carry, where that is known: it tells a record of a lost run, at the same place,
    /// from this one.
    pub(crate) exact: Option<(Epoch, Lsn)>,
}

/// A record that is there, whole.
pub(crate) struct Verified {
    pub(crate) key: RecordKey,
    /// Of a manifest record.
    pub(crate) manifest: Option<Manifest>,
}

/// Claims whose records lie close together in one block: read as one.
#[derive(Debug)]
pub(crate) struct Run {
    physical: u32,
    /// Bytes of the block, whole pages.
    start: u64,
    end: u64,
    claims: Vec<Claim>,
}

/// What became of a run's claims, and the bytes that were read for them.
pub(crate) struct Checked {
    pub(crate) claims: Vec<(Claim, Option<Verified>)>,
    pub(crate) read_bytes: u64,
}

impl Verifier<'_> {
    /// The claims, in runs of about [`RUN_BYTES`]. Second, those whose place cannot be.
    pub(crate) fn runs(&self, mut claims: Vec<Claim>) -> (Vec<Run>, Vec<Claim>) {
        claims.sort_unstable_by_key(|c| (c.location.place.vbn.0, c.location.place.offset_bytes()));
        let mut runs: Vec<Run> = Vec::new();
        let mut impossible = Vec::new();
        for claim in claims {
            let in_block = claim.location.place.offset_bytes();
            let end = (in_block + u64::from(claim.location.extent_bytes)).next_multiple_of(PAGE_BYTES as u64);
            let Some(physical) = self.layout.physical(claim.location.place.vbn).filter(|_| end <= self.layout.block_bytes) else {
                impossible.push(claim);
                continue;
            };
            match runs.last_mut() {
                Some(run) if run.physical == physical && in_block <= run.end + GAP_BYTES_MAX && end <= run.start + RUN_BYTES => {
                    run.end = run.end.max(end);
                    run.claims.push(claim);
                }
                _ => {
                    let start = in_block / PAGE_BYTES as u64 * PAGE_BYTES as u64;
                    runs.push(Run { physical, start, end, claims: vec![claim] });
                }
            }
        }
        (runs, impossible)
    }

    /// Reads a run and checks every record in it. Where it cannot be read as one, each record is read for itself.
    pub(crate) async fn check(&self, run: Run) -> Checked {
        let mut read_bytes = run.end - run.start;
        if let Some(bytes) = self.read(run.physical, run.start, run.end).await {
            let check = |claim: Claim| {
                let at = (claim.location.place.offset_bytes() - run.start) as usize;
                (claim, bytes.get(at..).and_then(|b| self.record(&claim, b)))
            };
            return Checked { claims: run.claims.into_iter().map(check).collect(), read_bytes };
        }
        let mut claims = Vec::with_capacity(run.claims.len());
        for claim in run.claims {
            let in_block = claim.location.place.offset_bytes();
            let start = in_block / PAGE_BYTES as u64 * PAGE_BYTES as u64;
            let end = (in_block + u64::from(claim.location.extent_bytes)).next_multiple_of(PAGE_BYTES as u64);
            read_bytes += end - start;
            let bytes = self.read(run.physical, start, end).await;
            let verified = bytes.as_ref().and_then(|b| b.get((in_block - start) as usize..)).and_then(|b| self.record(&claim, b));
            claims.push((claim, verified));
        }
        Checked { claims, read_bytes }
    }

    async fn read(&self, physical: u32, start: u64, end: u64) -> Option<AlignedBuf> {
        let buf = AlignedBuf::take(usize::try_from(end - start).ok()?);
        let (buf, result) = self.device.read_stored(self.layout.block_offset(physical) + start, buf).await;
        result.ok().map(|()| buf)
    }

    /// The record that the claim says begins at the first of `bytes`, if every byte of it is there.
    fn record(&self, claim: &Claim, bytes: &[u8]) -> Option<Verified> {
        let Claim { location, exact, .. } = claim;
        let bytes = bytes.get(..location.extent_bytes as usize)?;
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
            (true, manifest) => Some(Verified { key: head.key, manifest: manifest.flatten() }),
        }
    }
}
