//! The seam to the disk: what a device can do, and the buffers it does it with.
//!
//! Always true here: every offset and length is a multiple of [`PAGE_BYTES`]; a buffer that was handed to a device belongs
//! to it until the operation completed, whatever happens to the future that waits for it.

use std::{fmt::Debug, future::Future, io, pin::Pin};

mod backing;
mod buf;
mod open;
mod request;
mod sim;
mod sync;
mod uring;

pub(crate) use buf::taken_bytes;
pub use buf::{AlignedBuf, BufferPoolStats, RETAINED_BYTES_MAX, buffer_pool_stats};
pub use open::{
    DeviceError, DeviceOptions, Direct, IoBackend, create_file, extend_file, first_and_last_mib_are_zero, open_any, open_block_device,
    open_file, open_read_only,
};
pub use sim::{CrashModel, FlushFault, Latency, ReadFault, SimDevice, SimHandle, SimOptions, WriteFault};

/// The unit of I/O in bytes. Every offset, length and buffer address that reaches a [`Device`] is a multiple of it.
pub const PAGE_BYTES: usize = 4096;

/// A future of an I/O operation. The operation starts when the device is called if its queue has room, else when the future
/// finds room. Dropping the future does not stop an operation that has started.
pub type IoFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// What a device is, found out once when it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Usable size in bytes, a multiple of [`PAGE_BYTES`].
    pub len_bytes: u64,
    /// Logical sector size in bytes: an interrupted write leaves each of these whole, old or new, or unreadable.
    pub logical_sector_bytes: u32,
    /// Physical sector size in bytes.
    pub physical_sector_bytes: u32,
    /// Whether reads and writes bypass the page cache.
    pub direct: bool,
    /// Name of the backend, for messages: `io-uring`, `sync` or `sim`.
    pub backend: &'static str,
    /// Whether the device is a block device (and not a regular file).
    pub block_device: bool,
}

impl Geometry {
    /// The unit in which the kernel can continue a transfer that it cut short.
    fn grain_bytes(&self) -> usize {
        match self.direct {
            true => usize::try_from(self.logical_sector_bytes).unwrap_or(PAGE_BYTES),
            false => 1,
        }
    }
}

/// What a device has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Reads that were answered.
    pub reads: u64,
    /// Writes that were answered.
    pub writes: u64,
    /// Flushes that were answered.
    pub flushes: u64,
    /// Bytes of the reads that succeeded.
    pub bytes_read: u64,
    /// Bytes of the writes that succeeded.
    pub bytes_written: u64,
    /// Operations that were answered with an error.
    pub failed: u64,
    /// Operations that had not completed after 10 s.
    pub slow: u64,
    /// Operations that were accepted and are not answered.
    pub in_flight: u64,
}

/// Storage of a fixed size that is read and written in pages.
///
/// A successful `write` means that the kernel has completed it: it survives the end of the process. It survives a power
/// cut only once a `flush` that was issued after it succeeded. Operations complete in any order.
pub trait Device: Send + Sync + Debug + 'static {
    /// What the device is.
    fn geometry(&self) -> &Geometry;

    /// Fills the whole of `buf` from `offset_bytes`. The buffer comes back in every case; its content is only defined on
    /// success.
    fn read(&self, offset_bytes: u64, buf: AlignedBuf) -> IoFuture<(AlignedBuf, io::Result<()>)>;

    /// As [`Device::read`], but sees only what the medium has or a flush can still bring there. After a flush that failed, in this
    /// process or one before it, the page cache may go on showing what the medium lacks and will never get.
    fn read_stored(&self, offset_bytes: u64, buf: AlignedBuf) -> IoFuture<(AlignedBuf, io::Result<()>)> {
        self.read(offset_bytes, buf)
    }

    /// Writes the whole of `buf` at `offset_bytes` and gives the buffer back.
    fn write(&self, offset_bytes: u64, buf: AlignedBuf) -> IoFuture<(AlignedBuf, io::Result<()>)>;

    /// Makes every write that completed before this call durable. After an error nothing is known of them, and the call
    /// must not be repeated as if it could still succeed.
    fn flush(&self) -> IoFuture<io::Result<()>>;

    /// What the device has done, for metrics.
    fn counters(&self) -> DeviceCounters {
        DeviceCounters::default()
    }
}
