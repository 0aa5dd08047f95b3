//! The facade: a store that is open.
#![allow(missing_docs, unused, clippy::unimplemented)] // skeleton

use crate::{device::Device, error::*, key::Key};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};

/// Bytes that passed their checksum on the way from the device, or came from the upload that wrote them.
#[derive(Clone, Debug)]
pub struct Checksummed(Bytes);
impl Checksummed {
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Size of a block; None: capacity/128 rounded to a power of two within 1 MiB and 1 GiB.
    pub block_bytes: Option<u64>,
    /// How many objects the table must hold; None: one per 8 KiB of the device.
    pub objects: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    Interval,
    Group,
}

#[derive(Clone, Debug)]
pub struct OpenOptions {
    pub durability: Durability,
    /// No acknowledged byte is older than this when the flush that covers it starts.
    pub flush_ms_max: u64,
    /// Budget of the cache of verified records.
    pub cache_bytes: u64,
}

#[derive(Clone, Debug, Default)]
pub struct OpenReport {
    pub clean: bool,
    pub objects: u64,
    pub read_bytes: u64,
    pub voided_entries: u64,
    pub damaged_entries: u64,
    pub elapsed: Duration,
}

#[derive(Clone)]
pub struct Engine {
    _p: Arc<()>,
}

/// What a put did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    Stored,
    AlreadyPresent,
}

/// How an upload begins.
pub enum Begin {
    AlreadyPresent,
    Upload(Upload),
}

/// An upload in progress. Dropping it aborts it; nothing becomes visible before `finish`.
pub struct Upload {
    _p: (),
}
impl Upload {
    /// Appends bytes. Waits while the device is behind (bounded memory). Not cancel-safe: a dropped call poisons the upload.
    pub async fn write(&mut self, data: &[u8]) -> Result<(), PutError> {
        unimplemented!()
    }
    /// Bytes appended so far.
    pub fn written_bytes(&self) -> u64 {
        unimplemented!()
    }
    /// Publishes. The caller has checked that the bytes match the key.
    pub async fn finish(self) -> Result<PutOutcome, PutError> {
        unimplemented!()
    }
}

/// An object that was found. Small ones are whole in memory, large ones are read as they are asked for.
pub struct Object {
    _p: (),
}
impl Object {
    pub fn size_bytes(&self) -> u64 {
        unimplemented!()
    }
    /// The whole object, when it is small enough to be in memory already.
    pub fn whole(&self) -> Option<Checksummed> {
        unimplemented!()
    }
    /// A reader of a range.
    pub fn reader(self, offset: u64, limit: Option<u64>) -> Result<Reader, ReadError> {
        unimplemented!()
    }
}

/// Pieces of an object, in order, each up to 1 MiB.
pub struct Reader {
    _p: (),
}
impl Reader {
    pub async fn next(&mut self) -> Option<Result<Checksummed, ReadError>> {
        unimplemented!()
    }
}

impl Engine {
    /// Writes a new, empty store. Does not look at what the device held.
    pub async fn format(device: Arc<dyn Device>, options: &FormatOptions) -> Result<(), OpenError> {
        unimplemented!()
    }
    pub async fn open(device: Arc<dyn Device>, options: OpenOptions) -> Result<(Self, OpenReport), OpenError> {
        unimplemented!()
    }
    /// For each key (with the expected size, when known) whether it is present. Touches what is. No I/O.
    pub async fn lookup(&self, keys: &[(Key, Option<u64>)]) -> Vec<bool> {
        unimplemented!()
    }
    /// Finds an object and reads its first piece: `None` is a miss (also when its record is damaged).
    pub async fn get(&self, key: &Key, size_bytes: Option<u64>) -> Option<Object> {
        unimplemented!()
    }
    /// Puts a whole object from memory.
    pub async fn put(&self, key: Key, data: Bytes) -> Result<PutOutcome, PutError> {
        unimplemented!()
    }
    /// Puts many whole objects; they go into one batch. Results in order.
    pub async fn put_batch(&self, items: Vec<(Key, Bytes)>) -> Vec<Result<PutOutcome, PutError>> {
        unimplemented!()
    }
    /// Starts an upload of a content key whose size is known.
    pub async fn begin_upload(&self, key: Key, size_bytes: u64) -> Result<Begin, PutError> {
        unimplemented!()
    }
    /// Removes a named key; true if it was there.
    pub async fn delete(&self, key: &Key) -> Result<bool, PutError> {
        unimplemented!()
    }
    /// Largest object this store accepts.
    pub fn object_bytes_max(&self) -> u64 {
        unimplemented!()
    }
    /// Largest value of a named key.
    pub fn named_bytes_max(&self) -> u64 {
        unimplemented!()
    }
    /// Why writing is off, if it is.
    pub fn poisoned(&self) -> Option<String> {
        unimplemented!()
    }
    /// Makes everything acknowledged so far durable.
    pub async fn flush(&self) -> Result<(), PutError> {
        unimplemented!()
    }
    /// Writes an image, marks the store clean and stops. Uploads in progress end with `Unavailable`.
    pub async fn close(&self) -> Result<(), PutError> {
        unimplemented!()
    }
}
