//! What a cache means: the one seam that front-ends see, and the stores behind it.
//!
//! Always true here: a store hands out only bytes that passed their checksum, and accepts a blob only if its bytes have the
//! digest it was named with. Everything streams; no call needs memory for a whole large blob. Any future may be dropped at
//! any await: nothing becomes visible half, and no other call is hurt.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream, stream::BoxStream};

pub mod action_result;
pub mod chunk_list;
pub mod chunked;
pub mod chunking;
pub mod completeness;
pub mod compression;
pub mod directories;
mod error;
mod hashing;
pub mod local;
mod present;

pub use blockstore_names::{ActionKey, Digest, DigestError, DigestFunction, HASH_BYTES_MAX, Hasher, Instance};
pub use chunk_list::{ChunkList, ChunkListBuilder};
pub use chunking::Chunking;
pub use error::StoreError;
pub use present::PresentUpload;

/// What a store can do. Does not change while it is open.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// Digest functions that it was set up for, in order of preference; never empty.
    pub digest_functions: Vec<DigestFunction>,
    /// Largest blob in bytes.
    pub blob_bytes_max: u64,
    /// Largest action result in bytes.
    pub action_result_bytes_max: u64,
    /// Largest entry under a client's own name, in bytes.
    pub entry_bytes_max: u64,
    /// Whether blobs may come and go as lists of chunks. The bare store keeps such lists, but neither makes nor checks them.
    pub chunked_blobs: bool,
}

/// What a reader takes for an action result, where other things may lie under an action's name: HTTP clients keep bytes of their own
/// there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultRule {
    /// Only a well-formed `ActionResult`, and only if all that it names is there.
    Strict,
    /// That, and whatever is no well-formed `ActionResult`, as opaque bytes.
    Lenient,
    /// Everything, as opaque bytes.
    Opaque,
}

/// A part of a blob.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte wanted.
    pub offset_bytes: u64,
    /// Bytes wanted at most; all that follow if `None`.
    pub limit_bytes: Option<u64>,
}

impl ByteRange {
    /// The whole blob.
    pub const ALL: Self = Self { offset_bytes: 0, limit_bytes: None };

    /// How many bytes of a blob of this size are in the range.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`] if it starts behind the end (at the end is an empty range).
    pub fn len_bytes(&self, size_bytes: u64) -> Result<u64, StoreError> {
        let rest =
            size_bytes.checked_sub(self.offset_bytes).ok_or(StoreError::OutOfRange { offset_bytes: self.offset_bytes, size_bytes })?;
        Ok(self.limit_bytes.map_or(rest, |limit| limit.min(rest)))
    }
}

/// A part of a blob that was found.
pub enum BlobRead {
    /// All of it, in memory.
    Whole(Bytes),
    /// In order and in pieces, none of them empty or larger than about 1 MiB. Ends after an error.
    Pieces(BoxStream<'static, Result<Bytes, StoreError>>),
}

impl BlobRead {
    /// The pieces as a stream, whichever it is.
    pub fn into_stream(self) -> BoxStream<'static, Result<Bytes, StoreError>> {
        match self {
            Self::Whole(bytes) if bytes.is_empty() => stream::empty().boxed(),
            Self::Whole(bytes) => stream::iter([Ok(bytes)]).boxed(),
            Self::Pieces(pieces) => pieces,
        }
    }

    /// All of it in memory. The caller knows that `len_bytes` (its size) is bearable.
    ///
    /// # Errors
    /// The error that ended the stream.
    pub async fn collect(self, len_bytes: usize) -> Result<Bytes, StoreError> {
        let mut pieces = match self {
            Self::Whole(bytes) => return Ok(bytes),
            Self::Pieces(pieces) => pieces,
        };
        let Some(first) = pieces.next().await.transpose()? else {
            return Ok(Bytes::new());
        };
        if first.len() >= len_bytes {
            return Ok(first);
        }
        let mut all = Vec::with_capacity(len_bytes);
        all.extend_from_slice(&first);
        while let Some(piece) = pieces.next().await.transpose()? {
            all.extend_from_slice(&piece);
        }
        Ok(all.into())
    }
}

impl fmt::Debug for BlobRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(bytes) => write!(f, "Whole({} bytes)", bytes.len()),
            Self::Pieces(_) => f.write_str("Pieces"),
        }
    }
}

/// A blob of a batch, in the form that takes less.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchBlob {
    /// Its bytes.
    Plain(Bytes),
    /// zstd frames that stand for them.
    Zstd(Bytes),
}

/// A blob that was found by its hash alone.
#[derive(Debug)]
pub struct OpenBlob {
    /// Its name, now with its size.
    pub digest: Digest,
    /// All of its bytes; nothing is read from the device before they are asked for, beyond a blob's first piece.
    pub read: BlobRead,
    /// Whether the store has it as zstd frames, which [`BlobStore::read_zstd`] hands out as they are.
    pub is_zstd: bool,
}

/// What a write did. Both are success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The blob was stored.
    Stored,
    /// It was there; it counts as used now.
    AlreadyPresent,
}

/// How a write begins.
pub enum BeginWrite {
    /// The blob is there; no bytes are needed.
    AlreadyPresent,
    /// Send the bytes.
    Upload(Box<dyn BlobUpload>),
}

/// A blob on its way in. Dropping it forgets it; nothing is visible before `finish`.
#[async_trait]
pub trait BlobUpload: Send {
    /// Bytes taken so far: where the next one belongs.
    fn written_bytes(&self) -> u64;

    /// Bytes of memory that it may hold while nothing more arrives; always the same for one upload.
    fn memory_bytes(&self) -> u64 {
        0
    }

    /// Takes the next bytes. Waits while the store is behind. Cancel-safe: a dropped call has taken all of `data` or
    /// nothing, as [`written_bytes`](Self::written_bytes) tells.
    ///
    /// # Errors
    /// [`StoreError::SizeMismatch`] at the first byte beyond the declared size; what the store says otherwise. After an
    /// error the upload is of no use any more.
    async fn write(&mut self, data: Bytes) -> Result<(), StoreError>;

    /// Takes bytes that are in pieces, one behind the other. A dropped call has taken some of the pieces, from the first on, as
    /// [`written_bytes`](Self::written_bytes) tells.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    async fn write_pieces(&mut self, pieces: Vec<Bytes>) -> Result<(), StoreError> {
        for piece in pieces {
            self.write(piece).await?;
        }
        Ok(())
    }

    /// Checks size and hash and makes the blob visible. Dropping the call may or may not have published the blob.
    ///
    /// # Errors
    /// [`StoreError::SizeMismatch`], [`StoreError::HashMismatch`] and what the store says.
    async fn finish(self: Box<Self>) -> Result<WriteOutcome, StoreError>;
}

/// A store of blobs and action results.
///
/// The empty blob of every function is always present. A hash with another size than the blob has is missing.
#[async_trait]
pub trait BlobStore: Send + Sync + fmt::Debug + 'static {
    /// What it can do.
    fn capabilities(&self) -> &Capabilities;

    /// For each digest whether it is missing, in the order asked. What is present counts as used.
    ///
    /// # Errors
    /// What keeps the store from knowing.
    async fn find_missing(&self, instance: &Instance, digests: &[Digest]) -> Result<Vec<bool>, StoreError>;

    /// A part of a blob; `None` if the blob is missing (also if it turned out to be damaged before its first byte).
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`] for a present blob that ends before the range.
    async fn read(&self, instance: &Instance, digest: &Digest, range: ByteRange) -> Result<Option<BlobRead>, StoreError>;

    /// A blob from that byte on as zstd frames, those that are stored where there are any; `None` as for [`read`](Self::read). At its end
    /// it is a frame that stands for nothing.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    async fn read_zstd(&self, instance: &Instance, digest: &Digest, offset_bytes: u64) -> Result<Option<BlobRead>, StoreError> {
        let range = ByteRange { offset_bytes, limit_bytes: None };
        match self.read(instance, digest, range).await? {
            Some(read) => compression::compressed(read, range.len_bytes(digest.size_bytes)?).map(Some),
            None => Ok(None),
        }
    }

    /// The blob of that function and hash, for a caller that does not know its size: the one in `digest` does not count. `None` as for
    /// [`read`](Self::read).
    ///
    /// # Errors
    /// What keeps the store from knowing.
    async fn open(&self, instance: &Instance, digest: &Digest) -> Result<Option<OpenBlob>, StoreError>;

    /// Begins to store a blob.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], [`StoreError::NoRoom`], [`StoreError::Unavailable`], [`StoreError::UnsupportedFunction`].
    async fn write(&self, instance: &Instance, digest: &Digest) -> Result<BeginWrite, StoreError> {
        self.write_any(instance, std::slice::from_ref(digest)).await
    }

    /// Begins to store a blob whose hash may be of one function or another: it gets the one of these names, all of one size, that its
    /// bytes turn out to have. Names of functions that are not offered do not count.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    async fn write_any(&self, instance: &Instance, digests: &[Digest]) -> Result<BeginWrite, StoreError>;

    /// Whole blobs, together; the answers in order, `None` for a missing one. The caller bounds their total size.
    async fn read_batch(&self, instance: &Instance, digests: &[Digest]) -> Vec<Result<Option<Bytes>, StoreError>>;

    /// The same as [`read_batch`](Self::read_batch), for a caller that takes zstd as well. Frames may be longer than their blobs by a
    /// thousandth.
    async fn read_batch_zstd(&self, instance: &Instance, digests: &[Digest]) -> Vec<Result<Option<BatchBlob>, StoreError>> {
        let found = self.read_batch(instance, digests).await;
        compression::compress_batch(found.into_iter().map(|blob| blob.map(|blob| blob.map(BatchBlob::Plain))).collect()).await
    }

    /// Stores whole blobs, together; the answers in order. The caller bounds their total size.
    async fn write_batch(&self, instance: &Instance, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<WriteOutcome, StoreError>>;

    /// The action result as it was put, byte for byte; `None` is a miss. The bare store takes every rule for
    /// [`ResultRule::Opaque`].
    ///
    /// # Errors
    /// What keeps the store from knowing.
    async fn get_action_result(&self, instance: &Instance, action: &ActionKey, rule: ResultRule) -> Result<Option<Bytes>, StoreError>;

    /// Stores an action result; the last one acknowledged wins. Who does not know the action's size keeps the one that was known.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] and what keeps the store from writing.
    async fn put_action_result(&self, instance: &Instance, action: &ActionKey, result: Bytes) -> Result<(), StoreError>;

    /// What is stored under a name that the client made up; `None` if nothing is. Such entries have nothing to do with blobs and action
    /// results, whatever their names.
    ///
    /// # Errors
    /// What keeps the store from knowing.
    async fn get_entry(&self, instance: &Instance, name: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Stores bytes under a name that the client made up; the last ones acknowledged win.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] and what keeps the store from writing.
    async fn put_entry(&self, instance: &Instance, name: &[u8], data: Bytes) -> Result<(), StoreError>;

    /// Removes what is stored under such a name; false if nothing was.
    ///
    /// # Errors
    /// What keeps the store from writing.
    async fn delete_entry(&self, instance: &Instance, name: &[u8]) -> Result<bool, StoreError>;

    /// For each digest whether a list of chunks is kept under its function and hash, whatever its size and whether the chunks are there; in
    /// the order asked. What is there counts as used.
    ///
    /// # Errors
    /// What keeps the store from knowing.
    async fn has_chunk_lists(&self, instance: &Instance, digests: &[Digest]) -> Result<Vec<bool>, StoreError>;

    /// The chunks of a blob, all of which are there and count as used; `None` if the blob is missing. One that is only there whole is cut,
    /// by this algorithm, and its chunks are stored. The bare store gives what was put under function and hash, whatever the digest's size
    /// and whether the chunks are there.
    ///
    /// # Errors
    /// What keeps the store from knowing, or from storing the chunks.
    async fn chunk_list(&self, instance: &Instance, digest: &Digest, chunking: Chunking) -> Result<Option<ChunkList>, StoreError>;

    /// Makes a blob of chunks that are there: nothing but the list is stored. A blob that is there keeps what it has. The bare store keeps
    /// the list as it is, in the place of an older one.
    ///
    /// # Errors
    /// [`StoreError::ChunkMissing`], [`StoreError::SizeMismatch`] and [`StoreError::HashMismatch`] if the chunks are not the blob, and what
    /// keeps the store from knowing or writing.
    async fn put_chunk_list(&self, instance: &Instance, digest: &Digest, list: ChunkList) -> Result<WriteOutcome, StoreError>;
}
