//! Reading a list of chunks as one blob.
//!
//! Always true here: however small the chunks are, no piece but the last is smaller than [`PIECE_BYTES_MIN`], save for one before an error
//! or before a larger one: each costs a message on its way to the client, and clients take a flood of small ones for an attack.

use std::{future, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};

use super::super::{BlobRead, BlobStore, ByteRange, ChunkList, Digest, Instance, StoreError};

/// Chunks that are asked for before their turn, and the one that is being given out.
const AHEAD_CHUNKS_MAX: usize = 4;
/// Smaller pieces are copied together.
const PIECE_BYTES_MIN: usize = 64 << 10;

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
    Ok(BlobRead::Pieces(gathered(to_first_error.boxed())))
}

type Pieces = BoxStream<'static, Result<Bytes, StoreError>>;

/// The same bytes, small pieces copied together.
fn gathered(pieces: Pieces) -> Pieces {
    let next = async |(mut pieces, mut held): (Pieces, Option<Result<Bytes, StoreError>>)| {
        let mut small = BytesMut::new();
        loop {
            let next = match held.take() {
                Some(held) => Some(held),
                None => pieces.next().await,
            };
            match next {
                Some(Ok(piece)) if piece.len() < PIECE_BYTES_MIN => {
                    small.extend_from_slice(&piece);
                    if small.len() >= PIECE_BYTES_MIN {
                        return Some((Ok(small.freeze()), (pieces, None)));
                    }
                }
                next if !small.is_empty() => return Some((Ok(small.freeze()), (pieces, next))),
                next => return next.map(|next| (next, (pieces, None))),
            }
        }
    };
    stream::unfold((pieces, None), next).boxed()
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

    #[tokio::test]
    async fn small_pieces_come_together() {
        let piece = |byte: u8, len: usize| Ok(Bytes::from(vec![byte; len]));
        let large = PIECE_BYTES_MIN;
        let lost = || Err(StoreError::Lost { offset_bytes: 7 });
        for (pieces, expected) in [
            (vec![], vec![]),
            (vec![piece(1, 1)], vec![1]),
            (vec![piece(1, large), piece(2, large)], vec![large, large]),
            (vec![piece(1, 5), piece(2, 6), piece(3, large), piece(4, 1), piece(5, 2)], vec![11, large, 3]),
            (vec![piece(1, 5), piece(2, large - 1), piece(3, 1), lost()], vec![large + 4, 1, 0]),
            (vec![lost()], vec![0]),
        ] {
            let bytes = |pieces: &[Result<Bytes, StoreError>]| pieces.iter().flatten().flatten().copied().collect::<Vec<_>>();
            let given = bytes(&pieces);
            let found: Vec<_> = gathered(stream::iter(pieces).boxed()).collect().await;
            assert_eq!(found.iter().map(|piece| piece.as_ref().map_or(0, Bytes::len)).collect::<Vec<_>>(), expected);
            assert!(bytes(&found) == given);
        }
        let many: Vec<_> = (0..60_000).map(|n| piece((n % 251) as u8, 10)).collect();
        assert_eq!(gathered(stream::iter(many).boxed()).count().await, 600_000usize.div_ceil(large + 4));
    }
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
