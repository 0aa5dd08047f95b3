//! Lists of chunks: which blobs, one behind the other, are another blob; and how a store keeps such a list.
//!
//! Always true here: a list has at most [`CHUNKS_MAX`] chunks, all of one digest function, and takes as much memory as its entries; what is
//! decoded is a whole list whose sizes add up to the blob's, or nothing.
//!
//! What a store keeps (little-endian): format (u8, 1), form (u8), the chunking function as a client named it (i32), the blob's size (u64),
//! and then, in form 0, the entries: hash and size (u64) of each chunk. In form 1, for lists of more than [`INLINE_BYTES_MAX`], one entry:
//! that of a blob whose bytes are the entries. It lies among the other blobs, under its own hash, so that it needs no size of its own,
//! cannot be half replaced, and is there once for all blobs that have this list.

use bytes::{BufMut, Bytes, BytesMut};

use super::{Digest, DigestFunction, StoreError};

/// Chunks of a list at most: 256 GiB in chunks of the size that the API recommends.
pub const CHUNKS_MAX: usize = 512 << 10;
/// Bytes of entries that are kept in one value with the rest.
pub const INLINE_BYTES_MAX: usize = 64 << 10;

const FORMAT: u8 = 1;
const FORM_INLINE: u8 = 0;
const FORM_BLOB: u8 = 1;
const SIZE_BYTES: usize = 8;
/// What precedes the entries.
const HEAD_BYTES: usize = 14;

/// Bytes of an entry.
pub(crate) const fn entry_bytes(function: DigestFunction) -> usize {
    function.hash_bytes() + SIZE_BYTES
}

/// The chunks of a blob, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkList {
    function: DigestFunction,
    chunking: i32,
    size_bytes: u64,
    entries: Bytes,
}

impl ChunkList {
    /// A list of these entries; `None` if they are none, too many, or longer together than a blob can be.
    fn of_entries(function: DigestFunction, chunking: i32, entries: Bytes) -> Option<Self> {
        if !entries.len().is_multiple_of(entry_bytes(function)) || entries.len() / entry_bytes(function) > CHUNKS_MAX {
            return None;
        }
        let list = Self { function, chunking, size_bytes: 0, entries };
        let size_bytes = list.iter().try_fold(0u64, |sum, chunk| sum.checked_add(chunk.size_bytes))?;
        Some(Self { size_bytes, ..list })
    }

    /// Function of every chunk, and of the blob.
    pub fn function(&self) -> DigestFunction {
        self.function
    }

    /// How the blob was cut: a `ChunkingFunction.Value` of the Remote Execution API as a client gave it, be it known here or not.
    pub fn chunking(&self) -> i32 {
        self.chunking
    }

    /// Bytes of all chunks together.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// How many chunks there are.
    pub fn len(&self) -> usize {
        self.entries.len() / entry_bytes(self.function)
    }

    /// Whether there are none: the empty blob.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of memory that it takes.
    pub fn memory_bytes(&self) -> usize {
        self.entries.len()
    }

    /// The chunk at this place.
    pub fn get(&self, index: usize) -> Option<Digest> {
        let start = index.checked_mul(entry_bytes(self.function))?;
        let entry = self.entries.get(start..)?.get(..entry_bytes(self.function))?;
        let (hash, size) = entry.split_at_checked(self.function.hash_bytes())?;
        Digest::new(self.function, hash, u64::from_le_bytes(size.try_into().ok()?)).ok()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Digest> + '_ {
        (0..self.len()).map_while(|index| self.get(index))
    }

    /// The entries, where they are too long to be kept in one value.
    pub(super) fn long_entries(&self, inline_bytes_max: usize) -> Option<&Bytes> {
        (self.entries.len() > inline_bytes_max.saturating_sub(HEAD_BYTES).min(INLINE_BYTES_MAX)).then_some(&self.entries)
    }

    /// The value that a store keeps; `elsewhere` is the blob of its entries, if they are not in the value.
    pub(super) fn encode(&self, elsewhere: Option<&Digest>) -> Bytes {
        let mut value = BytesMut::with_capacity(HEAD_BYTES + elsewhere.map_or(self.entries.len(), |_| entry_bytes(self.function)));
        value.put_u8(FORMAT);
        value.put_u8(if elsewhere.is_some() { FORM_BLOB } else { FORM_INLINE });
        value.put_i32_le(self.chunking);
        value.put_u64_le(self.size_bytes);
        match elsewhere {
            Some(blob) => put_entry(&mut value, blob),
            None => value.extend_from_slice(&self.entries),
        }
        value.freeze()
    }
}

fn put_entry(buffer: &mut impl BufMut, digest: &Digest) {
    buffer.put_slice(digest.hash());
    buffer.put_u64_le(digest.size_bytes);
}

/// A value that a store kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// All of it.
    Whole(ChunkList),
    /// The entries are this blob.
    Elsewhere { entries: Digest, chunking: i32, size_bytes: u64 },
}

impl Kept {
    /// What is in a value; `None` if it is of another format, or damaged.
    pub(super) fn decode(function: DigestFunction, value: &Bytes) -> Option<Self> {
        let (head, entries) = (value.get(..HEAD_BYTES)?, value.slice(HEAD_BYTES..));
        let (&[format, form], head) = head.split_first_chunk()?;
        let (chunking, size) = head.split_first_chunk()?;
        let (chunking, size_bytes) = (i32::from_le_bytes(*chunking), u64::from_le_bytes(size.try_into().ok()?));
        if format != FORMAT {
            return None;
        }
        let list = ChunkList::of_entries(function, chunking, entries)?;
        match form {
            FORM_INLINE => (list.size_bytes == size_bytes).then_some(Self::Whole(list)),
            FORM_BLOB if list.len() == 1 => Some(Self::Elsewhere { entries: list.get(0)?, chunking, size_bytes }),
            _ => None,
        }
    }

    /// Puts the entries to what was kept elsewhere.
    pub(super) fn with_entries(self, function: DigestFunction, entries: Bytes) -> Option<ChunkList> {
        match self {
            Self::Whole(list) => Some(list),
            Self::Elsewhere { chunking, size_bytes, .. } => {
                ChunkList::of_entries(function, chunking, entries).filter(|list| list.size_bytes == size_bytes)
            }
        }
    }
}

/// A list that grows.
#[derive(Debug)]
pub struct ChunkListBuilder {
    function: DigestFunction,
    chunking: i32,
    entries: Vec<u8>,
}

impl ChunkListBuilder {
    /// A list without chunks, of a blob that was cut by this function (a number on the wire).
    pub fn new(function: DigestFunction, chunking: i32) -> Self {
        Self { function, chunking, entries: Vec::new() }
    }

    /// Puts a chunk behind the others. It has to be of the list's function.
    ///
    /// # Errors
    /// [`StoreError::TooManyChunks`].
    pub fn push(&mut self, chunk: &Digest) -> Result<(), StoreError> {
        if self.entries.len() >= CHUNKS_MAX * entry_bytes(self.function) {
            return Err(StoreError::TooManyChunks { limit: CHUNKS_MAX });
        }
        debug_assert_eq!(chunk.function, self.function, "chunks of a list have one function");
        put_entry(&mut self.entries, chunk);
        Ok(())
    }

    /// Bytes of memory that each chunk takes.
    pub fn entry_bytes(&self) -> usize {
        entry_bytes(self.function)
    }

    /// Bytes of memory that the list takes so far.
    pub fn memory_bytes(&self) -> usize {
        self.entries.len()
    }

    /// The list.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] if the chunks have more bytes together than a number holds.
    pub fn finish(self) -> Result<ChunkList, StoreError> {
        let too_large = StoreError::TooLarge { size_bytes: u64::MAX, limit_bytes: i64::MAX as u64 };
        ChunkList::of_entries(self.function, self.chunking, self.entries.into()).ok_or(too_large)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Hasher;

    fn list(function: DigestFunction, chunks: u32) -> ChunkList {
        let mut builder = ChunkListBuilder::new(function, -7);
        for n in 0..chunks {
            builder.push(&Hasher::digest(function, &n.to_le_bytes()).with_size(u64::from(n) << 33)).unwrap();
        }
        builder.finish().unwrap()
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for function in DigestFunction::ALL {
            for chunks in [0, 1, 5] {
                let list = list(function, chunks);
                assert_eq!((list.len(), list.is_empty(), list.chunking()), (chunks as usize, chunks == 0, -7));
                assert_eq!(list.size_bytes(), (0..u64::from(chunks)).map(|n| n << 33).sum());
                let value = list.encode(None);
                assert_eq!(Kept::decode(function, &value), Some(Kept::Whole(list.clone())));

                let entries = list.entries.clone();
                let blob = Hasher::digest(function, &entries);
                let kept = Kept::decode(function, &list.encode(Some(&blob))).unwrap();
                assert_eq!(kept, Kept::Elsewhere { entries: blob, chunking: -7, size_bytes: list.size_bytes() });
                assert_eq!(kept.clone().with_entries(function, entries.clone()), Some(list));
                if chunks > 1 {
                    assert_eq!(kept.with_entries(function, entries.slice(..entries.len() - entry_bytes(function))), None);
                }
            }
        }
    }

    #[test]
    fn anything_else_is_nothing() {
        let function = DigestFunction::Sha256;
        let whole = list(function, 3).encode(None);
        for len in 0..whole.len() {
            assert_eq!(Kept::decode(function, &whole.slice(..len)), None, "{len}");
        }
        for (place, byte) in [(0, 0), (0, 2), (1, 1), (1, 2), (6, 1), (whole.len() - 1, 0xff)] {
            let mut wrong = whole.to_vec();
            wrong[place] = byte;
            assert_eq!(Kept::decode(function, &wrong.into()), None, "{byte} at {place}");
        }
    }

    #[test]
    fn a_list_is_bounded() {
        let function = DigestFunction::Md5;
        let chunk = Hasher::digest(function, b"chunk");
        let mut builder = ChunkListBuilder::new(function, 0);
        for _ in 0..CHUNKS_MAX {
            builder.push(&chunk).unwrap();
        }
        assert!(matches!(builder.push(&chunk), Err(StoreError::TooManyChunks { limit: CHUNKS_MAX })));
        assert_eq!(builder.finish().unwrap().len(), CHUNKS_MAX);

        let mut builder = ChunkListBuilder::new(function, 0);
        for _ in 0..2 {
            builder.push(&chunk.with_size(u64::MAX / 2 + 1)).unwrap();
        }
        assert!(matches!(builder.finish(), Err(StoreError::TooLarge { .. })));
    }

    #[test]
    fn long_ones_do_not_go_into_one_value() {
        let list = list(DigestFunction::Sha256, 2000);
        assert_eq!(list.long_entries(usize::MAX).map(Bytes::len), Some(2000 * 40));
        let short = ChunkList::of_entries(DigestFunction::Sha256, 0, list.entries.slice(..1600 * 40)).unwrap();
        assert_eq!(short.long_entries(usize::MAX), None);
        // A store whose values are short.
        assert!(short.long_entries(1000).is_some());
        assert!(short.encode(None).len() <= INLINE_BYTES_MAX + HEAD_BYTES);
    }
}
