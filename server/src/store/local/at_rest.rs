//! Blobs that are compressed before they are stored.
//!
//! Always true here: what is compressed was hashed before; a blob is stored as frames only where that saves a tenth or more, and under
//! the key and size that it has anyway, so that it is found in one lookup and is never there in two forms. Small blobs are one frame.
//! Large ones are a frame for each of the engine's parts, of 1 to 8 MiB: a read begins at any of them, and memory for an upload is a
//! few parts, whatever its size. Whether a large one shrinks is told by its first part.
//!
//! A blob that comes compressed is compressed anew: its frames may have any window and any length, and the hash needs its bytes anyway.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use blockstore_engine::{Codec, Key, Upload, Value};
use bytes::Bytes;
use tokio::task::spawn_blocking;

use crate::store::{StoreError, WriteOutcome, compression::Frames};

/// Work on so many bytes is done where it is; on more of them where it keeps nobody waiting.
const HERE_BYTES_MAX: usize = 16 << 10;

/// What was stored since the start, and as how much. They only grow.
#[derive(Debug, Default)]
pub struct Counters {
    /// Blobs stored as frames.
    pub compressed: AtomicU64,
    /// Bytes of these blobs.
    pub compressed_blob_bytes: AtomicU64,
    /// Bytes that they were stored as.
    pub compressed_stored_bytes: AtomicU64,
    /// Blobs that were stored as they are, because a frame would not have saved enough.
    pub plain: AtomicU64,
}

impl Counters {
    fn stored(&self, blob_bytes: u64, stored_bytes: Option<u64>) {
        match stored_bytes {
            Some(stored_bytes) => {
                self.compressed.fetch_add(1, Ordering::Relaxed);
                self.compressed_blob_bytes.fetch_add(blob_bytes, Ordering::Relaxed);
                self.compressed_stored_bytes.fetch_add(stored_bytes, Ordering::Relaxed);
            }
            None => drop(self.plain.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

/// How blobs are compressed, if they are.
#[derive(Clone, Debug, Default)]
pub(super) struct AtRest {
    pub(super) frames: Option<Frames>,
    pub(super) counters: Arc<Counters>,
}

impl AtRest {
    /// Whole blobs of one record each, as they are to be stored.
    pub(super) async fn values(&self, blobs: Vec<(Key, Bytes)>) -> Result<Vec<(Key, Value)>, StoreError> {
        let Some(frames) = self.frames else {
            return Ok(blobs.into_iter().map(|(key, data)| (key, Value::plain(data))).collect());
        };
        let bytes: usize = blobs.iter().map(|(_, data)| data.len()).sum();
        let work = move || {
            let value = |data: Bytes| match frames.if_worth(&data) {
                Some(frame) => Value::encoded(Codec::Zstd, frame, data.len() as u64),
                None => Value::plain(data),
            };
            blobs.into_iter().map(|(key, data)| (key, value(data))).collect()
        };
        if bytes <= HERE_BYTES_MAX { Ok(work()) } else { off_thread(work).await }
    }

    /// Notes what became of a value of [`values`](Self::values).
    pub(super) fn note(&self, blob_bytes: u64, stored_bytes: u64, outcome: WriteOutcome) {
        if self.frames.is_some() && outcome == WriteOutcome::Stored {
            self.counters.stored(blob_bytes, (stored_bytes < blob_bytes).then_some(stored_bytes));
        }
    }
}

/// Does work that takes long where it keeps nobody waiting.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
    spawn_blocking(work).await.map_err(|error| StoreError::Internal(format!("compression ended: {error}")))
}

/// An upload into the engine whose parts are compressed on their way, if that is worth it.
pub(super) struct Compressed {
    upload: Upload,
    at_rest: AtRest,
    form: Form,
    /// Bytes of a part that is not complete.
    part: Vec<u8>,
    stored_bytes: u64,
}

/// As what an upload is stored.
#[derive(Clone, Copy)]
enum Form {
    /// The first part of that many bytes will tell.
    Open(Frames, usize),
    /// A frame for each part of that many bytes.
    Frames(Frames, usize),
    Plain,
}

impl Compressed {
    pub(super) fn new(upload: Upload, at_rest: AtRest) -> Self {
        let part_bytes = upload.part_bytes().and_then(|bytes| usize::try_from(bytes).ok());
        let form = at_rest.frames.zip(part_bytes).map_or(Form::Plain, |(frames, part_bytes)| Form::Open(frames, part_bytes));
        Self { upload, at_rest, form, part: Vec::new(), stored_bytes: 0 }
    }

    /// Takes the next bytes, which are not more than were declared.
    pub(super) async fn write(&mut self, mut data: &[u8]) -> Result<(), StoreError> {
        while !data.is_empty() {
            let (Form::Open(_, part_bytes) | Form::Frames(_, part_bytes)) = self.form else {
                return Ok(self.upload.write(data).await?);
            };
            if self.part.capacity() == 0 {
                let rest_bytes = self.upload.size_bytes() - self.upload.written_bytes();
                self.part.reserve_exact(usize::try_from(rest_bytes).unwrap_or(usize::MAX).min(part_bytes));
            }
            let (now, later) = data.split_at(data.len().min(part_bytes - self.part.len()));
            self.part.extend_from_slice(now);
            data = later;
            if self.part.len() == part_bytes {
                self.end_part().await?;
            }
        }
        Ok(())
    }

    async fn end_part(&mut self) -> Result<(), StoreError> {
        let part = std::mem::take(&mut self.part);
        let (Form::Open(frames, part_bytes) | Form::Frames(frames, part_bytes)) = self.form else {
            return Ok(());
        };
        let open = matches!(self.form, Form::Open(..));
        let (part, frame) = off_thread(move || {
            let frame = if open { Ok(frames.if_worth(&part)) } else { frames.whole(&part).map(Some) };
            (part, frame)
        })
        .await?;
        match frame? {
            Some(frame) => {
                self.form = Form::Frames(frames, part_bytes);
                self.stored_bytes += frame.len() as u64;
                self.upload.write_encoded(Codec::Zstd, &frame).await?;
            }
            None => {
                self.form = Form::Plain;
                self.upload.write(&part).await?;
            }
        }
        Ok(())
    }

    /// Hands everything to the engine, which then can give it back or publish it.
    pub(super) async fn complete(mut self) -> Result<Complete, StoreError> {
        if !self.part.is_empty() {
            self.end_part().await?;
        }
        let stored_bytes = matches!(self.form, Form::Frames(..)).then_some(self.stored_bytes);
        Ok(Complete { upload: self.upload, at_rest: self.at_rest, stored_bytes })
    }
}

/// An upload that the engine has all of.
pub(super) struct Complete {
    pub(super) upload: Upload,
    at_rest: AtRest,
    /// What its frames have together, if it is stored as frames.
    stored_bytes: Option<u64>,
}

impl Complete {
    /// The same bytes in the same form as another upload, which has all of them.
    pub(super) fn under(self, upload: Upload) -> Self {
        Self { upload, ..self }
    }

    /// Publishes it.
    pub(super) async fn finish(self) -> Result<WriteOutcome, StoreError> {
        let Self { upload, at_rest, stored_bytes } = self;
        let blob_bytes = upload.size_bytes();
        let outcome = WriteOutcome::from(upload.finish().await?);
        if at_rest.frames.is_some() && outcome == WriteOutcome::Stored {
            at_rest.counters.stored(blob_bytes, stored_bytes);
        }
        Ok(outcome)
    }
}
