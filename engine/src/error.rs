//! What can go wrong, by what the caller should do about it.

use std::io;
use thiserror::Error;

/// A store cannot be formatted or opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The device holds something that is not a blockstore; it was not changed.
    #[error("not a blockstore: {0}")]
    NotABlockstore(String),
    /// It is a blockstore, but not one that this program may or can open.
    #[error("cannot open the store: {0}")]
    Unusable(String),
    /// The device is too small, or a parameter does not fit it.
    #[error("{0}")]
    Geometry(String),
    /// The device failed.
    #[error("{action}: {source}")]
    Io {
        /// What was being done, with the place.
        action: String,
        /// The device's error.
        source: io::Error,
    },
}

/// A put did not happen.
#[derive(Clone, Debug, Error)]
pub enum PutError {
    /// Writing is poisoned, the store is closing, or the device is gone; lookups and reads go on.
    #[error("store does not accept writes: {0}")]
    Unavailable(String),
    /// The object is larger than this store can ever hold.
    #[error("object of {size_bytes} bytes is larger than the store can hold ({limit_bytes} bytes)")]
    TooLarge {
        /// Size of the object.
        size_bytes: u64,
        /// Largest size that would be accepted.
        limit_bytes: u64,
    },
    /// Running uploads hold all the space that uploads may hold.
    #[error("no room for another upload: {0}")]
    NoRoom(String),
    /// The bytes sent do not add up to the declared size.
    #[error("upload declared {declared_bytes} bytes but sent {sent_bytes}")]
    SizeMismatch {
        /// Declared size.
        declared_bytes: u64,
        /// Bytes that arrived (at least).
        sent_bytes: u64,
    },
}

/// A read failed other than by finding nothing.
#[derive(Clone, Debug, Error)]
pub enum ReadError {
    /// A stored chunk is damaged, or the object was rotated away, after bytes of it had been given out.
    #[error("object became unreadable at byte {offset_bytes}")]
    Lost {
        /// First byte that could not be read.
        offset_bytes: u64,
    },
    /// The object is encoded, and was asked for as if it were not.
    #[error("object is encoded")]
    Encoded,
    /// The range starts behind the end of the object.
    #[error("offset {offset_bytes} is past the end of an object of {size_bytes} bytes")]
    OutOfRange {
        /// Requested start.
        offset_bytes: u64,
        /// Size of the object.
        size_bytes: u64,
    },
}
