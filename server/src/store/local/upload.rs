//! Uploads into the engine: small ones gathered in memory, large ones streamed by a task of their own.
//!
//! Always true here: the bytes are hashed in the order in which they are stored, once; only an upload whose size and hash
//! fit is finished. A large upload holds at most [`QUEUE_BYTES_MAX`] (or what came together) that the engine has not taken.

use std::sync::Arc;

use async_trait::async_trait;
use blockstore_engine::{Begin, Codec, Key, Upload};
use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
};

use super::{
    LocalStore,
    at_rest::{Complete, Compressed},
    verify_hash,
};
use crate::store::{BlobUpload, Digest, Hasher, StoreError, WriteOutcome};

/// Bytes of a large upload that wait for its task at most, unless what came together is more.
const QUEUE_BYTES_MAX: u32 = 1 << 20;
/// How often something may have come that waits.
const QUEUE_PIECES_MAX: usize = 256;
/// Hash and copy go over the bytes in strides of this size, so that the second finds them in the processor's cache.
const STRIDE_BYTES: usize = 256 << 10;

/// Where an upload belongs.
pub(super) struct Target {
    pub(super) store: LocalStore,
    /// The names that it may turn out to have, and their keys: at least one, the likeliest first, all of one size.
    pub(super) named: Vec<(Digest, Key)>,
}

impl Target {
    /// The name that it probably has.
    pub(super) fn expected(&self) -> &Digest {
        // Whoever makes a target has looked at the first.
        &self.named[0].0
    }

    /// The key of that name.
    pub(super) fn expected_key(&self) -> &Key {
        &self.named[0].1
    }

    /// The key of the one of the names that was computed from the bytes.
    fn matching(&self, computed: &[Digest]) -> Result<Key, StoreError> {
        match self.named.iter().find(|(digest, _)| computed.contains(digest)) {
            Some((digest, key)) => {
                if self.named.len() > 1 {
                    self.store.last_match.remember(digest.function);
                }
                Ok(*key)
            }
            None => Err(StoreError::HashMismatch {
                declared: Box::new(*self.expected()),
                computed: Box::new(computed.first().copied().unwrap_or(*self.expected())),
            }),
        }
    }
}

/// Counts the bytes taken and refuses what goes beyond the declared size.
fn take(written_bytes: u64, digest: &Digest, pieces: &[Bytes]) -> Result<u64, StoreError> {
    let sent_bytes = pieces.iter().fold(written_bytes, |sent_bytes, piece| sent_bytes.saturating_add(piece.len() as u64));
    if sent_bytes > digest.size_bytes {
        return Err(StoreError::SizeMismatch { declared_bytes: digest.size_bytes, sent_bytes });
    }
    Ok(sent_bytes)
}

fn check_complete(written_bytes: u64, digest: &Digest) -> Result<(), StoreError> {
    if written_bytes == digest.size_bytes {
        return Ok(());
    }
    Err(StoreError::SizeMismatch { declared_bytes: digest.size_bytes, sent_bytes: written_bytes })
}

/// An upload that is put whole once it is complete.
pub(super) struct SmallUpload {
    target: Target,
    /// Of the name that it probably has.
    hasher: Hasher,
    /// All pieces, if they came together; they share memory with the message that they came in.
    whole: Vec<Bytes>,
    gathered: Vec<u8>,
    written_bytes: u64,
}

impl SmallUpload {
    pub(super) fn new(target: Target) -> Self {
        let expected = target.expected();
        let hasher = Hasher::new(expected.function, expected.size_bytes);
        Self { target, hasher, whole: Vec::new(), gathered: Vec::new(), written_bytes: 0 }
    }
}

#[async_trait]
impl BlobUpload for SmallUpload {
    fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    fn memory_bytes(&self) -> u64 {
        self.target.expected().size_bytes
    }

    async fn write(&mut self, data: Bytes) -> Result<(), StoreError> {
        self.write_pieces(vec![data]).await
    }

    async fn write_pieces(&mut self, pieces: Vec<Bytes>) -> Result<(), StoreError> {
        let expected = self.target.expected();
        let written_bytes = take(self.written_bytes, expected, &pieces)?;
        pieces.iter().for_each(|piece| self.hasher.update(piece));
        let size_bytes = usize::try_from(expected.size_bytes).unwrap_or(usize::MAX);
        if self.written_bytes == 0 && written_bytes == expected.size_bytes {
            self.whole = pieces;
        } else if written_bytes > self.written_bytes {
            self.gathered.reserve_exact(size_bytes.saturating_sub(self.gathered.len()));
            pieces.iter().for_each(|piece| self.gathered.extend_from_slice(piece));
        }
        self.written_bytes = written_bytes;
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<WriteOutcome, StoreError> {
        let Self { target, hasher, whole, gathered, written_bytes } = *self;
        check_complete(written_bytes, target.expected())?;
        let mut computed = vec![hasher.finish()];
        if computed.first() != Some(target.expected()) {
            let others = target.named.iter().skip(1).map(|(digest, _)| {
                let mut hasher = Hasher::new(digest.function, digest.size_bytes);
                whole.iter().for_each(|piece| hasher.update(piece));
                hasher.update(&gathered);
                hasher.finish()
            });
            computed.extend(others);
        }
        let key = target.matching(&computed)?;
        match <[Bytes; 1]>::try_from(whole) {
            Ok([data]) => {
                let mut outcomes = target.store.put_batch(vec![(key, data)]).await;
                outcomes.pop().unwrap_or_else(|| Err(StoreError::Internal("put has no outcome".into())))
            }
            Err(pieces) if pieces.is_empty() => target.store.put_gathered(key, gathered).await,
            Err(pieces) => target.store.put_pieces(key, written_bytes, pieces).await,
        }
    }
}

enum Message {
    Pieces(Vec<Bytes>, OwnedSemaphorePermit),
    Finish,
}

/// An upload that a task hashes and hands to the engine while more of it arrives. The task also makes `write` cancel-safe:
/// a call to the engine is never dropped midway.
pub(super) struct LargeUpload {
    digest: Digest,
    written_bytes: u64,
    /// Of the record, or of the part, that is being gathered.
    memory_bytes: u64,
    queue: mpsc::Sender<Message>,
    room: Arc<Semaphore>,
    /// `None` once its result was taken.
    task: Option<JoinHandle<Result<WriteOutcome, StoreError>>>,
}

impl LargeUpload {
    /// `upload` is one under the name that it probably has.
    pub(super) fn start(upload: Upload, target: Target) -> Self {
        let (queue, messages) = mpsc::channel(QUEUE_PIECES_MAX);
        Self {
            digest: *target.expected(),
            written_bytes: 0,
            memory_bytes: upload.part_bytes().unwrap_or(upload.size_bytes()),
            queue,
            room: Arc::new(Semaphore::new(QUEUE_BYTES_MAX as usize)),
            task: Some(tokio::spawn(store(upload, target, messages))),
        }
    }

    /// The task's result, which is an error if it ended before it was told to finish.
    async fn result(&mut self) -> Result<WriteOutcome, StoreError> {
        let gone = || Err(StoreError::Internal("upload goes on after its failure".into()));
        let Some(task) = &mut self.task else {
            return gone();
        };
        let result = task.await.unwrap_or_else(|error| Err(StoreError::Internal(format!("task of an upload ended: {error}"))));
        self.task = None;
        result
    }
}

#[async_trait]
impl BlobUpload for LargeUpload {
    fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    async fn write(&mut self, data: Bytes) -> Result<(), StoreError> {
        self.write_pieces(vec![data]).await
    }

    async fn write_pieces(&mut self, pieces: Vec<Bytes>) -> Result<(), StoreError> {
        let written_bytes = take(self.written_bytes, &self.digest, &pieces)?;
        if written_bytes == self.written_bytes {
            return Ok(());
        }
        let room_bytes = u32::try_from(written_bytes - self.written_bytes).unwrap_or(u32::MAX).min(QUEUE_BYTES_MAX);
        let permit = self.room.clone().acquire_many_owned(room_bytes).await;
        if let Ok(permit) = permit
            && let Ok(place) = self.queue.reserve().await
        {
            place.send(Message::Pieces(pieces, permit));
            self.written_bytes = written_bytes;
            return Ok(());
        }
        self.result().await.map(|_| ())
    }

    async fn finish(mut self: Box<Self>) -> Result<WriteOutcome, StoreError> {
        check_complete(self.written_bytes, &self.digest)?;
        // A task that is gone tells why in its result.
        let _ = self.queue.send(Message::Finish).await;
        self.result().await
    }
}

async fn store(upload: Upload, target: Target, mut messages: mpsc::Receiver<Message>) -> Result<WriteOutcome, StoreError> {
    let mut hashers: Vec<_> = target.named.iter().map(|(digest, _)| Hasher::new(digest.function, digest.size_bytes)).collect();
    let mut upload = Compressed::new(upload, target.store.at_rest.clone());
    while let Some(message) = messages.recv().await {
        match message {
            Message::Pieces(pieces, permit) => {
                for stride in pieces.iter().flat_map(|piece| piece.chunks(STRIDE_BYTES)) {
                    hashers.iter_mut().for_each(|hasher| hasher.update(stride));
                    upload.write(stride).await?;
                }
                drop(permit);
            }
            Message::Finish => {
                let computed: Vec<_> = hashers.into_iter().map(Hasher::finish).collect();
                let key = target.matching(&computed)?;
                let complete = upload.complete().await?;
                return match key == *target.expected_key() {
                    true => complete.finish().await,
                    false => store_again(&target, complete, key).await,
                };
            }
        }
    }
    Err(StoreError::Unavailable("upload was abandoned".into()))
}

/// Stores what was uploaded under the name that it turned out to have, in the form that it has. It was not visible under the other, and
/// goes.
async fn store_again(target: &Target, mut complete: Complete, key: Key) -> Result<WriteOutcome, StoreError> {
    let mut again = match target.store.engine.begin_upload(key, target.expected().size_bytes).await? {
        Begin::AlreadyPresent => return Ok(WriteOutcome::AlreadyPresent),
        Begin::Upload(again) => again,
    };
    let Some(object) = complete.upload.read_back().await? else {
        return Err(StoreError::Internal("large upload is gathered in memory".into()));
    };
    let unreadable = |error| StoreError::Unavailable(format!("upload cannot be read back: {error}"));
    let codec = object.codec();
    let mut reader = object.encoded_reader(0);
    let mut part = Vec::new();
    while let Some(piece) = reader.next().await {
        let piece = piece.map_err(unreadable)?;
        let data = piece.data.into_bytes();
        if codec == Codec::Plain {
            again.write(&data).await?;
            continue;
        }
        part.extend_from_slice(&data);
        if piece.ends_part {
            again.write_encoded(codec, &part).await?;
            part.clear();
        }
    }
    complete.under(*again).finish().await
}

/// An upload of no bytes whose digest is not that of the empty blob: it can only fail.
pub(super) struct RefusedUpload {
    digest: Digest,
}

impl RefusedUpload {
    pub(super) fn new(digest: Digest) -> Self {
        Self { digest }
    }
}

#[async_trait]
impl BlobUpload for RefusedUpload {
    fn written_bytes(&self) -> u64 {
        0
    }

    async fn write(&mut self, data: Bytes) -> Result<(), StoreError> {
        take(0, &self.digest, std::slice::from_ref(&data)).map(|_| ())
    }

    async fn finish(self: Box<Self>) -> Result<WriteOutcome, StoreError> {
        verify_hash(&self.digest, Hasher::new(self.digest.function, 0).finish())?;
        Ok(WriteOutcome::AlreadyPresent)
    }
}
