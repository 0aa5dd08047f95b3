//! Records that passed their checksums, in user memory.
//!
//! An entry's key is a place, which is never used twice, so an entry can be useless but never wrong.

use crate::{
    device::{PAGE_BYTES, taken_bytes},
    format::{record::RecordHead, types::Place},
};
use bytes::Bytes;
use quick_cache::{Weighter, sync::Cache};
use std::sync::Arc;

/// Payloads up to this many bytes are copied into the cache, so that a small slice does not keep a large buffer alive.
pub(crate) const COPY_BYTES_MAX: usize = 16 << 10;
/// What an entry takes besides its bytes, roughly: head, key, links.
const ENTRY_OVERHEAD_BYTES: usize = 320;

/// A verified piece of a record: the record's head and the payload from `first_byte` on.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) head: Arc<RecordHead>,
    pub(crate) data: Bytes,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<(u64, u32), Piece> for ByBytes {
    fn weight(&self, _: &(u64, u32), piece: &Piece) -> u64 {
        let bytes = match piece.data.len() {
            // The allocator has eight sizes from one power of two to the next.
            copied if copied <= COPY_BYTES_MAX => copied + copied / 16,
            len => taken_bytes(len + PAGE_BYTES),
        };
        (bytes + ENTRY_OVERHEAD_BYTES + 4 * piece.head.crcs.len()) as u64
    }
}

/// The cache.
pub(crate) struct RecordCache {
    cache: Option<Cache<(u64, u32), Piece, ByBytes>>,
}

impl RecordCache {
    /// At most `bytes_max` bytes; 0 is no cache.
    pub(crate) fn new(bytes_max: u64) -> Self {
        // Real caches hold objects of a few KiB on average.
        let items = usize::try_from(bytes_max / 4096).unwrap_or(usize::MAX).clamp(16, 1 << 22);
        Self { cache: (bytes_max > 0).then(|| Cache::with_weighter(items, bytes_max, ByBytes)) }
    }
    /// The piece of the record at `place` that starts with chunk `first_chunk`.
    pub(crate) fn get(&self, place: Place, first_chunk: u32) -> Option<Piece> {
        self.cache.as_ref()?.get(&(place.as_u64(), first_chunk))
    }
    /// Keeps a copy of a piece whose bytes lie in somebody else's buffer, which may be any number of times as large.
    pub(crate) fn put_copy(&self, place: Place, first_chunk: u32, piece: Piece) {
        if let Some(cache) = &self.cache {
            let data = Bytes::copy_from_slice(&piece.data);
            cache.insert((place.as_u64(), first_chunk), Piece { data, ..piece });
        }
    }
    /// Keeps a piece whose bytes have memory of their own.
    pub(crate) fn put_own(&self, place: Place, first_chunk: u32, piece: Piece) {
        if let Some(cache) = &self.cache {
            cache.insert((place.as_u64(), first_chunk), piece);
        }
    }
    /// Keeps a verified piece and gives it back, in the buffer in which it is kept.
    pub(crate) fn put(&self, place: Place, first_chunk: u32, mut piece: Piece) -> Piece {
        let Some(cache) = &self.cache else { return piece };
        if piece.data.len() <= COPY_BYTES_MAX {
            piece.data = Bytes::copy_from_slice(&piece.data);
        }
        cache.insert((place.as_u64(), first_chunk), piece.clone());
        piece
    }
    pub(crate) fn bytes(&self) -> u64 {
        self.cache.as_ref().map_or(0, Cache::weight)
    }
}
