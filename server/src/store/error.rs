//! What can go wrong in a store, by what the caller can do about it. A miss is not an error.

use blockstore_engine::{PutError, ReadError};
use thiserror::Error;

use super::{Digest, DigestFunction};

/// A store could not do what it was asked.
#[derive(Clone, Debug, Error)]
pub enum StoreError {
    /// The blob became unreadable after bytes of it had been given out: damaged, or rotated away.
    #[error("blob became unreadable at byte {offset_bytes}")]
    Lost {
        /// First byte that could not be read.
        offset_bytes: u64,
    },
    /// The range starts behind the end of the blob.
    #[error("offset {offset_bytes} is past the end of a blob of {size_bytes} bytes")]
    OutOfRange {
        /// Requested start.
        offset_bytes: u64,
        /// Size of the blob.
        size_bytes: u64,
    },
    /// The store cannot do this now (poisoned, closing, unreachable); later or elsewhere it may work.
    #[error("store is unavailable: {0}")]
    Unavailable(String),
    /// The object is larger than this store can ever hold.
    #[error("object of {size_bytes} bytes is larger than this store accepts ({limit_bytes} bytes)")]
    TooLarge {
        /// Size of the object in bytes.
        size_bytes: u64,
        /// Largest size accepted in bytes.
        limit_bytes: u64,
    },
    /// There is no room now; it may work once other uploads have ended.
    #[error("no room: {0}")]
    NoRoom(String),
    /// The bytes sent are not as many as the digest says.
    #[error("digest says {declared_bytes} bytes, but {sent_bytes} were sent")]
    SizeMismatch {
        /// Size in the digest.
        declared_bytes: u64,
        /// Bytes that came (at least).
        sent_bytes: u64,
    },
    /// The bytes sent have another hash than the digest says.
    #[error("bytes sent have the digest {computed}, not {declared}")]
    HashMismatch {
        /// Digest of the request.
        declared: Box<Digest>,
        /// Digest of the bytes.
        computed: Box<Digest>,
    },
    /// A blob was to be made of chunks, and this one is not there.
    #[error("chunk {chunk} is not in the store")]
    ChunkMissing {
        /// The first of them that is missing.
        chunk: Box<Digest>,
    },
    /// The list of chunks is longer than any may be.
    #[error("list has more than {limit} chunks")]
    TooManyChunks {
        /// Chunks of a list at most.
        limit: usize,
    },
    /// The store was not set up for this digest function.
    #[error("digest function {0} is not offered")]
    UnsupportedFunction(DigestFunction),
    /// A defect of this program, such as a task that panicked.
    #[error("internal error: {0}")]
    Internal(String),
}

impl From<PutError> for StoreError {
    fn from(error: PutError) -> Self {
        match error {
            PutError::Unavailable(why) => Self::Unavailable(why),
            PutError::TooLarge { size_bytes, limit_bytes } => Self::TooLarge { size_bytes, limit_bytes },
            PutError::NoRoom(why) => Self::NoRoom(why),
            PutError::SizeMismatch { declared_bytes, sent_bytes } => Self::SizeMismatch { declared_bytes, sent_bytes },
        }
    }
}

impl From<ReadError> for StoreError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Lost { offset_bytes } => Self::Lost { offset_bytes },
            ReadError::Encoded => Self::Internal(error.to_string()),
            ReadError::OutOfRange { offset_bytes, size_bytes } => Self::OutOfRange { offset_bytes, size_bytes },
        }
    }
}
