//! Reading a list of chunks as one blob.

use std::{future, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt, stream};

use super::super::{BlobRead, BlobStore, ByteRange, ChunkList, Digest, Instance, StoreError};

/// Chunks that are asked for before their turn, and the one that is being given out.
const AHEAD_CHUNKS_MAX: usize = 4;

/// What of a chunk is in a range of the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    chunk: Digest,
    range: ByteRange,
    /// Where the chunk begins in the blob.
    at_bytes: u64,
}

/// The parts of a list that make up a range, in order. Those of an empty range are none.
fn parts(list: ChunkList, start_bytes: u64, len_bytes: u64) -> impl Iterator<Item = Part> + Send + 'static {
    let end_bytes = start_bytes.saturating_add(len_bytes);
    let mut at_bytes = 0u64;
    let mut index = 0;
    std::iter::from_fn(move || {
        let chunk = list.get(index)?;
        let part = (at_bytes, chunk);
        index += 1;
        // A list's sizes add up.
        at_bytes = at_bytes.saturating_add(chunk.size_bytes);
        Some(part)
    })
    .take_while(move |(at_bytes, _)| *at_bytes < end_bytes)
    .filter_map(move |(at_bytes, chunk)| {
        let offset_bytes = start_bytes.saturating_sub(at_bytes);
        let upto_bytes = (end_bytes - at_bytes).min(chunk.size_bytes);
        let limit_bytes = upto_bytes.checked_sub(offset_bytes).filter(|bytes| *bytes > 0)?;
        Some(Part { chunk, range: ByteRange { offset_bytes, limit_bytes: Some(limit_bytes) }, at_bytes })
    })
}

/// A range of the blob that the list is. Chunks are opened as they are needed; one that is gone by then is [`StoreError::Lost`].
///
/// # Errors
/// [`StoreError::OutOfRange`].
pub(super) fn chunks(store: &Arc<dyn BlobStore>, instance: &Instance, list: ChunkList, range: ByteRange) -> Result<BlobRead, StoreError> {
    let len_bytes = range.len_bytes(list.size_bytes())?;
    if len_bytes == 0 {
        return Ok(BlobRead::Whole(Bytes::new()));
    }
    let (store, instance) = (store.clone(), instance.clone());
    let opened = stream::iter(parts(list, range.offset_bytes, len_bytes)).map(move |part| {
        let (store, instance) = (store.clone(), instance.clone());
        async move { (part, store.read(&instance, &part.chunk, part.range).await) }
    });
    let pieces = opened.buffered(AHEAD_CHUNKS_MAX).flat_map(|(part, read)| {
        let lost = StoreError::Lost { offset_bytes: part.at_bytes.saturating_add(part.range.offset_bytes) };
        match read {
            Ok(Some(read)) => read.into_stream().map(move |piece| piece.map_err(|error| moved(error, part.at_bytes))).boxed(),
            Ok(None) => stream::iter([Err(lost)]).boxed(),
            Err(error) => stream::iter([Err(moved(error, part.at_bytes))]).boxed(),
        }
    });
    let to_first_error = pieces.scan(false, |failed, piece| {
        let ended = *failed;
        *failed = piece.is_err();
        future::ready((!ended).then_some(piece))
    });
    Ok(BlobRead::Pieces(to_first_error.boxed()))
}

/// An error in a chunk as one in the blob.
fn moved(error: StoreError, at_bytes: u64) -> StoreError {
    match error {
        StoreError::Lost { offset_bytes } => StoreError::Lost { offset_bytes: at_bytes.saturating_add(offset_bytes) },
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{ChunkListBuilder, DigestFunction, Hasher};

    #[test]
    fn parts_make_up_the_range() {
        let sizes = [3u64, 0, 1, 5, 0, 2];
        let mut builder = ChunkListBuilder::new(DigestFunction::Sha1, 0);
        for size in sizes {
            builder.push(&Hasher::digest(DigestFunction::Sha1, b"").with_size(size)).unwrap();
        }
        let list = builder.finish().unwrap();
        let whole: Vec<_> = (0..11).collect();
        for start in 0..=11 {
            for len in 0..=11 - start {
                let mut next = start;
                for part in parts(list.clone(), start, len) {
                    let limit = part.range.limit_bytes.unwrap();
                    assert!(limit > 0 && part.range.offset_bytes + limit <= part.chunk.size_bytes);
                    assert_eq!(part.at_bytes + part.range.offset_bytes, next, "{start} {len}");
                    next += limit;
                }
                assert_eq!(next, start + len, "{start} {len} of {whole:?}");
            }
        }
    }
}
