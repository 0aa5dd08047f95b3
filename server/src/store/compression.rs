//! zstd: blobs that are compressed on their way out, decompressed on their way in, or compressed before they are stored.
//!
//! Always true here: a blob is never decompressed to more than its size and one byte, whatever its frames claim, and a stream
//! holds at most a window of 2^[`WINDOW_LOG_MAX`] bytes; streams work on [`STRIDE_BYTES`] of input or make one piece before other
//! tasks get a turn. Whole blobs are worked on in one go, so that callers keep large ones off the runtime's threads.

use std::{cell::RefCell, io};

use bytes::{Buf, Bytes};
use futures::{StreamExt, stream, stream::BoxStream};
use thiserror::Error;
use tokio::task::spawn_blocking;
use zstd::{
    bulk,
    stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer},
};

use super::{BatchBlob, BlobRead, BlobUpload, StoreError, WriteOutcome};

/// Largest window that a stream may ask for, as a power of two: the 8 MiB that RFC 8878 asks every decoder to support, and what
/// no level up to 19 exceeds. Its memory is only touched as far as the blob reaches.
pub const WINDOW_LOG_MAX: u32 = 23;
/// The fastest of the normal levels: a cache has more network than processor.
const LEVEL: i32 = 1;
/// Input of one step of a stream.
const STRIDE_BYTES: usize = 64 << 10;
/// Bytes that a decompressing stream gathers before they go to the store.
const PIECE_BYTES: usize = 128 << 10;
/// Compressed bytes that are gathered before they go to the client.
const OUTPUT_BYTES: usize = 256 << 10;
/// Blobs up to this size are compressed where they are: a fraction of a millisecond.
const AT_ONCE_BYTES_MAX: usize = 64 << 10;
/// Below this size a frame saves nothing worth the work.
const WORTH_BYTES_MIN: usize = 256;

/// Why compressed bytes are not the blob that they should be.
#[derive(Debug, Error)]
pub enum DecompressError {
    /// They are not zstd, or need a larger window or more room than is allowed.
    #[error("bytes sent cannot be decompressed: {0}")]
    Malformed(String),
    /// They end inside a frame.
    #[error("compressed bytes end inside a frame")]
    Cut,
    /// They are, but the store refused what they decompress to.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<io::Error> for DecompressError {
    fn from(error: io::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// A blob on its way in, compressed: any number of frames, one after the other.
///
/// The upload behind it takes uncompressed bytes, so that it can go on with a new frame where it was cut.
pub struct ZstdUpload {
    inner: Box<dyn BlobUpload>,
    size_bytes: u64,
    decoder: Decoder<'static>,
    /// What was decompressed and is not with the store.
    piece: Vec<u8>,
    between_frames: bool,
}

impl ZstdUpload {
    /// Goes on with an upload of a blob of that size, where it is, with the beginning of a frame.
    ///
    /// # Errors
    /// [`StoreError::Internal`] where there is no memory for a decoder.
    pub fn new(inner: Box<dyn BlobUpload>, size_bytes: u64) -> Result<Self, StoreError> {
        let decoder = || {
            let mut decoder = Decoder::new()?;
            decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
            Ok::<_, io::Error>(decoder)
        };
        let decoder = decoder().map_err(|error| internal(&error))?;
        Ok(Self { inner, size_bytes, decoder, piece: Vec::new(), between_frames: true })
    }

    /// Uncompressed bytes that the store has.
    pub fn written_bytes(&self) -> u64 {
        self.inner.written_bytes()
    }

    /// Takes the next compressed bytes. A dropped call loses the place in the frame, not what the store has.
    ///
    /// # Errors
    /// [`StoreError::SizeMismatch`] as soon as they decompress to more than the blob's size. After an error the upload is of no
    /// use any more.
    pub async fn write(&mut self, data: &[u8]) -> Result<(), DecompressError> {
        for mut stride in data.chunks(STRIDE_BYTES) {
            loop {
                let full = self.step(&mut stride)?;
                if full {
                    self.flush().await?;
                } else if stride.is_empty() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    /// Decompresses until the piece is full (true) or the input used up.
    fn step(&mut self, input: &mut &[u8]) -> Result<bool, DecompressError> {
        // One byte more than may come, so that it is noticed.
        let rest_bytes = self.size_bytes.saturating_sub(self.inner.written_bytes());
        if self.piece.capacity() == 0 {
            let room_bytes = usize::try_from(rest_bytes).unwrap_or(usize::MAX).saturating_add(1);
            self.piece.reserve_exact(room_bytes.min(PIECE_BYTES));
        }
        let before_bytes = self.piece.len();
        let mut source = InBuffer::around(input);
        let next_bytes = {
            let mut output = OutBuffer::around_pos(&mut self.piece, before_bytes);
            self.decoder.run(&mut source, &mut output)?
        };
        let taken_bytes = source.pos();
        *input = input.get(taken_bytes..).unwrap_or_default();
        // A call that had nothing to do says nothing about frames.
        if taken_bytes > 0 || self.piece.len() > before_bytes {
            self.between_frames = next_bytes == 0;
        }
        let piece_bytes = self.piece.len() as u64;
        if piece_bytes > rest_bytes {
            let sent_bytes = self.size_bytes.saturating_add(piece_bytes - rest_bytes);
            return Err(StoreError::SizeMismatch { declared_bytes: self.size_bytes, sent_bytes }.into());
        }
        Ok(self.piece.len() == self.piece.capacity())
    }

    /// Hands what was decompressed to the store.
    ///
    /// # Errors
    /// What the store says.
    pub async fn flush(&mut self) -> Result<(), StoreError> {
        let piece = std::mem::take(&mut self.piece);
        if piece.is_empty() {
            return Ok(());
        }
        self.inner.write(piece.into()).await
    }

    /// Checks that this was all and that it is the blob, and makes it visible.
    ///
    /// # Errors
    /// [`DecompressError::Cut`], and those of [`BlobUpload::finish`].
    pub async fn finish(mut self) -> Result<WriteOutcome, DecompressError> {
        if !self.between_frames {
            return Err(DecompressError::Cut);
        }
        self.flush().await?;
        Ok(self.inner.finish().await?)
    }

    /// The upload behind it, as far as it came.
    pub fn into_inner(self) -> Box<dyn BlobUpload> {
        self.inner
    }
}

/// Pieces of a blob on their way out.
struct Compressing {
    pieces: BoxStream<'static, Result<Bytes, StoreError>>,
    encoder: Encoder<'static>,
    input: Bytes,
    output: Vec<u8>,
    output_bytes: usize,
    /// Whether all input is with the encoder.
    ending: bool,
}

impl Compressing {
    /// The next compressed piece; `None` after the frame's end.
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        self.output.reserve_exact(self.output_bytes);
        loop {
            if self.ending {
                let rest_bytes = self.encode(|encoder, output| encoder.finish(output, true))?;
                if rest_bytes == 0 {
                    self.output_bytes = 0;
                    return Ok(self.take());
                }
                if self.is_full() {
                    return Ok(self.take());
                }
            } else if !self.input.is_empty() {
                let stride = self.input.slice(..self.input.len().min(STRIDE_BYTES));
                let mut source = InBuffer::around(&stride);
                self.encode(|encoder, output| encoder.run(&mut source, output))?;
                self.input.advance(source.pos());
                if self.is_full() {
                    return Ok(self.take());
                }
                tokio::task::yield_now().await;
            } else {
                match self.pieces.next().await.transpose()? {
                    Some(piece) => self.input = piece,
                    None => self.ending = true,
                }
            }
        }
    }

    fn encode(
        &mut self,
        work: impl FnOnce(&mut Encoder<'static>, &mut OutBuffer<'_, Vec<u8>>) -> io::Result<usize>,
    ) -> Result<usize, StoreError> {
        let pos = self.output.len();
        let mut output = OutBuffer::around_pos(&mut self.output, pos);
        work(&mut self.encoder, &mut output).map_err(|error| internal(&error))
    }

    fn is_full(&self) -> bool {
        self.output.len() == self.output.capacity()
    }

    fn take(&mut self) -> Option<Bytes> {
        let output = std::mem::take(&mut self.output);
        (!output.is_empty()).then(|| output.into())
    }
}

/// The pieces of a blob, or of its end, as one zstd frame in pieces of at most 256 KiB. `len_bytes` is how many there are: the
/// frame says so at its beginning. Ends after an error.
///
/// # Errors
/// [`StoreError::Internal`] where there is no memory for an encoder.
pub fn compress(
    pieces: BoxStream<'static, Result<Bytes, StoreError>>,
    len_bytes: u64,
) -> Result<BoxStream<'static, Result<Bytes, StoreError>>, StoreError> {
    let encoder = || {
        let mut encoder = Encoder::new(LEVEL)?;
        encoder.set_parameter(CParameter::ContentSizeFlag(true))?;
        encoder.set_pledged_src_size(Some(len_bytes))?;
        Ok::<_, io::Error>(encoder)
    };
    let encoder = encoder().map_err(|error| internal(&error))?;
    // As much as bytes that do not compress may take.
    let output_bytes = usize::try_from(len_bytes).unwrap_or(usize::MAX).saturating_add(4096).min(OUTPUT_BYTES);
    let compressing = Compressing { pieces, encoder, input: Bytes::new(), output: Vec::new(), output_bytes, ending: false };
    let pieces = stream::unfold(Some(compressing), |compressing| async {
        let mut compressing = compressing?;
        if compressing.output_bytes == 0 {
            return None;
        }
        match compressing.next().await.transpose()? {
            Ok(piece) => Some((Ok(piece), Some(compressing))),
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok(pieces.boxed())
}

/// What was read of a blob, `len_bytes` together, as one frame, which is there even if it holds nothing.
///
/// # Errors
/// [`StoreError::Internal`] where there is no memory for an encoder.
pub fn compressed(read: BlobRead, len_bytes: u64) -> Result<BlobRead, StoreError> {
    match read {
        BlobRead::Whole(data) if data.len() <= AT_ONCE_BYTES_MAX => compress_whole(&data).map(BlobRead::Whole),
        read => compress(read.into_stream(), len_bytes).map(BlobRead::Pieces),
    }
}

/// Blobs of a batch, those that are plain compressed where that saves something.
pub async fn compress_batch(found: Vec<Result<Option<BatchBlob>, StoreError>>) -> Vec<Result<Option<BatchBlob>, StoreError>> {
    let smaller = |blob: BatchBlob| match blob {
        BatchBlob::Plain(data) => compress_if_smaller(&data).map_or(BatchBlob::Plain(data), BatchBlob::Zstd),
        blob => blob,
    };
    let blobs = found.len();
    let work = move || found.into_iter().map(|blob| blob.map(|blob| blob.map(smaller))).collect();
    match spawn_blocking(work).await {
        Ok(blobs) => blobs,
        Err(error) => vec![Err(StoreError::Internal(format!("compression ended: {error}"))); blobs],
    }
}

/// How frames are made that are stored: with a checksum of what they stand for, and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frames {
    level: i32,
}

impl Frames {
    /// Levels that there are. Above 19 a frame may need a larger window than every decoder supports.
    pub const LEVELS: std::ops::RangeInclusive<i32> = 1..=19;

    /// Frames of that level, or the nearest that there is.
    pub fn new(level: i32) -> Self {
        Self { level: level.clamp(*Self::LEVELS.start(), *Self::LEVELS.end()) }
    }

    fn with<T>(self, work: impl FnOnce(&mut bulk::Compressor<'static>) -> io::Result<T>) -> io::Result<T> {
        STORING.with_borrow_mut(|slot| {
            let compressor = match slot {
                Some((level, compressor)) if *level == self.level => compressor,
                _ => {
                    let mut compressor = bulk::Compressor::new(self.level)?;
                    compressor.include_checksum(true)?;
                    &mut slot.insert((self.level, compressor)).1
                }
            };
            work(compressor)
        })
    }

    /// A frame that stands for the data, if that saves a tenth or more.
    pub fn if_worth(self, data: &[u8]) -> Option<Bytes> {
        if data.len() < WORTH_BYTES_MIN {
            return None;
        }
        let mut frame = Vec::with_capacity(data.len() - data.len().div_ceil(10));
        // What does not fit is an error, and is stored as it is.
        self.with(|compressor| compressor.compress_to_buffer(data, &mut frame)).ok()?;
        // It may be kept in memory: without what it did not need.
        frame.shrink_to_fit();
        Some(frame.into())
    }

    /// A frame that stands for the data, however long it is.
    ///
    /// # Errors
    /// [`StoreError::Internal`] where there is no memory for it.
    pub fn whole(self, data: &[u8]) -> Result<Bytes, StoreError> {
        self.with(|compressor| compressor.compress(data)).map(Bytes::from).map_err(|error| internal(&error))
    }
}

thread_local! {
    // Contexts are made once a thread: for small blobs, making one costs more than using it.
    static COMPRESSOR: RefCell<Option<bulk::Compressor<'static>>> = const { RefCell::new(None) };
    static STORING: RefCell<Option<(i32, bulk::Compressor<'static>)>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

fn with_compressor<T>(work: impl FnOnce(&mut bulk::Compressor<'static>) -> io::Result<T>) -> io::Result<T> {
    COMPRESSOR.with_borrow_mut(|slot| match slot {
        Some(compressor) => work(compressor),
        None => work(slot.insert(bulk::Compressor::new(LEVEL)?)),
    })
}

/// A whole blob as one frame.
///
/// # Errors
/// [`StoreError::Internal`] where there is no memory for it.
pub fn compress_whole(data: &[u8]) -> Result<Bytes, StoreError> {
    with_compressor(|compressor| compressor.compress(data)).map(Bytes::from).map_err(|error| internal(&error))
}

/// A whole blob as one frame, if that saves at least a sixteenth.
pub fn compress_if_smaller(data: &[u8]) -> Option<Bytes> {
    if data.len() < WORTH_BYTES_MIN {
        return None;
    }
    let mut frame = Vec::with_capacity(data.len() - data.len() / 16);
    // What does not fit is an error, and is sent as it is.
    with_compressor(|compressor| compressor.compress_to_buffer(data, &mut frame)).ok()?;
    Some(frame.into())
}

/// A whole blob out of its frames. Takes memory of `size_bytes`, which the caller knows to be bearable; without a window.
///
/// # Errors
/// [`DecompressError::Malformed`] for bytes that are no frames or yield more than that; that they yield less is for the caller
/// to notice.
pub fn decompress_whole(data: &[u8], size_bytes: usize) -> Result<Bytes, DecompressError> {
    let mut blob = Vec::with_capacity(size_bytes);
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(bulk::Decompressor::new()?),
        };
        decompressor.decompress_to_buffer(data, &mut blob)
    })?;
    Ok(blob.into())
}

fn internal(error: &io::Error) -> StoreError {
    StoreError::Internal(format!("zstd: {error}"))
}

#[cfg(test)]
mod tests;
