//! Records: one format for objects of every size, for parts, manifests and tombstones.
//!
//! ```text
//! header 64 B | for parts: object key 40 B | CRC per 64 KiB chunk, 4 B each | padding | payload | padding
//! ```
//! A payload of up to [`PACKED_BYTES_MAX`] follows at the next multiple of 8 and records lie back to back; a longer one starts
//! on the next page after a header that starts on a page, and owns its last page (a *paged* record).

use super::{
    crc::{CHUNK_BYTES, CrcMask, Crcs},
    types::{Epoch, Lsn, Place, RECORD_ALIGN_BYTES, SlotKind},
};
use crate::{
    canary::{self, Canary},
    device::PAGE_BYTES,
    key::Key,
    key::KeySpace,
    value::Codec,
};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

/// Longest payload of a packed record; longer ones are paged.
pub(crate) const PACKED_BYTES_MAX: usize = 64 << 10;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RecordKind {
    Content = 1,
    Named = 2,
    Part = 3,
    Manifest = 4,
    /// A named key was deleted. No slot leads here; it tells a rebuild from records alone.
    Tombstone = 5,
}

impl RecordKind {
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Content,
            2 => Self::Named,
            3 => Self::Part,
            4 => Self::Manifest,
            5 => Self::Tombstone,
            _ => return None,
        })
    }
    /// The kind of the slot that leads to such a record.
    pub(crate) fn slot(self) -> Option<SlotKind> {
        Some(match self {
            Self::Content => SlotKind::Content,
            Self::Named => SlotKind::Named,
            Self::Part => SlotKind::Part,
            Self::Manifest => SlotKind::Manifest,
            Self::Tombstone => return None,
        })
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
struct RawHeader {
    crc: U32,
    kind: u8,
    function: u8,
    codec: u8,
    flags: u8,
    logical_bytes: U64,
    stored_bytes: U32,
    epoch: U32,
    lsn: U64,
    hash: [u8; 32],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
struct RawObjectKey {
    hash: [u8; 32],
    function: u8,
    padding: [u8; 7],
}

const HEADER_BYTES: usize = 64;
const OBJECT_KEY_BYTES: usize = 40;
const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);
const _: () = assert!(size_of::<RawObjectKey>() == OBJECT_KEY_BYTES);

/// Where the pieces of a record lie, relative to its header. Follows from kind and payload length alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordShape {
    /// Header, object key and CRC table.
    pub(crate) head_bytes: usize,
    /// Start of the payload.
    pub(crate) payload_offset: usize,
    /// Length of the payload.
    pub(crate) payload_bytes: usize,
    /// Everything, padding included; where the next record may start.
    pub(crate) extent_bytes: usize,
    /// Whether it starts on a page and owns its pages.
    pub(crate) paged: bool,
}

impl RecordShape {
    pub(crate) fn of(kind: RecordKind, payload_bytes: usize) -> Self {
        let object_key = if kind == RecordKind::Part { OBJECT_KEY_BYTES } else { 0 };
        let head_bytes = HEADER_BYTES + object_key + 4 * payload_bytes.div_ceil(CHUNK_BYTES);
        let paged = payload_bytes > PACKED_BYTES_MAX;
        let unit = if paged { PAGE_BYTES } else { RECORD_ALIGN_BYTES as usize };
        let payload_offset = head_bytes.next_multiple_of(unit);
        Self { head_bytes, payload_offset, payload_bytes, extent_bytes: (payload_offset + payload_bytes).next_multiple_of(unit), paged }
    }
    /// Number of CRCs.
    pub(crate) fn chunks(&self) -> usize {
        self.payload_bytes.div_ceil(CHUNK_BYTES)
    }
}

/// The full key that a record carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RecordKey {
    /// Content, named, manifest and tombstone records.
    Object(Key),
    /// Part `index` of upload `upload_id`, which uploads `object`.
    Part { upload_id: [u8; 16], index: u64, object: Key },
}

impl RecordKey {
    /// The bytes that the keyed hash covers.
    pub(crate) fn hashed_bytes(&self) -> [u8; 34] {
        let mut out = [0u8; 34];
        let (space, function, hash) = self.parts();
        let (head, tail) = out.split_at_mut(2);
        head.copy_from_slice(&[space, function]);
        tail.copy_from_slice(&hash);
        out
    }
    fn parts(&self) -> (u8, u8, [u8; 32]) {
        match self {
            Self::Object(key) => (key.space as u8, key.function, key.hash),
            Self::Part { upload_id, index, .. } => (2, 0, part_hash(upload_id, *index)),
        }
    }
}

fn part_hash(upload_id: &[u8; 16], index: u64) -> [u8; 32] {
    let mut hash = [0u8; 32];
    let (id, rest) = hash.split_at_mut(16);
    id.copy_from_slice(upload_id);
    rest[..8].copy_from_slice(&index.to_le_bytes());
    hash
}

/// The head of a record, without its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordHead {
    pub(crate) kind: RecordKind,
    pub(crate) key: RecordKey,
    /// How the payload stands for the object or part (a manifest's own payload is never encoded: there it says how its parts are).
    pub(crate) codec: Codec,
    /// Size of the object (of this part of it, for a part; of the whole, for a manifest).
    pub(crate) logical_bytes: u64,
    /// Length of the payload.
    pub(crate) stored_bytes: u32,
    /// Of the original acknowledgement; a move keeps both.
    pub(crate) epoch: Epoch,
    pub(crate) lsn: Lsn,
    /// CRC of each chunk, without its mask.
    pub(crate) crcs: Crcs,
}

/// Why bytes are not the record that was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordFault {
    /// Too few bytes were given to tell; this many are needed.
    Short(usize),
    /// A checksum fails or a field is impossible.
    Bad,
}

impl RecordHead {
    pub(crate) fn shape(&self) -> RecordShape {
        RecordShape::of(self.kind, self.stored_bytes as usize)
    }

    /// Writes header, object key and CRC table to the front of `out` for a record at `place`.
    pub(crate) fn encode(&self, mask: &CrcMask, place: Place, out: &mut [u8]) {
        let shape = self.shape();
        assert_eq!(self.crcs.len(), shape.chunks(), "one CRC a chunk");
        let (_, function, hash) = self.key.parts();
        let raw = RawHeader {
            crc: U32::ZERO,
            kind: self.kind as u8,
            function,
            codec: self.codec as u8,
            flags: 0,
            logical_bytes: self.logical_bytes.into(),
            stored_bytes: self.stored_bytes.into(),
            epoch: self.epoch.0.into(),
            lsn: self.lsn.0.into(),
            hash,
        };
        let head = &mut out[..shape.head_bytes];
        let (fixed, mut rest) = head.split_at_mut(HEADER_BYTES);
        fixed.copy_from_slice(raw.as_bytes());
        if let RecordKey::Part { object, .. } = &self.key {
            let raw = RawObjectKey { hash: object.hash, function: object.function, padding: [0; 7] };
            let (slot, after) = rest.split_at_mut(OBJECT_KEY_BYTES);
            slot.copy_from_slice(raw.as_bytes());
            rest = after;
        }
        for (i, (slot, crc)) in rest.chunks_exact_mut(4).zip(&self.crcs).enumerate() {
            slot.copy_from_slice(&(crc ^ mask.chunk(place, i as u32)).to_le_bytes());
        }
        let crc = crc32fast::hash(&head[4..]) ^ mask.record(place);
        head[..4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads the head of the record at `place` from the front of `bytes` and verifies it.
    pub(crate) fn decode(mask: &CrcMask, place: Place, bytes: &[u8], block_bytes: u64) -> Result<Self, RecordFault> {
        let Ok((raw, _)) = RawHeader::ref_from_prefix(bytes) else { return Err(RecordFault::Short(HEADER_BYTES)) };
        let kind = RecordKind::from_byte(raw.kind).ok_or(RecordFault::Bad)?;
        let stored_bytes = raw.stored_bytes.get();
        let codec = Codec::from_byte(raw.codec).ok_or(RecordFault::Bad)?;
        if u64::from(stored_bytes) >= block_bytes {
            return Err(RecordFault::Bad);
        }
        let shape = RecordShape::of(kind, stored_bytes as usize);
        if place.offset_bytes().saturating_add(shape.extent_bytes as u64) > block_bytes {
            return Err(RecordFault::Bad);
        }
        let head = bytes.get(..shape.head_bytes).ok_or(RecordFault::Short(shape.head_bytes))?;
        let crc = crc32fast::hash(&head[4..]) ^ mask.record(place);
        if raw.crc.get() != crc {
            return Err(RecordFault::Bad);
        }
        let mut rest = &head[HEADER_BYTES..];
        let key = match kind {
            RecordKind::Part => {
                let (object, after) = RawObjectKey::ref_from_prefix(rest).map_err(|_| RecordFault::Bad)?;
                rest = after;
                let object = Key { space: KeySpace::Content, function: object.function, hash: object.hash };
                let (id, tail) = raw.hash.split_at(16);
                let mut upload_id = [0; 16];
                upload_id.copy_from_slice(id);
                let mut index = [0; 8];
                index.copy_from_slice(&tail[..8]);
                RecordKey::Part { upload_id, index: u64::from_le_bytes(index), object }
            }
            RecordKind::Content | RecordKind::Manifest => {
                RecordKey::Object(Key { space: KeySpace::Content, function: raw.function, hash: raw.hash })
            }
            RecordKind::Named | RecordKind::Tombstone => {
                RecordKey::Object(Key { space: KeySpace::Named, function: raw.function, hash: raw.hash })
            }
        };
        let crcs = rest
            .chunks_exact(4)
            .enumerate()
            .map(|(i, b)| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) ^ mask.chunk(place, i as u32))
            .collect();
        Ok(Self {
            kind,
            key,
            codec,
            logical_bytes: raw.logical_bytes.get(),
            stored_bytes,
            epoch: Epoch(raw.epoch.get()),
            lsn: Lsn(raw.lsn.get()),
            crcs,
        })
    }

    /// Whether `data`, the payload from chunk `first` on (whole chunks, but for the payload's last), is what was stored.
    pub(crate) fn verify(&self, first: usize, data: &[u8]) -> bool {
        let mut expected = self.crcs.iter().skip(first);
        data.chunks(CHUNK_BYTES)
            .all(|chunk| expected.next().is_some_and(|crc| crc32fast::hash(chunk) == *crc || canary::leaves_out(Canary::RecordCrc)))
    }
}

/// The list of a large object's parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) upload_id: [u8; 16],
    /// Logical bytes of every part but the last.
    pub(crate) part_bytes: u64,
    /// Stored bytes of each part.
    pub(crate) stored_bytes: Vec<u32>,
    /// How each part's payload stands for its bytes.
    pub(crate) codec: Codec,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone)]
#[repr(C)]
struct RawManifest {
    upload_id: [u8; 16],
    part_bytes: U64,
    parts: U32,
    codec: u8,
    padding: [u8; 3],
}
const _: () = assert!(size_of::<RawManifest>() == 32);

impl Manifest {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let raw = RawManifest {
            upload_id: self.upload_id,
            part_bytes: self.part_bytes.into(),
            parts: (self.stored_bytes.len() as u32).into(),
            codec: self.codec as u8,
            padding: [0; 3],
        };
        let mut out = raw.as_bytes().to_vec();
        self.stored_bytes.iter().for_each(|s| out.extend_from_slice(&s.to_le_bytes()));
        out
    }
    /// `None` if the bytes are not a manifest of an object of `logical_bytes`.
    pub(crate) fn decode(bytes: &[u8], logical_bytes: u64) -> Option<Self> {
        let (raw, rest) = RawManifest::ref_from_prefix(bytes).ok()?;
        let parts = raw.parts.get() as usize;
        let part_bytes = raw.part_bytes.get();
        let codec = Codec::from_byte(raw.codec)?;
        if rest.len() != parts.checked_mul(4)? || part_bytes == 0 || logical_bytes.div_ceil(part_bytes) != parts as u64 {
            return None;
        }
        let stored_bytes = rest.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Some(Self { upload_id: raw.upload_id, part_bytes, stored_bytes, codec })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{crc::ChunkCrcs, types::Vbn};

    fn head(kind: RecordKind, payload: &[u8]) -> RecordHead {
        let object = Key { space: KeySpace::Content, function: 1, hash: [9; 32] };
        let key = match kind {
            RecordKind::Part => RecordKey::Part { upload_id: [3; 16], index: 77, object },
            RecordKind::Named | RecordKind::Tombstone => RecordKey::Object(Key { space: KeySpace::Named, ..object }),
            _ => RecordKey::Object(object),
        };
        let stored_bytes = payload.len() as u32;
        let codec = if stored_bytes.is_multiple_of(2) { Codec::Plain } else { Codec::Zstd };
        RecordHead { kind, key, codec, logical_bytes: 5, stored_bytes, epoch: Epoch(2), lsn: Lsn(3), crcs: ChunkCrcs::of(payload) }
    }

    #[test]
    fn a_record_reads_back_only_at_its_own_place_and_store() {
        let mask = CrcMask::new(&[5; 16]);
        let place = Place::new(Vbn(12), 8192);
        for kind in [RecordKind::Content, RecordKind::Named, RecordKind::Part, RecordKind::Manifest, RecordKind::Tombstone] {
            let payload = vec![7u8; 150_000 + kind as usize % 2];
            let head = head(kind, &payload);
            let mut out = vec![0; head.shape().head_bytes];
            head.encode(&mask, place, &mut out);
            assert_eq!(RecordHead::decode(&mask, place, &out, 1 << 20), Ok(head.clone()));
            assert!(head.verify(0, &payload) && head.verify(1, &payload[CHUNK_BYTES..]));
            for (m, p) in
                [(CrcMask::new(&[6; 16]), place), (mask.clone(), Place::new(Vbn(13), 8192)), (mask.clone(), Place::new(Vbn(12), 8200))]
            {
                assert_eq!(RecordHead::decode(&m, p, &out, 1 << 20), Err(RecordFault::Bad));
            }
            for bit in 0..out.len() * 8 {
                out[bit / 8] ^= 1 << (bit % 8);
                assert!(RecordHead::decode(&mask, place, &out, 1 << 20).is_err(), "bit {bit}");
                out[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    #[test]
    fn a_manifest_reads_back_and_refuses_what_does_not_add_up() {
        let manifest = Manifest { upload_id: [1; 16], part_bytes: 1 << 20, stored_bytes: vec![1 << 20, 1 << 20, 5], codec: Codec::Zstd };
        let mut bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes, (2 << 20) + 5), Some(manifest));
        assert_eq!(Manifest::decode(&bytes, (3 << 20) + 5), None);
        assert_eq!(Manifest::decode(&bytes[..bytes.len() - 1], (2 << 20) + 5), None);
        // A codec that nobody knows.
        bytes[28] = 2;
        assert_eq!(Manifest::decode(&bytes, (2 << 20) + 5), None);
    }
}
