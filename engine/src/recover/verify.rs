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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        device::{SimDevice, SimOptions},
        engine::FormatOptions,
        format::{
            crc::ChunkCrcs,
            record::RecordShape,
            types::{Place, SizeCheck, SlotKind, Vbn},
        },
        key::{Key, KeySpace},
        value::Codec,
    };

    /// Run 1 carried a value of a name to a place, and the power took its log; run 2 carried a newer value of the name to the same place, and
    /// the power took the copy. The first one's copy must not stand in for it.
    #[tokio::test]
    async fn the_copy_of_a_lost_run_does_not_confirm_a_move() {
        let device = SimDevice::new(SimOptions::new(64 << 20, 1));
        let layout = Layout::plan(64 << 20, &FormatOptions::default()).expect("a layout");
        let (mask, hasher) = (CrcMask::new(&[1; 16]), KeyHasher::new(&[2; 16]));
        let key = RecordKey::Object(Key { space: KeySpace::Named, function: 1, hash: [3; 32] });
        let (payload, place) = (vec![7; 500], Place::new(Vbn(layout.vbn_stride), 4096));
        let crcs = ChunkCrcs::of(&payload);
        let head = RecordHead {
            kind: RecordKind::Named,
            key,
            codec: Codec::Plain,
            logical_bytes: 500,
            stored_bytes: 500,
            epoch: Epoch(1),
            lsn: Lsn(90),
            crcs,
        };
        let shape = RecordShape::of(RecordKind::Named, 500);
        let mut buf = AlignedBuf::zeroed(PAGE_BYTES);
        head.encode(&mask, place, &mut buf[..shape.head_bytes]);
        buf[shape.payload_offset..][..500].copy_from_slice(&payload);
        device.write(layout.block_offset(0) + 4096, buf).await.1.expect("write");

        let location = Location {
            hash: hasher.hash(&key),
            kind: SlotKind::Named,
            check: SizeCheck::of(500),
            place,
            extent_bytes: shape.extent_bytes as u32,
        };
        let verifier = Verifier { device: &device, layout: &layout, mask: &mask, hasher: &hasher };
        for (exact, there) in [(Some((Epoch(1), Lsn(90))), true), (Some((Epoch(2), Lsn(140))), false), (None, true)] {
            let (runs, impossible) = verifier.runs(vec![Claim { lsn: Lsn(200), location, exact }]);
            assert!(impossible.is_empty());
            for run in runs {
                let checked = verifier.check(run).await;
                assert_eq!(checked.claims.len(), 1);
                assert_eq!(checked.claims[0].1.is_some(), there, "{exact:?}");
            }
        }
    }
}
