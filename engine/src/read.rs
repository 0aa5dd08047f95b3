//! Reading objects: from slot to verified bytes.
//!
//! Always true here: a byte leaves only after the CRC of its chunk passed, as [`Checksummed`]; a reader holds no block. When a record
//! fails, the key is looked up again: if it moved, reading goes on there; only if its block still has the same tenant is it damage.

use crate::{
    cache::Piece,
    core::Core,
    device::{AlignedBuf, PAGE_BYTES},
    error::ReadError,
    format::{
        crc::{CHUNK_BYTES, Crcs},
        record::{Manifest, RecordFault, RecordHead, RecordKey, RecordKind},
        types::{KeyHash, LengthClass, Lsn, Place, SizeCheck, SlotKind},
    },
    key::{Key, KeySpace},
    map::table::Found,
    sequencer::{Change, Control, Request},
    stats::count,
    value::Codec,
};
use bytes::Bytes;
use std::sync::Arc;
use tokio::{sync::oneshot, task::JoinHandle};

/// Payload bytes that one read carries.
pub(crate) const PIECE_BYTES: usize = 1 << 20;
const PIECE_CHUNKS: usize = PIECE_BYTES / CHUNK_BYTES;
/// How often a key is looked up again when its record moved under the reader.
const LOOKUPS_MAX: usize = 8;

/// Bytes that passed their checksum on the way from the device, or that an upload brought and whose checksum was computed there.
#[derive(Clone, Debug)]
pub struct Checksummed(Bytes);

impl Checksummed {
    /// The bytes.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

/// The record at a place fails its checksum or cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault;

/// Reads `bytes` at `offset` in the record's block, from the page before on. Says how many bytes precede.
async fn read_pages(core: &Core, place: Place, offset: u64, bytes: u64) -> Option<(AlignedBuf, usize)> {
    let physical = core.layout.physical(place.vbn)?;
    let start = offset / PAGE_BYTES as u64 * PAGE_BYTES as u64;
    let end = (offset + bytes).next_multiple_of(PAGE_BYTES as u64).min(core.layout.block_bytes);
    let length = usize::try_from(end.checked_sub(start)?).ok().filter(|n| *n > 0)?;
    let (buf, result) = core.device.read(core.layout.block_offset(physical) + start, AlignedBuf::take(length)).await;
    match result {
        Ok(()) => Some((buf, usize::try_from(offset - start).ok()?)),
        Err(e) => {
            tracing::warn!(?place, "read record: {e}");
            None
        }
    }
}

/// Reads the record at `place`, or the first `length_max` bytes of it. The table knows its length only roughly: where that much
/// cannot be read, since it reaches into a damaged neighbour, exactly as far as its head says.
pub(crate) async fn read_record(core: &Core, place: Place, length_max: u64) -> Option<(AlignedBuf, usize)> {
    if let Some(read) = read_pages(core, place, place.offset_bytes(), length_max).await {
        return Some(read);
    }
    let extent_bytes = head_only(core, place).await?.shape().extent_bytes as u64;
    read_pages(core, place, place.offset_bytes(), extent_bytes.min(length_max)).await
}

/// The head of the record at `place` and its first piece.
pub(crate) async fn first_piece(core: &Core, place: Place, class: LengthClass) -> Result<Piece, Fault> {
    if let Some(piece) = core.cache.get(place, 0) {
        count(&core.counters.cache_hits, 1);
        return Ok(piece);
    }
    count(&core.counters.record_reads, 1);
    let length = u64::from(class.bytes_max()).min((PIECE_BYTES + PAGE_BYTES) as u64);
    let (buf, skip) = read_record(core, place, length).await.ok_or(Fault)?;
    let head = match RecordHead::decode(&core.mask, place, buf.get(skip..).ok_or(Fault)?, core.layout.block_bytes) {
        Ok(head) => head,
        Err(RecordFault::Short(_) | RecordFault::Bad) => return Err(Fault),
    };
    let shape = head.shape();
    let start = skip + shape.payload_offset;
    let piece = seal(head.into(), buf, start, shape.payload_bytes.min(PIECE_BYTES), 0)?;
    Ok(core.cache.put(place, 0, piece))
}

/// The piece that starts with chunk `first_chunk` of the record whose head is known.
async fn later_piece(core: &Core, place: Place, head: &Arc<RecordHead>, first_chunk: usize) -> Result<Piece, Fault> {
    let key = u32::try_from(first_chunk).map_err(|_| Fault)?;
    if let Some(piece) = core.cache.get(place, key) {
        count(&core.counters.cache_hits, 1);
        return Ok(piece);
    }
    count(&core.counters.record_reads, 1);
    let shape = head.shape();
    let first_byte = first_chunk * CHUNK_BYTES;
    let length = shape.payload_bytes.checked_sub(first_byte).ok_or(Fault)?.min(PIECE_BYTES);
    let offset = place.offset_bytes() + (shape.payload_offset + first_byte) as u64;
    let (buf, skip) = read_pages(core, place, offset, length as u64).await.ok_or(Fault)?;
    let piece = seal(head.clone(), buf, skip, length, first_chunk)?;
    Ok(core.cache.put(place, key, piece))
}

/// Verifies a stretch of a buffer and makes a piece of it, without a copy.
fn seal(head: Arc<RecordHead>, buf: AlignedBuf, start: usize, length: usize, first_chunk: usize) -> Result<Piece, Fault> {
    let data = buf.get(start..start + length).ok_or(Fault)?;
    if !head.verify(first_chunk, data) {
        return Err(Fault);
    }
    let data = Bytes::from_owner(buf).slice(start..start + length);
    Ok(Piece { head, data })
}

/// Only the head of the record at `place`, verified.
pub(crate) async fn head_only(core: &Core, place: Place) -> Option<RecordHead> {
    if let Some(piece) = core.cache.get(place, 0) {
        return Some((*piece.head).clone());
    }
    let mut length = 256;
    loop {
        let (buf, skip) = read_pages(core, place, place.offset_bytes(), length).await?;
        match RecordHead::decode(&core.mask, place, buf.get(skip..)?, core.layout.block_bytes) {
            Ok(head) => return Some(head),
            Err(RecordFault::Short(more)) if more as u64 > length => length = more as u64,
            Err(_) => return None,
        }
    }
}

/// The kind of slot that an object's key leads to (for content also a manifest's).
pub(crate) fn slot_kind(key: &Key) -> SlotKind {
    match key.space {
        KeySpace::Content => SlotKind::Content,
        KeySpace::Named => SlotKind::Named,
    }
}

/// Takes a damaged record's slot out, now and in the log.
pub(crate) fn drop_damaged(core: &Arc<Core>, hash: KeyHash, kind: SlotKind, place: Place) {
    if !core.table.remove(core.table.address(&hash), place, None) {
        return;
    }
    count(&core.counters.damaged_records, 1);
    tracing::warn!(?place, ?kind, "record is damaged and was dropped");
    log_delete(core, hash, kind, place);
}

/// Logs that the slot that said `place` is gone, without waiting.
fn log_delete(core: &Arc<Core>, hash: KeyHash, kind: SlotKind, place: Place) {
    let core = core.clone();
    tokio::spawn(async move {
        let (reply, _) = oneshot::channel();
        let changes = vec![Change::Delete { hash, kind, from: place }];
        let _ = core.control.send(Control::Changes(Request { changes, reply, permit: None })).await;
    });
}

impl Core {
    /// Notes that a slot's key is wanted. Cheap where it was noted in this tick already.
    pub(crate) fn touch(&self, found: &Found) {
        let stamp = self.clock.stamp();
        if found.stamp != stamp {
            self.table.touch(found.address, found.place, stamp);
            if found.kind == SlotKind::Manifest {
                // Its parts age with it; where the queue is full they do so when the object is read or reclaimed.
                let _ = self.uploads.touched.try_send(*found);
            }
        }
    }

    /// Looks a key up without I/O and touches it.
    pub(crate) fn present(&self, hash: &KeyHash, kind: SlotKind, size_bytes: Option<u64>) -> Option<Found> {
        let found = self.table.find(hash, kind, size_bytes.map(SizeCheck::of)).first()?;
        self.touch(&found);
        Some(found)
    }
}

/// The record of `key`, wherever it is, and its first piece.
async fn find_record(core: &Arc<Core>, key: &RecordKey, kind: SlotKind, size_bytes: Option<u64>) -> Option<(Place, Piece)> {
    let hash = core.hash(key);
    for _ in 0..LOOKUPS_MAX {
        let mut moved = false;
        for found in core.table.find(&hash, kind, size_bytes.map(SizeCheck::of)).iter() {
            core.touch(&found);
            match first_piece(core, found.place, found.class).await {
                Ok(piece) if piece.head.key == *key || same_part(&piece.head.key, key) => {
                    if size_bytes.is_none_or(|s| s == piece.head.logical_bytes) {
                        return Some((found.place, piece));
                    }
                }
                // Another key with the same fingerprint.
                Ok(_) => {}
                Err(Fault) => {
                    let still = core.table.find(&hash, kind, None).iter().any(|f| f.place == found.place);
                    if still && core.census.is_live(found.place.vbn) {
                        drop_damaged(core, hash, found.kind, found.place);
                    } else {
                        moved = true;
                    }
                }
            }
        }
        if !moved {
            return None;
        }
    }
    None
}

/// A part is known by upload and index; the object's key is only a pointer back.
fn same_part(a: &RecordKey, b: &RecordKey) -> bool {
    match (a, b) {
        (RecordKey::Part { upload_id: a, index: i, .. }, RecordKey::Part { upload_id: b, index: j, .. }) => a == b && i == j,
        _ => false,
    }
}

/// The manifest of a large object, read at its place.
pub(crate) async fn manifest_at(core: &Core, place: Place, class: LengthClass) -> Option<(RecordKey, Manifest)> {
    let piece = first_piece(core, place, class).await.ok()?;
    if piece.head.kind != RecordKind::Manifest {
        return None;
    }
    Manifest::decode(&piece.data, piece.head.logical_bytes).map(|m| (piece.head.key, m))
}

/// An object that was found. A small one is whole in memory, a large one is read as it is asked for.
#[derive(Clone)]
pub struct Object {
    core: Arc<Core>,
    key: Key,
    place: Place,
    first: Piece,
    manifest: Option<Arc<Manifest>>,
}

/// Finds an object and reads its first record: `None` is a miss, also where that record turned out to be damaged.
pub(crate) async fn find_object(core: &Arc<Core>, key: &Key, size_bytes: Option<u64>) -> Option<Object> {
    let found = find_record(core, &RecordKey::Object(*key), slot_kind(key), size_bytes).await;
    let object = found.and_then(|(place, first)| {
        let manifest = match first.head.kind {
            RecordKind::Manifest => Some(Arc::new(Manifest::decode(&first.data, first.head.logical_bytes)?)),
            _ => None,
        };
        Some(Object { core: core.clone(), key: *key, place, first, manifest })
    });
    count(if object.is_some() { &core.counters.hits } else { &core.counters.misses }, 1);
    object
}

/// An object of one record that is in the cache, unless it is encoded; without waiting for anything. `None` says nothing.
pub(crate) fn cached_whole(core: &Core, key: &Key, size_bytes: Option<u64>) -> Option<Checksummed> {
    let record_key = RecordKey::Object(*key);
    let hash = core.hash(&record_key);
    for found in core.table.find(&hash, slot_kind(key), size_bytes.map(SizeCheck::of)).iter() {
        let Some(Piece { head, data }) = core.cache.get(found.place, 0) else { continue };
        let wanted = head.key == record_key && size_bytes.is_none_or(|size_bytes| size_bytes == head.logical_bytes);
        let whole = head.codec == Codec::Plain && head.kind != RecordKind::Manifest && data.len() as u64 == head.logical_bytes;
        if wanted && whole {
            core.touch(&found);
            count(&core.counters.cache_hits, 1);
            count(&core.counters.hits, 1);
            return Some(Checksummed(data));
        }
    }
    None
}

impl Object {
    /// Parts that no slot leads to as a whole yet. `place` is that of the first.
    pub(crate) fn of_parts(core: &Arc<Core>, key: Key, size_bytes: u64, manifest: Manifest, place: Place) -> Self {
        let head = RecordHead {
            kind: RecordKind::Manifest,
            key: RecordKey::Object(key),
            codec: manifest.codec,
            logical_bytes: size_bytes,
            stored_bytes: 0,
            epoch: core.epoch,
            lsn: Lsn(0),
            crcs: Crcs::new(),
        };
        let first = Piece { head: Arc::new(head), data: Bytes::new() };
        Self { core: core.clone(), key, place, first, manifest: Some(Arc::new(manifest)) }
    }
    /// Size of the object in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.first.head.logical_bytes
    }
    /// How it is stored.
    pub fn codec(&self) -> Codec {
        self.manifest.as_ref().map_or(self.first.head.codec, |manifest| manifest.codec)
    }
    /// The whole object, if it is in memory as a whole and not encoded.
    pub fn whole(&self) -> Option<Checksummed> {
        let whole = self.codec() == Codec::Plain && self.manifest.is_none() && self.first.data.len() as u64 == self.size_bytes();
        whole.then(|| Checksummed(self.first.data.clone()))
    }
    /// What stands for the whole object, if it is encoded and in memory as a whole.
    pub fn whole_encoded(&self) -> Option<Checksummed> {
        let stored_bytes = self.first.head.stored_bytes as usize;
        let whole = self.codec() != Codec::Plain && self.manifest.is_none() && self.first.data.len() == stored_bytes;
        whole.then(|| Checksummed(self.first.data.clone()))
    }
    /// Drops the object: for a caller to whom its payload, which passed its checksums, makes no sense.
    pub fn discard(&self) {
        let kind = if self.manifest.is_some() { SlotKind::Manifest } else { SlotKind::Content };
        drop_damaged(&self.core, self.core.hash(&RecordKey::Object(self.key)), kind, self.place);
    }
    /// A reader of what is stored of an encoded object (of any, part by part), from the part on that holds byte `offset`.
    pub fn encoded_reader(self, offset: u64) -> EncodedReader {
        let (parts, part_bytes) = match &self.manifest {
            Some(manifest) => (manifest.stored_bytes.len() as u64, manifest.part_bytes),
            None => (1, u64::MAX),
        };
        let part = (offset / part_bytes).min(parts - 1);
        EncodedReader { object: self, parts, part_bytes, part, at: 0, ahead: None }
    }
    /// A reader from byte `offset` on, of at most `limit` bytes. An offset at the end is an empty range; one behind it is an error, as is
    /// an object that is encoded.
    pub fn reader(self, offset: u64, limit: Option<u64>) -> Result<Reader, ReadError> {
        if self.codec() != Codec::Plain {
            return Err(ReadError::Encoded);
        }
        let size = self.size_bytes();
        if offset > size {
            return Err(ReadError::OutOfRange { offset_bytes: offset, size_bytes: size });
        }
        let end = limit.map_or(size, |l| offset.saturating_add(l).min(size));
        Ok(Reader { object: self, next: offset, end, ahead: None })
    }
    /// The first byte of the piece that holds byte `at`, and what leads to it.
    fn locate(&self, at: u64) -> (u64, PieceId) {
        let (index, part_start) = match &self.manifest {
            Some(m) => (Some(at / m.part_bytes), at / m.part_bytes * m.part_bytes),
            None => (None, 0),
        };
        let piece = (at - part_start) / PIECE_BYTES as u64;
        (part_start + piece * PIECE_BYTES as u64, PieceId { index, first_chunk: piece as usize * PIECE_CHUNKS })
    }
    async fn fetch(core: Arc<Core>, id: PieceId, source: Source) -> Option<Bytes> {
        let (place, first) = match source {
            Source::Here(place, first) => (place, first),
            Source::Part(key) => find_record(&core, &key, SlotKind::Part, None).await?,
        };
        if id.first_chunk == 0 {
            return Some(first.data);
        }
        match later_piece(&core, place, &first.head, id.first_chunk).await {
            Ok(piece) => Some(piece.data),
            Err(_) => {
                // It may have moved since its head was read: once more, from the table.
                let key = first.head.key;
                let kind = first.head.kind.slot()?;
                let (now, first) = find_record(&core, &key, kind, None).await?;
                if now == place {
                    drop_damaged(&core, core.hash(&key), kind, place);
                    return None;
                }
                later_piece(&core, now, &first.head, id.first_chunk).await.ok().map(|p| p.data)
            }
        }
    }
    fn source(&self, id: PieceId) -> Source {
        match (&self.manifest, id.index) {
            (Some(m), Some(index)) => Source::Part(RecordKey::Part { upload_id: m.upload_id, index, object: self.key }),
            _ => Source::Here(self.place, self.first.clone()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PieceId {
    index: Option<u64>,
    first_chunk: usize,
}

enum Source {
    Here(Place, Piece),
    Part(RecordKey),
}

/// Pieces of an object, in order, each up to 1 MiB. Holds at most two pieces at a time.
pub struct Reader {
    object: Object,
    next: u64,
    end: u64,
    ahead: Option<(PieceId, JoinHandle<Option<Bytes>>)>,
}

impl Reader {
    /// Bytes that are still to come.
    pub fn remaining_bytes(&self) -> u64 {
        self.end - self.next
    }
    /// The next piece; `None` at the end of the range. After an error there is nothing more to come.
    pub async fn next(&mut self) -> Option<Result<Checksummed, ReadError>> {
        if self.next >= self.end {
            return None;
        }
        let (start, id) = self.object.locate(self.next);
        let fetched = match self.ahead.take() {
            Some((ahead, handle)) if ahead == id => handle.await.ok().flatten(),
            _ => Object::fetch(self.object.core.clone(), id, self.object.source(id)).await,
        };
        let from = self.next;
        let piece = fetched.and_then(|data| {
            let skip = usize::try_from(from - start).ok()?;
            let take = usize::try_from(self.end - from).unwrap_or(usize::MAX).min(data.len().checked_sub(skip)?);
            (take > 0).then(|| data.slice(skip..skip + take))
        });
        let Some(piece) = piece else {
            self.end = self.next;
            self.lost();
            return Some(Err(ReadError::Lost { offset_bytes: from }));
        };
        self.next += piece.len() as u64;
        if self.next < self.end {
            let (_, id) = self.object.locate(self.next);
            let fetch = Object::fetch(self.object.core.clone(), id, self.object.source(id));
            self.ahead = Some((id, tokio::spawn(fetch)));
        }
        Some(Ok(Checksummed(piece)))
    }
    /// A large object that lacks a part is no longer one.
    fn lost(&self) {
        if self.object.manifest.is_some() {
            self.object.discard();
        }
    }
}

/// Stored bytes of an object, as they are.
#[derive(Clone, Debug)]
pub struct EncodedPiece {
    /// At most 1 MiB.
    pub data: Checksummed,
    /// Whether the part ends with it.
    pub ends_part: bool,
}

/// What is stored of an object, part by part, in pieces of up to 1 MiB. Holds at most two pieces at a time.
pub struct EncodedReader {
    object: Object,
    parts: u64,
    part_bytes: u64,
    /// Where the next piece is: the part, and the byte of its payload.
    part: u64,
    at: u64,
    ahead: Option<(PieceId, JoinHandle<Option<Bytes>>)>,
}

impl EncodedReader {
    /// The byte of the object that the next piece's part begins with.
    pub fn part_start_bytes(&self) -> u64 {
        if self.part == 0 { 0 } else { self.part.saturating_mul(self.part_bytes) }
    }
    /// The byte of the object behind those that this part stands for.
    pub fn part_end_bytes(&self) -> u64 {
        self.part.saturating_add(1).saturating_mul(self.part_bytes).min(self.object.size_bytes())
    }
    /// The object that is read.
    pub fn object(&self) -> &Object {
        &self.object
    }
    /// Length of the payload of the part that comes next.
    fn payload_bytes(&self) -> u64 {
        let stored_bytes = match &self.object.manifest {
            Some(manifest) => usize::try_from(self.part).ok().and_then(|part| manifest.stored_bytes.get(part)).copied().unwrap_or(0),
            None => self.object.first.head.stored_bytes,
        };
        u64::from(stored_bytes)
    }
    fn id(&self) -> PieceId {
        let index = self.object.manifest.is_some().then_some(self.part);
        PieceId { index, first_chunk: (self.at / PIECE_BYTES as u64) as usize * PIECE_CHUNKS }
    }
    /// The next piece; `None` at the end. After an error there is nothing more to come.
    pub async fn next(&mut self) -> Option<Result<EncodedPiece, ReadError>> {
        if self.part >= self.parts {
            return None;
        }
        let (id, payload_bytes) = (self.id(), self.payload_bytes());
        let fetched = match self.ahead.take() {
            Some((ahead, handle)) if ahead == id => handle.await.ok().flatten(),
            _ => Object::fetch(self.object.core.clone(), id, self.object.source(id)).await,
        };
        let expected_bytes = payload_bytes.saturating_sub(self.at).min(PIECE_BYTES as u64);
        let Some(data) = fetched.filter(|data| data.len() as u64 == expected_bytes) else {
            let offset_bytes = self.part_start_bytes();
            self.part = self.parts;
            if self.object.manifest.is_some() {
                self.object.discard();
            }
            return Some(Err(ReadError::Lost { offset_bytes }));
        };
        self.at += expected_bytes;
        let ends_part = self.at >= payload_bytes;
        if ends_part {
            (self.part, self.at) = (self.part + 1, 0);
        }
        if self.part < self.parts {
            let id = self.id();
            let fetch = Object::fetch(self.object.core.clone(), id, self.object.source(id));
            self.ahead = Some((id, tokio::spawn(fetch)));
        }
        Some(Ok(EncodedPiece { data: Checksummed(data), ends_part }))
    }
}
