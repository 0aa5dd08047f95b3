//! The bytes of objects, however they are stored.
//!
//! Always true here: bytes that come out of frames are as many as the object's size says, part by part, or the reading ends with an
//! error; an object whose frames make no sense is dropped, so that it is missing from then on and can be stored again. A reader holds
//! two pieces of the engine, a window, and one piece of its own.

use std::io;

use blockstore_engine::{Codec, EncodedReader, Object};
use bytes::{Buf, Bytes};
use futures::{StreamExt, stream, stream::BoxStream};
use tokio::task::spawn_blocking;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use crate::store::{
    BlobRead, ByteRange, StoreError,
    compression::{self, WINDOW_LOG_MAX},
};

/// Frames up to this size are decompressed where they are.
const HERE_BYTES_MAX: u64 = 128 << 10;
/// Decompressed bytes of one piece.
const PIECE_BYTES: usize = 256 << 10;

type Pieces = BoxStream<'static, Result<Bytes, StoreError>>;

/// A range of an object that is in the object; `None` if it makes no sense, and is gone now.
pub(super) async fn read(object: Object, range: ByteRange) -> Result<Option<BlobRead>, StoreError> {
    let len_bytes = range.len_bytes(object.size_bytes())?;
    if len_bytes == 0 {
        return Ok(Some(BlobRead::Whole(Bytes::new())));
    }
    let whole = match object.whole() {
        Some(whole) => whole.into_bytes(),
        None if object.codec() == Codec::Plain => return plain(object, range).map(Some),
        None => match object.whole_encoded() {
            Some(frame) => match decompressed(frame.into_bytes(), object.size_bytes()).await? {
                Some(whole) => whole,
                None => {
                    object.discard();
                    return Ok(None);
                }
            },
            None => return decompressing(object.encoded_reader(range.offset_bytes), range.offset_bytes, len_bytes).map(Some),
        },
    };
    // The range was checked against the same size.
    let part = usize::try_from(range.offset_bytes)
        .ok()
        .zip(usize::try_from(len_bytes).ok())
        .and_then(|(start, len)| Some((start, start.checked_add(len)?)))
        .filter(|(_, end)| *end <= whole.len())
        .map(|(start, end)| whole.slice(start..end))
        .ok_or_else(|| StoreError::Internal("object is shorter than its size".into()))?;
    Ok(Some(BlobRead::Whole(part)))
}

/// All of an object in memory; the caller knows that to be bearable.
pub(super) async fn collect(object: Object) -> Result<Bytes, StoreError> {
    let len_bytes =
        usize::try_from(object.size_bytes()).map_err(|_| StoreError::Internal("object is larger than the address space".into()))?;
    match read(object, ByteRange::ALL).await? {
        Some(read) => read.collect(len_bytes).await,
        None => Err(StoreError::Lost { offset_bytes: 0 }),
    }
}

/// An object from that byte on as frames: those that are stored, if there are any, but for a part in which the byte is not the first.
/// `None` as for [`read`].
pub(super) async fn frames(object: Object, offset_bytes: u64) -> Result<Option<BlobRead>, StoreError> {
    if object.codec() == Codec::Plain {
        let range = ByteRange { offset_bytes, limit_bytes: None };
        let len_bytes = range.len_bytes(object.size_bytes())?;
        let read = read(object, range).await?;
        return read.map(|read| compression::compressed(read, len_bytes)).transpose();
    }
    let size_bytes = object.size_bytes();
    let reader = object.clone().encoded_reader(offset_bytes);
    if reader.part_start_bytes() == offset_bytes && offset_bytes < size_bytes {
        return Ok(Some(match object.whole_encoded() {
            Some(frame) => BlobRead::Whole(frame.into_bytes()),
            None => BlobRead::Pieces(stored(reader)),
        }));
    }
    let end_bytes = reader.part_end_bytes();
    let len_bytes = end_bytes.saturating_sub(offset_bytes);
    let range = ByteRange { offset_bytes, limit_bytes: Some(len_bytes) };
    let Some(begun) = read(object.clone(), range).await? else {
        return Ok(None);
    };
    let begun = compression::compressed(begun, len_bytes)?;
    if end_bytes >= size_bytes {
        return Ok(Some(begun));
    }
    let rest = stored(object.encoded_reader(end_bytes));
    Ok(Some(BlobRead::Pieces(begun.into_stream().chain(rest).boxed())))
}

/// Bytes that are stored as they are.
fn plain(object: Object, range: ByteRange) -> Result<BlobRead, StoreError> {
    let reader = object.reader(range.offset_bytes, range.limit_bytes)?;
    let pieces = stream::unfold(reader, |mut reader| async {
        let piece = reader.next().await?;
        Some((piece.map(|p| p.into_bytes()).map_err(StoreError::from), reader))
    });
    Ok(BlobRead::Pieces(pieces.boxed()))
}

/// What is stored, as it is.
fn stored(reader: EncodedReader) -> Pieces {
    let pieces = stream::unfold(reader, |mut reader| async {
        let piece = reader.next().await?;
        Some((piece.map(|piece| piece.data.into_bytes()).map_err(StoreError::from), reader))
    });
    pieces.boxed()
}

/// What a whole frame stands for; `None` if that is not so many bytes.
async fn decompressed(frame: Bytes, size_bytes: u64) -> Result<Option<Bytes>, StoreError> {
    let work = move || {
        let whole = compression::decompress_whole(&frame, usize::try_from(size_bytes).ok()?).ok()?;
        (whole.len() as u64 == size_bytes).then_some(whole)
    };
    if size_bytes <= HERE_BYTES_MAX {
        return Ok(work());
    }
    spawn_blocking(work).await.map_err(|error| StoreError::Internal(format!("decompression ended: {error}")))
}

/// Pieces of an object out of the frames of its parts.
struct Decompressing {
    reader: EncodedReader,
    decoder: Decoder<'static>,
    input: Bytes,
    /// Whether the part ends with this input, and with which byte of the object it must.
    ends_part: bool,
    part_end_bytes: u64,
    /// The next byte that the decoder makes.
    position: u64,
    /// The decoder may hold more than its last output had room for.
    pending: bool,
    /// The next byte that is wanted, and the one behind the last.
    wanted: u64,
    end: u64,
}

fn decompressing(reader: EncodedReader, offset_bytes: u64, len_bytes: u64) -> Result<BlobRead, StoreError> {
    let decoder = || {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
        Ok::<_, io::Error>(decoder)
    };
    let decoder = decoder().map_err(|error| StoreError::Internal(format!("zstd: {error}")))?;
    let position = reader.part_start_bytes();
    let state = Decompressing {
        decoder,
        input: Bytes::new(),
        ends_part: true,
        part_end_bytes: position,
        position,
        pending: false,
        wanted: offset_bytes,
        end: offset_bytes + len_bytes,
        reader,
    };
    let pieces = stream::unfold(Some(state), |state| async {
        let mut state = state?;
        match state.next().await.transpose()? {
            Ok(piece) => Some((Ok(piece), Some(state))),
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok(BlobRead::Pieces(pieces.boxed()))
}

impl Decompressing {
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        let mut output = Vec::new();
        while self.wanted < self.end {
            if self.input.is_empty() && !self.pending {
                if self.ends_part {
                    if self.position != self.part_end_bytes {
                        return Err(self.senseless());
                    }
                    self.part_end_bytes = self.reader.part_end_bytes();
                }
                match self.reader.next().await.transpose()? {
                    Some(piece) => (self.input, self.ends_part) = (piece.data.into_bytes(), piece.ends_part),
                    None => return Err(self.senseless()),
                }
            }
            if output.capacity() == 0 {
                let rest_bytes = usize::try_from(self.end - self.position.min(self.end)).unwrap_or(usize::MAX);
                output.reserve_exact(rest_bytes.clamp(1, PIECE_BYTES));
            }
            let before_bytes = output.len();
            let mut source = InBuffer::around(&self.input);
            let run = self.decoder.run(&mut source, &mut OutBuffer::around_pos(&mut output, before_bytes));
            let taken_bytes = source.pos();
            let made_bytes = output.len() - before_bytes;
            self.input.advance(taken_bytes);
            self.position += made_bytes as u64;
            let stuck = taken_bytes == 0 && made_bytes == 0 && !self.input.is_empty();
            if run.is_err() || stuck || self.position > self.part_end_bytes {
                return Err(self.senseless());
            }
            self.pending = output.len() == output.capacity();
            // What lies before the wanted range goes.
            if self.position <= self.wanted {
                output.clear();
            } else if self.position - output.len() as u64 > self.wanted {
                return Err(StoreError::Internal("bytes of a frame were left out".into()));
            } else if output.len() == output.capacity() || self.position >= self.end {
                let skip_bytes = usize::try_from(self.wanted + output.len() as u64 - self.position).unwrap_or(usize::MAX);
                let take_bytes = usize::try_from(self.end - self.wanted).unwrap_or(usize::MAX);
                let all = Bytes::from(output);
                let from = skip_bytes.min(all.len());
                let piece = all.slice(from..from.saturating_add(take_bytes).min(all.len()));
                self.wanted += piece.len() as u64;
                return Ok(Some(piece));
            }
            tokio::task::yield_now().await;
        }
        Ok(None)
    }

    /// The error for frames that are not what they should be; the object goes.
    fn senseless(&self) -> StoreError {
        self.reader.object().discard();
        StoreError::Lost { offset_bytes: self.wanted }
    }
}
